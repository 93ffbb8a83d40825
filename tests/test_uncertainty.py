import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sklearn_msf.model.classification import Prediction
from sklearn_msf.model.uncertainty import UNCERTAINTIES

PROBABILITIES = st.integers(0, 2**31).map(
    lambda seed: np.random.default_rng(seed).dirichlet(np.full(4, 0.5), size=(5, 3))
)


def prediction_of(draws, denoising_errors=None):
    draws = np.asarray(draws, dtype=float)
    p = draws.mean(axis=1)
    return Prediction(p, 1 - p, draws, denoising_errors)


@given(PROBABILITIES)
def test_every_kind_keeps_to_its_range(draws):
    prediction = prediction_of(draws)
    ranges = {"margin": (0, 1), "entropy": (0, np.log(4)), "draws": (0, np.log(3))}
    for kind, (low, high) in ranges.items():
        values = UNCERTAINTIES[kind](prediction)
        assert values.shape == (5,)
        assert (values >= low).all()
        assert (values <= high + 1e-12).all()


@pytest.mark.parametrize(
    ("kind", "certain", "unsure"),
    [("margin", 0.0, 1.0), ("entropy", 0.0, np.log(2)), ("draws", 0.0, 0.0)],
)
def test_what_is_certain_and_what_is_even(kind, certain, unsure):
    prediction = prediction_of([[[1.0, 0.0]] * 2, [[0.5, 0.5]] * 2])
    np.testing.assert_allclose(UNCERTAINTIES[kind](prediction), [certain, unsure], atol=1e-12)


def test_draws_that_contradict_each_other_are_uncertain():
    agreed, torn = [[0.5, 0.5], [0.5, 0.5]], [[1.0, 0.0], [0.0, 1.0]]
    np.testing.assert_allclose(
        UNCERTAINTIES["draws"](prediction_of([agreed, torn])), [0, np.log(2)], atol=1e-12
    )


def test_another_class_that_fits_the_image_better_raises_the_uncertainty():
    draws = [[[0.8, 0.1, 0.1]]] * 3
    denoising_errors = np.array([[1.0, 2.0, 4.0], [1.0, 1.0, 4.0], [2.0, 4.0, 1.0]])
    values = UNCERTAINTIES["image"](prediction_of(draws, denoising_errors))
    np.testing.assert_allclose(values, 0.3 + 3 * np.log([0.5, 1.0, 2.0]))
