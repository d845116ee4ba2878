"""The host's side of the step on the device: rows are loaded, steps are launched, and reports are read one step late.

While a step runs on a GPU the host reads what the one before it gained, and launches the next. What the host alone can
find (stop strings, more ids that end an answer) comes to light one step later; the tokens after it are not taken.

Letters: B batch, C numbers of a state.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from euryale.base.base import Base
from euryale.decoding.config import AcceptConfig
from euryale.decoding.device_mail import Mail
from euryale.decoding.device_state import NUM_ENDS, DeviceState, RowReport, StepKind, off_device
from euryale.decoding.device_step import DeviceStep
from euryale.decoding.device_text import TextRows
from euryale.decoding.drafters.interface import Drafter
from euryale.decoding.kv_cache import KVCache
from euryale.decoding.noise import stream_seed
from euryale.decoding.request import Request
from euryale.decoding.sampling_batch import columns_of
from euryale.decoding.step_graphs import StepGraphs
from euryale.decoding.token_tables import PENALTIES, TokenTables
from euryale.decoding.tree_pass import TreePass
from euryale.kernels.backends import on_card

_LEAST_BUCKET = 1024  # slots of the cache that a step sees; the others are powers of two


class Gain(NamedTuple):
    """What a step on the device gave a row."""

    tokens: list[int]
    length: int  # committed tokens after it
    is_broken: bool
    logprobs: list[list[float]]  # rank_tokens of each token; none where no row asks for it


class Finished(NamedTuple):
    """The state of the rows after the last step that was launched."""

    gains: list[Gain]
    root_B: Tensor
    hidden_BC: Tensor


class DeviceLoop:
    """Steps of the live rows of a decoder, while none comes or goes."""

    def __init__(
        self,
        base: Base,
        drafter: Drafter,
        tree_pass: TreePass,
        cache: KVCache,
        rule: AcceptConfig,
        tables: TokenTables,
    ) -> None:
        """The cache has `spare_slots` more than its rows need. tables: of bias and penalties, kept by the decoder."""
        self._base, self._drafter, self._cache = base, drafter, cache
        # A graph holds the masks of its step's tree, so trees of other sizes have passes of their own.
        self._steps: dict[int, DeviceStep] = {}
        for size, part in drafter.sizes().items():
            own_pass = tree_pass if part is drafter else TreePass(base, part, cache.num_slots)
            self._steps[size] = DeviceStep(base, own_pass, part, drafter, rule, tables)
        self._max_path = drafter.max_depth + 1
        self.num_nodes = 1  # of the step that was read last
        self._graphs = StepGraphs(base.device, base.forward_settings.cuda_graphs)
        self._mail = Mail(base.device)
        width = base.hidden_size * (1 + len(drafter.layers))
        num_text_slots = cache.kv.shape[4] if drafter.searches_text else 0
        self._whole = DeviceState.empty(
            cache.num_rows, self._max_path, width, base.vocab_size, base.dtype, base.device, num_text_slots
        )
        self._texts = TextRows(self._whole.text_BS) if drafter.searches_text else None
        self._state = self._whole.first(0)
        self._kind = StepKind.of([])
        self._written: list[int] = []  # tokens that were read of each row since it was loaded
        self._longest = 0  # committed tokens of the longest row, as far as they were read

    @staticmethod
    def spare_slots(drafter: Drafter) -> int:
        """Slots that a row needs beyond its tokens and the nodes of a step: a row that has ended is told so one step
        later, with the last path committed whole."""
        return drafter.max_depth + 1

    @staticmethod
    def why_not(drafter: Drafter, tree_pass: TreePass) -> str | None:
        """Why a decoder has no steps on the device; None: it has."""
        if tree_pass.attention is None:
            return "no kernel takes trees of this size"
        return None if drafter.is_on_device else "the drafter reads texts on the host"

    @staticmethod
    def why_not_rows(requests: Sequence[Request]) -> str | None:
        """Why a step of these rows is not one on the device; None: it is."""
        for request in requests:
            if request.record is not None and request.record.wants_steps:
                return "the trees of an answer are recorded"
            if others := off_device(request.sampling):
                return f"a request asks for {', '.join(others)}"
        return None

    def add(self, row: int, num_rows: int) -> None:
        """Rows that are new, while none is loaded."""
        for place in range(row, row + num_rows):
            if self._texts is not None:
                self._texts.add(place)

    def swap_remove(self, row: int) -> None:
        """Removes an ended row, while none is loaded; the last row takes its slot."""
        if self._texts is not None:
            self._texts.swap_remove(row)

    @property
    def is_loaded(self) -> bool:
        """Whether the rows' state is on the device, and a step of it may be running."""
        return bool(self._written)

    def load(
        self, requests: Sequence[Request], texts: Sequence[Sequence[int]], root_B: Tensor, hidden_BC: Tensor
    ) -> None:
        """Brings the state of all live rows to the device; texts: prompt and answer so far."""
        B, device = len(requests), self._base.device
        self._state = state = self._whole.first(B)
        answers = state.answers
        written = [len(text) - len(r.prompt) for r, text in zip(requests, texts, strict=True)]
        left = [r.max_ids - number for r, number in zip(requests, written, strict=True)]
        least = [r.sampling.min_new_tokens - number for r, number in zip(requests, written, strict=True)]
        ends = [[*r.stop.ids[:NUM_ENDS], *[-1] * (NUM_ENDS - len(r.stop.ids))] for r in requests]
        values: list[tuple[Tensor, Sequence[object]]] = [
            (answers.lengths_B, self._cache.lengths), (answers.limit_B, left), (answers.ends_BE, ends),
            (state.seeds_B, [r.seed for r in requests]),
            (state.stream_seeds_B2, [[stream_seed(r.seed, 1), stream_seed(r.seed, 2)] for r in requests]),
            (state.has_drafts_B, [r.has_drafts for r in requests]),
            (state.temperature_B, [r.sampling.temperature for r in requests]),
            (state.least_B, least),
            (state.penalties_B3, [[getattr(r.sampling, name) for name, _ in PENALTIES] for r in requests]),
        ]  # fmt: skip
        for target, numbers in values:
            target.copy_(torch.tensor(numbers, dtype=target.dtype, device=device))
        state.columns_B5.copy_(columns_of([r.sampling for r in requests], device))
        answers.root_B.copy_(root_B)
        state.hidden_BC.copy_(hidden_BC)
        if self._texts is not None:
            self._texts.read(texts)
        for zeroed in (answers.written_B, answers.last_B, answers.is_done_B, state.is_broken_B):
            zeroed.zero_()
        self._kind = StepKind.of(requests)
        self._written, self._longest = [0] * B, max(self._cache.lengths)

    def advance(self) -> list[Gain] | None:
        """Launches a step, and waits for the one before it; None: there was none since the rows were loaded."""
        before = self._mail.is_waiting
        num_slots, B = self._num_slots(), len(self._written)
        size = self._drafter.choose(B)
        state, kv_L2BGSE = self._state, self._cache.kv[:, :, :B, :, :num_slots]
        with on_card(self._base.device):
            # What was sent before is read after the next step is on its way.
            key = (B, size, num_slots, *self._kind)
            self._graphs.run(key, lambda: self._steps[size](state, kv_L2BGSE, self._kind))
            self._mail.send(state.report_BX, state.logprobs_BTL if self._kind.has_logprobs else None, size)
        return self._read() if before else None

    def finish(self) -> Finished:
        """Waits for the last step that was launched; the rows are not loaded any more."""
        answers = self._state.answers
        gains = self._read()
        self._written = []
        lengths = [gain.length for gain in gains]
        self._drafter.have_read(lengths)
        if self._texts is not None:
            self._texts.have_grown(lengths)
        return Finished(gains, answers.root_B.clone(), self._state.hidden_BC.clone())

    def _num_slots(self) -> int:
        """The slots that the next step may write or read, rounded up to a bucket."""
        needed = self._longest + 2 * self._max_path + self._drafter.num_nodes  # a step may be running
        size = _LEAST_BUCKET
        while size < needed:
            size *= 2
        return min(size, self._cache.kv.shape[4])

    def _read(self) -> list[Gain]:
        sent = self._mail.receive()
        reports = [RowReport.of(numbers) for numbers in sent.report_BX.tolist()]
        logprobs = [[]] * len(reports) if sent.logprobs_BTL is None else sent.logprobs_BTL.tolist()
        gains = []
        for report, written, numbers in zip(reports, self._written, logprobs, strict=True):
            tokens = report.tokens_since(written)
            gains.append(Gain(tokens, report.length, report.is_broken, numbers[: len(tokens)]))
        self._written = [report.written for report in reports]
        self._longest = max(report.length for report in reports)
        self.num_nodes = sent.num_nodes
        self._drafter.learn(sent.num_nodes, [len(gain.tokens) for gain in gains if gain.tokens])
        return gains
