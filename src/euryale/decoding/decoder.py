"""One step of decoding: draft, verify, accept, commit; between steps rows come and go.

The prompt's last token is the first root, so prefill covers the tokens before it and every emitted token comes
from a step.

Letters: B batch, N nodes, P depths below the root plus one, D width, V vocabulary, T prompt tokens.
"""

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from euryale.base.base import Base
from euryale.base.kernel_llama import KernelLlama
from euryale.decoding.accept import verify
from euryale.decoding.broken import why_broken
from euryale.decoding.compiled_walk import walk_of
from euryale.decoding.config import AcceptConfig
from euryale.decoding.device_loop import DeviceLoop
from euryale.decoding.device_rows import DeviceRows, Told
from euryale.decoding.drafters.interface import Draft, Drafter, DraftInput, states_along
from euryale.decoding.kv_cache import KVCache
from euryale.decoding.logits_processors import LogitsProcessors
from euryale.decoding.prefill import LongPrompt, prefill
from euryale.decoding.prefix_cache import PrefixCache
from euryale.decoding.random_streams import Streams
from euryale.decoding.record import record_step
from euryale.decoding.request import Request
from euryale.decoding.sampling_batch import SamplingBatch
from euryale.decoding.tree_pass import TreePass


class Decoder:
    """The state of the live rows: cache, roots, and the hidden states that the drafter reads.

    Everything that keeps something of a row (cache, noise, processors, drafter) has the same two verbs: `add` makes a
    row live, in the place of an ended one or after the last; `swap_remove` removes one, and the last takes its slot.
    """

    def __init__(
        self,
        base: Base,
        drafter: Drafter,
        num_rows: int,
        num_slots: int,
        seconds: dict[str, float],
        rule: AcceptConfig | None = None,
    ) -> None:
        """num_rows: that live at once, at most; none does yet. num_slots: the longest row, plus the nodes of a tree.

        `seconds` collects the time of each part of a step. rule: default `exact`.
        """
        device = base.device
        self.base = base
        self.rule = rule or AcceptConfig()
        self.seconds = seconds
        self.texts: list[list[int]] = []  # prompt and answer so far of each live row; the last token is the root
        self.broken: dict[int, str] = {}  # rows of the last step that no token can follow, and why
        self.num_nodes = 1  # of the last step
        if isinstance(base.forward(), KernelLlama):
            num_slots += DeviceLoop.spare_slots(drafter)
        self.drafter = drafter.begin(num_rows, num_slots)
        self._pass = TreePass(base, self.drafter, num_slots)
        self._forward = self._pass.forward
        self._walk = walk_of(base)
        self.cache = KVCache(base.cache_config, num_rows, num_slots, base.dtype, device)
        self.prefixes: PrefixCache | None = None
        self._long: LongPrompt | None = None  # the prompt that is read in pieces
        self._requests: list[Request] = []  # of each live row
        self._settings: SamplingBatch | None = None  # of these; None: rows have come or gone since
        self._streams = Streams(
            num_rows, self.rule.coupled, self.rule.name == "rejection", base.vocab_size, drafter.num_nodes, device
        )
        self._processors = LogitsProcessors(num_rows, base.vocab_size, device)
        self._targets: list[list[int]] = []  # the base's token after each node of a row's last step
        self._root_B = torch.zeros(0, dtype=torch.long, device=device)
        num_numbers = base.hidden_size * (1 + len(drafter.layers))
        self._hidden_BD = torch.zeros(0, num_numbers, dtype=base.dtype, device=device)
        of_rows = self._processors.tables, self._requests, self.texts
        # None: every step is one of this file.
        self._device = DeviceRows.of(base, self.drafter, self._pass, self.rule, self.cache, *of_rows)

    @torch.inference_mode()
    def add(self, row: int, requests: Sequence[Request]) -> None:
        """Reads prompts into `row` and the rows after it, which have ended or are the next after the last.

        All of a prompt but its last token is committed; that becomes the root. Where reading fails, nothing has
        changed but rows that had ended.
        """
        start = time.perf_counter()
        self._settle()
        after, num_before = row + len(requests), len(self.texts)
        for place in range(row, after):
            self.drafter.add(place)
        try:
            part = self.cache.part(row, len(requests))
            hidden_BD = prefill(self.base, self._forward, self.drafter, part, requests, row)
        except BaseException:
            for place in reversed(range(max(row, num_before), after)):
                self.drafter.swap_remove(place)
            raise
        self._make_live(row, requests, hidden_BD)
        self.seconds["prefill"] += time.perf_counter() - start

    @torch.inference_mode()
    def read_piece(self, request: Request) -> bool:
        """Reads the next chunk of a long prompt into the cache's last row, which must not live.

        True: it was read to its end and is the last live row now. A request other than the last call's is begun anew.
        """
        start = time.perf_counter()
        spare, row = self.cache.num_rows - 1, len(self.texts)
        assert row <= spare, "the last row is alive"
        if self._long is None or self._long.request is not request:
            part = self.cache.part(spare, 1)
            self._long = LongPrompt(self.base, self._forward, self.drafter, part, request, self.prefixes)
        long, self._long = self._long, None  # after a failure it is begun anew
        long.reader.read_chunk()
        if long.reader.is_done:
            self._settle()
            self.cache.copy_row(spare, row, len(request.prompt) - 1)
            self.drafter.add(row)
            long.tell(row)
            self._make_live(row, [request], long.reader.hidden_BD)
        else:
            self._long = long
        self.seconds["prefill"] += time.perf_counter() - start
        return long.reader.is_done

    def _make_live(self, row: int, requests: Sequence[Request], hidden_BD: Tensor) -> None:
        """Rows whose prompts are in the cache, and known to the drafter."""
        after, prompts = row + len(requests), [request.prompt for request in requests]
        for place, request in enumerate(requests, start=row):
            self.cache.add(place, len(request.prompt) - 1)
            self._streams.add(place, request.seed)
            self._processors.add(place, request.sampling, request.prompt, request.stop.ids, request.grammar)
        if self._device is not None:
            self._device.add(row, len(requests))
        self._requests[row:after] = requests
        self._settings = None
        self.texts[row:after] = [list(prompt) for prompt in prompts]
        self._targets[row:after] = [[] for _ in prompts]
        root_B = torch.tensor([prompt[-1] for prompt in prompts], device=self.base.device)
        self._root_B = torch.cat([self._root_B[:row], root_B, self._root_B[after:]])
        self._hidden_BD = torch.cat([self._hidden_BD[:row], hidden_BD, self._hidden_BD[after:]])

    @torch.inference_mode()
    def remember(self, row: int) -> None:
        """Keeps the keys and values of an ended row for prompts that begin as its text does."""
        if self.prefixes is not None and row not in self.broken:
            self.prefixes.keep(self.texts[row][: self.cache.lengths[row]], self.cache.kv[:, :, row])

    @torch.inference_mode()
    def swap_remove(self, row: int) -> None:
        """Removes an ended row; the last row takes its slot."""
        self._settle()
        if self._device is not None:
            self._device.swap_remove(row)
        for keeper in (self.cache, self.drafter, self._streams, self._processors):
            keeper.swap_remove(row)
        lists: list[list[Any]] = [self.texts, self._targets, self._requests]
        for of_rows in lists:
            of_rows[row] = of_rows[-1]
            of_rows.pop()
        self._settings = None
        for rows_BX in (self._root_B, self._hidden_BD):
            rows_BX[row] = rows_BX[-1]
        self._root_B, self._hidden_BD = self._root_B[:-1], self._hidden_BD[:-1]

    @torch.inference_mode()
    def rewind(self, lengths: list[int]) -> None:
        """Sets the committed tokens of the live rows back, to measure steps after texts of these lengths."""
        self._settle()
        self.cache.lengths = lengths

    @property
    def runs_ahead(self) -> bool:
        """Whether the next step runs on the device, and what it gains is told by the one after it."""
        return self._device is not None and self._device.takes_step

    @torch.inference_mode()
    def step(self) -> list[list[int]]:
        """One step. Returns the tokens gained by each live row: those of its accepted path, then the bonus token.

        A row that no token can follow is named in `broken`, with the reason. Its token means nothing, and neither does
        what comes after it: it has to be removed. Steps on the device return what the step before gained.
        """
        if self._device is None:
            return self._step_here()
        if self.runs_ahead:
            start = time.perf_counter()
            told: list[Told] | None = self._device.step(self._root_B, self._hidden_BD)
            self.seconds["verify"] += time.perf_counter() - start  # draft, accept and commit are in it
        else:
            self._settle()
            told = self._device.tell()
        if told is None:
            return self._step_here()
        self.num_nodes = self._device.num_nodes
        self.broken = {row: one.why_broken for row, one in enumerate(told) if one.why_broken is not None}
        return [one.tokens for one in told]

    def _settle(self) -> None:
        """Lists, roots and states are those after the last step, wherever it ran."""
        settled = None if self._device is None else self._device.settle()
        if settled is not None:
            self._root_B, self._hidden_BD = settled
            self._targets[:] = [[] for _ in self.texts]

    def _step_here(self) -> list[list[int]]:
        marks = [time.perf_counter()]
        samplings = [request.sampling for request in self._requests]
        self._settings = settings = self._settings or SamplingBatch.of(samplings, self.base.device)
        noise = self._streams.at(self.cache.lengths, self.drafter.max_depth + 1, settings)
        draft = self._asked_for(self.drafter.propose(self._draft_input(noise.ranking_BPV, settings)))
        marks.append(time.perf_counter())

        self.num_nodes = draft.tokens_BN.shape[1]
        hidden_BND = self._pass.read(draft, self.cache)
        raw_BNV = self._forward.logits(hidden_BND[..., : self.base.hidden_size])
        marks.append(time.perf_counter())

        logits_BNV = self._processors.apply(raw_BNV, draft.tokens_BN, draft.shape, self.texts)
        output = verify(self.rule, draft, logits_BNV, settings, noise, self._walk)
        walk = output.on_host(draft.tokens_BN)
        self.broken = {
            row: why_broken(self.base, self.texts[row], walk.tokens[row], samplings[row]) for row in walk.lost_rows
        }
        records = [request.record for request in self._requests]
        record_step(records, self.broken, raw_BNV, draft, walk.paths, walk.gained)
        marks.append(time.perf_counter())

        self._targets = walk.targets
        self._commit(hidden_BND, output.targets_BN, walk.paths, walk.gained)
        marks.append(time.perf_counter())
        for part, begin, end in zip(("draft", "verify", "accept", "commit"), marks, marks[1:], strict=False):
            self.seconds[part] += end - begin
        return walk.gained

    def _draft_input(self, noise_BPV: Tensor | None, settings: SamplingBatch) -> DraftInput:
        return DraftInput(
            self._hidden_BD,
            self._root_B,
            noise_BPV,
            settings.temperature_B11,
            self.texts,
            self._targets,
            self._processors.guess if self._processors.is_active else None,
            self._streams.is_rejection and settings.has_sampled,
        )

    def _asked_for(self, draft: Draft) -> Draft:
        """The draft without the candidates of rows that go without drafts."""
        has_drafts = [request.has_drafts for request in self._requests]
        if all(has_drafts):
            return draft
        is_real_BN = torch.tensor(has_drafts, device=self.base.device)[:, None].expand_as(draft.tokens_BN)
        return draft._replace(is_real_BN=is_real_BN if draft.is_real_BN is None else draft.is_real_BN & is_real_BN)

    def _commit(
        self, hidden_BND: Tensor, targets_BN: Tensor, paths: list[list[int]], gained: Sequence[Sequence[int]]
    ) -> None:
        """Keeps the accepted paths. The bonus token becomes the root; the drafter reads the state before it next."""
        for row in self.broken:
            hidden_BND[row] = 0.0  # drafters keep what they read
        if self.drafter.reads_text:
            self.drafter.read(0, states_along(hidden_BND, paths), gained, self.cache.lengths)
        self.cache.commit(paths)
        for text, tokens in zip(self.texts, gained, strict=True):
            text += tokens
        self._processors.extend(gained)
        last_nodes = [path[-1] for path in paths]
        if len(last_nodes) == 1:
            self._hidden_BD, self._root_B = hidden_BND[:, last_nodes[0]], targets_BN[:, last_nodes[0]]
        else:
            rows_B = torch.arange(len(last_nodes), device=self.base.device)
            nodes_B = torch.tensor(last_nodes, device=self.base.device)
            self._hidden_BD, self._root_B = hidden_BND[rows_B, nodes_B], targets_BN[rows_B, nodes_B]
        for row in self.broken:
            self.cache.wipe(row)
