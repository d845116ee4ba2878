"""A head reads what is known when it guesses and nothing else; layers are its own; bad designs are refused."""

from dataclasses import replace

import pytest
import torch
from plain_heads import plain_heads
from random_models import HEAD_DESIGNS, random_base, random_heads
from torch import Tensor

from euryale.errors import UserError
from euryale.heads.blocks import corrected
from euryale.heads.config import HeadsConfig
from euryale.heads.heads import Heads, build_heads
from euryale.kernels.rms_norm import normalise

D, V = 16, 13


def known(num: int = 7, seed: int = 0, dtype: torch.dtype = torch.float32, states: int = 1) -> tuple[Tensor, Tensor]:
    """Random states of the base [M, D], or several, and embeddings of the five tokens after each [M, 5, D]."""
    generator = torch.Generator().manual_seed(seed)
    hidden_MD = torch.randn(num, states * D, generator=generator, dtype=dtype)
    return hidden_MD, normalise(torch.randn(num, 5, D, generator=generator, dtype=dtype))


def design_name(design: HeadsConfig) -> str:
    return "-".join(str(value) for value in vars(design).values())


@pytest.mark.parametrize("design", HEAD_DESIGNS, ids=design_name)
def test_an_untrained_head_is_the_base_or_holds_all_tokens_for_equally_likely(design: HeadsConfig) -> None:
    base = random_base(vocab_size=V)
    heads = build_heads(design, base.lm_head_weight)
    hidden_MD, embeddings_MJD = known(states=heads.num_states)
    for k in range(heads.num_heads):
        handed_over_MX = heads.head_hidden(k, hidden_MD, embeddings_MJD)
        output_VX = heads.output_weight(k, base.lm_head_weight)
        says_MD = (
            hidden_MD[:, :D] if design.residual or design.body == "resblock" else torch.zeros_like(hidden_MD[:, :D])
        )
        assert torch.equal(handed_over_MX[:, :D], says_MD)
        assert torch.equal(output_VX[:, :D], base.lm_head_weight) and not output_VX[:, D:].any()
        rank = design.output_rank if design.output == "lowrank" else 0
        assert handed_over_MX.shape[1] == output_VX.shape[1] == D + rank


@pytest.mark.parametrize("design", HEAD_DESIGNS, ids=design_name)
def test_a_head_reads_exactly_the_tokens_that_are_known(design: HeadsConfig) -> None:
    heads = random_heads(design, random_base(vocab_size=V))
    hidden_MD, embeddings_MJD = known(states=heads.num_states)
    for k in range(heads.num_heads):
        out_MD = heads.head_hidden(k, hidden_MD, embeddings_MJD)
        J = {"hydra": k + 1, "medusa": int(design.root_token)}[design.kind]
        assert heads.num_known_tokens(k) == J
        J += design.induction > 0  # and the token that followed them earlier
        for token in range(5):
            changed = embeddings_MJD.clone()
            changed[:, token] += 1
            differs = not torch.equal(heads.head_hidden(k, hidden_MD, changed), out_MD)
            assert differs == (token < J), f"head {k} and token {token}"
        assert not torch.equal(heads.head_hidden(k, hidden_MD + 1, embeddings_MJD)[:, :D], out_MD[:, :D] + 1)
        if J == 0:
            assert torch.equal(heads.head_hidden(k, hidden_MD, None), out_MD)
        else:
            with pytest.raises(AssertionError, match="too few known tokens"):
                heads.head_hidden(k, hidden_MD, embeddings_MJD[:, : J - 1])


