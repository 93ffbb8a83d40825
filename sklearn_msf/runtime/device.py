"""Devices, precisions and threads."""

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import TypeVar

import torch

__all__ = [
    "autocast",
    "float32_rounding",
    "resolve_device",
    "seeded_weights",
    "tensor_float32",
    "to_channels_last",
    "worker_threads",
]

Module = TypeVar("Module", bound=torch.nn.Module)


def resolve_device(device: str | torch.device) -> torch.device:
    """Turn "auto" into the best device at hand and check any other.

    Parameters
    ----------
    device : str or torch.device
        "auto" (CUDA where there is one, else the CPU), "cpu", "cuda", "cuda:1", ...

    Returns
    -------
    torch.device

    Raises
    ------
    ValueError
        Where torch does not know the device, this machine does not have it, or it has no
        float64.
    """
    if isinstance(device, str) and device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
        torch.zeros(1, dtype=torch.float64, device=resolved).item()
    except (RuntimeError, TypeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"device must be 'auto' or a device that torch can use here, got {device!r}."
        ) from error
    return resolved


def to_channels_last(module: Module, device: torch.device | None = None) -> Module:
    """Lay out convolutions as is fast for them, on a device or where they are."""
    # torch's annotations leave memory_format out.
    return module.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]


@contextlib.contextmanager
def autocast(device: torch.device, precision: str) -> Iterator[None]:
    """Run convolutions and products in `precision`; float32 on CUDA is not TF32."""
    low = precision == "bfloat16"
    with (
        float32_rounding(device, precision),
        torch.autocast(device.type, torch.bfloat16, enabled=low),
    ):
        yield


def float32_rounding(
    device: torch.device, precision: str
) -> contextlib.AbstractContextManager[None]:
    """On CUDA, let TF32 round products in bfloat16 runs only, backwards too."""
    if device.type != "cuda":
        return contextlib.nullcontext()
    return tensor_float32(precision == "bfloat16")


# The seed of new weights goes through torch's global generator: one network at a time.
_MAKING_WEIGHTS = threading.Lock()


@contextlib.contextmanager
def seeded_weights(seed: int) -> Iterator[None]:
    """Draw the weights of new networks from a seed; torch's own state is kept."""
    with _MAKING_WEIGHTS, torch.random.fork_rng(devices=[]):
        # torch.manual_seed would seed every GPU too.
        torch.default_generator.manual_seed(seed)
        yield


_STARTING = threading.Lock()


def _take_one_core() -> None:
    # Asking first lets torch set up its threads here, which would undo the setting later.
    torch.get_num_threads()
    torch.set_num_threads(1)


@contextlib.contextmanager
def worker_threads(n_tasks: int) -> Iterator[Executor]:
    """Threads to run the batches of a CPU side by side, each on one core.

    Small images keep two cores busier as two batches on a core each than as one batch whose
    every operation is split in two.

    Parameters
    ----------
    n_tasks : int
        Number of batches; there are as many threads as torch has, and at most one a batch.

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
            # What a thread sets is also what threads made later start with.
            torch.set_num_threads(n_threads)
    with executor:
        yield executor


@contextlib.contextmanager
def tensor_float32(allowed: bool) -> Iterator[None]:
    """Allow or forbid CUDA to round float32 products to TF32, and put the settings back."""
    cudnn = torch.backends.cudnn
    before = torch.get_float32_matmul_precision(), cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        cudnn.allow_tf32 = before[1]
