"""What only the estimator over latents does; the rest is tested with both classes elsewhere."""

import copy
import pickle
import re
import shutil
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from conftest import (
    Averages,
    TinyBackbone,
    autoencoder_folder,
    tiny_autoencoder,
    tiny_latent_classifier,
)
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning

from sklearn_msf import LatentMedSymmFlowClassifier, MedSymmFlowClassifier
from sklearn_msf._estimator import fit as fit_module
from sklearn_msf._estimator import latent_preparation, variation_count
from sklearn_msf._estimator.calibration import MODEL_FRACTION
from sklearn_msf._estimator.latent_preparation import LatentPreparation
from sklearn_msf._estimator.preparation import Run
from sklearn_msf._estimator.variation_count import count_within_run
from sklearn_msf.exceptions import AutoencoderError, CheckpointMismatchError
from sklearn_msf.flow.path import sample_times
from sklearn_msf.latent import autoencoder_training
from sklearn_msf.latent.autoencoder import ImageAutoencoder, build_autoencoder
from sklearn_msf.latent.autoencoder_io import autoencoder_to_plain, check_autoencoder
from sklearn_msf.latent.autoencoder_training import layout_for
from sklearn_msf.latent.latent_space import LatentSpace
from sklearn_msf.persistence.archives import ArchiveError
from sklearn_msf.persistence.hub import HubFiles, is_hub_id
from sklearn_msf.runtime import batch_sizes
from sklearn_msf.runtime.process_group import ProcessGroup
from sklearn_msf.training.checkpoints import Checkpoints
from sklearn_msf.training.trainer import Trainer

RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (24, 16, 16, 3), dtype=np.uint8)
Y = np.array(["a", "b", "c"] * 8)
GRAY = X[..., 0]


@pytest.fixture
def short_fitting(monkeypatch):
    """Autoencoders that are trained for a step in each of two stages."""
    stages = [stage._replace(n_steps=1) for stage in autoencoder_training._STAGES]
    monkeypatch.setattr("sklearn_msf.latent.autoencoder_training._STAGES", stages)


# The autoencoder


# What opens an autoencoder knows nothing of the form, but that masks are encoded too.
@pytest.mark.parametrize(
    ("autoencoder", "form"),
    [
        (tiny_autoencoder(), "posterior"),
        (tiny_autoencoder(), "velocity"),
        (tiny_autoencoder("AutoencoderTiny"), "posterior"),
        (Averages(), "velocity"),
        ("folder", "velocity"),
    ],
    ids=["KL-posterior", "KL-velocity", "Tiny-posterior", "object-velocity", "folder-velocity"],
)
def test_every_kind_of_autoencoder_classifies_and_draws_smoke(autoencoder, form):
    autoencoder = autoencoder_folder() if autoencoder == "folder" else autoencoder
    classifier = tiny_latent_classifier(autoencoder=autoencoder, label_prediction=form).fit(X, Y)
    np.testing.assert_allclose(classifier.predict_proba(X).sum(axis=1), 1)
    sampled = classifier.sample("b", 2, n_steps=2, random_state=0)
    assert (sampled.shape, sampled.dtype) == ((2, 16, 16, 3), np.uint8)


@pytest.mark.parametrize(
    ("images", "form"),
    [(X, "posterior"), (GRAY, "posterior"), (GRAY, "velocity")],
    ids=["colour-posterior", "gray-posterior", "gray-velocity"],
)
def test_an_autoencoder_is_trained_on_x(short_fitting, images, form):
    classifier = tiny_latent_classifier(autoencoder="fit", label_prediction=form).fit(images, Y)
    assert type(classifier.autoencoder_).__name__ == "AutoencoderKL"
    n_channels = 3 if form == "velocity" or images.ndim == 4 else 1
    assert classifier.autoencoder_.config.in_channels == n_channels
    assert classifier.sample("a", n_steps=1).shape == (1, *images.shape[1:])


