"""Tree attention in Triton's interpreter against its specification, and a tree against decoding alone, bit for bit."""

import pytest
import torch
from kernel_trees import deep_tree, random_tree
from torch import Tensor

from euryale.kernels import reference
from euryale.kernels.tree_split import REACH, TILE
from euryale.kernels.triton.tree_attention import tree_attention


def random_case(B: int, N: int, H: int, G: int, D: int, lengths: list[int], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """q, k, v, lengths, ancestor words, one tree a row; slots that no query may read are NaN."""
    torch.manual_seed(N * 1000 + D + lengths[0])
    S = max(lengths) + N + 3
    q, k, v = torch.randn(B, N, H, D), torch.randn(B, G, S, D), torch.randn(B, G, S, D)
    for b, length in enumerate(lengths):
        k[b, :, length + N :] = v[b, :, length + N :] = float("nan")
    words = reference.pack_ancestors(torch.cat([random_tree(N) for _ in range(B)]))
    return q.to(dtype), k.to(dtype), v.to(dtype), torch.tensor(lengths, dtype=torch.int32), words


CASES = {
    "one node, empty cache": (1, 1, 2, 2, 16, [0]),
    "one node, all in the tail": (1, 1, 4, 1, 64, [REACH + TILE - 1]),
    "one node, the first whole tile": (1, 1, 4, 1, 64, [REACH + TILE]),
    "ragged rows, groups of 3": (2, 5, 6, 2, 32, [70, 3]),
    "two splits, groups of 4, two blocks of rows": (1, 27, 4, 1, 16, [101]),
    "groups of 8, wide head": (1, 4, 8, 1, 128, [97]),
    "64 nodes, three splits": (1, 64, 1, 1, 64, [170]),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_it_is_the_specification(case: tuple, dtype: torch.dtype) -> None:
    """float16 rounds shares and values to 11 bits before they are multiplied: 2^-11 of values up to 4."""
    q, k, v, lengths, words = random_case(*case, dtype=dtype)
    scale = q.shape[-1] ** -0.5
    got = tree_attention(q, k, v, lengths, words, scale)
    want = reference.tree_attention(q, k, v, lengths, words, scale)
    assert (got.float() - want.float()).abs().max() < (4e-6 if dtype == torch.float32 else 4e-3)


def test_layout_and_a_shared_tree_change_nothing() -> None:
    """Strides of the arena (layers and both of keys and values in one tensor) and of a fused projection."""
    q, k, v, lengths, words = random_case(2, 6, 4, 2, 16, [40, 70], torch.float32)
    want = reference.tree_attention(q, k, v, lengths, words[:1], 0.25)
    arena = torch.full((2, 2, 2, 2, k.shape[2] + 5, 16), float("nan"))
    arena[1, 0, ..., : k.shape[2], :], arena[1, 1, ..., : k.shape[2], :] = k, v
    fused = torch.randn(2, 6, 4 + 2 * 2, 16)
    fused[:, :, :4] = q
    assert torch.equal(want, reference.tree_attention(q, *arena[1], lengths, words[:1].expand(2, -1, -1), 0.25))
    got = tree_attention(fused[:, :, :4], arena[1, 0], arena[1, 1], lengths, words[:1], 0.25)
    assert torch.equal(got, tree_attention(q, k, v, lengths, words[:1].contiguous(), 0.25))
    assert (got - want).abs().max() < 4e-6


@pytest.mark.parametrize("window", [1, 7, 33, 64, 500])
def test_a_window_hides_what_is_older(window: int) -> None:
    q, k, v, lengths, words = random_case(2, 9, 2, 1, 16, [130, 20], torch.float32)
    got = tree_attention(q, k, v, lengths, words, 0.25, window)
    assert (got - reference.tree_attention(q, k, v, lengths, words, 0.25, window)).abs().max() < 4e-6


@pytest.mark.parametrize(
    ("lengths", "N", "H", "G", "window"),
    [([61, 5], 12, 4, 1, None), ([97], 40, 3, 1, None), ([160], 64, 1, 1, None), ([126], 16, 2, 1, 50)],
)
def test_every_node_of_a_tree_is_the_token_decoded_alone_bit_for_bit(
    lengths: list[int], N: int, H: int, G: int, window: int | None
) -> None:
    """The path of a node committed, and the node as the only query: the same bits.

    What breaks this: keys that are split by slot, a block whose size depends on N, sums of which the order depends on
    the other rows. The last row's tree is as deep as it may be, so that edges of tiles and splits lie inside it.
    """
    D = 16
    q, k, v, lengths_B, _ = random_case(len(lengths), N, H, G, D, lengths, torch.float32)
    trees = torch.cat([*(random_tree(N) for _ in lengths[1:]), deep_tree(N)])
    tree = tree_attention(q, k, v, lengths_B, reference.pack_ancestors(trees), 0.25, window, split=64)
    alone = reference.pack_ancestors(torch.ones(1, 1, 1, dtype=torch.bool))
    for b, length in enumerate(lengths):
        for node in {0, 1, N // 2, N - 1, min(N - 1, REACH), *range(0, N, 16)}:
            path = trees[b, node].nonzero()[:, 0]
            slots = torch.cat([torch.arange(length), length + path])
            filler = torch.full((1, G, 200 - len(slots), D), float("nan"))
            keys, values = (torch.cat([x[b : b + 1, :, slots], filler], 2) for x in (k, v))
            position = torch.tensor([len(slots) - 1], dtype=torch.int32)
            got = tree_attention(q[b : b + 1, node : node + 1], keys, values, position, alone, 0.25, window, split=64)
            assert torch.equal(got[0, 0], tree[b, node]), (b, node)
