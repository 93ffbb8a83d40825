import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import OUT_OF_MEMORY, TooLarge, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded_graphs import RecordedCuda

from sklearn_msf.flow.ode_solver import OdeSettings
from sklearn_msf.flow.velocity_field import LABEL_PREDICTIONS
from sklearn_msf.model import sampling
from sklearn_msf.model.image_space import PixelInputs
from sklearn_msf.model.sampling import change_class, sample, sample_trajectory

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 1, 8, 8), dtype=np.uint8)
CPU = torch.device("cpu")


class Unchanged:
    """Stands in for an image format: images as the field generates them, to the last bit."""

    shape, flat, dtype = (8, 8), False, np.dtype(np.float32)

    def empty(self, n_images):
        return np.empty((n_images, 1, 8, 8), dtype=np.float32)

    def from_tensor(self, images):
        return images.numpy()


@pytest.fixture(autouse=True)
def batches_of_four(monkeypatch):
    monkeypatch.setattr(sampling, "_MAX_SAMPLED", 4)


def sampling_model(field):
    return tiny_model(field, image_format=Unchanged())


@pytest.mark.parametrize("label_prediction", LABEL_PREDICTIONS)
def test_image_i_of_a_seed_is_the_same_however_many_are_sampled(make_tiny_field, label_prediction):
    model = sampling_model(make_tiny_field(label_prediction))
    labels, ode = np.arange(10) % 3, OdeSettings(0.0, 1.0, 2)
    many = sample(model, labels, 7, ode)
    for n in (1, 3, 4, 9):
        np.testing.assert_array_equal(sample(model, labels[:n], 7, ode), many[:n])
    np.testing.assert_array_equal(sample(model, labels[5:], 7, ode, first=5), many[5:])
    assert np.abs(many[0] - many[3]).max() > 0.1


@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**31 - 2),
    start=st.integers(0, 10**6),
    n=st.integers(1, 4),
    padding=st.integers(0, 3),
    # Torch fills 16 values and more, and the rest of them, in other ways.
    shape=st.sampled_from([(1, 1, 1), (1, 2, 2), (2, 3, 5), (1, 8, 8)]),
)
def test_each_image_has_the_noise_of_a_seed_of_its_own(seed, start, n, padding, shape):
    model = SimpleNamespace(
        space=SimpleNamespace(shape=shape),
        field=SimpleNamespace(n_mask_noise=3),
        device=CPU,
    )
    found = sampling.image_noise(model, seed, start, n, n + padding)
    assert found.shape == (n + padding, shape[0] + 3, *shape[1:])
    first = int(np.random.SeedSequence(seed).generate_state(1)[0])
    for i in range(n):
        generator = torch.Generator().manual_seed(sampling._scattered(first + start + i))
        assert torch.equal(found[i], torch.randn(found[i].shape, generator=generator))
    assert not found[n:].any()


@given(st.integers(0, 2**32 - 1), st.integers(1, 2**33))
def test_no_two_of_very_many_images_have_one_seed(first, step):
    # Random seeds of 32 bits would be drawn twice in every 100,000 images.
    if step % 2**32:
        assert sampling._scattered(first) != sampling._scattered(first + step)
    assert sampling._scattered(first) == sampling._scattered(first + 2**32)


def test_seeds_of_neighbours_have_about_half_of_their_bits_in_common():
    seeds = np.array([sampling._scattered(i) for i in range(2000)], dtype=np.uint32)
    differing = [bin(a ^ b).count("1") for a, b in itertools.pairwise(seeds.tolist())]
    assert 15.5 < np.mean(differing) < 16.5
    assert len(set(seeds.tolist())) == 2000


def test_the_seed_of_image_i_stays_what_it_is(monkeypatch):
    seeds = []
    normal = torch.Tensor.normal_
    monkeypatch.setattr(
        torch.Tensor,
        "normal_",
        lambda self, generator: (
            seeds.append(generator.initial_seed()) or normal(self, generator=generator)
        ),
    )
    space = SimpleNamespace(shape=(1, 2, 2))
    field = SimpleNamespace(n_mask_noise=1)
    model = SimpleNamespace(space=space, field=field, device=CPU)
    sampling.image_noise(model, 7, 2, 2, 2)
    assert seeds == [3705193734, 2929928200]


