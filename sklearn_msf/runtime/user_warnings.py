"""Warnings that point at the user's own line, however deep in the package they are raised."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["warn_user", "warnings_about"]

# Top-level packages that can lie on the call stack between the user's line and this package.
_BETWEEN = {"sklearn_msf", "sklearn", "contextlib", "joblib", "torch"}


_SUBJECT: ContextVar[str] = ContextVar("subject of warnings", default="")


@contextmanager
def warnings_about(subject: str) -> Iterator[None]:
    """Begin the warnings of this thread with what they are about, and a colon."""
    before = _SUBJECT.set(f"{subject}: ")
    try:
        yield
    finally:
        _SUBJECT.reset(before)


def warn_user(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the innermost line outside this package and the libraries that can call it.

    Parameters
    ----------
    message : str
        Text of the warning: the problem and the remedy.
    category : type of Warning, default=UserWarning
        Kind of the warning.
    """
    level, frame = 1, sys._getframe(0)
    while frame.f_back is not None and _is_between(frame.f_globals):
        level, frame = level + 1, frame.f_back
    warnings.warn(_SUBJECT.get() + message, category, stacklevel=level)


def _is_between(scope: dict[str, object]) -> bool:
    return str(scope.get("__name__", "")).split(".")[0] in _BETWEEN
