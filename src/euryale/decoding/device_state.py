"""What a step on the device reads and writes of every row, what it tells the host, and what the rows ask of it.

Letters: B batch, C numbers of a state, S slots, X numbers of a report, T answer tokens of one step, E ids that end an
answer, L logprobs and ids of a token.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from euryale.decoding.record import num_ranked
from euryale.decoding.request import Request
from euryale.decoding.sampling import Sampling
from euryale.decoding.sampling_batch import NUM_COLUMNS, Asked
from euryale.decoding.token_tables import PENALTIES, Penalties
from euryale.kernels.reference import Answers

NUM_ENDS = 4  # ids that end an answer on the device; the host finds the others, one step later


class DeviceState(NamedTuple):
    """What differs from step to step, of each row."""

    answers: Answers  # the ring holds the tokens of one step
    hidden_BC: Tensor  # what the drafter reads: the base's states at the last committed token
    seeds_B: Tensor  # int64
    stream_seeds_B2: Tensor  # int64: of the noise that only the rule `rejection` has (random_streams.py)
    temperature_B: Tensor  # float32
    columns_B5: Tensor  # float32: columns_of the rows' settings
    penalties_B3: Tensor  # float32: in the order of PENALTIES
    least_B: Tensor  # int32: answer tokens since the row was loaded before which nothing ends it
    has_drafts_B: Tensor  # bool
    is_broken_B: Tensor  # bool: the base's own token on an accepted path had a score that is not finite
    report_BX: Tensor  # int64: what the host reads, one step later (RowReport)
    logprobs_BTL: Tensor  # float64: rank_tokens of what the step gained, where a row asks for it
    text_BS: Tensor  # int32: DeviceText of all slots, where the drafter searches it

    @staticmethod
    def empty(
        num_rows: int,
        max_path: int,
        width: int,
        vocab_size: int,
        dtype: torch.dtype,
        device: torch.device,
        num_slots: int = 0,
    ) -> "DeviceState":
        """width: of hidden_BC. num_slots: of a text; 0 for drafters that search none."""

        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(num_rows, *shape, dtype=dtype, device=device)

        narrow, flag, real = torch.int32, torch.bool, torch.float32
        answers = Answers(
            lengths_B=zeros(dtype=narrow), root_B=zeros(), last_B=zeros(), ring_BT=zeros(max_path),
            written_B=zeros(dtype=narrow), limit_B=zeros(dtype=narrow), ends_BE=zeros(NUM_ENDS) - 1,
            is_done_B=zeros(dtype=flag),
        )  # fmt: skip
        return DeviceState(
            answers, zeros(width, dtype=dtype), zeros(), zeros(2), zeros(dtype=real), zeros(NUM_COLUMNS, dtype=real),
            zeros(len(PENALTIES), dtype=real), zeros(dtype=narrow), zeros(dtype=flag), zeros(dtype=flag),
            zeros(max_path + 3), zeros(max_path, 1 + 2 * num_ranked(vocab_size), dtype=torch.float64),
            zeros(num_slots, dtype=narrow),
        )  # fmt: skip

    def first(self, num_rows: int) -> "DeviceState":
        """The first rows, in the same memory."""
        answers = Answers(*(x[:num_rows] for x in self.answers))
        return DeviceState(answers, *(x[:num_rows] for x in self[1:]))

    def write_report(self) -> None:
        answers = self.answers
        numbers = (answers.written_B.long(), answers.lengths_B.long(), self.is_broken_B.long())
        self.report_BX.copy_(torch.cat([answers.ring_BT, torch.stack(numbers, 1)], 1))


class RowReport(NamedTuple):
    """One row of a report, on the host."""

    ring: list[int]
    written: int  # answer tokens since the row was loaded
    length: int
    is_broken: bool

    @staticmethod
    def of(numbers: list[int]) -> "RowReport":
        return RowReport(numbers[:-3], numbers[-3], numbers[-2], bool(numbers[-1]))

    def tokens_since(self, written: int) -> list[int]:
        """The tokens after the first `written` of the answer."""
        return [self.ring[number % len(self.ring)] for number in range(written, self.written)]


class StepKind(NamedTuple):
    """What a step leaves out where no row asks for it: part of what a captured graph is of."""

    asked: Asked
    has_undrafted: bool = False
    has_bias: bool = False  # or a ban of a token
    has_penalty: tuple[bool, ...] = (False,) * len(PENALTIES)
    has_least: bool = False  # a least length
    has_logprobs: bool = False  # of the answer's tokens ...
    has_top: bool = False  # ... and of the likeliest ones

    @staticmethod
    def of(requests: Sequence[Request]) -> "StepKind":
        """Few kinds: rows at T = 0 are always looked for, and numbers of top-k are rounded up to powers of two."""
        samplings = [request.sampling for request in requests]
        nums_logprobs = [request.record.num_logprobs for request in requests if request.record is not None]
        asked = Asked.by(samplings)
        most_k = 1 << (asked.most_k - 1).bit_length() if asked.most_k else 0
        return StepKind(
            asked._replace(has_greedy=True, most_k=most_k),
            not all(request.has_drafts for request in requests),
            any(sampling.logit_bias or sampling.banned_tokens for sampling in samplings),
            tuple(any(getattr(sampling, name) != off for sampling in samplings) for name, off in PENALTIES),
            any(sampling.min_new_tokens for sampling in samplings),
            any(num is not None for num in nums_logprobs),
            any(nums_logprobs),
        )

    @property
    def is_processed(self) -> bool:
        """Whether logits are changed before a token is drawn."""
        return self.has_bias or any(self.has_penalty) or self.has_least

    def penalties(self, penalties_B3: Tensor) -> Penalties:
        """penalties_B3: of a DeviceState."""
        columns = penalties_B3[..., None, None].unbind(1)
        return Penalties(
            *(column if is_asked else None for column, is_asked in zip(columns, self.has_penalty, strict=True))
        )


ON_DEVICE = {"temperature", "top_k", "top_p", "min_p", "logit_bias", "min_new_tokens", *(name for name, _ in PENALTIES)}


def off_device(sampling: Sampling) -> list[str]:
    """Settings that a step on the device does not serve: those that follow the text token by token, on the host."""
    names = sampling.keywords().keys() - ON_DEVICE
    if all(len(word) == 1 for word in sampling.banned_words()):
        names -= {"banned_tokens"}
    return sorted(names)
