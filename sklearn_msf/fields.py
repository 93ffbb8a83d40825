"""The velocity field over image and mask, with its label half in two forms.

Both fields map (x_t, y_t, t) to the two velocities. They differ in what the network learns:

- :class:`VelocityForm` (the paper): the U-Net returns v_x and v_y pixel by pixel.
- :class:`PosteriorForm`: the best label field is known up to the class posterior,
  ``u_y = (y_t - y) / t`` for every point of the path, hence
  ``v_y = (y_t - sum_c p(c | x_t, y_t) code_c) / t``. The pooled features of the U-Net's
  middle block give p; only v_x needs the way up.

The image half, too, is either the velocity itself or, as u_x is a function of the image for every
point of the path, follows from the mean of the images that a point can come from::

    v_x = (E[x | x_t, y_t] - (1 - s) x_t) / (1 - (1 - s) t)

The mean lies where images lie, which a narrow network can hold; a velocity holds all the noise.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sklearn_msf.flow import SIGMA_MIN, PathSample, denoise_masks, velocity_loss
from sklearn_msf.label_codes import EncodedLabelCodes, LabelCodes
from sklearn_msf.network import Encoding, UNet
from sklearn_msf.solver import END_EVALUATING_SOLVERS, integrate

__all__ = [
    "IMAGE_PREDICTIONS",
    "LABEL_PREDICTIONS",
    "PosteriorForm",
    "VelocityField",
    "VelocityForm",
    "make_field",
]

# Below this time the label velocity of the posterior form, 0 / 0 at t = 0, is not asked for.
_MIN_TIME = 0.05
# Least share of noise that an error of the mean image is divided by.
_MIN_REMAINING = 0.05


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
        remaining = (1.0 - (1.0 - SIGMA_MIN) * t).clamp_min(_MIN_REMAINING)[:, None, None, None]
        return (output.float() - (1.0 - SIGMA_MIN) * x_t) / remaining

    def _velocity(self, t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x_t, y_t = state
        v_x, v_y = self(x_t, y_t, t.expand(len(x_t)))
        return v_x.to(x_t.dtype), v_y.to(y_t.dtype)

    def losses(self, sample: PathSample, labels: Tensor, n_at_one: int) -> tuple[Tensor, Tensor]:
        """Losses of the image half and of the label half on points of the path.

        Parameters
        ----------
        sample : PathSample
            Points of the path; the first `n_at_one` at t = 1, which carry no image loss.
        labels : Tensor of shape (n,), int64
            Class indices.
        n_at_one : int
            Number of rows at t = 1.

        Returns
        -------
        image_loss, label_loss : Tensor
            Scalars.
        """
        raise NotImplementedError

    def classify(self, x: Tensor, e_y: Tensor, *, n_steps: int, method: str) -> Tensor:
        """Carry [x, e_y] from t = 1 to t = 0 (paper, eq. 1) and return the mask y_0."""
        end = integrate(
            self._velocity, (x, e_y), start=1.0, end=0.0, n_steps=n_steps, method=method
        )
        return end.state[1]

    def generate(
        self, e_x: Tensor, masks: Tensor, e_y: Tensor, *, n_steps: int, method: str
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

        Returns
        -------
        Tensor of shape (n, C_x, H, W)
        """
        x, _ = self._carry(
            (e_x, masks), masks, e_y, start=0.0, end=1.0, n_steps=n_steps, method=method
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
    ) -> tuple[Tensor, Tensor]:
        """Carry image and mask on the way from [e_x, masks] from one time to another."""
        x = self.carry_images(
            state[0], masks, e_y, start=start, end=end, n_steps=n_steps, method=method
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

        Returns
        -------
        Tensor of shape (n, C_x, H, W)
            Images at time `end`.
        """

        def velocity(t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            (x_t,) = state
            v_x = self.image_velocity(x_t, torch.lerp(masks, e_y, t), t.expand(len(x_t)))
            return (v_x.to(x_t.dtype),)

        found = integrate(velocity, (x,), start=start, end=end, n_steps=n_steps, method=method)
        return found.state[0]

    def image_velocity(self, x_t: Tensor, y_t: Tensor, t: Tensor) -> Tensor:
        """Velocity of the image alone, (n, C_x, H, W)."""
        return self(x_t, y_t, t)[0]

    def trajectory(
        self, e_x: Tensor, masks: Tensor, e_y: Tensor, *, n_steps: int, method: str
    ) -> list[tuple[Tensor, Tensor]]:
        """Carry [e_x, masks] as :meth:`generate` does, and return where they are after each step.

        Returns
        -------
        list of (x_t, y_t), of length n_steps + 1
            At times 0, 1 / n_steps, ..., 1.
        """
        points = [(e_x, masks)]
        times = [step / n_steps for step in range(n_steps + 1)]
        for start, end in pairwise(times):
            points.append(
                self._carry(points[-1], masks, e_y, start=start, end=end, n_steps=1, method=method)
            )
        return points


class VelocityForm(VelocityField):
    """Label half as a regression of u_y per pixel (paper, section 3)."""

    def forward(self, x_t: Tensor, y_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Velocities of image and mask, shaped as they are, at times t of shape (n,)."""
        output = self.unet(torch.cat([x_t, y_t], dim=1), t)
        n_channels = x_t.shape[1]
        return self._as_velocity(output[:, :n_channels], x_t, t), output[:, n_channels:]

    def losses(self, sample: PathSample, labels: Tensor, n_at_one: int) -> tuple[Tensor, Tensor]:
        """Mean squared errors of both velocities (paper, section 3)."""
        v_x, v_y = self(sample.x_t, sample.y_t, sample.t)
        return velocity_loss(v_x[n_at_one:], sample.u_x[n_at_one:]), velocity_loss(v_y, sample.u_y)

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
    ) -> tuple[Tensor, Tensor]:
        """Integrate image and mask together; the field draws its own end of the mask."""
        found = integrate(
            self._velocity, state, start=start, end=end, n_steps=n_steps, method=method
        )
        return found.state[0], found.state[1]


