from dataclasses import dataclass
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from conftest import OUT_OF_MEMORY, TooLarge, limit_full_passes, tiny_model, torch_threads
from recorded_graphs import RecordedCuda

from sklearn_msf.data.images import learn_format
from sklearn_msf.flow.label_codes import LABEL_ENCODINGS, CodeReader
from sklearn_msf.flow.ode_solver import OdeSettings
from sklearn_msf.flow.velocity_field import LABEL_PREDICTIONS, VelocityRegressionField
from sklearn_msf.model import classification
from sklearn_msf.model.classification import (
    ClassificationSettings,
    classify,
    images_a_pass,
    predict,
    read_evidence,
)
from sklearn_msf.model.fitted_model import FittedModel
from sklearn_msf.model.image_space import PixelInputs, PixelSpace
from sklearn_msf.model.temperature import apply_temperature
from sklearn_msf.nn.unet import UNet
from sklearn_msf.runtime import batch_sizes

N = 21
IMAGES = np.random.default_rng(0).integers(0, 256, (N, 1, 8, 8), dtype=np.uint8)
NOISE = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
# One batch padded to each size, full batches with a rest, other orders, repeated images.
ROWS = [
    *([3], [20, 0], [7, 5, 6], [9, 1, 8, 2, 4], list(range(11, 2, -1)), list(range(16))),
    list(range(N))[::-1],
    np.random.default_rng(0).integers(0, N, 40).tolist(),
]
CPU = torch.device("cpu")
ONE_STEP = OdeSettings(1.0, 0.0)


@dataclass(frozen=True)
class ModelWithNoise(FittedModel):
    """A model with noise to choose."""

    given: torch.Tensor

    def noise(self, n, n_channels):
        return self.given[:n, :n_channels]


def classified(
    field, images, noise, *, ode=ONE_STEP, precision="float32", batch_size=16, flipped_axes=()
):
    """Classify in batches of a size; mask noise is one draw after the other."""
    model = tiny_model(field, ModelWithNoise, given=noise, flipped_axes=flipped_axes)
    how = ClassificationSettings(ode, len(noise), precision, "latent")
    with patch.object(classification, "images_a_pass", lambda *arguments: batch_size):
        return classify(model, PixelInputs(images, CPU), how)


@pytest.mark.parametrize("label_prediction", LABEL_PREDICTIONS)
@pytest.mark.parametrize("encoding", LABEL_ENCODINGS)
@pytest.mark.parametrize(
    ("n_classes", "precision"), [(3, "float32"), (3, "bfloat16"), (5, "float32")]
)
def test_a_prediction_is_the_same_to_the_last_bit_whatever_images_are_beside_it(
    make_tiny_field, label_prediction, encoding, n_classes, precision
):
    field = make_tiny_field(label_prediction, label_encoding=encoding, n_classes=n_classes)
    together = classified(field, IMAGES, NOISE, precision=precision)

    for rows in ROWS:
        chosen = classified(field, IMAGES[rows], NOISE, precision=precision)
        np.testing.assert_array_equal(chosen.probabilities, together.probabilities[rows])
        np.testing.assert_array_equal(chosen.distances, together.distances[rows])


@pytest.mark.parametrize("label_prediction", LABEL_PREDICTIONS)
@pytest.mark.parametrize("n_draws", [5, 7])
def test_many_draws_are_averaged_in_one_order_at_any_place_of_any_batch(
    make_tiny_field, label_prediction, n_draws, monkeypatch
):
    # Torch adds the rows of a tensor in another order where a vector of columns is not full.
    monkeypatch.setattr(batch_sizes, "_CHECKED", {})
    field = make_tiny_field(label_prediction)
    noise = torch.randn(n_draws, *NOISE.shape[1:], generator=torch.Generator().manual_seed(1))

    def answers(images):
        settings = {"batch_size": 11, "flipped_axes": (-1,)}
        prediction = classified(field, images, noise, **settings)
        return np.concatenate([prediction.probabilities, prediction.distances], axis=1)

    alone = np.concatenate([answers(image[None]) for image in IMAGES])
    np.testing.assert_array_equal(answers(IMAGES), alone)
    np.testing.assert_array_equal(answers(np.flip(IMAGES, 0).copy())[::-1], alone)


