"""Stages of a run: most objectives have one, `medusa2` has two in a single run.

Stage one trains heads alone, so that their gradient in the base is not noise later; stage two trains heads and
adapters together (Cai et al. 2024, section 2.2.2). Each stage warms up and cools down by itself. A stage follows from
the step's number alone, so a run that goes on after a stop is in the right one.
"""

import math
from typing import NamedTuple

SCHEDULES = ("constant", "sine")


class Stage(NamedTuple):
    """A step's place: of stage `number` (1 or 2) step `step` (from 0) of `num_steps`."""

    number: int
    step: int
    num_steps: int


def stage_at(step: int, num_steps: int, first_share: float) -> Stage:
    """The stage of optimizer step `step` of a run; stage one takes `first_share` of its steps."""
    first, second = stage_lengths(num_steps, first_share)
    return Stage(1, step, first) if step < first else Stage(2, step - first, second)


def stage_lengths(num_steps: int, first_share: float) -> tuple[int, int]:
    """The steps of either stage."""
    first = round(num_steps * first_share)
    return first, num_steps - first


def heads_weight(stage: Stage, lambda_0: float, schedule: str) -> float:
    """The factor of the heads' loss next to the base's: lambda_0, or growing to it along a quarter sine."""
    if schedule == "constant":
        return lambda_0
    return lambda_0 * math.sin(math.pi / 2 * (stage.step + 1) / stage.num_steps)
