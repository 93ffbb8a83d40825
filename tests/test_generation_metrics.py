"""Metrics of generated images where the answer is known."""

import numpy as np
import pytest
from sklearn import config_context
from sklearn.datasets import load_digits
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import ExtraTreesClassifier

from sklearn_msf.generation_metrics import (
    class_fidelity,
    classifier_accuracy_score,
    copying_check,
    kernel_distance,
    manifold_metrics,
)


@pytest.fixture(scope="module")
def halves():
    """Two halves of the digits, pixels as features, with their labels."""
    X, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(X))[:1200]
    X, y = X[order] / 16, y[order]
    return X[:600], y[:600], X[600:], y[600:]


@pytest.fixture(scope="module")
def noise():
    return np.random.default_rng(1).uniform(size=(600, 64))


def test_real_images_look_real(halves):
    a, _, b, _ = halves
    metrics = manifold_metrics(a, b)
    assert metrics.precision > 0.8
    assert metrics.recall > 0.8
    assert metrics.density == pytest.approx(1, abs=0.15)
    assert metrics.coverage == pytest.approx(1 - 2**-5, abs=0.05)


def test_noise_is_outside(halves, noise):
    metrics = manifold_metrics(halves[0], noise)
    assert (metrics.precision, metrics.density, metrics.coverage) == (0, 0, 0)


def test_a_set_covers_itself(halves):
    metrics = manifold_metrics(halves[0], halves[0])
    assert (metrics.precision, metrics.recall, metrics.coverage) == (1, 1, 1)


@pytest.mark.parametrize("width", [3, 100])
def test_a_ball_holds_the_neighbour_that_it_reaches(width):
    features = np.random.default_rng(0).normal(size=(200, width)) + 10
    # Of itself each image is in the balls of five on average, and in its own.
    assert manifold_metrics(features, features, k=5).density == pytest.approx(6 / 5)


def test_a_dropped_class_costs_recall_and_coverage_but_not_precision(halves):
    a, _, b, labels = halves
    whole, part = manifold_metrics(a, b), manifold_metrics(a, b[labels >= 5])
    assert part.recall < whole.recall - 0.3
    assert part.coverage < whole.coverage - 0.3
    assert part.precision > whole.precision - 0.1


def test_the_metrics_are_those_of_their_definition():
    rng = np.random.default_rng(0)
    real, generated, k = rng.normal(size=(12, 2)), rng.normal(size=(9, 2)) + 0.5, 2
    across = np.linalg.norm(real[:, None] - generated, axis=2)
    radius = {}
    for name, x in (("real", real), ("generated", generated)):
        radius[name] = np.sort(np.linalg.norm(x[:, None] - x, axis=2), axis=1)[:, k]
    inside = across <= radius["real"][:, None]
    # All distances at once, and those of four real images at a time.
    for working_memory in (1024, 0.0003):
        with config_context(working_memory=working_memory):
            metrics = manifold_metrics(real, generated, k=k)
        assert metrics.precision == pytest.approx(inside.any(axis=0).mean())
        assert metrics.recall == pytest.approx((across <= radius["generated"]).any(axis=1).mean())
        assert metrics.density == pytest.approx(inside.sum() / (k * 9))
        assert metrics.coverage == pytest.approx(inside.any(axis=1).mean())


def test_the_kernel_distance_of_real_images_is_zero_within_its_error(halves):
    distance = kernel_distance(halves[0], halves[2])
    assert abs(distance.value) < 4 * distance.standard_error


def test_the_kernel_distance_is_that_of_its_definition_and_its_error_covers_it():
    rng = np.random.default_rng(0)
    distances = []
    for _ in range(30):
        a, b = rng.normal(size=(40, 3)), rng.normal(size=(60, 3)) + 0.5
        distances.append(kernel_distance(a, b, n_blocks=5))
    k = [(x @ y.T / 3 + 1) ** 3 for x, y in ((a, a), (b, b), (a, b))]
    off = [(m.sum() - np.trace(m)) / (len(m) * (len(m) - 1)) for m in k[:2]]
    assert distances[-1].value == pytest.approx(sum(off) - 2 * k[2].mean())
    spread = np.std([d.value for d in distances], ddof=1)
    assert 0.6 < np.mean([d.standard_error for d in distances]) / spread < 1.8


def test_labels_of_one_column_are_labels(halves):
    a, labels, *_ = halves
    judge = ExtraTreesClassifier(20, random_state=0).fit(a, labels)
    assert class_fidelity(judge, a, labels[:, None]) == class_fidelity(judge, a, labels) == 1


