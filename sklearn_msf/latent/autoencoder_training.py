"""Training of a small autoencoder on the training images.

Without its residual branches an AutoencoderKL is little more than a pyramid of convolutions.
A training step then takes a fifth of the time and still gives most of the quality. Training
therefore has two stages: the trunk alone, then the whole network, whose residual branches start
from zero.
"""

import contextlib
import copy
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from sklearn_msf.data.images import ImageFormat
from sklearn_msf.data.on_demand import ImagesOnDemand
from sklearn_msf.data.resizing import resize_images
from sklearn_msf.exceptions import AutoencoderError
from sklearn_msf.flow.label_codes import LabelCodes
from sklearn_msf.latent.autoencoder import ImageAutoencoder, build_autoencoder
from sklearn_msf.latent.autoencoder_opening import MAX_SIZE
from sklearn_msf.nn.group_norm import modulated_group_norm
from sklearn_msf.runtime.device import arithmetic, autocast, seeded_weights, to_channels_last
from sklearn_msf.runtime.user_warnings import warn_user
from sklearn_msf.training.optimizer import AveragedOptimizer
from sklearn_msf.training.schedule import learning_rate_factor

__all__ = ["fit_autoencoder", "fitted_factor", "layout_for"]


class Stage(NamedTuple):
    """A part of the training, with its own learning rate schedule."""

    has_branches: bool
    fraction: float  # of the time, if that is limited
    n_steps: int
    batch_size: int
    learning_rate: float


_STAGES = (Stage(False, 1 / 3, 2_000, 4, 2e-3), Stage(True, 2 / 3, 1_000, 8, 1e-3))
# With fewer steps a stage has learned next to nothing.
_FEW_STEPS = 20
_EMA_DECAY = 0.9
# From this side on, latents have an eighth of the side, as in Stable Diffusion; below, a quarter.
_LARGE_SIDE = 128
_LATENT_CHANNELS = 8
_FIRST_LOG_VARIANCE = -6.0
# Side of the training crops in pixels: an autoencoder needs no wider context.
_CROP = 64
_KL_WEIGHT = 1e-6
_GRADIENT_WEIGHT = 0.5


