"""Prompts of a measurement as token ids that fit the base: those of a file, or openings held out of training."""

import logging
from collections.abc import Iterable
from dataclasses import fields, replace
from typing import Any

from euryale.base.base import Base
from euryale.data.config import DataConfig
from euryale.data.prompt_files import read_prompts
from euryale.data.row_prompts import Opening, draw_openings, split_openings
from euryale.data.sources import build_source, is_gone
from euryale.data.tokens import prompt_ids
from euryale.errors import UserError, check_least
from euryale.evaluation.breadth import calibration_openings, can_answer, measured_prompts, mixed_openings
from euryale.evaluation.config import CalibrateConfig

BREADTH_FILE = "data/breadth.jsonl"
CHECKPOINT_DATA = "checkpoint"  # data.kind: what the heads were trained on
log = logging.getLogger(__name__)


def check_prompts(file: str | None, data: DataConfig | None, description: dict[str, Any]) -> None:
    """Raises UserError for a file of prompts that cannot be read, or unknown rows; before a base is loaded."""
    if file is not None:
        read_prompts(file)
    elif not data_is_gone(data, description):
        rows = replace(choose_data(data, description), shuffle_window=1)  # else a whole window is read for the first
        rows.check()
        next(iter(build_source(rows, "held_out")), None)


def load_prompts(
    base: Base,
    file: str | None,
    limit: int,
    max_new_tokens: int,
    description: dict[str, Any],
    data: DataConfig | None = None,
) -> list[list[int]]:
    """At most `limit` prompts that leave room for an answer: of a file, else openings of held-out rows.

    The rows are those of `data`; without it, of what the heads were trained on, which `description` (heads.json)
    knows; breadth prompts where that is not on this machine. Questions go through the base's chat template where it
    has one, text stays as it is. Raises UserError: a limit below 1, a file that cannot be read, data that is gone for
    a base without a chat template, no prompt that fits.
    """
    check_least(1, limit=limit)
    if file is not None:
        found = read_prompts(file)
        ids = (prompt_ids(prompt.text, prompt.messages, base.tokenizer, prompt.key) for prompt in found)
        return fit_prompts(base, ids, limit, max_new_tokens, file)
    if data_is_gone(data, description):
        _say_breadth(base, choose_data(data, description))
        return fit_prompts(base, measured_prompts(base), limit, max_new_tokens, BREADTH_FILE)
    data = choose_data(data, description)
    # As many and as long as training drew for calibration, so that its half is not measured on.
    drawn = CalibrateConfig()
    try:
        _, openings = held_out_openings(base, data, max(limit, drawn.num_prompts), drawn.prompt_tokens)
    except UserError as error:
        raise UserError(f"no held-out prompts: {error} Or give prompts=FILE, for example data/prompts.txt.") from error
    return fit_prompts(base, (opening.ids for opening in openings), limit, max_new_tokens, f"held-out {data.kind} rows")


def load_openings(
    base: Base, file: str | None, config: CalibrateConfig, description: dict[str, Any], data: DataConfig | None
) -> list[Opening]:
    """What is calibrated on: prompts of a file, else held-out rows and breadth prompts, else these alone where what the
    heads were trained on is not on this machine. Raises UserError as `load_prompts`."""
    if file is not None:
        prompts = load_prompts(base, file, config.num_prompts, config.new_tokens, description)
        return [Opening(ids, str(number), file) for number, ids in enumerate(prompts)]
    chosen = choose_data(data, description)
    if data_is_gone(data, description):
        _say_breadth(base, chosen)
        return calibration_openings(base, config.num_prompts)
    openings, _ = held_out_openings(base, chosen, config.num_prompts, config.prompt_tokens)
    return mixed_openings(base, openings, config.num_prompts, config.breadth_share)


def data_is_gone(data: DataConfig | None, description: dict[str, Any]) -> bool:
    """Whether the rows to use are those of the checkpoint's training, and they are not on this machine."""
    is_asked = data is not None and data.kind != CHECKPOINT_DATA
    return not is_asked and is_gone(choose_data(data, description))


def _say_breadth(base: Base, data: DataConfig) -> None:
    """One line. Raises UserError for a base that cannot answer the breadth prompts."""
    place = data.folder or data.files or f"data={data.kind}"
    if not can_answer(base):
        raise UserError(
            f"no held-out prompts: what the heads were trained on ({place}) is not on this machine. Give prompts=FILE, "
            "for example data/prompts.txt."
        )
    log.info("what the heads were trained on (%s) is not on this machine: using prompts of %s", place, BREADTH_FILE)


def held_out_openings(base: Base, data: DataConfig, count: int, num_tokens: int) -> tuple[list[Opening], list[Opening]]:
    """Prompts that the heads never saw: one list to calibrate on, another to measure on."""
    rows = build_source(data, "held_out")
    openings = draw_openings(rows, base.tokenizer, 4 * count, num_tokens, data.seed, data.on_error)
    room = base.max_length // 2
    return split_openings([o for o in openings if len(o.ids) <= room], count)


def choose_data(data: DataConfig | None, description: dict[str, Any]) -> DataConfig:
    """`data` as asked for, else what the checkpoint was trained on. Raises UserError when heads.json is silent."""
    if data is not None and data.kind != CHECKPOINT_DATA:
        return data
    settings = description.get("provenance", {}).get("settings", {})
    known = {f.name: settings[f"data.{f.name}"] for f in fields(DataConfig) if f"data.{f.name}" in settings}
    if not description:
        raise UserError(
            "without a checkpoint no prompts can be held out of its training. Give prompts=FILE, for example "
            "data/prompts.txt."
        )
    if "kind" not in known:
        raise UserError(
            "this checkpoint does not say what it was trained on, so no prompts can be held out of it. "
            "Give prompts=FILE, for example data/prompts.txt."
        )
    return replace(DataConfig(), **known)


def fit_prompts(
    base: Base, prompts: Iterable[list[int]], limit: int, max_new_tokens: int, origin: str
) -> list[list[int]]:
    """The first `limit` prompts with room for max_new_tokens: an answer that the context cuts off times nothing."""
    kept: list[list[int]] = []
    num_long = num_empty = 0
    for prompt in prompts:
        if len(kept) == limit:
            break
        if not prompt:
            num_empty += 1
        elif len(prompt) + max_new_tokens > base.max_length:
            num_long += 1
        else:
            kept.append(prompt)
    if not kept:
        raise UserError(
            f"none of the prompts of {origin} can be used: {num_long} leave no room for "
            f"max_new_tokens={max_new_tokens} in the context of {base.max_length} tokens, "
            f"{num_empty} are empty. Lower max_new_tokens or give others."
        )
    if num_long or num_empty:
        log.warning(
            "%s: left out %d prompts without room for %d new tokens in a context of %d, and %d empty ones",
            origin, num_long, max_new_tokens, base.max_length, num_empty,
        )  # fmt: skip
    return kept
