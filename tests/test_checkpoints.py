import pytest
import torch

from sklearn_msf.checkpoints import CheckpointMismatchError, Checkpoints
from sklearn_msf.states import TrainingState

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
    assert checkpoints.latest() is None
    assert checkpoints.seed == 5


def test_the_newest_checkpoint_comes_back_with_its_seed(tmp_path):
    save(open_checkpoints(tmp_path, seed=5), 1, 2, 3)
    again = open_checkpoints(tmp_path, seed=99)
    tensors, document = again.latest()
    assert tensors["w"].tolist() == [3.0, 3.0, 3.0]
    assert document == {"n_steps": 3, "finished": False}
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
    assert open_checkpoints(tmp_path).latest().document["finished"]


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
    assert checkpoints.latest().document["n_steps"] == 1


def test_where_every_checkpoint_is_damaged_the_run_starts_anew(tmp_path):
    save(open_checkpoints(tmp_path), 1)
    (tmp_path / "checkpoint-0000001.json").write_text("{}")
    with pytest.warns(UserWarning, match="damaged"):
        assert open_checkpoints(tmp_path).latest() is None


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
    assert open_checkpoints(tmp_path).latest().document["n_steps"] == 1
    # Once there is room again checkpoints are written again.
    save(checkpoints, 4)
    assert open_checkpoints(tmp_path).latest().document["n_steps"] == 4


def test_other_files_in_the_folder_are_left_alone(tmp_path):
    (tmp_path / "notes.json").write_text("mine")
    (tmp_path / "checkpoint-1.json").write_text("mine too")
    save(open_checkpoints(tmp_path), 1, 2, 3)
    assert (tmp_path / "notes.json").read_text() == "mine"
    assert (tmp_path / "checkpoint-1.json").read_text() == "mine too"
