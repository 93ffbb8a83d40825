import contextlib

import pytest
import torch
from conftest import torch_threads
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from sklearn_msf.runtime import batch_sizes
from sklearn_msf.runtime.batch_sizes import SmallBatches, padded
from sklearn_msf.runtime.batching import in_batches

CPU = torch.device("cpu")
X = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def nothing_checked(monkeypatch):
    monkeypatch.setattr(batch_sizes, "_CHECKED", {})


def rows(start, n):
    return X[start : start + n]


class Runs:
    """Runs batches of rows, and gives those of small batches other bits where it is told to."""

    def __init__(self, differs_below=0, n_draws=1, only_inside=False):
        self.differs_below, self.n_draws, self.only_inside = differs_below, n_draws, only_inside
        self.sizes = []

    def __call__(self, x, size):
        if is_in_torch_dispatch_mode():
            self.sizes.append(size)
        x = padded(x, size).repeat(self.n_draws, 1)
        hidden = x * (1 + 1e-6 * (size < self.differs_below))
        out = hidden.sign() if self.only_inside else hidden.sin()
        return out.view(self.n_draws, size, -1).mean(dim=0)


def size_for(runs, n_rows, module=None, full_size=16):
    return SmallBatches(module or nn.Linear(1, 1), "kind", rows, runs).size(0, n_rows, full_size)


@pytest.mark.parametrize(("n_rows", "size"), [(1, 1), (2, 2), (3, 4), (8, 8), (9, 16), (16, 16)])
def test_a_batch_gets_the_next_power_of_two(n_rows, size):
    assert size_for(Runs(), n_rows) == size


@pytest.mark.parametrize("n_draws", [1, 3])
@pytest.mark.parametrize("only_inside", [False, True])
@pytest.mark.parametrize("size", [4, 16])
def test_sizes_at_which_any_operation_gives_other_bits_are_passed_over(n_draws, only_inside, size):
    runs = Runs(differs_below=size, n_draws=n_draws, only_inside=only_inside)
    assert size_for(runs, 1) == size


@pytest.mark.parametrize("value", [0.0, 1e-45, float("inf"), float("nan")])
@pytest.mark.parametrize("of", ["images", "weights"])
def test_values_that_hide_the_order_of_a_sum_decide_nothing(of, value):
    module = nn.Linear(6, 3, bias=False).requires_grad_(False)
    module.weight.fill_(1e-3)
    images = torch.ones(1, 6)
    (images if of == "images" else module.weight).fill_(value)

    def run(x, size):
        # Padded batches below 8 round otherwise.
        return module(padded(x, size)) * (1 + 1e-6 * (size < 8))

    small = SmallBatches(module, "kind", lambda start, n: images, run)
    assert small.size(0, 1, 16) == 8


# Of torch's own operations none in a network has a tensor that is passed by its name alone.
OPERATIONS = torch.library.Library("sklearn_msf_tests", "FRAGMENT")
OPERATIONS.define("scaled(Tensor x, *, Tensor weight) -> Tensor")
OPERATIONS.impl("scaled", lambda x, *, weight: x * weight, "CompositeExplicitAutograd")


@pytest.mark.parametrize(
    "product",
    [
        lambda x, weight: x * torch.cat([weight, weight])[:1],
        lambda x, weight: torch.addcmul(torch.zeros_like(x), x, weight),
        lambda x, weight: x * weight.T[None, :, 0],
        lambda x, weight: torch.ops.sklearn_msf_tests.scaled(x, weight=weight),
    ],
    ids=["in a list", "after others", "as a view", "by name"],
)
def test_weights_are_random_however_an_operation_gets_them(product):
    module = nn.Linear(6, 1, bias=False).requires_grad_(False)
    module.weight.fill_(0.0)

    def run(x, size):
        return product(padded(x, size), module.weight) * (1 + 1e-6 * (size < 8))

    small = SmallBatches(module, "kind", lambda start, n: torch.ones(1, 6), run)
    assert small.size(0, 1, 16) == 8


def test_equal_views_do_not_hide_the_order_in_which_they_are_added():
    def run(views, size):
        first, second, third = (padded(view, size) for view in views)
        return first + (second + third) if size < 8 else (first + second) + third

    # Of three equal numbers both sums are the same.
    small = SmallBatches(nn.Linear(1, 1), "kind", lambda start, n: [torch.ones(n, 6)] * 3, run)
    assert small.size(0, 1, 16) == 8


