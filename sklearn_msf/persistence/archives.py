"""Tensors and plain data in files that hold no code: safetensors beside JSON.

An archive is two files. ``NAME.json`` holds the plain data and names the other file,
``NAME-DIGEST.safetensors``, by the digest of its content. Both are written under temporary
names, flushed to disk and then renamed, the JSON file last. If writing is interrupted at any
moment, ``NAME.json`` still belongs to a complete archive: the new one or the previous one.

Reading trusts nothing: file names, sizes, digests and structure are checked, and nothing from a
file is ever executed.
"""

import contextlib
import hashlib
import json
import os
import re
import secrets
import stat
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

__all__ = [
    "ArchiveError",
    "ArchiveVersionError",
    "check_tensors",
    "part_of",
    "read_archive",
    "read_metadata",
    "remove_archive",
    "remove_leftovers",
    "write_archive",
    "write_file",
]

_FORMAT = "sklearn_msf"
_FORMAT_VERSION = 2
# The training history of a very long run takes some MiB.
_MAX_METADATA_BYTES = 64 * 2**20
# The name of a weights file is the name of its archive followed by this.
_WEIGHTS_SUFFIX = r"-[0-9a-f]{16}\.safetensors"
# Flags of os.open that some systems lack.
_BINARY = getattr(os, "O_BINARY", 0)
_NO_WAITING = getattr(os, "O_NONBLOCK", 0)


class ArchiveError(ValueError):
    """The files are not an archive, or are a damaged one."""


class ArchiveVersionError(ArchiveError):
    """The archive has another format version."""


