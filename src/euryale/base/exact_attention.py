"""Attention whose sums do not depend on what else is in the pass: a tree's node gets the bits of plain decoding.

A node's keys lie at other slots than the same token's keys in plain decoding, so a plain attention adds the same
numbers in another order. Here the order is that of positions, whatever pass computes it. A query at position p splits
its keys in two by p alone:
- whole blocks of 16 keys below p - 8: slots that are committed, or of a chain, where slot and position agree;
- the last keys, at most 24, gathered for each query: the rest of the committed ones, then its own path.
The first part is a call of the processor's flash attention for each number of keys, because a key that is masked can
change the order of a sum; the second is one call of fixed shape. Both give the logarithm of their sum, by which they
are merged. attention_rows proves on this machine what this relies on. In a tree deeper than 8 the first part is
gathered for each query too.

Letters: B batch, N nodes, H query heads, G key/value heads, R = H / G, E head width, S slots, T = 24 keys of the tail.
"""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

BLOCK = 16
MARGIN = 8  # the depth up to which a node's path lies in the tail
TAIL = BLOCK + MARGIN
_UNITS = (4, 16, 32)  # a call of the prefix has a multiple of so many rows
_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


class Group(NamedTuple):
    """Queries of one row whose first part has the same number of keys."""

    row: int
    nodes_M: Tensor | None  # None: all of a pass of one row
    num_keys: int
    slots_X: Tensor | None  # [M num_keys], where the keys are not the first slots


class KeyOrder(NamedTuple):
    """Which keys the queries of one pass see, in the order of their sums; the same for all layers."""

    groups: list[Group]
    unit: int  # rows of a call of the first part are padded to a multiple
    tail_BX: Tensor  # [B, N T]: slots
    tail_mask_X11T: Tensor  # [B N, 1, 1, T], to be added


def key_order(nodes_RNN: Tensor | None, lengths: Sequence[int], shape: torch.Size, unit: int, like: Tensor) -> KeyOrder:
    """The order of one pass.

    nodes_RNN: True where a node sees a node, [1 or B, N, N]; None: each sees those before it. lengths: committed slots
    of each row. shape: [B, N]. unit: see attention_rows. like: has the dtype of the queries.
    """
    B, N = shape
    if B == N == 1:
        return _order_of_one(lengths[0], unit, like.dtype)
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
    is_deep = nodes_RNN is not None and bool((starts_BN > lengths_B1).any()) and not _is_chain(nodes_RNN)
    groups = []
    for row, starts in enumerate(starts_BN.tolist()):
        for start in sorted(set(starts) - {0}):
            is_all = B == 1 and starts.count(start) == N
            nodes_M = (starts_BN[row] == start).nonzero()[:, 0]
            slots_X = slots(torch.arange(start).expand(B, N, start))[row, nodes_M].flatten() if is_deep else None
            groups.append(Group(row, None if is_all else nodes_M, start, slots_X))
    tail_BX = slots(tail_BNT).masked_fill_(is_hidden_BNT, 0).view(B, N * TAIL)
    tail_mask = mask(is_hidden_BNT).view(B * N, 1, 1, TAIL)
    return KeyOrder(groups, unit, tail_BX, tail_mask)


def _order_of_one(position: int, unit: int, dtype: torch.dtype) -> KeyOrder:
    """key_order of plain decoding: one query, which sees every slot."""
    start = max(position - MARGIN, 0) // BLOCK * BLOCK
    tail_1T = torch.arange(start, start + TAIL)[None].clamp_(max=position)
    shown = TAIL - (position + 1 - start)  # of the template: as many zeros as there are keys, then hidden ones
    tail_mask = _mask_template(dtype)[shown : shown + TAIL].view(1, 1, 1, TAIL)
    groups = [Group(0, None, start, None)] if start else []
    return KeyOrder(groups, unit, tail_1T, tail_mask)


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
    if not order.groups:
        return near_XGRE.reshape(B * N, H * E)
    if order.groups[0].nodes_M is None:
        far_XGRE, far_sum_XGR = _first_part(query_XGRE, keys_BGSE, values_BGSE, order.groups[0], order.unit, scaling)
    else:
        far_XGRE, far_sum_XGR = torch.zeros_like(near_XGRE), torch.full_like(near_sum_XGR, -torch.inf)
        for group in order.groups:
            assert group.nodes_M is not None, "only a pass with one group leaves its nodes out"
            places_M = group.nodes_M + group.row * N
            far_XGRE[places_M], far_sum_XGR[places_M] = _first_part(
                query_XGRE[places_M], keys_BGSE, values_BGSE, group, order.unit, scaling
            )
    # A softmax works row by row; exp of the differences would treat the last few numbers of a pass apart.
    share_XGR1 = torch.stack([near_sum_XGR, far_sum_XGR], -1).softmax(-1)[..., 1:]
    merged_XGRE = torch.lerp(near_XGRE.to(share_XGR1.dtype), far_XGRE.to(share_XGR1.dtype), share_XGR1)
    return merged_XGRE.to(query_BNHE.dtype).reshape(B * N, H * E)


