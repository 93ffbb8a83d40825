"""A small autoencoder trained on the images at hand."""

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sklearn_msf.autoencoder import ImageAutoencoder, build_autoencoder
from sklearn_msf.device import autocast, seeded_weights, to_channels_last
from sklearn_msf.images import ImageFormat
from sklearn_msf.label_codes import LabelCodes
from sklearn_msf.latent_format import resize_images
from sklearn_msf.schedule import learning_rate_factor

__all__ = ["fit_autoencoder", "fitted_factor", "layout_for"]

# From this side on latents are an eighth of it, as those of Stable Diffusion; below a quarter.
_LARGE_SIDE = 128
_LATENT_CHANNELS = 8
_FIRST_LOG_VARIANCE = -6.0
# Squares that are cut out of the images: an autoencoder looks no further.
_CROP = 64
_BATCH_SIZE = 16
_N_CROPS = 16_000
_LEARNING_RATE = 1e-3
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
    """
    start = time.perf_counter()
    n_channels = images.shape[1] if palette is None else 3
    config = layout_for(n_channels, size)
    with seeded_weights(seed):
        module = build_autoencoder("AutoencoderKL", config)
    # Posteriors as wide as N(0, I) would drown the first steps in noise.
    bias = module.get_parameter("quant_conv.bias").data
    bias[len(bias) // 2 :] = _FIRST_LOG_VARIANCE
    to_channels_last(module, device).train()
    generator = torch.Generator(device).manual_seed(seed)
    optimizer = torch.optim.AdamW(module.parameters(), lr=_LEARNING_RATE, weight_decay=0.0)
    n_steps = _N_CROPS // _BATCH_SIZE
    seconds = None if seconds is None else max(seconds, 1e-3)
    for step in range(n_steps):
        share = (step + 0.5) / n_steps
        if seconds is not None:
            share = max(share, (time.perf_counter() - start) / seconds)
            if share >= 1 and step:
                break
        optimizer.param_groups[0]["lr"] = _LEARNING_RATE * learning_rate_factor(min(share, 1.0))
        x = _crops(images, size, generator).expand(-1, n_channels, -1, -1)
        if palette is not None:
            x = _with_a_mask(x, palette, generator)
        x = x.contiguous(memory_format=torch.channels_last)
        with autocast(device, precision):
            loss = _loss(module, x, generator)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return ImageAutoencoder(module, {"kind": "embedded"})


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
        "norm_num_groups": 8,
        "sample_size": max(size),
        "scaling_factor": 1.0,
        # Attention would see other distances in crops than in whole images.
        "mid_block_add_attention": False,
    }


def _crops(images: np.ndarray, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Squares of some images, flipped at random."""
    device = generator.device
    rows = torch.randint(len(images), (_BATCH_SIZE,), generator=generator, device=device)
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
