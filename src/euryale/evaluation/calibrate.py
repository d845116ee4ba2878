"""Calibration: the fastest tree for these heads on this machine.

The base writes text, ranks of its tokens under the heads are counted along it (rank_vectors.py), and give the best
tree of every size. A loop of steps over the same text gives each tree's tau (simulate_tau.py), a stopwatch the time of
its steps (time_steps.py), a model of time that grows with nodes and depth takes the noise out, and the finalists are
timed once more before one is chosen (choose_size.py). Trees that every step arranges anew are counted along the same
text (count_dynamic.py), and those that promise most are timed with the finalists (choose_dynamic.py). Last, some of the
text is written again with the best tree of either kind (time_arrangements.py).
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from euryale.base.base import Base
from euryale.data.row_prompts import Opening
from euryale.decoding.engine import Engine
from euryale.decoding.tree.calibration import TREE_FORMAT, Calibration
from euryale.decoding.tree.tree import DynamicTree, Tree
from euryale.errors import UserError
from euryale.evaluation.choose_dynamic import DynamicSizes, choose_dynamic, dynamic_finalists, sizes_in_reach
from euryale.evaluation.choose_size import Measured, Size, choose_size, finalists, fit_times
from euryale.evaluation.config import CalibrateConfig
from euryale.evaluation.count_dynamic import Known, count_dynamic, dynamic_sizes
from euryale.evaluation.rank_vectors import Text, frequent_paths, rank_vectors, read_states
from euryale.evaluation.repetition import repeated_ngram_share
from euryale.evaluation.simulate_tau import reached, replay, walked
from euryale.evaluation.time_arrangements import Arrangements, Gains, time_arrangements, tried
from euryale.evaluation.time_steps import time_steps
from euryale.heads.heads import Heads
from euryale.system.hardware import hardware
from euryale.system.progress import Progress

log = logging.getLogger(__name__)
_SHALLOW_UP_TO = 16  # nodes; in larger trees the verifier's time hides what a level costs
_BLOCK = 8  # texts: breadth prompts come one of each of so many kinds after the other, and both halves shall have all


class Timed(NamedTuple):
    """Trees of one temperature, their tau, and their times in two rounds."""

    trees: dict[Size, Tree]
    tau: dict[Size, float]
    times: dict[Size, Measured]  # of the model
    again: dict[Size, Measured]  # of the finalists, timed once more
    best: Size
    dynamic: DynamicSizes | None  # None: no dynamic tree differs from a fixed one, or too few texts to count any


def calibrate(base: Base, heads: Heads, openings: list[Opening], config: CalibrateConfig, coupled: bool = True) -> dict:
    """Counts ranks and times steps; returns the content of tree.json. coupled: as in the accept rule (AcceptConfig).

    Raises UserError for settings out of range, or when the base's answers are too short to count anything.
    """
    config.check()
    if not openings:
        raise UserError("calibration was given no prompts. Give prompts=FILE, or data with held-out rows.")
    entries = []
    for temperature in config.temperatures:
        texts = _write(base, openings, temperature, config)
        known, counted = _know(base, heads, texts, temperature, config, coupled)
        timed = _time(base, heads, counted, known, config, coupled)
        arrangements = _arrange(base, heads, counted, known, timed, coupled)
        answers = [text.ids[text.num_prompt :] for text in texts]
        entry = _entry(counted, timed) | {"repeated_8grams": repeated_ngram_share(answers)}
        entries.append(entry | (arrangements.as_entry() if arrangements else {}))
        _tell(temperature, timed, arrangements)
    return {
        "format_version": TREE_FORMAT,
        "device": hardware()["gpu"] or hardware()["cpu"],
        "dtype": str(base.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "calibrations": entries,
    }


def _write(base: Base, openings: list[Opening], temperature: float, config: CalibrateConfig) -> list[Text]:
    """The base's own answers, without heads."""
    engine = Engine(base, drafter="none")
    progress = Progress(f"calibration text at T = {temperature}", len(openings), "rows")
    texts = []
    for start in range(0, len(openings), config.batch_size):
        batch = openings[start : start + config.batch_size]
        seeds = [config.seed + start + i for i in range(len(batch))]
        answers = engine.generate([o.ids for o in batch], config.new_tokens, seed=seeds, temperature=temperature)
        progress.advance(len(batch), tokens=sum(len(a.ids) for a in answers))
        texts += [Text(o.ids + a.ids, len(o.ids), s) for o, a, s in zip(batch, answers, seeds, strict=True)]
    progress.close()
    return texts