def test_auto_trains_one_where_the_papers_cannot_be_opened(short_fitting, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(
        "sklearn_msf._estimator.latent_preparation._PAPER_AUTOENCODER", "nobody/has-this"
    )
    with pytest.warns(UserWarning, match="autoencoder='auto': nobody/has-this cannot be opened"):
        classifier = tiny_latent_classifier(autoencoder="auto").fit(X, Y)
    assert classifier.autoencoder_.config.in_channels == 3


def test_auto_takes_the_papers_where_it_can_be_opened(monkeypatch):
    folder, asked = Path(autoencoder_folder()), []

    def from_hub(name, revision, needed, optional):
        asked.append(name)
        return HubFiles({file: folder / file for file in needed}, "0" * 40)

    monkeypatch.setattr("sklearn_msf.latent.model_files.fetch_from_hub", from_hub)
    classifier = tiny_latent_classifier(autoencoder="auto").fit(X, Y)
    assert asked == ["stabilityai/sd-vae-ft-mse"]
    assert tuple(classifier.autoencoder_.config.block_out_channels) == (8, 8)


def test_an_object_that_was_passed_is_not_changed():
    module = tiny_autoencoder().train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    tiny_latent_classifier(autoencoder=module).fit(X, Y)
    assert module.training
    assert all(parameter.requires_grad for parameter in module.parameters())
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize(("augment", "n_draws"), [("hflip", 2), ("flip", 4), ("flip", 1)])
@pytest.mark.parametrize("held_out", [{"early_stopping": True}, {"calibration": "temperature"}])
def test_training_never_runs_the_autoencoder(augment, n_draws, held_out):
    module, calls = Averages(), []
    module.encode = lambda images: calls.append(len(images)) or Averages.encode(module, images)
    settings = {"autoencoder": module, "augment": augment, "n_draws": n_draws, **held_out}
    n_calls = []
    for max_epochs in (1, 8):
        calls.clear()
        tiny_latent_classifier(max_epochs=max_epochs, **settings).fit(X, Y)
        n_calls.append(sum(calls))
    assert n_calls[0] == n_calls[1]


@pytest.mark.parametrize(
    ("overrides", "n_variations"),
    [
        ({"augment": None}, 1),
        ({"augment": "hflip"}, 2),
        ({"augment": "flip"}, 4),
        ({"augment": "hflip+affine"}, 32),
        ({"augment": "hflip+affine", "n_variations": 5}, 5),
    ],
)
def test_variations_of_each_image_are_encoded(monkeypatch, overrides, n_variations):
    shapes = []

    def keep(shape, fill, **where):
        shapes.append(shape)
        latents = torch.empty(shape)
        fill(latents)
        return latents

    monkeypatch.setattr("sklearn_msf._estimator.latent_preparation.keep_latents", keep)
    tiny_latent_classifier(**overrides).fit(X, Y)
    assert shapes[0][:2] == (24, n_variations)
    monkeypatch.setattr("sklearn_msf._estimator.variation_count._AUTO_PIXELS", 36 * 16 * 16)
    tiny_latent_classifier(**overrides).fit(X, Y)
    # Fewer for more images, but never without the flips.
    if overrides["augment"] == "hflip+affine" and "n_variations" not in overrides:
        n_variations = 2
    assert shapes[1][:2] == (24, n_variations)


def test_a_time_budget_counts_what_encoding_takes(monkeypatch, short_fitting):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    encode = Averages.encode

    def slow(self, images):
        now[0] += 1.0 * len(images)
        return encode(self, images)

    monkeypatch.setattr(Averages, "encode", slow)
    # 24 images of a second each, in passes of 16: all 32 variations would take 1024 seconds.
    settings = {"autoencoder": Averages(), "augment": "hflip+affine", "time_budget": 200.0}
    tiny_latent_classifier(**settings).fit(X, Y)
    assert now[0] < 200


def test_waiting_for_other_processes_is_no_time_of_the_budget(monkeypatch, short_fitting):
    now, join = [0.0], fit_module.join_process_group
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def late(device):
        now[0] += 1000
        return join(device)

    monkeypatch.setattr(fit_module, "join_process_group", late)
    classifier = tiny_latent_classifier(autoencoder=Averages(), time_budget=200.0)
    assert classifier.fit(X, Y).n_iter_ > 0


@pytest.fixture
def encoding_a_second_an_image(monkeypatch, short_fitting):
    """Encoding is all that takes time, a second for each image; gives the encoder."""
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    class Slow(Averages):
        seconds_each = 1.0

        def encode(self, images):
            now[0] += self.seconds_each * len(images)
            return super().encode(images)

    return Slow()


def test_learning_rates_rise_and_fall_in_what_encoding_leaves_of_the_time(
    encoding_a_second_an_image,
):
    settings = {
        "autoencoder": encoding_a_second_an_image,
        "augment": None,
        "time_budget": 100.0,
        "max_epochs": 20,
    }
    classifier = tiny_latent_classifier(**settings).fit(X, Y)
    rates = [epoch_log["learning_rate"] for epoch_log in classifier.history_]
    assert rates[0] < 0.5 * classifier.learning_rate
    assert max(rates) > 0.95 * classifier.learning_rate


def test_time_that_encoding_has_used_up_is_told_and_a_step_is_made(encoding_a_second_an_image):
    settings = {
        "autoencoder": encoding_a_second_an_image,
        "augment": "hflip+affine",
        "n_variations": 8,
        "time_budget": 60.0,
    }
    classifier = tiny_latent_classifier(**settings)
    with pytest.warns(ConvergenceWarning, match=r"time_budget=60.0 was over before training"):
        classifier.fit(X, Y)
    (epoch_log,) = classifier.history_
    assert epoch_log["learning_rate"] > 0


def test_images_of_a_validation_set_count_among_those_that_there_is_time_to_encode(
    encoding_a_second_an_image,
):
    n_variations = []
    for given in ({}, {"X_val": np.concatenate([X, X]), "y_val": np.concatenate([Y, Y])}):
        classifier = tiny_latent_classifier(
            autoencoder=encoding_a_second_an_image,
            augment="hflip+affine",
            n_draws=2,
            time_budget=12.0 * len(X),
            calibration="temperature",
            early_stopping=bool(given),
        )
        with mock.patch.object(
            latent_preparation, "encode_variations", wraps=latent_preparation.encode_variations
        ) as encoded:
            classifier.fit(X, Y, **given)
        n_variations.append(encoded.call_args.args[0].shape[1])
    # Four images of the validation set and its mirror images stand for each one of X.
    assert 1 < n_variations[1] < n_variations[0]


class Full(Averages):
    """Has no memory for an image of X."""

    def encode(self, images):
        if images.shape[-2:] == X.shape[1:3]:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return super().encode(images)


def test_where_memory_for_encoding_runs_out_the_error_says_what_to_lower():
    with pytest.raises(
        MemoryError, match="Encoding the images, .* ran out of memory: .* encoded_size"
    ):
        tiny_latent_classifier(autoencoder=Full()).fit(X, Y)


def test_where_memory_for_latents_of_held_out_images_runs_out_the_error_says_what_to_lower(
    monkeypatch,
):
    def full(*arguments):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate ...")

    monkeypatch.setattr(LatentSpace, "_kept", full)
    clf = tiny_latent_classifier(autoencoder=Averages(), early_stopping=True)
    with pytest.raises(MemoryError, match="Latents of 4 images .* validate on fewer images"):
        clf.fit(X, Y, X_val=X[:4], y_val=Y[:4])


def test_calibration_gets_its_part_of_what_encoding_leaves(encoding_a_second_an_image, monkeypatch):
    seconds = []
    divide = fit_module._divide_time

    def noted(state, trainer, *settings, **keywords):
        spent = trainer.budget.elapsed
        divide(state, trainer, *settings, **keywords)
        seconds.append((trainer.budget.seconds - spent) / (100.0 - spent))

    monkeypatch.setattr(fit_module, "_divide_time", noted)
    settings = {
        "autoencoder": encoding_a_second_an_image,
        "augment": None,
        "time_budget": 100.0,
        "calibration": "temperature",
    }
    tiny_latent_classifier(**settings).fit(X, Y)
    assert seconds == [pytest.approx(MODEL_FRACTION)]


def test_calibration_encodes_no_image_again(encoding_a_second_an_image):
    counts, runs = [], []
    for calibration in (None, "temperature"):
        encoder = copy.copy(encoding_a_second_an_image)
        seen = encoder.encode
        encoder.encode = lambda images, seen=seen: counts.append(len(images)) or seen(images)
        settings = {"autoencoder": encoder, "augment": "hflip", "calibration": calibration}
        # Half of the time goes into encoding.
        classifier = tiny_latent_classifier(**settings, time_budget=150.0)
        runs.append(classifier.fit(X, Y))
        counts.append("end")
    first, second = counts[: counts.index("end")], counts[counts.index("end") + 1 : -1]
    assert sum(first) == sum(second)
    assert runs[1].model_.temperature != 1


def test_latents_of_held_out_images_are_those_of_a_prediction(monkeypatch):
    kept = []
    inputs_of = LatentPreparation.inputs_of

    def noted(self, space, data, samples, indices, *settings):
        found = inputs_of(self, space, data, samples, indices, *settings)
        kept.append((space, samples.take(indices).rows, found))
        return found

    monkeypatch.setattr(LatentPreparation, "inputs_of", noted)
    settings = {"autoencoder": Averages(), "augment": "flip", "n_draws": 3}
    classifier = tiny_latent_classifier(**settings, calibration="temperature").fit(X, Y)
    ((space, rows, inputs),) = kept
    assert len(inputs) == len(rows) > 4
    expected = space.inputs(rows, classifier.model_.device, "float32", classifier.model_.flips(3))
    for flip in classifier.model_.flips(3):
        found = inputs.batch(1, 4, flip)
        torch.testing.assert_close(found, expected.batch(1, 4, flip), rtol=2e-3, atol=2e-3)


def test_a_part_is_encoded_once_more_than_its_flips_and_differs_from_the_part_before(monkeypatch):
    encoder, latents = Averages(), []
    keep = "sklearn_msf._estimator.latent_preparation.keep_latents"
    real = latent_preparation.keep_latents
    monkeypatch.setattr(keep, lambda *a, **k: latents.append(real(*a, **k)) or latents[-1])
    # So few that a fit would only see the flips.
    monkeypatch.setattr(variation_count, "_AUTO_PIXELS", 16 * 16)
    settings = {"autoencoder": encoder, "augment": "hflip+affine", "random_state": 0}
    classifier = tiny_latent_classifier(**settings)
    for _ in range(2):
        classifier.partial_fit(X, Y, classes=["a", "b", "c"])
    first, second = latents
    assert first.shape[1] == second.shape[1] == 3
    torch.testing.assert_close(first[:, :2], second[:, :2])
    assert not torch.allclose(first[:, 2], second[:, 2])


@pytest.mark.filterwarnings("error")
def test_a_killed_run_goes_on_with_the_time_it_had_left(
    encoding_a_second_an_image, tmp_path, monkeypatch
):
    settings = {
        "autoencoder": encoding_a_second_an_image,
        "augment": "hflip",
        "n_variations": 2,
        "time_budget": 150.0,
        "max_epochs": 6,
        "checkpoint_dir": tmp_path,
        "checkpoint_every": 1,
    }

    class Killing(Checkpoints):
        def save(self, state, *, n_epochs, finished):
            super().save(state, n_epochs=n_epochs, finished=finished)
            if n_epochs == 2:
                raise SystemExit

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit_module, "Checkpoints", Killing)
        with pytest.raises(SystemExit):
            tiny_latent_classifier(**settings).fit(X, Y)
    # To encode again takes longer than the whole budget.
    monkeypatch.setattr(type(encoding_a_second_an_image), "seconds_each", 2.0)
    classifier = tiny_latent_classifier(**settings).fit(X, Y)
    assert classifier.n_iter_ == 6
    assert classifier.history_[-1]["learning_rate"] > 0