def fit_autoencoder(
    images: ImagesOnDemand,
    size: tuple[int, int],
    *,
    weights: np.ndarray,
    seed: int,
    device: torch.device,
    precision: str,
    seconds: float | None = None,
    palette: LabelCodes | None = None,
) -> ImageAutoencoder:
    """Train an AutoencoderKL with the layout of Stable Diffusion, scaled down.

    The loss is the mean absolute error of the pixels, half that of the differences between
    neighbouring pixels, and 1e-6 times the KL divergence of the posterior from N(0, I).

    Parameters
    ----------
    images : ImagesOnDemand of shape (n, C, H, W)
        uint8 in [0, 255] or float32 in [-1, 1].
    size : tuple of int
        Height and width to which the images are resized.
    weights : ndarray of shape (n,)
        Positive weights: how often an image is seen, up to a common factor.
    seed : int
        Seed of weights, order and noise.
    device : torch.device
        Device of the training.
    precision : {"float32", "bfloat16"}
        Precision of convolutions and products.
    seconds : float, optional
        Largest training time; the learning rate schedule is shortened to fit.
    palette : LabelCodes, optional
        Colours of class masks to train on as well; gray images are then repeated to RGB.

    Returns
    -------
    ImageAutoencoder

    Raises
    ------
    AutoencoderError
        If weights are infinite or NaN after the first stage. If they are after the second stage,
        the result of the first one is kept, with a warning.
    """
    start = time.perf_counter()
    n_channels = images.shape[1] if palette is None else 3
    cumulative = np.cumsum(weights) / np.sum(weights)
    with seeded_weights(seed):
        module = build_autoencoder("AutoencoderKL", layout_for(n_channels, size))
    _start_weights(module)
    to_channels_last(module, device).train()
    palette = None if palette is None else palette.to(device)
    average, trained = copy.deepcopy(module), None
    n_steps: list[int] = []
    generator = torch.Generator(device).manual_seed(seed)
    for stage in _STAGES:
        allowed = None if seconds is None else max(stage.fraction * seconds, 1e-3)
        optimizer = AveragedOptimizer(
            module,
            average,
            optimizer="muon",
            weight_decay=0.0,
            max_grad_norm=1.0,
            ema_decay=_EMA_DECAY,
        )
        parts = _training_parts(module, has_branches=stage.has_branches)
        n_steps.append(0)
        with parts, arithmetic(device):
            for progress in _progress(stage.n_steps, start, allowed):
                x = _crops(images, cumulative, size, stage.batch_size, generator)
                x = x.expand(-1, n_channels, -1, -1)
                if palette is not None:
                    x = _with_a_mask(x, palette, generator)
                x = x.contiguous(memory_format=torch.channels_last)
                with autocast(device, precision):
                    loss = _loss(module, x, generator)
                loss.backward()
                optimizer.step(stage.learning_rate * learning_rate_factor(progress))
                n_steps[-1] += 1
        if bool(optimizer.is_finite()):
            trained = copy.deepcopy(average)
        elif trained is None:
            raise AutoencoderError(
                "The autoencoder that was trained on X has weights that are not finite: pass "
                "autoencoder= a pretrained one, or, if it was trained in bfloat16, set "
                "precision='float32'."
            )
        else:
            warn_user(
                "The second stage of training an autoencoder on X diverged; the result of the "
                "first is used.",
            )
        start = time.perf_counter()
    if seconds is not None and any(
        n < min(_FEW_STEPS, s.n_steps) for n, s in zip(n_steps, _STAGES, strict=True)
    ):
        warn_user(
            f"time_budget left {seconds:.1f} seconds for training an autoencoder on X, enough for "
            f"{sum(n_steps)} steps only: it loses most of the images, and the model will be poor. "
            "Set a larger time_budget, or pass a trained autoencoder.",
        )
    return ImageAutoencoder(trained, {"kind": "embedded"})


def _start_weights(module: nn.Module) -> None:
    """Start with residual branches that add nothing and with narrow posteriors."""
    for block in _residual_blocks(module):
        nn.init.zeros_(block.conv2.weight)
        nn.init.zeros_(block.conv2.bias)
    # With posteriors as wide as N(0, I) the first steps would train on noise.
    bias = module.get_parameter("quant_conv.bias").data
    bias[len(bias) // 2 :] = _FIRST_LOG_VARIANCE


def _residual_blocks(module: nn.Module) -> list[Any]:
    return [block for block in module.modules() if hasattr(block, "conv_shortcut")]


class _GroupNorm(nn.Module):
    """Group normalisation with statistics in float32, sharing the weights of a torch module.

    With torch's own normalisation, training in bfloat16 ends at a PSNR that is 5 dB lower.
    """

    def __init__(self, norm: nn.GroupNorm):
        super().__init__()
        self._n_groups, self._eps = norm.num_groups, norm.eps
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, h: Tensor) -> Tensor:
        """Normalise (n, C, H, W), or (n, C, positions) inside attention."""
        scale, shift = (p.expand(len(h), -1) for p in (self.weight, self.bias))
        image = h if h.ndim == 4 else h.unsqueeze(3)
        return modulated_group_norm(image, scale, shift, self._n_groups, self._eps).view_as(h)


class _Shortcut(nn.Module):
    """A residual block of diffusers without its branch."""

    def __init__(self, block: Any):
        super().__init__()
        self._shortcut = nn.Identity() if block.conv_shortcut is None else block.conv_shortcut

    def forward(self, h: Tensor, temb: None = None) -> Tensor:
        """Apply the shortcut alone."""
        shortcut: Tensor = self._shortcut(h)
        return shortcut


