import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sklearn_msf.flow.label_codes import LABEL_ENCODINGS
from sklearn_msf.flow.parameterizations import LABEL_PREDICTIONS
from sklearn_msf.flow.velocity_field import VelocityField
from sklearn_msf.model.inference import (
    InferenceSettings,
    PixelInputs,
    classify,
    generate,
    translate,
)

N = 21
IMAGES = np.random.default_rng(0).integers(0, 256, (N, 1, 8, 8), dtype=np.uint8)
NOISE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def inference(**overrides):
    standard = {"n_steps": 1, "ode_solver": "euler", "batch_size": 16, "precision": "float32"}
    return InferenceSettings(**{**standard, **overrides})


def classified(field, images, noise, settings):
    return classify(field, PixelInputs(images, noise.device), noise, settings, field.codes)


def unchanged(drawn):
    return drawn


@pytest.mark.parametrize("form", LABEL_PREDICTIONS)
@pytest.mark.parametrize("encoding", LABEL_ENCODINGS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_prediction_is_the_same_to_the_last_bit_whatever_rows_are_beside_it(
    make_tiny_field, form, encoding, precision
):
    field = make_tiny_field(form, encoding=encoding)
    noise = NOISE[:, : field.codes.n_channels]
    how = inference(precision=precision)
    together = classified(field, IMAGES, noise, how)

    @settings(max_examples=20)
    @given(st.lists(st.integers(0, N - 1), min_size=1, max_size=40))
    def check(rows):
        chosen = classified(field, IMAGES[rows], noise, how)
        np.testing.assert_array_equal(chosen.probabilities, together.probabilities[rows])
        np.testing.assert_array_equal(chosen.distances, together.distances[rows])

    check()


@pytest.mark.parametrize("form", LABEL_PREDICTIONS)
def test_probabilities_are_float64_and_sum_to_one(make_tiny_field, form):
    p = classified(make_tiny_field(form), IMAGES, NOISE, inference()).probabilities
    assert p.dtype == np.float64
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-12)


def test_draws_are_averaged(make_tiny_field):
    field = make_tiny_field("velocity")
    single = [classified(field, IMAGES, NOISE[i : i + 1], inference()) for i in range(2)]
    both = classified(field, IMAGES, NOISE, inference())
    assert np.abs(single[0].distances - single[1].distances).max() > 1e-4
    assert (both.distances <= (single[0].distances + single[1].distances) / 2 + 1e-6).all()


@pytest.mark.parametrize("form", LABEL_PREDICTIONS)
def test_every_second_draw_may_see_the_mirror_image(make_tiny_field, form):
    field = make_tiny_field(form)
    mirrored = np.ascontiguousarray(IMAGES[..., ::-1])
    first = classified(field, IMAGES, NOISE[:1], inference()).probabilities
    second = classified(field, mirrored, NOISE[1:], inference()).probabilities
    both = classified(field, IMAGES, NOISE, inference(mirror_draws=True)).probabilities
    if form == "posterior":
        np.testing.assert_allclose(both, (first + second) / 2, atol=1e-6)
    swapped = classified(field, mirrored, NOISE.flip(0), inference(mirror_draws=True)).probabilities
    np.testing.assert_allclose(both, swapped, atol=1e-6)


@pytest.mark.parametrize("n_steps", [1, 4])
def test_the_posterior_is_that_of_the_euler_steps_it_stands_for(make_tiny_field, n_steps):
    # Five colours: no mask tells p, which the network does.
    field = make_tiny_field("posterior", n_classes=5)
    prediction = classified(field, IMAGES, NOISE[:1], inference(n_steps=n_steps))
    x = torch.from_numpy(IMAGES) / 127.5 - 1
    e_y = NOISE[:1].expand(N, -1, -1, -1)
    mask = VelocityField.classify(field, x, e_y, n_steps=n_steps, method="euler")
    distances = field.codes.distances(mask).detach().numpy()
    np.testing.assert_allclose(prediction.distances, distances, atol=1e-3)
    mean_codes = field.codes.mean_codes(torch.from_numpy(prediction.probabilities))
    np.testing.assert_allclose(mean_codes, mask.mean(dim=(2, 3)).detach(), atol=1e-3)


