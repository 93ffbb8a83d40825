"""Parameterizations of the image branch: denoised image or velocity.

For every point of the path the velocity u_x is a function of the image x::

    u_x = (x - (1 - s) x_t) / (1 - (1 - s) t)

so the network may learn either. The denoised image E[x | x_t, y_t] (x-prediction) is close to
the images, which a narrow network can represent, while a velocity contains all the noise. Near
t = 1 the quotient is 0 / 0, so sampling ends with one step straight to the denoised image.
"""

from typing import Protocol

import torch
from torch import Tensor

from sklearn_msf.flow.ode_solver import OdeSettings, Velocity, integrate
from sklearn_msf.flow.path import SIGMA_MIN, PathSample, velocity_loss
from sklearn_msf.runtime.tensor_axes import align_axes

__all__ = ["IMAGE_PREDICTIONS", "ImageParameterization"]

# After t = 1 - _MIN_LAST_STEP the velocity is not computed from the denoised image, because the
# error of that image would be divided by almost 0.
_MIN_LAST_STEP = 0.05
_MAX_TIME = 1.0 - _MIN_LAST_STEP
_MIN_REMAINING = 1.0 - (1.0 - SIGMA_MIN) * _MAX_TIME


class ImageParameterization(Protocol):
    """Relation between the output of the network for images and their velocity."""

    def velocity(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Compute the velocity (n, C, H, W) of images x_t at times t of shape (n,)."""

    def loss(
        self, output: Tensor, sample: PathSample, rows: slice, channel_parts: tuple[int, ...]
    ) -> Tensor:
        """Compute the mean squared error over the samples `rows` of a batch.

        `channel_parts` are as in :func:`~sklearn_msf.flow.path.velocity_loss`.
        """

    def integrate_to_image(
        self, velocity: Velocity, state: tuple[Tensor, ...], ode: OdeSettings
    ) -> tuple[Tensor, ...]:
        """Integrate so that the state at t = 1 has an image without noise."""

    def times(self, n_steps: int) -> list[float]:
        """Divide the time from 0 to 1 into n_steps: n_steps + 1 times."""

    def last_method(self, method: str) -> str:
        """Return the method of the last step to t = 1, where those before are of `method`."""


class ImageVelocity:
    """The network returns the velocity itself (paper, section 3)."""

    def velocity(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Return the output."""
        return output

    def loss(
        self, output: Tensor, sample: PathSample, rows: slice, channel_parts: tuple[int, ...]
    ) -> Tensor:
        """Compute the mean squared error of the velocity."""
        return velocity_loss(output, sample.u_x[rows], channel_parts)

    def integrate_to_image(
        self, velocity: Velocity, state: tuple[Tensor, ...], ode: OdeSettings
    ) -> tuple[Tensor, ...]:
        """Integrate without a special last step."""
        return integrate(velocity, state, ode)

    def times(self, n_steps: int) -> list[float]:
        """Divide the time from 0 to 1 into equal steps."""
        return [step / n_steps for step in range(n_steps + 1)]

    def last_method(self, method: str) -> str:
        """Return the method of the other steps."""
        return method


class DenoisedImage:
    """The network returns the denoised image."""

    def velocity(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Compute the velocity from the denoised image; for t > 0.95, near 0 / 0, it is x_t."""
        remaining = _remaining_noise(t, x_t).clamp_min(_MIN_REMAINING)
        v_x = (output.float() - (1.0 - SIGMA_MIN) * x_t) / remaining
        # There x_t has hardly any noise: at t = 1 the mean of u_x is x_t.
        return torch.where(align_axes(t, x_t) > _MAX_TIME + 1e-3, x_t, v_x)

    def loss(
        self, output: Tensor, sample: PathSample, rows: slice, channel_parts: tuple[int, ...]
    ) -> Tensor:
        """Compute the mean squared error of the resulting velocity.

        The error of the denoised image is divided by the remaining noise, for t > 0.95 by the
        remaining noise at t = 0.95.
        """
        x_t = sample.x_t[rows]
        remaining = _remaining_noise(sample.t[rows], x_t)
        scale = remaining.clamp_min(_MIN_REMAINING)
        x = (1.0 - SIGMA_MIN) * x_t + remaining * sample.u_x[rows]
        return velocity_loss(output.float() / scale, x / scale, channel_parts)

    def integrate_to_image(
        self, velocity: Velocity, state: tuple[Tensor, ...], ode: OdeSettings
    ) -> tuple[Tensor, ...]:
        """Integrate; the last step to t = 1 leads straight to the denoised image."""
        if ode.end < 1.0:
            return integrate(velocity, state, ode)
        before, last = ode.last_step(_MIN_LAST_STEP)
        if before is not None:
            state = integrate(velocity, state, before)
        last_step = OdeSettings(last, ode.end, method=self.last_method(ode.method))
        return integrate(velocity, state, last_step)

    def times(self, n_steps: int) -> list[float]:
        """Divide the time from 0 to 1 into equal steps, except that the last one is >= 0.05."""
        before, last = OdeSettings(0.0, 1.0, n_steps).last_step(_MIN_LAST_STEP)
        n_before = max(0 if before is None else before.n_steps, 1)
        # In this order of operations the time before the last step is exactly `last`, as it is
        # in `integrate_to_image`.
        return [last * (step / n_before) for step in range(n_steps)] + [1.0]

    def last_method(self, method: str) -> str:
        """Return "euler": one evaluation leads straight to the denoised image."""
        return "euler"


IMAGE_PREDICTIONS: dict[str, ImageParameterization] = {
    "velocity": ImageVelocity(),
    "denoised": DenoisedImage(),
}


def _remaining_noise(t: Tensor, x_t: Tensor) -> Tensor:
    """Compute the factor of the noise in x_t from times (n,), to broadcast over x_t."""
    return align_axes(1.0 - (1.0 - SIGMA_MIN) * t, x_t)