def test_a_run_that_goes_on_sees_the_variations_that_it_began_with(
    encoding_a_second_an_image, tmp_path, monkeypatch
):
    shapes = []
    real = latent_preparation.keep_latents

    def noted(shape, *arguments, **keywords):
        shapes.append(shape)
        return real(shape, *arguments, **keywords)

    monkeypatch.setattr(latent_preparation, "keep_latents", noted)
    settings = {"autoencoder": encoding_a_second_an_image, "augment": "hflip+affine"}
    for seconds_each in (0.1, 1.0):
        monkeypatch.setattr(type(encoding_a_second_an_image), "seconds_each", seconds_each)
        classifier = tiny_latent_classifier(
            **settings, time_budget=50.0, max_epochs=1, checkpoint_dir=tmp_path
        )
        classifier.fit(X, Y)
    assert shapes[0] == shapes[1]
    assert shapes[0][1] > 2


@pytest.mark.parametrize(
    "other",
    [{}, {"augment": "affine"}, {"precision": "bfloat16"}, {"random_state": 1}],
    ids=["images", "augment", "precision", "seed"],
)
def test_kept_latents_of_other_images_or_variations_are_not_taken(tmp_path, other):
    # The autoencoder publishes its scaling: nothing of the space depends on the images.
    settings = {"cache_bytes": 0, "max_epochs": 1, "augment": "hflip+affine", "n_variations": 4}
    tiny_latent_classifier(**settings, checkpoint_dir=tmp_path).fit(X, Y)
    # As if the run had ended before its first checkpoint.
    for path in tmp_path.glob("checkpoint-*"):
        path.unlink()
    images, settings = (X if other else 255 - X), {**settings, **other}
    alone = tiny_latent_classifier(**settings).fit(images, Y)
    beside = tiny_latent_classifier(**settings, checkpoint_dir=tmp_path).fit(images, Y)
    np.testing.assert_array_equal(beside.predict_proba(images), alone.predict_proba(images))