@pytest.mark.parametrize("body", ["mlp", "resblock"])
def test_a_head_is_the_published_formula(body: str) -> None:
    """x + SiLU(W h + b) as Medusa wrote it, or with a second matrix; the second layer reads the first one's answer."""
    design = plain_heads("medusa", num_heads=1, num_layers=2, body=body, width=2.0, root_token=False)
    heads = random_heads(design, random_base(vocab_size=V))
    weights = heads.state_dict()
    hidden_MD, _ = known()
    x_MD = hidden_MD
    for layer in range(2):
        inner = x_MD @ weights[f"bodies.0.{layer}.hidden_in.weight"].T + weights[f"bodies.0.{layer}.hidden_in.bias"]
        inner = inner / (1 + (-inner).exp())
        x_MD = x_MD + (inner @ weights[f"bodies.0.{layer}.out.weight"].T if body == "mlp" else inner)
    torch.testing.assert_close(heads.head_hidden(0, hidden_MD, None), x_MD, rtol=1e-5, atol=1e-5)


def num_parameters_by_hand(design: HeadsConfig) -> int:
    total = 0
    for k in range(design.num_heads):
        for layer in range(design.num_layers):
            num_tokens = design.num_known_tokens(k) + (design.induction > 0) if layer == 0 else 0
            inner = int(D * design.width) if design.body == "mlp" else D
            num_states = 3 if design.features == "several" and layer == 0 else 1
            total += (num_states + num_tokens) * D * inner + inner + (inner * D if design.body == "mlp" else 0)
        total += {"own": V * D, "lowrank": (V + D) * design.output_rank}.get(design.output, 0)
    return total


@pytest.mark.parametrize("design", HEAD_DESIGNS, ids=design_name)
def test_every_layer_of_every_head_is_its_own(design: HeadsConfig) -> None:
    """A list multiplied by n holds one module n times: counted by storage, not by name."""
    heads = build_heads(design, torch.zeros(V, D))
    assert heads.num_parameters() == num_parameters_by_hand(design)
    storages = {parameter.data_ptr() for parameter in heads.parameters()}
    assert len(storages) == len(list(heads.parameters())) == len(heads.state_dict()) - (heads.draft_ids is not None)


def test_own_matrices_start_as_the_bases_and_are_not_tied_to_it() -> None:
    weight_VD = torch.randn(V, D)
    before = weight_VD.clone()
    heads = build_heads(plain_heads(output="own", num_heads=2), weight_VD)
    with torch.no_grad():
        heads.output_weight(0, weight_VD).add_(1)
    assert torch.equal(weight_VD, before) and torch.equal(heads.output_weight(1, weight_VD), before)
    shared = build_heads(plain_heads(output="shared", num_heads=2), weight_VD)
    assert shared.output_weight(1, weight_VD) is weight_VD
    assert not any("outputs" in name for name in shared.state_dict())


def test_a_correction_of_low_rank_is_what_it_is_as_a_whole_matrix() -> None:
    base = random_base(vocab_size=V, dtype=torch.float64)
    heads = random_heads(plain_heads(output="lowrank", output_rank=3, vocab_share=0.5), base)
    x_MD = torch.randn(6, D, dtype=torch.float64)
    for k in range(heads.num_heads):
        weight_VD, widen_VR = heads.output_parts(k, base.lm_head_weight)
        assert weight_VD is base.lm_head_weight, "the shared matrix is not copied for every head"
        correction = heads.correction(k)
        assert correction is not None
        whole_VD = corrected(weight_VD, widen_VR, correction.narrow.weight)
        apart_MV = correction.appended(x_MD) @ heads.output_weight(k, base.lm_head_weight).T
        torch.testing.assert_close(x_MD @ whole_VD.T, apart_MV)
        assert torch.equal(heads.draft_weight(k, weight_VD), heads.output_weight(k, weight_VD)[heads.draft_ids])
        assert torch.linalg.matrix_rank(whole_VD - weight_VD) == 3


def test_building_heads_depends_on_the_seed_alone() -> None:
    weight_VD = torch.randn(V, D)
    state = torch.random.get_rng_state()
    one, same, other = (build_heads(plain_heads(), weight_VD, seed) for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), state), "no random numbers of others are used up"
    name = "bodies.1.0.hidden_in.weight"
    assert torch.equal(one.state_dict()[name], same.state_dict()[name])
    assert not torch.equal(one.state_dict()[name], other.state_dict()[name])
    assert {parameter.dtype for parameter in one.parameters()} == {torch.float32}


