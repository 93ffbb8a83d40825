import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sklearn_msf.training import Trainer, TrainingData, TrainingSettings, learning_rate_factor

SETTINGS = {
    "max_epochs": 3,
    "time_budget": None,
    "batch_size": 8,
    "learning_rate": 1e-2,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "ema_decay": 0.5,
    "image_weight": 0.5,
    "t1_share": 0.5,
    "augment": None,
    "precision": "float32",
    "early_stopping": False,
    "n_iter_no_change": 2,
}


def make_trainer(field, **overrides):
    generator = torch.Generator().manual_seed(0)
    return Trainer(field, TrainingSettings(**{**SETTINGS, **overrides}), generator)


@pytest.fixture
def bright_and_dark():
    """Two classes that differ in brightness."""
    labels = torch.arange(24) % 2
    noise = 0.1 * torch.randn(24, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    images = (labels[:, None, None, None] - 0.5) + noise
    return TrainingData(images, labels, torch.ones(24, dtype=torch.float64), 24)


def rows_seen(weights, epoch_size, batch_size=4, seed=0):
    weights = torch.tensor(weights, dtype=torch.float64)
    n = len(weights)
    images, labels = torch.zeros(n, 1, 1, 1), torch.zeros(n, dtype=torch.int64)
    data = TrainingData(images, labels, weights, epoch_size)
    batches = list(data.epoch(batch_size, torch.Generator().manual_seed(seed)))
    return torch.cat(batches), [len(batch) for batch in batches]


@given(st.lists(st.integers(1, 5), min_size=1, max_size=30), st.integers(0, 2**31))
def test_integer_weights_count_as_repetitions(weights, seed):
    rows, _ = rows_seen([float(w) for w in weights], sum(weights), seed=seed)
    np.testing.assert_array_equal(np.bincount(rows, minlength=len(weights)), weights)


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=30), st.integers(0, 2**31))
def test_an_epoch_gives_each_row_its_share_to_within_one(weights, seed):
    rows, _ = rows_seen(weights, len(weights), seed=seed)
    share = len(rows) * np.array(weights) / sum(weights)
    assert (np.abs(np.bincount(rows, minlength=len(weights)) - share) < 1 + 1e-6).all()


@given(st.integers(1, 200), st.integers(1, 64))
def test_batches_of_an_epoch_are_of_even_size(n, batch_size):
    _, sizes = rows_seen([1.0] * n, n, batch_size)
    assert sum(sizes) == n
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= max(batch_size * 1.5, 1)


def test_the_learning_rate_warms_up_and_falls_to_zero():
    assert learning_rate_factor(0.0) == 0.0
    assert learning_rate_factor(0.05) == pytest.approx(0.5)
    assert learning_rate_factor(0.1) == pytest.approx(1.0)
    assert learning_rate_factor(0.55) == pytest.approx(0.5)
    assert learning_rate_factor(1.0) == pytest.approx(0.0)


def test_training_lowers_the_loss_and_writes_its_history(make_tiny_field, bright_and_dark):
    trainer = make_trainer(make_tiny_field(n_classes=2), max_epochs=6)
    trainer.fit(bright_and_dark)
    losses = [record["loss"] for record in trainer.history]
    assert losses[-1] < losses[0]
    assert [record["epoch"] for record in trainer.history] == [1, 2, 3, 4, 5, 6]
    assert all(record["n_images"] == 24 for record in trainer.history)
    assert trainer.history[-1]["learning_rate"] < 1e-2


def test_the_same_seed_trains_the_same_weights_dropout_included(make_tiny_field, bright_and_dark):
    weights = []
    for _ in range(2):
        trainer = make_trainer(make_tiny_field(n_classes=2, dropout=0.5).train())
        trainer.fit(bright_and_dark)
        weights.append(torch.cat([p.ravel() for p in trainer.average.parameters()]))
    assert torch.equal(*weights)


def test_the_average_is_the_moving_average_of_the_weights(make_tiny_field, bright_and_dark):
    trainer = make_trainer(make_tiny_field(n_classes=2), ema_decay=0.05, batch_size=24)
    start = trainer.field.head.bias.detach().clone()
    trainer.fit_epoch(bright_and_dark)
    now = trainer.field.head.bias.detach()
    # One step: decay = min(0.05, 1 / 10).
    torch.testing.assert_close(trainer.average.head.bias, 0.05 * start + 0.95 * now)