def test_only_the_first_process_notes_the_number_of_variations(tmp_path):
    first = Run(started=0.0, is_first=True)
    other = Run(started=0.0, is_first=False)
    assert count_within_run(tmp_path, 0, other, lambda: 5) == 5
    assert not list(tmp_path.iterdir())
    assert count_within_run(tmp_path, 0, first, lambda: 4) == 4
    assert count_within_run(tmp_path, 1, first, lambda: 7) == 7
    for run in (first, other):
        assert count_within_run(tmp_path, 0, replace(run, goes_on=True), lambda: 9) == 4


def test_a_budget_in_whole_seconds_is_the_same_budget(tmp_path, short_fitting):
    settings = {"autoencoder": "fit", "max_epochs": 1, "checkpoint_dir": tmp_path}
    first = tiny_latent_classifier(**settings, time_budget=1500).fit(X, Y)
    second = tiny_latent_classifier(**settings, time_budget=1500.0).fit(X, Y)
    np.testing.assert_array_equal(second.predict_proba(X), first.predict_proba(X))


def test_where_another_process_has_encoded_more_flips_they_are_encoded(monkeypatch):
    """The model sees the flips of the first process."""
    seen = "sklearn_msf._estimator.fit._seen_flips"
    monkeypatch.setattr(seen, lambda state, data: (-1,))
    settings = {"autoencoder": Averages(), "augment": None, "calibration": "temperature"}
    classifier = tiny_latent_classifier(**settings, n_draws=2).fit(X, Y)
    assert classifier.model_.temperature != 1


@pytest.fixture
def ten_seconds_a_look(monkeypatch):
    """Ten seconds go by between one look at the clock and the next."""
    ticks = iter(range(0, 10**9, 10))
    monkeypatch.setattr("time.perf_counter", lambda: float(next(ticks)))


def test_an_autoencoder_is_trained_within_its_fraction_of_the_time(ten_seconds_a_look, monkeypatch):
    steps = []
    loss = autoencoder_training._loss
    monkeypatch.setattr(
        "sklearn_msf.latent.autoencoder_training._loss", lambda *a: steps.append(1) or loss(*a)
    )
    # A third of 1,500 seconds, and a third of that for the first stage: 16 steps.
    with pytest.warns(UserWarning, match=r"time_budget left 4\d\d\.\d seconds .* steps only"):
        tiny_latent_classifier(autoencoder="fit", time_budget=1500.0).fit(X, Y)
    assert 2 * len(autoencoder_training._STAGES) < 10 * len(steps) <= 500


@pytest.mark.filterwarnings("ignore:autoencoder='auto'")
@pytest.mark.parametrize("named", ["fit", "auto", autoencoder_folder])
def test_a_time_budget_that_is_over_before_training_is_an_error(
    ten_seconds_a_look, monkeypatch, named
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "no-such-folder")
    monkeypatch.setattr("sklearn_msf.latent.autoencoder_training._loss", None)
    named = named() if callable(named) else named
    classifier = tiny_latent_classifier(autoencoder=named, time_budget=5.0)
    with pytest.raises(ValueError, match=r"time_budget=5.0 was over .* took \d+\.0 sec") as caught:
        classifier.fit(X, Y)
    # Nothing else would be faster than what is here.
    assert ("Hugging Face" in str(caught.value)) == (named == "auto")
    assert not hasattr(classifier, "model_")


def test_images_are_resized_to_the_next_multiple_or_to_the_size_asked_for():
    odd = RNG.integers(0, 256, (24, 13, 18), dtype=np.uint8)
    module, decoded = Averages(), []
    module.decode = lambda z: decoded.append(tuple(z.shape[1:])) or Averages.decode(module, z)
    classifier = tiny_latent_classifier(autoencoder=module, max_epochs=1).fit(odd, Y)
    assert classifier.sample("a", n_steps=1).shape == (1, 13, 18)
    assert decoded[-1] == (3, 4, 5)
    classifier.set_params(encoded_size=(8, 32)).fit(odd, Y)
    assert classifier.sample("a", n_steps=1).shape == (1, 13, 18)
    assert decoded[-1] == (3, 2, 8)


def test_masks_are_decoded_once_and_not_for_trial(monkeypatch):
    module, decoded = Averages(), []
    module.decode = lambda z: decoded.append(len(z)) or Averages.decode(module, z)
    settings = {"label_prediction": "velocity", "max_epochs": 1, "n_draws": 1}
    classifier = tiny_latent_classifier(autoencoder=module, **settings).fit(X, Y)
    classifier.set_params(label_decoding="pixel")
    for n in (1, 3):
        # In a process that has seen no batch of this size.
        monkeypatch.setattr(batch_sizes, "_CHECKED", {})
        decoded.clear()
        classifier.predict_proba(X[:n])
        assert len(decoded) == 1
        assert batch_sizes._CHECKED


def test_masks_are_compared_as_latents_or_as_colours():
    classifier = tiny_latent_classifier(label_prediction="velocity", n_draws=2).fit(X, Y)
    latent = classifier.predict_uncertainty(X, "distance")
    pixel = classifier.set_params(label_decoding="pixel").predict_uncertainty(X, "distance")
    assert (latent >= 0).all()
    assert (pixel >= 0).all()
    assert (latent != pixel).all()


@pytest.mark.parametrize("n_channels", [2, 4])
@pytest.mark.parametrize("autoencoder", ["fit", None])
def test_colours_cannot_be_encoded_beside_images_of_other_channels(autoencoder, n_channels):
    images = RNG.integers(0, 256, (24, 16, 16, n_channels), dtype=np.uint8)
    settings = {} if autoencoder is None else {"autoencoder": autoencoder, "max_epochs": 1}
    classifier = tiny_latent_classifier(label_prediction="velocity", **settings)
    with pytest.raises(ValueError, match=r"label_prediction='posterior'.* in flow_params"):
        classifier.fit(images, Y)


