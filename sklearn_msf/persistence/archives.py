"""Tensors and plain data in files that hold no code: safetensors beside JSON.

A record is two files. ``NAME.json`` holds the plain data and names the other file,
``NAME-DIGEST.safetensors``, by the digest of its content. Both are written under another
name, flushed to the disk and renamed, the JSON file last: whatever happens meanwhile, the
name leads to a record that is whole, the new one or the one before.

Reading trusts nothing: file names, sizes, digest and structure are checked, and nothing is
ever executed.
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
    "RecordError",
    "RecordVersionError",
    "check_tensors",
    "read_document",
    "read_record",
    "remove_leftovers",
    "remove_record",
    "write_file",
    "write_record",
]

_FORMAT = "sklearn_msf"
_FORMAT_VERSION = 1
# Histories of very long runs take some MiB.
_MAX_DOCUMENT_BYTES = 64 * 2**20
# What follows the name of a record in that of its weights file.
_WEIGHTS_SUFFIX = r"-[0-9a-f]{16}\.safetensors"
# Flags that not every system has.
_BINARY = getattr(os, "O_BINARY", 0)
_NO_WAITING = getattr(os, "O_NONBLOCK", 0)


class RecordError(ValueError):
    """Files that are not a record, or no longer one."""


class RecordVersionError(RecordError):
    """A record of another format version."""


def write_record(
    folder: Path, name: str, tensors: dict[str, Tensor], document: dict[str, Any]
) -> None:
    """Write a record, in place of one of the same name.

    Parameters
    ----------
    folder : Path
        Made where it is missing.
    name : str
        Name of the record.
    tensors : dict of str to Tensor
        Stored contiguous, on the CPU.
    document : dict
        Plain data that JSON can hold.

    Raises
    ------
    OSError
        Where the files cannot be written; the record before, if any, is still there.
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
        "document_sha256": _document_digest(document),
        "document": document,
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


def remove_record(folder: Path, name: str) -> None:
    """Delete the files of a record, the JSON file first."""
    _remove(folder / f"{name}.json")
    for path in _weights_files(folder, name):
        _remove(path)


def remove_leftovers(folder: Path, pattern: str) -> None:
    """Delete what writes that were cut off left of records.

    Parameters
    ----------
    folder : Path
        Where the records are.
    pattern : str
        Regular expression of their names.
    """
    weights = re.compile(rf"({pattern}){_WEIGHTS_SUFFIX}")
    unfinished = re.compile(rf"\.{pattern}[-.].*\.part")
    for path in list(folder.iterdir()) if folder.is_dir() else []:
        match = weights.fullmatch(path.name)
        orphan = match is not None and not (folder / f"{match[1]}.json").exists()
        if orphan or unfinished.fullmatch(path.name):
            _remove(path)


def read_document(folder: Path, name: str) -> dict[str, Any]:
    """Read the plain data of a record alone.

    Raises
    ------
    FileNotFoundError
        Where there is no such record.
    RecordError
        For a file that is not the JSON file of one.
    """
    return _checked_content(folder / f"{name}.json")["document"]


