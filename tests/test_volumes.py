"""Volumes through every method of the classifier."""

import json
import pickle
import sys
from functools import partial

import matplotlib
import numpy as np
import pytest
import torch
from conftest import tiny_classifier
from imported_scripts import EXAMPLES, script_at
from sklearn.base import clone
from sklearn.utils import Bunch

from sklearn_msf import MedSymmFlowClassifier
from sklearn_msf.generation_metrics import copying_check
from sklearn_msf.persistence.archives import ArchiveError, read_archive, write_archive
from sklearn_msf.plotting import CounterfactualDisplay, SampleGridDisplay, TrajectoryDisplay
from sklearn_msf.sample_augmentation import augment_with_samples
from sklearn_msf.training.trainer import Trainer

matplotlib.use("agg")

SIZE = (6, 7, 9)


def balls(n, seed=0):
    """Volumes of noise with a bright corner: of class "low" at the first slices, else the last."""
    rng = np.random.default_rng(seed)
    X = rng.integers(0, 60, (n, *SIZE), dtype=np.uint8)
    y = np.array(["low", "up"])[np.arange(n) % 2]
    X[y == "low", :3, :5] += 150
    X[y == "up", 3:, :5] += 150
    return X, y


def tiny_3d(**overrides):
    settings = {"n_spatial_dims": 3, "patch_size": 2, "channel_mult": (1, 2), "max_epochs": 20}
    return tiny_classifier(**{**settings, **overrides})


X, Y = balls(48)
X_NEW, Y_NEW = balls(20, seed=1)


@pytest.fixture(scope="module")
def fitted():
    """A classifier of volumes; tests must not change it."""
    return tiny_3d(augment="hflip").fit(X, Y)


def test_new_volumes_are_recognised(fitted):
    assert fitted.image_shape_ == SIZE
    assert fitted.score(X_NEW, Y_NEW) > 0.9
    p = fitted.predict_proba(X_NEW)
    np.testing.assert_allclose(p.sum(axis=1), 1)
    np.testing.assert_array_equal(fitted.classes_[p.argmax(axis=1)], fitted.predict(X_NEW))


def test_eight_draws_see_all_flips_of_a_volume():
    classifier = tiny_3d(augment="flip", n_draws=8, max_epochs=1).fit(X, Y)
    flips = classifier.model_.flips(8)
    assert len({np.flip(X_NEW[0], flip).tobytes() for flip in flips}) == 8
    p = classifier.predict_proba(X_NEW)
    np.testing.assert_allclose(p.sum(axis=1), 1)


@pytest.mark.parametrize("label_prediction", ["posterior", "velocity"])
def test_a_prediction_does_not_depend_on_the_other_volumes(label_prediction):
    settings = {"label_prediction": label_prediction, "image_prediction": "velocity"}
    classifier = tiny_3d(max_epochs=2, **settings).fit(X, Y)
    p = classifier.predict_proba(X_NEW)
    np.testing.assert_array_equal(classifier.predict_proba(X_NEW[3:4]), p[3:4])
    assert len(np.unique(p[:, 0])) == len(p)


