"""Weights of samples and classes: what counts is their proportion."""

import datetime
import functools
import math
import warnings

import numpy as np
import pytest
from conftest import Averages, TinyBackbone, tiny_latent_classifier
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from sklearn import config_context

from sklearn_msf._estimator.weights import class_weights, relative_weights
from sklearn_msf.latent import autoencoder_training
from sklearn_msf.selective import accuracy_rejection_curve, aurc

RNG = np.random.default_rng(0)
IMAGES, LABELS = RNG.random((12, 8, 8)), np.arange(12) % 3


def relative(weights):
    shares, n_images = relative_weights(np.array(weights, dtype=float))
    return shares.tolist(), n_images


def n_images_of(classifier):
    return classifier.history_[-1]["n_images"]


# Relative weights


@pytest.mark.parametrize(
    ("weights", "shares", "n_images"),
    [
        ([1, 2, 3], [1, 2, 3], 6),
        ([1000, 1000], [1, 1], 2),
        ([6, 9, 15], [2, 3, 5], 10),
        ([1e12, 2e12], [1, 2], 3),
        # Whole numbers beyond 2**63.
        ([1e300, 3e300], [1, 3], 4),
        ([1e308, 1e308, 1e308], [1, 1, 1], 3),
        ([0.5, 1.5], [0.5, 1.5], 2),
        ([0.25, 0.25], [1, 1], 2),
        ([1e-200, 3e-200], [0.5, 1.5], 2),
        ([5e-324, 5e-324], [1, 1], 2),
    ],
)
def test_weights_are_divided_by_what_they_have_in_common(weights, shares, n_images):
    found, n_found = relative(weights)
    assert_allclose(found, shares, rtol=1e-15)
    assert n_found == n_images


def test_ten_repetitions_of_each_sample_are_the_most():
    assert relative([1, 19]) == ([1, 19], 20)
    message = "weights from 1 to 20 would make an epoch of 21 images of 2 samples, more than 10"
    with pytest.warns(UserWarning, match=message):
        assert relative([1, 20]) == ([2 / 21, 40 / 21], 2)


@pytest.mark.parametrize("large", [1e12, 1e18, 1e300, 1.7e308])
def test_weights_of_any_size_have_finite_shares(large):
    with pytest.warns(UserWarning, match="shares of an epoch of 3 images"):
        shares, n_images = relative([1, large, large])
    assert n_images == 3
    assert_allclose(shares, [1.5 / large, 1.5, 1.5])


@given(st.lists(st.integers(1, 20), min_size=1, max_size=20), st.integers(1, 10**9))
def test_a_common_factor_changes_nothing(weights, factor):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert relative([w * factor for w in weights]) == relative(weights)


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=20), st.integers(-900, 0))
def test_a_common_power_of_two_keeps_the_bits_of_shares(weights, exponent):
    weights = [*weights, math.pi]
    assert relative(np.ldexp(weights, exponent)) == relative(weights)


# Fitting


@pytest.mark.parametrize("factor", [1000, 1e12, 2.0**900])
def test_a_common_factor_of_whole_weights_keeps_the_fit(make_classifier, factor):
    weights = 1 + np.arange(12) % 2
    expected = make_classifier().fit(IMAGES, LABELS, sample_weight=weights)
    scaled = make_classifier().fit(IMAGES, LABELS, sample_weight=weights * factor)
    assert n_images_of(scaled) == weights.sum() == 18
    assert_array_equal(scaled.predict_proba(IMAGES), expected.predict_proba(IMAGES))


@pytest.mark.parametrize("unit", ["D", "s", "us"])
def test_classes_that_are_dates_are_weighted_by_dates_of_any_unit(unit):
    classes = np.array(["2024-01-01", "2024-02-01"], dtype=f"datetime64[{unit}]")
    for named in (np.array(["2024-02-01"], dtype="datetime64[D]"), [datetime.date(2024, 2, 1)]):
        found = class_weights(dict.fromkeys(named, 10.0), classes, np.array([0, 1, 1]), np.ones(3))
        assert_array_equal(found, [1, 10, 10])


@functools.cache
def fitted_without_weights(make_classifier, class_weight=None):
    return make_classifier(class_weight=class_weight).fit(IMAGES, LABELS)


@pytest.mark.parametrize("weight", [1000.0, 0.001, 1e12, 1e308, 1e-200])
@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_one_weight_for_all_is_none(make_classifier, weight, class_weight):
    plain = fitted_without_weights(make_classifier, class_weight)
    weighted = make_classifier(class_weight=class_weight)
    weighted.fit(IMAGES, LABELS, sample_weight=np.full(12, weight))
    assert n_images_of(weighted) == 12
    assert_array_equal(weighted.predict_proba(IMAGES), plain.predict_proba(IMAGES))


@pytest.mark.parametrize(
    ("weight", "class_weight"),
    [(1.0, 1e308), (1e308, 1e308), (1e-200, 1e-200), (1e-300, 1e300), (1e12, 1e-320)],
)
def test_products_of_weights_neither_overflow_nor_vanish(make_classifier, weight, class_weight):
    plain = fitted_without_weights(make_classifier)
    weighted = make_classifier(class_weight=dict.fromkeys(range(3), class_weight))
    weighted.fit(IMAGES, LABELS, sample_weight=np.full(12, weight))
    assert_array_equal(weighted.predict_proba(IMAGES), plain.predict_proba(IMAGES))


