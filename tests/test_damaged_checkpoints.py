"""Checkpoints that were changed, with digests that fit: passed over, and never harmful."""

import contextlib
import math
import shutil
import struct
import warnings

import numpy as np
import pytest
import torch
from conftest import tiny_classifier, tiny_layout
from hypothesis import given, settings
from hypothesis import strategies as st
from test_training import all_weights, make_trainer

from sklearn_msf.flow.velocity_field import build_field
from sklearn_msf.persistence.archives import ArchiveError, read_archive, write_archive
from sklearn_msf.training.batches import TrainingData
from sklearn_msf.training.checkpoints import Checkpoints
from sklearn_msf.training.epoch_logs import check_history, history_as_tensor, history_from_tensor
from sklearn_msf.training.state import TrainingState

OLDER, NEWEST = "checkpoint-0000001", "checkpoint-0000002"
SCORES = [0.5, 0.9, 0.6, 0.7]


def bright_and_dark():
    """Two classes that differ in brightness."""
    labels = torch.arange(24) % 2
    noise = 0.1 * torch.randn(24, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    images = (labels[:, None, None, None] - 0.5) + noise
    return TrainingData(images, labels, torch.ones(24, dtype=torch.float64), 24)


@pytest.fixture(autouse=True, scope="module")
def without_waiting_for_the_disk():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)
        yield


class CutOffError(Exception):
    """Stands for the end of a process; has the epochs that it trained, and the averaged weights."""


def run(field, folder, after=None):
    """Train four epochs with checkpoints, or only until some are over."""
    trainer = make_trainer(field, max_epochs=4, early_stopping=True, batch_size=24)
    trained = []

    def validate(average):
        trained.append(len(trainer.history))
        if len(trainer.history) == after:
            raise CutOffError(trained, all_weights(average).clone())
        return SCORES[len(trainer.history)]

    trainer.fit(
        bright_and_dark(),
        validate=validate,
        checkpoints=Checkpoints(folder, 1, {"images of X": "ab12"}, seed=5),
    )
    return trainer


@pytest.fixture(scope="module")
def cut_off_run(tmp_path_factory):
    """A run that was cut off after two of four epochs: its fields, the whole run, its folder.

    And the averaged weights of the second epoch.
    """

    def make():
        # So wide that Muon has matrices; AdamW has the vectors.
        layout = {"channels": 16, "channel_mult": (1,), "attention_levels": ()}
        return build_field(tiny_layout(n_classes=2, **layout), 0).eval()

    folder = tmp_path_factory.mktemp("runs")
    whole = run(make(), folder / "whole")
    with pytest.raises(CutOffError):
        run(make(), folder / "cut off", after=2)
    with pytest.raises(CutOffError) as of_second:
        run(make(), folder / "second", after=1)
    return make, whole, folder / "cut off", of_second.value.args[1]


def damage(folder, name, change):
    """Change an archive and give it new digests."""
    tensors, metadata = read_archive(folder, name)
    change(tensors, metadata)
    write_archive(folder, name, tensors, metadata)


