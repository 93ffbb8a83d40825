"""Classification and generation in batches of one constant size.

Kernels round differently for other batch sizes and numbers of threads, so every batch is
padded to the same size and, on a CPU, run by one thread, several batches side by side: a
row's result is the same, to the last bit, whatever rows are beside it. Only where memory runs
out, which is logged, are batches smaller.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sklearn_msf.data.images import ImageFormat
from sklearn_msf.flow.label_codes import EncodedLabelCodes, LabelCodes, PixelReading
from sklearn_msf.flow.ode_solver import ADAPTIVE_SOLVERS
from sklearn_msf.flow.parameterizations import PosteriorForm
from sklearn_msf.flow.velocity_field import VelocityField
from sklearn_msf.runtime.batching import in_batches
from sklearn_msf.runtime.cuda_graphs import replay
from sklearn_msf.runtime.device import autocast

__all__ = [
    "FieldInputs",
    "InferenceSettings",
    "PixelInputs",
    "Prediction",
    "classify",
    "generate",
    "trace",
    "translate",
]


@dataclass(frozen=True)
class InferenceSettings:
    """How to classify and to generate.

    Attributes
    ----------
    n_steps : int
        Steps of the ODE solver.
    ode_solver : str
        Method of the ODE solver.
    batch_size : int
        Rows of a batch.
    precision : {"float32", "bfloat16"}
        Precision of convolutions and products.
    mirror_draws : bool
        Whether every second draw of a classification sees the mirror image.
    keep_draws : bool
        Whether a prediction tells what each draw says.
    guidance : float
        How far to draw beyond the velocity of the class.
    """

    n_steps: int
    ode_solver: str
    batch_size: int
    precision: str
    mirror_draws: bool = False
    keep_draws: bool = False
    guidance: float = 0.0


@dataclass(frozen=True)
class Prediction:
    """What the label half says.

    Attributes
    ----------
    probabilities : ndarray of shape (n, K), float64
        Class probabilities; rows sum to 1.
    distances : ndarray of shape (n, K), float64
        Distance of the predicted mask to each code (paper, eq. 2).
    draws : ndarray of shape (n, n_draws, K), float64, or None
        Class probabilities of each draw, where they were asked for.
    residuals : ndarray of shape (n, K), float64, or None
        Squared error of the image half under the code of each class, where it was asked for.
    """

    probabilities: np.ndarray
    distances: np.ndarray
    draws: np.ndarray | None = None
    residuals: np.ndarray | None = None


class FieldInputs(Protocol):
    """Images as the field takes them, made when they are needed."""

    def __len__(self) -> int:
        """Count the images."""

    def batch(self, start: int, size: int, *, mirrored: bool) -> Tensor:
        """Make x of `size` images, (size, C, H, W), the last batch filled up with its first."""


class PixelInputs:
    """Images as arrays, brought to a device and to [-1, 1] batch by batch.

    Parameters
    ----------
    images : ndarray of shape (n, C, H, W)
        uint8 in [0, 255] or float32 in [-1, 1].
    device : torch.device
        Where the field is.
    """

    def __init__(self, images: np.ndarray, device: torch.device):
        self._images = images
        self._device = device

    def __len__(self) -> int:
        """Count the images."""
        return len(self._images)

    def batch(self, start: int, size: int, *, mirrored: bool) -> Tensor:
        """Make x of `size` images, (size, C, H, W), the last batch filled up with its first."""
        images = self._images[start : start + size]
        if len(images) < size:
            filling = np.repeat(images[:1], size - len(images), axis=0)
            images = np.concatenate([images, filling])
        x = ImageFormat.normalise(torch.from_numpy(images).to(self._device))
        return x.flip(3) if mirrored else x


def classify(
    field: VelocityField,
    inputs: FieldInputs,
    noise: Tensor,
    settings: InferenceSettings,
    codes: LabelCodes | EncodedLabelCodes | PixelReading,
) -> Prediction:
    """Classify images, averaged over draws of the mask noise.

    Parameters
    ----------
    field : VelocityField
        Trained field in evaluation mode, on the device of `noise`.
    inputs : FieldInputs
        The images.
    noise : Tensor of shape (n_draws, C_y, H, W)
        Mask noise e_y of each draw, the same for all images.
    settings : InferenceSettings
        Solver, batches and precision.
    codes : LabelCodes, EncodedLabelCodes or PixelReading
        What masks are compared with.

    Returns
    -------
    Prediction
    """
    read = _read_posterior if isinstance(field, PosteriorForm) else _read_mask
    n_rows = len(inputs)

    def run(start: int, size: int) -> tuple[Tensor, ...]:
        n_real = min(size, n_rows - start)
        # Costly: what only filled up is not decoded.
        n_decoded = n_real if isinstance(codes, PixelReading) else size
        x, e_y = _draws(inputs, start, size, noise, settings)
        with autocast(noise.device, settings.precision):
            estimate = read(field, x, e_y, settings)
        by_draw = estimate.float().unflatten(0, (len(noise), size))[:, :n_decoded]
        # Draws are averaged in a fixed order.
        decoded = _decode(by_draw.mean(dim=0), codes)
        if settings.keep_draws:
            p_of_draws = [_decode(estimates, codes)[0] for estimates in by_draw]
            decoded = *decoded, torch.stack(p_of_draws, dim=1)
        return tuple(part[:n_real] for part in decoded)

    parts = in_batches(run, n_rows, settings.batch_size, noise.device)
    return Prediction(*(torch.cat(part).numpy() for part in zip(*parts, strict=True)))


def _read_posterior(
    field: VelocityField, x: Tensor, e_y: Tensor, settings: InferenceSettings
) -> Tensor:
    """Class probabilities, (n, K)."""
    assert isinstance(field, PosteriorForm)
    one_step = settings.n_steps == 1 and settings.ode_solver not in ADAPTIVE_SOLVERS
    if x.device.type == "cuda" and one_step:
        return replay(field, settings.precision, field.posterior, x, e_y)
    return field.posterior(x, e_y, n_steps=settings.n_steps, method=settings.ode_solver)


def _read_mask(field: VelocityField, x: Tensor, e_y: Tensor, settings: InferenceSettings) -> Tensor:
    """Masks at t = 0, (n, C_y, H, W)."""
    return field.classify(x, e_y, n_steps=settings.n_steps, method=settings.ode_solver)


def _draws(
    inputs: FieldInputs, start: int, size: int, noise: Tensor, settings: InferenceSettings
) -> tuple[Tensor, Tensor]:
    """Images and mask noise of all draws, draw after draw.

    A mask of one colour has no sides to mirror.
    """
    n_draws = len(noise)
    views = [inputs.batch(start, size, mirrored=False)]
    if settings.mirror_draws and n_draws > 1:
        views.append(inputs.batch(start, size, mirrored=True))
    images = [views[draw % len(views)] for draw in range(n_draws)]
    return torch.cat(images), noise.repeat_interleave(size, dim=0)


def _decode(
    estimate: Tensor, codes: LabelCodes | EncodedLabelCodes | PixelReading
) -> tuple[Tensor, ...]:
    """Probabilities and distances in float64 on the CPU, from probabilities or from masks."""
    if isinstance(codes, PixelReading):
        estimate, codes = codes.decode(estimate), codes.palette
    # The batch leaves the device here.
    estimate, codes = estimate.cpu().double(), codes.to("cpu")
    if estimate.ndim == 2:
        # Only plain codes have a posterior form.
        assert isinstance(codes, LabelCodes)
        p = estimate / estimate.sum(dim=1, keepdim=True)
        masks = codes.mean_codes(p)[:, :, None, None]
    else:
        p, masks = codes.probabilities(estimate), estimate
    return p, codes.distances(masks)


def generate(
    field: VelocityField,
    labels: Tensor,
    image_shape: tuple[int, int, int],
    seed: int,
    settings: InferenceSettings,
    decode: Callable[[Tensor], Tensor],
    first: int = 0,
    report: Callable[[int], object] | None = None,
) -> Tensor:
    """Draw one image for each label.

    Parameters
    ----------
    field : VelocityField
        Trained field in evaluation mode.
    labels : Tensor of shape (n,), int64
        Class indices.
    image_shape : tuple of int
        (C, H, W) of what the field draws.
    seed : int
        Seed of the noise. Image i of a seed is the same, to the last bit, however many are
        drawn with it and of whatever classes.
    settings : InferenceSettings
        Solver, batches and precision.
    decode : callable
        Makes images of what the field draws.
    first : int, default=0
        Number of the first image of the seed to draw.
    report : callable, optional
        Called with the number of images drawn since the last call.

    Returns
    -------
    Tensor of shape (n, C, H, W)
        Images in about [-1, 1], on the CPU.
    """
    device = field.device
    shape = image_shape[0] + field.codes.n_channels, *image_shape[1:]

    def run(start: int, size: int) -> Tensor:
        n_real = len(labels[start : start + size])
        part = F.pad(labels[start : start + size], (0, size - n_real))
        noise = _image_noise(seed, first + start, size, shape).to(device)
        masks = field.codes.masks(part.to(device), image_shape[1:])
        with autocast(device, settings.precision):
            drawn = field.generate(
                noise[:, : image_shape[0]],
                masks,
                noise[:, image_shape[0] :],
                n_steps=settings.n_steps,
                method=settings.ode_solver,
                guidance=settings.guidance,
            )
        return decode(drawn[:n_real].float()).float().cpu()

    return torch.cat(in_batches(run, len(labels), settings.batch_size, device, report))


@torch.inference_mode()
def trace(
    field: VelocityField,
    label: int,
    image_shape: tuple[int, int, int],
    seed: int,
    settings: InferenceSettings,
) -> tuple[Tensor, Tensor, np.ndarray]:
    """Draw one image, the first of a seed, and keep it and its mask after every step.

    Parameters
    ----------
    field, image_shape, seed, settings :
        As in :func:`generate`.
    label : int
        Class index.

    Returns
    -------
    images : Tensor of shape (n_steps + 1, C, H, W)
        What the field draws, from noise to the image.
    masks : Tensor of shape (n_steps + 1, C_y, H, W)
        From the code of the class to noise.
    times : ndarray of shape (n_steps + 1,)
        When they are there.
    """
    device = field.device
    shape = image_shape[0] + field.codes.n_channels, *image_shape[1:]
    noise = _image_noise(seed, 0, 1, shape).to(device)
    masks = field.codes.masks(torch.tensor([label], device=device), image_shape[1:])
    with autocast(device, settings.precision):
        points = field.trajectory(
            noise[:, : image_shape[0]],
            masks,
            noise[:, image_shape[0] :],
            n_steps=settings.n_steps,
            method=settings.ode_solver,
            guidance=settings.guidance,
        )
    images, on_path = (torch.cat(part) for part in zip(*points, strict=True))
    return images, on_path, np.array(field.path_times(settings.n_steps))


def translate(
    field: VelocityField,
    inputs: FieldInputs,
    sources: Tensor,
    targets: Tensor,
    e_y: Tensor,
    settings: InferenceSettings,
    decode: Callable[[Tensor], Tensor],
) -> Tensor:
    """Carry each image to noise under one class and back under another.

    Parameters
    ----------
    field : VelocityField
        Trained field in evaluation mode, on the device of `e_y`.
    inputs : FieldInputs
        The n images.
    sources, targets : Tensor of shape (n,), int64
        Class indices for the way to noise and for the way back.
    e_y : Tensor of shape (1, C_y, H, W)
        Mask noise, the same for all images.
    settings : InferenceSettings
        Solver, batches and precision.
    decode : callable
        Makes images of what the field works on.

    Returns
    -------
    Tensor of shape (n, C, H, W)
        Images in about [-1, 1], on the CPU.
    """
    n_rows, size_of_masks = len(inputs), (e_y.shape[2], e_y.shape[3])

    def run(start: int, size: int) -> Tensor:
        n_real = min(size, n_rows - start)
        x = inputs.batch(start, size, mirrored=False)
        # The way to noise has to be that of the image as it is: only the way back is guided.
        ways = ((sources, 1.0, 0.0, 0.0), (targets, 0.0, 1.0, settings.guidance))
        for classes, begin, end, guidance in ways:
            part = F.pad(classes[start : start + n_real], (0, size - n_real))
            masks = field.codes.masks(part.to(x.device), size_of_masks)
            with autocast(x.device, settings.precision):
                x = field.carry_images(
                    x,
                    masks,
                    e_y,
                    start=begin,
                    end=end,
                    n_steps=settings.n_steps,
                    method=settings.ode_solver,
                    guidance=guidance,
                )
        return decode(x[:n_real].float()).float().cpu()

    return torch.cat(in_batches(run, n_rows, settings.batch_size, e_y.device))


def _image_noise(seed: int, start: int, n: int, shape: tuple[int, ...]) -> Tensor:
    """Noise of the images start, ..., start + n - 1 of a seed, each from its own generator.

    Drawn on the CPU: the same on every device.
    """
    generator = torch.Generator()
    draws = []
    for number in range(start, start + n):
        state = np.random.SeedSequence(seed, spawn_key=(number,)).generate_state(1, np.uint64)
        generator.manual_seed(int(state[0] >> np.uint64(1)))
        draws.append(torch.randn(shape, generator=generator))
    return torch.stack(draws)
