"""Label codes: one colour per class, and the conversion from classes to masks and back.

A mask y is an image of one colour. Encoding fills the mask with the code of a class and adds
jitter to every pixel; decoding measures the distance of a mask to each code. See paper, section
3.1 and equation 2 (RGB), and the SymmFlow rows of Table 2 (grayscale).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from sklearn_msf.runtime.tensor_axes import align_axes, spatial_axes

__all__ = [
    "LABEL_ENCODINGS",
    "N_RGB_CODES",
    "CodeReader",
    "EncodedLabelCodes",
    "LabelCodes",
    "MaskReader",
    "PixelReader",
    "count_code_channels",
    "make_label_codes",
]

# The four levels of a channel: the palette has 4 ** 3 colours, in lexicographic order.
_RGB_LEVELS = (0, 75, 150, 225)
N_RGB_CODES = len(_RGB_LEVELS) ** 3
# Simplex codes of K classes take K * (K - 1) numbers, and their masks K - 1 channels. More levels
# of gray could not be told apart.
_MAX_CODES = 1024
# Softened value of a mixture weight of 0, in units of 1 / K.
_WEIGHT_FLOOR = 0.005
# Codes count as affinely independent if their spread in every direction is at least this
# fraction of the widest one.
_MIN_SPREAD = 0.1


def _rgb_codes(n_classes: int, beta: float) -> tuple[np.ndarray, float]:
    """Spread the classes over the palette: value / 127.5 - 1, jitter beta / 127.5."""
    if n_classes > N_RGB_CODES:
        raise ValueError(
            f"label_encoding='rgb' has {N_RGB_CODES} codes, got {n_classes} classes; "
            "use label_encoding='simplex' in flow_params."
        )
    palette = np.stack(np.meshgrid(*[_RGB_LEVELS] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    chosen = np.floor(np.linspace(0, N_RGB_CODES - 1, n_classes)).astype(int)
    return palette[chosen] / 127.5 - 1.0, beta / 127.5


def _grayscale_codes(n_classes: int, beta: float) -> tuple[np.ndarray, float]:
    """Space the codes evenly from -beta/2 to beta/2, with a jitter of half a step."""
    if beta <= 0:
        raise ValueError(f"label_encoding='grayscale' needs beta > 0, got {beta!r}.")
    _check_n_codes("grayscale", n_classes)
    steps = 2.0 * np.arange(n_classes) / (n_classes - 1) - 1.0
    return (beta / 2 * steps)[:, None], beta / 2 / (n_classes - 1)


def _check_n_codes(encoding: str, n_classes: int) -> None:
    if n_classes > _MAX_CODES:
        raise ValueError(
            f"label_encoding={encoding!r} has codes for up to {_MAX_CODES:,} classes, got "
            f"{n_classes:,}: y looks like numbers to predict rather than classes to tell apart."
        )


def _simplex_codes(n_classes: int, beta: float) -> tuple[np.ndarray, float]:
    """Make the vertices of a regular simplex in K - 1 channels, with the jitter of RGB codes.

    The rows of the Helmert matrix are an orthonormal basis of the vectors that sum to zero. The
    coordinates of the unit vectors in this basis, scaled to a mean square of 1, are the vertices.
    """
    _check_n_codes("simplex", n_classes)
    size = n_classes - 1
    helmert = np.tril(np.ones((size, n_classes)))
    helmert[np.arange(size), np.arange(1, n_classes)] = -np.arange(1, n_classes)
    helmert /= np.linalg.norm(helmert, axis=1, keepdims=True)
    vertices = helmert.T
    return vertices * math.sqrt(size) / np.linalg.norm(vertices[0]), beta / 127.5


def _pixelwise_distances(masks: Tensor, codes: Tensor) -> Tensor:
    """Compute the mean over pixels of the L2 norm over channels (paper, eq. 2): (n, K).

    Codes are images, (K, C, H, W), or colours, (K, C, 1, 1).
    """
    # One class at a time: for many classes (n, K, C, H, W) would not fit into memory.
    pixels = tuple(range(1, masks.ndim - 1))
    return torch.stack([(masks - code).norm(dim=1).mean(dim=pixels) for code in codes], dim=1)


def _colour_distances(masks: Tensor, codes: Tensor) -> Tensor:
    """Compute the distances of masks to colours (K, C): (n, K)."""
    return _pixelwise_distances(masks, align_axes(codes, masks))


def _mean_distances(masks: Tensor, codes: Tensor) -> Tensor:
    """Compute the distances of the mean of each mask to the codes: (n, K).

    The nearest code is the one that rescaling and rounding the mean would give.
    """
    # Do not use cdist: its rounding depends on the number of masks.
    return (masks.mean(dim=spatial_axes(masks))[:, None] - codes).norm(dim=2)


def _soften(weights: Tensor, floor: float) -> Tensor:
    """Replace max(weights, 0) by a smooth, increasing, positive function that is `floor` at 0."""
    root = torch.sqrt(weights.square() + 4 * floor**2)
    # Both formulas are the same function, but each loses digits where the other one is used.
    return torch.where(weights > 0, (weights + root) / 2, 2 * floor**2 / (root - weights))


def _positive_weights(weights: Tensor) -> Tensor:
    """Turn mixture weights (n, K), which may be negative due to noise, into probabilities."""
    weights = _soften(weights, _WEIGHT_FLOOR / weights.shape[1])
    return weights / weights.sum(dim=1, keepdim=True)


@dataclass(frozen=True, eq=False)
class _Mixture:
    """How the weights of a mixture of codes follow from the mixture."""

    centre: Tensor
    to_weights: Tensor

    def weights(self, means: Tensor) -> Tensor:
        """Compute the weights (n, K) of the mixture of codes nearest to each mean (n, D).

        The weights sum to 1 and may be negative.
        """
        # Do not use a matrix product: its rounding depends on the number of means.
        centred = means - self.centre
        weights = [(centred * row).sum(dim=1) for row in self.to_weights]
        return torch.stack(weights, dim=1) + 1 / len(self.to_weights)


def _mixture(codes: Tensor) -> _Mixture | None:
    """Prepare the weights of mixtures of codes (K, D).

    The result is None if the codes are affinely dependent or close to it, because then they do not
    determine the weights.
    """
    offsets = codes - codes.mean(dim=0)
    spread = torch.linalg.svdvals(offsets)[: len(codes) - 1]
    if offsets.shape[1] < len(codes) - 1 or spread[-1] < _MIN_SPREAD * spread[0]:
        return None
    return _Mixture(codes.mean(dim=0), torch.linalg.pinv(offsets).T)


def _smallest_gap(codes: Tensor) -> Tensor:
    """Compute the smallest distance between two codes (K, C)."""
    if codes.shape[1] > 1:
        return torch.pdist(codes).min()
    # Of numbers the nearest two are neighbours: K^2 / 2 pairs need not be compared.
    return codes[:, 0].sort().values.diff().min()


@dataclass(frozen=True)
class _Encoding:
    n_channels: Callable[[int], int]
    codes: Callable[[int, float], tuple[np.ndarray, float]]
    distances: Callable[[Tensor, Tensor], Tensor]


_ENCODINGS = {
    "rgb": _Encoding(lambda n_classes: 3, _rgb_codes, _colour_distances),
    "grayscale": _Encoding(lambda n_classes: 1, _grayscale_codes, _mean_distances),
    "simplex": _Encoding(lambda n_classes: n_classes - 1, _simplex_codes, _colour_distances),
}
LABEL_ENCODINGS = tuple(_ENCODINGS)


@dataclass(frozen=True, eq=False)
class _Codes:
    """What all codes have: one for each of K classes, with C channels."""

    codes: Tensor

    @property
    def n_classes(self) -> int:
        """Number of classes K."""
        return self.codes.shape[0]

    @property
    def n_channels(self) -> int:
        """Number of mask channels C."""
        return self.codes.shape[1]

    @property
    def n_jittered(self) -> int:
        """Number of channels that have a jitter."""
        return 0

    def jittered(self, masks: Tensor, noise: Tensor) -> Tensor:
        """Add the jitter to exact masks, (n, C, H, W), from normal noise, (n, n_jittered, H, W)."""
        return masks

    def to(self, device: torch.device | str) -> Self:
        """Move the codes to a device."""
        return replace(self, codes=self.codes.to(device))


@dataclass(frozen=True, eq=False)
class LabelCodes(_Codes):
    """The codes of K classes.

    Attributes
    ----------
    encoding : {"rgb", "grayscale", "simplex"}
        Family of the codes.
    codes : Tensor of shape (K, C)
        Code of each class, float32.
    jitter : float
        Width of the uniform noise on every pixel and channel of a mask.
    """

    encoding: str
    jitter: float

    def masks(
        self, labels: Tensor, size: Sequence[int], generator: torch.Generator | None = None
    ) -> Tensor:
        """Make masks of classes.

        Parameters
        ----------
        labels : Tensor of shape (n,), int64
            Class indices in [0, K).
        size : sequence of int
            Height H and width W; depth D, height and width of volumes.
        generator : torch.Generator, optional
            Source of the jitter; without it every pixel is exactly the code.

        Returns
        -------
        Tensor of shape (n, C, H, W)
        """
        codes = self.codes[labels].view(labels.shape[0], self.n_channels, *[1] * len(size))
        masks = codes.expand(-1, -1, *size)
        if generator is None:
            return masks
        noise = torch.rand(masks.shape, generator=generator, device=masks.device)
        return masks + self.jitter * (noise - 0.5)

    @property
    def n_jittered(self) -> int:
        """Number of channels that have a jitter: all, or none."""
        return self.n_channels if self.jitter else 0

    def jittered(self, masks: Tensor, noise: Tensor) -> Tensor:
        """Add the jitter to exact masks, (n, C, H, W), from normal noise, (n, n_jittered, H, W)."""
        if not self.jitter:
            return masks
        # Normal noise is uniform in its distribution function, which is (1 + erf) / 2.
        return masks + self.jitter / 2 * torch.erf(noise / math.sqrt(2))

    def distances(self, masks: Tensor) -> Tensor:
        """Compute the distances of masks to every code (paper, eq. 2).

        For RGB and simplex codes it is the mean over pixels of the L2 norm over channels, for
        grayscale codes the distance of the mean of the mask.

        Parameters
        ----------
        masks : Tensor of shape (n, C, H, W)
            Masks as the field returns them at t = 0.

        Returns
        -------
        Tensor of shape (n, K)
        """
        return _ENCODINGS[self.encoding].distances(masks, self.codes.to(masks.dtype))

    def probabilities(self, masks: Tensor) -> Tensor:
        """Compute class probabilities from masks that estimate E[code | x].

        If the codes are affinely independent (simplex codes, RGB codes of up to three classes,
        grayscale codes of two), a mask of one colour has unique mixture weights. Then p is its
        barycentric coordinates, softened so that they stay positive. Otherwise a mean of codes
        does not determine the weights, and p = softmax(-distance / s), where s is half the
        smallest distance between two codes. The most probable class is the nearest one, except
        for the RGB codes of three classes, which are not equally far apart: there it is the
        class with the largest weight.

        Parameters
        ----------
        masks : Tensor of shape (n, C, H, W)
            Masks as the field returns them at t = 0.

        Returns
        -------
        Tensor of shape (n, K)
            Rows sum to 1.
        """
        return self.decoder(masks.dtype)(masks)

    def decoder(self, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
        """Return :meth:`probabilities` for masks of a dtype, with all that the codes determine."""
        codes = self.codes.to(dtype)
        if self.is_regular:
            squared_edge = torch.pdist(codes[:2]).square()

            def from_squared_distances(masks: Tensor) -> Tensor:
                # For a regular simplex with edge a the weights are affine in the squared
                # distances: w_c - 1/K = (mean d^2 - d_c^2) / a^2.
                squared = self.distances(masks).square()
                offsets = (squared.mean(dim=1, keepdim=True) - squared) / squared_edge
                return _positive_weights(offsets + 1 / self.n_classes)

            return from_squared_distances
        mixture = _mixture(codes)
        if mixture is not None:
            return lambda masks: _positive_weights(
                mixture.weights(masks.mean(dim=spatial_axes(masks)))
            )
        scale = _smallest_gap(codes) / 2
        return lambda masks: torch.softmax(-self.distances(masks) / scale, dim=1)

    @property
    def is_regular(self) -> bool:
        """Whether all codes are equally far apart."""
        return self.encoding == "simplex" or self.n_classes == 2

    def mean_codes(self, probabilities: Tensor) -> Tensor:
        """Compute E[code | x] = sum_c p_c code_c: (n, C) from (n, K)."""
        # Do not use a matrix product: it rounds a row by its place among the others.
        channels = self.codes.to(probabilities.dtype).T
        return torch.stack([(probabilities * codes).sum(dim=1) for codes in channels], dim=1)


@dataclass(frozen=True, eq=False)
class EncodedLabelCodes(_Codes):
    """Class masks as an autoencoder encodes them (paper, section 3.2).

    Attributes
    ----------
    codes : Tensor of shape (K, C, h, w)
        Latent of each class's mask, float32.
    """

    def masks(
        self, labels: Tensor, size: Sequence[int], generator: torch.Generator | None = None
    ) -> Tensor:
        """Return the encoded masks of classes, (n, C, h, w), which have one size and no jitter."""
        return self.codes[labels]

    def distances(self, masks: Tensor) -> Tensor:
        """Compute the mean over positions of the L2 norm over channels: (n, K)."""
        return _pixelwise_distances(masks, self.codes.to(masks.dtype))

    def probabilities(self, masks: Tensor) -> Tensor:
        """Compute class probabilities from masks that estimate E[code | x]: (n, K).

        They are the weights of the mixture of encoded masks that is nearest to the predicted
        mask, softened so that they stay positive. If the encoded masks do not determine the
        weights, they are softmax(-distance / s), where s is half the smallest distance between
        two encoded masks. The most probable class has the largest weight and need not be the
        nearest one.
        """
        return self.decoder(masks.dtype)(masks)

    def decoder(self, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
        """Return :meth:`probabilities` for masks of a dtype, with all that the codes determine."""
        codes = self.codes.to(dtype)
        mixture = _mixture(codes.flatten(1))
        if mixture is not None:
            return lambda masks: _positive_weights(mixture.weights(masks.flatten(1)))
        gaps = self.distances(codes)
        apart = ~torch.eye(len(gaps), dtype=torch.bool, device=gaps.device)
        scale = gaps[apart].min() / 2
        return lambda masks: torch.softmax(-self.distances(masks) / scale, dim=1)


class MaskReader(Protocol):
    """Reads classes from predicted masks, which are float64.

    Attributes
    ----------
    reads_padding : bool
        Whether the rows that pad a batch are read too. Otherwise the size of the batch does not
        matter.
    """

    reads_padding: ClassVar[bool]

    def prepare(self, masks: Tensor, n_rows: int) -> Tensor:
        """Make the masks ready to be read on the CPU; only the first `n_rows` are needed."""

    def probabilities(self, masks: Tensor) -> Tensor:
        """Compute class probabilities (n, K) of prepared masks."""

    def distances(self, masks: Tensor) -> Tensor:
        """Compute the distances (n, K) of prepared masks to every code."""


@dataclass(frozen=True, eq=False)
class CodeReader:
    """Compares masks with the codes of the classes.

    Attributes
    ----------
    codes : LabelCodes or EncodedLabelCodes
        On the CPU.
    """

    reads_padding: ClassVar[bool] = True

    codes: LabelCodes | EncodedLabelCodes

    @cached_property
    def _decoder(self) -> Callable[[Tensor], Tensor]:
        return self.codes.decoder(torch.float64)

    def prepare(self, masks: Tensor, n_rows: int) -> Tensor:
        """Return the masks as they are."""
        return masks

    def probabilities(self, masks: Tensor) -> Tensor:
        """Compute class probabilities (n, K)."""
        return self._decoder(masks)

    def distances(self, masks: Tensor) -> Tensor:
        """Compute the distances (n, K) to every code."""
        return self.codes.distances(masks)


@dataclass(frozen=True, eq=False)
class PixelReader(CodeReader):
    """Decodes encoded masks to colours and compares them with the palette (paper, eq. 2).

    Attributes
    ----------
    codes : LabelCodes
        The palette, the colours of the classes, on the CPU.
    decode : callable
        Decodes latents (n, C, h, w) to masks (n, 3, H, W) in about [-1, 1].
    """

    reads_padding: ClassVar[bool] = False

    decode: Callable[[Tensor], Tensor]

    def prepare(self, masks: Tensor, n_rows: int) -> Tensor:
        """Decode only the masks that are needed, because decoding is slow."""
        return self.decode(masks[:n_rows])


def count_code_channels(encoding: str, n_classes: int) -> int:
    """Count the channels of the masks of an encoding without making its codes."""
    return _ENCODINGS[encoding].n_channels(n_classes)


def make_label_codes(encoding: str, n_classes: int, beta: float) -> LabelCodes:
    """Make the codes of `n_classes` classes.

    Parameters
    ----------
    encoding : {"rgb", "grayscale", "simplex"}
        "rgb": colours of the palette {0, 75, 150, 225}^3 (paper, section 3.1), up to 64
        classes. "grayscale": even steps in one channel (SymmFlow), up to 1,024 classes.
        "simplex": vertices of a regular simplex in K - 1 channels, up to 1,024 classes.
    n_classes : int
        Number of classes K, at least 2.
    beta : float
        Width of the jitter (RGB and simplex, in units of 1 / 127.5) or of the whole code
        range (grayscale).

    Returns
    -------
    LabelCodes
    """
    codes, jitter = _ENCODINGS[encoding].codes(n_classes, beta)
    table = torch.as_tensor(codes, dtype=torch.float32)
    return LabelCodes(table, encoding=encoding, jitter=float(jitter))
