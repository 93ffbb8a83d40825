import os
import time

import pytest
import torch

from sklearn_msf.exceptions import CheckpointMismatchError
from sklearn_msf.persistence.archives import ArchiveVersionError
from sklearn_msf.training.checkpoints import Checkpoints
from sklearn_msf.training.state import TrainingState

FINGERPRINT = {"learning_rate": 0.003, "images of X": "ab12"}


def open_checkpoints(folder, every=1, seed=5, **changes):
    return Checkpoints(folder, every, {**FINGERPRINT, **changes}, seed)


def save(checkpoints, *epochs, finished=False):
    for epoch in epochs:
        state = TrainingState({"w": torch.full((3,), float(epoch))}, {"n_steps": epoch})
        checkpoints.save(lambda state=state: state, n_epochs=epoch, finished=finished)


def names(folder):
    return sorted(path.stem for path in folder.glob("*.json"))


def test_a_new_folder_starts_a_new_run(tmp_path):
    checkpoints = open_checkpoints(tmp_path / "new", seed=5)
    assert checkpoints.take_latest() is None
    assert checkpoints.seed == 5


def test_the_newest_checkpoint_comes_back_with_its_seed(tmp_path):
    save(open_checkpoints(tmp_path, seed=5), 1, 2, 3)
    again = open_checkpoints(tmp_path, seed=99)
    tensors, metadata = again.take_latest()
    assert tensors["w"].tolist() == [3.0, 3.0, 3.0]
    assert metadata == {"n_steps": 3, "finished": False}
    assert again.seed == 5


def test_the_two_newest_checkpoints_are_kept(tmp_path):
    save(open_checkpoints(tmp_path), 8, 9, 10, 11)
    assert names(tmp_path) == ["checkpoint-0000010", "checkpoint-0000011"]
    assert len(list(tmp_path.iterdir())) == 4


def test_checkpoints_are_written_every_so_many_epochs_and_at_the_end(tmp_path):
    checkpoints = open_checkpoints(tmp_path, every=5)
    save(checkpoints, 1, 4, 5, 6)
    assert names(tmp_path) == ["checkpoint-0000005"]
    save(checkpoints, 7, finished=True)
    assert open_checkpoints(tmp_path).take_latest().metadata["finished"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.1}, r"learning_rate is 0.1 here and 0.003 there"),
        ({"images of X": "cd34"}, r"images of X is 'cd34' here and 'ab12' there"),
        ({"new_parameter": 1}, r"new_parameter is 1 here and None there"),
    ],
)
def test_checkpoints_of_another_run_are_refused_with_what_differs(tmp_path, changes, message):
    save(open_checkpoints(tmp_path), 1)
    with pytest.raises(CheckpointMismatchError, match=message):
        open_checkpoints(tmp_path, **changes)


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_a_truncated_checkpoint_falls_back_to_the_one_before(tmp_path, suffix):
    save(open_checkpoints(tmp_path), 1, 2)
    path = next(tmp_path.glob(f"checkpoint-0000002*{suffix}"))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.warns(UserWarning, match="checkpoint-0000002 is damaged"):
        checkpoints = open_checkpoints(tmp_path)
    assert checkpoints.take_latest().metadata["n_steps"] == 1


def test_where_every_checkpoint_is_damaged_the_run_starts_anew(tmp_path):
    save(open_checkpoints(tmp_path), 1)
    (tmp_path / "checkpoint-0000001.json").write_text("{}")
    with pytest.warns(UserWarning, match="damaged"):
        assert open_checkpoints(tmp_path).take_latest() is None


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path, monkeypatch):
    checkpoints = open_checkpoints(tmp_path)
    save(checkpoints, 1)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.warns(UserWarning, match=r"epoch 2 could not be written .*No space left") as caught:
        save(checkpoints, 2, 3)
    assert len(caught) == 1
    monkeypatch.undo()
    assert open_checkpoints(tmp_path).take_latest().metadata["n_steps"] == 1
    # Once there is room again checkpoints are written again.
    save(checkpoints, 4)
    assert open_checkpoints(tmp_path).take_latest().metadata["n_steps"] == 4


def test_a_new_run_beside_damaged_checkpoints_keeps_its_own(tmp_path):
    save(open_checkpoints(tmp_path), 95, 100)
    for path in tmp_path.glob("*.json"):
        path.write_text("{}")
    with pytest.warns(UserWarning, match="damaged"):
        checkpoints = open_checkpoints(tmp_path)
    save(checkpoints, 5)
    assert names(tmp_path) == ["checkpoint-0000005"]
    assert open_checkpoints(tmp_path).take_latest().metadata["n_steps"] == 5


def test_what_was_left_by_a_write_that_was_cut_off_is_cleaned_up(tmp_path):
    save(open_checkpoints(tmp_path), 1)
    weights = "checkpoint-0000002-0123456789abcdef.safetensors"
    for name in (f".{weights}.1234abcd.part", weights):
        (tmp_path / name).write_text("x")
        # Fresh files may belong to a process that is writing.
        os.utime(tmp_path / name, (time.time() - 90,) * 2)
    before = len(list(tmp_path.iterdir()))
    assert open_checkpoints(tmp_path).take_latest().metadata["n_steps"] == 1
    assert len(list(tmp_path.iterdir())) == before - 2


def test_a_full_disk_that_takes_the_weights_and_not_the_rest_leaves_nothing(tmp_path, monkeypatch):
    checkpoints = open_checkpoints(tmp_path)
    save(checkpoints, 1)
    before = sorted(path.name for path in tmp_path.iterdir())
    replace = os.replace

    def full(source, target):
        if str(target).endswith(".json"):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.warns(UserWarning, match="No space left"):
        save(checkpoints, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_checkpoints_of_another_format_version_are_not_written_over(tmp_path):
    save(open_checkpoints(tmp_path), 1)
    path = tmp_path / "checkpoint-0000001.json"
    path.write_text(path.read_text().replace('"format_version": 2', '"format_version": 3'))
    with pytest.raises(ArchiveVersionError, match="format version 3"):
        open_checkpoints(tmp_path)


def test_two_runs_that_begin_in_one_folder_do_not_mix(tmp_path):
    first, second = open_checkpoints(tmp_path), open_checkpoints(tmp_path, learning_rate=0.1)
    save(first, 1)
    with pytest.warns(UserWarning, match="holds checkpoints of another run: learning_rate"):
        save(second, 2, 3)
    assert open_checkpoints(tmp_path).take_latest().metadata["n_steps"] == 1


def test_other_files_in_the_folder_are_left_alone(tmp_path):
    (tmp_path / "notes.json").write_text("mine")
    (tmp_path / "checkpoint-1.json").write_text("mine too")
    save(open_checkpoints(tmp_path), 1, 2, 3)
    assert (tmp_path / "notes.json").read_text() == "mine"
    assert (tmp_path / "checkpoint-1.json").read_text() == "mine too"


def test_a_folder_that_cannot_be_written_to_is_named_before_training(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ValueError, match=r"checkpoint_dir='.*file' cannot be written to"):
        open_checkpoints(tmp_path / "file")


def test_opening_the_folder_of_another_run_takes_nothing_from_it(tmp_path):
    save(open_checkpoints(tmp_path), 1)
    unfinished = tmp_path / ".checkpoint-0000002-0123456789abcdef.safetensors.12ab34cd.part"
    unfinished.write_text("being written")
    with pytest.raises(CheckpointMismatchError):
        open_checkpoints(tmp_path, learning_rate=0.1)
    assert unfinished.exists()
