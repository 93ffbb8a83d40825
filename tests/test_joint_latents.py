"""The field over the features of a backbone, beside latents and alone.

What holds for the other classes holds here: the tests that are imported run once more, over the
fixtures of this file. Those that fit run over features alone, those of one fitted model over joint
latents.
"""

import dataclasses
import math
import pickle
import re
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from conftest import (
    JOINT_CLASSIFIERS,
    Averages,
    TinyBackbone,
    fitted_classifier,
    tiny_autoencoder,
    tiny_feature_classifier,
    tiny_joint_classifier,
    tiny_latent_classifier,
)
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from test_classifier import (
    test_a_prediction_never_depends_on_the_other_samples,
    test_early_stopping_ends_before_the_last_epoch,
    test_integer_weights_equal_repetitions,
    test_it_learns,
    test_partial_fit_learns_batch_by_batch,
    test_warm_start_goes_on_where_it_was,
)
from test_rejection import (
    calibration,
    rejecting,
    test_a_batch_of_one_is_answered_as_it_is_among_others,
    test_a_seed_has_one_temperature,
    test_answers_come_up_to_the_threshold,
    test_every_kind_gives_a_number_for_each_sample_whatever_is_beside_it,
    test_the_certified_risk_holds_on_the_calibration_samples,
    test_training_images_are_more_usual_than_noise,
)
from test_rejection import (
    test_calibration_changes_the_probabilities_and_nothing_else as calibration_changes,
)
from test_run_fingerprint import cut_off, make, weights
from test_sampling_methods import (
    test_a_counterfactual_does_not_depend_on_the_other_samples,
    test_a_counterfactual_of_the_own_class_is_the_reconstruction,
    test_one_class_for_all_is_as_that_class_for_each,
    test_there_and_back_under_one_class_gives_the_image,
)
from torch.nn import functional as F

from sklearn_msf import LatentMedSymmFlowClassifier
from sklearn_msf._estimator.auto_settings import training_settings
from sklearn_msf.exceptions import AutoencoderError, BackboneError, CheckpointMismatchError
from sklearn_msf.flow import image_parameterizations
from sklearn_msf.flow.path import velocity_loss
from sklearn_msf.latent.latent_batches import _variation
from sklearn_msf.persistence.archives import ArchiveError
from sklearn_msf.runtime.device import resolve_device
from sklearn_msf.sample_augmentation import augment_with_samples
from sklearn_msf.training.step import TrainingStep

RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (24, 16, 16, 3), dtype=np.uint8)
Y = np.array(["a", "b", "c"] * 8)


@pytest.fixture
def make_classifier():
    return tiny_feature_classifier


@pytest.fixture
def fitted():
    return fitted_classifier("joint")


def open_again(classifier, folder):
    """Save and open a model; what its files do not hold is passed."""
    classifier.save_pretrained(folder)
    return LatentMedSymmFlowClassifier.from_pretrained(folder, backbone=classifier.backbone)


# The channels of the field


def test_features_lie_beside_the_latent_on_its_grid():
    classifier = tiny_joint_classifier(max_epochs=1).fit(X, Y)
    # The autoencoder makes 4 x 8 x 8 of 16 x 16 pixels, the backbone 12 x 8 x 8.
    space = classifier.model_.space
    assert space.shape == (4 + space.features.n_channels, 8, 8)
    assert 0 < space.features.n_channels <= 12
    x = torch.rand(5, 3, 16, 16) * 2 - 1
    encoded = space.encode(x, "float32")
    alone = tiny_latent_classifier(max_epochs=1).fit(X, Y).model_.space
    torch.testing.assert_close(encoded[:, :4], alone.encode(x, "float32"))
    torch.testing.assert_close(encoded[:, 4:], space.features.encode(x, "float32"))


def test_alone_they_keep_the_grid_of_the_backbone():
    classifier = tiny_feature_classifier(max_epochs=1).fit(X[:, :, :12], Y)
    assert classifier.model_.space.shape[1:] == (8, 6)
    assert classifier.autoencoder_ is None
    assert isinstance(classifier.backbone_, TinyBackbone)
    classifier.set_params(encoded_size=(8, 20)).fit(X, Y)
    assert classifier.model_.space.shape[1:] == (4, 10)


