"""The specification of the kernels against the decoder, transformers and bitsandbytes, whose work they take over."""

import pytest
import torch
from kernel_trees import parents_of, random_tree
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm, LlamaRotaryEmbedding, apply_rotary_pos_emb

from euryale.decoding.accept import accept_exact
from euryale.decoding.noise import fill_by_torch, gumbel
from euryale.decoding.tree.tree import Shape
from euryale.errors import UserError
from euryale.kernels import reference, reference_small
from euryale.kernels.nf4_weight import nf4_weight

CPU = torch.device("cpu")
CONFIG = LlamaConfig(
    hidden_size=64, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
    num_hidden_layers=2, hidden_act="silu",
)  # fmt: skip


@pytest.mark.parametrize("N", [1, 31, 32, 33, 64, 70])
def test_words_hold_the_ancestors(N: int) -> None:
    trees = torch.cat([random_tree(N), random_tree(N)])
    assert torch.equal(reference.unpack_ancestors(reference.pack_ancestors(trees)), trees)


def test_noise_is_the_decoders_by_torch_bit_for_bit() -> None:
    seeds, positions = [0, 1, 2**32, 2**40 + 5, 2**63 - 1], [0, 1, 77, 10_000_000, 2**31 - 1]
    got = reference_small.gumbel_noise(torch.tensor(seeds), torch.tensor(positions, dtype=torch.int32), 1000)
    for row, seed, position in zip(got, seeds, positions, strict=True):
        expected_1V = torch.empty(1, 1000)
        fill_by_torch(expected_1V, seed, position)
        assert torch.equal(row, expected_1V[0])


def test_the_accept_walk_is_the_decoders() -> None:
    """Paths, counts, what is written, and rows that end at an id, at their limit or before the step."""
    torch.manual_seed(0)
    for N in (1, 6, 40):
        trees = torch.cat([random_tree(N) for _ in range(4)])
        parents, depths = parents_of(trees).long(), trees.sum(-1) - 1
        targets, tokens = torch.randint(0, 3, (4, N)), torch.randint(0, 3, (4, N))
        for b in range(4):  # siblings differ
            for node in range(1, N):
                before = [int(tokens[b, c]) for c in range(1, node) if parents[b, c] == parents[b, node]]
                tokens[b, node] = next(t for t in torch.randperm(3 + N).tolist() if t not in before)
        longest = int(trees.sum(-1).max())
        answers = reference.Answers(
            torch.tensor([3, 5, 7, 9], dtype=torch.int32), torch.zeros(4).long(), torch.zeros(4).long(),
            torch.full((4, 50), -1), torch.zeros(4).int(), torch.tensor([50, 1, 50, 50]).int(),
            torch.tensor([[-1], [-1], [2], [-1]]), torch.tensor([False, False, False, True]),
        )  # fmt: skip
        words = reference.pack_ancestors(trees)
        walk = reference.accept_walk(tokens, targets, parents.int(), words, answers, longest)
        accepted = accept_exact(tokens, targets, Shape(parents, depths, trees))
        for b in range(4):
            path = accepted[b].nonzero()[:, 0].tolist()
            gained = [int(tokens[b, node]) for node in path[1:]] + [int(targets[b, path[-1]])]
            if b == 1:
                gained = gained[:1]
            if b == 2 and 2 in gained:
                gained = gained[: gained.index(2) + 1]
            if b == 3:
                gained, path = [], []
            assert walk.paths_BP[b, : len(path)].tolist() == path and walk.counts_B[b] == len(path)
            assert answers.ring_BT[b, : len(gained)].tolist() == gained and answers.written_B[b] == len(gained)
            assert answers.lengths_B[b] == [3, 5, 7, 9][b] + len(path)
            assert bool(answers.is_done_B[b]) == (b in (1, 3) or (b == 2 and gained[-1] == 2))


def test_commit_moves_what_is_kept_and_nothing_else() -> None:
    lengths, paths = [4, 10, 0], [[0, 2, 5], [0, 1], []]
    kv = torch.randn(4, 3, 2, 40, 16)
    want = kv.clone()
    for b, (length, path) in enumerate(zip(lengths, paths, strict=True)):
        want[:, b, :, length : length + len(path)] = kv[:, b][:, :, [length + node for node in path]]
    walk = reference.Walk(
        torch.tensor([[0, 2, 5], [0, 1, 0], [0, 0, 0]], dtype=torch.int32),
        torch.tensor(lengths, dtype=torch.int32), torch.tensor([3, 2, 0], dtype=torch.int32),
    )  # fmt: skip
    reference.kv_commit(kv, walk)
    assert torch.equal(kv, want)


