import functools

import pytest
import torch
from test_training import all_weights, make_trainer

from sklearn_msf.runtime.compilation import compile_or_not
from sklearn_msf.training.batches import TrainingData


@pytest.fixture
def compiles(monkeypatch):
    """torch.compile without the minutes of its default backend."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))


@pytest.fixture
def data():
    """Twenty images of noise, of three classes."""
    images = torch.randn(20, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return TrainingData(images, torch.arange(20) % 3, torch.ones(20, dtype=torch.float64), 20)


def test_a_compiled_function_is_the_same_function(compiles):
    function = compile_or_not(lambda x: x.sin() + 1)
    for n in (3, 4, 5):
        x = torch.arange(float(n))
        torch.testing.assert_close(function(x), x.sin() + 1)


def test_without_a_compiler_the_function_runs_as_it_is_with_one_warning(monkeypatch):
    calls = []

    def no_compiler(function, **options):
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


def test_memory_that_runs_out_is_no_fault_of_the_compiler(monkeypatch):
    def fail(*arguments):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(torch, "compile", lambda function, **options: fail)
    function = compile_or_not(lambda x: 2 * x)
    # And it is compiled the next time too, of a smaller batch perhaps.
    for _ in range(2):
        with pytest.raises(RuntimeError, match="can't allocate memory"):
            function(torch.tensor(2))


def test_where_torch_refuses_to_compile_at_all_the_function_runs_as_it_is(monkeypatch):
    def refuse(function, **options):
        raise RuntimeError("torch.compile is not supported on Python 3.99")

    monkeypatch.setattr(torch, "compile", refuse)
    function = compile_or_not(lambda x: 2 * x)
    with pytest.warns(UserWarning, match=r"could not be compiled .*not supported on Python 3.99"):
        assert function(torch.tensor(2)) == 4
    assert function(torch.tensor(3)) == 6


def test_errors_of_the_function_itself_are_raised(compiles):
    def fail(x):
        raise ZeroDivisionError

    with pytest.warns(UserWarning, match="compiled"), pytest.raises(ZeroDivisionError):
        compile_or_not(fail)(torch.ones(1))


def test_more_shapes_are_compiled_than_torch_allows_by_default(compiles):
    n_compiled = []

    def backend(graph, inputs):
        n_compiled.append(inputs)
        return graph

    torch.compile.keywords["backend"] = backend
    function = compile_or_not(lambda x: x.sin() + 1)
    for n in range(1, 25):
        torch.testing.assert_close(function(torch.ones(n)), torch.ones(n).sin() + 1)
    # One for each shape: no shape is left to a graph of any size.
    assert len(n_compiled) == 24


def test_runs_of_one_process_share_what_was_compiled(data, make_tiny_field, monkeypatch):
    n_compiled = []

    def backend(graph, inputs):
        n_compiled.append(graph)
        return graph

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    counts = []
    for _ in range(2):
        # No other test compiles a network of such a form.
        field = make_tiny_field(channels=12)
        make_trainer(field, compile_network=True, max_epochs=1, batch_size=10).fit(data)
        counts.append(len(n_compiled))
    assert 0 < counts[0] == counts[1]


VELOCITIES = {"label_prediction": "velocity", "image_prediction": "velocity"}


# Each pair of these once.
@pytest.mark.parametrize(
    ("layout", "channel_parts", "precision"),
    [
        ({}, (), "float32"),
        ({}, (1, 2), "bfloat16"),
        (VELOCITIES, (), "bfloat16"),
        (VELOCITIES, (1, 2), "float32"),
        ({"patch_size": 2}, (), "float32"),
        ({"patch_size": 2}, (1, 2), "bfloat16"),
    ],
)
def test_the_losses_are_one_graph(make_tiny_field, layout, channel_parts, precision):
    from sklearn_msf.flow.path import sample_path, sample_times
    from sklearn_msf.runtime.device import autocast
    from sklearn_msf.training.losses import field_losses

    n_channels = sum(channel_parts) or 1
    layout = {"image_channels": n_channels, **layout}
    field = make_tiny_field(attention_levels=(0,), dropout=0.0, **layout).train()
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(8) % 3
    x, e_x = torch.randn(2, 8, n_channels, 8, 8, generator=generator)
    y = field.codes.masks(labels, (8, 8), generator)
    e_y = torch.randn(y.shape, generator=generator)
    sample = sample_path(x, y, e_x, e_y, *sample_times(8, 3, 2, generator))
    found = []
    # Any break of the graph is an error.
    whole = torch.compile(field_losses, fullgraph=True, dynamic=False, backend="eager")
    for losses in (field_losses, whole):
        with autocast(torch.device("cpu"), precision):
            total = sum(losses(field, sample, labels, 3, 3, None, channel_parts))
        gradients = torch.autograd.grad(total, list(field.parameters()))
        found.append([total, *gradients])
    rtol = 1e-4 if precision == "float32" else 0.1
    torch.testing.assert_close(*found, rtol=rtol, atol=1e-4 if precision == "float32" else 1e-2)


def test_dropout_compiles_with_the_same_fraction(make_tiny_field):
    from sklearn_msf.nn.dropout import Dropout

    layer = Dropout(0.3).train()
    compiled = torch.compile(layer, fullgraph=True, dynamic=False, backend="eager")
    h = torch.ones(4, 16, 16, 16)
    for dropped in (layer(h, 3), compiled(h, 3)):
        assert dropped[:3].unique().tolist() == pytest.approx([0.0, 256 / 179])
        assert (dropped[:3] == 0).float().mean() == pytest.approx(0.3, abs=0.03)
        assert (dropped[3] == 1).all()


def test_a_field_learns_the_same_compiled(compiles, data, make_tiny_field):
    losses = []
    for compile_network in (False, True):
        trainer = make_trainer(make_tiny_field(), compile_network=compile_network)
        trainer.fit(data)
        losses.append([epoch_log["loss"] for epoch_log in trainer.history])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_compiled_run_repeats_itself_and_leaves_the_global_generator(
    compiles, data, make_tiny_field
):
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


def test_the_first_step_of_each_division_is_not_a_usual_one(compiles, data, make_tiny_field):
    settings = {"compile_network": True, "classification_fraction": 0.25}
    step, divisions, usual = make_trainer(make_tiny_field(), **settings)._step, [], []
    with step.running():
        for _ in range(12):
            divisions.append(step._division(10))
            usual.append(step(data, torch.arange(10), 1e-3))
    # Of ten samples two or three are at t = 1, and the network is compiled for both.
    assert {division.n_at_one for division in divisions} == {2, 3}
    assert usual == [division in divisions[:i] for i, division in enumerate(divisions)]
