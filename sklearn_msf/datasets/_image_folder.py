"""Images of the user's own files as one array, with labels, groups and a report."""

import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.utils import Bunch
from tqdm import tqdm

from sklearn_msf._evaluation.labels import as_labels
from sklearn_msf.datasets._collecting import collect
from sklearn_msf.datasets._common_layout import Described, common_layout, sample_size
from sklearn_msf.datasets._folder_contents import FolderContents, folder_contents
from sklearn_msf.datasets._folder_report import ImageFolderReport
from sklearn_msf.datasets._folder_request import FolderRequest, checked_file, checked_request
from sklearn_msf.datasets._image_headers import ImageHeader
from sklearn_msf.datasets._image_reading import Sample, read_sample, read_sample_header
from sklearn_msf.datasets._image_table import table_contents
from sklearn_msf.datasets._pillow_files import REDUCED
from sklearn_msf.datasets._resizing import fit_to_size, to_gray, to_rgb
from sklearn_msf.datasets._shortened_lists import examples, first_of
from sklearn_msf.persistence.paths import as_path
from sklearn_msf.runtime.user_warnings import warn_user

__all__ = ["load_image_folder"]

_PATIENT = "PatientID"
# Characters of a reason; some decoders name every program that is missing.
_LONGEST_TEXT = 400
# Reasons that a message lists.
_N_LISTED = 10


