import pytest
import torch
from torch.nn import functional as F

from sklearn_msf.data.augmentation import (
    AUGMENTATIONS,
    augment_each,
    augment_images,
    seen_variations,
    varies_beyond_flips,
)


def augment(x, kind, seed=0):
    return augment_images(x, kind, len(x), torch.Generator().manual_seed(seed))


def augment_one_by_one(x, kind, seeds):
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return augment_each(x, kind, generators, x.shape[2:])


def test_no_augmentation_returns_the_images_themselves():
    x = torch.randn(2, 1, 8, 8)
    assert augment(x, None) is x


def test_images_that_train_generation_are_only_flipped():
    x = 2 * torch.rand(6, 1, 8, 8) - 1
    varied = augment_images(x, "affine", 4, torch.Generator().manual_seed(0))
    assert torch.equal(varied[4:], x[4:])
    assert not torch.equal(varied[:4], x[:4])
    flipped = augment_images(x, "flip+affine", 0, torch.Generator().manual_seed(0))
    for before, after in zip(x, flipped, strict=True):
        turns = [before, before.flip(2), before.flip(1), before.flip((1, 2))]
        assert any(torch.equal(after, turned) for turned in turns)


@pytest.mark.parametrize("kind", AUGMENTATIONS)
def test_shape_and_range_are_kept_and_images_vary(kind):
    x = 2 * torch.rand(16, 3, 9, 8) - 1
    varied = augment(x, kind)
    assert varied.shape == x.shape
    assert varied.abs().max() <= 1
    assert not torch.equal(varied, x)


@pytest.mark.parametrize("kind", AUGMENTATIONS)
def test_the_same_generator_state_gives_the_same_images(kind):
    x = torch.rand(4, 1, 8, 8)
    first, second = (augment(x, kind, seed=3) for _ in range(2))
    assert torch.equal(first, second)


def test_flips_are_the_four_combinations():
    x = torch.arange(4.0).reshape(1, 1, 2, 2).repeat(64, 1, 1, 1)
    flipped = augment(x, "flip")
    seen = {tuple(image.ravel().tolist()) for image in flipped}
    assert seen == {(0, 1, 2, 3), (1, 0, 3, 2), (2, 3, 0, 1), (3, 2, 1, 0)}


def test_affine_changes_keep_a_smooth_image_close():
    ramp = torch.linspace(-1, 1, 28).expand(32, 1, 28, 28)
    varied = augment(ramp, "affine")
    # A tenth of shift, a tenth of scale and sin(15 degrees) times the other axis.
    assert 0.01 < (varied - ramp).abs().mean() < 0.4


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("side", [4, 32])
def test_flat_volumes_are_not_turned_out_of_themselves(axis, side):
    shape = [32, 32, 32]
    shape[axis] = side
    along = [side if i == axis else 1 for i in range(3)]
    slices = torch.linspace(-1, 1, side).reshape(along).expand(shape)
    varied = augment(slices.expand(16, 1, *shape), "affine")
    # Slices stay where they are but for small turns, shifts and scalings, as those of cubes do.
    assert 0.01 < (varied - slices).abs().mean() < 0.25


def test_flat_volumes_are_turned_within_their_slices():
    columns = torch.linspace(-1, 1, 32).expand(4, 32, 32)
    turned = augment(columns.expand(64, 1, 4, 32, 32), "affine")
    cube = torch.linspace(-1, 1, 32).expand(32, 32, 32)
    of_cube = augment(cube.expand(16, 1, 32, 32, 32), "affine")
    # A cube is turned in one plane more.
    change, of_cube = (turned - columns).abs().mean(), (of_cube - cube).abs().mean()
    assert 0.5 * of_cube < change < of_cube


@pytest.mark.parametrize(
    ("kind", "axes", "seen"),
    [
        ("flip", (-1, -2), "flip"),
        ("flip+affine", (-1,), "hflip+affine"),
        ("hflip+affine", (-1,), "hflip+affine"),
        ("flip", (), None),
        (None, (), None),
    ],
)
def test_a_check_of_flips_is_of_those_that_are_seen(kind, axes, seen):
    assert seen_variations(kind, axes) == seen


@pytest.mark.parametrize("size", [(9, 8), (5, 6, 7)])
@pytest.mark.parametrize("kind", AUGMENTATIONS)
def test_images_with_numbers_of_their_own_vary_as_alone(kind, size):
    x = 2 * torch.rand(33, 2, *size) - 1
    varied = augment_one_by_one(x, kind, range(33))
    for i in range(33):
        assert torch.equal(augment_one_by_one(x[i : i + 1], kind, [i])[0], varied[i])
        torch.testing.assert_close(augment(x[i : i + 1], kind, i)[0], varied[i], atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(9, 8), (1, 5), (5, 6, 7)])
def test_an_image_is_moved_as_by_the_grid_of_torch(size, monkeypatch):
    x = 2 * torch.rand(8, 2, *size) - 1
    varied = augment(x, "affine")

    def torch_grid(theta, size):
        return F.affine_grid(theta, [len(theta), 1, *size], align_corners=False)

    monkeypatch.setattr("sklearn_msf.data.augmentation._grid", torch_grid)
    torch.testing.assert_close(varied, augment(x, "affine"), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (None, False),
        ("hflip", False),
        ("flip", False),
        ("affine", True),
        ("flip+affine", True),
        # One that somebody adds later is more than flips too.
        ("noise", True),
        ("hflip+noise", True),
    ],
)
def test_what_is_more_than_flips_is_told_from_them(kind, expected):
    assert varies_beyond_flips(kind) == expected
