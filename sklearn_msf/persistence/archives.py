"""Tensors and plain data in files that hold no code: safetensors beside JSON.

An archive is two files. ``NAME.json`` holds the plain data and names the other file,
``NAME-DIGEST.safetensors``, by the digest of its content. Both are written under temporary
names, flushed to disk and then renamed, the JSON file last. If writing is interrupted at any
moment, ``NAME.json`` still belongs to a complete archive: the new one or the previous one.

Several processes may write one archive: the last JSON file wins. A writer deletes only weights
that the JSON file does not name, and of these only the ones that its own archive has replaced and
those that have lain there for a minute, because others may be waiting for their JSON file. At the
end it looks after its own weights, and writes them again if another process has deleted them.

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
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from sklearn_msf.persistence.limits import MAX_METADATA_BYTES
from sklearn_msf.persistence.whole_files import (
    UNFINISHED_SUFFIX,
    is_fresh,
    remove,
    remove_abandoned,
    write_file,
)

__all__ = [
    "UNEXPECTED_VALUE_ERRORS",
    "ArchiveError",
    "ArchiveVersionError",
    "check_is_free",
    "check_shapes",
    "check_tensors",
    "name_of_weights",
    "part_of",
    "read_archive",
    "read_metadata",
    "remove_archive",
    "remove_leftovers",
    "write_archive",
]

_FORMAT = "sklearn_msf"
# How often, and for how long each time, a reader waits for weights that are not there.
_N_PATIENT, _SECONDS_OF_PATIENCE = 5, 0.01
_FORMAT_VERSION = 2
# The name of a weights file is the name of its archive followed by this.
_WEIGHTS_SUFFIX = r"-[0-9a-f]{16}\.safetensors"
# Flags of os.open that some systems lack.
_BINARY = getattr(os, "O_BINARY", 0)
_NO_WAITING = getattr(os, "O_NONBLOCK", 0)


# What code raises for values of a file that it does not expect: a changed file can hold any value
# in any place, and torch raises a RuntimeError for sizes beyond its limits.
UNEXPECTED_VALUE_ERRORS = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
)


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
    ArchiveError
        If the plain data are larger than :func:`read_archive` accepts.
    OSError
        If the files cannot be written.

    After either the previous archive, if any, is still there.
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
    path, weights_path = folder / f"{name}.json", folder / weights_name
    if len(text) > MAX_METADATA_BYTES:
        raise ArchiveError(
            f"{path} is not written: it would have {len(text):,} bytes, and at most "
            f"{MAX_METADATA_BYTES:,} are read."
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_file(weights_path, data)
    try:
        replaced = _name_of_weights(path)
        write_file(path, text)
    except BaseException:
        _remove_weights(weights_path, path)
        raise
    while not weights_path.exists() and _name_of_weights(path) == weights_name:
        write_file(weights_path, data)
    _remove_unused_weights(folder, name, replaced)


def check_is_free(folder: Path, name: str) -> None:
    """Refuse to replace a JSON file of another program; what is no JSON is of nobody.

    Raises
    ------
    ArchiveError
        If there is a JSON file of the name of the archive's, and it is not one of an archive.
    """
    path = folder / f"{name}.json"
    try:
        content = json.loads(_read_regular_file(path, at_most=MAX_METADATA_BYTES))
        is_ours = _is_of_archive(content)
    except ArchiveError:
        # Too large for an archive, or no file at all.
        is_ours = not path.is_file()
    except (FileNotFoundError, ValueError, RecursionError):
        is_ours = True
    if not is_ours:
        raise ArchiveError(
            f"{path} is the file of another program and is not replaced: name another folder."
        )


def remove_archive(folder: Path, name: str) -> None:
    """Delete the files of an archive, the JSON file first."""
    path = folder / f"{name}.json"
    with contextlib.suppress(OSError):
        removed = _name_of_weights(path)
        remove(path)
        _remove_unused_weights(folder, name, removed)


def remove_leftovers(folder: Path, pattern: str) -> None:
    """Delete files that interrupted writes of archives left behind, more than a minute ago.

    Parameters
    ----------
    folder : Path
        Folder of the archives.
    pattern : str
        Regular expression, without groups, for the names of the archives.
    """
    weights = re.compile(rf"({pattern}){_WEIGHTS_SUFFIX}")
    unfinished = re.compile(rf"\.({pattern})(\.json|{_WEIGHTS_SUFFIX})\.{UNFINISHED_SUFFIX}")
    for path in list(folder.iterdir()) if folder.is_dir() else []:
        match = weights.fullmatch(path.name)
        if match is not None and not is_fresh(path):
            _remove_weights(path, folder / f"{match[1]}.json")
        elif unfinished.fullmatch(path.name):
            remove_abandoned(path)


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


def name_of_weights(folder: Path, name: str) -> str:
    """Read which file beside the JSON file of an archive holds its weights.

    Raises
    ------
    FileNotFoundError
        If there is no such archive.
    ArchiveError
        If the file is not the JSON file of an archive, or was changed.
    """
    path = folder / f"{name}.json"
    file, _ = _checked_weights(name, path, _checked_content(path)["weights"])
    return file


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
    data, weights = None, None
    n_left = _N_PATIENT
    while data is None:
        content = _checked_content(path)
        try:
            data = _read_weights(folder, name, path, content["weights"])
        except FileNotFoundError as error:
            # Another process may have replaced the archive after the JSON file was read.
            if content["weights"] == weights:
                if not n_left:
                    raise ArchiveError(f"{error.filename} is missing.") from error
                n_left -= 1
                # Or it is looking whether these weights are still needed, and puts them back.
                time.sleep(_SECONDS_OF_PATIENCE)
            weights = content["weights"]
    try:
        return safetensors.torch.load(data), content["metadata"]
    # A dtype that safetensors knows and torch lacks raises a KeyError.
    except (SafetensorError, ValueError, LookupError, RuntimeError, TypeError) as error:
        # The message can contain text of the file.
        raise ArchiveError(f"The weights of {path} are not safetensors: {str(error)!r}.") from error


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
            f"({_listed(missing)}), {len(unknown)} are unknown ({_listed(unknown)})."
        )
    for name, value in found.items():
        if value.shape != wanted[name].shape or value.dtype != wanted[name].dtype:
            raise ArchiveError(
                f"{source} has {name} as {value.dtype} of shape {tuple(value.shape)}; its "
                f"network has {wanted[name].dtype} of shape {tuple(wanted[name].shape)}."
            )
        if not bool(torch.isfinite(value).all()):
            raise ArchiveError(f"{source} has values in {name} that are not finite.")


def check_shapes(
    found: dict[str, Tensor], shapes: Mapping[str, Sequence[int]], source: str
) -> None:
    """Check as :func:`check_tensors` that tensors are of float32 and of these shapes.

    A shape can be anything that a file claims: nothing of its size is allocated.
    """
    wanted = {name: torch.empty(tuple(s), device="meta") for name, s in shapes.items()}
    check_tensors(found, wanted, source)


def part_of(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Select the tensors whose names start with a prefix, and remove it from their names."""
    start = f"{prefix}."
    return {name[len(start) :]: value for name, value in tensors.items() if name.startswith(start)}