def load_image_folder(
    path: str | os.PathLike[str],
    *,
    labels: Any = None,
    size: int | tuple[int, ...] | None = None,
    color: str = "auto",
    fit: str = "crop",
    groups: str | Callable[[str], Any] | None = None,
    window: tuple[float, float] | str | None = None,
    volumes: bool = False,
    mmap_file: str | os.PathLike[str] | None = None,
    verbose: int = 0,
) -> Bunch:
    """Load images of own files: a folder for each class, or a table of files.

    PNG, JPEG and TIFF are read by Pillow, DICOM by pydicom; the content of a file decides, not its
    name. What cannot be read is left out, with a warning, and is in the report with the reason.

    Parameters
    ----------
    path : path-like
        Folder with a folder for each class, whose name is the label. A folder without folders holds
        images without labels, to predict. Hidden files are ignored, and symbolic links are not
        followed.
    labels : path-like or data frame, default=None
        Table instead of class folders: a CSV file, in UTF-8 with commas, or a data frame. The
        column "file" names files relative to `path`, inside of it. The columns "label" and
        "group" may be absent. Labels of a CSV file are text. Without a column "label" there are no
        labels, as for images to predict.
    size : int or tuple of int, default=None
        Height and width of all images: (height, width), or one number for both. With `volumes` also
        (depth, height, width), and one number is all three; with (height, width) the depth stays.
        Resizing is bicubic and antialiased. None keeps the sizes, which then must be equal.
    color : {"auto", "gray", "rgb"}, default="auto"
        Whether images become gray or RGB. "auto" is gray if all images are gray, and else RGB.
    fit : {"crop", "pad"}, default="crop"
        How an image of other proportions gets the wanted ones: the middle is cut out, or the
        whole image is put between bars: black, or in units of the smallest value of the image.
    groups : "PatientID" or callable, default=None
        Group of each image, such as its patient. "PatientID" takes this element of DICOM files; a
        callable is given each file's name as in `filenames`. None takes the column "group" of the
        table, if there is one.
    window : tuple of (center, width) or "file", default=None
        Shows gray DICOM images as a viewer does, as uint8: values from center - width / 2 to
        center + width / 2 become 0 to 255, or "file" takes the first window, or the lookup table,
        of each file. None keeps the values in their units, such as Hounsfield units.
    volumes : bool, default=False
        Whether a sample is a volume: a file of several frames, a folder of slices inside the folder
        of its class, or the rows of a table with the same entry in the column "volume". Slices of
        DICOM files are ordered by their position or else their number, others as their rows are in
        a table, and in a folder by their name, in which 2 comes before 10. If False, files of
        several frames are left out.
    mmap_file : path-like, default=None
        New .npy file, outside of `path`, to which the images are written one by one; `data` is
        mapped from it. It is yours: `np.load(mmap_file, mmap_mode="r")` opens it again. None keeps
        the images in memory. If they need more than a quarter of it, they go to a temporary file,
        which is deleted when `data` is no longer used.
    verbose : int, default=0
        Whether to show progress bars.

    Returns
    -------
    Bunch
        data : ndarray of shape (n, H, W) or (n, H, W, 3), with volumes (n, D, H, W) or \
(n, D, H, W, 3)
            uint8 or uint16 in the range of the files, or float32 for gray DICOM images in their
            units, signed TIFF and TIFF of floats. One bit becomes 0 and 255. Read-only if it is a
            memory map.
        target : ndarray of shape (n,) or None
            The labels themselves, names of folders or entries of the table, so that two folders
            agree even if one lacks a class. None without labels.
        target_names : list
            The classes, sorted as in `classes_` of a classifier; empty without labels.
        groups : ndarray of shape (n,) or None
            Groups.
        filenames : ndarray of shape (n,), str
            Files relative to `path`, with "/", or the names of volumes. Folders are sorted by name,
            numbers in names as numbers; a table keeps its order.
        report : ImageFolderReport
            `unreadable` files with reasons, `ignored` files, `remarks` of the libraries, and counts
            of `sizes`, `bit_depths`, `modes` and `modalities`; `print` shows all of it.

    Raises
    ------
    ValueError
        If no file can be read, with reasons; if the folder or the table is not as described; if
        images have several sizes and `size` is None, or several dtypes.
    OSError
        If the folder or the table is missing, if `mmap_file` exists, or if the disk is full.
    ImportError
        If Pillow or, for DICOM files, pydicom is not installed.

    Warns
    -----
    UserWarning
        If files are left out, lose bits, or are of several modalities or numbers of bits; if a
        class has no image that can be read, or there is one class only; if some volumes are single
        slices; and if a table has groups or volumes whose names differ in case, spaces or forms of
        letters alone.

    See Also
    --------
    fetch_medmnist : Images of MedMNIST.

    Notes
    -----
    A file of more than 2^28 values is not read, nor one that Pillow takes for a decompression bomb:
    one of more than twice ``PIL.Image.MAX_IMAGE_PIXELS``.
    Memory is needed for `data` and one file.
    """
    root = as_path("path", path)
    request = checked_request(size, color, fit, window, volumes)
    file = checked_file(mmap_file, root)
    contents = _contents(root, labels, volumes, has_groups=groups is not None)
    _check_groups(groups, contents)
    report = ImageFolderReport(unreadable=contents.refused, ignored=contents.ignored)
    described = _with_groups(_described(root, contents, request, report, verbose), groups)
    if volumes:
        _check_slices(root, described)
    shape, dtype = common_layout(described, request)
    kept: list[Sample] = []

    def images() -> Iterator[np.ndarray]:
        for sample, header in tqdm(described, "Reading images", disable=not verbose):
            image = None
            with _noting(report, sample.name):
                frames = read_sample(root, sample, header, request.window)
                image = _made(frames, shape, request)
            if image is not None:
                kept.append(sample)
                report.add(header, sample_size(header, request))
                yield image
        _check_any_read(root, report, request)

    data = collect(images(), (len(described), *shape), dtype, file)
    bunch = _bunch(data, kept, contents, groups, report)
    _warn(bunch, contents)
    read = set(bunch.filenames.tolist())
    _warn_of_bit_depths([header for sample, header in described if sample.name in read])
    return bunch


