"""EAGLE: one layer that guesses any number of tokens ahead.

It stands at a position of the text and reads the base's states there next to the embedding of the next token. What it
answers are the states one token later: the first of them goes through the output matrix, and all of them are what the
same layer reads next, with the token that was guessed (Li et al. 2024, EAGLE; 2025, EAGLE-3: it is trained on states
of its own). While it reads it looks back, with attention, at everything that it has read before.

    x         [s_1; ...; s_S; e]    S states and an embedding, each at root-mean-square 1
    q, k, v   three matrices of x; q and k turned by their position
    a         attention of q over the k, v of true states up to here, and of the path of guesses that leads here
    s        <- s + W_out SiLU(W x + b + W_a a)

That is a Hydra head (heads.py) which attends to text and path, where one of them is told the path's embeddings side by
side. Keys of true states depend on the text alone, so a prompt is read by two products, and guesses leave no
keys. W_out starts at zero: an untrained layer is the base.

Letters: B batch, T tokens, Q queries, S key slots, J guesses of a path, H attention heads, E head width, D width, C
numbers of all states, F inner width.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from euryale.kernels.rms_norm import normalise

_HEAD_WIDTH = 128  # at most; narrow bases get four attention heads
_ROPE_BASE = 10_000.0


class Entry(NamedTuple):
    """What the layer makes of what it reads, before it looks around."""

    query_xHE: Tensor
    key_value_x2HE: Tensor
    inner_xF: Tensor


class EagleLayer(nn.Module):
    """One layer for all depths."""

    def __init__(self, hidden_size: int, num_states: int, width: float) -> None:
        super().__init__()
        self.hidden_size, self.num_states = hidden_size, num_states
        self.num_attention_heads, self.head_width = attention_shape(hidden_size)
        reads = (num_states + 1) * hidden_size
        attended = self.num_attention_heads * self.head_width
        inner = max(8, int(hidden_size * width))
        self.query = nn.Linear(reads, attended, bias=False)
        self.key = nn.Linear(reads, attended, bias=False)
        self.value = nn.Linear(reads, attended, bias=False)
        self.inner = nn.Linear(reads, inner)
        self.attended_in = nn.Linear(attended, inner, bias=False)
        self.out = nn.Linear(inner, num_states * hidden_size, bias=False)
        nn.init.zeros_(self.inner.bias)
        nn.init.zeros_(self.out.weight)

    def reading(self, states_xC: Tensor, embedded_xD: Tensor) -> Tensor:
        """States and a `normalise`d embedding as the layer reads them, side by side."""
        states_xSD = states_xC.unflatten(-1, (self.num_states, self.hidden_size))
        return torch.cat([normalise(states_xSD).flatten(-2), embedded_xD], -1)

    def enter(self, x_xC: Tensor, turn_x2E: Tensor) -> Entry:
        """`turn_x2E` [..., 2, E]: the `rotations` of the positions."""
        query, key, value = (
            matrix(x_xC).unflatten(-1, (self.num_attention_heads, self.head_width))
            for matrix in (self.query, self.key, self.value)
        )
        key_value = torch.stack([turned(key, turn_x2E), value], -3)
        return Entry(turned(query, turn_x2E), key_value, self.inner(x_xC))

    def leave(self, states_xC: Tensor, inner_xF: Tensor, attended_xA: Tensor) -> Tensor:
        """The states one token later."""
        return states_xC + self.out(nn.functional.silu(inner_xF + self.attended_in(attended_xA)))

    def unroll(
        self,
        states_BTC: Tensor,
        embedded_BTD: Tensor,
        positions_BT: Tensor,
        documents_BT: Tensor,
        num_depths: int,
    ) -> list[Tensor]:
        """What the layer answers when it goes `num_depths` tokens ahead from every position, [B, T, C] each.

        The tokens ahead are those of the text. Where a document ends sooner the answer means nothing, and no other
        position has read it: position t's keys are read from t on.
        """
        seen_BTT = documents_BT[:, :, None] == documents_BT[:, None, :]
        is_seen_B1TT = (seen_BTT & torch.ones_like(seen_BTT[0]).tril())[:, None]
        depths: list[Tensor] = []
        path: list[Tensor] = []
        text_B2HTE: Tensor | None = None
        for depth in range(num_depths):
            x_BTC = self.reading(states_BTC, embedded_BTD.roll(-1 - depth, 1))
            entry = self.enter(x_BTC, rotations(positions_BT + depth, self.head_width))
            if text_B2HTE is None:
                text_B2HTE = entry.key_value_x2HE.permute(0, 2, 3, 1, 4)
            else:
                path.append(entry.key_value_x2HE)
            path_BTJ2HE = torch.stack(path, 2) if path else None
            attended = attend(entry.query_xHE, text_B2HTE[:, 0], text_B2HTE[:, 1], is_seen_B1TT, path_BTJ2HE)
            states_BTC = self.leave(states_BTC, entry.inner_xF, attended)
            depths.append(states_BTC)
        return depths

    def blocks_of_matrices(self) -> dict[str, int]:
        """The matrices by name, and how many vectors each reads side by side."""
        reads = self.num_states + 1
        return {"query": reads, "key": reads, "value": reads, "inner": reads, "attended_in": 1, "out": 1}


def attention_shape(hidden_size: int) -> tuple[int, int]:
    """How many attention heads the layer has for a base of this width, and how wide they are (an even number)."""
    head_width = min(_HEAD_WIDTH, max(2, hidden_size // 8 * 2))
    return max(1, hidden_size // head_width), head_width


def attend(
    query_BQHE: Tensor,
    keys_BHSE: Tensor,
    values_BHSE: Tensor,
    is_seen_B1QS: Tensor | None,
    path_BQJ2HE: Tensor | None,
) -> Tensor:
    """Every query over the text's keys that it sees (None: all), and over those of its own path; [B, Q, H x E]."""
    S, scale = keys_BHSE.shape[2], query_BQHE.shape[-1] ** -0.5
    query_BQHE = query_BQHE * scale
    scores_BHQS = query_BQHE.transpose(1, 2) @ keys_BHSE.mT
    if is_seen_B1QS is not None:
        scores_BHQS = scores_BHQS.masked_fill(~is_seen_B1QS, -torch.inf)
    if path_BQJ2HE is None:
        return (scores_BHQS.softmax(-1) @ values_BHSE).transpose(1, 2).flatten(2)
    scores_BQJH = (query_BQHE[:, :, None] * path_BQJ2HE[:, :, :, 0]).sum(-1)
    share_BHQM = torch.cat([scores_BHQS, scores_BQJH.permute(0, 3, 1, 2).to(scores_BHQS.dtype)], -1).softmax(-1)
    of_text_BQHE = (share_BHQM[..., :S] @ values_BHSE).transpose(1, 2)
    of_path_BQJH1 = share_BHQM[..., S:].permute(0, 2, 3, 1)[..., None]
    return (of_text_BQHE + (of_path_BQJH1 * path_BQJ2HE[:, :, :, 1]).sum(2)).flatten(2).to(query_BQHE.dtype)


def rotations(positions_x: Tensor, head_width: int) -> Tensor:
    """[..., 2, E]: cosines, and sines with the sign of the half that they go to (Su et al. 2021, rotary positions)."""
    half = torch.arange(head_width // 2, device=positions_x.device)
    angles = positions_x[..., None].float() * _ROPE_BASE ** (-2.0 * half / head_width)
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)], -2)


def turned(vectors_xHE: Tensor, turn_x2E: Tensor) -> Tensor:
    """Queries or keys, turned by their positions' `rotations`."""
    cos_x1E, sin_x1E = turn_x2E[..., :1, :], turn_x2E[..., 1:, :]
    halves_swapped = vectors_xHE.roll(vectors_xHE.shape[-1] // 2, -1)
    return (vectors_xHE * cos_x1E + halves_swapped * sin_x1E).to(vectors_xHE.dtype)
