"""Random decodes, each compared with plain decoding, over models, heads, trees and batches.

`random_decodes(num, seed)` draws random two-layer models, drafters, trees, batches, prompts, settings and endings, and
compares each answer with a loop that recomputes the whole text for every token (plain_decoding.py; for answers after
the first of a batch, one pass over the answer has the same logits under transformers' own causal mask). Some greedy
answers are also compared with transformers' `generate`, some answers with the engine without a drafter.
`python tests/random_decodes.py 10000 [seed] [float32|float64|int4]` runs many and prints JSON.

Models are float64 unless told otherwise: two tokens are then never so close that the order of additions decides,
and a difference is an error. In float32 a mismatch whose two best scores lie within NEAR_TIE is counted apart. In int4
(keys and values in bfloat16) the reference is the same engine without drafts, each prompt alone, and equal bits are
promised; that its numbers are right is for test_compiled_llama.py to say.
"""

from __future__ import annotations

import itertools
import json
import logging
import random
import sys
import time
import warnings
from collections import Counter
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any, NamedTuple

import torch
from compiled_models import int4_base
from plain_decoding import Answer, Request, answer_slowly, answer_with_generate, can_generate, gap_at_divergence
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
from transformers import PreTrainedModel

from euryale.base.base import Base
from euryale.decoding.config import DRAFTERS, AcceptConfig, DrafterConfig, TreeConfig
from euryale.decoding.engine import Engine
from euryale.decoding.request import Generation, StopConditions
from euryale.decoding.sampling import Sampling
from euryale.decoding.tree.calibration import Calibration
from euryale.decoding.tree.tree import ROOT_ONLY, Tree, chain, medusa63
from euryale.errors import UserError
from euryale.heads.heads import Heads
from euryale.system.progress import Progress

NEAR_TIE = 1e-5
DECODES_PER_MODEL = 25


class Mismatch(NamedTuple):
    """An answer that is not the reference's; `gap` lies between the two best scores where they part."""

    where: str
    request: Request
    expected: Answer
    found: Answer
    gap: float


@dataclass
class Report:
    """What was run and what came out."""

    num_decodes: int = 0
    num_tokens: int = 0
    num_with_generate: int = 0
    num_with_ar: int = 0
    num_mixed: int = 0  # batches whose rows are drawn by different settings
    num_refused: int = 0  # models that 4 bits destroy
    mismatches: list[Mismatch] = field(default_factory=list)
    near_ties: list[Mismatch] = field(default_factory=list)
    gained: Counter[int] = field(default_factory=Counter)  # steps by tokens gained
    finish_reasons: Counter[str] = field(default_factory=Counter)
    drafters: Counter[str] = field(default_factory=Counter)  # tokens by drafter, fixed or dynamic tree
    settings: Counter[str] = field(default_factory=Counter)  # batches by what was asked for
    kinds: Counter[str] = field(default_factory=Counter)  # decodes by family, greedy or sampled
    seconds: float = 0.0


def random_model(
    rng: random.Random, dtype: torch.dtype, family: str, is_int4: bool = False
) -> tuple[str, Base, Heads, int]:
    vocab_size = rng.choice([5, 5, rng.randint(5, 12), rng.randint(5, 40)])
    eos = rng.choice([None, None, rng.randrange(vocab_size), rng.sample(range(vocab_size), rng.randint(1, 3))])
    seed = rng.randrange(2**31)
    make_base = int4_base if is_int4 else random_base
    base = make_base(
        family, vocab_size, seed, dtype, max_length=rng.randint(24, 64), eos=eos,
        tie_word_embeddings=rng.random() < 0.3,
    )  # fmt: skip
    vocab_share = rng.choice([1.0, 1.0, 1.0, 0.6])
    designs = rng.choice([HEAD_DESIGNS, HEAD_DESIGNS, EAGLE_DESIGNS])
    design = replace(rng.choice(designs), num_heads=rng.randint(1, 6), vocab_share=vocab_share)
    name = f"{family} V={vocab_size} eos={eos} seed={seed} max_length={base.max_length} {design}"
    return name, base, random_heads(design, base, seed), seed


