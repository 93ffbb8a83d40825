"""Images of PNG, JPEG and TIFF files, read by Pillow."""

import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from sklearn_msf.datasets._image_headers import ImageHeader, check_file_size
from sklearn_msf.runtime.optional_imports import importing

__all__ = ["REDUCED", "SIGNATURES", "pillow", "read_header", "read_pixels"]

_FORMATS = ("PNG", "JPEG", "TIFF")
# First bytes of these formats; TIFF in both orders of bytes and in its 64-bit form.
SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Remark on colour images of 16 bits.
REDUCED = "has 16 bits a channel, of which Pillow reads 8"
# Modes that are converted to RGB as they are; palettes and transparency come on top.
_COLORS = {"RGB", "RGBX", "CMYK", "YCbCr", "P"}
_TRANSPARENT = {"LA", "La", "PA", "RGBA", "RGBa"}
_BITS_TAG, _PHOTOMETRIC_TAG, _FILL_ORDER_TAG, _ORIENTATION_TAG = 258, 262, 266, 274
_PLANES_TAG, _SAMPLE_FORMAT_TAG = 284, 339
_MIN_IS_WHITE = 0
_SEPARATE_PLANES = 2
_LOWEST_BIT_FIRST = 2
_UNSIGNED, _SIGNED = 1, 2
# Where PNG files may name an orientation before the pixels.
_ORIENTED = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")
# Layouts of which libtiff returns the order of the machine, and Pillow expects that of the file.
_HIGHEST_BYTE_FIRST = {"I;16BS", "I;32BS", "F;32BF"}
# Up to here float32 holds every integer.
_LARGEST_EXACT = 2**24


def pillow() -> Any:
    """Import Pillow, or say how to install it."""
    with importing('load_image_folder needs Pillow: python -m pip install "sklearn-msf[images]".'):
        import PIL.Image
        import PIL.ImageOps
    return PIL


def read_header(path: Path) -> ImageHeader:
    """Read the header of a file, without its pixels.

    Raises
    ------
    ValueError
        With the reason why the file cannot be read.
    """
    with _opened(path) as image:
        height, width = _oriented_size(image)
        return ImageHeader(
            size=(height, width),
            n_frames=_n_frames(image),
            n_channels=1 if _is_gray(image) else 3,
            dtype=_dtype(image),
            bit_depth=_bit_depth(image),
            mode=image.mode,
        )


def read_pixels(path: Path) -> np.ndarray:
    """Read the pixels of a file.

    Palettes and all colours become RGB, transparent pixels are laid over black, one bit becomes
    0 and 255, and the image is turned as its EXIF orientation says.

    Returns
    -------
    ndarray of shape (n_frames, H, W, n_channels)
        uint8, uint16 or float32, as :func:`read_header` says.
    """
    with _opened(path) as image:
        frames: list[np.ndarray] = []
        for frame in range(_n_frames(image)):
            image.seek(frame)
            frames.append(_values(image))
            kinds = sorted({(page.shape, page.dtype.name) for page in (frames[0], frames[-1])})
            # Now, because the header promises only the memory that pages like the first need.
            if len(kinds) > 1:
                raise ValueError(f"has pages of different shapes or bits: {kinds}")
    return np.stack(frames)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    check_file_size(path)
    # A TIFF that Pillow opens by its path may be mapped into memory, and is then not turned.
    with open(path, "rb") as file:
        try:
            image = pillow().Image.open(file, formats=_FORMATS)
        # Pillow 11.0 raises a ValueError where it finds no dimensions.
        except (pillow().UnidentifiedImageError, ValueError) as error:
            raise ValueError(
                "is damaged, or has bits, channels or a compression that Pillow cannot read: "
                "convert it, for example to PNG"
            ) from error
        with image:
            yield image


def _n_frames(image: Any) -> int:
    """Count the pages. A JPEG has one image; others in it are previews."""
    return 1 if image.format in ("JPEG", "MPO") else getattr(image, "n_frames", 1)


def _oriented_size(image: Any) -> tuple[int, int]:
    """Height and width of the image once it is turned."""
    width, height = image.size
    # Pillow gives TIFF the size after turning.
    may_turn = image.format != "PNG" or any(key in image.info for key in _ORIENTED)
    if image.format == "TIFF" or not may_turn:
        return height, width
    # That of the class of PNG files would read all pixels to find data behind them.
    exif = pillow().Image.Image.getexif(image)
    is_turned = exif.get(_ORIENTATION_TAG) in (5, 6, 7, 8)
    return (width, height) if is_turned else (height, width)


def _raw_mode(image: Any) -> str:
    """Pillow's name of the layout in the file, such as 'RGB;16B' for 16 bits a channel."""
    arguments = image.tile[0][3] if image.tile else ""
    return str(arguments[0] if isinstance(arguments, tuple) else arguments)


def _bit_depth(image: Any) -> int:
    found = re.search(r";(\d+)", _raw_mode(image))
    if found:
        return int(found[1])
    if image.mode.startswith("I;16"):
        return 16
    return {"1": 1, "I": 32, "F": 32}.get(image.mode, 8)


