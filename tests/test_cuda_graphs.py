"""The logic around CUDA graphs, with a stand-in for CUDA that records and replays."""

import gc

import pytest
import torch
from recorded_graphs import RecordedCuda
from torch.utils._python_dispatch import TorchDispatchMode

from sklearn_msf.runtime import cuda_graphs
from sklearn_msf.runtime.batch_sizes import SmallBatches, padded
from sklearn_msf.runtime.cuda_graphs import CapturedSteps, replay


@pytest.fixture
def cuda(monkeypatch):
    return RecordedCuda().install(monkeypatch)


@pytest.fixture
def module():
    return torch.nn.Linear(3, 2).requires_grad_(False)


def test_a_pass_is_captured_once_for_each_key_and_shape(cuda, module):
    for n in (4, 4, 5, 4):
        replay(module, "float32", module, torch.ones(n, 3))
    replay(module, "bfloat16", module, torch.ones(4, 3))
    assert len(cuda.captured) == 3
    assert cuda.n_replayed == 5


def test_inputs_are_copied_to_where_the_graph_reads_them(cuda, module):
    replay(module, 0, module, torch.ones(2, 3))
    (graph,) = cuda_graphs._PASSES[module].values()
    replay(module, 0, module, torch.full((2, 3), 7.0))
    assert (graph._graph._inputs[0] == 7).all()


def test_results_are_copies_that_the_next_replay_does_not_change(cuda, module):
    first = replay(module, 0, module, torch.ones(2, 3))
    (graph,) = cuda_graphs._PASSES[module].values()
    graph._graph.output.fill_(9.0)
    torch.testing.assert_close(first, module(torch.ones(2, 3)))


def test_weights_that_were_moved_or_replaced_are_read_from_where_they_are(cuda, module):
    x = torch.ones(2, 3)
    replay(module, 0, module, x)
    module.weight.data = module.weight.data + 1
    torch.testing.assert_close(replay(module, 0, module, x), module(x))
    module.bias = torch.nn.Parameter(torch.full((2,), 9.0), requires_grad=False)
    torch.testing.assert_close(replay(module, 0, module, x), module(x))


def test_hooks_and_another_forward_of_a_user_count_whenever_they_come(cuda):
    module = torch.nn.Sequential(torch.nn.Linear(3, 2)).requires_grad_(False)
    x, seen = torch.ones(2, 3), []
    wanted = replay(module, 0, module, x)
    hook = module[0].register_forward_hook(lambda _, given, result: seen.append(result))
    for n in (1, 2):
        torch.testing.assert_close(replay(module, 0, module, x), wanted)
        assert len(seen) == n
    hook.remove()
    module[0].forward = lambda x: 0 * x
    assert (replay(module, 0, module, x) == 0).all()


def test_graphs_go_with_their_module(cuda):
    module = torch.nn.Linear(3, 2).requires_grad_(False)
    replay(module, 0, module.forward, torch.ones(2, 3))
    # Modules of tests before this one.
    gc.collect()
    before = len(cuda_graphs._PASSES)
    del module
    gc.collect()
    assert len(cuda_graphs._PASSES) == before - 1


def test_where_the_capture_fails_the_function_runs_with_one_warning(cuda, module):
    cuda.n_failures = 9
    x = torch.randn(2, 3)
    with pytest.warns(UserWarning, match="could not be captured"):
        torch.testing.assert_close(replay(module, 0, module, x), module(x))
    torch.testing.assert_close(replay(module, 0, module, x), module(x))
    assert not cuda.captured


def test_a_failed_capture_is_ended(cuda, module):
    cuda.n_failures = 1
    with pytest.warns(UserWarning, match="could not be captured"):
        replay(module, 0, module, torch.ones(2, 3))
    assert cuda.ended_pools == cuda.pools == ["pool 0"]
    assert cuda.restored == ["state"]
    replay(module, 1, module, torch.ones(2, 3))
    assert cuda.ended_pools == ["pool 0"]


