"""How do prompts become text, several tokens a step, and exactly as plain decoding would write it?

The engine is the front door: it checks what was asked, runs steps (step.py) until every row has ended, and returns
text. Autoregressive decoding is the same engine with drafter `none`.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Unpack

from euryale.decoding.accept import LOSSY, AcceptConfig
from euryale.decoding.calibrated import TREE_FILE, Calibration, nearest, read_calibrations
from euryale.decoding.draft import Drafter
from euryale.decoding.drafters import DrafterConfig, build_drafter, check_heads, settle_draft_base
from euryale.decoding.noise import seeds_of
from euryale.decoding.rows import Ends, Generation, Row
from euryale.decoding.sampling import MoreSampling, Sampling
from euryale.decoding.step import Decoder
from euryale.decoding.text import Detokenizer
from euryale.decoding.tree import ROOT_ONLY, Budget, Tree
from euryale.decoding.trees import TreeConfig, plan_tree
from euryale.errors import UserError
from euryale.model.base import Base, BaseConfig, load_base
from euryale.model.checkpoint import load_heads, read_description
from euryale.model.heads import Heads

Prompt = str | Sequence[int]


class Engine:
    """A base, a drafter and a tree."""

    def __init__(
        self,
        base: Base,
        heads: Heads | None = None,
        drafter: str | DrafterConfig = "heads",
        tree: Tree | TreeConfig | str | None = None,
        calibrations: Sequence[Calibration] = (),
        draft_base: Base | None = None,
        accept: AcceptConfig | str = "exact",
    ) -> None:
        """`tree` names or is the tree; None is `calibrated`, and a chain of all heads where nothing was calibrated.

        draft_base: the smaller model of drafter=model, where it is loaded already. Raises UserError: an unknown
        drafter, tree or accept rule, `heads` without heads, a tree deeper than the heads, a draft model with another
        tokenizer.
        """
        self.accept = AcceptConfig.of(accept)
        self.accept.check()
        self.base = base
        self.heads = heads
        self.drafter = DrafterConfig(drafter) if isinstance(drafter, str) else drafter
        self.drafter.check()
        check_heads(self.drafter, heads)
        self.draft_base = settle_draft_base(self.drafter, base, draft_base)
        self.calibrations = list(calibrations)
        self.seconds = dict.fromkeys(("prefill", "draft", "verify", "accept", "commit"), 0.0)  # since the last reset
        self.last: Generation | None = None  # what `stream` gave, once it has ended
        self._tree = tree if isinstance(tree, (Tree, TreeConfig)) else TreeConfig(tree or "calibrated")
        if isinstance(self._tree, TreeConfig):
            self._tree.check()
        self._drafters: dict[tuple[Tree | Budget, float | None], Drafter] = {}
        for temperature in [c.temperature for c in self.calibrations] or [0.0]:
            self.tree(temperature)

    @staticmethod
    def load(
        folder: str | Path,
        base: Base | str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        drafter: str | DrafterConfig = "heads",
        tree: str | TreeConfig = "calibrated",
        merge_adapter: bool = False,
        accept: AcceptConfig | str = "exact",
    ) -> "Engine":
        """Loads a heads checkpoint and the base it names (or `base`: another path to it, or one already loaded).

        An adapter that the heads were trained with is put on the base, or with `merge_adapter` into its weights.

        Raises UserError: no checkpoint there, heads of another base, files cut short, an unknown drafter or tree, a
        tree deeper than the heads, `calibrated` without a tree.json.
        """
        folder = Path(folder)
        description = read_description(folder)
        drafter = DrafterConfig(drafter) if isinstance(drafter, str) else drafter
        tree = TreeConfig(tree) if isinstance(tree, str) else tree
        drafter.check()
        tree.check()
        if not isinstance(base, Base):
            trained_on = description.get("base")
            if not isinstance(trained_on, dict) or "path" not in trained_on:
                raise UserError(f"{folder}/heads.json does not say which base it belongs to. Use another checkpoint.")
            base = load_base(
                BaseConfig(
                    path=base or trained_on["path"],
                    revision=None if base else trained_on.get("revision"),
                    dtype=dtype,
                    quantization=trained_on.get("quantization", "none"),
                    device=device,
                    merge_adapter=merge_adapter,
                )
            )
        heads = load_heads(folder, base).to(base.device, base.dtype).eval()
        # A dynamic tree only takes its size from there, where there is one.
        is_calibrated = tree.name == "calibrated" or (tree.name == "dynamic" and (folder / TREE_FILE).is_file())
        calibrations = read_calibrations(folder) if drafter.needs_heads and is_calibrated else []
        return Engine(base, heads, drafter, tree, calibrations, accept=accept)

    def tree(self, temperature: float = 0.0) -> Tree | Budget:
        """The tree that a step verifies at this temperature, or the number of nodes that it arranges anew."""
        if self.drafter.name == "none":
            return ROOT_ONLY
        heads = self.heads if self.drafter.needs_heads else None
        tree = plan_tree(self._tree, heads, self.drafter.depth, self.calibrations, temperature)
        # Draws without replacement come one after another: none can be left out.
        return tree.without_gaps() if self.accept.name == "rejection" and isinstance(tree, Tree) else tree

    @property
    def tree_name(self) -> str:
        """As in TREES; `given` for a tree that came without a name."""
        return self._tree.name if isinstance(self._tree, TreeConfig) else "given"

    def num_nodes(self, temperature: float = 0.0) -> int:
        """Nodes that a step verifies at most at this temperature, the root included."""
        return self._drafter(temperature).num_nodes

    def max_depth(self, temperature: float = 0.0) -> int:
        """Drafted tokens that a step can gain at most at this temperature."""
        return self._drafter(temperature).max_depth

    def with_num_nodes(self, num_nodes: int) -> "Engine":
        """The same engine with trees of this many nodes, the root included, instead of the fastest."""
        if not isinstance(self._tree, TreeConfig):
            raise UserError(f"tree.num_nodes={num_nodes} was asked for, and the tree was given. Use tree=calibrated.")
        tree = replace(self._tree, num_nodes=num_nodes)
        return Engine(self.base, self.heads, self.drafter, tree, self.calibrations, self.draft_base, self.accept)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | Sequence[int] = 0,
        stop: str | Sequence[str] | None = None,
        stop_ids: Sequence[int] = (),
        ignore_eos: bool = False,
        **more: Unpack[MoreSampling],
    ) -> list[Generation]:
        """Answers all prompts as one batch; texts or lists of token ids. `seed` is one for all rows, or one each.

        An answer ends before a `stop` string, at an id of `stop_ids`, or at the base's own end-of-text ids unless
        ignore_eos. The other keywords are those of Sampling: top_k, min_p, repetition_penalty, presence_penalty,
        frequency_penalty, logit_bias, banned_tokens, min_new_tokens.

        Raises UserError: an empty prompt without a begin-of-text token to stand for it, a prompt that fills the
        context, numbers out of range, a base whose logits are no numbers.
        """
        is_single = isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], int))
        rows_asked: Sequence[Prompt] = [prompts] if is_single else prompts  # type: ignore[list-item,assignment]
        sampling = Sampling(temperature, top_p, **more)
        ends = Ends.of(self.base, stop, stop_ids, ignore_eos)
        rows = [self._row(prompt, max_new_tokens, ends) for prompt in rows_asked]
        sampling.check_tokens(self.base.vocab_size, max_new_tokens)
        seeds = seeds_of(seed, len(rows))
        if not rows:
            return []
        start = time.perf_counter()
        for _ in self._run(rows, sampling, seeds):
            pass
        seconds = time.perf_counter() - start
        return [self._finish(row, seconds) for row in rows]

    def stream(
        self,
        prompt: Prompt,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        stop: str | Sequence[str] | None = None,
        stop_ids: Sequence[int] = (),
        ignore_eos: bool = False,
        **more: Unpack[MoreSampling],
    ) -> Iterator[str]:
        """Yields the text of `generate` piece by piece; a piece is never taken back and never half a character.

        When it has ended, `last` is the whole Generation. What cannot be is refused here, before the first piece.
        """
        sampling = Sampling(temperature, top_p, **more)
        row = self._row(prompt, max_new_tokens, Ends.of(self.base, stop, stop_ids, ignore_eos))
        sampling.check_tokens(self.base.vocab_size, max_new_tokens)
        row.detokenizer = row.detokenizer or Detokenizer(self.base.tokenizer)
        self.last = None
        return self._pieces(row, row.detokenizer, sampling, seeds_of(seed, 1))

    def _pieces(self, row: Row, detokenizer: Detokenizer, sampling: Sampling, seeds: list[int]) -> Iterator[str]:
        start = time.perf_counter()
        for _ in self._run([row], sampling, seeds):
            if piece := detokenizer.new_text():
                yield piece
        self.last = self._finish(row, time.perf_counter() - start)
        if piece := detokenizer.new_text(is_last=True):
            yield piece

    def encode(self, prompt: Prompt) -> list[int]:
        """Prompt -> token ids, begin-of-text added as the tokenizer does. Raises UserError for an empty prompt."""
        ids = self.base.tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else [int(i) for i in prompt]
        if not ids and self.base.bos_id is not None:
            ids = [self.base.bos_id]
        if not ids:
            raise UserError("the prompt is empty and this base has no begin-of-text token. Give at least one token.")
        if not 0 <= min(ids) <= max(ids) < self.base.vocab_size:
            raise UserError(
                f"the prompt holds token ids from {min(ids)} to {max(ids)}, and {self.base.path} knows 0 to "
                f"{self.base.vocab_size - 1}. Give ids of this base, or text and the tokenizer that belongs to it."
            )
        return list(ids)

    def _row(self, prompt: Prompt, max_new_tokens: int, ends: Ends) -> Row:
        if max_new_tokens < 1:
            raise UserError(f"max_new_tokens={max_new_tokens} cannot be. Give a number of at least 1.")
        ids = self.encode(prompt)
        room = self.base.max_length - len(ids)
        if room < 1:
            raise UserError(
                f"the prompt has {len(ids)} tokens and the context of {self.base.path} ends at {self.base.max_length}. "
                "Shorten the prompt."
            )
        detokenizer = Detokenizer(self.base.tokenizer, ends.strings) if ends.strings else None
        reason_at_max = "length" if max_new_tokens <= room else "context"
        return Row(ids, min(max_new_tokens, room), reason_at_max, detokenizer, ends)

    def _run(self, rows: list[Row], sampling: Sampling, seeds: list[int]) -> Iterator[None]:
        """Steps until every row has ended; yields after each step."""
        drafter = self._drafter(sampling.temperature)
        is_lossy = self.accept.name in LOSSY and sampling.temperature > 0 and drafter.max_depth > 0
        for row in rows:
            row.is_lossless = not is_lossy
        # A row that ended inside a path keeps that whole path while the others go on, hence max_depth.
        num_slots = max(len(row.prompt) + row.max_ids for row in rows) + drafter.max_depth + drafter.num_nodes
        end_ids = rows[0].ends.ids
        decoder = Decoder(self.base, drafter, sampling, seeds, num_slots, self.seconds, end_ids, self.accept)
        decoder.prefill([row.prompt for row in rows])
        is_open = [True] * len(rows)
        while any(is_open):
            for row, tokens in zip(rows, decoder.step(is_open), strict=True):
                if row.finish_reason is None:
                    row.take(tokens)
            is_open = [row.finish_reason is None for row in rows]
            yield

    def _drafter(self, temperature: float) -> Drafter:
        calibration = nearest(self.calibrations, temperature) if self.calibrations else None
        key = (self.tree(temperature), None if calibration is None else calibration.temperature)
        if key not in self._drafters:
            self._drafters[key] = build_drafter(
                self.drafter, self.base, self.heads, key[0], calibration, self.draft_base
            )
        return self._drafters[key]

    def _finish(self, row: Row, seconds: float) -> Generation:
        """The text comes from the same detokenizer as in `stream`, so both agree; it ends before the eos id."""
        assert row.finish_reason is not None
        detokenizer = row.detokenizer
        if detokenizer is None:
            detokenizer = Detokenizer(self.base.tokenizer)
            for token in row.text_ids:
                detokenizer.add(token)
        detokenizer.close()
        # A stop string may come to light only here, when half a character behind it was held back.
        reason = "stop" if detokenizer.is_stopped else row.finish_reason
        return Generation(detokenizer.text, row.ids, len(row.accepted), row.accepted, reason, seconds, row.is_lossless)
