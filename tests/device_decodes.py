"""Random decodes with steps on the device, each compared with plain decoding by the CPU's own forward.

    python tests/device_decodes.py NUM [SEED]

Random two-layer models of four families decode through the kernels' specification, in steps on the device: heads with
and without induction and of kind eagle on fixed, dynamic and adaptive trees, lookup, and both; greedy, sampled,
filtered and penalised rows that come and go; logprobs; ends by id, string, length and context. What is compared with is
the engine without a drafter, on the same weights, through another forward and the decoder's own steps; where the rule
is rejection or typical, the same engine with the decoder's own steps. All are float32, so where the two best scores of
plain decoding lie within NEAR_TIE the order of additions may decide; such answers are counted apart. Prints JSON. Not a
test file itself.
"""

from __future__ import annotations

import json
import logging
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kernel_bases import SIZES, with_backend
from plain_decoding import Request, gap_at_divergence
from random_models import (
    EAGLE_DESIGNS,
    FAMILIES,
    HEAD_DESIGNS,
    random_base,
    random_heads,
    random_prompts,
    random_tree,
    twin,
)

from euryale.base.base import Base
from euryale.decoding.config import AcceptConfig, TreeConfig
from euryale.decoding.device_loop import DeviceLoop
from euryale.decoding.device_step import DeviceStep
from euryale.decoding.engine import Engine
from euryale.decoding.record import Record
from euryale.decoding.request import Generation, StopConditions
from euryale.decoding.request import Request as Handle
from euryale.decoding.sampling import Sampling
from euryale.decoding.scheduler import Scheduler
from euryale.decoding.tree.calibration import Calibration
from euryale.decoding.tree.tree import Tree, chain

FORKED = Tree.from_paths([(0,), (0, 0), (1,), (0, 1), (0, 0, 2)])
SEARCHING = tuple(design for design in HEAD_DESIGNS if design.induction)
# The larger tree pays while guesses are as good as was promised, and none does while they are not.
CALIBRATED = Calibration(
    0.0, 3, [[0], [1], [0, 0], [2], [0, 1]], [0.5, 0.2, 0.2, 0.1, 0.1], 100,
    {"1": 1.0, "3": 1.3, "6": 1.5}, {"1": 1.0, "3": 1.1, "6": 1.2},
)  # fmt: skip
RULES = ("exact",) * 6 + ("typical", "rejection")  # to choose from
NEAR_TIE = 1e-5
ROWS, BATCHES_A_MODEL, PROMPTS = 3, 4, 12