@pytest.mark.parametrize("label_prediction", LABEL_PREDICTIONS)
def test_hooks_of_a_user_see_no_trial(make_tiny_field, label_prediction, monkeypatch):
    monkeypatch.setattr(batch_sizes, "_CHECKED", {})
    field, seen = make_tiny_field(label_prediction), []
    field.unet.conv_in.register_forward_hook(lambda *passed: seen.append(passed))
    classified(field, IMAGES[:1], NOISE)
    # One pass of all draws.
    assert len(seen) == 1


def test_the_smallest_batches_of_one_model_are_those_of_its_form_and_of_its_images(
    make_tiny_field, monkeypatch
):
    monkeypatch.setattr(batch_sizes, "_CHECKED", {})
    tried, digests = [], batch_sizes._Digests
    monkeypatch.setattr(
        batch_sizes, "_Digests", lambda *passed: tried.append(passed[-1]) or digests(*passed)
    )

    def is_tried_anew(field, side=8):
        tried.clear()
        image_format = learn_format(np.zeros((1, side**2), np.uint8), (side, side), flat=False)
        model = tiny_model(field, image_format=image_format, space=PixelSpace(image_format))
        how = ClassificationSettings(ONE_STEP, 1, "float32", "latent")
        images = np.zeros((3, 1, side, side), dtype=np.uint8)
        classify(model, PixelInputs(images, CPU), how)
        return bool(tried)

    assert is_tried_anew(make_tiny_field())
    assert not is_tried_anew(make_tiny_field())
    assert is_tried_anew(make_tiny_field(), side=12)
    assert is_tried_anew(make_tiny_field(n_classes=4))
    # Other rounding, and weights of the same shapes.
    assert is_tried_anew(make_tiny_field(time_scale=25.0))
    assert not is_tried_anew(make_tiny_field())


def test_black_images_and_a_field_of_zeros_do_not_decide_on_the_batches_of_others(
    make_tiny_field, monkeypatch
):
    rows = slice(3, 4)
    field, zeros = make_tiny_field(), make_tiny_field()
    for weight in zeros.parameters():
        weight.data.zero_()
    found = []
    for first, images in ((field, IMAGES), (field, np.zeros_like(IMAGES)), (zeros, IMAGES)):
        monkeypatch.setattr(batch_sizes, "_CHECKED", {})
        classified(first, images[rows], NOISE)
        found.append(list(batch_sizes._CHECKED.values()))
        # What was seen with these values holds for all others.
        alone, together = (classified(field, part, NOISE) for part in (IMAGES[rows], IMAGES))
        np.testing.assert_array_equal(alone.probabilities, together.probabilities[rows])
    assert found == found[:1] * 3


@pytest.mark.parametrize("label_prediction", LABEL_PREDICTIONS)
def test_probabilities_are_float64_and_sum_to_one(make_tiny_field, label_prediction):
    p = classified(make_tiny_field(label_prediction), IMAGES, NOISE).probabilities
    assert p.dtype == np.float64
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-12)


def test_draws_are_averaged(make_tiny_field):
    field = make_tiny_field("velocity")
    single = [classified(field, IMAGES, NOISE[i : i + 1]) for i in range(2)]
    both = classified(field, IMAGES, NOISE)
    assert np.abs(single[0].distances - single[1].distances).max() > 1e-4
    assert (both.distances <= (single[0].distances + single[1].distances) / 2 + 1e-6).all()


def flipped(flip):
    return np.ascontiguousarray(np.flip(IMAGES, flip))


@pytest.mark.parametrize("label_prediction", LABEL_PREDICTIONS)
def test_every_second_draw_may_see_the_mirror_image(make_tiny_field, label_prediction):
    field, mirrored = make_tiny_field(label_prediction), flipped(-1)
    first = classified(field, IMAGES, NOISE[:1]).probabilities
    second = classified(field, mirrored, NOISE[1:]).probabilities
    both = classified(field, IMAGES, NOISE, flipped_axes=(-1,)).probabilities
    if label_prediction == "posterior":
        np.testing.assert_allclose(both, (first + second) / 2, atol=1e-6)
    swapped = classified(field, mirrored, NOISE.flip(0), flipped_axes=(-1,)).probabilities
    np.testing.assert_allclose(both, swapped, atol=1e-6)


