"""Errors that say that memory ran out, on any device."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["is_out_of_memory", "naming_what_takes_memory"]

# Some allocators and libraries raise a plain RuntimeError, which only its text identifies: of a CPU
# under Linux and Windows, of cuBLAS, of Apple's GPUs, of CUDA, and of cuDNN, which finds no engine
# where none has the memory that it needs.
_TEXTS = (
    "can't allocate memory",
    "not enough memory",
    "backend out of memory",
    "Invalid buffer size",
    "ALLOC_FAILED",
    "CUDA error: out of memory",
    "unable to find an engine",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory ran out, on any device."""
    known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return known or any(text in str(error) for text in _TEXTS)


@contextmanager
def naming_what_takes_memory(advice: str) -> Iterator[None]:
    """Raise a MemoryError that says what ran out of memory, and what to lower, if memory runs out.

    Parameters
    ----------
    advice : str
        Says both, without a full stop.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryError(f"{advice}. ({error})") from error
