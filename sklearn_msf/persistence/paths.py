"""Paths that users give, checked."""

import os
from pathlib import Path
from typing import Any

__all__ = ["as_path"]


def as_path(name: str, value: Any) -> Path:
    """Turn what a user gave into a path; a leading ``~`` is the home folder.

    Parameters
    ----------
    name : str
        Name of the argument, for messages.
    value : object
        The argument; a str or an object with `__fspath__` is right.

    Returns
    -------
    Path

    Raises
    ------
    TypeError
        For anything else.
    ValueError
        For an empty text, which would be the working directory.
    """
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str):
        raise TypeError(f"{name} must be a path, as str or Path, got {value!r}.")
    if not text:
        raise ValueError(f"{name} is empty: name a path, '.' for the working directory.")
    return Path(os.path.expanduser(text))