def test_decoded_masks_have_no_limits_when_they_are_compared():
    settings = {"label_prediction": "velocity", "label_decoding": "pixel"}
    classifier = tiny_latent_classifier(autoencoder=Averages(), max_epochs=1, **settings).fit(X, Y)
    space = classifier.model_.space
    latents = 100 * space.mask_codes
    reader = space.reader(classifier.model_.field.codes, "pixel")
    assert float(reader.prepare(latents, len(latents)).abs().max()) > 1
    assert float(space.masks(latents).abs().max()) == 1


def test_a_saved_model_decodes_masks_as_it_learned_them(tmp_path):
    """Parameters that were set for another fit say nothing of the model."""
    classifier = tiny_latent_classifier(label_prediction="velocity", label_decoding="pixel")
    expected = classifier.fit(X, Y).predict_proba(X)
    entries = classifier.flow_params
    classifier.set_params(flow_params={**entries, "label_prediction": "posterior"})
    classifier.save_pretrained(tmp_path)
    opened = type(classifier).from_pretrained(tmp_path)
    np.testing.assert_array_equal(opened.predict_proba(X), expected)


def test_a_file_takes_latents_that_are_too_many_for_memory(tmp_path):
    settings = {"cache_bytes": 0, "augment": "hflip+affine"}
    in_memory = tiny_latent_classifier(**{**settings, "cache_bytes": 2**30}).fit(X, Y)
    in_file = tiny_latent_classifier(**settings).fit(X, Y)
    beside = tiny_latent_classifier(**settings, checkpoint_dir=tmp_path).fit(X, Y)
    assert len(list(tmp_path.glob("latents-*.bin"))) == 1
    for classifier in (in_file, beside):
        np.testing.assert_array_equal(classifier.predict_proba(X), in_memory.predict_proba(X))


def test_a_run_that_goes_on_keeps_the_autoencoder_that_it_trained(
    short_fitting, tmp_path, monkeypatch
):
    settings = {"autoencoder": "fit", "checkpoint_dir": tmp_path, "checkpoint_every": 1}
    whole = tiny_latent_classifier(**settings).fit(X, Y)
    monkeypatch.setattr("sklearn_msf._estimator.latent_preparation.fit_autoencoder", None)
    again = tiny_latent_classifier(**settings).fit(X, Y)
    np.testing.assert_array_equal(again.predict_proba(X), whole.predict_proba(X))


def test_parts_are_encoded_by_the_autoencoder_of_the_first(short_fitting):
    classifier = tiny_latent_classifier(autoencoder="fit")
    classifier.partial_fit(X[:12], Y[:12], classes=["a", "b", "c"])
    module = classifier.autoencoder_
    classifier.partial_fit(X[12:], Y[12:])
    assert classifier.autoencoder_ is module
    assert classifier.n_iter_ == 2


