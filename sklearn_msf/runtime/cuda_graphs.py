"""Functions that are captured once as CUDA graphs and then replayed.

A small network has hundreds of short kernels, and starting them takes longer than running them.
A graph starts them all at once. It reads its inputs from constant addresses, so there is one
graph for each combination of shapes, and each graph copies its inputs into its own memory.

- :func:`replay` is for passes of inference: functions of their inputs.
- :class:`CapturedSteps` is for training: functions that change weights in place.
"""

import gc
import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from sklearn_msf.runtime.locks import fork_safe_lock
from sklearn_msf.runtime.module_changes import is_changed
from sklearn_msf.runtime.out_of_memory import is_out_of_memory
from sklearn_msf.runtime.user_warnings import warn_user

__all__ = ["CapturedSteps", "empty_cache", "no_captures", "replay"]

# Runs before a capture, in which libraries choose their kernels and optimizers make their state.
_N_WARM_UP = 3
# Each graph keeps the memory of its pass. Batches have few shapes; more than these come from calls
# with ever other settings, and the oldest graph goes.
_MAX_GRAPHS = 16


def _is_watched(module: nn.Module) -> bool:
    """Tell whether somebody watches operations, by a mode or by hooks: a graph calls neither."""
    return torch._C._len_torch_dispatch_stack() > 0 or is_changed(module)


def _can_capture(device: torch.device) -> bool:
    return device.type == "cuda"


@contextmanager
def _side_stream(stream: Any) -> Iterator[None]:
    """Run on a stream after the work of the current one, which then waits for it."""
    stream.wait_stream(torch.cuda.current_stream())
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        torch.cuda.current_stream().wait_stream(stream)


# One capture at a time: it begins by waiting for the whole device and freeing unused memory, which
# ends any other capture. Replays wait for it, too.
_CAPTURING = fork_safe_lock()
# Held by warm-ups as well, which must not be captured by another thread. Replays do not wait for
# it: a warm-up may compile for minutes. Whoever needs both locks takes this one first.
_PREPARING = fork_safe_lock()


def no_captures(device: torch.device) -> AbstractContextManager[object]:
    """Let no other thread capture meanwhile, for products that are in no graph.

    A capture frees the workspaces of cuBLAS, which a product may be about to use.
    """
    return _PREPARING if _can_capture(device) else nullcontext()


def empty_cache() -> None:
    """Free the memory of the GPU that is not used, but not in the middle of a capture."""
    with _CAPTURING:
        torch.cuda.empty_cache()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Capture without collecting garbage, with own workspaces of cuBLAS, and restore the stream."""
    collects = gc.isenabled()
    try:
        # Garbage may hold other graphs, and freeing those is not allowed meanwhile.
        gc.disable()
        _forget_workspaces()
        # If the capture fails, torch may stay on its stream.
        with torch.cuda.stream(torch.cuda.current_stream()):
            yield
    finally:
        _forget_workspaces()
        if collects:
            gc.enable()


def _forget_workspaces() -> None:
    """Forget cuBLAS's workspaces, so that each graph has its own in its own memory.

    Deleting a graph frees the workspace of its stream, which others may use. torch's own trees of
    graphs call the same function, which is for all streams: there is none for one of them.
    """
    forget = getattr(torch._C, "_cuda_clearCublasWorkspaces", None)
    if forget is not None:
        forget()


def _end_failed_capture(pool: Any) -> None:
    """End what a failed capture leaves as if it went on (torch before 2.13).

    Else torch would never free unused memory again, and its generator of the device would refuse
    to draw.
    """
    index = torch.cuda.current_device()
    with suppress(RuntimeError, AttributeError):
        torch._C._cuda_endAllocateToPool(index, pool)
    generator = torch.cuda.default_generators[index]
    generator.graphsafe_set_state(generator.clone_state())


class _Graph:
    """One captured function, with its own memory for inputs and output.

    CUDA captures and replays on the current device: callers make it that of the tensors.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        inputs: tuple[Tensor, ...],
        stream: Any,
        *,
        pool: Any = None,
        generator: torch.Generator | None = None,
    ):
        self._inputs = [value.clone() for value in inputs]
        self._graph = torch.cuda.CUDAGraph()
        if generator is not None:
            self._graph.register_generator_state(generator)
        # Of the memory that the graph takes; one of its own can be named after a failure.
        self.pool = torch.cuda.graph_pool_handle() if pool is None else pool
        # Other threads may allocate memory meanwhile.
        capturing = torch.cuda.graph(
            self._graph, pool=self.pool, stream=stream, capture_error_mode="thread_local"
        )
        try:
            with _CAPTURING, _undisturbed(), capturing:
                self.output = function(*self._inputs)
        except BaseException:
            _end_failed_capture(self.pool)
            raise

    def replay(self, inputs: tuple[Tensor, ...]) -> None:
        for mine, value in zip(self._inputs, inputs, strict=True):
            mine.copy_(value)
        # Every graph may draw from the generator of the device, which no graph may do while
        # another thread captures.
        with _CAPTURING:
            self._graph.replay()


