"""Label codes: one constant colour a class, and the way back from masks to classes.

A mask y is an image of one colour. Encoding paints the code of a class and jitters every
pixel; decoding measures the distance of a mask to each code. See paper, section 3.1 and
equation 2 (RGB), and the SymmFlow rows of Table 2 (grayscale).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "LABEL_ENCODINGS",
    "EncodedLabelCodes",
    "LabelCodes",
    "PixelReading",
    "count_code_channels",
    "make_label_codes",
]

# The four levels of a channel; 4 ** 3 colours, in lexicographic order.
_RGB_LEVELS = (0, 75, 150, 225)
_N_RGB_CODES = len(_RGB_LEVELS) ** 3
# K classes need K * (K - 1) numbers, and masks of K - 1 channels.
_MAX_SIMPLEX_CODES = 1024
# What an absent class keeps of a mixture weight, in units of 1 / K.
_WEIGHT_FLOOR = 0.005
# Codes are independent where they spread in every direction by this share of the widest one.
_MIN_SPREAD = 0.1


def _rgb_codes(n_classes: int, beta: float) -> tuple[np.ndarray, float]:
    """Spread the classes over the palette: value / 127.5 - 1, jitter beta / 127.5."""
    if n_classes > _N_RGB_CODES:
        raise ValueError(
            f"label_encoding='rgb' has {_N_RGB_CODES} codes, got {n_classes} classes; "
            "use label_encoding='simplex'."
        )
    palette = np.stack(np.meshgrid(*[_RGB_LEVELS] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    chosen = np.floor(np.linspace(0, _N_RGB_CODES - 1, n_classes)).astype(int)
    return palette[chosen] / 127.5 - 1.0, beta / 127.5


def _grayscale_codes(n_classes: int, beta: float) -> tuple[np.ndarray, float]:
    """Even steps from -beta/2 to beta/2, jitter of half a step."""
    if beta <= 0:
        raise ValueError(f"label_encoding='grayscale' needs beta > 0, got {beta!r}.")
    steps = 2.0 * np.arange(n_classes) / (n_classes - 1) - 1.0
    return (beta / 2 * steps)[:, None], beta / 2 / (n_classes - 1)


def _simplex_codes(n_classes: int, beta: float) -> tuple[np.ndarray, float]:
    """Vertices of a regular simplex in K - 1 channels, of unit mean square, jitter as RGB.

    The rows of the Helmert matrix are an orthonormal basis of the vectors that sum to zero;
    the unit vectors seen in this basis are the vertices.
    """
    if n_classes > _MAX_SIMPLEX_CODES:
        raise ValueError(
            f"label_encoding='simplex' has codes for up to {_MAX_SIMPLEX_CODES} classes, got "
            f"{n_classes}."
        )
    size = n_classes - 1
    helmert = np.tril(np.ones((size, n_classes)))
    helmert[np.arange(size), np.arange(1, n_classes)] = -np.arange(1, n_classes)
    helmert /= np.linalg.norm(helmert, axis=1, keepdims=True)
    vertices = helmert.T
    return vertices * math.sqrt(size) / np.linalg.norm(vertices[0]), beta / 127.5


def _pixelwise_distances(masks: Tensor, codes: Tensor) -> Tensor:
    """Mean over pixels of the L2 norm over channels (paper, eq. 2): (n, K).

    Codes are images, (K, C, H, W), or colours, (K, C, 1, 1).
    """
    # One class at a time: (n, K, C, H, W) would not fit for many classes.
    return torch.stack([(masks - code).norm(dim=1).mean(dim=(1, 2)) for code in codes], dim=1)


def _colour_distances(masks: Tensor, codes: Tensor) -> Tensor:
    """Distance of masks to colours (K, C): (n, K)."""
    return _pixelwise_distances(masks, codes[:, :, None, None])


def _mean_distances(masks: Tensor, codes: Tensor) -> Tensor:
    """Distance of the mask's mean to each code: the nearest is the rescaled, rounded mean."""
    # Not cdist: it rounds differently for many rows than for few.
    return (masks.mean(dim=(2, 3))[:, None] - codes).norm(dim=2)