def any_drafter(rng: random.Random, heads: Heads) -> DrafterConfig:
    lookahead = {"window": rng.randint(1, 6), "ngram": rng.randint(2, 5), "candidates": rng.randint(1, 6)}
    names = [name for name in DRAFTERS[1:] if name != "eagle" or heads.config.kind == "eagle"]
    return DrafterConfig(rng.choice(["heads", *names]), depth=rng.randint(1, 8), spare=rng.randint(1, 6), **lookahead)


def any_draft_base(rng: random.Random, base: Base, seed: int) -> Base:
    """Half of the time the very same weights, which are never wrong; else another model, which mostly is."""
    family = base.path.removeprefix("random-")
    if rng.random() < 0.5:
        tied = base.model.config.tie_word_embeddings
        return random_base(family, base.vocab_size, seed, base.dtype, base.max_length, tie_word_embeddings=tied)
    return random_base(rng.choice(list(FAMILIES)), base.vocab_size, seed + 1, base.dtype, rng.randint(20, 70))


def any_tree(rng: random.Random, vocab_size: int, num_heads: int) -> Tree | TreeConfig:
    kind = rng.choice(["medusa63", "chain", "random", "random", "full", "root", "dynamic", "dynamic", "adaptive"])
    if kind == "adaptive":
        return TreeConfig(rng.choice(["calibrated", "dynamic"]), size="adaptive")
    if kind == "dynamic":
        return TreeConfig("dynamic", rng.randint(1, 32))
    if kind == "random":
        num_ranks = rng.randint(1, min(vocab_size, 8))
        return random_tree(rng, rng.randint(1, num_heads), num_ranks, rng.randint(2, 32))
    if kind == "full":  # every path of few ranks: with five tokens nothing can be rejected
        num_ranks, depth = rng.choice([(5, 2), (5, 3), (2, 6), (3, 5), (4, 4)])
        paths = [path for d in range(depth) for path in itertools.product(range(num_ranks), repeat=d + 1)]
        return Tree.from_paths(paths).pruned(num_heads, num_ranks)
    return {"medusa63": medusa63().pruned(num_heads, 10), "chain": chain(num_heads), "root": ROOT_ONLY}[kind]


def any_calibration(rng: random.Random, num_candidates: int, num_heads: int) -> Calibration:
    """Nothing was counted or timed: only the text is looked at, and sizes should change often."""
    tree = random_tree(rng, num_heads, min(num_candidates, 6), 24)
    chances = sorted((rng.random() for _ in tree.paths[1:]), reverse=True)
    counts = sorted({1, *(rng.randint(2, tree.num_nodes) for _ in range(4))})
    tau = {str(n): 1.0 + sum(chances[: n - 1]) / 3 for n in counts}
    step_ms = {str(n): 1.0 + rng.random() * n / 8 for n in counts}
    dynamic = [
        {"num_nodes": n, "max_depth": rng.randint(1, num_heads), "tau": tau[str(n)] + 0.1, "step_ms": step_ms[str(n)]}
        for n in counts[1:]
        if rng.random() < 0.7
    ]
    how: dict[str, Any] = {"dynamic": dynamic, "dynamic_depth": rng.choice([None, 1, 2])}
    return Calibration(0.0, counts[-1], [list(path) for path in tree.paths[1:]], chances, 100, tau, step_ms, **how)


def random_batch(rng: random.Random, base: Base) -> list[Request]:
    """One to five rows that share all settings but the prompt and the seed; or each with settings of its own."""
    if rng.random() < 0.25:
        return [request for _ in range(rng.randint(2, 5)) for request in random_requests(rng, base, 1)]
    return random_requests(rng, base, rng.randint(1, 5))


def random_requests(rng: random.Random, base: Base, num: int) -> list[Request]:
    max_new_tokens = rng.randint(1, 25)
    eos_ids = () if rng.random() < 0.1 else base.eos_ids
    # Whatever is asked for, one token may always be written: it is not among those that can be forbidden.
    spared = rng.choice([token for token in range(base.vocab_size) if token not in base.eos_ids])
    free = [token for token in range(base.vocab_size) if token != spared]
    stop_ids = tuple(rng.sample(free, 1)) if rng.random() < 0.1 else ()
    letters = base.tokenizer.decode(list(range(min(base.vocab_size, 5))))
    strings = ("".join(rng.choices(letters, k=rng.randint(1, 3))),) if rng.random() < 0.15 else ()
    ends = StopConditions(strings, stop_ids, eos_ids)
    sampling = any_sampling(rng, base.vocab_size, free, max_new_tokens)
    prompts = random_prompts(rng, num, base.vocab_size, longest=23)
    return [Request(p, max_new_tokens, sampling, rng.randrange(2**63), ends) for p in prompts]