@contextlib.contextmanager
def _training_parts(module: nn.Module, *, has_branches: bool) -> Iterator[None]:
    """Replace layers of diffusers by layers that train better and share their weights."""
    parts: dict[nn.Module, nn.Module] = {
        part: _GroupNorm(part) for part in module.modules() if type(part) is nn.GroupNorm
    }
    if not has_branches:
        parts |= {block: _Shortcut(block) for block in _residual_blocks(module)}
    places = [
        (parent, name, part)
        for parent in module.modules()
        for name, part in parent.named_children()
        if part in parts
    ]
    for parent, name, part in places:
        setattr(parent, name, parts[part])
    try:
        yield
    finally:
        for parent, name, part in places:
            setattr(parent, name, part)


def _progress(n_steps: int, start: float, seconds: float | None) -> Iterator[float]:
    """Yield the fraction of a stage that is over, before each step; one step always runs."""
    for step in range(n_steps):
        passed = (step + 0.5) / n_steps
        if seconds is not None:
            passed = max(passed, (time.perf_counter() - start) / seconds)
            if passed >= 1 and step:
                return
        yield min(passed, 1.0)


def fitted_factor(size: tuple[int, int]) -> int:
    """Choose the side of an image divided by that of its latents, for images of a size."""
    return 8 if min(size) >= _LARGE_SIDE else 4


def layout_for(n_channels: int, size: tuple[int, int]) -> dict[str, Any]:
    """Make the configuration of an AutoencoderKL for images of a size."""
    widths = [16, 32, 64, 64] if fitted_factor(size) == 8 else [32, 64, 64]
    return {
        "in_channels": n_channels,
        "out_channels": n_channels,
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "block_out_channels": widths,
        "layers_per_block": 1,
        "latent_channels": _LATENT_CHANNELS,
        "norm_num_groups": 1,
        # diffusers reads it for tiles, which are not used here.
        "sample_size": min(max(size), MAX_SIZE),
        "scaling_factor": 1.0,
        # Attention would see only short distances in the training crops, but all in whole images.
        "mid_block_add_attention": False,
    }


def _crops(
    images: ImagesOnDemand,
    cumulative: np.ndarray,
    size: tuple[int, int],
    n: int,
    generator: torch.Generator,
) -> Tensor:
    """Cut the same random square out of n random images, and flip half of them at random.

    An image is drawn with the probability by which it raises the cumulative sum.
    """
    device = generator.device
    drawn = torch.rand(n, generator=generator, device=device).cpu().double().numpy()
    rows = np.searchsorted(cumulative, drawn, side="right").clip(max=len(images) - 1)
    x = ImageFormat.normalise(torch.from_numpy(images[rows]).to(device))
    x = resize_images(x, size)
    offsets = torch.rand(2, generator=generator, device=device).tolist()
    top, left = (int(r * (max(n - _CROP, 0) + 1)) for r, n in zip(offsets, size, strict=True))
    x = x[:, :, top : top + _CROP, left : left + _CROP]
    chosen = torch.rand(len(x), 1, 1, 1, generator=generator, device=device) < 0.5
    return torch.where(chosen, x.flip(3), x)


def _with_a_mask(x: Tensor, palette: LabelCodes, generator: torch.Generator) -> Tensor:
    """Replace the first image by the mask of a random class."""
    label = torch.randint(palette.n_classes, (1,), generator=generator, device=x.device)
    mask = palette.masks(label, (x.shape[2], x.shape[3]))
    return torch.cat([mask, x[1:]])


def _loss(module: Any, x: Tensor, generator: torch.Generator) -> Tensor:
    """Sum the errors of pixels and gradients and the divergence of the posterior of a batch."""
    posterior = module.encode(x).latent_dist
    mean, deviation = posterior.mean, posterior.std
    noise = torch.randn(mean.shape, generator=generator, device=mean.device)
    error = module.decode(mean + deviation * noise).sample.float() - x
    gradients = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    divergence = 0.5 * (mean.square() + deviation.square() - 1 - posterior.logvar)
    return (
        error.abs().mean()
        + _GRADIENT_WEIGHT * gradients
        + _KL_WEIGHT * divergence.float().sum(dim=(1, 2, 3)).mean()
    )
