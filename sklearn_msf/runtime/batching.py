"""Passes over many rows: batches of one size, side by side on a CPU, smaller without memory."""

import logging
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from sklearn_msf.runtime.device import worker_threads

__all__ = ["in_batches"]

_LOG = logging.getLogger("sklearn_msf")
_OUT_OF_MEMORY = ("can't allocate memory", "ALLOC_FAILED")

Result = TypeVar("Result")


def in_batches(
    run: Callable[[int, int], Result],
    n_rows: int,
    batch_size: int,
    device: torch.device,
    report: Callable[[int], object] | None = None,
) -> list[Result]:
    """Call run(start, batch_size) for each batch, with smaller ones where memory runs out.

    Runs without gradients, on a CPU on as many threads as torch has, each with one core: what
    a call returns does not depend on the others.

    Parameters
    ----------
    run : callable
        Handles the rows from `start` on, `batch_size` of them or those that are left.
    n_rows : int
        Number of rows.
    batch_size : int
        Rows of a batch.
    device : torch.device
        Where the batches are computed.
    report : callable, optional
        Called after each batch with the number of its rows.

    Returns
    -------
    list
        Results in the order of the rows.
    """
    results: list[Result] = []
    start = 0
    while start < n_rows:
        try:
            for result in _side_by_side(run, range(start, n_rows, batch_size), batch_size, device):
                results.append(result)
                if report is not None:
                    report(min(batch_size, n_rows - start))
                start += batch_size
        except (MemoryError, RuntimeError) as error:
            if batch_size == 1 or not _is_out_of_memory(error):
                raise
            batch_size //= 2
            _LOG.warning("Out of memory: going on with batches of %d.", batch_size)
        else:
            break
        # Here the error, and with it what it held, is gone.
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return results


def _is_out_of_memory(error: BaseException) -> bool:
    # Not every allocator has an error of its own.
    known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return known or any(text in str(error) for text in _OUT_OF_MEMORY)


def _side_by_side(
    run: Callable[[int, int], Result], starts: range, batch_size: int, device: torch.device
) -> Iterator[Result]:
    """Run the batches, on a CPU on as many threads as torch has."""

    # Both modes belong to the thread that sets them.
    @torch.inference_mode()
    def one(start: int) -> Result:
        return run(start, batch_size)

    if device.type != "cpu":
        yield from map(one, starts)
        return
    with worker_threads(len(starts)) as executor:
        yield from executor.map(one, starts)
