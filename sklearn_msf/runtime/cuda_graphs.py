"""A forward pass captured once as a CUDA graph, and replayed.

A small network has hundreds of short kernels, and launching them takes longer than running
them. A graph launches them all at once. It needs inputs of one shape in one place of memory,
which the padded batches of inference have.
"""

import threading
import warnings
from collections.abc import Callable, Hashable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

__all__ = ["replay"]

# Runs before the capture, in which libraries choose their kernels.
_N_WARM_UP = 3


class _Graph:
    """One captured pass, with inputs and output of its own in memory."""

    def __init__(self, function: Callable[..., Tensor], inputs: tuple[Tensor, ...]):
        self._lock = threading.Lock()
        self._inputs = [value.clone() for value in inputs]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_N_WARM_UP):
                function(*self._inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._output = function(*self._inputs)

    def __call__(self, *inputs: Tensor) -> Tensor:
        # The memory is one for all threads.
        with self._lock:
            for mine, value in zip(self._inputs, inputs, strict=True):
                mine.copy_(value)
            self._graph.replay()
            return self._output.clone()


# Graphs go with the module whose weights they read; they hold no reference to it.
_GRAPHS: WeakKeyDictionary[nn.Module, dict[Hashable, _Graph | None]] = WeakKeyDictionary()
_CAPTURING = threading.Lock()


def replay(
    module: nn.Module, key: Hashable, function: Callable[..., Tensor], *inputs: Tensor
) -> Tensor:
    """Compute function(*inputs), by a CUDA graph from the second call on.

    Parameters
    ----------
    module : nn.Module
        Whose weights the function reads; the graph lives as long.
    key : hashable
        Tells functions of the module apart; shapes are told apart here.
    function : callable
        Function of CUDA tensors, without synchronisation inside.
    *inputs : Tensor
        Its arguments.

    Returns
    -------
    Tensor
        Where the capture fails, with one warning, what the function itself returns.
    """
    full_key = (key, tuple((value.shape, value.dtype, value.device) for value in inputs))
    with _CAPTURING:
        graphs = _GRAPHS.setdefault(module, {})
        if full_key not in graphs:
            graphs[full_key] = _capture(function, inputs)
        graph = graphs[full_key]
    return function(*inputs) if graph is None else graph(*inputs)


def _capture(function: Callable[..., Tensor], inputs: tuple[Any, ...]) -> _Graph | None:
    try:
        return _Graph(function, inputs)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        warnings.warn(
            f"The network could not be captured as a CUDA graph and runs without: {error}",
            stacklevel=3,
        )
        return None
