"""The velocity field over image and mask, and the ODE in both directions."""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from sklearn_msf.flow.label_codes import EncodedLabelCodes, LabelCodes
from sklearn_msf.flow.ode_solver import integrate, last_step
from sklearn_msf.flow.path import SIGMA_MIN, PathSample, velocity_loss
from sklearn_msf.nn.unet import UNet

__all__ = ["VelocityField"]

# Later the velocity is not asked of the mean image, whose error would be divided by nearly 0.
_MIN_LAST_STEP = 0.05
_MAX_TIME = 1.0 - _MIN_LAST_STEP
_MIN_REMAINING = 1.0 - (1.0 - SIGMA_MIN) * _MAX_TIME
# Share of the label half of the loss that the rows at t = 1 have at least, beside others.
_LABEL_SHARE_AT_ONE = 0.8


class VelocityField(nn.Module):
    """What both forms share: a U-Net, label codes and the ODE in both directions.

    Parameters
    ----------
    unet : UNet
        Network over [x_t, y_t].
    codes : LabelCodes or EncodedLabelCodes
        Codes of the classes.
    image_prediction : {"velocity", "image"}
        What the network returns for the image half.
    """

    def __init__(
        self, unet: UNet, codes: LabelCodes | EncodedLabelCodes, image_prediction: str = "velocity"
    ):
        super().__init__()
        self.unet = unet
        self.codes = codes
        self._predicts_images = image_prediction == "image"

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def forward(self, x_t: Tensor, y_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Velocities of image and mask, shaped as they are, at times t of shape (n,)."""
        raise NotImplementedError

    def _as_velocity(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Velocity of the images from what the network returns for them."""
        if not self._predicts_images:
            return output
        remaining = _remaining_noise(t).clamp_min(_MIN_REMAINING)
        v_x = (output.float() - (1.0 - SIGMA_MIN) * x_t) / remaining
        # Later no noise is left to speak of: at t = 1 u_x is x_t on average.
        return torch.where(t[:, None, None, None] > _MAX_TIME + 1e-3, x_t, v_x)

    def _image_loss(self, output: Tensor, sample: PathSample, rows: slice) -> Tensor:
        """Mean squared error of the velocity of some rows.

        An error of the mean image counts 1 / remaining noise, and no more than at the last time.
        """
        u_x, x_t = sample.u_x[rows], sample.x_t[rows]
        if not self._predicts_images:
            return velocity_loss(output, u_x)
        remaining = _remaining_noise(sample.t[rows])
        scale = remaining.clamp_min(_MIN_REMAINING)
        x = (1.0 - SIGMA_MIN) * x_t + remaining * u_x
        return velocity_loss(output.float() / scale, x / scale)

    def _label_loss(self, errors: Tensor, n_at_one: int) -> Tensor:
        """Mean error of the label half, of which the rows at t = 1 make up a share of their own.

        They are what classification sees, however few they are; the others learn the labels of
        small data by heart.
        """
        if not 0 < n_at_one < len(errors):
            return errors.mean()
        at_one, others = errors[:n_at_one].mean(), errors[n_at_one:].mean()
        return torch.lerp(others, at_one, max(_LABEL_SHARE_AT_ONE, n_at_one / len(errors)))

    def _integrate(
        self,
        velocity: Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]],
        state: tuple[Tensor, ...],
        *,
        start: float,
        end: float,
        n_steps: int,
        method: str,
        to_mean: bool,
    ) -> tuple[Tensor, ...]:
        """Integrate; of mean images the last step to t = 1 goes straight to the image."""
        if end < 1.0 or not (to_mean and self._predicts_images):
            return integrate(
                velocity, state, start=start, end=end, n_steps=n_steps, method=method
            ).state
        length, n_before = last_step(end - start, n_steps, method, least=_MIN_LAST_STEP)
        last = end - length
        if n_before and start < last:
            state = integrate(
                velocity, state, start=start, end=last, n_steps=n_before, method=method
            ).state
        return integrate(velocity, state, start=max(start, last), end=end, n_steps=1).state

    def _velocity(self, t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x_t, y_t = state
        v_x, v_y = self(x_t, y_t, t.expand(len(x_t)))
        return v_x.to(x_t.dtype), v_y.to(y_t.dtype)

    def losses(
        self, sample: PathSample, labels: Tensor, n_at_one: int, n_dropped: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Losses of the image half and of the label half on points of the path.

        Parameters
        ----------
        sample : PathSample
            Points of the path; the first `n_at_one` at t = 1, which carry no image loss.
        labels : Tensor of shape (n,), int64
            Class indices.
        n_at_one : int
            Number of rows at t = 1.
        n_dropped : int, optional
            Number of rows, from the first one on, that have dropout: it is there for what
            classifies, and blurs what is drawn. All by default.

        Returns
        -------
        image_loss, label_loss : Tensor
            Scalars: means over the rows, but of the label loss rows at t = 1 make up 0.8 at least
            where there are both kinds.
        """
        raise NotImplementedError

    def classify(self, x: Tensor, e_y: Tensor, *, n_steps: int, method: str) -> Tensor:
        """Carry [x, e_y] from t = 1 to t = 0 (paper, eq. 1) and return the mask y_0."""
        end = integrate(
            self._velocity, (x, e_y), start=1.0, end=0.0, n_steps=n_steps, method=method
        )
        return end.state[1]

    def generate(
        self,
        e_x: Tensor,
        masks: Tensor,
        e_y: Tensor,
        *,
        n_steps: int,
        method: str,
        guidance: float = 0.0,
    ) -> Tensor:
        """Carry [e_x, masks] from t = 0 to t = 1 and return the images x_1.

        Parameters
        ----------
        e_x : Tensor of shape (n, C_x, H, W)
            Image noise.
        masks : Tensor of shape (n, C_y, H, W)
            Code masks of the classes asked for.
        e_y : Tensor of shape (n, C_y, H, W)
            Mask noise at the other end of the mask's path.
        n_steps : int
            Equal steps of the fixed-step methods.
        method : str
            ODE solver.
        guidance : float
            How far to go beyond the velocity of the class, away from that of no class, in units
            of their difference (Ho and Salimans, 2022).

        Returns
        -------
        Tensor of shape (n, C_x, H, W)
        """
        x, _ = self._carry(
            (e_x, masks),
            masks,
            e_y,
            start=0.0,
            end=1.0,
            n_steps=n_steps,
            method=method,
            guidance=guidance,
        )
        return x

    def _carry(
        self,
        state: tuple[Tensor, Tensor],
        masks: Tensor,
        e_y: Tensor,
        *,
        start: float,
        end: float,
        n_steps: int,
        method: str,
        guidance: float,
    ) -> tuple[Tensor, Tensor]:
        """Carry image and mask on the way from [e_x, masks] from one time to another."""
        x = self.carry_images(
            state[0],
            masks,
            e_y,
            start=start,
            end=end,
            n_steps=n_steps,
            method=method,
            guidance=guidance,
            to_mean=True,
        )
        return x, torch.lerp(masks, e_y, end)

    def carry_images(
        self,
        x: Tensor,
        masks: Tensor,
        e_y: Tensor,
        *,
        start: float,
        end: float,
        n_steps: int,
        method: str,
        guidance: float = 0.0,
        to_mean: bool = False,
    ) -> Tensor:
        """Carry images from one time to another while the mask runs along its straight path.

        With the class known the mask's path is known: y_t = (1 - t) mask + t e_y.

        Parameters
        ----------
        x : Tensor of shape (n, C_x, H, W)
            Images at time `start`.
        masks, e_y : Tensor of shape (n, C_y, H, W)
            Ends of the mask's path.
        start, end : float
            Times in [0, 1], in either order.
        n_steps : int
            Equal steps of the fixed-step methods.
        method : str
            ODE solver.
        guidance : float
            As in :meth:`generate`.
        to_mean : bool
            Whether a field of mean images ends its way to t = 1 there, which leaves no noise. Else
            the way is one that can be gone back: what an image has of its own is kept.

        Returns
        -------
        Tensor of shape (n, C_x, H, W)
            Images at time `end`.
        """

        def velocity(t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            (x_t,) = state
            times = t.expand(len(x_t))
            v_x = self.image_velocity(x_t, torch.lerp(masks, e_y, t), times)
            return (self._guided(v_x, x_t, e_y.expand_as(masks), times, guidance).to(x_t.dtype),)

        (x,) = self._integrate(
            velocity,
            (x,),
            start=start,
            end=end,
            n_steps=n_steps,
            method=method,
            to_mean=to_mean,
        )
        return x

    def _guided(self, v_x: Tensor, x_t: Tensor, e_y: Tensor, t: Tensor, guidance: float) -> Tensor:
        """Go beyond the velocity of a class, away from that of a mask that says nothing of it."""
        if not guidance:
            return v_x
        classless = self.image_velocity(x_t, e_y, t, torch.ones_like(t))
        return v_x + guidance * (v_x - classless)

    def image_velocity(
        self, x_t: Tensor, y_t: Tensor, t: Tensor, mask_t: Tensor | None = None
    ) -> Tensor:
        """Velocity of the image alone, (n, C_x, H, W), with masks at times of their own, (n,).

        A network that sees the masks as they are sees in them how far they are.
        """
        return self(x_t, y_t, t)[0]

    def trajectory(
        self,
        e_x: Tensor,
        masks: Tensor,
        e_y: Tensor,
        *,
        n_steps: int,
        method: str,
        guidance: float = 0.0,
    ) -> list[tuple[Tensor, Tensor]]:
        """Carry [e_x, masks] as :meth:`generate` does, and return where they are after each step.

        Returns
        -------
        list of (x_t, y_t), of length n_steps + 1
            At the times of :meth:`path_times`.
        """
        points = [(e_x, masks)]
        for start, end in pairwise(self.path_times(n_steps)):
            points.append(
                self._carry(
                    points[-1],
                    masks,
                    e_y,
                    start=start,
                    end=end,
                    n_steps=1,
                    method=method,
                    guidance=guidance,
                )
            )
        return points

    def path_times(self, n_steps: int) -> list[float]:
        """Divide the way from 0 to 1: equally, but of mean images the last step is 0.05 or more."""
        if not self._predicts_images:
            return [step / n_steps for step in range(n_steps + 1)]
        length, n_before = last_step(1.0, n_steps, "euler", least=_MIN_LAST_STEP)
        # In this order: the time before the last step is exactly that of the whole way.
        return [(1.0 - length) * (step / max(n_before, 1)) for step in range(n_steps)] + [1.0]


def _remaining_noise(t: Tensor) -> Tensor:
    """Share of the noise in x_t, (n, 1, 1, 1) from times (n,)."""
    return (1.0 - (1.0 - SIGMA_MIN) * t)[:, None, None, None]
