from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import tiny_layout
from torch import nn

from sklearn_msf.flow.label_codes import CodeReader, make_label_codes
from sklearn_msf.flow.ode_solver import OdeSettings
from sklearn_msf.flow.path import sample_path
from sklearn_msf.flow.velocity_field import (
    IMAGE_PREDICTIONS,
    LABEL_PREDICTIONS,
    ClassPosteriorField,
    VelocityRegressionField,
    build_field,
)
from sklearn_msf.training.losses import WholeBatch, field_losses

SIZE = (6, 5)
CODES = make_label_codes("rgb", 3, 4.0)
ONE_STEP_BACK = OdeSettings(1.0, 0.0)


class TrueField(VelocityRegressionField):
    """The field of one known pair of image and mask with their noises."""

    def __init__(self, path):
        super().__init__(nn.Identity(), CODES, tiny_layout("velocity"))
        self.path = path

    def forward(self, x_t, y_t, t):
        return self.path.u_x, self.path.u_y


class SureUNet(nn.Module):
    """Stands in for a U-Net whose middle block has one feature map a class."""

    feature_channels = 3

    def __init__(self, logits, image=None):
        super().__init__()
        self.logits = logits
        self.times = []
        self.image = torch.zeros(len(logits), 1, *SIZE) if image is None else image

    def encode(self, z, t, n_dropped=None, constant=None):
        self.times.append(t[0].item())
        features = self.logits[:, :, None, None]
        return SimpleNamespace(features=features, rows=lambda start, stop: None)

    def decode(self, encoding):
        return self.image


def posterior_field(unet, **layout):
    """A field that takes the features of the middle block for logits of the classes."""
    field = ClassPosteriorField(unet, CODES, tiny_layout("posterior", **layout))
    nn.init.eye_(field.head.weight)
    nn.init.zeros_(field.head.bias)
    return field


@pytest.fixture
def ends():
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0, 2])
    x = torch.randn(2, 1, *SIZE, generator=generator)
    e_x = torch.randn(2, 1, *SIZE, generator=generator)
    e_y = torch.randn(2, 3, *SIZE, generator=generator)
    return x, CODES.masks(labels, SIZE), e_x, e_y, labels


def test_one_euler_step_recovers_the_code_when_the_field_is_exact(ends):
    x, y, e_x, e_y, labels = ends
    end = sample_path(x, y, e_x, e_y, torch.ones(2))
    mask = TrueField(end).class_evidence(end.x_t, end.y_t, ONE_STEP_BACK)
    torch.testing.assert_close(mask, y, atol=1e-5, rtol=0)
    assert torch.equal(CODES.distances(mask).argmin(dim=1), labels)


def test_one_euler_step_recovers_the_image_when_the_field_is_exact(ends):
    x, y, e_x, e_y, _ = ends
    start = sample_path(x, y, e_x, e_y, torch.zeros(2))
    image = TrueField(start).generate(start.x_t, start.y_t, e_y, OdeSettings(0.0, 1.0))
    torch.testing.assert_close(image, x, atol=1e-3, rtol=0)


