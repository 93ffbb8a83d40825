import copy
import warnings
from dataclasses import replace

import matplotlib
import matplotlib.figure
import numpy as np
import pandas as pd
import pytest
from conftest import tiny_classifier
from sklearn.base import BaseEstimator
from sklearn.datasets import load_breast_cancer
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.linear_model import LogisticRegression

from sklearn_msf.plotting import (
    AccuracyRejectionDisplay,
    CounterfactualDisplay,
    RejectionConfusionMatrixDisplay,
    RiskCoverageDisplay,
    SampleGridDisplay,
    TrajectoryDisplay,
)
from sklearn_msf.plotting.pictures import checked_names
from sklearn_msf.selective import (
    aurc,
    confusion_matrix_with_reject,
    risk_at_coverage,
    uncertainty_of,
)

matplotlib.use("agg")
DISPLAYS = [AccuracyRejectionDisplay, RiskCoverageDisplay]


@pytest.fixture(autouse=True)
def close_figures():
    yield
    # Not every test has imported it.
    from matplotlib import pyplot

    pyplot.close("all")


@pytest.fixture(scope="module")
def other_classifier():
    X, y = load_breast_cancer(return_X_y=True)
    return LogisticRegression(max_iter=5000).fit(X[:, :3], y), X[:, :3], y


@pytest.mark.parametrize("display", DISPLAYS)
def test_a_display_draws_the_curve_of_any_classifier(display, other_classifier):
    classifier, X, y = other_classifier
    drawn = display.from_estimator(classifier, X, y, color="red")
    errors = classifier.predict(X) != y
    area = aurc(errors, uncertainty_of(classifier, X))
    assert drawn.line_.get_label() == f"LogisticRegression (AURC = {area:.3f})"
    assert drawn.line_.get_color() == "red"
    assert drawn.ax_.get_legend() is not None
    # All answered: the accuracy and the risk of the whole.
    at = {AccuracyRejectionDisplay: errors.mean() * -1 + 1, RiskCoverageDisplay: errors.mean()}
    assert drawn.line_.get_ydata()[-1] == pytest.approx(at[display])


@pytest.mark.parametrize("display", DISPLAYS)
def test_ours_is_asked_for_its_own_uncertainty(display, fitted, digits):
    X, y = digits
    drawn = display.from_estimator(fitted, X, y, name="ours")
    same = display.from_predictions(y, fitted.predict(X), fitted.predict_uncertainty(X))
    np.testing.assert_array_equal(drawn.line_.get_xydata(), same.line_.get_xydata())
    assert drawn.line_.get_label().startswith("ours (AURC")


@pytest.mark.parametrize("display", DISPLAYS)
def test_several_share_an_axes(display):
    first = display.from_predictions([0, 1, 1], [0, 1, 0], [0.1, 0.2, 0.3], name="a")
    second = display.from_predictions([0, 1, 1], [0, 0, 1], [0.1, 0.2, 0.3], name="b", ax=first.ax_)
    assert second.figure_ is first.figure_
    assert len(first.ax_.lines) == 2


@pytest.mark.parametrize("display", DISPLAYS)
def test_weights_count_as_copies(display):
    y, p, u, w = [0, 1, 1, 0], [0, 1, 0, 1], [0.1, 0.2, 0.3, 0.4], [1, 3, 2, 1]
    weighted = display.from_predictions(y, p, u, sample_weight=w)
    copied = display.from_predictions(*(np.repeat(v, w) for v in (y, p, u)))
    assert weighted.aurc == pytest.approx(copied.aurc)
    x, values = copied.line_.get_data()
    for point in weighted.line_.get_xydata():
        # Copies make more points, and these among them.
        assert np.isclose(np.column_stack([x, values]), point).all(axis=1).any()


def test_a_display_of_bare_values_has_no_legend():
    display = RiskCoverageDisplay(coverage=np.array([0.5, 1]), risk=np.array([0, 0.5])).plot()
    assert display.ax_.get_legend() is None
    assert (
        RiskCoverageDisplay(coverage=np.array([1.0]), risk=np.array([0.5]), name="x")
        .plot()
        .line_.get_label()
        == "x"
    )


