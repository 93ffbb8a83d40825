"""The logic around CUDA graphs, with a stand-in for CUDA that records and replays."""

import contextlib
import gc
import types

import pytest
import torch

from sklearn_msf.runtime import cuda_graphs
from sklearn_msf.runtime.cuda_graphs import replay


class FakeCuda:
    """Captures a function as CUDA would: replaying reads and writes the same memory."""

    def __init__(self):
        self.n_captured = self.n_replayed = 0
        self.fails = False
        self.devices = []
        self.error_modes = []

    def Stream(self):
        return types.SimpleNamespace(wait_stream=lambda other: None)

    current_stream = Stream

    def stream(self, stream):
        return contextlib.nullcontext()

    def CUDAGraph(self):
        return types.SimpleNamespace(replay=self.count_replay)

    def count_replay(self):
        self.n_replayed += 1

    @contextlib.contextmanager
    def device(self, device):
        self.devices.append(device)
        yield

    @contextlib.contextmanager
    def graph(self, graph, capture_error_mode):
        self.error_modes.append(capture_error_mode)
        if self.fails:
            raise RuntimeError("operation not permitted when stream is capturing")
        yield
        self.n_captured += 1


@pytest.fixture
def cuda(monkeypatch):
    fake = FakeCuda()
    for name in ("Stream", "current_stream", "stream", "CUDAGraph", "graph", "device"):
        monkeypatch.setattr(torch.cuda, name, getattr(fake, name))
    return fake


@pytest.fixture
def module():
    return torch.nn.Linear(3, 2).requires_grad_(False)


def test_a_pass_is_captured_once_for_each_key_and_shape(cuda, module):
    for n in (4, 4, 5, 4):
        replay(module, "float32", module, torch.ones(n, 3))
    replay(module, "bfloat16", module, torch.ones(4, 3))
    assert cuda.n_captured == 3
    assert cuda.n_replayed == 5


def test_inputs_are_copied_to_where_the_graph_reads_them(cuda, module):
    replay(module, 0, module, torch.ones(2, 3))
    (graph,) = cuda_graphs._GRAPHS[module].values()
    replay(module, 0, module, torch.full((2, 3), 7.0))
    assert (graph._inputs[0] == 7).all()


def test_results_are_copies_that_the_next_replay_does_not_change(cuda, module):
    first = replay(module, 0, module, torch.ones(2, 3))
    (graph,) = cuda_graphs._GRAPHS[module].values()
    graph._output.fill_(9.0)
    torch.testing.assert_close(first, module(torch.ones(2, 3)))


def test_graphs_go_with_their_module(cuda):
    module = torch.nn.Linear(3, 2).requires_grad_(False)
    replay(module, 0, module.forward, torch.ones(2, 3))
    before = len(cuda_graphs._GRAPHS)
    del module
    gc.collect()
    assert len(cuda_graphs._GRAPHS) == before - 1


def test_where_the_capture_fails_the_function_runs_with_one_warning(cuda, module):
    cuda.fails = True
    x = torch.randn(2, 3)
    with pytest.warns(UserWarning, match="could not be captured"):
        torch.testing.assert_close(replay(module, 0, module, x), module(x))
    torch.testing.assert_close(replay(module, 0, module, x), module(x))
    assert cuda.n_captured == 0


def test_memory_that_runs_out_in_a_capture_is_for_the_caller(cuda, module):
    def too_large(x):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        replay(module, 0, too_large, torch.ones(2, 3))
    assert replay(module, 0, module, torch.ones(2, 3)).shape == (2, 2)


def test_graphs_are_captured_and_replayed_on_the_device_of_the_tensors(cuda, module):
    x = torch.ones(2, 3)
    replay(module, 0, module, x)
    assert cuda.devices == [x.device, x.device]
    # Work of other threads must not end the capture.
    assert cuda.error_modes == ["thread_local"]


def test_only_the_newest_graphs_are_kept(cuda, module):
    for key in range(cuda_graphs._MAX_GRAPHS + 3):
        replay(module, key, module, torch.ones(2, 3))
    kept = [key for key, _ in cuda_graphs._GRAPHS[module]]
    assert kept == list(range(3, cuda_graphs._MAX_GRAPHS + 3))