@pytest.mark.parametrize("n_draws", [1, 2, 3, 4, 6])
def test_draws_see_the_flips_of_training_in_turn(make_tiny_field, n_draws):
    field = make_tiny_field("posterior")
    noise = torch.randn(n_draws, 3, 8, 8, generator=torch.Generator().manual_seed(n_draws))
    flips = [(), (-1,), (-2,), (-1, -2)] * 2
    alone = [
        classified(field, flipped(flip), noise[draw : draw + 1]).probabilities
        for draw, flip in enumerate(flips[:n_draws])
    ]
    together = classified(field, IMAGES, noise, flipped_axes=(-1, -2)).probabilities
    np.testing.assert_allclose(together, np.mean(alone, axis=0), atol=1e-6)


@pytest.mark.parametrize("n_steps", [1, 4])
def test_the_posterior_is_that_of_the_euler_steps_it_stands_for(make_tiny_field, n_steps):
    # Five colours: no mask tells p, which the network does.
    field = make_tiny_field("posterior", n_classes=5)
    ode = OdeSettings(1.0, 0.0, n_steps)
    prediction = classified(field, IMAGES, NOISE[:1], ode=ode)
    x = torch.from_numpy(IMAGES) / 127.5 - 1
    e_y = NOISE[:1, :3].expand(N, -1, -1, -1)
    mask = VelocityRegressionField.class_evidence(field, x, e_y, ode)
    distances = field.codes.distances(mask).detach().numpy()
    np.testing.assert_allclose(prediction.distances, distances, atol=1e-3)
    mean_codes = field.codes.mean_codes(torch.from_numpy(prediction.probabilities))
    np.testing.assert_allclose(mean_codes, mask.mean(dim=(2, 3)).detach(), atol=1e-3)


def test_bfloat16_agrees_with_float32(make_tiny_field):
    field = make_tiny_field("posterior")
    exact, rough = (
        classified(field, IMAGES, NOISE, precision=p).probabilities for p in ("float32", "bfloat16")
    )
    np.testing.assert_allclose(exact, rough, atol=0.02)


@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_the_number_of_threads_does_not_change_a_bit(make_tiny_field, n_threads):
    field = make_tiny_field()
    expected = classified(field, IMAGES, NOISE).probabilities
    with torch_threads(n_threads):
        found = classified(field, IMAGES, NOISE).probabilities
        assert torch.get_num_threads() == n_threads
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("encoding", LABEL_ENCODINGS)
def test_reading_one_large_mask_in_several_threads_does_not_change_a_bit(make_tiny_field, encoding):
    # As on a GPU, whose masks are read in the thread of the user. Torch splits sums of so many
    # values, but only those of a single mask.
    field = make_tiny_field("velocity", label_encoding=encoding)
    generator = torch.Generator().manual_seed(0)
    masks = torch.randn(3, field.codes.n_channels, 300, 300, generator=generator)
    reader = CodeReader(field.codes_on_cpu)
    with torch_threads(4):
        together = read_evidence(field, masks, 3, reader)
        alone = [read_evidence(field, mask[None], 1, reader) for mask in masks]
    for part, parts in zip(together, zip(*alone, strict=True), strict=True):
        np.testing.assert_array_equal(torch.cat(parts), part)


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_where_memory_runs_out_smaller_batches_go_on(make_tiny_field, caplog, error):
    field = make_tiny_field()
    expected = classified(field, IMAGES, NOISE, batch_size=4).probabilities
    TooLarge(field, 4, error)
    found = classified(field, IMAGES, NOISE, batch_size=16).probabilities
    np.testing.assert_array_equal(found, expected)
    lines = [record.message for record in caplog.records]
    assert lines == [f"Out of memory: going on with batches of {n}." for n in (8, 4)]


def test_batches_that_are_done_are_not_done_again(make_tiny_field):
    field = make_tiny_field()
    encode, calls = field.encode, []

    def third_fails(x_t, y_t, t):
        calls.append(len(x_t))
        if len(calls) == 3:
            raise OUT_OF_MEMORY[0]
        return encode(x_t, y_t, t)

    field.encode = third_fails
    with torch_threads(1):
        classified(field, IMAGES[:16], NOISE[:1], batch_size=4)
    # Two batches of four, one that failed (with what was queued behind it), the rest in twos.
    assert calls[:3] == [4, 4, 4]
    assert calls.count(2) == 4


