"""Several processes that write to one folder, stopped and continued in any order of their steps."""

import errno
import json
import os
import threading
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sklearn_msf.persistence import archives
from sklearn_msf.persistence.archives import (
    ArchiveError,
    read_archive,
    remove_archive,
    remove_leftovers,
    write_archive,
)
from sklearn_msf.persistence.whole_files import whole_file, write_file


class Turns:
    """Lets one of several threads make one step at a time; a step is a change of the folder."""

    def __init__(self, patch):
        self.condition = threading.Condition()
        self.waiting, self.running = set(), None
        for owner, name in (
            (os, "replace"),
            (os, "utime"),
            (Path, "unlink"),
            (archives, "_read_regular_file"),
        ):
            patch.setattr(owner, name, self.in_turn(getattr(owner, name)))
        patch.setattr(os, "fsync", lambda descriptor: None)

    def in_turn(self, function):
        def call(*arguments, **named):
            if threading.current_thread().name.startswith("writer"):
                self.wait()
            return function(*arguments, **named)

        return call

    def wait(self):
        me = threading.current_thread().name
        with self.condition:
            self.waiting.add(me)
            self.running = None
            self.condition.notify_all()
            self.condition.wait_for(lambda: self.running == me)
            self.waiting.discard(me)

    def run(self, writers, choices, after_step):
        """Run the writers; `choices` tells which of those that are left makes the next step."""
        failures = []

        def work(writer):
            self.wait()
            try:
                writer()
            except BaseException as error:
                failures.append(error)
            with self.condition:
                self.running = None
                self.condition.notify_all()

        threads = [
            threading.Thread(target=work, args=(writer,), name=f"writer {i}")
            for i, writer in enumerate(writers)
        ]
        for thread in threads:
            thread.start()
        with self.condition:
            self.condition.wait_for(lambda: len(self.waiting) == len(threads))
        choices = iter(choices)
        while self.waiting:
            left = sorted(self.waiting)
            with self.condition:
                self.running = left[next(choices, 0) % len(left)]
                self.condition.notify_all()
                self.condition.wait_for(lambda: self.running is None)
            after_step()
        for thread in threads:
            thread.join()
        assert not failures, failures


def content(folder):
    tensors, metadata = read_archive(folder, "model")
    return float(tensors["w"]), metadata["writer"]


def save(folder, value, writer):
    """As estimators are saved."""
    write_archive(folder, "model", {"w": torch.tensor(float(value))}, {"writer": writer})
    remove_leftovers(folder, "model")


@settings(max_examples=60)
@given(
    choices=st.lists(st.integers(0, 1), max_size=40),
    of_second=st.sampled_from([1, 2]),
    slow=st.booleans(),
)
def test_the_name_leads_to_a_whole_archive_whichever_writer_makes_the_next_step(
    tmp_path_factory, choices, of_second, slow
):
    folder = tmp_path_factory.mktemp("archive")
    save(folder, 0, "before")

    def is_whole():
        # The same weights may be gone for a moment, until one of their writers notices.
        if of_second == 2 and not slow:
            assert content(folder) in [(0, "before"), (1, "first"), (2, "second")]

    with pytest.MonkeyPatch.context() as patch:
        turns = Turns(patch)
        if slow:
            # Every writer takes so long that the others take its weights for a leftover.
            patch.setattr(archives, "is_fresh", lambda path: False)
        turns.run(
            [lambda: save(folder, 1, "first"), lambda: save(folder, of_second, "second")],
            choices,
            is_whole,
        )
    assert content(folder) in [(1, "first"), (of_second, "second")]


@settings(max_examples=40)
@given(choices=st.lists(st.integers(0, 2), max_size=60), slow=st.booleans())
def test_weights_that_come_back_are_not_deleted_by_those_who_saw_them_unused(
    tmp_path_factory, choices, slow
):
    folder = tmp_path_factory.mktemp("archive")
    save(folder, 1, "before")
    with pytest.MonkeyPatch.context() as patch:
        turns = Turns(patch)
        if slow:
            patch.setattr(archives, "is_fresh", lambda path: False)
        writers = [(2, "second"), (1, "first"), (2, "third")]
        turns.run([lambda w=w: save(folder, *w) for w in writers], choices, lambda: None)
    assert content(folder) in [(1.0, "first"), (2.0, "second"), (2.0, "third")]


