"""Imports of packages that need not be installed, and what to do where they fail."""

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["first_cause", "importing"]


@contextmanager
def importing(advice: str) -> Iterator[None]:
    """Say how to install what is imported inside, and why the import failed.

    A package that is installed fails too where another one that it needs does not fit.

    Parameters
    ----------
    advice : str
        What needs which package, and the command that installs it.

    Raises
    ------
    ImportError
        With the advice and the first cause.
    """
    try:
        yield
    # Of libraries that cannot be loaded, and of torchvision where it does not fit torch.
    except (ImportError, OSError, RuntimeError) as error:
        raise ImportError(f"{advice} ({first_cause(error)})") from error


def first_cause(error: BaseException) -> str:
    """Describe the error that the others of a chain were raised from.

    Packages that import their parts when they are asked for hide it behind errors of their own.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}"
