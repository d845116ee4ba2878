"""How does a head say something of its own through the base's output matrix, without a matrix of its own?

By a correction of low rank (as LoRA, Hu et al. 2022): W x + B A x, with the base's frozen W [V, D], A [R, D] and
B [V, R]. W is made for the next token, and a guess of a later one is spread otherwise; a whole matrix of the head's own
would take D / R times the memory, and as much reading a draft. B starts at zero, so an untrained head says what W says.

Letters: D width, V vocabulary, R rank.
"""

import torch
from torch import Tensor, nn


class Correction(nn.Module):
    """The two matrices of one head."""

    def __init__(self, hidden_size: int, vocab_size: int, rank: int) -> None:
        super().__init__()
        self.narrow = nn.Linear(hidden_size, rank, bias=False)
        self.widen = nn.Linear(rank, vocab_size, bias=False)
        nn.init.zeros_(self.widen.weight)

    def beside(self, x_MD: Tensor) -> Tensor:
        """x and A x side by side, [M, D + R]: what W and B beside each other read."""
        return torch.cat([x_MD, self.narrow(x_MD)], -1)


def corrected(weight_VD: Tensor, widen_VR: Tensor, narrow_RD: Tensor) -> Tensor:
    """W + B A, the one matrix that both are together; in W's dtype."""
    wide = torch.promote_types(weight_VD.dtype, torch.float32)
    return (weight_VD.to(wide) + widen_VR.to(wide) @ narrow_RD.to(wide)).to(weight_VD.dtype)


def as_one(parts: tuple[Tensor, ...]) -> Tensor:
    """Output matrices that lie side by side as one, [V, D + R]; a single one as it is."""
    return parts[0] if len(parts) == 1 else torch.cat([part.to(parts[0].dtype) for part in parts], 1)
