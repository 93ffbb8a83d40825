"""Steps that a GPU has yet to make: the CPU only starts them and would run far ahead."""

from collections import deque
from typing import Any

import torch

__all__ = ["DeviceQueue"]


class DeviceQueue:
    """Counts the steps that were started on a device and have not ended yet.

    To time the steps of a GPU the CPU has to wait for them. Waiting for all would leave the GPU
    without work until the next one is started, so one step may still be running.

    Parameters
    ----------
    device : torch.device
        Where the steps run. Only CUDA runs steps that were started later; elsewhere the queue is
        always empty.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._ends: deque[Any] = deque()

    def add(self) -> None:
        """Add the step that was just started."""
        if self._device.type == "cuda":
            end = torch.cuda.Event()
            end.record(torch.cuda.current_stream(self._device))
            self._ends.append(end)

    def wait(self) -> int:
        """Wait until at most one step is still running, and count those that are: 0 or 1."""
        while len(self._ends) > 1:
            self._ends.popleft().synchronize()
        if self._ends and self._ends[0].query():
            self._ends.clear()
        return len(self._ends)
