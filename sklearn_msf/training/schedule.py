"""The learning rate schedule and the time budget of a training run."""

import math
import time

__all__ = ["WARMUPS", "TimeBudget", "learning_rate_factor"]

WARMUPS = ("linear", "cosine")

# Tables 3 to 5 of the paper: 100 warm-up epochs of 1000, 200 of 2000.
_WARMUP_FRACTION = 0.1


def learning_rate_factor(progress: float, warmup: str = "linear") -> float:
    """Compute the fraction of the peak rate: it rises for a tenth, then falls by a cosine to zero.

    Parameters
    ----------
    progress : float
        Fraction of the training that is done, in [0, 1].
    warmup : {"linear", "cosine"}, default="linear"
        Whether it rises linearly, or by half a cosine as in the paper's code. Both have the same
        mean.

    Returns
    -------
    float
        In [0, 1].
    """
    if progress < _WARMUP_FRACTION:
        passed = progress / _WARMUP_FRACTION
        return passed if warmup == "linear" else 0.5 * (1 - math.cos(math.pi * passed))
    return 0.5 * (1 + math.cos(math.pi * (progress - _WARMUP_FRACTION) / (1 - _WARMUP_FRACTION)))


class TimeBudget:
    """Measures the time of a run, so that its last step ends in time.

    Parameters
    ----------
    seconds : float or None
        Time the run may take; None sets no limit.
    started : float, optional
        Start on `time.perf_counter`'s clock; now by default.

    Attributes
    ----------
    begun : float
        Seconds that the schedule leaves out: those before the first step, and of compilation.
    reserved : float
        Seconds at the end that are kept for other things than steps.
    """

    def __init__(self, seconds: float | None, started: float | None = None):
        self._whole = seconds
        self.reserved = 0.0
        # What of the time after the preparation is for steps, and the longest time for them.
        self._fraction, self._most = 1.0, math.inf
        self._started = time.perf_counter() if started is None else started
        self.begun = 0.0
        # Estimated durations of a step and of a pause, which must still fit into the budget.
        self._checked = self._started
        self._step_seconds = self._pause_seconds = 0.0

    @property
    def seconds(self) -> float | None:
        """Seconds from the start to the end of the steps; None without a limit."""
        if self._whole is None:
            return None
        for_steps = self._fraction * (self._whole - self.begun - self.reserved)
        return self.begun + min(for_steps, self._most)

    def divide(self, fraction: float) -> None:
        """Leave a part of the time after the preparation to something else.

        Parameters
        ----------
        fraction : float
            Fraction for the steps, in (0, 1].
        """
        self._fraction = fraction

    def limit(self, seconds: float) -> None:
        """Leave the steps so many seconds at most, however large the budget is."""
        self._most = seconds

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._started

    def begin(self) -> None:
        """Begin the schedule now: what has passed was preparation."""
        self.begun = self.elapsed

    def leave_out(self, seconds: float) -> None:
        """Leave seconds that have passed out of the schedule, such as those of compilation."""
        self.begun += seconds

    def resume(self, elapsed: float, begun: float) -> None:
        """Go on where an earlier part of the run was, as if nothing had been prepared again.

        Parameters
        ----------
        elapsed : float
            Seconds that it took.
        begun : float
            Its seconds that the schedule leaves out.
        """
        self._started = time.perf_counter() - elapsed
        self.begun = begun

    def reserve(self, seconds: float) -> None:
        """Shorten the budget by the seconds that are needed after the run."""
        self.reserved += seconds

    def is_over(self) -> bool:
        """Return whether all of the time has passed."""
        seconds = self.seconds
        return seconds is not None and self.elapsed >= seconds

    def start_steps(self) -> None:
        """Start to time the next step now."""
        self._checked = time.perf_counter()

    def end_pause(self, seconds: float) -> None:
        """Record the length of a pause between steps; keep time for another one at the end."""
        self._pause_seconds = max(self._pause_seconds, seconds)
        self.start_steps()

    def end_step(self) -> float:
        """Record the length of a step after which there is a pause; return the time elapsed."""
        now = time.perf_counter()
        self._step_seconds = max(self._step_seconds, now - self._checked)
        self._checked = now
        return now - self._started

    def fraction_passed(self) -> float:
        """Return the fraction of the time for steps that has passed; 0 without a limit.

        It is 0 as well if nothing was left for steps.
        """
        seconds = self.seconds
        if seconds is None or seconds <= self.begun:
            return 0.0
        return (self.elapsed - self.begun) / (seconds - self.begun)

    def is_up(self, n_running: int = 0) -> bool:
        """Return whether one more step and the pause after it could end too late.

        Call this before every step: the time between two calls counts as the time of a step.

        Parameters
        ----------
        n_running : int, default=0
            Number of steps before it that were started and have not ended yet.
        """
        seconds = self.seconds
        if seconds is None:
            return False
        now = time.perf_counter()
        self._step_seconds = max(0.9 * self._step_seconds, now - self._checked)
        self._checked = now
        needed = (n_running + 1.5) * self._step_seconds + self._pause_seconds
        return now - self._started + needed > seconds
