"""Fits that were cut off and go on from their checkpoints."""

import copy
import functools
import json
import signal
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import DEVICE, tiny_classifier, tiny_latent_classifier
from forked_scripts import LIBRARIES, run_code
from sklearn.base import clone

from sklearn_msf._estimator import fit as fitting
from sklearn_msf.exceptions import CheckpointMismatchError
from sklearn_msf.persistence.archives import ArchiveError, read_archive, write_archive
from sklearn_msf.runtime.process_group import ProcessGroup

RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (24, 8, 8), dtype=np.uint8)
Y = np.array(["a", "b", "c"] * 8)
OTHER_DEVICE = "cpu" if DEVICE.startswith("cuda") else "cuda"


def make(folder=None, make_classifier=tiny_classifier, **overrides):
    settings = {"max_epochs": 6, "checkpoint_every": 2, "checkpoint_dir": folder, "dropout": 0.3}
    return make_classifier(**{**settings, **overrides})


def weights(classifier):
    return torch.cat([p.ravel() for p in classifier.model_.field.parameters()])


class CutOffError(Exception):
    """Stands for the end of a process."""


def cut_off(classifier, monkeypatch, after, y=Y):
    """Fit until some epochs are over, and no further."""
    from sklearn_msf.training.trainer import Trainer

    epoch = Trainer._epoch

    def epoch_or_end(self, data, *, epoch=None, _run=epoch):
        if len(self.history) == after:
            raise CutOffError
        return _run(self, data, epoch=epoch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_epoch", epoch_or_end)
        with pytest.raises(CutOffError):
            classifier.fit(X, y)


@functools.cache
def never_cut_off(make_classifier, **settings):
    """The fit that every one that was cut off has to equal."""
    return make(make_classifier=make_classifier, **settings).fit(X, Y)


RUNS = [(False, "adamw"), (True, "adamw"), (False, "muon")]
MAKERS = [tiny_classifier, tiny_latent_classifier]


# Each pair of these once.
@pytest.mark.parametrize(
    ("after", "early_stopping", "optimizer", "make_classifier"),
    [
        (after, *run, MAKERS[(i + j) % 2])
        for i, after in enumerate([0, 1, 2, 3, 5])
        for j, run in enumerate(RUNS)
    ],
)
def test_a_fit_that_was_cut_off_ends_as_if_it_never_was(
    tmp_path, monkeypatch, after, early_stopping, optimizer, make_classifier
):
    settings = {"early_stopping": early_stopping, "validation_fraction": 0.25}
    settings |= {"make_classifier": make_classifier, "augment": "hflip+affine"}
    settings["optimizer"] = optimizer
    if make_classifier is tiny_latent_classifier:
        # As many as are needed to have moved images beside the mirrored ones.
        settings["n_variations"] = 4
    whole = never_cut_off(**settings)
    cut_off(make(tmp_path, **settings), monkeypatch, after)
    resumed = make(tmp_path, **settings).fit(X, Y)
    assert torch.equal(weights(whole), weights(resumed))
    np.testing.assert_array_equal(whole.predict_proba(X), resumed.predict_proba(X))
    assert whole.loss_curve_ == resumed.loss_curve_


def test_a_fit_goes_on_with_its_own_seed_where_none_is_given(tmp_path, monkeypatch):
    settings = {"random_state": None, "early_stopping": True, "validation_fraction": 0.25}
    cut_off(make(tmp_path, **settings), monkeypatch, 4)
    seed = read_archive(tmp_path, "checkpoint-0000004")[1]["seed"]
    models = []
    for name in ("one", "two"):
        folder = tmp_path.parent / f"{tmp_path.name}-{name}"
        folder.mkdir()
        for path in tmp_path.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        models.append(make(folder, **settings).fit(X, Y))
    np.testing.assert_array_equal(*(model.predict_proba(X) for model in models))
    # What is held out and the noise of the masks, which these probabilities do not depend on.
    assert [model._continuation.split_seed for model in models] == [seed, seed]
    assert len({model.model_.noise_seed for model in models}) == 1


def test_checkpoints_do_not_change_what_is_learned(tmp_path):
    assert torch.equal(weights(make().fit(X, Y)), weights(make(tmp_path).fit(X, Y)))


def test_a_finished_run_is_returned_as_it_ended(tmp_path, monkeypatch):
    first = make(tmp_path).fit(X, Y)
    monkeypatch.setattr("sklearn_msf.training.step.TrainingStep.__call__", None)
    again = make(tmp_path).fit(X, Y)
    assert torch.equal(weights(first), weights(again))
    assert again.n_iter_ == 6


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"learning_rate": 0.1}, r"learning_rate is 0\.1 here and 0\.003 there"),
        ({"random_state": 1}, "random_state is 1 here and 0 there"),
        ({"class_weight": "balanced"}, "class_weight is 'balanced' here and None there"),
        ({"beta": 2.0}, r"beta is 2\.0 here and 4\.0 there"),
        ({"weight_decay": 0.1}, r"weight_decay is 0\.1 here and 0\.01 there"),
        ({"channel_mult": (2,)}, r"channel_mult is .* here and .* there"),
    ],
)
def test_checkpoints_of_other_parameters_are_refused(tmp_path, overrides, message):
    make(tmp_path).fit(X, Y)
    with pytest.raises(CheckpointMismatchError, match=message):
        make(tmp_path, **overrides).fit(X, Y)