@settings(max_examples=30)
@given(choices=st.lists(st.integers(0, 1), max_size=30), slow=st.booleans())
def test_an_archive_that_is_removed_while_it_is_written_is_whole_or_gone(
    tmp_path_factory, choices, slow
):
    folder = tmp_path_factory.mktemp("archive")
    save(folder, 1, "before")
    with pytest.MonkeyPatch.context() as patch:
        turns = Turns(patch)
        if slow:
            patch.setattr(archives, "is_fresh", lambda path: False)
        writers = [lambda: save(folder, 1, "after"), lambda: remove_archive(folder, "model")]
        turns.run(writers, choices, lambda: None)
    if (folder / "model.json").exists():
        assert content(folder) == (1, "after")


def test_a_writer_that_fails_leaves_the_same_weights_of_another(tmp_path, monkeypatch):
    save(tmp_path, 1, "before")
    replace = os.replace

    def full_after_another_writer(source, target):
        if str(target).endswith("model.json"):
            monkeypatch.undo()
            save(tmp_path, 2, "another")
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full_after_another_writer)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 2, "failing")
    assert content(tmp_path) == (2, "another")


# Unfinished files


def make_old(path):
    os.utime(path, (time.time() - 90,) * 2)


def unfinished_files(folder):
    return [path for path in folder.iterdir() if path.name.endswith(".part")]


def test_a_file_that_is_being_written_is_not_deleted_however_long_that_takes(tmp_path):
    with whole_file(tmp_path / "model.json") as file:
        file.write(b"the first half")
        file.flush()
        (unfinished,) = unfinished_files(tmp_path)
        make_old(unfinished)
        remove_leftovers(tmp_path, "model")
        assert unfinished.exists()
        file.write(b" and the second")
    assert (tmp_path / "model.json").read_bytes() == b"the first half and the second"
    assert not unfinished_files(tmp_path)


def test_a_fresh_unfinished_file_is_left_alone_and_an_old_one_goes(tmp_path):
    fresh, old = (tmp_path / f".model.json.{i}2ab34cd.part" for i in (1, 2))
    fresh.touch()
    old.touch()
    make_old(old)
    remove_leftovers(tmp_path, "model")
    assert unfinished_files(tmp_path) == [fresh]


@pytest.mark.parametrize(
    "name",
    [
        ".model.json.thesis.part",
        ".model.json.12ab.part",
        ".model-notes.12ab34cd.part",
        ".model.12ab34cd.part",
        "model-2024.safetensors",
        "model-0123456789abcdef.safetensors.bak",
    ],
)
def test_names_that_are_not_exactly_those_of_leftovers_stay(tmp_path, name):
    (tmp_path / name).write_text("of the user")
    make_old(tmp_path / name)
    save(tmp_path, 1, "one")
    remove_leftovers(tmp_path, "model")
    assert (tmp_path / name).read_text() == "of the user"


def test_leftovers_are_not_followed_to_where_a_link_leads(tmp_path):
    thesis = tmp_path / "thesis.tex"
    thesis.write_text("all of it")
    make_old(thesis)
    link = tmp_path / ".model.json.12ab34cd.part"
    link.symlink_to(thesis)
    if os.utime in os.supports_follow_symlinks:
        os.utime(link, (time.time() - 90,) * 2, follow_symlinks=False)
    remove_leftovers(tmp_path, "model")
    # A link is nothing that we leave.
    assert link.is_symlink()
    assert thesis.read_text() == "all of it"


def test_a_file_written_by_two_processes_is_that_of_one_of_them(tmp_path):
    with whole_file(tmp_path / "x") as first:
        first.write(b"first")
        write_file(tmp_path / "x", b"second")
    assert (tmp_path / "x").read_bytes() == b"first"
    assert not unfinished_files(tmp_path)


# What opening refuses


def test_plain_data_that_are_too_large_to_open_are_refused_before_anything_is_replaced(
    tmp_path, monkeypatch
):
    save(tmp_path, 1, "before")
    names = sorted(path.name for path in tmp_path.iterdir())
    monkeypatch.setattr(archives, "MAX_METADATA_BYTES", 2000)
    with pytest.raises(
        ArchiveError, match=r"model\.json is not written: .* 3,\d\d\d bytes, and at most 2,000"
    ):
        save(tmp_path, 2, "x" * 3000)
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert content(tmp_path) == (1, "before")


