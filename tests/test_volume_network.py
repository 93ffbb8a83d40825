"""The network, the path, the codes and the variations over volumes, (n, C, D, H, W)."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from sklearn_msf.data import augmentation
from sklearn_msf.data.augmentation import AUGMENTATIONS, augment_images, mirror_images
from sklearn_msf.data.mirroring import compare_mirroring, shrink_images
from sklearn_msf.flow.label_codes import make_label_codes
from sklearn_msf.flow.path import denoise_masks, sample_path
from sklearn_msf.nn.convolution import Conv3d
from sklearn_msf.nn.dropout import Dropout
from sklearn_msf.nn.group_norm import modulated_group_norm
from sklearn_msf.nn.patches import fold_patches, unfold_patches
from sklearn_msf.nn.unet import UNet
from sklearn_msf.training.optimizer import AveragedOptimizer

LAYOUT = {"channels": 8, "channel_mult": (1, 2), "n_blocks": 1}


def tiny_unet(**overrides):
    torch.manual_seed(0)
    net = UNet(3, 2, **{**LAYOUT, "n_spatial_dims": 3, **overrides})
    for parameter in net.parameters():
        if not parameter.abs().sum():
            nn.init.normal_(parameter, std=0.1)
    return net.eval()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# The U-Net


@settings(max_examples=10)
@given(st.tuples(*[st.integers(3, 11)] * 3), st.integers(1, 3), st.integers(1, 3))
def test_any_size_comes_back_uncropped(size, patch_size, n_levels):
    net = tiny_unet(patch_size=patch_size, channel_mult=(1,) * n_levels)
    assert net(torch.randn(2, 3, *size), torch.rand(2)).shape == (2, 2, *size)


@pytest.mark.parametrize("size", [(1, 1, 2), (1, 16, 1), (5, 1, 3)])
def test_lines_and_planes_are_volumes_too(size):
    assert tiny_unet(patch_size=2)(torch.randn(2, 3, *size), torch.rand(2)).shape[2:] == size


@pytest.mark.parametrize("patch_size", [1, 2])
def test_every_border_voxel_matters_at_odd_sizes(patch_size):
    z = torch.randn(1, 3, 5, 9, 7, requires_grad=True)
    tiny_unet(patch_size=patch_size)(z, torch.tensor([0.5])).square().sum().backward()
    assert (z.grad.abs().amax(dim=(0, 1)) > 0).all()


def test_a_volume_of_one_slice_is_an_image():
    over_volumes = tiny_unet(channel_mult=(1, 2, 2), attention_levels=(1,))
    over_images = tiny_unet(channel_mult=(1, 2, 2), attention_levels=(1,), n_spatial_dims=2)
    # The slices before and after are zeros, so that only the middle of a kernel counts.
    weights = over_volumes.state_dict()
    over_images.load_state_dict(
        {name: w[:, :, w.shape[2] // 2] if w.ndim == 5 else w for name, w in weights.items()}
    )
    z, t = torch.randn(2, 3, 9, 10), torch.rand(2)
    torch.testing.assert_close(over_volumes(z[:, :, None], t)[:, :, 0], over_images(z, t))


def test_patches_have_their_voxels_in_the_order_of_pixel_unshuffle():
    z = torch.arange(2 * 3 * 4 * 6 * 8.0).reshape(2, 3, 4, 6, 8)
    folded = fold_patches(z, 2)
    assert folded.shape == (2, 24, 2, 3, 4)
    for c, d, h, w in itertools.product(range(3), range(2), range(2), range(2)):
        channel = ((c * 2 + d) * 2 + h) * 2 + w
        torch.testing.assert_close(folded[:, channel], z[:, c, d::2, h::2, w::2])
    torch.testing.assert_close(unfold_patches(folded, 2), z)
    # The layout that the convolution wants, without another copy.
    assert folded.is_contiguous(memory_format=torch.channels_last_3d)


def test_patches_of_images_are_those_of_pixel_unshuffle():
    z = torch.randn(2, 3, 6, 9)
    assert torch.equal(fold_patches(z, 3), F.pixel_unshuffle(z, 3))
    assert torch.equal(unfold_patches(fold_patches(z, 3), 3), z)


def test_modulated_group_norm_equals_torchs_and_has_its_gradient():
    x = 3 + 2 * torch.randn(2, 8, 3, 4, 2, dtype=torch.float64, requires_grad=True)
    scale, shift = torch.randn(2, 2, 8, dtype=torch.float64).requires_grad_(True)
    expected = F.group_norm(x, 4) * scale[..., None, None, None] + shift[..., None, None, None]
    torch.testing.assert_close(modulated_group_norm(x, scale, shift, 4), expected)
    assert torch.autograd.gradcheck(
        lambda *a: modulated_group_norm(*a, 4), (x[:, :, :2, :2], scale, shift)
    )


def test_dropout_drops_its_share_and_keeps_the_memory_format():
    h = torch.ones(16, 16, 6, 7, 5).to(memory_format=torch.channels_last_3d)
    dropped = Dropout(0.25).train()(h)
    assert (dropped == 0).float().mean() == pytest.approx(0.25, abs=0.01)
    assert dropped.is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("size", [(1, 1, 1), (2, 2, 2), (2, 1, 2), (2, 5, 6), (1, 4, 4), (4, 4, 4)])
@pytest.mark.parametrize("stride", [1, 2])
def test_bfloat16_gradients_of_small_volumes_are_right(size, stride):
    convolution = Conv3d(32, 32, 3, stride=stride, padding=1)
    convolution.to(memory_format=torch.channels_last_3d)
    h = torch.randn(26, 32, *size).to(memory_format=torch.channels_last_3d)
    gradients = []
    for enabled in (False, True):
        # Freed memory full of large numbers is what an unwritten gradient would show.
        garbage = torch.full((32 * 32 * 27,), 1e30)
        del garbage
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = convolution(h).float().square().mean()
        gradients.append(torch.autograd.grad(loss, convolution.weight)[0])
    torch.testing.assert_close(*gradients, atol=0.02 * float(gradients[0].abs().max()), rtol=0.05)


def test_muon_steps_the_weights_of_volumes_as_matrices():
    net, average = tiny_unet(channels=16), tiny_unet(channels=16)
    optimizer = AveragedOptimizer(
        net, average, optimizer="muon", weight_decay=0.0, max_grad_norm=None, ema_decay=0.9
    )
    weight = net.down[0].block.conv_in.weight
    before = weight.detach().clone()
    net(torch.randn(2, 3, 4, 4, 4), torch.rand(2)).square().mean().backward()
    optimizer.step(0.01)
    # Channels last, without a copy: the step reaches the weight itself.
    step = (weight - before).detach().movedim(1, -1).flatten(1)
    values = torch.linalg.svdvals(step)
    assert values[0] < 3 * values[-1]
    assert weight.is_contiguous(memory_format=torch.channels_last_3d)


# Path and codes: a mask is a set of pixels, however they are arranged


@pytest.mark.parametrize("encoding", ["rgb", "grayscale", "simplex"])
def test_codes_are_read_from_masks_of_volumes_as_from_those_of_images(encoding):
    codes = make_label_codes(encoding, 3, 4.0)
    labels = torch.tensor([0, 2, 1])
    masks = codes.masks(labels, (3, 4, 5), generator())
    assert masks.shape == (3, codes.n_channels, 3, 4, 5)
    flat = masks.reshape(3, codes.n_channels, 12, 5)
    torch.testing.assert_close(codes.distances(masks), codes.distances(flat))
    torch.testing.assert_close(codes.probabilities(masks), codes.probabilities(flat))
    assert torch.equal(codes.probabilities(masks).argmax(dim=1), labels)


def test_the_path_of_volumes_is_that_of_images():
    codes = make_label_codes("rgb", 3, 4.0)
    x, e_x = torch.randn(2, 3, 1, 3, 4, 5)
    y, e_y = codes.masks(torch.arange(3), (3, 4, 5)), torch.randn(3, 3, 3, 4, 5)
    t = torch.tensor([0.0, 0.4, 1.0])
    point = sample_path(x, y, e_x, e_y, t)
    flat = sample_path(*(part.reshape(3, -1, 12, 5) for part in (x, y, e_x, e_y)), t)
    for name in ("x_t", "y_t", "u_x", "u_y"):
        expected = getattr(flat, name).reshape(getattr(point, name).shape)
        torch.testing.assert_close(getattr(point, name), expected)
    torch.testing.assert_close(
        denoise_masks(point.y_t, t, codes), denoise_masks(flat.y_t, t, codes)
    )


# Variations


@pytest.mark.parametrize("kind", AUGMENTATIONS)
def test_shape_and_range_are_kept_and_volumes_vary(kind):
    x = 2 * torch.rand(8, 2, 9, 8, 7) - 1
    varied = augment_images(x, kind, len(x), generator())
    assert varied.shape == x.shape
    assert varied.abs().max() <= 1
    assert not torch.equal(varied, x)


def test_flips_are_the_eight_combinations():
    x = torch.arange(8.0).reshape(1, 1, 2, 2, 2).repeat(256, 1, 1, 1, 1)
    seen = {tuple(volume.ravel().tolist()) for volume in augment_images(x, "flip", 0, generator())}
    all_of_them = {tuple(view[0].ravel().tolist()) for view in mirror_images(x[:1], "flip")}
    assert seen == all_of_them
    assert len(seen) == 8


def test_horizontal_flips_are_of_the_last_axis():
    x = torch.arange(8.0).reshape(1, 1, 2, 2, 2)
    unflipped, flipped = mirror_images(x, "hflip")
    assert torch.equal(unflipped, x)
    assert flipped.ravel().tolist() == [1, 0, 3, 2, 5, 4, 7, 6]


def test_a_ball_rotates_to_itself_whatever_the_sides(monkeypatch):
    monkeypatch.setattr(augmentation, "_MAX_SCALING", 0.0)
    monkeypatch.setattr(augmentation, "_MAX_SHIFT", 0.0)
    sides = (24, 32, 40)
    axes = torch.meshgrid(*[torch.arange(n) - (n - 1) / 2 for n in sides], indexing="ij")
    radius = sum(axis.square() for axis in axes).sqrt()
    ball = torch.sigmoid(8 - radius).expand(8, 1, *sides)
    rotated = augment_images(ball, "affine", 8, generator())
    torch.testing.assert_close(rotated, ball, atol=0.03, rtol=0)
    # A box of the same sides as the volume does not.
    box = ((axes[0].abs() < 6) & (axes[1].abs() < 8) & (axes[2].abs() < 10)).float()
    box = box.expand(8, 1, *sides)
    assert (augment_images(box, "affine", 8, generator()) - box).abs().max() > 0.5


def test_affine_changes_move_along_every_axis():
    size = (12, 12, 12)
    for axis in range(3):
        ramp = torch.linspace(-1, 1, 12).reshape([12 if i == axis else 1 for i in range(3)])
        ramp = ramp.expand(16, 1, *size)
        varied = augment_images(ramp, "affine", 16, generator())
        # A tenth of shift, a tenth of scale, and sin(15 degrees) times each other axis.
        assert 0.01 < (varied - ramp).abs().mean() < 0.4


@pytest.mark.parametrize(("kind", "harmed"), [("hflip", []), ("flip", [0, 1])])
def test_classes_that_differ_in_depth_are_mixed_up_by_flips_of_depth_alone(kind, harmed):
    labels = np.arange(120) % 2
    volumes = torch.rand(120, 1, 8, 8, 8, generator=generator())
    volumes[labels == 0, :, :4] += 1
    volumes[labels == 1, :, 4:] += 1
    effect = compare_mirroring(volumes, labels, kind)
    assert effect.plain.min() > 0.9
    assert effect.harmed == harmed


def test_volumes_are_shrunk_to_means_of_their_voxels():
    small = shrink_images(torch.arange(28.0).reshape(1, 1, 28, 1, 1).expand(1, 1, 28, 3, 14))
    assert small.shape == (1, 1, 14, 3, 14)
    assert small[0, 0, :, 0, 0].tolist() == [2 * i + 0.5 for i in range(14)]
