"""A small autoencoder trained on the images at hand.

Without its residual branches an AutoencoderKL is little more than a pyramid of convolutions:
a step takes a fifth of the time, and most of what can be won is won there. So it trains in two
stages, first the trunk alone, then all of it, its branches starting from zero.
"""

import contextlib
import copy
import functools
import time
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from sklearn_msf.data.images import ImageFormat
from sklearn_msf.flow.label_codes import LabelCodes
from sklearn_msf.latent.autoencoder import AutoencoderError, ImageAutoencoder, build_autoencoder
from sklearn_msf.latent.scaling import resize_images
from sklearn_msf.nn.group_norm import modulated_group_norm
from sklearn_msf.runtime.device import autocast, float32_rounding, seeded_weights, to_channels_last
from sklearn_msf.training.optimizer import AveragedOptimiser
from sklearn_msf.training.schedule import learning_rate_factor

__all__ = ["fit_autoencoder", "fitted_factor", "layout_for"]


class Stage(NamedTuple):
    """A part of the training, with a schedule of its own."""

    has_branches: bool
    share: float  # of the time, where that is limited
    n_steps: int
    batch_size: int
    learning_rate: float


_STAGES = (Stage(False, 1 / 3, 2_000, 4, 2e-3), Stage(True, 2 / 3, 1_000, 8, 1e-3))
_EMA_DECAY = 0.9
# From this side on latents are an eighth of it, as those of Stable Diffusion; below a quarter.
_LARGE_SIDE = 128
_LATENT_CHANNELS = 8
_FIRST_LOG_VARIANCE = -6.0
# Squares that are cut out of the images: an autoencoder looks no further.
_CROP = 64
_KL_WEIGHT = 1e-6
_GRADIENT_WEIGHT = 0.5


def fit_autoencoder(
    images: np.ndarray,
    size: tuple[int, int],
    *,
    seed: int,
    device: torch.device,
    precision: str,
    seconds: float | None = None,
    palette: LabelCodes | None = None,
) -> ImageAutoencoder:
    """Train an AutoencoderKL of the layout of Stable Diffusion, scaled down.

    The loss is the absolute error of the pixels and of their differences to their neighbours,
    and a little of the posterior's divergence from N(0, I).

    Parameters
    ----------
    images : ndarray of shape (n, C, H, W)
        uint8 in [0, 255] or float32 in [-1, 1].
    size : tuple of int
        Height and width to which they are resized.
    seed : int
        Seed of weights, order and noise.
    device : torch.device
        Where to train.
    precision : {"float32", "bfloat16"}
        Precision of convolutions and products.
    seconds : float, optional
        Time to train for at most, schedule included.
    palette : LabelCodes, optional
        Colours of masks that it is to know too; gray images are then seen as RGB.

    Returns
    -------
    ImageAutoencoder

    Raises
    ------
    AutoencoderError
        Where weights become infinite or NaN in the first stage; after the second one what the
        first had reached is kept, with a warning.
    """
    start = time.perf_counter()
    n_channels = images.shape[1] if palette is None else 3
    with seeded_weights(seed):
        module = build_autoencoder("AutoencoderKL", layout_for(n_channels, size))
    _start_weights(module)
    to_channels_last(module, device).train()
    average, trained = copy.deepcopy(module), None
    generator = torch.Generator(device).manual_seed(seed)
    for stage in _STAGES:
        allowed = None if seconds is None else max(stage.share * seconds, 1e-3)
        optimiser = AveragedOptimiser(
            module,
            average,
            optimizer="muon",
            weight_decay=0.0,
            max_grad_norm=1.0,
            ema_decay=_EMA_DECAY,
        )
        ways = _ways_to_train(module, has_branches=stage.has_branches)
        with ways, float32_rounding(device, precision):
            for progress in _progress(stage.n_steps, start, allowed):
                x = _crops(images, size, stage.batch_size, generator)
                x = x.expand(-1, n_channels, -1, -1)
                if palette is not None:
                    x = _with_a_mask(x, palette, generator)
                x = x.contiguous(memory_format=torch.channels_last)
                with autocast(device, precision):
                    loss = _loss(module, x, generator)
                loss.backward()
                optimiser.step(stage.learning_rate * learning_rate_factor(progress))
        if optimiser.is_finite():
            trained = copy.deepcopy(average)
        elif trained is None:
            raise AutoencoderError(
                "The autoencoder that was trained on X has weights that are not finite: pass "
                "autoencoder= a pretrained one, or precision='float32'."
            )
        else:
            warnings.warn(
                "The second stage of training an autoencoder on X diverged; the first is kept.",
                stacklevel=2,
            )
        start = time.perf_counter()
    return ImageAutoencoder(trained, {"kind": "embedded"})