def _soften(weights: Tensor, floor: float) -> Tensor:
    """max(weights, 0), bent into an increasing and positive function that is `floor` at 0."""
    root = torch.sqrt(weights.square() + 4 * floor**2)
    # The same number twice; either side loses its digits where the other one is used.
    return torch.where(weights > 0, (weights + root) / 2, 2 * floor**2 / (root - weights))


def _positive_weights(weights: Tensor) -> Tensor:
    """Make probabilities of mixture weights (n, K), which noise may have made negative."""
    weights = _soften(weights, _WEIGHT_FLOOR / weights.shape[1])
    return weights / weights.sum(dim=1, keepdim=True)


def _mixture_weights(means: Tensor, codes: Tensor) -> Tensor | None:
    """Weights (n, K) of the mixture of codes (K, D) that is nearest to each mean (n, D).

    They sum to 1 and may be negative; None where the codes do not determine them, being
    affinely dependent or close to it.
    """
    offsets = codes - codes.mean(dim=0)
    spread = torch.linalg.svdvals(offsets)[: len(codes) - 1]
    if offsets.shape[1] < len(codes) - 1 or spread[-1] < _MIN_SPREAD * spread[0]:
        return None
    to_weights = torch.linalg.pinv(offsets).T
    # Not a matrix product: it rounds differently for many rows than for few.
    centred = means - codes.mean(dim=0)
    return torch.stack([(centred * row).sum(dim=1) for row in to_weights], dim=1) + 1 / len(codes)


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


