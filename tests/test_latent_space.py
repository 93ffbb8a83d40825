import numpy as np
import pytest
import torch
from conftest import Averages, tiny_autoencoder, torch_threads

from sklearn_msf.data.images import learn_format
from sklearn_msf.data.resizing import resize_images
from sklearn_msf.exceptions import AutoencoderError
from sklearn_msf.flow.label_codes import CodeReader, EncodedLabelCodes, make_label_codes
from sklearn_msf.latent import latent_space
from sklearn_msf.latent.autoencoder import ImageAutoencoder
from sklearn_msf.latent.autoencoder_latents import learn_latents
from sklearn_msf.latent.latent_batches import LatentTrainingData, encode_variations
from sklearn_msf.latent.latent_inputs import EncodedInputs, KeptInputs
from sklearn_msf.latent.latent_space import LatentSpace

RNG = np.random.default_rng(0)
ROWS = RNG.integers(0, 256, (6, 16 * 16), dtype=np.uint8)
FORMAT = learn_format(ROWS, (16, 16), flat=True)
IMAGES = FORMAT.to_numpy_images(ROWS)
CPU = torch.device("cpu")


def make_space(module=None, size=(16, 16), fmt=FORMAT, images=IMAGES, palette=None):
    autoencoder = ImageAutoencoder(module or Averages())
    latents = learn_latents(images, autoencoder, size, "float32", palette)
    return LatentSpace(fmt, latents, palette)


