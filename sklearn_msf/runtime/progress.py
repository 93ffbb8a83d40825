"""Progress bars for training and sampling."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from tqdm import tqdm

__all__ = ["Report", "sampling_progress", "training_progress"]

_FORMAT = "{desc}: {percentage:3.0f}%|{bar:20}| {elapsed}<{remaining}{postfix}"


class Report(Protocol):
    """Takes the fraction of the training that is done and, after an epoch, the epoch log."""

    def __call__(self, done: float, epoch_log: dict[str, Any] | None) -> None:
        """Show the progress, and the log if there is one."""


@contextmanager
def training_progress(description: str, *, verbose: int) -> Iterator[Report | None]:
    """Show the fraction done, the time left, the loss and the images per second of a training.

    Parameters
    ----------
    description : str
        Name of the model that is trained, shown in front of the bar.
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

        def report(done: float, epoch_log: dict[str, Any] | None) -> None:
            bar.update(done - bar.n)
            if epoch_log is None:
                return
            shown = {"epoch": epoch_log["epoch"], "loss": f"{epoch_log['loss']:.3f}"}
            if "validation_score" in epoch_log:
                shown["validation"] = f"{epoch_log['validation_score']:.3f}"
            shown["images/s"] = f"{epoch_log['n_images'] / max(epoch_log['seconds'], 1e-9):.0f}"
            bar.set_postfix(shown, refresh=False)

        yield report
        # Early stopping and a time budget end training before the bar is full.
        bar.update(1.0 - bar.n)


@contextmanager
def sampling_progress(
    description: str, n_images: int, *, verbose: int
) -> Iterator[Callable[[int], object] | None]:
    """Show how many images are sampled and the time left.

    Parameters
    ----------
    description : str
        Name of the model that samples, shown in front of the bar.
    n_images : int
        Number of images to sample.
    verbose : int
        0 shows nothing.

    Yields
    ------
    callable or None
        Takes the number of images sampled since its last call.
    """
    if not verbose:
        yield None
        return
    with tqdm(total=n_images, desc=description, unit=" images") as bar:
        yield bar.update