def _start_weights(module: nn.Module) -> None:
    """Let residual branches add nothing at first, and posteriors be narrow."""
    for block in _residual_blocks(module):
        nn.init.zeros_(block.conv2.weight)
        nn.init.zeros_(block.conv2.bias)
    # Posteriors as wide as N(0, I) would drown the first steps in noise.
    bias = module.get_parameter("quant_conv.bias").data
    bias[len(bias) // 2 :] = _FIRST_LOG_VARIANCE


def _residual_blocks(module: nn.Module) -> list[Any]:
    return [block for block in module.modules() if hasattr(block, "conv_shortcut")]


@contextlib.contextmanager
def _ways_to_train(module: nn.Module, *, has_branches: bool) -> Iterator[None]:
    """Normalise with statistics in float32, and leave residual branches out where asked to."""
    # With torch's normalisation in bfloat16 training ends 5 dB lower.
    norms = [block for block in module.modules() if type(block) is nn.GroupNorm]
    ways: dict[Any, Any] = dict.fromkeys(norms, _normalise)
    if not has_branches:
        ways |= dict.fromkeys(_residual_blocks(module), _take_shortcut)
    for block, forward in ways.items():
        # An attribute of the object is found before the method of its class.
        block.__dict__["forward"] = functools.partial(forward, block)
    try:
        yield
    finally:
        for block in ways:
            del block.__dict__["forward"]


def _normalise(norm: nn.GroupNorm, h: Tensor) -> Tensor:
    scale, shift = (p.expand(len(h), -1) for p in (norm.weight, norm.bias))
    # Attention has its positions in one dimension.
    image = h if h.ndim == 4 else h.unsqueeze(3)
    return modulated_group_norm(image, scale, shift, norm.num_groups, norm.eps).view_as(h)


def _take_shortcut(block: Any, h: Tensor, temb: None = None) -> Tensor:
    return h if block.conv_shortcut is None else block.conv_shortcut(h)


def _progress(n_steps: int, start: float, seconds: float | None) -> Iterator[float]:
    """Share of a stage that is over, before each of its steps; there is at least one."""
    for step in range(n_steps):
        share = (step + 0.5) / n_steps
        if seconds is not None:
            share = max(share, (time.perf_counter() - start) / seconds)
            if share >= 1 and step:
                return
        yield min(share, 1.0)


def fitted_factor(size: tuple[int, int]) -> int:
    """Pixels of a side that make one position of the latents, for images of a size."""
    return 8 if min(size) >= _LARGE_SIDE else 4


def layout_for(n_channels: int, size: tuple[int, int]) -> dict[str, Any]:
    """Configure an AutoencoderKL for images of a size."""
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
        "sample_size": max(size),
        "scaling_factor": 1.0,
        # Attention would see other distances in crops than in whole images.
        "mid_block_add_attention": False,
    }


def _crops(images: np.ndarray, size: tuple[int, int], n: int, generator: torch.Generator) -> Tensor:
    """Squares of n images, flipped at random."""
    device = generator.device
    rows = torch.randint(len(images), (n,), generator=generator, device=device)
    x = ImageFormat.normalise(torch.from_numpy(images[rows.cpu().numpy()]).to(device))
    x = resize_images(x, size)
    offsets = torch.rand(2, generator=generator, device=device).tolist()
    top, left = (int(r * (max(n - _CROP, 0) + 1)) for r, n in zip(offsets, size, strict=True))
    x = x[:, :, top : top + _CROP, left : left + _CROP]
    chosen = torch.rand(len(x), 1, 1, 1, generator=generator, device=device) < 0.5
    return torch.where(chosen, x.flip(3), x)


def _with_a_mask(x: Tensor, palette: LabelCodes, generator: torch.Generator) -> Tensor:
    """Put the mask of a class in the place of the first image."""
    label = torch.randint(palette.n_classes, (1,), generator=generator, device=x.device)
    mask = palette.masks(label.cpu(), (x.shape[2], x.shape[3])).to(x.device)
    return torch.cat([mask, x[1:]])


def _loss(module: Any, x: Tensor, generator: torch.Generator) -> Tensor:
    """Reconstruction, its gradients, and divergence of the posterior, of one batch."""
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