# Files


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folder of a model, to read only."""
    folder = tmp_path_factory.mktemp("latents")
    tiny_latent_classifier().fit(X, Y).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("kind", "form"),
    [
        ("fitted", "posterior"),
        ("fitted", "velocity"),
        ("folder", "velocity"),
        ("KL", "posterior"),
        ("Tiny", "velocity"),
    ],
)
def test_a_saved_model_holds_its_autoencoder(tmp_path, short_fitting, form, kind):
    choices = {
        "fitted": "fit",
        "folder": autoencoder_folder(),
        "KL": tiny_autoencoder(),
        "Tiny": tiny_autoencoder("AutoencoderTiny"),
    }
    classifier = tiny_latent_classifier(autoencoder=choices[kind], label_prediction=form)
    classifier.fit(X, Y).save_pretrained(tmp_path)
    opened = LatentMedSymmFlowClassifier.from_pretrained(tmp_path)
    np.testing.assert_array_equal(opened.predict_proba(X), classifier.predict_proba(X))
    sampled = (model.sample("a", n_steps=1, random_state=0) for model in (opened, classifier))
    np.testing.assert_array_equal(*sampled)
    # The model card tells a fitted autoencoder from a given one.
    line = "- Autoencoder: AutoencoderKL, fitted to the training images\n"
    assert (line in (tmp_path / "README.md").read_text()) is (kind == "fitted")


def test_an_object_of_ones_own_is_passed_again(tmp_path):
    module = Averages()
    classifier = tiny_latent_classifier(autoencoder=module).fit(X, Y)
    classifier.save_pretrained(tmp_path)
    with pytest.raises(AutoencoderError, match=r"from_pretrained\(folder, autoencoder=\.\.\.\)"):
        LatentMedSymmFlowClassifier.from_pretrained(tmp_path)
    opened = LatentMedSymmFlowClassifier.from_pretrained(tmp_path, autoencoder=module)
    assert opened.autoencoder is module
    np.testing.assert_array_equal(opened.predict_proba(X), classifier.predict_proba(X))
    assert clone(opened).fit(X, Y).score(X, Y) == classifier.score(X, Y)


def test_an_autoencoder_from_the_hub_is_named_by_id_and_revision(tmp_path, monkeypatch):
    classifier = tiny_latent_classifier().fit(X, Y)
    hub = {"kind": "hub", "id": "somebody/autoencoder", "revision": "0" * 40}
    classifier.model_.space.autoencoder.source = hub
    classifier.save_pretrained(tmp_path)
    asked = []

    def from_hub(name, revision, *, of_model):
        assert of_model
        asked.append((name, revision))
        return classifier.model_.space.autoencoder

    monkeypatch.setattr("sklearn_msf.latent.autoencoder_io.open_hub_autoencoder", from_hub)
    opened = LatentMedSymmFlowClassifier.from_pretrained(tmp_path)
    assert asked == [("somebody/autoencoder", "0" * 40)]
    np.testing.assert_array_equal(opened.predict_proba(X), classifier.predict_proba(X))
    n_bytes = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    tiny_latent_classifier().fit(X, Y).save_pretrained(tmp_path / "whole")
    assert n_bytes < sum(p.stat().st_size for p in (tmp_path / "whole").glob("*.safetensors"))


def test_an_autoencoder_that_makes_other_latents_is_refused(tmp_path):
    tiny_latent_classifier(autoencoder=Averages()).fit(X, Y).save_pretrained(tmp_path)
    louder = Averages()
    louder.gain = 1.1
    for other in (louder, tiny_autoencoder()):
        with pytest.raises(AutoencoderError, match="makes other latents"):
            LatentMedSymmFlowClassifier.from_pretrained(tmp_path, autoencoder=other)


def test_where_an_autoencoder_of_the_files_makes_other_latents_none_can_be_passed(
    tmp_path, monkeypatch
):
    tiny_latent_classifier().fit(X, Y).save_pretrained(tmp_path)
    monkeypatch.setattr(
        "sklearn_msf.latent.autoencoder_latents_io.is_same_output", lambda found, wanted: False
    )
    with pytest.raises(AutoencoderError, match="makes other latents .* with the version of diff"):
        LatentMedSymmFlowClassifier.from_pretrained(tmp_path)


def test_an_autoencoder_that_decodes_to_other_images_is_refused(tmp_path):
    class Brighter(Averages):
        def decode(self, latents):
            return super().decode(latents) + 0.2

    tiny_latent_classifier(autoencoder=Averages()).fit(X, Y).save_pretrained(tmp_path)
    with pytest.raises(AutoencoderError, match="makes other images than the one"):
        LatentMedSymmFlowClassifier.from_pretrained(tmp_path, autoencoder=Brighter())


class Silent(torch.nn.Module):
    encode = Averages.encode
    gain = 1.0

    def decode(self, latents):
        raise NotImplementedError


class Noisy(torch.nn.Module, Averages):
    def decode(self, latents):
        return super().decode(latents) + torch.randn(1)


@pytest.mark.parametrize("autoencoder", [Silent(), Noisy()])
def test_an_autoencoder_that_only_classifies_can_be_saved(tmp_path, autoencoder):
    classifier = tiny_latent_classifier(autoencoder=autoencoder).fit(X, Y)
    classifier.save_pretrained(tmp_path)
    opened = LatentMedSymmFlowClassifier.from_pretrained(tmp_path, autoencoder=autoencoder)
    np.testing.assert_array_equal(opened.predict_proba(X), classifier.predict_proba(X))


def test_labels_are_checked_before_images_are_encoded(monkeypatch):
    classifier = tiny_latent_classifier(autoencoder=Averages()).fit(X, Y)
    monkeypatch.setattr(Averages, "encode", None)
    with pytest.raises(ValueError, match="y_cal must be of shape"):
        classifier.fit_reject(X, Y[:-1], target_risk=0.5)
    with pytest.raises(ValueError, match="to_class must be one class"):
        classifier.counterfactual(X, ["a", "b"])


def test_a_model_whose_parameter_names_another_autoencoder_is_not_saved(tmp_path):
    first = Averages()
    classifier = tiny_latent_classifier(autoencoder=first).fit(X, Y)
    classifier.set_params(autoencoder=autoencoder_folder())
    with pytest.raises(ValueError, match="is not that of the fit, .*set it back"):
        classifier.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    classifier.set_params(autoencoder=first).save_pretrained(tmp_path / "model")


def test_an_autoencoder_for_large_images_can_be_opened_again():
    layout = layout_for(1, (64, 10_000))
    fitted = ImageAutoencoder(build_autoencoder("AutoencoderKL", layout))
    check_autoencoder(*autoencoder_to_plain(fitted, by_name=False))


def test_models_over_pixels_and_over_latents_are_not_mistaken_for_each_other(tmp_path, fitted):
    fitted.save_pretrained(tmp_path)
    (other,) = {LatentMedSymmFlowClassifier, MedSymmFlowClassifier} - {type(fitted)}
    with pytest.raises(ArchiveError, match="open it with that class"):
        other.from_pretrained(tmp_path)


def test_a_pickle_holds_the_autoencoder(short_fitting):
    classifier = tiny_latent_classifier(autoencoder="fit", label_prediction="velocity").fit(X, Y)
    opened = pickle.loads(pickle.dumps(classifier))
    np.testing.assert_array_equal(opened.predict_proba(X), classifier.predict_proba(X))
    assert opened.partial_fit(X, Y).n_iter_ == classifier.n_iter_ + 1


def test_a_run_without_its_autoencoder_does_not_go_on(short_fitting, tmp_path):
    settings = {"autoencoder": "fit", "checkpoint_dir": tmp_path}
    tiny_latent_classifier(**settings).fit(X, Y)
    next(tmp_path.glob("autoencoder-*.json")).unlink()
    with pytest.raises(CheckpointMismatchError, match="not the autoencoder"):
        tiny_latent_classifier(**settings).fit(X, Y)


def test_only_the_first_process_writes_what_it_prepared(short_fitting, tmp_path, monkeypatch):
    monkeypatch.setattr(ProcessGroup, "is_first", False)
    settings = {"autoencoder": "fit", "augment": "hflip+affine", "time_budget": 60.0}
    settings |= {"backbone": TinyBackbone(), "max_epochs": 1, "checkpoint_dir": tmp_path}
    tiny_latent_classifier(**settings).fit(X, Y)
    assert not list(tmp_path.iterdir())


def test_checkpoints_know_what_is_in_a_folder(tmp_path):
    tiny_autoencoder().save_pretrained(tmp_path / "ae")
    settings = {"autoencoder": tmp_path / "ae", "checkpoint_dir": tmp_path / "run"}
    tiny_latent_classifier(**settings).fit(X, Y)
    tiny_autoencoder(latent_channels=3).save_pretrained(tmp_path / "ae")
    with pytest.raises(CheckpointMismatchError, match="autoencoder is '"):
        tiny_latent_classifier(**settings).fit(X, Y)


# The paper


@pytest.mark.parametrize(
    ("name", "batch_size", "max_epochs", "learning_rate", "augment"),
    [
        ("pneumoniamnist", 64, 2000, 3e-4, None),
        ("bloodmnist", 64, 1000, 4e-4, "flip"),
        ("DermaMNIST", 128, 1000, 5e-4, "flip"),
        ("retinamnist", 128, 2000, 5e-4, "flip"),
    ],
)
def test_from_paper_has_the_settings_of_table_5(
    name, batch_size, max_epochs, learning_rate, augment
):
    classifier = LatentMedSymmFlowClassifier.from_paper(name, random_state=3)
    assert (classifier.batch_size, classifier.max_epochs) == (batch_size, max_epochs)
    assert (classifier.learning_rate, classifier.augment) == (learning_rate, augment)
    assert (classifier.channels, classifier.optimizer) == (128, "adamw")
    assert classifier.network_params == {
        "channel_mult": (1, 2, 2, 2),
        "n_blocks": 2,
        "attention_levels": (1,),
        "patch_size": 1,
        "dropout": 0.0,
        "time_scale": 1.0,
        "time_modulation": "shift",
        "upsampling": "adm",
    }
    assert classifier.optimizer_params == {
        "weight_decay": 0.0,
        "max_grad_norm": None,
        "ema_decay": 0.7,
        "warmup": "cosine",
        "even_batches": False,
    }
    assert classifier.flow_params == {
        "label_encoding": "rgb",
        "label_prediction": "velocity",
        "image_prediction": "velocity",
        "beta": 4.0,
        "class_dropout": 0.0,
        "time_shift": 1.0,
        "image_weight": 0.7,
    }
    assert (classifier.autoencoder, classifier.encoded_size) == ("stabilityai/sd-vae-ft-mse", 256)
    assert (classifier.label_decoding, classifier.random_state) == ("pixel", 3)
    assert classifier.classification_fraction == 0.0


@pytest.mark.parametrize(("flow_params", "shift"), [(None, 3.0), ({"time_shift": 2.0}, 2.0)])
def test_times_are_moved_towards_noise_in_training(monkeypatch, flow_params, shift):
    seen = set()

    def watched(*given):
        seen.add(given[-1])
        return sample_times(*given)

    monkeypatch.setattr("sklearn_msf.training.step.sample_times", watched)
    classifier = LatentMedSymmFlowClassifier(
        Averages(), channels=8, max_epochs=1, device="cpu", flow_params=flow_params
    )
    classifier.fit(X, Y)
    assert seen == {shift}


def test_from_paper_changes_single_entries_of_a_dict():
    plain = LatentMedSymmFlowClassifier.from_paper("bloodmnist")
    changed = LatentMedSymmFlowClassifier.from_paper("bloodmnist", flow_params={"beta": 2})
    assert changed.flow_params == {**plain.flow_params, "beta": 2}
    assert changed.network_params == plain.network_params


def test_the_papers_settings_train_and_predict_smoke():
    small = {"channels": 8, "max_epochs": 1, "autoencoder": autoencoder_folder()}
    classifier = LatentMedSymmFlowClassifier.from_paper("retinamnist", encoded_size=16, **small)
    assert classifier.fit(X, Y).predict(X).shape == (24,)


def test_a_data_set_that_the_paper_lacks_is_named():
    with pytest.raises(ValueError, match="got 'breastmnist'"):
        LatentMedSymmFlowClassifier.from_paper("breastmnist")


# Bad input


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"autoencoder": None}, "autoencoder must be"),
        ({"autoencoder": object()}, "object has no encode"),
        ({"encoded_size": 0}, "encoded_size must be"),
        ({"encoded_size": (8, 8, 8)}, "encoded_size must be"),
        ({"encoded_size": 15}, r"encoded_size=15 must be a multiple of the autoencoder's factor 2"),
        ({"label_decoding": "colour"}, "label_decoding must be one of 'latent', 'pixel'"),
        ({"n_variations": 0}, "n_variations must be an integer >= 1"),
        ({"cache_bytes": -1}, "cache_bytes must be an integer >= 0"),
        (
            {"label_prediction": "velocity", "label_encoding": "simplex"},
            "label_encoding='simplex' makes no images",
        ),
    ],
)
def test_a_wrong_parameter_is_named_at_fit(overrides, message):
    with pytest.raises(ValueError, match=message):
        tiny_latent_classifier(**overrides).fit(X, Y)


@pytest.mark.parametrize("autoencoder", ["fit", Averages()])
def test_images_smaller_than_the_factor_name_the_remedy(autoencoder):
    with pytest.raises(ValueError, match=r"3 x 16 pixels, .* at least 4 x 4: set encoded_size"):
        tiny_latent_classifier(autoencoder=autoencoder).fit(X[:, :3], Y)


def test_channels_that_the_autoencoder_lacks_are_named():
    with pytest.raises(ValueError, match="images of 2 channels; the autoencoder takes 3"):
        tiny_latent_classifier().fit(X[..., :2], Y)


def test_colours_need_an_autoencoder_for_colours():
    module = tiny_autoencoder(in_channels=1, out_channels=1)
    tiny_latent_classifier(autoencoder=module).fit(GRAY, Y)
    with pytest.raises(ValueError, match="use label_prediction='posterior'"):
        tiny_latent_classifier(autoencoder=module, label_prediction="velocity").fit(GRAY, Y)


def test_images_of_another_size_than_in_fit_are_refused():
    classifier = tiny_latent_classifier().fit(X, Y)
    with pytest.raises(ValueError, match=r"but LatentMedSymmFlowClassifier was fitted"):
        classifier.predict(X[:, :8, :8])


def test_a_warm_start_with_another_autoencoder_is_refused():
    classifier = tiny_latent_classifier(warm_start=True).fit(X, Y)
    classifier.fit(X, Y)
    with pytest.raises(ValueError, match="another autoencoder"):
        classifier.set_params(autoencoder=Averages()).fit(X, Y)


def test_a_warm_start_may_name_the_same_folder_in_another_way():
    folder = autoencoder_folder()
    classifier = tiny_latent_classifier(autoencoder=folder, warm_start=True, max_epochs=1).fit(X, Y)
    for same in (Path(folder), Path(folder), str(Path(folder))):
        classifier.set_params(autoencoder=same).fit(X, Y)


@pytest.mark.parametrize("encoders", [{}, {"backbone": TinyBackbone(), "autoencoder": None}])
@pytest.mark.parametrize("sizes", [(None, 32), (32, None), (32, (32, 16))])
def test_a_warm_start_with_another_encoded_size_is_refused(encoders, sizes):
    classifier = tiny_latent_classifier(
        **encoders, encoded_size=sizes[0], warm_start=True, max_epochs=1
    ).fit(X, Y)
    classifier.fit(X, Y)
    with pytest.raises(ValueError, match=f"encoded_size={re.escape(str(sizes[1]))}: the model"):
        classifier.set_params(encoded_size=sizes[1]).fit(X, Y)


@pytest.mark.parametrize(
    ("settings", "n_views"),
    [
        ({"augment": "flip", "n_variations": 1}, 1),
        ({"augment": "flip", "n_variations": 2}, 2),
        ({"augment": "flip", "n_variations": 3}, 2),
        ({"augment": "flip", "n_variations": 4}, 4),
        ({"augment": "hflip", "n_variations": 1}, 1),
        ({"augment": "hflip+affine", "n_variations": 5}, 2),
        ({"augment": "affine", "n_variations": 5}, 1),
    ],
)
def test_predictions_see_the_flips_that_were_encoded_and_no_others(settings, n_views):
    classifier = tiny_latent_classifier(**settings, n_draws=4, max_epochs=1).fit(X, Y)
    assert len(classifier.model_.flips(4)) == n_views


def test_checkpoints_of_another_autoencoder_are_refused(tmp_path):
    tiny_latent_classifier(autoencoder=Averages(), checkpoint_dir=tmp_path).fit(X, Y)
    louder = Averages()
    louder.gain = 2.0
    with pytest.raises(ValueError, match="autoencoder is '"):
        tiny_latent_classifier(autoencoder=louder, checkpoint_dir=tmp_path).fit(X, Y)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("space"), "not work on pixels|not a usable model"),
        (lambda d: d["space"].update(encoded_size=[15, 16]), "encoded_size"),
        (lambda d: d["space"].update(encoded_size=[2**20, 2**20]), "encoded_size"),
        (
            lambda d: d["space"]["autoencoder"].update(kind="pickle"),
            "names its autoencoder but also contains weights",
        ),
        (lambda d: d["space"]["autoencoder"].update({"class": "os.system"}), "os.system"),
        (
            lambda d: d["space"]["autoencoder"]["config"].update(layers_per_block=10**9),
            "layers_per_block=1000000000; integers from 0 to 8,192",
        ),
        (
            lambda d: d["space"]["autoencoder"]["config"].update(latent_channels=9),
            "float32 of shape",
        ),
        (
            lambda d: d["space"]["autoencoder"]["config"].update(surprise=1),
            "surprise",
        ),
        (
            lambda d: d["space"]["autoencoder"]["config"].update(out_channels=10**11),
            "out_channels=100000000000; integers from 0 to 8,192",
        ),
    ],
)
def test_what_is_wrong_with_a_changed_model_is_said(saved, tmp_path, change, message):
    from test_serialization import edit

    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    edit(tmp_path, change)
    with pytest.raises(ArchiveError, match=message):
        LatentMedSymmFlowClassifier.from_pretrained(tmp_path)


def test_a_relative_path_stays_a_path_in_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(autoencoder_folder(), "models/vae")
    fitted = tiny_latent_classifier(autoencoder=Path("models/vae"), max_epochs=1).fit(X, Y)
    fitted.save_pretrained("model")
    opened = LatentMedSymmFlowClassifier.from_pretrained("model")
    # Text such as models/vae could be an id on the hub.
    assert not is_hub_id(opened.autoencoder)
    assert Path(opened.autoencoder) == Path("models/vae")


def test_training_ends_within_the_time_that_encoding_left(monkeypatch):
    now, encode, step = [0.0], Averages.encode, Trainer._make_step
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def slow(self, images):
        now[0] += len(images)
        return encode(self, images)

    def timed(self, *arguments):
        now[0] += 1.0
        return step(self, *arguments)

    monkeypatch.setattr(Averages, "encode", slow)
    monkeypatch.setattr(Trainer, "_make_step", timed)
    settings = {"autoencoder": Averages(), "max_epochs": 10**6, "time_budget": 300.0}
    tiny_latent_classifier(**settings).fit(X, Y)
    assert now[0] <= 301


@pytest.mark.parametrize("autoencoder", ["fit", Averages()], ids=["fit", "object"])
def test_a_part_neither_reads_nor_changes_the_folder_of_a_run(tmp_path, short_fitting, autoencoder):
    settings = {"autoencoder": autoencoder, "augment": "hflip+affine", "n_variations": 4}
    settings |= {"cache_bytes": 0, "max_epochs": 1}
    tiny_latent_classifier(**settings, checkpoint_dir=tmp_path).fit(X, Y)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    classes = ["a", "b", "c"]
    beside, alone = (
        tiny_latent_classifier(**settings, checkpoint_dir=folder).partial_fit(X[:9], Y[:9], classes)
        for folder in (tmp_path, None)
    )
    np.testing.assert_array_equal(beside.predict_proba(X), alone.predict_proba(X))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_without_a_seed_and_an_undamaged_checkpoint_the_run_begins_anew(tmp_path, short_fitting):
    settings = {"autoencoder": "fit", "max_epochs": 1, "random_state": None}
    settings |= {"checkpoint_dir": tmp_path}
    tiny_latent_classifier(**settings).fit(X, Y)
    (checkpoint,) = tmp_path.glob("checkpoint-*.safetensors")
    checkpoint.write_bytes(checkpoint.read_bytes()[:100])
    with pytest.warns(UserWarning, match="is damaged"):
        classifier = tiny_latent_classifier(**settings).fit(X, Y)
    assert classifier.n_iter_ == 1
