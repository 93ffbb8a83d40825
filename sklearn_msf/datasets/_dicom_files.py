"""Images of DICOM files, read by pydicom."""

import copy
import math
import zlib
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from sklearn_msf.datasets._image_headers import MAX_FILE_BYTES, ImageHeader, check_file_size
from sklearn_msf.runtime.optional_imports import importing

__all__ = ["PREFIX", "PREFIX_AT", "Window", "read_header", "read_pixels"]

# Center and width, "file" for those of the file, or None for values in their units.
Window = tuple[float, float] | str | None

PREFIX, PREFIX_AT = b"DICM", 128
_GRAY = ("MONOCHROME1", "MONOCHROME2")
_PALETTE = "PALETTE COLOR"
# pydicom or the decoder converts the others to RGB.
_COLORS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", _PALETTE)
# Elements that say what the values mean and how to show them. In multi-frame files of newer kinds
# they are in these sequences, for all frames or for each.
_MEANING = (
    "ModalityLUTSequence",
    "RescaleIntercept",
    "RescaleSlope",
    "VOILUTSequence",
    "WindowCenter",
    "WindowWidth",
    "VOILUTFunction",
)
_MACROS = ("PixelValueTransformationSequence", "FrameVOILUTSequence")
# Elements that are larger, which no header needs, are left in the file.
_DEFERRED_BYTES = 2**20
_BYTES_AT_ONCE = 2**20
# Of a palette whose descriptor says 0, because the number does not fit into its 16 bits.
_MOST_COLORS = 2**16


def _pydicom() -> Any:
    """Import pydicom, or say how to install it."""
    with importing('DICOM files need pydicom: python -m pip install "sklearn-msf[dicom]".'):
        import pydicom
        import pydicom.pixels
    return pydicom


def read_header(path: Path, window: Window) -> ImageHeader:
    """Read the header of a file, without its pixels.

    Raises
    ------
    ValueError
        With the reason why the file cannot be read.
    """
    return _header(_opened(path, stop_before_pixels=True, defer_size=_DEFERRED_BYTES), window)


def read_pixels(path: Path, window: Window) -> np.ndarray:
    """Read the pixels of a file.

    Gray values are rescaled to their units by slope and intercept or by the modality lookup table.
    MONOCHROME1, in which low values are white, is inverted: within the range that the stored bits
    allow, or after the window.

    Parameters
    ----------
    path : Path
        The file.
    window : tuple of (center, width), "file" or None
        Gray values from center - width / 2 to center + width / 2 become 0 to 255; "file" takes the
        first window or lookup table of the file.

    Returns
    -------
    ndarray of shape (n_frames, H, W, n_channels)
        Gray: float32 in the units of the file, or uint8 with a window. RGB: uint8 or uint16.
    """
    dataset = _opened(path)
    header = _header(dataset, window)
    try:
        stored = _stored(dataset, header.n_frames)
    except NotImplementedError as error:
        syntax = dataset.file_meta.get("TransferSyntaxUID")
        raise ValueError(
            f"has the transfer syntax {getattr(syntax, 'name', syntax)}, which pydicom cannot "
            "decode: convert the file to Explicit VR Little Endian with a program that knows this "
            "syntax, or export the frames of a video as images"
        ) from error
    n_samples = 1 if header.mode in (*_GRAY, _PALETTE) else 3
    shape = (header.n_frames, *header.size, n_samples)
    if stored.size != math.prod(shape):
        raise ValueError(f"has pixels of shape {stored.shape}, but its header says {shape}")
    frames = stored.reshape(shape)
    if header.mode == _PALETTE:
        return _with_palette(frames[..., 0], dataset)
    if header.n_channels == 3:
        return frames.astype(header.dtype)
    return np.stack([_gray(frames[i, ..., 0], dataset, i, window) for i in range(len(frames))])