def test_noise_and_a_dropped_class_are_far_away(halves, noise):
    a, _, b, labels = halves
    real = kernel_distance(a, b)
    part = kernel_distance(a, b[labels >= 5])
    far = kernel_distance(a, noise)
    assert real.value + 4 * real.standard_error < part.value < far.value


def test_training_on_real_images_scores_and_on_shuffled_labels_does_not(halves):
    a, labels, b, b_labels = halves
    trees = ExtraTreesClassifier(50, random_state=0)
    assert classifier_accuracy_score(a, labels, b, b_labels, classifier=trees) > 0.9
    shuffled = np.random.default_rng(0).permutation(labels)
    assert classifier_accuracy_score(a, shuffled, b, b_labels, classifier=trees) < 0.3


def test_the_score_is_the_balanced_accuracy_and_the_default_takes_nan():
    most = DummyClassifier(strategy="most_frequent")
    rows, real = np.zeros((4, 2)), np.zeros((10, 2))
    score = classifier_accuracy_score(rows, [0, 0, 0, 1], real, [0] * 9 + [1], classifier=most)
    assert score == 0.5
    X = np.random.default_rng(0).random((40, 3))
    y = X[:, 1] > 0.5
    X[0, 0] = np.nan
    assert classifier_accuracy_score(X, y, X, y) == 1


def test_a_judge_sees_the_class_of_real_images(halves):
    a, labels, b, b_labels = halves
    judge = ExtraTreesClassifier(50, random_state=0).fit(a, labels)
    assert class_fidelity(judge, b, b_labels) > 0.9
    assert class_fidelity(judge, b, (b_labels + 1) % 10) < 0.1


def test_distances_of_generated_and_of_held_out_images_are_told():
    generated, training, held_out = [[0.0], [9.0]], [[1.0], [5.0], [50.0]], [[4.0], [30.0], [52.0]]
    check = copying_check(generated, training, held_out, quantile=0.2)
    assert check.generated.tolist() == [1, 4]
    assert check.nearest.tolist() == [0, 1]
    assert check.held_out.tolist() == [1, 20, 2]
    assert check.quantile == 0.2


@pytest.mark.parametrize("n_held_out", [19, 39, 99])
def test_images_of_one_kind_are_near_duplicates_as_often_as_expected(n_held_out):
    rng = np.random.default_rng(0)
    found = []
    for _ in range(60):
        sizes = 100, 40, n_held_out
        check = copying_check(*(rng.normal(size=(n, 3)) for n in sizes))
        found.append((check.near_duplicates, check.singled_out))
    # The threshold of few held-out images varies: its standard error is below 0.008.
    np.testing.assert_allclose(np.mean(found, axis=0), 0.05, atol=0.02)


@pytest.mark.parametrize("axes", [2, "2", (0,), (3,), (1, 1)])
def test_axes_that_images_lack_are_named(axes):
    images = np.arange(48.0).reshape(3, 4, 4)
    with pytest.raises(ValueError, match="flipped_axes must be"):
        copying_check(images, images, images, flipped_axes=axes)


def test_copies_are_found_and_held_out_images_are_none(halves):
    a, _, b, _ = halves
    blurred = a[:300] + np.random.default_rng(0).normal(0, 0.01, (300, 64))
    copies = copying_check(blurred, a, b)
    assert copies.near_duplicates > 0.99
    assert copies.singled_out > 0.99
    assert copies.duplicates_of_training > 3 * copies.duplicates_of_held_out
    assert copies.closer > 0.99
    np.testing.assert_array_equal(copies.nearest, np.arange(300))
    fresh = copying_check(b[:300], a, b[300:])
    assert fresh.near_duplicates < 0.12
    assert fresh.singled_out < 0.12
    assert fresh.duplicates_of_training < 0.12
    assert fresh.closer == pytest.approx(0.5, abs=0.1)


def test_what_is_typical_is_near_to_all_and_singles_none_out():
    rng = np.random.default_rng(0)
    real = rng.normal(size=(600, 30))
    typical = copying_check(0.3 * rng.normal(size=(200, 30)), real[:400], real[400:])
    assert typical.near_duplicates > 0.9
    assert typical.duplicates_of_training == pytest.approx(typical.duplicates_of_held_out, abs=0.1)
    assert typical.singled_out < 0.1


def test_duplicates_are_counted_among_as_many_images():
    # Two of four training images are near 0: any two of them miss both in one of six choices.
    check = copying_check(
        np.array([[0.0], [100.0]]),
        np.array([[0.0], [0.1], [10.0], [20.0]]),
        np.array([[-0.25], [50.0]]),
        quantile=0.01,
    )
    assert check.duplicates_of_held_out == 0.5
    assert check.duplicates_of_training == pytest.approx(0.5 * 5 / 6)


