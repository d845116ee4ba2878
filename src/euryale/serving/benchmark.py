"""How fast is Euryale, next to the same weights decoded otherwise?

Contenders take turns on every prompt, and whoever begins changes each time, so that a machine that warms up, cools
down or is shared treats them alike. One counter counts everybody's tokens; a round's speed is all its tokens over
all its seconds, the result is the median round.
"""

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch

from euryale.decoding.engine import Engine
from euryale.decoding.sampling import MoreSampling, Sampling
from euryale.errors import UserError
from euryale.model.files import write_json
from euryale.progress import Progress
from euryale.serving.contenders import CONTENDERS, Turn
from euryale.serving.textstats import repeated_ngram_share

PARTS = ("draft", "verify", "accept", "commit")
DEFAULT_CONTENDERS = ("euryale", "ar", "hf_generate", "hf_prompt_lookup")
Answers = list[list[list[int]]]  # new ids by round and prompt
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BenchSettings:
    """What every contender is asked."""

    contenders: Sequence[str] = DEFAULT_CONTENDERS
    repeats: int = 3
    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    more: MoreSampling = field(default_factory=MoreSampling)  # the keywords of Sampling beside these two

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.top_p, **self.more)

    def check(self) -> None:
        """Raises UserError for names or numbers that cannot be."""
        unknown = [name for name in self.contenders if name not in CONTENDERS]
        if unknown or not self.contenders:
            asked = f"contenders=[{','.join(self.contenders)}]: " + (
                "not known: " + ", ".join(unknown) if unknown else ""
            )
            raise UserError(f"{asked or 'none was named'}. Choose from: {', '.join(CONTENDERS)}.")
        if self.repeats < 1:
            raise UserError(f"repeats={self.repeats} measures nothing. Give a number of at least 1 (3 is usual).")
        if self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens={self.max_new_tokens} cannot be. Give a number of at least 1.")
        others = [name for name in self.contenders if name.startswith("hf_")]
        if others and not self.sampling.is_known_to_transformers:
            raise UserError(
                f"contenders=[{','.join(self.contenders)}]: transformers has no presence and frequency penalties, so "
                f"its text would be another. Leave out: {', '.join(others)}."
            )


@dataclass
class Round:
    """Sums over all prompts."""

    turns: int = 0
    tokens: int = 0
    seconds: float = 0.0
    steps: int = 0
    part_seconds: dict[str, float] = field(default_factory=dict)

    def add(self, turn: Turn) -> None:
        self.turns += 1
        self.tokens += len(turn.ids)
        self.seconds += turn.seconds
        self.steps += turn.num_steps or 0
        for part, seconds in (turn.part_seconds or {}).items():
            self.part_seconds[part] = self.part_seconds.get(part, 0.0) + seconds

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds


def bench(engine: Engine, prompts: Sequence[Sequence[int]], settings: BenchSettings) -> dict[str, Any]:
    """Runs all contenders over all prompts (lists of token ids), `repeats` times; the `bench` section of a report.

    Prompts must leave room for max_new_tokens (see prompts.fit_prompts). On a GPU the split of a step is blurred:
    draft and verify return before the device has finished, and `accept`, which waits, takes the blame.
    Raises UserError: an unknown contender, no prompts, numbers out of range.
    """
    settings.check()
    if not prompts:
        raise UserError("the benchmark was given no prompts. Name a file with prompts=FILE.")
    _warn_when_busy()
    asked = settings.sampling, settings.max_new_tokens
    contenders = {name: CONTENDERS[name](engine, *asked) for name in dict.fromkeys(settings.contenders)}
    rounds: dict[str, list[Round]] = {name: [] for name in contenders}
    answers: dict[str, Answers] = {name: [] for name in contenders}

    for answer in contenders.values():  # warm-up, a whole answer: kernels are chosen and memory is taken here
        answer(list(prompts[0]), settings.seed)
    progress = Progress("bench", settings.repeats * len(prompts) * len(contenders), "answers")
    for repeat in range(settings.repeats):
        for name in contenders:
            rounds[name].append(Round())
            answers[name].append([])
        for index, prompt in enumerate(prompts):
            for name in rotated(list(contenders), repeat + index):
                turn = contenders[name](list(prompt), settings.seed + index)
                rounds[name][-1].add(turn)
                answers[name][-1].append(turn.ids)
                progress.advance(1, len(turn.ids))
    progress.close()
    return _summary(engine, settings, rounds, answers)


