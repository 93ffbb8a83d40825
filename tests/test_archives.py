import json
import os
import time

import pytest
import torch

from sklearn_msf.persistence.archives import (
    ArchiveError,
    check_tensors,
    read_archive,
    remove_archive,
    remove_leftovers,
    write_archive,
)
from sklearn_msf.persistence.whole_files import write_file

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b.c": torch.tensor(3), "bits": torch.tensor([1])}


@pytest.fixture
def archive(tmp_path):
    write_archive(tmp_path, "model", TENSORS, {"key": [1, "two", None]})
    return tmp_path


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def edit_json(folder, **changes):
    path = folder / "model.json"
    content = json.loads(path.read_text())
    content.update(changes)
    path.write_text(json.dumps(content))


def weights_file(folder):
    return next(folder.glob("*.safetensors"))


def test_an_archive_comes_back_as_it_was(archive):
    tensors, metadata = read_archive(archive, "model")
    assert metadata == {"key": [1, "two", None]}
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)


def test_values_survive_to_the_last_bit_in_any_layout(tmp_path):
    weights = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    write_archive(tmp_path, "model", {"w": weights}, {})
    assert torch.equal(read_archive(tmp_path, "model")[0]["w"], weights)


def test_an_archive_is_two_files_and_a_new_one_takes_their_place(archive):
    assert len(files(archive)) == 2
    write_archive(archive, "model", {"a": torch.zeros(1)}, {})
    assert len(files(archive)) == 2
    assert read_archive(archive, "model")[1] == {}


def test_removing_an_archive_leaves_others_alone(archive):
    write_archive(archive, "model-2", TENSORS, {})
    remove_archive(archive, "model")
    assert [name[:7] for name in files(archive)] == ["model-2", "model-2"]


def test_a_failed_write_leaves_the_archive_before(archive, monkeypatch):
    before = files(archive)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_archive(archive, "model", {"a": torch.ones(9)}, {})
    assert files(archive) == before
    assert read_archive(archive, "model")[1] == {"key": [1, "two", None]}


def test_a_write_cut_off_before_the_json_file_leaves_the_archive_before(archive, monkeypatch):
    replace = os.replace

    def only_weights(source, target):
        if str(target).endswith(".json"):
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", only_weights)
    with pytest.raises(KeyboardInterrupt):
        write_archive(archive, "model", {"a": torch.ones(9)}, {})
    monkeypatch.undo()
    assert read_archive(archive, "model")[1] == {"key": [1, "two", None]}
    # What was left over goes with the next write.
    write_archive(archive, "model", {"a": torch.ones(1)}, {})
    assert len(files(archive)) == 2


def test_a_file_is_written_as_a_whole(tmp_path):
    write_file(tmp_path / "x", b"data")
    assert files(tmp_path) == ["x"]


def test_a_missing_archive_is_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_archive(tmp_path, "model")


@pytest.mark.parametrize("text", ["", "{", "null", "[1]", "[" * 100_000, "\x00", '{"format": 1}'])
def test_json_that_is_none_is_refused(archive, text):
    (archive / "model.json").write_text(text)
    with pytest.raises(ArchiveError, match=r"model\.json"):
        read_archive(archive, "model")


@pytest.mark.parametrize("version", [0, 1, 3, None, "2"])
def test_another_format_version_is_refused(archive, version):
    edit_json(archive, format_version=version)
    with pytest.raises(ArchiveError, match="format version"):
        read_archive(archive, "model")


@pytest.mark.parametrize(
    "file", ["/etc/passwd", "../model.safetensors", "model.pkl", "", None, 7, "model.json"]
)
def test_weights_that_lie_elsewhere_are_refused(archive, file):
    weights = json.loads((archive / "model.json").read_text())["weights"]
    edit_json(archive, weights={**weights, "file": file})
    with pytest.raises(ArchiveError, match="not beside it"):
        read_archive(archive, "model")


def test_weights_that_are_missing_are_named(archive):
    weights_file(archive).unlink()
    with pytest.raises(ArchiveError, match=r"safetensors is missing"):
        read_archive(archive, "model")


def test_any_truncation_of_the_weights_is_noticed(archive):
    path = weights_file(archive)
    content = path.read_bytes()
    for n_bytes in range(len(content)):
        path.write_bytes(content[:n_bytes])
        with pytest.raises(ArchiveError, match="cut off"):
            read_archive(archive, "model")


def test_changed_weights_are_noticed(archive):
    path = weights_file(archive)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(ArchiveError, match="another digest"):
        read_archive(archive, "model")


def test_weights_of_another_archive_are_noticed(archive, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    write_archive(other, "model", {"a": torch.zeros(2, 3), "b.c": torch.tensor(3)}, {})
    weights_file(archive).write_bytes(weights_file(other).read_bytes())
    with pytest.raises(ArchiveError, match=r"cut off|digest"):
        read_archive(archive, "model")


def test_fitting_weights_pass():
    check_tensors(dict(TENSORS), dict(TENSORS), "The model")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": torch.zeros(3, 2)}, r"a as torch.float32 of shape \(3, 2\)"),
        ({"a": torch.zeros(2, 3, dtype=torch.float64)}, "a as torch.float64"),
        ({"a": torch.full((2, 3), torch.nan)}, "values in a that are not finite"),
        ({"a": torch.full((2, 3), torch.inf)}, "values in a that are not finite"),
        ({"new": torch.zeros(1)}, "1 are unknown"),
    ],
)
def test_weights_that_do_not_fit_are_named(change, message):
    with pytest.raises(ArchiveError, match=message):
        check_tensors({**TENSORS, **change}, TENSORS, "The model")


def test_missing_weights_are_named():
    with pytest.raises(ArchiveError, match=r"1 weights are missing \(a\)"):
        check_tensors({key: TENSORS[key] for key in ("b.c", "bits")}, TENSORS, "The model")


def test_a_reader_that_meets_a_writer_gets_the_new_archive(archive, monkeypatch):
    from sklearn_msf.persistence import archives

    read, calls = archives._checked_content, []

    def overtaken(path):
        content = read(path)
        if not calls:
            write_archive(archive, "model", {"new": torch.ones(2)}, {"version": 2})
        calls.append(path)
        return content

    monkeypatch.setattr(archives, "_checked_content", overtaken)
    tensors, metadata = read_archive(archive, "model")
    assert metadata == {"version": 2}
    assert tensors["new"].tolist() == [1.0, 1.0]


def test_leftovers_are_those_of_cut_off_writes_only(archive):
    kept = files(archive)
    orphan = archive / "model-0123456789abcdef.safetensors"
    unfinished = archive / ".other-1.json.12ab34cd.part"
    for path in (orphan, unfinished):
        path.write_text("x")
        os.utime(path, (time.time() - 90,) * 2)
    remove_leftovers(archive, "other-[0-9]")
    assert files(archive) == sorted([*kept, orphan.name])
    remove_leftovers(archive, "gone")
    assert orphan.exists()


def test_a_change_of_the_metadata_is_noticed(archive):
    edit_json(archive, metadata={"key": [1, "two", 0]})
    with pytest.raises(ArchiveError, match=r"model\.json was changed"):
        read_archive(archive, "model")
