import numpy as np
import pytest
import torch
from conftest import tiny_model, torch_threads

from sklearn_msf.flow.path import sample_path
from sklearn_msf.model.denoising_error import denoising_errors, typicality
from sklearn_msf.model.image_space import PixelInputs

CPU = torch.device("cpu")


@pytest.mark.parametrize("label_prediction", ["posterior", "velocity"])
def test_denoising_errors_are_the_squared_errors_of_the_image_velocity(
    make_tiny_field, label_prediction
):
    field = make_tiny_field(label_prediction)
    model = tiny_model(field)
    images = np.random.default_rng(0).integers(0, 256, (6, 1, 8, 8), dtype=np.uint8)
    labels = np.array([[0, 2]] * 6)
    found = denoising_errors(model, PixelInputs(images, CPU), labels, (0.2, 0.7), "float32", 4)
    assert found.shape == (6, 2, 2)

    x = torch.from_numpy(images).float() / 127.5 - 1
    masks = field.codes.masks(torch.full((6,), 2), (8, 8))
    e = model.noise(2, 4)[1:].expand(6, -1, -1, -1)
    point = sample_path(x, masks, e[:, :1], e[:, 1:], torch.full((6,), 0.7))
    with torch.no_grad():
        v_x, _ = field(point.x_t, point.y_t, point.t)
    expected = (v_x - point.u_x).square().mean(dim=(1, 2, 3))
    np.testing.assert_allclose(found[:, 1, 1], expected, rtol=1e-4)


def test_a_denoising_error_does_not_depend_on_the_other_images(make_tiny_field):
    model = tiny_model(make_tiny_field())
    images = np.random.default_rng(0).integers(0, 256, (7, 1, 8, 8), dtype=np.uint8)
    labels = np.arange(7)[:, None] % 3

    def errors(chosen):
        inputs = PixelInputs(images[chosen], CPU)
        return denoising_errors(model, inputs, labels[chosen], (0.5,), "float32", 4)

    chosen = [6, 2, 4]
    np.testing.assert_array_equal(errors(chosen), errors(np.arange(7))[chosen])


def test_a_denoising_error_does_not_depend_on_the_number_of_cores(make_tiny_field):
    model = tiny_model(make_tiny_field())
    images = np.random.default_rng(0).integers(0, 256, (9, 1, 8, 8), dtype=np.uint8)
    inputs, labels = PixelInputs(images, CPU), np.arange(18).reshape(9, 2) % 3
    found = []
    for n_threads in (1, 4):
        with torch_threads(n_threads):
            found.append(denoising_errors(model, inputs, labels, (0.2, 0.5), "float32", 16))
    np.testing.assert_array_equal(*found)


def test_images_that_are_denoised_better_are_more_typical(make_tiny_field):
    model = tiny_model(make_tiny_field())
    images = np.random.default_rng(0).integers(0, 256, (5, 1, 8, 8), dtype=np.uint8)
    inputs, labels = PixelInputs(images, CPU), np.array([0, 1, 2, 1, 0])
    found = typicality(model, inputs, labels, "float32", 4)
    errors = denoising_errors(model, inputs, labels[:, None], (0.1, 0.2, 0.5), "float32", 4)
    np.testing.assert_allclose(found, -np.log(errors[:, 0]).mean(axis=1))
