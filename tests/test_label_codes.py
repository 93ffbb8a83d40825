import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_memory import LargestTensor

from sklearn_msf.flow.label_codes import (
    LABEL_ENCODINGS,
    CodeReader,
    EncodedLabelCodes,
    PixelReader,
    make_label_codes,
)

SIZE = (5, 7)


def test_rgb_codes_of_five_classes_are_the_papers():
    # linspace(0, 63, 5) floors to 0, 15, 31, 47, 63; base 4 digits times 75, over 127.5, - 1.
    expected = np.array([[0, 0, 0], [0, 225, 225], [75, 225, 225], [150, 225, 225], [225] * 3])
    codes = make_label_codes("rgb", 5, 4.0)
    np.testing.assert_allclose(codes.codes.numpy(), expected / 127.5 - 1, atol=1e-6)
    assert codes.jitter == pytest.approx(4 / 127.5)


def test_grayscale_codes_are_even_steps_over_beta():
    codes = make_label_codes("grayscale", 5, 3.0)
    np.testing.assert_allclose(codes.codes.numpy().ravel(), [-1.5, -0.75, 0, 0.75, 1.5])
    assert codes.jitter == pytest.approx(1.5 / 4)


@pytest.mark.parametrize("n_classes", [2, 3, 8, 65])
def test_simplex_codes_are_centred_and_equally_far_apart(n_classes):
    codes = make_label_codes("simplex", n_classes, 4.0)
    assert codes.n_channels == n_classes - 1
    np.testing.assert_allclose(codes.codes.mean(dim=0), 0, atol=1e-6)
    # Vertices of radius r have edges of length r * sqrt(2 K / (K - 1)).
    edge = np.sqrt(n_classes - 1) * np.sqrt(2 * n_classes / (n_classes - 1))
    np.testing.assert_allclose(torch.pdist(codes.codes), edge, rtol=1e-5)
    assert codes.is_regular


@pytest.mark.parametrize("encoding", LABEL_ENCODINGS)
@pytest.mark.parametrize("n_classes", range(2, 65))
def test_decoding_an_encoded_class_returns_it(encoding, n_classes):
    codes = make_label_codes(encoding, n_classes, 4.0)
    labels = torch.arange(n_classes)
    masks = codes.masks(labels, SIZE, torch.Generator().manual_seed(n_classes))
    assert torch.equal(codes.distances(masks).argmin(dim=1), labels)
    assert torch.equal(codes.probabilities(masks).argmax(dim=1), labels)


@given(st.integers(2, 64), st.sampled_from(LABEL_ENCODINGS), st.integers(0, 2**31))
def test_jitter_stays_within_its_width(n_classes, encoding, seed):
    codes = make_label_codes(encoding, n_classes, 4.0)
    labels = torch.tensor([0, n_classes - 1])
    generator = torch.Generator().manual_seed(seed)
    offsets = codes.masks(labels, SIZE, generator) - codes.masks(labels, SIZE)
    assert offsets.abs().max() <= codes.jitter / 2 + 1e-6
    assert offsets.max() > 0.25 * codes.jitter
    assert offsets.min() < -0.25 * codes.jitter


def test_rgb_distance_is_the_mean_over_pixels_of_the_norm_over_channels():
    codes = make_label_codes("rgb", 3, 4.0)
    mask = torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    difference = mask.numpy()[0] - codes.codes.numpy()[:, :, None, None]
    expected = np.sqrt((difference**2).sum(axis=1)).mean(axis=(1, 2))
    np.testing.assert_allclose(codes.distances(mask)[0], expected, rtol=1e-5)


@given(st.floats(-2.5, 2.5), st.integers(2, 64))
def test_grayscale_decodes_to_the_rescaled_rounded_mean(value, n_classes):
    codes = make_label_codes("grayscale", n_classes, 4.0)
    decoded = int(codes.distances(torch.full((1, 1, *SIZE), value)).argmin())
    position = (value / 2 + 1) / 2 * (n_classes - 1)
    rounded = int(np.clip(np.rint(position), 0, n_classes - 1))
    assert decoded == rounded or abs(position % 1 - 0.5) < 1e-3


