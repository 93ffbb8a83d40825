from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from sklearn_msf.runtime.device import (
    autocast,
    resolve_device,
    worker_threads,
)
from sklearn_msf.runtime.torch_state import whole_float32
from sklearn_msf.training import batches


def test_auto_is_a_device_of_this_machine():
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_auto_is_a_gpu_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto") == torch.device("cuda")


def test_images_of_less_than_half_of_the_free_memory_are_kept_on_a_gpu(monkeypatch):
    images = torch.zeros(100, dtype=torch.uint8)
    for free, fits in ((201, True), (200, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, 10**9))
        assert batches._fits(images, torch.device("cuda")) == fits


@pytest.mark.parametrize("device", ["gpu", "cuda:99", 1.5, "meta!"])
def test_unknown_devices_are_named(device):
    with pytest.raises(ValueError, match="device must be"):
        resolve_device(device)


def test_autocast_is_off_in_float32():
    with autocast(torch.device("cpu"), "float32"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    with autocast(torch.device("cpu"), "bfloat16"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16


def test_many_users_of_worker_threads_leave_torch_its_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)

    def use(_):
        with worker_threads(2) as executor:
            return list(executor.map(lambda _: torch.get_num_threads(), range(2)))

    try:
        with ThreadPoolExecutor(4) as users:
            assert list(users.map(use, range(20))) == [[1, 1]] * 20
        with ThreadPoolExecutor(1) as executor:
            assert executor.submit(torch.get_num_threads).result() == 3
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_worker_threads_run_on_one_core_each_and_give_torch_its_threads_back():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with worker_threads(2) as executor:
            inside = list(executor.map(lambda _: torch.get_num_threads(), range(4)))
        assert inside == [1, 1, 1, 1]
        assert torch.get_num_threads() == 3
        with worker_threads(1) as executor:
            pass
        # A thread made later starts with torch's threads, not with one.
        with ThreadPoolExecutor(1) as executor:
            assert executor.submit(torch.get_num_threads).result() == 3
    finally:
        torch.set_num_threads(before)


def test_tf32_is_off_and_put_back_also_after_an_error():
    cudnn = torch.backends.cudnn
    before = torch.get_float32_matmul_precision(), cudnn.allow_tf32
    # Otherwise the test would not notice that nothing is set.
    assert before != ("highest", False)

    def use():
        with whole_float32():
            seen.extend([torch.get_float32_matmul_precision(), cudnn.allow_tf32])
            raise ZeroDivisionError

    seen = []
    with pytest.raises(ZeroDivisionError):
        use()
    assert seen == ["highest", False]
    assert (torch.get_float32_matmul_precision(), cudnn.allow_tf32) == before


def test_threads_that_cannot_start_leave_nothing_behind(monkeypatch):
    before = torch.get_num_threads()

    def fail():
        torch.set_num_threads(1)
        raise RuntimeError("no core left")

    monkeypatch.setattr("sklearn_msf.runtime.device._take_one_core", fail)
    with pytest.raises(RuntimeError), worker_threads(2):
        pass
    assert torch.get_num_threads() == before