def write_result(file: Path, result: dict[str, Any]) -> None:
    """A .jsonl file gets one more line, any other name is (over)written. Raises UserError when the disk refuses."""
    if file.suffix != ".jsonl":
        write_json(file, result)
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(result) + "\n")
    except OSError as error:
        raise UserError(f"output={file} cannot be written: {error}. Give another file.") from error


def rotated(names: list[str], turns: int) -> list[str]:
    """The same names, another one first each turn."""
    first = turns % len(names)
    return names[first:] + names[:first]


def _summary(
    engine: Engine,
    settings: BenchSettings,
    rounds: dict[str, list[Round]],
    answers: dict[str, Answers],
) -> dict[str, Any]:
    num_prompts = len(next(iter(answers.values()))[0])
    told = answers.get("euryale") or answers.get("ar") or next(iter(answers.values()))
    result: dict[str, Any] = {
        "contenders": {name: _row(of) for name, of in rounds.items()},
        "spread": {name: _ends([r.tokens_per_s for r in of]) for name, of in rounds.items()},
        "repeated_8grams": repeated_ngram_share(told[0]),
        "temperature": settings.temperature,
        **{"top_p": settings.top_p, **settings.more},
        "seed": settings.seed,
        "drafter": engine.drafter.name,
        "num_nodes": engine.num_nodes(settings.temperature),
        "max_new_tokens": settings.max_new_tokens,
        "num_prompts": num_prompts,
        "repeats": settings.repeats,
        "dtype": str(engine.base.dtype).removeprefix("torch."),
        "device": str(engine.base.device),
        "threads": torch.get_num_threads(),
    }
    speeds = {name: row["tokens_per_s"] for name, row in result["contenders"].items()}
    for key, rival in (("speedup_vs_ar", "ar"), ("speedup_vs_hf", "hf_generate")):
        if "euryale" in speeds and rival in speeds:
            result[key] = speeds["euryale"] / speeds[rival]
            pairs = zip(rounds["euryale"], rounds[rival], strict=True)
            result[f"{key}_spread"] = _ends([own.tokens_per_s / other.tokens_per_s for own, other in pairs])
    if "euryale" in answers and "ar" in answers:
        result["identical"] = _num_identical(answers["euryale"], answers["ar"])
        result["total"] = num_prompts
    if "euryale" in answers and "hf_generate" in answers and settings.temperature == 0:
        result["identical_hf"] = _num_identical(answers["euryale"], answers["hf_generate"])
    return result


def _row(rounds: list[Round]) -> dict[str, Any]:
    """Medians over rounds. `ms_per_step` leaves the prompt out; what the parts do not cover of it is bookkeeping."""
    row: dict[str, Any] = {
        "tokens_per_s": median(r.tokens_per_s for r in rounds),
        "tokens": round(median(r.tokens for r in rounds)),
    }
    if rounds[0].steps:
        row["tau"] = sum(r.tokens for r in rounds) / sum(r.steps for r in rounds)
        prefill = [r.part_seconds.get("prefill", 0.0) for r in rounds]
        row["prefill_ms"] = 1000 * median(prefill) / rounds[0].turns
        row["ms_per_step"] = median(
            1000 * (r.seconds - before) / r.steps for r, before in zip(rounds, prefill, strict=True)
        )
        row["split_ms"] = {part: median(1000 * r.part_seconds[part] / r.steps for r in rounds) for part in PARTS}
    return row


def _num_identical(own: Answers, other: Answers) -> int:
    """Prompts answered with the same ids in every round."""
    return sum(
        all(mine[index] == theirs[index] for mine, theirs in zip(own, other, strict=True))
        for index in range(len(own[0]))
    )


def _ends(values: list[float]) -> list[float]:
    return [min(values), max(values)]


def _warn_when_busy() -> None:
    """A shared machine still compares contenders fairly, but its absolute numbers are nobody's."""
    load, cores = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0, os.cpu_count() or 1
    if load > 0.8 * cores:
        log.warning(
            "the machine is busy (load %.1f on %d cores): trust ratios and their spread, not tokens/s", load, cores
        )
