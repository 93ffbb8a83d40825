import pytest
import torch

from sklearn_msf.augmentation import AUGMENTATIONS, augment_images


def test_no_augmentation_returns_the_images_themselves():
    x = torch.randn(2, 1, 8, 8)
    assert augment_images(x, None, torch.Generator()) is x


@pytest.mark.parametrize("kind", AUGMENTATIONS)
def test_shape_and_range_are_kept_and_images_vary(kind):
    x = 2 * torch.rand(16, 3, 9, 8) - 1
    varied = augment_images(x, kind, torch.Generator().manual_seed(0))
    assert varied.shape == x.shape
    assert varied.abs().max() <= 1
    assert not torch.equal(varied, x)


@pytest.mark.parametrize("kind", AUGMENTATIONS)
def test_the_same_generator_state_gives_the_same_images(kind):
    x = torch.rand(4, 1, 8, 8)
    first, second = (augment_images(x, kind, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)


def test_flips_are_the_four_combinations():
    x = torch.arange(4.0).reshape(1, 1, 2, 2).repeat(64, 1, 1, 1)
    flipped = augment_images(x, "flip", torch.Generator().manual_seed(0))
    seen = {tuple(image.ravel().tolist()) for image in flipped}
    assert seen == {(0, 1, 2, 3), (1, 0, 3, 2), (2, 3, 0, 1), (3, 2, 1, 0)}


def test_affine_changes_keep_a_smooth_image_close():
    ramp = torch.linspace(-1, 1, 28).expand(32, 1, 28, 28)
    varied = augment_images(ramp, "affine", torch.Generator().manual_seed(0))
    # 0.15 of shift, a fifth of scale and half of sin(30 degrees) times the other axis.
    assert 0.01 < (varied - ramp).abs().mean() < 0.4
