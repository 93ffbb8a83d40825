"""The velocity network: a time-conditioned U-Net over images of any size.

The layout is that of ADM (Dhariwal and Nichol 2021), as the paper uses it: residual
blocks with GroupNorm and SiLU, scale and shift by the time embedding, self-attention at
chosen levels, zero-initialised outputs. Two things are added:

- pixel-unshuffle patching: ``patch_size=2`` folds 2x2 pixels into channels at the input and
  unfolds them at the output, so that every level works on a quarter of the positions;
- the two halves of the U-Net can be run separately: :meth:`UNet.encode` ends with the middle
  block, whose features are enough to classify. :meth:`UNet.decode` continues to the output, for
  only those samples of the batch that need it.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sklearn_msf.nn.dropout import Dropout
from sklearn_msf.nn.group_norm import modulated_group_norm

__all__ = ["Encoding", "UNet"]


class GroupNorm(nn.Module):
    """GroupNorm over 32 groups, or the most that divide the channels.

    Parameters
    ----------
    channels : int
        Number of channels C.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.n_groups = math.gcd(32, channels)
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(
        self, h: Tensor, scale: Tensor | None = None, shift: Tensor | None = None
    ) -> Tensor:
        """Normalise (n, C, H, W), then scale by 1 + scale and shift, each (n, C)."""
        weight, bias = self.weight.expand(h.shape[0], -1), self.bias.expand(h.shape[0], -1)
        if scale is not None and shift is not None:
            gain = 1 + scale.to(weight.dtype)
            weight, bias = weight * gain, bias * gain + shift
        return modulated_group_norm(h, weight, bias, self.n_groups)


