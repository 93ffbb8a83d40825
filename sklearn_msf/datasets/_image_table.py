"""Samples that a table names: a CSV file or a data frame with the columns file, label, group."""

import csv
import os
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from sklearn_msf._evaluation.labels import as_labels, is_missing, warn_of_alike
from sklearn_msf.datasets._folder_contents import (
    LINK,
    FolderContents,
    add_volume,
    check_case,
    composed,
    scan,
)
from sklearn_msf.datasets._image_reading import Sample
from sklearn_msf.datasets._shortened_lists import examples, first_of
from sklearn_msf.persistence.paths import as_path
from sklearn_msf.runtime.user_warnings import warn_user

__all__ = ["table_contents"]

_COLUMNS = ("file", "label", "group", "volume")
# What columns are called that should be the group, without "_" and in lower case.
_PATIENTS = {"patient", "patientid", "patientnumber", "subject", "subjectid"}
# What programs write for a missing value in a CSV file, in lower case. "none" may be a class.
_MISSING = {"", "nan", "na", "n/a", "#n/a", "<na>", "null"}


def table_contents(
    root: Path, table: Any, *, volumes: bool, has_groups: bool = False
) -> FolderContents:
    """List the samples that a table names, in the order of its rows.

    Parameters
    ----------
    root : Path
        Folder that the files are in.
    table : path-like or data frame
        Has a column "file", and may have "label", "group" and, with `volumes`, "volume".
    volumes : bool
        Whether rows with the same volume are slices of one volume, and a folder in the column
        "file" holds the slices of one.
    has_groups : bool
        Whether the groups come from elsewhere: a column of patients then needs no other name.

    Raises
    ------
    ValueError
        For missing columns and values, files that are not there, are outside of the folder or are
        named twice, and labels whose names differ only in case. The message names rows.
    OSError
        If `table` is a path, but of no file that can be read.
    """
    columns = _columns(table, has_groups)
    _check_columns(columns, volumes)
    files = _checked_files(root, columns["file"], volumes)
    labels = _checked_labels("label", columns)
    groups = _checked_labels("group", columns)
    contents = FolderContents(
        is_labelled="label" in columns, is_grouped="group" in columns, refused=_links(root, files)
    )
    if contents.is_labelled:
        # Also those of which no file is read.
        contents.classes = list(dict.fromkeys(labels))
    samples = [
        Sample(file, (file,), label, group)
        for file, label, group in zip(files, labels, groups, strict=True)
    ]
    if "volume" in columns:
        samples = _joined(samples, _checked_labels("volume", columns))
    for sample in samples:
        _add(contents, root, sample)
    return contents


def _add(contents: FolderContents, root: Path, sample: Sample) -> None:
    """Add a sample, unless one of its files must not be read."""
    links = [file for file in sample.files if file in contents.refused]
    n_files = len(sample.files)
    if not links and n_files > 1 and any((root / file).is_dir() for file in sample.files):
        raise ValueError(
            f"The volume {sample.name!r} has {n_files} rows in labels, of which some name folders: "
            "name one folder, or every slice."
        )
    if links and links != [sample.name]:
        contents.refused[sample.name] = f"slice {links[0]!r} {LINK}"
    elif not links and (root / sample.files[0]).is_dir():
        slices = scan(root, sample.files[0])
        found = Sample(sample.name, tuple(slices.files), sample.label, sample.group)
        if slices.folders:
            contents.refused[sample.name] = f"holds folders: {examples(slices.folders)}"
        else:
            add_volume(contents, found, slices)
    elif not links:
        contents.samples.append(sample)


def _columns(table: Any, has_groups: bool) -> dict[str, list[Any]]:
    """Read the columns that have a meaning here."""
    if isinstance(table, (str, os.PathLike)):
        return _csv_columns(as_path("labels", table), has_groups)
    if isinstance(table, Mapping) or not hasattr(table, "columns"):
        raise ValueError(
            "labels must be None, the path of a CSV file or a data frame with the columns file, "
            f"label and group, got {type(table).__name__}."
        )
    names = [str(name) for name in table.columns]
    _check_file_column(names, has_groups)
    return {name: np.asarray(table[name]).tolist() for name in _COLUMNS if name in names}