def test_without_matplotlib_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"sklearn-msf\[plot\]"):
        RiskCoverageDisplay.from_predictions([0, 1], [0, 1], [0.1, 0.2])


every_display = pytest.mark.parametrize(
    "draw",
    [
        lambda estimator, X, y: RiskCoverageDisplay.from_estimator(estimator, X, y),
        lambda estimator, X, y: RejectionConfusionMatrixDisplay.from_estimator(estimator, X, y),
        lambda estimator, X, y: SampleGridDisplay.from_estimator(estimator),
        lambda estimator, X, y: TrajectoryDisplay.from_estimator(estimator, y[0]),
        lambda estimator, X, y: CounterfactualDisplay.from_estimator(estimator, X, y[0]),
    ],
)


@every_display
def test_missing_matplotlib_is_named_before_anything_slow(monkeypatch, fitted, digits, draw):
    def slow(*arguments, **settings):
        raise AssertionError("computed for nothing")

    for name in ("predict", "predict_with_reject", "sample", "sample_trajectory", "counterfactual"):
        monkeypatch.setattr(type(fitted), name, slow)
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"Display needs matplotlib.*sklearn-msf\[plot\]"):
        draw(fitted, *digits)


def test_names_of_classes_can_be_turned():
    display = RejectionConfusionMatrixDisplay(np.eye(2, 3))
    for rotation, degrees in (("horizontal", 0), ("vertical", 90), (45, 45)):
        labels = display.plot(xticks_rotation=rotation).ax_.get_xticklabels()
        assert {label.get_rotation() for label in labels} == {degrees}


def test_counterfactuals_of_a_table_are_drawn_without_a_warning_about_its_columns(digits):
    X, y = digits
    frame = pd.DataFrame(X[:30].reshape(30, -1)).add_prefix("pixel ")
    classifier = tiny_classifier(max_epochs=1, image_shape=X.shape[1:]).fit(frame, y[:30])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=ConvergenceWarning)
        CounterfactualDisplay.from_estimator(classifier, frame[:2], y[0], n_steps=1)


def test_a_confusion_matrix_has_a_column_of_rejected_samples(fitted, digits):
    X, y = digits
    display = RejectionConfusionMatrixDisplay.from_estimator(fitted, X, y, coverage=0.5)
    answers = fitted.predict_with_reject(X, 0.5)
    expected = confusion_matrix_with_reject(y, answers, labels=fitted.classes_)
    np.testing.assert_array_equal(display.confusion_matrix, expected)
    np.testing.assert_array_equal(display.im_.get_array(), expected)
    shown = [[text.get_text() for text in row] for row in display.text_]
    assert shown == [[str(n) for n in row] for row in expected.tolist()]
    ticks = [label.get_text() for label in display.ax_.get_xticklabels()]
    assert ticks == [*fitted.classes_.tolist(), "rejected"]
    assert [label.get_text() for label in display.ax_.get_yticklabels()] == ticks[:-1]


def test_classes_that_fit_did_not_see_have_rows_of_their_own(fitted, digits):
    X, y = digits[0][:6], digits[1][:6].astype(object)
    y[:2] = "unseen"
    display = RejectionConfusionMatrixDisplay.from_estimator(fitted, X, y, coverage=1.0)
    assert display.confusion_matrix.sum() == 6
    assert display.confusion_matrix[-1].sum() == 2
    assert display.ax_.get_yticklabels()[-1].get_text() == "unseen"


def test_dates_of_another_unit_are_the_same_classes(digits):
    X = digits[0][:40]
    days = np.array(["2020-01-01", "2020-02-01"] * 20, "M8[D]")
    classifier = tiny_classifier(max_epochs=1).fit(X, days)
    for y in (days, days.astype("M8[s]")):
        display = RejectionConfusionMatrixDisplay.from_estimator(classifier, X, y, coverage=1.0)
        assert display.confusion_matrix.sum() == 40
        assert display.confusion_matrix.shape == (2, 3)


