"""Devices, precisions and threads."""

import contextlib
import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import TypeVar

import torch

from sklearn_msf.runtime.locks import fork_safe_lock
from sklearn_msf.runtime.tensor_axes import channels_last
from sklearn_msf.runtime.torch_state import deterministic_convolutions, whole_float32

__all__ = [
    "arithmetic",
    "autocast",
    "has_float64",
    "resolve_device",
    "seeded_weights",
    "to_channels_last",
    "worker_threads",
]

_WITH_FLOAT64 = ("cpu", "cuda")

Module = TypeVar("Module", bound=torch.nn.Module)


def resolve_device(device: str | torch.device) -> torch.device:
    """Turn "auto" into the best available device, and check any other device.

    Parameters
    ----------
    device : str or torch.device
        "auto" (CUDA if available, else the CPU), "cpu", "cuda", "cuda:1", ...

    Returns
    -------
    torch.device

    Raises
    ------
    ValueError
        If torch does not know the device or this machine does not have it.
    """
    if isinstance(device, str) and device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
        torch.zeros(1, dtype=torch.float32, device=resolved).item()
    except (RuntimeError, TypeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"device must be 'auto' or a device that torch can use here, got {device!r}."
        ) from error
    return resolved


def has_float64(device: torch.device) -> bool:
    """Tell whether a device has float64; Apple's GPUs and some others have not."""
    return device.type in _WITH_FLOAT64


def to_channels_last(module: Module, device: torch.device | None = None) -> Module:
    """Store convolution weights in channels_last, the fast layout, and move them if asked to."""
    if device is not None:
        module.to(device)
    # One by one: a network may have weights of images and of volumes.
    for tensor in itertools.chain(module.parameters(), module.buffers()):
        if tensor.ndim in (4, 5):
            tensor.data = tensor.data.contiguous(memory_format=channels_last(tensor.ndim))
    return module


@contextlib.contextmanager
def autocast(device: torch.device, precision: str) -> Iterator[None]:
    """Run convolutions and matrix products in `precision`; float32 on CUDA is not TF32."""
    low = precision == "bfloat16"
    with (
        arithmetic(device),
        # Inside a caller's autocast the cache would outlast this one, with weights of an old step.
        torch.autocast(device.type, torch.bfloat16, enabled=low, cache_enabled=False),
    ):
        yield


@contextlib.contextmanager
def arithmetic(device: torch.device) -> Iterator[None]:
    """Let CUDA repeat its results to the last bit, without TF32.

    Use it around what does not run inside :func:`autocast`, such as backward passes. TF32 is a
    setting of the process: if some runs used it, others beside them would change their bits.
    """
    if device.type != "cuda":
        yield
        return
    with whole_float32(), deterministic_convolutions():
        yield


# New weights are drawn from torch's global generator, so make only one network at a time.
_MAKING_WEIGHTS = fork_safe_lock()


@contextlib.contextmanager
def seeded_weights(seed: int) -> Iterator[None]:
    """Draw the weights of new networks from a seed, and restore torch's generator afterwards.

    Torch's layers draw from the global generator only. If other threads draw from it meanwhile,
    they get numbers of this seed.
    """
    with _MAKING_WEIGHTS, torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also seed every GPU.
        torch.default_generator.manual_seed(seed)
        yield


_STARTING = fork_safe_lock()


def _take_one_core() -> None:
    # The first query makes torch set up its threads, which would overwrite an earlier setting.
    torch.get_num_threads()
    torch.set_num_threads(1)


@contextlib.contextmanager
def worker_threads(n_tasks: int) -> Iterator[Executor]:
    """Start threads that run batches on a CPU in parallel, each on one core.

    With small images, two batches on one core each use two cores better than one batch of which
    every operation is split over both cores.

    Parameters
    ----------
    n_tasks : int
        Number of batches. There are as many threads as torch uses, but at most one per batch.

    Yields
    ------
    concurrent.futures.Executor
    """
    with _STARTING:
        n_threads = torch.get_num_threads()
        n_workers = max(1, min(n_threads, n_tasks))
        executor = ThreadPoolExecutor(n_workers, "sklearn_msf", _take_one_core)
        everyone = threading.Barrier(n_workers)
        try:
            for started in [executor.submit(everyone.wait) for _ in range(n_workers)]:
                started.result()
        except BaseException:
            everyone.abort()
            executor.shutdown(wait=False, cancel_futures=True)
            raise
        finally:
            # The setting of a worker is also the default of threads that start later.
            torch.set_num_threads(n_threads)
    with executor:
        yield executor