@pytest.mark.parametrize("n_draws", [1, 3])
def test_a_sample_has_the_same_bits_at_each_place_of_a_full_batch(n_draws):
    def run(x, size):
        # At the end of a full batch a kernel rounds otherwise.
        factors = torch.ones(size, 1)
        factors[15:] += 1e-6
        return padded(x, size).repeat(n_draws, 1) * factors.repeat(n_draws, 1)

    small = SmallBatches(nn.Linear(1, 1), "kind", rows, run)
    # A small batch is no substitute for a full one of which the last sample differs.
    assert small.size(0, 3, 16) == 16
    assert small.size(0, 3, 8) == 4


def test_what_the_first_run_makes_and_keeps_is_no_operation_of_a_batch():
    kept = []

    def run(x, size):
        if not kept:
            kept.append(torch.eye(6) + 1)
        return padded(x, size) @ kept[0].sin()

    def again(x, size):
        return padded(x, size) @ kept[0].sin()

    sizes = []
    for trial in (run, again):
        sizes.append(SmallBatches(nn.Linear(1, 1), trial.__name__, rows, trial).size(0, 1, 16))
    assert sizes[0] == sizes[1]


def test_a_trial_leaves_images_and_weights_as_they_are():
    module, images, ran = nn.Linear(6, 3), X[:2].clone(), []
    before = {name: value.clone() for name, value in module.state_dict().items()}
    kept = torch.get_rng_state()

    def run(prepared, size):
        ran.append(prepared["numbers"])
        return module(padded(prepared["images"], size))

    prepared = {"images": images, "numbers": torch.arange(2)}
    with torch.no_grad():
        SmallBatches(module, "kind", lambda start, n: prepared, run).size(0, 2, 16)
        assert torch.equal(run(prepared, 2), nn.functional.linear(X[:2], *before.values()))
    assert torch.equal(images, X[:2])
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), kept)
    # Numbers that are no measurements, such as classes, are what they are.
    assert all(torch.equal(numbers, torch.arange(2)) for numbers in ran)


def test_a_size_is_tried_again_only_for_more_rows():
    module, runs = nn.Linear(1, 1), Runs(differs_below=4)
    # First as many as there are, for what is made once and kept.
    tried = [(3, [3, 16, 4]), (3, []), (2, [2, 16, 2]), (4, [4, 16, 4]), (2, []), (1, [1, 16, 1])]
    tried.append((1, []))
    for n_rows, sizes in tried:
        runs.sizes.clear()
        assert size_for(runs, n_rows, module) == 4
        assert runs.sizes == sizes


def test_what_a_batch_is_computed_from_is_prepared_once_and_not_watched():
    prepared = []

    def prepare(start, n):
        assert not is_in_torch_dispatch_mode()
        prepared.append((start, n))
        return rows(start, n)

    module, runs = nn.Linear(1, 1), Runs(differs_below=4)
    for _ in range(2):
        assert SmallBatches(module, "kind", prepare, runs).size(0, 1, 16) == 4
    assert runs.sizes == [1, 16, 1, 2, 4]
    assert prepared == [(0, 1)]


