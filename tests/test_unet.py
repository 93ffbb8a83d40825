import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sklearn_msf.nn import convolution
from sklearn_msf.nn.dropout import Dropout
from sklearn_msf.nn.group_norm import modulated_group_norm
from sklearn_msf.nn.unet import (
    UPSAMPLINGS,
    Downsample,
    ResidualBlock,
    SelfAttention,
    Stage,
    SubpixelUpsample,
    TimeEmbedding,
    UNet,
)


def tiny_unet(**overrides):
    torch.manual_seed(0)
    layout = {"channels": 8, "channel_mult": (1, 2), "n_blocks": 1, **overrides}
    net = UNet(3, 2, **layout)
    for parameter in net.parameters():
        if not parameter.abs().sum():
            nn.init.normal_(parameter, std=0.1)
    return net.eval()


@settings(max_examples=25)
@given(
    st.integers(8, 33),
    st.integers(8, 33),
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from(UPSAMPLINGS),
)
def test_any_size_comes_back_uncropped(height, width, patch_size, n_levels, upsampling):
    net = tiny_unet(patch_size=patch_size, channel_mult=(1,) * n_levels, upsampling=upsampling)
    v = net(torch.randn(2, 3, height, width), torch.rand(2))
    assert v.shape == (2, 2, height, width)


@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
@pytest.mark.parametrize("size", [(1, 2), (1, 64), (3, 3)])
def test_lines_and_very_small_images_work_too(size, upsampling):
    net = tiny_unet(patch_size=2, upsampling=upsampling)
    assert net(torch.randn(2, 3, *size), torch.rand(2)).shape[2:] == size


@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
@pytest.mark.parametrize("patch_size", [1, 2])
def test_every_border_pixel_matters_at_odd_sizes(patch_size, upsampling):
    net = tiny_unet(patch_size=patch_size, upsampling=upsampling)
    z = torch.randn(1, 3, 9, 11, requires_grad=True)
    net(z, torch.tensor([0.5])).square().sum().backward()
    assert (z.grad.abs().amax(dim=(0, 1)) > 0).all()


def test_the_papers_network_has_the_size_of_the_papers_network():
    # ADM U-Net of appendix A.1: 64 channels, multipliers 1, 2, 2, 2, two blocks a level.
    n_parameters = sum(p.numel() for p in UNet(6, 6).parameters())
    assert 8.5e6 < n_parameters < 10e6


def operations_of_halves(n_spatial_dims=2, **layout):
    net = UNet(6, 3, channels=8, n_spatial_dims=n_spatial_dims, **layout)
    with FlopCounterMode(display=False) as encoding_operations:
        encoding = net.encode(torch.randn(1, 6, *[16] * n_spatial_dims), torch.rand(1))
    with FlopCounterMode(display=False) as decoding_operations:
        net.decode(encoding)
    return encoding_operations.get_total_flops(), decoding_operations.get_total_flops()


@pytest.mark.parametrize("n_spatial_dims", [2, 3])
@pytest.mark.parametrize("n_blocks", [1, 2])
def test_light_upsampling_needs_less_than_half_of_the_operations(n_blocks, n_spatial_dims):
    encoded, light = operations_of_halves(n_spatial_dims, n_blocks=n_blocks, upsampling="light")
    same, whole = operations_of_halves(n_spatial_dims, n_blocks=n_blocks)
    assert encoded == same
    assert light < whole / 2


@pytest.mark.parametrize("n_blocks", [1, 2])
def test_light_upsampling_has_one_block_and_one_skip_connection_in_each_level(n_blocks):
    net = tiny_unet(channel_mult=(1, 2, 4), n_blocks=n_blocks, upsampling="light")
    skips = net.encode(torch.randn(2, 3, 12, 8), torch.rand(2)).skips
    # The output of the last block of each level: before the size is halved.
    assert [tuple(skip.shape) for skip in skips] == [
        (2, 8, 12, 8),
        (2, 16, 6, 4),
        (2, 32, 3, 2),
    ]
    assert [type(module) for module in net.up] == [Stage, SubpixelUpsample] * 2 + [Stage]