def _csv_columns(path: Path, has_groups: bool) -> dict[str, list[Any]]:
    """Read the columns of a CSV file; all values are text, and missing ones None."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            names = next(reader, [])
            rows = [row for row in reader if row]
    except (FileNotFoundError, IsADirectoryError) as error:
        raise type(error)(f"labels={str(path)!r} is no file.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(
            f"labels={str(path)!r} is no CSV file in UTF-8 with commas: {error}."
        ) from error
    _check_file_column(names, has_groups)
    wrong = [i for i, row in enumerate(rows) if len(row) != len(names)]
    if wrong:
        raise ValueError(
            f"labels={str(path)!r} has {len(names)} columns, but {len(rows[wrong[0]])} values in "
            f"row {wrong[0]}: put values that contain commas into quotes."
        )
    columns = dict(zip(names, zip(*rows, strict=True), strict=True)) if rows else {}
    return {
        name: [_given(name, value) for value in columns.get(name, ())]
        for name in _COLUMNS
        if name in names
    }


def _given(column: str, value: str) -> str | None:
    """Return the text in a CSV file, or None for a missing value; a file may be called NA."""
    missing = {""} if column == "file" else _MISSING
    return None if value.strip().lower() in missing else value


def _check_file_column(names: list[str], has_groups: bool) -> None:
    doubled = sorted({name for name in names if name in _COLUMNS and names.count(name) > 1})
    if "file" not in names or doubled:
        raise ValueError(
            "labels must be a table with one column 'file', and 'label' and 'group' if there are "
            f"any, separated by commas; got the columns {names}."
        )
    for name in names:
        meant = name.strip().lower().removesuffix("s")
        # What is no volume of slices may well have one in millilitres.
        if name not in _COLUMNS and meant in _COLUMNS[:-1] and meant not in names:
            raise ValueError(
                f"labels has a column {name!r}, which would be ignored: call it {meant!r}, or "
                "leave it out."
            )
        names_patients = meant.replace("_", "").replace(" ", "") in _PATIENTS
        if names_patients and not has_groups and "group" not in names:
            warn_user(
                f"labels has a column {name!r}, which is ignored: call it 'group' if fit is to "
                "keep the images of a patient together."
            )


def _check_columns(columns: Mapping[str, list[Any]], volumes: bool) -> None:
    if not columns["file"]:
        raise ValueError("labels is a table without rows.")
    if "volume" in columns and not volumes:
        raise ValueError(
            "labels has a column 'volume': pass volumes=True, or leave the column out to read "
            "the slices as images."
        )


def _checked_labels(column: str, columns: Mapping[str, list[Any]]) -> list[Any]:
    """Check the labels, groups or volumes, of one kind and none of them missing."""
    if column not in columns:
        return [None] * len(columns["file"])
    values = columns[column]
    what = f"the column {column!r} of labels"
    missing = [
        i
        for i, value in enumerate(values)
        if is_missing(value) or (isinstance(value, str) and not value.strip())
    ]
    if missing:
        raise ValueError(
            f"{what} is empty (no text, NaN, NA, null or None) in {len(missing)} of {len(values)} "
            f"rows, first row {missing[0]}: fill it in, leave these rows out, or leave the column "
            "out. "
            "If NA is the name of a class, pass pd.read_csv(..., keep_default_na=False)."
        )
    checked: list[Any] = as_labels(what, values).tolist()
    checked = [composed(name) if isinstance(name, str) else name for name in checked]
    if column == "label":
        check_case("labels", dict.fromkeys(name for name in checked if isinstance(name, str)))
    else:
        warn_of_alike(what, dict.fromkeys(checked), column)
    return checked


def _checked_files(root: Path, names: list[Any], volumes: bool) -> list[str]:
    """Return the files relative to the folder; refuse those that are not there, or not inside."""
    files, outside, absent = [], [], []
    base = os.path.abspath(root)
    spelling = _Spelling(Path(base))
    for row, name in enumerate(names):
        if not isinstance(name, (str, PurePath)):
            raise ValueError(
                f"the column 'file' of labels has {name!r} in row {row}: name each file by text."
            )
        path = Path(os.path.normpath(os.path.join(base, name)))
        if not path.is_relative_to(base) or path == Path(base):
            outside.append((row, str(name)))
            continue
        is_there = _is_there(path, volumes)
        if not is_there:
            path = Path(base, *spelling.of(path.relative_to(base).parts))
            is_there = _is_there(path, volumes)
        if is_there:
            files.append(path.relative_to(base).as_posix())
        else:
            absent.append((row, str(name)))
    if outside:
        raise ValueError(
            f"labels names files that are not inside {str(root)!r}, {_rows(outside)}. Name files "
            "relative to that folder."
        )
    if absent:
        backslashes = any("\\" in name for _, name in absent) and os.sep != "\\"
        hint = " Write paths with / and not with \\, as every system reads them." * backslashes
        raise ValueError(
            f"labels names files that are not in {str(root)!r}, {_rows(absent)}. Correct these "
            f"names, leave these rows out, or pass the folder that the names begin in.{hint}"
        )
    _check_unique(root, files)
    return files


class _Spelling:
    """Spells names as a folder does: accents may be letters of their own, as on macOS.

    Parameters
    ----------
    root : Path
        The folder.
    """

    def __init__(self, root: Path):
        self._root = root
        self._names: dict[Path, dict[str, str]] = {}

    def of(self, parts: Iterable[str]) -> list[str]:
        """Return the parts of a name, below the folder; what is not there is as it was."""
        path, spelled = self._root, []
        for part in parts:
            spelled.append(self._names_in(path).get(composed(part), part))
            path = path / spelled[-1]
        return spelled

    def _names_in(self, folder: Path) -> dict[str, str]:
        if folder not in self._names:
            try:
                names = os.listdir(folder)
            except (OSError, ValueError):  # Also of a name with a null byte.
                names = []
            self._names[folder] = {composed(name): name for name in names}
        return self._names[folder]


def _rows(named: list[tuple[int, str]]) -> str:
    """Write how many rows of a table name such files, and the first of them."""
    shown = first_of([f"row {row}: {name!r}" for row, name in named], 3)
    return f"in {len(named)} of its rows ({shown})"


def _is_there(path: Path, volumes: bool) -> bool:
    """Whether a path is a file, or a folder of slices; a link counts and is refused later."""
    try:
        return path.is_symlink() or path.is_file() or (volumes and path.is_dir())
    except ValueError:  # A name with a null byte.
        return False


def _check_unique(root: Path, files: list[str]) -> None:
    """Refuse files that are named twice, on systems without capitals also by two spellings."""
    rows: dict[str, list[int]] = {}
    for row, file in enumerate(files):
        others = rows.setdefault(composed(file).casefold(), [])
        for other in others:
            if file == files[other]:
                raise ValueError(
                    f"labels names {file!r} in row {other} and in row {row}: name each file once."
                )
            if _is_same(root / file, root / files[other]):
                raise ValueError(
                    f"labels names one file as {files[other]!r} in row {other} and as {file!r} in "
                    f"row {row}: name each file once."
                )
        others.append(row)


def _is_same(path: Path, other: Path) -> bool:
    try:
        # Links are left out later, with the reason.
        return not (path.is_symlink() or other.is_symlink()) and path.samefile(other)
    except OSError:
        return False


def _links(root: Path, files: list[str]) -> dict[str, str]:
    """Files that are links, or that are reached through linked folders inside the folder."""
    linked: dict[Path, bool] = {root: False}

    def is_linked(path: Path) -> bool:
        if path not in linked:
            linked[path] = path.is_symlink() or is_linked(path.parent)
        return linked[path]

    return {file: LINK for file in files if is_linked(root / file)}


def _joined(slices: list[Sample], volumes: list[Any]) -> list[Sample]:
    """Join the slices of each volume, in the order in which volumes first occur."""
    members: dict[Any, list[Sample]] = {}
    for volume, sample in zip(volumes, slices, strict=True):
        members.setdefault(volume, []).append(sample)
    joined = []
    for volume, parts in members.items():
        for what in ("label", "group"):
            values = list(dict.fromkeys(getattr(part, what) for part in parts))
            if len(values) > 1:
                raise ValueError(
                    f"labels gives the slices of volume {volume!r} several {what}s: "
                    f"{examples(values)}."
                )
        files = tuple(part.name for part in parts)
        joined.append(Sample(str(volume), files, parts[0].label, parts[0].group))
    return joined
