"""Many answers of a real base with its heads, each compared with plain decoding in all logits, bit by bit.

`python tests/many_answers.py checkpoints/smollm2-heads 1000 [new_tokens]` answers the bundled questions in batches of 1
to 8, greedily and sampled, with the heads, and again one by one without drafts. It compares token ids and the base's
logits over the whole vocabulary behind each token: a hidden state that differed would show in them. Prints JSON; exit
status 1 where an answer differs, 2 where the numbers are not proven exact on this machine.
"""

import json
import logging
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from itertools import cycle, islice
from typing import NamedTuple

import torch
from torch import Tensor

from euryale.data.suites import read_suite
from euryale.decoding.engine import Engine
from euryale.decoding.record import Record, RowDraft
from euryale.decoding.request import Request, StopConditions
from euryale.decoding.sampling import Sampling
from euryale.system.progress import Progress

TEMPERATURES = (0.0, 0.7, 1.0)
LARGEST_BATCH = 8


class Asked(NamedTuple):
    prompt: list[int]
    sampling: Sampling
    seed: int


class LogitsRecord(Record):
    """A digest of the logits behind each token of an answer."""

    def __init__(self) -> None:
        super().__init__()
        self.digests: list[bytes] = []

    def take_step(self, logits_NV: Tensor, draft: RowDraft, path: Sequence[int], gained: Sequence[int]) -> None:
        rows = logits_NV[list(path)].contiguous().view(torch.uint8).numpy()
        self.digests += [blake2b(row, digest_size=16).digest() for row in rows]

    def cut(self, num_tokens: int, num_kept: int) -> None:
        del self.digests[num_tokens:]


def questions(engine: Engine, num: int) -> list[Asked]:
    """The bundled questions again and again, each time at another temperature and with another seed."""
    prompts = [engine.encode([{"role": "user", "content": q.turns[0]}]) for q in read_suite("breadth", None)]
    sampled = [Sampling(temperature=temperature) for temperature in TEMPERATURES]
    return [
        Asked(prompts[i % len(prompts)], sampled[(i + i // len(prompts)) % len(sampled)], seed=i) for i in range(num)
    ]


def in_batches(asked: list[Asked]) -> Iterator[list[Asked]]:
    left = iter(asked)
    for size in cycle(range(1, LARGEST_BATCH + 1)):
        batch = list(islice(left, size))
        if not batch:
            return
        yield batch


def answer(engine: Engine, batch: list[Asked], new_tokens: int) -> list[Request]:
    """The batch's answers, decoded together."""
    stop = StopConditions.of(engine.base, None, (), ignore_eos=False)
    requests = [Request.of(engine.base, a.prompt, new_tokens, stop, a.sampling, a.seed) for a in batch]
    scheduler = engine.scheduler(len(requests), max(2, *(request.num_tokens for request in requests)))
    for request in requests:
        request.record = LogitsRecord()
        scheduler.add(request)
    scheduler.run()
    return requests


def outcome(request: Request) -> tuple[list[int], list[bytes]]:
    assert request.generation is not None
    assert isinstance(request.record, LogitsRecord)
    assert len(request.record.digests) == len(request.generation.ids)
    return request.generation.ids, request.record.digests


def main() -> int:
    folder, num_answers, new_tokens = sys.argv[1], int(sys.argv[2]), int((sys.argv[3:] or ["32"])[0])
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    engine = Engine.load(folder)
    if not engine.base.is_exact:
        print(f"the numbers of {engine.base.path} are not proven exact on this machine", file=sys.stderr)
        return 2
    plain = Engine(engine.base, None, "none")
    totals: Counter[str] = Counter()
    batches: Counter[int] = Counter()
    progress = Progress("answers", num_answers, "answers")
    for batch in in_batches(questions(engine, num_answers)):
        found = answer(engine, batch, new_tokens)
        expected = [answer(plain, [asked], new_tokens)[0] for asked in batch]
        for with_heads, alone in zip(found, expected, strict=True):
            assert with_heads.generation is not None
            totals["tokens"] += len(with_heads.generation.ids)
            totals["steps"] += with_heads.generation.num_steps
            totals["differing"] += outcome(with_heads) != outcome(alone)
        batches[len(batch)] += len(batch)
        progress.advance(len(batch), facts=f"{totals['differing']} differ")
    progress.close()
    facts = {"answers": num_answers, "dtype": str(engine.base.dtype), **totals, "answers_by_batch": dict(batches)}
    print(json.dumps(facts))
    return 1 if totals["differing"] else 0


if __name__ == "__main__":
    sys.exit(main())
