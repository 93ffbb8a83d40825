"""Autoencoders of diffusers beyond the two that files hold: they are passed as objects."""

import copy
import pickle
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from conftest import tiny_latent_classifier
from diffusers.models.autoencoders.vae import DecoderOutput, EncoderOutput
from torch import nn

from sklearn_msf import LatentMedSymmFlowClassifier
from sklearn_msf.exceptions import AutoencoderError
from sklearn_msf.latent.autoencoder import ImageAutoencoder
from sklearn_msf.latent.autoencoder_opening import open_autoencoder

RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
Y = [0, 1] * 3
IMAGES = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def deep_compression():
    """AutoencoderDC: `encode` returns `.latent`."""
    return diffusers.AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        scaling_factor=0.5,
    )


def representation():
    """AutoencoderRAE over DINOv2: every image is resized to 56 pixels, 4 x 4 patches."""
    if not hasattr(diffusers, "AutoencoderRAE"):
        pytest.skip(f"diffusers {diffusers.__version__} is older than AutoencoderRAE")
    return diffusers.AutoencoderRAE(
        encoder_hidden_size=64,
        encoder_num_hidden_layers=1,
        encoder_input_size=56,
        decoder_hidden_size=16,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
        patch_size=4,
    )


class RepresentationLike(nn.Module):
    """Returns what AutoencoderRAE returns, for images of any size."""

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(scaling_factor=1.0)
        self.unshuffle, self.shuffle = nn.PixelUnshuffle(4), nn.PixelShuffle(4)

    def encode(self, images):
        return EncoderOutput(latent=self.unshuffle(images))

    def decode(self, latents):
        return DecoderOutput(sample=self.shuffle(latents))


def asymmetric():
    return diffusers.AsymmetricAutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        down_block_out_channels=(8, 8),
        up_block_types=("UpDecoderBlock2D",) * 2,
        up_block_out_channels=(8, 8),
        norm_num_groups=4,
    )


def quantized():
    """VQModel: `encode` returns `.latents`."""
    return diffusers.VQModel(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
    )


KINDS = {
    "DC": deep_compression,
    "RAE": representation,
    "like RAE": RepresentationLike,
    "asymmetric": asymmetric,
    "quantized": quantized,
}


@pytest.mark.parametrize("make", [deep_compression, RepresentationLike])
def test_latents_are_read_where_encode_returns_them_as_latent(make):
    module = make()
    autoencoder = ImageAutoencoder(copy.deepcopy(module))
    mean, deviation = autoencoder.encode(IMAGES)
    with torch.no_grad():
        torch.testing.assert_close(mean, module.eval().encode(IMAGES).latent)
        torch.testing.assert_close(autoencoder.decode(mean), module.decode(mean).sample)
    assert deviation is None
    assert autoencoder.factor == 16 // mean.shape[2]


def test_a_representation_autoencoder_gets_images_of_its_own_size():
    autoencoder = ImageAutoencoder(representation())
    assert (autoencoder.image_size, autoencoder.factor) == ((56, 56), 14)
    classifier = tiny_latent_classifier(autoencoder=representation(), max_epochs=1).fit(X, Y)
    assert classifier.model_.space.latents.size == (56, 56)
    assert classifier.model_.space.shape == (64, 4, 4)


def test_the_scaling_that_a_deep_compression_autoencoder_publishes_is_used():
    assert ImageAutoencoder(deep_compression()).published_scaling == (0.0, 0.5)


class OneSize(RepresentationLike):
    """Resizes every image to 32 pixels first, as AutoencoderRAE does to the size of its encoder."""

    def encode(self, images):
        return super().encode(nn.functional.interpolate(images, size=(32, 32)))


def test_an_encoder_that_makes_latents_of_one_size_only_names_the_size_that_fits():
    # The probe of 64 pixels gives 8 x 8 latents, so their factor is 8.
    with pytest.raises(AutoencoderError, match=r"expected \[2, 2\].*use encoded_size=\(64, 64\)"):
        tiny_latent_classifier(autoencoder=OneSize(), max_epochs=1).fit(X, Y)
    fitting = tiny_latent_classifier(autoencoder=OneSize(), max_epochs=1, encoded_size=64)
    assert fitting.fit(X, Y).predict(X).shape == (6,)


@pytest.mark.parametrize("kind", KINDS)
def test_they_classify_and_draw_and_come_back_from_files_and_pickles(tmp_path, kind):
    module = KINDS[kind]()
    classifier = tiny_latent_classifier(autoencoder=module, max_epochs=1).fit(X, Y)
    wanted = classifier.predict_proba(X)
    assert classifier.sample(0, n_steps=1).shape == (1, 16, 16, 3)
    classifier.save_pretrained(tmp_path)
    with pytest.raises(AutoencoderError, match="pass it"):
        LatentMedSymmFlowClassifier.from_pretrained(tmp_path)
    opened = LatentMedSymmFlowClassifier.from_pretrained(tmp_path, autoencoder=module)
    np.testing.assert_array_equal(opened.predict_proba(X), wanted)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(classifier)).predict_proba(X), wanted)


@pytest.mark.parametrize("make", [deep_compression, asymmetric])
def test_a_folder_with_one_says_how_to_open_it(tmp_path, make):
    make().save_pretrained(tmp_path)
    with pytest.raises(AutoencoderError, match="with diffusers and pass the object"):
        open_autoencoder(tmp_path)


class AutoencoderRAE:
    """Takes and returns images in [0, 1], as the class of diffusers with this name."""

    __module__ = "diffusers.models.autoencoders.autoencoder_rae"

    def encode(self, images):
        assert 0 <= images.min() <= images.max() <= 1
        return torch.nn.functional.avg_pool2d(images, 4)

    def decode(self, latents):
        return latents.repeat_interleave(4, 2).repeat_interleave(4, 3)


def test_images_of_representation_autoencoders_are_between_0_and_1():
    autoencoder = ImageAutoencoder(AutoencoderRAE())
    images = torch.full((2, 3, 8, 8), -0.5)
    encoded = autoencoder.encode(images).mean
    torch.testing.assert_close(encoded, torch.full((2, 3, 2, 2), 0.25))
    torch.testing.assert_close(autoencoder.decode(encoded), images)
