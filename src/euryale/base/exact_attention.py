"""Attention whose sums do not depend on what else is in the pass: a tree's node gets the bits of plain decoding.

A node's keys lie at other slots than the same token's keys in plain decoding, so a plain attention adds the same
numbers in another order. Here the order is that of positions, whatever pass computes it. A query at position p splits
its keys in two by p alone:
- whole blocks of 16 keys below p - 8: slots that are committed, or of a chain, where slot and position agree;
- the last keys, at most 24, gathered for each query: the rest of the committed ones, then its own path.
Each part is one call of the processor's flash attention, which also gives the logarithm of its sum; the parts are
merged by those. Keys that others need and a query does not are masked at the end of its row, in whole blocks: they add
exact zeros after its own sum. attention_rows proves on this machine what this relies on. In a tree deeper than 8 the
first part is gathered for each query too.

Letters: B batch, N nodes, H query heads, G key/value heads, R = H / G, E head width, S slots, T = 24 keys of the tail.
"""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

BLOCK = 16  # a whole number of vectors, so that masked keys fill vectors of their own
MARGIN = 8  # the depth up to which a node's path lies in the tail
TAIL = BLOCK + MARGIN
_UNITS = (4, 16, 32)  # a call of the prefix has a multiple of so many rows
_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


class KeyOrder(NamedTuple):
    """Which keys the queries of one pass see, in the order of their sums; the same for all layers."""

    num_prefix: int  # slots of the longest prefix; 0: none
    num_rows: int  # of a call of the prefix: N R, padded
    prefix_mask: Tensor | None  # [.., num_rows or 1, num_prefix], to be added; None: every query sees all of them
    prefix_BX: Tensor | None  # [B, N num_prefix]: slots, where they are not the first ones
    tail_BX: Tensor  # [B, N T]: slots
    tail_mask_X11T: Tensor  # [B N, 1, 1, T], to be added