FORMS = {
    "one channel": ({}, lambda X: X[..., None]),
    "rows": ({"image_shape": SIZE}, lambda X: X.reshape(len(X), -1)),
    "tensor": ({}, torch.from_numpy),
    "list": ({}, list),
    "Fortran order": ({}, np.asfortranarray),
    "channels first in memory": (
        {},
        lambda X: np.moveaxis(np.ascontiguousarray(X[:, None]), 1, -1),
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_same_volumes_gives_the_same_model(form):
    settings, convert = FORMS[form]
    expected = tiny_3d(max_epochs=1).fit(X, Y).predict_proba(X_NEW)
    classifier = tiny_3d(max_epochs=1, **settings).fit(convert(X), Y)
    np.testing.assert_array_equal(classifier.predict_proba(convert(X_NEW)), expected)
    # Generated volumes have the layout of X.
    assert classifier.sample(n_samples=1, n_steps=1).shape[1:] == np.shape(convert(X[:1]))[1:]


def test_rows_without_a_shape_are_one_line_as_those_of_images_are():
    rows = X.reshape(len(X), -1)[:, :30]
    assert tiny_3d(max_epochs=1, patch_size=1).fit(rows, Y).image_shape_ == (1, 1, 30)


def test_a_file_mapped_into_memory_is_learned_from(tmp_path):
    np.save(tmp_path / "volumes.npy", X)
    mapped = np.load(tmp_path / "volumes.npy", mmap_mode="r")
    expected = tiny_3d(max_epochs=1).fit(X, Y).predict_proba(X_NEW)
    np.testing.assert_array_equal(
        tiny_3d(max_epochs=1).fit(mapped, Y).predict_proba(X_NEW), expected
    )


@pytest.mark.parametrize("dtype", [np.float32, np.int16])
def test_samples_have_the_dtype_the_range_and_the_channels_of_x(dtype):
    values = np.stack([X, 255 - X], axis=-1).astype(dtype) * 4
    classifier = tiny_3d(max_epochs=1).fit(values, Y)
    samples = classifier.sample("up", 3, n_steps=2, random_state=0)
    assert samples.shape == (3, *SIZE, 2)
    assert samples.dtype == dtype
    assert values.min() <= samples.min() < samples.max() <= values.max()


def test_samples_of_a_class_look_like_it(fitted):
    samples = fitted.sample(n_samples=4, n_steps=4, random_state=0)
    batches = fitted.iter_samples(n_samples=4, batch_size=3, n_steps=4, random_state=0)
    np.testing.assert_array_equal(np.concatenate(list(batches)), samples)
    first, last = (samples[:, part, :5].mean(axis=(1, 2, 3)) for part in (slice(3), slice(3, 6)))
    np.testing.assert_array_equal(first > last, [True] * 4 + [False] * 4)


def test_a_trajectory_goes_from_noise_to_the_sample(fitted):
    images, masks, times = fitted.sample_trajectory("up", n_steps=4, random_state=0)
    assert images.shape == (5, *SIZE)
    assert masks.shape == (5, *SIZE, 3)
    assert times[[0, -1]].tolist() == [0, 1]
    # The mask begins as the code of the class, one colour.
    assert (masks[0] == masks[0, 0, 0, 0]).all()
    expected = fitted.sample("up", n_steps=4, random_state=0)[0]
    np.testing.assert_allclose(images[-1].astype(int), expected.astype(int), atol=1)


def test_a_counterfactual_has_the_bright_slices_of_the_other_class(fitted):
    same = fitted.reconstruct(X_NEW[:4], n_steps=4)
    assert same.shape == (4, *SIZE)
    other = np.where(Y_NEW[:4] == "up", "low", "up")
    changed = fitted.counterfactual(X_NEW[:4], other, n_steps=4)
    for image, label in zip(changed, other, strict=True):
        assert (image[:3, :5].mean() > image[3:, :5].mean()) == (label == "low")


@pytest.mark.parametrize("kind", ["margin", "entropy", "distance", "draws", "image"])
def test_uncertainty_of_every_kind_is_finite(fitted, kind):
    uncertainty = fitted.predict_uncertainty(X_NEW, kind)
    assert uncertainty.shape == (20,)
    assert np.isfinite(uncertainty).all()


def test_unusual_volumes_have_lower_scores(fitted):
    unusual = np.random.default_rng(2).integers(0, 256, X_NEW.shape, dtype=np.uint8)
    assert fitted.score_samples(X_NEW).min() > fitted.score_samples(unusual).max()


def test_a_certified_threshold_rejects():
    # Labels of a third of the volumes are wrong, so that errors can be counted.
    labels = np.where(np.arange(20) % 3 == 0, Y_NEW[::-1], Y_NEW)
    classifier = tiny_3d(max_epochs=4, calibration="temperature").fit(X, Y)
    assert classifier.model_.temperature != 1
    classifier.fit_reject(X_NEW, labels, target_risk=0.6, confidence=0.6)
    answered, rejected = classifier.predict_with_reject(X_NEW, return_mask=True)
    uncertainty = classifier.predict_uncertainty(X_NEW)
    np.testing.assert_array_equal(rejected, uncertainty > classifier.rejection_.threshold)
    assert answered.mask.sum() == rejected.sum()
    assert classifier.predict_with_reject(X_NEW, coverage=0.5).count() == 10


# Saving and going on


def test_saved_and_pickled_models_have_the_same_bits(fitted, tmp_path):
    p, samples = fitted.predict_proba(X_NEW), fitted.sample(n_samples=1, n_steps=2, random_state=0)
    fitted.save_pretrained(tmp_path)
    opened = MedSymmFlowClassifier.from_pretrained(tmp_path)
    assert opened.n_spatial_dims == 3
    for other in (opened, pickle.loads(pickle.dumps(fitted))):
        np.testing.assert_array_equal(other.predict_proba(X_NEW), p)
        np.testing.assert_array_equal(other.sample(n_samples=1, n_steps=2, random_state=0), samples)
    assert "Volumes: 6 x 7 x 9, uint8" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["layout"].update(n_spatial_dims=2), "spatial axes"),
        (lambda m: m["layout"].update(n_spatial_dims=4), "n_spatial_dims must be one of 2, 3"),
        (lambda m: m["layout"].pop("n_spatial_dims"), "spatial axes"),
        (lambda m: m["image_format"].pop("n_spatial_dims"), "spatial axes"),
        (lambda m: m["image_format"].update(n_spatial_dims=True), "number of spatial axes"),
        (lambda m: m["image_format"].update(shape=[6, 63]), "not a valid image format"),
        (lambda m: m["parameters"].update(n_spatial_dims="3"), "n_spatial_dims must be one of"),
    ],
)
def test_a_changed_number_of_axes_is_refused(fitted, tmp_path, change, message):
    fitted.save_pretrained(tmp_path)
    tensors, metadata = read_archive(tmp_path, "model")
    change(metadata)
    write_archive(tmp_path, "model", tensors, metadata)
    with pytest.raises(ArchiveError, match=message):
        MedSymmFlowClassifier.from_pretrained(tmp_path)


