"""Preparation: conversion of the images of a fit to the training data of the field."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from sklearn_msf._estimator.data_validation import TrainingSamples
from sklearn_msf._estimator.encoded_sizes import as_sides
from sklearn_msf._estimator.parameters import START_ANEW, Parameters
from sklearn_msf.data.images import ImageFormat
from sklearn_msf.model.image_space import FieldInputs, ImageSpace, PixelSpace
from sklearn_msf.persistence.archives import ArchiveError
from sklearn_msf.persistence.limits import check_resized_size
from sklearn_msf.runtime.out_of_memory import naming_what_takes_memory
from sklearn_msf.training.batches import TrainingData

__all__ = ["PixelPreparation", "Preparation", "Run", "training_targets"]


@dataclass(frozen=True)
class Run:
    """The run of training that a preparation serves.

    Attributes
    ----------
    started : float
        Time at which it began, by `time.perf_counter`.
    is_first : bool
        Whether this is the first of its processes, which writes files.
    goes_on : bool, default=False
        Whether the run goes on from checkpoints.
    has_checkpoints : bool, default=False
        Whether this process has them: of several processes only the first one may.
    n_unseen : int, default=0
        Images that training does not see, which are prepared too.
    """

    started: float
    is_first: bool
    goes_on: bool = False
    has_checkpoints: bool = False
    n_unseen: int = 0


class Preparation(Protocol):
    """Learns the space of a fit, and makes the training data.

    Parameters
    ----------
    p : SimpleNamespace
        Checked parameters.
    device : torch.device
        Device of the network.
    space : ImageSpace or None
        Space of the fit that this one continues.
    origin : object
        Its `origin`.
    """

    def __init__(
        self, p: Parameters, device: torch.device, space: Any = None, origin: Any = None
    ) -> None: ...

    @staticmethod
    def read_space(
        plain: Any,
        tensors: dict[str, torch.Tensor],
        image_format: ImageFormat,
        p: Parameters,
        n_classes: int,
        *,
        known: Any = None,
        plain_origin: Any = None,
    ) -> tuple[ImageSpace, Any]:
        """Return the space that a saved model describes, and the `origin` of its fit.

        A model that is about to be saved has its space already, `known`: then nothing is opened,
        and only the description is checked. `plain_origin` is what `origin.to_plain` returned.
        """

    def fingerprint(self) -> dict[str, Any]:
        """Return what identifies a run besides the parameters; open what they name for it."""

    def learn_space(
        self, samples: TrainingSamples, random_state: np.random.RandomState, run: Run
    ) -> ImageSpace:
        """Learn the space that converts between images and inputs of the field."""

    def training_data(
        self,
        space: ImageSpace,
        samples: TrainingSamples,
        augment: str | None,
        run: Run,
        part: int | None = None,
    ) -> TrainingData:
        """Prepare the images for training; `part` is the number of a part that is seen once."""

    def inputs_of(
        self,
        space: ImageSpace,
        data: TrainingData,
        samples: TrainingSamples,
        indices: np.ndarray,
        precision: str,
        flips: Sequence[tuple[int, ...]],
    ) -> FieldInputs:
        """Prepare some of the samples of which `data` was made for repeated classification."""

    @property
    def origin(self) -> Any:
        """State for a later fit that continues this one."""


class PixelPreparation:
    """Preparation for a field that works on the images themselves; see :class:`Preparation`."""

    def __init__(
        self, p: Parameters, device: torch.device, space: Any = None, origin: Any = None
    ) -> None:
        self._device = device
        self._input_size = p.input_size
        if space is not None and self._space(space.image_format).shape != space.shape:
            raise ValueError(
                f"Training cannot go on with another input_size, {p.input_size!r}, than the model "
                f"was fitted with; set it back, or {START_ANEW}."
            )

    def _space(self, image_format: ImageFormat) -> PixelSpace:
        if self._input_size is None:
            return PixelSpace(image_format)
        if image_format.n_spatial_dims != 2:
            raise ValueError(
                f"input_size={self._input_size!r} in network_params is for images: with "
                f"n_spatial_dims={image_format.n_spatial_dims} set it to None, and resize X."
            )
        size = as_sides(self._input_size)
        check_resized_size("input_size", size, image_format.size)
        return PixelSpace(image_format, size)

    @staticmethod
    def read_space(
        plain: Any,
        tensors: dict[str, torch.Tensor],
        image_format: ImageFormat,
        p: Parameters,
        n_classes: int,
        *,
        known: Any = None,
        plain_origin: Any = None,
    ) -> tuple[PixelSpace, None]:
        """Return the space of pixels; files have only the size to which images are resized."""
        if tensors or (plain is not None and plain.keys() != {"input_size"}):
            raise ArchiveError(
                "The model works on latents: open it with LatentMedSymmFlowClassifier."
            )
        return PixelSpace.from_plain(plain, image_format), None

    def fingerprint(self) -> dict[str, Any]:
        """Return no entries: the parameters identify the run."""
        return {}

    def learn_space(
        self, samples: TrainingSamples, random_state: np.random.RandomState, run: Run
    ) -> PixelSpace:
        """Return the space of pixels, in which nothing is learned."""
        return self._space(samples.image_format)

    def training_data(
        self,
        space: ImageSpace,
        samples: TrainingSamples,
        augment: str | None,
        run: Run,
        part: int | None = None,
    ) -> TrainingData:
        """Resize the images if asked for, and move them to the device."""
        assert isinstance(space, PixelSpace)
        images = space.resized(samples.rows)
        n_bytes = math.prod(images.shape) * images.dtype.itemsize
        advice = (
            f"Training over pixels needs a copy of the images in memory, {n_bytes / 1e9:.1f} GB "
            f"({len(images)} of the shape {images.shape[1:]}, {images.dtype}): resize X or set a "
            "smaller input_size in network_params, pass X as uint8, or train on parts of X with "
            "partial_fit"
        )
        targets = training_targets(samples)
        size = space.image_format.size
        with naming_what_takes_memory(advice):
            tensor = torch.from_numpy(images.to_array())
            return TrainingData(tensor, *targets, self._device, augment, proportions=size)

    def inputs_of(
        self,
        space: ImageSpace,
        data: TrainingData,
        samples: TrainingSamples,
        indices: np.ndarray,
        precision: str,
        flips: Sequence[tuple[int, ...]],
    ) -> FieldInputs:
        """Return the images themselves."""
        rows = samples.take(indices).rows
        return space.inputs(rows, self._device, precision, flips, repeated=True)

    @property
    def origin(self) -> None:
        """None, because no state is needed."""
        return None


def training_targets(samples: TrainingSamples) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Return labels and weights as tensors, and the number of images in an epoch."""
    labels = torch.from_numpy(samples.labels.astype(np.int64))
    return labels, torch.from_numpy(samples.weights), samples.n_images