def test_other_errors_are_not_taken_for_it(make_tiny_field):
    field = make_tiny_field()
    TooLarge(field, 0, RuntimeError("something else"))
    with pytest.raises(RuntimeError, match="something else"):
        classified(field, IMAGES, NOISE)


def test_one_image_that_does_not_fit_is_an_error(make_tiny_field):
    field = make_tiny_field()
    TooLarge(field, 0, OUT_OF_MEMORY[0])
    with pytest.raises(torch.OutOfMemoryError):
        classified(field, IMAGES, NOISE)


# The size of a batch


@pytest.fixture
def full_passes(monkeypatch):
    """As large as they are outside of the tests."""
    limit_full_passes(classification._MAX_ROWS, monkeypatch)


@pytest.mark.usefixtures("full_passes")
@pytest.mark.parametrize(("n_draws", "n_images"), [(1, 256), (4, 64), (100, 2), (1000, 1)])
def test_all_draws_of_a_batch_are_the_rows_of_one_pass(make_tiny_field, n_draws, n_images):
    assert images_a_pass(tiny_model(make_tiny_field()), n_draws, ONE_STEP) == n_images


@pytest.mark.usefixtures("full_passes")
def test_a_pass_over_larger_images_has_fewer_of_them(make_tiny_field):
    class LargeSpace:
        shape = (1, 56, 112)

    model = tiny_model(make_tiny_field(), space=LargeSpace())
    assert images_a_pass(model) == 32
    assert images_a_pass(model, 4) == 8


@pytest.mark.usefixtures("full_passes")
def test_a_gpu_takes_large_images_together():
    cpu, gpu = (
        of_default_network(side=224, channels=32, patch_size=16, device=name)
        for name in ("cpu", "cuda")
    )
    assert (images_a_pass(cpu), images_a_pass(gpu)) == (4, 128)


def of_default_network(*, side, channels, patch_size, device="cpu"):
    unet = UNet(6, 6, channels=channels, channel_mult=(1,), n_blocks=1, patch_size=patch_size)
    return SimpleNamespace(
        space=SimpleNamespace(shape=(3, side, side)),
        field=SimpleNamespace(unet=unet),
        device=torch.device(device),
    )


@pytest.mark.usefixtures("full_passes")
def test_a_pass_of_a_larger_network_has_fewer_images():
    # One that has to be padded to the full size is still computed in a second.
    default = of_default_network(side=28, channels=32, patch_size=2)
    of_paper = of_default_network(side=32, channels=64, patch_size=1)
    assert [images_a_pass(default), images_a_pass(default, max_rows=16)] == [256, 16]
    assert [images_a_pass(of_paper), images_a_pass(of_paper, max_rows=16)] == [24, 1]


def test_draws_of_one_pass_that_are_the_same_are_computed_once(make_tiny_field, monkeypatch):
    field, rows = make_tiny_field(), []
    evidence = field.class_evidence

    def counted(x, e_y, ode):
        rows.append(len(x))
        return evidence(x, e_y, ode)

    monkeypatch.setattr(field, "class_evidence", counted)
    counted.__name__ = "class_evidence"
    noise = torch.randn(5, 3, 8, 8)
    plain = classified(field, IMAGES[:16], noise)
    mirrored = classified(field, IMAGES[:16], noise, flipped_axes=(1,))
    assert set(rows) == {16, 32}
    assert plain.probabilities.shape == mirrored.probabilities.shape == (16, 3)
    # Of five draws three see the image and two its mirror image.
    alone, both = (
        classified(field, IMAGES[:16], noise[:n], flipped_axes=(1,)).probabilities for n in (1, 2)
    )
    expected = (3 * alone + 2 * (2 * both - alone)) / 5
    np.testing.assert_allclose(mirrored.probabilities, expected, atol=1e-6)