def test_files_of_image_models_from_before_volumes_are_opened(tmp_path):
    images = X[:, 3]
    classifier = tiny_classifier(max_epochs=1).fit(images, Y)
    classifier.save_pretrained(tmp_path)
    tensors, metadata = read_archive(tmp_path, "model")
    assert "n_spatial_dims" not in metadata["image_format"]
    del metadata["layout"]["n_spatial_dims"], metadata["parameters"]["n_spatial_dims"]
    write_archive(tmp_path, "model", tensors, metadata)
    opened = MedSymmFlowClassifier.from_pretrained(tmp_path)
    np.testing.assert_array_equal(opened.predict_proba(images), classifier.predict_proba(images))


def test_a_fit_that_was_cut_off_ends_with_the_same_bits(tmp_path, monkeypatch):
    settings = {"max_epochs": 4, "optimizer": "muon", "augment": "flip+affine", "dropout": 0.2}
    whole = tiny_3d(**settings).fit(X, Y)
    classifier = tiny_3d(**settings, checkpoint_dir=tmp_path, checkpoint_every=1)
    epoch = Trainer._epoch

    def two_epochs(self, data, *, epoch=None, _run=epoch):
        if len(self.history) == 2:
            raise RuntimeError("cut off")
        return _run(self, data, epoch=epoch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_epoch", two_epochs)
        with pytest.raises(RuntimeError, match="cut off"):
            classifier.fit(X, Y)
    classifier.fit(X, Y)
    assert [log["epoch"] for log in classifier.history_] == [1, 2, 3, 4]
    np.testing.assert_array_equal(classifier.predict_proba(X_NEW), whole.predict_proba(X_NEW))


def test_training_goes_on_in_parts_and_by_warm_start():
    classifier = tiny_3d(warm_start=True, max_epochs=1)
    for part in (slice(0, 24), slice(24, 48)):
        classifier.partial_fit(X[part], Y[part], classes=["low", "up"])
    assert classifier.n_iter_ == 2
    before = classifier.history_[-1]["label_loss"]
    assert classifier.set_params(max_epochs=10).fit(X, Y).history_[-1]["label_loss"] < before


def test_a_validation_set_of_volumes_stops_training():
    classifier = tiny_3d(early_stopping=True, n_iter_no_change=2)
    classifier.fit(X, Y, X_val=X_NEW, y_val=Y_NEW)
    assert "validation_score" in classifier.history_[-1]
    with pytest.raises(ValueError, match=r"X_val, y_val does not fit X, y.*depth 4, not 6"):
        clone(classifier).fit(X, Y, X_val=X_NEW[:, :4], y_val=Y_NEW)


@pytest.mark.parametrize(("augment", "mixes"), [("hflip", False), ("flip", True)])
def test_flips_that_mix_up_classes_are_warned_of(augment, mixes, recwarn):
    volumes, labels = balls(240)
    # The comparison may take a twentieth of the fit, so this one must not be too short.
    tiny_3d(augment=augment, max_epochs=3, channels=16).fit(volumes, labels)
    warned = [str(w.message) for w in recwarn if "mixed up" in str(w.message)]
    assert bool(warned) == mixes


# Displays, metrics and augmentation


def test_a_grid_shows_three_central_slices_of_each_volume(fitted):
    display = SampleGridDisplay.from_estimator(fitted, X=X, y=Y, n_columns=2, n_steps=1)
    titles = ["real", "generated", "nearest training image"]
    assert list(display.blocks) == [f"{title}\n(central slices)" for title in titles]
    real = display.blocks["real\n(central slices)"]
    # Across depth 7 x 9, across height 6 x 9, across width 6 x 7, with a line below each.
    assert real.shape == (2, 2, 8 + 7 + 7 + 2, 9 + 1)
    second_up = X[Y == "up"][1] / 255
    np.testing.assert_allclose(real[1, 1, :7, :9], second_up[3])
    np.testing.assert_allclose(real[1, 1, 8:14, :9], second_up[:, 3])
    np.testing.assert_allclose(real[1, 1, 15:21, :7], second_up[:, :, 4])
    assert (real[:, :, [7, 14, 21, 22, 23]] == 1).all()
    assert [label.get_text() for label in display.ax_.get_yticklabels()] == ["low", "up"]
    (picture,) = display.ax_.get_images()
    assert picture.get_array().shape == (2 * 24, 3 * 2 * 10 + 2 * 5, 3)


def test_a_trajectory_shows_the_central_slices_of_volume_and_mask(fitted):
    display = TrajectoryDisplay.from_estimator(fitted, "up", n_columns=3, n_steps=4)
    assert display.axes_.shape == (2, 3)
    assert display.images.shape == (3, 24, 10)
    assert display.masks.shape == (3, 24, 10, 3)
    titles = [ax.get_title() for ax in display.axes_[0]]
    assert titles == ["t = 0.00", "t = 0.50", "t = 1.00"]


def test_counterfactuals_of_volumes_are_compared_by_their_central_slices(fitted):
    display = CounterfactualDisplay.from_estimator(fitted, X[:2], "up", n_steps=1)
    assert display.differences.shape == (2, 24, 10)
    changed = fitted.counterfactual(X[:2], "up", n_steps=1) / 255
    np.testing.assert_allclose(
        display.differences[:, :7, :9], (changed - X[:2] / 255)[:, 3], atol=1e-12
    )
    # The lines between the slices do not change.
    assert not display.differences[:, [7, 14, 21, 22, 23]].any()


def test_metrics_and_augmentation_take_volumes(fitted):
    generated = fitted.sample(n_samples=5, n_steps=2, random_state=0)
    check = copying_check(X[:5], X, X_NEW)
    assert check.near_duplicates == 1
    assert copying_check(generated, X, X_NEW).generated.shape == (10,)
    X_more, y_more = augment_with_samples(
        fitted, X[:7], Y[:7], n_steps=2, remove_copies=False, random_state=0
    )
    assert X_more.shape == (8, *SIZE)
    assert y_more[-1] == "up"
    with pytest.raises(ValueError, match=r"uint8 images of shape \(4, 7, 9\)"):
        augment_with_samples(fitted, X[:7, :4], Y[:7])


def test_the_metadata_of_a_volume_model_are_plain(fitted, tmp_path):
    fitted.save_pretrained(tmp_path)
    metadata = json.loads((tmp_path / "model.json").read_text())["metadata"]
    assert metadata["image_format"]["n_spatial_dims"] == 3
    assert metadata["layout"]["n_spatial_dims"] == 3


def test_volumes_are_not_resized_for_the_network():
    with pytest.raises(ValueError, match=r"input_size=16 in network_params is for images"):
        tiny_3d(input_size=16).fit(X, Y)


def test_the_script_of_the_examples_classifies_abstains_and_draws(monkeypatch, tmp_path, capsys):
    script = script_at(EXAMPLES / "volumes.py")
    volumes = {"train": (X, Y), "test": (X_NEW, Y_NEW)}

    def fetch(name, *, split):
        data, names = volumes[split]
        target = (names == "up").astype(int)
        return Bunch(data=data, target=target, target_names=["low", "up"])

    monkeypatch.setattr(script, "fetch_medmnist", fetch)
    small = partial(tiny_3d, augment=None)
    monkeypatch.setattr(script, "MedSymmFlowClassifier", small)
    picture = tmp_path / "volumes.png"
    monkeypatch.setattr(sys, "argv", ["volumes.py", "--epochs", "2", "--output", str(picture)])
    script.main()
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "of the 16 most certain volumes" in capsys.readouterr().out