@pytest.mark.parametrize("t", [0.05, 0.5, 1.0])
def test_an_exact_posterior_gives_the_label_velocity_of_the_path(ends, t):
    x, y, e_x, e_y, labels = ends
    sample = sample_path(x, y, e_x, e_y, torch.full((2,), t))
    logits = torch.full((2, 3), -50.0).scatter(1, labels[:, None], 50.0)
    field = posterior_field(SureUNet(logits))
    _, v_y = field(sample.x_t, sample.y_t, sample.t)
    torch.testing.assert_close(v_y, sample.u_y, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("t", [0.0, 0.3, 0.9])
def test_the_image_velocity_follows_from_a_known_denoised_image(ends, t):
    x, y, e_x, e_y, _ = ends
    field = posterior_field(SureUNet(torch.zeros(2, 3), image=x), image_prediction="denoised")
    point = sample_path(x, y, e_x, e_y, torch.full((2,), t))
    v_x = field.image_velocity(point.x_t, point.y_t, point.t)
    torch.testing.assert_close(v_x, point.u_x, atol=1e-4, rtol=1e-4)


def test_where_no_noise_is_left_the_velocity_is_not_derived_from_the_denoised_image(ends):
    x, y, e_x, e_y, _ = ends
    field = posterior_field(SureUNet(torch.zeros(2, 3)), image_prediction="denoised")
    point = sample_path(x, y, e_x, e_y, torch.ones(2))
    v_x = field.image_velocity(point.x_t, point.y_t, point.t)
    assert torch.equal(v_x, point.x_t)


@pytest.mark.parametrize("method", ["euler", "midpoint", "rk4", "dopri5"])
@pytest.mark.parametrize("n_steps", [1, 2, 25, 100])
def test_generation_ends_at_the_denoised_image(ends, method, n_steps):
    x, y, e_x, e_y, _ = ends
    unet = SureUNet(torch.zeros(2, 3), image=x)
    field = posterior_field(unet, image_prediction="denoised")
    generated = field.generate(e_x, y, e_y, OdeSettings(0.0, 1.0, n_steps, method))
    torch.testing.assert_close(generated, x, atol=1e-3, rtol=1e-3)
    assert max(unet.times) <= 0.951


def test_an_image_carried_to_noise_and_back_does_not_become_the_denoised_image(ends):
    x, y, e_x, e_y, _ = ends
    unet = SureUNet(torch.zeros(2, 3), image=x)
    field = posterior_field(unet, image_prediction="denoised")
    image = x + 0.1 * e_x
    to_noise = OdeSettings(1.0, 0.0, 100, "midpoint")
    noise = field.carry_images(image, y, e_y, to_noise)
    back = field.carry_images(noise, y, e_y, replace(to_noise, start=0.0, end=1.0))
    torch.testing.assert_close(back, image, atol=0.01, rtol=0)
    generated = field.generate(noise, y, e_y, OdeSettings(0.0, 1.0, 25))
    torch.testing.assert_close(generated, x, atol=1e-3, rtol=1e-3)


def test_the_loss_of_a_denoised_image_is_that_of_its_velocity_up_to_a_limit(ends):
    x, y, e_x, e_y, labels = ends
    error = 0.1
    field = posterior_field(SureUNet(torch.zeros(2, 3), x + error), image_prediction="denoised")

    def loss(t):
        point = sample_path(x, y, e_x, e_y, torch.full((2,), t))
        return field_losses(field, point, labels, 0)[0].item()

    assert loss(0.0) == pytest.approx(error**2, rel=1e-3)
    assert loss(0.5) == pytest.approx(4 * error**2, rel=1e-3)
    assert loss(0.95) == pytest.approx(400 * error**2, rel=1e-2)
    # What is learned stays the denoised image.
    assert loss(0.999) == pytest.approx(loss(0.95), rel=1e-2)


@pytest.mark.parametrize("t", [0.1, 0.5, 1.0])
def test_the_label_velocity_follows_a_soft_posterior(ends, t):
    _, _, _, e_y, _ = ends
    p = np.array([[0.2, 0.5, 0.3], [0.7, 0.1, 0.2]])
    field = posterior_field(SureUNet(torch.tensor(np.log(p), dtype=torch.float32)))
    _, v_y = field(torch.zeros(2, 1, *SIZE), e_y, torch.full((2,), t))
    mean_code = p @ CODES.codes.numpy()
    expected = (e_y.numpy() - mean_code[:, :, None, None]) / t
    np.testing.assert_allclose(v_y.detach().numpy(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", ["euler", "midpoint", "rk4", "dopri5"])
@pytest.mark.parametrize("n_steps", [1, 3])
def test_every_solver_carries_a_constant_posterior_to_its_mean_code(ends, method, n_steps):
    x, _, _, e_y, _ = ends
    p = torch.tensor([[0.2, 0.5, 0.3], [0.7, 0.1, 0.2]])
    field = posterior_field(SureUNet(p.log()))
    evidence = field.class_evidence(x, e_y, OdeSettings(1.0, 0.0, n_steps, method))
    torch.testing.assert_close(evidence, p, atol=1e-3, rtol=1e-3)
    probabilities, distances = field.decode(evidence.detach().double(), CodeReader(CODES))
    torch.testing.assert_close(probabilities, p.double(), atol=1e-3, rtol=1e-3)
    expected = CODES.mean_codes(p.double())[:, :, None, None].expand(-1, -1, *SIZE)
    torch.testing.assert_close(distances, CODES.distances(expected), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("method", "n_steps", "times"),
    [
        ("euler", 1, [1.0]),
        ("rk4", 1, [1.0]),
        ("euler", 4, [1.0, 0.75, 0.5, 0.25]),
        ("midpoint", 2, [1.0, 0.75, 0.5]),
        ("euler", 100, [*np.linspace(1, 0.05, 100)]),
        ("dopri5", 1, None),
    ],
)
def test_the_posterior_is_read_where_the_last_step_begins(ends, method, n_steps, times):
    x, _, _, e_y, _ = ends
    unet = SureUNet(torch.zeros(2, 3))
    posterior_field(unet).class_evidence(x, e_y, OdeSettings(1.0, 0.0, n_steps, method))
    assert unet.times[-1] == pytest.approx(0.05 if times is None else times[-1])
    if times is not None:
        np.testing.assert_allclose(unet.times, times, atol=1e-6)


@pytest.mark.parametrize("label_prediction", LABEL_PREDICTIONS)
def test_velocities_have_the_shapes_of_image_and_mask(make_tiny_field, label_prediction):
    field = make_tiny_field(label_prediction)
    x, y = torch.randn(2, 1, 9, 8), torch.randn(2, 3, 9, 8)
    v_x, v_y = field(x, y, torch.tensor([0.0, 1.0]))
    assert v_x.shape == x.shape
    assert v_y.shape == y.shape
    assert torch.isfinite(v_y).all()


@pytest.mark.parametrize("label_prediction", LABEL_PREDICTIONS)
def test_losses_reach_every_parameter(make_tiny_field, label_prediction):
    field = make_tiny_field(label_prediction).requires_grad_(True)
    labels = torch.tensor([0, 1, 2, 1])
    x, e_x = torch.randn(2, 4, 1, 8, 8)
    y, e_y = CODES.masks(labels, (8, 8)), torch.randn(4, 3, 8, 8)
    sample = sample_path(x, y, e_x, e_y, torch.tensor([1.0, 1.0, 0.3, 0.6]))
    sum(field_losses(field, sample, labels, n_at_one=2)).backward()
    without = [name for name, p in field.named_parameters() if p.grad is None]
    assert without == []


def test_samples_at_time_one_carry_no_image_loss(make_tiny_field):
    for label_prediction in LABEL_PREDICTIONS:
        field = make_tiny_field(label_prediction)
        labels = torch.tensor([0, 1])
        x, e_x = torch.randn(2, 2, 1, 8, 8)
        y, e_y = CODES.masks(labels, (8, 8)), torch.randn(2, 3, 8, 8)
        sample = sample_path(x, y, e_x, e_y, torch.ones(2))
        image_loss, label_loss = field_losses(field, sample, labels, n_at_one=2)
        assert image_loss.item() == 0.0
        assert label_loss.item() > 0.0


@pytest.mark.parametrize("label_prediction", LABEL_PREDICTIONS)
def test_samples_at_time_one_make_up_their_share_of_the_label_loss(
    make_tiny_field, label_prediction
):
    field = make_tiny_field(label_prediction)
    labels = torch.tensor([0, 1, 2, 1, 0])
    x, e_x = torch.randn(2, 5, 1, 8, 8)
    y, e_y = CODES.masks(labels, (8, 8)), torch.randn(5, 3, 8, 8)
    t = torch.tensor([1.0, 0.1, 0.9, 0.3, 0.6])

    def label_loss(rows, n_at_one):
        point = sample_path(x[rows], y[rows], e_x[rows], e_y[rows], t[rows])
        return field_losses(field, point, labels[rows], n_at_one)[1].item()

    at_one, others = label_loss(slice(0, 1), 1), label_loss(slice(1, 5), 0)
    whole = label_loss(slice(0, 5), 1)
    assert whole == pytest.approx(0.8 * at_one + 0.2 * others, rel=1e-5)
    assert at_one != pytest.approx(others, rel=0.01)


@pytest.mark.parametrize("label_prediction", LABEL_PREDICTIONS)
@pytest.mark.parametrize(("n_at_one", "n_dropped"), [(2, 2), (0, None), (2, 4)])
def test_only_so_many_samples_have_dropout(make_tiny_field, label_prediction, n_at_one, n_dropped):
    field = make_tiny_field(label_prediction, dropout=0.5).train()
    labels = torch.tensor([0, 1, 2, 1])
    x, e_x = torch.randn(2, 4, 1, 8, 8)
    y, e_y = CODES.masks(labels, (8, 8)), torch.randn(4, 3, 8, 8)
    t = torch.tensor([1.0, 1.0, 0.3, 0.6] if n_at_one else [0.1, 0.9, 0.3, 0.6])
    sample = sample_path(x, y, e_x, e_y, t)
    (image, label), (image_again, label_again) = (
        [loss.item() for loss in field_losses(field, sample, labels, n_at_one, n_dropped)]
        for _ in range(2)
    )
    assert label != label_again
    assert (image == image_again) == (n_dropped == n_at_one)


def test_the_velocity_loss_equals_the_papers_for_both_branches(make_tiny_field):
    field = make_tiny_field("velocity")
    labels = torch.tensor([0, 1])
    x, e_x = torch.randn(2, 2, 1, 8, 8)
    y, e_y = CODES.masks(labels, (8, 8)), torch.randn(2, 3, 8, 8)
    sample = sample_path(x, y, e_x, e_y, torch.tensor([0.2, 0.7]))
    v_x, v_y = field(sample.x_t, sample.y_t, sample.t)
    image_loss, label_loss = field_losses(field, sample, labels, n_at_one=0)
    assert image_loss.item() == pytest.approx(((v_x - sample.u_x) ** 2).mean().item())
    assert label_loss.item() == pytest.approx(((v_y - sample.u_y) ** 2).mean().item())


def test_the_posterior_hardly_depends_on_the_mask_noise(make_tiny_field):
    field = make_tiny_field("posterior")
    x = torch.randn(3, 1, 8, 8)
    first, second = (
        field.class_evidence(x, torch.randn(3, 3, 8, 8), ONE_STEP_BACK) for _ in range(2)
    )
    torch.testing.assert_close(first, second, atol=1e-3, rtol=0)


def test_logits_are_not_rounded_to_bfloat16(make_tiny_field):
    field = make_tiny_field("posterior")
    x, e_y, t = torch.randn(3, 1, 8, 8), torch.randn(3, 3, 8, 8), torch.ones(3)
    with torch.autocast("cpu", torch.bfloat16):
        encoding = field.encode(x, e_y, t)
        logits = field.class_logits(encoding)
    pooled = encoding.features.float().mean(dim=(2, 3))
    assert torch.equal(logits, field.head(pooled))
    assert not torch.equal(logits, logits.bfloat16().float())


def test_one_euler_step_of_the_posterior_leads_to_the_mean_code(make_tiny_field):
    field = make_tiny_field("posterior")
    x, e_y = torch.randn(3, 1, 8, 8), torch.randn(3, 3, 8, 8)
    mask = VelocityRegressionField.class_evidence(field, x, e_y, ONE_STEP_BACK)
    p = field.class_evidence(x, e_y, ONE_STEP_BACK)
    expected = field.codes.mean_codes(p)[:, :, None, None].expand_as(mask)
    torch.testing.assert_close(mask, expected)
    _, distances = field.decode(p.detach(), CodeReader(field.codes))
    torch.testing.assert_close(distances, field.codes.distances(expected))


@pytest.mark.parametrize(("method", "n_steps"), [("euler", 1), ("euler", 2), ("dopri5", 1)])
def test_only_one_step_of_the_posterior_is_one_pass(make_tiny_field, method, n_steps):
    ode = OdeSettings(1.0, 0.0, n_steps, method)
    one_pass = make_tiny_field("posterior").is_one_pass(ode)
    assert one_pass == (n_steps == 1 and method == "euler")
    assert not make_tiny_field("velocity").is_one_pass(ode)


@pytest.mark.parametrize("label_prediction", LABEL_PREDICTIONS)
@pytest.mark.parametrize("image_prediction", IMAGE_PREDICTIONS)
@pytest.mark.parametrize("method", ["euler", "midpoint", "rk4", "dopri5"])
def test_every_parameterization_generates_finite_images_with_every_solver(
    make_tiny_field, label_prediction, image_prediction, method
):
    field = make_tiny_field(label_prediction, image_prediction=image_prediction)
    masks = CODES.masks(torch.tensor([0, 1]), (8, 8))
    e_x, e_y = torch.randn(2, 1, 8, 8), torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        if method == "dopri5":
            # Random weights are a rough field, in which an adaptive solver takes many steps.
            field.unet.conv_out.weight.mul_(0.1)
        images = field.generate(e_x, masks, e_y, OdeSettings(0.0, 1.0, 3, method))
    assert images.shape == e_x.shape
    assert torch.isfinite(images).all()


def test_the_posterior_sees_nothing_of_the_class_in_a_mask_at_time_one(make_tiny_field):
    field = make_tiny_field("posterior")
    x, e_y = torch.randn(2, 1, 8, 8), torch.randn(2, 3, 8, 8)
    t, one = torch.full((2,), 0.4), torch.ones(2)

    def velocity(labels):
        masks = CODES.masks(torch.tensor(labels), (8, 8))
        return field.image_velocity(x, sample_path(x, masks, x, e_y, one).y_t, t, one)

    assert torch.equal(velocity([0, 0]), velocity([2, 1]))


def test_unconditional_samples_have_the_same_loss_whatever_their_mask_was(make_tiny_field):
    field = make_tiny_field("posterior")
    x, e_x, labels = torch.randn(2, 1, 8, 8), torch.randn(2, 1, 8, 8), torch.tensor([0, 1])
    e_y, t = torch.randn(2, 3, 8, 8), torch.full((2,), 0.4)
    first, second = (
        field_losses(
            field, sample_path(x, CODES.masks(of, (8, 8)), e_x, e_y, t, torch.ones(2)), labels, 0
        )[0].item()
        for of in (labels, 2 - labels)
    )
    assert first == second


@pytest.mark.parametrize(
    ("image_prediction", "n_steps", "last"),
    [("velocity", 25, 0.96), ("denoised", 25, 0.95), ("denoised", 8, 0.875), ("denoised", 1, 0.0)],
)
def test_the_steps_of_a_way_are_equal_but_for_the_last_one(
    make_tiny_field, image_prediction, n_steps, last
):
    times = make_tiny_field(image_prediction=image_prediction).path_times(n_steps)
    assert (times[0], times[-1], len(times)) == (0.0, 1.0, n_steps + 1)
    assert times[-2] == pytest.approx(last)
    assert np.ptp(np.diff(times[:-1])) < 1e-9 if n_steps > 1 else True


@pytest.mark.parametrize("label_prediction", LABEL_PREDICTIONS)
@pytest.mark.parametrize("image_prediction", ["velocity", "denoised"])
@pytest.mark.parametrize(("method", "n_steps"), [("euler", 1), ("euler", 25), ("midpoint", 5)])
def test_a_loop_over_evaluations_generates_the_same(
    make_tiny_field, label_prediction, image_prediction, method, n_steps
):
    field = make_tiny_field(label_prediction, image_prediction=image_prediction)
    masks = CODES.masks(torch.tensor([0, 1]), (8, 8))
    e_x, e_y = torch.randn(2, 1, 8, 8), torch.randn(2, 3, 8, 8)
    ode = OdeSettings(0.0, 1.0, n_steps, method, guidance=0.5)
    with torch.no_grad():
        wanted = field.generate(e_x, masks, e_y, ode)
        beginning = state = field.generation_start(e_x, masks)
        for evaluation in field.path_evaluations(ode):
            t = torch.tensor(evaluation.time)
            v = field.generation_velocity(t, state, masks, e_y, ode.guidance)
            pairs = list(zip(beginning, v, strict=True))
            state = tuple(part + evaluation.ahead * of_part for part, of_part in pairs)
            beginning = tuple(part + evaluation.moved * of_part for part, of_part in pairs)
    torch.testing.assert_close(state[0], wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("label_prediction", LABEL_PREDICTIONS)
def test_guidance_goes_beyond_the_class_away_from_the_unconditional(
    make_tiny_field, label_prediction
):
    field = make_tiny_field(label_prediction)
    masks = CODES.masks(torch.tensor([0, 1]), (8, 8))
    e_x, e_y = torch.randn(2, 1, 8, 8), torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        plain, half, whole = (
            field.generate(e_x, masks, e_y, OdeSettings(0.0, 1.0, guidance=w))
            for w in (0.0, 0.5, 1.0)
        )
        t = torch.zeros(2)
        unconditional = e_x + field.image_velocity(e_x, e_y, t, torch.ones(2))
    torch.testing.assert_close(whole - plain, plain - unconditional, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(half, (plain + whole) / 2, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(whole, plain, atol=1e-3)


def test_a_part_of_a_batch_at_time_one_alone_has_no_image_loss(make_tiny_field):
    x, e_x, e_y = torch.randn(2, 1, 8, 8), torch.randn(2, 1, 8, 8), torch.randn(2, 3, 8, 8)
    labels = torch.tensor([0, 1])
    sample = sample_path(x, CODES.masks(labels, (8, 8)), e_x, e_y, torch.ones(2))
    whole = WholeBatch(n_samples=4, n_at_one=4, n_processes=2)
    image_loss, _ = field_losses(make_tiny_field("velocity"), sample, labels, 2, None, whole)
    assert image_loss.item() == 0


@pytest.mark.parametrize("encoding", ["rgb", "grayscale", "simplex"])
def test_masks_of_images_to_generate_have_the_jitter_of_training(make_tiny_field, encoding):
    field = make_tiny_field("velocity", encoding, beta=4.0)
    codes = field.codes
    n_channels, labels = codes.n_channels, torch.arange(3)
    assert field.n_mask_noise == 2 * n_channels
    noise = torch.randn(3, 2 * n_channels, 32, 32)
    masks, e_y = field.masks_and_noise(labels, (32, 32), noise)
    assert torch.equal(e_y, noise[:, :n_channels])
    trained = codes.masks(labels, (32, 32), torch.Generator().manual_seed(0))
    exact = codes.masks(labels, (32, 32))
    assert (masks - exact).abs().max() <= codes.jitter / 2
    found, wanted = (masks - exact).std().item(), (trained - exact).std().item()
    assert found == pytest.approx(wanted, rel=0.05)
    assert (masks - exact).mean().item() == pytest.approx(0, abs=codes.jitter / 50)


@pytest.mark.parametrize("label_prediction", LABEL_PREDICTIONS)
def test_without_jitter_the_noise_of_a_mask_is_that_of_its_end(make_tiny_field, label_prediction):
    field = make_tiny_field(label_prediction, beta=0.0)
    noise = torch.randn(2, field.n_mask_noise, 8, 8)
    masks, e_y = field.masks_and_noise(torch.arange(2), (8, 8), noise)
    assert torch.equal(masks, CODES.masks(torch.arange(2), (8, 8)))
    assert torch.equal(e_y, noise)


@pytest.mark.parametrize("codes", ["plain", "encoded"])
def test_masks_without_jitter_go_their_known_path_to_noise(make_tiny_field, codes):
    field = make_tiny_field("velocity", beta=0.0)
    if codes == "encoded":
        field = build_field(field.layout, 0, torch.randn(3, 3, 8, 8)).eval()
    noise = torch.randn(2, 3, 8, 8)
    masks, e_y = field.masks_and_noise(torch.arange(2), (8, 8), noise)
    ode = OdeSettings(0.0, 1.0, 4, "midpoint", guidance=0.5)
    with torch.no_grad():
        states = field.trajectory(torch.randn(2, 1, 8, 8), masks, e_y, ode)
    for t, (_, y_t) in zip(field.path_times(4), states, strict=True):
        torch.testing.assert_close(y_t, (1 - t) * masks + t * e_y)


def test_guidance_leaves_the_velocity_of_masks_alone(make_tiny_field):
    field, masks = make_tiny_field("velocity"), CODES.masks(torch.tensor([0, 1]), (8, 8))
    e_x, e_y, t = torch.randn(2, 1, 8, 8), torch.randn(2, 3, 8, 8), torch.tensor(0.4)
    with torch.no_grad():
        (_, plain), (_, guided) = (
            field.generation_velocity(t, (e_x, masks), masks, e_y, w) for w in (0.0, 1.5)
        )
    torch.testing.assert_close(guided, plain, atol=1e-5, rtol=1e-5)
