"""The training step as a CUDA graph, on a stand-in that records and replays."""

import contextlib

import pytest
import torch
from device_without_float64 import DEVICE, device_without_float64
from recorded_graphs import RecordedCuda
from test_training import all_weights, make_trainer
from torch.utils._python_dispatch import TorchDispatchMode

from sklearn_msf.latent.latent_batches import LatentTrainingData
from sklearn_msf.runtime.process_group import ProcessGroup
from sklearn_msf.training.batches import TrainingData
from sklearn_msf.training.optimizer import AveragedOptimizer
from sklearn_msf.training.step import TrainingStep

N = 26


def pixels(device=None):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (N, 1, 8, 8), dtype=torch.uint8, generator=generator)
    weights = torch.ones(N, dtype=torch.float64)
    return TrainingData(images, torch.arange(N) % 2, weights, N, device, "flip+affine")


def latents(n_channels=1, n_features=0):
    """Latents of one channel, with deviations, and features beside them."""
    generator = torch.Generator().manual_seed(0)
    stored = torch.randn(N, 3, n_channels + 1, 8, 8, generator=generator)
    weights = torch.ones(N, dtype=torch.float64)
    targets = torch.arange(N) % 2, weights, N, torch.device("cpu")
    return LatentTrainingData(stored, 2, n_channels, n_features, *targets)


def joint():
    return latents(n_channels=3, n_features=2)


# Training data, and what the layout and the training have with them.
DATA = {
    "pixels": (pixels, {}, {}),
    "latents": (latents, {}, {"time_shift": 3.0}),
    "joint latents": (joint, {"image_channels": 3}, {"time_shift": 3.0}),
}


def trained(make_tiny_field, data=pixels, *, layout=None, **overrides):
    field = make_tiny_field(n_classes=2, dropout=0.2, channels=16, **(layout or {})).train()
    # Two steps an epoch, of two divisions that most of them have.
    settings = {"max_epochs": 7, "class_dropout": 0.3, "classification_fraction": 0.5}
    settings["batch_size"] = 13
    trainer = make_trainer(field, **{**settings, **overrides})
    trainer.fit(data())
    return trainer


@pytest.fixture
def cuda(monkeypatch):
    return RecordedCuda().install(monkeypatch)


# Each pair of these once.
@pytest.mark.parametrize(
    ("label_prediction", "data", "optimizer"),
    [
        ("posterior", "pixels", "muon"),
        ("velocity", "pixels", "adamw"),
        ("posterior", "latents", "adamw"),
        ("velocity", "latents", "muon"),
        ("posterior", "joint latents", "muon"),
        ("velocity", "joint latents", "adamw"),
    ],
)
def test_replayed_training_is_training_to_the_last_bit(
    make_tiny_field, monkeypatch, optimizer, data, label_prediction
):
    make_data, layout, settings = DATA[data]
    layout = {"label_prediction": label_prediction, **layout}
    cuda = RecordedCuda().install(monkeypatch)
    settings = {"optimizer": optimizer, "layout": layout, **settings}
    replayed = trained(make_tiny_field, make_data, **settings)
    assert cuda.n_replayed > len(cuda.captured) > 1
    monkeypatch.undo()
    eager = trained(make_tiny_field, make_data, **settings)
    for name in ("image_loss", "label_loss", "learning_rate"):
        assert [log[name] for log in replayed.history] == [log[name] for log in eager.history]
    assert torch.equal(all_weights(replayed.field), all_weights(eager.field))
    assert torch.equal(all_weights(replayed.average), all_weights(eager.average))


@pytest.mark.parametrize("classification_fraction", [0.0, 1.0])
def test_branches_that_no_sample_trains_are_left_alone_in_replays_too(
    make_tiny_field, monkeypatch, classification_fraction
):
    settings = {"classification_fraction": classification_fraction, "class_dropout": 0.0}
    cuda = RecordedCuda().install(monkeypatch)
    replayed = trained(make_tiny_field, **settings)
    assert cuda.n_replayed
    monkeypatch.undo()
    eager = trained(make_tiny_field, **settings)
    assert torch.equal(all_weights(replayed.average), all_weights(eager.average))


@pytest.mark.parametrize("name", ["_rate", "_gain"])
def test_the_stand_in_notices_a_number_that_is_replaced_instead_of_refilled(
    make_tiny_field, monkeypatch, name
):
    begin_step = AveragedOptimizer.begin_step

    def replacing(self, rate):
        begin_step(self, rate)
        value = getattr(self, name).clone()
        setattr(self, name, value)
        for optimizer in self._optimizers if name == "_rate" else ():
            optimizer.param_groups[0]["lr"] = value

    eager = trained(make_tiny_field, ema_decay=0.99)
    monkeypatch.setattr(AveragedOptimizer, "begin_step", replacing)
    assert torch.equal(
        all_weights(trained(make_tiny_field, ema_decay=0.99).average), all_weights(eager.average)
    )
    RecordedCuda().install(monkeypatch)
    replayed = trained(make_tiny_field, ema_decay=0.99)
    assert not torch.equal(all_weights(replayed.average), all_weights(eager.average))


def test_several_processes_make_their_steps_without_graphs(make_tiny_field, monkeypatch):
    sent = []
    monkeypatch.setattr(ProcessGroup, "average_", lambda self, tensors: sent.append(tensors))
    cuda = RecordedCuda().install(monkeypatch)
    field = make_tiny_field(n_classes=2, channels=16).train()
    trainer, data = make_trainer(field, class_dropout=0.0), pixels()
    trainer._step._group = ProcessGroup(rank=0, size=2)
    with trainer._step.running():
        for _ in range(5):
            trainer._step(data, torch.arange(8), 1e-3)
    assert len(sent) == 5
    assert not cuda.captured


