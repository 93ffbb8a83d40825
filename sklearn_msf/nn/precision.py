"""Which precision is faster on this machine."""

import functools
import statistics
import threading
import time

import torch

from sklearn_msf.nn.unet import ResidualBlock
from sklearn_msf.runtime.device import autocast, seeded_weights, to_channels_last, worker_threads

__all__ = ["PRECISIONS", "resolve_precision"]

PRECISIONS = ("auto", "float32", "bfloat16")

# A block in the middle of the default network, and a batch that keeps the cores busy.
_CHANNELS = 64
_SIDE = 14
_BATCH_SIZE = 32
_N_ROUNDS = 7
# Below this speed-up one round tells.
_CLEARLY_SLOWER = 0.6
# bfloat16 has to be this much faster: it rounds, and machines where it is no faster should agree.
_MARGIN = 1.1

# One measurement at a time, and one a process.
_MEASURING = threading.Lock()


def resolve_precision(precision: str, device: torch.device) -> str:
    """Turn "auto" into the precision that suits the machine.

    On a CPU by a calibration: steps of one block of the network, timed in both precisions once
    a process (fractions of a second). On CUDA by the hardware: bfloat16 where the card has it.

    Parameters
    ----------
    precision : {"auto", "float32", "bfloat16"}
        The wish.
    device : torch.device
        Where the network runs.

    Returns
    -------
    {"float32", "bfloat16"}
    """
    if precision != "auto":
        return precision
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return "bfloat16" if native else "float32"
    if device.type != "cpu":
        return "float32"
    with _MEASURING:
        return "bfloat16" if _bfloat16_speed_up() >= _MARGIN else "float32"


@functools.cache
def _bfloat16_speed_up() -> float:
    """Seconds of a training step of a block in float32, in those of one in bfloat16."""
    # One thread and the time it computes: what other processes leave of the machine, and how
    # many threads there are, changes nothing.
    with worker_threads(1) as executor:
        return executor.submit(_time_both).result()


def _time_both() -> float:
    cpu = torch.device("cpu")
    # Whatever defaults the caller has set; modes are those of a thread.
    with cpu, seeded_weights(0):
        block = to_channels_last(ResidualBlock(_CHANNELS, _CHANNELS, _CHANNELS, 0.0).float())
    x = torch.zeros(_BATCH_SIZE, _CHANNELS, _SIDE, _SIDE, dtype=torch.float32, device=cpu)
    x = x.to(memory_format=torch.channels_last)
    time_embedding = torch.zeros(_BATCH_SIZE, _CHANNELS, dtype=torch.float32, device=cpu)

    def seconds(precision: str) -> float:
        start = time.thread_time()
        with autocast(cpu, precision):
            loss = block(x, time_embedding).float().sum()
        torch.autograd.grad(loss, list(block.parameters()))
        return time.thread_time() - start

    # The first steps set up kernels.
    seconds("float32"), seconds("bfloat16")
    ratios: list[float] = []
    while len(ratios) < _N_ROUNDS:
        ratios.append(seconds("float32") / seconds("bfloat16"))
        if ratios[0] < _CLEARLY_SLOWER:
            break
    return statistics.median(ratios)
