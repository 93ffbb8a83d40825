"""Compilation with :func:`torch.compile`, with a fallback where it does not work."""

from collections.abc import Callable
from typing import Any

import torch

from sklearn_msf.runtime.user_warnings import warn_user

__all__ = ["compile_or_not"]


def compile_or_not(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function at its first call; if that fails, warn once and run it uncompiled.

    Parameters
    ----------
    function : callable
        Function of tensors, for :func:`torch.compile`.

    Returns
    -------
    callable
        The same function, compiled if that works.
    """
    compiled: Callable[..., Any] | None = torch.compile(function)

    def call(*arguments: Any) -> Any:
        nonlocal compiled
        if compiled is not None:
            try:
                return compiled(*arguments)
            except torch.OutOfMemoryError:
                raise
            # Backends raise various exceptions when they find no compiler or cannot compile, so
            # catch all. The plain call below raises errors of the function itself again.
            except Exception as error:
                compiled = None
                warn_user(
                    f"The network could not be compiled and runs as it is: {error}",
                )
        return function(*arguments)

    return call
