"""What does a smaller model with the same tokenizer propose?

It reads the text as the base does, in an arena of its own, and is asked level by level: the last token's state gives
the first candidates, then all parents of a level go through together. What was drafted is forgotten by setting the
lengths back; what was accepted is read again as text, at most a few tokens. Candidates are ranked with the noise that
the verifier will draw with (see drafter_heads.py).

Letters: B batch, R rows that differ (1 or B), T new tokens, N tokens of a forward, P parents of a level, M nodes that
were drafted so far and the ones being drafted, V vocabulary, D width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from euryale.base.base import Base, load_base
from euryale.base.config import BaseConfig
from euryale.decoding.drafters.interface import Draft, Known, TextReader, log_q, with_noise
from euryale.decoding.drafters.tree_growth import MOST_PARENTS, Growth, build_growth
from euryale.decoding.kv_cache import Arena, draw_mask
from euryale.decoding.tree.tree import Budget, Tree
from euryale.errors import UserError

_MOST_NEW = 512  # tokens read at once: bounds the memory of a long prompt


def load_draft_base(path: str | None, base: Base) -> Base:
    """Loads the drafting model beside the base, in its dtype and on its device.

    Raises UserError: no path, a model that cannot be loaded, another tokenizer.
    """
    if path is None:
        raise UserError(
            "drafter=model needs a smaller model with the same tokenizer. Give drafter.path=FOLDER_OR_HUB_ID."
        )
    dtype = str(base.dtype).removeprefix("torch.")
    try:
        draft_base = load_base(BaseConfig(path=path, dtype=dtype, device=str(base.device)))
    except UserError as error:
        raise UserError(str(error).replace("base.path=", "drafter.path=")) from error
    check_same_tokens(draft_base, base)
    return draft_base


def check_same_tokens(draft_base: Base, base: Base) -> None:
    """Raises UserError unless both models mean the same by every token id.

    Output matrices may be padded to different sizes; ids behind the tokenizer's are never drafted.
    """
    own, theirs = (model.tokenizer.get_vocab() for model in (base, draft_base))
    if own != theirs:
        different = sorted(token for token in own.keys() | theirs.keys() if own.get(token) != theirs.get(token))
        raise UserError(
            f"drafter.path={draft_base.path} has another tokenizer than {base.path}: {len(theirs)} tokens against "
            f"{len(own)}, and {len(different)} of them differ, {different[0]!r} for one. "
            "Give a smaller model of the same family."
        )
    for model in (base, draft_base):
        if model.vocab_size <= max(own.values()):
            raise UserError(
                f"{model.path} has an output matrix of {model.vocab_size} rows for a tokenizer of {len(own)} tokens. "
                "Give a model whose vocabulary is whole."
            )


class ModelDrafter:
    """A smaller model on a fixed tree, or on the one that looks best in each step."""

    layers: tuple[int, ...] = ()
    reader: TextReader | None = None

    def __init__(self, base: Base, draft_base: Base, tree: Tree | Budget) -> None:
        self._draft_base = draft_base
        self._num_scores = min(base.vocab_size, draft_base.vocab_size)
        if isinstance(tree, Tree):
            tree = tree.pruned(tree.max_depth, self._num_scores)
        self._growth = build_growth(tree, self._num_scores, base.device, per_parent=True)
        self.num_nodes, self.max_depth = self._growth.num_nodes, self._growth.max_depth

    def begin(self, num_rows: int, num_slots: int) -> "ModelBatch":
        return ModelBatch(self._draft_base, self._growth, self._num_scores, num_rows, num_slots)

    def admit(self, row: int) -> None:
        raise AssertionError("a model reads the text of a batch: begin comes first")

    retire = admit

    def propose(self, known: Known) -> Draft:
        raise AssertionError("a model reads the text of a batch: begin comes first")


class ModelBatch:
    """The smaller model's own reading of one batch."""

    layers: tuple[int, ...] = ()
    reader: TextReader | None = None

    def __init__(self, draft_base: Base, growth: Growth, num_scores: int, num_rows: int, num_slots: int) -> None:
        self.num_nodes, self.max_depth = growth.num_nodes, growth.max_depth
        self._draft_base, self._growth, self._num_scores = draft_base, growth, num_scores
        num_drafted = max(growth.num_nodes, growth.max_depth * MOST_PARENTS)  # parents asked in one step
        self._forward = draft_base.forward()
        self._forward.reserve(num_slots + num_drafted)
        self._arena = Arena(
            draft_base.model.config, num_rows, num_slots + num_drafted, draft_base.dtype, draft_base.device
        )
        self._arena.lengths.clear()

    def begin(self, num_rows: int, num_slots: int) -> "ModelBatch":
        raise AssertionError("this is the drafter of a batch already")

    def admit(self, row: int) -> None:
        """The text is read when it is first drafted on."""
        self._arena.admit(row, [0])

    def retire(self, row: int) -> None:
        self._arena.retire(row)

    def propose(self, known: Known) -> Draft:
        hidden_BD = self._read(known.ids) if self.max_depth else None
        lengths = list(self._arena.lengths)
        scored_ids = torch.arange(self._num_scores, device=self._draft_base.device)
        drawn_from: list[Tensor] = []
        seen_RPM: Tensor | None = None  # which drafted nodes each parent of the last level sees, itself included

        def ask(level: int, slots: Tensor | None, tokens_BP: Tensor | None) -> Tensor:
            nonlocal seen_RPM
            assert hidden_BD is not None
            hidden_BPD = hidden_BD[:, None]
            if slots is not None and tokens_BP is not None:
                seen_RPM = _seen(seen_RPM, slots, tokens_BP.shape[1])
                hidden_BPD = self._draft_on(tokens_BP, seen_RPM, lengths, level)
            scores_BPV = with_noise(self._forward.logits(hidden_BPD)[..., : self._num_scores], known, level, scored_ids)
            if known.draws:
                drawn_from.append(log_q(scores_BPV, known, level, scored_ids))
            return scores_BPV

        draft = self._growth.grow(known.root_B, ask, None)
        self._arena.lengths = lengths  # what was drafted is forgotten
        return draft._replace(log_q_BNV=self._growth.spread(drawn_from))

    def _read(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """Reads what is new of every row, its last token in any case; the states there, [B, D]."""
        arena, base = self._arena, self._draft_base
        arena.lengths = [min(n, len(row) - 1) for n, row in zip(arena.lengths, ids, strict=True)]
        hidden_BD = torch.zeros(len(ids), base.hidden_size, dtype=base.dtype, device=base.device)
        while (longest := max(len(row) - n for n, row in zip(arena.lengths, ids, strict=True))) > 0:
            T = min(longest, _MOST_NEW, arena.num_slots - max(arena.lengths))
            new = [list(row[n : n + T]) for n, row in zip(arena.lengths, ids, strict=True)]
            tokens_BT = torch.tensor([row + [0] * (T - len(row)) for row in new], device=base.device)
            causal_1TT = torch.ones(1, T, T, dtype=torch.bool, device=base.device).tril()
            hidden_BTD = self._run(tokens_BT, causal_1TT, arena.lengths, torch.arange(T, device=base.device))
            arena.commit([list(range(len(row))) for row in new])
            for row, (tokens, n) in enumerate(zip(new, arena.lengths, strict=True)):
                if tokens and n == len(ids[row]):
                    hidden_BD[row] = hidden_BTD[row, len(tokens) - 1]
        return hidden_BD

    def _draft_on(self, tokens_BP: Tensor, seen_RPM: Tensor, lengths: list[int], level: int) -> Tensor:
        """The states of the parents of a level, written behind those of the levels above."""
        num_above = seen_RPM.shape[2] - tokens_BP.shape[1]
        self._arena.lengths = [n + num_above for n in lengths]
        # The root is the last of the `lengths` tokens read; its children stand right behind it.
        return self._run(tokens_BP, seen_RPM, lengths, torch.full_like(tokens_BP[0], level - 1))

    def _run(self, tokens_BN: Tensor, seen_RNM: Tensor, lengths: list[int], offsets_N: Tensor) -> Tensor:
        """One forward. Nodes see the first `lengths` slots of their row, and of those behind what seen_RNM says."""
        base, arena = self._draft_base, self._arena
        arena.begin(tokens_BN.shape[1])
        lengths_B1 = torch.tensor(lengths, device=base.device)[:, None]
        positions_BN = (lengths_B1 + offsets_N).clamp(max=base.max_length - 1)
        mask = draw_mask(seen_RNM, lengths_B1, arena.bound, base.dtype)
        return self._forward.hidden(tokens_BN.clamp(max=base.vocab_size - 1), positions_BN, arena, mask)


def _seen(above_RPM: Tensor | None, slots: Tensor, num_parents: int) -> Tensor:
    """[R, P, M]: every parent sees what the one it continues saw, and itself."""
    own_1PP = torch.eye(num_parents, dtype=torch.bool, device=slots.device)[None]
    if above_RPM is None:
        return own_1PP
    if slots.ndim == 1:
        inherited_RPM = above_RPM[:, slots]
    else:
        rows_B1 = torch.arange(len(slots), device=slots.device)[:, None]
        inherited_RPM = above_RPM.expand(len(slots), -1, -1)[rows_B1, slots]
    return torch.cat([inherited_RPM, own_1PP.expand(len(inherited_RPM), -1, -1)], 2)
