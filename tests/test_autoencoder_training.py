import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sklearn_msf.exceptions import AutoencoderError
from sklearn_msf.latent import autoencoder_training
from sklearn_msf.latent.autoencoder import build_autoencoder
from sklearn_msf.latent.autoencoder_training import (
    _crops,
    _training_parts,
    fit_autoencoder,
    layout_for,
)

CPU = torch.device("cpu")


def smooth_images(n, seed=0):
    """Blurred noise, with a brightness of its own for each image."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 1, 4, 4, generator=generator) * torch.rand(
        n, 1, 1, 1, generator=generator
    )
    x = F.interpolate(coarse, size=(32, 32), mode="bicubic").clamp(0, 1)
    return (x * 255).round().byte().numpy()


def fit(images, **settings):
    settings = {"seed": 0, "device": CPU, "precision": "float32", **settings}
    weights = np.ones(len(images))
    return fit_autoencoder(images, images.shape[2:], weights=weights, **settings)


def test_images_are_seen_as_often_as_their_weights_say():
    images = np.broadcast_to(np.arange(4, dtype=np.uint8)[:, None, None, None], (4, 1, 8, 8))
    weights = np.array([0.1, 0.3, 2.0, 1.6])
    generator = torch.Generator().manual_seed(0)
    crops = _crops(np.array(images), np.cumsum(weights) / weights.sum(), (8, 8), 8000, generator)
    seen = ((crops[:, 0, 0, 0] + 1) * 127.5).round().long().bincount(minlength=4)
    np.testing.assert_allclose(seen / 8000, weights / weights.sum(), atol=0.02)


def set_steps(monkeypatch, *n_steps):
    stages = [
        # Steps of the whole network take five times as long as those of its trunk.
        stage._replace(n_steps=n, batch_size=2 if stage.has_branches else stage.batch_size)
        for stage, n in zip(autoencoder_training._STAGES, n_steps, strict=True)
    ]
    monkeypatch.setattr(autoencoder_training, "_STAGES", stages)


def squared_error(autoencoder, images, precision):
    x = torch.from_numpy(images).float() / 127.5 - 1
    return float(F.mse_loss(autoencoder.decode(autoencoder.encode(x, precision).mean), x))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_images_come_back(monkeypatch, precision):
    # Few, as a CPU without bfloat16 takes a second for each.
    set_steps(monkeypatch, 30, 10)
    autoencoder = fit(smooth_images(64), precision=precision)
    unseen = smooth_images(16, seed=1)
    each_images_mean = unseen.mean(axis=(2, 3), keepdims=True) / 127.5
    of_the_mean = float(((unseen / 127.5 - each_images_mean) ** 2).mean())
    # Training and use normalise with different code.
    assert squared_error(autoencoder, unseen, precision) < 0.3 * of_the_mean


def test_the_trunk_trains_first_and_then_all(monkeypatch):
    def branches(n_steps):
        set_steps(monkeypatch, *n_steps)
        module = fit(smooth_images(8)).module
        return [block.conv2.weight for block in autoencoder_training._residual_blocks(module)]

    assert not any(weight.any() for weight in branches((3, 0)))
    # The first step of a schedule has a rate of nearly zero.
    assert all(weight.any() for weight in branches((3, 3)))


def test_the_same_seed_gives_the_same_autoencoder(monkeypatch):
    set_steps(monkeypatch, 2, 2)
    one, two, other = (fit(smooth_images(8), seed=seed) for seed in (0, 0, 1))
    assert one.fingerprint()[0] == two.fingerprint()[0] != other.fingerprint()[0]


def test_a_stage_that_diverges_leaves_what_was_there_before(monkeypatch):
    loss, count = autoencoder_training._loss, iter(range(100))

    def bad_from(first):
        return lambda *a: loss(*a) * (float("nan") if next(count) >= first else 1.0)

    set_steps(monkeypatch, 2, 2)
    monkeypatch.setattr(autoencoder_training, "_loss", bad_from(2))
    with pytest.warns(UserWarning, match="second stage .* diverged"):
        kept = fit(smooth_images(8))
    assert all(value.isfinite().all() for value in kept.module.state_dict().values())
    with pytest.raises(AutoencoderError, match="weights that are not finite"):
        fit(smooth_images(8))


def test_what_comes_out_is_an_autoencoder_as_diffusers_has_it(monkeypatch):
    set_steps(monkeypatch, 1, 1)
    module = fit(smooth_images(8)).module
    wanted = build_autoencoder("AutoencoderKL", layout_for(1, (32, 32)))
    assert [type(part) for part in module.modules()] == [type(part) for part in wanted.modules()]
    assert not any("forward" in vars(part) for part in module.modules())
    again = pickle.loads(pickle.dumps(module))
    x = torch.rand(1, 1, 32, 32)
    assert torch.equal(again.encode(x).latent_dist.mean, module.encode(x).latent_dist.mean)


@pytest.mark.parametrize("n_channels", [1, 3])
@pytest.mark.parametrize("attention", [False, True])
def test_training_normalises_as_diffusers_does(n_channels, attention):
    torch.manual_seed(0)
    layout = layout_for(n_channels, (32, 32)) | {"mid_block_add_attention": attention}
    module = build_autoencoder("AutoencoderKL", layout)
    x = torch.rand(2, n_channels, 32, 32)
    plain = module(x).sample
    with _training_parts(module, has_branches=True):
        assert not any(type(part) is nn.GroupNorm for part in module.modules())
        torch.testing.assert_close(module(x).sample, plain, rtol=1e-3, atol=1e-4)
    with _training_parts(module, has_branches=False):
        assert not torch.allclose(module(x).sample, plain, atol=1e-2)
    assert np.array_equal(module(x).sample.detach(), plain.detach())


def test_the_loss_has_the_divergence_and_decodes_a_draw():
    mean, std = torch.full((3, 1, 2, 2), 2.0), torch.full((3, 1, 2, 2), 0.5)
    decoded, images = [], torch.zeros(3, 1, 8, 8)

    def decode(latents):
        decoded.append(latents)
        return SimpleNamespace(sample=images)

    posterior = SimpleNamespace(mean=mean, std=std, logvar=2 * std.log())
    module = SimpleNamespace(encode=lambda x: SimpleNamespace(latent_dist=posterior), decode=decode)
    generator = torch.Generator().manual_seed(0)
    loss = autoencoder_training._loss(module, torch.zeros(3, 1, 8, 8), generator)
    divergence = 4 * 0.5 * (4 + 0.25 - 1 - 2 * np.log(0.5))
    assert loss.item() == pytest.approx(1e-6 * divergence, rel=1e-4)
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(decoded[0], mean + 0.5 * noise)
    # Steps of 1/8 along the width: a mean of 0.4375, and neighbours that differ along one axis.
    images += torch.arange(8) / 8
    loss = autoencoder_training._loss(module, torch.zeros(3, 1, 8, 8), generator)
    assert loss.item() == pytest.approx(0.4375 + 0.5 * 0.125 + 1e-6 * divergence, rel=1e-4)
