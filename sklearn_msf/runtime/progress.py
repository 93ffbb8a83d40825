"""Progress bars over training and drawing."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from tqdm import tqdm

__all__ = ["Report", "drawing_progress", "training_progress"]

_FORMAT = "{desc}: {percentage:3.0f}%|{bar:20}| {elapsed}<{remaining}{postfix}"


class Report(Protocol):
    """Takes the share of the training done and, after an epoch, its record."""

    def __call__(self, done: float, record: dict[str, Any] | None) -> None:
        """Show the record."""


@contextmanager
def training_progress(description: str, *, verbose: int) -> Iterator[Report | None]:
    """Show share done, time left, loss and images a second while training.

    Parameters
    ----------
    description : str
        What trains.
    verbose : int
        0 shows nothing.

    Yields
    ------
    callable or None
        Reporter for :meth:`sklearn_msf.training.trainer.Trainer.fit`.
    """
    if not verbose:
        yield None
        return
    with tqdm(total=1.0, desc=description, bar_format=_FORMAT) as bar:

        def report(done: float, record: dict[str, Any] | None) -> None:
            bar.update(done - bar.n)
            if record is None:
                return
            shown = {"epoch": record["epoch"], "loss": f"{record['loss']:.3f}"}
            if "validation_score" in record:
                shown["validation"] = f"{record['validation_score']:.3f}"
            shown["images/s"] = f"{record['n_images'] / max(record['seconds'], 1e-9):.0f}"
            bar.set_postfix(shown, refresh=False)

        yield report
        # Early stopping and the last step of a time budget end before the bar does.
        bar.update(1.0 - bar.n)


@contextmanager
def drawing_progress(
    description: str, n_images: int, *, verbose: int
) -> Iterator[Callable[[int], object] | None]:
    """Show how many images are drawn and the time left.

    Parameters
    ----------
    description : str
        What draws.
    n_images : int
        Images to draw.
    verbose : int
        0 shows nothing.

    Yields
    ------
    callable or None
        Takes the number of images drawn since its last call.
    """
    if not verbose:
        yield None
        return
    with tqdm(total=n_images, desc=description, unit=" images") as bar:
        yield bar.update