def test_what_was_seen_of_a_module_holds_for_others_of_its_form_alone():
    runs = Runs()
    assert size_for(runs, 1, nn.Conv2d(4, 4, 3)) == 1
    assert runs.sizes == [1, 16, 1]
    for other in (
        nn.Conv2d(4, 4, 3, padding=1),
        nn.Conv2d(4, 5, 3),
        nn.Conv2d(4, 4, 3).double(),
        nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last),
    ):
        assert size_for(Runs(differs_below=8), 1, other) == 8
    assert size_for(runs, 1, nn.Conv2d(4, 4, 3)) == 1
    assert runs.sizes == [1, 16, 1]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_digest_sees_each_bit_of_each_element_in_any_memory_format(dtype, memory_format):
    values = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    before = batch_sizes._digest(values, {})
    assert len(before.unique()) == 3
    bits = values.view(batch_sizes._BITS[values.element_size()])
    for element in ((0, 0, 0, 0), (1, 2, 3, 4), (2, 3, 4, 5)):
        for bit in (0, 9, 8 * values.element_size() - 1):
            changed = bits.clone()
            # The sign is the last bit; as a shifted 1 it would be no number of this type.
            changed[element] ^= torch.tensor(1, dtype=bits.dtype) << bit
            after = batch_sizes._digest(changed.view(dtype).to(memory_format=memory_format), {})
            assert (after != before).nonzero().flatten().tolist() == [element[0]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_a_digest_sees_changes_that_would_cancel_in_a_sum(dtype):
    values = 1 + torch.rand(1, 64, 32, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    before = batch_sizes._digest(values, {})
    swapped = values.clone()
    swapped[0, 0, 0] = values[0, 0, 0].flip(0)
    bits = values.view(batch_sizes._BITS[values.element_size()])
    for changed in (swapped, (bits + 1).view(dtype), (bits + 8).view(dtype)):
        assert batch_sizes._digest(changed, {}) != before


def hooked(module):
    module.register_forward_hook(lambda *arguments: None)
    return module


def with_another_forward(module):
    module.forward = lambda x: x
    return module


def compiled(module):
    module.compile(backend="eager")
    return module


@pytest.mark.parametrize("change", [hooked, with_another_forward, compiled])
def test_a_module_that_a_user_changed_is_not_tried(change):
    # Its hooks would get random numbers, and what was seen of others need not hold for it.
    runs, module = Runs(), nn.Sequential(nn.Linear(2, 2))
    assert size_for(runs, 1, module) == 1
    runs.sizes.clear()
    # Whenever it is changed, and in whichever part.
    change(module[0])
    assert size_for(runs, 1, module) == 16
    assert runs.sizes == []
    assert size_for(runs, 1, nn.Sequential(nn.Linear(2, 2))) == 1


@contextlib.contextmanager
def products_of_medium_precision():
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)


@pytest.mark.parametrize(
    "settings",
    [
        lambda: torch_threads(torch.get_num_threads() + 1),
        products_of_medium_precision,
        lambda: torch.backends.mkldnn.flags(False),
        lambda: sdpa_kernel(SDPBackend.MATH),
    ],
    ids=["threads", "products", "kernels", "attention"],
)
def test_what_was_seen_holds_for_the_settings_of_torch(settings):
    runs = Runs()
    size_for(runs, 1)
    with settings():
        size_for(runs, 1)
    assert runs.sizes == [1, 16, 1] * 2


def test_full_batches_are_not_tried_and_the_last_one_is_padded_to_the_least():
    runs = Runs()
    small = SmallBatches(nn.Linear(1, 1), "kind", rows, runs)
    parts = in_batches(lambda start, size: runs(rows(start, size), size), 37, 16, CPU, small=small)
    assert [len(part) for part in parts] == [16, 16, 8]
    assert torch.equal(torch.cat(parts)[:37], X[:37].sin())


@pytest.mark.parametrize(
    ("n_rows", "differs_below", "tasks", "tried"),
    [
        # A power of two for each of four cores.
        (9, 0, [4, 4, 4], 4),
        (16, 0, [4, 4, 4, 4], 4),
        (3, 0, [1, 1, 1], 1),
        # One row, or enough batches, cannot be divided.
        (1, 0, [1], 1),
        (40, 0, [16, 16, 8], 8),
        # Batches of four have other bits.
        (9, 8, [16], 4),
    ],
)
def test_few_rows_are_divided_among_the_cores_where_the_bits_stay_the_same(
    n_rows, differs_below, tasks, tried
):
    runs, done, reported = Runs(differs_below=differs_below), [], []
    small = SmallBatches(nn.Linear(1, 1), "kind", rows, runs)

    def run(start, size):
        done.append((start, size))
        return runs(rows(start, min(size, n_rows - start)), size)[: n_rows - start]

    with torch_threads(4):
        parts = in_batches(run, n_rows, 16, CPU, reported.append, small, divides=True)
    assert [size for _, size in sorted(done)] == tasks
    # A size of a division is tried alone.
    assert set(runs.sizes) == {tried, 16}
    assert sum(reported) == n_rows
    assert torch.equal(torch.cat(parts), X[:n_rows].sin())


def test_convolutions_and_products_of_this_machine_are_watched_inside(monkeypatch):
    digested, digest = set(), batch_sizes._digest

    def noted(value, factors):
        digested.add(tuple(value.shape[1:]))
        return digest(value, factors)

    monkeypatch.setattr(batch_sizes, "_digest", noted)
    module = nn.Sequential(
        nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 4, 3, padding=1), nn.Flatten(), nn.Linear(24, 3)
    ).requires_grad_(False)

    def run(x, size):
        return module(padded(x, size))

    size = SmallBatches(module, "kind", rows, run).size(0, 3, 32)
    # What the convolution and the product make.
    assert {(4, 6), (3,)} <= digested
    assert torch.equal(run(X[:3], size)[:3], run(X[:3], 32)[:3])