def test_values_of_a_matrix_of_equal_values_can_be_read():
    display = RejectionConfusionMatrixDisplay(np.ones((2, 3), int)).plot()
    cell = display.im_.cmap(display.im_.norm(1))
    assert display.text_[0, 0].get_color() != cell


def test_within_a_tie_the_drawn_risk_is_that_at_the_coverage():
    errors = np.repeat([0, 1, 0], [50, 50, 20])
    scores = np.repeat([0.1, 0.2, 0.3], [50, 50, 20])
    display = RiskCoverageDisplay.from_predictions(np.zeros(120), errors, scores)
    coverage, risk = display.line_.get_data()
    for asked in np.linspace(0.05, 1, 39):
        expected = risk_at_coverage(errors, scores, coverage=asked)
        assert np.interp(asked, coverage, risk) == pytest.approx(expected, abs=1e-3)
    area = np.sum(np.diff(coverage) * (risk[1:] + risk[:-1]) / 2)
    assert area == pytest.approx(display.aurc, abs=1e-3)
    assert display.coverage.tolist() == pytest.approx([5 / 12, 10 / 12, 1])


def test_a_curve_is_drawn_to_its_end_and_may_be_of_lists():
    display = RiskCoverageDisplay(coverage=[0.25, 0.5], risk=[0.0, 0.5]).plot()
    coverage, risk = display.line_.get_data()
    assert (coverage[0], coverage[-1]) == (0.0, 0.5)
    assert (risk[0], risk[-1]) == (0.0, 0.5)
    # A quarter is right, the quarter after it has all errors.
    assert np.interp(0.375, coverage, risk) == pytest.approx(1 / 3, abs=1e-3)


def test_a_curve_of_one_uncertainty_is_a_line():
    display = RiskCoverageDisplay.from_predictions([0, 1], [0, 0], [0.0, 0.0])
    assert display.line_.get_xydata().tolist() == [[0.0, 0.5], [1.0, 0.5]]


def test_a_confusion_matrix_of_predictions_is_drawn_as_asked():
    answers = np.ma.MaskedArray([0, 1, 1, 0], mask=[False, False, True, False])
    display = RejectionConfusionMatrixDisplay.from_predictions(
        [0, 0, 1, 1],
        answers,
        normalize="true",
        display_labels=["well", "ill"],
        values_format=".0%",
        cmap="Blues",
        colorbar=False,
    )
    assert [[t.get_text() for t in row] for row in display.text_] == [
        ["50%", "50%", "0%"],
        ["50%", "0%", "50%"],
    ]
    assert [t.get_text() for t in display.ax_.get_yticklabels()] == ["well", "ill"]
    assert display.im_.get_cmap().name == "Blues"
    assert display.figure_.axes == [display.ax_]
    again = display.plot(ax=display.ax_)
    assert again.figure_ is display.figure_


def test_whole_numbers_of_weights_are_shown_whole():
    y = np.repeat([0, 1], 124)
    display = RejectionConfusionMatrixDisplay.from_predictions(y, y, sample_weight=np.ones(248))
    assert display.text_[0, 0].get_text() == "124"


@pytest.mark.parametrize("rotation", ["upwards", None, [90]])
def test_another_rotation_is_refused_before_anything_is_drawn(rotation):
    ax = matplotlib.figure.Figure().subplots()
    with pytest.raises(ValueError, match="xticks_rotation must be one of"):
        RejectionConfusionMatrixDisplay(np.eye(2, 3)).plot(ax=ax, xticks_rotation=rotation)
    assert not ax.images


def test_a_bare_matrix_numbers_its_classes():
    display = RejectionConfusionMatrixDisplay(np.array([[1, 2, 3], [4, 5, 6]])).plot()
    assert [t.get_text() for t in display.ax_.get_xticklabels()] == ["0", "1", "rejected"]
    with pytest.raises(ValueError, match="display_labels has 3 names for 2 classes"):
        RejectionConfusionMatrixDisplay(np.eye(2, 3), display_labels=list("abc")).plot()


