"""Sums of the turns of a benchmark.

A round is all prompts once. Its speed is all its tokens over all its seconds; a contender's is that of its median
round, so that one disturbed round changes nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from euryale.evaluation.contenders import Turn
from euryale.evaluation.evaluate import tau_by_depth
from euryale.evaluation.repetition import repeated_ngram_share

PARTS = ("draft", "verify", "accept", "commit")
Turns = dict[str, list[list[Turn]]]  # by contender, round and prompt


@dataclass
class Round:
    """Sums over all prompts."""

    turns: int = 0
    tokens: int = 0
    seconds: float = 0.0
    steps: int = 0  # of all answers
    passes: int = 0  # forwards of the base: several answers may share one
    part_seconds: dict[str, float] = field(default_factory=dict)

    @staticmethod
    def of(turns: Sequence[Turn]) -> "Round":
        total = Round()
        for turn in turns:
            total.turns += 1
            total.tokens += len(turn.ids)
            total.seconds += turn.seconds
            steps = len(turn.accepted or ())
            total.steps += steps
            total.passes += steps if turn.passes is None else turn.passes
            for part, seconds in (turn.part_seconds or {}).items():
                total.part_seconds[part] = total.part_seconds.get(part, 0.0) + seconds
        return total

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds


def standings(turns: Turns, max_depth: int, is_greedy: bool) -> dict[str, Any]:
    """Every contender's numbers, and how ours compare. max_depth: of the drafts that were verified.

    is_greedy: only then is transformers' text to be ours; its sampling draws other numbers.
    """
    rounds = {name: [Round.of(each) for each in own] for name, own in turns.items()}
    told = turns.get("euryale") or turns.get("ar") or next(iter(turns.values()))
    result: dict[str, Any] = {
        "contenders": {name: row_of(rounds[name], turns[name]) for name in turns},
        "spread": {name: _ends([r.tokens_per_s for r in of]) for name, of in rounds.items()},
        "repeated_8grams": repeated_ngram_share(turn.ids for turn in told[0]),
        "num_prompts": len(told[0]),
    }
    if "euryale" in turns:
        steps = [turn.accepted or [] for each in turns["euryale"] for turn in each]
        result["tau_by_depth"] = tau_by_depth(steps, max_depth) if any(steps) else []
    speeds = {name: row["tokens_per_s"] for name, row in result["contenders"].items()}
    for key, rival in (("speedup_vs_ar", "ar"), ("speedup_vs_hf", "hf_generate")):
        if "euryale" in speeds and rival in speeds:
            result[key] = speeds["euryale"] / speeds[rival]
            pairs = zip(rounds["euryale"], rounds[rival], strict=True)
            result[f"{key}_spread"] = _ends([own.tokens_per_s / other.tokens_per_s for own, other in pairs])
    if "euryale" in turns and "ar" in turns:
        result["identical"] = _num_identical(turns["euryale"], turns["ar"])
        result["total"] = len(told[0])
    if "euryale" in turns and "hf_generate" in turns and is_greedy:
        result["identical_hf"] = _num_identical(turns["euryale"], turns["hf_generate"])
    return result


def row_of(rounds: Sequence[Round], turns: Sequence[Sequence[Turn]]) -> dict[str, Any]:
    """One contender's numbers: medians over rounds.

    `ms_per_step` leaves the prompt out; what the parts do not cover of it is bookkeeping.
    """
    row: dict[str, Any] = {
        "tokens_per_s": median(r.tokens_per_s for r in rounds),
        "tokens": round(median(r.tokens for r in rounds)),
    }
    if rounds[0].steps:
        row["tau"] = sum(r.tokens for r in rounds) / sum(r.steps for r in rounds)
        nodes = [n for each in turns for turn in each for n in turn.nodes or ()]
        if nodes:
            row["mean_nodes"] = sum(nodes) / len(nodes)
            row["undrafted_share"] = nodes.count(1) / len(nodes)
        prefill = [r.part_seconds.get("prefill", 0.0) for r in rounds]
        row["prefill_ms"] = 1000 * median(prefill) / rounds[0].turns
        row["ms_per_step"] = median(
            1000 * (r.seconds - before) / r.passes for r, before in zip(rounds, prefill, strict=True)
        )
        row["split_ms"] = {part: median(1000 * r.part_seconds[part] / r.passes for r in rounds) for part in PARTS}
    peaks = [turn.peak for each in turns for turn in each if turn.peak is not None]
    if peaks:
        row["peak_host_bytes"] = max(peak.host_bytes for peak in peaks)
        on_device = [peak.device_bytes for peak in peaks if peak.device_bytes is not None]
        row |= {"peak_device_bytes": max(on_device)} if on_device else {}
    return row


def _num_identical(own: Sequence[Sequence[Turn]], other: Sequence[Sequence[Turn]]) -> int:
    """Prompts answered with the same ids in every round."""
    return sum(
        all(mine[index].ids == theirs[index].ids for mine, theirs in zip(own, other, strict=True))
        for index in range(len(own[0]))
    )


def _ends(values: list[float]) -> list[float]:
    return [min(values), max(values)]
