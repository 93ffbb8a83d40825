import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sklearn_msf.selective import accept_most_certain, accuracy_rejection_curve

SCORES = st.lists(st.floats(0, 1), min_size=1, max_size=50)


@given(SCORES, st.floats(0.001, 1))
def test_the_most_certain_share_is_accepted(uncertainty, coverage):
    accepted = accept_most_certain(uncertainty, coverage)
    assert accepted.sum() == max(1, int(coverage * len(uncertainty) + 1e-9))
    u = np.array(uncertainty)
    if not accepted.all():
        assert u[accepted].max() <= u[~accepted].min()


def test_shares_that_floating_point_misses_are_met():
    assert accept_most_certain(np.arange(100), 0.57).sum() == 57


def test_ties_go_to_the_earlier_rows():
    np.testing.assert_array_equal(
        accept_most_certain([0.5, 0.1, 0.5, 0.5], 0.5), [True, True, False, False]
    )


def test_the_curve_is_the_one_worked_by_hand():
    curve = accuracy_rejection_curve([0, 0, 1, 1], [0, 1, 1, 1], [0.3, 0.4, 0.1, 0.2])
    np.testing.assert_allclose(curve.coverage, [0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(curve.accuracy, [1, 1, 1, 0.75])
    assert curve.at(1.0) == 0.75
    assert curve.at(0.75) == 1.0


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3)), min_size=1, max_size=30))
def test_the_curve_does_not_depend_on_the_order_of_rows_with_ties(rows):
    correct, uncertainty = (np.array(column) for column in zip(*rows, strict=True))
    order = np.random.default_rng(0).permutation(len(rows))
    curve = accuracy_rejection_curve(np.ones(len(rows)), correct, uncertainty)
    other = accuracy_rejection_curve(np.ones(len(rows)), correct[order], uncertainty[order])
    np.testing.assert_allclose(curve.accuracy, other.accuracy)
    assert curve.accuracy[-1] == pytest.approx(correct.mean())
