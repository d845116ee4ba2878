"""What do the step and a drafter say to each other?

The step says what is Known. The drafter answers with a Draft: N tokens, and the Shape in which they hang together.
N is the same in every step, or one of a few sizes; tokens, and for some drafters parents, differ from step to step
and from row to row. Fewer candidates than nodes is a mask: an empty node is computed with the others, never accepted.

Letters: B batch, R rows of a shape (1 when all rows of the batch share it, else B), N nodes, P depths, D width,
V vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from euryale.decoding.tree.tree import Shape


class Known(NamedTuple):
    """What is known when a step begins."""

    hidden_BD: Tensor  # the base's final state at the last committed token, and those of the drafter's `layers` behind
    root_B: Tensor  # the token after it, decided but not in the cache yet
    noise_BPV: Tensor | None  # keyed noise of the positions after the root's, nearest first; None at T = 0
    temperature: float | Tensor  # [B, 1, 1] where rows differ; those at T = 0 have no noise and count as 1
    ids: Sequence[Sequence[int]] = ()  # each row's prompt and answer so far, its root last
    targets: Sequence[Sequence[int]] = ()  # what the base chose behind each node of a row's last draft; new rows: none
    process: Callable[[Tensor, Tensor | None], Tensor] | None = None  # scores [B, P, V] of these ids (None: all) as the
    # settings of the rows change them: bias, bans, penalties of the text so far
    draws: bool = False  # the noise is the drafter's own: candidates are draws, and the draft says of what (log_q_BNV)


class Draft(NamedTuple):
    """What a step is to verify."""

    tokens_BN: Tensor  # node 0 is the root
    shape: Shape
    is_real_BN: Tensor | None = None  # False where a node carries no candidate; None: every node does
    # The log of the distribution that each node's children were drawn from without replacement, in the order of the
    # nodes; None: they were named with certainty. Only a drafter that was asked to draw gives it.
    log_q_BNV: Tensor | None = None

    def of_rows(self, rows_G: Tensor) -> "Draft":
        """The draft of some of its rows."""
        shape = self.shape if len(self.shape.parents_RN) == 1 else Shape(*(part[rows_G] for part in self.shape))
        is_real_GN = None if self.is_real_BN is None else self.is_real_BN[rows_G]
        log_q_GNV = None if self.log_q_BNV is None else self.log_q_BNV[rows_G]
        return Draft(self.tokens_BN[rows_G], shape, is_real_GN, log_q_GNV)


def log_q(scores_BPV: Tensor, known: Known, level: int, ids: Tensor | None) -> Tensor:
    """The log of what candidates with these scores were drawn from, [B, P, V], over the whole vocabulary.

    scores = log q + Gumbel noise, so their best are a draw from q without replacement. `ids` are the tokens that the
    scores stand for; None: all.
    """
    assert known.noise_BPV is not None, "drawing needs noise"
    noise_BV = known.noise_BPV[:, level]
    if ids is None:
        return (scores_BPV - noise_BV[:, None]).log_softmax(-1)
    log_q_BPV = scores_BPV.new_full((*scores_BPV.shape[:2], noise_BV.shape[-1]), -torch.inf)
    log_q_BPV[..., ids] = (scores_BPV - noise_BV[:, ids][:, None]).log_softmax(-1)
    return log_q_BPV


def with_noise(scores_BPV: Tensor, known: Known, level: int, ids: Tensor | None) -> Tensor:
    """What candidates `level` + 1 tokens behind the root are ranked by: at T > 0 logits / T and their position's noise.

    `ids` are the tokens that the scores stand for; None: all.
    """
    if known.process is not None:
        scores_BPV = known.process(scores_BPV, ids)
    if known.noise_BPV is None:
        return scores_BPV
    noise_BV = known.noise_BPV[:, level]
    if ids is not None:
        noise_BV = noise_BV[:, ids]
    return scores_BPV.float() / known.temperature + noise_BV[:, None]


class TextReader(Protocol):
    """Is told what the base says of every token that is committed."""

    def read(self, row: int, states_BTC: Tensor, tokens: Sequence[Sequence[int]], starts: Sequence[int]) -> None:
        """Rows `row` and those behind it: the base's states from position starts[b] on, as in Known.hidden_BD.

        tokens[b] are the tokens behind these positions, one each; what states_BTC holds beyond them means nothing.
        What was read before of a row from its start on is forgotten.
        """
        ...


class Drafter(Protocol):
    """Fills at most num_nodes nodes, at most max_depth below the root. Siblings carry different tokens."""

    num_nodes: int
    max_depth: int
    layers: tuple[int, ...]  # of the base whose outputs it reads beside the last, numbered from 1
    reader: TextReader | None  # who follows the text as it is committed; None: nobody

    def begin(self, num_rows: int, num_slots: int) -> "Drafter":
        """The drafter of at most num_rows rows of num_slots tokens, none of which lives; itself if it has no memory."""
        ...

    def admit(self, row: int) -> None:
        """A new text takes this row: the place of one that ended, or the next behind the last."""
        ...

    def retire(self, row: int) -> None:
        """The row has ended; the last one goes on in its place."""
        ...

    def propose(self, known: Known) -> Draft: ...
