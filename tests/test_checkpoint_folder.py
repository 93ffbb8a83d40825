"""The folder of checkpoints: what else lies there, who else writes there, what runs differ in."""

import datetime
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conftest import tiny_autoencoder, tiny_latent_classifier
from test_checkpoints import FINGERPRINT, names, open_checkpoints, save
from test_run_fingerprint import X, Y, cut_off, make, weights

from sklearn_msf.exceptions import CheckpointMismatchError
from sklearn_msf.latent.autoencoder import ImageAutoencoder
from sklearn_msf.latent.autoencoder_io import read_autoencoder, write_autoencoder
from sklearn_msf.persistence.archives import read_archive, write_archive
from sklearn_msf.training import checkpoints as checkpoints_module
from sklearn_msf.training.checkpoints import Checkpoints, stored_fingerprint

# Files of others


@pytest.mark.parametrize("name", [".checkpoint-probe", "checkpoint-probe", "probe"])
def test_opening_a_folder_empties_nothing_and_follows_no_link(tmp_path, name):
    thesis = tmp_path / "thesis.tex"
    thesis.write_text("all of it")
    run = tmp_path / "run"
    run.mkdir()
    (run / name).symlink_to(thesis)
    (run / "own").write_text("mine")
    open_checkpoints(run)
    assert thesis.read_text() == "all of it"
    assert sorted(path.name for path in run.iterdir()) == sorted([name, "own"])


def test_runs_can_open_a_folder_at_the_same_moment(tmp_path):
    checkpoints = open_checkpoints(tmp_path)
    with ThreadPoolExecutor(4) as executor:
        list(executor.map(lambda _: checkpoints._prepare(), range(400)))
    assert not list(tmp_path.iterdir())


def test_a_folder_with_the_name_of_a_checkpoint_is_passed_over(tmp_path):
    save(open_checkpoints(tmp_path), 1, 2)
    (tmp_path / "checkpoint-0000009.json").mkdir()
    with pytest.warns(UserWarning, match="0000009 is damaged and ignored: .* not a regular file"):
        checkpoints = open_checkpoints(tmp_path)
    assert checkpoints.take_latest().metadata["n_steps"] == 2
    save(checkpoints, 3, 4)
    assert names(tmp_path)[:2] == ["checkpoint-0000003", "checkpoint-0000004"]


def test_a_checkpoint_that_vanishes_while_the_folder_is_read_is_passed_over(tmp_path, monkeypatch):
    save(open_checkpoints(tmp_path), 1, 2)
    read = checkpoints_module.read_archive

    def removed_by_another_process(folder, name):
        if name.endswith("2"):
            (folder / f"{name}.json").unlink()
        return read(folder, name)

    monkeypatch.setattr(checkpoints_module, "read_archive", removed_by_another_process)
    assert open_checkpoints(tmp_path).take_latest().metadata["n_steps"] == 1


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    def refused(folder):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(checkpoints_module, "_names", refused)
    with pytest.raises(ValueError, match=r"checkpoint_dir='.*' cannot be read: .*denied"):
        open_checkpoints(tmp_path)
    assert stored_fingerprint(tmp_path) == {}


def test_names_of_parameters_from_a_file_are_quoted(tmp_path):
    save(open_checkpoints(tmp_path, **{"\x1b[2J": 1}), 1)
    with pytest.raises(CheckpointMismatchError, match=r"'\\x1b\[2J' is None here and 1 there"):
        open_checkpoints(tmp_path)


# Epochs


def test_epochs_of_eight_digits_come_after_those_of_seven(tmp_path):
    checkpoints = open_checkpoints(tmp_path)
    save(checkpoints, 9_999_998, 9_999_999, 10_000_000)
    assert names(tmp_path) == ["checkpoint-10000000", "checkpoint-9999999"]
    save(checkpoints, 10_000_001, 123_456_789)
    assert names(tmp_path) == ["checkpoint-10000001", "checkpoint-123456789"]
    assert open_checkpoints(tmp_path).take_latest().metadata["n_steps"] == 123_456_789
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize(
    "name",
    [
        "checkpoint-00000010",
        "checkpoint-\u0660\u0660\u0660\u0660\u0660\u0660\u0661",
        "checkpoint-000001",
    ],
)
def test_a_number_that_is_written_otherwise_is_no_epoch(tmp_path, name):
    (tmp_path / f"{name}.json").write_text("of the user")
    save(open_checkpoints(tmp_path), 1, 2, 3)
    assert (tmp_path / f"{name}.json").read_text() == "of the user"