class Sized(TinyBackbone):
    """Takes images of 24 x 32 pixels only."""

    image_size = (24, 32)

    def forward(self, images):
        assert images.shape[2:] == (24, 32)
        return super().forward(images)


def test_each_encoder_gets_images_of_its_own_size():
    classifier = tiny_joint_classifier(backbone=Sized(), max_epochs=1).fit(X, Y)
    assert classifier.model_.space.features.size == (24, 32)
    assert classifier.model_.space.shape[1:] == (8, 8)
    assert classifier.sample("a", n_steps=1).shape == (1, 16, 16, 3)


def test_only_the_latent_is_decoded_into_images():
    classifier = tiny_joint_classifier(max_epochs=1).fit(X, Y)
    space = classifier.model_.space
    sampled = torch.randn(2, *space.shape)
    changed = torch.cat([sampled[:, :4], torch.randn(2, space.shape[0] - 4, 8, 8)], dim=1)
    assert torch.equal(space.images(sampled), space.images(changed))


@pytest.mark.parametrize("make", [tiny_joint_classifier, tiny_latent_classifier])
@pytest.mark.parametrize("prediction", ["denoised", "velocity"])
def test_latent_and_features_have_equal_shares_in_the_image_loss(monkeypatch, make, prediction):
    seen = set()

    def watched(v, u, channel_parts=()):
        seen.add(channel_parts)
        return velocity_loss(v, u, channel_parts)

    monkeypatch.setattr(image_parameterizations, "velocity_loss", watched)
    classifier = make(max_epochs=1, image_prediction=prediction).fit(X, Y)
    n_channels = classifier.model_.space.shape[0]
    assert seen == {(4, n_channels - 4) if make is tiny_joint_classifier else ()}


@pytest.mark.parametrize("form", ["posterior", "velocity"])
def test_joint_latents_draw(form):
    classifier = tiny_joint_classifier(label_prediction=form, image_weight=0.5).fit(X, Y)
    assert classifier.sample("b", 2, n_steps=2).shape == (2, 16, 16, 3)
    assert classifier.reconstruct(X[:2], n_steps=1).shape == (2, 16, 16, 3)
    assert classifier.counterfactual(X[:2], "a", n_steps=1).shape == (2, 16, 16, 3)
    images, masks, _ = classifier.sample_trajectory("a", n_steps=2)
    assert images.shape == (3, 16, 16, 3)
    assert masks.shape[0] == 3


class Marking(torch.nn.Module):
    """Shows its images as they are."""

    def forward(self, images):
        return images


def test_both_encoders_see_the_same_variations(monkeypatch):
    kept = []

    def keep(shape, fill, **where):
        latents = torch.empty(shape)
        fill(latents)
        kept.append(latents)
        return latents

    monkeypatch.setattr("sklearn_msf._estimator.latent_preparation.keep_latents", keep)
    settings = {"augment": "flip+affine", "n_variations": 6, "max_epochs": 1}
    classifier = tiny_joint_classifier(autoencoder=Averages(), backbone=Marking(), **settings)
    features = classifier.fit(X, Y).model_.space.features
    (latents,) = kept
    assert latents.shape == (24, 6, 6, 4, 4)
    of_averages = classifier.model_.space.latents
    for i in range(6):
        averages = of_averages.restore(latents[:, i, :3])
        images = latents[:, i, 3:] / features.scale[:, None, None] + features.mean[:, None, None]
        # Both are means over squares; those of bilinear resampling have wider borders.
        together = torch.stack([averages.flatten(), images.flatten()])
        assert torch.corrcoef(together)[0, 1] > 0.85
    assert (latents[:, 0] != latents[:, 5]).any()


def test_variations_of_images_that_are_not_square_are_the_same_at_any_size():
    """An autoencoder keeps the proportions of X, and many backbones take squares."""
    ramp = torch.linspace(-1, 1, 128)
    wide = (ramp[:64, None] * ramp[:64, None].cos() + ramp).expand(1, 1, 64, 128)
    seeds = np.array([7], np.uint64)
    for number in range(1, 6):
        varied = _variation(wide, "affine", number, seeds, (64, 128))
        square = F.interpolate(wide, (64, 64), mode="area")
        of_square = _variation(square, "affine", number, seeds, (64, 128))
        difference = F.interpolate(varied, (64, 64), mode="area") - of_square
        assert difference.abs().max() < 0.03


