import json
import pickle
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import Averages, tiny_autoencoder, tiny_latent_classifier
from torch import nn

from sklearn_msf.data.images import learn_format
from sklearn_msf.data.on_demand import ImagesOnDemand
from sklearn_msf.exceptions import AutoencoderError, BackboneError
from sklearn_msf.latent.autoencoder import ImageAutoencoder, build_autoencoder
from sklearn_msf.latent.autoencoder_latents import learn_latents
from sklearn_msf.latent.autoencoder_opening import as_autoencoder, open_autoencoder
from sklearn_msf.latent.latent_batches import _stored

IMAGES = torch.rand(5, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1


class Pairs(Averages):
    """Returns deviations too."""

    def encode(self, images):
        mean = super().encode(images)
        return mean, torch.full_like(mean, 0.5)


def test_any_object_with_encode_and_decode_will_do():
    autoencoder = ImageAutoencoder(Averages())
    assert (autoencoder.factor, autoencoder.latent_channels) == (4, 3)
    assert (autoencoder.image_channels, autoencoder.has_deviation) == (3, False)
    mean, deviation = autoencoder.encode(IMAGES)
    torch.testing.assert_close(mean, Averages().encode(IMAGES))
    assert deviation is None
    torch.testing.assert_close(autoencoder.decode(mean), Averages().decode(mean))


def test_an_encoder_may_return_means_and_deviations():
    encoded = ImageAutoencoder(Pairs()).encode(IMAGES)
    assert (encoded.deviation == 0.5).all()


def test_tiling_which_no_file_has_is_turned_off_in_the_copy():
    given = tiny_autoencoder(sample_size=16)
    given.enable_tiling()
    with pytest.warns(UserWarning, match="tiling is turned off in the copy"):
        used = as_autoencoder(given)
    assert given.use_tiling
    assert not used.module.use_tiling


class Collapsed:
    """The posterior of the second channel tells nothing of the image."""

    in_channels = 1

    def encode(self, images):
        mean = torch.nn.functional.avg_pool2d(images[:, :1], 4)
        none = torch.zeros_like(mean)
        return torch.cat([mean, 1e-3 * mean], 1), torch.cat([none + 0.01, none + 1], 1)

    def decode(self, latents):
        return torch.nn.functional.interpolate(latents[:, :1], scale_factor=4)


def test_latents_are_scaled_by_what_training_draws():
    rows = np.random.default_rng(0).random((64, 64)).astype(np.float32)
    images = ImagesOnDemand(learn_format(rows, (8, 8), flat=False), rows)
    autoencoder = ImageAutoencoder(Collapsed())
    learned = learn_latents(images, autoencoder, (8, 8), "float32", None)
    mean, deviation = autoencoder.encode(torch.from_numpy(images[:]))
    drawn = learned.normalise(mean + deviation * torch.randn(mean.shape))
    assert (drawn.std(dim=(0, 2, 3)) - 1).abs().max() < 0.2


@pytest.mark.parametrize(
    ("channel", "error", "what"),
    [
        (0, AutoencoderError, "latents"),
        (2, BackboneError, "features"),
        # Deviations of the latents come last.
        (3, AutoencoderError, "latents"),
    ],
)
def test_what_half_precision_cannot_hold_is_named(channel, error, what):
    space = SimpleNamespace(n_latent=1, shape=(3, 2, 2))
    encoded = torch.zeros(2, 4, 2, 2)
    encoded[1, channel, 0, 0] = 1e5
    with pytest.raises(error, match=f"the {what} of some images have values of up to 1e"):
        _stored(encoded, torch.float16, space)


@pytest.mark.parametrize("kind", ["AutoencoderKL", "AutoencoderTiny"])
def test_autoencoders_of_diffusers_are_read(kind):
    module = tiny_autoencoder(kind)
    autoencoder = ImageAutoencoder(module)
    encoded = autoencoder.encode(IMAGES)
    assert encoded.mean.shape[2:] == tuple(n // autoencoder.factor for n in IMAGES.shape[2:])
    with torch.no_grad():
        answer = module.encode(IMAGES)
        if kind == "AutoencoderKL":
            torch.testing.assert_close(encoded.mean, answer.latent_dist.mean)
            torch.testing.assert_close(encoded.deviation, answer.latent_dist.std)
        else:
            torch.testing.assert_close(encoded.mean, answer.latents)
            assert encoded.deviation is None
        decoded = module.decode(encoded.mean).sample
    torch.testing.assert_close(autoencoder.decode(encoded.mean), decoded)
    assert (autoencoder.published_scaling is not None) == (kind == "AutoencoderKL")
    assert autoencoder.source == {"kind": "embedded"}


@pytest.mark.parametrize("n_images", [1, 2, 5])
def test_batches_run_in_passes_of_one_size_that_bounds_the_memory(monkeypatch, n_images):
    monkeypatch.setattr("sklearn_msf.latent.autoencoder._PIXELS_A_PASS", 2 * 16 * 24)
    module = Averages()
    seen = []
    encode = module.encode
    module.encode = lambda images: seen.append(len(images)) or encode(images)
    autoencoder = ImageAutoencoder(module)
    seen.clear()
    encoded = autoencoder.encode(IMAGES[:n_images])
    # The last one is filled up: kernels round differently for other numbers.
    assert seen == [2] * ((n_images + 1) // 2)
    torch.testing.assert_close(encoded.mean, encode(IMAGES[:n_images]))
    assert autoencoder.decode(encoded.mean).shape == (n_images, *IMAGES.shape[1:])


def test_gradients_are_neither_kept_nor_wanted():
    module = tiny_autoencoder().train().requires_grad_(True)
    autoencoder = ImageAutoencoder(module)
    assert not autoencoder.encode(IMAGES).mean.requires_grad
    assert not module.training
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_half_precision_weights_are_used_in_float32():
    module = tiny_autoencoder()
    wanted = ImageAutoencoder(tiny_autoencoder().to(torch.bfloat16).float()).encode(IMAGES).mean
    found = ImageAutoencoder(module.to(torch.bfloat16)).encode(IMAGES).mean
    torch.testing.assert_close(found, wanted)


def test_bfloat16_encodes_nearly_the_same():
    autoencoder = ImageAutoencoder(tiny_autoencoder())
    exact = autoencoder.encode(IMAGES).mean
    rounded = autoencoder.encode(IMAGES, "bfloat16").mean
    assert 0 < (rounded - exact).abs().max() < 0.1 * exact.std()


def test_a_fingerprint_tells_weights_apart():
    module, other = tiny_autoencoder(), tiny_autoencoder()
    with torch.no_grad():
        next(other.decoder.parameters()).add_(1e-3)
    (first, latents), (second, same) = (
        ImageAutoencoder(each).fingerprint() for each in (module, other)
    )
    assert ImageAutoencoder(tiny_autoencoder()).fingerprint()[0] == first
    assert second != first
    torch.testing.assert_close(same, latents)


class Module(nn.Module):
    """A module without weights."""

    in_channels = 1

    def __init__(self, gain=1.0):
        super().__init__()
        self.gain = gain

    def encode(self, images):
        return self.gain * images[:, :, ::8, ::8]

    def decode(self, latents):
        return latents.repeat_interleave(8, 2).repeat_interleave(8, 3)


def loud(gain):
    module = Averages()
    module.gain = gain
    return module


def with_another_decoder():
    module = Averages()
    module.decode = lambda latents: 0.5 * Averages.decode(module, latents)
    return module


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Averages(), loud(2.0)),
        (Averages(), Pairs()),
        (Averages(), with_another_decoder()),
        (Module(), Module(2.0)),
    ],
)
def test_a_fingerprint_tells_apart_what_has_no_weights(one, other):
    first, second = (ImageAutoencoder(each).fingerprint()[0] for each in (one, other))
    assert first != second