def test_latents_have_zero_mean_and_unit_deviation_in_each_channel():
    latents = make_space().inputs(ROWS, CPU, "float32", [()]).batch(0, len(ROWS))
    assert latents.shape == (6, 3, 4, 4)
    torch.testing.assert_close(latents.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    deviation = latents.std(dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(deviation, torch.ones(3), atol=1e-5, rtol=0)


def test_a_published_factor_is_used_as_it_is():
    autoencoder = ImageAutoencoder(tiny_autoencoder(scaling_factor=0.25, shift_factor=0.1))
    found = learn_latents(IMAGES, autoencoder, (16, 16), "float32", None)
    assert found.shift.tolist() == pytest.approx([0.1] * 4)
    assert found.scale.tolist() == [0.25] * 4


def test_a_channel_that_never_changes_is_left_alone():
    module = Averages()
    encode = module.encode
    module.encode = lambda images: encode(images) * torch.tensor([1.0, 0.0, 1.0])[:, None, None]
    found = learn_latents(IMAGES, ImageAutoencoder(module), (16, 16), "float32", None)
    assert found.scale[1] == 1.0
    assert torch.isfinite(found.scale).all()


def test_sampled_latents_come_back_at_the_size_and_in_the_channels_of_x():
    space = make_space(size=(32, 32))
    images = space.images(torch.randn(2, *space.shape))
    assert images.shape == (2, 1, 16, 16)
    assert images.abs().max() <= 1


def test_what_is_encoded_and_decoded_unchanged_is_the_image():
    smooth = np.repeat(np.repeat(IMAGES[:, :, ::8, ::8], 8, axis=2), 8, axis=3)
    rows = smooth.reshape(len(smooth), -1)
    space = make_space(images=smooth)
    latents = space.inputs(rows, CPU, "float32", [()]).batch(0, len(rows))
    found = FORMAT.from_tensor(space.images(latents))
    np.testing.assert_array_equal(found.reshape(rows.shape), rows)


@pytest.mark.parametrize("flip", [(-1,), (-2,), (-1, -2)])
def test_flipped_inputs_are_encoded_flips(flip):
    space = make_space()
    flipped = np.ascontiguousarray(np.flip(IMAGES, flip)).reshape(ROWS.shape)
    found = space.inputs(ROWS, CPU, "float32", [(), flip]).batch(0, 6, flip)
    wanted = space.inputs(flipped, CPU, "float32", [()]).batch(0, 6)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("module", [Averages(), tiny_autoencoder()])
def test_inputs_that_are_encoded_before_have_the_same_bits(module, monkeypatch):
    space, flips = make_space(module), [(), (-1,), (-1, -2)]
    kept = space.inputs(ROWS, CPU, "float32", flips)
    monkeypatch.setattr(latent_space, "_BYTES_KEPT", 0)
    fresh = space.inputs(ROWS, CPU, "float32", flips)
    assert (type(kept), type(fresh)) == (KeptInputs, EncodedInputs)
    assert len(kept) == len(fresh) == 6
    for flip in flips:
        for start in (0, 4):
            assert torch.equal(kept.batch(start, 4, flip), fresh.batch(start, 4, flip))


@pytest.mark.parametrize(("n_threads", "n_images_a_core"), [(1, 6), (2, 4), (3, 2), (4, 2)])
def test_few_images_are_encoded_on_all_cores_in_whole_passes(
    monkeypatch, n_threads, n_images_a_core
):
    monkeypatch.setattr("sklearn_msf.latent.autoencoder._PIXELS_A_PASS", 2 * 16 * 16)
    tasks, batches = [], latent_space.in_batches

    def noted(encode, n, n_a_task, device):
        tasks.append(n_a_task)
        return batches(encode, n, n_a_task, device)

    monkeypatch.setattr(latent_space, "in_batches", noted)
    space = make_space(tiny_autoencoder())
    wanted = space.inputs(ROWS, CPU, "float32", [()]).batch(0, 6)
    tasks.clear()
    with torch_threads(n_threads):
        found = space.inputs(ROWS, CPU, "float32", [()]).batch(0, 6)
        space.inputs(np.tile(ROWS, (20, 1)), CPU, "float32", [()])
    assert torch.equal(found, wanted)
    # Of many images each task has no more than the memory is meant for.
    assert tasks == [n_images_a_core, 16]


def test_images_are_resized_without_leaving_their_range():
    checkers = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(4, 4)[None, None]
    for size in [(3, 5), (32, 16)]:
        resized = resize_images(checkers, size)
        assert resized.shape == (1, 1, *size)
        assert resized.abs().max() <= 1
    assert resize_images(checkers, (8, 8)) is checkers


def encoded(module, augment, n_variations, images=IMAGES, seed=0):
    space = make_space(module)
    n_channels = space.shape[0] * (2 if isinstance(module, torch.nn.Module) else 1)
    latents = torch.empty(len(images), n_variations, n_channels, *space.shape[1:])
    encode_variations(latents, images, space, augment, seed, "float32")
    return latents


def test_the_first_variations_are_the_image_and_its_flips():
    latents = encoded(Averages(), "flip+affine", 6)
    plain = latents[:, 0]
    torch.testing.assert_close(latents[:, 1], plain.flip(3))
    torch.testing.assert_close(latents[:, 2], plain.flip(2))
    torch.testing.assert_close(latents[:, 3], plain.flip(2, 3))
    moved = latents[:, 4:]
    assert all((moved[:, i] - latents[:, j]).abs().max() > 0.01 for i in (0, 1) for j in range(4))


def test_variations_of_an_image_do_not_depend_on_the_others():
    together = encoded(Averages(), "hflip+affine", 4)
    alone = encoded(Averages(), "hflip+affine", 4, images=IMAGES[:2])
    torch.testing.assert_close(alone, together[:2])


def training_data(latents, n_flips, n_channels, n_features=0):
    targets = (
        torch.arange(len(latents)),
        torch.ones(len(latents), dtype=torch.float64),
        len(latents),
    )
    return LatentTrainingData(latents, n_flips, n_channels, n_features, *targets, CPU)


def test_a_batch_takes_one_variation_of_each_image():
    # The value of a latent is its image, and its variation behind the comma.
    values = torch.arange(5.0)[:, None] + torch.arange(4.0) / 10
    data = training_data(values[:, :, None, None, None].expand(-1, -1, 2, 3, 3), 2, 2)
    generator = torch.Generator().manual_seed(0)
    rows = torch.tensor([3, 0, 4, 3] * 50)
    x, labels = data.batch((rows,), 100, 0, generator)
    assert labels.tolist() == rows.tolist()
    image, variation = x[:, 0, 0, 0].floor(), (x[:, 0, 0, 0] % 1 * 10).round()
    assert image.tolist() == rows.tolist()
    # Samples before t = 1 see only variations that generated images may look like.
    assert set(variation[:100].tolist()) == {0, 1, 2, 3}
    assert set(variation[100:].tolist()) == {0, 1}


def test_every_batch_has_fresh_samples_of_the_posterior():
    means, deviations = torch.full((1, 1, 2, 8, 8), 3.0), torch.full((1, 1, 2, 8, 8), 0.5)
    data = training_data(torch.cat([means, deviations], dim=2), 1, 2)
    generator = torch.Generator().manual_seed(0)
    rows = torch.zeros(200, dtype=torch.long)
    first, second = (data.batch((rows,), 0, 0, generator)[0] for _ in range(2))
    assert (first != second).all()
    assert first.mean() == pytest.approx(3.0, abs=0.02)
    assert first.std() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(("n_features", "deviation"), [(2, 0.1118), (160, 1.0), (360, 1.5)])
def test_only_samples_for_classification_and_only_features_have_noise(n_features, deviation):
    n_channels = 1 + n_features
    values = torch.arange(10.0)[:, None, None, None, None].expand(-1, 1, n_channels, 4, 4)
    data = training_data(values, 1, n_channels, n_features)
    generator = torch.Generator().manual_seed(0)
    rows = torch.arange(10).repeat(20)
    first, second = (data.batch((rows,), 200, 150, generator)[0] for _ in range(2))
    plain = rows.float()[:, None, None, None].expand_as(first)
    assert torch.equal(first[150:], plain[150:])
    assert torch.equal(first[:150, :1], plain[:150, :1])
    assert (first[:150, 1:] != second[:150, 1:]).all()
    # Also where all samples are varied, because none is at t = 1.
    assert torch.equal(data.batch((rows,), 200, 0, generator)[0], plain)
    noise = (first - plain)[:150, 1:] / deviation
    assert noise.mean() == pytest.approx(0, abs=0.02)
    assert noise.std() == pytest.approx(1, abs=0.02)


def test_masks_of_classes_are_encoded_once():
    palette = make_label_codes("rgb", 4, 0.0)
    space = make_space(palette=palette)
    autoencoder = ImageAutoencoder(Averages())
    found = learn_latents(IMAGES, autoencoder, (16, 16), "float32", palette)
    assert found.mask_codes.shape == (4, 3, 4, 4)
    # Averages of one colour are that colour.
    colours = found.restore(found.mask_codes)
    wanted = palette.codes[:, :, None, None].expand(-1, -1, 4, 4)
    torch.testing.assert_close(colours, wanted, atol=1e-5, rtol=0)
    reader = space.reader(EncodedLabelCodes(space.mask_codes), "pixel")
    distances = reader.distances(reader.prepare(found.mask_codes, 4))
    torch.testing.assert_close(distances.diagonal(), torch.zeros(4), atol=1e-4, rtol=0)
    assert distances.argmin(dim=1).tolist() == [0, 1, 2, 3]


def test_latents_that_are_not_finite_are_refused():
    module = Averages()
    space = make_space(module)
    module.encode = lambda images: Averages.encode(module, images) * torch.inf
    latents = torch.empty(len(IMAGES), 1, *space.shape)
    with pytest.raises(AutoencoderError, match="NaN or infinite latents"):
        encode_variations(latents, IMAGES, space, None, 0, "float32")


def test_stored_latents_are_normalised_and_so_are_their_deviations():
    class Pairs(Averages):
        def encode(self, images):
            mean = super().encode(images)
            return 1e5 + 1e5 * mean, torch.full_like(mean, 1e5)

    space = make_space(Pairs())
    latents = torch.empty(len(IMAGES), 1, 6, 4, 4, dtype=torch.float16)
    encode_variations(latents, IMAGES, space, None, 0, "float32")
    means, deviations = latents[:, 0, :3].float(), latents[:, 0, 3:].float()
    assert means.mean().abs() < 1e-2
    # What is drawn has the deviation 1, as with the factors that autoencoders publish.
    drawn = means.var(dim=(0, 2, 3)) + deviations.square().mean(dim=(0, 2, 3))
    assert drawn.tolist() == pytest.approx([1] * 3, abs=0.02)
    plain = Averages().encode(torch.from_numpy(IMAGES / 127.5 - 1).expand(-1, 3, -1, -1))
    wanted = 1 / (1 + plain.var(dim=(0, 2, 3), correction=0)).sqrt()
    torch.testing.assert_close(deviations.mean(dim=(0, 2, 3)), wanted.float(), rtol=0.01, atol=0)


def test_masks_are_compared_with_the_encoded_ones_unless_they_are_to_be_decoded():
    encoded_codes = EncodedLabelCodes(torch.randn(3, 3, 4, 4))
    palette = make_label_codes("rgb", 3, 0.0)
    reader = make_space(palette=palette).reader(encoded_codes, "latent")
    assert type(reader) is CodeReader
    assert torch.equal(reader.codes.codes, encoded_codes.codes)
    # A field of class probabilities carries plain colours: there is nothing to decode.
    reader = make_space().reader(palette, "pixel")
    assert type(reader) is CodeReader
    assert torch.equal(reader.codes.codes, palette.codes)


def test_masks_are_decoded_only_where_the_field_carries_encoded_ones():
    masks = torch.rand(2, 3, 4, 4) - 0.5
    assert make_space().masks(masks) is masks
    space = make_space(palette=make_label_codes("rgb", 3, 0.0))
    decoded = space.masks(space.mask_codes)
    colours = space.palette.codes[:, :, None, None].expand(-1, -1, 16, 16)
    torch.testing.assert_close(decoded, colours, atol=1e-5, rtol=0)