def test_the_zero_matrix_gets_a_gradient_so_that_training_can_start() -> None:
    weight_VD = torch.randn(V, D)
    for design in (plain_heads("hydra"), plain_heads("hydra", residual=False), plain_heads("medusa", body="resblock")):
        heads = build_heads(design, weight_VD)
        hidden_MD, embeddings_MJD = known()
        loss = sum((heads.head_hidden(k, hidden_MD, embeddings_MJD) @ weight_VD.T)[:, 0].sum() for k in range(4))
        assert isinstance(loss, Tensor)
        loss.backward()
        moving = [any(p.grad is not None and bool(p.grad.any()) for p in head.parameters()) for head in heads.bodies]
        assert moving == [True] * 4


def test_known_tokens_are_read_at_one_scale() -> None:
    # The epsilon of 1e-6 next to a mean square of 1e-4 is a per cent, and more in a row of small numbers.
    embeddings = torch.randn(3, 2, D)
    for scale in (0.01, 1.0, 100.0):
        out = normalise(embeddings * scale)
        torch.testing.assert_close(out.square().mean(-1), torch.ones(3, 2), rtol=5e-2, atol=0)
        assert torch.allclose(out, normalise(embeddings), rtol=5e-2)
    assert normalise(torch.zeros(1, D)).isfinite().all()


def test_the_draft_vocabulary_is_the_most_frequent_tokens_in_order() -> None:
    heads = Heads(plain_heads(vocab_share=0.3), D, V)
    assert heads.num_candidates == 4  # 0.3 x 13, rounded up
    heads.choose_draft_ids(torch.tensor([0, 5, 0, 9, 1, 0, 0, 7, 0, 0, 6, 0, 2]))
    assert heads.draft_ids is not None and heads.draft_ids.tolist() == [1, 3, 7, 10]
    weight_VD = torch.randn(V, D)
    assert torch.equal(heads.draft_weight(0, weight_VD), weight_VD[[1, 3, 7, 10]])
    whole = Heads(plain_heads(), D, V)
    whole.choose_draft_ids(torch.arange(V))
    assert whole.draft_ids is None and whole.num_candidates == V and whole.draft_weight(0, weight_VD) is weight_VD


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "clover"}, "heads.kind must be one of medusa, hydra, eagle; got clover"),
        ({"body": "conv"}, "heads.body must be one of resblock, mlp; got conv"),
        ({"output": "tied"}, "heads.output must be one of shared, own, lowrank; got tied"),
        ({"output_rank": 0}, "heads.output_rank must be from 1 to 65536; got 0"),
        ({"num_heads": 0}, "heads.num_heads must be .*; got 0"),
        ({"num_heads": 17}, "heads.num_heads must be .*; got 17"),
        ({"num_layers": 0}, "heads.num_layers must be .*; got 0"),
        ({"width": 0.0}, "heads.width must be .*; got 0.0"),
        ({"width": float("nan")}, "heads.width must be .*; got nan"),
        ({"vocab_share": 0.0}, "heads.vocab_share must be .*; got 0.0"),
        ({"vocab_share": 1.5}, "heads.vocab_share must be .*; got 1.5"),
        ({"root_token": False}, "heads.root_token must be true for heads.kind="),
    ],
)
def test_a_design_that_cannot_be_built_is_refused(change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_heads(replace(plain_heads(), **change), torch.zeros(V, D))


def test_a_draft_vocabulary_is_a_share_of_the_vocabulary_but_has_so_many_tokens_at_least() -> None:
    assert [plain_heads(vocab_share=0.25, vocab_min=10).num_draft_tokens(v) for v in (8, 20, 41, 400)] == [
        8,
        10,
        11,
        100,
    ]
    heads = build_heads(plain_heads(vocab_share=0.25, vocab_min=10), torch.zeros(8, 4))
    assert heads.draft_ids is None and heads.num_candidates == 8
    with pytest.raises(UserError, match="vocab_min must be at least 0; got -1"):
        plain_heads(vocab_min=-1).check()