@given(st.lists(st.floats(0, 1), min_size=2, max_size=64).filter(lambda raw: sum(raw) > 0.1))
def test_mixture_weights_of_a_regular_simplex_are_recovered(raw):
    p = torch.tensor(raw, dtype=torch.float64)
    p = p / p.sum()
    codes = make_label_codes("simplex", len(raw), 4.0)
    masks = codes.mean_codes(p[None])[:, :, None, None].expand(-1, -1, *SIZE)
    np.testing.assert_allclose(codes.probabilities(masks)[0], p, atol=0.006)


@pytest.mark.parametrize("n_classes", [2, 8, 64])
def test_a_perfect_simplex_mask_is_nearly_certain(n_classes):
    codes = make_label_codes("simplex", n_classes, 4.0)
    p = codes.probabilities(codes.masks(torch.arange(n_classes), SIZE).double())
    assert p.diagonal().min() > 0.99


@pytest.mark.parametrize("encoding", LABEL_ENCODINGS)
@pytest.mark.parametrize("n_classes", [2, 3, 5, 7, 8, 11])
def test_a_mean_code_has_the_same_bits_at_any_place(encoding, n_classes):
    codes = make_label_codes(encoding, n_classes, 4.0)
    p = torch.rand(61, n_classes, dtype=torch.float64).softmax(dim=1)
    order = torch.randperm(len(p))
    assert torch.equal(codes.mean_codes(p[order]), codes.mean_codes(p)[order])


@given(st.floats(-3, 4))
def test_masks_beyond_the_codes_still_rank(position):
    # No ties where a regression overshoots: more of a class is always more probable.
    codes = make_label_codes("rgb", 2, 4.0)
    places = torch.tensor([position, position + 0.01], dtype=torch.float64)
    weights = torch.stack([1 - places, places], dim=1)
    masks = codes.mean_codes(weights)[:, :, None, None].expand(-1, -1, *SIZE)
    p = codes.probabilities(masks)[:, 1]
    assert p[1] > p[0]


@pytest.mark.parametrize("kind", ["rgb", "encoded"])
def test_a_mixture_of_independent_codes_gives_its_weights(kind):
    if kind == "rgb":
        codes = make_label_codes("rgb", 3, 4.0)
        images = codes.masks(torch.arange(3), SIZE)
    else:
        images = torch.randn(3, 4, *SIZE, generator=torch.Generator().manual_seed(0))
        codes = EncodedLabelCodes(images)
    p = torch.tensor([[0.2, 0.5, 0.3], [0.9, 0.05, 0.05]], dtype=torch.float64)
    masks = torch.einsum("nk,kchw->nchw", p, images.double())
    np.testing.assert_allclose(codes.probabilities(masks), p, atol=0.01)


def test_encoded_masks_on_one_line_are_told_apart_by_distance():
    line = torch.linspace(-1, 1, 3)[:, None, None, None].expand(-1, 2, *SIZE)
    codes = EncodedLabelCodes(line)
    p = codes.probabilities(line.double())
    np.testing.assert_array_equal(p.argmax(dim=1), [0, 1, 2])


@pytest.mark.parametrize("encoding", LABEL_ENCODINGS)
@given(seed=st.integers(0, 2**31), n_classes=st.integers(2, 9))
def test_probabilities_are_positive_sum_to_one_and_agree_with_the_nearest_code(
    encoding, seed, n_classes
):
    codes = make_label_codes(encoding, n_classes, 4.0)
    colour = torch.randn(4, codes.n_channels, generator=torch.Generator().manual_seed(seed))
    masks = colour.double()[:, :, None, None].expand(-1, -1, *SIZE)
    p, d = codes.probabilities(masks), codes.distances(masks)
    assert (p > 0).all()
    torch.testing.assert_close(p.sum(dim=1), torch.ones(4, dtype=torch.float64))
    if encoding == "rgb" and n_classes == 3:
        # Not equally far apart: the largest weight can be that of a code a little further off.
        return
    chosen = d.gather(1, p.argmax(dim=1, keepdim=True))[:, 0]
    torch.testing.assert_close(chosen, d.min(dim=1).values)


