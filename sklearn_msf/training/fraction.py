"""The fraction of samples at t = 1 within a time budget.

Classification learns from the samples at t = 1 alone, and it should see each image there a few
times. Where the time is too short for this with the fraction that was set, it gets a larger one,
and generation a smaller. How short the time is depends on the machine, so the first steps are
measured.
"""

__all__ = ["FRACTION_AIMS", "FractionChoice", "fraction_within"]

# How often each image should be seen at t = 1, and the largest fraction for it. With five times
# images classify better, as long as most samples are left for generation. Where the time is too
# short for this, half as often is worth more than what generation can still learn; but with fewer
# than a fifth of the samples it learns nothing that is worth its time. Measured on 800 to 12,000
# images (docs/trials.md).
FRACTION_AIMS = ((5.0, 0.4), (2.5, 0.8))
# Steps before the measured ones, which take longer, and measured ones. On a GPU only steps that
# have their graph are counted.
_STEPS = {"cpu": (1, 2), "cuda": (5, 20)}


def fraction_within(n_images: int, n_affordable: float, least: float) -> float:
    """Compute the fraction at t = 1 from the number of images that the time is enough for.

    Parameters
    ----------
    n_images : int
        Number of images in an epoch.
    n_affordable : float
        Number of images, repeated ones included, that the whole run will see.
    least : float
        Smallest fraction.

    Returns
    -------
    float
        In [least, max(least, 0.8)].
    """
    of_one_time = n_images / max(n_affordable, 1.0)
    return max(least, *(min(largest, times * of_one_time) for times, largest in FRACTION_AIMS))


class FractionChoice:
    """Measures the first steps of a run, and then chooses the fraction.

    Parameters
    ----------
    least : float
        Fraction of the measured steps, and the smallest one.
    seconds : float
        Time of the run.
    device_type : str
        Type of the device.
    n_seen : int, default=0
        Number of images that the run has seen before these steps.
    """

    def __init__(self, least: float, seconds: float, device_type: str, n_seen: int = 0):
        self._least = least
        self._seconds = seconds
        self._n_seen = n_seen
        self._n_before, self._n_measured = _STEPS.get(device_type, _STEPS["cuda"])
        self._n_images = self._n_images_measured = 0
        self._elapsed = self._seconds_measured = 0.0

    def after_step(
        self, n_images: int, elapsed: float, epoch_size: int, *, is_usual: bool = True
    ) -> float | None:
        """Return the fraction when enough steps have been measured, before that None.

        Parameters
        ----------
        n_images : int
            Number of images in the step that has ended.
        elapsed : float
            Seconds since the start of the run.
        epoch_size : int
            Number of images in an epoch.
        is_usual : bool, default=True
            Whether the step took as long as later ones will; others are not measured.
        """
        self._n_images += n_images
        seconds, self._elapsed = elapsed - self._elapsed, elapsed
        if not is_usual:
            return None
        if self._n_before:
            self._n_before -= 1
            return None
        self._seconds_measured += seconds
        self._n_images_measured += n_images
        self._n_measured -= 1
        if self._n_measured:
            return None
        left = max(self._seconds - elapsed, 0.0)
        seconds_per_image = max(self._seconds_measured / self._n_images_measured, 1e-9)
        n_affordable = self._n_seen + self._n_images + left / seconds_per_image
        return fraction_within(epoch_size, n_affordable, self._least)
