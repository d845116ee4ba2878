"""Whether steps pay more with one tree for all of them, or with nodes that each step arranges anew.

A dynamic tree gains more tokens a step and costs a sort and a choice at every level: little where a step of the base is
long. What either gains is counted along all calibration texts. What their steps take is timed while known answers are
written both ways, a few steps in turns, text by text until the choice is clear. Texts gain very different numbers of
tokens, but their steps take nearly the same, so a few texts time what many have counted.

The median turn decides, so that the moments in which others took the machine do not. Clear is: that median lies further
from _WORTH_IT than twice its standard error, after _FEWEST texts at least. After _MOST texts it decides as it is.
"""

import statistics
import time
from collections.abc import Sequence
from typing import NamedTuple

from euryale.base.base import Base
from euryale.decoding.config import AcceptConfig
from euryale.decoding.decoder import Decoder
from euryale.decoding.drafters.build import build_drafter, build_matrices
from euryale.decoding.request import Request
from euryale.decoding.sampling import Sampling
from euryale.decoding.tree.calibration import Calibration
from euryale.decoding.tree.tree import DynamicTree, Tree
from euryale.evaluation.choose_size import error_of_median
from euryale.evaluation.rank_vectors import Text
from euryale.evaluation.time_steps import synchronise
from euryale.heads.heads import Heads
from euryale.system.progress import Progress

_FEWEST, _MOST = 4, 12  # texts that are written both ways
_TOKENS = 48  # of each at most
_TURN = 4  # steps of one way before those of the other: what else runs on a machine comes and goes within a second
_WORTH_IT = 1.02  # dynamic is chosen when it writes this much faster
_PARTS = ("prefill", "draft", "verify", "accept", "commit")


class Gains(NamedTuple):
    """Tokens a step along all texts, by what was counted on others: a tree looks better where it was fitted."""

    fixed: float
    dynamic: float


class Arrangements(NamedTuple):
    """The same texts written both ways."""

    tree: DynamicTree
    tau: Gains
    turns: list[list[float]]  # by text: milliseconds of a step of the fixed tree over those of one of the dynamic tree

    def speedups(self) -> list[float]:
        """How much faster the dynamic tree writes, by turn."""
        gain = self.tau.dynamic / self.tau.fixed
        return [gain * ratio for of_text in self.turns for ratio in of_text]

    @property
    def is_clear(self) -> bool:
        """Whether more texts would hardly change the choice."""
        speedups = self.speedups()
        if len(self.turns) < _FEWEST:
            return False
        return abs(statistics.median(speedups) - _WORTH_IT) > 2 * error_of_median(speedups)

    @property
    def is_dynamic_worth_it(self) -> bool:
        """Whether steps should arrange their nodes anew."""
        return statistics.median(self.speedups()) >= _WORTH_IT

    def as_entry(self) -> dict[str, float | int | None]:
        """What tree.json keeps of it: fields of Calibration."""
        return {
            "dynamic_nodes": self.tree.num_nodes if self.is_dynamic_worth_it else None,
            "dynamic_depth": self.tree.max_depth if self.is_dynamic_worth_it else None,
            "dynamic_speedup": statistics.median(self.speedups()),
            "dynamic_tau": self.tau.dynamic,
            "fixed_tau": self.tau.fixed,
        }


def tried(texts: Sequence[Text]) -> list[Text]:
    """The texts that may be written both ways: those with an answer, of all kinds."""
    answered = [text for text in texts if len(text.ids) > text.num_prompt]
    return answered[:: max(1, len(answered) // _MOST)][:_MOST]


def time_arrangements(
    base: Base,
    heads: Heads,
    calibration: Calibration,
    tree: DynamicTree,
    tau: Gains,
    texts: Sequence[Text],
    coupled: bool = True,
) -> Arrangements:
    """calibration: with the chosen size of a fixed tree; the texts (at least one) were written at its temperature.
    coupled: as in AcceptConfig.

    The first text is written once more before, so that nobody pays for the first touch of anything.
    """
    matrices = build_matrices(base, heads)
    trees: tuple[Tree | DynamicTree, ...] = (calibration.tree(), tree)
    spare = 2 * max(each.num_nodes + each.max_depth for each in trees)
    slots = max(min(len(text.ids), text.num_prompt + _TOKENS) for text in texts) + spare
    decoders = []
    for each in trees:
        drafter = build_drafter("heads", base, heads, each, calibration, matrices=matrices)
        rule = AcceptConfig(coupled=coupled)
        decoders.append(Decoder(base, drafter, 1, slots, dict.fromkeys(_PARTS, 0.0), rule))
    progress = Progress(f"fixed and dynamic trees at T = {calibration.temperature}", len(texts), "texts")
    found = Arrangements(tree, tau, [])
    for number, text in enumerate([texts[0], *texts]):
        turns = _write(base, decoders, text, calibration.temperature)
        if number:
            found.turns.append(turns)
            progress.advance()
        if found.is_clear:
            break
    progress.close()
    return found


def _write(base: Base, decoders: Sequence[Decoder], text: Text, temperature: float) -> list[float]:
    """Writes as many tokens as the text's answer has, _TOKENS at most, until one of the two decoders is done.

    Returns the first one's time of a step over the second one's, by turn; who comes first changes every time.
    """
    wanted = min(len(text.ids) - text.num_prompt, _TOKENS)
    for decoder in decoders:
        decoder.add(0, [Request(text.ids[: text.num_prompt], base.tokenizer, Sampling(temperature), text.seed)])
    num_tokens, ratios = [0, 0], list[float]()
    while max(num_tokens) < wanted:
        seconds = [0.0, 0.0]
        for place in (1, 0) if len(ratios) % 2 else (0, 1):
            num_steps, start = 0, time.perf_counter()
            while num_steps < _TURN and num_tokens[place] < wanted:
                num_tokens[place] += len(decoders[place].step()[0])
                num_steps += 1
            synchronise(base)
            seconds[place] = (time.perf_counter() - start) / num_steps
        ratios.append(seconds[0] / seconds[1])
    return ratios
