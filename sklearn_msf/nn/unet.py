"""The velocity network: a time-conditioned U-Net over images or volumes of any size.

The layout is that of ADM (Dhariwal and Nichol 2021): residual blocks with GroupNorm and SiLU,
scale and shift by the time embedding, self-attention at chosen levels, zero-initialised outputs.
The paper's code adds the time embedding instead, and takes t as it is:
``time_modulation="shift"`` and ``time_scale=1``. Three things are new here:

- pixel-unshuffle patching: ``patch_size=2`` folds 2x2 pixels into channels at the input and
  unfolds them at the output, so that every level works on a quarter of the positions, or on an
  eighth of those of volumes;
- the two halves of the U-Net can be run separately: :meth:`UNet.encode` ends with the middle
  block, whose features are enough to classify. :meth:`UNet.decode` continues to the output, for
  only those samples of the batch that need it.

Shapes are those of images; volumes have an axis more, (n, C, D, H, W).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sklearn_msf.nn.convolution import CONVOLUTIONS, INPUT_CONVOLUTIONS, convolve_volumes
from sklearn_msf.nn.dropout import Dropout
from sklearn_msf.nn.group_norm import modulated_group_norm
from sklearn_msf.nn.patches import count_positions, fold_patches, unfold_patches
from sklearn_msf.runtime.tensor_axes import align_axes

__all__ = [
    "TIME_MODULATIONS",
    "UPSAMPLINGS",
    "Encoding",
    "UNet",
    "count_blocks_up",
    "count_groups",
]

UPSAMPLINGS = ("adm", "light")
# How the time embedding acts in a residual block, and the numbers of it for each channel.
TIME_MODULATIONS = {"scale_shift": 2, "shift": 1}


def count_groups(channels: int) -> int:
    """Return the largest power of two, up to 32, that divides a number of channels."""
    return math.gcd(32, channels)


class GroupNorm(nn.Module):
    """GroupNorm over as many groups as :func:`count_groups` says.

    Parameters
    ----------
    channels : int
        Number of channels C.
    least : int, default=1
        Smallest number of channels in a group, a divisor of C.
    """

    def __init__(self, channels: int, least: int = 1):
        super().__init__()
        self.n_groups = count_groups(channels // least)
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
    scale : float, default=1000.0
        Factor on t in [0, 1]. 1000 gives the features the range that diffusion models with a
        thousand steps use.
    """

    frequencies: Tensor

    def __init__(self, channels: int, width: int, scale: float = 1000.0):
        super().__init__()
        half = channels // 2
        frequencies = scale * torch.exp(-math.log(10_000.0) * torch.arange(half) / half)
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
    """Two 3x3 convolutions, and between them the time embedding.

    With "scale_shift" the embedding scales and shifts what the second norm returns; with "shift"
    it is added to what that norm gets.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        time_width: int,
        dropout: float,
        time_modulation: str = "scale_shift",
        n_spatial_dims: int = 2,
    ):
        super().__init__()
        convolution = CONVOLUTIONS[n_spatial_dims]
        self.time_modulation = time_modulation
        self.norm_in = GroupNorm(in_channels)
        self.conv_in = convolution(in_channels, out_channels, 3, padding=1)
        self.modulation = nn.Linear(time_width, TIME_MODULATIONS[time_modulation] * out_channels)
        # A norm of single channels would remove all that is added to them.
        self.norm_out = GroupNorm(out_channels, least=2 if time_modulation == "shift" else 1)
        self.dropout = Dropout(dropout)
        self.conv_out = _zeroed(convolution(out_channels, out_channels, 3, padding=1))
        self.shortcut = (
            nn.Identity()
            if in_channels == out_channels
            else convolution(in_channels, out_channels, 1)
        )

    def forward(self, h: Tensor, time_embedding: Tensor, n_dropped: int | None = None) -> Tensor:
        """Map (n, in_channels, H, W) to (n, out_channels, H, W); see :class:`Encoding`."""
        r = self.conv_in(_silu(self.norm_in(h)))
        modulation = self.modulation(F.silu(time_embedding))
        if self.time_modulation == "shift":
            r = self.norm_out(r + align_axes(modulation, r))
        else:
            r = self.norm_out(r, *modulation.chunk(2, dim=1))
        r = self.conv_out(self.dropout(_silu(r), n_dropped))
        return self.shortcut(h) + r


class SelfAttention(nn.Module):
    """Self-attention over the positions of an image, with a residual connection.

    Parameters
    ----------
    channels : int
        Channels in and out.
    head_channels : int, default=64
        Channels of one attention head.
    n_spatial_dims : {2, 3}, default=2
        2 for images, 3 for volumes.
    """

    def __init__(self, channels: int, head_channels: int = 64, n_spatial_dims: int = 2):
        super().__init__()
        convolution = CONVOLUTIONS[n_spatial_dims]
        wanted = max(1, channels // head_channels)
        self.n_heads = max(n for n in range(1, wanted + 1) if channels % n == 0)
        self.norm = GroupNorm(channels)
        self.query_key_value = convolution(channels, 3 * channels, 1)
        self.out = _zeroed(convolution(channels, channels, 1))

    def forward(self, h: Tensor) -> Tensor:
        """Attend over H * W positions of (n, channels, H, W)."""
        n, channels, *size = h.shape
        # Put positions before channels, the memory order of channels_last, to avoid copies.
        qkv = self.query_key_value(self.norm(h)).movedim(1, -1)
        qkv = qkv.reshape(n, math.prod(size), 3, self.n_heads, channels // self.n_heads)
        attended = _attend(*qkv.permute(2, 0, 3, 1, 4).unbind())
        attended = attended.transpose(1, 2).reshape(n, *size, channels)
        return h + self.out(attended.movedim(-1, 1).to(h.dtype))


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
        time_modulation: str,
        attention: bool,
        n_spatial_dims: int = 2,
    ):
        super().__init__()
        self.block = ResidualBlock(
            in_channels, out_channels, time_width, dropout, time_modulation, n_spatial_dims
        )
        self.attention = (
            SelfAttention(out_channels, n_spatial_dims=n_spatial_dims)
            if attention
            else nn.Identity()
        )

    def forward(self, h: Tensor, time_embedding: Tensor, n_dropped: int | None = None) -> Tensor:
        """Map (n, in_channels, H, W) to (n, out_channels, H, W); see :class:`Encoding`."""
        return self.attention(self.block(h, time_embedding, n_dropped))


class Downsample(nn.Module):
    """3x3 convolution that halves the size, rounding up.

    Parameters
    ----------
    channels : int
        Channels in and out.
    n_spatial_dims : {2, 3}, default=2
        2 for images, 3 for volumes.
    """

    def __init__(self, channels: int, n_spatial_dims: int = 2):
        super().__init__()
        convolution = CONVOLUTIONS[n_spatial_dims](channels, channels, 3)
        self.weight, self.bias = convolution.weight, convolution.bias

    def forward(self, h: Tensor) -> Tensor:
        """Map (n, C, H, W) to (n, C, ceil(H / 2), ceil(W / 2))."""
        if h.ndim == 5:
            return convolve_volumes(h, self.weight, self.bias, stride=2, padding=1)
        if h.shape[-1] > 1:
            return F.conv2d(h, self.weight, self.bias, stride=2, padding=1)
        # For images one pixel wide, oneDNN leaves parts of the bfloat16 weight gradient of a
        # strided convolution unwritten (seen in torch 2.13). A convolution with stride 1, of
        # which every second row is kept, gives the same result.
        return F.conv2d(h, self.weight, self.bias, padding=1)[:, :, ::2]


def count_blocks_up(upsampling: str, n_blocks: int) -> int:
    """Count the residual blocks of a level in the upsampling half, see :class:`UNet`."""
    return 1 if upsampling == "light" else n_blocks + 1


class NearestUpsample(nn.Module):
    """Repetition of each position, then a 3x3 convolution at the larger size (ADM).

    Parameters
    ----------
    channels : int
        Channels in and out.
    n_spatial_dims : {2, 3}, default=2
        2 for images, 3 for volumes.
    """

    def __init__(self, channels: int, n_spatial_dims: int = 2):
        super().__init__()
        convolution = CONVOLUTIONS[n_spatial_dims](channels, channels, 3)
        self.weight, self.bias = convolution.weight, convolution.bias

    def forward(self, h: Tensor, size: Sequence[int]) -> Tensor:
        """Map (n, C, h, w) to (n, C, *size)."""
        h = F.interpolate(h, size=tuple(size), mode="nearest")
        if h.ndim == 5:
            return convolve_volumes(h, self.weight, self.bias, padding=1)
        return F.conv2d(h, self.weight, self.bias, padding=1)


class SubpixelUpsample(nn.Module):
    """1x1 convolution at the smaller size, whose channels become squares of 2x2 positions.

    Parameters
    ----------
    in_channels, out_channels : int
        Channels in and out.
    n_spatial_dims : {2, 3}, default=2
        2 for images, 3 for volumes.
    """

    def __init__(self, in_channels: int, out_channels: int, n_spatial_dims: int = 2):
        super().__init__()
        self.to_patches = CONVOLUTIONS[n_spatial_dims](
            in_channels, out_channels * 2**n_spatial_dims, 1
        )

    def forward(self, h: Tensor, size: Sequence[int]) -> Tensor:
        """Map (n, in_channels, h, w) to (n, out_channels, *size), cropped where sizes are odd."""
        h = unfold_patches(self.to_patches(h), 2)
        return h[(slice(None), slice(None), *map(slice, size))]


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
        Height and width of the images in pixels; depth, height and width of volumes.
    n_dropped : int
        Number of samples, the first ones of the batch, that have dropout in training.
    """

    features: Tensor
    skips: tuple[Tensor, ...]
    time_embedding: Tensor
    size: tuple[int, ...]
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
        Residual blocks per level in the downsampling half.
    attention_levels : sequence of int, default=(1,)
        Levels with self-attention, counted from 0 at full resolution.
    patch_size : int, default=1
        Side of the square, or cube, of pixels folded into channels; 1 folds nothing. Images whose
        size is not a multiple of it are padded by repeating the border, and the output is cropped.
    dropout : float, default=0.0
        Dropout inside the residual blocks.
    time_scale : float, default=1000.0
        Factor on t before the sinusoidal features.
    time_modulation : {"scale_shift", "shift"}, default="scale_shift"
        How the time embedding acts, see :class:`ResidualBlock`.
    upsampling : {"adm", "light"}, default="adm"
        The upsampling half. "adm": `n_blocks` + 1 residual blocks per level, each with a skip
        connection, and :class:`NearestUpsample` between levels. "light": one residual block per
        level, with the last skip connection of the level, and :class:`SubpixelUpsample`.
    n_spatial_dims : {2, 3}, default=2
        2 for images, 3 for volumes, over which all convolutions are three-dimensional.
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
        patch_size: int = 1,
        dropout: float = 0.0,
        time_scale: float = 1000.0,
        time_modulation: str = "scale_shift",
        upsampling: str = "adm",
        n_spatial_dims: int = 2,
    ):
        super().__init__()
        convolution = CONVOLUTIONS[n_spatial_dims]
        n_folded = patch_size**n_spatial_dims
        self.patch_size = patch_size
        time_width = 4 * channels
        widths = [channels * multiple for multiple in channel_mult]

        def stage(n_in: int, n_out: int, *, attention: bool) -> Stage:
            return Stage(
                n_in,
                n_out,
                time_width=time_width,
                dropout=dropout,
                time_modulation=time_modulation,
                attention=attention,
                n_spatial_dims=n_spatial_dims,
            )

        self.time_embedding = TimeEmbedding(channels, time_width, time_scale)
        first = INPUT_CONVOLUTIONS[n_spatial_dims]
        self.conv_in = first(in_channels * n_folded, widths[0], 3, padding=1)

        self.down = nn.ModuleList()
        # Widths of the outputs of `conv_in` and of the modules of `down`.
        width, skip_widths = widths[0], [widths[0]]
        ends_of_levels = []
        for level, level_width in enumerate(widths):
            for _ in range(n_blocks):
                self.down.append(stage(width, level_width, attention=level in attention_levels))
                width = level_width
                skip_widths.append(width)
            ends_of_levels.append(len(self.down))
            if level < len(widths) - 1:
                self.down.append(Downsample(width, n_spatial_dims))
                skip_widths.append(width)
        light = upsampling == "light"
        # Which of these outputs the upsampling half gets.
        self._skipped = frozenset(ends_of_levels if light else range(len(skip_widths)))

        self.middle_in = stage(width, width, attention=True)
        self.middle_out = ResidualBlock(
            width, width, time_width, dropout, time_modulation, n_spatial_dims
        )
        self.feature_channels = width

        self.up = nn.ModuleList()
        skip_widths = [skip_widths[i] for i in sorted(self._skipped)]
        for level, level_width in reversed(list(enumerate(widths))):
            for _ in range(count_blocks_up(upsampling, n_blocks)):
                n_in = width + skip_widths.pop()
                self.up.append(stage(n_in, level_width, attention=level in attention_levels))
                width = level_width
            if level > 0 and light:
                self.up.append(SubpixelUpsample(width, widths[level - 1], n_spatial_dims))
                width = widths[level - 1]
            elif level > 0:
                self.up.append(NearestUpsample(width, n_spatial_dims))

        self.norm_out = GroupNorm(width)
        self.conv_out = _zeroed(convolution(width, out_channels * n_folded, 3, padding=1))

    def count_features(self, size: Sequence[int]) -> int:
        """Count the numbers that the first level makes of one image of this size."""
        return self.conv_in.out_channels * count_positions(size, self.patch_size)

    def encode(
        self,
        z: Tensor,
        t: Tensor,
        n_dropped: int | None = None,
        constant: Tensor | None = None,
    ) -> Encoding:
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
        constant : Tensor of shape (n, C), optional
            Values of the last C channels, which z then lacks, where all pixels have the same ones.

        Returns
        -------
        Encoding
        """
        size = tuple(z.shape[2:])
        n_dropped = z.shape[0] if n_dropped is None else n_dropped
        if torch.is_autocast_enabled(z.device.type):
            # The first convolution would also cast z, but folding half the bytes is faster.
            z = z.to(torch.get_autocast_dtype(z.device.type))
        if self.patch_size > 1:
            missing = [-side % self.patch_size for side in size]
            if any(missing):
                # The last axis comes first.
                z = F.pad(z, [n for m in reversed(missing) for n in (0, m)], mode="replicate")
            z = fold_patches(z, self.patch_size)
        embedding = self.time_embedding(t)
        h = self.conv_in(z, constant)
        skips = [h] if 0 in self._skipped else []
        for i, module in enumerate(self.down, start=1):
            h = module(h, embedding, n_dropped) if isinstance(module, Stage) else module(h)
            if i in self._skipped:
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
                h = module(h, skips[-1].shape[2:])
        h = self.conv_out(F.silu(self.norm_out(h)))
        if self.patch_size > 1:
            h = unfold_patches(h, self.patch_size)
        return h[(slice(None), slice(None), *map(slice, encoding.size))]

    def forward(self, z: Tensor, t: Tensor, n_dropped: int | None = None) -> Tensor:
        """Run the whole U-Net: (n, out_channels, H, W) from (n, in_channels, H, W)."""
        return self.decode(self.encode(z, t, n_dropped))
