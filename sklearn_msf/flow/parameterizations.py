"""The forms of the velocity field: what its network learns of the two halves.

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
Near t = 1 the quotient is 0 / 0: drawing ends with one step straight to the mean image.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sklearn_msf.flow.label_codes import EncodedLabelCodes, LabelCodes
from sklearn_msf.flow.ode_solver import integrate, last_step
from sklearn_msf.flow.path import PathSample, denoise_masks
from sklearn_msf.flow.velocity_field import VelocityField
from sklearn_msf.nn.unet import Encoding, UNet

__all__ = ["IMAGE_PREDICTIONS", "LABEL_PREDICTIONS", "PosteriorForm", "VelocityForm", "make_field"]

# Below this time the label velocity of the posterior form, 0 / 0 at t = 0, is not asked for.
_MIN_TIME = 0.05


class VelocityForm(VelocityField):
    """Label half as a regression of u_y per pixel (paper, section 3)."""

    def forward(self, x_t: Tensor, y_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Velocities of image and mask, shaped as they are, at times t of shape (n,)."""
        output, v_y = self._outputs(x_t, y_t, t)
        return self._as_velocity(output, x_t, t), v_y

    def _outputs(
        self, x_t: Tensor, y_t: Tensor, t: Tensor, n_dropped: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Run the network, for image and mask."""
        output = self.unet(torch.cat([x_t, y_t], dim=1), t, n_dropped)
        return output[:, : x_t.shape[1]], output[:, x_t.shape[1] :]

    def losses(
        self, sample: PathSample, labels: Tensor, n_at_one: int, n_dropped: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mean squared errors of both velocities (paper, section 3)."""
        output, v_y = self._outputs(sample.x_t, sample.y_t, sample.t, n_dropped)
        drawing = slice(n_at_one, None)
        errors = (v_y - sample.u_y).float().square().mean(dim=(1, 2, 3))
        return (
            self._image_loss(output[drawing], sample, drawing),
            self._label_loss(errors, n_at_one),
        )

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
        """Integrate image and mask together; the field draws its own end of the mask."""

        def velocity(t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            v_x, v_y = self._velocity(t, state)
            x_t, times = state[0], t.expand(len(state[0]))
            return self._guided(v_x, x_t, e_y.expand_as(masks), times, guidance), v_y

        x, y = self._integrate(
            velocity,
            state,
            start=start,
            end=end,
            n_steps=n_steps,
            method=method,
            to_mean=True,
        )
        return x, y


class PosteriorForm(VelocityField):
    """Label half as a class posterior, from which v_y follows in closed form."""

    codes: LabelCodes

    def __init__(self, unet: UNet, codes: LabelCodes, image_prediction: str = "velocity"):
        super().__init__(unet, codes, image_prediction)
        self.head = nn.Linear(unet.feature_channels, codes.n_classes)

    def encode(
        self,
        x_t: Tensor,
        y_t: Tensor,
        t: Tensor,
        mask_t: Tensor | None = None,
        n_dropped: int | None = None,
    ) -> Encoding:
        """Run the U-Net up to its middle block.

        The network sees the mask without its noise: at t = 1 the noise only hides the image.
        """
        mask = denoise_masks(y_t, t if mask_t is None else mask_t, self.codes)[:, :, None, None]
        mask = mask.expand(-1, -1, y_t.shape[2], y_t.shape[3])
        return self.unet.encode(torch.cat([x_t, mask], dim=1), t, n_dropped)

    def class_logits(self, encoding: Encoding) -> Tensor:
        """Unnormalised log p(c | x_t, y_t), float32, (n, K)."""
        return self.head(encoding.features.float().mean(dim=(2, 3))).float()

    def posterior(
        self, x: Tensor, e_y: Tensor, *, n_steps: int = 1, method: str = "euler"
    ) -> Tensor:
        """p(c | x_t, y_t) where the last step to t = 0 begins, (n, K).

        From there the mask is a straight line to the mean code, whatever the method: with one
        step p is that at t = 1, and nothing is integrated. Where the label velocity is close to
        0 / 0 the last step is not begun.
        """
        # One time for all rows: its embedding is computed once.
        t, y_t = torch.ones(1, device=x.device), e_y
        last, n_before = last_step(1.0, n_steps, method, least=_MIN_TIME)
        if n_before:
            x, y_t = integrate(
                self._velocity, (x, e_y), start=1.0, end=last, n_steps=n_before, method=method
            ).state
            t = t * last
        return torch.softmax(self.class_logits(self.encode(x, y_t, t)), dim=1)

    def classify(self, x: Tensor, e_y: Tensor, *, n_steps: int, method: str) -> Tensor:
        """Carry [x, e_y] from t = 1 to t = 0 (paper, eq. 1) and return the mask y_0."""
        p = self.posterior(x, e_y, n_steps=n_steps, method=method)
        return self.codes.mean_codes(p)[:, :, None, None].expand_as(e_y)

    def forward(self, x_t: Tensor, y_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Velocities of image and mask, shaped as they are, at times t of shape (n,)."""
        encoding = self.encode(x_t, y_t, t)
        p = torch.softmax(self.class_logits(encoding), dim=1)
        y_0 = self.codes.mean_codes(p)[:, :, None, None]
        v_y = (y_t - y_0) / t.clamp_min(_MIN_TIME)[:, None, None, None]
        return self._as_velocity(self.unet.decode(encoding), x_t, t), v_y

    def losses(
        self, sample: PathSample, labels: Tensor, n_at_one: int, n_dropped: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mean squared error of v_x and the cross-entropy of p, which has the same best field.

        Rows at t = 1 end at the middle block: classifying needs no way up.
        """
        encoding = self.encode(sample.x_t, sample.y_t, sample.t, sample.mask_t, n_dropped)
        errors = F.cross_entropy(self.class_logits(encoding), labels, reduction="none")
        label_loss = self._label_loss(errors, n_at_one)
        if n_at_one == len(labels):
            return label_loss.new_zeros(()), label_loss
        drawing = slice(n_at_one, None)
        output = self.unet.decode(encoding.rows(n_at_one, len(labels)))
        return self._image_loss(output, sample, drawing), label_loss

    def image_velocity(
        self, x_t: Tensor, y_t: Tensor, t: Tensor, mask_t: Tensor | None = None
    ) -> Tensor:
        """Velocity of the image alone, (n, C_x, H, W), with masks at times of their own, (n,).

        Without the quotient of :meth:`forward`, which is 0 / 0 at t = 0.
        """
        return self._as_velocity(self.unet.decode(self.encode(x_t, y_t, t, mask_t)), x_t, t)


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
        Layout of the network, see :class:`~sklearn_msf.nn.unet.UNet`.

    Returns
    -------
    VelocityField
    """
    n_channels = image_channels + codes.n_channels
    if form == "velocity":
        return VelocityForm(UNet(n_channels, n_channels, **unet), codes, image_prediction)
    assert isinstance(codes, LabelCodes)
    return PosteriorForm(UNet(n_channels, image_channels, **unet), codes, image_prediction)
