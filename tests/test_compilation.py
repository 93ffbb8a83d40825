import functools

import pytest
import torch

from sklearn_msf.runtime.compilation import compile_or_not


@pytest.fixture
def compiles(monkeypatch):
    """torch.compile without the minutes of its default backend."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))


def test_a_compiled_function_is_the_same_function(compiles):
    function = compile_or_not(lambda x: x.sin() + 1)
    for n in (3, 4, 5):
        x = torch.arange(float(n))
        torch.testing.assert_close(function(x), x.sin() + 1)


def test_without_a_compiler_the_function_runs_as_it_is_with_one_warning(monkeypatch):
    calls = []

    def no_compiler(function):
        def fail(*arguments):
            calls.append(arguments)
            raise RuntimeError("no working C++ compiler found")

        return fail

    monkeypatch.setattr(torch, "compile", no_compiler)
    function = compile_or_not(lambda x: 2 * x)
    with pytest.warns(UserWarning, match=r"could not be compiled .*no working C\+\+ compiler"):
        assert function(torch.tensor(2)) == 4
    assert function(torch.tensor(3)) == 6
    assert len(calls) == 1


def test_errors_of_the_function_itself_are_raised(compiles):
    def fail(x):
        raise ZeroDivisionError

    with pytest.warns(UserWarning, match="compiled"), pytest.raises(ZeroDivisionError):
        compile_or_not(fail)(torch.ones(1))


def test_a_field_learns_the_same_compiled(compiles, make_tiny_field):
    from test_training import make_trainer

    from sklearn_msf.training.batches import TrainingData

    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(20, 1, 8, 8, generator=generator), torch.arange(20) % 3
    data = TrainingData(images, labels, torch.ones(20, dtype=torch.float64), 20)
    losses = []
    for compile_network in (False, True):
        trainer = make_trainer(make_tiny_field(), compile_network=compile_network)
        trainer.fit(data)
        losses.append([epoch_log["loss"] for epoch_log in trainer.history])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_compiled_run_repeats_itself_and_leaves_the_global_generator(compiles, make_tiny_field):
    from test_training import all_weights, make_trainer

    from sklearn_msf.training.batches import TrainingData

    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(20, 1, 8, 8, generator=generator), torch.arange(20) % 3
    data = TrainingData(images, labels, torch.ones(20, dtype=torch.float64), 20)
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        field = make_tiny_field(dropout=0.5).train()
        torch.set_rng_state(before)
        trainer = make_trainer(field, compile_network=True)
        trainer.fit(data)
        assert torch.equal(torch.get_rng_state(), before)
        found.append(all_weights(trainer.average))
    assert torch.equal(*found)
