"""The steps of a GPU that the CPU has started, with a stand-in for CUDA's events."""

import pytest
import torch

from sklearn_msf.runtime.device_queue import DeviceQueue


class Gpu:
    """Ends steps in their order, when it is waited for or told to."""

    def __init__(self):
        self.n_started = self.n_ended = 0
        self.streams = []

    def event(self):
        gpu = self

        class Event:
            def record(self, stream):
                gpu.n_started += 1
                self.number = gpu.n_started
                gpu.streams.append(stream)

            def query(self):
                return self.number <= gpu.n_ended

            def synchronize(self):
                gpu.n_ended = max(gpu.n_ended, self.number)

        return Event()


@pytest.fixture
def gpu(monkeypatch):
    gpu = Gpu()
    monkeypatch.setattr(torch.cuda, "Event", gpu.event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    return gpu


def test_the_gpu_keeps_one_step_to_work_on_while_the_cpu_starts_the_next(gpu):
    queue = DeviceQueue(torch.device("cuda:1"))
    assert queue.wait() == 0
    for n_started in range(1, 6):
        queue.add()
        assert queue.wait() == 1
        assert gpu.n_ended == n_started - 1
    assert set(gpu.streams) == {"stream of cuda:1"}


def test_steps_that_have_ended_do_not_count(gpu):
    queue = DeviceQueue(torch.device("cuda"))
    queue.add()
    queue.add()
    gpu.n_ended = 2
    assert queue.wait() == 0


def test_other_devices_have_made_a_step_when_it_returns():
    queue = DeviceQueue(torch.device("cpu"))
    queue.add()
    assert queue.wait() == 0
