"""Training data on the device of the network, and their order within an epoch."""

import copy
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sklearn_msf.data.augmentation import augment_images
from sklearn_msf.data.images import ImageFormat
from sklearn_msf.runtime.device import has_float64

__all__ = ["TrainingData", "count_batches", "smallest_batch"]

# If the images need more than this fraction of a GPU's free memory, they are streamed.
_RESIDENT_FRACTION = 0.5


class TrainingData:
    """Images and labels, with weights that act as numbers of repetitions.

    All data are kept on the device, and a batch is selected by indices. Images that do not fit
    into the memory of a GPU stay where they are and are copied batch by batch through pinned
    memory.

    Parameters
    ----------
    images : Tensor of shape (n, C, H, W)
        uint8 in [0, 255] or float32 in [-1, 1].
    labels : Tensor of shape (n,), int64
        Class indices.
    weights : Tensor of shape (n,), float64
        Positive weights: how often an image occurs in an epoch, up to a common factor.
    epoch_size : int
        Number of images in an epoch. If it is the sum of integer weights, an image of weight k
        is seen k times per epoch, like k copies of it.
    device : torch.device, optional
        Device to train on; that of the images by default.
    augment : str or None, default=None
        Random variation of the images, see :func:`~sklearn_msf.data.augmentation.augment_images`.
    proportions : sequence of int, optional
        Height and width of the images before they were resized.

    Attributes
    ----------
    channel_parts : tuple of int
        Numbers of channels of parts of the images that have equal shares in the image loss; empty
        if there is one part.
    n_flipped_axes : int or None
        Along how many axes, of those that `augment` names, images are flipped; None for all.
    """

    channel_parts: tuple[int, ...] = ()
    n_flipped_axes: int | None = None

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        weights: Tensor,
        epoch_size: int,
        device: torch.device | None = None,
        augment: str | None = None,
        *,
        proportions: Sequence[int] | None = None,
    ):
        device = device or images.device
        self.images = images.to(device) if _fits(images, device) else images
        self.labels = labels.to(device)
        self.epoch_size = epoch_size
        self.augment = augment
        self._proportions = proportions
        # On the CPU, because some devices have no float64.
        self._weights = weights.cpu()
        self._cumulative = _cumulative(self._weights).to(self._place)

    @property
    def smaller_samples(self) -> str:
        """How a user gets samples that need less memory."""
        if self.images.ndim == 5:
            return "make the volumes smaller, or patch_size in network_params larger"
        return (
            "make the images smaller, or take LatentMedSymmFlowClassifier, which trains on latents"
        )

    def take(self, rows: Tensor) -> "TrainingData":
        """Return data restricted to some indices, (n,) int64, that share the images."""
        part = copy.copy(self)
        kept = torch.zeros_like(self._weights)
        kept[rows.cpu()] = self._weights[rows.cpu()]
        part._weights = kept
        part._cumulative = _cumulative(kept).to(self._place)
        part.epoch_size = max(1, round(self.epoch_size * len(rows) / len(self.labels)))
        return part

    def epoch(
        self, batch_size: int, generator: torch.Generator, *, even: bool = True
    ) -> Iterator[Tensor]:
        """Yield the indices of each batch of one epoch, in random order.

        This is systematic resampling with evenly spaced points on the cumulative weights: with
        unit weights every image is visited exactly once. `even` is as in :func:`count_batches`.
        """
        n, device = self.epoch_size, self.labels.device
        place = self._place
        dtype = torch.float64 if has_float64(device) else torch.float32
        offset = torch.rand(1, generator=generator, device=device, dtype=dtype).to(place)
        points = (torch.arange(n, dtype=torch.float64, device=place) + offset) / n
        rows = torch.searchsorted(self._cumulative, points).clamp_max(len(self.labels) - 1)
        order = torch.randperm(n, generator=generator, device=device)
        rows = rows[order.to(place)].to(self.images.device)
        if even:
            yield from rows.tensor_split(count_batches(n, batch_size, even=True))
        else:
            yield from rows.split(batch_size)

    def select(self, rows: Tensor, n_varied: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Collect what :meth:`batch` needs for some indices, on the device.

        Images on the device are selected later, by :meth:`batch`; streamed ones are copied here.

        Parameters
        ----------
        rows : Tensor of shape (n,), int64
            Indices as :meth:`epoch` yields them.
        n_varied : int
            As in :meth:`batch`.
        generator : torch.Generator
            Source of all random choices, on the device.

        Returns
        -------
        tuple of Tensor
            Of shapes and dtypes that depend only on the number of indices.
        """
        if self._is_resident:
            return (rows,)
        return self._streamed(rows), self._on_device(rows)

    def batch(
        self,
        selected: tuple[Tensor, ...],
        n_varied: int,
        n_at_one: int,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor]:
        """Make the inputs of the field, and their labels; nothing here waits for the device.

        Parameters
        ----------
        selected : tuple of Tensor
            What :meth:`select` returned.
        n_varied : int
            Number of indices, the first ones, whose images may also vary in ways that generated
            images should not show.
        n_at_one : int
            Number of indices, the first ones, that teach nothing but classes.
        generator : torch.Generator
            Source of all random choices, on the device.

        Returns
        -------
        x : Tensor of shape (n, C, H, W), float32
            Images in [-1, 1], or latents.
        labels : Tensor of shape (n,), int64
        """
        rows = selected[-1]
        images = self.images[rows] if self._is_resident else selected[0]
        x = ImageFormat.normalise(images)
        x = augment_images(x, self.augment, n_varied, generator, self._proportions)
        return x, self.labels[rows]

    @property
    def _is_resident(self) -> bool:
        """Whether the images are on the device."""
        return self.images.device == self.labels.device

    @property
    def _place(self) -> torch.device:
        """Where indices are computed: where the images are, so that nothing waits for a GPU."""
        place = self.images.device
        return place if has_float64(place) else torch.device("cpu")

    def _streamed(self, rows: Tensor) -> Tensor:
        """Select images that are not on the device, and copy them to it."""
        # Do not wait for the copy: torch reuses a pinned block only after its copy has finished.
        return self.images[rows].pin_memory().to(self.labels.device, non_blocking=True)

    def _on_device(self, rows: Tensor) -> Tensor:
        return rows.to(self.labels.device, non_blocking=True)


def count_batches(n_images: int, batch_size: int, *, even: bool) -> int:
    """Count the batches of an epoch.

    Parameters
    ----------
    n_images : int
        Number of images in the epoch.
    batch_size : int
        Wanted number of images in a batch.
    even : bool
        Whether all batches have the same size, up to one image, as near to `batch_size` as
        possible. Otherwise they have `batch_size` images, and the last one has what remains, as
        torch's DataLoader makes them.

    Returns
    -------
    int
    """
    return max(1, round(n_images / batch_size)) if even else math.ceil(n_images / batch_size)


def smallest_batch(n_images: int, batch_size: int, *, even: bool) -> int:
    """Return the number of images in the smallest batch of an epoch; as :func:`count_batches`."""
    n_batches = count_batches(n_images, batch_size, even=even)
    return n_images // n_batches if even else n_images - (n_batches - 1) * batch_size


def _cumulative(weights: Tensor) -> Tensor:
    return weights.cumsum(0) / weights.sum()


def _fits(images: Tensor, device: torch.device) -> bool:
    """Return whether the device has room for all images besides the network."""
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return images.nbytes < _RESIDENT_FRACTION * free
