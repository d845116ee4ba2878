"""How much faster are several prompts together than one after another?

The same prompts, the same engine and the same answers, once as one batch of the scheduler and once alone; with drafts
and without, because a batch fills the processor and speculation then pays less. Ways take turns on every group of
prompts, whoever begins changes each time. A round's speed is all its tokens over all its seconds.
"""

import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import torch

from euryale.decoding.engine import Engine
from euryale.errors import UserError
from euryale.progress import Progress
from euryale.serving.benchmark import BenchSettings, in_turns
from euryale.serving.contenders import Turn
from euryale.serving.standings import Round
from euryale.serving.tables import align
from euryale.serving.wording import number, times

WAYS = ("euryale, together", "euryale, one by one", "ar, together", "ar, one by one")


def bench_batches(
    engine: Engine, prompts: Sequence[Sequence[int]], settings: BenchSettings, batch: int, row_budget: int | None = None
) -> dict[str, Any]:
    """Answers all prompts in groups of `batch`, `repeats` times, in all four ways.

    row_budget: nodes of a step's forward, over all rows, at most; None: every row has its whole tree.
    Raises UserError: fewer prompts than make a group, numbers out of range.
    """
    settings.check()
    groups = [ragged(prompts[at : at + batch]) for at in range(0, len(prompts) - batch + 1, batch)]
    if batch < 2 or not groups:
        raise UserError(
            f"batch={batch} was asked for, and there are {len(prompts)} prompts. Give 2 or more, and at least as many "
            "prompts (limit, prompts=FILE)."
        )
    plain = Engine(engine.base, drafter="none")
    engines = {"euryale": engine.with_row_budget(row_budget), "ar": plain}
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
    speeds = {way: median(r.tokens_per_s for r in of) for way, of in rounds.items()}
    num_rows = len(groups) * batch * settings.repeats
    return {
        "batch": batch,
        "row_budget": row_budget,
        "ways": {
            way: {"tokens_per_s": speeds[way], "tokens": of[0].tokens, "tau": _tau(of)} for way, of in rounds.items()
        },
        "spread": {way: [f(r.tokens_per_s for r in of) for f in (min, max)] for way, of in rounds.items()},
        **{f"{name}_together": _ratio(rounds, f"{name}, together", f"{name}, one by one") for name in engines},
        "drafts_together": _ratio(rounds, "euryale, together", "ar, together"),
        "drafts_one_by_one": _ratio(rounds, "euryale, one by one", "ar, one by one"),
        "identical": sum(len({tuple(answers[way][row]) for way in WAYS}) == 1 for row in range(num_rows)),
        "total": num_rows,
        "prompt_tokens": [min(map(len, sum(groups, []))), max(map(len, sum(groups, [])))],
        "temperature": settings.temperature,
        "max_new_tokens": settings.max_new_tokens,
        "num_nodes": engine.num_nodes(settings.temperature),
        "dtype": str(engine.base.dtype).removeprefix("torch."),
        "device": str(engine.base.device),
        "threads": torch.get_num_threads(),
    }


def ragged(prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Prompts of unlike lengths: openings that are all equally long are cut, the first the most."""
    if len({len(prompt) for prompt in prompts}) > 1:
        return [list(prompt) for prompt in prompts]
    num = len(prompts)
    return [list(prompt[: max(1, len(prompt) * (i + 1) // num)]) for i, prompt in enumerate(prompts)]


def batch_table(result: dict[str, Any]) -> str:
    """Every way, its speed and what company brings."""
    rows = []
    for way, row in result["ways"].items():
        alone = way.replace("together", "one by one")
        ratio = row["tokens_per_s"] / result["ways"][alone]["tokens_per_s"]
        low, high = result["spread"][way]
        gain = times(ratio) if way != alone else ""
        rows.append(
            [way, number(row["tokens_per_s"], 1), f"{number(low, 1)}..{number(high, 1)}", gain, number(row["tau"])]
        )
    first, last = result["prompt_tokens"]
    same = f"{result['identical']} of {result['total']} answers identical in all ways"
    return "\n".join(
        [
            align([f"{result['batch']} prompts", "tokens/s", "spread", "over one by one", "tau"], rows),
            "",
            f"prompts of {first} to {last} tokens; {same}",
        ]
    )


def _answer(
    engines: dict[str, Engine], way: str, group: list[list[int]], settings: BenchSettings, first: int
) -> tuple[Turn, list[list[int]]]:
    """All answers of a group, timed from its prompts' ids to its answers' ids."""
    name, _, how = way.partition(", ")
    engine = engines[name]
    seeds = [settings.seed + first + i for i in range(len(group))]
    asked = settings.max_new_tokens, settings.temperature, settings.top_p
    start = time.perf_counter()
    if how == "together":
        found = engine.generate(group, *asked, seed=seeds, **settings.more)
    else:
        found = [
            engine.generate([prompt], *asked, seed=seed, **settings.more)[0]
            for prompt, seed in zip(group, seeds, strict=True)
        ]
    seconds = time.perf_counter() - start
    ids = [generation.ids for generation in found]
    accepted = [gained for generation in found for gained in generation.accepted]
    return Turn([token for row in ids for token in row], seconds, accepted), ids


def _tau(rounds: list[Round]) -> float:
    return sum(r.tokens for r in rounds) / sum(r.steps for r in rounds)


def _ratio(rounds: dict[str, list[Round]], way: str, other: str) -> float:
    """The median over rounds: what disturbs a round disturbs both of its ways."""
    return median(a.tokens_per_s / b.tokens_per_s for a, b in zip(rounds[way], rounds[other], strict=True))
