"""Residual blocks between what a head reads and its output matrix.

The block's last matrix starts at zero. With `residual` an untrained head then is the base: a good start where the base
hesitates, and far off where it is sure of the next token, for what the head takes for a later one is then surely wrong
and has to be unlearned. Without, the first block of an mlp answers alone, 0 instead of x, and an untrained head holds
all tokens for equally likely (measured in docs/recipes.md).

Letters: M positions, J known tokens, D width, C numbers of the states that are read, F inner width.
"""

import torch
from torch import Tensor, nn

from euryale.heads.config import FEATURES, HeadsConfig


class HeadBody(nn.Module):
    """One residual block; the first of a head also reads the known tokens, and may read several states of the base."""

    def __init__(
        self,
        hidden_size: int,
        num_tokens: int,
        body: str,
        width: float,
        num_states: int = 1,
        residual: bool = True,
    ) -> None:
        super().__init__()
        self.residual = residual or body == "resblock"
        inner = hidden_size if body == "resblock" else max(8, int(hidden_size * width))
        self.hidden_in = nn.Linear(num_states * hidden_size, inner)
        self.tokens_in = nn.Linear(num_tokens * hidden_size, inner, bias=False) if num_tokens else None
        self.out = nn.Linear(inner, hidden_size, bias=False) if body == "mlp" else None
        self.reset()

    def reset(self) -> None:
        """Makes the block add nothing: its last matrix starts at zero."""
        nn.init.zeros_(self.hidden_in.bias)
        if self.out is not None:
            nn.init.zeros_(self.out.weight)
            return
        nn.init.zeros_(self.hidden_in.weight)
        if self.tokens_in is not None:
            nn.init.zeros_(self.tokens_in.weight)

    def finish(self, x_MD: Tensor, inner_MF: Tensor) -> Tensor:
        """The block's answer, added to x_MD if it is residual, given the sum of its input matrices [M, F]."""
        inner_MF = nn.functional.silu(inner_MF)
        answer_MD = inner_MF if self.out is None else self.out(inner_MF)
        return x_MD + answer_MD if self.residual else answer_MD

    def forward(self, x_MD: Tensor, states_MC: Tensor, tokens: Tensor | None) -> Tensor:
        """x_MD [M, D], what is read [M, C], and the embeddings of the known tokens [M, J x D] or None -> [M, D]."""
        inner_MF = self.hidden_in(states_MC)
        if self.tokens_in is not None:
            assert tokens is not None, "this head reads known tokens"
            inner_MF = inner_MF + self.tokens_in(tokens)
        return self.finish(x_MD, inner_MF)


def blocks_of_a_head(config: HeadsConfig, hidden_size: int, k: int) -> nn.ModuleList:
    """The blocks of head k: the first reads all that is known, the others the answer of the one before them."""
    num_states, num_tokens = FEATURES[config.features], config.num_tokens_read(k)
    first = HeadBody(hidden_size, num_tokens, config.body, config.width, num_states, config.residual)
    others = (HeadBody(hidden_size, 0, config.body, config.width) for _ in range(config.num_layers - 1))
    return nn.ModuleList([first, *others])


class Correction(nn.Module):
    """The two matrices of one head."""

    def __init__(self, hidden_size: int, vocab_size: int, rank: int) -> None:
        super().__init__()
        self.narrow = nn.Linear(hidden_size, rank, bias=False)
        self.widen = nn.Linear(rank, vocab_size, bias=False)
        nn.init.zeros_(self.widen.weight)

    def appended(self, x_MD: Tensor) -> Tensor:
        """x and A x side by side, [M, D + R]: what W and B side by side read."""
        return torch.cat([x_MD, self.narrow(x_MD)], -1)


def corrected(weight_VD: Tensor, widen_VR: Tensor, narrow_RD: Tensor) -> Tensor:
    """W + B A, the one matrix that both are together; in W's dtype."""
    wide = torch.promote_types(weight_VD.dtype, torch.float32)
    return (weight_VD.to(wide) + widen_VR.to(wide) @ narrow_RD.to(wide)).to(weight_VD.dtype)


def as_one(parts: tuple[Tensor, ...]) -> Tensor:
    """Output matrices that lie side by side as one, [V, D + R]; a single one as it is."""
    return parts[0] if len(parts) == 1 else torch.cat([part.to(parts[0].dtype) for part in parts], 1)
