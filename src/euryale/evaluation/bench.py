"""Benchmark of Euryale against the same weights decoded otherwise.

Contenders take turns on every prompt, and the first one changes each time, so that a machine that warms up, cools
down or is shared treats them alike. One counter counts the tokens of all; a round's speed is all its tokens over all
its seconds, the result is the median round.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import psutil
import torch

from euryale.decoding.engine import Engine
from euryale.errors import UserError
from euryale.evaluation.bench_summary import Turns, standings
from euryale.evaluation.config import BenchSettings
from euryale.evaluation.contenders import CONTENDERS
from euryale.system.memory import begin_peak, peak
from euryale.system.progress import Progress

_LISTEN_SECONDS = 0.3
log = logging.getLogger(__name__)


def bench(engine: Engine, prompts: Sequence[Sequence[int]], settings: BenchSettings) -> dict[str, Any]:
    """Runs all contenders over all prompts (lists of token ids), `repeats` times; the `bench` section of a report.

    Prompts must leave room for max_new_tokens (see prompts.fit_prompts). On a GPU the split of a step is blurred:
    draft and verify return before the device has finished, and their time is counted as that of `accept`, which waits.
    Raises UserError: an unknown contender, no prompts, numbers out of range.
    """
    turns = take_turns(engine, prompts, settings)
    temperature = settings.sampling.temperature
    standing = standings(turns, engine.max_depth(temperature), is_greedy=temperature == 0)
    return what_was_asked(engine, settings) | standing


def take_turns(engine: Engine, prompts: Sequence[Sequence[int]], settings: BenchSettings) -> Turns:
    """Every contender's answer to every prompt in every round, for `standings`."""
    settings.check()
    if not prompts:
        raise UserError("the benchmark was given no prompts. Name a file with prompts=FILE.")
    warn_when_busy()
    contenders = {
        name: CONTENDERS[name](engine, settings.sampling, settings.max_new_tokens)
        for name in dict.fromkeys(settings.contenders)
    }
    turns: Turns = {name: [[] for _ in range(settings.repeats)] for name in contenders}
    device = engine.base.device

    for answer in contenders.values():  # warm-up, a whole answer: kernels are chosen and memory is taken here
        answer(list(prompts[0]), settings.seed)
    progress = Progress("bench", settings.repeats * len(prompts) * len(contenders), "answers")
    for repeat, index, name in in_turns(list(contenders), settings.repeats, len(prompts)):
        begin_peak(device)
        turn = contenders[name](list(prompts[index]), settings.seed + index)
        turns[name][repeat].append(turn._replace(peak=peak(device)))
        progress.advance(1, len(turn.ids))
    progress.close()
    return turns


def what_was_asked(engine: Engine, settings: BenchSettings) -> dict[str, Any]:
    """The settings that a result cannot be read without."""
    sampling = settings.sampling
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        **sampling.keywords(),
        "seed": settings.seed,
        "accept": asdict(engine.accept),
        "drafter": engine.drafter.name,
        "tree": engine.tree_name,
        "num_nodes": engine.num_nodes(sampling.temperature),
        "max_depth": engine.max_depth(sampling.temperature),
        "max_new_tokens": settings.max_new_tokens,
        "repeats": settings.repeats,
        "dtype": str(engine.base.dtype).removeprefix("torch."),
        "device": str(engine.base.device),
        "threads": torch.get_num_threads(),
    }


def in_turns(names: Sequence[str], repeats: int, count: int) -> Iterator[tuple[int, int, str]]:
    """(round, index, name): every name once at every index of every round, another one first each time."""
    for repeat in range(repeats):
        for index in range(count):
            for name in rotated(names, repeat + index):
                yield repeat, index, name


def rotated(names: Sequence[str], turn: int) -> tuple[str, ...]:
    """The same names in the same circle, another one first at every turn."""
    first = turn % len(names)
    return (*names[first:], *names[:first])


def warn_when_busy() -> None:
    """Warns that absolute numbers of a shared machine say little; contenders are still compared fairly.

    What others use is seen while this process waits; the load would count the work that it has just done itself.
    """
    used = psutil.cpu_percent(interval=_LISTEN_SECONDS)
    if used > 20.0:
        log.warning("the machine is busy (others use %.0f%% of it): trust ratios and their spread, not tokens/s", used)