def test_no_graph_is_replayed_by_two_threads_or_while_another_one_is_captured(cuda, module):
    seen = []
    replay(module, 0, module, torch.ones(2, 3))
    (captured,) = cuda_graphs._PASSES[module].values()
    locks, play = (cuda_graphs._CAPTURING, captured._lock), captured._graph._graph.replay
    captured._graph._graph.replay = lambda: seen.extend(lock.locked() for lock in locks) or play()
    replay(module, 0, module, torch.ones(2, 3))
    assert seen == [True, True]
    assert not captured._lock.locked()


def test_after_a_failed_capture_work_goes_on_where_it_was(cuda, module):
    before, cuda.n_failures = cuda.current, 1
    with pytest.warns(UserWarning, match="could not be captured"):
        replay(module, 0, module, torch.ones(2, 3))
    assert cuda.current is before
    cuda.n_failures = 1
    with pytest.warns(UserWarning, match="could not be captured"):
        totals(5)
    assert cuda.current is before


def test_a_capture_is_kept_from_inference_mode_and_from_collected_garbage(cuda, module):
    with torch.inference_mode():
        output = replay(module, 0, module, torch.ones(2, 3))
    totals(5)
    assert cuda.settings == [(False, False)] * 2
    assert gc.isenabled()
    torch.testing.assert_close(output.clone(), module(torch.ones(2, 3)))


def test_a_replay_waits_for_that_of_another_stream(cuda, module):
    for _ in range(3):
        replay(module, 0, module, torch.ones(2, 3))
    # The first two waits are those of the warm-up.
    assert cuda.waits == ["stream", "stream", "event 1", "event 2"]


def test_work_after_an_interrupted_warm_up_waits_for_it(cuda, module):
    def interrupted(x):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replay(module, 0, interrupted, torch.ones(2, 3))
    assert cuda.waits == ["stream", "stream"]


def test_memory_that_ran_out_frees_the_graphs_of_larger_batches(cuda, module):
    def too_large(x):
        raise RuntimeError("CUDA error: out of memory")

    for n in (2, 4, 8):
        replay(module, 0, module, torch.ones(n, 3))
    with pytest.raises(RuntimeError, match="out of memory"):
        replay(module, 1, too_large, torch.ones(4, 3))
    ((_, ((shape, *_),)),) = cuda_graphs._PASSES[module]
    assert shape == (2, 3)


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
    kept = [key for (key, _), _ in cuda_graphs._PASSES[module]]
    assert kept == list(range(3, cuda_graphs._MAX_GRAPHS + 3))


def test_a_loop_warms_up_with_one_of_its_rounds(cuda, module):
    calls = []

    def one(x):
        calls.append("round")
        return x * 2

    def loop(x):
        return one(one(one(x)))

    assert (replay(module, 0, loop, torch.ones(2), warm_up=one) == 8).all()
    assert len(calls) == cuda_graphs._N_WARM_UP + 3


def test_on_other_devices_than_cuda_the_function_runs_as_it_is(module):
    assert torch.equal(replay(module, 0, torch.sin, torch.ones(2)), torch.ones(2).sin())
    assert module not in cuda_graphs._PASSES


class Counter:
    """A function that changes memory in place."""

    def __init__(self):
        self.total = torch.zeros(2)
        self.generator = torch.Generator().manual_seed(0)
        self.n_calls = 0

    def add(self, x):
        self.n_calls += 1
        self.total += x * torch.rand(2, generator=self.generator)


def totals(n_steps):
    counter = Counter()
    steps = CapturedSteps(torch.device("cpu"), counter.generator)
    for i in range(n_steps):
        steps.run("add", counter.add, (torch.full((2,), float(i)),))
    return counter


def test_steps_run_three_times_and_are_then_replayed_with_the_same_results(cuda, monkeypatch):
    captured = totals(10)
    assert captured.n_calls == 4
    assert cuda.n_replayed == 7
    assert cuda.generators == [captured.generator]
    monkeypatch.undo()
    assert torch.equal(captured.total, totals(10).total)


