"""The velocity field over image and mask: two classes, and the ODE in both directions.

Every field maps (x_t, y_t, t) to the velocities of image and mask:

- :class:`VelocityRegressionField` (the paper): the U-Net returns v_y pixel by pixel.
- :class:`ClassPosteriorField`: the best label velocity is known up to the class posterior,
  ``u_y = (y_t - y) / t`` for every point of the path, hence
  ``v_y = (y_t - sum_c p(c | x_t, y_t) code_c) / t``. The pooled features of the U-Net's
  middle block give p; only v_x needs the upsampling half.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sklearn_msf.flow.image_parameterizations import IMAGE_PREDICTIONS
from sklearn_msf.flow.label_codes import (
    EncodedLabelCodes,
    LabelCodes,
    MaskReader,
    make_label_codes,
)
from sklearn_msf.flow.ode_solver import Evaluation, OdeSettings, evaluations, integrate
from sklearn_msf.flow.path import PathSample, denoise_masks
from sklearn_msf.nn.unet import Encoding, UNet
from sklearn_msf.runtime.device import seeded_weights, to_channels_last
from sklearn_msf.runtime.tensor_axes import align_axes, spatial_axes

__all__ = [
    "LABEL_PREDICTIONS",
    "ClassPosteriorField",
    "FieldLayout",
    "VelocityField",
    "VelocityRegressionField",
    "build_field",
]

# The label velocity of the posterior is 0 / 0 at t = 0: it is never divided by less than this,
# and classification does not evaluate it at earlier times.
_MIN_TIME = 0.05


@dataclass(frozen=True)
class FieldLayout:
    """What a field is besides its weights: the weights fit into no other layout.

    Attributes
    ----------
    label_encoding : {"rgb", "grayscale", "simplex"}
        Family of the label codes.
    beta : float
        Width of their jitter.
    n_classes : int
        Number of classes K.
    label_prediction : {"posterior", "velocity"}
        Parameterization of the label branch.
    image_prediction : {"denoised", "velocity"}
        Parameterization of the image branch.
    image_channels : int
        Channels of the images or latents.
    channels, n_blocks, patch_size : int
        As in :class:`~sklearn_msf.nn.unet.UNet`.
    channel_mult, attention_levels : tuple of int
        As in :class:`~sklearn_msf.nn.unet.UNet`.
    dropout : float
        As in :class:`~sklearn_msf.nn.unet.UNet`.
    time_scale : float, default=1000.0
        As in :class:`~sklearn_msf.nn.unet.UNet`. Not seen in the shapes of the weights.
    time_modulation : {"scale_shift", "shift"}, default="scale_shift"
        As in :class:`~sklearn_msf.nn.unet.UNet`.
    n_spatial_dims : {2, 3}, default=2
        2 for images, 3 for volumes.
    upsampling : {"adm", "light"}, default="adm"
        As in :class:`~sklearn_msf.nn.unet.UNet`.
    """

    label_encoding: str
    beta: float
    n_classes: int
    label_prediction: str
    image_prediction: str
    image_channels: int
    channels: int
    channel_mult: tuple[int, ...]
    n_blocks: int
    attention_levels: tuple[int, ...]
    patch_size: int
    dropout: float
    # The values that files of models from before these entries stand for.
    time_scale: float = 1000.0
    time_modulation: str = "scale_shift"
    n_spatial_dims: int = 2
    upsampling: str = "adm"


class VelocityField(nn.Module):
    """Base class of both parameterizations: a U-Net, label codes and the ODE in both directions.

    Parameters
    ----------
    unet : UNet
        Network over [x_t, y_t].
    codes : LabelCodes or EncodedLabelCodes
        Codes of the classes.
    layout : FieldLayout
        Layout from which the field was made.
    """

    def __init__(self, unet: UNet, codes: LabelCodes | EncodedLabelCodes, layout: FieldLayout):
        super().__init__()
        self.unet = unet
        self.codes = codes
        self.layout = layout
        self.image_parameterization = IMAGE_PREDICTIONS[layout.image_prediction]

    # Whether samples at t = 1 go through the upsampling half in training.
    decodes_at_one = True

    @functools.cached_property
    def codes_on_cpu(self) -> LabelCodes | EncodedLabelCodes:
        """The codes on the CPU, where predictions are decoded; the copy waits for a GPU once."""
        return self.codes.to("cpu")

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        # Every prediction asks for it, and `parameters` takes longer than all else that it checks.
        return self.unet.conv_in.weight.device

    def move_to(self, device: torch.device) -> "VelocityField":
        """Move weights and codes to a device, convolution weights in the layout channels_last."""
        self.codes = self.codes.to(device)
        return to_channels_last(self, device)

    def forward(self, x_t: Tensor, y_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the velocities of image and mask, in their shapes, at times t of shape (n,)."""
        raise NotImplementedError

    def branch_outputs(
        self, sample: PathSample, labels: Tensor, n_at_one: int, n_dropped: int | None = None
    ) -> tuple[Tensor | None, Tensor]:
        """Run the network on points of the path, for training.

        Parameters
        ----------
        sample : PathSample
            Points of the path; the first `n_at_one` are at t = 1.
        labels : Tensor of shape (n,), int64
            Class indices.
        n_at_one : int
            Number of samples at t = 1, which teach nothing about images.
        n_dropped : int, optional
            Number of samples, the first ones, that have dropout. All by default.

        Returns
        -------
        output : Tensor of shape (n - n_at_one, C_x, H, W) or None
            What the network returns for the images of the other samples; None without any.
        errors : Tensor of shape (n,)
            Error of the label branch for each sample.
        """
        raise NotImplementedError

    # From t = 1 to 0: classification

    def class_evidence(self, x: Tensor, e_y: Tensor, ode: OdeSettings) -> Tensor:
        """Carry [x, e_y] from t = 1 to t = 0 (paper, eq. 1) as far as the classes need it.

        Parameters
        ----------
        x : Tensor of shape (n, C_x, H, W)
            Images in [-1, 1].
        e_y : Tensor of shape (n, C_y, H, W)
            Mask noise.
        ode : OdeSettings
            From 1 to 0.

        Returns
        -------
        Tensor of shape (n, C_y, H, W) or (n, K)
            Input of :meth:`decode`: masks at t = 0, or class probabilities.
        """
        raise NotImplementedError

    def is_one_pass(self, ode: OdeSettings) -> bool:
        """Return whether :meth:`class_evidence` is one pass of the network, without a solver."""
        return False

    def decode(self, evidence: Tensor, reader: MaskReader) -> tuple[Tensor, Tensor]:
        """Compute class probabilities and distances to the codes (paper, eq. 2) from the evidence.

        Parameters
        ----------
        evidence : Tensor
            Result of :meth:`class_evidence`, prepared by the reader, in float64 on the CPU.
        reader : MaskReader
            Compares masks with codes.

        Returns
        -------
        probabilities, distances : Tensor of shape (n, K), float64
        """
        raise NotImplementedError

    # From t = 0 to 1: generation

    @property
    def n_mask_noise(self) -> int:
        """Channels of the noise that the mask of a generated image needs."""
        return self.codes.n_channels

    def masks_and_noise(
        self, labels: Tensor, size: Sequence[int], noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Make the two ends of the masks of images to generate.

        Parameters
        ----------
        labels : Tensor of shape (n,), int64
            Class indices.
        size : sequence of int
            Height and width.
        noise : Tensor of shape (n, n_mask_noise, H, W)
            From a standard normal distribution.

        Returns
        -------
        masks, e_y : Tensor of shape (n, C_y, H, W)
            At t = 0 and at t = 1.
        """
        return self.codes.masks(labels, size), noise

    def generate(self, e_x: Tensor, masks: Tensor, e_y: Tensor, ode: OdeSettings) -> Tensor:
        """Carry [e_x, masks] from t = 0 to t = 1 and return the images x_1.

        Parameters
        ----------
        e_x : Tensor of shape (n, C_x, H, W)
            Image noise.
        masks : Tensor of shape (n, C_y, H, W)
            Masks of the classes to generate.
        e_y : Tensor of shape (n, C_y, H, W)
            Mask noise, the end of the path of the mask at t = 1.
        ode : OdeSettings
            From 0 to 1.

        Returns
        -------
        Tensor of shape (n, C_x, H, W)
        """
        return self._integrated(self.generation_start(e_x, masks), masks, e_y, ode)[0]

    def trajectory(
        self, e_x: Tensor, masks: Tensor, e_y: Tensor, ode: OdeSettings
    ) -> list[tuple[Tensor, Tensor]]:
        """Carry [e_x, masks] as :meth:`generate` does, and return the state after each step.

        Returns
        -------
        list of (x_t, y_t), of length n_steps + 1
            States at the times of :meth:`path_times`.
        """
        times = self.path_times(ode.n_steps)
        states = [self.generation_start(e_x, masks)]
        for start, end in pairwise(times):
            step = replace(ode, start=start, end=end, n_steps=1)
            states.append(self._integrated(states[-1], masks, e_y, step))
        return [
            (state[0], self._mask_at(t, state, masks, e_y))
            for t, state in zip(times, states, strict=True)
        ]

    def path_times(self, n_steps: int) -> list[float]:
        """Divide the time from 0 to 1 into n_steps: n_steps + 1 times."""
        return self.image_parameterization.times(n_steps)

    def path_evaluations(self, ode: OdeSettings) -> list[Evaluation]:
        """List the evaluations of the velocity by which :meth:`generate` goes from t = 0 to 1.

        Parameters
        ----------
        ode : OdeSettings
            Steps of "euler" or "midpoint".
        """
        steps = list(pairwise(self.path_times(ode.n_steps)))
        last_method = self.image_parameterization.last_method(ode.method)
        methods = [ode.method] * (len(steps) - 1) + [last_method]
        return [
            evaluation
            for (start, end), method in zip(steps, methods, strict=True)
            for evaluation in evaluations(start, end, method)
        ]

    def _integrated(
        self, state: tuple[Tensor, ...], masks: Tensor, e_y: Tensor, ode: OdeSettings
    ) -> tuple[Tensor, ...]:
        """Carry a state of generation from one time to another."""
        velocity = partial(self.generation_velocity, masks=masks, e_y=e_y, guidance=ode.guidance)
        return self.image_parameterization.integrate_to_image(velocity, state, ode)

    def _mask_at(self, t: float, state: tuple[Tensor, ...], masks: Tensor, e_y: Tensor) -> Tensor:
        """Return the mask at a time of the trajectory: its path is known."""
        return torch.lerp(masks, e_y, t)

    def carry_images(self, x: Tensor, masks: Tensor, e_y: Tensor, ode: OdeSettings) -> Tensor:
        """Carry images from one time to another on a trajectory that can be reversed.

        The class is known, and with it the path of the mask: y_t = (1 - t) mask + t e_y. The
        trajectory does not end with a step to the denoised image, which would lose details of
        the individual image.

        Parameters
        ----------
        x : Tensor of shape (n, C_x, H, W)
            Images at the time `ode.start`.
        masks, e_y : Tensor of shape (n, C_y, H, W)
            Ends of the mask's path.
        ode : OdeSettings
            Times in either order.

        Returns
        -------
        Tensor of shape (n, C_x, H, W)
            Images at the time `ode.end`.
        """

        def velocity(t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (self._velocity_of_class(t, state[0], masks, e_y, ode.guidance),)

        return integrate(velocity, (x,), ode)[0]

    def _velocity_of_class(
        self, t: Tensor, x_t: Tensor, masks: Tensor, e_y: Tensor, guidance: float
    ) -> Tensor:
        """Compute the guided velocity of images where the mask is on its known path."""

        def image_velocity(*arguments: Tensor) -> tuple[Tensor, ...]:
            return (self.image_velocity(*arguments),)

        y_t = torch.lerp(masks, e_y, t)
        (v_x,) = _guided(image_velocity, x_t, y_t, e_y, t, guidance)
        return v_x.to(x_t.dtype)

    # State and velocity of generation

    def generation_start(self, e_x: Tensor, masks: Tensor) -> tuple[Tensor, ...]:
        """Return the state at t = 0 that :meth:`generation_velocity` is the velocity of."""
        return (e_x,)

    def generation_velocity(
        self, t: Tensor, state: tuple[Tensor, ...], masks: Tensor, e_y: Tensor, guidance: float
    ) -> tuple[Tensor, ...]:
        """Compute the velocity that :meth:`generate` integrates, at one time (0-d Tensor).

        Parameters
        ----------
        t : Tensor of shape ()
            Time in [0, 1].
        state : tuple of Tensor
            Images x_t, (n, C_x, H, W), first; what else :meth:`generation_start` returns.
        masks, e_y : Tensor of shape (n, C_y, H, W)
            Ends of the mask's path, as in :meth:`generate`.
        guidance : float
            As in :class:`~sklearn_msf.flow.ode_solver.OdeSettings`.

        Returns
        -------
        tuple of Tensor
            Velocity of each part of the state.
        """
        return (self._velocity_of_class(t, state[0], masks, e_y, guidance),)

    def image_velocity(
        self, x_t: Tensor, y_t: Tensor, t: Tensor, mask_t: Tensor | None = None
    ) -> Tensor:
        """Compute only the velocity of the image, (n, C_x, H, W); `mask_t`, (n,), is for the masks.

        Here the network gets the masks with their noise, so `mask_t` is not used.
        """
        return self(x_t, y_t, t)[0]

    def _velocity(self, t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x_t, y_t = state
        v_x, v_y = self(x_t, y_t, t.expand(x_t.shape[0]))
        return v_x.to(x_t.dtype), v_y.to(y_t.dtype)


class VelocityRegressionField(VelocityField):
    """Label branch as a regression of u_y per pixel (paper, section 3)."""

    def forward(self, x_t: Tensor, y_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the velocities of image and mask, in their shapes, at times t of shape (n,)."""
        output, v_y = self._outputs(x_t, y_t, t)
        return self.image_parameterization.velocity(output, x_t, t), v_y

    def _outputs(
        self, x_t: Tensor, y_t: Tensor, t: Tensor, n_dropped: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Run the network and split its output into image and mask."""
        output = self.unet(torch.cat([x_t, y_t], dim=1), t, n_dropped)
        return output[:, : x_t.shape[1]], output[:, x_t.shape[1] :]

    def branch_outputs(
        self, sample: PathSample, labels: Tensor, n_at_one: int, n_dropped: int | None = None
    ) -> tuple[Tensor | None, Tensor]:
        """Compute the outputs for images, and the squared errors of v_y (paper, section 3)."""
        output, v_y = self._outputs(sample.x_t, sample.y_t, sample.t, n_dropped)
        errors = (v_y - sample.u_y).float().square().mean(dim=(1, *spatial_axes(v_y)))
        return output[n_at_one:], errors

    def class_evidence(self, x: Tensor, e_y: Tensor, ode: OdeSettings) -> Tensor:
        """Carry [x, e_y] from t = 1 to t = 0 (paper, eq. 1) and return the masks y_0."""
        return integrate(self._velocity, (x, e_y), ode)[1]

    def decode(self, evidence: Tensor, reader: MaskReader) -> tuple[Tensor, Tensor]:
        """Read probabilities and distances from masks."""
        return reader.probabilities(evidence), reader.distances(evidence)

    @property
    def n_mask_noise(self) -> int:
        """Channels of e_y, and of the jitter of the codes if they have any."""
        return self.codes.n_channels + self.codes.n_jittered

    def masks_and_noise(
        self, labels: Tensor, size: Sequence[int], noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Make masks with jitter if the codes have any, and e_y."""
        e_y, of_jitter = noise.split([self.codes.n_channels, self.codes.n_jittered], dim=1)
        return self.codes.jittered(self.codes.masks(labels, size), of_jitter), e_y

    @property
    def _carries_masks(self) -> bool:
        """Whether the mask follows the predicted velocity, and not its known path.

        Training sees masks with noise at every t > 0, and only from jitter can it grow. Of an exact
        code the field predicts the code at every t, and the mask would stay flat.
        """
        return self.codes.n_jittered > 0

    def _mask_at(self, t: float, state: tuple[Tensor, ...], masks: Tensor, e_y: Tensor) -> Tensor:
        """Return the mask of the state, if it is in there."""
        return state[1] if self._carries_masks else super()._mask_at(t, state, masks, e_y)

    def generation_start(self, e_x: Tensor, masks: Tensor) -> tuple[Tensor, ...]:
        """Return image noise, and masks if they follow the predicted velocity."""
        return (e_x, masks) if self._carries_masks else super().generation_start(e_x, masks)

    def generation_velocity(
        self, t: Tensor, state: tuple[Tensor, ...], masks: Tensor, e_y: Tensor, guidance: float
    ) -> tuple[Tensor, ...]:
        """Compute the velocities of images, and of masks if they follow it."""
        if not self._carries_masks:
            return super().generation_velocity(t, state, masks, e_y, guidance)

        def both(x_t: Tensor, y_t: Tensor, t: Tensor, _: Tensor) -> tuple[Tensor, ...]:
            return self(x_t, y_t, t)

        x_t, y_t = state
        v_x, v_y = _guided(both, x_t, y_t, e_y, t, guidance)
        return v_x.to(x_t.dtype), v_y.to(y_t.dtype)


class ClassPosteriorField(VelocityField):
    """Label branch as a class posterior, from which v_y follows in closed form."""

    codes: LabelCodes
    decodes_at_one = False

    def __init__(self, unet: UNet, codes: LabelCodes, layout: FieldLayout):
        super().__init__(unet, codes, layout)
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

        The network gets the denoised mask: at t = 1 the noise of the mask would only make the
        image harder to recognise.
        """
        mask = denoise_masks(y_t, t if mask_t is None else mask_t, self.codes)
        return self.unet.encode(x_t, t, n_dropped, constant=mask)

    def class_logits(self, encoding: Encoding) -> Tensor:
        """Compute the unnormalised log p(c | x_t, y_t), float32, (n, K)."""
        features = encoding.features.float()
        pooled = features.mean(dim=spatial_axes(features))
        if not torch.is_autocast_enabled(pooled.device.type):
            return self.head(pooled)
        # In bfloat16 logits of 8 have steps of 1/16, and many images the same probabilities.
        with torch.autocast(pooled.device.type, enabled=False):
            return self.head(pooled)

    def class_evidence(self, x: Tensor, e_y: Tensor, ode: OdeSettings) -> Tensor:
        """Compute p(c | x_t, y_t) at the beginning of the last step to t = 0, (n, K).

        In the last step the mask goes straight to the mean code, whatever the method. With one
        step the result is therefore p at t = 1, and nothing is integrated. The last step is at
        least 0.05 long, because closer to t = 0 the label velocity is almost 0 / 0.
        """
        # One time for all samples: its embedding is computed only once.
        t, y_t = torch.ones(1, device=x.device), e_y
        before, last = ode.last_step(_MIN_TIME)
        if before is not None:
            x, y_t = integrate(self._velocity, (x, e_y), before)
            t = t * last
        return torch.softmax(self.class_logits(self.encode(x, y_t, t)), dim=1)

    def is_one_pass(self, ode: OdeSettings) -> bool:
        """Return True for a single step of a fixed-step method."""
        return ode.n_steps == 1 and not ode.is_adaptive

    def decode(self, evidence: Tensor, reader: MaskReader) -> tuple[Tensor, Tensor]:
        """Return the probabilities, normalised again, and the distances of their mean code."""
        p = evidence / evidence.sum(dim=1, keepdim=True)
        codes = self.codes_on_cpu
        assert isinstance(codes, LabelCodes)
        # The distance of a mask of one colour is that of one of its pixels.
        return p, codes.distances(codes.mean_codes(p)[:, :, None, None])

    def forward(self, x_t: Tensor, y_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the velocities of image and mask, in their shapes, at times t of shape (n,)."""
        encoding = self.encode(x_t, y_t, t)
        p = torch.softmax(self.class_logits(encoding), dim=1)
        y_0 = align_axes(self.codes.mean_codes(p), y_t)
        v_y = (y_t - y_0) / align_axes(t.clamp_min(_MIN_TIME), y_t)
        return self.image_parameterization.velocity(self.unet.decode(encoding), x_t, t), v_y

    def branch_outputs(
        self, sample: PathSample, labels: Tensor, n_at_one: int, n_dropped: int | None = None
    ) -> tuple[Tensor | None, Tensor]:
        """Compute the outputs for images, and the cross-entropy of p.

        The p that minimises the cross-entropy also gives the v_y with the least mean squared
        error. Samples at t = 1 skip the upsampling half, which classification does not need.
        """
        encoding = self.encode(sample.x_t, sample.y_t, sample.t, sample.mask_t, n_dropped)
        errors = F.cross_entropy(self.class_logits(encoding), labels, reduction="none")
        if n_at_one == len(labels):
            return None, errors
        return self.unet.decode(encoding.rows(n_at_one, len(labels))), errors

    def image_velocity(
        self, x_t: Tensor, y_t: Tensor, t: Tensor, mask_t: Tensor | None = None
    ) -> Tensor:
        """Compute only the velocity of the image, (n, C_x, H, W); `mask_t`, (n,), is for the masks.

        This avoids the quotient in :meth:`forward`, which is 0 / 0 at t = 0.
        """
        output = self.unet.decode(self.encode(x_t, y_t, t, mask_t))
        return self.image_parameterization.velocity(output, x_t, t)


def _guided(
    velocity: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, ...]],
    x_t: Tensor,
    y_t: Tensor,
    e_y: Tensor,
    t: Tensor,
    guidance: float,
) -> tuple[Tensor, ...]:
    """Compute velocities, and move those of images further away from the unconditional ones.

    The conditional and the unconditional velocity come from one pass of twice as many samples,
    which costs less than two passes.

    Parameters
    ----------
    velocity : callable
        Maps images, masks, times of the images and times of the masks to the velocities of the
        images and, if there are any, of the masks.
    x_t : Tensor of shape (n, C_x, H, W)
        Images at the time t.
    y_t : Tensor of shape (n, C_y, H, W)
        Masks at the time t.
    e_y : Tensor of shape (n, C_y, H, W) or (1, C_y, H, W)
        Mask noise.
    t : Tensor of shape ()
        Time.
    guidance : float
        As in :class:`~sklearn_msf.flow.ode_solver.OdeSettings`.
    """
    n = x_t.shape[0]
    times = t.expand(n)
    if not guidance:
        return velocity(x_t, y_t, times, times)
    # At t = 1 a mask is pure noise and has no information about the class.
    v_x, *others = velocity(
        torch.cat([x_t, x_t]),
        torch.cat([y_t, e_y.expand_as(y_t)]),
        t.expand(2 * n),
        torch.cat([times, torch.ones_like(times)]),
    )
    conditional, unconditional = v_x[:n], v_x[n:]
    guided = conditional + guidance * (conditional - unconditional)
    return (guided, *(part[:n] for part in others))


