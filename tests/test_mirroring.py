"""Classes that a mirror image changes: fit says so before it trains."""

import warnings

import numpy as np
import pytest
import torch
from conftest import tiny_classifier
from sklearn.base import clone

from sklearn_msf._estimator import fit as fitting
from sklearn_msf._estimator import mirroring_check
from sklearn_msf.data.augmentation import mirror_images
from sklearn_msf.data.mirroring import compare_mirroring, comparison_cost, shrink_images

SIDES = np.array(["left", "right"])


def blobs(rows, columns, noise=0.1, seed=0):
    """Gray images, (n, 16, 16) in about 0 to 1, of a bright blob each, at a place each."""
    pixels = np.arange(16)
    down = np.exp(-((pixels - np.asarray(rows)[:, None]) ** 2) / 8)
    across = np.exp(-((pixels - np.asarray(columns)[:, None]) ** 2) / 8)
    blob = down[:, :, None] * across[:, None, :]
    return blob + noise * np.random.default_rng(seed).normal(size=blob.shape)


def sided(n=100, noise=0.1):
    """Images and labels: the blob is left in class 0 and right in class 1, at any height."""
    y = np.arange(n) % 2
    rows = np.random.default_rng(1).uniform(3, 12, n)
    return blobs(rows, np.where(y == 0, 4, 11), noise), y


def as_tensor(X):
    return torch.from_numpy(X[:, None]).float()


@pytest.fixture
def affordable(monkeypatch):
    """The check is made however short the fit is."""
    monkeypatch.setattr(mirroring_check, "_FRACTION_OF_OPERATIONS", 1e9)


# The comparison


def ridge_without_each(images, labels, views):
    """Kernel ridge regression fitted anew for each image, on the views of all other images."""
    n = len(labels)
    of_views = [view.flatten(1).double().numpy() for view in views]
    x = of_views[0]
    scale = np.mean(((x[:, None] - x) ** 2).sum(-1))
    targets = np.eye(labels.max() + 1)[labels]
    penalty = 0.1 * targets.sum(axis=0)[labels] * targets.shape[1] / n

    def kernel(a, b):
        return 1 + np.exp(-((a[:, None] - b) ** 2).sum(-1) / scale)

    predicted = []
    for i in range(n):
        others = np.delete(np.arange(n), i)
        points = np.concatenate([view[others] for view in of_views])
        # Views share the weight of their image, so the penalty of each is as many times larger.
        ridge = np.tile(penalty[others], len(views)) * len(views)
        solved = np.linalg.solve(
            kernel(points, points) + np.diag(ridge), np.tile(targets[others], (len(views), 1))
        )
        seen = np.stack([view[i] for view in of_views])
        predicted.append(np.argmax((kernel(seen, points) @ solved).mean(axis=0)))
    return np.array(predicted)


@pytest.mark.parametrize("kind", ["hflip", "flip"])
def test_accuracies_are_those_of_fits_without_each_image_on_images_and_mirror_images(kind):
    X, y = sided(40, noise=0.8)
    y = np.where(X[:, 8, 8] > 0.5, 2, y)
    images = as_tensor(X)
    effect = compare_mirroring(images, y, kind)
    for recalls, views in (
        (effect.plain, [images]),
        (effect.mirrored, mirror_images(images, kind)),
    ):
        correct = ridge_without_each(images, y, views) == y
        np.testing.assert_allclose(recalls, [correct[y == c].mean() for c in range(3)])


def test_a_blob_left_or_right_is_recognised_only_without_mirror_images():
    X, y = sided(noise=0.3)
    effect = compare_mirroring(as_tensor(X), y, "hflip")
    assert effect.plain.min() > 0.9
    # A mirror image of one class is an image of the other one: half of them by chance.
    assert abs(effect.mirrored.mean() - 0.5) < 0.15
    assert effect.harmed == [0, 1]


@pytest.mark.parametrize(("kind", "harmed"), [("hflip", []), ("flip", [0, 1])])
def test_up_and_down_are_mixed_up_by_flips_of_both_axes_alone(kind, harmed):
    X, y = sided(noise=0.3)
    effect = compare_mirroring(as_tensor(X.transpose(0, 2, 1).copy()), y, kind)
    assert effect.harmed == harmed


