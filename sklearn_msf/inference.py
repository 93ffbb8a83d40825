"""Classification and generation in batches of one constant size.

Kernels round differently for other batch sizes, so every batch is padded to the same size:
a row's result is the same, to the last bit, whatever rows are beside it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sklearn_msf.device import autocast
from sklearn_msf.fields import PosteriorForm, VelocityField
from sklearn_msf.images import ImageFormat
from sklearn_msf.label_codes import LabelCodes

__all__ = ["InferenceSettings", "Prediction", "classify", "generate"]


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
    """

    n_steps: int
    ode_solver: str
    batch_size: int
    precision: str
    mirror_draws: bool = False


@dataclass(frozen=True)
class Prediction:
    """What the label half says.

    Attributes
    ----------
    probabilities : ndarray of shape (n, K), float64
        Class probabilities; rows sum to 1.
    distances : ndarray of shape (n, K), float64
        Distance of the predicted mask to each code (paper, eq. 2).
    """

    probabilities: np.ndarray
    distances: np.ndarray


def _padded_batches(images: np.ndarray, batch_size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Yield batches of exactly `batch_size` rows and how many of them are real."""
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        n_real = len(batch)
        if n_real < batch_size:
            padding = np.repeat(batch[:1], batch_size - n_real, axis=0)
            batch = np.concatenate([batch, padding])
        yield batch, n_real


@torch.inference_mode()
def classify(
    field: VelocityField, images: np.ndarray, noise: Tensor, settings: InferenceSettings
) -> Prediction:
    """Classify images, averaged over draws of the mask noise.

    Parameters
    ----------
    field : VelocityField
        Trained field in evaluation mode, on the device of `noise`.
    images : ndarray of shape (n, C, H, W)
        uint8 in [0, 255] or float32 in [-1, 1].
    noise : Tensor of shape (n_draws, C_y, H, W)
        Mask noise e_y of each draw, the same for all images.
    settings : InferenceSettings
        Solver, batches and precision.

    Returns
    -------
    Prediction
    """
    read = _read_posterior if _has_posterior(field, settings) else _read_mask
    probabilities, distances = [], []
    for batch, n_real in _padded_batches(images, settings.batch_size):
        x = ImageFormat.normalise(torch.from_numpy(batch).to(noise.device))
        with autocast(noise.device, settings.precision):
            estimate = read(field, x, noise, settings)
        p, d = _decode(estimate.cpu(), field.codes.to("cpu"))
        probabilities.append(p[:n_real].numpy())
        distances.append(d[:n_real].numpy())
    return Prediction(np.concatenate(probabilities), np.concatenate(distances))


def _has_posterior(field: VelocityField, settings: InferenceSettings) -> bool:
    """Whether one Euler step is read off the posterior without running the way up."""
    return isinstance(field, PosteriorForm) and (settings.n_steps, settings.ode_solver) == (
        1,
        "euler",
    )


def _read_posterior(
    field: VelocityField, x: Tensor, noise: Tensor, settings: InferenceSettings
) -> Tensor:
    """Class probabilities averaged over draws, (n, K)."""
    assert isinstance(field, PosteriorForm)
    draws = [field.posterior(image, e_y) for image, e_y in _draws(x, noise, settings)]
    return torch.stack(draws).mean(dim=0)


def _read_mask(
    field: VelocityField, x: Tensor, noise: Tensor, settings: InferenceSettings
) -> Tensor:
    """Masks at t = 0 averaged over draws, (n, C_y, H, W)."""
    total = torch.zeros(len(x), *noise.shape[1:], device=x.device)
    for image, e_y in _draws(x, noise, settings):
        total += field.classify(image, e_y, n_steps=settings.n_steps, method=settings.ode_solver)
    return total / len(noise)


def _draws(
    x: Tensor, noise: Tensor, settings: InferenceSettings
) -> Iterator[tuple[Tensor, Tensor]]:
    """Images and mask noise of each draw; a mask of one colour has no sides to mirror."""
    for draw, e_y in enumerate(noise):
        mirrored = settings.mirror_draws and draw % 2 == 1
        yield x.flip(3) if mirrored else x, e_y.expand(len(x), -1, -1, -1)


def _decode(estimate: Tensor, codes: LabelCodes) -> tuple[Tensor, Tensor]:
    """Probabilities and distances in float64, from probabilities or from masks."""
    estimate = estimate.double()
    if estimate.ndim == 2:
        p = estimate / estimate.sum(dim=1, keepdim=True)
        masks = codes.mean_codes(p)[:, :, None, None]
    else:
        p, masks = codes.probabilities(estimate), estimate
    return p, codes.distances(masks)


@torch.inference_mode()
def generate(
    field: VelocityField,
    labels: Tensor,
    image_shape: tuple[int, int, int],
    seed: int,
    settings: InferenceSettings,
) -> Tensor:
    """Draw one image for each label.

    Parameters
    ----------
    field : VelocityField
        Trained field in evaluation mode.
    labels : Tensor of shape (n,), int64
        Class indices.
    image_shape : tuple of int
        (C, H, W).
    seed : int
        Seed of the noise. Image i of a seed has the same noise however many are drawn.
    settings : InferenceSettings
        Solver, batches and precision.

    Returns
    -------
    Tensor of shape (n, C, H, W)
        In about [-1, 1], on the CPU.
    """
    device = next(field.parameters()).device
    shape = image_shape[0] + field.codes.n_channels, *image_shape[1:]
    images = []
    for start in range(0, len(labels), settings.batch_size):
        part = labels[start : start + settings.batch_size]
        noise = _image_noise(seed, start, len(part), shape).to(device)
        masks = field.codes.masks(part.to(device), image_shape[1:])
        with autocast(device, settings.precision):
            drawn = field.generate(
                noise[:, : image_shape[0]],
                masks,
                noise[:, image_shape[0] :],
                n_steps=settings.n_steps,
                method=settings.ode_solver,
            )
        images.append(drawn.float().cpu())
    return torch.cat(images)


def _image_noise(seed: int, start: int, n: int, shape: tuple[int, ...]) -> Tensor:
    """Noise of the images start, ..., start + n - 1 of a seed, each from its own generator.

    Drawn on the CPU: the same on every device.
    """
    seeds = np.random.SeedSequence(seed).generate_state(start + n, np.uint64)[start:]
    generator = torch.Generator()
    draws = []
    for image_seed in seeds:
        generator.manual_seed(int(image_seed >> np.uint64(1)))
        draws.append(torch.randn(shape, generator=generator))
    return torch.stack(draws)