@pytest.mark.parametrize(("n_asked", "n_kept"), [(1, 1), (2, 2), (3, 2), (4, 4), (5, 5)])
def test_variations_have_flips_along_one_axis_or_all_along_both(monkeypatch, n_asked, n_kept):
    made = []

    def keep(shape, fill, **where):
        made.append(shape[1])
        return torch.zeros(shape)

    monkeypatch.setattr("sklearn_msf._estimator.latent_preparation.keep_latents", keep)
    settings = {"augment": "flip", "n_variations": n_asked, "max_epochs": 1}
    classifier = tiny_joint_classifier(**settings).fit(X, Y)
    assert made == [n_kept]
    assert classifier.model_.flipped_axes == (-1, -2)[: min(n_kept, 4).bit_length() - 1]


# Everything else


@pytest.mark.parametrize("make_classifier", JOINT_CLASSIFIERS.values(), ids=JOINT_CLASSIFIERS)
def test_a_fit_that_was_cut_off_ends_as_if_it_never_was(tmp_path, monkeypatch, make_classifier):
    settings = {"make_classifier": make_classifier, "augment": "hflip+affine", "n_variations": 4}
    settings |= {"early_stopping": True, "validation_fraction": 0.25, "cache_bytes": 0}
    monkeypatch.setattr("test_run_fingerprint.X", X)
    monkeypatch.setattr("test_run_fingerprint.Y", Y)
    whole = make(**settings).fit(X, Y)
    cut_off(make(tmp_path, **settings), monkeypatch, after=3)
    assert len(list(tmp_path.glob("latents-*.bin"))) == 1
    with monkeypatch.context() as patch:
        # What was encoded is read from the file.
        patch.setattr("sklearn_msf._estimator.latent_preparation.encode_variations", None)
        resumed = make(tmp_path, **settings).fit(X, Y)
    assert torch.equal(weights(whole), weights(resumed))
    np.testing.assert_array_equal(whole.predict_proba(X), resumed.predict_proba(X))


def test_checkpoints_of_another_backbone_are_refused(tmp_path):
    tiny_joint_classifier(checkpoint_dir=tmp_path).fit(X, Y)
    other = TinyBackbone()
    other.conv.bias.data += 1
    with pytest.raises(ValueError, match="backbone is '"):
        tiny_joint_classifier(checkpoint_dir=tmp_path, backbone=other).fit(X, Y)


def test_a_run_that_goes_on_keeps_its_principal_components(tmp_path, monkeypatch):
    whole = tiny_joint_classifier(checkpoint_dir=tmp_path).fit(X, Y)
    # Another machine may round to others.
    learn = "sklearn_msf._estimator.latent_preparation.learn_features"
    with monkeypatch.context() as patch:
        patch.setattr(learn, None)
        again = tiny_joint_classifier(checkpoint_dir=tmp_path).fit(X, Y)
    np.testing.assert_array_equal(again.predict_proba(X), whole.predict_proba(X))
    (kept,) = tmp_path.glob("features-*.safetensors")
    kept.write_bytes(kept.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="scaling of the features .* is damaged"):
        again = tiny_joint_classifier(checkpoint_dir=tmp_path).fit(X, Y)
    np.testing.assert_array_equal(again.predict_proba(X), whole.predict_proba(X))
    for path in tmp_path.glob("features-*"):
        path.unlink()
    with pytest.warns(UserWarning, match="scaling of the features of this run is not in"):
        again = tiny_joint_classifier(checkpoint_dir=tmp_path).fit(X, Y)
    np.testing.assert_array_equal(again.predict_proba(X), whole.predict_proba(X))