def any_settings(rng: random.Random, vocab_size: int, amount: int, length: int) -> dict[str, Any]:
    """What a row of `length` new tokens is asked; with an amount of 0 little but temperature and ends, with 3 much."""
    how: dict[str, Any] = {
        "temperature": rng.choice([0.0, 0.7, 1.3]),
        "seed": rng.randrange(2**40),
        "stop": rng.choice([None, "c", ["ab", "d"]]),
        "stop_ids": rng.choice([(), (3,), tuple(range(vocab_size - 1, vocab_size // 2, -1))]),
        "drafter": rng.choice([None, None, "none"]),
        "logprobs": rng.choice([None, None, 0, 3]),
    }
    options: dict[str, Any] = {
        "top_k": rng.randint(1, 40),
        "top_p": rng.choice([0.5, 0.9]),
        "min_p": rng.choice([0.05, 0.3]),
        "repetition_penalty": rng.choice([0.75, 1.25, 2.0]),
        "presence_penalty": rng.choice([-1.0, 0.5, 2.0]),
        "frequency_penalty": rng.choice([-0.25, 0.25, 1.0]),
        "logit_bias": {rng.randrange(vocab_size): rng.choice([-4.0, 0.5, 4.0]) for _ in range(2)},
        "min_new_tokens": rng.randint(1, length),
        "banned_tokens": [rng.randrange(1, vocab_size), *([[3, 4]] if rng.random() < 0.1 else [])],
    }
    return how | {name: value for name, value in options.items() if rng.random() < 0.12 * amount}


def same(found: list[Generation], expected: list[Generation]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (one.ids, one.text, one.finish_reason, one.seed) == (
            other.ids,
            other.text,
            other.finish_reason,
            other.seed,
        )


def any_engine(rng: random.Random, base: Base, number: int, rule: str) -> Engine:
    """Heads, lookup, both or none, on any tree; a third of the heads is of kind eagle, most others search texts.

    Lookup on the device may exchange equally likely guesses, and adaptive trees see what was accepted one step later.
    The text of other rules than exact depends on both.
    """
    designs = EAGLE_DESIGNS if number % 3 == 2 else SEARCHING if number % 4 else HEAD_DESIGNS
    heads = random_heads(rng.choice(designs), base, seed=number)
    tree: Any = rng.choice([None, chain(2), random_tree(rng, 4, 5, 9), TreeConfig("dynamic", rng.randint(2, 12))])
    drafters = ["heads", "heads", "heads+lookup", "lookup"] if rule == "exact" else ["heads"]
    drafter = "none" if tree is None else rng.choice(drafters)
    if drafter == "lookup":
        tree = TreeConfig("dynamic", rng.randint(2, 12))
    if rule == "exact" and drafter == "heads" and heads.config.kind != "eagle" and rng.random() < 0.3:
        tree = TreeConfig(rng.choice(["calibrated", "dynamic"]), size="adaptive")
    is_coupled = rng.random() < 0.8 and rule != "rejection"
    return Engine(base, heads, drafter, tree, [CALIBRATED], accept=AcceptConfig(rule, coupled=is_coupled))


def submit(scheduler: Scheduler, prompt: list[int], length: int, how: dict[str, Any]) -> Handle:
    """how: of any_settings."""
    how = dict(how)
    return scheduler.submit(prompt, length, record=Record(how.pop("logprobs")), **how)


def are_close(one: Generation, other: Generation) -> bool:
    """Whether logprobs differ by no more than two orders of additions in float32 may explain."""
    numbers = [[p for t in answer.logprobs for p in (t.logprob, *(p for _, p in t.top))] for answer in (one, other)]
    return len(numbers[0]) == len(numbers[1]) and all(abs(a - b) < 1e-4 for a, b in zip(*numbers, strict=True))


@contextmanager
def off_the_device() -> Iterator[None]:
    """Decoders that are made meanwhile take the decoder's own steps."""
    why_not = DeviceLoop.why_not
    DeviceLoop.why_not = staticmethod(lambda *args: "it is compared with")  # type: ignore[method-assign]
    try:
        yield
    finally:
        DeviceLoop.why_not = staticmethod(why_not)  # type: ignore[method-assign]


def answers(
    engine: Engine, prompts: list[list[int]], lengths: list[int], settings: list[dict[str, Any]]
) -> list[Generation]:
    """Each prompt by its own settings; ROWS at a time, and a step after every one that comes."""
    scheduler = engine.scheduler(ROWS, 24)
    requests = []
    for prompt, length, how in zip(prompts, lengths, settings, strict=True):
        requests.append(submit(scheduler, prompt, length, how))
        scheduler.step()
    scheduler.run()
    return [request.generation for request in requests if request.generation is not None]


def device_decodes(num: int, seed: int) -> dict[str, object]:
    """At least `num` decodes. Every number is drawn from `seed`."""
    rng, counts, found_wrong = random.Random(seed), Counter[str](), list[str]()
    run, begin, number = DeviceStep.__call__, time.perf_counter(), 0

    def counted(self: DeviceStep, *args: Any) -> None:
        counts["device_steps"] += 1
        run(self, *args)

    DeviceStep.__call__ = counted  # type: ignore[method-assign]
    while counts["decodes"] < num:
        family = list(FAMILIES)[number % len(FAMILIES)]
        vocab_size = rng.choice([5, 8, 29])  # of few tokens a draft is often right
        sizes: dict[str, Any] = SIZES[family] | {"max_length": rng.choice([24, 128]), "eos": rng.choice([None, 3])}
        base = with_backend(random_base(family, vocab_size, rng.randrange(2**31), **sizes), "torch")
        model, plain = twin(base), Engine(with_backend(base, "auto"), drafter="none")
        for _ in range(BATCHES_A_MODEL):
            rule = rng.choice(RULES)
            engine = any_engine(rng, base, number, rule)
            prompts = random_prompts(rng, PROMPTS, vocab_size, longest=9)
            lengths = [min(rng.randint(1, 14), 23 - len(prompt)) for prompt in prompts]
            settings = [any_settings(rng, vocab_size, number // 4 % 4, length) for length in lengths]
            ours = answers(engine, prompts, lengths, settings)
            with off_the_device():  # plain decoding knows no other rule
                theirs = answers(plain if rule == "exact" else engine, prompts, lengths, settings)
            for prompt, length, how, one, other in zip(prompts, lengths, settings, ours, theirs, strict=True):
                counts["decodes"] += 1
                counts[rule] += 1
                counts["tokens"] += len(other.ids)
                counts["drafts_accepted"] += sum(one.accepted) - len(one.accepted)
                if (one.ids, one.text, one.finish_reason) == (other.ids, other.text, other.finish_reason):
                    counts["wrong_logprobs"] += not are_close(one, other)
                    continue
                knobs = {k: v for k, v in how.items() if k not in ("seed", "stop", "stop_ids", "drafter", "logprobs")}
                request = Request(prompt, length, Sampling(**knobs), how["seed"], StopConditions())
                gap = gap_at_divergence(model, request, other.ids, one.ids)
                counts["near_ties" if gap < NEAR_TIE else "mismatches"] += 1
                found_wrong.append(f"{family} {number} {prompt} {how} {one.ids} {other.ids} gap {gap:.2e}")
        number += 1
        if number % 25 == 0:
            logging.info("%s", dict(counts))
    seconds = round(time.perf_counter() - begin)
    return {**counts, "models": number, "seconds": seconds, "wrong": found_wrong}


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("euryale").setLevel(logging.WARNING)
    result = device_decodes(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    print(json.dumps(result))
    sys.exit(bool(result.get("mismatches") or result.get("wrong_logprobs")))