def test_a_step_may_be_repeated_until_it_changes_weights(make_tiny_field, monkeypatch):
    seen = []
    update = AveragedOptimizer.update

    def noted(self):
        seen.append(step._graphs._may_repeat())
        update(self)

    monkeypatch.setattr(AveragedOptimizer, "update", noted)
    field = make_tiny_field(n_classes=2, channels=16).train()
    trainer, data = make_trainer(field), pixels()
    step = trainer._step
    with step.running():
        step(data, torch.arange(8), 1e-3)
    assert seen == [False]
    assert step._graphs._may_repeat()


def test_the_memory_of_graphs_is_free_after_the_run(make_tiny_field, cuda):
    trainer = trained(make_tiny_field)
    assert cuda.captured
    assert not trainer._step._graphs._graphs


def test_after_a_divergence_steps_are_captured_anew(make_tiny_field, monkeypatch):
    forgotten = []
    forget, running = TrainingStep.forget, TrainingStep.take_losses

    def counted(self):
        forgotten.append(True)
        forget(self)

    def one_bad(self):
        losses = running(self)
        self.n_taken = getattr(self, "n_taken", 0) + 1
        return losses * float("nan") if self.n_taken == 4 else losses

    monkeypatch.setattr(TrainingStep, "take_losses", one_bad)
    with pytest.warns(UserWarning, match="not finite in epoch 4"):
        eager = trained(make_tiny_field)
    monkeypatch.setattr(TrainingStep, "forget", counted)
    cuda = RecordedCuda().install(monkeypatch)
    with pytest.warns(UserWarning, match="not finite in epoch 4"):
        replayed = trained(make_tiny_field)
    assert len(forgotten) == 1
    assert cuda.n_replayed
    assert torch.equal(all_weights(replayed.average), all_weights(eager.average))


def test_no_number_of_a_captured_step_changes_from_step_to_step(make_tiny_field, cuda):
    settings = {"classification_fraction": 0.5, "class_dropout": 0.0, "batch_size": 13}
    field = make_tiny_field(n_classes=2, dropout=0.2, channels=16).train()
    trainer, data = make_trainer(field, **settings), pixels()
    with trainer._step.running():
        for rate in (1e-3, 2e-3):
            for _ in range(5):
                trainer._step(data, torch.arange(8), rate)
            trainer._step._graphs.clear()
    first, second = (recording.described() for recording in cuda.captured)
    assert first == second


class OnlyOnDevice(TorchDispatchMode):
    """Refuses operations that wait for the device or move tensors to another one."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name, device = operation.name(), (kwargs or {}).get("device")
        if "_local_scalar_dense" in name or "nonzero" in name:
            raise AssertionError(f"{name} waits for the device")
        if "_to_copy" in name and device is not None and torch.device(device) != DEVICE:
            raise AssertionError("a tensor is copied to the CPU")
        # A capture refuses copies from memory of the host that is not pinned.
        into_device = "_to_copy" in name and device is not None and args[0].device != DEVICE
        onto_device = name == "aten::copy_" and args[0].device == DEVICE != args[1].device
        if into_device or onto_device:
            raise AssertionError("a tensor is copied from the CPU")
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_no_tensor_of_a_captured_step_leaves_the_device(make_tiny_field, monkeypatch, optimizer):
    step = TrainingStep._step

    def watched(self, *arguments):
        with OnlyOnDevice():
            step(self, *arguments)

    monkeypatch.setattr(TrainingStep, "_step", watched)
    with device_without_float64(monkeypatch) as device:
        field = make_tiny_field(n_classes=2, dropout=0.2, channels=16).move_to(device).train()
        generator = torch.Generator(device).manual_seed(0)
        trainer = make_trainer(field, generator=generator, optimizer=optimizer, max_epochs=1)
        trainer.fit(pixels(device))
    assert trainer.history[0]["n_images"] == N


@pytest.mark.parametrize("fails", [True, False])
def test_training_that_runs_out_of_memory_says_what_to_make_smaller(
    make_tiny_field, monkeypatch, fails
):
    def too_large(self, *arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    if fails:
        monkeypatch.setattr(TrainingStep, "_sample", too_large)
    expected = pytest.raises(
        MemoryError,
        match=r"batch_size=13\) of the shape \(1, 8, 8\): lower batch_size, .*LatentMedSymmFlow",
    )
    with expected if fails else contextlib.nullcontext():
        trained(make_tiny_field, max_epochs=1)


def test_processes_send_the_same_gradients_whatever_samples_they_have(make_tiny_field, monkeypatch):
    sent = []

    def noted(self, tensors):
        sent.append([tensor.shape for tensor in tensors])

    monkeypatch.setattr(ProcessGroup, "average_", noted)
    for rank in (0, 1):
        field = make_tiny_field(n_classes=2).train()
        trainer = make_trainer(field, classification_fraction=0.75)
        trainer._step._group = ProcessGroup(rank=rank, size=2)
        # Of four rows three are at t = 1, so that one process has no other.
        with trainer._step.running():
            trainer._step(pixels(), torch.arange(4), 1e-3)
    assert sent[0] == sent[1]


@pytest.mark.parametrize("make", [pixels, latents, joint])
def test_images_off_the_device_make_the_same_batches(make, monkeypatch):
    data, rows = make(), torch.tensor([3, 0, 25, 3])

    def batch():
        generator = torch.Generator().manual_seed(0)
        return data.batch(data.select(rows, 2, generator), 2, 2, generator)

    resident = batch()
    monkeypatch.setattr(TrainingData, "_is_resident", False)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    for one, other in zip(batch(), resident, strict=True):
        assert torch.equal(one, other)