def test_the_graphs_of_a_run_share_one_pool_that_other_threads_may_work_beside(cuda):
    counter = Counter()
    steps = CapturedSteps(torch.device("cpu"), counter.generator)
    for _ in range(5):
        for key in ("a", "b"):
            steps.run(key, counter.add, (torch.ones(2),))
    assert cuda.pools == ["pool 0", "pool 0"]
    assert cuda.error_modes == ["thread_local"] * 2
    assert cuda.devices == [torch.device("cpu")] * 10


def test_where_the_capture_of_a_step_fails_it_runs_with_one_warning(cuda, monkeypatch):
    cuda.n_failures = 1
    with pytest.warns(UserWarning, match="could not be captured") as caught:
        captured = totals(10)
    assert len(caught) == 1
    assert cuda.n_replayed == 0
    monkeypatch.undo()
    assert torch.equal(captured.total, totals(10).total)


def test_steps_that_were_forgotten_are_captured_anew(cuda):
    counter = Counter()
    steps = CapturedSteps(torch.device("cpu"), counter.generator)
    for _ in range(2):
        for _ in range(4):
            steps.run("add", counter.add, (torch.ones(2),))
        counter.total = torch.zeros(2)
        steps.clear()
    assert len(cuda.captured) == 2


def test_steps_of_ever_other_keys_keep_the_newest_graphs(cuda):
    counter = Counter()
    steps = CapturedSteps(torch.device("cpu"), counter.generator)
    for key in range(cuda_graphs._MAX_GRAPHS + 2):
        for _ in range(4):
            steps.run(key, counter.add, (torch.ones(2),))
    assert len(steps._graphs) == cuda_graphs._MAX_GRAPHS


def test_the_stand_in_does_not_see_memory_that_was_replaced(cuda):
    counter = Counter()
    steps = CapturedSteps(torch.device("cpu"), counter.generator)
    for _ in range(5):
        steps.run("add", counter.add, (torch.ones(2),))
    counter.total = torch.zeros(2)
    steps.run("add", counter.add, (torch.ones(2),))
    assert not counter.total.any()


def test_the_stand_in_refuses_what_waits_for_the_device(cuda):
    counter = Counter()
    steps = CapturedSteps(torch.device("cpu"), counter.generator)

    def waits(x):
        counter.total.add_(float(x.sum()))

    for _ in range(3):
        steps.run("waits", waits, (torch.ones(2),))
    with pytest.warns(UserWarning, match="_local_scalar_dense"):
        steps.run("waits", waits, (torch.ones(2),))


