"""How much a saved model may ask for: limits of images, predictions, labels and networks.

Saving checks what it is about to write with the same functions as opening, so that no model is
saved that could not be opened. Opening calls them before time or memory is spent. The number of
classes is limited where the label codes are made, encoders where they are opened.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

__all__ = [
    "MAX_METADATA_BYTES",
    "MAX_VALUES",
    "check_blocks",
    "check_image_shape",
    "check_labels",
    "check_metadata_size",
    "check_passes",
    "check_resized_size",
]

# The training history of a very long run takes some MiB.
MAX_METADATA_BYTES = 64 * 2**20
# Values of one image, over all pixels and channels: 1 GiB as float32.
MAX_VALUES = 2**28
# Images are resized to up to this many pixels, or to this many times their own.
_MAX_ENLARGED = 1024**2
_MAX_ENLARGEMENT = 16**2
# Passes of the network for one prediction: draws times evaluations of the solver.
_MAX_PASSES = 100_000
# Characters of a class label. Arrays of strings give every label the length of the longest one.
_MAX_LABEL_LENGTH = 10_000
# Residual blocks of a network.
_MAX_BLOCKS = 1_024
# What any residual block has at least, of ours and of autoencoders: the tensors of three
# convolutions, and the numbers of one whose inputs and outputs are as wide as the block.
_TENSORS_A_BLOCK = 6
_NUMBERS_A_BLOCK = 9


def check_metadata_size(n_bytes: int, largest: str) -> None:
    """Refuse plain data that a reader would refuse; `largest` names what takes most of it."""
    if n_bytes > MAX_METADATA_BYTES:
        raise ValueError(
            f"The plain data of the model take {n_bytes:,} bytes, most of them for {largest}; at "
            f"most {MAX_METADATA_BYTES:,} can be opened."
        )


def check_image_shape(shape: Sequence[int]) -> None:
    """Refuse images of too many values."""
    if math.prod(shape) > MAX_VALUES:
        raise ValueError(
            f"Images of shape {tuple(shape)} have {math.prod(shape):,} values; models of images "
            f"of at most {MAX_VALUES:,} values can be opened."
        )


def check_resized_size(name: str, size: Sequence[int], image_size: Sequence[int]) -> None:
    """Refuse to resize images to a size far beyond their own, which could take all memory."""
    most = min(MAX_VALUES, max(_MAX_ENLARGED, _MAX_ENLARGEMENT * math.prod(image_size)))
    if math.prod(size) > most:
        raise ValueError(
            f"{name}={tuple(size)} has {math.prod(size):,} pixels; images of {image_size[0]} x "
            f"{image_size[1]} pixels can be resized to no more than {most:,}: choose a smaller "
            f"{name}."
        )


def check_passes(n_draws: int, n_evaluations: int) -> None:
    """Refuse parameters with which a prediction would hardly end.

    `n_evaluations` is the number of evaluations of the field that `n_steps` steps of `ode_solver`
    take for one draw, at most.
    """
    if n_draws * n_evaluations > _MAX_PASSES:
        raise ValueError(
            f"n_draws={n_draws} draws of up to {n_evaluations:,} evaluations each (ode_solver and "
            f"n_steps) make {n_draws * n_evaluations:,} passes of the network; models with at most "
            f"{_MAX_PASSES:,} can be opened: set smaller ones, or a solver of fixed steps."
        )


def check_labels(labels: Sequence[object]) -> None:
    """Refuse strings that would make an array of strings far larger than the file."""
    longest = max((len(label) for label in labels if isinstance(label, str)), default=0)
    if longest > _MAX_LABEL_LENGTH:
        raise ValueError(
            f"A class label has {longest:,} characters; models whose labels have at most "
            f"{_MAX_LABEL_LENGTH:,} can be opened: use shorter labels."
        )


def check_blocks(blocks: Iterable[tuple[int, int]], weights: Mapping[str, Tensor]) -> None:
    """Refuse a network with more residual blocks than its weights can be for.

    Building takes time and memory for each block, even without weights, so this comes first.

    Parameters
    ----------
    blocks : iterable of (int, int)
        Numbers of blocks and their widths.
    weights : mapping of str to Tensor
        The weights that are there.

    Raises
    ------
    ValueError
        If the blocks need more tensors or more numbers than there are, or are too many.
    """
    blocks = list(blocks)
    n_blocks = sum(n for n, _ in blocks)
    n_numbers = _NUMBERS_A_BLOCK * sum(n * width**2 for n, width in blocks)
    there = sum(value.numel() for value in weights.values())
    if _TENSORS_A_BLOCK * n_blocks > len(weights) or n_numbers > there:
        raise ValueError(
            f"The network has more blocks than there are weights: {n_blocks:,} residual blocks, "
            f"and {len(weights):,} tensors with {there:,} numbers."
        )
    if n_blocks > _MAX_BLOCKS:
        raise ValueError(
            f"The network has {n_blocks:,} residual blocks; models with at most {_MAX_BLOCKS:,} "
            "can be opened."
        )
