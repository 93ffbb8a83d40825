"""Warnings on the pages of examples, without the path on the machine that built the pages."""

import warnings
from pathlib import Path
from typing import Any

__all__ = ["without_place"]


def _format(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    return f"{category.__name__}: {message}\n"


def without_place(gallery_conf: dict[str, Any], path: str | Path | None) -> None:
    """Print warnings without file and line; sphinx-gallery calls this before each example.

    Parameters
    ----------
    gallery_conf : dict
        Configuration of the gallery.
    path : str, Path or None
        The example.
    """
    warnings.formatwarning = _format
