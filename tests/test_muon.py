import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sklearn_msf.training.muon import Muon, orthogonalize

SHAPES = [(16, 16), (16, 144), (32, 16), (16, 144), (32, 32), (48, 16)]


def random_matrices(shapes, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


def newton_schulz(matrix):
    """The usual iteration on the matrix itself, in float64."""
    x = matrix.double()
    x = x.T if len(x) > x.shape[1] else x
    x = x / x.norm().clamp_min(1e-7)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if len(matrix) > matrix.shape[1] else x


@pytest.mark.parametrize("shape", [(32, 288), (64, 576), (1152, 64), (64, 64), (128, 128)])
def test_orthogonalizing_is_the_usual_iteration(shape):
    matrices = random_matrices([shape] * 3)
    for found, matrix in zip(orthogonalize(matrices), matrices, strict=True):
        torch.testing.assert_close(found.double(), newton_schulz(matrix), atol=1e-5, rtol=0)


@given(
    shapes=st.lists(st.tuples(st.integers(1, 24), st.integers(1, 24)), min_size=1, max_size=6),
    seed=st.integers(0, 100),
)
def test_matrices_of_any_shapes_are_orthogonalized_together(shapes, seed):
    matrices = random_matrices(shapes, seed)
    for found, matrix in zip(orthogonalize(matrices), matrices, strict=True):
        # Squares of small matrices can be nearly singular, which costs digits.
        torch.testing.assert_close(found.double(), newton_schulz(matrix), atol=2e-3, rtol=0)


def test_a_matrix_with_few_directions_is_orthogonalized_in_these():
    left, right = random_matrices([(32, 4), (4, 144)])
    (found,) = orthogonalize([left @ right])
    torch.testing.assert_close(found.double(), newton_schulz(left @ right), atol=1e-4, rtol=1e-4)
    values = torch.linalg.svdvals(found)
    assert ((values[:4] > 0.65) & (values[:4] < 1.25)).all()
    assert values[4:].max() < 1e-3


def test_singular_values_come_near_one_and_vectors_stay():
    (matrix,) = random_matrices([(32, 288)])
    (found,) = orthogonalize([matrix])
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.65
    assert values.max() < 1.25
    # The same singular vectors: in their basis the result is diagonal.
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    in_basis = u.T @ found @ vh.T
    torch.testing.assert_close(in_basis, torch.diag(in_basis.diagonal()), atol=1e-4, rtol=0)


def test_zeros_stay_zeros():
    zeros, other = torch.zeros(16, 32), torch.ones(16, 32)
    assert not orthogonalize([zeros, other])[0].any()


def test_scale_does_not_matter():
    (matrix,) = random_matrices([(16, 32)])
    for scale in (1e-4, 1e12):
        torch.testing.assert_close(*orthogonalize([matrix, scale * matrix]))


def test_steps_are_those_of_torch_up_to_the_rounding_of_bfloat16():
    ours, theirs = ([torch.nn.Parameter(m) for m in random_matrices(SHAPES)] for _ in range(2))
    starts = random_matrices(SHAPES)
    muon = Muon(ours, lr=0.1, weight_decay=0.1)
    reference = torch.optim.Muon(theirs, lr=0.1, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for step in range(3):
        for weights in (ours, theirs):
            for weight, gradient in zip(weights, random_matrices(SHAPES, step), strict=True):
                weight.grad = gradient
        muon.step()
        reference.step()
    for one, other, start in zip(ours, theirs, starts, strict=True):
        moved = (other - start).norm()
        assert (one - other).norm() < 0.03 * moved


def test_a_matrix_without_a_gradient_stays():
    first, second = (torch.nn.Parameter(m) for m in random_matrices([(16, 16)] * 2))
    before = second.detach().clone()
    muon = Muon([first, second], lr=0.1)
    first.grad = torch.ones(16, 16)
    muon.step()
    assert torch.equal(second, before)
    assert second not in muon.state
    second.grad = torch.ones(16, 16)
    muon.step()
    assert not torch.equal(second, before)


def test_without_any_gradient_nothing_happens():
    (weight,) = random_matrices([(16, 16)])
    parameter = torch.nn.Parameter(weight.clone())
    Muon([parameter], lr=0.1).step()
    assert torch.equal(parameter, weight)


@pytest.mark.parametrize("rate", [0.01, 0.1])
def test_weights_decay_by_the_rate_times_the_decay(rate):
    (weight,) = random_matrices([(16, 16)])
    parameter = torch.nn.Parameter(weight.clone())
    parameter.grad = torch.zeros(16, 16)
    Muon([parameter], lr=rate, weight_decay=0.5).step()
    torch.testing.assert_close(parameter.detach(), (1 - 0.5 * rate) * weight)
