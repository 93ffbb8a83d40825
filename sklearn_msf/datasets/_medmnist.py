"""MedMNIST with the interface of `sklearn.datasets`: downloaded once, with checksums."""

import contextlib
import errno
import io
import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pooch
from requests.exceptions import ConnectTimeout
from sklearn.utils import Bunch

from sklearn_msf.datasets._medmnist_files import SPLITS, read_images
from sklearn_msf.runtime.optional_imports import importing

__all__ = ["fetch_medmnist"]

_CITATION = (
    "Yang et al., MedMNIST v2 - A large-scale lightweight benchmark for 2D and 3D biomedical "
    "image classification. Scientific Data 10, 41 (2023)."
)
# Seconds to wait for a connection and for the next bytes, and number of retries after a failed
# download.
_TIMEOUT = (5, 30)
_N_RETRIES = 2
_DISK_IS_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}


def _medmnist_info() -> Mapping[str, Mapping[str, Any]]:
    """Import the table of data sets from the medmnist package."""
    needed = (
        "fetch_medmnist needs the table of data sets of the medmnist package: python -m pip "
        'install "sklearn-msf[medmnist]", or python -m pip install --no-deps medmnist.'
    )
    # Without torchvision the package prints a message, but its table is complete.
    with importing(needed), contextlib.redirect_stdout(io.StringIO()):
        from medmnist.info import INFO
    return INFO


def _data_homes(data_home: str | os.PathLike[str] | None) -> list[Path]:
    """List the folders to search: the argument alone, or MEDMNIST_ROOT and medmnist's own cache.

    Files are downloaded to the first one.
    """
    if data_home:
        return [Path(data_home).expanduser()]
    named = os.environ.get("MEDMNIST_ROOT")
    folders = [Path(named).expanduser()] if named else []
    # In a container without a home folder the first one has to do.
    with contextlib.suppress(RuntimeError) if named else contextlib.nullcontext():
        folders.append(Path("~/.medmnist").expanduser())
    return folders


def _find(folders: list[Path], filename: str) -> Path:
    """Return the first path at which the file exists, else the path to download it to."""
    places = [folder / filename for folder in folders]
    return next((place for place in places if place.exists()), places[0])


def fetch_medmnist(
    name: str,
    *,
    size: int = 28,
    split: str | None = None,
    data_home: str | os.PathLike[str] | None = None,
    download_if_missing: bool = True,
    return_X_y: bool = False,
) -> Any:
    """Load a MedMNIST data set, and download it if the file is missing.

    A file is used only if its MD5 checksum is the published one. A download appears in the folder
    only when it is complete.

    The images of a file of 1 GB or more are written, uncompressed, to an .npy file beside it, and
    are mapped into memory. The .npy file is compared with the checksums in the checked file each
    time it is used.

    Parameters
    ----------
    name : str
        Name of the data set in lower case, such as "retinamnist".
    size : {28, 64, 128, 224}, default=28
        Side of the images in pixels; 3-D sets have 28 and 64.
    split : {"train", "val", "test"}, default=None
        Part to load; None loads all three, in this order.
    data_home : path-like, default=None
        Folder of the files. None searches the folder in the environment variable MEDMNIST_ROOT, if
        it is set, and then the cache of the medmnist package, ``~/.medmnist``; downloads go to the
        first of these.
    download_if_missing : bool, default=True
        If False, a missing file raises an OSError.
    return_X_y : bool, default=False
        Whether to return ``(data, target)`` only.

    Returns
    -------
    Bunch or (data, target)
        data : ndarray of shape (n, H, W), (n, H, W, 3) or (n, D, H, W), uint8
            Images in [0, 255]; a read-only memory map for files of 1 GB or more, unless the .npy
            file for it cannot be written. Volumes, of the sets whose name ends in "3d", need
            ``MedSymmFlowClassifier(n_spatial_dims=3)``.
        target : ndarray of shape (n,) or (n, n_labels), integer
            Class indices; several columns for multi-label sets.
        target_names : list of str
            Name of each class.
        DESCR : str
            Description with licence and citation. It warns of mirror images if names of classes
            say left or right.
        filename : str
            Path of the file.

    Raises
    ------
    ValueError
        For a name, size or split that MedMNIST does not have.
    OSError
        If the file is missing and ``download_if_missing=False``, if it cannot be downloaded, or if
        its checksum is wrong. If the .npy file beside it is damaged or another file.
    ImportError
        If the medmnist package is not installed; only its table of data sets is needed.

    Warns
    -----
    UserWarning
        If a large file cannot be mapped, because the .npy file beside it cannot be written: its
        images are in memory then.
    """
    info = _medmnist_info()
    if name not in info:
        raise ValueError(f"name must be one of {sorted(info)}, got {name!r}.")
    suffix = "" if size == 28 else f"_{size}"
    if f"url{suffix}" not in info[name]:
        sizes = [28, *(s for s in (64, 128, 224) if f"url_{s}" in info[name])]
        raise ValueError(f"size must be one of {sizes} for {name}, got {size!r}.")
    if split not in (None, *SPLITS):
        raise ValueError(f"split must be one of {SPLITS} or None, got {split!r}.")

    entry = info[name]
    path = _obtain(
        _find(_data_homes(data_home), f"{name}{suffix}.npz"),
        url=entry[f"url{suffix}"],
        md5=entry[f"MD5{suffix}"],
        download=download_if_missing,
    )
    data, target = _read(path, SPLITS if split is None else (split,))
    if return_X_y:
        return data, target
    return Bunch(
        data=data,
        target=target,
        target_names=list(entry["label"].values()),
        DESCR=_describe(name, size, entry),
        filename=str(path),
    )