def test_a_checkpoint_that_is_too_large_to_read_is_not_written(tmp_path, monkeypatch):
    checkpoints = open_checkpoints(tmp_path)
    save(checkpoints, 1, 2)
    monkeypatch.setattr("sklearn_msf.persistence.archives.MAX_METADATA_BYTES", 100)
    with pytest.warns(UserWarning, match="epoch 3 could not be written .* at most 100 are read"):
        save(checkpoints, 3, 4)
    monkeypatch.undo()
    assert open_checkpoints(tmp_path).take_latest().metadata["n_steps"] == 2


# Two processes with one folder


def test_two_processes_of_one_run_leave_whole_checkpoints(tmp_path):
    first, second = open_checkpoints(tmp_path), open_checkpoints(tmp_path)
    save(first, 1, 2, 3)
    # The second is behind, and takes nothing away that is newer.
    save(second, 1, 2)
    assert open_checkpoints(tmp_path).take_latest().metadata["n_steps"] == 3
    save(second, 3, 4)
    save(first, 4, 5)
    for name in names(tmp_path):
        read_archive(tmp_path, name)
    assert open_checkpoints(tmp_path).take_latest().metadata["n_steps"] == 5


def test_two_processes_with_other_seeds_do_not_mix(tmp_path):
    first, second = open_checkpoints(tmp_path, seed=1), open_checkpoints(tmp_path, seed=2)
    save(first, 1)
    with pytest.warns(UserWarning, match=r"another run, which has another seed"):
        save(second, 1, 2)
    latest = open_checkpoints(tmp_path, seed=3)
    assert latest.seed == 1
    assert latest.take_latest().metadata["n_steps"] == 1


def test_a_damaged_checkpoint_of_another_run_does_not_stop_this_one(tmp_path):
    save(open_checkpoints(tmp_path), 1)
    (tmp_path / "checkpoint-0000009.json").write_text("{")
    with pytest.warns(UserWarning, match="0000009 is damaged"):
        checkpoints = Checkpoints(tmp_path, 1, FINGERPRINT, 7)
    save(checkpoints, 2)
    assert names(tmp_path) == ["checkpoint-0000001", "checkpoint-0000002"]


# What runs differ in


def test_a_run_goes_on_in_the_precision_that_it_began_with(tmp_path, monkeypatch, make_classifier):
    settings = {"make_classifier": make_classifier, "early_stopping": True}
    settings |= {"validation_fraction": 0.25}
    whole = make(**settings, precision="bfloat16").fit(X, Y)
    monkeypatch.setattr("sklearn_msf.nn.precision._bfloat16_speed_up", lambda: 2.0)
    cut_off(make(tmp_path, **settings, precision="auto"), monkeypatch, after=3)
    # Another process measures another speed.
    monkeypatch.setattr("sklearn_msf.nn.precision._bfloat16_speed_up", lambda: 0.5)
    resumed = make(tmp_path, **settings, precision="auto").fit(X, Y)
    assert torch.equal(weights(whole), weights(resumed))
    assert resumed.precision == "auto"
    with pytest.raises(CheckpointMismatchError, match="precision is 'float32' here and 'bfloat16'"):
        make(tmp_path, **settings, precision="float32").fit(X, Y)


@pytest.mark.parametrize("precision", ["auto", "float16", None, ["float32"], {"a": 1}])
def test_a_precision_that_is_none_is_not_taken_from_a_checkpoint(tmp_path, precision):
    make(tmp_path).fit(X, Y)
    for name in names(tmp_path):
        tensors, metadata = read_archive(tmp_path, name)
        metadata["fingerprint"]["precision"] = precision
        write_archive(tmp_path, name, tensors, metadata)
    with pytest.raises(CheckpointMismatchError, match="precision is '(float32|bfloat16)' here"):
        make(tmp_path, precision="auto").fit(X, Y)


def test_a_weight_of_a_class_that_y_lacks_is_no_part_of_the_run(tmp_path):
    of_others = dict.fromkeys(set(Y.tolist()) - {"a"}, 1.0)
    whole = make(class_weight={"a": 2.0, **of_others}).fit(X, Y)
    fitted = make(tmp_path, class_weight={"a": 2.0, "absent": 3.0, **of_others}).fit(X, Y)
    assert torch.equal(weights(whole), weights(fitted))
    assert len(names(tmp_path)) == 2
    # The weights of the classes are those of the same run.
    make(tmp_path, class_weight={"a": 2.0, **of_others}).fit(X, Y)
    with pytest.raises(CheckpointMismatchError, match="class_weight is"):
        make(tmp_path, class_weight={"a": 3.0}).fit(X, Y)