def _know(
    base: Base, heads: Heads, texts: Sequence[Text], temperature: float, config: CalibrateConfig, coupled: bool
) -> tuple[list[Known], Calibration]:
    """Reads the texts once; and what was counted along all of them. Raises UserError when they are too short."""
    states = [read_states(base, heads, text) for text in texts]
    ranks = [
        rank_vectors(base, heads, text, temperature, config.max_rank, coupled, states_TC)
        for text, states_TC in zip(texts, states, strict=True)
    ]
    counted = _count(ranks, heads, temperature, config)
    halves: list[list[Tensor]] = [[], []]
    for place, ranks_MK in enumerate(ranks):
        halves[_half(place)].append(ranks_MK)
    of_halves = [_count(half, heads, temperature, config) if sum(map(len, half)) else None for half in halves]
    known = [
        Known(text, states_TC, ranks_MK, of_halves[1 - _half(place)])
        for place, (text, states_TC, ranks_MK) in enumerate(zip(texts, states, ranks, strict=True))
    ]
    return known, counted


def _half(place: int) -> int:
    return (place + place // _BLOCK) % 2


def _count(ranks: list[Tensor], heads: Heads, temperature: float, config: CalibrateConfig) -> Calibration:
    """The most frequent paths. Raises UserError when the texts were too short to count any."""
    together = torch.cat(ranks)
    if not len(together):
        raise UserError(
            f"calibration needs answers of at least {heads.num_heads} tokens, and the base ended all {len(ranks)} "
            "sooner. Give other prompts, or a higher calibrate.new_tokens."
        )
    paths, probabilities = frequent_paths(together, config.max_rank, max(config.node_counts) - 1)
    return Calibration(temperature, 1, paths, probabilities, len(together))


def _sizes(calibration: Calibration, node_counts: list[int]) -> list[Size]:
    """The trees to time; the root alone first."""
    counts = [n for n in sorted(set(node_counts)) if n <= len(calibration.paths) + 1]
    shallow: list[Size] = []
    for n in counts:
        if n <= _SHALLOW_UP_TO:
            shallow += [
                (n, d) for d in range(1, calibration.tree_of(n).max_depth) if calibration.tree_of(n, d).num_nodes == n
            ]
    return [(n, None) for n in counts] + shallow


def _time(
    base: Base, heads: Heads, counted: Calibration, known: Sequence[Known], config: CalibrateConfig, coupled: bool
) -> Timed:
    """Times fixed trees of all sizes, then the finalists of both kinds, and chooses one of each."""
    prompt = known[0].text.ids[: known[0].text.num_prompt]
    trees = {size: counted.tree_of(*size) for size in _sizes(counted, config.node_counts)}
    tau = dict(zip(trees, replay([each.ranks_MK for each in known], trees.values()), strict=True))
    shapes = {size: (tree.num_nodes, tree.max_depth) for size, tree in trees.items()}
    times = fit_times(time_steps(base, heads, trees, prompt, counted, config), shapes)
    dynamic_tau: dict[DynamicTree, float] = {}
    if all(each.usual is not None for each in known):
        sizes = dynamic_sizes(sizes_in_reach(tau, times), heads.num_heads)
        dynamic_tau = count_dynamic(base, heads, known, sizes, counted.temperature, coupled)
    likely = dynamic_finalists(dynamic_tau, times)
    last: dict[Size | DynamicTree, Tree | DynamicTree] = {tree: tree for tree in likely}
    last |= {size: trees[size] for size in finalists(tau, times, shapes)}
    turns = time_steps(base, heads, last, prompt, counted, config)
    again = fit_times({size: turns[size] for size in trees if size in last}, shapes)
    dynamic = choose_dynamic(dynamic_tau, times, again, {tree: turns[tree] for tree in likely}) if likely else None
    return Timed(trees, tau, times, again, choose_size(tau, again, shapes), dynamic)


def _arrange(
    base: Base, heads: Heads, counted: Calibration, known: Sequence[Known], timed: Timed, coupled: bool
) -> Arrangements | None:
    """The best tree of either kind against each other; None: there is none of one kind, or no text."""
    texts = tried([each.text for each in known])
    if timed.dynamic is None or not texts:
        return None
    fixed_tau = walked(
        reached(each.ranks_MK, each.usual.tree_of(*timed.best)) for each in known if each.usual is not None
    )
    tau = Gains(fixed_tau, timed.dynamic.tau[timed.dynamic.best])
    chosen = replace(counted, num_nodes=timed.best[0], max_depth=timed.best[1])
    return time_arrangements(base, heads, chosen, timed.dynamic.best, tau, texts, coupled)


def _entry(counted: Calibration, timed: Timed) -> dict[str, Any]:
    """One temperature's part of tree.json, the share of repeated text excepted."""
    tau, times = timed.tau, timed.times

    def described(size: Size, times: Mapping[Size, Measured]) -> dict[str, Any]:
        return {"num_nodes": size[0], "max_depth": size[1], "tau": tau[size], "step_ms": times[size].ms}

    return {
        **vars(counted),
        "num_nodes": timed.best[0],
        "max_depth": timed.best[1],
        "tau": {str(n): tau[n, depth] for n, depth in tau if depth is None},
        "step_ms": {str(n): times[n, depth].ms for n, depth in tau if depth is None},
        "shallow": [described(size, times) for size in tau if size[1] is not None],
        "finalists": [described(size, timed.again) | {"error_ms": timed.again[size].error_ms} for size in timed.again],
        "dynamic": timed.dynamic.as_entry() if timed.dynamic else [],
    }


def _tell(temperature: float, timed: Timed, arrangements: Arrangements | None) -> None:
    chosen, again, tau = timed.trees[timed.best], timed.again, timed.tau
    log.info(
        "calibration at T = %s: %d nodes, %d deep, tau %.2f, %.2f ms a step (+- %.2f)",
        *(temperature, chosen.num_nodes, chosen.max_depth, tau[timed.best], *again[timed.best]),
    )
    if arrangements:
        _tell_arrangements(arrangements)
    others = [size for size in again if size[0] > 1]
    if chosen.num_nodes == 1 and others and not (arrangements and arrangements.is_dynamic_worth_it):
        size = max(others, key=lambda size: tau[size] / again[size].ms)
        log.warning(
            "no tree pays at T = %s: the best, of %d nodes, gains %.2f tokens in %.2f ms, and a plain step takes "
            "%.2f ms. Decoding will not draft there. If others used the machine, fit the tree again with "
            "infer/calibrate.py; else heads that guess better are needed",
            *(temperature, size[0], tau[size], again[size].ms, again[timed.best].ms),
        )


def _tell_arrangements(arrangements: Arrangements) -> None:
    found, tree = arrangements.as_entry(), arrangements.tree
    log.info(
        "%s: arranged anew in every step %d nodes, at most %d deep, write %.2f times as fast (tau %.2f, and %.2f with "
        "one tree; steps timed on %d texts)",
        "a dynamic tree is chosen" if arrangements.is_dynamic_worth_it else "one tree for all steps is chosen",
        *(tree.num_nodes, tree.max_depth, found["dynamic_speedup"], *reversed(arrangements.tau)),
        len(arrangements.turns),
    )
