import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import torch_threads
from hypothesis import given
from hypothesis import strategies as st

from sklearn_msf.exceptions import DivergenceError
from sklearn_msf.training import step
from sklearn_msf.training.batches import TrainingData
from sklearn_msf.training.muon import Muon
from sklearn_msf.training.settings import TrainingSettings
from sklearn_msf.training.state import TrainingState
from sklearn_msf.training.step import count_of_step
from sklearn_msf.training.trainer import Trainer

SETTINGS = {
    "max_epochs": 3,
    "time_budget": None,
    "batch_size": 8,
    "even_batches": True,
    "learning_rate": 1e-2,
    "warmup": "linear",
    "optimizer": "muon",
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "ema_decay": 0.5,
    "image_weight": 0.5,
    "classification_fraction": 0.5,
    "class_dropout": 0.0,
    "time_shift": 1.0,
    "precision": "float32",
    "compile_network": False,
    "early_stopping": False,
    "n_iter_no_change": 2,
}


def make_trainer(field, generator=None, **overrides):
    generator = generator or torch.Generator().manual_seed(0)
    return Trainer(field, TrainingSettings(**{**SETTINGS, **overrides}), generator)


@pytest.fixture
def bright_and_dark():
    """Two classes that differ in brightness."""
    labels = torch.arange(24) % 2
    noise = 0.1 * torch.randn(24, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    images = (labels[:, None, None, None] - 0.5) + noise
    return TrainingData(images, labels, torch.ones(24, dtype=torch.float64), 24)


def test_training_lowers_the_loss_and_writes_its_history(make_tiny_field, bright_and_dark):
    trainer = make_trainer(make_tiny_field(n_classes=2), max_epochs=6)
    trainer.fit(bright_and_dark)
    losses = [epoch_log["loss"] for epoch_log in trainer.history]
    assert losses[-1] < losses[0]
    assert [epoch_log["epoch"] for epoch_log in trainer.history] == [1, 2, 3, 4, 5, 6]
    assert all(epoch_log["n_images"] == 24 for epoch_log in trainer.history)
    assert trainer.history[-1]["learning_rate"] < 1e-2


@pytest.mark.parametrize(("even", "n_steps"), [(True, 2), (False, 3)])
def test_uneven_batches_make_a_step_of_the_images_that_remain(
    make_tiny_field, bright_and_dark, even, n_steps
):
    # 24 images: 2 batches of 12, or 11 + 11 + 2.
    settings = {"max_epochs": 1, "batch_size": 11, "even_batches": even}
    trainer = make_trainer(make_tiny_field(n_classes=2), **settings)
    trainer.fit(bright_and_dark)
    assert trainer.state().metadata["n_steps"] == n_steps
    assert trainer.history[0]["n_images"] == 24


@pytest.mark.parametrize("warmup", ["linear", "cosine"])
def test_the_rate_warms_up_as_the_settings_say(make_tiny_field, bright_and_dark, warmup):
    settings = {"max_epochs": 20, "batch_size": 24, "warmup": warmup}
    trainer = make_trainer(make_tiny_field(n_classes=2), **settings)
    trainer.fit(bright_and_dark)
    # One step an epoch, at the middle of the first and of the second half of the warm-up.
    factors = {"linear": [0.25, 0.75], "cosine": [0.146447, 0.853553]}[warmup]
    rates = [epoch_log["learning_rate"] for epoch_log in trainer.history[:2]]
    assert rates == pytest.approx([1e-2 * factor for factor in factors], rel=1e-5)


def test_the_same_seed_trains_the_same_weights_dropout_included(make_tiny_field, bright_and_dark):
    weights = []
    for _ in range(2):
        trainer = make_trainer(make_tiny_field(n_classes=2, dropout=0.5).train())
        trainer.fit(bright_and_dark)
        weights.append(torch.cat([p.ravel() for p in trainer.average.parameters()]))
    assert torch.equal(*weights)


def test_the_rate_rises_and_falls_within_a_time_budget_that_ends_training(
    make_tiny_field, bright_and_dark, monkeypatch
):
    clock = iter(np.arange(0, 1e6, 0.5))
    monkeypatch.setattr(
        "sklearn_msf.training.schedule.time.perf_counter", lambda: float(next(clock))
    )
    trainer = make_trainer(make_tiny_field(n_classes=2), max_epochs=10**9, time_budget=60.0)
    trainer.fit(bright_and_dark)
    assert next(clock) <= 61
    rates = [epoch_log["learning_rate"] for epoch_log in trainer.history]
    assert max(rates) > 0.5e-2
    assert rates[-1] < 0.1e-2


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
    trainer.fit(bright_and_dark, report=lambda done, epoch_log: seen.append((done, epoch_log)))
    epochs = [(done, epoch_log["epoch"]) for done, epoch_log in seen if epoch_log is not None]
    assert [epoch for _, epoch in epochs] == [1, 2, 3]
    assert [done for done, _ in epochs] == pytest.approx([1 / 3, 2 / 3, 1])
    # Three steps an epoch.
    assert len(seen) == 3 * 3 + 3
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


@given(st.integers(1, 9), st.floats(0, 1))
def test_a_fraction_of_the_samples_holds_over_the_steps_of_any_batch_size(n, fraction):
    total = 0
    for n_steps in range(50):
        n_rows = count_of_step(fraction, n, n_steps)
        assert 0 <= n_rows <= n
        total += n_rows
    assert abs(total - 50 * n * fraction) <= 1


@given(st.integers(1, 9), st.floats(0, 1), st.floats(0, 0.9))
def test_of_small_batches_too_a_fraction_of_those_before_time_one_is_unconditional(
    n, fraction, dropout
):
    settings = SimpleNamespace(
        classification_fraction=fraction,
        class_dropout=dropout,
        unconditional_fraction=dropout * (1 - fraction),
    )
    generating = unconditional = 0
    for n_steps in range(50):
        of_step = n - count_of_step(fraction, n, n_steps)
        found = step._unconditional_of_step(settings, n, n_steps)
        assert 0 <= found <= of_step
        generating, unconditional = generating + of_step, unconditional + found
    assert abs(unconditional - dropout * generating) <= 2


def test_a_fraction_of_the_samples_before_time_one_is_unconditional(
    make_tiny_field, bright_and_dark, monkeypatch
):
    trainer = make_trainer(
        make_tiny_field(n_classes=2), max_epochs=5, classification_fraction=0.5, class_dropout=0.5
    )
    seen, losses = [], trainer._step._field_losses

    def spied(sample, *others):
        seen.append((sample.t, sample.mask_t))
        return losses(sample, *others)

    monkeypatch.setattr(trainer._step, "_field_losses", spied)
    trainer.fit(bright_and_dark)
    t, mask_t = (torch.cat(part) for part in zip(*seen, strict=True))
    unconditional = (mask_t == 1) & (t < 1)
    assert abs(int(unconditional.sum()) - len(t) / 4) <= len(seen)
    assert torch.equal(mask_t[~unconditional], t[~unconditional])


def all_weights(field):
    return torch.cat([p.ravel() for p in field.parameters()])


def test_a_run_goes_on_from_its_state_as_if_never_interrupted(make_tiny_field, bright_and_dark):
    whole = make_trainer(make_tiny_field(n_classes=2, dropout=0.5).train())
    whole.fit_epoch(bright_and_dark)
    state = whole.state()
    whole.fit_epoch(bright_and_dark)
    resumed = make_trainer(make_tiny_field(n_classes=2, dropout=0.5).train())
    resumed._generator.manual_seed(99)
    resumed.resume(state)
    resumed.fit_epoch(bright_and_dark)
    assert torch.equal(all_weights(whole.field), all_weights(resumed.field))
    assert torch.equal(all_weights(whole.average), all_weights(resumed.average))
    assert [r["loss"] for r in whole.history] == [r["loss"] for r in resumed.history]


def test_a_state_is_a_copy(make_tiny_field, bright_and_dark):
    trainer = make_trainer(make_tiny_field(n_classes=2))
    state = trainer.state()
    before = {name: value.clone() for name, value in state.tensors.items()}
    trainer.fit_epoch(bright_and_dark)
    assert all(torch.equal(state.tensors[name], value) for name, value in before.items())
    assert state.metadata["history"] == []


class MemoryCheckpoints:
    """Keeps the last state in memory."""

    def __init__(self, state=None):
        self.states = [] if state is None else [state]

    def take_latest(self):
        return self.states[-1] if self.states else None

    def save(self, state, *, n_epochs, finished):
        tensors, metadata = state()
        self.states.append(TrainingState(tensors, {**metadata, "finished": finished}))


def test_every_checkpoint_of_a_run_leads_to_the_same_end(make_tiny_field, bright_and_dark):
    def trained(checkpoints):
        trainer = make_trainer(
            make_tiny_field(n_classes=2, dropout=0.5).train(), max_epochs=4, early_stopping=True
        )
        scores = {1: 0.5, 2: 0.9, 3: 0.6, 4: 0.7}
        trainer.fit(
            bright_and_dark,
            validate=lambda field: scores[len(trainer.history) + 1],
            checkpoints=checkpoints,
        )
        return trainer

    checkpoints = MemoryCheckpoints()
    whole = trained(checkpoints)
    assert [state.metadata["finished"] for state in checkpoints.states] == [False] * 3 + [True]
    for state in checkpoints.states:
        resumed = trained(MemoryCheckpoints(state))
        assert torch.equal(all_weights(whole.average), all_weights(resumed.average))
        assert len(resumed.history) == 4


class OneBadStep:
    """Makes the loss of chosen steps NaN."""

    def __init__(self, trainer, bad):
        self.losses, self.bad, self.n = trainer._step._weighted_losses, bad, 0
        trainer._step._weighted_losses = self

    def __call__(self, *arguments):
        self.n += 1
        return self.losses(*arguments) * (math.nan if self.n in self.bad else 1.0)


def test_after_a_bad_loss_training_goes_on_at_a_lower_rate(make_tiny_field, bright_and_dark):
    trainer = make_trainer(make_tiny_field(n_classes=2), max_epochs=3)
    OneBadStep(trainer, {5})
    with pytest.warns(UserWarning, match=r"not finite in epoch 2, step 2, .* 0.25 times the"):
        trainer.fit(bright_and_dark)
    assert len(trainer.history) == 3
    assert torch.isfinite(all_weights(trainer.average)).all()
    assert trainer.history[-1]["learning_rate"] < 0.25 * 1e-2


def test_after_two_restarts_the_last_good_weights_are_kept(make_tiny_field, bright_and_dark):
    trainer = make_trainer(make_tiny_field(n_classes=2), max_epochs=9)
    OneBadStep(trainer, set(range(5, 1000)))
    with (
        pytest.warns(UserWarning, match="not finite"),
        pytest.raises(DivergenceError, match=r"after 2 restarts .*learning_rate=0\.01"),
    ):
        trainer.fit(bright_and_dark)
    assert torch.isfinite(all_weights(trainer.average)).all()


def test_an_interrupt_ends_training_with_a_usable_model(make_tiny_field, bright_and_dark):
    trainer = make_trainer(make_tiny_field(n_classes=2), max_epochs=1000)

    def interrupt(done, epoch_log):
        if epoch_log is not None and epoch_log["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.warns(UserWarning, match="interrupted after 2 whole epochs"):
        trainer.fit(bright_and_dark, report=interrupt)
    assert len(trainer.history) == 2
    assert torch.isfinite(all_weights(trainer.average)).all()


def test_an_interrupt_after_a_validation_keeps_what_was_validated(make_tiny_field, bright_and_dark):
    trainer = make_trainer(make_tiny_field(n_classes=2), max_epochs=9, early_stopping=True)
    kept = []

    def validate(field):
        kept.append(all_weights(field).clone())
        return [0.1, 0.9][len(kept) - 1]

    def interrupt(done, epoch_log):
        if epoch_log is not None and epoch_log["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.warns(UserWarning, match="interrupted after 2 whole epochs"):
        trainer.fit(bright_and_dark, validate=validate, report=interrupt)
    assert torch.equal(all_weights(trainer.average), kept[1])
    assert trainer.n_epochs_unused == 0


def test_an_interrupt_before_the_first_step_is_one(make_tiny_field, bright_and_dark):
    trainer = make_trainer(make_tiny_field(n_classes=2), time_budget=10.0)

    def interrupt(field):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer.fit(bright_and_dark, validate=interrupt)


def test_an_interrupt_before_the_first_step_of_a_continued_run_is_one_too(
    make_tiny_field, bright_and_dark
):
    before = make_trainer(make_tiny_field(n_classes=2), max_epochs=1)
    before.fit(bright_and_dark)
    trainer = make_trainer(make_tiny_field(n_classes=2), time_budget=10.0)
    trainer.load_weights(before.state())

    def interrupt(field):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer.fit(bright_and_dark, validate=interrupt)


def test_an_interrupt_in_one_of_several_processes_is_one(make_tiny_field, bright_and_dark):
    trainer = make_trainer(make_tiny_field(n_classes=2), max_epochs=1000)
    # Its steps are those of a process by itself.
    trainer.group = SimpleNamespace(size=2, of_first=lambda value: value)

    def interrupt(done, epoch_log):
        if epoch_log is not None and epoch_log["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer.fit(bright_and_dark, report=interrupt)


class CountingCallback:
    """Counts epochs and ends training after some of them."""

    def __init__(self, stop_after=None):
        self.begun, self.ended, self.stop_after = 0, 0, stop_after

    def begin_epoch(self):
        self.begun += 1

    def end_epoch(self):
        self.ended += 1
        return self.ended == self.stop_after

    def leave_epoch(self):
        self.begun -= 1


def test_epochs_end_where_the_callback_says_so(make_tiny_field, bright_and_dark):
    trainer = make_trainer(make_tiny_field(n_classes=2), max_epochs=9)
    callback = CountingCallback(stop_after=2)
    trainer.fit(bright_and_dark, callback=callback)
    assert len(trainer.history) == callback.begun == callback.ended == 2


class OneBadUpdate:
    """Spoils the weights at chosen steps, behind a loss that is finite."""

    def __init__(self, trainer, bad):
        self.end, self.field, self.bad, self.n = trainer._optimizer.end_step, trainer.field, bad, 0
        trainer._optimizer.end_step = self

    def __call__(self):
        self.n += 1
        self.end()
        if self.n in self.bad:
            next(self.field.parameters()).data.fill_(math.nan)


@pytest.mark.parametrize("bad", [{4}, {6}, {9}])
def test_weights_that_are_not_finite_are_noticed_at_the_end_of_their_epoch(
    make_tiny_field, bright_and_dark, bad
):
    trainer = make_trainer(make_tiny_field(n_classes=2), max_epochs=3)
    OneBadUpdate(trainer, bad)
    checkpoints = MemoryCheckpoints()
    with pytest.warns(UserWarning, match="not finite in epoch"):
        trainer.fit(bright_and_dark, checkpoints=checkpoints)
    assert torch.isfinite(all_weights(trainer.average)).all()
    assert len(trainer.history) == 3
    for state in checkpoints.states:
        assert all(value.isfinite().all() for value in state.tensors.values())


def test_a_run_cut_off_after_a_bad_loss_ends_as_if_it_never_was(make_tiny_field, bright_and_dark):
    def trained(checkpoints):
        trainer = make_trainer(make_tiny_field(n_classes=2), max_epochs=4)
        # The fifth step from the start, in whichever process it is made.
        done = 0 if not checkpoints.states else checkpoints.states[-1].metadata["n_steps"]
        OneBadStep(trainer, {5 - done} if done < 5 else set())
        if done < 5:
            with pytest.warns(UserWarning, match="not finite"):
                trainer.fit(bright_and_dark, checkpoints=checkpoints)
        else:
            trainer.fit(bright_and_dark, checkpoints=checkpoints)
        return trainer

    checkpoints = MemoryCheckpoints()
    whole = trained(checkpoints)
    for state in checkpoints.states:
        resumed = trained(MemoryCheckpoints(state))
        assert torch.equal(all_weights(whole.average), all_weights(resumed.average))


def test_a_divergence_keeps_the_best_weights_of_early_stopping(make_tiny_field, bright_and_dark):
    trainer = make_trainer(make_tiny_field(n_classes=2), max_epochs=9, early_stopping=True)
    OneBadStep(trainer, set(range(7, 1000)))
    kept = []

    def validate(field):
        kept.append(all_weights(field).clone())
        return [0.9, 0.1][len(kept) - 1]

    with (
        pytest.warns(UserWarning, match="not finite"),
        pytest.raises(DivergenceError, match="epoch 3"),
    ):
        trainer.fit(bright_and_dark, validate=validate)
    assert torch.equal(all_weights(trainer.average), kept[0])
    assert len(trainer.history) == 2


def test_fits_in_several_threads_do_not_disturb_each_other(make_tiny_field, bright_and_dark):
    from concurrent.futures import ThreadPoolExecutor

    def trained(field):
        trainer = make_trainer(field, max_epochs=4)
        trainer.fit(bright_and_dark)
        return all_weights(trainer.average)

    fields = [make_tiny_field(n_classes=2, dropout=0.5).train() for _ in range(4)]
    alone = trained(make_tiny_field(n_classes=2, dropout=0.5).train())
    with ThreadPoolExecutor(4) as executor:
        together = list(executor.map(trained, fields))
    for weights in together:
        torch.testing.assert_close(weights, alone)


@pytest.mark.parametrize("n_threads", [2, 3])
def test_several_threads_train_the_same_up_to_rounding(make_tiny_field, bright_and_dark, n_threads):
    def trained():
        field = make_tiny_field(n_classes=2, dropout=0.5).train()
        # Few steps: threads wait long for each other where other processes compute.
        trainer = make_trainer(field, optimizer="adamw", max_epochs=1)
        trainer.fit(bright_and_dark)
        assert torch.isfinite(all_weights(trainer.average)).all()
        return [record["loss"] for record in trainer.history]

    expected = trained()
    with torch_threads(n_threads):
        found = trained()
        assert torch.get_num_threads() == n_threads
    assert found == pytest.approx(expected, rel=1e-3)


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
    assert all(epoch_log["n_images"] == 8 for epoch_log in trainer.history)


def test_a_new_weight_decay_counts_after_loading(make_tiny_field, bright_and_dark):
    trainer = make_trainer(make_tiny_field(n_classes=2))
    trainer.fit_epoch(bright_and_dark)

    def gone_on(weight_decay):
        other = make_trainer(make_tiny_field(n_classes=2), weight_decay=weight_decay)
        other.load_weights(trainer.state())
        other.fit_epoch(bright_and_dark)
        return all_weights(other.field)

    plain, decayed = gone_on(0.0), gone_on(3.0)
    torch.testing.assert_close(plain, gone_on(0.0), rtol=0, atol=0)
    assert decayed.norm() < 0.99 * plain.norm()


def test_losses_stay_finite_in_bfloat16(make_tiny_field, bright_and_dark):
    trainer = make_trainer(make_tiny_field(n_classes=2), precision="bfloat16")
    trainer.fit(bright_and_dark)
    assert all(math.isfinite(epoch_log["loss"]) for epoch_log in trainer.history)


@pytest.mark.parametrize("classification_fraction", [0.3, 0.0])
def test_dropout_is_for_the_samples_at_time_one_where_there_are_any(
    make_tiny_field, bright_and_dark, classification_fraction
):
    # So small a batch has no sample at t = 1 in most steps.
    trainer = make_trainer(
        make_tiny_field(n_classes=2),
        max_epochs=1,
        classification_fraction=classification_fraction,
        batch_size=2,
    )
    seen, losses = [], trainer._step._field_losses

    def watched(sample, labels, n_at_one, n_dropped, *others):
        seen.append((n_at_one, n_dropped, len(labels)))
        return losses(sample, labels, n_at_one, n_dropped, *others)

    trainer._step._field_losses = watched
    trainer.fit(bright_and_dark)
    assert 0 in {n_at_one for n_at_one, _, _ in seen}
    for n_at_one, n_dropped, n in seen:
        assert n_dropped == (n_at_one if classification_fraction else n)


def test_epochs_after_a_restart_have_a_quarter_of_the_rate(make_tiny_field, bright_and_dark):
    plain, spoiled = (make_trainer(make_tiny_field(n_classes=2), max_epochs=4) for _ in range(2))
    plain.fit(bright_and_dark)
    OneBadStep(spoiled, {5})
    with pytest.warns(UserWarning, match="not finite in epoch 2"):
        spoiled.fit(bright_and_dark)
    first, *others = (log["learning_rate"] for log in plain.history)
    after = [log["learning_rate"] for log in spoiled.history]
    assert after == pytest.approx([first, *(0.25 * rate for rate in others)])


def test_a_repeated_epoch_has_other_noise(make_tiny_field, bright_and_dark):
    trainer = make_trainer(make_tiny_field(n_classes=2), max_epochs=2)
    seen, losses = [], trainer._step._field_losses

    def noted(sample, *others):
        seen.append(sample.x_t.clone())
        return losses(sample, *others)

    trainer._step._field_losses = noted
    OneBadStep(trainer, {4})
    with pytest.warns(UserWarning, match="epoch 2"):
        trainer.fit(bright_and_dark)
    assert not torch.equal(seen[3], seen[6])


def test_losses_beyond_the_buffer_count_too(make_tiny_field, bright_and_dark, monkeypatch):
    def history(bad=()):
        trainer = make_trainer(make_tiny_field(n_classes=2), max_epochs=2)
        OneBadStep(trainer, set(bad))
        trainer.fit(bright_and_dark)
        return [log["loss"] for log in trainer.history]

    whole = history()
    monkeypatch.setattr("sklearn_msf.training.step.TrainingStep.capacity", 2)
    assert history() == pytest.approx(whole)
    with pytest.warns(UserWarning, match="epoch 1, step 3"):
        history({3})


def test_a_resumed_run_counts_the_time_before(make_tiny_field, bright_and_dark):
    def run(checkpoints, **settings):
        trainer = make_trainer(make_tiny_field(n_classes=2), max_epochs=4, **settings)
        trainer.fit(bright_and_dark, checkpoints=checkpoints)
        return trainer

    checkpoints = MemoryCheckpoints()
    run(checkpoints)
    tensors, metadata = checkpoints.states[0]
    late = TrainingState(tensors, {**metadata, "elapsed": 1000.0, "begun": 900.0})
    budget = run(MemoryCheckpoints(late), time_budget=2000.0).budget
    assert budget.elapsed > 1000
    # The schedule of learning rates leaves these seconds out.
    assert budget.begun == 900.0


def test_an_interrupt_after_spoiled_weights_goes_back_to_good_ones(
    make_tiny_field, bright_and_dark
):
    trainer = make_trainer(make_tiny_field(n_classes=2), max_epochs=9)
    OneBadUpdate(trainer, {4})

    def interrupt(done, epoch_log):
        if trainer._optimizer.n_steps == 5:
            raise KeyboardInterrupt

    with pytest.warns(UserWarning, match="interrupted after 1 whole"):
        trainer.fit(bright_and_dark, report=interrupt)
    assert torch.isfinite(all_weights(trainer.average)).all()


def test_an_interrupt_between_the_two_optimizers_leaves_a_state_to_go_on_from(
    make_tiny_field, bright_and_dark, monkeypatch
):
    def make():
        return make_trainer(make_tiny_field(n_classes=2), max_epochs=9, optimizer="muon")

    def interrupted_in_the_fourth(self):
        if next(count) == 4:
            raise KeyboardInterrupt
        step(self)

    step, count = Muon.step, iter(range(1, 9))
    trainer = make()
    with monkeypatch.context() as patch:
        patch.setattr(Muon, "step", interrupted_in_the_fourth)
        with pytest.warns(UserWarning, match="interrupted after 1 whole"):
            trainer.fit(bright_and_dark)
    continued = make()
    continued.load_weights(trainer.state())
    continued.fit(bright_and_dark)
    tensors, metadata = continued.state()
    # As a checkpoint is checked.
    make().check(TrainingState(tensors, {**metadata, "finished": True}))


def test_steps_are_made_in_the_precision_asked_for(make_tiny_field, bright_and_dark):
    losses = []
    for precision in ("float32", "bfloat16"):
        trainer = make_trainer(make_tiny_field(n_classes=2), precision=precision, max_epochs=1)
        trainer.fit(bright_and_dark)
        losses.append(trainer.history[0]["loss"])
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.1)
