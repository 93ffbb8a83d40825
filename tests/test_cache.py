import errno
import os
import tempfile
import time
import weakref

import numpy as np
import pytest
import torch

from sklearn_msf.latent import cache
from sklearn_msf.latent.cache import keep_latents

SHAPE = (5, 2, 3, 4, 4)
N_BYTES = int(np.prod(SHAPE)) * 2
# SHA-256, behind the latents.
N_DIGEST_BYTES = 32
VALUES = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).half()


def keep(fills, folder=None, max_bytes=0, fingerprint="0f" * 8):
    def fill(latents):
        fills.append(len(latents))
        latents.copy_(VALUES)

    return keep_latents(
        SHAPE, fill, fingerprint=lambda: fingerprint, folder=folder, max_bytes=max_bytes
    )


def test_few_latents_stay_in_memory(tmp_path):
    latents = keep([], folder=tmp_path, max_bytes=N_BYTES)
    assert torch.equal(latents, VALUES)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("named", [True, False])
def test_many_latents_are_written_to_a_file(tmp_path, named, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    latents = keep([], folder=tmp_path if named else None, max_bytes=N_BYTES - 1)
    assert torch.equal(latents, VALUES)
    assert torch.equal(latents.flatten(0, 1)[torch.tensor([9, 0])], VALUES.flatten(0, 1)[[9, 0]])
    # On Windows a file without a name is listed until it is closed.
    del latents
    assert [path.stat().st_size for path in tmp_path.iterdir()] == [
        N_BYTES + N_DIGEST_BYTES
    ] * named


def test_a_run_that_goes_on_finds_its_latents(tmp_path):
    fills = []
    keep(fills, folder=tmp_path)
    assert torch.equal(keep(fills, folder=tmp_path), VALUES)
    assert len(fills) == 1


def test_latents_of_something_else_are_not_reused_and_go(tmp_path):
    fills = []
    keep(fills, folder=tmp_path, fingerprint="a" * 16)
    keep(fills, folder=tmp_path, fingerprint="b" * 16)
    assert len(fills) == 2
    assert [path.name for path in tmp_path.iterdir()] == [f"latents-{'b' * 16}.bin"]


def test_a_file_of_another_length_is_not_reused(tmp_path):
    fills = []
    keep(fills, folder=tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-2])
    assert torch.equal(keep(fills, folder=tmp_path), VALUES)
    assert len(fills) == 2


