"""Training by several processes at once: torch's process group, or a process by itself.

All processes of a group hold the same network and the same data, and each computes the gradients
of its part of every batch. What could differ between them (seeds, measured times, the results of
callbacks) is taken from the first one.
"""

import atexit
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from sklearn_msf.exceptions import ProcessGroupError

__all__ = ["ProcessGroup", "join_process_group"]

# After this time without a sign of the others a process that trains ends with an error.
_TIMEOUT = timedelta(seconds=45)
# So long a process waits for the others to begin: some may read or download their data for longer.
_TIMEOUT_OF_BEGIN = timedelta(minutes=30)
# What torchrun sets for each process.
_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_BACKENDS = {"cpu": "gloo", "cuda": "nccl"}

Value = TypeVar("Value")


class ProcessGroup:
    """The processes that train together; a process by itself is a group of one.

    Attributes
    ----------
    rank : int
        Number of this process, from 0.
    size : int
        Number of processes.
    """

    def __init__(self, rank: int = 0, size: int = 1):
        self.rank = rank
        self.size = size

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def of_first(self, value: Value) -> Value:
        """Return the value of the first process, which must be possible to pickle."""
        if self.size == 1:
            return value
        values = [value if self.is_first else None]
        with _answering():
            dist.broadcast_object_list(values, src=0)
        received: Any = values[0]
        return received

    def check_same(self, what: str, value: Any) -> None:
        """Raise an error in every process if a value is not the same in all of them.

        Parameters
        ----------
        what : str
            Names the value in the message.
        value : object
            A value that can be pickled and compared.

        Raises
        ------
        ProcessGroupError
        """
        if self.size == 1:
            return
        values: list[Any] = [None] * self.size
        with _answering():
            dist.all_gather_object(values, value)
        others = [rank for rank in range(self.size) if values[rank] != values[0]]
        if others:
            raise ProcessGroupError(
                f"{what} of process {others[0]} differ from those of process 0: all processes of "
                "a group must be given the same. For separate fits start separate programs."
            )

    def average_(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their means over the processes."""
        if self.size == 1 or not tensors:
            return
        # One message instead of hundreds.
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        with _answering():
            dist.all_reduce(flat)
        flat /= self.size
        parts = flat.split([tensor.numel() for tensor in tensors])
        means = [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]
        torch._foreach_copy_(list(tensors), means)

    def part(self, n: int, first: int = 0) -> slice:
        """Return this process's part of n items, which are dealt out one by one.

        `first` is the number of items that were dealt out before, so that in all no process gets
        more than one item more than another.
        """
        return slice((self.rank - first) % self.size, n, self.size)


def join_process_group(device: torch.device) -> tuple[ProcessGroup, torch.device]:
    """Join the process group that was initialized, or the one that torchrun started.

    Parameters
    ----------
    device : torch.device
        Device of the training. "cuda" without a number is the one of this process.

    Returns
    -------
    group : ProcessGroup
        A group of one if there is no other.
    device : torch.device
        Device of this process.

    Raises
    ------
    ProcessGroupError
        If the group's backend cannot send tensors of the device, or the others do not answer.
    """
    if not dist.is_available():
        return ProcessGroup(), device
    if not dist.is_initialized():
        if int(os.environ.get("WORLD_SIZE", "1")) < 2 or any(
            name not in os.environ for name in _LAUNCHER
        ):
            return ProcessGroup(), device
        _initialize(device)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    backend = str(dist.get_backend())
    if device.type not in _BACKENDS or _BACKENDS[device.type] not in backend:
        raise ProcessGroupError(
            f"The process group has the backend {backend!r}, which is not for training on "
            f"{device}: initialize it with {_BACKENDS.get(device.type, 'gloo')!r}, or set "
            "device='cpu' and 'gloo'."
        )
    return ProcessGroup(dist.get_rank(), dist.get_world_size()), device


@contextmanager
def _answering() -> Iterator[None]:
    """Turn the errors of torch about processes that are gone into one of ours."""
    try:
        yield
    except RuntimeError as error:
        raise ProcessGroupError(
            "A process of the group ended or did not answer, so training ends here too; see its "
            f"own output. With checkpoint_dir the run can go on. {error}"
        ) from error


def _initialize(device: torch.device) -> None:
    backend = _BACKENDS.get(device.type, "gloo")
    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=_TIMEOUT_OF_BEGIN))
        store.set(f"begins/{rank}", "")
        store.wait([f"begins/{other}" for other in range(size)], _TIMEOUT_OF_BEGIN)
        # From here on all are there. NCCL meets in the store as late as at its first message.
        store.set_timeout(_TIMEOUT)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise ProcessGroupError(
            f"The process group of torchrun could not be joined with {backend!r}: {error}"
        ) from error
    # Later fits of this process use the group too.
    atexit.register(_leave)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
