"""Images of X that are copied and converted only when they are asked for, some at a time.

X can be larger than half of the memory, or a file that is mapped into memory. What works through it
takes a batch of images, and never makes a second array as large as X.
"""

import numpy as np
import torch

from sklearn_msf.data.images import ImageFormat
from sklearn_msf.data.parts import parts_of, parts_of_shape
from sklearn_msf.data.resizing import resize_bilinear

__all__ = ["ImagesOnDemand", "RowsOnDemand"]


class RowsOnDemand:
    """Images as rows in the usual order of the pixels, which are copied when they are asked for.

    Parameters
    ----------
    rows : ndarray of shape (n, n_features)
        The images as rows.
    shape, order : tuple of int
        As in :class:`~sklearn_msf.data.images.FlatImages`; by default the pixels are in their usual
        order.
    """

    def __init__(
        self,
        rows: np.ndarray,
        shape: tuple[int, ...] | None = None,
        order: tuple[int, ...] = (),
    ):
        self._rows = rows
        self._order = order
        self._sizes = [] if shape is None else [shape[axis - 1] for axis in order]
        self._indices: np.ndarray | None = None

    def __len__(self) -> int:
        """Count the images."""
        return len(self._rows) if self._indices is None else len(self._indices)

    @property
    def dtype(self) -> np.dtype:
        """Type of the numbers."""
        return self._rows.dtype

    @property
    def shape(self) -> tuple[int, int]:
        """Number of images and of values in each."""
        return len(self), self._rows.shape[1]

    def __getitem__(self, chosen: slice | np.ndarray) -> np.ndarray:
        """Return some of the rows, (m, n_features); a view of X where that is possible."""
        return self._as_usual(
            self._rows[chosen if self._indices is None else self._indices[chosen]]
        )

    def take(self, indices: np.ndarray) -> "RowsOnDemand":
        """Return some of the rows, without copying them."""
        part = object.__new__(RowsOnDemand)
        vars(part).update(vars(self))
        part._indices = indices if self._indices is None else self._indices[indices]
        return part

    def order_of_content(self) -> np.ndarray:
        """Return the indices that sort the rows by their bytes; equal rows keep their order."""
        rows = np.ascontiguousarray(self._as_usual(self._rows))
        as_bytes = rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1]))).ravel()
        order = np.argsort(as_bytes, kind="stable")
        if self._indices is None:
            return order
        # All rows were sorted, because a selection of them would be a copy.
        places = np.empty(len(order), dtype=np.intp)
        places[order] = np.arange(len(order))
        return np.argsort(places[self._indices], kind="stable")

    def _as_usual(self, rows: np.ndarray) -> np.ndarray:
        """Change the order of the pixels from that in memory to the usual one."""
        if list(self._order) == sorted(self._order):
            return rows
        images = rows.reshape(len(rows), *self._sizes)
        return images.transpose(np.argsort([0, *self._order])).reshape(rows.shape)


class ImagesOnDemand:
    """Images in the form of tensors, (n, C, H, W), which are converted when they are asked for.

    Parameters
    ----------
    image_format : ImageFormat
        Layout and range of X.
    rows : RowsOnDemand or ndarray of shape (n, n_features)
        The images.
    size : tuple of int, optional
        Height and width to which the images are resized; their own by default.
    """

    def __init__(
        self,
        image_format: ImageFormat,
        rows: RowsOnDemand | np.ndarray,
        size: tuple[int, int] | None = None,
    ):
        self._format = image_format
        self._rows = rows
        self._size = image_format.size if size is None else size

    def __len__(self) -> int:
        """Count the images."""
        return len(self._rows)

    @property
    def dtype(self) -> np.dtype:
        """uint8 if the model was fitted on uint8, else float32."""
        return np.dtype(np.uint8 if self._format.dtype == np.uint8 else np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape (n, C, H, W) of all images."""
        return (len(self), self._format.n_channels, *self._size)

    def __getitem__(self, chosen: slice | np.ndarray) -> np.ndarray:
        """Convert some of the images as :meth:`ImageFormat.to_numpy_images` does."""
        if self._size == self._format.size:
            return self._format.to_numpy_images(self._rows[chosen])
        if isinstance(chosen, slice):
            chosen = np.arange(*chosen.indices(len(self)))
        resized = np.empty((len(chosen), *self.shape[1:]), self.dtype)
        # Of large images a few at a time, however many small ones are made.
        for part in parts_of_shape(len(chosen), self._rows.shape[1:]):
            images = self._format.to_numpy_images(self._rows[chosen[part]])
            resized[part] = resize_bilinear(torch.from_numpy(images), self._size).numpy()
        return resized

    def to_array(self) -> np.ndarray:
        """Convert all images, with no other large array on the way."""
        images = np.empty(self.shape, self.dtype)
        for part in parts_of(images):
            images[part] = self[part]
        return images
