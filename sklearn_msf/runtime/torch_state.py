"""Torch's settings while this package computes, and as the caller had them before and after.

Some settings belong to a thread (gradients, autocast, default device), others to the process
(default dtype, TF32, algorithms of cuDNN). Those of the process are shared by all threads that
compute at the same time: the first one saves them, and the last one restores them.
"""

import contextlib
import functools
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Generic, NamedTuple, TypeVar

import torch

from sklearn_msf.runtime.locks import fork_safe_lock

__all__ = ["deterministic_convolutions", "standard_torch", "whole_float32"]

_AUTOCAST_DEVICES = ("cpu", "cuda", "mps", "xpu")

Saved = TypeVar("Saved")


@contextlib.contextmanager
def standard_torch() -> Iterator[None]:
    """Compute with torch's own settings, whatever the caller has set; restore them on exit.

    New tensors are float32 and on the CPU, gradients are recorded, inference mode and autocast
    are off. The default dtype belongs to the process: if the caller has set another one, tensors
    that other threads make meanwhile are float32 too. May be nested, and used as a decorator.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_DEFAULT_DTYPE.held())
        # torch.get_default_device fails in torch 2.9 after set_default_device(None).
        if torch.empty(0).device.type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        if not torch.is_grad_enabled():
            stack.enter_context(torch.enable_grad())
        for device_type in _AUTOCAST_DEVICES:
            if torch.is_autocast_enabled(device_type):
                stack.enter_context(torch.autocast(device_type, enabled=False))
        yield


def whole_float32() -> contextlib.AbstractContextManager[None]:
    """Forbid CUDA to round float32 products to TF32; restore the settings on exit."""
    return _TF32_SETTINGS.held()


def deterministic_convolutions() -> contextlib.AbstractContextManager[None]:
    """Let cuDNN use only algorithms that repeat to the last bit; restore the settings on exit."""
    return _CONVOLUTIONS.held()


class _ProcessSetting(Generic[Saved]):
    """A setting of the process, shared by the threads that need it at the same time.

    Parameters
    ----------
    save : callable
        Returns the setting, to be restored.
    change : callable
        Sets what all threads need.
    restore : callable
        Takes what `save` returned.
    """

    def __init__(
        self,
        save: Callable[[], Saved],
        change: Callable[[], None],
        restore: Callable[[Saved], None],
    ):
        self._save, self._change, self._restore = save, change, restore
        self._lock = fork_safe_lock()
        # Threads that need the setting, as often as each has asked for it.
        self._holders: list[int] = []
        self._saved: list[Saved] = []
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._leave_to_parent)

    def _leave_to_parent(self) -> None:
        """Forget in a forked process the threads that it does not have."""
        here = threading.get_ident()
        self._holders = [thread for thread in self._holders if thread == here]
        self._update()

    def _update(self) -> None:
        if self._holders:
            self._change()
        elif self._saved:
            self._restore(self._saved.pop())

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Ask for the setting while the context lasts."""
        mine = threading.get_ident()
        with self._lock:
            if not self._holders:
                self._saved = [self._save()]
            # First the change: if it fails, this thread does not hold the setting.
            self._change()
            self._holders.append(mine)
        try:
            yield
        finally:
            with self._lock:
                # A forked process has forgotten those of other threads.
                if mine in self._holders:
                    self._holders.remove(mine)
                self._update()


def _set_float32() -> None:
    if torch.get_default_dtype() != torch.float32:
        torch.set_default_dtype(torch.float32)


def _restore_dtype(saved: torch.dtype) -> None:
    if torch.get_default_dtype() != saved:
        torch.set_default_dtype(saved)


# Torch has an old and a new way to set TF32, and raises a RuntimeError where one reads the old
# settings after somebody has used the new ones. The old way comes first here, because
# torch.compile reads the old settings.


class _TF32(NamedTuple):
    """Settings for matrix products and convolutions, in the old or the new way."""

    is_old_way: bool
    products: Any
    convolutions: Any


@functools.cache
def _use_up_advice() -> None:
    """Let torch say unheard that there is a new way: 2.9 and 2.10 say so once in a process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Both are read first: reading fails, and nothing is set, where the new way was used.
        saved = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        _restore_tf32(_TF32(True, *saved))


def _save_tf32() -> _TF32:
    # A general setting, which exists in the new way only, would override old ones.
    if getattr(torch.backends, "fp32_precision", "none") == "none":
        with contextlib.suppress(RuntimeError):
            _use_up_advice()
            old = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
            return _TF32(True, *old)
    products, convolutions = _new_settings()
    return _TF32(False, products.fp32_precision, convolutions.fp32_precision)


def _new_settings() -> tuple[Any, Any]:
    """Return the owners of the new settings, which torch's type annotations lack."""
    backends: Any = torch.backends
    return backends.cuda.matmul, backends.cudnn.conv


def _forbid_tf32() -> None:
    if _save_tf32().is_old_way:
        _restore_tf32(_TF32(True, "highest", False))
    else:
        _restore_tf32(_TF32(False, "ieee", "ieee"))


def _restore_tf32(saved: _TF32) -> None:
    if saved.is_old_way:
        torch.set_float32_matmul_precision(saved.products)
        torch.backends.cudnn.allow_tf32 = saved.convolutions
        return
    products, convolutions = _new_settings()
    products.fp32_precision = saved.products
    convolutions.fp32_precision = saved.convolutions


def _save_convolutions() -> tuple[bool, bool]:
    return torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark


def _make_convolutions_repeat() -> None:
    # A benchmark may choose another algorithm in every run.
    _restore_convolutions((True, False))


def _restore_convolutions(saved: tuple[bool, bool]) -> None:
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = saved


_DEFAULT_DTYPE = _ProcessSetting(torch.get_default_dtype, _set_float32, _restore_dtype)
_TF32_SETTINGS = _ProcessSetting(_save_tf32, _forbid_tf32, _restore_tf32)
_CONVOLUTIONS = _ProcessSetting(
    _save_convolutions, _make_convolutions_repeat, _restore_convolutions
)