def any_sampling(rng: random.Random, vocab_size: int, free: list[int], max_new_tokens: int) -> Sampling:
    """Half of the time plain; each setting alone and all mixtures. Numbers are exact in float32."""
    temperature = rng.choice([0.0, 0.0, 0.7, 1.3])
    how: dict[str, Any] = {"top_p": rng.choice([1.0, 1.0, 0.9, 0.5])}
    if rng.random() < 0.5:
        return Sampling(temperature, **how)
    options: dict[str, Any] = {
        "top_k": rng.randint(1, vocab_size + 1),
        "min_p": rng.choice([0.05, 0.3]),
        "repetition_penalty": rng.choice([0.75, 1.25, 2.0]),
        "presence_penalty": rng.choice([-1.0, 0.5, 2.0]),
        "frequency_penalty": rng.choice([-0.25, 0.25, 1.0]),
        "logit_bias": {rng.randrange(vocab_size): rng.choice([-4.0, 0.5, 2.0]) for _ in range(rng.randint(1, 3))},
        "banned_tokens": [rng.choices(free, k=rng.randint(1, 4)) for _ in range(rng.randint(1, 3))],
        "min_new_tokens": rng.randint(1, max_new_tokens),
    }
    return Sampling(temperature, **how | {name: options[name] for name in options if rng.random() < 0.35})


def generate(engine: Engine, batch: list[Request], report: Report | None = None) -> list[Answer]:
    agree = len({repr(request._replace(prompt=[], seed=0)) for request in batch}) == 1
    generations = generate_alike(engine, batch) if agree else generate_each(engine, batch)
    for generation in generations if report else []:
        assert sum(generation.accepted) == len(generation.ids) and generation.num_steps == len(generation.accepted)
        report.gained.update(generation.accepted)  # type: ignore[union-attr]
        report.finish_reasons[generation.finish_reason] += 1  # type: ignore[union-attr]
    return [Answer(generation.ids, generation.finish_reason, generation.text) for generation in generations]


def generate_alike(engine: Engine, batch: list[Request]) -> list[Generation]:
    first = batch[0]
    return engine.generate(
        [request.prompt for request in batch],
        first.max_new_tokens,
        seed=[request.seed for request in batch],
        stop=first.ends.strings,
        stop_ids=first.ends.stop_ids,
        ignore_eos=first.ends.eos_ids != engine.base.eos_ids,
        **first.sampling.keywords(),
    )


def generate_each(engine: Engine, batch: list[Request]) -> list[Generation]:
    """Every row by its own settings; the scheduler's are those of the last."""
    longest = max(len(request.prompt) + request.max_new_tokens for request in batch)
    common = batch[-1].sampling.keywords() | {"min_new_tokens": 0}
    scheduler = engine.scheduler(min(len(batch), engine.max_rows), longest, **common)
    plain = {item.name: item.default if item.default is not MISSING else {} for item in fields(Sampling)}
    handles = [
        scheduler.submit(
            request.prompt,
            request.max_new_tokens,
            request.seed,
            request.ends.strings,
            request.ends.stop_ids,
            request.ends.eos_ids != engine.base.eos_ids,
            **plain | request.sampling.keywords(),
        )
        for request in batch
    ]
    scheduler.run()
    return [handle.generation for handle in handles if handle.generation is not None]