def test_weights_of_classes_that_are_dates_have_checkpoints(tmp_path):
    days = np.array(["2020-01-01", "2020-01-02", "2020-01-03"], dtype="datetime64[D]")
    y = days[np.arange(24) % 3]
    make(tmp_path, class_weight={datetime.date(2020, 1, 1): 2.0}).fit(X, y)
    assert names(tmp_path) == ["checkpoint-0000004", "checkpoint-0000006"]


class Resized(torch.nn.Module):
    """An autoencoder of a user's own, with attributes that are no plain data."""

    def __init__(self, *choices):
        super().__init__()
        self.choices = choices
        self.config = {"hook": choices}

    def encode(self, images):
        return torch.nn.functional.avg_pool2d(images, 4)

    def decode(self, latents):
        return latents.repeat_interleave(4, 2).repeat_interleave(4, 3)


def digest_of(*choices):
    return ImageAutoencoder(Resized(*choices)).fingerprint()[0]


def test_where_an_attribute_lies_in_memory_does_not_matter():
    assert digest_of(object(), [object()], {"a": object()}) == digest_of(
        object(), [object()], {"a": object()}
    )
    assert digest_of(lambda: 0) == digest_of(lambda: 0)


def test_plain_attributes_of_an_autoencoder_matter():
    digests = {
        digest_of(*choices) for choices in [(1,), (2,), ("2",), (2, object()), (3, object())]
    }
    assert len(digests) == 5


def test_a_run_with_a_module_of_ones_own_goes_on(tmp_path, monkeypatch):
    settings = {"make_classifier": tiny_latent_classifier, "checkpoint_every": 2}
    cut_off(make(tmp_path, autoencoder=Resized(lambda: 0), **settings), monkeypatch, after=3)
    resumed = make(tmp_path, autoencoder=Resized(lambda: 0), **settings).fit(X, Y)
    whole = make(autoencoder=Resized(lambda: 0), **settings).fit(X, Y)
    assert torch.equal(weights(whole), weights(resumed))


# The autoencoder of a run


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors, metadata: metadata.update(autoencoder=None),
        lambda tensors, metadata: metadata.pop("autoencoder"),
        lambda tensors, metadata: metadata["autoencoder"].pop("config"),
        lambda tensors, metadata: metadata["autoencoder"].update(config={}),
        lambda tensors, metadata: metadata["autoencoder"].update({"class": ["x"]}),
        lambda tensors, metadata: metadata["autoencoder"]["config"].update(surprise=1),
        lambda tensors, metadata: tensors.popitem(),
        lambda tensors, metadata: tensors.update({next(iter(tensors)): torch.zeros(())}),
    ],
)
def test_a_changed_autoencoder_beside_the_checkpoints_is_passed_over(tmp_path, change):
    write_autoencoder(tmp_path, "key", ImageAutoencoder(tiny_autoencoder()))
    assert read_autoencoder(tmp_path, "key") is not None
    assert read_autoencoder(tmp_path, "another key") is None
    tensors, metadata = read_archive(tmp_path, "autoencoder-key")
    change(tensors, metadata)
    write_archive(tmp_path, "autoencoder-key", tensors, metadata)
    with pytest.warns(UserWarning, match="The autoencoder in .* is damaged and ignored"):
        assert read_autoencoder(tmp_path, "key") is None


def test_autoencoders_of_several_runs_do_not_replace_each_other(tmp_path):
    first, second = ImageAutoencoder(tiny_autoencoder()), ImageAutoencoder(tiny_autoencoder())
    write_autoencoder(tmp_path, "first", first)
    write_autoencoder(tmp_path, "second", second)
    for key, written in (("first", first), ("second", second)):
        assert read_autoencoder(tmp_path, key).fingerprint()[0] == written.fingerprint()[0]


def test_an_autoencoder_beside_the_checkpoints_is_never_asked_from_the_hub(tmp_path, monkeypatch):
    # What is no exception of the usual kind is not taken for a damaged file.
    asked = "sklearn_msf.latent.autoencoder_io.open_hub_autoencoder"
    monkeypatch.setattr(asked, lambda *arguments, **keywords: pytest.fail("asked"))
    named = {"kind": "hub", "id": "some/body", "revision": "0" * 40}
    write_archive(tmp_path, "autoencoder-key", {}, {"key": "key", "autoencoder": named})
    with pytest.warns(UserWarning, match="is damaged and ignored"):
        assert read_autoencoder(tmp_path, "key") is None


def test_a_file_of_the_user_is_not_taken_for_a_checkpoint(tmp_path):
    (tmp_path / "checkpoint-notes.json").write_text("{}")
    assert not open_checkpoints(tmp_path).holds_a_state
    save(open_checkpoints(tmp_path), 1)
    assert open_checkpoints(tmp_path).holds_a_state
