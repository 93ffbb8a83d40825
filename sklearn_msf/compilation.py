"""Compiled functions, with a way back where there is no compiler."""

import warnings
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["compile_or_not"]


def compile_or_not(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function at its first call, or warn and run it as it is.

    Parameters
    ----------
    function : callable
        Function of tensors, for :func:`torch.compile`.

    Returns
    -------
    callable
        The same function, compiled where that works.
    """
    compiled = torch.compile(function)
    runs: Callable[..., Any] | None = None

    def call(*arguments: Any) -> Any:
        nonlocal runs
        if runs is None:
            try:
                result = compiled(*arguments)
            # Without a compiler, or with one that cannot, each backend has errors of its own.
            except Exception as error:
                runs = function
                warnings.warn(
                    f"The network could not be compiled and runs as it is: {error}",
                    stacklevel=2,
                )
                return function(*arguments)
            runs = compiled
            return result
        return runs(*arguments)

    return call