def test_a_position_becomes_a_square_and_what_exceeds_odd_sizes_is_cut_off():
    torch.manual_seed(0)
    upsample = SubpixelUpsample(4, 3)
    h = torch.randn(2, 4, 2, 3)
    patches = upsample.to_patches(h)
    expected = nn.functional.pixel_shuffle(patches, 2)[:, :, :3, :5]
    torch.testing.assert_close(upsample(h, (3, 5)), expected)


def test_a_shift_alone_needs_half_of_the_modulation():
    # 22 blocks of 2,496 channels in all, each with 256 weights and a bias.
    whole, shift = (
        sum(p.numel() for p in UNet(6, 6, time_modulation=kind).parameters())
        for kind in ("scale_shift", "shift")
    )
    assert whole - shift == 2_496 * 257


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_the_features_of_time_are_cosines_and_sines_of_scaled_times(scale):
    embedding = TimeEmbedding(8, 16, scale)
    embedding.perceptron = nn.Identity()
    t = torch.tensor([0.0, 0.3, 1.0])
    angles = [[scale * time * 10_000 ** (-i / 4) for i in range(4)] for time in t.tolist()]
    angles = torch.tensor(angles)
    expected = torch.cat([angles.cos(), angles.sin()], dim=1)
    torch.testing.assert_close(embedding(t), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("n_times", [1, 3])
@pytest.mark.parametrize("kind", ["scale_shift", "shift"])
def test_a_residual_block_is_adms_with_time_after_the_norm_or_before_it(kind, n_times):
    torch.manual_seed(0)
    block = ResidualBlock(32, 64, 16, 0.0, kind)
    nn.init.normal_(block.conv_out.weight, std=0.1)
    h, embedding = torch.randn(3, 32, 5, 4), torch.randn(n_times, 16)

    def norm(r, layer):
        return nn.functional.group_norm(r, 32, layer.weight, layer.bias)

    r = block.conv_in(nn.functional.silu(norm(h, block.norm_in)))
    time = block.modulation(nn.functional.silu(embedding))[:, :, None, None]
    if kind == "shift":
        r = norm(r + time, block.norm_out)
    else:
        r = norm(r, block.norm_out) * (1 + time[:, :64]) + time[:, 64:]
    expected = block.shortcut(h) + block.conv_out(nn.functional.silu(r))
    torch.testing.assert_close(block(h, embedding.expand(3, -1)), expected)
    with torch.no_grad():
        torch.testing.assert_close(block(h, embedding), expected)


def test_an_untrained_network_returns_zero():
    net = UNet(3, 2, channels=8, channel_mult=(1,), n_blocks=1)
    assert not net(torch.randn(1, 3, 8, 8), torch.rand(1)).any()


def test_samples_are_independent_of_each_other():
    net = tiny_unet()
    z, t = torch.randn(4, 3, 8, 8), torch.rand(4)
    torch.testing.assert_close(net(z, t)[1:2], net(z[1:2], t[1:2]), atol=1e-5, rtol=1e-4)


def test_decoding_some_samples_equals_decoding_all():
    net = tiny_unet(patch_size=2)
    encoding = net.encode(torch.randn(4, 3, 9, 8), torch.rand(4))
    torch.testing.assert_close(
        net.decode(encoding.rows(1, 3)), net.decode(encoding)[1:3], atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("channels", [2, 6, 8, 32, 64])
@pytest.mark.parametrize("time_modulation", ["scale_shift", "shift"])
def test_the_time_matters_in_networks_of_any_width(time_modulation, channels):
    net = tiny_unet(time_modulation=time_modulation, channels=channels)
    z = torch.randn(1, 3, 8, 8)
    assert (net(z, torch.tensor([0.1])) - net(z, torch.tensor([0.9]))).abs().max() > 1e-3


@given(st.integers(1, 4), st.sampled_from([1, 2, 4, 8]), st.integers(2, 5), st.integers(1, 5))
def test_modulated_group_norm_equals_torchs(n, n_groups, height, width):
    x = 3 + 2 * torch.randn(n, 8, height, width, dtype=torch.float64)
    scale, shift = torch.randn(2, n, 8, dtype=torch.float64)
    expected = nn.functional.group_norm(x, n_groups) * scale[..., None, None]
    expected = expected + shift[..., None, None]
    torch.testing.assert_close(modulated_group_norm(x, scale, shift, n_groups), expected)


def test_modulated_group_norm_has_the_gradient_of_its_function():
    x = torch.randn(2, 8, 3, 2, dtype=torch.float64, requires_grad=True)
    scale, shift = torch.randn(2, 2, 8, dtype=torch.float64).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda *a: modulated_group_norm(*a, 4), (x, scale, shift))


def test_bfloat16_norm_keeps_its_statistics_in_float32():
    x = (100 + torch.randn(2, 8, 14, 14)).bfloat16()
    normalised = modulated_group_norm(x, torch.ones(2, 8), torch.zeros(2, 8), 4)
    assert normalised.dtype == torch.bfloat16
    expected = nn.functional.group_norm(x.float(), 4)
    torch.testing.assert_close(normalised.float(), expected, atol=0.02, rtol=0.02)


def test_flat_features_have_small_gradients_in_bfloat16():
    # One value a group: the output does not depend on the input at all.
    x = (5 + torch.randn(2, 8, 1, 1)).bfloat16().requires_grad_(True)
    normalised = modulated_group_norm(x, torch.ones(2, 8), torch.zeros(2, 8), 8)
    normalised.backward(torch.randn(2, 8, 1, 1).bfloat16())
    assert x.grad.abs().max() < 0.01


@pytest.mark.parametrize("size", [(1, 1), (4, 1), (5, 1), (1, 5), (4, 6)])
def test_downsampling_is_the_strided_convolution_at_every_size(size):
    down = Downsample(4)
    h = torch.randn(2, 4, *size)
    expected = nn.functional.conv2d(h, down.weight, down.bias, stride=2, padding=1)
    torch.testing.assert_close(down(h), expected)


@pytest.mark.parametrize("size", [(1, 1), (2, 1)])
def test_bfloat16_gradients_of_downsampling_one_column_are_right(size):
    torch.manual_seed(0)
    gradients = []
    h = torch.randn(26, 64, *size)
    down = Downsample(64)
    for enabled in (False, True):
        # Freed memory full of large numbers is what an unwritten gradient would show.
        garbage = torch.full((64 * 64 * 9,), 1e30)
        del garbage
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = down(h).float().sum()
        gradients.append(torch.autograd.grad(loss, down.weight)[0])
    torch.testing.assert_close(*gradients, atol=0.5, rtol=0.05)


@pytest.mark.parametrize("p", [0.001, 0.1, 0.5, 0.999])
def test_dropout_drops_its_share_and_keeps_the_mean(p):
    torch.manual_seed(0)
    h = torch.ones(64, 32, 14, 14).to(memory_format=torch.channels_last)
    dropped = Dropout(p).train()(h)
    share = max(1, min(255, round(256 * p))) / 256
    assert (dropped == 0).float().mean() == pytest.approx(share, abs=0.003)
    assert dropped.mean() == pytest.approx(1.0, abs=0.05)
    assert len(dropped.unique()) == 2
    assert dropped.is_contiguous(memory_format=torch.channels_last)


def test_dropout_is_independent_of_place():
    torch.manual_seed(0)
    kept = (Dropout(0.5).train()(torch.ones(2000, 2, 3, 5)) > 0).float().flatten(1)
    assert (kept.mean(dim=0) - 0.5).abs().max() < 0.06
    correlation = torch.corrcoef(kept.T).fill_diagonal_(0)
    assert correlation.abs().max() < 0.1


def test_dropout_depends_on_the_seed_alone_and_does_nothing_after_training():
    h, dropout = torch.randn(3, 4, 5, 5), Dropout(0.3).train()
    drawn = []
    for _ in range(2):
        torch.manual_seed(7)
        drawn.append(dropout(h))
    assert torch.equal(*drawn)
    assert torch.equal(dropout.eval()(h), h)


@pytest.mark.parametrize("n_rows", [0, 1, 3])
def test_dropout_can_be_kept_to_the_first_samples(n_rows):
    torch.manual_seed(0)
    h = torch.rand(3, 4, 5, 5).to(memory_format=torch.channels_last) + 1
    dropped = Dropout(0.5).train()(h, n_rows)
    assert [bool((row == 0).any()) for row in dropped] == [i < n_rows for i in range(3)]
    assert torch.equal(dropped[n_rows:], h[n_rows:])
    assert dropped.is_contiguous(memory_format=torch.channels_last)


def test_the_samples_of_an_encoding_keep_their_dropout():
    torch.manual_seed(0)
    unet = UNet(1, 1, channels=8, channel_mult=(1,), n_blocks=1, dropout=0.5).train()
    encoding = unet.encode(torch.randn(5, 1, 8, 8), torch.rand(5), 2)
    assert [encoding.rows(*part).n_dropped for part in ((0, 5), (1, 5), (1, 2), (3, 5))] == [
        2,
        1,
        1,
        0,
    ]


def test_gradients_pass_where_dropout_kept():
    torch.manual_seed(0)
    h = torch.ones(2, 3, 4, 4, requires_grad=True)
    dropped = Dropout(0.5).train()(h)
    dropped.sum().backward()
    assert torch.equal(h.grad, dropped.detach())


@pytest.mark.parametrize("multiple", [1, 8])
@pytest.mark.parametrize("patch_size", [1, 2])
@pytest.mark.parametrize("n_spatial_dims", [2, 3])
def test_constants_act_as_images_of_one_colour(n_spatial_dims, patch_size, multiple, monkeypatch):
    """On a GPU the channels are padded to a multiple of 8."""
    monkeypatch.setattr(convolution, "_channels_multiple", lambda z: multiple)
    torch.manual_seed(0)
    settings = {"channel_mult": (1,), "n_blocks": 1, "patch_size": patch_size}
    unet = UNet(5, 2, channels=8, n_spatial_dims=n_spatial_dims, **settings)
    # Not a multiple of the patches.
    size = (7, 6, 5)[:n_spatial_dims]
    image, constant, t = torch.randn(3, 2, *size), torch.randn(3, 3), torch.rand(3)
    mask = constant[(..., *[None] * n_spatial_dims)].expand(-1, -1, *size)
    found, wanted = [], []
    for results, arguments in (
        (found, (image, t, None, constant)),
        (wanted, (torch.cat([image, mask], dim=1), t)),
    ):
        unet.zero_grad()
        features = unet.encode(*arguments).features
        features.square().sum().backward()
        results += [features, unet.conv_in.weight.grad, unet.conv_in.bias.grad]
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other.clone(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("n_heads", [1, 2])
def test_attention_is_the_textbooks(n_heads):
    torch.manual_seed(0)
    attention = SelfAttention(8 * n_heads, 8)
    torch.nn.init.normal_(attention.out.weight)
    h = torch.randn(2, 8 * n_heads, 3, 5)
    q, k, v = attention.query_key_value(attention.norm(h)).flatten(2).chunk(3, dim=1)
    heads = []
    for head in range(n_heads):
        one = slice(8 * head, 8 * head + 8)
        weights = torch.softmax(q[:, one].mT @ k[:, one] / 8**0.5, dim=2)
        heads.append(v[:, one] @ weights.mT)
    expected = h + attention.out(torch.cat(heads, dim=1).reshape(h.shape))
    torch.testing.assert_close(attention(h), expected)
    with torch.no_grad():
        torch.testing.assert_close(attention(h), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_by_products_is_attention(dtype):
    from sklearn_msf.nn.unet import _attend_by_products

    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 49, 16, generator=generator).to(dtype)
    found = _attend_by_products(query, key, value)
    wanted = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    assert found.dtype == dtype
    torch.testing.assert_close(
        found, wanted, atol=2e-2 if dtype == torch.bfloat16 else 1e-6, rtol=0
    )