LABEL_PREDICTIONS = ("velocity", "posterior")


def build_field(layout: FieldLayout, seed: int, mask_codes: Tensor | None = None) -> VelocityField:
    """Make an untrained field with weights drawn from a seed; torch's generator is restored.

    Parameters
    ----------
    layout : FieldLayout
        Layout of network and codes.
    seed : int
        Seed of the weights.
    mask_codes : Tensor of shape (K, C_y, H, W), optional
        Encoded masks of the classes, to use instead of plain colours, where the label prediction is
        "velocity".

    Returns
    -------
    VelocityField
    """
    codes: LabelCodes | EncodedLabelCodes
    if mask_codes is None:
        codes = make_label_codes(layout.label_encoding, layout.n_classes, layout.beta)
    else:
        codes = EncodedLabelCodes(mask_codes)
    n_inputs = layout.image_channels + codes.n_channels
    predicts_posterior = layout.label_prediction == "posterior"
    with seeded_weights(seed):
        unet = UNet(
            n_inputs,
            layout.image_channels if predicts_posterior else n_inputs,
            channels=layout.channels,
            channel_mult=layout.channel_mult,
            n_blocks=layout.n_blocks,
            attention_levels=layout.attention_levels,
            patch_size=layout.patch_size,
            dropout=layout.dropout,
            time_scale=layout.time_scale,
            time_modulation=layout.time_modulation,
            upsampling=layout.upsampling,
            n_spatial_dims=layout.n_spatial_dims,
        )
        if not predicts_posterior:
            return VelocityRegressionField(unet, codes, layout)
        assert isinstance(codes, LabelCodes)
        return ClassPosteriorField(unet, codes, layout)