# Bad input


@pytest.mark.parametrize("missing", ["encode", "decode"])
def test_an_object_without_a_method_is_named(missing):
    class Half:
        pass

    half = Half()
    setattr(half, "decode" if missing == "encode" else "encode", lambda x: x)
    with pytest.raises(AutoencoderError, match=f"Half has no {missing}"):
        ImageAutoencoder(half)


@pytest.mark.parametrize(
    ("encode", "message"),
    [
        (lambda x: x.mean(dim=(2, 3)), r"latents of shape \(n, c, h, w\)"),
        (lambda x: "latents", "got str"),
        (lambda x: x[:, :, ::2, ::4], "same integer"),
        (lambda x: x[:, :, :7, :7], "same integer"),
        (lambda x: 1 / 0, "cannot encode an image of shape"),
    ],
)
def test_latents_of_another_kind_are_refused(encode, message):
    module = Averages()
    module.encode = encode
    with pytest.raises(AutoencoderError, match=message):
        ImageAutoencoder(module)


class Draws(Averages):
    """Returns a draw of its posterior."""

    deviation = 0.3

    def encode(self, images):
        mean = super().encode(images)
        return mean + self.deviation * torch.randn_like(mean)


def test_latents_that_are_drawn_at_random_are_refused():
    with pytest.raises(AutoencoderError, match="Draws makes other latents of the same image"):
        ImageAutoencoder(Draws())
    # Deviations that change nothing are no reason to refuse an autoencoder.
    nearly_the_same = Draws()
    nearly_the_same.deviation = 1e-6
    assert ImageAutoencoder(nearly_the_same).latent_channels == 3