def _listed(names: list[str]) -> str:
    """List the first names; those of a file can hold anything, also codes that a terminal obeys."""
    plain = re.compile(r"[\w.-]{1,100}", re.ASCII)
    return ", ".join(name if plain.fullmatch(name) else repr(name[:100]) for name in names[:3])


def _weights_name(name: str, digest: str) -> str:
    return f"{name}-{digest[:16]}.safetensors"


def _name_of_weights(path: Path) -> str | None:
    """Read which weights a JSON file names; None if there is no such file, or a damaged one."""
    try:
        name = json.loads(_read_regular_file(path, at_most=MAX_METADATA_BYTES))["weights"]["file"]
    except (FileNotFoundError, ValueError, LookupError, TypeError, RecursionError):
        return None
    return name if isinstance(name, str) else None


def _remove_unused_weights(folder: Path, name: str, replaced: str | None) -> None:
    """Delete weights of an archive that were `replaced`, and leftover ones."""
    pattern = re.compile(rf"{re.escape(name)}{_WEIGHTS_SUFFIX}")
    for path in list(folder.iterdir()):
        if pattern.fullmatch(path.name) and (path.name == replaced or not is_fresh(path)):
            _remove_weights(path, folder / f"{name}.json")


def _remove_weights(weights: Path, path: Path) -> None:
    """Delete weights, unless the JSON file at `path` names them.

    Another process may write the same weights and that JSON file meanwhile. So the weights are
    renamed first and deleted only if the JSON file does not name them even then; the other
    process looks after them when it has written the JSON file, so one of both notices.
    """
    aside = weights.with_name(f".{weights.name}.{secrets.token_hex(4)}.part")
    with contextlib.suppress(OSError):
        if _name_of_weights(path) == weights.name or weights.is_dir():
            return
        with contextlib.suppress(OSError):
            # As a fresh file it is not taken for an abandoned one.
            os.utime(weights)
        os.replace(weights, aside)
        named = True
        try:
            named = _name_of_weights(path) == weights.name
        finally:
            if named and not weights.exists():
                os.replace(aside, weights)
            else:
                remove(aside)


