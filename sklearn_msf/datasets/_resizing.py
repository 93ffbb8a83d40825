"""Images of another size: antialiased, the middle cut out or the whole with a border."""

import numpy as np

from sklearn_msf.datasets._pillow_files import pillow

__all__ = ["FITS", "fit_to_size", "to_gray", "to_rgb"]

FITS = ("crop", "pad")
# Luma of ITU-R BT.601, as Pillow converts to gray.
_LUMA = np.array([0.299, 0.587, 0.114])


def to_gray(frames: np.ndarray) -> np.ndarray:
    """Convert RGB frames to gray ones, (n_frames, H, W, 1), and return gray ones as they are."""
    if frames.shape[-1] == 1:
        return frames
    return _as(frames.dtype, frames @ _LUMA)[..., None]


def to_rgb(frames: np.ndarray) -> np.ndarray:
    """Repeat gray as red, green and blue, and return RGB frames as they are."""
    return np.repeat(frames, 3, axis=-1) if frames.shape[-1] == 1 else frames


def fit_to_size(frames: np.ndarray, size: tuple[int, ...], fit: str) -> np.ndarray:
    """Bring frames to a size by bicubic interpolation that averages where it makes smaller.

    Interpolation does not go beyond the smallest and largest value of the frame.

    Parameters
    ----------
    frames : ndarray of shape (n_frames, H, W, C)
        uint8, uint16 or float32.
    size : (height, width) or (depth, height, width)
        Wanted size.
    fit : {"crop", "pad"}
        Whether height and width are filled and the rest is cut off on both sides, or all of the
        image is kept between bars: 0 in integers, the smallest value of all frames in floats.
        The depth is always resized as a whole.

    Returns
    -------
    ndarray of shape (n_frames or depth, height, width, C)
        Of the dtype of `frames`.
    """
    height, width = size[-2:]
    if frames.shape[1:3] != (height, width):
        if fit == "crop":
            frames = np.stack([_cropped(frame, height, width) for frame in frames])
        else:
            bars = frames.min() if frames.dtype.kind == "f" else 0
            frames = np.stack([_padded(frame, height, width, bars) for frame in frames])
    if len(size) == 3 and len(frames) != size[0]:
        columns = frames.reshape(len(frames), -1, 1)
        columns = _resized(columns, (size[0], columns.shape[1]), None)
        frames = columns.reshape(size[0], *frames.shape[1:])
    return frames


def _cropped(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize the largest part in the middle that has the wanted proportions."""
    scale = max(height / frame.shape[0], width / frame.shape[1])
    top = (frame.shape[0] - height / scale) / 2
    left = (frame.shape[1] - width / scale) / 2
    # Rounding must not put the box outside of the image.
    top, left = max(top, 0.0), max(left, 0.0)
    box = (left, top, frame.shape[1] - left, frame.shape[0] - top)
    return _resized(frame, (height, width), box)


def _padded(frame: np.ndarray, height: int, width: int, bars: float) -> np.ndarray:
    """Resize the whole frame, and put it between bars of a value in one of the wanted size."""
    scale = min(height / frame.shape[0], width / frame.shape[1])
    inner = tuple(max(1, round(n * scale)) for n in frame.shape[:2])
    inside = _resized(frame, (min(inner[0], height), min(inner[1], width)), None)
    whole = np.full((height, width, frame.shape[2]), bars, frame.dtype)
    top, left = (height - inside.shape[0]) // 2, (width - inside.shape[1]) // 2
    whole[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    return whole


def _resized(
    frame: np.ndarray, size: tuple[int, int], box: tuple[float, float, float, float] | None
) -> np.ndarray:
    """Resize a frame, (H, W, C), or a box (left, top, right, bottom) of it."""
    Image = pillow().Image
    channels = []
    for channel in np.moveaxis(frame, -1, 0):
        image = Image.fromarray(np.ascontiguousarray(channel, dtype=np.float32))
        image = image.resize(size[::-1], Image.Resampling.BICUBIC, box=box)
        channels.append(np.clip(np.asarray(image), channel.min(), channel.max()))
    return _as(frame.dtype, np.stack(channels, axis=-1))


def _as(dtype: np.dtype, values: np.ndarray) -> np.ndarray:
    return (np.rint(values) if dtype.kind == "u" else values).astype(dtype)
