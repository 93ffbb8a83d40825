from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.base import BaseEstimator

from sklearn_msf._estimator.given_images import mirrored
from sklearn_msf.data.images import learn_format
from sklearn_msf.sample_augmentation import augment_with_samples


def model(X, axes=()):
    """What is asked of the model of images of one kind."""
    rows = X.reshape(len(X), -1)
    n_spatial_dims = 3 if X.shape[-1] == 5 else 2
    image_format = learn_format(rows, X.shape[1:], flat=False, n_spatial_dims=n_spatial_dims)
    return SimpleNamespace(ever_flipped_axes=axes, image_format=image_format)


class Painter(BaseEstimator):
    """Samples images of one value a class."""

    classes_ = np.array(["bright", "dark"])

    def fit(self, X, y):
        """Be an estimator."""

    def sample(self, class_id, n_samples, *, n_steps, guidance=None, random_state):
        rng = np.random.default_rng(random_state)
        level = 200 if class_id == "bright" else 50
        return rng.integers(level - 20, level + 20, (n_samples, 4, 4)).astype(np.uint8)


class Threshold:
    """Takes bright images for bright ones."""

    def predict(self, X):
        return np.where(X.mean(axis=(1, 2)) > 125, "bright", "dark")


@pytest.fixture
def few_bright():
    rng = np.random.default_rng(0)
    X = rng.integers(0, 256, (30, 4, 4)).astype(np.uint8)
    return X, np.array(["bright"] * 5 + ["dark"] * 25)


def test_classes_are_balanced_and_the_originals_come_first(few_bright):
    X, y = few_bright
    X_new, y_new = augment_with_samples(Painter(), X, y, random_state=0)
    np.testing.assert_array_equal(X_new[:30], X)
    np.testing.assert_array_equal(y_new, [*y, *["bright"] * 20])
    assert X_new.dtype == X.dtype
    assert X_new[30:].min() >= 180


@pytest.mark.parametrize(
    ("n_per_class", "added"), [(3, {"bright": 3, "dark": 3}), ({"dark": 2}, {"dark": 2}), (0, {})]
)
def test_as_many_are_added_as_asked_for(few_bright, n_per_class, added):
    _, y = augment_with_samples(Painter(), *few_bright, n_per_class=n_per_class, random_state=0)
    new = y[30:].tolist()
    assert {label: new.count(label) for label in set(new)} == added


@pytest.mark.parametrize("unit", ["s", "ns"])
def test_dates_of_another_unit_are_the_same_classes(few_bright, unit):
    X, y = few_bright
    days = np.array(["2020-01-01", "2021-01-01"], dtype="M8[D]")
    of_images = days[(y == "dark").astype(int)].astype(f"M8[{unit}]")
    painter, judge = Painter(), SimpleNamespace(predict=lambda X: of_images[:1].repeat(len(X)))
    painter.classes_, judge.classes_ = days, np.unique(of_images)
    X_new, y_new = augment_with_samples(
        painter, X, of_images, n_per_class={days[0].item(): 2}, judge=judge, remove_copies=False
    )
    assert len(X_new) == 32
    np.testing.assert_array_equal(
        y_new.astype("M8[D]"), [*of_images.astype("M8[D]"), *days[[0, 0]]]
    )


def test_a_judge_of_other_classes_is_refused_before_anything_is_sampled(few_bright, monkeypatch):
    judge = Threshold()
    judge.classes_ = np.array(["light", "dark"])
    monkeypatch.setattr(Painter, "sample", None)
    with pytest.raises(ValueError, match=r"judge does not know the classes \['bright'\]"):
        augment_with_samples(Painter(), *few_bright, judge=judge)


def test_what_the_judge_takes_for_another_class_is_left_out(few_bright):
    class Undecided(Painter):
        def sample(self, class_id, n_samples, **settings):
            images = super().sample(class_id, n_samples, **settings)
            images[1::2] = 0
            return images

    X, _ = augment_with_samples(
        Undecided(), *few_bright, judge=Threshold(), remove_copies=False, random_state=0
    )
    assert len(X) == 50
    assert Threshold().predict(X[30:]).tolist() == ["bright"] * 20


def test_copies_are_left_out_and_too_few_are_said(few_bright):
    class Copyist(Painter):
        def sample(self, class_id, n_samples, **settings):
            return np.repeat(few_bright[0][:1], n_samples, axis=0)

    with pytest.warns(UserWarning, match="'bright': of 80 generated images only 0 passed, 20 were"):
        X, y = augment_with_samples(Copyist(), *few_bright, random_state=0)
    assert len(X) == len(y) == 30


@pytest.mark.parametrize(("axes", "turn"), [((-1,), np.s_[:, :, ::-1]), ((-1, -2), np.s_[:, ::-1])])
def test_copies_are_mirrored_where_training_mirrored_images(few_bright, axes, turn):
    class Copyist(Painter):
        model_ = model(few_bright[0], axes)

        def sample(self, class_id, n_samples, **settings):
            return np.repeat(few_bright[0][:1][turn], n_samples, axis=0)

    with pytest.warns(UserWarning, match="only 0 passed"):
        augment_with_samples(Copyist(), *few_bright, random_state=0)


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 3), (4, 6, 5)])
def test_flips_are_those_of_an_image_in_its_own_axes(shape):
    images = np.random.default_rng(0).random((2, *shape))
    rows = images.reshape(2, -1)
    fitted = SimpleNamespace(model_=model(images, (-1,)))
    same, flipped = mirrored(fitted, rows)
    np.testing.assert_array_equal(same, rows)
    last_axis = fitted.model_.image_format.n_spatial_dims
    np.testing.assert_array_equal(flipped.reshape(images.shape), np.flip(images, last_axis))