def test_plain_data_of_the_largest_size_come_back(tmp_path, monkeypatch):
    save(tmp_path, 1, "x")
    largest = (tmp_path / "model.json").stat().st_size + 99
    monkeypatch.setattr(archives, "MAX_METADATA_BYTES", largest)
    save(tmp_path, 1, "x" * 100)
    assert content(tmp_path) == (1, "x" * 100)
    with pytest.raises(ArchiveError, match="is not written"):
        save(tmp_path, 1, "x" * 101)


# Reading


def edit_weights(folder, **changes):
    path = folder / "model.json"
    document = json.loads(path.read_text())
    document["weights"].update(changes)
    path.write_text(json.dumps(document))


@pytest.mark.parametrize("n_bytes", [10**12, 10**18, 10**30, 2**63, -1, True, 1.0, "9", None])
def test_an_absurd_size_of_the_weights_is_refused(tmp_path, n_bytes):
    save(tmp_path, 1, "one")
    edit_weights(tmp_path, n_bytes=n_bytes)
    with pytest.raises(ArchiveError, match=r"bytes instead of|has n_bytes="):
        read_archive(tmp_path, "model")


# What Linux and macOS have.
OPEN_FILES = Path("/dev/fd")


def n_open_files():
    return len(os.listdir(OPEN_FILES))


@pytest.mark.skipif(not OPEN_FILES.is_dir(), reason="this system lists no open files")
@pytest.mark.parametrize("pattern", ["model.json", "model-*.safetensors"])
def test_a_folder_in_the_place_of_a_file_is_refused_and_leaves_nothing_open(tmp_path, pattern):
    save(tmp_path, 1, "one")
    (path,) = tmp_path.glob(pattern)
    path.unlink()
    path.mkdir()
    before = n_open_files()
    for _ in range(3):
        with pytest.raises(ArchiveError, match="is not a regular file"):
            read_archive(tmp_path, "model")
    assert n_open_files() == before


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_a_pipe_in_the_place_of_a_file_is_refused(tmp_path):
    save(tmp_path, 1, "one")
    (tmp_path / "model.json").unlink()
    os.mkfifo(tmp_path / "model.json")
    with pytest.raises(ArchiveError, match="is not a regular file"):
        read_archive(tmp_path, "model")


def test_names_from_a_file_reach_no_terminal_as_they_are():
    found = {"\x1b[2Jgone\nand more": torch.zeros(1), "x" * 5000: torch.zeros(1)}
    with pytest.raises(ArchiveError) as caught:
        archives.check_tensors(found, {}, "The model")
    message = str(caught.value)
    assert message.isprintable()
    assert r"'\x1b[2Jgone\nand more'" in message
    assert len(message) < 400


def test_what_safetensors_says_of_a_file_is_quoted(tmp_path):
    save(tmp_path, 1, "one")
    header = b'{"w":{"dtype":"\x1b[2J","shape":[],"data_offsets":[0,4]}}'
    data = len(header).to_bytes(8, "little") + header + bytes(4)
    import hashlib

    digest = hashlib.sha256(data).hexdigest()
    name = f"model-{digest[:16]}.safetensors"
    (tmp_path / name).write_bytes(data)
    edit_weights(tmp_path, file=name, sha256=digest, n_bytes=len(data))
    with pytest.raises(ArchiveError, match="are not safetensors") as caught:
        read_archive(tmp_path, "model")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("version", [True, "2", None, 2.5, [2]])
def test_a_version_that_no_version_has_written_is_damage(tmp_path, version):
    save(tmp_path, 1, "one")
    path = tmp_path / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": version}))
    with pytest.raises(ArchiveError, match="format version") as caught:
        read_archive(tmp_path, "model")
    assert type(caught.value) is ArchiveError


def test_what_a_killed_writer_left_goes_when_the_file_is_written_again(tmp_path):
    fresh, old, other = (
        tmp_path / f".{name}.2ab34cd5.part" for name in ("new.npy", "images.npy", "other.npy")
    )
    for path in (fresh, old, other):
        path.touch()
    for path in (old, other):
        make_old(path)
    for name in ("new.npy", "images.npy"):
        with whole_file(tmp_path / name) as file:
            file.write(b"all")
    assert sorted(unfinished_files(tmp_path)) == sorted([fresh, other])
