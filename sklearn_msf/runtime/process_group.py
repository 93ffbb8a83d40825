"""Training by several processes at once: torch's process group, or a process by itself.

All processes of a group hold the same network and the same data, and each computes the gradients
of its part of every batch. What could differ between them (seeds, measured times, the results of
callbacks) is taken from the first one.
"""

import atexit
import contextlib
import os
import pickle
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from sklearn_msf.exceptions import ProcessGroupError
from sklearn_msf.runtime.user_warnings import warn_user

__all__ = ["ProcessGroup", "join_process_group", "telling_others"]

# After this time without a sign of the others a process that trains ends with an error.
_TIMEOUT = timedelta(seconds=45)
# So long a process waits for the others to begin: some may read or download their data for longer.
_TIMEOUT_OF_BEGIN = timedelta(minutes=30)
_TIMEOUT_OF_LEAVING = timedelta(seconds=2)
# After this time it says that it waits.
_SECONDS_OF_SILENCE = 60.0
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
        """Return the value of the first process: there itself, elsewhere a copy.

        Raises
        ------
        ProcessGroupError
            In every process, if the value cannot be pickled.
        """
        if self.size == 1:
            return value
        sent = [_pickled(value) if self.is_first else None]
        with _answering():
            dist.broadcast_object_list(sent, src=0)
        pickled: Any = sent[0]
        if isinstance(pickled, str):
            raise ProcessGroupError(
                f"What the first process sends to the others cannot be pickled: {pickled}. The "
                "class of an autoencoder or a backbone must be defined at the top level of a "
                "module, and the object must hold no lambdas, local functions or open files."
            )
        received: Any = value if self.is_first else pickle.loads(pickled)
        return received

    def tensors_of_first(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of the first process, in memory where there are others."""
        if self.size == 1:
            return dict(tensors)
        return self.of_first({name: tensor.cpu() for name, tensor in tensors.items()})

    def gather(self, value: Value) -> list[Value]:
        """Return the values of all processes, which must be possible to pickle."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with _answering():
            dist.all_gather_object(values, value)
        return values

    def check_same(self, values: Mapping[str, str]) -> None:
        """Raise an error in every process if values are not the same in all of them.

        Parameters
        ----------
        values : mapping of str to str
            Descriptions of values by their names; both stand in the message.

        Raises
        ------
        ProcessGroupError
        """
        of_all = self.gather(dict(values))
        for rank, others in enumerate(of_all):
            names = [
                name for name in {**of_all[0], **others} if of_all[0].get(name) != others.get(name)
            ]
            if names:
                first, other = (
                    ", ".join(f"{name}: {each.get(name)}" for name in names)
                    for each in (of_all[0], others)
                )
                raise ProcessGroupError(
                    f"{' and '.join(names)} of process {rank} differ from those of process 0 "
                    f"({other}; process 0 has {first}). All processes of a group need the same: "
                    "load and split the data alike everywhere, with the same random_state, and to "
                    "go on with a saved model open it when the first process has saved it; fit "
                    "gives each process its part. For separate fits start separate programs "
                    "without torchrun."
                )

    def check_batch(self, n_images: int, batch_size: int) -> None:
        """Refuse a batch that has not one image for each process.

        Parameters
        ----------
        n_images : int
            Number of images in the batch.
        batch_size : int
            The parameter, for the message.

        Raises
        ------
        ValueError
        """
        if n_images < self.size:
            raise ValueError(
                f"A step of {n_images} images (batch_size={batch_size}) is too small for "
                f"{self.size} processes: each needs one. Raise batch_size, if there are more "
                "images, or start fewer processes."
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
        If the group's backend cannot send tensors of the device, another process refuses its
        arguments, or the others do not answer.
    """
    if not dist.is_available() or not (dist.is_initialized() or _is_launched()):
        return ProcessGroup(), device
    if device.type == "cuda":
        # NCCL sends everything by the current device, messages of Python objects too.
        with telling_others():
            device = _own_gpu(device)
        torch.cuda.set_device(device)
    if dist.is_initialized():
        _check_none_refuses(_initialized_group().gather(""))
    else:
        _initialize(device)
    # By device: a group that was initialized without a backend has no name for it.
    backend = str(dist.get_backend_config())
    wanted = f"{device.type}:{_BACKENDS.get(device.type)}"
    if wanted not in backend.split(","):
        raise ProcessGroupError(
            f"The process group has the backend {backend!r}, which is not for training on "
            f"{device}: initialize it with {_BACKENDS.get(device.type, 'gloo')!r}, or set "
            "device='cpu' and 'gloo'."
        )
    return _initialized_group(), device


def _own_gpu(device: torch.device) -> torch.device:
    """Return the GPU of this process.

    It is that of its number, unless the script has initialized the group and chosen another one, or
    the process sees only its own.

    Raises
    ------
    ProcessGroupError
        If there are several GPUs, but fewer than processes.
    """
    if device.index is not None:
        return device
    current = torch.cuda.current_device()
    if "LOCAL_RANK" not in os.environ or (dist.is_initialized() and current):
        return torch.device("cuda", current)
    number, n_gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if n_gpus == 1:
        return torch.device("cuda", 0)
    if number >= n_gpus:
        raise ProcessGroupError(
            f"Process {number} of this machine has no GPU: there are {n_gpus}. Start as many "
            "processes as there are GPUs."
        )
    return torch.device("cuda", number)


def _initialized_group() -> ProcessGroup:
    return ProcessGroup(dist.get_rank(), dist.get_world_size())


@contextlib.contextmanager
def telling_others() -> Iterator[None]:
    """Tell the other processes, which join the group, of an error that keeps this one from it.

    Without it they would wait until they give up. What is inside must come before
    :func:`join_process_group`.
    """
    try:
        yield
    except Exception as error:
        # This process ends with its own error, whatever becomes of the others.
        with contextlib.suppress(RuntimeError, ValueError):
            _tell(f"{type(error).__name__}: {error}")
        raise


def _tell(refusal: str) -> None:
    if not dist.is_available():
        return
    if dist.is_initialized():
        _initialized_group().gather(refusal)
    elif _is_launched():
        # The error itself comes only when all have been told. Warnings may be errors.
        with contextlib.suppress(Warning):
            warn_user(f"This process tells the others, and then ends with this error: {refusal}")
        _meet(refusal)


def _is_launched() -> bool:
    """Whether a launcher such as torchrun started several processes."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return several and all(name in os.environ for name in _LAUNCHER)


def _check_none_refuses(reasons: Sequence[str]) -> None:
    for rank, reason in enumerate(reasons):
        if reason:
            raise ProcessGroupError(
                f"Process {rank} of the group cannot train, so none does: {reason}"
            )


@contextlib.contextmanager
def _answering() -> Iterator[None]:
    """Turn the errors of torch about processes that are gone into one of ours."""
    try:
        yield
    except RuntimeError as error:
        # In NCCL's words.
        if "Duplicate GPU" in str(error):
            raise ProcessGroupError(
                "Several processes have the same GPU: start as many processes as there are GPUs, "
                "or let each see its own only (CUDA_VISIBLE_DEVICES), and leave the number out of "
                f"device. {error}"
            ) from error
        raise ProcessGroupError(
            "A process of the group ended or did not answer, so training ends here too; see its "
            f"own output. With checkpoint_dir the run can go on. {error}"
        ) from error


def _initialize(device: torch.device) -> None:
    backend = _BACKENDS.get(device.type, "gloo")
    try:
        store, rank, reasons = _meet("")
        _check_none_refuses(reasons)
        # From here on all are there. NCCL meets in the store as late as at its first message.
        store.set_timeout(_TIMEOUT)
        if backend == "nccl":
            # Else a process that waits for one that is gone is ended without an error.
            os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")
        dist.init_process_group(
            backend, store=store, rank=rank, world_size=len(reasons), timeout=_TIMEOUT
        )
    except (RuntimeError, ValueError) as error:
        if isinstance(error, ProcessGroupError):
            raise
        raise ProcessGroupError(
            f"The process group of torchrun could not be joined with {backend!r}: {error}"
        ) from error
    # Later fits of this process use the group too.
    atexit.register(_leave, store, rank, len(reasons))


def _pickled(value: Any) -> bytes | str:
    """Pickle a value, or say why that fails."""
    try:
        return pickle.dumps(value)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _meet(refusal: str) -> tuple[Any, int, list[str]]:
    """Wait for the other processes, and exchange what keeps each of them from training, if any.

    Returns
    -------
    store : torch.distributed.Store
        Where they met.
    rank : int
        Number of this process.
    refusals : list of str
        Of all processes.
    """
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    with _saying_that_it_waits(rank, size):
        store, rank, size = next(dist.rendezvous("env://", timeout=_TIMEOUT_OF_BEGIN))
        if os.environ.get("GROUP_WORLD_SIZE") == "1":
            # After a restart of all processes torchrun's store still has what they wrote before.
            # Several machines may count restarts differently.
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            store = dist.PrefixStore(f"attempt {attempt}", store)
        # A later fit meets again if this one is refused.
        meeting = store.add(f"meetings/{rank}", 1)
        store.set(f"begins/{meeting}/{rank}", refusal)
        keys = [f"begins/{meeting}/{other}" for other in range(size)]
        store.wait(keys, _TIMEOUT_OF_BEGIN)
    refusals = [store.get(key).decode() for key in keys]
    if any(refusals):
        _let_first_be_last(store, f"has read/{meeting}", rank, size, _TIMEOUT)
    return store, rank, refusals


@contextlib.contextmanager
def _saying_that_it_waits(rank: int, size: int) -> Iterator[None]:
    """Warn once if the others do not come: they may have ended, or may never call fit."""
    text = (
        f"Process {rank} of {size} waits in fit for the others: for {_TIMEOUT_OF_BEGIN} in all, "
        "then it ends with an error. See the output of those that do not come."
    )
    timer = threading.Timer(_SECONDS_OF_SILENCE, warnings.warn, [text])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _leave(store: Any, rank: int, size: int) -> None:
    """Leave the group; the first process goes last.

    On a busy machine others were seen to abort at their end when the store was gone before them.
    """
    if dist.is_initialized():
        dist.destroy_process_group()
    _let_first_be_last(store, "has left", rank, size, _TIMEOUT_OF_LEAVING)


def _let_first_be_last(store: Any, done: str, rank: int, size: int, timeout: timedelta) -> None:
    """Note that this process has done something; in the first one, wait for the others to do it.

    The store may be in the first process, and end with it. Others may be gone already.
    """
    with contextlib.suppress(RuntimeError):
        store.set(f"{done}/{rank}", "")
        if rank == 0:
            store.wait([f"{done}/{other}" for other in range(1, size)], timeout)
