"""Classification and generation in batches of one constant size.

Kernels round differently for other batch sizes and numbers of threads, so every batch is
padded to the same size and, on a CPU, run by one thread, several batches side by side: a
row's result is the same, to the last bit, whatever rows are beside it. Only where memory runs
out, which is logged, are batches smaller.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sklearn_msf.cuda_graphs import replay
from sklearn_msf.device import autocast, worker_threads
from sklearn_msf.fields import PosteriorForm, VelocityField
from sklearn_msf.images import ImageFormat
from sklearn_msf.label_codes import LabelCodes

__all__ = ["InferenceSettings", "Prediction", "classify", "generate"]

_LOG = logging.getLogger("sklearn_msf")
_OUT_OF_MEMORY = ("can't allocate memory", "ALLOC_FAILED")

Result = TypeVar("Result")


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


def _padded(images: np.ndarray, size: int) -> np.ndarray:
    """Fill a batch up to exactly `size` rows."""
    if len(images) == size:
        return images
    return np.concatenate([images, np.repeat(images[:1], size - len(images), axis=0)])


def _in_batches(
    run: Callable[[int, int], Result], n_rows: int, batch_size: int, device: torch.device
) -> list[Result]:
    """Call run(start, batch_size) for each batch, with smaller ones where memory runs out."""
    results: list[Result] = []
    start = 0
    while start < n_rows:
        try:
            for result in _side_by_side(run, range(start, n_rows, batch_size), batch_size, device):
                results.append(result)
                start += batch_size
        except (MemoryError, RuntimeError) as error:
            if batch_size == 1 or not _is_out_of_memory(error):
                raise
            batch_size //= 2
            _LOG.warning("Out of memory: going on with batches of %d.", batch_size)
        else:
            break
        # Here the error, and with it what it held, is gone.
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return results


def _is_out_of_memory(error: BaseException) -> bool:
    # Not every allocator has an error of its own.
    known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return known or any(text in str(error) for text in _OUT_OF_MEMORY)


def _side_by_side(
    run: Callable[[int, int], Result], starts: range, batch_size: int, device: torch.device
) -> Iterator[Result]:
    """Run the batches, on a CPU on as many threads as torch has."""

    # Both modes belong to the thread that sets them.
    @torch.inference_mode()
    def one(start: int) -> Result:
        return run(start, batch_size)

    if device.type != "cpu":
        yield from map(one, starts)
        return
    with worker_threads(len(starts)) as executor:
        yield from executor.map(one, starts)


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
    codes = field.codes.to("cpu")

    def run(start: int, size: int) -> tuple[Tensor, Tensor]:
        batch = images[start : start + size]
        x = ImageFormat.normalise(torch.from_numpy(_padded(batch, size)).to(noise.device))
        with autocast(noise.device, settings.precision):
            estimate = read(field, *_draws(x, noise, settings), settings)
        # Draws are averaged in a fixed order; the batch leaves the device here.
        mean = estimate.float().unflatten(0, (len(noise), size)).mean(dim=0)
        p, distances = _decode(mean.cpu(), codes)
        return p[: len(batch)], distances[: len(batch)]

    parts = _in_batches(run, len(images), settings.batch_size, noise.device)
    p, distances = (torch.cat(halves).numpy() for halves in zip(*parts, strict=True))
    return Prediction(p, distances)


def _has_posterior(field: VelocityField, settings: InferenceSettings) -> bool:
    """Whether one Euler step is read off the posterior without running the way up."""
    return isinstance(field, PosteriorForm) and (settings.n_steps, settings.ode_solver) == (
        1,
        "euler",
    )


def _read_posterior(
    field: VelocityField, x: Tensor, e_y: Tensor, settings: InferenceSettings
) -> Tensor:
    """Class probabilities, (n, K)."""
    assert isinstance(field, PosteriorForm)
    if x.device.type == "cuda":
        return replay(field, settings.precision, field.posterior, x, e_y)
    return field.posterior(x, e_y)


def _read_mask(field: VelocityField, x: Tensor, e_y: Tensor, settings: InferenceSettings) -> Tensor:
    """Masks at t = 0, (n, C_y, H, W)."""
    return field.classify(x, e_y, n_steps=settings.n_steps, method=settings.ode_solver)


def _draws(x: Tensor, noise: Tensor, settings: InferenceSettings) -> tuple[Tensor, Tensor]:
    """Images and mask noise of all draws, draw after draw.

    A mask of one colour has no sides to mirror.
    """
    mirrored = x.flip(3) if settings.mirror_draws and len(noise) > 1 else x
    images = [mirrored if draw % 2 else x for draw in range(len(noise))]
    return torch.cat(images), noise.repeat_interleave(len(x), dim=0)


def _decode(estimate: Tensor, codes: LabelCodes) -> tuple[Tensor, Tensor]:
    """Probabilities and distances in float64, from probabilities or from masks."""
    estimate = estimate.double()
    if estimate.ndim == 2:
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
        Seed of the noise. Image i of a seed is the same, to the last bit, however many are
        drawn with it and of whatever classes.
    settings : InferenceSettings
        Solver, batches and precision.

    Returns
    -------
    Tensor of shape (n, C, H, W)
        In about [-1, 1], on the CPU.
    """
    device = next(field.parameters()).device
    shape = image_shape[0] + field.codes.n_channels, *image_shape[1:]

    def run(start: int, size: int) -> Tensor:
        n_real = len(labels[start : start + size])
        part = F.pad(labels[start : start + size], (0, size - n_real))
        noise = _image_noise(seed, start, size, shape).to(device)
        masks = field.codes.masks(part.to(device), image_shape[1:])
        with autocast(device, settings.precision):
            drawn = field.generate(
                noise[:, : image_shape[0]],
                masks,
                noise[:, image_shape[0] :],
                n_steps=settings.n_steps,
                method=settings.ode_solver,
            )
        return drawn[:n_real].float().cpu()

    return torch.cat(_in_batches(run, len(labels), settings.batch_size, device))


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