@pytest.mark.parametrize("names", [{1: "ill", 0: "well"}, {"ill", "well"}, "iw"])
def test_names_without_the_order_of_the_classes_are_refused(names):
    with pytest.raises(ValueError, match="display_labels must be a sequence in the order of"):
        RejectionConfusionMatrixDisplay(np.eye(2, 3), display_labels=names).plot()
    with pytest.raises(ValueError, match="class_names must be a sequence in the order of the cl"):
        checked_names(np.array([0, 1]), names)


def test_a_classifier_that_cannot_reject_is_sent_to_its_predictions(other_classifier):
    classifier, X, y = other_classifier
    with pytest.raises(ValueError, match="LogisticRegression has no predict_with_reject.*from_pre"):
        RejectionConfusionMatrixDisplay.from_estimator(classifier, X, y)


def test_a_grid_has_a_row_for_each_class(fitted):
    display = SampleGridDisplay.from_estimator(fitted, n_columns=4, n_steps=2)
    (picture,) = display.ax_.get_images()
    assert picture.get_array().shape == (3 * 8, 4 * 8, 3)
    assert [label.get_text() for label in display.ax_.get_yticklabels()] == ["one", "two", "zero"]
    sampled = fitted.sample(n_samples=4, n_steps=2, random_state=0) / 16
    for row in range(3):
        for column in range(4):
            tile = picture.get_array()[8 * row : 8 * row + 8, 8 * column : 8 * column + 8, 1]
            np.testing.assert_allclose(tile, sampled[4 * row + column])


def test_real_and_nearest_images_stand_beside_the_generated_ones(fitted, digits):
    X, y = digits
    display = SampleGridDisplay.from_estimator(fitted, X=X, y=y, n_columns=3, n_steps=2)
    assert list(display.blocks) == ["real", "generated", "nearest training image"]
    np.testing.assert_allclose(display.blocks["real"][1] * 16, X[y == "two"][:3])
    generated, nearest = (display.blocks[name] for name in list(display.blocks)[1:])
    best = np.linalg.norm((generated[2, 0] - X / 16).reshape(len(X), -1), axis=1).argmin()
    np.testing.assert_allclose(nearest[2, 0] * 16, X[best])


def test_the_nearest_image_may_be_a_mirror_image_and_blocks_have_their_titles(
    fitted, digits, monkeypatch
):
    X, y = digits
    mirrored = copy.copy(fitted)
    mirrored.model_ = replace(fitted.model_, ever_flipped_axes=(-1,))
    monkeypatch.setattr(type(fitted), "sample", lambda *_, **__: np.flip(X[:3], 2))
    display = SampleGridDisplay.from_estimator(mirrored, X=X, y=y, n_columns=1)
    np.testing.assert_allclose(display.blocks["nearest training image"][:, 0] * 16, X[:3])
    titles = [label.get_text() for label in display.ax_.get_xticklabels()]
    assert titles == ["real", "generated", "nearest training image"]


def test_fill_values_do_not_decide_which_image_is_nearest(fitted, digits, monkeypatch):
    X, y = digits
    filled = np.where(
        np.arange(len(X))[:, None, None] % 2,
        X,
        np.pad(X[:, 1:], [(0, 0), (1, 0), (0, 0)], constant_values=-9e4),
    )
    monkeypatch.setattr(type(fitted), "sample", lambda *_, **__: np.clip(filled[:3], 0, 16))
    display = SampleGridDisplay.from_estimator(fitted, X=filled, y=y, n_columns=1)
    shown = display.blocks["nearest training image"][:, 0]
    np.testing.assert_allclose(shown * 16, np.clip(filled[:3], 0, 16))


def test_a_trajectory_shows_the_images_of_its_times_and_a_grid_is_guided(fitted):
    asked = {"n_steps": 4, "guidance": 1.0, "random_state": 3}
    images, _, _ = fitted.sample_trajectory("two", **asked)
    display = TrajectoryDisplay.from_estimator(fitted, "two", n_columns=3, **asked)
    for column, step in enumerate((0, 2, 4)):
        drawn = display.axes_[0, column].get_images()[0].get_array()
        np.testing.assert_allclose(drawn[..., 0], images[step] / 16)
    grid = SampleGridDisplay.from_estimator(fitted, n_columns=1, n_steps=2, guidance=1.0)
    wanted = fitted.sample(n_steps=2, guidance=1.0, random_state=0) / 16
    np.testing.assert_allclose(grid.blocks["generated"][:, 0], wanted)


