"""Training by two processes, as torchrun starts them."""

import queue
import re
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from forked_scripts import PACKAGE, run_script, script_environment, start_script

from sklearn_msf.exceptions import ProcessGroupError
from sklearn_msf.nn.dropout import Dropout
from sklearn_msf.runtime import process_group
from sklearn_msf.runtime.process_group import ProcessGroup

SCRIPT = Path(__file__).with_name("train_together.py")
KINDS = [
    "uneven",
    "pixels",
    "velocity",
    "one kind of sample",
    "velocity at one",
    "early stopping",
    "part",
    "latents",
    "joint latents",
    "parts of latents",
    "rounded otherwise",
    "opened",
    "weights in any order",
]


def run_alone(folder, *kinds):
    ended = run_script(PACKAGE, SCRIPT, folder, *kinds)
    assert ended.code == 0, ended.errors
    return [dict(np.load(folder / f"{kind}-alone.npz")) for kind in kinds]


def run_together(folder, *kinds):
    """Start two processes as torchrun does, and return their exit codes and errors."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    processes = [
        start_script(
            PACKAGE, SCRIPT, folder, *kinds, server=i, RANK=str(i), LOCAL_RANK=str(i), **meeting
        )
        for i in range(2)
    ]
    ended = [wait() for wait in processes]
    return [each.code for each in ended], [each.errors for each in ended]


def of_process(folder, kind, rank):
    return dict(np.load(folder / f"{kind}-{rank}.npz"))


# A few in each process: starting one takes time, and so does training.
@pytest.mark.parametrize("kinds", [KINDS[i : i + 3] for i in range(0, len(KINDS), 3)])
def test_two_processes_train_the_model_of_one(tmp_path, kinds):
    alone = run_alone(tmp_path, *kinds)
    codes, errors = run_together(tmp_path, *kinds)
    assert codes == [0, 0], errors
    for kind, wanted in zip(kinds, alone, strict=True):
        first, second = (of_process(tmp_path, kind, rank) for rank in (0, 1))
        for name, value in wanted.items():
            np.testing.assert_array_equal(first[name], second[name], err_msg=f"{kind} {name}")
            np.testing.assert_allclose(
                first[name], value, rtol=2e-3, atol=2e-3, err_msg=f"{kind} {name}"
            )


def test_torchrun_starts_them_and_a_run_goes_on_with_another_number(tmp_path):
    (whole,) = run_alone(tmp_path, "whole")
    assert run_script(PACKAGE, SCRIPT, tmp_path, "cut off").code == 3
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--standalone", SCRIPT, tmp_path, "goes on"]
    subprocess.run(command, env=script_environment(), check=True, timeout=110)
    together = of_process(tmp_path, "goes on", 0)
    assert together.pop("n_steps") < whole.pop("n_steps")
    for name, value in whole.items():
        np.testing.assert_allclose(together[name], value, rtol=2e-3, atol=2e-3)


def test_a_group_that_was_initialized_without_a_backend_is_taken(tmp_path):
    # Without a name torch takes the backend of the accelerator, where there is one.
    wanted = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    meeting = (tmp_path / "meeting").as_uri()
    dist.init_process_group(init_method=meeting, rank=0, world_size=1)
    try:
        group, device = process_group.join_process_group(wanted)
    finally:
        dist.destroy_process_group()
    assert (group.size, device.type) == (1, wanted.type)


def test_only_the_first_process_writes_and_shows_progress(tmp_path):
    codes, errors = run_together(tmp_path, "writes")
    assert codes == [0, 0], errors
    assert [(tmp_path / f"run-{rank}").exists() for rank in (0, 1)] == [True, False]
    assert ["loss=" in error for error in errors] == [True, False]


def test_processes_that_share_a_gpu_are_told_so():
    with (
        pytest.raises(ProcessGroupError, match="same GPU: start as many processes as"),
        process_group._answering(),
    ):
        raise RuntimeError("ncclInvalidUsage ... Duplicate GPU detected : rank 1 and rank 0")


def test_seeds_and_times_are_those_of_the_first_process(tmp_path):
    codes, errors = run_together(tmp_path, "time")
    assert codes == [0, 0], errors
    first, second = (of_process(tmp_path, "time", rank) for rank in (0, 1))
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name])


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            "other data",
            r"X and sample_weight of process 1 differ .*\(X: \(40, 8, 8\) of float64, digest",
        ),
        (
            "fewer data",
            r"X and y and sample_weight of process 1 differ .*\(X: \(39, 8, 8\) of float64,",
        ),
        (
            "other parameters",
            r"dropout of process 1 .*\(dropout: 0.3[0-9]*; process 0 has .*: 0.2\)",
        ),
        (
            "other model",
            r"the model to go on with of process 1 differ .*: seed of noise [0-9]+, trained in 1 "
            r"calls and 2 epochs, state of the optimizer: [0-9]+ steps, "
            r"images of float64 from 0 to 16; process 0 has .*: seed of noise [0-9]+",
        ),
        ("one has a model", r"the model to go on with: none; process 0 has .*: seed of noise"),
    ],
)
def test_processes_with_other_data_or_parameters_do_not_train_together(tmp_path, kind, message):
    codes, errors = run_together(tmp_path, kind)
    assert codes == [1, 1]
    for error in errors:
        assert re.search(message, error), error
        assert "with the same random_state" in error


@pytest.mark.parametrize(
    ("kind", "bad", "error"),
    [
        ("first is refused", 0, "ValueError: Input X"),
        ("second is refused", 1, "ValueError: Input X"),
        ("refused later", 1, "ValueError: Input X"),
        ("bad parameter", 1, "ValueError: learning_rate"),
        ("warnings are errors", 1, "ValueError: Input X"),
    ],
)
def test_a_process_that_is_refused_tells_the_others(tmp_path, kind, bad, error):
    codes, errors = run_together(tmp_path, kind)
    assert codes == [1, 1]
    assert error in errors[bad].splitlines()[-1]
    told = f"Error: Process {bad} of the group cannot train, so none does: {error}"
    assert told in errors[1 - bad]


class Store:
    """Records what is waited for; the other process has said that it is well."""

    def __init__(self):
        self.values, self.waited_for = {"begins/1/0": b"", "begins/1/1": b""}, []

    def add(self, key, amount):
        return amount

    def set(self, key, value):
        self.values[key] = value.encode()

    def get(self, key):
        return self.values[key]

    def wait(self, keys, timeout):
        self.waited_for.append(keys)


@pytest.mark.parametrize(("rank", "waits"), [(0, True), (1, False)])
def test_the_process_with_the_store_does_not_end_before_the_others_have_read(
    monkeypatch, rank, waits
):
    store = Store()
    rendezvous = iter([(store, rank, 2)])
    monkeypatch.setattr(process_group.dist, "rendezvous", lambda *_, **__: rendezvous)
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", "2")
    _, _, refusals = process_group._meet("bad X")
    assert refusals[rank] == "bad X"
    assert f"has read/1/{rank}" in store.values
    assert (["has read/1/1"] in store.waited_for) == waits


@pytest.mark.parametrize(("rank", "waits"), [(0, True), (1, False)])
def test_the_process_with_the_store_leaves_last(rank, waits):
    store = Store()
    process_group._leave(store, rank, 2)
    assert f"has left/{rank}" in store.values
    assert (["has left/1"] in store.waited_for) == waits


def test_a_restart_does_not_read_what_an_attempt_before_has_written(monkeypatch):
    store = torch.distributed.HashStore()
    monkeypatch.setattr(
        process_group.dist, "rendezvous", lambda *_, **__: iter([(store, *threads.get())])
    )
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("GROUP_WORLD_SIZE", "1")):
        monkeypatch.setenv(name, value)
    threads = queue.SimpleQueue()
    # In the first attempt the second process ends before it comes.
    threads.put((0, 2))
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    monkeypatch.setattr(process_group, "_TIMEOUT_OF_BEGIN", timedelta(milliseconds=10))
    with pytest.raises(RuntimeError):
        process_group._meet("")
    monkeypatch.setattr(process_group, "_TIMEOUT_OF_BEGIN", timedelta(seconds=5))
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    for rank in (0, 1):
        threads.put((rank, 2))
    with ThreadPoolExecutor(2) as pool:
        met = list(pool.map(process_group._meet, ["", ""]))
    assert sorted(rank for _, rank, _ in met) == [0, 1]
    assert all(refusals == ["", ""] for _, _, refusals in met)


def test_what_cannot_be_pickled_is_named_in_every_process(tmp_path):
    codes, errors = run_together(tmp_path, "no pickle")
    assert codes == [1, 1]
    for error in errors:
        assert "ProcessGroupError: What the first process sends to the others cannot be" in error
        assert "of an autoencoder or a backbone must be defined at the top level" in error


def test_batches_of_the_calibration_run_are_checked_before_training(tmp_path):
    codes, errors = run_together(tmp_path, "tiny batches of the rest")
    assert codes == [1, 1]
    for error in errors:
        assert "is too small for 2 processes" in error


def test_batches_with_fewer_images_than_processes_are_refused_before_a_folder_is_made(tmp_path):
    codes, errors = run_together(tmp_path, "tiny batches")
    assert codes == [1, 1]
    for error in errors:
        assert "A step of 1 images (batch_size=1) is too small for 2 processes" in error
    assert not (tmp_path / "checkpoints").exists()


def test_a_process_that_waits_says_so(monkeypatch):
    warned, texts = threading.Event(), []

    def warn(text):
        texts.append(text)
        warned.set()

    monkeypatch.setattr(process_group.warnings, "warn", warn)
    monkeypatch.setattr(process_group, "_SECONDS_OF_SILENCE", 0.0)
    with process_group._saying_that_it_waits(1, 4):
        assert warned.wait(5)
    assert re.search("Process 1 of 4 waits in fit for the others: for 0:30:00", texts[0])


def test_a_process_that_dies_ends_the_others_with_an_error(tmp_path):
    codes, errors = run_together(tmp_path, "dies")
    assert codes == [1, 3]
    assert "ProcessGroupError: A process of the group ended or did not answer" in errors[0]


@pytest.mark.parametrize(
    ("asked", "n_gpus", "number"), [("cuda", 4, 3), ("cuda", 1, 0), ("cuda:1", 4, 1)]
)
def test_each_process_has_the_gpu_of_its_number_or_the_only_one(monkeypatch, asked, n_gpus, number):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_gpus)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert process_group._own_gpu(torch.device(asked)) == torch.device("cuda", number)


def test_a_script_that_starts_the_group_itself_has_chosen_the_gpu(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    assert process_group._own_gpu(torch.device("cuda")) == torch.device("cuda", 2)


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ProcessGroupError, match="Process 2 .* has no GPU: there are 2"):
        process_group._own_gpu(torch.device("cuda"))


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_parts_are_disjoint_and_every_process_has_a_sample_where_there_are_enough(size):
    for n_at_one in range(6):
        for n_others in range(6):
            parts = []
            for rank in range(size):
                group = ProcessGroup(rank, size)
                at_one = range(n_at_one)[group.part(n_at_one)]
                others = range(n_others)[group.part(n_others, first=n_at_one)]
                parts.append((*at_one, *(n_at_one + i for i in others)))
            assert sorted(sum(parts, ())) == list(range(n_at_one + n_others))
            if n_at_one + n_others >= size:
                assert min(map(len, parts)) > 0


def test_dropout_of_a_part_is_that_of_the_whole_batch():
    h = torch.ones(6, 4, 3, 3).to(memory_format=torch.channels_last)
    layer = Dropout(0.5).train()
    layer.generator = torch.Generator().manual_seed(0)
    whole, state = layer(h), layer.generator.get_state()
    for rows in (slice(0, 6, 2), slice(1, 6, 2), slice(6, 6)):
        layer.generator.manual_seed(0)
        layer.part = (rows, 6)
        assert torch.equal(layer(h[rows]), whole[rows])
        # The generator goes on as if the whole batch had been here.
        assert torch.equal(layer.generator.get_state(), state)


def test_a_compiler_in_another_thread_changes_no_dropout(monkeypatch):
    # Torch raises this flag for all threads while one of them exports or compiles a model.
    h = torch.ones(2, 4, 3, 3)
    layer = Dropout(0.5).train()
    layer.generator = torch.Generator().manual_seed(0)
    alone, before = layer(h), torch.get_rng_state()
    monkeypatch.setattr(torch.compiler, "_is_compiling_flag", True)
    assert torch.compiler.is_compiling()
    layer.generator.manual_seed(0)
    assert torch.equal(layer(h), alone)
    assert torch.equal(torch.get_rng_state(), before)
