import numpy as np
import pytest
import torch

from sklearn_msf.flow.path import sample_path
from sklearn_msf.model.denoising_error import image_residuals
from sklearn_msf.model.inference import InferenceSettings, PixelInputs

SETTINGS = InferenceSettings(1, "euler", batch_size=4, precision="float32")


@pytest.mark.parametrize("form", ["posterior", "velocity"])
def test_residuals_are_the_squared_errors_of_the_image_velocity(make_tiny_field, form):
    field = make_tiny_field(form)
    images = np.random.default_rng(0).integers(0, 256, (6, 1, 8, 8), dtype=np.uint8)
    labels = np.array([[0, 2]] * 6)
    times, noise = torch.tensor([0.2, 0.7]), torch.randn(2, 4, 8, 8)
    inputs = PixelInputs(images, torch.device("cpu"))
    found = image_residuals(field, inputs, labels, times, noise, SETTINGS)
    assert found.shape == (6, 2, 2)

    x = torch.from_numpy(images).float() / 127.5 - 1
    masks = field.codes.masks(torch.full((6,), 2), (8, 8))
    e = noise[1:].expand(6, -1, -1, -1)
    point = sample_path(x, masks, e[:, :1], e[:, 1:], torch.full((6,), 0.7))
    with torch.no_grad():
        v_x, _ = field(point.x_t, point.y_t, point.t)
    expected = (v_x - point.u_x).square().mean(dim=(1, 2, 3))
    np.testing.assert_allclose(found[:, 1, 1], expected, rtol=1e-4)


def test_a_residual_does_not_depend_on_the_other_rows(make_tiny_field):
    field, noise = make_tiny_field(), torch.randn(1, 4, 8, 8)
    images = np.random.default_rng(0).integers(0, 256, (7, 1, 8, 8), dtype=np.uint8)
    labels = np.arange(7)[:, None] % 3

    def residuals(rows):
        inputs = PixelInputs(images[rows], torch.device("cpu"))
        return image_residuals(field, inputs, labels[rows], torch.tensor([0.5]), noise, SETTINGS)

    rows = [6, 2, 4]
    np.testing.assert_array_equal(residuals(rows), residuals(np.arange(7))[rows])
