"""Proof on this machine that exact_attention's sums are the same in every pass.

Each fact that exact_attention relies on is tried for the row counts, widths and key counts of decoding, on numbers of
which pairs cancel: what is left of a sum is its rounding, which shows any other order.

Letters: E head width, M rows, K keys.
"""

from functools import cache

import torch
from torch import Tensor

from euryale.base.attention_plan import STEP, Blocks

_UNITS = (4, 8, 16, 32)
_KEYS = ((128, 192), (64, 128), (32, 64))  # of a block; that a product may add
_ROWS = (1, 2, 3, 4, 5, 6, 9, 12, 18, 36, 48, 64, 192)  # in units
_MOST_ROWS = 576
_WIDTHS = (16, 32, 48, 128, 144, 208, 528, 1040)
UNPROVEN = Blocks(4, 128, 192)


@cache
@torch.no_grad()
def proven_blocks(head_dim: int, threads: int) -> Blocks | None:
    """How sums are cut so that each query gets the same bits in every pass; None: no way was found.

    `threads` is torch's number of threads: another number divides the work in another way.
    """
    generator = torch.Generator().manual_seed(0)
    keys_KE = _cancelling(_WIDTHS[-1], head_dim, generator)
    query_ME = _cancelling(head_dim, _MOST_ROWS, generator).T.contiguous()
    for unit in _UNITS:
        if not _scores_agree(unit, query_ME, keys_KE):
            continue
        for keys, most in _KEYS:
            if _sums_agree(unit, most, keys_KE, generator):
                return Blocks(unit, keys, most)
    return None


def _cancelling(num: int, width: int, generator: torch.Generator) -> Tensor:
    """[num, width]: half of the lines are the negative of another."""
    half_XE = torch.randn(-(-num // 2), width, generator=generator, dtype=torch.float32)
    return torch.cat([half_XE, -half_XE])[torch.randperm(2 * len(half_XE), generator=generator)[:num]]


def _row_counts(unit: int) -> list[int]:
    return [unit * count for count in _ROWS if unit * count <= _MOST_ROWS]


def _scores_agree(unit: int, query_ME: Tensor, keys_KE: Tensor) -> bool:
    """Whether scores and their softmax are those of the fewest rows, whatever the rows, columns and batch."""
    mask_W = torch.zeros(1, 1, len(keys_KE), dtype=torch.float32)

    narrow_MW = torch.baddbmm(mask_W[..., :STEP], query_ME[None], keys_KE[None, :STEP].transpose(1, 2), alpha=0.3)[0]

    def scores(rows: Tensor, width: int, batch: int) -> Tensor:
        keys_BEW = keys_KE[None, :width].expand(batch, -1, -1).contiguous().transpose(1, 2)
        queries = rows[None].expand(batch, -1, -1).contiguous()
        return torch.baddbmm(mask_W[..., :width], queries, keys_BEW, alpha=0.3)

    blocks_XME = query_ME.view(-1, unit, query_ME.shape[1])
    for width in _WIDTHS:
        keys_BEW = keys_KE[None, :width].expand(len(blocks_XME), -1, -1).transpose(1, 2)
        expected_MW = torch.baddbmm(mask_W[..., :width], blocks_XME, keys_BEW, alpha=0.3).flatten(0, 1)
        shares_MW = expected_MW.softmax(-1)
        for count in _row_counts(unit):
            found_MW = scores(query_ME[:count], width, 1 + count % 3)[-1]
            wider_MW = torch.full((count, width + 3 * STEP), -torch.inf, dtype=torch.float32)
            wider_MW[:, :width] = found_MW
            torch.softmax(wider_MW, -1, out=wider_MW)
            if not (
                torch.equal(found_MW, expected_MW[:count])
                and torch.equal(found_MW[:, :STEP], narrow_MW[:count])
                and torch.equal(wider_MW[:, :width], shares_MW[:count])
            ):
                return False
    return True


def _sums_agree(unit: int, most: int, values_KE: Tensor, generator: torch.Generator) -> bool:
    """Whether keys with a weight of 0 change nothing, wherever they stand, for any number of rows."""
    rows = _row_counts(unit)
    for num in (1, 3, STEP, 37, 64, 100, most - STEP, most):
        if num > most:
            continue
        weights_MK = torch.randn(rows[-1], num, generator=generator, dtype=torch.float32)
        stop = -(-num // STEP) * STEP
        packed_MK = torch.cat([weights_MK, weights_MK.new_zeros(rows[-1], stop - num)], 1)
        blocks_XMK = packed_MK.view(-1, unit, stop)
        expected_ME = torch.bmm(blocks_XMK, values_KE[None, :stop].expand(len(blocks_XMK), -1, -1)).flatten(0, 1)
        for at, count in enumerate(rows):
            total = min(most, stop + at * 7)
            places = torch.randperm(total, generator=generator)[:num].sort().values
            spread_MK = torch.zeros(count, total, dtype=torch.float32)
            moved_KE = torch.randn(total, values_KE.shape[1], dtype=torch.float32)
            spread_MK[:, places], moved_KE[places] = weights_MK[:count], values_KE[:num]
            found = torch.bmm(spread_MK[None], moved_KE[None])[0]
            onto = torch.zeros_like(found)[None].baddbmm_(spread_MK[None], moved_KE[None])[0]
            if not (torch.equal(found, expected_ME[:count]) and torch.equal(onto, expected_ME[:count])):
                return False
    return True