def test_too_many_classes_for_the_palette_name_the_remedy():
    with pytest.raises(ValueError, match="64 codes, got 65 classes.*simplex"):
        make_label_codes("rgb", 65, 4.0)


@pytest.mark.parametrize("encoding", ["grayscale", "simplex"])
def test_codes_are_for_up_to_1024_classes(encoding):
    assert make_label_codes(encoding, 1024, 4.0).n_classes == 1024
    with pytest.raises(ValueError, match=f"label_encoding='{encoding}' .* 1,024 .*got 1,025"):
        make_label_codes(encoding, 1025, 4.0)


@pytest.mark.parametrize("n_classes", [2, 3, 8, 64])
@pytest.mark.parametrize("encoding", LABEL_ENCODINGS)
def test_codes_are_regular_where_all_distances_are_equal(encoding, n_classes):
    codes = make_label_codes(encoding, n_classes, 4.0)
    gaps = torch.pdist(codes.codes.double())
    assert codes.is_regular == torch.allclose(gaps, gaps[:1])


@given(st.integers(3, 300), st.floats(1e-3, 255))
def test_the_scale_of_gray_probabilities_is_half_the_smallest_of_all_distances(n_classes, beta):
    codes = make_label_codes("grayscale", n_classes, beta)
    masks = torch.linspace(-beta, beta, 5, dtype=torch.float64)[:, None, None, None]
    scale = torch.pdist(codes.codes.double()).min() / 2
    wanted = torch.softmax(-codes.distances(masks) / scale, dim=1)
    assert torch.equal(codes.probabilities(masks), wanted)


def test_probabilities_of_gray_codes_do_not_compare_all_pairs_of_classes():
    codes = make_label_codes("grayscale", 1024, 4.0)
    with LargestTensor() as largest:
        p = codes.probabilities(torch.zeros(1, 1, 2, 2, dtype=torch.float64))
    assert p.shape == (1, 1024)
    # One byte for each pair would be more.
    assert largest.n_bytes < 1024**2


def test_grayscale_needs_a_range():
    with pytest.raises(ValueError, match="beta > 0, got 0"):
        make_label_codes("grayscale", 3, 0)


def test_codes_are_compared_with_masks_as_they_are():
    codes = make_label_codes("rgb", 3, 4.0)
    masks = torch.randn(4, 3, *SIZE, generator=torch.Generator().manual_seed(0)).double()
    reader = CodeReader(codes)
    assert reader.prepare(masks, 2) is masks
    assert torch.equal(reader.probabilities(masks), codes.probabilities(masks))
    assert torch.equal(reader.distances(masks), codes.distances(masks))


def test_encoded_masks_are_decoded_where_they_count_and_compared_with_the_palette():
    palette = make_label_codes("rgb", 3, 4.0)
    n_decoded = []

    def decode(masks):
        n_decoded.append(len(masks))
        return 2 * masks

    latents = torch.randn(4, 3, *SIZE, generator=torch.Generator().manual_seed(0)).double()
    reader = PixelReader(palette, decode)
    masks = reader.prepare(latents, 3)
    assert n_decoded == [3]
    assert torch.equal(masks, 2 * latents[:3])
    assert torch.equal(reader.probabilities(masks), palette.probabilities(masks))
    assert torch.equal(reader.distances(masks), palette.distances(masks))


def test_the_scale_of_rgb_probabilities_is_half_the_smallest_distance():
    codes = make_label_codes("rgb", 5, 4.0)
    masks = torch.randn(4, 3, *SIZE).double()
    smallest = torch.pdist(codes.codes.double()).min()
    wanted = torch.softmax(-2 * codes.distances(masks) / smallest, dim=1)
    torch.testing.assert_close(codes.probabilities(masks), wanted)