@pytest.mark.parametrize("form", LABEL_PREDICTIONS)
def test_image_i_of_a_seed_is_the_same_however_many_are_drawn(make_tiny_field, form):
    field = make_tiny_field(form)
    labels = torch.arange(10) % 3
    many = generate(field, labels, (1, 8, 8), 7, inference(n_steps=2, batch_size=4), unchanged)
    for n in (1, 3, 4, 9):
        few = generate(
            field, labels[:n], (1, 8, 8), 7, inference(n_steps=2, batch_size=4), unchanged
        )
        assert torch.equal(few, many[:n])
    assert (many[0] - many[3]).abs().max() > 0.1


def test_bfloat16_agrees_with_float32(make_tiny_field):
    field = make_tiny_field("posterior")
    exact, rough = (
        classified(field, IMAGES, NOISE, inference(precision=p)).probabilities
        for p in ("float32", "bfloat16")
    )
    np.testing.assert_allclose(exact, rough, atol=0.02)


@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_the_number_of_threads_does_not_change_a_bit(make_tiny_field, n_threads):
    field, before = make_tiny_field(), torch.get_num_threads()
    expected = classified(field, IMAGES, NOISE, inference()).probabilities
    torch.set_num_threads(n_threads)
    try:
        found = classified(field, IMAGES, NOISE, inference()).probabilities
        assert torch.get_num_threads() == n_threads
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(found, expected)


class TooLarge:
    """Lets the network run out of memory on more than so many rows."""

    def __init__(self, field, limit, error):
        self.encode, self.limit, self.error = field.encode, limit, error
        field.encode = self

    def __call__(self, x_t, *arguments):
        if len(x_t) > self.limit:
            raise self.error
        return self.encode(x_t, *arguments)


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory"),
    MemoryError(),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_where_memory_runs_out_smaller_batches_go_on(make_tiny_field, caplog, error):
    field = make_tiny_field()
    expected = classified(field, IMAGES, NOISE, inference(batch_size=4)).probabilities
    TooLarge(field, 8, error)
    found = classified(field, IMAGES, NOISE, inference(batch_size=16)).probabilities
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
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        classified(field, IMAGES[:16], NOISE[:1], inference(batch_size=4))
    finally:
        torch.set_num_threads(before)
    # Two batches of four, one that failed (with what was queued behind it), the rest in twos.
    assert calls[:3] == [4, 4, 4]
    assert calls.count(2) == 4


def test_drawing_goes_on_with_smaller_batches_too(make_tiny_field, caplog):
    field = make_tiny_field()
    labels = torch.arange(6) % 3
    TooLarge(field, 2, OUT_OF_MEMORY[0])
    images = generate(field, labels, (1, 8, 8), 0, inference(n_steps=1, batch_size=4), unchanged)
    assert images.shape == (6, 1, 8, 8)
    assert "batches of 2" in caplog.text


def test_carrying_into_another_class_goes_on_with_smaller_batches_too(make_tiny_field, caplog):
    field = make_tiny_field()
    inputs, labels = PixelInputs(IMAGES[:6], NOISE.device), torch.arange(6) % 3
    settings, e_y = inference(n_steps=1, batch_size=4), NOISE[:1]
    expected = translate(field, inputs, labels, labels, e_y, settings, unchanged)
    TooLarge(field, 2, OUT_OF_MEMORY[0])
    found = translate(field, inputs, labels, labels, e_y, settings, unchanged)
    torch.testing.assert_close(found, expected)
    assert "batches of 2" in caplog.text


def test_other_errors_are_not_taken_for_it(make_tiny_field):
    field = make_tiny_field()
    TooLarge(field, 0, RuntimeError("something else"))
    with pytest.raises(RuntimeError, match="something else"):
        classified(field, IMAGES, NOISE, inference())


def test_one_image_that_does_not_fit_is_an_error(make_tiny_field):
    field = make_tiny_field()
    TooLarge(field, 0, OUT_OF_MEMORY[0])
    with pytest.raises(torch.OutOfMemoryError):
        classified(field, IMAGES, NOISE, inference())
