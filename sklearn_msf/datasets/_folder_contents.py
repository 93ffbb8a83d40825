"""Which files are samples of which class: from the folders they are in, or from a table."""

import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sklearn_msf._evaluation.labels import describe_alike, names_alike
from sklearn_msf.datasets._image_reading import Sample, is_image
from sklearn_msf.datasets._shortened_lists import examples

__all__ = [
    "LINK",
    "FolderContents",
    "add_volume",
    "check_case",
    "composed",
    "folder_contents",
    "scan",
]

# Files and folders that systems and programs leave behind, in lower case; and all whose name begins
# with a dot. DICOMDIR is an index; the last are recycle bins and folders of file systems.
_HIDDEN = {
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "dicomdir"),
    *("#recycle", "@recycle", "@eadir", "$recycle.bin", "system volume information", "lost+found"),
}
LINK = "is a symbolic link, which is not followed"


@dataclass
class FolderContents:
    """Samples, and what is none.

    Attributes
    ----------
    samples : list of Sample
        In their final order.
    is_labelled, is_grouped : bool
        Whether the samples have labels and groups.
    refused : dict of str to str
        Files that are not read, with the reason.
    ignored : list of str
        Hidden files, and files beside the class folders that are no images.
    classes : list
        Names of the class folders, or the different labels of a table.
    """

    samples: list[Sample] = field(default_factory=list)
    is_labelled: bool = False
    is_grouped: bool = False
    refused: dict[str, str] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    classes: list[Any] = field(default_factory=list)


@dataclass
class _Entries:
    """What is directly in a folder, sorted."""

    files: list[str]
    folders: list[str]
    refused: dict[str, str]
    ignored: list[str]


def folder_contents(root: Path, *, volumes: bool) -> FolderContents:
    """List the samples of a folder with a folder for each class, or with images only.

    Parameters
    ----------
    root : Path
        The folder.
    volumes : bool
        Whether a folder inside a class folder holds the slices of a volume.

    Raises
    ------
    ValueError
        If there are no files, if images lie beside the class folders, if class folders are empty
        or have the same name but for its case, or if there are folders further inside.
    """
    top = scan(root)
    contents = FolderContents([], bool(top.folders), False, top.refused, top.ignored)
    if not top.folders:
        contents.samples = [Sample(file, (file,)) for file in top.files]
        return contents
    beside = [file for file in top.files if is_image(root / file)]
    if beside:
        raise ValueError(
            f"{str(root)!r} holds images ({examples(beside)}) beside folders "
            f"({examples(top.folders)}): put every image into the folder of its class, or pass "
            "labels, a table of files."
        )
    contents.ignored += top.files
    check_case("class folders", top.folders)
    for label in top.folders:
        _add_class(contents, root, label, volumes)
    return contents


def composed(name: str) -> str:
    """Bring a name to one form: accents may be letters of their own, as on macOS."""
    return unicodedata.normalize("NFC", name)


def _add_class(contents: FolderContents, root: Path, label: str, volumes: bool) -> None:
    """Add the samples of a class folder."""
    inside, folder = scan(root, label), root / label
    label = composed(label)
    contents.classes.append(label)
    _take_over(contents, inside)
    contents.samples += [Sample(file, (file,), label) for file in inside.files]
    if not volumes:
        _check_no_folders(root, inside.folders, volumes)
    for volume in inside.folders:
        slices = scan(root, volume)
        _check_no_folders(root, slices.folders, volumes)
        add_volume(contents, Sample(volume, tuple(slices.files), label), slices)
    if not (inside.files or inside.folders or inside.refused):
        raise ValueError(
            f"The class folder {str(folder)!r} is empty: delete it, or put its images there."
        )


def add_volume(contents: FolderContents, sample: Sample, slices: _Entries) -> None:
    """Add a folder of slices, unless one of them must not be read or there are none."""
    contents.ignored += slices.ignored
    if slices.refused:
        name, reason = next(iter(slices.refused.items()))
        contents.refused[sample.name] = f"slice {name!r} {reason}"
    elif slices.files:
        contents.samples.append(sample)
    else:
        contents.refused[sample.name] = "is an empty folder"


def _take_over(contents: FolderContents, entries: _Entries) -> None:
    contents.refused.update(entries.refused)
    contents.ignored += entries.ignored


def _check_no_folders(root: Path, folders: Sequence[str], volumes: bool) -> None:
    if folders:
        ways = "pass labels, a table of files with a label for each"
        if not volumes:
            ways += ", or volumes=True if each of them holds the slices of one volume"
        raise ValueError(
            f"{str(root)!r} has folders too far inside ({examples(folders)}); only the folders of "
            f"classes are read. Pass one of the inner folders as path, or {ways}."
        )


def scan(root: Path, folder: str = "") -> _Entries:
    """List what is directly in a folder, in an order that no locale and file system changes."""
    entries = _Entries([], [], {}, [])
    with os.scandir(root / folder) as found:
        for entry in sorted(found, key=lambda entry: _natural(entry.name)):
            name = f"{folder}/{entry.name}" if folder else entry.name
            if entry.name.startswith(".") or entry.name.lower() in _HIDDEN:
                entries.ignored.append(name)
            elif entry.is_symlink():
                entries.refused[name] = LINK
            elif entry.is_dir():
                entries.folders.append(name)
            elif entry.is_file():
                entries.files.append(name)
            else:
                entries.refused[name] = "is no regular file"
    return entries


def _natural(name: str) -> tuple[list[str | int], str]:
    """Sort numbers in names as numbers: slice_2 before slice_10."""
    parts = re.split("([0-9]+)", name)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def check_case(what: str, names: Iterable[str]) -> None:
    """Refuse names that differ in nothing but case, spaces around them or Unicode's forms."""
    alike = names_alike(names)
    if alike is not None:
        raise ValueError(f"The {what} have {describe_alike(alike)}: give one class one name.")