def test_sampling_goes_on_with_smaller_batches_where_memory_runs_out(make_tiny_field, caplog):
    model = sampling_model(make_tiny_field())
    expected = sample(model, np.arange(6) % 3, 0, OdeSettings(0.0, 1.0))
    TooLarge(model.field, 2, OUT_OF_MEMORY[0])
    images = sample(model, np.arange(6) % 3, 0, OdeSettings(0.0, 1.0))
    np.testing.assert_allclose(images, expected, rtol=1.3e-6, atol=1e-5)
    assert "batches of 2" in caplog.text


def test_a_change_of_class_goes_on_with_smaller_batches_too(make_tiny_field, caplog):
    model = sampling_model(make_tiny_field())
    inputs, labels, ode = PixelInputs(IMAGES, CPU), np.arange(6) % 3, OdeSettings(0.0, 1.0)
    expected = change_class(model, inputs, labels, labels, ode)
    TooLarge(model.field, 2, OUT_OF_MEMORY[0])
    found = change_class(model, inputs, labels, labels, ode)
    np.testing.assert_allclose(found, expected, rtol=1.3e-6, atol=1e-5)
    assert "batches of 2" in caplog.text


def test_every_sampled_image_is_reported_once(make_tiny_field):
    reported = []
    model = sampling_model(make_tiny_field())
    sample(model, np.arange(10) % 3, 0, OdeSettings(0.0, 1.0), report=reported.append)
    assert reported == [4, 4, 2]


def test_only_the_way_back_to_another_class_is_guided(make_tiny_field, monkeypatch):
    model, ways = sampling_model(make_tiny_field()), []

    def carry_images(x, masks, e_y, ode):
        ways.append((ode, model.field.codes.distances(masks).argmin(dim=1).tolist()))
        return x

    monkeypatch.setattr(model.field, "carry_images", carry_images)
    ode = OdeSettings(0.0, 1.0, 25, "midpoint", guidance=2.0)
    sources, targets = np.array([0, 1, 2, 0]), np.array([2, 2, 0, 1])
    change_class(model, PixelInputs(IMAGES[:4], CPU), sources, targets, ode)
    to_noise = OdeSettings(1.0, 0.0, 25, "midpoint", guidance=0.0)
    assert ways == [(to_noise, sources.tolist()), (ode, targets.tolist())]


@pytest.mark.parametrize("image_prediction", ["velocity", "denoised"])
def test_a_trajectory_ends_at_the_first_image_of_its_seed(make_tiny_field, image_prediction):
    model = sampling_model(make_tiny_field(image_prediction=image_prediction))
    ode = OdeSettings(0.0, 1.0, 4)
    images, masks, times = sample_trajectory(model, 2, 7, ode)
    assert images.shape == (5, 1, 8, 8)
    assert masks.shape == (5, 8, 8, 3)
    np.testing.assert_allclose(times, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(images[-1:], sample(model, np.array([2]), 7, ode), atol=1e-5)
    colour = model.field.codes.codes[2].numpy()
    np.testing.assert_allclose(masks[0], np.broadcast_to(colour, (8, 8, 3)))
    # At t = 1 nothing but the noise of the mask is left.
    noise = sampling.image_noise(model, 7, 0, 1)[0, 1:].movedim(0, -1)
    np.testing.assert_allclose(masks[-1], noise, atol=1e-5)


def test_each_way_and_each_number_of_steps_has_its_own_graph(make_tiny_field, monkeypatch):
    model, inputs = sampling_model(make_tiny_field()), PixelInputs(IMAGES[:4], CPU)
    sources, targets = np.array([0, 1, 2, 0]), np.array([2, 2, 0, 1])
    odes = [OdeSettings(0.0, 1.0, n, "midpoint") for n in (1, 2)]
    wanted = [change_class(model, inputs, sources, targets, ode) for ode in odes]
    RecordedCuda().install(monkeypatch)
    for ode, images in zip(odes, wanted, strict=True):
        found = change_class(model, inputs, sources, targets, ode)
        np.testing.assert_allclose(found, images, atol=1e-4)
