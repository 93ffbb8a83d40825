"""Modules that run more than their classes say, as a user has changed them."""

from torch import nn

__all__ = ["is_changed"]


def is_changed(module: nn.Module) -> bool:
    """Tell whether a part of a module has hooks, a `forward` of its own, or was compiled."""
    return any(
        part._forward_hooks
        or part._forward_pre_hooks
        or part._compiled_call_impl is not None
        or "forward" in vars(part)
        for part in module.modules()
    )