def random_decodes(
    num: int,
    seed: int,
    dtype: torch.dtype = torch.float64,
    progress: Progress | None = None,
    is_int4: bool = False,
) -> Report:
    """At least `num` decodes. Every number is drawn from `seed`."""
    rng = random.Random(seed)
    report = Report()
    families = itertools.cycle(FAMILIES)
    start = time.perf_counter()
    while report.num_decodes < num:
        name, base, heads, model_seed = random_model(rng, dtype, next(families), is_int4)
        if is_int4 and not survives_4_bits(base):
            report.num_refused += 1
            continue
        model = twin(base)
        plain = Engine(base, drafter="none")
        target = min(num, report.num_decodes + DECODES_PER_MODEL)
        while report.num_decodes < target:
            drafter, tree = any_drafter(rng, heads), any_tree(rng, base.vocab_size, heads.num_heads)
            while isinstance(tree, TreeConfig) and tree.size == "adaptive" and heads.config.kind == "eagle":
                tree = any_tree(rng, base.vocab_size, heads.num_heads)  # refused
            is_adaptive = isinstance(tree, TreeConfig) and tree.size == "adaptive"
            drafter = DrafterConfig("heads") if is_adaptive else drafter
            if drafter.name == "lookahead":
                tree = TreeConfig("dynamic", rng.choice([None, None, rng.randint(1, 40)]))
            calibrations = [any_calibration(rng, heads.num_candidates, heads.num_heads)] if is_adaptive else []
            batch = random_batch(rng, base)
            where = f"{name} {drafter} {tree} batch of {len(batch)}"
            draft_base = any_draft_base(rng, base, model_seed) if drafter.name == "model" else None
            how: dict[str, Any] = {"draft_base": draft_base, "max_rows": rng.choice([1, 2, 64])}  # some wait for a row
            accept = AcceptConfig(coupled=rng.random() < 0.8)
            engine = Engine(base, heads, drafter, tree, calibrations, accept=accept, **how)
            found = generate(engine, batch, report)
            shape = "adaptive" if is_adaptive else "dynamic" if isinstance(tree, TreeConfig) else "fixed"
            who = "eagle" if (drafter.name, heads.config.kind) == ("heads", "eagle") else drafter.name
            report.drafters[f"{who} {shape}"] += sum(len(answer.ids) for answer in found)
            if is_int4:
                expected = [answer for request in batch for answer in generate(plain, [request])]
            else:
                # The first of a batch token by token, which is slow; the others in one pass over what was found.
                guesses = [[], *(answer.ids for answer in found[1:])]
                expected = [answer_slowly(model, base, *each) for each in zip(batch, guesses, strict=True)]
            compare(report, model, where, batch, expected, found)
            if rng.random() < 0.2:
                compare(report, model, f"{where}, without a drafter", batch, expected, generate(plain, batch))
                report.num_with_ar += len(batch)
            if not is_int4 and can_generate(batch[0]) and rng.random() < 0.8:
                theirs = expected[0]._replace(ids=answer_with_generate(model, base, batch[0]))
                compare(report, model, f"{where}, transformers' generate", batch[:1], expected[:1], [theirs])
                report.num_with_generate += 1
            report.settings.update(list(batch[0].sampling.keywords()))
            report.num_mixed += len({repr(request.sampling) for request in batch}) > 1
            report.num_decodes += len(batch)
            report.num_tokens += sum(len(answer.ids) for answer in expected)
            if progress is not None:
                progress.advance(len(batch), facts=f"{len(report.mismatches)} mismatches")
            report.kinds[f"{name.split()[0]} {'sampled' if batch[0].sampling.temperature else 'greedy'}"] += len(batch)
    report.seconds = time.perf_counter() - start
    return report


def survives_4_bits(base: Base) -> bool:
    try:
        base.forward()
    except UserError:  # of random weights one model in some hundreds
        return False
    return True


def compare(
    report: Report,
    model: PreTrainedModel,
    where: str,
    batch: list[Request],
    expected: list[Answer],
    found: list[Answer],
) -> None:
    for request, right, answer in zip(batch, expected, found, strict=True):
        if answer != right:
            gap = gap_at_divergence(model, request, right.ids, answer.ids)
            is_tie = model.dtype == torch.float32 and gap < NEAR_TIE
            (report.near_ties if is_tie else report.mismatches).append(Mismatch(where, request, right, answer, gap))


def main() -> None:
    num, seed = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    numbers = sys.argv[3] if len(sys.argv) > 3 else "float64"
    dtype = torch.bfloat16 if numbers == "int4" else getattr(torch, numbers)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    warnings.filterwarnings("ignore", message="Unfeasible length constraints")  # transformers; short contexts are meant
    progress = Progress("random decodes", num, "answers")
    report = random_decodes(num, seed, dtype, progress, numbers == "int4")
    progress.close()
    for mismatch in report.mismatches + report.near_ties:
        print(mismatch)
    summary = {key: len(value) if isinstance(value, list) else value for key, value in vars(report).items()}
    print(json.dumps(summary))
    sys.exit(1 if report.mismatches else 0)


if __name__ == "__main__":
    main()
