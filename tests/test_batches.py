import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from sklearn_msf.training.batches import TrainingData, count_batches


def rows_seen(weights, epoch_size, batch_size=4, seed=0, even=True):
    weights = torch.tensor(weights, dtype=torch.float64)
    n = len(weights)
    images, labels = torch.zeros(n, 1, 1, 1), torch.zeros(n, dtype=torch.int64)
    data = TrainingData(images, labels, weights, epoch_size)
    batches = list(data.epoch(batch_size, torch.Generator().manual_seed(seed), even=even))
    return torch.cat(batches), [len(batch) for batch in batches]


@given(st.lists(st.integers(1, 5), min_size=1, max_size=30), st.integers(0, 2**31))
def test_integer_weights_count_as_repetitions(weights, seed):
    rows, _ = rows_seen([float(w) for w in weights], sum(weights), seed=seed)
    np.testing.assert_array_equal(np.bincount(rows, minlength=len(weights)), weights)


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=30), st.integers(0, 2**31))
def test_an_epoch_gives_each_sample_its_share_to_within_one(weights, seed):
    rows, _ = rows_seen(weights, len(weights), seed=seed)
    share = len(rows) * np.array(weights) / sum(weights)
    assert (np.abs(np.bincount(rows, minlength=len(weights)) - share) < 1 + 1e-6).all()


@given(st.integers(1, 200), st.integers(1, 64))
def test_batches_of_an_epoch_are_of_even_size(n, batch_size):
    _, sizes = rows_seen([1.0] * n, n, batch_size)
    assert sum(sizes) == n
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= max(batch_size * 1.5, 1)


@given(st.integers(1, 200), st.integers(1, 64))
def test_batches_that_are_not_even_are_those_of_a_data_loader(n, batch_size):
    rows, sizes = rows_seen([1.0] * n, n, batch_size, even=False)
    loader = torch.utils.data.DataLoader(range(n), batch_size=batch_size)
    assert sizes == [len(batch) for batch in loader.batch_sampler]
    assert sorted(rows.tolist()) == list(range(n))


def test_the_papers_retina_images_make_five_batches():
    assert rows_seen([1.0] * 1080, 1080, 256, even=False)[1] == [256, 256, 256, 256, 56]
    assert rows_seen([1.0] * 1080, 1080, 256)[1] == [270] * 4


@given(st.integers(1, 200), st.integers(1, 64), st.booleans())
def test_batches_are_counted_without_making_them(n, batch_size, even):
    _, sizes = rows_seen([1.0] * n, n, batch_size, even=even)
    assert count_batches(n, batch_size, even=even) == len(sizes)


def test_a_batch_is_a_selection_of_samples():
    images = torch.arange(5.0)[:, None, None, None]
    labels = torch.tensor([0, 1, 0, 1, 2])
    data = TrainingData(images, labels, torch.ones(5, dtype=torch.float64), 5)
    chosen, chosen_labels = data.batch((torch.tensor([4, 1]),), 0, 0, torch.Generator())
    assert chosen.ravel().tolist() == [4.0, 1.0]
    assert chosen_labels.tolist() == [2, 1]


def test_samples_left_out_are_never_seen_and_the_others_as_often_as_before():
    data = TrainingData(
        torch.zeros(10, 1, 4, 4), torch.arange(10), torch.full((10,), 2.0, dtype=torch.float64), 20
    )
    part = data.take(torch.tensor([1, 2, 5, 8]))
    seen = torch.cat(list(part.epoch(3, torch.Generator().manual_seed(0))))
    assert sorted(seen.tolist()) == [1, 1, 2, 2, 5, 5, 8, 8]
    assert part.images is data.images
    assert data.epoch_size == 20


def test_volumes_that_need_too_much_memory_have_their_own_remedy():
    weights, labels = torch.ones(2, dtype=torch.float64), torch.zeros(2, dtype=torch.int64)
    images = TrainingData(torch.zeros(2, 1, 4, 4), labels, weights, 2)
    volumes = TrainingData(torch.zeros(2, 1, 4, 4, 4), labels, weights, 2)
    assert "LatentMedSymmFlowClassifier" in images.smaller_samples
    # That class refuses volumes.
    assert "LatentMedSymmFlowClassifier" not in volumes.smaller_samples
    assert "patch_size" in volumes.smaller_samples