@contextlib.contextmanager
def damaged_copy(cut_off_run, folder, change, names=(NEWEST,)):
    """Copy the folder and change some checkpoints, which has to be told; yield what was told."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(cut_off_run[2], folder)
    for name in names:
        damage(folder, name, change)
    told = []
    with pytest.warns(UserWarning, match="is damaged and ignored") as caught:
        yield told
    told += [str(warning.message) for warning in caught]
    assert [text.split()[1] for text in told] == list(names)
    assert all(text.isprintable() and len(text) < 600 for text in told)


def passed_over(cut_off_run, folder, change):
    """Go on from the older checkpoint, as the newest is changed, until its next epoch is over."""
    make, _, _, second_epoch = cut_off_run
    with damaged_copy(cut_off_run, folder, change) as told, pytest.raises(CutOffError) as end:
        run(make(), folder, after=1)
    trained, weights_then = end.value.args
    assert trained == [1]
    assert torch.equal(weights_then, second_epoch)
    return told


def resumed(cut_off_run, folder, change, names=(NEWEST,)):
    """Resume from a copy of the folder in which some checkpoints are changed."""
    make, whole, *_ = cut_off_run
    with damaged_copy(cut_off_run, folder, change, names) as told:
        trainer = run(make(), folder)
    # Whatever was passed over, the run ends as if it had never been cut off.
    assert torch.equal(all_weights(trainer.average), all_weights(whole.average))
    assert [log["loss"] for log in trainer.history] == [log["loss"] for log in whole.history]
    return told


CHANGES = {
    "without values": lambda value: torch.zeros((), dtype=value.dtype),
    "empty": lambda value: torch.zeros(0, dtype=value.dtype),
    "too long": lambda value: torch.cat([value.reshape(-1)] * 2),
    "with another axis": lambda value: value[None],
    "of float64": lambda value: value.to(torch.float64),
    "of integers": lambda value: value.to(torch.int32),
    "not finite": lambda value: torch.full_like(value, math.nan),
    "infinite": lambda value: torch.full_like(value, -math.inf),
}


@settings(max_examples=15)
@given(st.data())
def test_a_tensor_of_another_shape_or_type_is_passed_over(cut_off_run, data):
    tensors, _ = read_archive(cut_off_run[2], NEWEST)
    name = data.draw(st.sampled_from(sorted(tensors)))
    kind = data.draw(st.sampled_from(sorted(CHANGES)))
    value = tensors[name]
    if not value.is_floating_point() and "finite" in kind:
        kind = "empty"
    if value.ndim == 0 and kind == "without values":
        kind = "of integers"
    if value.dtype == torch.float64 and kind == "of float64":
        kind = "empty"

    def change(tensors, metadata):
        tensors[name] = CHANGES[kind](value)

    resumed(cut_off_run, cut_off_run[2].parent / "copy", change)


def first(tensors, end):
    return next(name for name in tensors if name.endswith(end))


def remove_one(end):
    return lambda tensors, metadata: tensors.pop(first(tensors, end))


def set_one(end, value):
    def change(tensors, metadata):
        name = first(tensors, end)
        tensors[name] = torch.full_like(tensors[name], value)

    return change


def add(name):
    return lambda tensors, metadata: tensors.update({name: torch.zeros(3)})


@pytest.mark.parametrize(
    "change",
    [
        remove_one("generator"),
        remove_one("history"),
        remove_one(".exp_avg"),
        remove_one(".step"),
        remove_one("field.head.bias"),
        remove_one("best.head.bias"),
        add("optimizer.0.max_exp_avg_sq"),
        add("optimizer.9999.exp_avg"),
        add("optimizer.x.\x1b[2J"),
        add("optimizer."),
        add("field.head.scale"),
        add("other"),
        set_one(".step", 0.0),
        set_one(".step", -1.0),
        set_one(".step", 1e9),
        set_one(".exp_avg_sq", -1.0),
        set_one("generator", 0),
        set_one("generator", 255),
    ],
)
def test_tensors_that_no_run_has_are_passed_over(cut_off_run, tmp_path, change):
    resumed(cut_off_run, tmp_path / "copy", change)


@pytest.mark.parametrize(("left", "position"), [(624, 624), (600, 26), (1, 625), (2, 624)])
def test_a_generator_that_would_read_beyond_its_end_is_passed_over(
    cut_off_run, tmp_path, left, position
):
    def change(tensors, metadata):
        state = bytearray(tensors["generator"].numpy().tobytes())
        struct.pack_into("=i", state, 8, left)
        struct.pack_into("=Q", state, 16, position)
        tensors["generator"] = torch.frombuffer(state, dtype=torch.uint8)

    (text,) = resumed(cut_off_run, tmp_path / "copy", change)
    assert "the state of its generator is invalid" in text


NEVER = [None, "5", -1, 2**60, 10**400, [], {}, {"score": 1}, ["x" * 10**5]]
WRONG = {
    "n_steps": [*NEVER, True, 9.0],
    "n_restarts": [*NEVER, True, 3],
    "elapsed": [*NEVER, True, -0.5],
    "begun": [*NEVER, True, -0.5],
    "best": [*NEVER, True, 0.5],
    "finished": [*NEVER, 0, 0.0],
    "seed": [*NEVER, True, 5.0],
}


@pytest.mark.parametrize(("key", "i"), [(key, i) for key in WRONG for i in range(len(WRONG[key]))])
def test_numbers_that_no_run_has_are_passed_over(cut_off_run, tmp_path, key, i):
    def change(tensors, metadata):
        (metadata if key == "seed" else metadata["state"])[key] = WRONG[key][i]

    passed_over(cut_off_run, tmp_path / "copy", change)


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.clear(),
        lambda state: state.pop("n_steps"),
        lambda state: state.pop("best"),
        lambda state: state.pop("finished"),
        lambda state: state.update(more=1),
        lambda state: state.update({"\x1b[2J": 1}),
        lambda state: state.update(history=[]),
        lambda state: state.update(n_steps=1),
        lambda state: state["best"].update(score="high"),
        lambda state: state["best"].update(score=None),
        lambda state: state["best"].update(n_worse=-1),
        lambda state: state["best"].update(n_worse=3),
        lambda state: state["best"].pop("n_worse"),
    ],
)
def test_entries_that_no_run_has_are_passed_over(cut_off_run, tmp_path, change):
    passed_over(cut_off_run, tmp_path / "copy", lambda tensors, metadata: change(metadata["state"]))


@pytest.mark.parametrize("key", ["fingerprint", "seed", "state"])
@pytest.mark.parametrize("value", [None, [], [["images of X", "ab12"]], "x", 1.5])
def test_a_part_of_another_kind_is_passed_over(cut_off_run, tmp_path, key, value):
    passed_over(
        cut_off_run,
        tmp_path / "copy",
        lambda tensors, metadata: metadata.update({key: value}),
    )


# Columns: epoch, loss, image loss, label loss, learning rate, images, classification fraction,
# seconds, score.
@pytest.mark.parametrize(
    ("column", "value"),
    [
        (0, 2.0),
        (0, 1.5),
        (1, math.nan),
        (4, math.inf),
        (5, 0.0),
        (5, 7.5),
        (6, math.nan),
        (6, 1.5),
        (7, math.inf),
        (8, math.inf),
    ],
)
def test_a_history_that_no_run_has_is_passed_over(cut_off_run, tmp_path, column, value):
    def change(tensors, metadata):
        tensors["history"][0, column] = value

    passed_over(cut_off_run, tmp_path / "copy", change)


@pytest.mark.parametrize("n_epochs", [0, 4, 9])
def test_a_history_of_too_many_epochs_or_of_none_is_passed_over(cut_off_run, tmp_path, n_epochs):
    def change(tensors, metadata):
        history = tensors["history"][:1].repeat(n_epochs, 1)
        history[:, 0] = torch.arange(1, n_epochs + 1)
        tensors["history"] = history

    passed_over(cut_off_run, tmp_path / "copy", change)


def test_where_all_checkpoints_are_changed_the_run_begins_anew(cut_off_run, tmp_path):
    resumed(cut_off_run, tmp_path / "copy", remove_one(".exp_avg"), names=(NEWEST, OLDER))


def test_damaged_checkpoints_go_when_a_whole_one_is_there(cut_off_run, tmp_path):
    resumed(cut_off_run, tmp_path / "copy", remove_one("generator"), names=(NEWEST, OLDER))
    names = sorted(path.name for path in (tmp_path / "copy").glob("*.json"))
    assert names == ["checkpoint-0000003.json", "checkpoint-0000004.json"]


def test_a_checkpoint_as_it_was_written_is_resumed(cut_off_run, tmp_path):
    make, whole, original, _ = cut_off_run
    shutil.copytree(original, tmp_path / "copy")
    trainer = run(make(), tmp_path / "copy")
    assert trainer.history == [
        {**ours, "seconds": theirs["seconds"]}
        for ours, theirs in zip(whole.history, trainer.history, strict=True)
    ]


# Whole fits

RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (24, 8, 8), dtype=np.uint8)
Y = np.array(["a", "b", "c"] * 8)


def weights(classifier):
    return torch.cat([p.ravel() for p in classifier.model_.field.parameters()])


def fit(folder, make_classifier, **overrides):
    settings = {"max_epochs": 3, "checkpoint_every": 1, "checkpoint_dir": folder}
    return make_classifier(**{**settings, **overrides}).fit(X, Y)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_moments_that_are_too_small_for_their_weights_are_not_written_to(
    make_classifier, tmp_path, optimizer
):
    settings = {"optimizer": optimizer, "channels": 16}
    whole = fit(tmp_path, make_classifier, **settings)
    for path in tmp_path.glob("checkpoint-0000003*"):
        path.unlink()

    def shrink(tensors, metadata):
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                tensors[name] = torch.zeros((), dtype=value.dtype)

    damage(tmp_path, NEWEST, shrink)
    with pytest.warns(UserWarning, match=r"0000002 is damaged and ignored: it has optimizer\.\d"):
        again = fit(tmp_path, make_classifier, **settings)
    assert torch.equal(weights(whole), weights(again))


def test_another_seed_than_that_of_random_state_is_damage(tmp_path):
    whole = fit(tmp_path, tiny_classifier, early_stopping=True, validation_fraction=0.25)

    def change(tensors, metadata):
        metadata["seed"] += 1

    for name in (NEWEST, "checkpoint-0000003"):
        damage(tmp_path, name, change)
    with pytest.warns(UserWarning, match=r"000000[23] is damaged .* its seed is") as caught:
        again = fit(tmp_path, tiny_classifier, early_stopping=True, validation_fraction=0.25)
    assert len(caught) == 2
    assert torch.equal(weights(whole), weights(again))


def test_a_fit_without_a_seed_goes_on_from_the_checkpoint_before(tmp_path):
    fit(tmp_path, tiny_classifier, random_state=None)
    damage(tmp_path, "checkpoint-0000003", remove_one("generator"))
    seed = read_archive(tmp_path, NEWEST)[1]["seed"]
    with pytest.warns(UserWarning, match="0000003 is damaged"):
        fit(tmp_path, tiny_classifier, random_state=None)
    assert read_archive(tmp_path, "checkpoint-0000003")[1]["seed"] == seed


def test_a_damaged_checkpoint_of_the_calibration_is_passed_over(tmp_path, digits):
    settings = {"max_epochs": 3, "checkpoint_every": 1, "calibration": "temperature"}
    whole = tiny_classifier(**settings, checkpoint_dir=tmp_path).fit(*digits)
    damage(tmp_path / "calibration", "checkpoint-0000003", remove_one(".exp_avg"))
    with pytest.warns(UserWarning, match="0000003 is damaged"):
        again = tiny_classifier(**settings, checkpoint_dir=tmp_path).fit(*digits)
    assert again.model_.temperature == whole.model_.temperature


# Histories


def log(epoch, **changes):
    values = {"loss": 0.1, "image_loss": 1 / 3, "label_loss": 1e-300, "learning_rate": 3e-4}
    more = {"n_images": 2**40 + 1, "classification_fraction": 0.1, "seconds": 7e8}
    return {"epoch": epoch, **values, **more, **changes}


def test_a_history_comes_back_exactly():
    history = [log(1), log(2, validation_score=0.1 + 0.2), log(3, loss=5e-324)]
    assert history_from_tensor(history_as_tensor(history)) == history
    assert history_from_tensor(history_as_tensor([])) == []
    check_history(history)


@pytest.mark.parametrize(
    "history",
    [
        None,
        {"epoch": 1},
        [None],
        [[]],
        [{}],
        [log(2)],
        [log(1), log(1)],
        [log(True)],
        [log(1, loss="0")],
        [log(1, loss=math.nan)],
        [log(1, n_images=0)],
        [log(1, n_images=1.0)],
        [log(1, seconds=None)],
        [log(1, classification_fraction=1.5)],
        [log(1, validation_score=math.inf)],
        [log(1, more=1)],
    ],
)
def test_logs_that_no_epoch_has_are_refused(history):
    with pytest.raises(ArchiveError, match=r"its (history|log of epoch \d)"):
        check_history(history)


@pytest.mark.parametrize(
    "columns",
    [torch.zeros(3), torch.zeros(3, 8), torch.zeros(3, 7, dtype=torch.float64), torch.zeros(())],
)
def test_a_tensor_of_another_shape_is_no_history(columns):
    with pytest.raises(ArchiveError, match="its history is"):
        history_from_tensor(columns)


def test_a_history_of_any_length_fits_into_a_checkpoint(tmp_path, monkeypatch):
    # As plain data it takes more than 200 bytes an epoch.
    monkeypatch.setattr("sklearn_msf.persistence.archives.MAX_METADATA_BYTES", 2000)
    history = [log(epoch) for epoch in range(1, 101)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checkpoints = Checkpoints(tmp_path, 1, {}, seed=5)
        checkpoints.save(
            lambda: TrainingState({}, {"history": history}), n_epochs=100, finished=True
        )
        again = Checkpoints(tmp_path, 1, {}, seed=5).take_latest()
    assert again.metadata == {"history": history, "finished": True}
    assert not again.tensors
