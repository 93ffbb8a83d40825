"""Which precision is faster on this machine."""

import functools
import statistics
import threading
import time

import torch

from sklearn_msf.device import autocast, seeded_weights, to_channels_last
from sklearn_msf.network import ResidualBlock

__all__ = ["PRECISIONS", "resolve_precision"]

PRECISIONS = ("auto", "float32", "bfloat16")

# A block in the middle of the default network, and a batch that keeps the cores busy.
_CHANNELS = 64
_SIDE = 14
_BATCH_SIZE = 32
_N_ROUNDS = 7
# bfloat16 has to be this much faster: it rounds, and machines where it is no faster should agree.
_MARGIN = 1.1

# One measurement at a time, and one a process.
_MEASURING = threading.Lock()


def resolve_precision(precision: str, device: torch.device) -> str:
    """Turn "auto" into the precision that suits the machine.

    On a CPU by a calibration: steps of one block of the network, timed in both precisions once
    a process (a fraction of a second). On CUDA by the hardware: bfloat16 where the card has it.

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
    device = torch.device("cpu")
    with seeded_weights(0):
        block = to_channels_last(ResidualBlock(_CHANNELS, _CHANNELS, _CHANNELS, 0.0))
    x = torch.zeros(_BATCH_SIZE, _CHANNELS, _SIDE, _SIDE).to(memory_format=torch.channels_last)
    time_embedding = torch.zeros(_BATCH_SIZE, _CHANNELS)

    def seconds(precision: str) -> float:
        start = time.perf_counter()
        with torch.enable_grad(), autocast(device, precision):
            loss = block(x, time_embedding).float().sum()
        torch.autograd.grad(loss, list(block.parameters()))
        return time.perf_counter() - start

    seconds("float32"), seconds("bfloat16")
    # In turns and by the median of the ratios, so that another process disturbs both alike.
    return statistics.median(seconds("float32") / seconds("bfloat16") for _ in range(_N_ROUNDS))