@pytest.mark.parametrize("label_prediction", LABEL_PREDICTIONS)
@pytest.mark.parametrize("n_steps", [1, 3])
def test_every_way_of_reading_the_class_is_captured(
    make_tiny_field, monkeypatch, label_prediction, n_steps
):
    field, ode = make_tiny_field(label_prediction), OdeSettings(1.0, 0.0, n_steps, "midpoint")
    expected = classified(field, IMAGES[:16], NOISE, ode=ode).probabilities
    cuda = RecordedCuda().install(monkeypatch)
    for _ in range(2):
        found = classified(field, IMAGES[:16], NOISE, ode=ode).probabilities
        np.testing.assert_allclose(found, expected, atol=1e-6)
    assert cuda.captured
    assert cuda.n_replayed > len(cuda.captured)


@pytest.mark.parametrize("label_prediction", LABEL_PREDICTIONS)
def test_what_is_only_tried_is_not_captured(make_tiny_field, monkeypatch, label_prediction):
    monkeypatch.setattr(batch_sizes, "_CHECKED", {})
    cuda = RecordedCuda().install(monkeypatch)
    # No power of two, as the sizes are that are tried.
    classified(make_tiny_field(label_prediction), IMAGES[:3], NOISE)
    assert batch_sizes._CHECKED
    assert len(cuda.captured) == 1


def test_one_pass_of_the_posterior_needs_no_noise(make_tiny_field):
    field = make_tiny_field("posterior")
    x = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    wanted = field.class_evidence(x, noise, ONE_STEP)
    for ode, size in ((ONE_STEP, (1, 1)), (OdeSettings(1.0, 0.0, 2), (8, 8))):
        model = tiny_model(field, flipped_axes=(-1,))
        given = model.mask_noise(3, ode)
        # Draws of several steps have noise of their own; of one step only flips differ.
        assert given.shape == (2 if ode is ONE_STEP else 3, 3, *size)
    one_pixel = tiny_model(field).mask_noise(5, ONE_STEP).expand(5, -1, -1, -1)
    assert torch.equal(field.class_evidence(x, one_pixel, ONE_STEP), wanted)


def test_an_adaptive_method_sees_one_image_at_a_time(make_tiny_field):
    model = tiny_model(make_tiny_field())
    assert images_a_pass(model, ode=OdeSettings(1.0, 0.0, 1, "dopri5")) == 1


# What a prediction tells


def test_the_noise_of_a_model_is_the_same_in_every_call(make_tiny_field):
    model = tiny_model(make_tiny_field())
    noise = model.noise(2, 3)
    assert noise.shape == (2, 3, 8, 8)
    assert torch.equal(model.noise(2, 3), noise)
    assert not torch.equal(tiny_model(model.field, noise_seed=1).noise(2, 3), noise)
    assert not torch.equal(noise[0], noise[1])


@pytest.mark.parametrize(
    ("kind", "entries"),
    [("margin", set()), ("draws", {"draws"}), ("image", {"denoising_errors"})],
)
def test_a_prediction_tells_what_a_kind_of_uncertainty_needs(make_tiny_field, kind, entries):
    model = tiny_model(make_tiny_field(), temperature=2.0)
    how = ClassificationSettings(ONE_STEP, 2, "float32", "latent")
    inputs = PixelInputs(IMAGES, CPU)
    prediction = predict(model, inputs, how, kind)
    optional = {"draws": (N, 2, 3), "denoising_errors": (N, 3)}
    found = {name for name in optional if getattr(prediction, name) is not None}
    assert found == entries
    for name in found:
        assert getattr(prediction, name).shape == optional[name]
    plain = classify(model, inputs, how)
    np.testing.assert_array_equal(
        prediction.probabilities, apply_temperature(plain.probabilities, 2.0)
    )


def test_draws_are_told_before_any_temperature(make_tiny_field):
    field = make_tiny_field()
    how = ClassificationSettings(ONE_STEP, 2, "float32", "latent")
    inputs = PixelInputs(IMAGES, CPU)
    warm, plain = (
        predict(tiny_model(field, temperature=t), inputs, how, "draws") for t in (2.0, 1.0)
    )
    np.testing.assert_array_equal(warm.draws, plain.draws)
    np.testing.assert_allclose(plain.draws.mean(axis=1), plain.probabilities, atol=1e-6)
