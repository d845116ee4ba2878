"""What of a run can be used already: heads that decode, or at the end a base that was trained.

It is written beside the resume state, after it. A kill between the two leaves what an older save published, which
whoever goes on with the run puts right.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from euryale.model.base import Base
from euryale.model.checkpoint import DESCRIPTION, provenance, read_description, save_base, save_heads
from euryale.model.heads import Heads
from euryale.training.objective import ObjectiveConfig

BASE = "base"


def publish(
    folder: Path,
    base: Base,
    heads: Heads | None,
    objective: ObjectiveConfig,
    facts: Mapping[str, object],
    is_last: bool,
) -> None:
    """Writes the heads into `folder`, or behind the last step the base into `folder`/base. `facts` are step, tokens and
    settings of the run."""
    if heads is not None:
        save_heads(folder, heads, base, provenance() | dict(facts), objective=asdict(objective))
    elif is_last:
        save_base(folder / BASE, base)


def is_published(folder: Path, heads: Heads | None, step: int, is_last: bool) -> bool:
    """Whether what can be used in `folder` is that of this step."""
    if heads is None:
        return not is_last or (folder / BASE / "model.safetensors").is_file()
    if not (folder / DESCRIPTION).is_file():
        return False
    return read_description(folder).get("provenance", {}).get("step") == step