def _obtain(path: Path, *, url: str, md5: str, download: bool) -> Path:
    """Return the path of a file with the right checksum; download it if it is missing."""
    if path.exists():
        found = pooch.file_hash(str(path), alg="md5")
        if found != md5:
            raise OSError(
                f"{path} has MD5 {found}, expected {md5}: it is damaged or another version. "
                "Delete it to download it again."
            )
        return path
    if not download:
        raise OSError(
            f"{path} is missing and download_if_missing=False. Download {url} there, or set "
            "data_home or MEDMNIST_ROOT to the folder that has it."
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # pooch writes to a temporary file beside the target, and moves it when the checksum is
        # right.
        pooch.retrieve(
            url,
            known_hash=f"md5:{md5}",
            fname=path.name,
            path=path.parent,
            downloader=_Downloader(),
        )
        # The file is of use without it.
        with contextlib.suppress(OSError):
            _let_others_read(path)
    except (OSError, ValueError) as error:
        raise OSError(
            f"Could not download {url}: {error}. Nothing was left in {path.parent}. Try again, "
            "or download the file by other means and set data_home or MEDMNIST_ROOT to its "
            "folder."
        ) from error
    return path


def _let_others_read(path: Path) -> None:
    """Give a file the permissions of any new file: temporary ones are their owner's alone."""
    if os.name == "posix":
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            new = Path(folder, "new")
            new.touch()
            path.chmod(new.stat().st_mode & 0o777)


class _Downloader:
    """HTTP download with timeouts and a few retries."""

    def __call__(self, url: str, output_file: str, pooch_: Any) -> None:
        for attempt in range(1 + _N_RETRIES):
            try:
                download = pooch.HTTPDownloader(timeout=_TIMEOUT, progressbar=True)
                download(url, output_file, pooch_)
            except OSError as error:
                # If the connection times out there is no network, and a full disk stays full: a
                # retry is useless.
                is_hopeless = isinstance(error, ConnectTimeout) or error.errno in _DISK_IS_FULL
                if attempt == _N_RETRIES or is_hopeless:
                    raise
            else:
                return


def _read(path: Path, splits: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Read the images and labels of the splits, one after the other."""
    with np.load(path, allow_pickle=False) as arrays:
        target = np.concatenate([arrays[f"{split}_labels"] for split in splits])
    data = read_images(path, splits)
    return data, target[:, 0] if target.ndim == 2 and target.shape[1] == 1 else target


def _has_sides(target_names: Iterable[str]) -> bool:
    """Return whether names of classes say left or right."""
    words = {word for name in target_names for word in re.findall("[a-z]+", name.lower())}
    return not words.isdisjoint({"left", "right"})


def _describe(name: str, size: int, entry: Mapping[str, Any]) -> str:
    counts = ", ".join(f"{split} {n}" for split, n in entry["n_samples"].items())
    sides = [
        "Warning: names of classes say left or right, and a mirror image of one side looks like "
        "the other side. Train without mirror images: augment='affine' or augment=None.",
        "",
    ]
    return "\n".join(
        [
            f"{entry['python_class']} ({name}), {size} px",
            "",
            entry["description"],
            "",
            *(sides if _has_sides(entry["label"].values()) else []),
            f"Task: {entry['task']}. Images: {counts}.",
            f"Licence: {entry['license']}.",
            f"Citation: {_CITATION}",
        ]
    )
