"""Ranges of the values of X: what fit learns, and whether later images have the same scale."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from sklearn_msf.data.parts import parts_of
from sklearn_msf.runtime.user_warnings import warn_user

__all__ = [
    "CLIP",
    "ValueRange",
    "check_flatness",
    "check_scale",
    "inlying_range",
    "is_whole",
    "learn_range",
    "warn_of_low_contrast",
    "warn_of_several_scales",
    "warn_of_unused_range",
]

# Limit for scaled floats. Values far outside the training range would drown the noise of the
# path or overflow.
CLIP = 8.0

# Values are outliers if the gap between them and all others is more than so many times as wide as
# the range of the others. With images squeezed into a third of the range, accuracy falls. A common
# value can be part of the images, so it needs a wider gap.
_WIDE_GAP, _WIDE_GAP_OF_FILL_VALUE = 2.0, 4.0
# Bins in which gaps are looked for, and the number of empty bins that may be a wide gap.
_BINS, _GAP_BINS = 64, 12
# Fewer values than this show no range.
_FEWEST_VALUES = 256
# Up to this fraction, outliers may be hot pixels. If there are more, they are a fill value: one
# value, beside others that are spread over so many bins that they are an image and not a mask.
_RARE, _SPREAD_BINS = 1e-4, 8

# Images are nearly flat below this fraction of the learned range. Below the second fraction so many
# images are suspect, because hardly all of them are so dark.
_FLAT, _DARK, _MANY = 0.01, 0.1, 10
# Fractions of values beyond the clip that are passed over, that are refused, and that are refused
# although the training images had outliers.
_FEW_CLIPPED, _MANY_CLIPPED, _MOST_CLIPPED = 0.01, 0.1, 0.5
# Images in [0, 1] beside images that mostly exceed this were scaled differently.
_BEYOND_UNIT, _FEWEST = 64.0, 2
# About so many bytes are counted, of so many images at least.
_MOST_COUNTED, _FEWEST_IMAGES = 2**24, 64
# The images have little contrast if so many of their values, a fill value aside, are in so many of
# the bins.
_NEARLY_ALL, _SLIVER_BINS = 0.99, 9


class ValueRange(NamedTuple):
    """Type of the values of images, and their range."""

    dtype: np.dtype
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.dtype} in [{self.low:g}, {self.high:g}]"


class _Values(NamedTuple):
    """Number, minimum and maximum of some of the values; NaN if there are none."""

    n: int
    low: float
    high: float

    @property
    def are_one(self) -> bool:
        """Whether there are no two different values."""
        return not self.low < self.high


def _split_at(rows: np.ndarray, low: float, high: float) -> tuple[_Values, ...]:
    """Divide values into those below, inside and above a range."""
    return _values_where(
        rows, lambda v: v < low, lambda v: ~((v < low) | (v > high)), lambda v: v > high
    )


def _values_where(
    rows: np.ndarray, *conditions: Callable[[np.ndarray], np.ndarray]
) -> tuple[_Values, ...]:
    """Describe the values for which each condition holds; rows are read once, part by part."""
    found: list[list[_Values]] = [[] for _ in conditions]
    for part in parts_of(rows):
        values = rows[part]
        for group, condition in zip(found, conditions, strict=True):
            where = condition(values)
            if where.any():
                group.append(_Values(int(np.count_nonzero(where)), *_extremes(values, where)))
    return tuple(
        _Values(
            sum(values.n for values in group),
            min((values.low for values in group), default=np.nan),
            max((values.high for values in group), default=np.nan),
        )
        for group in found
    )


def learn_range(rows: np.ndarray) -> tuple[float, float, float]:
    """Learn the range of training images that are not uint8, and where to clip.

    Parameters
    ----------
    rows : ndarray of shape (n, n_features)
        Training images.

    Returns
    -------
    low, high : float
        [0, 1] if all values are in it, else minimum and maximum. Outliers are left out of both,
        with a warning.
    clip : float
        Limit for scaled values: 1, the range itself, if there were outliers, else 8.
    """
    lowest, highest = float(rows.min()), float(rows.max())
    low, high = inlying_range(rows, lowest, highest)
    clip = CLIP
    if (low, high) != (lowest, highest):
        clip = 1.0
        below, _, above = _split_at(rows, low, high)
        n_outside = below.n + above.n
        first, last = np.nanmin([below.low, above.low]), np.nanmax([below.high, above.high])
        which = f"{first:g}" if first == last else f"from {first:g} to {last:g}"
        warn_user(
            f"X has {n_outside} of {rows.size} values far outside the range of all others: "
            f"{which}, while the others are in [{low:g}, {high:g}]. They look like hot pixels or "
            f"fill values and are clipped to this range, here and in predictions. If they "
            "are right, bring X to another scale, for example by a logarithm."
        )
    if low >= 0.0 and high <= 1.0:
        if low < high < _FLAT:
            warn_user(
                f"X is {ValueRange(rows.dtype, low, high)}, and images in [0, 1] have that range: "
                "all images of X are nearly flat on it. Scale X so that it fills the range."
            )
        elif clip == CLIP:
            warn_of_unused_range(rows, 0.0, 1.0)
        low, high = 0.0, 1.0
    elif clip == CLIP and (sliver := _sliver(rows, low, high)) is not None:
        warn_user(
            f"X has values in [{low:g}, {high:g}], but nearly all of them are in "
            f"[{sliver.low:g}, {sliver.high:g}]: on the whole range the images have little "
            "contrast. If the others are background, padding or errors, clip X to the range that "
            "matters; if they are right, bring X to another scale, for example by a logarithm."
        )
    return low, high, clip


def warn_of_unused_range(rows: np.ndarray, low: float, high: float) -> None:
    """Warn if nearly all values are in a small part of a range that the dtype decides.

    Parameters
    ----------
    rows : ndarray of shape (n, n_features)
        Images.
    low, high : float
        Range that such images have, whatever their values: [0, 255] or [0, 1].
    """
    sliver = _sliver(_some_of(rows) if rows.dtype == np.uint8 else rows, low, high)
    if sliver is None:
        return
    found = ValueRange(rows.dtype, float(rows.min()), float(rows.max()))
    if found.high - found.low > 2 * (sliver.high - sliver.low):
        remedy = (
            "If the others are background or errors, clip X and stretch it over the whole range; "
            "if they are right, take a logarithm. Small objects in masks are no trouble."
        )
    else:
        remedy = "Stretch X over the whole range, in fit and in predictions."
    warn_user(
        f"X is {found}, and nearly all of its values are in [{sliver.low:g}, {sliver.high:g}], a "
        f"small part of [{low:g}, {high:g}], which is taken for the range of such images: they "
        f"have little contrast. {remedy}"
    )


def inlying_range(rows: np.ndarray, low: float, high: float) -> tuple[float, float]:
    """Find minimum and maximum of the values without outliers.

    Outliers are beyond a gap that is more than twice as wide as the range of all others. At most
    one value in ten thousand may be one. A fill value, which is a single value other than 0, may be
    more frequent, if the gap is more than four times as wide.

    Parameters
    ----------
    rows : ndarray of shape (n, n_features)
        Images.
    low, high : float
        Minimum and maximum of all values.

    Returns
    -------
    low, high : float
        Those of all values if there are no outliers.
    """
    if rows.size < _FEWEST_VALUES or (low >= 0.0 and high <= 1.0):
        return low, high
    inner, n_outside = (low, high), 0
    # An outlier can hide a smaller one, so look again among the others.
    while (found := _main_cluster(rows, *inner)) is not None:
        inner, n_others = found
        n_outside += n_others
    if not _is_rare(n_outside, rows):
        counts = _histogram(rows, *inner)
        # Values of a mask or of a few classes are far apart without outliers.
        if counts is None or np.count_nonzero(counts) < _SPREAD_BINS:
            return low, high
    return inner


def _main_cluster(
    rows: np.ndarray, low: float, high: float
) -> tuple[tuple[float, float], int] | None:
    """Find the values in a range that are left without outliers.

    Returns
    -------
    range : tuple of float
        Their minimum and maximum.
    n_others : int
        Number of outliers in the range.
    """
    counts = _histogram(rows, low, high)
    if counts is None:
        return None
    occupied = np.flatnonzero(counts)
    breaks = np.flatnonzero(np.diff(occupied) > _GAP_BINS)
    if not len(breaks):
        return None
    middles = (occupied[breaks] + occupied[breaks + 1] + 1) / 2
    edges = [low, *(low + middles * ((high - low) / _BINS)), high]
    clusters = []
    for left, right in pairwise(edges):
        _, inside, _ = _split_at(rows, left, right)
        if not inside.n:
            return None  # Integers so large that float64 rounds them.
        clusters.append(inside)
    wide = [i for i, (_, first, last) in enumerate(clusters) if first < last]
    if not wide:
        return None
    main = max(wide, key=lambda i: clusters[i][0])
    _, first, last = clusters[main]
    others = clusters[:main] + clusters[main + 1 :]
    gaps = [first - cluster[2] for cluster in clusters[:main]]
    gaps += [cluster[1] - last for cluster in clusters[main + 1 :]]
    for (n, lowest, highest), gap in zip(others, gaps, strict=True):
        rare, fill_value = _is_rare(n, rows), lowest == highest != 0
        factor = _WIDE_GAP if rare else _WIDE_GAP_OF_FILL_VALUE
        if not (rare or fill_value) or gap <= factor * (last - first):
            return None
    return (first, last), sum(n for n, _, _ in others)


def _some_of(rows: np.ndarray) -> np.ndarray:
    """Take some images, and of large ones some pixels: they show a range as well as all do."""
    n_too_many = max(1, -(-rows.size // _MOST_COUNTED))
    every = min(n_too_many, max(1, len(rows) // _FEWEST_IMAGES))
    step = -(-n_too_many // every)
    # Not always the same colour, nor always the same of two columns.
    while step > 1 and math.gcd(step, 6) > 1:
        step += 1
    return rows[::every, ::step]


def _sliver(rows: np.ndarray, low: float, high: float) -> _Values | None:
    """Find a small part of the range that has nearly all values, a fill value aside."""
    counts = None if rows.size < _FEWEST_VALUES else _histogram(rows, low, high)
    if counts is None:
        return None
    occupied = np.flatnonzero(counts)
    for end, neighbour in ((0, 1), (-1, -2)):
        # A frequent value at one end, far from all others.
        if len(occupied) > 1 and abs(occupied[end] - occupied[neighbour]) > _GAP_BINS:
            counts[occupied[end]] = 0
    total = counts.cumsum()
    # From each bin on, the number of bins in which nearly all values are, if there are so many.
    needed = total - counts + _NEARLY_ALL * total[-1]
    widths = np.searchsorted(total, needed) - np.arange(_BINS) + 1
    widths[needed > total[-1]] = _BINS
    start, width = int(widths.argmin()), int(widths.min())
    if width > _SLIVER_BINS:
        return None
    step = (high - low) / _BINS
    first, last = low + start * step, low + (start + width) * step
    _, inside, _ = _split_at(rows, first, last)
    spread = _histogram(rows, inside.low, inside.high) if inside.n else None
    # Values of a mask or of a few classes are far apart without anything wrong.
    if spread is None or np.count_nonzero(spread) < _SPREAD_BINS:
        return None
    return inside


def _is_rare(n: int, rows: np.ndarray) -> bool:
    return n <= max(1, _RARE * rows.size)


def _histogram(rows: np.ndarray, low: float, high: float) -> np.ndarray | None:
    """Count values in equal bins; None where the bins would have no width, or no finite one."""
    with np.errstate(over="ignore", invalid="ignore"):
        if not (np.diff(np.linspace(low, high, _BINS + 1)) > 0).all():
            return None
    if rows.dtype == np.uint8:
        of_values = sum(np.bincount(rows[part].ravel(), minlength=256) for part in parts_of(rows))
        return np.histogram(np.arange(256), _BINS, (low, high), weights=of_values)[0]
    counts = np.zeros(_BINS, dtype=np.int64)
    for part in parts_of(rows):
        # The difference of two float16 can overflow.
        values = rows[part].astype(np.float32) if rows.dtype == np.float16 else rows[part]
        counts += np.histogram(values, _BINS, (low, high))[0]
    return counts


def _extremes(rows: np.ndarray, where: np.ndarray) -> tuple[float, float]:
    """Minimum and maximum of some of the values, of which there must be one."""
    limits = np.finfo(rows.dtype) if rows.dtype.kind == "f" else np.iinfo(rows.dtype)
    return (
        float(rows.min(where=where, initial=limits.max)),
        float(rows.max(where=where, initial=limits.min)),
    )


def warn_of_low_contrast(rows: np.ndarray, highest: int) -> bool:
    """Warn of uint8 images, not all black, whose values are too small to be seen.

    Parameters
    ----------
    rows : ndarray of shape (n, n_features), uint8
        Images.
    highest : int
        Largest value that is warned of.

    Returns
    -------
    bool
        Whether there was a warning.
    """
    found = int(rows.max())
    is_low = 0 < found <= highest
    if is_low:
        warn_user(
            f"X is uint8 in [{int(rows.min())}, {found}], but the range of uint8 is [0, 255]: the "
            "images are nearly black, and hardly anything can be seen in them. Pass masks of 0 and "
            "1 as 255 * X or X.astype(bool), and other images as np.float32 or on the whole range, "
            "in fit and in predictions."
        )
    return is_low


def warn_of_several_scales(rows: np.ndarray, highest: np.ndarray) -> None:
    """Warn if some images of floats are in [0, 1], and others exceed this by far.

    Parameters
    ----------
    rows : ndarray of shape (n, n_features)
        Images.
    highest : ndarray of shape (n,)
        Largest value of each image.
    """
    if rows.dtype.kind != "f":
        return
    candidates = np.flatnonzero((highest > 0.5) & (highest <= 1))
    n_beyond = int(np.count_nonzero(highest >= _BEYOND_UNIT))
    # Between both are images whose scale is not clear, or a few hot pixels.
    if not len(candidates) or len(candidates) + n_beyond < len(rows) / 2 or n_beyond < _FEWEST:
        return
    unit = [i for i in candidates if rows[i].min() >= 0 and not is_whole(rows[i])]
    if unit:
        warn_user(
            f"{len(unit)} of {len(rows)} images of X are in [0, 1], first image {unit[0]}, but "
            f"others reach {highest.max():g}: bring all images to one range."
        )


def check_scale(
    rows: np.ndarray, dtype: np.dtype, learned: ValueRange, *, has_outliers: bool
) -> None:
    """Refuse or warn of images on another scale than those of the training.

    Parameters
    ----------
    rows : ndarray of shape (n, n_features)
        Images, as numbers.
    dtype : numpy.dtype
        dtype of X, before booleans became numbers.
    learned : ValueRange
        dtype and range of the training images.
    has_outliers : bool
        Whether the training images had outliers too, so that they are expected.

    Raises
    ------
    ValueError
        If a large part of the values would be clipped, or if all images are nearly flat on the
        learned range and have values that the training images cannot have had. The message
        has both ranges.
    """
    highest = rows.max(axis=1)
    if learned.low == learned.high:
        _check_constant(rows, highest, learned)
        return
    found = ValueRange(dtype, float(rows.min()), float(highest.max()))
    check_flatness(rows, _within_clip(rows, found, learned, has_outliers), learned)
    warn_of_several_scales(rows, highest)


def _check_constant(rows: np.ndarray, highest: np.ndarray, learned: ValueRange) -> None:
    """Refuse images with other values than the only one of the training."""
    lowest = rows.min(axis=1)
    others = np.flatnonzero((lowest != learned.low) | (highest != learned.low))
    if len(others):
        raise ValueError(
            f"X has other values than {learned.low:g} in {len(others)} of {len(rows)} images, "
            f"first image {others[0]}, but the model was fitted on images that have this value "
            "alone, and learned no range: fit on images that differ. In partial_fit the first "
            "call learns the range."
        )


def _within_clip(
    rows: np.ndarray, found: ValueRange, learned: ValueRange, has_outliers: bool
) -> ValueRange:
    """Return the range of the values that are not clipped; refuse or warn of many others."""
    unit = (learned.low, learned.high) == (0.0, 1.0)
    middle, half = (learned.low + learned.high) / 2, (learned.high - learned.low) / 2
    low, high = (-CLIP, CLIP) if unit else (middle - CLIP * half, middle + CLIP * half)

    def accepted(values: ValueRange) -> ValueRange:
        if has_outliers:
            _warn_of_saturation(rows, found, learned, (low, high))
        return values

    def like_training(inner: tuple[float, float]) -> bool:
        return learned.low - half <= inner[0] < inner[1] <= learned.high + half

    if low <= found.low and found.high <= high:
        return accepted(found)
    below, inside, above = _split_at(rows, low, high)
    clipped = (below.n + above.n) / rows.size
    if has_outliers and below.are_one and above.are_one:
        # A fill value, as the training images had one.
        return accepted(ValueRange(found.dtype, inside.low, inside.high) if inside.n else found)
    inner = inlying_range(rows, found.low, found.high)
    if not like_training(inner):
        # A few images do not show what an outlier is, but the learned range does.
        inner = _without_outliers(rows.size, below, inside, above)
    both = f"X is {found}, but the model was fitted on {'values in [0, 1]' if unit else learned}"
    if like_training(inner):
        if clipped > _FEW_CLIPPED and not has_outliers:
            warn_user(f"{both}: {clipped:.1%} of its values are clipped, as if they were outliers.")
        return accepted(ValueRange(found.dtype, *inner))
    limit = _MOST_CLIPPED if has_outliers else 0.0 if unit else _MANY_CLIPPED
    remedy = "Scale X as the training images were"
    if unit and found.low >= 0 and found.high <= 255:
        remedy += ", for example X / 255"
    _tell_of_scale(both, clipped, limit, remedy)
    return found


def _tell_of_scale(both: str, clipped: float, limit: float, remedy: str) -> None:
    """Refuse images of another scale if so many of their values would be clipped, else warn."""
    if clipped >= limit:
        raise ValueError(f"{both}, so that {clipped:.1%} of its values would be clipped. {remedy}.")
    warn_user(f"{both}, so that {clipped:.1%} of its values are clipped. {remedy}.")


def _warn_of_saturation(
    rows: np.ndarray, found: ValueRange, learned: ValueRange, ends: tuple[float, float]
) -> None:
    """Warn of many values beyond the learned range, all of which a model of outliers clips.

    What lies beyond the ends is an outlier, or another scale. One value alone is a fill value.
    """
    beyond = _values_where(
        rows,
        lambda v: (v >= ends[0]) & (v < learned.low),
        lambda v: (v > learned.high) & (v <= ends[1]),
    )
    clipped = sum(values.n for values in beyond if not values.are_one) / rows.size
    if clipped > _MANY_CLIPPED:
        warn_user(
            f"X is {found}, but the model was fitted on {learned}, and on outliers: {clipped:.1%} "
            "of its values are clipped, and are no outliers. Scale X as the training images were."
        )


def _without_outliers(
    n_values: int, below: _Values, inside: _Values, above: _Values
) -> tuple[float, float]:
    """Return the range of the values inside and of those outside that are no outliers."""
    # Outliers are few, or a fill value.
    no_outliers = [s for s in (below, above) if s.n > _FEW_CLIPPED * n_values and not s.are_one]
    kept = [inside, *no_outliers]
    low = np.nanmin([values.low for values in kept])
    return float(low), float(np.nanmax([values.high for values in kept]))


def check_flatness(rows: np.ndarray, found: ValueRange, learned: ValueRange) -> None:
    """Refuse or warn of images whose values are all near zero on the learned range.

    Parameters
    ----------
    rows : ndarray of shape (n, n_features)
        Images, as numbers.
    found, learned : ValueRange
        dtype and range of these images and of the training images.

    Raises
    ------
    ValueError
        If they also have values that the training images cannot have had.
    """
    peak, width = max(abs(found.low), abs(found.high)), learned.high - learned.low
    if not found.low < found.high or not peak < _DARK * width:
        return
    only_here = (found.dtype == bool) != (learned.dtype == bool) or (
        learned.dtype.kind in "iub" and not is_whole(rows)
    )
    flat, rescaled = peak < _FLAT * width, peak <= CLIP
    if not (flat or len(rows) >= _MANY or only_here):
        return
    # Bytes have this range whatever the training images were.
    known = "the range of the model is" if learned.dtype == np.uint8 else "the model was fitted on"
    text = (
        f"X is {found}, but {known} {learned}: on that range all images of X are nearly flat. Pass "
        "X on the scale of the training images"
    )
    if flat and rescaled and only_here:
        raise ValueError(f"{text}, as {learned.dtype}.")
    warn_user(f"{text}. If it is, its images show hardly anything.")


def is_whole(values: np.ndarray) -> bool:
    """Tell whether all values are whole numbers."""
    if values.dtype.kind != "f":
        return True
    return all(bool(np.all(values[i] == np.rint(values[i]))) for i in parts_of(values))
