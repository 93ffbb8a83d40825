"""A stand-in for CUDA that records the operations of a capture and repeats them in a replay.

As on a GPU, a replay reads and writes the memory that the captured operations used: a tensor that
was replaced since, instead of refilled, is not seen.
"""

import contextlib
import gc
import types

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from sklearn_msf.runtime import cuda_graphs

# Results of these depend on values: a graph would go on with the ones of its capture.
_WAITS_FOR_THE_DEVICE = ("_local_scalar_dense", "nonzero", "unique", "masked_select", "is_nonzero")


class Recording(TorchDispatchMode):
    """Records operations. They run, too, and :meth:`undo` takes their effects back."""

    def __init__(self):
        super().__init__()
        self.operations = []
        self._before = {}

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation.name().split("::")[1]
        if name.startswith(_WAITS_FOR_THE_DEVICE):
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
        if operation._schema.is_mutable:
            for value in tree_leaves((args, kwargs)):
                if isinstance(value, torch.Tensor) and id(value) not in self._before:
                    self._before[id(value)] = value, value.clone()
        result = operation(*args, **(kwargs or {}))
        if not name.startswith("_record_function"):
            self.operations.append((operation, args, kwargs or {}, result))
        return result

    def undo(self):
        for value, before in self._before.values():
            value.copy_(before)
        self._before.clear()

    def repeat(self):
        # Operations are recorded below autograd, so they are repeated there.
        with torch._C._AutoDispatchBelowAutograd():
            self._repeat()

    def _repeat(self):
        for operation, args, kwargs, result in self.operations:
            if operation.is_view:
                continue
            again = operation(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old is not new:
                    old.copy_(new)

    def described(self):
        """Describe the operations by name, shapes and numbers."""

        def describe(value):
            if isinstance(value, torch.Tensor):
                return tuple(value.shape), value.dtype
            return None if isinstance(value, torch.Generator) else value

        return [
            (operation.name(), str(tree_map(describe, (args, kwargs))))
            for operation, args, kwargs, _ in self.operations
        ]


class RecordedCuda:
    """The functions of torch.cuda that graphs need."""

    def __init__(self):
        self.captured, self.n_replayed, self.n_failures = [], 0, 0
        self.failure = "operation not permitted when stream is capturing"
        self.failure_at_end = None
        self.devices, self.error_modes, self.generators, self.pools = [], [], [], []
        # What the current stream waited for, and the settings of each capture.
        self.waits, self.settings = [], []
        self.current = self.Stream()
        # Pools whose failed captures were ended, and generators that were given a state anew.
        self.ended_pools, self.restored = [], []
        self.default_generator = types.SimpleNamespace(
            clone_state=lambda: "state", graphsafe_set_state=self.restored.append
        )

    def end_pool(self, index, pool):
        self.ended_pools.append(pool)

    def install(self, monkeypatch):
        for name in ("Stream", "current_stream", "stream", "CUDAGraph", "graph", "device"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: f"pool {len(self.pools)}")
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "default_generators", (self.default_generator,))
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", self.end_pool, raising=False)
        monkeypatch.setattr(cuda_graphs, "_can_capture", lambda device: True)
        return self

    def Stream(self):
        return types.SimpleNamespace(
            wait_stream=lambda other: self.waits.append("stream"),
            wait_event=lambda event: self.waits.append(event),
            record_event=lambda: f"event {self.n_replayed}",
        )

    def current_stream(self):
        return self.current

    @contextlib.contextmanager
    def stream(self, stream):
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextlib.contextmanager
    def device(self, device):
        self.devices.append(device)
        yield

    def CUDAGraph(self):
        recording = Recording()

        def replay():
            self.n_replayed += 1
            recording.repeat()

        return types.SimpleNamespace(
            recording=recording,
            replay=replay,
            register_generator_state=self.generators.append,
        )

    @contextlib.contextmanager
    def graph(self, graph, *, pool, stream, capture_error_mode):
        self.error_modes.append(capture_error_mode)
        self.settings.append((gc.isenabled(), torch.is_inference_mode_enabled()))
        self.pools.append(pool)
        if self.n_failures:
            self.n_failures -= 1
            # As torch does where the capture cannot be ended.
            self.current = stream
            try:
                raise RuntimeError(self.failure)
            finally:
                # As the end of a failed capture, which torch calls too.
                if self.failure_at_end:
                    raise RuntimeError(self.failure_at_end)
        states = [generator.get_state() for generator in self.generators]
        with torch.no_grad(), contextlib.ExitStack() as stack:
            stack.callback(graph.recording.undo)
            with torch.enable_grad(), graph.recording:
                yield
        for generator, state in zip(self.generators, states, strict=True):
            generator.set_state(state)
        self.captured.append(graph.recording)