@pytest.mark.parametrize("N", [9, 70])  # more than fit two words: the specification takes them
def test_tree_attention_is_softmax_over_each_nodes_own_keys(N: int) -> None:
    torch.manual_seed(0)
    length = 21
    trees = random_tree(N)
    q, k, v = torch.randn(1, N, 4, 16), torch.randn(1, 2, 99, 16), torch.randn(1, 2, 99, 16)
    lengths, words = torch.tensor([length]), reference.pack_ancestors(trees)
    for window in (None, 7):
        got = reference.tree_attention(q, k, v, lengths, words, 0.3, window)
        for node in range(0, N, 3):
            slots = torch.cat([torch.arange(length), length + trees[0, node].nonzero()[:, 0]])[-(window or 99) :]
            want = torch.nn.functional.scaled_dot_product_attention(
                q[:, node][:, :, None].double(),
                k[:, :, slots].double(),
                v[:, :, slots].double(),
                scale=0.3,
                enable_gqa=True,
            )
            # Sums of up to 99 numbers of size 1 in float32: some 1e-6 in any order. One key more or less is 1e-2.
            torch.testing.assert_close(got[:, node].double(), want[:, :, 0], rtol=1e-5, atol=1e-5)


def test_norm_activation_and_rope_are_those_of_transformers() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 64)
    norm = LlamaRMSNorm(64, eps=1e-5)
    norm.weight.data.normal_()
    torch.testing.assert_close(reference_small.rms_norm(x, norm.weight, 1e-5)[0], norm(x))
    mlp = LlamaMLP(CONFIG)
    gate_up = torch.cat([mlp.gate_proj(x), mlp.up_proj(x)], -1)
    torch.testing.assert_close(mlp.down_proj(reference_small.swiglu(gate_up)), mlp(x))
    rope = LlamaRotaryEmbedding(CONFIG)
    qkv, lengths, depths = torch.randn(2, 3, 8, 16), torch.tensor([5, 0]), torch.tensor([[0, 1, 1]])
    cos, sin = (part[0, :, :8] for part in rope(x, torch.arange(20)[None]))
    k, v = torch.zeros(2, 2, 10, 16), torch.zeros(2, 2, 10, 16)
    q = reference_small.kv_write(qkv, cos, sin, lengths, depths, k, v)
    cos_BND, sin_BND = rope(x, lengths[:, None] + depths)
    want_q, want_k = apply_rotary_pos_emb(*qkv.transpose(1, 2).split([4, 2, 2], 1)[:2], cos_BND, sin_BND)
    torch.testing.assert_close(q, want_q.transpose(1, 2))
    for b, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(k[b, :, length : length + 3], want_k[b])
        assert torch.equal(v[b, :, length : length + 3], qkv[b, :, 6:].transpose(0, 1))
    assert k[0, :, :5].count_nonzero() == k[0, :, 8:].count_nonzero() == 0


@pytest.mark.parametrize("nested", [True, False])
def test_the_4_bit_matrix_is_bitsandbytes_own(nested: bool) -> None:
    """Exactly, but for the order in which an absmax is put together: one unit of float32."""
    functional = pytest.importorskip("bitsandbytes", reason="the weights are bitsandbytes' own").functional
    from nf4_weights import random_nf4

    weight, by_bitsandbytes = random_nf4(6, 128, nested)
    torch.testing.assert_close(weight.matrix(torch.float32), by_bitsandbytes, rtol=2e-7, atol=0)
    assert len(weight.scales()) == 12
    packed, state = functional.quantize_4bit(torch.randn(4, 64), blocksize=64, quant_type="fp4")
    with pytest.raises(UserError, match="the quantisation must be nf4 .*; got fp4"):
        nf4_weight(packed, state)


def test_draws_and_top_k_take_the_lowest_id_of_equal_scores() -> None:
    scores = torch.tensor([[1.0, 3.0, 3.0, -0.0, 0.0], [2.0, 2.0, 2.0, 2.0, 2.0]])
    assert reference_small.top_k(scores, 4)[1].tolist() == [[1, 2, 0, 3], [0, 1, 2, 3]]
    zeros, ones = torch.zeros(2), torch.ones(2, dtype=torch.int64)
    assert reference_small.draw(scores, zeros, ones, ones.int()).tolist() == [1, 0]
    drawn = reference_small.draw(scores, torch.tensor([0.5, 0.0]), ones * 9, ones.int() * 4)
    assert drawn.tolist() == [int((scores[0] / 0.5 + gumbel(9, 4, 1, 5, CPU)[0]).argmax()), 0]
