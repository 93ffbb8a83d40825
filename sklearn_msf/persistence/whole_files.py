"""Files that appear under their name only when they are whole, whoever else writes to the folder.

A file is written under an unfinished name that ends in ``.part``, flushed to disk and renamed. Such
files of processes that were killed are left over, until the same file is written again or
:func:`remove_abandoned` deletes them; both spare those that another process is writing.
"""

import contextlib
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows, which refuses to delete a file that a process has open.
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "UNFINISHED_SUFFIX",
    "is_fresh",
    "remove",
    "remove_abandoned",
    "whole_file",
    "write_file",
]

# The end of an unfinished name, as a regular expression.
UNFINISHED_SUFFIX = r"[0-9a-f]{8}\.part"
# A file that is younger may belong to a process that will use it in a moment.
_FRESH_SECONDS = 60.0


@contextlib.contextmanager
def whole_file(path: Path, unfinished_prefix: str | None = None) -> Iterator[IO[bytes]]:
    """Open a new file that replaces `path` at the end of the block; an error leaves nothing.

    What killed processes left of this file is deleted before.

    Parameters
    ----------
    path : Path
        Name of the whole file.
    unfinished_prefix : str, optional
        Beginning of the name until then; by default a dot and the name of the whole file.
    """
    prefix = f".{path.name}." if unfinished_prefix is None else unfinished_prefix
    _remove_abandoned_with(prefix, path.parent)
    unfinished = path.with_name(f"{prefix}{secrets.token_hex(4)}.part")
    try:
        with open(unfinished, "x+b") as file:
            _lock(file)
            yield file
            file.flush()
            os.fsync(file.fileno())
            # The flush can take minutes, and the file is fresh from now on, without its lock.
            os.utime(unfinished)
        os.replace(unfinished, path)
    except BaseException:
        remove(unfinished)
        raise
    _flush_folder(path.parent)


def write_file(path: Path, data: bytes) -> None:
    """Write a file completely or not at all."""
    with whole_file(path) as file:
        file.write(data)


def is_fresh(path: Path) -> bool:
    """Return whether a file was written less than a minute ago, or cannot be examined."""
    try:
        status = path.lstat()
    except OSError:
        return True
    return not stat.S_ISREG(status.st_mode) or time.time() - status.st_mtime < _FRESH_SECONDS


def remove_abandoned(unfinished: Path) -> None:
    """Delete an unfinished file, unless it is fresh or another process may be writing it."""
    if is_fresh(unfinished):
        return
    if fcntl is None:
        remove(unfinished)
        return
    # Where a file system has no locks this fails, and the file is kept.
    with contextlib.suppress(OSError):
        descriptor = os.open(unfinished, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            unfinished.unlink()
        finally:
            os.close(descriptor)


def _remove_abandoned_with(prefix: str, folder: Path) -> None:
    unfinished = re.compile(re.escape(prefix) + UNFINISHED_SUFFIX)
    # A folder that cannot be read may still be written to.
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            if unfinished.fullmatch(name):
                remove_abandoned(folder / name)


def remove(path: Path) -> None:
    """Delete a file if that is possible."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def _lock(file: IO[Any]) -> None:
    """Mark a file as being written; the system takes the mark away when the process ends."""
    if fcntl is not None:
        with contextlib.suppress(OSError):
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)


def _flush_folder(folder: Path) -> None:
    """Make new names of files survive a power failure, if the system supports it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