def test_training_over_features_alone_that_runs_out_of_memory_names_the_backbone(monkeypatch):
    def too_large(self, *arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(TrainingStep, "_sample", too_large)
    with pytest.raises(MemoryError, match="a smaller encoded_size, or take a backbone with a coar"):
        tiny_feature_classifier().fit(X, Y)


class Listed(TinyBackbone):
    """Computes with a list."""

    def __init__(self, shift):
        super().__init__()
        self.shifts = [shift]

    def forward(self, images):
        return super().forward(images - self.shifts[0])


class Unsaved(TinyBackbone):
    """Computes with a buffer that its state does not have."""

    def __init__(self, shift):
        super().__init__()
        self.register_buffer("shift", torch.tensor(shift), persistent=False)

    def forward(self, images):
        return super().forward(images - self.shift)


class Holding(TinyBackbone):
    """Computes with a tensor that is no buffer."""

    def __init__(self, shift):
        super().__init__()
        self.shift = torch.tensor(shift)

    def forward(self, images):
        return super().forward(images - self.shift)


def with_other_code(shift):
    """A module whose class has the name of another one."""

    class Coded(TinyBackbone):
        def forward(self, images):
            return super().forward(images - shift)

    return Coded()


@pytest.mark.parametrize("make", [Listed, Unsaved, Holding, with_other_code])
def test_what_a_backbone_computes_is_part_of_a_run(make, tmp_path):
    settings = {"cache_bytes": 0, "max_epochs": 1, "checkpoint_dir": tmp_path}
    tiny_feature_classifier(backbone=make(-0.5), **settings).fit(X, Y)
    tiny_feature_classifier(backbone=make(-0.5), **settings).fit(X, Y)
    other = tiny_feature_classifier(backbone=make(0.5), **settings)
    with pytest.raises(
        CheckpointMismatchError, match="what the backbone makes of a fixed image is"
    ):
        other.fit(X, Y)
    # Neither are its latents those of the other one.
    for path in tmp_path.glob("checkpoint-*"):
        path.unlink()
    alone = clone(other).set_params(checkpoint_dir=None).fit(X, Y)
    np.testing.assert_array_equal(other.fit(X, Y).predict_proba(X), alone.predict_proba(X))


@pytest.mark.parametrize("autoencoder", [None, Averages()])
def test_kept_latents_of_other_weights_are_not_taken(autoencoder, tmp_path):
    settings = {"autoencoder": autoencoder, "cache_bytes": 0, "max_epochs": 1}
    weights = np.where(Y == "a", 9, 1)
    alone = tiny_joint_classifier(**settings).fit(X, Y, sample_weight=weights)
    tiny_joint_classifier(**settings, checkpoint_dir=tmp_path).fit(X, Y)
    # As if the run had ended before its first checkpoint.
    for path in tmp_path.glob("checkpoint-*"):
        path.unlink()
    beside = tiny_joint_classifier(**settings, checkpoint_dir=tmp_path)
    beside.fit(X, Y, sample_weight=weights)
    np.testing.assert_array_equal(beside.predict_proba(X), alone.predict_proba(X))


@pytest.mark.parametrize("make", [Listed, Unsaved, Holding])
def test_a_pickle_keeps_a_parameter_that_was_changed_after_fit(make):
    classifier = tiny_feature_classifier(backbone=make(-0.5), max_epochs=1).fit(X, Y)
    image = torch.ones(1, 3, 4, 4)
    for shift in (-0.5, 0.5):
        classifier.set_params(backbone=make(shift))
        opened = pickle.loads(pickle.dumps(classifier)).backbone
        torch.testing.assert_close(opened.cpu()(image), make(shift)(image))


def test_a_search_chooses_a_backbone():
    other = Marking()
    search = GridSearchCV(tiny_feature_classifier(), {"backbone": [TinyBackbone(), other]}, cv=2)
    search.fit(X, Y)
    assert type(search.best_estimator_.backbone_) is type(search.best_params_["backbone"])
    assert len(search.cv_results_["params"]) == 2
    assert clone(search.best_estimator_).backbone is not search.best_estimator_.backbone_


def test_a_module_that_was_passed_is_not_changed():
    module = TinyBackbone().train()
    classifier = tiny_joint_classifier(backbone=module, max_epochs=1).fit(X, Y)
    assert module.training
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert classifier.backbone is module
    assert classifier.backbone_ is not module


def test_training_never_runs_the_backbone(monkeypatch):
    calls = []
    forward = TinyBackbone.forward
    monkeypatch.setattr(
        TinyBackbone, "forward", lambda self, x: calls.append(len(x)) or forward(self, x)
    )
    n_calls = []
    for max_epochs in (1, 8):
        calls.clear()
        tiny_feature_classifier(max_epochs=max_epochs, augment="hflip").fit(X, Y)
        n_calls.append(sum(calls))
    assert n_calls[0] == n_calls[1] > 0


# Files and pickles


@pytest.mark.parametrize("kind", JOINT_CLASSIFIERS)
def test_a_saved_model_predicts_the_same_bits(tmp_path, kind):
    classifier = JOINT_CLASSIFIERS[kind](max_epochs=1).fit(X, Y)
    opened = open_again(classifier, tmp_path)
    np.testing.assert_array_equal(opened.predict_proba(X), classifier.predict_proba(X))
    assert opened.backbone is classifier.backbone
    assert opened.partial_fit(X, Y).n_iter_ == 2
    # A warm start takes the parameters for the encoders of the first fit.
    module = opened.backbone_
    assert opened.set_params(warm_start=True).fit(X, Y).backbone_ is module


@pytest.mark.parametrize("kind", JOINT_CLASSIFIERS)
def test_a_pickle_holds_the_backbone_once(kind):
    classifier = JOINT_CLASSIFIERS[kind](max_epochs=1).fit(X, Y)
    data = pickle.dumps(classifier)
    marks = classifier.backbone.conv.bias.detach().numpy().tobytes()
    assert data.count(marks) == 1
    opened = pickle.loads(data)
    np.testing.assert_array_equal(opened.predict_proba(X), classifier.predict_proba(X))
    assert opened.backbone is opened.backbone_
    assert opened.partial_fit(X, Y).n_iter_ == 2


def test_calibration_changes_the_probabilities_and_not_what_is_drawn(digits):
    calibration_changes(tiny_joint_classifier, digits)


def test_the_temperature_of_a_saved_model_is_kept(tmp_path, fitted, digits):
    calibrated = pickle.loads(pickle.dumps(fitted))
    calibrated.model_ = dataclasses.replace(calibrated.model_, temperature=1.7)
    opened = open_again(calibrated, tmp_path)
    p, plain = (model.predict_proba(digits[0]) for model in (calibrated, fitted))
    np.testing.assert_array_equal(opened.predict_proba(digits[0]), p)
    assert not np.array_equal(p, plain)


def test_the_threshold_of_a_saved_model_is_kept(tmp_path, rejecting, calibration):
    opened = open_again(rejecting, tmp_path)
    assert opened.rejection_ == rejecting.rejection_
    images = calibration[0]
    found, wanted = (model.predict_with_reject(images) for model in (opened, rejecting))
    np.testing.assert_array_equal(found.mask, wanted.mask)


OWN_BACKBONE = "- Backbone (frozen, not in these files): TinyBackbone; licence: unknown"


@pytest.mark.parametrize(
    ("tiny", "lines", "passed"),
    [
        (tiny_latent_classifier, ["- Autoencoder (frozen): AutoencoderTiny; licence: unknown"], ""),
        (tiny_feature_classifier, [OWN_BACKBONE], ", backbone=..."),
        (
            partial(tiny_joint_classifier, autoencoder=Averages()),
            [
                "- Autoencoder (frozen, not in these files): Averages; licence: unknown",
                OWN_BACKBONE,
            ],
            ", autoencoder=..., backbone=...",
        ),
    ],
)
def test_a_model_card_names_the_encoders_and_says_how_to_open_the_model(
    tmp_path, tiny, lines, passed
):
    tiny(max_epochs=1).fit(X, Y).save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    named = [line for line in card.splitlines() if line.startswith(("- Autoenc", "- Backbone"))]
    assert named == lines
    assert f'from_pretrained("path/to/this/folder"{passed})' in card


def test_a_model_card_says_what_the_model_can_do(tmp_path):
    for tiny, draws in ((tiny_joint_classifier, True), (tiny_feature_classifier, False)):
        tiny(max_epochs=1).fit(X, Y).save_pretrained(tmp_path)
        assert ("generates new images" in (tmp_path / "README.md").read_text()) is draws


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folder of a model over joint latents, to read only."""
    folder = tmp_path_factory.mktemp("joint")
    tiny_joint_classifier(max_epochs=1).fit(X, Y).save_pretrained(folder)
    return folder


def test_weights_that_changed_since_the_model_was_saved_are_refused_by_name(saved):
    other = TinyBackbone()
    other.conv.bias.data[0] += 1e-6
    with pytest.raises(BackboneError, match="backbone=TinyBackbone has other weights than the one"):
        LatentMedSymmFlowClassifier.from_pretrained(saved, backbone=other)


class Louder(TinyBackbone):
    """The same weights, other features."""

    def forward(self, images):
        return 1.1 * super().forward(images)


def test_features_that_changed_since_the_model_was_saved_are_refused_by_name(saved):
    with pytest.raises(BackboneError, match="backbone=Louder makes other features than the one"):
        LatentMedSymmFlowClassifier.from_pretrained(saved, backbone=Louder())


def test_a_backbone_that_files_lack_is_asked_for(saved):
    with pytest.raises(BackboneError, match=r"from_pretrained\(folder, backbone=\.\.\.\)"):
        LatentMedSymmFlowClassifier.from_pretrained(saved)


def test_an_encoder_that_the_model_lacks_is_not_taken(tmp_path):
    tiny_latent_classifier(max_epochs=1).fit(X, Y).save_pretrained(tmp_path / "latents")
    with pytest.raises(BackboneError, match="call from_pretrained without backbone"):
        LatentMedSymmFlowClassifier.from_pretrained(tmp_path / "latents", backbone=TinyBackbone())
    tiny_feature_classifier(max_epochs=1).fit(X, Y).save_pretrained(tmp_path / "features")
    with pytest.raises(AutoencoderError, match="call from_pretrained without autoencoder"):
        LatentMedSymmFlowClassifier.from_pretrained(
            tmp_path / "features", tiny_autoencoder(), TinyBackbone()
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda plain: plain.pop("source"), "not a usable model"),
        (lambda plain: plain["source"].update(kind="pickle"), "names an invalid backbone"),
        (
            lambda plain: plain["source"].update(kind="hub", id="../x", revision="0" * 40),
            "names an invalid backbone",
        ),
        (
            lambda plain: plain["source"].update(kind="hub", id="a/b", revision="main"),
            "names an invalid backbone",
        ),
        (lambda plain: plain["source"].update(licence="\x1b[2J"), "describes its backbone"),
        (lambda plain: plain.update(digest=None), "describes its backbone"),
        (lambda plain: plain.update(size=[0, 16]), r"size=\[0, 16\]"),
        (lambda plain: plain.update(size=[2**20, 2**20]), r"size=\(1048576"),
        (lambda plain: plain.update(grid=[7, 8]), r"grid=\(7, 8\)"),
        (lambda plain: plain.update(grid="ab"), "grid='ab'"),
    ],
)
def test_what_is_wrong_with_a_changed_model_is_said(saved, tmp_path, change, message):
    from test_serialization import edit

    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    edit(tmp_path, lambda d: change(d["space"]["backbone"]))
    with pytest.raises(ArchiveError, match=message):
        LatentMedSymmFlowClassifier.from_pretrained(tmp_path, backbone=TinyBackbone())


# Bad input

DRAWING = {
    "Sampling": lambda c: c.sample(),
    "Sampling batches": lambda c: c.iter_samples(),
    "Sampling trajectories": lambda c: c.sample_trajectory("a"),
    "reconstruct": lambda c: c.reconstruct(X),
    "counterfactual": lambda c: c.counterfactual(X, "a"),
    "Sampling for training": lambda c: augment_with_samples(c, X, Y, n_per_class=1),
}


@pytest.mark.parametrize(
    ("make", "n_images", "times"),
    [
        (tiny_feature_classifier, 300, 25),
        (tiny_feature_classifier, 1000, 20),
        (tiny_feature_classifier, 9000, 15),
        (tiny_joint_classifier, 1000, 36),
    ],
)
def test_auto_trains_for_a_shorter_time_over_features_alone(make, n_images, times):
    settings = {"max_epochs": "auto", "classification_fraction": 0.8, "optimizer": "adamw"}
    p = make(**settings)._parameters()
    settings = training_settings(p, n_images, resolve_device("cpu"))
    assert settings.max_epochs == math.ceil(times / 0.8)


def test_training_that_goes_on_names_the_autoencoder_and_not_what_depends_on_it():
    classifier = LatentMedSymmFlowClassifier(
        None,
        backbone=TinyBackbone(),
        channels=8,
        network_params={"channel_mult": (1,)},
        max_epochs=1,
        warm_start=True,
        device="cpu",
    ).fit(X, Y)
    classifier.set_params(autoencoder=Averages())
    for method in (classifier.fit, classifier.partial_fit):
        with pytest.raises(ValueError, match="cannot go on with another autoencoder, "):
            method(X, Y)


def test_images_asked_of_a_model_without_autoencoder_name_the_way_out():
    classifier = tiny_feature_classifier(max_epochs=1).fit(X, Y)
    for method, draw in DRAWING.items():
        message = rf"^{method.split()[0]} makes images, .*autoencoder=None.* autoencoder='fit'"
        with pytest.raises(ValueError, match=message):
            draw(classifier)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"autoencoder": None, "backbone": None}, "autoencoder must be .* None needs a backbone"),
        ({"backbone": ""}, "backbone must be a hub id, a folder, a torch module or None, got ''"),
        ({"backbone": object()}, "backbone must be .* got an object of type object"),
        (
            {"autoencoder": None, "label_prediction": "velocity"},
            "label_prediction='velocity' encodes masks .* with autoencoder=None use",
        ),
        ({"backbone": torch.nn.Flatten()}, r"makes Tensor\[1, 12288\] .* no map of features"),
        ({"backbone": torch.nn.Conv2d(1, 2, 3)}, "images of 3 channels; the backbone takes 1"),
        ({"backbone": torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3))}, "its attribute in_channels"),
        ({"backbone": torch.nn.Linear(30, 2)}, "cannot encode images of shape .*image_size"),
        ({"backbone": torch.nn.RReLU(0.1, 0.9).train()}, None),
    ],
)
def test_a_backbone_that_cannot_be_used_is_named_at_fit(overrides, message):
    classifier = tiny_joint_classifier(**overrides, max_epochs=1)
    if message is None:
        # In evaluation mode it is not random.
        assert classifier.fit(X, Y).model_.space.shape[0] > 4
        return
    with pytest.raises(ValueError, match=message):
        classifier.fit(X, Y)
    assert not hasattr(classifier, "model_")


class OfOneSize(torch.nn.Module):
    """Takes 64 x 64 pixels only, and does not say so."""

    def forward(self, images):
        return images.reshape(-1, 3, 64, 64)[..., ::16, ::16]


def test_a_backbone_that_wants_another_size_says_which_came():
    message = re.escape("backbone=OfOneSize makes Tensor[")
    with pytest.raises(BackboneError, match=message):
        tiny_feature_classifier(backbone=OfOneSize()).fit(X, Y)
    fitting = tiny_feature_classifier(backbone=OfOneSize(), encoded_size=64, max_epochs=1)
    assert fitting.fit(X, Y).predict(X).shape == (24,)


class Random(torch.nn.Module):
    def forward(self, images):
        return images + torch.randn_like(images)


def test_a_backbone_that_answers_otherwise_each_time_is_refused():
    with pytest.raises(BackboneError, match="backbone=Random makes another map .* in each call"):
        tiny_joint_classifier(backbone=Random()).fit(X, Y)


def test_channels_that_the_backbone_lacks_are_named():
    with pytest.raises(ValueError, match="images of 2 channels; the backbone takes 3"):
        tiny_feature_classifier().fit(X[..., :2], Y)
    # Gray images are repeated.
    assert tiny_feature_classifier(max_epochs=1).fit(X[..., 0], Y).predict(X[..., 0]).shape == (24,)


@pytest.mark.parametrize("images", [X, X[:1].repeat(24, axis=0)], ids=["all", "equal"])
def test_features_that_are_not_finite_are_refused(images):
    class Infinite(TinyBackbone):
        def forward(self, images):
            return super().forward(images) + torch.where(images.mean() > 0.2, 0.0, torch.inf)

    with pytest.raises(BackboneError, match="NaN or infinite features"):
        tiny_joint_classifier(backbone=Infinite()).fit(images, Y)


def test_a_warm_start_with_another_backbone_is_refused():
    classifier = tiny_joint_classifier(warm_start=True, max_epochs=1).fit(X, Y)
    with pytest.raises(ValueError, match="another backbone"):
        classifier.set_params(backbone=TinyBackbone()).fit(X, Y)