def test_only_the_classes_that_mirror_each_other_are_harmed():
    columns = np.tile([4, 7.5, 11], 40)
    X = blobs(np.full(120, 7.5), columns, noise=0.3)
    effect = compare_mirroring(as_tensor(X), np.tile([0, 1, 2], 40), "hflip")
    assert effect.harmed == [0, 2]


@pytest.mark.parametrize("seed", range(5))
def test_classes_that_do_not_depend_on_the_side_are_not_harmed(seed):
    # Eyes are left and right, and their grades do not depend on it: here how bright a blob is.
    rng = np.random.default_rng(seed)
    y = np.arange(120) % 3
    X = blobs(rng.uniform(4, 11, 120), np.where(rng.random(120) < 0.5, 4, 11), 0.1, seed)
    X *= 1 + 0.3 * y[:, None, None]
    assert compare_mirroring(as_tensor(X), y, "flip").harmed == []


@pytest.mark.parametrize("seed", range(5))
def test_labels_at_random_are_not_harmed(seed):
    rng = np.random.default_rng(seed)
    X, y = rng.normal(size=(100, 8, 8)), rng.integers(0, 2, 100)
    assert compare_mirroring(as_tensor(X), y, "hflip").harmed == []


def test_nine_images_of_a_class_are_too_few_for_a_claim_and_twenty_enough():
    X, y = sided(200)
    for n, harmed in ((9, []), (20, [0, 1])):
        kept = np.concatenate([np.flatnonzero(y == 0), np.flatnonzero(y == 1)[:n]])
        effect = compare_mirroring(as_tensor(X[kept]), y[kept], "hflip")
        assert effect.harmed == harmed


def test_a_class_without_images_is_passed_over():
    X, y = sided()
    effect = compare_mirroring(as_tensor(X), 2 * y, "hflip")
    assert effect.harmed == [0, 2]
    assert np.isnan(effect.plain[1])


@pytest.mark.parametrize(
    "mode",
    [torch.inference_mode, lambda: torch.device("meta"), lambda: torch.autocast("cpu")],
    ids=["inference mode", "default device", "autocast"],
)
def test_the_comparison_does_not_depend_on_modes_of_torch(mode):
    X, y = sided(60, noise=1.0)
    images = as_tensor(X)
    expected = compare_mirroring(images, y, "flip")
    with mode():
        effect = compare_mirroring(images, y, "flip")
        assert comparison_cost(60, (1, 16, 16), "flip") > 0
    np.testing.assert_array_equal(effect.plain, expected.plain)
    np.testing.assert_array_equal(effect.mirrored, expected.mirrored)


def test_images_that_are_all_alike_give_no_claim():
    assert compare_mirroring(torch.zeros(60, 1, 8, 8), np.arange(60) % 2, "flip").harmed == []


@pytest.mark.parametrize("size", [(28, 28), (33, 20), (64, 9), (5, 1)])
def test_mirroring_a_small_image_is_making_the_mirror_image_small(size):
    images = torch.rand(2, 3, *size, dtype=torch.float64)
    for axis in (2, 3):
        torch.testing.assert_close(
            shrink_images(images).flip(axis), shrink_images(images.flip(axis))
        )


# The warning of fit


def test_fit_warns_of_classes_left_and_right_by_default():
    X, y = sided(100)
    X = X.reshape(-1, 8, 2, 8, 2).mean(axis=(2, 4))
    # Many weights for few operations: most of them work on four positions.
    clf = tiny_classifier(augment="auto", channels=16, channel_mult=(1, 8), max_epochs=3)
    with pytest.warns(UserWarning, match="mirror images") as caught:
        clf.fit(X, SIDES[y])
    (warning,) = caught
    text = str(warning.message)
    assert text.startswith("augment='auto' shows mirror images, and some classes are mixed up")
    assert "without and with mirror images: 'left' 1.00 and 0." in text
    assert ", 'right' 1.00 and 0." in text
    assert text.endswith(
        "If a mirror image has another meaning, set augment='affine' or augment=None."
    )
    assert warning.filename == __file__


@pytest.mark.parametrize("convert", [np.asarray, lambda X: np.clip(255 * X, 0, 255).astype("u1")])
@pytest.mark.parametrize("augment", ["auto", "hflip", "flip+affine"])
@pytest.mark.usefixtures("affordable")
def test_fit_warns_for_every_flip_and_number_type(augment, convert):
    X, y = sided()
    with pytest.warns(UserWarning, match=r"'left' .*, 'right' .*augment='affine'"):
        tiny_classifier(augment=augment, max_epochs=1).fit(convert(X), SIDES[y])


