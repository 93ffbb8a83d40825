import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sklearn_msf.flow.label_codes import make_label_codes
from sklearn_msf.flow.path import (
    SIGMA_MIN,
    PathSample,
    denoise_masks,
    sample_path,
    sample_times,
    velocity_loss,
)


def random_path(t, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x, y, e_x, e_y = torch.randn(4, 2, 3, 4, 5, generator=generator, dtype=dtype)
    return x, y, e_x, e_y, torch.full((2,), t, dtype=dtype)


def test_the_path_is_the_papers_at_a_point_worked_by_hand():
    x, y, e_x, e_y = (torch.full((1, 1, 1, 1), v, dtype=torch.float64) for v in (2, 3, 5, 7))
    sample = sample_path(x, y, e_x, e_y, torch.tensor([0.25], dtype=torch.float64))
    # 1 - 0.9999 * 0.25 = 0.750025
    assert sample.x_t.item() == pytest.approx(0.750025 * 5 + 0.25 * 2)
    assert sample.y_t.item() == pytest.approx(0.750025 * 3 + 0.25 * 7)
    assert sample.u_x.item() == pytest.approx(2 - 0.9999 * 5)
    assert sample.u_y.item() == pytest.approx(7 - 0.9999 * 3)


@given(st.floats(0, 1))
def test_the_velocity_is_the_finite_difference_of_the_path(t):
    *ends, _ = random_path(t)
    h = 1e-4
    times = torch.tensor([t, t], dtype=torch.float64)
    before, after = sample_path(*ends, times - h), sample_path(*ends, times + h)
    here = sample_path(*ends, times)
    torch.testing.assert_close((after.x_t - before.x_t) / (2 * h), here.u_x)
    torch.testing.assert_close((after.y_t - before.y_t) / (2 * h), here.u_y)


@given(st.floats(0.01, 1))
def test_the_label_velocity_is_the_way_from_the_mask_over_the_time(t):
    # u_y = (y_t - y) / t: what the class posterior rests on.
    x, y, e_x, e_y, times = random_path(t)
    sample = sample_path(x, y, e_x, e_y, times)
    torch.testing.assert_close((sample.y_t - y) / t, sample.u_y)


def test_the_ends_of_the_path():
    x, y, e_x, e_y, times = random_path(0.0)
    start = sample_path(x, y, e_x, e_y, times)
    end = sample_path(x, y, e_x, e_y, torch.ones_like(times))
    assert torch.equal(start.x_t, e_x)
    assert torch.equal(start.y_t, y)
    torch.testing.assert_close(end.x_t, x + SIGMA_MIN * e_x)
    torch.testing.assert_close(end.y_t, e_y + SIGMA_MIN * y)


@given(st.integers(1, 50), st.floats(0, 1), st.floats(0, 1))
def test_the_first_times_are_one_and_the_others_uniform(n, fraction, fraction_of_others):
    n_at_one = round(fraction * n)
    n_unconditional = round(fraction_of_others * (n - n_at_one))
    t, mask_t = sample_times(n, n_at_one, n_unconditional, torch.Generator().manual_seed(0))
    assert (t[:n_at_one] == 1).all()
    assert ((t[n_at_one:] >= 0) & (t[n_at_one:] < 1)).all()
    assert (mask_t[: n_at_one + n_unconditional] == 1).all()
    assert torch.equal(mask_t[n_at_one + n_unconditional :], t[n_at_one + n_unconditional :])


@given(st.floats(0.1, 10))
def test_a_shift_multiplies_the_odds_of_noise_and_leaves_the_ends_alone(shift):
    def drawn(shift):
        return sample_times(200, 3, 5, torch.Generator().manual_seed(0), shift)

    (t, mask_t), (uniform, _) = drawn(shift), drawn(1.0)
    assert torch.equal(t[:3], uniform[:3])
    assert ((t[3:] >= 0) & (t[3:] < 1)).all()
    odds, plain = ((1 - times[3:]) / times[3:] for times in (t, uniform))
    torch.testing.assert_close(odds, shift * plain, rtol=1e-4, atol=1e-5)
    assert (mask_t[:8] == 1).all()
    assert torch.equal(mask_t[8:], t[8:])


def test_a_mask_at_time_one_is_noise_whatever_the_image_is():
    x, y, e_x, e_y = torch.randn(4, 2, 3, 4, 4)
    t, one = torch.tensor([0.2, 0.7]), torch.ones(2)
    sample = sample_path(x, y, e_x, e_y, t, one)
    torch.testing.assert_close(sample.y_t, e_y, atol=1e-3, rtol=0)
    assert torch.equal(sample.x_t, sample_path(x, y, e_x, e_y, t).x_t)


def test_velocity_loss_is_the_mean_squared_error_and_zero_without_samples():
    v, u = torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 1.0]])
    assert velocity_loss(v, u).item() == 2.5
    assert velocity_loss(v[:0], u[:0]).item() == 0.0
    assert velocity_loss(v[:0], u[:0], (1, 1)).item() == 0.0


@given(st.integers(1, 4), st.integers(1, 9))
def test_parts_have_equal_shares_in_the_loss_however_many_channels_they_have(few, many):
    u = torch.zeros(3, few + many, 2, 2)
    v = torch.cat([torch.full((3, few, 2, 2), 2.0), torch.full((3, many, 2, 2), 4.0)], dim=1)
    assert velocity_loss(v, u, (few, many)).item() == pytest.approx((4 + 16) / 2)


@pytest.mark.parametrize("t", [0.3, 0.9, 0.97, 0.999])
def test_denoised_masks_are_the_gaussian_posterior_mean(t):
    codes = make_label_codes("rgb", 4, 4.0)
    labels = torch.tensor([0, 3])
    generator = torch.Generator().manual_seed(1)
    y = codes.masks(labels, (4, 5), generator)
    noise = torch.randn(y.shape, generator=generator)
    times = torch.full((2,), t)
    y_t = sample_path(y, y, noise, noise, times).y_t
    # Independent float64 numpy, pixel by pixel.
    a, c = 1 - (1 - SIGMA_MIN) * t, codes.codes.double().numpy()
    variance = t**2 + (a * codes.jitter) ** 2 / 12
    for i in range(2):
        offsets = y_t[i].double().numpy()[None] - a * c[:, :, None, None]
        log_p = -(offsets**2).sum(axis=(1, 2, 3)) / (2 * variance)
        p = np.exp(log_p - log_p.max())
        expected = p / p.sum() @ c
        np.testing.assert_allclose(denoise_masks(y_t, times, codes)[i], expected, atol=1e-4)


def test_a_denoised_mask_at_time_one_says_nothing_of_the_class_however_large_it_is():
    codes = make_label_codes("rgb", 2, 4.0)
    y = codes.masks(torch.tensor([0, 1]), (400, 400), torch.Generator().manual_seed(0))
    noise = torch.zeros_like(y)
    y_1 = sample_path(y, y, noise, noise, torch.ones(2)).y_t
    first, second = denoise_masks(y_1, torch.ones(2), codes)
    assert torch.equal(first, second)
    torch.testing.assert_close(first, codes.codes.mean(dim=0))


def test_a_path_sample_is_frozen():
    sample = PathSample(*[torch.zeros(1)] * 6)
    with pytest.raises(AttributeError):
        sample.t = torch.ones(1)