class LogVariances(Averages):
    """Returns the logarithm of the variance where the deviation belongs."""

    def encode(self, images):
        mean = super().encode(images)
        return mean, torch.full_like(mean, -6.0)


def test_log_variances_are_not_taken_for_deviations():
    with pytest.raises(AutoencoderError, match=r"negative standard deviations: .*logvar"):
        ImageAutoencoder(LogVariances())


def test_decoded_images_of_another_kind_are_refused():
    module = Averages()
    autoencoder = ImageAutoencoder(module)
    module.decode = lambda z: z.mean()
    with pytest.raises(AutoencoderError, match=r"decode must return images"):
        autoencoder.decode(torch.zeros(1, 3, 4, 4))


# Folders and the hub


@pytest.mark.parametrize("kind", ["AutoencoderKL", "AutoencoderTiny"])
def test_a_folder_that_diffusers_saved_is_opened(tmp_path, kind):
    module = tiny_autoencoder(kind)
    module.save_pretrained(tmp_path)
    opened = open_autoencoder(str(tmp_path))
    assert opened.source == {"kind": "embedded"}
    wanted = ImageAutoencoder(module).encode(IMAGES).mean
    torch.testing.assert_close(opened.encode(IMAGES).mean, wanted)


def test_a_folder_with_pickled_weights_only_is_refused_and_nothing_is_run(tmp_path):
    module = tiny_autoencoder()
    module.save_pretrained(tmp_path, safe_serialization=False)
    assert not list(tmp_path.glob("*.safetensors"))
    with pytest.raises(AutoencoderError, match=r"pickles are not opened(.|\n)*autoencoder='fit'"):
        open_autoencoder(str(tmp_path))


def test_a_folder_of_something_else_is_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    with pytest.raises(AutoencoderError, match="is a 'UNet2DModel'"):
        open_autoencoder(str(tmp_path))


@pytest.mark.parametrize("name", ["./absent", "nobody/has-this"])
def test_what_cannot_be_had_gives_the_three_ways_out(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(AutoencoderError, match="Instead, use") as failure:
        open_autoencoder(name)
    for way in ("autoencoder='fit'", "path/to/folder", "an object with encode"):
        assert way in str(failure.value)


def test_without_diffusers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r"sklearn-msf\[latent\]"):
        build_autoencoder("AutoencoderKL", {})


def test_only_two_classes_are_built():
    with pytest.raises(AutoencoderError, match="none of"):
        build_autoencoder("UNet2DModel", {})


