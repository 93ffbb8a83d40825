import copy

import pytest
import torch

from sklearn_msf.training.optimizer import OPTIMIZERS, AveragedOptimizer


def make(field, **overrides):
    average = copy.deepcopy(field)
    settings = {"optimizer": "muon", "weight_decay": 0.0, "max_grad_norm": None, "ema_decay": 0.9}
    return AveragedOptimizer(field, average, **{**settings, **overrides}), average


def set_gradients(field, seed=0, size=1.0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in field.parameters():
        values = size * torch.randn(parameter.shape, generator=generator)
        parameter.grad = torch.empty_like(parameter).copy_(values)


def weights(field):
    return torch.cat([p.detach().ravel() for p in field.parameters()])


def test_the_average_moves_towards_the_weights(make_tiny_field):
    field = make_tiny_field()
    optimizer, average = make(field, ema_decay=0.05)
    start = weights(field).clone()
    set_gradients(field)
    optimizer.step(0.1)
    # One step: decay = min(0.05, 1 / 10).
    torch.testing.assert_close(weights(average), 0.05 * start + 0.95 * weights(field))


@pytest.mark.parametrize("n_steps", [1, 5, 100])
def test_a_young_average_keeps_less(make_tiny_field, n_steps):
    field = make_tiny_field()
    optimizer, average = make(field, ema_decay=0.999)
    optimizer.n_steps = n_steps - 1
    start = weights(field).clone()
    set_gradients(field)
    optimizer.step(0.1)
    decay = n_steps / (n_steps + 9)
    torch.testing.assert_close(weights(average), decay * start + (1 - decay) * weights(field))


def test_steps_forget_the_gradients(make_tiny_field):
    field = make_tiny_field()
    optimizer, _ = make(field)
    set_gradients(field)
    optimizer.step(0.1)
    assert all(parameter.grad is None for parameter in field.parameters())


def test_long_gradients_are_cut_to_their_norm(make_tiny_field):
    field = make_tiny_field()
    optimizer, _ = make(field, optimizer="adamw", max_grad_norm=0.5)
    norms, step = [], optimizer._adamw.step

    def noted():
        gradients = [parameter.grad.ravel() for parameter in field.parameters()]
        norms.append(torch.cat(gradients).norm().item())
        step()

    optimizer._adamw.step = noted
    set_gradients(field, size=1e3)
    optimizer.step(0.1)
    assert norms == [pytest.approx(0.5, rel=1e-3)]


def test_muon_steps_have_singular_values_that_are_all_the_same(make_tiny_field):
    field = make_tiny_field(channels=32)
    optimizer, _ = make(field)
    weight = field.unet.middle_out.conv_in.weight
    before = weight.detach().clone()
    set_gradients(field)
    optimizer.step(0.1)
    step = (before - weight.detach()).flatten(1)
    values = torch.linalg.svdvals(step)
    assert values.max() < 2 * values.min()
    # As long as AdamW's: 0.2 of the rate at the root of the mean square.
    assert step.square().mean().sqrt() == pytest.approx(0.02, rel=0.25)


def test_vectors_and_small_matrices_step_by_adamw(make_tiny_field):
    field = make_tiny_field(channels=32)
    optimizer, _ = make(field)
    chosen = [field.unet.middle_out.norm_in.weight, field.head.weight]
    before = [weight.detach().clone() for weight in chosen]
    set_gradients(field)
    optimizer.step(0.1)
    for weight, start in zip(chosen, before, strict=True):
        # AdamW's first step is the rate in the direction of the gradient's sign.
        torch.testing.assert_close((weight.detach() - start).abs(), torch.full_like(start, 0.1))


def test_adamw_alone_leaves_nothing_to_muon(make_tiny_field):
    field = make_tiny_field(channels=32)
    optimizer, _ = make(field, optimizer="adamw")
    before = weights(field).clone()
    set_gradients(field)
    optimizer.step(0.1)
    steps = (weights(field) - before).abs()
    torch.testing.assert_close(steps, torch.full_like(before, 0.1), atol=2e-3, rtol=0)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_loaded_optimizer_goes_on_as_the_first_one_would(make_tiny_field, layout, optimizer):
    first_field = make_tiny_field(channels=32).to(memory_format=torch.channels_last)
    second_field = make_tiny_field(channels=32).to(memory_format=layout)
    first, first_average = make(first_field, optimizer=optimizer)
    set_gradients(first_field)
    first.step(0.1)
    second, second_average = make(second_field, optimizer=optimizer)
    second.load(first.tensors(), first.n_steps)
    for field, optimizer in ((first_field, first), (second_field, second)):
        set_gradients(field, seed=1)
        optimizer.step(0.1)
    torch.testing.assert_close(weights(first_field), weights(second_field))
    torch.testing.assert_close(weights(first_average), weights(second_average))


@pytest.mark.parametrize("before", OPTIMIZERS)
@pytest.mark.parametrize("after", OPTIMIZERS)
def test_one_optimizer_goes_on_where_another_was(make_tiny_field, before, after):
    field = make_tiny_field(channels=32)
    first, _ = make(field, optimizer=before)
    set_gradients(field)
    first.step(0.1)
    second, _ = make(field, optimizer=after)
    second.load(first.tensors(), first.n_steps)
    start = weights(field).clone()
    set_gradients(field, seed=1)
    second.step(0.1)
    assert second.is_finite()
    assert 0 < (weights(field) - start).abs().max() < 1
