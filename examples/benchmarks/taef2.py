"""TAEF2 (MIT licence), a small pretrained autoencoder, as an object with encode and decode.

The architecture is read off the keys of its two safetensors files: numbered layers of a
sequence, among them residual blocks, some with a pooled branch of 256 channels. Its images lie
in [0, 1]; those of the protocol in [-1, 1].
"""

from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn


class Clamp(nn.Module):
    """Soft limits of the latents, the first layer of the decoder."""

    def forward(self, z: Tensor) -> Tensor:
        """Map numbers to (-3, 3)."""
        return torch.tanh(z / 3) * 3


class Block(nn.Module):
    """Three convolutions with a residual sum, and a branch through 256 channels before them."""

    def __init__(self, has_pool: bool):
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(64, 64, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3, padding=1),
        )
        self.pool = (
            nn.Sequential(
                nn.Conv2d(64, 256, 1, bias=False),
                nn.GroupNorm(4, 256),
                nn.ReLU(),
                nn.Conv2d(256, 64, 1, bias=False),
            )
            if has_pool
            else None
        )

    def forward(self, h: Tensor) -> Tensor:
        """Map (n, 64, H, W) to the same shape."""
        if self.pool is not None:
            h = h + self.pool(h)
        return torch.relu(self.conv(h) + h)


def _layers(weights: dict[str, Tensor], missing: dict[int, nn.Module], stride: int) -> nn.Module:
    """Make the layers that the keys of a file describe, and load them."""
    numbers = {int(key.split(".")[0]) for key in weights}
    layers: list[nn.Module] = []
    for i in range(max(numbers) + 1):
        keys = {key.split(".", 1)[1] for key in weights if key.startswith(f"{i}.")}
        if not keys:
            layers.append(missing[i])
        elif "conv.0.weight" in keys:
            layers.append(Block("pool.0.weight" in keys))
        else:
            n_out, n_in, _, _ = weights[f"{i}.weight"].shape
            has_bias = "bias" in keys
            layers.append(
                nn.Conv2d(n_in, n_out, 3, 1 if has_bias else stride, padding=1, bias=has_bias)
            )
    sequence = nn.Sequential(*layers)
    sequence.load_state_dict({key: value.float() for key, value in weights.items()})
    return sequence


class TAEF2(nn.Module):
    """Images (n, 3, H, W) in [-1, 1] to latents (n, 32, H / 8, W / 8), and back.

    Parameters
    ----------
    folder : str or Path
        Holds taef2_encoder.safetensors and taef2_decoder.safetensors.
    """

    in_channels = 3

    def __init__(self, folder: str | Path):
        super().__init__()
        weights = [
            safetensors.torch.load_file(Path(folder) / f"taef2_{part}.safetensors")
            for part in ("encoder", "decoder")
        ]
        self.encoder = _layers(weights[0], {}, stride=2)
        upsample = {i: nn.Upsample(scale_factor=2) for i in (6, 11, 16)}
        self.decoder = _layers(weights[1], {0: Clamp(), 2: nn.ReLU(), **upsample}, stride=1)

    def encode(self, images: Tensor) -> Tensor:
        """Latents of images in [-1, 1]."""
        return self.encoder((images + 1) / 2)

    def decode(self, latents: Tensor) -> Tensor:
        """Images in about [-1, 1] of latents."""
        return 2 * self.decoder(latents) - 1