@dataclass(frozen=True)
class LabelCodes:
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
    codes: Tensor
    jitter: float

    @property
    def n_classes(self) -> int:
        """Number of classes K."""
        return self.codes.shape[0]

    @property
    def n_channels(self) -> int:
        """Number of mask channels C."""
        return self.codes.shape[1]

    def to(self, device: torch.device | str) -> "LabelCodes":
        """Move the codes to a device."""
        return replace(self, codes=self.codes.to(device))

    def masks(
        self, labels: Tensor, size: tuple[int, int], generator: torch.Generator | None = None
    ) -> Tensor:
        """Paint masks.

        Parameters
        ----------
        labels : Tensor of shape (n,), int64
            Class indices in [0, K).
        size : tuple of int
            Height H and width W.
        generator : torch.Generator, optional
            Source of the jitter; without it the masks are the exact codes.

        Returns
        -------
        Tensor of shape (n, C, H, W)
        """
        masks = self.codes[labels][:, :, None, None].expand(-1, -1, *size)
        if generator is None:
            return masks
        noise = torch.rand(masks.shape, generator=generator, device=masks.device)
        return masks + self.jitter * (noise - 0.5)

    def distances(self, masks: Tensor) -> Tensor:
        """Distance of masks to every code (paper, eq. 2).

        RGB and simplex: mean over pixels of the L2 norm over channels. Grayscale: distance
        of the mask's mean.

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
        """Class probabilities read off masks that estimate E[code | x].

        Where codes are affinely independent (simplex codes, and RGB codes of up to three
        classes) a mask of one colour has unique mixture weights, p = its barycentric
        coordinates, bent softly so that they stay positive. Elsewhere a mean of codes does not
        determine the weights, and p = softmax(-distance / s) with s half the smallest gap
        between codes. The most probable class is the nearest one but for the RGB codes of three
        classes, which are not equally far apart: there it is the one of the largest weight.

        Parameters
        ----------
        masks : Tensor of shape (n, C, H, W)
            Masks as the field returns them at t = 0.

        Returns
        -------
        Tensor of shape (n, K)
            Rows sum to 1.
        """
        codes = self.codes.to(masks.dtype)
        gaps = torch.pdist(codes)
        if self.is_regular:
            # For a regular simplex with edge a the weights are affine in the squared
            # distances: w_c - 1/K = (mean d^2 - d_c^2) / a^2.
            squared = self.distances(masks).square()
            offsets = (squared.mean(dim=1, keepdim=True) - squared) / gaps[0].square()
            return _positive_weights(offsets + 1 / self.n_classes)
        weights = _mixture_weights(masks.mean(dim=(2, 3)), codes)
        if weights is not None:
            return _positive_weights(weights)
        return torch.softmax(-self.distances(masks) / (gaps.min() / 2), dim=1)

    @property
    def is_regular(self) -> bool:
        """Whether all codes are equally far apart."""
        gaps = torch.pdist(self.codes.double())
        return bool(torch.allclose(gaps, gaps[:1]))

    def mean_codes(self, probabilities: Tensor) -> Tensor:
        """E[code | x] = sum_c p_c code_c: (n, C) from (n, K)."""
        return probabilities @ self.codes.to(probabilities.dtype)


@dataclass(frozen=True)
class EncodedLabelCodes:
    """Class masks as an autoencoder encodes them (paper, section 3.3).

    Attributes
    ----------
    codes : Tensor of shape (K, C, h, w)
        Latent of each class's mask, float32.
    """

    codes: Tensor

    @property
    def n_classes(self) -> int:
        """Number of classes K."""
        return self.codes.shape[0]

    @property
    def n_channels(self) -> int:
        """Number of channels C of the latents."""
        return self.codes.shape[1]

    def to(self, device: torch.device | str) -> "EncodedLabelCodes":
        """Move the codes to a device."""
        return EncodedLabelCodes(self.codes.to(device))

    def masks(
        self, labels: Tensor, size: tuple[int, int], generator: torch.Generator | None = None
    ) -> Tensor:
        """Latents of the masks of classes, (n, C, h, w): always the same, of one size."""
        return self.codes[labels]

    def distances(self, masks: Tensor) -> Tensor:
        """Mean over positions of the L2 norm over channels: (n, K) from (n, C, h, w)."""
        return _pixelwise_distances(masks, self.codes.to(masks.dtype))

    def probabilities(self, masks: Tensor) -> Tensor:
        """Class probabilities read off masks that estimate E[code | x]: (n, K).

        Weights of the mixture of encoded masks that is nearest to the predicted one, bent softly
        so that they stay positive. Where the encoded masks do not determine them,
        softmax(-distance / s) with s half the smallest gap between two of them. The most probable
        class is that of the largest weight, which need not be the nearest.
        """
        weights = _mixture_weights(masks.flatten(1), self.codes.to(masks.dtype).flatten(1))
        if weights is not None:
            return _positive_weights(weights)
        gaps = self.distances(self.codes.to(masks.dtype))
        apart = ~torch.eye(len(gaps), dtype=torch.bool, device=gaps.device)
        return torch.softmax(-self.distances(masks) / (gaps[apart].min() / 2), dim=1)


@dataclass(frozen=True)
class PixelReading:
    """How encoded masks are read as the paper does: decoded to colours, distances there (eq. 2).

    Attributes
    ----------
    palette : LabelCodes
        Colours of the classes.
    decode : callable
        Makes masks (n, 3, H, W) in about [-1, 1] of latents (n, C, h, w).
    """

    palette: LabelCodes
    decode: Callable[[Tensor], Tensor]


def count_code_channels(encoding: str, n_classes: int) -> int:
    """Count the channels of a family's masks without making its codes."""
    return _ENCODINGS[encoding].n_channels(n_classes)


def make_label_codes(encoding: str, n_classes: int, beta: float) -> LabelCodes:
    """Make the codes of a number of classes.

    Parameters
    ----------
    encoding : {"rgb", "grayscale", "simplex"}
        "rgb": colours of the palette {0, 75, 150, 225}^3 (paper, section 3.1), up to 64
        classes. "grayscale": even steps in one channel (SymmFlow). "simplex": vertices of
        a regular simplex in K - 1 channels, up to 1,024 classes.
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
    return LabelCodes(encoding, torch.as_tensor(codes, dtype=torch.float32), float(jitter))
