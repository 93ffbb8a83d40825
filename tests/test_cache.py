import errno
import os

import numpy as np
import pytest
import torch

from sklearn_msf.latent.cache import keep_latents

SHAPE = (5, 2, 3, 4, 4)
N_BYTES = int(np.prod(SHAPE)) * 2
VALUES = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).half()


def keep(fills, folder=None, max_bytes=0, fingerprint="0f"):
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
    assert [path.stat().st_size for path in tmp_path.iterdir()] == [N_BYTES] * named


def test_a_run_that_goes_on_finds_its_latents(tmp_path):
    fills = []
    keep(fills, folder=tmp_path)
    assert torch.equal(keep(fills, folder=tmp_path), VALUES)
    assert len(fills) == 1


def test_latents_of_something_else_are_not_reused_and_go(tmp_path):
    fills = []
    keep(fills, folder=tmp_path, fingerprint="aa")
    keep(fills, folder=tmp_path, fingerprint="bb")
    assert len(fills) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["latents-bb.bin"]


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
        keep_latents(SHAPE, fill, fingerprint=lambda: "0f", folder=tmp_path, max_bytes=0)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="needs posix_fallocate")
def test_a_full_disk_is_told_before_anything_is_computed(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    fills = []
    with pytest.raises(OSError, match="No space left"):
        keep(fills, folder=tmp_path)
    assert not fills
    assert not list(tmp_path.iterdir())
