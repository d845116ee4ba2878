"""Whether the chosen number of nodes pays more as one tree for all steps, or arranged anew in each.

A dynamic tree gains more tokens a step and costs a sort and a choice at every level: little where a step of the base is
long. Ranks do not say what it gains, so some answers that are known are written both ways, in turns, and the seconds of
their steps are compared. The text is the same, so the seconds are all that differs. Both ways know only what was
counted on the other texts: a tree looks better on the text that it was fitted to.
"""

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
from euryale.evaluation.rank_vectors import Text
from euryale.heads.heads import Heads
from euryale.system.progress import Progress

_TEXTS = 8  # that are written both ways, at most; half of them all
_TOKENS = 48  # of each at most
_WORTH_IT = 1.02  # dynamic is chosen when it writes this much faster, and in most texts is not slower
_PARTS = ("prefill", "draft", "verify", "accept", "commit")


class Written(NamedTuple):
    """An answer written once."""

    seconds: float  # of its steps, without the prompt
    num_steps: int
    num_tokens: int


class Arrangements(NamedTuple):
    """The same texts written both ways."""

    depth: int  # of the dynamic tree
    fixed: list[Written]
    dynamic: list[Written]

    @property
    def speedup(self) -> float:
        """Seconds of all texts with the fixed tree over those with the dynamic one."""
        return sum(each.seconds for each in self.fixed) / sum(each.seconds for each in self.dynamic)

    @property
    def is_dynamic_worth_it(self) -> bool:
        """Whether steps should arrange their nodes anew."""
        num_not_slower = sum(b.seconds <= a.seconds for a, b in zip(self.fixed, self.dynamic, strict=True))
        return self.speedup >= _WORTH_IT and 2 * num_not_slower > len(self.fixed)

    def as_entry(self) -> dict[str, float | int | None]:
        """What tree.json keeps of it: fields of Calibration."""
        return {
            "dynamic_depth": self.depth if self.is_dynamic_worth_it else None,
            "dynamic_speedup": self.speedup,
            "dynamic_tau": _tau(self.dynamic),
            "fixed_tau": _tau(self.fixed),
        }


def tried(texts: Sequence[Text]) -> list[int]:
    """The places of the texts that are written both ways: some of all kinds, at most half."""
    answered = [place for place, text in enumerate(texts) if len(text.ids) > text.num_prompt]
    return answered[:: max(2, len(answered) // _TEXTS)][:_TEXTS]


def time_arrangements(
    base: Base, heads: Heads, calibration: Calibration, texts: Sequence[Text], coupled: bool = True
) -> Arrangements | None:
    """calibration: counted on other texts, with the chosen size; the texts were written at its temperature.
    coupled: as in AcceptConfig. None: nothing is drafted there, or there is no text.

    The dynamic tree may be as deep as its nodes and the heads allow: it goes deep only where it is sure. The first text
    is written once more before, so that nobody pays for the first touch of anything.
    """
    tree = calibration.tree()
    if tree.num_nodes == 1 or not texts:
        return None
    matrices = build_matrices(base, heads)
    depth = min(heads.num_heads, tree.num_nodes - 1)
    trees: list[Tree | DynamicTree] = [tree, DynamicTree(tree.num_nodes, depth)]
    slots = max(min(len(text.ids), text.num_prompt + _TOKENS) for text in texts) + 2 * (tree.num_nodes + depth)
    decoders = []
    for each in trees:
        drafter = build_drafter("heads", base, heads, each, calibration, matrices=matrices)
        rule = AcceptConfig(coupled=coupled)
        decoders.append(Decoder(base, drafter, 1, slots, dict.fromkeys(_PARTS, 0.0), rule))
    progress = Progress(f"fixed and dynamic trees at T = {calibration.temperature}", len(texts), "texts")
    written: list[list[Written]] = [[], []]
    for number, text in enumerate([texts[0], *texts]):
        for place in (0, 1) if number % 2 else (1, 0):
            one = _write(base, decoders[place], text, calibration.temperature)
            if number:
                written[place].append(one)
        if number:
            progress.advance()
    progress.close()
    return Arrangements(depth, *written)


def _write(base: Base, decoder: Decoder, text: Text, temperature: float) -> Written:
    """Writes as many tokens as the text's answer has, _TOKENS at most."""
    wanted = min(len(text.ids) - text.num_prompt, _TOKENS)
    request = Request(text.ids[: text.num_prompt], base.tokenizer, Sampling(temperature), text.seed)
    decoder.add(0, [request])
    num_tokens = num_steps = 0
    start = time.perf_counter()
    while num_tokens < wanted:
        gained = decoder.step()[0]
        num_tokens += len(gained)
        num_steps += bool(gained)  # steps on the device tell what they gained one step later
    return Written(time.perf_counter() - start, num_steps, num_tokens)


def _tau(written: Sequence[Written]) -> float:
    return sum(each.num_tokens for each in written) / sum(each.num_steps for each in written)