@pytest.mark.parametrize(
    ("X_new", "y_new", "message"),
    [
        (255 - X, Y, "images of X is '"),
        (X, np.roll(Y, 1), "is '.*' here and '.*' there"),
        (X, np.char.add(Y, "x"), "labels of y is"),
    ],
)
def test_checkpoints_of_other_data_are_refused(tmp_path, X_new, y_new, message):
    make(tmp_path).fit(X, Y)
    with pytest.raises(CheckpointMismatchError, match=message):
        make(tmp_path).fit(X_new, y_new)


def test_runs_of_other_random_states_are_told_apart(tmp_path):
    make(tmp_path, random_state=np.random.RandomState(1)).fit(X, Y)
    first = make(tmp_path, random_state=np.random.RandomState(1)).fit(X, Y)
    assert torch.equal(
        weights(first), weights(make(random_state=np.random.RandomState(1)).fit(X, Y))
    )
    for other in (np.random.RandomState(2), None, 1):
        with pytest.raises(CheckpointMismatchError, match="random_state is"):
            make(tmp_path, random_state=other).fit(X, Y)


@pytest.mark.parametrize("generator", [np.random.PCG64, np.random.Philox, np.random.MT19937])
def test_runs_of_other_states_of_any_bit_generator_are_told_apart(tmp_path, generator):
    def state(seed, n_drawn=0):
        random_state = np.random.RandomState(generator(seed))
        random_state.random_sample(n_drawn)
        return random_state

    make(tmp_path, random_state=state(1)).fit(X, Y)
    make(tmp_path, random_state=state(1)).fit(X, Y)
    for other in (state(2), state(1, n_drawn=1)):
        with pytest.raises(CheckpointMismatchError, match="random_state is"):
            make(tmp_path, random_state=other).fit(X, Y)


@pytest.mark.parametrize("shape", [(24, 4, 16), (24, 64), (24, 8, 8, 1), (24, 4, 4, 4)])
def test_checkpoints_of_the_same_pixels_in_another_shape_are_refused(tmp_path, shape):
    make(tmp_path).fit(X, Y)
    with pytest.raises(CheckpointMismatchError, match="format of X is"):
        make(tmp_path).fit(X.reshape(shape), Y)


@pytest.mark.parametrize(
    ("name", "value"),
    [("device", OTHER_DEVICE), ("precision", "bfloat16"), ("version of sklearn_msf", "0.0.0")],
)
def test_checkpoints_of_other_hardware_or_another_version_are_refused(tmp_path, name, value):
    make(tmp_path).fit(X, Y)
    for path in list(tmp_path.glob("*.json")):
        tensors, metadata = read_archive(tmp_path, path.stem)
        metadata["fingerprint"][name] = value
        write_archive(tmp_path, path.stem, tensors, metadata)
    with pytest.raises(CheckpointMismatchError, match=f"{name} is"):
        make(tmp_path).fit(X, Y)


def test_checkpoints_of_the_first_format_version_are_refused_and_kept(tmp_path):
    make(tmp_path).fit(X, Y)
    for path in tmp_path.glob("*.json"):
        content = json.loads(path.read_text())
        path.write_text(json.dumps({**content, "format_version": 1}))
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(ArchiveError, match="has format version 1, but .* reads version 2 only"):
        make(tmp_path).fit(X, Y)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_checkpoints_of_other_sample_weights_are_refused(tmp_path):
    make(tmp_path).fit(X, Y)
    with pytest.raises(CheckpointMismatchError, match="sample weights is"):
        make(tmp_path).fit(X, Y, sample_weight=np.arange(1.0, 25.0) % 5 + 1)


def test_parameters_that_do_not_train_may_change(tmp_path):
    first = make(tmp_path).fit(X, Y)
    again = make(tmp_path, n_draws=5, verbose=0, checkpoint_every=1).fit(X, Y)
    assert torch.equal(weights(first), weights(again))


def test_with_early_stopping_what_predicts_chooses_the_weights_too(tmp_path):
    stops = {"early_stopping": True, "validation_fraction": 0.25}
    make(tmp_path, n_draws=1, **stops).fit(X, Y)
    with pytest.raises(CheckpointMismatchError, match="n_draws is 2"):
        make(tmp_path, n_draws=2, **stops).fit(X, Y)


def test_an_entry_that_is_left_out_is_the_same_as_its_default(tmp_path):
    first = make(tmp_path).fit(X, Y)
    again = make(tmp_path)
    for group, defaults in again._group_defaults.items():
        again.set_params(**{group: {**defaults, **(getattr(again, group) or {})}})
    assert torch.equal(weights(first), weights(again.fit(X, Y)))


