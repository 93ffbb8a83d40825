import pytest
import torch

from sklearn_msf.training.losses import label_loss

ERRORS = torch.tensor([1.0, 3.0, 10.0, 20.0, 30.0, 40.0])


@pytest.mark.parametrize("n_at_one", [0, 6])
def test_the_label_loss_is_the_mean_where_all_samples_are_of_one_kind(n_at_one):
    assert label_loss(ERRORS, n_at_one) == ERRORS.mean()


def test_samples_at_time_one_have_at_least_four_fifths_of_the_label_loss():
    # Two of six at t = 1, with mean 2; the others have mean 25.
    assert label_loss(ERRORS, 2) == pytest.approx(0.8 * 2 + 0.2 * 25)


def test_samples_at_time_one_have_their_own_fraction_where_that_is_more():
    # Five of six at t = 1, with mean 12.8.
    assert label_loss(ERRORS, 5) == pytest.approx(5 / 6 * 12.8 + 1 / 6 * 40)
