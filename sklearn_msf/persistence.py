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
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

__all__ = ["RecordError", "check_tensors", "read_record", "remove_record", "write_record"]

_FORMAT = "sklearn_msf"
_FORMAT_VERSION = 1
# Histories of very long runs take some MiB.
_MAX_DOCUMENT_BYTES = 64 * 2**20
_CHUNK_BYTES = 2**20


class RecordError(ValueError):
    """Files that are not a record, or no longer one."""


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
        "document": document,
    }
    text = json.dumps(content, indent=1, allow_nan=False).encode()
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / weights_name, data)
    write_file(folder / f"{name}.json", text)
    for path in _weights_files(folder, name):
        if path.name != weights_name:
            _remove(path)


def remove_record(folder: Path, name: str) -> None:
    """Delete the files of a record, the JSON file first."""
    _remove(folder / f"{name}.json")
    for path in _weights_files(folder, name):
        _remove(path)


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
    content = _read_document(path)
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise RecordError(f"{path} is not a file of sklearn_msf.")
    version = content.get("format_version")
    if version != _FORMAT_VERSION:
        raise RecordError(
            f"{path} has format version {version!r}; this version of sklearn_msf reads "
            f"{_FORMAT_VERSION}. Install the version that wrote it, or save the model again."
        )
    weights, document = content.get("weights"), content.get("document")
    if not isinstance(weights, dict) or not isinstance(document, dict):
        raise RecordError(f"{path} lacks its entries 'weights' and 'document'.")
    return _read_weights(folder, name, path, weights), document


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
    pattern = re.compile(rf"{re.escape(name)}-[0-9a-f]{{16}}\.safetensors")
    return [path for path in folder.iterdir() if pattern.fullmatch(path.name)]


def _read_document(path: Path) -> Any:
    n_bytes = path.stat().st_size
    if n_bytes > _MAX_DOCUMENT_BYTES:
        raise RecordError(
            f"{path} has {n_bytes:,} bytes; at most {_MAX_DOCUMENT_BYTES:,} are read."
        )
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{path} is not JSON: {error}.") from error


def _read_weights(
    folder: Path, name: str, path: Path, weights: dict[str, Any]
) -> dict[str, Tensor]:
    digest, file = weights.get("sha256"), weights.get("file")
    # The digest decides the name, so that a name cannot lead anywhere else.
    if (
        not isinstance(digest, str)
        or not re.fullmatch(r"[0-9a-f]{64}", digest)
        or file != _weights_name(name, digest)
    ):
        raise RecordError(f"{path} names weights that are not beside it: {file!r}.")
    weights_path = folder / file
    if not weights_path.is_file():
        raise RecordError(f"{weights_path} is missing.")
    n_bytes = weights_path.stat().st_size
    if n_bytes != weights.get("n_bytes"):
        raise RecordError(
            f"{weights_path} has {n_bytes:,} bytes instead of {weights.get('n_bytes')!r}: it "
            "was cut off or exchanged."
        )
    if _digest(weights_path) != digest:
        raise RecordError(f"{weights_path} was changed: its content has another digest.")
    try:
        return safetensors.torch.load_file(weights_path)
    # What safetensors knows and torch does not is a KeyError.
    except (SafetensorError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise RecordError(f"{weights_path} is not a safetensors file: {error}.") from error


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
