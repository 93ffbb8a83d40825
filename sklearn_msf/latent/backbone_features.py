"""Features of a backbone as channels of the field: standardised, reduced, on the latent's grid.

Each channel of the backbone's maps is standardised on the training images. Then the maps are
rotated to their principal components, and the last ones are left out which together hold less than
1 % of the variance. Rotation changes neither the noise of the path nor the loss, which treat all
directions alike, so nothing but that 1 % is lost. If no component can be left out, the channels
stay as they are.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from sklearn_msf.data.images import ImageFormat
from sklearn_msf.data.on_demand import ImagesOnDemand
from sklearn_msf.exceptions import BackboneError
from sklearn_msf.latent.autoencoder_latents import ENCODED_AT_ONCE, measured_rows, prepare_images
from sklearn_msf.latent.backbone import ImageBackbone
from sklearn_msf.runtime.batching import in_batches
from sklearn_msf.runtime.device import arithmetic

__all__ = ["BackboneFeatures", "learn_features", "principal_components"]

# Part of the variance that the principal components keep.
_KEPT_VARIANCE = 0.99


@dataclass(frozen=True, eq=False)
class BackboneFeatures:
    """Maps of a backbone, converted for the field.

    Attributes
    ----------
    backbone : ImageBackbone
        Makes maps of C channels of images.
    size : tuple of int
        Height and width to which images are resized for the backbone.
    grid : tuple of int
        Height and width (h, w) of the features.
    mean, scale : Tensor of shape (C,)
        Standardised maps are (map - mean) * scale.
    components : Tensor of shape (k, C) or None
        Orthonormal directions of the principal components; None keeps the C channels.
    """

    backbone: ImageBackbone
    size: tuple[int, int]
    grid: tuple[int, int]
    mean: Tensor
    scale: Tensor
    components: Tensor | None

    @property
    def n_channels(self) -> int:
        """Channels of the features."""
        return len(self.mean if self.components is None else self.components)

    @property
    def constants(self) -> list[Tensor]:
        """What features are computed with."""
        found = (self.mean, self.scale, self.components)
        return [value for value in found if value is not None]

    @property
    def images_a_pass(self) -> int:
        """Number of images that one pass of the backbone takes."""
        return self.backbone.images_a_pass(self.size)

    def resized(self, x: Tensor) -> Tensor:
        """Convert images, (n, C, H, W) in [-1, 1], to the size and channels of the backbone."""
        return prepare_images(x, self.size, self.backbone.image_channels)

    def encode(self, images: Tensor, precision: str) -> Tensor:
        """Make features, (n, k, h, w), of resized images."""
        parts = [self._encode(part, precision) for part in self.backbone.passes(images)]
        return torch.cat(parts)[: len(images)]

    def on_grid(self, grid: tuple[int, int]) -> "BackboneFeatures":
        """Return the same features on another grid."""
        return replace(self, grid=grid)

    def _encode(self, images: Tensor, precision: str) -> Tensor:
        features = self.backbone.encode(images, precision)
        mean, scale = (v.to(features.device)[:, None, None] for v in (self.mean, self.scale))
        features = (features - mean) * scale
        if self.components is not None:
            weights = self.components.to(features.device)[:, :, None, None]
            with arithmetic(features.device):
                features = F.conv2d(features, weights)
        return _resampled(features, self.grid)


def _resampled(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """Bring maps to a grid: bilinear, and with a wider kernel, like means over areas, to shrink."""
    if tuple(maps.shape[2:]) == grid:
        return maps
    return F.interpolate(maps, size=grid, mode="bilinear", antialias=True, align_corners=False)


def learn_features(
    images: ImagesOnDemand,
    backbone: ImageBackbone,
    size: tuple[int, int],
    precision: str,
) -> BackboneFeatures:
    """Measure means, deviations and principal components over up to 256 training images.

    Parameters
    ----------
    images : ImagesOnDemand of shape (n, C, H, W)
        Training images of an epoch, repeated as their weights say.
    backbone : ImageBackbone
        The backbone, on its device.
    size : tuple of int
        Height and width to which images are resized.
    precision : {"float32", "bfloat16"}
        Precision of the backbone.

    Returns
    -------
    BackboneFeatures
        On the CPU, on the backbone's own grid.

    Raises
    ------
    BackboneError
        If the backbone cannot encode the images, or returns what is not finite.
    """
    chosen = measured_rows(len(images))

    def moments(start: int, n: int) -> tuple[int, Tensor, Tensor, torch.Size]:
        x = ImageFormat.normalise(torch.from_numpy(images[chosen[start : start + n]]))
        x = prepare_images(x, size, backbone.image_channels)
        parts = [backbone.encode(part, precision) for part in backbone.passes(x)]
        maps = torch.cat(parts)[: len(x)].cpu()
        rows = maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1]).double()
        return len(rows), rows.sum(dim=0), rows.T @ rows, maps.shape[2:]

    found = in_batches(moments, len(chosen), ENCODED_AT_ONCE, backbone.device)
    n = sum(part[0] for part in found)
    mean = torch.stack([part[1] for part in found]).sum(dim=0) / n
    covariance = torch.stack([part[2] for part in found]).sum(dim=0) / n - mean.outer(mean)
    if not bool(covariance.isfinite().all()):
        raise BackboneError(
            f"backbone={backbone.name} returned NaN or infinite features: use another one, or, if "
            "it computed in bfloat16, precision='float32'."
        )
    variance = covariance.diagonal()
    # A constant channel carries no information: divide it by 1 instead of 0.
    is_constant = variance <= 1e-12 + 1e-12 * mean.square()
    scale = torch.where(is_constant, 1.0, variance.clamp_min(1e-300)).rsqrt()
    components = principal_components(covariance * scale.outer(scale), _KEPT_VARIANCE)
    height, width = found[0][3]
    return BackboneFeatures(
        backbone,
        size,
        (height, width),
        mean.float(),
        scale.float(),
        None if components is None else components.float().contiguous(),
    )


def principal_components(covariance: Tensor, kept: float) -> Tensor | None:
    """Find the least number of directions that keep a part of the variance.

    Parameters
    ----------
    covariance : Tensor of shape (C, C), float64
        Covariance of the channels.
    kept : float
        Part of the variance to keep, in (0, 1].

    Returns
    -------
    Tensor of shape (k, C) or None
        Orthonormal directions, that of the largest variance first, each with a positive largest
        entry. None if all are needed.
    """
    variances, directions = torch.linalg.eigh(covariance)
    variances, directions = variances.flip(0).clamp_min(0), directions.flip(1).T
    left_out = 1 - variances.cumsum(0) / variances.sum().clamp_min(1e-300)
    n_kept = int((left_out > 1 - kept).sum()) + 1
    if n_kept >= len(variances):
        return None
    directions = directions[:n_kept]
    # Eigenvectors have no sign of their own: fix one, so that all machines find the same.
    largest = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True))
    return directions * largest.sign()
