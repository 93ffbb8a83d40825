from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from sklearn_msf.nn import precision
from sklearn_msf.nn.precision import resolve_precision

CPU = torch.device("cpu")


def test_a_chosen_precision_stands():
    assert resolve_precision("bfloat16", CPU) == "bfloat16"
    assert resolve_precision("float32", CPU) == "float32"


@pytest.mark.parametrize(("speed_up", "expected"), [(1.8, "bfloat16"), (1.05, "float32")])
def test_auto_is_bfloat16_where_that_is_clearly_faster(monkeypatch, speed_up, expected):
    monkeypatch.setattr(precision, "_bfloat16_speed_up", lambda: speed_up)
    assert resolve_precision("auto", CPU) == expected


def test_the_machine_is_measured_once_and_nothing_of_torch_changes():
    precision._bfloat16_speed_up.cache_clear()
    random_state, n_threads = torch.get_rng_state(), torch.get_num_threads()
    with torch.no_grad():
        first = resolve_precision("auto", CPU)
        assert not torch.is_grad_enabled()
    assert resolve_precision("auto", CPU) == first
    assert precision._bfloat16_speed_up.cache_info().misses == 1
    assert precision._bfloat16_speed_up() > 0
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.get_num_threads() == n_threads


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_the_callers_mode_and_defaults_do_not_matter(mode):
    precision._bfloat16_speed_up.cache_clear()
    torch.set_default_dtype(torch.float64)
    try:
        with mode(), torch.device("meta"):
            assert resolve_precision("auto", CPU) in ("float32", "bfloat16")
    finally:
        torch.set_default_dtype(torch.float32)


def test_auto_is_bfloat16_on_cards_that_have_it(monkeypatch):
    devices = []
    monkeypatch.setattr(
        torch.cuda, "device", lambda device: devices.append(device) or nullcontext()
    )
    for native, expected in [(True, "bfloat16"), (False, "float32")]:
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation, native=native: native
        )
        # The other GPUs of a machine may be of another kind.
        assert resolve_precision("auto", torch.device("cuda:1")) == expected
    assert devices == [torch.device("cuda:1")] * 2


@pytest.mark.parametrize("tick", [1e-6, 1 / 64])
@pytest.mark.parametrize(
    ("of_float32", "of_bfloat16", "n_most"), [(0.006, 0.004, 2000), (0.04, 0.4, 4)]
)
def test_a_clock_that_moves_rarely_is_read_less_often(
    monkeypatch, tick, of_float32, of_bfloat16, n_most
):
    seconds = {"float32": of_float32, "bfloat16": of_bfloat16}
    now, steps = 0.0, []

    def read():
        nonlocal now
        now += 1e-7
        return now // tick * tick

    def step(precision):
        nonlocal now
        now += seconds[precision]
        steps.append(precision)

    monkeypatch.setattr(precision, "time", SimpleNamespace(thread_time=read))
    ratio = of_float32 / of_bfloat16
    # A single measurement of 40 ms is wrong by 16 at most.
    assert precision._speed_up(step) == pytest.approx(ratio, rel=0.15 if ratio > 1 else 0.5)
    # The slower bfloat16 is, the sooner that is certain.
    assert len(steps) <= n_most