def test_a_plain_module_is_an_object_like_any_other():
    autoencoder = ImageAutoencoder(Module())
    assert (autoencoder.image_channels, autoencoder.factor) == (1, 8)
    assert autoencoder.source == {"kind": "object"}
    images = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(autoencoder.encode(images).mean, images[:, :, ::8, ::8])


def test_a_configuration_may_be_any_object():
    class Config:
        in_channels = 1
        scaling_factor = 0.5

    module = Module()
    module.config = Config()
    autoencoder = ImageAutoencoder(module)
    assert (autoencoder.image_channels, autoencoder.published_scaling) == (1, (0.0, 0.5))
    assert ImageAutoencoder(Module()).published_scaling is None


def test_a_scaling_by_channel_and_a_scaling_of_its_own_are_not_taken_for_one_factor():
    assert ImageAutoencoder(tiny_autoencoder(scaling_factor=0.5)).published_scaling == (0.0, 0.5)
    of_channels = {"latents_mean": [1.0] * 4, "latents_std": [5.0] * 4}
    opened = ImageAutoencoder(tiny_autoencoder(scaling_factor=0.5, **of_channels))
    assert opened.published_scaling is None


def test_an_autoencoder_that_was_fused_is_kept_by_pickles_and_asked_for_by_files(tmp_path):
    module = tiny_autoencoder()
    module.encoder = nn.Sequential(module.encoder)
    opened = as_autoencoder(module)
    assert opened.source == {"kind": "object"}
    assert as_autoencoder(tiny_autoencoder()).source == {"kind": "embedded"}


def _in_circles(part):
    for conv in part.modules():
        if isinstance(conv, nn.Conv2d):
            conv.padding_mode = "circular"


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_an_autoencoder_that_computes_something_else_than_its_configuration_is_an_object(part):
    module = tiny_autoencoder()
    _in_circles(getattr(module, part))
    assert as_autoencoder(module).source == {"kind": "object"}


def test_a_changed_autoencoder_is_pickled_as_it_is():
    module = tiny_autoencoder()
    _in_circles(module)
    X, y = np.random.default_rng(0).random((12, 16, 16)), np.arange(12) % 2
    classifier = tiny_latent_classifier(autoencoder=module, max_epochs=1).fit(X, y)
    opened = pickle.loads(pickle.dumps(classifier))
    np.testing.assert_array_equal(opened.predict_proba(X), classifier.predict_proba(X))


class OfTwoKinds(Module):
    """Has weights of images and of volumes, and a buffer."""

    def __init__(self):
        super().__init__()
        self.of_images = nn.Conv2d(1, 1, 3, padding=1)
        self.of_volumes = nn.Conv3d(1, 1, 3, padding=1)
        self.register_buffer("table", torch.ones(1, 1, 2, 2, 2))

    def encode(self, images):
        return super().encode(self.of_volumes(self.of_images(images)[:, :, None])[:, :, 0])


def test_weights_of_images_and_volumes_may_be_in_one_autoencoder():
    opened = as_autoencoder(OfTwoKinds())
    images = torch.rand(2, 1, 16, 16)
    expected = opened.module.encode(images)
    torch.testing.assert_close(opened.encode(images).mean, expected)


def test_slicing_is_turned_off_in_the_copy():
    module = tiny_autoencoder()
    module.enable_slicing()
    opened = as_autoencoder(module)
    assert not opened.module.use_slicing
    assert opened.is_made_of(module)
    assert module.use_slicing


class Deep:
    """Needs images of at least 128 pixels a side."""

    def encode(self, images):
        if images.shape[2] < 128:
            raise RuntimeError("too small")
        return nn.functional.avg_pool2d(images, 128)

    def decode(self, latents):
        return latents.repeat_interleave(128, 2).repeat_interleave(128, 3)


def test_an_autoencoder_of_many_levels_is_tried_on_a_larger_image():
    opened = ImageAutoencoder(Deep())
    assert opened.factor == 128
    assert opened.of_fixed_image().shape == (1, 3, 2, 2)