def test_time_budget_ends_training_with_its_schedule(make_tiny_field, bright_and_dark, monkeypatch):
    clock = iter(np.arange(0, 1e6, 0.5))
    monkeypatch.setattr("sklearn_msf.training.time.perf_counter", lambda: float(next(clock)))
    trainer = make_trainer(make_tiny_field(n_classes=2), max_epochs=10**9, time_budget=60.0)
    trainer.fit(bright_and_dark)
    assert next(clock) <= 61
    assert trainer.history[-1]["learning_rate"] < 0.1 * 1e-2


def test_early_stopping_keeps_the_best_weights(make_tiny_field, bright_and_dark):
    scores = iter([0.1, 0.9, 0.3, 0.2, 0.8])
    biases = []

    def validate(field):
        biases.append(field.head.bias.clone())
        return next(scores)

    trainer = make_trainer(
        make_tiny_field(n_classes=2), max_epochs=5, early_stopping=True, n_iter_no_change=2
    )
    trainer.fit(bright_and_dark, validate=validate)
    assert len(trainer.history) == 4
    assert torch.equal(trainer.average.head.bias, biases[1])


def test_progress_is_reported_after_each_epoch(make_tiny_field, bright_and_dark):
    seen = []
    trainer = make_trainer(make_tiny_field(n_classes=2))
    trainer.fit(bright_and_dark, report=lambda done, record: seen.append((done, record)))
    epochs = [(done, record["epoch"]) for done, record in seen if record is not None]
    assert [epoch for _, epoch in epochs] == [1, 2, 3]
    assert [done for done, _ in epochs] == pytest.approx([1 / 3, 2 / 3, 1])
    # Three steps an epoch.
    assert len(seen) == 3 * 3 + 3
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


@given(st.integers(1, 9), st.floats(0, 1))
def test_the_share_at_time_one_holds_over_the_steps_of_any_batch_size(n, share):
    trainer = object.__new__(Trainer)
    trainer.settings = TrainingSettings(**{**SETTINGS, "t1_share": share})
    total = 0
    for trainer._n_steps in range(50):
        n_at_one = trainer._n_at_one(n)
        assert 0 <= n_at_one <= n
        total += n_at_one
    assert abs(total - 50 * n * share) <= 1


def test_a_loaded_state_goes_on_as_if_never_interrupted(make_tiny_field, bright_and_dark):
    whole = make_trainer(make_tiny_field(n_classes=2))
    whole.fit_epoch(bright_and_dark)
    resumed = make_trainer(make_tiny_field(n_classes=2))
    resumed.load_state_dict(whole.state_dict())
    for trainer in (whole, resumed):
        trainer._generator.manual_seed(5)
        trainer.fit_epoch(bright_and_dark)
    assert torch.equal(whole.average.head.bias, resumed.average.head.bias)


def test_training_leaves_the_global_state_of_torch_alone(make_tiny_field, bright_and_dark):
    trainer = make_trainer(make_tiny_field(n_classes=2, dropout=0.5))
    before = torch.get_rng_state(), torch.get_num_threads(), torch.get_default_dtype()
    trainer.fit(bright_and_dark)
    after = torch.get_rng_state(), torch.get_num_threads(), torch.get_default_dtype()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def test_every_partial_epoch_trains_at_least_one_step(make_tiny_field, bright_and_dark):
    trainer = make_trainer(make_tiny_field(n_classes=2), time_budget=1e-9)
    for _ in range(2):
        trainer.fit_epoch(bright_and_dark)
    assert all(record["n_images"] == 8 for record in trainer.history)


def test_a_new_weight_decay_counts_after_loading(make_tiny_field, bright_and_dark):
    trainer = make_trainer(make_tiny_field(n_classes=2))
    trainer.fit_epoch(bright_and_dark)
    other = make_trainer(make_tiny_field(n_classes=2), weight_decay=0.3)
    other.load_state_dict(trainer.state_dict())
    assert other._optimizer.param_groups[0]["weight_decay"] == 0.3


def test_losses_stay_finite_in_bfloat16(make_tiny_field, bright_and_dark):
    trainer = make_trainer(make_tiny_field(n_classes=2), precision="bfloat16")
    trainer.fit(bright_and_dark)
    assert all(math.isfinite(record["loss"]) for record in trainer.history)
