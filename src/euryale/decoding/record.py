"""Records beside a request's text: log-probabilities of its tokens, and the tree of each step.

Probabilities are the base's own: the softmax of its logits as they are, before bias, penalties, bans and temperature.
A request that brings no Record costs nothing, and its text is the same with one.

Letters: M positions, N nodes, V vocabulary, K likeliest tokens, X numbers of a position.
"""

from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from euryale.decoding.drafters.interface import Draft
from euryale.decoding.numbers import is_id, shown
from euryale.errors import UserError

MOST_LOGPROBS = 20  # ranked tokens at a position


class TokenLogprob(NamedTuple):
    """One position of a text."""

    token: int
    logprob: float
    top: list[tuple[int, float]]  # (token, logprob), likeliest first; as many as were asked for

    @staticmethod
    def of(token: int, numbers: Sequence[float], num_top: int) -> "TokenLogprob":
        """numbers: of the position, as in rank_tokens."""
        own, *rest = numbers
        values, ids = rest[: len(rest) // 2], rest[len(rest) // 2 :]
        return TokenLogprob(token, own, [(int(i), p) for i, p in zip(ids[:num_top], values, strict=False)])


class StepNode(NamedTuple):
    """One node of a step's tree; node 0 is the root, parents stand before children."""

    token: int
    parent: int  # index among the nodes; -1 of the root
    depth: int
    rank: int  # place among the children of its parent, 0: the drafter's first choice
    p: float  # the base's probability at the parent; 1 of the root
    is_accepted: bool  # its token is part of the answer; the root counts as accepted


class Bonus(NamedTuple):
    """The base's own token after the last accepted node."""

    token: int
    parent: int
    p: float


class StepView(NamedTuple):
    """One step of a request. Nodes without a candidate are left out."""

    nodes: list[StepNode]
    bonus: Bonus | None  # None where the answer ended before it


class RowDraft(NamedTuple):
    """One row of a Draft, on the host."""

    tokens: list[int]
    parents: list[int]
    is_real: list[bool]  # whether a node carries a candidate

    @staticmethod
    def of(draft: Draft, row: int) -> "RowDraft":
        tokens = draft.tokens_BN[row].tolist()
        parents_RN, is_real_BN = draft.shape.parents_RN, draft.is_real_BN
        is_real = [True] * len(tokens) if is_real_BN is None else is_real_BN[row].tolist()
        return RowDraft(tokens, parents_RN[row % len(parents_RN)].tolist(), is_real)


@dataclass
class Record:
    """What to record of a request, and what was recorded so far. One Record serves one request."""

    num_logprobs: int | None = None  # ranked tokens at each position; 0: the written token alone; None: no logprobs
    wants_prompt: bool = False  # logprobs of the prompt's tokens too
    wants_steps: bool = False
    logprobs: list[TokenLogprob] = field(default_factory=list)  # of the answer's tokens
    # Of the prompt's tokens, where they are wanted; None of the first, which nothing predicts.
    prompt_logprobs: list[TokenLogprob | None] = field(default_factory=lambda: [None])
    step: StepView | None = None  # the last one

    def __post_init__(self) -> None:
        """Raises UserError for a number of logprobs that cannot be."""
        if self.num_logprobs is None:
            return
        if not is_id(self.num_logprobs) or not 0 <= self.num_logprobs <= MOST_LOGPROBS:
            raise UserError(
                f"logprobs must be a whole number from 0 to {MOST_LOGPROBS}; got {shown(self.num_logprobs)}."
            )
        self.num_logprobs = int(self.num_logprobs)

    def read_prompt(self, logits_MV: Tensor, tokens: Sequence[int]) -> None:
        """The next prompt tokens, and the logits from which each follows."""
        self.prompt_logprobs += ranked(logits_MV, tokens, self.num_logprobs or 0)

    def take_step(self, logits_NV: Tensor, draft: RowDraft, path: Sequence[int], gained: Sequence[int]) -> None:
        """One step of the row. path: its accepted nodes, from the root. gained: their tokens, and the bonus token."""
        if self.num_logprobs is not None:
            self.logprobs += ranked(logits_NV[list(path)], gained, self.num_logprobs)
        if self.wants_steps:
            self.step = view(logits_NV, draft, path, gained[-1])

    def take_ranked(self, tokens: Sequence[int], numbers_MX: Sequence[Sequence[float]]) -> None:
        """The answer's next tokens. numbers_MX: of their positions (rank_tokens), from a step that ranked enough."""
        if self.num_logprobs is not None:
            pairs = zip(tokens, numbers_MX, strict=True)
            self.logprobs += [TokenLogprob.of(token, numbers, self.num_logprobs) for token, numbers in pairs]

    def cut(self, num_tokens: int, num_kept: int) -> None:
        """Forgets what comes after the end of the answer.

        num_tokens: of the answer so far. num_kept: of the last step's tokens that are part of it.
        """
        del self.logprobs[num_tokens:]
        if self.step is not None:
            nodes = [node._replace(is_accepted=node.is_accepted and node.depth <= num_kept) for node in self.step.nodes]
            num_gained = sum(node.is_accepted for node in self.step.nodes)
            self.step = StepView(nodes, self.step.bonus if num_kept == num_gained else None)


def record_step(
    records: Sequence[Record | None],
    broken: Container[int],
    logits_BNV: Tensor,
    draft: Draft,
    paths: Sequence[Sequence[int]],
    gained: Sequence[Sequence[int]],
) -> None:
    """Tells the rows' records about a step. logits_BNV: the base's own. broken: rows that no token can follow."""
    for row, record in enumerate(records):
        if record is not None and row not in broken:
            record.take_step(logits_BNV[row], RowDraft.of(draft, row), paths[row], gained[row])


def ranked(logits_MV: Tensor, tokens: Sequence[int], num_top: int) -> list[TokenLogprob]:
    """Logprobs of these tokens and of the likeliest ones. Each position is computed by itself: no other changes it."""
    numbers_MX = rank_tokens(logits_MV, torch.tensor(tokens, device=logits_MV.device), num_top > 0).tolist()
    return [TokenLogprob.of(token, numbers, num_top) for token, numbers in zip(tokens, numbers_MX, strict=True)]


def rank_tokens(logits_xV: Tensor, tokens_x: Tensor, has_top: bool) -> Tensor:
    """The numbers of TokenLogprob at every position, float64 [..., 1 + 2 K]: the logprob of its token, and with has_top
    those of the K likeliest, then their ids.

    K is the same whatever is asked for, so that equals come in the same order.
    """
    log_p_xV = logits_xV.to(torch.promote_types(logits_xV.dtype, torch.float32)).log_softmax(-1)
    own_x1 = log_p_xV.gather(-1, tokens_x[..., None])
    if not has_top:
        return own_x1.double()
    values_xK, ids_xK = log_p_xV.topk(num_ranked(log_p_xV.shape[-1]))
    return torch.cat([own_x1.double(), values_xK.double(), ids_xK.double()], -1)


def num_ranked(vocab_size: int) -> int:
    """K of rank_tokens."""
    return min(MOST_LOGPROBS, vocab_size)


def view(logits_NV: Tensor, draft: RowDraft, path: Sequence[int], bonus: int) -> StepView:
    """The tree of a step with the base's probability of every node's token."""
    parents = [0, *draft.parents[1:]]
    p_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32)).softmax(-1)
    p_N = p_NV[parents, list(draft.tokens)].tolist()
    nodes = [StepNode(draft.tokens[0], -1, 0, 0, 1.0, True)]
    places = {0: 0}  # of the nodes that carry a candidate
    num_children = [0] * len(parents)
    for node in range(1, len(parents)):
        if draft.is_real[node] and parents[node] in places:
            parent = parents[node]
            places[node] = len(nodes)
            depth, rank = nodes[places[parent]].depth + 1, num_children[parent]
            nodes.append(StepNode(draft.tokens[node], places[parent], depth, rank, p_N[node], node in path))
            num_children[parent] += 1
    return StepView(nodes, Bonus(bonus, places[path[-1]], float(p_NV[path[-1], bonus])))
