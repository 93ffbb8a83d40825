"""The learning rate over a training run, and the run's end in time."""

import math
import time

__all__ = ["TimeBudget", "learning_rate_factor"]

# Tables 3 to 5: 100 warm-up epochs of 1000, 200 of 2000.
_WARMUP_SHARE = 0.1


def learning_rate_factor(progress: float) -> float:
    """Linear warm-up over the first tenth of training, then a cosine to zero.

    Parameters
    ----------
    progress : float
        Share of the training done, in [0, 1].
    """
    if progress < _WARMUP_SHARE:
        return progress / _WARMUP_SHARE
    return 0.5 * (1 + math.cos(math.pi * (progress - _WARMUP_SHARE) / (1 - _WARMUP_SHARE)))


class TimeBudget:
    """Watches the clock of a run, so that its last step ends in time.

    Parameters
    ----------
    seconds : float or None
        Time the run may take; None is all the time in the world.
    started : float, optional
        Start on `time.perf_counter`'s clock; now by default.
    """

    def __init__(self, seconds: float | None, started: float | None = None):
        self.seconds = seconds
        self._started = time.perf_counter() if started is None else started
        # Running estimates of what must still fit into the budget.
        self._checked = self._started
        self._step_seconds = self._pause_seconds = 0.0

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._started

    def resume(self, elapsed: float) -> None:
        """Count seconds that an earlier part of the run has taken."""
        self._started -= elapsed

    def reserve(self, seconds: float) -> None:
        """Keep seconds for what follows the run."""
        if self.seconds is not None:
            self.seconds -= seconds

    def start_steps(self) -> None:
        """Forget what has passed since the last step."""
        self._checked = time.perf_counter()

    def end_pause(self, seconds: float) -> None:
        """Take note of what a pause for validation took; another one will end the run."""
        self._pause_seconds = max(self._pause_seconds, seconds)
        self.start_steps()

    def share(self) -> float:
        """Share of the time gone; 0 without a limit."""
        return 0.0 if self.seconds is None else self.elapsed / self.seconds

    def is_up(self) -> bool:
        """Whether one more step and what follows it could end too late.

        To be called before every step: the time between two calls is that of a step.
        """
        if self.seconds is None:
            return False
        now = time.perf_counter()
        self._step_seconds = max(0.9 * self._step_seconds, now - self._checked)
        self._checked = now
        needed = 1.5 * self._step_seconds + self._pause_seconds
        return now - self._started + needed > self.seconds