# A name, and shape, dtype and device of each input.
Key = tuple[Hashable, tuple[tuple[torch.Size, torch.dtype, torch.device], ...]]


def _key(key: Hashable, inputs: tuple[Tensor, ...]) -> Key:
    return key, tuple((value.shape, value.dtype, value.device) for value in inputs)


def _addresses(module: nn.Module) -> tuple[int, ...]:
    """Return where the weights are: a graph goes on to read from where they were."""
    return tuple(weight.data_ptr() for weight in module.parameters())


_OUT_OF_MEMORY = (
    "Memory ran out beside CUDA graphs of training steps, which keep the memory of a step: "
    "training goes on without graphs, and may be slower. A smaller batch_size needs less."
)


def _ran_out(error: BaseException | None) -> bool:
    """Tell whether memory ran out; the end of a failed capture may raise an error of its own."""
    while error is not None and not is_out_of_memory(error):
        error = error.__context__
    return error is not None


def _warn_of_failure(reason: str) -> None:
    warn_user(f"The network could not be captured as a CUDA graph and runs without: {reason}")


# Inference


class _Pass:
    """A captured pass that threads share."""

    def __init__(
        self,
        function: Callable[..., Tensor],
        warm_up: Callable[..., object],
        inputs: tuple[Tensor, ...],
    ):
        self._lock = threading.Lock()
        self._device = inputs[0].device
        self._done: Any = None
        with torch.cuda.device(self._device):
            stream = torch.cuda.Stream()
            with _side_stream(stream):
                for _ in range(_N_WARM_UP):
                    warm_up(*inputs)
            # Before torch 2.11 a graph of inference mode makes generators fail in later captures.
            with torch.inference_mode(False), torch.no_grad():
                self._graph = _Graph(function, inputs, stream)

    def __call__(self, *inputs: Tensor) -> Tensor:
        # All threads share the memory of the graph, and each may have a stream of its own.
        with self._lock, torch.cuda.device(self._device):
            stream = torch.cuda.current_stream()
            if self._done is not None:
                stream.wait_event(self._done)
            self._graph.replay(inputs)
            output: Tensor = self._graph.output.clone()
            self._done = stream.record_event()
            return output


# The graphs of a module are deleted with it, because a graph holds no reference to the module.
_PASSES: WeakKeyDictionary[nn.Module, dict[Key, _Pass | None]] = WeakKeyDictionary()


def replay(
    module: nn.Module,
    key: Hashable,
    function: Callable[..., Tensor],
    *inputs: Tensor,
    warm_up: Callable[..., object] | None = None,
) -> Tensor:
    """Compute function(*inputs), on CUDA with a graph, which the first call captures.

    Parameters
    ----------
    module : nn.Module
        The module whose weights the function reads. The graph is kept as long as the module, and
        a new one is captured if the weights were moved or replaced. There is none of a module that
        a user has changed, by hooks or by another `forward`.
    key : hashable
        Identifies the function among those of the module. There is one graph for each key and
        each combination of shapes, dtypes and devices of the inputs, of which the 16 newest are
        kept.
    function : callable
        Function of tensors that does not synchronise with the device.
    *inputs : Tensor
        Arguments of the function.
    warm_up : callable, optional
        Function of the same inputs that runs all kernels of `function`, to run before the
        capture; `function` itself by default. A loop needs only one of its rounds here.

    Returns
    -------
    Tensor
        Result of the function. If the capture fails, there is one warning, and the function is
        called without a graph.
    """
    if not _can_capture(inputs[0].device) or _is_watched(module):
        return function(*inputs)
    full_key = _key((key, _addresses(module)), inputs)
    # Without the lock: another thread may hold it for minutes.
    known = _PASSES.get(module, {})
    if full_key in known:
        captured = known.get(full_key)
    else:
        captured = _prepared_pass(module, full_key, function, warm_up or function, inputs)
    return function(*inputs) if captured is None else captured(*inputs)


def _prepared_pass(
    module: nn.Module,
    full_key: Key,
    function: Callable[..., Tensor],
    warm_up: Callable[..., object],
    inputs: tuple[Tensor, ...],
) -> _Pass | None:
    """Capture a pass unless another thread has done so; None if it cannot be captured."""
    with _PREPARING:
        passes = _PASSES.setdefault(module, {})
        if full_key not in passes:
            while len(passes) >= _MAX_GRAPHS:
                del passes[next(iter(passes))]
            try:
                passes[full_key] = _captured_pass(function, warm_up, inputs)
            except (MemoryError, RuntimeError):
                # Memory ran out: the caller goes on with smaller batches, and graphs of larger ones
                # only take memory.
                n_values = inputs[0].numel()
                for other in [k for k in passes if k[1][0][0].numel() >= n_values]:
                    del passes[other]
                raise
        return passes[full_key]