def test_a_failure_leaves_nothing(tmp_path):
    def fill(latents):
        latents.zero_()
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        keep_latents(SHAPE, fill, fingerprint=lambda: "0f" * 8, folder=tmp_path, max_bytes=0)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told_before_anything_is_computed(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    fills = []
    for folder, named in ((tmp_path, tmp_path), (None, tempfile.gettempdir())):
        with pytest.raises(OSError, match=r"No space left .* MiB .*cache_bytes") as caught:
            keep(fills, folder=folder)
        assert repr(str(named)) in str(caught.value)
        assert caught.value.errno == errno.ENOSPC
    assert not fills
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("at_once", [7, N_BYTES + N_DIGEST_BYTES, 2**22])
def test_systems_without_posix_fallocate_write_the_file_out_first(tmp_path, monkeypatch, at_once):
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    monkeypatch.setattr(cache, "_ZEROS_AT_ONCE", at_once)
    sizes = []

    def fill(latents):
        (unfinished,) = tmp_path.iterdir()
        sizes.append(unfinished.stat().st_size)
        latents.copy_(VALUES)

    name = "0f" * 8
    latents = keep_latents(SHAPE, fill, fingerprint=lambda: name, folder=tmp_path, max_bytes=0)
    assert sizes == [N_BYTES + N_DIGEST_BYTES]
    assert torch.equal(latents, VALUES)
    assert torch.equal(keep([], folder=tmp_path), VALUES)


@pytest.mark.parametrize("can_be_mapped", [True, False])
def test_a_file_is_mapped_while_it_gets_its_name_only_where_it_can(
    tmp_path, monkeypatch, can_be_mapped
):
    monkeypatch.setattr(cache, "_RENAMES_MAPPED_FILES", can_be_mapped)
    replace, mappings, mapped_then = os.replace, [], []

    class Mapping(np.memmap):
        def __new__(cls, *arguments, **settings):
            mapping = super().__new__(cls, *arguments, **settings)
            mappings.append(weakref.ref(mapping))
            return mapping

    def replace_and_look(*paths):
        mapped_then.append([mapping() is not None for mapping in mappings])
        replace(*paths)

    monkeypatch.setattr(np, "memmap", Mapping)
    monkeypatch.setattr(os, "replace", replace_and_look)
    assert torch.equal(keep([], folder=tmp_path), VALUES)
    assert mapped_then == [[can_be_mapped]]


@pytest.mark.parametrize("change", ["nan", "one bit", "digest", "another name"])
def test_damaged_latents_of_the_right_size_are_encoded_again(tmp_path, change):
    fills = []
    if change == "another name":
        keep([], folder=tmp_path, fingerprint="c" * 16)
        (path,) = tmp_path.iterdir()
        path.rename(tmp_path / f"latents-{'0f' * 8}.bin")
    else:
        keep([], folder=tmp_path)
        (path,) = tmp_path.iterdir()
        content = bytearray(path.read_bytes())
        if change == "nan":
            content[:2] = np.float16(np.nan).tobytes()
        else:
            content[100 if change == "one bit" else -1] ^= 1
        path.write_bytes(bytes(content))
    with pytest.warns(
        UserWarning, match=r"latents-.*\.bin is damaged: the images are encoded again"
    ):
        latents = keep(fills, folder=tmp_path)
    assert torch.equal(latents, VALUES)
    assert len(fills) == 1
    assert torch.equal(keep(fills, folder=tmp_path), VALUES)
    assert len(fills) == 1


@pytest.mark.parametrize(
    "name",
    [
        "latents-of-my-thesis.bin",
        "latents-2024.bin",
        "latents-0123456789ABCDEF.bin",
        "latents-0123456789abcdef.bin.bak",
        ".latents-mine.part",
        ".latents-0123.part",
    ],
)
def test_files_of_the_user_stay(tmp_path, name):
    (tmp_path / name).write_text("mine")
    os.utime(tmp_path / name, (time.time() - 90,) * 2)
    keep([], folder=tmp_path)
    assert (tmp_path / name).read_text() == "mine"


def test_a_file_that_a_killed_process_left_unfinished_goes(tmp_path):
    fresh, old = tmp_path / ".latents-00000001.part", tmp_path / ".latents-00000002.part"
    for path in (fresh, old):
        path.write_text("x")
    os.utime(old, (time.time() - 90,) * 2)
    keep([], folder=tmp_path)
    assert fresh.exists()
    assert not old.exists()


@pytest.mark.parametrize("other", ["0f", "ab"])
def test_two_processes_can_encode_for_one_folder(tmp_path, other):
    def fill(latents):
        # Encoding can take hours without a change of the file's time.
        (unfinished,) = tmp_path.glob("*.part")
        os.utime(unfinished, (time.time() - 9000,) * 2)
        assert torch.equal(keep([], folder=tmp_path, fingerprint=other * 8), VALUES)
        assert unfinished.exists()
        latents.copy_(VALUES)

    name = "0f" * 8
    latents = keep_latents(SHAPE, fill, fingerprint=lambda: name, folder=tmp_path, max_bytes=0)
    assert torch.equal(latents, VALUES)
    fills = []
    assert torch.equal(keep(fills, folder=tmp_path, fingerprint=name), VALUES)
    assert not fills


def test_kept_latents_are_mapped_to_be_read_only(tmp_path):
    def keep():
        return keep_latents(
            (4, 8),
            lambda latents: latents.fill_(1.0),
            fingerprint=lambda: "0" * 16,
            folder=tmp_path,
            max_bytes=0,
        )

    assert torch.equal(keep(), keep())
    assert len(list(tmp_path.glob("*.bin"))) == 1
    modes = []
    memmap = np.memmap

    def noted(file, dtype, mode, **settings):
        modes.append(mode)
        return memmap(file, dtype, mode, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np, "memmap", noted)
        keep()
    # Copy-on-write needs as much memory as the file has bytes.
    assert modes == ["r"]