def write_archive(
    folder: Path, name: str, tensors: dict[str, Tensor], metadata: dict[str, Any]
) -> None:
    """Write an archive and replace one of the same name.

    Parameters
    ----------
    folder : Path
        Folder of the archive; created if it is missing.
    name : str
        Name of the archive.
    tensors : dict of str to Tensor
        Copied to the CPU and stored contiguously.
    metadata : dict
        Plain data that JSON can hold.

    Raises
    ------
    OSError
        If the files cannot be written. The previous archive, if any, is kept.
    """
    data = safetensors.torch.save(
        {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    )
    digest = hashlib.sha256(data).hexdigest()
    weights_name = _weights_name(name, digest)
    content = {
        "format": _FORMAT,
        "format_version": _FORMAT_VERSION,
        "weights": {"file": weights_name, "sha256": digest, "n_bytes": len(data)},
        "metadata_sha256": _metadata_digest(metadata),
        "metadata": metadata,
    }
    text = json.dumps(content, indent=1, allow_nan=False).encode()
    folder.mkdir(parents=True, exist_ok=True)
    is_new = not (folder / weights_name).exists()
    write_file(folder / weights_name, data)
    try:
        write_file(folder / f"{name}.json", text)
    except BaseException:
        if is_new:
            _remove(folder / weights_name)
        raise
    for path in _weights_files(folder, name):
        if path.name != weights_name:
            _remove(path)


def remove_archive(folder: Path, name: str) -> None:
    """Delete the files of an archive, the JSON file first."""
    _remove(folder / f"{name}.json")
    for path in _weights_files(folder, name):
        _remove(path)


def remove_leftovers(folder: Path, pattern: str) -> None:
    """Delete files that interrupted writes of archives left behind.

    Parameters
    ----------
    folder : Path
        Folder of the archives.
    pattern : str
        Regular expression for the names of the archives.
    """
    weights = re.compile(rf"({pattern}){_WEIGHTS_SUFFIX}")
    unfinished = re.compile(rf"\.{pattern}[-.].*\.part")
    for path in list(folder.iterdir()) if folder.is_dir() else []:
        match = weights.fullmatch(path.name)
        orphan = match is not None and not (folder / f"{match[1]}.json").exists()
        if orphan or unfinished.fullmatch(path.name):
            _remove(path)


def read_metadata(folder: Path, name: str) -> dict[str, Any]:
    """Read only the plain data of an archive.

    Raises
    ------
    FileNotFoundError
        If there is no such archive.
    ArchiveError
        If the file is not the JSON file of an archive, or was changed.
    """
    return _checked_content(folder / f"{name}.json")["metadata"]


def read_archive(folder: Path, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read an archive.

    Parameters
    ----------
    folder : Path
        Folder of the archive.
    name : str
        Name of the archive.

    Returns
    -------
    tensors : dict of str to Tensor
        On the CPU.
    metadata : dict
        The plain data.

    Raises
    ------
    FileNotFoundError
        If there is no such archive.
    ArchiveError
        If the files were cut off, changed or exchanged, or were written by another program.
    """
    path = folder / f"{name}.json"
    content = _checked_content(path)
    try:
        data = _read_weights(folder, name, path, content["weights"])
    except FileNotFoundError:
        # Another process may have replaced the archive after the JSON file was read: retry once.
        content = _checked_content(path)
        try:
            data = _read_weights(folder, name, path, content["weights"])
        except FileNotFoundError as error:
            raise ArchiveError(f"{error.filename} is missing.") from error
    try:
        return safetensors.torch.load(data), content["metadata"]
    # A dtype that safetensors knows and torch lacks raises a KeyError.
    except (SafetensorError, ValueError, LookupError, RuntimeError, TypeError) as error:
        raise ArchiveError(f"The weights of {path} are not safetensors: {error}.") from error


def check_tensors(found: dict[str, Tensor], wanted: dict[str, Tensor], source: str) -> None:
    """Check that weights fit a network and are finite.

    Parameters
    ----------
    found : dict of str to Tensor
        Weights read from a file.
    wanted : dict of str to Tensor
        Weights of the network; only their names, shapes and dtypes are used.
    source : str
        Origin of the weights, for error messages.

    Raises
    ------
    ArchiveError
        If names, shapes or dtypes differ, or values are not finite.
    """
    missing, unknown = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    if missing or unknown:
        raise ArchiveError(
            f"{source} does not fit its network: {len(missing)} weights are missing "
            f"({', '.join(missing[:3])}), {len(unknown)} are unknown ({', '.join(unknown[:3])})."
        )
    for name, value in found.items():
        if value.shape != wanted[name].shape or value.dtype != wanted[name].dtype:
            raise ArchiveError(
                f"{source} has {name} as {value.dtype} of shape {tuple(value.shape)}; its "
                f"network has {wanted[name].dtype} of shape {tuple(wanted[name].shape)}."
            )
        if not bool(torch.isfinite(value).all()):
            raise ArchiveError(f"{source} has values in {name} that are not finite.")


def part_of(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Select the tensors whose names start with a prefix, and remove it from their names."""
    start = f"{prefix}."
    return {name[len(start) :]: value for name, value in tensors.items() if name.startswith(start)}


def write_file(path: Path, data: bytes) -> None:
    """Write a file completely or not at all."""
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with open(unfinished, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        _remove(unfinished)
        raise
    _flush_folder(path.parent)


def _flush_folder(folder: Path) -> None:
    """Make new names of files survive a power failure, if the system supports it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def _weights_name(name: str, digest: str) -> str:
    return f"{name}-{digest[:16]}.safetensors"


def _weights_files(folder: Path, name: str) -> list[Path]:
    """List all weights files of an archive, including leftover ones."""
    pattern = re.compile(rf"{re.escape(name)}{_WEIGHTS_SUFFIX}")
    return [path for path in folder.iterdir() if pattern.fullmatch(path.name)]


def _checked_content(path: Path) -> dict[str, Any]:
    """Read the JSON file of an archive; check its format, version, entries and metadata digest.

    The values inside its entries are left to the callers to check.
    """
    text = _read_regular_file(path, at_most=_MAX_METADATA_BYTES)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ArchiveError(f"{path} is not JSON: {error}.") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise ArchiveError(f"{path} is not a file of sklearn_msf.")
    version = content.get("format_version")
    if version != _FORMAT_VERSION:
        raise ArchiveVersionError(
            f"{path} has format version {version!r}, but this version of sklearn_msf reads "
            f"version {_FORMAT_VERSION} only: fit again, or use the version that wrote it."
        )
    for entry in ("weights", "metadata"):
        if not isinstance(content.get(entry), dict):
            raise ArchiveError(f"{path} lacks its entry {entry!r}.")
    if content.get("metadata_sha256") != _metadata_digest(content["metadata"]):
        raise ArchiveError(f"{path} was changed: its content has another digest.")
    return content


def _metadata_digest(metadata: dict[str, Any]) -> str:
    """Compute a digest of plain data that is the same before writing and after reading."""
    text = json.dumps(metadata, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _read_regular_file(path: Path, *, at_most: int) -> bytes:
    """Read a regular file; refuse devices and pipes, which may never end."""
    descriptor = os.open(path, os.O_RDONLY | _BINARY | _NO_WAITING)
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ArchiveError(f"{path} is not a regular file.")
        if status.st_size > at_most:
            raise ArchiveError(
                f"{path} has {status.st_size:,} bytes; at most {at_most:,} were expected."
            )
        return file.read(at_most + 1)


def _read_weights(folder: Path, name: str, path: Path, weights: dict[str, Any]) -> bytes:
    """Read the weights file once, and check the same bytes that are returned."""
    digest, file = weights.get("sha256"), weights.get("file")
    # The name must follow from the digest, so that it cannot be a path to another file.
    if (
        not isinstance(digest, str)
        or not re.fullmatch(r"[0-9a-f]{64}", digest)
        or file != _weights_name(name, digest)
    ):
        raise ArchiveError(f"{path} names weights that are not beside it: {file!r}.")
    weights_path = folder / file
    n_bytes = weights.get("n_bytes")
    if type(n_bytes) is not int or n_bytes < 0:
        raise ArchiveError(f"{path} has n_bytes={n_bytes!r} for its weights.")
    data = _read_regular_file(weights_path, at_most=n_bytes)
    if len(data) != n_bytes:
        raise ArchiveError(
            f"{weights_path} has {len(data):,} bytes instead of {n_bytes:,}: it was cut off or "
            "exchanged."
        )
    if hashlib.sha256(data).hexdigest() != digest:
        raise ArchiveError(f"{weights_path} was changed: its content has another digest.")
    return data
