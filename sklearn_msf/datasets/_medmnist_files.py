"""Images of MedMNIST files: read into memory, or mapped from an uncompressed file beside them."""

import io
import math
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from sklearn_msf.persistence.whole_files import whole_file
from sklearn_msf.runtime.user_warnings import warn_user

__all__ = ["SPLITS", "read_images"]

SPLITS = ("train", "val", "test")
# Size in bytes of a file from which on its images are mapped into memory instead of read.
_MAPPED_FROM = 10**9
_BYTES_AT_ONCE = 2**22


class _Member(NamedTuple):
    """Images of one split inside the .npz file, as its directory describes them."""

    name: str
    header: bytes
    shape: tuple[int, ...]
    dtype: np.dtype
    checksum: int

    @property
    def n_bytes(self) -> int:
        """Size of the images."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_images(path: Path, splits: tuple[str, ...]) -> np.ndarray:
    """Read the images of some splits, one split after the other.

    Parameters
    ----------
    path : Path
        The .npz file, whose checksum has been compared.
    splits : tuple of str
        One of the splits, or all.

    Returns
    -------
    ndarray
        In memory; of a file of 1 GB or more a read-only memory map of an .npy file beside it, which
        is written if it is missing.

    Raises
    ------
    OSError
        If the .npy file does not hold the images of the .npz file.
    """
    with zipfile.ZipFile(path) as archive:
        mapped = None
        if path.stat().st_size >= _MAPPED_FROM:
            mapped = _mapped(path, archive, splits)
        if mapped is not None:
            return mapped
        return _in_memory(archive, [_member(archive, split) for split in splits])


def _member(archive: zipfile.ZipFile, split: str) -> _Member:
    """Describe the images of a split."""
    info = archive.getinfo(f"{split}_images.npy")
    with archive.open(info) as file:
        shape, dtype = _read_header(file)
        size = info.file_size - math.prod(shape) * dtype.itemsize
        file.seek(0)
        header = file.read(size)
    return _Member(info.filename, header, shape, dtype, info.CRC)


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    """Read the shape and the dtype of an .npy file."""
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0}
    shape, is_fortran, dtype = read.get(version, np.lib.format.read_array_header_2_0)(file)
    if is_fortran or dtype.hasobject:
        raise OSError("MedMNIST images must be plain numbers in C order; this file has others.")
    return shape, dtype


def _in_memory(archive: zipfile.ZipFile, members: Sequence[_Member]) -> np.ndarray:
    """Read images into one array, with no second copy on the way."""
    data = np.empty(_joint_shape(members), members[0].dtype)
    place, start = data.reshape(-1).view(np.uint8), 0
    for block in _blocks(archive, members):
        place[start : start + len(block)] = np.frombuffer(block, np.uint8)
        start += len(block)
    return data


def _joint_shape(members: Sequence[_Member]) -> tuple[int, ...]:
    return (sum(member.shape[0] for member in members), *members[0].shape[1:])


def _blocks(archive: zipfile.ZipFile, members: Sequence[_Member]) -> Iterator[bytes]:
    """Yield the bytes of the images; zipfile compares their checksums."""
    for member in members:
        with archive.open(member.name) as file:
            file.read(len(member.header))
            while block := file.read(_BYTES_AT_ONCE):
                yield block


def _mapped(path: Path, archive: zipfile.ZipFile, splits: tuple[str, ...]) -> np.ndarray | None:
    """Map the images of the splits into memory; None, with a warning, if they cannot be written."""
    every = {split: _member(archive, split) for split in SPLITS}
    beside = path.with_suffix(".npy")
    try:
        if not beside.exists():
            _unpack(beside, archive, list(every.values()))
    except OSError as error:
        warn_user(
            f"{beside} could not be written ({error}): the images are read into memory. Make "
            f"room for {sum(member.n_bytes for member in every.values()) / 1e9:.1f} GB there, or "
            "set data_home to a folder that can be written to."
        )
        return None
    _check_mapped(beside, path, every, splits)
    images = np.load(beside, mmap_mode="r", allow_pickle=False)
    # The splits asked for follow each other: one of them, or all.
    before = list(SPLITS[: SPLITS.index(splits[0])])
    first = sum(every[split].shape[0] for split in before)
    return images[first : first + sum(every[split].shape[0] for split in splits)]


def _unpack(beside: Path, archive: zipfile.ZipFile, members: Sequence[_Member]) -> None:
    """Write the images to an .npy file, completely or not at all."""
    with whole_file(beside) as file:
        np.lib.format.write_array_header_1_0(file, _header_of(members))
        for block in _blocks(archive, members):
            file.write(block)


def _header_of(members: Sequence[_Member]) -> dict[str, Any]:
    descr = np.lib.format.dtype_to_descr(members[0].dtype)
    return {"descr": descr, "fortran_order": False, "shape": _joint_shape(members)}


def _check_mapped(
    beside: Path, path: Path, every: Mapping[str, _Member], splits: tuple[str, ...]
) -> None:
    """Refuse an .npy file that does not hold the images of the .npz file, byte by byte."""
    written = io.BytesIO()
    np.lib.format.write_array_header_1_0(written, _header_of(list(every.values())))
    header = written.getvalue()
    n_bytes = len(header) + sum(member.n_bytes for member in every.values())
    with open(beside, "rb") as file:
        same = os.fstat(file.fileno()).st_size == n_bytes and file.read(len(header)) == header
        for split, member in every.items():
            if same and split in splits:
                same = _checksum(file, member) == member.checksum
            else:
                file.seek(member.n_bytes, os.SEEK_CUR)
    if not same:
        raise OSError(
            f"{beside} does not hold the images of {path.name}: it is damaged or another file. "
            "Delete or move it to have it written again."
        )


def _checksum(file: IO[bytes], member: _Member) -> int:
    """Compute the checksum that the member has in its archive, header included."""
    checksum, n_left = zlib.crc32(member.header), member.n_bytes
    while n_left > 0 and (block := file.read(min(n_left, _BYTES_AT_ONCE))):
        checksum, n_left = zlib.crc32(block, checksum), n_left - len(block)
    return checksum
