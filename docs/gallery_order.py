"""Order of the examples: from the first fit to the service, not of the alphabet."""

from pathlib import Path

__all__ = ["ReadingOrder"]

_NAMES = (
    "first_fit",
    "own_folder",
    "rejection",
    "certified_risk",
    "calibration",
    "search",
    "counterfactuals",
    "drawing",
    "augmentation",
    "latents",
    "volumes",
    "onnx_service",
)


class ReadingOrder:
    """Sort key of sphinx-gallery for the files of a folder.

    Parameters
    ----------
    src_dir : str
        Folder of the examples.
    """

    def __init__(self, src_dir: str) -> None:
        self.src_dir = src_dir

    def __call__(self, filename: str) -> int:
        """Return the place of a file; one that has none is an error."""
        return _NAMES.index(Path(filename).stem.removeprefix("plot_"))
