"""Compiled functions, with a way back where there is no compiler."""

import warnings
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["compile_or_not"]


def compile_or_not(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function when it is called, or warn once and run it as it is.

    Parameters
    ----------
    function : callable
        Function of tensors, for :func:`torch.compile`.

    Returns
    -------
    callable
        The same function, compiled where that works.
    """
    compiled: Callable[..., Any] | None = torch.compile(function)

    def call(*arguments: Any) -> Any:
        nonlocal compiled
        if compiled is not None:
            try:
                return compiled(*arguments)
            except torch.OutOfMemoryError:
                raise
            # Without a compiler, or with one that cannot, each backend has errors of its own;
            # those of the function itself come again below.
            except Exception as error:
                compiled = None
                warnings.warn(
                    f"The network could not be compiled and runs as it is: {error}",
                    stacklevel=2,
                )
        return function(*arguments)

    return call