def _stored(dataset: Any, n_frames: int) -> np.ndarray:
    """Decode the frames; refuse more of them than the header says before they take memory."""
    pydicom = _pydicom()
    decoder = pydicom.pixels.get_decoder(dataset.file_meta.TransferSyntaxUID)
    if not decoder.is_encapsulated:
        # The size of the file bounds them.
        return pydicom.pixels.pixel_array(dataset)
    tables = [dataset.get(name) for name in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")]
    frames = pydicom.encaps.generate_frames(
        dataset.PixelData,
        number_of_frames=n_frames,
        extended_offsets=None if None in tables else tables,
    )
    if sum(1 for _ in islice(frames, n_frames + 1)) > n_frames:
        raise ValueError(f"holds more frames than its header says ({n_frames})")
    return pydicom.pixels.pixel_array(dataset, allow_excess_frames=False)


def _opened(path: Path, **options: Any) -> Any:
    """Read a data set, unless it would be too large."""
    check_file_size(path)
    pydicom = _pydicom()
    meta = pydicom.filereader.read_file_meta_info(path)
    if meta.get("TransferSyntaxUID") == pydicom.uid.DeflatedExplicitVRLittleEndian:
        _check_deflated_size(path, int(meta.FileMetaInformationGroupLength))
    return pydicom.dcmread(path, **options)


def _check_deflated_size(path: Path, meta_length: int) -> None:
    """Refuse a deflated data set that would be too large once it is inflated."""
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    n_bytes = 0
    with open(path, "rb") as file:
        # The group length, an element of 12 bytes, counts the bytes behind itself.
        file.seek(PREFIX_AT + len(PREFIX) + 12 + meta_length)
        while not inflate.eof and (block := inflate.unconsumed_tail or file.read(_BYTES_AT_ONCE)):
            n_bytes += len(inflate.decompress(block, _BYTES_AT_ONCE))
            if n_bytes > MAX_FILE_BYTES:
                raise ValueError(f"has more than {MAX_FILE_BYTES:,} bytes once it is inflated")


def _header(dataset: Any, window: Window) -> ImageHeader:
    if "Rows" not in dataset or "Columns" not in dataset:
        kind = getattr(dataset.get("SOPClassUID"), "name", "of no known kind")
        raise ValueError(f"DICOM without pixels: {kind}")
    photometric = str(dataset.get("PhotometricInterpretation", ""))
    if photometric not in (*_GRAY, *_COLORS):
        raise ValueError(f"has the photometric interpretation {photometric!r}")
    n_stored = _number(dataset, "BitsStored", dataset.get("BitsAllocated"))
    if _number(dataset, "HighBit", n_stored - 1) != n_stored - 1:
        raise ValueError(
            f"has its {n_stored} bits elsewhere than at the lower end (HighBit "
            f"{dataset.HighBit}), where pydicom does not look"
        )
    return ImageHeader(
        size=(_number(dataset, "Rows"), _number(dataset, "Columns")),
        n_frames=_number(dataset, "NumberOfFrames", 1),
        n_channels=1 if photometric in _GRAY else 3,
        dtype=_dtype(dataset, photometric, window),
        bit_depth=n_stored,
        mode=photometric,
        modality=_text(dataset, "Modality"),
        patient=_text(dataset, "PatientID"),
        series=_text(dataset, "SeriesInstanceUID"),
        position=_position(dataset),
        orientation=_orientation(dataset),
    )


def _dtype(dataset: Any, photometric: str, window: Window) -> np.dtype:
    if photometric in _GRAY:
        return np.dtype(np.float32 if window is None else np.uint8)
    bits = _number(dataset, "BitsAllocated")
    if photometric == _PALETTE or bits <= 8:
        return np.dtype(np.uint8)
    if bits > 16:
        raise ValueError(f"has colours of {bits} bits a channel; at most 16 are read")
    return np.dtype(np.uint16)


def _number(dataset: Any, keyword: str, default: Any = None) -> int:
    """Read a whole number, or take the default if it is absent or empty."""
    try:
        # pydicom converts the text of NumberOfFrames here.
        value = dataset.get(keyword)
        return int(default if value is None else value)
    except (TypeError, ValueError):
        raise ValueError(f"has no whole number as {keyword}") from None


def _text(dataset: Any, keyword: str) -> str | None:
    value = dataset.get(keyword)
    return str(value) if value else None


def _orientation(dataset: Any) -> tuple[float, ...] | None:
    """Directions of the rows and of the columns."""
    axes = dataset.get("ImageOrientationPatient")
    return tuple(float(value) for value in axes) if axes and len(axes) == 6 else None


def _position(dataset: Any) -> tuple[str, float] | None:
    """Place of a slice in its series: in mm along the normal of the slices, or its number."""
    origin, axes = dataset.get("ImagePositionPatient"), _orientation(dataset)
    if origin and axes:
        normal = np.cross(axes[:3], axes[3:])
        return "ImagePositionPatient", float(normal @ np.asarray(origin, float))
    number = dataset.get("InstanceNumber")
    return None if number is None else ("InstanceNumber", float(number))


def _with_palette(indices: np.ndarray, dataset: Any) -> np.ndarray:
    """Look up colours, with 8 bits a channel."""
    n_colors, first, n_bits = (int(n) for n in dataset.RedPaletteColorLookupTableDescriptor)
    last = first + (n_colors or _MOST_COLORS) - 1
    # pydicom counts positions in the type of the entries: of 8 bits, 256 would be 0.
    indices = np.clip(indices.astype(np.int64), first, last)
    colors = np.stack([_pydicom().pixels.apply_color_lut(frame, dataset) for frame in indices])
    stored = dataset.get("RedPaletteColorLookupTableData")
    is_swapped = stored is not None and not dataset.file_meta.TransferSyntaxUID.is_little_endian
    if is_swapped and colors.dtype == np.uint16:
        # pydicom reads the entries in the byte order of the machine.
        colors = colors.byteswap()
    if colors.dtype == np.uint8:
        if last - first > np.iinfo(np.uint8).max:
            raise ValueError(
                f"has a palette of {last - first + 1} colours of 8 bits, of which pydicom finds 256"
            )
        return colors
    # Entries of 8 bits may be stored in 16, as they are or in the upper half.
    palette = np.frombuffer(stored or b"", ">u2" if is_swapped else "<u2")
    in_lower_half = n_bits == 8 and palette.max(initial=0) < 256
    return (colors if in_lower_half else colors >> 8).astype(np.uint8)


def _gray(stored: np.ndarray, dataset: Any, frame: int, window: Window) -> np.ndarray:
    """Gray values of a frame, (H, W, 1), in which high values are white."""
    pixels, meaning = _pydicom().pixels, _meaning(dataset, frame)
    if stored.dtype.kind in "iu":
        # pydicom subtracts the first value of a table in the type of the stored ones.
        stored = stored.astype(np.int64)
    values = pixels.apply_modality_lut(stored, meaning)
    is_inverted = dataset.PhotometricInterpretation == "MONOCHROME1"
    if window is not None:
        shown = _through_window(values, meaning, window)
        return (255 - shown if is_inverted else shown)[..., None]
    if is_inverted:
        ends = np.array(_stored_range(dataset), dtype=stored.dtype)
        ends = pixels.apply_modality_lut(ends, meaning).astype(np.float64)
        values = ends.sum() - values
    return values.astype(np.float32)[..., None]


def _stored_range(dataset: Any) -> tuple[int, int]:
    """Smallest and largest value that the stored bits can hold."""
    n_values = 2 ** int(dataset.BitsStored)
    low = -(n_values // 2) if int(dataset.PixelRepresentation) else 0
    return low, low + n_values - 1


def _meaning(dataset: Any, frame: int) -> Any:
    """Collect the elements of a frame that say what its values mean."""
    sources = [dataset]
    for keyword, item in (
        ("SharedFunctionalGroupsSequence", 0),
        ("PerFrameFunctionalGroupsSequence", frame),
    ):
        for group in list(dataset.get(keyword) or [])[item : item + 1]:
            sources += [group[macro][0] for macro in _MACROS if group.get(macro)]
    meaning = _pydicom().Dataset()
    # Lookup tables are read in the order of bytes of the file.
    meaning.file_meta = dataset.file_meta
    for source in sources:
        for keyword in _MEANING:
            if keyword in source and not source[keyword].is_empty:
                meaning.add(source[keyword])
    has_slope, has_intercept = (f"Rescale{name}" in meaning for name in ("Slope", "Intercept"))
    if has_slope != has_intercept and "ModalityLUTSequence" not in meaning:
        raise ValueError("has only one of RescaleSlope and RescaleIntercept")
    return meaning


def _through_window(values: np.ndarray, meaning: Any, window: Window) -> np.ndarray:
    """Map values to 0 to 255 as a viewer shows them, uint8."""
    pydicom = _pydicom()
    if window == "file" and "WindowCenter" not in meaning and meaning.get("VOILUTSequence"):
        table = copy.deepcopy(meaning.VOILUTSequence[0])
        n_entries, first, n_bits = table.LUTDescriptor
        # pydicom counts the entries in the type that has so many bits: 8 are too few for 257.
        table.LUTDescriptor = [n_entries, first, 16]
        display = pydicom.Dataset()
        display.file_meta, display.VOILUTSequence = meaning.file_meta, [table]
        shown = pydicom.pixels.apply_voi(values, display)
        largest = 2 ** int(n_bits) - 1
        if shown.max() > largest:
            raise ValueError(f"its lookup table has values of more than its {n_bits} bits")
        return np.rint(shown * (255.0 / largest)).astype(np.uint8)
    # pydicom maps to the range of the stored bits: of eight bits, here.
    display = pydicom.Dataset()
    display.PhotometricInterpretation, display.BitsStored = "MONOCHROME2", 8
    display.PixelRepresentation = 0
    if window == "file":
        if "WindowCenter" not in meaning or "WindowWidth" not in meaning:
            raise ValueError("has no window: pass window=(center, width) or window=None")
        for keyword in ("WindowCenter", "WindowWidth", "VOILUTFunction"):
            if keyword in meaning:
                display.add(meaning[keyword])
    else:
        assert isinstance(window, tuple)
        display.WindowCenter, display.WindowWidth = window
        display.VOILUTFunction = "LINEAR_EXACT"
    return np.rint(pydicom.pixels.apply_windowing(values, display)).astype(np.uint8)
