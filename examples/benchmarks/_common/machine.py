"""The machine: what it is, how fast it is, and measurements in processes of their own.

Budgets are reference seconds: seconds of a machine whose float32 matrix product reaches 150
GFLOP/s on all cores. A script measures its own machine and scales.
"""

import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

__all__ = [
    "REFERENCE_GFLOPS",
    "describe_machine",
    "gemm_gflops",
    "in_own_process",
    "local_seconds",
    "median_milliseconds",
    "peak_memory_mib",
    "product_gflops",
    "reference_seconds",
]

REFERENCE_GFLOPS = 150.0
# Environment variables by which torch, oneDNN and MKL each leave newer instructions out.
_LIMITS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")
# Of slow calls, after three, none is begun after this time.
_MAX_LATENCY_SECONDS = 10.0


def gemm_gflops(size: int = 2048, n_repeats: int = 12) -> float:
    """Best float32 matrix product rate of the CPU, all cores, in GFLOP/s."""
    return product_gflops("cpu", torch.float32, size, n_repeats)


def product_gflops(
    device: torch.device | str,
    dtype: torch.dtype,
    size: int,
    n_repeats: int,
    seconds: float = np.inf,
) -> float:
    """Best rate of n_repeats products of square matrices; none is begun after so many seconds."""
    a, b = torch.randn(2, size, size, device=device, dtype=dtype)
    best, begun = np.inf, time.perf_counter()
    for _ in range(n_repeats):
        start = time.perf_counter()
        # Reading an element waits for the device.
        (a @ b)[0, 0].item()
        best = min(best, time.perf_counter() - start)
        if time.perf_counter() - begun > seconds:
            break
    return 2 * size**3 / best / 1e9


def median_milliseconds(call: Callable[[int], Any], n_calls: int, n_preparing: int = 1) -> float:
    """Median time of some calls, after those that prepare everything; fewer of slow ones."""
    for _ in range(n_preparing):
        call(0)
    times: list[float] = []
    while len(times) < n_calls and (len(times) < 3 or sum(times) < _MAX_LATENCY_SECONDS):
        start = time.perf_counter()
        call(len(times))
        times.append(time.perf_counter() - start)
    return round(1000 * float(np.median(times)), 2)


def local_seconds(reference_seconds: float, gflops: float) -> float:
    """Seconds that reference seconds take on a machine of this rate."""
    return reference_seconds * REFERENCE_GFLOPS / gflops


def reference_seconds(seconds: float, gflops: float) -> float:
    """Reference seconds of seconds on a machine of this rate."""
    return seconds * gflops / REFERENCE_GFLOPS


def describe_machine(gflops: float) -> dict[str, Any]:
    """Describe this machine, as a record has it; `gflops` is its measured rate."""
    return {
        "cpu": _cpu_name(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        # An older CPU is imitated by all three.
        "limits": {name: os.environ[name] for name in _LIMITS if name in os.environ},
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "gflops": round(gflops, 1),
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _child(measure: Callable[..., dict], arguments: tuple, connection: Any) -> None:
    try:
        result = {**measure(*arguments), "peak_memory_mib": peak_memory_mib()}
    except Exception as error:
        connection.send(error)
        return
    connection.send(result)


def peak_memory_mib() -> float:
    """Return the largest memory of this process so far; on a GPU what torch allocated."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if status.is_file():
        # getrusage would count the memory of the parent process too, from before the exec.
        peaks = [
            line
            for line in status.read_text(encoding="utf-8").splitlines()
            if line.startswith("VmHWM")
        ]
        return int(peaks[0].split()[1]) / 1024
    if sys.platform == "win32":
        # It has no module resource.
        import psutil

        return psutil.Process().memory_info().peak_wset / 2**20
    # Bytes on macOS, KiB elsewhere.
    unit = 2**20 if sys.platform == "darwin" else 2**10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def in_own_process(measure: Callable[..., dict], *arguments: Any) -> dict[str, Any]:
    """Run a measurement in a fresh process, and add that process's peak memory.

    On a GPU this is the memory that torch allocated there, else all memory of the process.

    Raises
    ------
    Exception
        What the measurement raised.
    RuntimeError
        If the process ended without a result, as one that runs out of memory does.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(measure, arguments, sender))
    process.start()
    sender.close()
    try:
        result = receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"the measuring process ended with {process.exitcode}") from None
    process.join()
    if isinstance(result, Exception):
        raise result
    return result