def _dtype(image: Any) -> np.dtype:
    tags = getattr(image, "tag_v2", {})
    bits = max(tags.get(_BITS_TAG, (8,)))
    is_raw = bool(image.tile) and image.tile[0][0] == "raw"
    if is_raw and tags.get(_PLANES_TAG) == _SEPARATE_PLANES:
        _check_planes(image, bits)
    if _is_swapped(image):
        raise ValueError(
            "is compressed, and its signed integers or floats begin with their highest byte, which "
            "Pillow misreads: write it without compression, or with the lowest byte first"
        )
    if image.mode.startswith("I;16"):
        return np.dtype(np.uint16)
    if image.mode in ("I", "F"):
        if tags.get(_PHOTOMETRIC_TAG) == _MIN_IS_WHITE:
            raise ValueError(
                "says that 0 is white, and has numbers of 32 bits, whose black it does not name: "
                "convert it so that 0 is black"
            )
        return np.dtype(np.float32)
    if image.mode == "L" and _sample_format(image) == _SIGNED:
        raise ValueError(
            "has signed integers of 8 bits, which Pillow reads as unsigned: convert it to "
            "16 or 32 bits"
        )
    if image.mode not in {"1", "L"} | _COLORS | _TRANSPARENT:
        raise ValueError(f"has Pillow's mode {image.mode!r}: convert it to gray or RGB")
    return np.dtype(np.uint8)


def _check_planes(image: Any, bits: int) -> None:
    """Refuse planes of channels that Pillow misreads: it takes a letter of the layout for each."""
    if bits > 8 or (bits < 8 and (bits, image.mode) != (1, "1")):
        raise ValueError(
            f"has {bits} bits a channel and a plane for each channel, which Pillow misreads: "
            "convert it to 8 bits, or write the channels interleaved"
        )
    if image.mode in ("1", "L") and image.tag_v2.get(_PHOTOMETRIC_TAG) == _MIN_IS_WHITE:
        raise ValueError(
            "says that 0 is white and has a plane for each channel, which Pillow misreads: convert "
            "it so that 0 is black"
        )
    if image.tag_v2.get(_FILL_ORDER_TAG) == _LOWEST_BIT_FIRST:
        raise ValueError(
            "begins bytes with their lowest bit and has a plane for each channel, which Pillow "
            "misreads: write the channels interleaved"
        )


def _is_swapped(image: Any) -> bool:
    """Whether Pillow turns the bytes that libtiff has turned already."""
    is_decoded = bool(image.tile) and image.tile[0][0] == "libtiff"
    return is_decoded and sys.byteorder == "little" and _raw_mode(image) in _HIGHEST_BYTE_FIRST


def _sample_format(image: Any) -> int:
    """Whether the numbers of a TIFF are unsigned, the default, signed or floats."""
    found = getattr(image, "tag_v2", {}).get(_SAMPLE_FORMAT_TAG, _UNSIGNED)
    return int(found[0] if isinstance(found, tuple) else found)


def _is_gray(image: Any) -> bool:
    if image.mode in ("P", "PA"):
        # Image.getpalette would read the pixels first.
        layout, colors = image.palette.getdata()
        # PNG has the colours one by one, TIFF all reds first.
        shape = (3, -1) if layout == "RGB;L" else (-1, len(layout))
        palette = np.frombuffer(bytes(colors), np.uint8).reshape(shape)
        palette = palette if shape[0] == 3 else palette.T[:3]
        return bool((palette == palette[0]).all())
    # Pillow opens gray images of 16 bits with transparency as RGBA.
    return image.mode[0] in "1LIF" or _raw_mode(image).startswith("LA")


def _values(image: Any) -> np.ndarray:
    """Values of the frame that is open, (H, W, n_channels)."""
    dtype, is_gray = _dtype(image), _is_gray(image)
    is_inverted = _is_inverted(image)
    bits = _bit_depth(image)
    is_small = image.format == "PNG" and bits in (2, 4)
    is_unsigned = image.format == "TIFF" and _sample_format(image) == _UNSIGNED
    if dtype == np.uint8 and bits > 8:
        warnings.warn(REDUCED, stacklevel=1)
    turned = pillow().ImageOps.exif_transpose(image)
    if image.mode == "L" and is_small and isinstance(image.info.get("transparency"), int):
        # Pillow scales gray values of 2 and 4 bits to 8, but not the one that is transparent.
        turned.info["transparency"] = image.info["transparency"] * (255 // (2**bits - 1))
    if dtype == np.uint8 and bits == 16 and isinstance(image.info.get("transparency"), tuple):
        # Pillow takes the upper half of each value, but compares the lower one.
        turned.info["transparency"] = tuple(v >> 8 for v in image.info["transparency"])
    if dtype == np.uint8:
        return _bytes(turned, is_gray)
    values = np.asarray(turned)
    if values.dtype == np.int32 and is_unsigned:
        values = values.view(np.uint32)
    if dtype == np.float32 and values.dtype.kind in "iu" and np.abs(values).max() > _LARGEST_EXACT:
        raise ValueError("has integers beyond 2^24, which float32 cannot hold exactly")
    values = values.astype(dtype)
    if dtype == np.uint16 and isinstance(image.info.get("transparency"), int):
        values[values == image.info["transparency"]] = 0
    return (np.iinfo(dtype).max - values if is_inverted else values)[..., None]


def _is_inverted(image: Any) -> bool:
    """Whether 0 is white in a TIFF of 16 bits; Pillow inverts only those of fewer bits."""
    tags = getattr(image, "tag_v2", {})
    return image.mode.startswith("I;16") and tags.get(_PHOTOMETRIC_TAG) == _MIN_IS_WHITE


def _bytes(image: Any, is_gray: bool) -> np.ndarray:
    """Values of an image of up to 8 bits a channel."""
    if image.mode in _TRANSPARENT or "transparency" in image.info:
        if image.mode == "La":
            image = image.convert("LA")
        opaque = image.convert("RGBA")
        black = pillow().Image.new("RGBA", opaque.size, (0, 0, 0, 255))
        image = pillow().Image.alpha_composite(black, opaque).convert("RGB")
    elif image.mode == "L" or image.mode == "1":
        return np.array(image.convert("L"))[..., None]
    values = np.array(image.convert("RGB"))
    return values[..., :1] if is_gray else values