@pytest.mark.parametrize("turn", [1, -1])
def test_values_that_no_generated_image_has_do_not_hide_copies(few_bright, turn):
    X, y = 30 * few_bright[0].astype(np.int16), few_bright[1]
    X[:, :2, :2] = -32768
    with pytest.warns(UserWarning, match="-32768"):
        of_model = model(X, (-1,))

    class Copyist(Painter):
        model_ = of_model

        def sample(self, class_id, n_samples, **settings):
            copied = np.repeat(X[:1, :, ::turn], n_samples, axis=0)
            return of_model.image_format.within_range(copied).astype(np.int16)

    with (
        pytest.warns(UserWarning, match="only 0 passed"),
        pytest.warns(UserWarning, match="X has values from -32768 to 7650, .* from 0 to 7650:"),
    ):
        X_new, _ = augment_with_samples(Copyist(), X, y, random_state=0)
    np.testing.assert_array_equal(X_new, X)


def test_images_may_be_an_object_array(few_bright):
    images = np.empty(30, dtype=object)
    images[:] = list(few_bright[0])
    X, y = augment_with_samples(Painter(), images, few_bright[1], random_state=0)
    assert X.shape == (50, 4, 4)
    assert len(y) == 50


def test_a_class_that_is_absent_keeps_its_whole_name(few_bright):
    X, y = few_bright
    dark = y == "dark"
    _, labels = augment_with_samples(Painter(), X[dark], y[dark].astype("<U4"), random_state=0)
    assert sorted(set(labels.tolist())) == ["bright", "dark"]


def test_what_is_typical_is_no_copy_and_what_is_nearly_a_training_image_is():
    rng = np.random.default_rng(0)
    X = rng.integers(100, 156, (60, 4, 4)).astype(np.uint8)
    y = np.array(["bright", "dark"] * 30)

    class Typical(Painter):
        def sample(self, class_id, n_samples, **settings):
            return np.repeat(X.mean(axis=0, keepdims=True).astype(np.uint8), n_samples, axis=0)

    class Nearly(Painter):
        def sample(self, class_id, n_samples, **settings):
            return np.repeat(X[:1] + 1, n_samples, axis=0).astype(np.uint8)

    kept, _ = augment_with_samples(Typical(), X, y, n_per_class={"dark": 4})
    assert len(kept) == 64
    with pytest.warns(UserWarning, match="only 0 passed"):
        augment_with_samples(Nearly(), X, y, n_per_class={"dark": 4})


def test_what_is_as_far_as_training_images_are_from_each_other_is_no_copy():
    levels = np.array([*range(0, 201, 10), 255], np.uint8)
    X = np.broadcast_to(levels[:, None, None], (22, 4, 4)).copy()
    y = np.array(["bright", "dark"] * 11)

    class Between(Painter):
        def sample(self, class_id, n_samples, **settings):
            # 15 from the nearest, 25 from the second; nearly all training images are 10 apart.
            return np.full((n_samples, 4, 4), 215, np.uint8)

    kept, _ = augment_with_samples(Between(), X, y, n_per_class={"dark": 4})
    assert len(kept) == 26


def test_copies_are_found_among_training_images_that_are_there_twice(few_bright):
    X, y = few_bright

    class Copyist(Painter):
        def sample(self, class_id, n_samples, **settings):
            return np.repeat(X[:1], n_samples, axis=0)

    with pytest.warns(UserWarning, match="only 0 passed"):
        augment_with_samples(Copyist(), np.tile(X, (2, 1, 1)), np.tile(y, 2), random_state=0)


def test_two_different_images_are_enough_to_look_for_copies(few_bright):
    X, y = few_bright
    X, y = X[[0, 10]].repeat(4, axis=0), y[[0, 10]].repeat(4)
    added, _ = augment_with_samples(Painter(), X, y, n_per_class=1, random_state=0)
    assert len(added) > len(X)


def test_a_seed_gives_the_same_images(few_bright):
    first, second = (augment_with_samples(Painter(), *few_bright, random_state=1) for _ in range(2))
    np.testing.assert_array_equal(first[0], second[0])


def test_it_works_with_the_estimators(fitted, digits):
    X, y = digits
    X_new, y_new = augment_with_samples(
        fitted, X, y, n_per_class={"two": 3}, n_steps=2, remove_copies=False, random_state=0
    )
    assert X_new.shape == (len(X) + 3, 8, 8)
    assert X_new.dtype == X.dtype
    assert y_new[len(X) :].tolist() == ["two"] * 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_per_class": -1}, "n_per_class must be"),
        ({"n_per_class": 1.5}, "n_per_class must be"),
        ({"n_per_class": {"blue": 1}}, "n_per_class must be"),
        ({"n_per_class": "all"}, "n_per_class must be"),
        ({"y": ["bright"] * 29 + ["blue"]}, r"y has labels \['blue'\]"),
        (
            {"X": np.zeros((30, 4, 4))},
            "X has float64 images of shape .4, 4., but .* generates uint8",
        ),
        ({"X": np.zeros((30, 16), np.uint8)}, r"X has uint8 images of shape \(16,\), but"),
        ({"y": ["bright"]}, "X has 30 images and y 1 labels"),
        ({"random_state": "abc"}, "random_state must be an integer .* got 'abc'"),
    ],
)
def test_what_cannot_be_added_is_named(few_bright, change, message):
    X, y = few_bright
    with pytest.raises(ValueError, match=message):
        augment_with_samples(Painter(), **{"X": X, "y": y, **change})