def _zeroed(module: nn.Module) -> nn.Module:
    """Set all parameters of an output layer to zero, so that its block starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class TimeEmbedding(nn.Module):
    """Sinusoidal features of t followed by a two-layer perceptron.

    Parameters
    ----------
    channels : int
        Number of sinusoidal features.
    width : int
        Size of the embedding.
    """

    frequencies: Tensor

    def __init__(self, channels: int, width: int):
        super().__init__()
        half = channels // 2
        # t lies in [0, 1]; a scale of 1000 gives the frequencies the range that diffusion
        # models with a thousand steps use.
        frequencies = 1000.0 * torch.exp(-math.log(10_000.0) * torch.arange(half) / half)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.perceptron = nn.Sequential(
            nn.Linear(2 * half, width), nn.SiLU(), nn.Linear(width, width)
        )

    def forward(self, t: Tensor) -> Tensor:
        """Embed times of shape (n,) as (n, width)."""
        angles = t[:, None] * self.frequencies
        return self.perceptron(torch.cat([angles.cos(), angles.sin()], dim=1))


def _silu(h: Tensor) -> Tensor:
    """Apply SiLU to a temporary tensor, in place when gradients are off."""
    return F.silu(h, inplace=not torch.is_grad_enabled())


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a scale and shift by the time embedding."""

    def __init__(self, in_channels: int, out_channels: int, time_width: int, dropout: float):
        super().__init__()
        self.norm_in = GroupNorm(in_channels)
        self.conv_in = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.modulation = nn.Linear(time_width, 2 * out_channels)
        self.norm_out = GroupNorm(out_channels)
        self.dropout = Dropout(dropout)
        self.conv_out = _zeroed(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.shortcut = (
            nn.Identity()
            if in_channels == out_channels
            else nn.Conv2d(in_channels, out_channels, 1)
        )

    def forward(self, h: Tensor, time_embedding: Tensor, n_dropped: int | None = None) -> Tensor:
        """Map (n, in_channels, H, W) to (n, out_channels, H, W); see :class:`Encoding`."""
        r = self.conv_in(_silu(self.norm_in(h)))
        scale, shift = self.modulation(F.silu(time_embedding)).chunk(2, dim=1)
        r = self.norm_out(r, scale, shift)
        r = self.conv_out(self.dropout(_silu(r), n_dropped))
        return self.shortcut(h) + r


class SelfAttention(nn.Module):
    """Self-attention over the positions of an image, with a residual connection."""

    def __init__(self, channels: int, head_channels: int):
        super().__init__()
        wanted = max(1, channels // head_channels)
        self.n_heads = max(n for n in range(1, wanted + 1) if channels % n == 0)
        self.norm = GroupNorm(channels)
        self.query_key_value = nn.Conv2d(channels, 3 * channels, 1)
        self.out = _zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, h: Tensor) -> Tensor:
        """Attend over H * W positions of (n, channels, H, W)."""
        n, channels, height, width = h.shape
        # Put positions before channels, the memory order of channels_last, to avoid copies.
        qkv = self.query_key_value(self.norm(h)).permute(0, 2, 3, 1)
        qkv = qkv.reshape(n, height * width, 3, self.n_heads, channels // self.n_heads)
        attended = _attend(*qkv.permute(2, 0, 3, 1, 4).unbind())
        attended = attended.transpose(1, 2).reshape(n, height, width, channels)
        return h + self.out(attended.permute(0, 3, 1, 2).to(h.dtype))


# Up to so many positions, training on a GPU keeps the matrix of the attention weights.
_MAX_POSITIONS_KEPT = 1024


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Apply attention over the positions of (n, heads, positions, channels)."""
    if not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(query, key, value)
    if query.device.type == "cpu":
        # In bfloat16 the gradient of CPU attention is six times slower than in float32.
        with torch.autocast("cpu", enabled=False):
            return F.scaled_dot_product_attention(query.float(), key.float(), value.float())
    if query.shape[2] <= _MAX_POSITIONS_KEPT:
        return _attend_by_products(query, key, value)
    return F.scaled_dot_product_attention(query, key, value)


def _attend_by_products(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Apply attention as two matrix products, whose gradients repeat to the last bit.

    The gradients of the fused kernels of CUDA add up in whatever order their parts end.
    """
    scores = (query * query.shape[-1] ** -0.5) @ key.mT
    return torch.softmax(scores.float(), dim=-1).to(value.dtype) @ value


class Stage(nn.Module):
    """A residual block, followed by self-attention on the levels that have it."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        time_width: int,
        dropout: float,
        attention: bool,
        head_channels: int,
    ):
        super().__init__()
        self.block = ResidualBlock(in_channels, out_channels, time_width, dropout)
        self.attention = SelfAttention(out_channels, head_channels) if attention else nn.Identity()

    def forward(self, h: Tensor, time_embedding: Tensor, n_dropped: int | None = None) -> Tensor:
        """Map (n, in_channels, H, W) to (n, out_channels, H, W); see :class:`Encoding`."""
        return self.attention(self.block(h, time_embedding, n_dropped))


class Downsample(nn.Conv2d):
    """3x3 convolution that halves the size, rounding up.

    Parameters
    ----------
    channels : int
        Channels in and out.
    """

    def __init__(self, channels: int):
        super().__init__(channels, channels, 3, stride=2, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        """Map (n, C, H, W) to (n, C, ceil(H / 2), ceil(W / 2))."""
        if h.shape[-1] > 1:
            return super().forward(h)
        # For images one pixel wide, oneDNN leaves parts of the bfloat16 weight gradient of a
        # strided convolution unwritten (seen in torch 2.13). A convolution with stride 1, of
        # which every second row is kept, gives the same result.
        return F.conv2d(h, self.weight, self.bias, padding=1)[:, :, ::2]


class Encoding(NamedTuple):
    """Output of the downsampling half of the U-Net and the middle block.

    Attributes
    ----------
    features : Tensor of shape (n, feature_channels, h, w)
        Output of the middle block.
    skips : tuple of Tensor
        Skip connections to the upsampling half, in the order in which they were computed.
    time_embedding : Tensor of shape (n, width)
        Embedding of t.
    size : tuple of int
        Height and width of the images in pixels.
    n_dropped : int
        Number of samples, the first ones of the batch, that have dropout in training.
    """

    features: Tensor
    skips: tuple[Tensor, ...]
    time_embedding: Tensor
    size: tuple[int, int]
    n_dropped: int

    def rows(self, start: int, stop: int) -> "Encoding":
        """Select the samples from `start` up to, but not including, `stop`."""
        return Encoding(
            self.features[start:stop],
            tuple(skip[start:stop] for skip in self.skips),
            self.time_embedding[start:stop],
            self.size,
            min(max(self.n_dropped - start, 0), stop - start),
        )


class UNet(nn.Module):
    """Time-conditioned U-Net (paper, appendix A.1; ADM layout).

    Parameters
    ----------
    in_channels, out_channels : int
        Channels of the input and of the output.
    channels : int, default=64
        Channels of the first level.
    channel_mult : sequence of int, default=(1, 2, 2, 2)
        Channels of each level in units of `channels`.
    n_blocks : int, default=2
        Residual blocks per level (one more in the upsampling half).
    attention_levels : sequence of int, default=(1,)
        Levels with self-attention, counted from 0 at full resolution.
    head_channels : int, default=64
        Channels of one attention head.
    patch_size : int, default=1
        Side of the square of pixels folded into channels; 1 folds nothing. Images whose size is
        not a multiple of it are padded by repeating the border, and the output is cropped.
    dropout : float, default=0.0
        Dropout inside the residual blocks.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        channels: int = 64,
        channel_mult: Sequence[int] = (1, 2, 2, 2),
        n_blocks: int = 2,
        attention_levels: Sequence[int] = (1,),
        head_channels: int = 64,
        patch_size: int = 1,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.patch_size = patch_size
        time_width = 4 * channels
        widths = [channels * multiple for multiple in channel_mult]

        def stage(n_in: int, n_out: int, level: int) -> Stage:
            return Stage(
                n_in,
                n_out,
                time_width=time_width,
                dropout=dropout,
                attention=level in attention_levels,
                head_channels=head_channels,
            )

        self.time_embedding = TimeEmbedding(channels, time_width)
        self.conv_in = nn.Conv2d(in_channels * patch_size**2, widths[0], 3, padding=1)

        self.down = nn.ModuleList()
        width, skip_widths = widths[0], [widths[0]]
        for level, level_width in enumerate(widths):
            for _ in range(n_blocks):
                self.down.append(stage(width, level_width, level))
                width = level_width
                skip_widths.append(width)
            if level < len(widths) - 1:
                self.down.append(Downsample(width))
                skip_widths.append(width)

        self.middle_in = Stage(
            width,
            width,
            time_width=time_width,
            dropout=dropout,
            attention=True,
            head_channels=head_channels,
        )
        self.middle_out = ResidualBlock(width, width, time_width, dropout)
        self.feature_channels = width

        self.up = nn.ModuleList()
        for level, level_width in reversed(list(enumerate(widths))):
            for _ in range(n_blocks + 1):
                self.up.append(stage(width + skip_widths.pop(), level_width, level))
                width = level_width
            if level > 0:
                self.up.append(nn.Conv2d(width, width, 3, padding=1))

        self.norm_out = GroupNorm(width)
        self.conv_out = _zeroed(nn.Conv2d(width, out_channels * patch_size**2, 3, padding=1))

    def encode(self, z: Tensor, t: Tensor, n_dropped: int | None = None) -> Encoding:
        """Run the downsampling half and the middle block.

        Parameters
        ----------
        z : Tensor of shape (n, in_channels, H, W)
            Image and label mask, concatenated along the channel axis.
        t : Tensor of shape (n,) or, without gradients, (1,)
            Times in [0, 1]: one per sample, or one for all samples.
        n_dropped : int, optional
            Number of samples, the first ones of the batch, that have dropout in training; all
            by default.

        Returns
        -------
        Encoding
        """
        size = (z.shape[-2], z.shape[-1])
        n_dropped = z.shape[0] if n_dropped is None else n_dropped
        if torch.is_autocast_enabled(z.device.type):
            # The first convolution would also cast z, but folding half the bytes is faster.
            z = z.to(torch.get_autocast_dtype(z.device.type))
        if self.patch_size > 1:
            bottom, right = (-size[0] % self.patch_size, -size[1] % self.patch_size)
            if bottom or right:
                z = F.pad(z, (0, right, 0, bottom), mode="replicate")
            z = F.pixel_unshuffle(z, self.patch_size)
        embedding = self.time_embedding(t)
        h = self.conv_in(z.contiguous(memory_format=torch.channels_last))
        skips = [h]
        for module in self.down:
            h = module(h, embedding, n_dropped) if isinstance(module, Stage) else module(h)
            skips.append(h)
        h = self.middle_in(h, embedding, n_dropped)
        h = self.middle_out(h, embedding, n_dropped)
        return Encoding(h, tuple(skips), embedding, size, n_dropped)

    def decode(self, encoding: Encoding) -> Tensor:
        """Run the upsampling half: (n, out_channels, H, W) from an encoding."""
        h, skips = encoding.features, list(encoding.skips)
        for module in self.up:
            if isinstance(module, Stage):
                h = torch.cat([h, skips.pop()], dim=1)
                h = module(h, encoding.time_embedding, encoding.n_dropped)
            else:
                # Take the size of the next level from its skip connection: it may be odd.
                h = module(F.interpolate(h, size=skips[-1].shape[-2:], mode="nearest"))
        h = self.conv_out(F.silu(self.norm_out(h)))
        if self.patch_size > 1:
            h = F.pixel_shuffle(h, self.patch_size)
        return h[..., : encoding.size[0], : encoding.size[1]]

    def forward(self, z: Tensor, t: Tensor, n_dropped: int | None = None) -> Tensor:
        """Run the whole U-Net: (n, out_channels, H, W) from (n, in_channels, H, W)."""
        return self.decode(self.encode(z, t, n_dropped))
