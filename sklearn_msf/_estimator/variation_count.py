"""How many variations of each image are encoded for training over latents."""

import math
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from sklearn_msf._estimator.preparation import Run
from sklearn_msf.data.augmentation import flipped_axes, varies_beyond_flips
from sklearn_msf.data.images import ImageFormat
from sklearn_msf.data.on_demand import ImagesOnDemand
from sklearn_msf.latent.latent_space import LatentSpace
from sklearn_msf.persistence.whole_files import write_file

__all__ = ["affordable_variations", "count_flips", "count_variations", "count_within_run"]

# "auto" variations: so many that this many pixels are encoded, but at most so many of each image.
_AUTO_PIXELS = 4_000 * 224 * 224
_MAX_AUTO_VARIATIONS = 32
# Fraction of the remaining time budget for encoding "auto" variations.
_ENCODING_FRACTION = 0.5
_N_TIMED = 16
# File beside checkpoints with the number of variations that a time budget allowed.
_FILE = "latents-number-of-variations-{:08x}.txt"


def count_flips(augment: str | None) -> int:
    """Count the flips of an image, the unflipped one included."""
    return 2 ** len(flipped_axes(augment, 2))


def count_variations(
    asked: int | str,
    augment: str | None,
    n_images: int,
    encoded_pixels: int,
    *,
    are_seen_once: bool,
    affordable: Callable[[], int] | None,
) -> int:
    """Count the variations of each image, the image itself and its flips included.

    Parameters
    ----------
    asked : int or "auto"
        The parameter `n_variations`.
    augment : str or None
        Kind of the variations.
    n_images, encoded_pixels : int
        Number of images, and pixels of one of them at the sizes at which it is encoded.
    are_seen_once : bool
        Whether the images are a part that is seen once: then "auto" makes one random variation
        besides the flips.
    affordable : callable or None
        Returns how many variations the time budget allows for "auto", at least 1; None for no
        budget.
    """
    if augment is None:
        return 1
    n_flips = count_flips(augment)
    is_random = varies_beyond_flips(augment)
    if asked != "auto":
        n_variations = int(asked)
    elif are_seen_once:
        n_variations = n_flips + is_random
    else:
        wanted = math.ceil(_AUTO_PIXELS / (n_images * encoded_pixels)) if is_random else 1
        n_variations = max(n_flips, min(_MAX_AUTO_VARIATIONS, wanted))
    if asked == "auto" and affordable is not None and n_variations > 1:
        n_variations = min(n_variations, affordable())
    if n_variations < n_flips:
        # The flips of one axis come first: a part of those of the other would be seen in training
        # alone, and neither checked nor averaged over.
        n_variations = 1 << (n_variations.bit_length() - 1)
    return n_variations


def count_within_run(folder: Path | None, seed: int, run: Run, measure: Callable[[], int]) -> int:
    """Count the variations that the time allows; a run that goes on keeps its number.

    Parameters
    ----------
    folder : Path or None
        Folder with the checkpoints of the run.
    seed : int
        Seed of its variations: a run of another seed may use the same folder at the same time.
    run : Run
        The run.
    measure : callable
        Measures the number for a run that begins.
    """
    if folder is None:
        return measure()
    noted = folder / _FILE.format(seed)
    if run.goes_on:
        with suppress(OSError, ValueError):
            return max(1, int(noted.read_text(encoding="ascii")))
    n_affordable = measure()
    if run.is_first:
        # As for checkpoints: a full disk is no reason to end the fit.
        with suppress(OSError):
            write_file(noted, b"%d" % n_affordable)
    return n_affordable


def affordable_variations(
    space: LatentSpace,
    images: ImagesOnDemand,
    precision: str,
    device: torch.device,
    deadline: float,
    n_others: int = 0,
) -> int:
    """Measure how many variations can be encoded in a fraction of the remaining time.

    Parameters
    ----------
    space : LatentSpace
        Encodes the images.
    images : ImagesOnDemand of shape (n, C, H, W)
        Training images.
    precision : {"float32", "bfloat16"}
        Precision of the encoders.
    device : torch.device
        Device of the encoders.
    deadline : float
        Time at which the budget ends, by `time.perf_counter`.
    n_others : int, default=0
        Other images that are encoded too, once.

    Returns
    -------
    int
        The number, at least 1.
    """
    some = ImageFormat.normalise(torch.from_numpy(images[:_N_TIMED]))
    if device.type == "cuda":
        # The first pass loads libraries.
        space.encode(some[:1], precision)
    before = time.perf_counter()
    space.encode(some, precision)
    now = time.perf_counter()
    seconds_each = (now - before) / len(some)
    left = deadline - now - seconds_each * n_others
    return max(1, int(_ENCODING_FRACTION * left / (seconds_each * len(images))))
