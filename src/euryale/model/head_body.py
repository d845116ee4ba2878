"""What is between a head's input and its answer? One of two residual blocks (heads.py has their formulas).

Letters: M positions, J known tokens, D width, C numbers of the features, F inner width.
"""

from torch import Tensor, nn


class HeadBody(nn.Module):
    """One residual block; the first of a head also reads the known tokens, and may read several states of the base."""

    def __init__(self, hidden_size: int, num_tokens: int, body: str, width: float, num_states: int = 1) -> None:
        super().__init__()
        inner = hidden_size if body == "resblock" else max(8, int(hidden_size * width))
        self.hidden_in = nn.Linear(num_states * hidden_size, inner)
        self.tokens_in = nn.Linear(num_tokens * hidden_size, inner, bias=False) if num_tokens else None
        self.out = nn.Linear(inner, hidden_size, bias=False) if body == "mlp" else None
        self.reset()

    def reset(self) -> None:
        """Makes the block the identity: the matrix next to the residual sum starts at zero."""
        nn.init.zeros_(self.hidden_in.bias)
        if self.out is not None:
            nn.init.zeros_(self.out.weight)
            return
        nn.init.zeros_(self.hidden_in.weight)
        if self.tokens_in is not None:
            nn.init.zeros_(self.tokens_in.weight)

    def finish(self, x_MD: Tensor, inner_MF: Tensor) -> Tensor:
        """Adds the block's answer to x_MD, given the sum of its input matrices [M, F]."""
        inner_MF = nn.functional.silu(inner_MF)
        return x_MD + (inner_MF if self.out is None else self.out(inner_MF))

    def forward(self, x_MD: Tensor, states_MC: Tensor, tokens: Tensor | None) -> Tensor:
        """x_MD [M, D], what is read [M, C], and the embeddings of the known tokens [M, J x D] or None -> [M, D]."""
        inner_MF = self.hidden_in(states_MC)
        if self.tokens_in is not None:
            assert tokens is not None, "this head reads known tokens"
            inner_MF = inner_MF + self.tokens_in(tokens)
        return self.finish(x_MD, inner_MF)