def _first_part(
    query_MGRE: Tensor, keys_BGSE: Tensor, values_BGSE: Tensor, group: Group, unit: int, scaling: float
) -> tuple[Tensor, Tensor]:
    """The attention of one group over its blocks: [M, G, R, E], and the logarithm of its sum [M, G, R]."""
    M, G, R, E = query_MGRE.shape
    of_row = [states[group.row : group.row + 1] for states in (keys_BGSE, values_BGSE)]
    if group.slots_X is not None:
        keys, values = (_gathered(states, group.slots_X[None], M) for states in of_row)
        query = query_MGRE
    else:
        keys, values = (states[:, :, : group.num_keys] for states in of_row)
        query = query_MGRE.transpose(0, 1).reshape(1, G, M * R, E)
    rows = query.shape[2]
    if rows % unit:
        query = pad(query, (0, 0, 0, -rows % unit))
    far, far_sum = _flash(query, keys, values, 0.0, False, scale=scaling)
    if group.slots_X is not None:
        return far[:, :, :rows], far_sum[:, :, :rows]
    far_MGRE = far[0, :, :rows].unflatten(1, (M, R)).transpose(0, 1)
    return far_MGRE, far_sum[0, :, :rows].unflatten(1, (M, R)).transpose(0, 1)


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

    cases = [
        (random(1, 1, 256, head_dim), *cancelling(num_keys))
        for num_keys in (16, 48, 96, 192, 208, 384, 400, 512, 528, 720, 1040)
    ]
    lone = (random(40, 1, repeats, head_dim), random(40, 1, TAIL, head_dim), random(40, 1, TAIL, head_dim))
    if not _is_alone(*lone):
        return None
    return next((unit for unit in _UNITS if all(_agrees(unit, *case) for case in cases)), None)


def _agrees(unit: int, query: Tensor, keys: Tensor, values: Tensor) -> bool:
    """Whether rows in other numbers get the bits of `unit` rows."""
    expected, expected_sum = _in_calls(unit, query, keys, values)
    for rows in (2 * unit, 3 * unit, 32, 36, 48, 64, 128, 192, 256):
        if rows % unit == 0:
            found, found_sum = _in_calls(rows, query, keys, values)
            num = found.shape[2]
            if not (torch.equal(found, expected[:, :, :num]) and torch.equal(found_sum, expected_sum[:, :, :num])):
                return False
    return True


def _is_alone(query: Tensor, keys: Tensor, values: Tensor) -> bool:
    """Whether a batch of tails gives the bits of each alone."""
    together = _flash(query, keys, values, 0.0, False)
    apart = [_flash(*[x[at : at + 1] for x in (query, keys, values)], 0.0, False) for at in range(len(query))]
    return all(
        torch.equal(torch.cat(parts), whole) for parts, whole in zip(zip(*apart, strict=True), together, strict=True)
    )


def _in_calls(rows: int, query: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """The attention of `query` in calls of exactly so many rows; a rest is left out."""
    calls = [
        _flash(query[:, :, at : at + rows], keys, values, 0.0, False)
        for at in range(0, query.shape[2] - rows + 1, rows)
    ]
    return torch.cat([call[0] for call in calls], 2), torch.cat([call[1] for call in calls], 2)