def read_record(folder: Path, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a record.

    Parameters
    ----------
    folder : Path
        Where the files are.
    name : str
        Name of the record.

    Returns
    -------
    tensors : dict of str to Tensor
        On the CPU.
    document : dict
        The plain data.

    Raises
    ------
    FileNotFoundError
        Where there is no such record.
    RecordError
        For files that were cut off, changed, exchanged or made by something else.
    """
    path = folder / f"{name}.json"
    content = _checked_content(path)
    try:
        data = _read_weights(folder, name, path, content["weights"])
    except FileNotFoundError:
        # Somebody may just have saved another record in its place.
        content = _checked_content(path)
        try:
            data = _read_weights(folder, name, path, content["weights"])
        except FileNotFoundError as error:
            raise RecordError(f"{error.filename} is missing.") from error
    try:
        return safetensors.torch.load(data), content["document"]
    # What safetensors knows and torch does not is a KeyError.
    except (SafetensorError, ValueError, LookupError, RuntimeError, TypeError) as error:
        raise RecordError(f"The weights of {path} are not safetensors: {error}.") from error


def check_tensors(found: dict[str, Tensor], wanted: dict[str, Tensor], source: str) -> None:
    """Compare weights with those that a network has.

    Parameters
    ----------
    found : dict of str to Tensor
        What a file has.
    wanted : dict of str to Tensor
        What the network has; only names, shapes and dtypes are looked at.
    source : str
        What the weights are from, for the messages.

    Raises
    ------
    RecordError
        For other names, shapes or dtypes, and for values that are not finite.
    """
    missing, unknown = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    if missing or unknown:
        raise RecordError(
            f"{source} does not fit its network: {len(missing)} weights are missing "
            f"({', '.join(missing[:3])}), {len(unknown)} are unknown ({', '.join(unknown[:3])})."
        )
    for name, value in found.items():
        if value.shape != wanted[name].shape or value.dtype != wanted[name].dtype:
            raise RecordError(
                f"{source} has {name} as {value.dtype} of shape {tuple(value.shape)}; its "
                f"network has {wanted[name].dtype} of shape {tuple(wanted[name].shape)}."
            )
        if not bool(torch.isfinite(value).all()):
            raise RecordError(f"{source} has values in {name} that are not finite.")


def write_file(path: Path, data: bytes) -> None:
    """Write a file as a whole or not at all."""
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
    """Make names of files outlast a power failure, where the system can."""
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
    """Every weights file of a record, left over ones too."""
    pattern = re.compile(rf"{re.escape(name)}{_WEIGHTS_SUFFIX}")
    return [path for path in folder.iterdir() if pattern.fullmatch(path.name)]


def _checked_content(path: Path) -> dict[str, Any]:
    """Read the JSON file of a record, which has its entries if not yet the right ones."""
    text = _read_regular_file(path, at_most=_MAX_DOCUMENT_BYTES)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{path} is not JSON: {error}.") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise RecordError(f"{path} is not a file of sklearn_msf.")
    version = content.get("format_version")
    if version != _FORMAT_VERSION:
        raise RecordVersionError(
            f"{path} has format version {version!r}; this version of sklearn_msf reads "
            f"{_FORMAT_VERSION}. Install the version that wrote it, or save the model again."
        )
    for entry in ("weights", "document"):
        if not isinstance(content.get(entry), dict):
            raise RecordError(f"{path} lacks its entry {entry!r}.")
    if content.get("document_sha256") != _document_digest(content["document"]):
        raise RecordError(f"{path} was changed: its content has another digest.")
    return content


def _document_digest(document: dict[str, Any]) -> str:
    """Digest of plain data, the same before it is written and after it is read."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _read_regular_file(path: Path, *, at_most: int) -> bytes:
    """Read a file that is one: not a device or a pipe, which would never end."""
    descriptor = os.open(path, os.O_RDONLY | _BINARY | _NO_WAITING)
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise RecordError(f"{path} is not a regular file.")
        if status.st_size > at_most:
            raise RecordError(
                f"{path} has {status.st_size:,} bytes; at most {at_most:,} were expected."
            )
        return file.read(at_most + 1)


def _read_weights(folder: Path, name: str, path: Path, weights: dict[str, Any]) -> bytes:
    """Read the weights file once, and check the very bytes that are used."""
    digest, file = weights.get("sha256"), weights.get("file")
    # The digest decides the name, so that a name cannot lead anywhere else.
    if (
        not isinstance(digest, str)
        or not re.fullmatch(r"[0-9a-f]{64}", digest)
        or file != _weights_name(name, digest)
    ):
        raise RecordError(f"{path} names weights that are not beside it: {file!r}.")
    weights_path = folder / file
    n_bytes = weights.get("n_bytes")
    if type(n_bytes) is not int or n_bytes < 0:
        raise RecordError(f"{path} has n_bytes={n_bytes!r} for its weights.")
    data = _read_regular_file(weights_path, at_most=n_bytes)
    if len(data) != n_bytes:
        raise RecordError(
            f"{weights_path} has {len(data):,} bytes instead of {n_bytes:,}: it was cut off or "
            "exchanged."
        )
    if hashlib.sha256(data).hexdigest() != digest:
        raise RecordError(f"{weights_path} was changed: its content has another digest.")
    return data