def key_order(
    nodes_RNN: Tensor | None, lengths: Sequence[int], shape: torch.Size, repeats: int, unit: int, like: Tensor
) -> KeyOrder:
    """The order of one pass.

    nodes_RNN: True where a node sees a node, [1 or B, N, N]; None: each sees those before it. lengths: committed slots
    of each row. shape: [B, N]. repeats: H / G. unit: see attention_rows. like: has the dtype of the queries.
    """
    B, N = shape
    if B == N == 1:
        return _order_of_one(lengths[0], repeats, unit, like.dtype)
    lengths_B1 = torch.tensor(lengths)[:, None]
    if nodes_RNN is None:
        depths_RN = torch.arange(N)[None]
        path_RND = depths_RN[:, None]
    else:
        depths_RN = nodes_RNN.sum(-1) - 1
        path_RND = nodes_RNN.logical_not().to(torch.uint8).sort(dim=-1, stable=True).indices  # ancestors first
    positions_BN = lengths_B1 + depths_RN
    starts_BN = (positions_BN - MARGIN).clamp_(min=0) // BLOCK * BLOCK

    def slots(positions_BNK: Tensor) -> Tensor:
        """Where the keys at these positions of each query's text lie."""
        behind_BNK = positions_BNK - lengths_B1[..., None]  # the place in the path; below 0: a committed slot
        paths_BNK = path_RND.expand(B, N, -1).gather(2, behind_BNK.clamp(0, path_RND.shape[-1] - 1))
        return torch.where(behind_BNK < 0, positions_BNK, lengths_B1[..., None] + paths_BNK)

    def mask(hidden: Tensor) -> Tensor:
        return torch.zeros(hidden.shape, dtype=like.dtype).masked_fill_(hidden, torch.finfo(like.dtype).min)

    tail_BNT = starts_BN[..., None] + torch.arange(TAIL)
    is_hidden_BNT = tail_BNT > positions_BN[..., None]
    first, most = int(starts_BN.min()), int(starts_BN.max())
    num_rows = -(-N * repeats // unit) * unit
    prefix_mask = prefix_BX = None
    hidden_BNS = torch.arange(most) >= starts_BN[..., None] if first != most else None
    if nodes_RNN is not None and bool((starts_BN > lengths_B1).any()) and not _is_chain(nodes_RNN):
        num_rows = -(-repeats // unit) * unit
        prefix_BX = slots(torch.arange(most).expand(B, N, most)).reshape(B, N * most)
        prefix_mask = None if hidden_BNS is None else mask(hidden_BNS).view(B * N, 1, 1, most)
    elif hidden_BNS is not None:
        mask_BMS = mask(hidden_BNS).repeat_interleave(repeats, 1)
        prefix_mask = pad(mask_BMS, (0, 0, 0, num_rows - N * repeats))[:, None]
    tail_BX = slots(tail_BNT).masked_fill_(is_hidden_BNT, 0).view(B, N * TAIL)
    tail_mask = mask(is_hidden_BNT).view(B * N, 1, 1, TAIL)
    return KeyOrder(most, num_rows, prefix_mask, prefix_BX, tail_BX, tail_mask)


def _order_of_one(position: int, repeats: int, unit: int, dtype: torch.dtype) -> KeyOrder:
    """key_order of plain decoding: one query, which sees every slot."""
    start = max(position - MARGIN, 0) // BLOCK * BLOCK
    tail_1T = torch.arange(start, start + TAIL)[None].clamp_(max=position)
    shown = TAIL - (position + 1 - start)  # of the template: as many zeros as there are keys, then hidden ones
    tail_mask = _mask_template(dtype)[shown : shown + TAIL].view(1, 1, 1, TAIL)
    return KeyOrder(start, -(-repeats // unit) * unit, None, None, tail_1T, tail_mask)


@cache
def _mask_template(dtype: torch.dtype) -> Tensor:
    """T zeros, then T of the value that hides a key."""
    return torch.cat([torch.zeros(TAIL, dtype=dtype), torch.full((TAIL,), torch.finfo(dtype).min, dtype=dtype)])


def _is_chain(nodes_RNN: Tensor) -> bool:
    """Whether each node sees all nodes before it, so that a node's slot says its position."""
    return torch.equal(nodes_RNN, torch.ones_like(nodes_RNN).tril())


def exact_attention(
    query_BNHE: Tensor, keys_BGSE: Tensor, values_BGSE: Tensor, order: KeyOrder, scaling: float
) -> Tensor:
    """Scaled dot-product attention over the keys of `order`: [B N, H E]."""
    B, N, H, E = query_BNHE.shape
    G = keys_BGSE.shape[1]
    R = H // G
    query_XGRE = query_BNHE.reshape(B * N, G, R, E)
    tail = [_gathered(states, order.tail_BX, N) for states in (keys_BGSE, values_BGSE)]
    near_XGRE, near_sum_XGR = _flash(query_XGRE, *tail, 0.0, False, attn_mask=order.tail_mask_X11T, scale=scaling)
    if order.num_prefix == 0:
        return near_XGRE.reshape(B * N, H * E)
    if order.prefix_BX is None:
        keys, values = keys_BGSE[:, :, : order.num_prefix], values_BGSE[:, :, : order.num_prefix]
        query = query_XGRE if N == 1 else query_XGRE.view(B, N, G, R, E).transpose(1, 2).reshape(B, G, N * R, E)
    else:
        keys, values = (_gathered(states, order.prefix_BX, N) for states in (keys_BGSE, values_BGSE))
        query = query_XGRE
    rows = query.shape[2]
    if rows < order.num_rows:
        query = pad(query, (0, 0, 0, order.num_rows - rows))
    far, far_sum = _flash(query, keys, values, 0.0, False, attn_mask=order.prefix_mask, scale=scaling)
    far, far_sum = far[:, :, :rows], far_sum[:, :, :rows]
    if order.prefix_BX is None and N > 1:
        far, far_sum = (x.unflatten(2, (N, R)).transpose(1, 2).flatten(0, 1) for x in (far, far_sum))
    # A softmax works row by row; exp of the differences would treat the last few numbers of a pass apart.
    share_XGR1 = torch.stack([near_sum_XGR, far_sum], -1).softmax(-1)[..., 1:]
    merged_XGRE = torch.lerp(near_XGRE.to(share_XGR1.dtype), far.to(share_XGR1.dtype), share_XGR1)
    return merged_XGRE.to(query_BNHE.dtype).reshape(B * N, H * E)


def _gathered(states_BGSE: Tensor, slots_BX: Tensor, N: int) -> Tensor:
    """The same number of slots for each of N queries: [B N, G, slots, E]."""
    B, G, _, E = states_BGSE.shape
    if B == 1:
        return states_BGSE.index_select(2, slots_BX[0]).view(G, N, -1, E).transpose(0, 1)
    rows_B1 = torch.arange(B)[:, None]
    return states_BGSE[rows_B1, :, slots_BX].view(B * N, -1, G, E).transpose(1, 2)


@cache
@torch.no_grad()
def attention_rows(repeats: int, head_dim: int, dtype: torch.dtype, threads: int) -> int | None:
    """The unit to whose multiples a call's rows are padded so that each row gets the same bits; None: there is none.

    Proven on keys and values in pairs that cancel, so that what is left is rounding. `threads`: as in row_blocks.
    """
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    def cancelling(num_keys: int) -> tuple[Tensor, Tensor]:
        order = torch.randperm(num_keys, generator=generator)
        keys, values = random(1, 1, num_keys // 2, head_dim), random(1, 1, num_keys // 2, head_dim)
        return torch.cat([keys, keys], 2)[:, :, order], torch.cat([values, -values], 2)[:, :, order]

    cases = [(random(1, 1, 256, head_dim), *cancelling(num_keys)) for num_keys in (16, 48, 96, 512, 528, 1040)]
    lone = (random(40, 1, repeats, head_dim), random(40, 1, TAIL, head_dim), random(40, 1, TAIL, head_dim))
    if not _is_alone(*lone):
        return None
    return next((unit for unit in _UNITS if all(_agrees(unit, *case) for case in cases)), None)


def _agrees(unit: int, query: Tensor, keys: Tensor, values: Tensor) -> bool:
    """Whether rows in other numbers, and with masked keys after their own, get the bits of `unit` rows."""
    expected, expected_sum = _in_calls(unit, query, keys, values, None)
    for rows in (2 * unit, 3 * unit, 32, 36, 48, 64, 128, 192, 256):
        if rows % unit == 0:
            found, found_sum = _in_calls(rows, query, keys, values, None)
            num = found.shape[2]
            if not (torch.equal(found, expected[:, :, :num]) and torch.equal(found_sum, expected_sum[:, :, :num])):
                return False
    more = [torch.cat([states, states[:, :, :BLOCK], states], 2) for states in (keys, values)]
    mask = torch.zeros(1, 1, 1, more[0].shape[2], dtype=query.dtype)
    mask[..., keys.shape[2] :] = torch.finfo(query.dtype).min
    found, found_sum = _in_calls(unit, query, more[0], more[1], mask)
    return torch.equal(found, expected) and torch.equal(found_sum, expected_sum)


def _is_alone(query: Tensor, keys: Tensor, values: Tensor) -> bool:
    """Whether a batch of tails gives the bits of each alone."""
    together = _flash(query, keys, values, 0.0, False)
    apart = [_flash(*[x[at : at + 1] for x in (query, keys, values)], 0.0, False) for at in range(len(query))]
    return all(
        torch.equal(torch.cat(parts), whole) for parts, whole in zip(zip(*apart, strict=True), together, strict=True)
    )


def _in_calls(rows: int, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """The attention of `query` in calls of exactly so many rows; a rest is left out."""
    calls = [
        _flash(query[:, :, at : at + rows], keys, values, 0.0, False, attn_mask=mask)
        for at in range(0, query.shape[2] - rows + 1, rows)
    ]
    return torch.cat([call[0] for call in calls], 2), torch.cat([call[1] for call in calls], 2)
