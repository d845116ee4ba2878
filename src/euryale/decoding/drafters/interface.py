"""Interface between the decode step and a drafter.

The step gives a DraftInput. The drafter answers with a Draft: N tokens, and the Shape of the tree that they make.
N is the same in every step, or one of a few sizes; tokens, and for some drafters parents, differ from step to step
and from row to row. Fewer candidates than nodes is a mask: an empty node is computed with the others, never accepted.

Letters: B batch, R rows of a shape (1 when all rows of the batch share it, else B), N nodes, P depths, D width,
V vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from euryale.decoding.device_text import DeviceText
from euryale.decoding.tree.tree import Shape


class DraftInput(NamedTuple):
    """What is known when a step begins."""

    hidden_BD: Tensor  # the base's final state at the last committed token, then those of the drafter's `layers`
    root_B: Tensor  # the token after it, decided but not in the cache yet
    noise_BPV: Tensor | None = None  # keyed noise of the positions after the root's, nearest first; None at T = 0
    temperature_B11: Tensor | float = 1.0  # rows at T = 0 have no noise and count as 1
    texts: Sequence[Sequence[int]] = ()  # each row's prompt and answer so far, its root last
    targets: Sequence[Sequence[int]] = ()  # the base's token after each node of a row's last draft; new rows: none
    process: Callable[[Tensor, Tensor | None, bool], Tensor] | None = None  # scores [B, P, V] of these ids (None: all)
    # as the settings of the rows change them; whether they are of the token after the root (LogitsProcessors.guess)
    draws: bool = False  # the noise is the drafter's own: candidates are draws, and the draft says of what (log_q_BNV)
    # In a step on the device, where there are no lists:
    text: DeviceText | None = None  # for drafters that search it
    lengths_B: Tensor | None = None  # tokens before the root
    num_slots: int = 0  # more than any of them: of texts and memories, no more needs to be looked at


class Draft(NamedTuple):
    """What a step is to verify."""

    tokens_BN: Tensor  # node 0 is the root
    shape: Shape
    is_real_BN: Tensor | None = None  # False where a node carries no candidate; None: every node does
    # The log of the distribution that each node's children were drawn from without replacement, in the order of the
    # nodes; None: they were named with certainty. Only a drafter that was asked to draw gives it.
    log_q_BNV: Tensor | None = None


class Drafter(Protocol):
    """Fills at most num_nodes nodes, at most max_depth below the root. Siblings carry different tokens.

    A drafter inherits what is the same for drafters that remember nothing of a row.
    """

    num_nodes: int
    max_depth: int
    layers: tuple[int, ...] = ()  # of the base, numbered from 1, whose outputs it reads after the last one's
    reads_text: bool = False  # whether `read` is to be called, and in a step on the device read_on_device
    # Whether `propose` reads nothing but tensors of the DraftInput, on the device alone: a CUDA graph can hold it.
    is_on_device: bool = False
    searches_text: bool = False  # whether it needs DraftInput.text there

    def begin(self, num_rows: int, num_slots: int) -> "Drafter":
        """The drafter of at most num_rows rows of num_slots tokens, none of which lives; itself if it has no memory."""
        return self

    def add(self, row: int) -> None:
        """Makes `row` live with a new text: an ended row's place, or the next after the last."""
        return None

    def swap_remove(self, row: int) -> None:
        """Removes an ended row; the last row takes its slot."""
        return None

    def read(self, row: int, states_BTC: Tensor, tokens: Sequence[Sequence[int]], starts: Sequence[int]) -> None:
        """Rows `row` and those after it: the base's states from position starts[b] on, as in DraftInput.hidden_BD.

        tokens[b] are the tokens after these positions, one each; what states_BTC holds beyond them means nothing.
        What was read before of a row from its start on is forgotten.
        """
        return None

    def read_on_device(self, states_BPC: Tensor, tokens_BP: Tensor, starts_B: Tensor) -> None:
        """`read` of all live rows without a value that the host reads; as many tokens as the longest path may have.

        What is written after a row's path is overwritten by later steps, or never read.
        """
        return None

    def have_read(self, lengths: Sequence[int]) -> None:
        """Steps on the device have read the live rows' texts up to these lengths."""
        return None

    def sizes(self) -> "Mapping[int, Drafter]":
        """What draws up trees of each number of nodes in steps on the device."""
        return {self.num_nodes: self}

    def choose(self, num_rows: int) -> int:
        """Which of `sizes` the next step of so many rows takes."""
        return self.num_nodes

    def learn(self, num_nodes: int, gains: Sequence[int]) -> None:
        """What a step of this size gained, by row that gained anything: known one step late where steps run ahead."""
        return None

    def propose(self, draft_input: DraftInput) -> Draft: ...


def states_along(hidden_BND: Tensor, paths: Sequence[Sequence[int]]) -> Tensor:
    """The states of the nodes of each row's path, as many as the longest has."""
    longest = max(map(len, paths))
    if all(path[-1] == len(path) - 1 for path in paths):  # the first nodes, as of a chain
        return hidden_BND[:, :longest]
    index_BN = torch.tensor([[*path, *[0] * (longest - len(path))] for path in paths], device=hidden_BND.device)
    return hidden_BND[torch.arange(len(paths), device=hidden_BND.device)[:, None], index_BN]