def _is_of_archive(content: Any) -> bool:
    """Tell whether JSON data say that they are those of an archive."""
    return isinstance(content, dict) and content.get("format") == _FORMAT


def _checked_content(path: Path) -> dict[str, Any]:
    """Read the JSON file of an archive; check its format, version, entries and metadata digest.

    The values inside its entries are left to the callers to check.
    """
    text = _read_regular_file(path, at_most=MAX_METADATA_BYTES)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ArchiveError(f"{path} is not JSON: {error}.") from error
    if not _is_of_archive(content):
        raise ArchiveError(f"{path} is not a file of sklearn_msf.")
    version = content.get("format_version")
    if version != _FORMAT_VERSION:
        # Another version wrote an integer; anything else is damage.
        kind = ArchiveVersionError if type(version) is int else ArchiveError
        raise kind(
            f"{path} has format version {version!r}, but this version of sklearn_msf reads "
            f"version {_FORMAT_VERSION} only: fit again, or use the version that wrote it."
        )
    for entry in ("weights", "metadata"):
        if not isinstance(content.get(entry), dict):
            raise ArchiveError(f"{path} lacks its entry {entry!r}.")
    try:
        digest = _metadata_digest(content["metadata"])
    except RecursionError as error:
        raise ArchiveError(f"{path} is nested too deeply.") from error
    if content.get("metadata_sha256") != digest:
        raise ArchiveError(f"{path} was changed: its content has another digest.")
    return content


def _metadata_digest(metadata: dict[str, Any]) -> str:
    """Compute a digest of plain data that is the same before writing and after reading."""
    text = json.dumps(metadata, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _read_regular_file(path: Path, *, at_most: int) -> bytes:
    """Read a regular file; refuse devices and pipes, which may never end."""
    descriptor = os.open(path, os.O_RDONLY | _BINARY | _NO_WAITING)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ArchiveError(f"{path} is not a regular file.")
        if status.st_size > at_most:
            raise ArchiveError(
                f"{path} has {status.st_size:,} bytes; at most {at_most:,} were expected."
            )
        with open(descriptor, "rb", closefd=False) as file:
            # Reading allocates what is asked for, so do not ask for what the file claims to have.
            return file.read(status.st_size + 1)
    finally:
        os.close(descriptor)


def _checked_weights(name: str, path: Path, weights: dict[str, Any]) -> tuple[str, str]:
    """Return name and digest of the weights file that a JSON file names."""
    digest, file = weights.get("sha256"), weights.get("file")
    # The name must follow from the digest, so that it cannot be a path to another file.
    if (
        not isinstance(digest, str)
        or not re.fullmatch(r"[0-9a-f]{64}", digest)
        or file != _weights_name(name, digest)
    ):
        raise ArchiveError(f"{path} names weights that are not beside it: {file!r}.")
    return file, digest


def _read_weights(folder: Path, name: str, path: Path, weights: dict[str, Any]) -> bytes:
    """Read the weights file once, and check the same bytes that are returned."""
    file, digest = _checked_weights(name, path, weights)
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