@pytest.mark.parametrize("augment", ["affine", None])
@pytest.mark.usefixtures("affordable")
def test_without_flips_nothing_is_said(augment):
    X, y = sided()
    tiny_classifier(augment=augment, max_epochs=1).fit(X, y)


@pytest.mark.usefixtures("affordable")
def test_the_first_part_of_partial_fit_warns():
    X, y = sided()
    clf = tiny_classifier(augment="auto")
    with pytest.warns(UserWarning, match="some classes are mixed up"):
        clf.partial_fit(X, y, classes=[0, 1, 2])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clf.partial_fit(X, y)


@pytest.mark.usefixtures("affordable")
def test_images_of_zero_weight_are_not_compared():
    X, y = sided(200)
    weights = np.where((y == 0) | (np.arange(200) < 18), 1.0, 0.0)  # nine images of class 1
    tiny_classifier(augment="auto", max_epochs=1).fit(X, y, sample_weight=weights)


@pytest.mark.usefixtures("affordable")
def test_of_many_classes_six_are_named():
    y = np.arange(400) % 8
    columns, rows = np.where(y % 2 == 0, 4, 11), 3 + 3 * (y // 2)
    clf = tiny_classifier(augment="auto", max_epochs=1)
    with pytest.warns(UserWarning, match=r": 0 1.00 and .* 5 1.00 and [\d.]*, and 2 more classes"):
        clf.fit(blobs(rows, columns, noise=0.05), y)


@pytest.mark.usefixtures("affordable")
def test_both_classes_warn_and_their_weights_keep_their_bits(make_classifier, monkeypatch):
    X, y = sided(60)
    clf = make_classifier(augment="hflip")
    before = torch.get_rng_state()
    with pytest.warns(UserWarning, match="'left' .*, 'right' "):
        checked = clone(clf).fit(X, SIDES[y])
    assert torch.equal(torch.get_rng_state(), before)
    monkeypatch.setattr(fitting, "warn_of_mirroring", lambda *_: None)
    unchecked = clone(clf).fit(X, SIDES[y])
    ours = checked.model_.field.state_dict()
    for name, weight in unchecked.model_.field.state_dict().items():
        assert torch.equal(weight, ours[name])


# On a busy machine checking X alone, or one step, takes longer than this budget, which is told.
@pytest.mark.filterwarnings("ignore:time_budget=0.05 was over")
@pytest.mark.parametrize(
    ("n", "parameters"),
    [(100, {"max_epochs": 1}), (100, {"time_budget": 0.05, "max_epochs": 10_000})],
)
def test_a_fit_that_cannot_afford_the_check_does_without(monkeypatch, n, parameters):
    def compare(*_):
        raise AssertionError("compared")

    monkeypatch.setattr(mirroring_check, "compare_mirroring", compare)
    X, y = sided(n)
    tiny_classifier(augment="auto", **parameters).fit(X, y)


@pytest.mark.usefixtures("affordable")
def test_forty_images_are_too_few_to_compare():
    X, y = sided(40)
    tiny_classifier(augment="auto", max_epochs=1).fit(X, y)


def test_at_most_as_many_images_are_compared_as_asked_for_and_rare_classes_are_whole():
    labels = np.repeat([0, 2, 3], [1000, 30, 400])  # class 1 has no images
    rows = mirroring_check._balanced_rows(labels, 200)
    # 30 of class 2, and (200 - 30) / 2 of each other class.
    assert np.bincount(labels[rows]).tolist() == [85, 0, 30, 85]
    assert len(np.unique(rows)) == 200


def test_images_of_one_patient_do_not_give_each_other_away():
    rng = np.random.default_rng(0)
    sides = rng.integers(0, 2, 80)
    images = rng.normal(0, 1, (80, 16, 16))
    for image, side in zip(images, sides, strict=True):
        image[6:10, 10 * side + 1 : 10 * side + 5] += 2
    patients = np.repeat(np.arange(80), 5)
    X = images[patients] + rng.normal(0, 0.01, (400, 16, 16))
    classifier = tiny_classifier(max_epochs=20, augment="hflip", channels=16)
    with pytest.warns(UserWarning, match="mixed up"):
        classifier.fit(X, sides[patients], groups=patients)