def _captured_pass(
    function: Callable[..., Tensor],
    warm_up: Callable[..., object],
    inputs: tuple[Tensor, ...],
) -> _Pass | None:
    try:
        return _Pass(function, warm_up, inputs)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        _warn_of_failure(str(error))
        return None


# Training


class CapturedSteps:
    """Runs functions that change memory in place, on CUDA as graphs.

    The first three calls of a function with a key are its warm-up: they run without a graph, as
    every other call would, because such a function cannot run for trial. All graphs share one
    pool of memory, so what a function leaves behind must be in memory from before its capture. If
    memory runs out beside the graphs, the function runs a second time without them.

    Parameters
    ----------
    device : torch.device
        Device of the tensors; on other devices than CUDA the functions run as they are.
    generator : torch.Generator
        Generator on the device that the functions draw from. Its numbers go on in replays as
        they would without graphs.
    may_repeat : callable
        Tells after a function has failed whether it may run again: not if it had begun to change
        what a second run would change again.
    """

    def __init__(
        self,
        device: torch.device,
        generator: torch.Generator,
        may_repeat: Callable[[], bool] = lambda: True,
    ):
        self._device = device
        self._may_repeat = may_repeat
        self._generator = generator
        self._captures = _can_capture(device)
        self._n_calls: dict[Key, int] = {}
        self._graphs: dict[Key, _Graph] = {}
        self._stream: Any = None
        self._pool: Any = None

    def run(self, key: Hashable, function: Callable[..., None], inputs: tuple[Tensor, ...]) -> bool:
        """Call function(*inputs), or replay its graph.

        Parameters
        ----------
        key : hashable
            Everything that the function depends on beside its inputs and memory that it finds at
            the same addresses in every call.
        function : callable
            Changes memory in place and returns nothing; it neither synchronises with the device
            nor replaces tensors that later calls read.
        inputs : tuple of Tensor
            Arguments of the function.

        Returns
        -------
        bool
            Whether it ran as later calls with this key will: False for warm-ups and captures.
        """
        if not self._captures:
            with no_captures(self._device):
                function(*inputs)
            return True
        with torch.cuda.device(self._device):
            return self._run_on_cuda(_key(key, inputs), function, inputs)

    def _run_on_cuda(
        self, key: Key, function: Callable[..., None], inputs: tuple[Tensor, ...]
    ) -> bool:
        if self._stream is None:
            self._stream = torch.cuda.Stream()
        is_known = key in self._graphs
        n_calls = self._n_calls[key] = self._n_calls.get(key, 0) + 1
        if n_calls > _N_WARM_UP and key not in self._graphs:
            self._capture(key, function, inputs)
        if key in self._graphs:
            self._graphs[key].replay(inputs)
        else:
            self._run_without_graph(function, inputs)
        return is_known

    def _run_eagerly(self, function: Callable[..., None], inputs: tuple[Tensor, ...]) -> None:
        # Streams are few and shared: another thread may capture on this one. No step takes the
        # lock itself.
        with _PREPARING, _side_stream(self._stream):
            function(*inputs)

    def _run_without_graph(self, function: Callable[..., None], inputs: tuple[Tensor, ...]) -> None:
        """Run a function without a graph; if memory runs out, free that of graphs for it."""
        numbers = self._generator.get_state()
        has_run = True
        try:
            self._run_eagerly(function, inputs)
        except (MemoryError, RuntimeError) as error:
            if not (self._graphs and is_out_of_memory(error) and self._may_repeat()):
                raise
            has_run = False
        # Outside of the handler, because the error's traceback holds tensors of the function.
        if not has_run:
            self._generator.set_state(numbers)
            self._stop_capturing()
            warn_user(_OUT_OF_MEMORY)
            self._run_eagerly(function, inputs)

    def _stop_capturing(self) -> None:
        """Go on without graphs, and free the memory of those that there are."""
        self.clear()
        self._captures = False
        empty_cache()

    def _capture(self, key: Key, function: Callable[..., None], inputs: tuple[Tensor, ...]) -> None:
        while len(self._graphs) >= _MAX_GRAPHS:
            oldest = next(iter(self._graphs))
            del self._graphs[oldest], self._n_calls[oldest]
        try:
            with _PREPARING:
                graph = _Graph(
                    function, inputs, self._stream, pool=self._pool, generator=self._generator
                )
        except RuntimeError as error:
            ran_out, reason = _ran_out(error), str(error)
        else:
            self._graphs[key], self._pool = graph, graph.pool
            return
        if self._generator.device.type == "cuda":
            # Before torch 2.13 its state goes on expecting to be captured.
            self._generator.graphsafe_set_state(self._generator.clone_state())
        self._stop_capturing()
        if ran_out:
            warn_user(_OUT_OF_MEMORY)
        else:
            _warn_of_failure(reason)

    def clear(self) -> None:
        """Forget all graphs: memory that they use was replaced, or others need theirs."""
        self._n_calls.clear()
        self._graphs.clear()
        self._pool = None