class Told(BaseEstimator):
    """Answers and uncertainties are the columns of X."""

    classes_ = np.array([0, 1])

    def fit(self, X, y):
        return self

    def predict(self, X):
        return X[:, 0].astype(int)

    def predict_uncertainty(self, X):
        return X[:, 1]

    def predict_with_reject(self, X, coverage):
        return np.ma.MaskedArray(self.predict(X))


def test_weights_reach_the_displays_of_an_estimator():
    X, y = np.array([[0, 0.1], [1, 0.2], [0, 0.3], [1, 0.4]]), np.array([0, 1, 1, 0])
    weights = [1, 3, 2, 5]
    for display in DISPLAYS:
        drawn = display.from_estimator(Told(), X, y, sample_weight=weights)
        same = display.from_predictions(y, X[:, 0], X[:, 1], sample_weight=weights)
        assert drawn.aurc == same.aurc
    matrix = RejectionConfusionMatrixDisplay.from_estimator(Told(), X, y, sample_weight=weights)
    assert matrix.confusion_matrix.tolist() == [[1, 5, 0], [2, 3, 0]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"X": np.zeros((2, 8, 8))}, "X and y must be given together"),
        ({"class_names": ["a"]}, "class_names has 1 names for 3 classes"),
        ({"X": np.zeros((2, 8, 8)), "y": ["one", "two"]}, r"n_columns=8 is more than .*'zero': 0"),
        (
            {
                "X": np.zeros((17, 8, 8)),
                "y": np.repeat(["one", "two", "zero"], [8, 1, 8]),
                "class_names": ["a", "b", "b"],
            },
            "'b': 1",
        ),
        (
            {"X": np.zeros((2, 8, 9)), "y": ["one", "two"]},
            r"X has float64 images of shape \(8, 9\)",
        ),
        ({"X": np.zeros((2, 8, 8)), "y": ["one"]}, "X has 2 images and y 1 labels"),
        ({"n_columns": 0}, "n_columns must be an integer >= 1, got 0"),
        ({"n_columns": 2.5}, "n_columns must be an integer >= 1, got 2.5"),
    ],
)
def test_a_grid_that_cannot_be_made_is_named(fitted, settings, message):
    with pytest.raises(ValueError, match=message):
        SampleGridDisplay.from_estimator(fitted, n_steps=1, **settings)


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_images_of_any_number_of_channels_are_shown(channels):
    images = np.random.default_rng(0).random((2, 3, 4, 4, channels))
    display = SampleGridDisplay(blocks={"some": images}, class_names=["a", "b"]).plot()
    (picture,) = display.ax_.get_images()
    assert picture.get_array().shape == (8, 12, 3)


@pytest.mark.parametrize("encoding", ["rgb", "grayscale", "simplex"])
def test_image_and_mask_are_shown_on_their_way(digits, encoding):
    settings = {"label_encoding": encoding, "label_prediction": "velocity"}
    classifier = tiny_classifier(**settings).fit(*digits)
    display = TrajectoryDisplay.from_estimator(classifier, "two", n_columns=5, n_steps=8)
    assert display.axes_.shape == (2, 5)
    np.testing.assert_allclose(display.times, [0, 0.25, 0.5, 0.75, 1])
    assert display.masks.shape == (5, 8, 8, 3)
    assert display.masks.min() >= 0
    assert display.masks.max() <= 1
    with pytest.raises(ValueError, match="n_columns must be an integer >= 2, got 1"):
        TrajectoryDisplay.from_estimator(classifier, "two", n_columns=1)
    assert len(TrajectoryDisplay.from_estimator(classifier, "two", n_steps=3).times) == 4
    with pytest.raises(ValueError, match="n_columns=7 needs n_steps=6 or more, got n_steps=5"):
        TrajectoryDisplay.from_estimator(classifier, "two", n_columns=7)


