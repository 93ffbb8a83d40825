"""Compilation with :func:`torch.compile`, with a fallback where it does not work."""

from collections.abc import Callable
from typing import Any

import torch

from sklearn_msf.runtime.out_of_memory import is_out_of_memory
from sklearn_msf.runtime.user_warnings import warn_user

__all__ = ["compile_or_not"]

# Numbers of shapes for which a function is compiled before torch gives up. Training has one for
# each division of a batch, more than torch allows by default.
_LIMITS = {"recompile_limit": 64, "accumulated_recompile_limit": 1024}


def compile_or_not(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function at its first call; if that fails, warn once and run it uncompiled.

    The function is compiled as a whole, for each combination of shapes and numbers anew. Torch
    keeps what it compiled on the disk, so that other processes need not compile it again.

    Parameters
    ----------
    function : callable
        Function of tensors, for :func:`torch.compile`.

    Returns
    -------
    callable
        The same function, compiled if that works.
    """
    compiled: Callable[..., Any] | None = None
    works = True

    def whole(*arguments: Any) -> Any:
        return function(*arguments)

    # Torch counts what it compiled, and keeps it, by code objects: each function needs its own, or
    # the runs of a process would fill one count together.
    whole.__code__ = whole.__code__.replace()

    def call(*arguments: Any) -> Any:
        nonlocal compiled, works
        if works:
            try:
                # This alone is refused where torch does not know the version of Python yet.
                compiled = compiled or torch.compile(whole, fullgraph=True, dynamic=False)
                with torch._dynamo.config.patch(_LIMITS):
                    return compiled(*arguments)
            # Backends raise various exceptions when they find no compiler or cannot compile, so
            # catch all. The plain call below raises errors of the function itself again.
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                works, compiled = False, None
                warn_user(
                    f"The network could not be compiled and runs as it is: {error}",
                )
        return function(*arguments)

    return call