def _contents(root: Path, labels: Any, volumes: bool, has_groups: bool) -> FolderContents:
    """List the samples of a folder or of a table."""
    if not root.is_dir():
        error = NotADirectoryError if root.exists() else FileNotFoundError
        raise error(f"path={str(root)!r} is no folder.")
    if labels is None:
        return folder_contents(root, volumes=volumes)
    return table_contents(root, labels, volumes=volumes, has_groups=has_groups)


def _check_groups(groups: Any, contents: FolderContents) -> None:
    if groups is None:
        return
    if not callable(groups) and not (isinstance(groups, str) and groups == _PATIENT):
        raise ValueError(
            f"groups must be None, {_PATIENT!r} or a function of a file's name, got {groups!r}."
        )
    if contents.is_grouped:
        raise ValueError("Pass either groups or a table with a column 'group', not both.")


@contextmanager
def _noting(report: ImageFolderReport, name: str) -> Iterator[None]:
    """Note what libraries warn of, and an error as the reason why a file is not read."""
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
    except ImportError:
        raise
    # Libraries raise whatever a damaged file makes of them.
    except Exception as error:
        report.unreadable[name] = _reason(error)
    for warning in caught:
        remarks = report.remarks.setdefault(name, [])
        text = _one_line(str(warning.message))
        if text not in remarks:
            remarks.append(text)


def _reason(error: Exception) -> str:
    """Describe an error; the short ones of libraries say little without their type."""
    text = _one_line(str(error))
    return text if type(error) is ValueError and text else f"{type(error).__name__}: {text}"


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST_TEXT else f"{line[:_LONGEST_TEXT]}..."


def _described(
    root: Path,
    contents: FolderContents,
    request: FolderRequest,
    report: ImageFolderReport,
    verbose: int,
) -> list[Described]:
    """Read the headers of all samples."""
    described = []
    for sample in tqdm(contents.samples, "Reading headers", disable=not verbose):
        with _noting(report, sample.name):
            described.append(
                read_sample_header(root, sample, request.window, volumes=request.volumes)
            )
    if not described:
        _check_any_read(root, report, request)
    return described


def _check_slices(root: Path, described: list[Described]) -> None:
    """Refuse volumes that are all slices outside of a folder for each volume, and warn of some."""
    single = [sample for sample, header in described if header.n_frames == 1]
    names = [sample.name for sample in single]
    if len(described) == sum(sample.files == (sample.name,) for sample in single):
        raise ValueError(
            f"volumes=True, but each of the {len(single)} samples in path={str(root)!r} is a "
            f"single slice ({examples(names)}). Put the slices of a volume into a folder inside "
            "of that of its class, or pass labels, a table that names folders of slices in the "
            "column 'file', or the volume of each slice in the column 'volume'; without a column "
            "'label' it is for volumes to predict."
        )
    if single:
        warn_user(
            f"volumes=True, but {len(single)} of {len(described)} volumes are single slices: "
            f"{examples(names)}."
        )


def _check_any_read(root: Path, report: ImageFolderReport, request: FolderRequest) -> None:
    if report.n_read:
        return
    if not report.unreadable:
        ignored = f" Ignored: {examples(report.ignored)}." if report.ignored else ""
        slices = ", or a folder of slices for each volume" * request.volumes
        raise ValueError(
            f"path={str(root)!r} holds no image. What is read: a folder for each class with "
            f"images in it{slices}, images alone (then there are no labels), or with labels the "
            f"files of a table; in the formats of Pillow and DICOM.{ignored}"
        )
    raise ValueError(
        f"None of {len(report.unreadable)} files in path={str(root)!r} can be read: "
        f"{_reasons(report)}."
    )


def _reasons(report: ImageFolderReport) -> str:
    """Write the first file of each reason, and how many files have it."""
    first: dict[str, str] = {}
    for name, reason in report.unreadable.items():
        first.setdefault(reason, name)
    counts = Counter(report.unreadable.values())
    texts = [
        f"{name!r}: {reason}" + (f" (and {counts[reason] - 1} more)" * (counts[reason] > 1))
        for reason, name in first.items()
    ]
    return first_of(texts, _N_LISTED, "; ", "other reasons")


