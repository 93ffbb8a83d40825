"""One step of the training: from the indices of a batch to updated weights.

The step is one function for all devices. On CUDA, where starting hundreds of short kernels takes
longer than running them, it is captured as a CUDA graph for each division of a batch and then
replayed; elsewhere, and with several processes, it runs as it is. What a graph demands holds on
every device:

- nothing waits for the device, and no shape depends on the values of tensors;
- what changes from step to step is in tensors that keep their memory: indices, learning rate,
  weight of the moving average, moments, number of steps, position in the buffer of the losses;
- all random numbers come from one generator, which graphs know;
- what is a Python number (the division of the batch) is part of the key of the graph.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sklearn_msf.flow.path import PathSample, sample_path, sample_times
from sklearn_msf.flow.velocity_field import VelocityField
from sklearn_msf.nn.dropout import Dropout
from sklearn_msf.runtime.compilation import compile_or_not
from sklearn_msf.runtime.cuda_graphs import CapturedSteps
from sklearn_msf.runtime.device import arithmetic, autocast
from sklearn_msf.runtime.process_group import ProcessGroup
from sklearn_msf.training.batches import TrainingData
from sklearn_msf.training.losses import WholeBatch, field_losses
from sklearn_msf.training.optimizer import AveragedOptimizer
from sklearn_msf.training.settings import TrainingSettings

__all__ = ["BatchDivision", "TrainingStep", "count_of_step"]


class BatchDivision(NamedTuple):
    """Numbers of samples of a batch, in the order in which they come.

    Attributes
    ----------
    n_samples : int
        Samples in the batch.
    n_at_one : int
        Samples at t = 1, which come first.
    n_unconditional : int
        Samples that are trained unconditionally, which come next.
    n_varied : int
        Samples, the first ones, that are varied in ways which generated images should not show,
        and that have dropout.
    """

    n_samples: int
    n_at_one: int
    n_unconditional: int
    n_varied: int


class TrainingStep:
    """Makes the steps of a training run.

    Parameters
    ----------
    field : VelocityField
        The field to train, on its device; changed in place.
    optimizer : AveragedOptimizer
        Updates the field and its average.
    settings : TrainingSettings
        Settings of the training; others, with another fraction at t = 1, may be assigned between
        steps.
    generator : torch.Generator
        Source of times, noise, dropout and augmentation, on the device of the field.
    group : ProcessGroup
        The processes that train together. Each draws everything for the whole batch, and computes
        the gradients of its part.

    Attributes
    ----------
    n_steps_before : int
        Steps before those that the optimizer knows of: samples at t = 1 are spread over all.
    """

    # Losses wait in a buffer on the device, because reading them waits for the device.
    capacity = 100

    def __init__(
        self,
        field: VelocityField,
        optimizer: AveragedOptimizer,
        settings: TrainingSettings,
        generator: torch.Generator,
        group: ProcessGroup,
    ):
        self._group = group
        self._field = field
        self._optimizer = optimizer
        self.settings = settings
        self._generator = generator
        self._device = generator.device
        losses = partial(field_losses, field)
        self._field_losses = compile_or_not(losses) if settings.compile_network else losses
        self._losses = torch.zeros(self.capacity, 2, device=self._device)
        self._position = torch.zeros(1, dtype=torch.int64, device=self._device)
        self._n_unread = 0
        self.n_steps_before = 0
        self._dropout = _layers_with_dropout(field)
        self._dropout_up = _layers_with_dropout(field.unet.up)
        self._is_updating = False
        self._graphs = CapturedSteps(self._device, generator, lambda: not self._is_updating)
        # Divisions of a batch for which a compiled network was compiled.
        self._compiled: set[BatchDivision] = set()

    def __call__(self, data: TrainingData, rows: Tensor, rate: float) -> bool:
        """Make one step.

        Parameters
        ----------
        data : TrainingData
            Training data.
        rows : Tensor of shape (n,), int64
            Indices of the batch, as :meth:`TrainingData.epoch` yields them.
        rate : float
            Learning rate.

        Returns
        -------
        bool
            Whether it took as long as later ones of its kind will: on CUDA the first ones have no
            graph yet, and a network is compiled for each division of a batch.
        """
        self._group.check_batch(len(rows), self.settings.batch_size)
        division = self._division(len(rows))
        inputs = data.select(rows, division.n_varied, self._generator)
        self._optimizer.begin_step(rate)
        step = partial(self._step, data, division)
        is_usual = True
        if self._group.size == 1:
            is_usual = self._graphs.run((data, division), step, inputs)
        else:
            # torch does not watch communication inside a graph: it would not notice that another
            # process has ended.
            step(*inputs)
        self._optimizer.end_step()
        self._n_unread += 1
        if self.settings.compile_network:
            # Whether a mask says nothing of the class changes no shape.
            compiled = division._replace(n_unconditional=0)
            is_usual = is_usual and compiled in self._compiled
            self._compiled.add(compiled)
        return is_usual

    def take_losses(self) -> Tensor:
        """Return the losses since the last call, at most `capacity`, and wait for the device.

        Returns
        -------
        Tensor of shape (n_steps, 2), on the CPU
            Weighted image and label loss of each step.
        """
        # A copy, because later steps write to the buffer.
        losses = self._losses[: self._n_unread].to("cpu", copy=True)
        self._position.zero_()
        self._n_unread = 0
        return losses

    def forget(self) -> None:
        """Forget unread losses, and the graphs: moments of the optimizer got other memory."""
        self._graphs.clear()
        self._position.zero_()
        self._n_unread = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Prepare torch for steps: random numbers and kernels; restore it on exit.

        Dropout draws from the generator of the run. A compiled network cannot do so and draws from
        the global generators, which :meth:`seed_global_generators` seeds and which are restored
        at the end.
        """
        compiled = self.settings.compile_network
        layers = self._dropout
        cuda = [self._device] if self._device.type == "cuda" else []
        kernels = arithmetic(self._device)
        with torch.random.fork_rng(devices=cuda, enabled=compiled), kernels:
            try:
                for layer in layers:
                    layer.generator = None if compiled else self._generator
                yield
            finally:
                for layer in layers:
                    layer.generator = layer.part = None
                # The calibration run and the predictions after it need the memory.
                self._graphs.clear()

    def seed_global_generators(self) -> None:
        """Seed the generators that a compiled network draws from; do nothing for any other."""
        if not self.settings.compile_network:
            return
        # Do not draw the seed from the generator of the run: noise and order must stay the same as
        # in a run without compilation.
        seed = (self._generator.initial_seed() + self._optimizer.n_steps) % 2**63
        torch.default_generator.manual_seed(seed)
        if self._device.type == "cuda":
            with torch.cuda.device(self._device):
                torch.cuda.manual_seed(seed)

    def _division(self, n: int) -> BatchDivision:
        settings, n_steps = self.settings, self.n_steps_before + self._optimizer.n_steps
        n_at_one = count_of_step(settings.classification_fraction, n, n_steps)
        return BatchDivision(
            n_samples=n,
            n_at_one=n_at_one,
            n_unconditional=_unconditional_of_step(settings, n, n_steps),
            # Affine changes and dropout are for classification, so only samples at t = 1 have
            # them. If training has no samples at t = 1, all samples have them.
            n_varied=n_at_one if settings.classification_fraction > 0 else n,
        )

    # The captured function

    def _step(self, data: TrainingData, division: BatchDivision, *inputs: Tensor) -> None:
        """Compute the gradients, then change the weights."""
        self._is_updating = False
        self._optimizer.clear_gradients()
        n_varied, n_at_one = division.n_varied, division.n_at_one
        x, labels = data.batch(inputs, n_varied, n_at_one, self._generator)
        sample, whole = self._sample(x, labels, division), None
        if self._group.size > 1:
            n_generating = division.n_samples - division.n_at_one
            whole = WholeBatch(division.n_samples, division.n_at_one, self._group.size)
            sample, labels, division = self._own_part(sample, labels, division)
        losses = self._weighted_losses(sample, labels, division, data.channel_parts, whole)
        losses.sum().backward()
        losses = losses.detach()
        if whole is not None:
            self._optimizer.fill_gradients(all_weights=n_generating > 0)
            self._group.average_([*self._optimizer.gradients(), losses])
        self._is_updating = True
        self._optimizer.update()
        self._is_updating = False
        self._losses.index_copy_(0, self._position, losses[None])
        self._position.add_(1)

    def _own_part(
        self, sample: PathSample, labels: Tensor, division: BatchDivision
    ) -> tuple[PathSample, Tensor, BatchDivision]:
        """Take this process's part of the samples at t = 1 and of the others."""
        n_at_one, n_samples = division.n_at_one, division.n_samples
        at_one = self._group.part(n_at_one)
        others = self._group.part(n_samples - n_at_one, first=n_at_one)
        indices = torch.arange(n_samples, device=labels.device)
        own = indices[:n_at_one][at_one], indices[n_at_one:][others]
        rows, own_at_one = torch.cat(own), len(own[0])
        varies_at_one = self.settings.classification_fraction > 0
        dropped = (at_one, n_at_one) if varies_at_one else (others, n_samples)
        for layer in self._dropout:
            layer.part = dropped
        if varies_at_one and not self._field.decodes_at_one:
            for layer in self._dropout_up:
                layer.part = None
        own_division = BatchDivision(
            n_samples=len(rows),
            n_at_one=own_at_one,
            n_unconditional=division.n_unconditional,
            n_varied=own_at_one if varies_at_one else len(rows),
        )
        return sample.take(rows), labels[rows], own_division

    def _sample(self, x: Tensor, labels: Tensor, division: BatchDivision) -> PathSample:
        """Draw a point of the path for each image."""
        generator = self._generator
        y = self._field.codes.masks(labels, x.shape[2:], generator)
        e_x = torch.randn(x.shape, generator=generator, device=self._device)
        e_y = torch.randn(y.shape, generator=generator, device=self._device)
        times = sample_times(
            len(x),
            division.n_at_one,
            division.n_unconditional,
            generator,
            self.settings.time_shift,
        )
        return sample_path(x, y, e_x, e_y, *times)

    def _weighted_losses(
        self,
        sample: PathSample,
        labels: Tensor,
        division: BatchDivision,
        channel_parts: tuple[int, ...],
        whole: WholeBatch | None,
    ) -> Tensor:
        """Compute the weighted image and label losses of one batch."""
        with autocast(self._device, self.settings.precision):
            image_loss, label_loss = self._field_losses(
                sample, labels, division.n_at_one, division.n_varied, whole, channel_parts
            )
        w = self.settings.image_weight
        return torch.stack([w * image_loss, (1 - w) * label_loss])


def count_of_step(fraction: float, n: int, n_steps: int) -> int:
    """Round fraction * n for one step so that the sum over all steps has the exact fraction.

    Parameters
    ----------
    fraction : float
        Fraction of the samples, in [0, 1].
    n : int
        Number of samples in the batch.
    n_steps : int
        Number of steps before this one.
    """
    exact = fraction * n
    return math.floor((n_steps + 1) * exact) - math.floor(n_steps * exact)


def _unconditional_of_step(settings: TrainingSettings, n: int, n_steps: int) -> int:
    """Round the number of unconditional samples, which are samples before t = 1, for one step."""
    exact_at_one = settings.classification_fraction * n
    if (n - exact_at_one) * (1 - settings.class_dropout) >= 2:
        return count_of_step(settings.unconditional_fraction, n, n_steps)
    # Some steps have too few samples before t = 1: count among those that there are.
    before, after = (k * n - math.floor(k * exact_at_one) for k in (n_steps, n_steps + 1))
    return math.floor(settings.class_dropout * after) - math.floor(settings.class_dropout * before)


def _layers_with_dropout(module: nn.Module) -> list[Dropout]:
    return [layer for layer in module.modules() if isinstance(layer, Dropout)]
