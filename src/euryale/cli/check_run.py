"""Checks of a whole training run that need its files, and torch not yet.

What a base or the memory has to answer is asked later (preflight.py).
"""

import logging
from dataclasses import replace

from euryale.cli.train_schemas import TrainConfig
from euryale.data.config import DataConfig
from euryale.data.sources import SPLITS, build_source, notices
from euryale.errors import UserError
from euryale.system.files import check_writable
from euryale.system.paths import output_root
from euryale.training.stages import stage_lengths

log = logging.getLogger(__name__)


def check_settings(config: TrainConfig) -> None:
    """Raises UserError for any setting that a stage would refuse.

    The data is opened last, and before any base is: a missing file or an unreachable hub is said at once.
    """
    config.check()  # again: resume= has read others
    if config.data.regenerate and config.data.kind != "regenerated":
        check_writable(output_root(config.regenerate.output), f"regenerate.output={config.regenerate.output}")
    _warn_of_long_warmup(config)
    check_rows(config.data, needs_held_out=config.objective.kind != "pretrain" or config.optim.eval_batches > 0)


def _warn_of_long_warmup(config: TrainConfig) -> None:
    first_share = config.objective.stage_one_share if config.objective.has_two_stages else 1.0
    for stage, num_steps in enumerate(stage_lengths(config.optim.num_steps, first_share), start=1):
        if config.optim.warmup_steps >= num_steps > 0:
            log.warning(
                "optim.warmup_steps=%d, and stage %d has %d steps: the learning rate never comes to its peak",
                config.optim.warmup_steps, stage, num_steps,
            )  # fmt: skip


def check_rows(data: DataConfig, needs_held_out: bool, advice: str = "Give more rows") -> None:
    """Reads one row of each split, and says which files of a folder are not read. Raises UserError, with the advice,
    when there is no row, or it cannot be read."""
    if data.kind == "self":  # its rows are yet to be written
        return
    if data.kind == "mix":
        data = replace(data, mix=[part for part in data.mix if dict(part).get("kind") != "self"])
        if not data.mix:
            return
    if needs_held_out and data.held_out_one_in == 0 and data.kind != "mix":
        raise UserError(
            "data.held_out_one_in must be at least 2, because this run measures on rows that are held out; got 0. "
            "20 is usual."
        )
    unshuffled = replace(data, shuffle_window=1)  # else a whole window is read for it
    of_kind = {"files": data.files, "hub": data.repo, "regenerated": data.folder}
    where = of_kind.get(data.kind) or f"data={data.kind}"
    for split in SPLITS if needs_held_out else SPLITS[:1]:
        if next(iter(build_source(unshuffled, split)), None) is None:
            raise UserError(
                f"{where} gives no row for the split {split}, with data.held_out_one_in={data.held_out_one_in} (one "
                f"row in so many, by a hash of the row; 0: none). {advice}, or another number (20 is usual)."
            )
    for notice in notices(data):
        log.info(notice)
