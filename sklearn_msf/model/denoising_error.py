"""How far the image half of a field is from the velocity that an image really has.

An image like those of training, half covered by noise, is uncovered about right; another one is
not. Under the code of its own class an image should be uncovered better than under another.
"""

import numpy as np
import torch
from torch import Tensor

from sklearn_msf.flow.path import sample_path
from sklearn_msf.flow.velocity_field import VelocityField
from sklearn_msf.model.inference import FieldInputs, InferenceSettings
from sklearn_msf.runtime.batching import in_batches
from sklearn_msf.runtime.device import autocast

__all__ = ["image_residuals"]


def image_residuals(
    field: VelocityField,
    inputs: FieldInputs,
    labels: np.ndarray,
    times: Tensor,
    noise: Tensor,
    settings: InferenceSettings,
) -> np.ndarray:
    """Mean squared error of v_x on the path through each image.

    Parameters
    ----------
    field : VelocityField
        Trained field in evaluation mode, on the device of `noise`.
    inputs : FieldInputs
        The n images.
    labels : ndarray of shape (n, n_classes_tried), int64
        Classes under whose codes each image is tried.
    times : Tensor of shape (n_times,)
        Times in (0, 1).
    noise : Tensor of shape (n_times, C_x + C_y, H, W)
        Noise of image and mask at each time, the same for all images.
    settings : InferenceSettings
        Batches and precision.

    Returns
    -------
    ndarray of shape (n, n_classes_tried, n_times), float64
    """
    n_rows, n_tried = labels.shape

    def run(start: int, size: int) -> Tensor:
        n_real = min(size, n_rows - start)
        x = inputs.batch(start, size, mirrored=False)
        n_channels = x.shape[1]
        residuals = x.new_zeros((size, n_tried, len(times)), dtype=torch.float64)
        for i in range(n_tried):
            classes = torch.zeros(size, dtype=torch.int64)
            classes[:n_real] = torch.from_numpy(labels[start : start + n_real, i])
            masks = field.codes.masks(classes.to(x.device), (x.shape[2], x.shape[3]))
            for j, time in enumerate(times):
                e_x, e_y = noise[j : j + 1, :n_channels], noise[j : j + 1, n_channels:]
                point = sample_path(x, masks, e_x, e_y, time.to(x.device).expand(size))
                with autocast(x.device, settings.precision):
                    v_x = field.image_velocity(point.x_t, point.y_t, point.t)
                error = (v_x.float() - point.u_x).square()
                residuals[:, i, j] = error.flatten(1).mean(dim=1)
        return residuals[:n_real].cpu()

    return torch.cat(in_batches(run, n_rows, settings.batch_size, noise.device)).numpy()