def test_counterfactuals_stand_below_their_images_with_what_changed(fitted, digits):
    X, _ = digits
    display = CounterfactualDisplay.from_estimator(fitted, X[:3], "two", n_steps=2)
    changed = fitted.counterfactual(X[:3], "two", n_steps=2)
    for column in range(3):
        image, other, difference = (
            ax.get_images()[0].get_array() for ax in display.axes_[:, column]
        )
        np.testing.assert_allclose(image[..., 0], X[column] / 16)
        np.testing.assert_allclose(other[..., 0], changed[column] / 16)
        np.testing.assert_allclose(difference, (changed[column] - X[column]) / 16)
    assert [ax.get_ylabel() for ax in display.axes_[:, 0]] == [
        "image",
        "counterfactual",
        "difference",
    ]


def test_a_counterfactual_is_named_by_what_it_is_taken_for_not_by_what_was_asked(fitted, digits):
    X, _ = digits
    # One step of so coarse a solver does not reach every class.
    display = CounterfactualDisplay.from_estimator(
        fitted, X[:8], "two", n_steps=1, class_names=["1", "2", "0"]
    )
    number = {"one": "1", "two": "2", "zero": "0"}
    changed = fitted.counterfactual(X[:8], "two", n_steps=1)
    assert display.titles == [
        f"{number[source]} → {number[target]}"
        for source, target in zip(fitted.predict(X[:8]), fitted.predict(changed), strict=True)
    ]
    assert [ax.get_title() for ax in display.axes_[0]] == display.titles


def test_differences_have_one_scale_around_zero():
    images = np.full((2, 4, 4), 0.5)
    changed = images.copy()
    changed[0, 0, 0], changed[1, 1, 1] = 0.1, 0.7
    display = CounterfactualDisplay(
        images=images, counterfactuals=changed, titles=["a", "b"]
    ).plot()
    scales = [ax.get_images()[0].get_clim() for ax in display.axes_[2]]
    assert scales == [(-0.4, 0.4)] * 2
    unchanged = display.axes_[2, 0].get_images()[0].to_rgba(np.zeros(1))
    np.testing.assert_allclose(unchanged[0, :3], 0.97, atol=0.01)
    assert (display.colorbar_.vmin, display.colorbar_.vmax) == (-0.4, 0.4)


def test_changes_of_opposite_sign_do_not_cancel_over_channels():
    images = np.full((1, 1, 2, 3), 0.5)
    changed = images + np.array([[0.3, -0.4, 0.1], [0.2, 0, -0.1]])
    display = CounterfactualDisplay(images=images, counterfactuals=changed, titles=["a"])
    np.testing.assert_allclose(display.differences, [[[-0.4, 0.2]]])


def test_images_without_any_change_are_shown_white():
    images = np.zeros((1, 4, 4, 2))
    display = CounterfactualDisplay(images=images, counterfactuals=images, titles=["a"]).plot()
    low, high = display.axes_[2, 0].get_images()[0].get_clim()
    assert low < 0 < high


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"class_names": ["a"]}, "class_names has 1 names for 3 classes"),
        ({"to_class": "four"}, "to_class.*four"),
        ({"to_class": ["one", "two", "one"]}, "one for each of the 2 images"),
        ({"X": np.zeros((2, 9, 9))}, "9"),
        ({"X": np.zeros((0, 8, 8))}, "0 sample"),
    ],
)
def test_counterfactuals_that_cannot_be_shown_are_named(fitted, digits, settings, message):
    asked = {"X": digits[0][:2], "to_class": "two", **settings}
    with pytest.raises(ValueError, match=message):
        CounterfactualDisplay.from_estimator(fitted, n_steps=1, **asked)


@every_display
def test_nothing_is_drawn_of_an_estimator_that_is_not_fitted(digits, draw):
    with pytest.raises(NotFittedError, match="not fitted yet"):
        draw(tiny_classifier(), *digits)
