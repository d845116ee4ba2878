"""Benchmark of several prompts together against the same ones one after another.

The same prompts, the same engine and the same answers, once as one batch of the scheduler and once alone; with drafts
and without, because a batch fills the processor and speculation then pays less. Ways take turns on every group of
prompts, and the first one changes each time. A round's speed is all its tokens over all its seconds.
"""

import time
from collections.abc import Sequence
from statistics import median
from typing import Any

from euryale.decoding.engine import Engine
from euryale.decoding.request import Generation
from euryale.errors import UserError
from euryale.evaluation.bench import in_turns, what_was_asked
from euryale.evaluation.bench_summary import Round, row_of
from euryale.evaluation.config import BenchSettings
from euryale.evaluation.contenders import Turn
from euryale.evaluation.evaluate import tau_by_depth
from euryale.system.memory import begin_peak, peak
from euryale.system.progress import Progress

WAYS = ("euryale, together", "euryale, one by one", "ar, together", "ar, one by one")


def bench_batches(
    engine: Engine, prompts: Sequence[Sequence[int]], settings: BenchSettings, batch: int
) -> dict[str, Any]:
    """Answers all prompts in groups of `batch`, `repeats` times, in all four ways.

    In the result `contenders` are the ways together, so that a sweep over `batch` is one over speed, tau, the split
    of a step and memory as any other (sweep_results.py).
    Raises UserError: fewer prompts than make a group, more than are answered at once, numbers out of range.
    """
    settings.check()
    groups = [ragged(prompts[at : at + batch]) for at in range(0, len(prompts) - batch + 1, batch)]
    if batch < 2 or not groups:
        raise UserError(
            f"batch must be from 2 to the number of prompts, {len(prompts)}; got {batch}. Give a smaller batch, or "
            "more prompts (limit, prompts=FILE)."
        )
    if batch > engine.max_rows:
        raise UserError(f"batch must be at most {engine.max_rows}, the answers written at once; got {batch}.")
    plain = Engine(engine.base, drafter="none")
    engines = {"euryale": engine, "ar": plain}
    turns: dict[str, list[list[Turn]]] = {way: [[] for _ in range(settings.repeats)] for way in WAYS}
    answers: dict[str, list[list[int]]] = {way: [] for way in WAYS}
    for way in WAYS:
        _answer(engines, way, groups[0], settings, 0)  # warm-up
    progress = Progress("bench", settings.repeats * len(groups) * len(WAYS), "groups")
    for repeat, index, way in in_turns(WAYS, settings.repeats, len(groups)):
        turn, ids = _answer(engines, way, groups[index], settings, index * batch)
        turns[way][repeat].append(turn)
        answers[way] += ids
        progress.advance(1, len(turn.ids))
    progress.close()
    rounds = {way: [Round.of(each) for each in of] for way, of in turns.items()}
    rows = {way: row_of(rounds[way], turns[way]) for way in WAYS}
    steps = [turn.accepted or [] for each in turns["euryale, together"] for turn in each]
    num_rows = len(groups) * batch * settings.repeats
    drafts_together = _ratio(rounds, "euryale, together", "ar, together")
    return what_was_asked(engine, settings) | {
        "batch": batch,
        "row_budget": engine.row_budget,
        "num_nodes": max(max(turn.nodes or [1]) for each in turns["euryale, together"] for turn in each),
        "contenders": {name: rows[f"{name}, together"] for name in engines},
        "ways": rows,
        "spread": {way: [f(r.tokens_per_s for r in of) for f in (min, max)] for way, of in rounds.items()},
        **{f"{name}_together": _ratio(rounds, f"{name}, together", f"{name}, one by one") for name in engines},
        "drafts_together": drafts_together,
        "speedup_vs_ar": drafts_together,
        "drafts_one_by_one": _ratio(rounds, "euryale, one by one", "ar, one by one"),
        "tau_by_depth": tau_by_depth(steps, engine.max_depth(settings.sampling.temperature)),
        "identical": sum(len({tuple(answers[way][row]) for way in WAYS}) == 1 for row in range(num_rows)),
        "total": num_rows,
        "prompt_tokens": [min(map(len, sum(groups, []))), max(map(len, sum(groups, [])))],
    }


def ragged(prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Prompts of unlike lengths: openings that are all equally long are cut, the first the most."""
    if len({len(prompt) for prompt in prompts}) > 1:
        return [list(prompt) for prompt in prompts]
    num = len(prompts)
    return [list(prompt[: max(1, len(prompt) * (i + 1) // num)]) for i, prompt in enumerate(prompts)]


def _answer(
    engines: dict[str, Engine], way: str, group: list[list[int]], settings: BenchSettings, first: int
) -> tuple[Turn, list[list[int]]]:
    """All answers of a group, timed from its prompts' ids to its answers' ids."""
    name, _, grouping = way.partition(", ")
    engine = engines[name]
    seeds = [settings.seed + first + i for i in range(len(group))]
    begin_peak(engine.base.device)
    before = dict(engine.seconds)
    start = time.perf_counter()
    batches = [(group, seeds)]
    if grouping != "together":
        batches = [([prompt], [seed]) for prompt, seed in zip(group, seeds, strict=True)]
    found: list[Generation] = []
    for prompts, own_seeds in batches:
        keywords = settings.sampling.keywords()
        found += engine.generate(prompts, settings.max_new_tokens, seed=own_seeds, **keywords)
    seconds = time.perf_counter() - start
    ids = [generation.ids for generation in found]
    turn = Turn(
        ids=[token for row in ids for token in row],
        seconds=seconds,
        accepted=[gained for generation in found for gained in generation.accepted],
        nodes=[nodes for generation in found for nodes in generation.nodes],
        part_seconds={part: total - before[part] for part, total in engine.seconds.items()},
        peak=peak(engine.base.device),
        # All are admitted at once, so the longest answer has a part in every pass.
        passes=max(generation.num_steps for generation in found) if grouping == "together" else None,
    )
    return turn, ids


def _ratio(rounds: dict[str, list[Round]], way: str, other: str) -> float:
    """The median over rounds: what disturbs a round disturbs both of its ways."""
    return median(a.tokens_per_s / b.tokens_per_s for a, b in zip(rounds[way], rounds[other], strict=True))
