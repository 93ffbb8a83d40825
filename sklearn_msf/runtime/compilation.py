"""Compilation with :func:`torch.compile`, with a fallback where it does not work."""

from collections.abc import Callable
from typing import Any

import torch

from sklearn_msf.runtime.out_of_memory import is_out_of_memory
from sklearn_msf.runtime.user_warnings import warn_user

__all__ = ["compile_or_not"]

# How often torch compiles before it gives up, by default 8 times. It counts all that a process
# compiles here together: in training each division of a batch, of each network of another form.
# Networks of one form share what was compiled.
_LIMITS = {"recompile_limit": 1024, "accumulated_recompile_limit": 1024}


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

    def call(*arguments: Any) -> Any:
        nonlocal compiled, works
        if works:
            try:
                # This alone is refused where torch does not know the version of Python yet.
                compiled = compiled or torch.compile(function, fullgraph=True, dynamic=False)
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
