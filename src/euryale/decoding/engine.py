"""The front door of decoding: prompts to answers, several tokens a step, the text that plain decoding would write.

The engine chooses drafter and tree, and lets a scheduler (scheduler.py) take steps until every prompt is answered.
Autoregressive decoding is the same engine with drafter `none`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from euryale.base.base import Base, load_base
from euryale.base.config import BaseConfig
from euryale.base.lora import check_adapter
from euryale.base.precision import quantization_of_heads
from euryale.decoding.arguments import at_least, check_default_device, check_parts, drafter_config, path_of
from euryale.decoding.config import AcceptConfig, DrafterConfig, TreeConfig
from euryale.decoding.drafter_pool import DrafterPool
from euryale.decoding.drafters.none import NoDrafter
from euryale.decoding.numbers import seeds_of, whole_number
from euryale.decoding.prompt import Prompt, Prompts, encode, encode_all
from euryale.decoding.record import Record
from euryale.decoding.request import Generation, Request, StopConditions, has_drafts
from euryale.decoding.sampling import Sampling
from euryale.decoding.scheduler import Scheduler, StepSeen
from euryale.decoding.text_stream import TextStream, raise_errors
from euryale.decoding.tree.calibration import Calibration, find_tree, read_calibrations
from euryale.decoding.tree.tree import DynamicTree, Tree
from euryale.errors import UserError
from euryale.heads.checkpoint import dtype_for, load_heads, read_description
from euryale.heads.heads import Heads


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
        max_rows: int = 64,
        row_budget: int | None = None,
    ) -> None:
        """`tree` names or is the tree; None is `calibrated`, and a chain of all heads where nothing was calibrated.

        draft_base: the smaller model of drafter=model, where it is loaded already. max_rows: prompts that `generate`
        answers at once, at most; the others take the places of those that end. row_budget: nodes of a step over all
        rows; where there are more, every row's tree has fewer. Raises UserError: an unknown drafter, tree or accept
        rule, `heads` without heads, a tree deeper than the heads, a draft model with another tokenizer.
        """
        check_parts(base, heads)
        self.accept = AcceptConfig.of(accept)
        self.accept.check()
        self.base = base
        self.heads = heads
        self.max_rows = whole_number("max_rows", max_rows, least=1)
        self.row_budget = at_least(1, "row_budget", row_budget)
        self.drafter = drafter_config(drafter)
        self.calibrations = list(calibrations)
        self.seconds = dict.fromkeys(("prefill", "draft", "verify", "accept", "commit"), 0.0)  # since the last reset
        self.on_step: Callable[[StepSeen], None] | None = None  # called after each step; None costs nothing
        asked = tree if isinstance(tree, (Tree, TreeConfig)) else TreeConfig(tree or "calibrated")
        self._pool = DrafterPool(base, heads, self.drafter, asked, self.calibrations, draft_base, self.accept)
        self._pool.tell_tree()

    @staticmethod
    def load(
        folder: str | Path,
        base: Base | str | Path | None = None,
        device: str = "auto",
        dtype: str = "auto",
        drafter: str | DrafterConfig = "heads",
        tree: str | TreeConfig = "calibrated",
        merge_adapter: bool = False,
        accept: AcceptConfig | str = "exact",
        backend: str = "auto",
        quantization: str = "auto",
    ) -> "Engine":
        """Loads a heads checkpoint and the base it names (or `base`: another path to it, or one already loaded).

        dtype `auto` is the one that the heads were trained and calibrated on, where their folder says it and this
        processor is quick in it.
        backend: of the kernels that the base's forward takes, auto | triton | cuda | torch (docs/gpu.md).
        quantization: of the base, none | nf4 | int4 (docs/cpu.md); auto: that of the training.
        An adapter that the heads were trained with is put on the base, or with `merge_adapter` into its weights.

        Raises UserError: no checkpoint there, heads of another base, files cut short, an unknown drafter, tree or
        accept rule, a tree deeper than the heads, `calibrated` without a tree.json, a backend that cannot run here.
        """
        folder = Path(path_of("folder", folder))
        description = read_description(folder)
        drafter = drafter_config(drafter)
        tree = TreeConfig(tree) if isinstance(tree, str) else tree
        accept = AcceptConfig.of(accept)
        for config in (drafter, tree, accept):
            config.check()
        if not isinstance(base, Base):
            trained_on = description.get("base")
            if not isinstance(trained_on, dict) or "path" not in trained_on:
                raise UserError(f"{folder}/heads.json does not say which base it belongs to. Use another checkpoint.")
            quantization = quantization_of_heads(quantization, trained_on)
            check_adapter(description, quantization, merge_adapter)
            base = load_base(
                BaseConfig(
                    path=path_of("base", base) if base else trained_on["path"],
                    revision=None if base else trained_on.get("revision"),
                    dtype=dtype_for(dtype, description, device),
                    quantization=quantization,
                    device=device,
                    merge_adapter=merge_adapter,
                    backend=backend,
                )
            )
        heads = load_heads(folder, base).to(base.device, base.dtype).eval()
        # A dynamic tree only takes its size from there, where there is one.
        is_calibrated = tree.name == "calibrated" or (
            tree.name == "dynamic" and find_tree(folder, base.quantization).is_file()
        )
        calibrations = []
        if drafter.needs_heads and is_calibrated:
            calibrations = read_calibrations(folder, base.quantization)
        return Engine(base, heads, drafter, tree, calibrations, accept=accept)

    def tree(self, temperature: float = 0.0, num_rows: int = 1) -> Tree | DynamicTree:
        """The tree that a step verifies at this temperature, or the number of nodes that it arranges anew.

        num_rows: that share the row budget.
        """
        return self._pool.tree(temperature, self._most_nodes(num_rows))

    def _most_nodes(self, num_rows: int) -> int | None:
        """Nodes that each of so many rows may have."""
        return None if self.row_budget is None else max(1, self.row_budget // num_rows)

    @property
    def tree_name(self) -> str:
        """The kind of tree that steps verify, as in TREES; `given` for a tree that came without a name.

        Where nothing was calibrated, `calibrated` is `chain`, or `dynamic` for a drafter without heads.
        """
        return self._pool.tree_name

    def num_nodes(self, temperature: float = 0.0) -> int:
        """Nodes that a step verifies at most at this temperature, the root included."""
        return self._pool.drafter(temperature).num_nodes

    def max_depth(self, temperature: float = 0.0) -> int:
        """Drafted tokens that a step can gain at most at this temperature."""
        return self._pool.drafter(temperature).max_depth

    def generate(
        self,
        prompts: Prompts,
        max_new_tokens: int = 128,
        *,
        seed: int | Sequence[int | None] | None = 0,
        stop: str | Sequence[str] | None = None,
        stop_ids: int | Sequence[int] | None = (),
        ignore_eos: bool = False,
        drafter: str | None = None,
        logprobs: int | None = None,
        **knobs: object,
    ) -> list[Generation]:
        """Answers all prompts together: texts, token ids, conversations or a tokenizer's output (prompt.py says more).

        `seed` is one for all rows, or one each; None draws one, which Generation.seed tells. An answer ends before a
        `stop` string, at an id of `stop_ids`, or at the base's own end-of-text ids unless ignore_eos. drafter: "none"
        decodes these answers one token a step. logprobs: so many ranked tokens at each position, at most 20, in
        Generation.logprobs (record.py). The other keywords are the knobs of Sampling, such as temperature=0.8.

        Raises UserError: what is not a prompt, an empty prompt without a begin-of-text token to stand for it, a prompt
        that fills the context, numbers out of range, a base whose logits are not finite.
        """
        asked = encode_all(self.base, prompts)
        sampling = Sampling.of(**knobs)
        sampling.check_tokens(self.base.vocab_size, whole_number("max_new_tokens", max_new_tokens, least=1))
        conditions = StopConditions.of(self.base, stop, stop_ids, ignore_eos)
        requests = [
            Request.of(self.base, prompt, max_new_tokens, conditions, sampling, its_seed)
            for prompt, its_seed in zip(asked, seeds_of(seed, len(asked)), strict=True)
        ]
        if not requests:
            return []
        if logprobs is not None:
            for request in requests:
                request.record = Record(logprobs)
        longest = max(request.num_tokens for request in requests)
        scheduler = self._schedule(sampling, min(len(requests), self.max_rows), longest, drafter=drafter)
        for request in requests:
            scheduler.add(request)
        while not scheduler.is_idle:
            raise_errors(scheduler.step())
        return [request.generation for request in requests if request.generation is not None]

    def stream(
        self,
        prompt: Prompt,
        max_new_tokens: int = 128,
        *,
        seed: int | None = 0,
        stop: str | Sequence[str] | None = None,
        stop_ids: int | Sequence[int] | None = (),
        ignore_eos: bool = False,
        drafter: str | None = None,
        **knobs: object,
    ) -> TextStream:
        """Yields the text of `generate` piece by piece; a piece is never taken back and never half a character.

        When it has ended, its `generation` is the whole answer. Raises what `generate` raises, before the first piece.
        """
        sampling = Sampling.of(**knobs)
        conditions = StopConditions.of(self.base, stop, stop_ids, ignore_eos)
        request = Request.of(self.base, prompt, max_new_tokens, conditions, sampling, seed)
        return TextStream(request, self._schedule(sampling, 1, request.num_tokens, drafter=drafter))

    def scheduler(
        self,
        num_rows: int = 8,
        row_tokens: int = 2048,
        *,
        max_waiting: int | None = None,
        chunked_prefill: bool = False,
        **knobs: object,
    ) -> Scheduler:
        """Answers that come and go: at most num_rows at once, prompt and answer at most row_tokens long.

        `submit` prompts at any time and take a `step` at a time. The settings of sampling are those of prompts that
        bring none of their own; the tree is the one of this temperature. max_waiting: prompts that may wait for a
        row; None: any number. chunked_prefill: prompts of more than 128 tokens are read a chunk a step, one after
        another, so that the others go on meanwhile; more prompts at once are read sooner without it.

        Raises UserError: numbers out of range.
        """
        num_rows, row_tokens = whole_number("num_rows", num_rows, 1), whole_number("row_tokens", row_tokens, 2)
        max_waiting = at_least(0, "max_waiting", max_waiting)
        sampling = Sampling.of(**knobs)
        sampling.check_tokens(self.base.vocab_size, sampling.min_new_tokens)
        return self._schedule(sampling, num_rows, min(row_tokens, self.base.max_length), max_waiting, chunked_prefill)

    def encode(self, prompt: Prompt) -> list[int]:
        """Prompt -> token ids, begun as the tokenizer begins a text and not ended. Raises UserError for what is not a
        prompt."""
        return encode(self.base, prompt)

    def _schedule(
        self,
        sampling: Sampling,
        num_rows: int,
        row_tokens: int,
        max_waiting: int | None = None,
        chunked_prefill: bool = False,
        drafter: str | None = None,
    ) -> Scheduler:
        check_default_device(self.base.device)
        is_drafted = has_drafts(drafter)
        chosen = self._pool.drafter(sampling.temperature, self._most_nodes(num_rows)) if is_drafted else None
        scheduler = Scheduler(
            self.base,
            chosen or NoDrafter(self.base),
            sampling,
            num_rows,
            row_tokens,
            self.seconds,
            self.accept,
            max_waiting,
            chunked_prefill,
        )
        scheduler.on_step = self.on_step
        return scheduler