class Watching(TorchDispatchMode):
    """Sees every operation that is not in a graph."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        return operation(*args, **(kwargs or {}))


def test_under_a_mode_that_watches_the_function_itself_runs(cuda, module):
    replay(module, 0, module, torch.ones(2, 3))
    before = cuda.n_replayed
    with Watching():
        replay(module, 0, module, torch.ones(2, 3))
    assert cuda.n_replayed == before


def test_no_other_thread_captures_while_a_step_warms_up(cuda):
    locked = []
    steps = CapturedSteps(torch.device("cpu"), torch.Generator())

    def step(x):
        locked.append((cuda_graphs._PREPARING.locked(), cuda_graphs._CAPTURING.locked()))

    for _ in range(4):
        steps.run("step", step, (torch.ones(1),))
    assert locked == [(True, False)] * 3 + [(True, True)]
    assert not cuda_graphs._PREPARING.locked()
    assert not cuda_graphs._CAPTURING.locked()


def test_sizes_of_batches_are_tried_while_no_thread_captures(cuda, module):
    locked = []

    def trial(x, size):
        locked.append(cuda_graphs._PREPARING.locked())
        return module(padded(x, size))

    small = SmallBatches(module, "any", lambda start, n: torch.ones(n, 3), trial)
    assert small.size(0, 3, 8) in (4, 8)
    assert locked
    assert all(locked)
    assert not cuda_graphs._PREPARING.locked()


def test_a_pass_that_is_captured_is_replayed_while_another_thread_warms_up(cuda, module):
    wanted = replay(module, 0, module, torch.ones(2, 3))
    with cuda_graphs._PREPARING:
        torch.testing.assert_close(replay(module, 0, module, torch.ones(2, 3)), wanted)
    assert cuda.n_replayed == 2


@pytest.mark.parametrize("at_call", [1, 2, 3])
def test_a_step_that_runs_out_of_memory_beside_graphs_runs_without_them(cuda, monkeypatch, at_call):
    # Another batch than the one that has a graph, in its warm-up.
    def run(counter, fails):
        steps = CapturedSteps(torch.device("cpu"), counter.generator)
        calls = []

        def add(x):
            calls.append(bool(steps._graphs))
            torch.rand(3, generator=counter.generator)
            if fails and len(calls) == at_call:
                raise torch.OutOfMemoryError("CUDA out of memory")
            counter.add(x)

        for _ in range(6):
            steps.run("first", counter.add, (torch.ones(2),))
        for _ in range(6):
            steps.run("second", add, (torch.ones(2),))
        return calls

    counter = Counter()
    with pytest.warns(UserWarning, match="training goes on without graphs") as caught:
        calls = run(counter, fails=True)
    assert len(caught) == 1
    assert calls == [True] * at_call + [False] * (7 - at_call)
    without = Counter()
    monkeypatch.undo()
    run(without, fails=False)
    assert torch.equal(counter.total, without.total)
    assert torch.equal(counter.generator.get_state(), without.generator.get_state())


def test_a_step_that_had_begun_to_change_weights_is_not_repeated(cuda):
    counter = Counter()
    steps = CapturedSteps(torch.device("cpu"), counter.generator, lambda: False)

    def too_large(x):
        counter.add(x)
        raise torch.OutOfMemoryError("CUDA out of memory")

    for _ in range(5):
        steps.run("first", counter.add, (torch.ones(2),))
    before = counter.total.clone()
    with pytest.raises(torch.OutOfMemoryError):
        steps.run("second", too_large, (torch.ones(2),))
    assert counter.n_calls == 5
    assert not torch.equal(counter.total, before)


def test_a_failed_capture_frees_the_graphs_of_other_steps(cuda):
    counter = Counter()
    steps = CapturedSteps(torch.device("cpu"), counter.generator)
    for _ in range(5):
        steps.run("first", counter.add, (torch.ones(2),))
    for _ in range(3):
        steps.run("second", counter.add, (torch.ones(2),))
    assert steps._graphs
    cuda.n_failures = 1
    with pytest.warns(UserWarning, match="could not be captured"):
        steps.run("second", counter.add, (torch.ones(2),))
    assert not steps._graphs


def test_a_step_that_runs_out_of_memory_without_graphs_is_for_the_caller(cuda):
    def too_large(x):
        raise torch.OutOfMemoryError("CUDA out of memory")

    steps = CapturedSteps(torch.device("cpu"), torch.Generator())
    with pytest.raises(torch.OutOfMemoryError):
        steps.run("step", too_large, (torch.ones(2),))


@pytest.mark.parametrize("is_hidden", [False, True])
def test_a_capture_that_runs_out_of_memory_leaves_the_step_to_run_without(
    cuda, monkeypatch, is_hidden
):
    cuda.n_failures, cuda.failure = 1, "CUDA error: out of memory"
    cuda.failure_at_end = "failed due to a previous error" if is_hidden else None
    with pytest.warns(UserWarning, match="training goes on without graphs"):
        captured = totals(10)
    assert cuda.n_replayed == 0
    monkeypatch.undo()
    assert torch.equal(captured.total, totals(10).total)
