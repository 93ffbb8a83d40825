"""Forward passes that are captured once as CUDA graphs and then replayed.

A small network has hundreds of short kernels, and launching them takes longer than running
them. A graph launches them all at once. It needs inputs of a constant shape at a constant
address: the batches of inference are padded to one shape, and each graph copies its inputs into
its own memory.
"""

import threading
from collections.abc import Callable, Hashable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from sklearn_msf.runtime.locks import fork_safe_lock
from sklearn_msf.runtime.user_warnings import warn_user

__all__ = ["replay"]

# Warm-up runs before the capture, in which libraries choose their kernels.
_N_WARM_UP = 3


# Each graph keeps the memory of its pass. Batches have few shapes; more than these come from calls
# with ever other settings, and the oldest graph goes.
_MAX_GRAPHS = 16


class _Graph:
    """One captured pass, with its own memory for inputs and output."""

    def __init__(self, function: Callable[..., Tensor], inputs: tuple[Tensor, ...]):
        self._lock = threading.Lock()
        self._device = inputs[0].device
        # CUDA captures on the current device, which need not be that of the tensors.
        with torch.cuda.device(self._device):
            self._inputs = [value.clone() for value in inputs]
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(_N_WARM_UP):
                    function(*self._inputs)
            torch.cuda.current_stream().wait_stream(stream)
            self._graph = torch.cuda.CUDAGraph()
            # Other threads may allocate memory meanwhile.
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._output = function(*self._inputs)

    def __call__(self, *inputs: Tensor) -> Tensor:
        # All threads share the memory of the graph.
        with self._lock, torch.cuda.device(self._device):
            for mine, value in zip(self._inputs, inputs, strict=True):
                mine.copy_(value)
            self._graph.replay()
            return self._output.clone()


# The graphs of a module are deleted with it, because a graph holds no reference to the module.
_GRAPHS: WeakKeyDictionary[nn.Module, dict[Hashable, _Graph | None]] = WeakKeyDictionary()
_CAPTURING = fork_safe_lock()


def replay(
    module: nn.Module, key: Hashable, function: Callable[..., Tensor], *inputs: Tensor
) -> Tensor:
    """Compute function(*inputs) with a CUDA graph, which the first call captures.

    Parameters
    ----------
    module : nn.Module
        The module whose weights the function reads. The graph is kept as long as the module.
    key : hashable
        Identifies the function among those of the module. There is one graph for each key and
        each combination of shapes, dtypes and devices of the inputs, of which the 16 newest are
        kept.
    function : callable
        Function of CUDA tensors that does not synchronise with the device.
    *inputs : Tensor
        Arguments of the function.

    Returns
    -------
    Tensor
        Result of the function. If the capture fails, there is one warning, and the function is
        called without a graph.
    """
    full_key = (key, tuple((value.shape, value.dtype, value.device) for value in inputs))
    with _CAPTURING:
        graphs = _GRAPHS.setdefault(module, {})
        if full_key not in graphs:
            while len(graphs) >= _MAX_GRAPHS:
                del graphs[next(iter(graphs))]
            graphs[full_key] = _capture(function, inputs)
        graph = graphs[full_key]
    return function(*inputs) if graph is None else graph(*inputs)


def _capture(function: Callable[..., Tensor], inputs: tuple[Any, ...]) -> _Graph | None:
    try:
        return _Graph(function, inputs)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        warn_user(
            f"The network could not be captured as a CUDA graph and runs without: {error}",
        )
        return None
