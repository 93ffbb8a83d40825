"""Choice of the faster precision on this machine."""

import functools
import statistics
import time
from collections.abc import Callable

import torch

from sklearn_msf.nn.unet import ResidualBlock
from sklearn_msf.runtime.device import autocast, seeded_weights, to_channels_last, worker_threads
from sklearn_msf.runtime.locks import fork_safe_lock
from sklearn_msf.runtime.torch_state import standard_torch

__all__ = ["PRECISIONS", "resolve_precision"]

PRECISIONS = ("auto", "float32", "bfloat16")

# Size of a block in the middle of the default network, and a batch that keeps a core busy.
_CHANNELS = 64
_SIDE = 14
_BATCH_SIZE = 32
_N_ROUNDS = 7
# Shortest time of a measurement, in movements of the clock.
_N_TICKS = 8
# If the first ratio is surely below this, bfloat16 is clearly slower and one round is enough.
_CLEARLY_SLOWER = 0.6
# bfloat16 must be faster by this factor: it rounds more, and measurement noise should not decide
# on machines where both are equally fast.
_MARGIN = 1.1

# Only one thread measures; others wait and use the cached result.
_MEASURING = fork_safe_lock()


def resolve_precision(precision: str, device: torch.device) -> str:
    """Turn "auto" into the precision that suits the machine.

    On a CPU, training steps of one block of the network are timed in both precisions, once per
    process (fractions of a second). On CUDA it is bfloat16 if the GPU supports it natively, on
    other devices float32.

    Parameters
    ----------
    precision : {"auto", "float32", "bfloat16"}
        Requested precision.
    device : torch.device
        Where the network runs.

    Returns
    -------
    {"float32", "bfloat16"}
    """
    if precision != "auto":
        return precision
    if device.type == "cuda":
        with torch.cuda.device(device):
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        return "bfloat16" if native else "float32"
    if device.type != "cpu":
        return "float32"
    with _MEASURING:
        return "bfloat16" if _bfloat16_speed_up() >= _MARGIN else "float32"


@functools.cache
def _bfloat16_speed_up() -> float:
    """Measure how many times faster bfloat16 is than float32 in a training step of a block."""
    # Measure the CPU time of a single thread: it does not depend on the number of threads or on
    # the load by other processes.
    with worker_threads(1) as executor:
        return executor.submit(_time_both).result()


@standard_torch()
def _time_both() -> float:
    cpu = torch.device("cpu")
    with seeded_weights(0):
        block = to_channels_last(ResidualBlock(_CHANNELS, _CHANNELS, _CHANNELS, 0.0))
    x = torch.zeros(_BATCH_SIZE, _CHANNELS, _SIDE, _SIDE).to(memory_format=torch.channels_last)
    time_embedding = torch.zeros(_BATCH_SIZE, _CHANNELS)

    def step(precision: str) -> None:
        with autocast(cpu, precision):
            loss = block(x, time_embedding).float().sum()
        torch.autograd.grad(loss, list(block.parameters()))

    return _speed_up(step)


def _speed_up(step: Callable[[str], None]) -> float:
    """Measure how many times faster a step is in bfloat16."""
    tick, n_steps = _tick(), 1

    def seconds(precision: str) -> float:
        start = time.thread_time()
        for _ in range(n_steps):
            step(precision)
        return time.thread_time() - start

    # The first steps also set up kernels.
    step("float32")
    step("bfloat16")
    while True:
        in_float32, in_bfloat16 = seconds("float32"), seconds("bfloat16")
        if in_float32 + tick < _CLEARLY_SLOWER * (in_bfloat16 - tick):
            return in_float32 / in_bfloat16
        if min(in_float32, in_bfloat16) >= _N_TICKS * tick:
            break
        n_steps *= 2
    ratios = [in_float32 / in_bfloat16]
    ratios += [seconds("float32") / seconds("bfloat16") for _ in range(_N_ROUNDS - 1)]
    return statistics.median(ratios)


def _tick() -> float:
    """Measure by how much the clock moves at a time: on Windows it is a 64th of a second."""
    start = time.thread_time()
    while (now := time.thread_time()) == start:
        pass
    return now - start
