"""Error of the image branch: how far its velocity is from the true velocity of an image.

The field denoises an image well if it is similar to the training images, and badly if it is not.
Under the code of its own class an image should be denoised better than under that of another class.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from sklearn_msf.flow.path import sample_path
from sklearn_msf.model.fitted_model import FittedModel
from sklearn_msf.model.image_space import FieldInputs
from sklearn_msf.runtime.batch_sizes import padded
from sklearn_msf.runtime.batching import in_batches
from sklearn_msf.runtime.cuda_graphs import replay
from sklearn_msf.runtime.device import autocast
from sklearn_msf.runtime.torch_state import standard_torch

__all__ = ["denoising_errors", "typicality"]

# Times at which the errors of typical images differ most from those of other images.
_TYPICAL_TIMES = (0.1, 0.2, 0.5)
_TINY = np.finfo(np.float64).tiny


def denoising_errors(
    model: FittedModel,
    inputs: FieldInputs,
    labels: np.ndarray,
    times: Sequence[float],
    precision: str,
    batch_size: int,
) -> np.ndarray:
    """Compute the mean squared error of v_x on the path through each image.

    Parameters
    ----------
    model : FittedModel
        A model with a trained image branch.
    inputs : FieldInputs
        The n images.
    labels : ndarray of shape (n, n_classes_tried), int64
        Class indices under whose codes the error of each image is computed.
    times : sequence of float
        Times in (0, 1). Each has its own noise, which is the same for all images.
    precision : {"float32", "bfloat16"}
        Precision of convolutions and products.
    batch_size : int
        Number of images in a pass.

    Returns
    -------
    ndarray of shape (n, n_classes_tried, n_times), float64
    """
    field = model.field
    (n_images, n_tried), n_times = labels.shape, len(times)
    noise = model.noise(len(times), model.space.shape[0] + field.codes.n_channels)
    at, key = torch.tensor(times).to(noise.device), ("image_velocity", precision)

    def prepare(start: int, n: int) -> tuple[Tensor, np.ndarray]:
        return inputs.batch(start, n), labels[start : start + n]

    def evaluate(
        prepared: tuple[Tensor, np.ndarray],
        size: int,
        n_tried: int = n_tried,
        n_times: int = n_times,
    ) -> Tensor:
        x, of_images = prepared
        n_real, x = len(x), padded(x, size)
        n_channels = x.shape[1]
        errors = x.new_zeros((size, n_tried, n_times), dtype=torch.float32)
        # At once: each copy to a GPU waits for all that it has to do.
        classes = padded(torch.from_numpy(of_images[:, :n_tried]), size).T
        for i, tried in enumerate(classes.to(x.device)):
            masks = field.codes.masks(tried, x.shape[2:])
            for j, time in enumerate(at[:n_times]):
                e_x, e_y = noise[j : j + 1, :n_channels], noise[j : j + 1, n_channels:]
                point = sample_path(x, masks, e_x, e_y, time.expand(size))
                with autocast(x.device, precision):
                    v_x = replay(field, key, field.image_velocity, point.x_t, point.y_t, point.t)
                error = (v_x.float() - point.u_x).square()
                # With two axes, so that a trial of batch sizes compares its rows.
                errors[:, i, j] = error.flatten(1).mean(dim=1, keepdim=True)[:, 0]
        return errors[:n_real].cpu().double()

    def run(start: int, size: int) -> Tensor:
        return evaluate(prepare(start, min(size, n_images - start)), size)

    # A pass for one class at one time has all kernels: those of the others are the same.
    trial = partial(evaluate, n_tried=1, n_times=1)
    small = model.small_batches(("errors", precision, type(inputs)), prepare, trial)
    parts = in_batches(run, n_images, batch_size, noise.device, small=small, divides=True)
    return torch.cat(parts).numpy()


@standard_torch()
def typicality(
    model: FittedModel,
    inputs: FieldInputs,
    labels: np.ndarray,
    precision: str,
    batch_size: int,
) -> np.ndarray:
    """Tell how typical images are: minus the mean logarithm of their denoising errors.

    Parameters
    ----------
    model, inputs, precision, batch_size :
        As in :func:`denoising_errors`.
    labels : ndarray of shape (n,), int64
        Index of the class under whose code each image is denoised.

    Returns
    -------
    ndarray of shape (n,), float64
        Higher is more typical.
    """
    errors = denoising_errors(model, inputs, labels[:, None], _TYPICAL_TIMES, precision, batch_size)
    return -np.log(np.maximum(errors, _TINY)).mean(axis=(1, 2))
