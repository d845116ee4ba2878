"""Muon against the singular value decomposition, its blocks against matrices kept apart, and AdamW for the rest."""

import pytest
import torch
from torch import Tensor, nn

from euryale.training.muon import Muon, orthogonal


def slow_orthogonal(matrix_RC: Tensor) -> Tensor:
    """U V^T, and the published polynomial on each singular value instead of on products of the matrix."""
    U, S, Vh = torch.linalg.svd(matrix_RC.double(), full_matrices=False)
    s = S / S.square().sum().sqrt()
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return U @ s.diag() @ Vh


@pytest.mark.parametrize("shape", [(12, 12), (24, 8), (8, 24), (1, 5)])
def test_the_iteration_is_the_polynomial_on_singular_values(shape: tuple[int, int]) -> None:
    matrix_RC = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(orthogonal(matrix_RC), slow_orthogonal(matrix_RC), atol=1e-5, rtol=1e-5)


def test_all_directions_weigh_nearly_the_same_even_in_sixteen_bits() -> None:
    generator = torch.Generator().manual_seed(1)
    strong = 100 * torch.randn(3, 32, 1, generator=generator) @ torch.randn(3, 1, 48, generator=generator)
    singular = torch.linalg.svdvals(orthogonal(strong + torch.randn(3, 32, 48, generator=generator)))
    assert singular.max() < 1.3
    assert (singular > 0.3).float().mean() > 0.7  # the gradient itself: one direction 100 times all others


def test_a_zero_gradient_moves_nothing() -> None:
    assert not orthogonal(torch.zeros(4, 6)).any()


def make(parameters: list[nn.Parameter], blocks: list[int], **options: float) -> Muon:
    groups = [{"params": [p], "blocks": n, **options} for p, n in zip(parameters, blocks, strict=True)]
    return Muon(groups, lr=0.1, momentum=0.9)


def test_steps_follow_the_formula() -> None:
    generator = torch.Generator().manual_seed(2)
    weight = nn.Parameter(torch.randn(10, 4, generator=generator, dtype=torch.float64))
    bias = nn.Parameter(torch.zeros(10, dtype=torch.float64))
    optimizer = make([weight, bias], [1, 0], weight_decay=0.5)
    expected, average = weight.detach().clone(), torch.zeros(10, 4, dtype=torch.float64)
    for _ in range(3):
        weight.grad = torch.randn(10, 4, generator=generator, dtype=torch.float64)
        bias.grad = torch.ones_like(bias)
        average = 0.9 * average + weight.grad
        step = slow_orthogonal(weight.grad + 0.9 * average)
        expected = expected * (1 - 0.1 * 0.5) - 0.1 * 2.5**0.5 * step
        optimizer.step()
    torch.testing.assert_close(weight.detach(), expected, atol=1e-5, rtol=1e-5)


def test_blocks_are_matrices_of_their_own_whatever_else_is_moved() -> None:
    generator = torch.Generator().manual_seed(3)
    parts = [torch.randn(6, 4, generator=generator, dtype=torch.float64) for _ in range(3)]
    grads = [torch.randn(6, 4, generator=generator, dtype=torch.float64) for _ in range(3)]
    joined = nn.Parameter(torch.cat(parts, 1))
    apart = [nn.Parameter(part.clone()) for part in parts]
    bias = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    one, many = make([joined, bias], [3, 0]), make([*apart, bias], [1, 1, 1, 0])
    for _ in range(2):
        joined.grad = torch.cat(grads, 1)
        for parameter, grad in zip(apart, grads, strict=True):
            parameter.grad = grad
        one.step()
        many.step()
    torch.testing.assert_close(joined.detach(), torch.cat([p.detach() for p in apart], 1))


def test_what_is_no_matrix_is_moved_as_adamw_moves_it() -> None:
    generator = torch.Generator().manual_seed(4)
    weight = nn.Parameter(torch.randn(4, 4, generator=generator))
    biases = [nn.Parameter(torch.randn(5, generator=torch.Generator().manual_seed(5))) for _ in range(2)]
    ours = Muon([{"params": [weight], "blocks": 1}, {"params": [biases[0]]}], lr=0.1, betas=(0.8, 0.9))
    reference = torch.optim.AdamW([biases[1]], lr=0.1, betas=(0.8, 0.9), weight_decay=0.0, fused=True)
    for rate in (0.1, 0.03):  # a rate from outside, as the trainer sets it
        for group in ours.param_groups + reference.param_groups:
            group["lr"] = rate
        for parameter in (weight, *biases):
            parameter.grad = torch.ones_like(parameter)
        ours.step()
        reference.step()
    assert torch.equal(*biases)
    assert set(ours.state[biases[0]]) == {"step", "exp_avg", "exp_avg_sq"}
    assert set(ours.state[weight]) == {"momentum"}


def test_few_large_matrices_at_a_time_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for at_once in (1, 1 << 20):
        monkeypatch.setattr("euryale.training.muon._AT_ONCE", at_once)
        weights = [nn.Parameter(torch.full((3, 3), 1.0 + i, dtype=torch.float64)) for i in range(3)]
        bias = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        optimizer = make([*weights, bias], [1, 1, 1, 0])
        for i, weight in enumerate(weights):
            weight.grad = torch.eye(3, dtype=torch.float64) + i
        optimizer.step()
        results.append(torch.stack([weight.detach() for weight in weights]))
    torch.testing.assert_close(results[0], results[1])
