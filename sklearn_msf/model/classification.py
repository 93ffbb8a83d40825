"""Classification in batches of one constant size.

Kernels round differently for other batch sizes and numbers of threads. Batches are therefore
padded to one size, or to a smaller one that was seen to give the same bits. On a CPU each batch
runs on one thread, and several batches run in parallel. So the prediction for an image is the
same, to the last bit, whatever other images are classified with it. Full batches are smaller only
if memory runs out, which is logged.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from sklearn_msf.data.on_demand import RowsOnDemand
from sklearn_msf.flow.label_codes import MaskReader
from sklearn_msf.flow.ode_solver import OdeSettings
from sklearn_msf.flow.velocity_field import VelocityField
from sklearn_msf.model.captured_integration import captured, shortened
from sklearn_msf.model.denoising_error import denoising_errors
from sklearn_msf.model.fitted_model import FittedModel
from sklearn_msf.model.image_space import FieldInputs
from sklearn_msf.model.temperature import apply_temperature
from sklearn_msf.runtime.batch_sizes import padded
from sklearn_msf.runtime.batching import in_batches
from sklearn_msf.runtime.device import autocast
from sklearn_msf.runtime.torch_state import standard_torch

__all__ = [
    "ClassificationSettings",
    "Prediction",
    "classify",
    "images_a_pass",
    "inputs_of",
    "predict",
    "read_evidence",
]

# Size of a forward pass in samples, where each draw of an image counts: larger passes are not
# faster. The size does not depend on the number of images, but it is smaller for larger images, to
# bound the memory, and for networks larger than the default one (32 channels, 14 x 14 positions),
# because a pass of one image may have to be padded to the full size.
_MAX_ROWS = 256
_MAX_PIXELS = _MAX_ROWS * 28 * 28
_FEATURES = 32 * 14 * 14
# On a GPU a pass of so many times as many pixels takes hardly longer, and there is memory for it.
_TIMES_ON_GPU = 32
# Times at which the errors of the image branch under the codes of all classes are compared. Each
# has its own noise.
_EVIDENCE_TIMES = (0.9, 0.9, 0.9, 0.9)


@dataclass(frozen=True)
class ClassificationSettings:
    """Settings of classification.

    Attributes
    ----------
    ode : OdeSettings
        Integration from t = 1 to 0.
    n_draws : int
        Number of draws of the mask noise that are averaged.
    precision : {"float32", "bfloat16"}
        Precision of convolutions and products.
    label_decoding : {"latent", "pixel"}
        Whether encoded masks are compared as latents, or decoded and compared as colours.
    """

    ode: OdeSettings
    n_draws: int
    precision: str
    label_decoding: str


@dataclass(frozen=True, eq=False)
class Prediction:
    """Predictions of a model for n images.

    Attributes
    ----------
    probabilities : ndarray of shape (n, K), float64
        Class probabilities; rows sum to 1.
    distances : ndarray of shape (n, K), float64
        Distance of the predicted mask to each code (paper, eq. 2).
    draws : ndarray of shape (n, n_draws, K), float64, or None
        Class probabilities of each draw, if requested.
    denoising_errors : ndarray of shape (n, K), float64, or None
        Squared error of the image branch under the code of each class, if requested.
    """

    probabilities: np.ndarray
    distances: np.ndarray
    draws: np.ndarray | None = None
    denoising_errors: np.ndarray | None = None

    @property
    def class_indices(self) -> np.ndarray:
        """Index of the most probable class of each image, shape (n,)."""
        return self.probabilities.argmax(axis=1)


@standard_torch()
def inputs_of(
    model: FittedModel, rows: RowsOnDemand, settings: ClassificationSettings
) -> FieldInputs:
    """Prepare images, (n, n_features), and those of their flips that the draws see."""
    flips = model.flips(settings.n_draws)
    return model.space.inputs(rows, model.device, settings.precision, flips)


@standard_torch()
def predict(
    model: FittedModel, inputs: FieldInputs, settings: ClassificationSettings, kind: str
) -> Prediction:
    """Classify images, apply the temperature, and add what a kind of uncertainty needs.

    Parameters
    ----------
    model : FittedModel
        The trained model.
    inputs : FieldInputs
        The images.
    settings : ClassificationSettings
        Settings of classification.
    kind : str
        Kind of uncertainty, one of `UNCERTAINTIES`.

    Returns
    -------
    Prediction
    """
    prediction = classify(model, inputs, settings, keep_draws=kind == "draws")
    if kind == "image":
        classes = np.tile(np.arange(prediction.probabilities.shape[1]), (len(inputs), 1))
        errors = denoising_errors(
            model, inputs, classes, _EVIDENCE_TIMES, settings.precision, images_a_pass(model)
        )
        prediction = replace(prediction, denoising_errors=errors.mean(axis=2))
    p = apply_temperature(prediction.probabilities, model.temperature)
    return replace(prediction, probabilities=p)


@standard_torch()
def classify(
    model: FittedModel,
    inputs: FieldInputs,
    settings: ClassificationSettings,
    *,
    keep_draws: bool = False,
) -> Prediction:
    """Classify images, averaged over draws of the mask noise, without the temperature.

    Parameters
    ----------
    model : FittedModel
        The trained model.
    inputs : FieldInputs
        The images.
    settings : ClassificationSettings
        Settings of classification.
    keep_draws : bool, default=False
        Whether to return the probabilities of each draw as well.

    Returns
    -------
    Prediction
    """
    field, n_images = model.field, len(inputs)
    noise = model.mask_noise(settings.n_draws, settings.ode)
    reader = model.space.reader(field.codes_on_cpu, settings.label_decoding)

    def prepare(start: int, n: int) -> list[Tensor]:
        return [inputs.batch(start, n, flip) for flip in model.flips(len(noise))]

    def evaluate(
        views: list[Tensor], size: int, ode: OdeSettings, *, reads: bool = True
    ) -> tuple[Tensor, ...]:
        n_real = len(views[0])
        x, e_y = _draws(views, size, noise)
        with autocast(noise.device, settings.precision):
            evidence = captured(field, field.class_evidence, ode, settings.precision)(x, e_y)
        by_draw = evidence.float().unflatten(0, (len(noise), size))
        by_draw = torch.cat([by_draw] * math.ceil(settings.n_draws / len(noise)))
        by_draw = by_draw[: settings.n_draws]
        # One after the other: torch adds the rows of a tensor in orders that depend on the column.
        first, *others = by_draw
        averaged = sum(others, first) / len(by_draw)
        if not reads:
            return ()
        decoded: tuple[Tensor, ...] = read_evidence(field, averaged, n_real, reader)
        if keep_draws:
            p_of_draws = [read_evidence(field, draw, n_real, reader)[0] for draw in by_draw]
            decoded = *decoded, torch.stack(p_of_draws, dim=1)
        return tuple(part[:n_real] for part in decoded)

    def run(start: int, size: int) -> tuple[Tensor, ...]:
        return evaluate(prepare(start, min(size, n_images - start)), size, settings.ode)

    batch_size = images_a_pass(model, len(noise), settings.ode)
    # Two steps have the kernels of all.
    few = replace(settings, ode=shortened(settings.ode))
    kind = few, keep_draws, len(noise), type(inputs), type(reader)
    trial = partial(evaluate, ode=few.ode, reads=reader.reads_padding)
    small = model.small_batches(kind, prepare, trial)
    parts = in_batches(run, n_images, batch_size, noise.device, small=small)
    return Prediction(*(torch.cat(part).numpy() for part in zip(*parts, strict=True)))


def images_a_pass(
    model: FittedModel,
    n_draws: int = 1,
    ode: OdeSettings | None = None,
    max_rows: int = _MAX_ROWS,
) -> int:
    """Compute how many images fit into one forward pass with all their draws.

    Parameters
    ----------
    model : FittedModel
        Its space gives the size of the images, its field the network.
    n_draws : int, default=1
        Number of draws of each image.
    ode : OdeSettings, optional
        How the batch is integrated, if it is.
    max_rows : int, default=256
        Largest size of a pass, in images times draws.

    Returns
    -------
    int
    """
    if ode is not None and ode.is_adaptive:
        # An adaptive solver chooses its steps for a whole batch: images would affect each other.
        return 1
    size = model.space.shape[1:]
    times = _TIMES_ON_GPU if model.device.type == "cuda" else 1
    by_pixels = times * _MAX_PIXELS // math.prod(size)
    by_features = times * max_rows * _FEATURES // model.field.unet.count_features(size)
    return max(1, min(max_rows, by_pixels, by_features) // n_draws)


def _draws(views: Sequence[Tensor], size: int, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Stack the images and the mask noise of the draws, which see the views in turn."""
    views = [padded(view, size) for view in views]
    images = [views[draw % len(views)] for draw in range(len(noise))]
    return torch.cat(images), noise.repeat_interleave(size, dim=0)


def read_evidence(
    field: VelocityField, evidence: Tensor, n_rows: int, reader: MaskReader
) -> tuple[Tensor, Tensor]:
    """Read classes from the evidence in float64 on the CPU.

    Parameters
    ----------
    field : VelocityField
        The field that made the evidence.
    evidence : Tensor
        Result of :meth:`VelocityField.class_evidence`, on any device.
    n_rows : int
        How many rows are needed.
    reader : MaskReader
        Compares masks with codes.

    Returns
    -------
    probabilities, distances : Tensor of shape (n, K), float64
        At least `n_rows` rows, each the same whatever the others are.
    """
    masks = reader.prepare(evidence, n_rows).cpu().double()
    if len(masks) > 1 or torch.get_num_threads() == 1:
        return field.decode(masks, reader)
    # Torch splits the sums of a single large mask over its threads, which rounds otherwise than the
    # sums of the same mask beside others.
    probabilities, distances = field.decode(torch.cat([masks, masks]), reader)
    return probabilities[:1], distances[:1]
