"""Computation in batches: in parallel on a CPU, in smaller batches when memory runs out."""

import logging
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch

from sklearn_msf.runtime.batch_sizes import SmallBatches
from sklearn_msf.runtime.cuda_graphs import empty_cache
from sklearn_msf.runtime.device import worker_threads
from sklearn_msf.runtime.out_of_memory import is_out_of_memory

__all__ = ["in_batches"]

_LOG = logging.getLogger("sklearn_msf")

Result = TypeVar("Result")


def in_batches(
    run: Callable[[int, int], Result],
    n_rows: int,
    batch_size: int,
    device: torch.device,
    report: Callable[[int], object] | None = None,
    small: SmallBatches[Any] | None = None,
    *,
    divides: bool = False,
) -> list[Result]:
    """Call run(start, batch_size) for each batch, and halve the batches when memory runs out.

    The calls run without gradients. On a CPU they run in as many threads as torch uses, each on
    one core, so that the result of a call does not depend on the other calls.

    Parameters
    ----------
    run : callable
        Handles the samples from the index `start` on, padded to the size of a batch.
    n_rows : int
        Number of samples.
    batch_size : int
        Samples in a batch.
    device : torch.device
        Where the batches are computed.
    report : callable, optional
        Called after each batch with the number of its samples.
    small : SmallBatches, optional
        Finds a smaller size for a batch that is not full; it has the full size by default.
    divides : bool, default=False
        Whether a CPU with more cores than batches gets smaller ones, if `small` finds that they
        have the same bits. It pays where a batch takes longer than what `small` tries.

    Returns
    -------
    list
        Results in the order of the batches.
    """
    results: list[Result] = []
    start = 0
    while start < n_rows:
        try:
            n_a_task = batch_size
            if divides and small is not None and device.type == "cpu":
                n_a_task = _rows_a_task(n_rows - start, batch_size, small)
            starts = range(start, n_rows, n_a_task)
            for result in _side_by_side(run, starts, batch_size, device, small):
                results.append(result)
                if report is not None:
                    report(min(n_a_task, n_rows - start))
                start += n_a_task
        except (MemoryError, RuntimeError) as error:
            if batch_size == 1 or not is_out_of_memory(error):
                raise
            batch_size //= 2
            _LOG.warning("Out of memory: going on with batches of %d.", batch_size)
        else:
            break
        # The exception no longer keeps the tensors of the failed batch alive: free their memory.
        if device.type == "cuda":
            empty_cache()
    return results


def _rows_a_task(n_rows: int, batch_size: int, small: SmallBatches[Any]) -> int:
    """Divide rows that would not fill a batch for each core, if the bits stay the same."""
    n_threads, n_a_task = torch.get_num_threads(), 1
    while n_a_task * n_threads < n_rows:
        n_a_task *= 2
    if n_a_task >= min(batch_size, n_rows):
        return batch_size
    # Sizes are tried where batches run.
    with worker_threads(1) as executor:
        find = torch.inference_mode()(small.size)
        return executor.submit(find, 0, n_a_task, batch_size, n_a_task).result()


def _side_by_side(
    run: Callable[[int, int], Result],
    starts: range,
    batch_size: int,
    device: torch.device,
    small: SmallBatches[Any] | None,
) -> Iterator[Result]:
    """Run the batches, on a CPU in as many threads as torch uses."""

    # Inference mode is local to a thread: each worker thread must enter it.
    @torch.inference_mode()
    def one(start: int) -> Result:
        size = starts.step
        # Of a division all parts have one size, which was seen to be right.
        if small is not None and size == batch_size:
            size = small.size(start, min(size, starts.stop - start), batch_size)
        return run(start, size)

    if device.type != "cpu":
        yield from map(one, starts)
        return
    with worker_threads(len(starts)) as executor:
        yield from executor.map(one, starts)