def test_a_warm_start_has_checkpoints_of_its_own(tmp_path):
    classifier = make(warm_start=True).fit(X, Y)
    first, second = tmp_path / "first", tmp_path / "second"
    classifier.set_params(checkpoint_dir=first).fit(X, Y)
    with pytest.raises(CheckpointMismatchError, match="weights to start from"):
        classifier.fit(X, Y)
    classifier.set_params(checkpoint_dir=second).fit(X, Y)


def test_an_interrupted_run_goes_on_in_a_clone(tmp_path):
    classifier = make(tmp_path, warm_start=True)
    classifier.fit(X, Y)
    # Fitted, as after Ctrl-C: fit would begin another run from here.
    with pytest.raises(CheckpointMismatchError, match="interrupted run, fit a clone"):
        classifier.fit(X, Y)
    assert torch.equal(weights(clone(classifier).fit(X, Y)), weights(classifier))


def test_a_run_that_began_with_another_model_says_so(tmp_path):
    classifier = make(warm_start=True).fit(X, Y)
    classifier.set_params(checkpoint_dir=tmp_path).fit(X, Y)
    for other in (classifier, clone(classifier)):
        with pytest.raises(CheckpointMismatchError, match="had begun with another model"):
            other.fit(X, Y)


# Windows has no SIGKILL, and ends a process at once at any signal.
DEADLY = getattr(signal, "SIGKILL", signal.SIGTERM)
KILLED = """
import os
import torch
from sklearn_msf.training.step import TrainingStep

# As many threads as the process that goes on.
torch.set_num_threads({n_threads})
step = TrainingStep._step
count = 0

def step_or_die(self, *arguments):
    global count
    count += 1
    if count == {deadly_step}:
        os.kill(os.getpid(), {deadly_signal})
    return step(self, *arguments)

TrainingStep._step = step_or_die
from test_run_fingerprint import X, Y, make
make({folder!r}, batch_size=8).fit(X, Y)
"""


@pytest.mark.parametrize("make_classifier", [tiny_classifier, tiny_latent_classifier])
def test_a_warm_start_of_a_file_goes_on_with_the_run_of_the_model_it_was_saved_of(
    tmp_path, monkeypatch, make_classifier
):
    # Few images would take AdamW; the model was trained by Muon, and goes on so.
    settings = {"augment": "flip+affine", "random_state": 0}
    # Of an array that has held longer labels, whose width files do not keep.
    y = Y.astype("U20")
    base = make_classifier(optimizer="muon", **settings).fit(X, y).set_params(optimizer="auto")
    base.save_pretrained(tmp_path / "base")

    more = {"warm_start": True, "max_epochs": 6}
    kept = {"checkpoint_dir": tmp_path / "run", "checkpoint_every": 2}
    wanted = copy.deepcopy(base).set_params(**more).fit(X, y)
    cut_off(copy.deepcopy(base).set_params(**more, **kept), monkeypatch, after=4, y=y)
    again = type(base).from_pretrained(tmp_path / "base").set_params(**more, **kept)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again.fit(X, y)
    assert torch.equal(weights(again), weights(wanted))


def test_a_killed_process_leaves_checkpoints_to_go_on_from(tmp_path):
    # Three steps an epoch: in the middle of epoch 4, after the checkpoint of epoch 2.
    code = KILLED.format(
        deadly_step=11,
        deadly_signal=int(DEADLY),
        n_threads=torch.get_num_threads(),
        folder=str(tmp_path / "run"),
    )
    assert abs(run_code(LIBRARIES, code).code) == DEADLY
    assert (tmp_path / "run" / "checkpoint-0000002.json").exists()
    resumed = make(tmp_path / "run", batch_size=8).fit(X, Y)
    assert torch.equal(weights(resumed), weights(make(batch_size=8).fit(X, Y)))


def test_processes_that_write_no_checkpoints_digest_the_data_too(monkeypatch):
    """Otherwise they would wait for the first one, which large data make longer than they may."""
    digested = []
    monkeypatch.setattr(fitting, "run_fingerprint", lambda *given: digested.append(given) or {})
    second = SimpleNamespace(is_first=False, of_first=lambda _: 7)
    state = SimpleNamespace(
        p=SimpleNamespace(checkpoint_dir="folder", random_state=0),
        preparation=SimpleNamespace(open=lambda: None, fingerprint=dict),
        group=second,
        samples="samples",
        validation=None,
        device=None,
        previous=None,
    )
    assert fitting._open_run(state) == (None, 7)
    assert len(digested) == 1
    assert "samples" in digested[0]


class StopError(Exception):
    """Stands for the rest of a fit."""


def test_only_the_first_process_needs_the_checkpoints(tmp_path, monkeypatch):
    """Their precision replaces "auto" after the processes have compared their parameters."""
    make(tmp_path, precision="float32").fit(X, Y)
    compared = {}

    class First(ProcessGroup):
        def gather(self, value):
            return [value]

        def check_same(self, values):
            compared.update(values)

        def of_first(self, value):
            raise StopError(value)

    monkeypatch.setattr(fitting, "join_process_group", lambda device: (First(size=2), device))
    with pytest.raises(StopError, match="^float32$"):
        make(tmp_path, precision="auto").fit(X, Y)
    assert compared["precision"] == "'auto'"