def test_a_product_that_is_rounded_to_zero_leaves_its_row_out(make_classifier):
    weights = np.where(np.arange(12) == 2, 1e-200, 1.5)
    class_weight = {2: 1e-200}
    vanishing = make_classifier(class_weight=class_weight)
    vanishing.fit(IMAGES, LABELS, sample_weight=weights)
    left_out = make_classifier(class_weight=class_weight)
    left_out.fit(IMAGES, LABELS, sample_weight=np.where(np.arange(12) == 2, 0, 1.5))
    assert_array_equal(vanishing.predict_proba(IMAGES), left_out.predict_proba(IMAGES))


def test_classes_whose_weights_cannot_be_balanced_are_named(make_classifier):
    weights = np.where(LABELS == 1, 5e-324, 1.0)
    with pytest.raises(ValueError, match="sample_weight differs too much between classes"):
        make_classifier(class_weight="balanced").fit(IMAGES, LABELS, sample_weight=weights)


def test_weights_that_are_not_finite_are_named_whatever_scikit_learn_assumes(make_classifier):
    for bad in (np.nan, np.inf):
        weights = np.where(np.arange(12) == 5, bad, 1.0)
        with pytest.raises(ValueError, match="sample_weight contains"):
            make_classifier().fit(IMAGES, LABELS, sample_weight=weights)
        with (
            config_context(assume_finite=True),
            pytest.raises(ValueError, match="sample_weight contains NaN or infinity in 1 of 12"),
        ):
            make_classifier().fit(IMAGES, LABELS, sample_weight=weights)


# Classes of weight zero


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"early_stopping": True, "validation_fraction": 0.25},
        {"calibration": "temperature"},
        {"class_weight": "balanced"},
        {"class_weight": {0: 2.0, 2: 3.0}},
    ],
)
def test_a_class_whose_weights_are_all_zero_stays_a_class(make_classifier, settings):
    by_samples = make_classifier(**settings)
    by_samples.fit(IMAGES, LABELS, sample_weight=(LABELS != 2).astype(float))
    assert by_samples.classes_.tolist() == [0, 1, 2]
    p = by_samples.predict_proba(IMAGES)
    assert p.shape == (12, 3)
    # As class_weight does it, where that is possible beside the other settings.
    of_class = settings.get("class_weight", {})
    if of_class != "balanced":
        by_class = make_classifier(**{**settings, "class_weight": {**of_class, 2: 0}})
        assert_array_equal(by_class.fit(IMAGES, LABELS).predict_proba(IMAGES), p)


def test_a_class_of_weight_zero_stays_in_every_part(make_classifier):
    classifier, same = make_classifier(), make_classifier()
    # Images without weight teach nothing, whatever they show.
    others = np.where((LABELS == 2)[:, None, None], IMAGES[:, ::-1], IMAGES)
    for _ in range(2):
        classifier.partial_fit(IMAGES, LABELS, [0, 1, 2], sample_weight=LABELS != 2)
        same.partial_fit(others, LABELS, [0, 1, 2], sample_weight=LABELS != 2)
        p = classifier.predict_proba(IMAGES)
        assert p.shape == (12, 3)
        assert_array_equal(same.predict_proba(IMAGES), p)
    with pytest.raises(ValueError, match=r"labels \[7\] that are not among the classes"):
        classifier.partial_fit(IMAGES, np.where(LABELS == 2, 7, LABELS), sample_weight=LABELS != 2)


# Scores


def test_curves_take_weights_of_any_size():
    y, p, scores = [0, 0, 1, 1], [0, 1, 1, 1], [0.3, 0.4, 0.1, 0.2]
    for weight in (1e308, 5e-324):
        curve = accuracy_rejection_curve(y, p, scores, sample_weight=[weight] * 4)
        assert curve.coverage.tolist() == [0.25, 0.5, 0.75, 1]
        assert curve.accuracy.tolist() == [1, 1, 1, 0.75]
        errors = np.not_equal(y, p)
        assert aurc(errors, scores, sample_weight=[weight] * 4) == aurc(errors, scores)


def test_masked_weights_are_refused():
    weights = np.ma.MaskedArray(np.ones(12), np.arange(12) == 3)
    with pytest.raises(ValueError, match="sample_weight is a masked array"):
        tiny_latent_classifier().fit(IMAGES, LABELS, sample_weight=weights)


@pytest.mark.parametrize("autoencoder", ["fit", Averages()])
@pytest.mark.parametrize("backbone", [None, TinyBackbone()])
def test_weights_are_repetitions_for_encoders_too(autoencoder, backbone, monkeypatch):
    stages = [stage._replace(n_steps=2) for stage in autoencoder_training._STAGES]
    monkeypatch.setattr("sklearn_msf.latent.autoencoder_training._STAGES", stages)
    rng = np.random.default_rng(0)
    X = rng.integers(0, 256, (12, 16, 16), dtype=np.uint8)
    y, weights = np.arange(12) % 3, rng.integers(1, 6, 12)
    settings = {"autoencoder": autoencoder, "backbone": backbone, "max_epochs": 1}
    weighted = tiny_latent_classifier(**settings).fit(X, y, sample_weight=weights)
    repeated = tiny_latent_classifier(**settings).fit(X.repeat(weights, axis=0), y.repeat(weights))
    np.testing.assert_array_equal(weighted.predict_proba(X), repeated.predict_proba(X))
