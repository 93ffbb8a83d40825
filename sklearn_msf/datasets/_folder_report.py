"""What was found in a folder of images, and what was not read."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from sklearn_msf.datasets._image_headers import ImageHeader
from sklearn_msf.datasets._shortened_lists import first_of

__all__ = ["ImageFolderReport"]

_N_SHOWN = 10


@dataclass
class ImageFolderReport:
    """What was found in a folder of images; `print` shows it.

    Attributes
    ----------
    n_read : int
        Number of images or volumes in data.
    unreadable : dict of str to str
        Files that were not read, with the reason.
    ignored : list of str
        Hidden files, and files beside the class folders that are no images.
    remarks : dict of str to list of str
        What Pillow or pydicom warned of, for each file.
    sizes : Counter of tuple
        Number of images of each (height, width) or (depth, height, width) before resizing.
    bit_depths : Counter of int
        Number of images with so many bits a value in the file.
    modes : Counter of str
        Number of images of each of Pillow's modes and DICOM's photometric interpretations.
    modalities : Counter of str
        Number of images of each DICOM modality.
    """

    n_read: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    remarks: dict[str, list[str]] = field(default_factory=dict)
    sizes: Counter[tuple[int, ...]] = field(default_factory=Counter)
    bit_depths: Counter[int] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    modalities: Counter[str] = field(default_factory=Counter)

    def add(self, header: ImageHeader, size: tuple[int, ...]) -> None:
        """Count an image that was read."""
        self.n_read += 1
        self.sizes[size] += 1
        self.bit_depths[header.bit_depth] += 1
        self.modes[header.mode] += 1
        if header.modality is not None:
            self.modalities[header.modality] += 1

    def __str__(self) -> str:
        lines = [f"{self.n_read} images read, {len(self.unreadable)} files not"]
        sizes = Counter({" x ".join(map(str, size)): n for size, n in self.sizes.items()})
        for name, counts in (
            ("sizes", sizes),
            ("bits a value", self.bit_depths),
            ("modes", self.modes),
            ("modalities", self.modalities),
        ):
            if counts:
                lines.append(f"{name}: {_counts(counts)}")
        lines += [f"not read: {name!r}: {reason}" for name, reason in self.unreadable.items()]
        if self.ignored:
            lines.append(f"ignored: {', '.join(map(repr, self.ignored))}")
        lines += [
            f"remark on {name!r}: {remark}"
            for name, remarks in self.remarks.items()
            for remark in remarks
        ]
        return "\n".join(lines)


def _counts(counts: Counter[Any]) -> str:
    return first_of([f"{key} ({n})" for key, n in counts.most_common()], _N_SHOWN)