def _with_groups(described: list[Described], groups: Any) -> list[Described]:
    """Add the groups that are not in a table."""
    if groups is None:
        return described
    if groups == _PATIENT:
        values: list[Any] = [header.patient for _, header in described]
        absent = [sample.name for sample, header in described if header.patient is None]
        if absent:
            raise ValueError(
                f"groups={_PATIENT!r}, but {len(absent)} files have no {_PATIENT}: "
                f"{examples(absent)}. Pass a function of the file's name, or a table."
            )
    else:
        values = [groups(sample.name) for sample, _ in described]
    checked = as_labels("groups", values)
    if checked.ndim != 1:
        raise ValueError(f"groups must give one value for each file, got {values[0]!r}.")
    return [
        (replace(sample, group=group), header)
        for (sample, header), group in zip(described, checked.tolist(), strict=True)
    ]


def _made(frames: np.ndarray, shape: tuple[int, ...], request: FolderRequest) -> np.ndarray:
    """Make the image of the frames of a sample, of the common shape."""
    n_spatial = 3 if request.volumes else 2
    has_colours = len(shape) > n_spatial
    if not has_colours:
        frames = to_gray(frames)
    frames = fit_to_size(frames, shape[:n_spatial], request.fit)
    # Gray images are resized once, and not three times.
    return (to_rgb(frames) if has_colours else frames).reshape(shape)


def _bunch(
    data: np.ndarray,
    kept: list[Sample],
    contents: FolderContents,
    groups: Any,
    report: ImageFolderReport,
) -> Bunch:
    target = np.array([sample.label for sample in kept]) if contents.is_labelled else None
    is_grouped = groups is not None or contents.is_grouped
    return Bunch(
        data=data,
        target=target,
        target_names=[] if target is None else np.unique(target).tolist(),
        groups=np.array([sample.group for sample in kept]) if is_grouped else None,
        filenames=np.array([sample.name for sample in kept]),
        report=report,
    )


def _warn_of_bit_depths(headers: list[ImageHeader]) -> None:
    """Warn of gray DICOM images without units whose values use different numbers of bits."""
    depths = Counter(
        header.bits_without_units for header in headers if header.bits_without_units is not None
    )
    if len(depths) > 1:
        counts = " and ".join(f"{n} have {bits}" for bits, n in sorted(depths.items()))
        warn_user(
            f"Of the gray DICOM images {counts} bits, and all are kept as they are: unless their "
            "values are in units, those of fewer bits may be nearly black beside the others. Pass "
            "a window, or load each kind by itself and bring all to one range."
        )


def _warn(bunch: Bunch, contents: FolderContents) -> None:
    """Warn of what was left out, and of data that are hardly what was meant."""
    report, names = bunch.report, bunch.target_names
    n_out = len(report.unreadable)
    if n_out:
        warn_user(
            f"{n_out} of {n_out + report.n_read} files are left out: {_reasons(report)}. "
            "report.unreadable has all of them."
        )
    reduced = [name for name, remarks in report.remarks.items() if REDUCED in remarks]
    if reduced:
        warn_user(f"Of {len(reduced)} files each {REDUCED}: {examples(reduced)}.")
    if len(report.modalities) > 1:
        warn_user(
            f"The images are of several modalities, {dict(report.modalities)}: if their values do "
            "not mean the same, load each modality by itself."
        )
    if bunch.target is None:
        return
    lost = {*contents.classes, *(sample.label for sample in contents.samples)}.difference(names)
    if lost:
        warn_user(f"No image of the classes {examples(sorted(lost, key=str))} could be read.")
    elif len(names) == 1:
        warn_user(f"All images are of one class, {names[0]!r}; fit needs two or more.")