class PosteriorForm(VelocityField):
    """Label half as a class posterior, from which v_y follows in closed form."""

    codes: LabelCodes

    def __init__(self, unet: UNet, codes: LabelCodes, image_prediction: str = "velocity"):
        super().__init__(unet, codes, image_prediction)
        self.head = nn.Linear(unet.feature_channels, codes.n_classes)

    def encode(self, x_t: Tensor, y_t: Tensor, t: Tensor) -> Encoding:
        """Run the U-Net up to its middle block.

        The network sees the mask without its noise: at t = 1 the noise only hides the image.
        """
        mask = denoise_masks(y_t, t, self.codes)[:, :, None, None]
        mask = mask.expand(-1, -1, y_t.shape[2], y_t.shape[3])
        return self.unet.encode(torch.cat([x_t, mask], dim=1), t)

    def class_logits(self, encoding: Encoding) -> Tensor:
        """Unnormalised log p(c | x_t, y_t), float32, (n, K)."""
        return self.head(encoding.features.float().mean(dim=(2, 3))).float()

    def posterior(self, x: Tensor, e_y: Tensor) -> Tensor:
        """p(c | x, e_y) at t = 1, (n, K): one Euler step of the label half."""
        # One time for all rows: its embedding is computed once.
        t = torch.ones(1, device=x.device)
        return torch.softmax(self.class_logits(self.encode(x, e_y, t)), dim=1)

    def classify(self, x: Tensor, e_y: Tensor, *, n_steps: int, method: str) -> Tensor:
        """Carry [x, e_y] from t = 1 to t = 0 (paper, eq. 1) and return the mask y_0.

        Solvers that evaluate the end, where the velocity is 0 / 0, stop a little before it.
        From there the mask is a straight line to the mean code.
        """
        if method not in END_EVALUATING_SOLVERS:
            return super().classify(x, e_y, n_steps=n_steps, method=method)
        end = integrate(
            self._velocity, (x, e_y), start=1.0, end=_MIN_TIME, n_steps=n_steps, method=method
        )
        x_t, y_t = end.state
        t = torch.full((len(x),), _MIN_TIME, device=x.device)
        return y_t - _MIN_TIME * self(x_t, y_t, t)[1]

    def forward(self, x_t: Tensor, y_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Velocities of image and mask, shaped as they are, at times t of shape (n,)."""
        encoding = self.encode(x_t, y_t, t)
        p = torch.softmax(self.class_logits(encoding), dim=1)
        y_0 = self.codes.mean_codes(p)[:, :, None, None]
        v_y = (y_t - y_0) / t.clamp_min(_MIN_TIME)[:, None, None, None]
        return self._as_velocity(self.unet.decode(encoding), x_t, t), v_y

    def losses(self, sample: PathSample, labels: Tensor, n_at_one: int) -> tuple[Tensor, Tensor]:
        """Mean squared error of v_x and the cross-entropy of p, which has the same best field.

        Rows at t = 1 end at the middle block: classifying needs no way up.
        """
        encoding = self.encode(sample.x_t, sample.y_t, sample.t)
        label_loss = F.cross_entropy(self.class_logits(encoding), labels)
        if n_at_one == len(labels):
            return label_loss.new_zeros(()), label_loss
        drawing = slice(n_at_one, None)
        output = self.unet.decode(encoding.rows(n_at_one, len(labels)))
        v_x = self._as_velocity(output, sample.x_t[drawing], sample.t[drawing])
        return velocity_loss(v_x, sample.u_x[drawing]), label_loss

    def image_velocity(self, x_t: Tensor, y_t: Tensor, t: Tensor) -> Tensor:
        """Velocity of the image alone, (n, C_x, H, W).

        Without the quotient of :meth:`forward`, which is 0 / 0 at t = 0.
        """
        return self._as_velocity(self.unet.decode(self.encode(x_t, y_t, t)), x_t, t)


LABEL_PREDICTIONS = ("velocity", "posterior")
IMAGE_PREDICTIONS = ("velocity", "image")


def make_field(
    form: str,
    codes: LabelCodes | EncodedLabelCodes,
    image_channels: int,
    image_prediction: str = "velocity",
    **unet: Any,
) -> VelocityField:
    """Make an untrained velocity field.

    Parameters
    ----------
    form : {"velocity", "posterior"}
        What the label half of the network returns.
    codes : LabelCodes or EncodedLabelCodes
        Codes of the classes; the posterior form takes plain ones.
    image_channels : int
        Channels of the images.
    image_prediction : {"velocity", "image"}
        What the image half of the network returns.
    **unet : dict
        Layout of the network, see :class:`~sklearn_msf.network.UNet`.

    Returns
    -------
    VelocityField
    """
    n_channels = image_channels + codes.n_channels
    if form == "velocity":
        return VelocityForm(UNet(n_channels, n_channels, **unet), codes, image_prediction)
    assert isinstance(codes, LabelCodes)
    return PosteriorForm(UNet(n_channels, image_channels, **unet), codes, image_prediction)
