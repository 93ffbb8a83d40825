"""Training data beside the network, and the order in which an epoch sees it."""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor

from sklearn_msf.data.augmentation import augment_images
from sklearn_msf.data.images import ImageFormat

__all__ = ["TrainingData"]

# Share of a GPU's free memory that images may take before they are streamed instead.
_RESIDENT_SHARE = 0.5


class TrainingData:
    """Images and labels, with weights that act as repetitions.

    Everything lives on the device, and a batch is a selection of rows. Images that a GPU has
    no room for stay where they are and are copied batch by batch, through pinned memory.

    Parameters
    ----------
    images : Tensor of shape (n, C, H, W)
        uint8 in [0, 255] or float32 in [-1, 1].
    labels : Tensor of shape (n,), int64
        Class indices.
    weights : Tensor of shape (n,), float64
        Positive weights: the share of each row in an epoch.
    epoch_size : int
        Images of an epoch. With the sum of integer weights a row of weight k is seen k times
        an epoch, as k copies of it would be.
    device : torch.device, optional
        Where to train; where the images are by default.
    augment : str or None, default=None
        Random variation of the images, see :func:`~sklearn_msf.data.augmentation.augment_images`.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        weights: Tensor,
        epoch_size: int,
        device: torch.device | None = None,
        augment: str | None = None,
    ):
        device = device or images.device
        self.images = images.to(device) if _fits(images, device) else images
        self.labels = labels.to(device)
        self.epoch_size = epoch_size
        self.augment = augment
        self._weights = weights.to(device)
        self._cumulative = (weights.cumsum(0) / weights.sum()).to(device)

    def take(self, rows: Tensor) -> "TrainingData":
        """Leave only some rows to train on, (n,) int64; images are shared."""
        part = copy.copy(self)
        kept = torch.zeros_like(self._weights)
        kept[rows.to(kept.device)] = self._weights[rows.to(kept.device)]
        part._weights = kept
        part._cumulative = kept.cumsum(0) / kept.sum()
        part.epoch_size = max(1, round(self.epoch_size * len(rows) / len(self.labels)))
        return part

    def epoch(self, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
        """Yield the row indices of each batch of one epoch, in random order.

        Systematic resampling: evenly spaced points on the cumulated weights, so that unit
        weights visit every row exactly once.
        """
        n, device = self.epoch_size, self.labels.device
        offset = torch.rand(1, generator=generator, device=device, dtype=torch.float64)
        points = (torch.arange(n, device=device, dtype=torch.float64) + offset) / n
        rows = torch.searchsorted(self._cumulative, points).clamp_max(len(self.labels) - 1)
        order = torch.randperm(n, generator=generator, device=device)
        # Where images are streamed the rows are needed beside them: once an epoch.
        rows = rows[order].to(self.images.device)
        yield from rows.tensor_split(max(1, round(n / batch_size)))

    def batch(
        self, rows: Tensor, n_varied: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Make what the field sees of some rows, and their labels, on the device.

        Parameters
        ----------
        rows : Tensor of shape (n,), int64
            As :meth:`epoch` yields them.
        n_varied : int
            Number of rows, from the first on, that teach nothing about drawing.
        generator : torch.Generator
            Source of all that is random in them, on the device.

        Returns
        -------
        x : Tensor of shape (n, C, H, W), float32
            Images in [-1, 1], or what stands for them.
        labels : Tensor of shape (n,), int64
        """
        x = self._inputs(rows, n_varied, generator)
        return x, self.labels[rows.to(self.labels.device, non_blocking=True)]

    def _inputs(self, rows: Tensor, n_varied: int, generator: torch.Generator) -> Tensor:
        """Vary images of some rows."""
        x = ImageFormat.normalise(self._on_device(rows))
        return augment_images(x, self.augment, n_varied, generator)

    def _on_device(self, rows: Tensor) -> Tensor:
        """Rows of the images, on the device."""
        if self.images.device == self.labels.device:
            return self.images[rows]
        # Pinned blocks are reused once their copy is done, which nobody waits for here.
        return self.images[rows].pin_memory().to(self.labels.device, non_blocking=True)


def _fits(images: Tensor, device: torch.device) -> bool:
    """Whether the device has room for all images beside the network."""
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return images.nbytes < _RESIDENT_SHARE * free
