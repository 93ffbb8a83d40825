"""Confusion matrices with a column of rejected samples."""

import datetime

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import config_context
from sklearn.metrics import confusion_matrix

from sklearn_msf.selective import confusion_matrix_with_reject

ROWS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 3), st.booleans(), st.integers(1, 3)),
    min_size=1,
    max_size=30,
)


@given(ROWS)
def test_it_is_the_matrix_of_the_answers_and_the_counts_of_the_rest(rows):
    y, p, rejected, weights = (np.array(column) for column in zip(*rows, strict=True))
    answers = np.ma.MaskedArray(p, mask=rejected)
    matrix = confusion_matrix_with_reject(y, answers, labels=range(4), sample_weight=weights)
    assert matrix.shape == (4, 5)
    assert matrix.sum() == weights.sum()
    np.testing.assert_array_equal(
        matrix[:, 4], np.bincount(y[rejected], weights[rejected], minlength=4)
    )
    if not rejected.all():
        kept = ~rejected
        expected = confusion_matrix(y[kept], p[kept], labels=range(4), sample_weight=weights[kept])
        np.testing.assert_array_equal(matrix[:, :4], expected)


@given(ROWS)
def test_rows_of_occurring_classes_sum_to_one(rows):
    y, p, rejected, _ = (np.array(column) for column in zip(*rows, strict=True))
    answers = np.ma.MaskedArray(p, mask=rejected)
    matrix = confusion_matrix_with_reject(y, answers, labels=range(4), normalize="true")
    np.testing.assert_allclose(matrix.sum(axis=1), np.isin(range(4), y))


def test_labels_come_from_both_sides_but_not_from_what_is_masked():
    answers = np.ma.MaskedArray(["junk", "b", "c"], mask=[True, False, False])
    matrix = confusion_matrix_with_reject(["a", "a", "b"], answers)
    assert matrix.tolist() == [[0, 1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 0]]


def test_all_or_nothing_can_be_rejected():
    y = ["a", "b", "b"]
    none = confusion_matrix_with_reject(y, y)
    assert none.tolist() == [[1, 0, 0], [0, 2, 0]]
    every = confusion_matrix_with_reject(y, np.ma.MaskedArray(y, mask=True))
    assert every.tolist() == [[0, 0, 1], [0, 0, 2]]


@pytest.mark.parametrize(
    ("normalize", "matrix"),
    [
        (None, [[1, 1, 1], [0, 3, 2]]),
        ("true", [[1 / 3, 1 / 3, 1 / 3], [0, 0.6, 0.4]]),
        ("pred", [[1, 0.25, 1 / 3], [0, 0.75, 2 / 3]]),
        ("all", [[0.125, 0.125, 0.125], [0, 0.375, 0.25]]),
    ],
)
def test_rows_columns_or_all_sum_to_one(normalize, matrix):
    answers = np.ma.MaskedArray(list("abbbbbbb"), mask=[0, 0, 1, 0, 0, 0, 1, 1])
    found = confusion_matrix_with_reject(list("aaabbbbb"), answers, normalize=normalize)
    np.testing.assert_allclose(found, matrix)


@pytest.mark.parametrize("normalize", [None, "true", "pred", "all"])
@pytest.mark.parametrize("weights", [None, [2.0, 1.0]])
def test_all_samples_may_be_of_classes_that_are_not_asked_for(normalize, weights):
    settings = {"labels": ["a", "b"], "normalize": normalize, "sample_weight": weights}
    matrix = confusion_matrix_with_reject(["c", "c"], ["c", "a"], **settings)
    assert matrix.tolist() == [[0, 0, 0], [0, 0, 0]]


def test_classes_that_are_not_asked_for_are_left_out():
    assert confusion_matrix_with_reject([0, 1, 2], [0, 2, 1], labels=[2, 0]).tolist() == [
        [0, 0, 0],
        [0, 1, 0],
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0, 1], [0]), "y_true has 2 labels and y_pred 1"),
        (([], []), "y_true has 0 labels"),
        (([0, 1], ["0", "1"]), "y_true has labels that are numbers"),
        (([0, np.nan], [0, 1]), "y_true contains NaN"),
    ],
)
def test_what_cannot_be_counted_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        confusion_matrix_with_reject(*arguments)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1, -1], "sample_weight must not be negative"),
        ([1, np.nan], "sample_weight contains NaN"),
        (np.ma.MaskedArray([1.0, 9.0], mask=[0, 1]), "sample_weight is a masked array"),
        ([1.0], "sample_weight must be of shape"),
    ],
)
def test_weights_that_count_nothing_are_named(weights, message):
    with pytest.raises(ValueError, match=message):
        confusion_matrix_with_reject([0, 1], [0, 1], sample_weight=weights)


@pytest.mark.parametrize("skips", [False, True])
def test_other_ways_to_normalize_are_refused(skips):
    with (
        config_context(skip_parameter_validation=skips),
        pytest.raises(ValueError, match="normalize must be None, .* got 'rows'"),
    ):
        confusion_matrix_with_reject([0, 1], [0, 1], normalize="rows")


@pytest.mark.parametrize("unit", ["D", "us"])
def test_dates_of_python_and_numpy_are_the_same_classes(unit):
    days = [datetime.date(2020, 1, 1), datetime.date(2020, 1, 2)]
    matrix = confusion_matrix_with_reject(days, np.array(days, dtype=f"M8[{unit}]"))
    np.testing.assert_array_equal(matrix, [[1, 0, 0], [0, 1, 0]])


@pytest.mark.parametrize("dtype", ["category", "string", "object", None])
def test_predictions_may_be_a_column_of_a_table(dtype):
    truth, answers = (pd.Series(labels, dtype=dtype) for labels in (list("aabb"), list("abbb")))
    expected = confusion_matrix_with_reject(list("aabb"), list("abbb"))
    np.testing.assert_array_equal(confusion_matrix_with_reject(truth, answers), expected)
    np.testing.assert_array_equal(expected, [[1, 1, 0], [0, 2, 0]])
