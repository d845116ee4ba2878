"""Drafts of a smaller model with the same tokenizer.

It reads the text as the base does, in a cache of its own, and is asked level by level: the last token's state gives
the first candidates, then all parents of a level go through together. Drafted tokens are forgotten by setting the
lengths back; accepted ones are read again as text, at most a few tokens. A row whose text or drafts would leave the
model's context is not drafted for: its nodes carry no candidate.

Letters: B batch, R rows that differ (1 or B), T new tokens, N tokens of a forward, P parents of a level, M nodes that
were drafted so far and the ones being drafted, V vocabulary, D width.
"""

from collections.abc import Sequence
from copy import copy

import torch
from torch import Tensor

from euryale.base.base import Base, load_base
from euryale.base.config import BaseConfig
from euryale.decoding.drafters.interface import Draft, Drafter, DraftInput
from euryale.decoding.drafters.ngram_index import of_slots
from euryale.decoding.drafters.tree_growth import Levels, build_growth
from euryale.decoding.kv_cache import KVCache, draw_mask
from euryale.decoding.tree.tree import MOST_PARENTS, ROOT_ONLY, DynamicTree, Shape, Tree
from euryale.errors import UserError

_MOST_NEW = 512  # tokens read at once: bounds the memory of a long prompt


def load_draft_base(path: str | None, base: Base) -> Base:
    """Loads the drafting model in the base's dtype and on its device.

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

    Output matrices may be padded to different sizes; ids beyond the tokenizer's are never drafted.
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


class ModelDrafter(Drafter):
    """A smaller model on a fixed tree, or on the one that looks best in each step. `begin` gives it texts to read."""

    def __init__(self, base: Base, draft_base: Base, tree: Tree | DynamicTree) -> None:
        self._draft_base = draft_base
        num_scores = min(base.vocab_size, draft_base.vocab_size)
        if isinstance(tree, Tree):
            tree = tree.pruned(tree.max_depth, num_scores)
        self._growth = build_growth(tree, num_scores, base.device, per_parent=True)
        self.num_nodes, self.max_depth = self._growth.num_nodes, self._growth.max_depth
        self._draft_ids = torch.arange(num_scores, device=base.device)
        self._root_only = Shape.of_tree(ROOT_ONLY, base.device)
        self._reader: TextReader | None = None

    def begin(self, num_rows: int, num_slots: int) -> "ModelDrafter":
        begun = copy(self)
        num_drafted = max(self.num_nodes, self.max_depth * MOST_PARENTS)  # parents asked in one step
        begun._reader = TextReader(self._draft_base, num_rows, num_slots + num_drafted)
        return begun

    @property
    def reader(self) -> "TextReader":
        """Of the texts of the live rows."""
        assert self._reader is not None, "a model reads the texts of a batch: begin comes first"
        return self._reader

    def add(self, row: int) -> None:
        self.reader.cache.add(row, 0)  # the text is read when it is first drafted on

    def swap_remove(self, row: int) -> None:
        self.reader.cache.swap_remove(row)

    def propose(self, draft_input: DraftInput) -> Draft:
        # A node d below the root follows from the model's state at the position of its parent, which must exist.
        ends = [self._draft_base.max_length - len(text) + 1 for text in draft_input.texts]
        if self.max_depth == 0 or max(ends) < 1:
            return Draft(draft_input.root_B[:, None], self._root_only)
        draft = self._growth.grow(draft_input, self._levels(draft_input), self._draft_ids)
        self.reader.forget_drafts()
        if min(ends) >= self.max_depth:
            return draft
        ends_B1 = torch.tensor(ends, device=self._draft_ids.device)[:, None]
        return draft._replace(is_real_BN=(draft.shape.depths_RN <= ends_B1) | (draft.shape.depths_RN == 0))

    def _levels(self, draft_input: DraftInput) -> Levels:
        reader, num_scores = self.reader, len(self._draft_ids)
        context = self._draft_base.max_length
        texts = [text if len(text) <= context else text[:context] for text in draft_input.texts]
        hidden_BPD = reader.read(texts)[:, None]
        seen_RPM: Tensor | None = None  # which drafted nodes each parent of the last level sees, itself included
        for level in range(self.max_depth):
            slots, tokens_BP = yield reader.logits(hidden_BPD)[..., :num_scores]
            seen_RPM = _seen(seen_RPM, slots, tokens_BP.shape[1])
            hidden_BPD = reader.draft_on(tokens_BP, seen_RPM, level)


class TextReader:
    """The smaller model's own reading of the texts of one batch."""

    def __init__(self, model: Base, num_rows: int, num_slots: int) -> None:
        self._model = model
        self._forward = model.forward()
        self._forward.reserve(num_slots)
        self.cache = KVCache(model.cache_config, num_rows, num_slots, model.dtype, model.device)
        self._lengths: list[int] = []  # of the texts, while drafts stand after them in the cache

    def logits(self, hidden_BPD: Tensor) -> Tensor:
        return self._forward.logits(hidden_BPD)

    def read(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """Reads what is new of every text, its last token in any case; the states there, [B, D]."""
        cache, model = self.cache, self._model
        cache.lengths = [min(n, len(text) - 1) for n, text in zip(cache.lengths, texts, strict=True)]
        hidden_BD = torch.zeros(len(texts), model.hidden_size, dtype=model.dtype, device=model.device)
        while (longest := max(len(text) - n for n, text in zip(cache.lengths, texts, strict=True))) > 0:
            T = min(longest, _MOST_NEW, cache.num_slots - max(cache.lengths))
            new = [list(text[n : n + T]) for n, text in zip(cache.lengths, texts, strict=True)]
            tokens_BT = torch.tensor([row + [0] * (T - len(row)) for row in new], device=model.device)
            causal_1TT = torch.ones(1, T, T, dtype=torch.bool, device=model.device).tril()
            hidden_BTD = self._run(tokens_BT, causal_1TT, cache.lengths, torch.arange(T, device=model.device))
            cache.commit([list(range(len(row))) for row in new])
            for row, (tokens, n) in enumerate(zip(new, cache.lengths, strict=True)):
                if tokens and n == len(texts[row]):
                    hidden_BD[row] = hidden_BTD[row, len(tokens) - 1]
        self._lengths = list(cache.lengths)
        return hidden_BD

    def draft_on(self, tokens_BP: Tensor, seen_RPM: Tensor, level: int) -> Tensor:
        """The states of nodes at depth `level` + 1, written after those of the levels above."""
        num_above = seen_RPM.shape[2] - tokens_BP.shape[1]
        self.cache.lengths = [n + num_above for n in self._lengths]
        # The root is the last token of its text; its children stand right after it.
        return self._run(tokens_BP, seen_RPM, self._lengths, torch.full_like(tokens_BP[0], level))

    def forget_drafts(self) -> None:
        self.cache.lengths = list(self._lengths)

    def _run(self, tokens_BN: Tensor, seen_RNM: Tensor, lengths: list[int], offsets_N: Tensor) -> Tensor:
        """One forward. Nodes see the first `lengths` slots of their row, and of the slots after, seen_RNM."""
        model, cache = self._model, self.cache
        cache.begin(tokens_BN.shape[1])
        lengths_B1 = torch.tensor(lengths, device=model.device)[:, None]
        positions_BN = (lengths_B1 + offsets_N).clamp(max=model.max_length - 1)
        mask = draw_mask(seen_RNM, lengths_B1, cache.bound, model.dtype)
        return self._forward.hidden(tokens_BN.clamp(max=model.vocab_size - 1), positions_BN, cache, mask)


def _seen(above_RPM: Tensor | None, slots: Tensor, num_parents: int) -> Tensor:
    """[R, P, M]: every parent sees what the one it continues saw, and itself."""
    own_1PP = torch.eye(num_parents, dtype=torch.bool, device=slots.device)[None]
    if above_RPM is None:
        return own_1PP
    inherited_RPM = of_slots(above_RPM if slots.ndim == 1 else above_RPM.expand(len(slots), -1, -1), slots)
    return torch.cat([inherited_RPM, own_1PP.expand(len(inherited_RPM), -1, -1)], 2)
