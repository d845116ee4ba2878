"""Muon of torch on the blocks of a matrix: as on matrices apart, with AdamW for the rest."""

import torch
from torch import Tensor, nn

from euryale.training.muon import MOMENTUM, MuonAndAdamW


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make(parameters: list[nn.Parameter], blocks: list[int], **options: float) -> MuonAndAdamW:
    groups = [{"params": [p], "blocks": n, **options} for p, n in zip(parameters, blocks, strict=True)]
    return MuonAndAdamW(groups, lr=0.1)


def test_blocks_are_moved_as_matrices_of_their_own() -> None:
    parts = [random(6, 4, seed=seed) for seed in range(3)]
    joined = nn.Parameter(torch.cat(parts, 1))
    apart = [nn.Parameter(part.clone()) for part in parts]
    ours = make([joined, nn.Parameter(torch.zeros(1))], [3, 0], weight_decay=0.5)
    torchs = torch.optim.Muon(apart, lr=0.1, weight_decay=0.5)
    for step in range(3):
        grads = [random(6, 4, seed=10 + 3 * step + part) for part in range(3)]
        joined.grad = torch.cat(grads, 1)
        for parameter, grad in zip(apart, grads, strict=True):
            parameter.grad = grad
        ours.step()
        torchs.step()
    # Products of columns that lie apart in memory may round otherwise: torch iterates in bfloat16, 3 digits of a step.
    torch.testing.assert_close(joined.detach(), torch.cat([p.detach() for p in apart], 1), atol=5e-3, rtol=0)


def test_a_step_is_the_nearest_orthogonal_matrix_at_the_published_length() -> None:
    weight = nn.Parameter(torch.zeros(24, 8))
    optimizer = make([weight, nn.Parameter(torch.zeros(1))], [1, 0])
    weight.grad = random(24, 8)
    optimizer.step()
    singular = torch.linalg.svdvals(weight.detach()) / (0.1 * 3**0.5)  # lr sqrt(max(1, rows / columns))
    assert singular.min() > 0.6 and singular.max() < 1.3  # where five iterations of the polynomial end


def test_a_zero_gradient_moves_nothing_and_a_missing_one_keeps_the_average() -> None:
    weights = [nn.Parameter(random(4, 6)) for _ in range(2)]
    optimizer = make([*weights, nn.Parameter(torch.zeros(1))], [2, 1, 0])
    weights[0].grad = torch.zeros(4, 6)
    before = [weight.detach().clone() for weight in weights]
    optimizer.step()
    assert all(torch.equal(weight, was) for weight, was in zip(weights, before, strict=True))
    assert weights[1] not in optimizer.state and set(optimizer.state[weights[0]]) == {MOMENTUM}


def test_what_is_no_matrix_is_moved_as_adamw_moves_it() -> None:
    weight = nn.Parameter(random(4, 4))
    biases = [nn.Parameter(random(5, seed=5)) for _ in range(2)]
    ours = MuonAndAdamW([{"params": [weight], "blocks": 1}, {"params": [biases[0]]}], lr=0.1, betas=(0.8, 0.9))
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