def test_a_training_image_that_is_there_twice_is_one(halves):
    a, _, b, _ = halves
    once, twice = (copying_check(b[:300], of, b[300:]) for of in (a, np.repeat(a, 2, axis=0)))
    assert twice.singled_out == once.singled_out
    np.testing.assert_array_equal(twice.nearest // 2, once.nearest)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a: manifold_metrics(a, a[:, :5]), "generated has 5 features, real has 64"),
        (lambda a: manifold_metrics(a, a[:4]), "k=5 neighbours need more than k images"),
        (lambda a: manifold_metrics(a, a, k=0), "k must be an integer >= 1, got 0"),
        (lambda a: manifold_metrics(a, a[0]), r"generated must be of shape \(n, ...\)"),
        (lambda a: kernel_distance(a, a + np.nan), "generated contains NaN"),
        (lambda a: kernel_distance(a, a[:3]), "n_blocks must be .* got 8 for 600 real and 3"),
        (lambda a: kernel_distance(a, a, n_blocks=2.5), "n_blocks must be an integer >= 2"),
        (lambda a: class_fidelity(None, a, [0, 1]), r"labels must be of shape \(600,\)"),
        (
            lambda a: classifier_accuracy_score(a, [0] * 600, a, [1]),
            r"real_labels must be of shape \(600,\)",
        ),
        (
            lambda a: copying_check(a, a[:1], a),
            "at least two different training images, got 1 alike",
        ),
        (lambda a: copying_check(a, a, a, quantile=1.0), r"quantile must be .* \(0, 1\)"),
    ],
)
def test_what_cannot_be_measured_is_named(halves, call, message):
    with pytest.raises(ValueError, match=message):
        call(halves[0])


@pytest.mark.parametrize("metric", [manifold_metrics, kernel_distance])
def test_masked_values_are_not_compared(metric):
    features = np.random.default_rng(0).random((40, 3))
    hidden = np.ma.MaskedArray(features, mask=features > 0.9)
    with pytest.raises(ValueError, match="is a masked array with"):
        metric(features, hidden)
    with pytest.raises(ValueError, match="generated is a masked array with .* fill them in"):
        classifier_accuracy_score(hidden, [0, 1] * 20, features, [0, 1] * 20)


def test_a_judge_may_return_a_column_but_has_to_know_the_classes():
    class Column:
        classes_ = np.array(["a", "b"])

        def predict(self, X):
            return np.array(["a"] * len(X))[:, None]

    images = np.zeros((4, 2, 2))
    assert class_fidelity(Column(), images, ["a", "a", "a", "b"]) == 0.75
    with pytest.raises(
        ValueError, match=r"judge does not know the classes \['c'\], only \['a', 'b'"
    ):
        class_fidelity(Column(), images, ["c"] * 4)

    class Single:
        def predict(self, X):
            return "a"

    with pytest.raises(ValueError, match="one label for each of the 4 images, got an array of sh"):
        class_fidelity(Single(), images, ["a"] * 4)


def test_mirrored_copies_are_found_along_the_flipped_axes():
    rng = np.random.default_rng(0)
    training, held_out = rng.random((2, 60, 6, 6))
    mirrored = training[:, :, ::-1]
    assert copying_check(mirrored, training, held_out).duplicates_of_training < 0.2
    found = copying_check(mirrored, training, held_out, flipped_axes=(2,))
    assert found.duplicates_of_training == found.singled_out == found.closer == 1
    np.testing.assert_array_equal(found.nearest, np.arange(60))
    turned = copying_check(mirrored[:, ::-1], training, held_out, flipped_axes=(1, 2))
    assert turned.duplicates_of_training == 1
    fresh = copying_check(rng.random((60, 6, 6)), training, held_out, flipped_axes=(2,))
    assert fresh.near_duplicates < 0.2
    assert fresh.closer == pytest.approx(0.5, abs=0.2)


@pytest.mark.parametrize("axes", [(0,), (3,), (-1,), (2, 2), ("2",)])
def test_axes_that_images_do_not_have_are_refused(axes):
    images = np.random.default_rng(0).random((3, 8, 4, 4))
    with pytest.raises(ValueError, match="flipped_axes must be different axes"):
        copying_check(*images, flipped_axes=axes)


def test_flips_need_images_of_one_shape():
    images = np.random.default_rng(0).random((8, 4, 4))
    assert copying_check(images, images, images, flipped_axes=np.array([2])).closer == 0.5
    with pytest.raises(ValueError, match=r"images of one shape, got \(4, 4\) and \(16,\)"):
        copying_check(images, images, images.reshape(8, 16), flipped_axes=(1,))
