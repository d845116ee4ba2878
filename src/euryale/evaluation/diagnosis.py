"""Why tau is low: from what was seen (doctor.py) to causes, the likeliest first, and the command that helps.

A cause is named where taking it away was measured, or bounded, to raise tau by a tenth at least. What no cause
explains, while the heads do well on text of their training, is the kind of text.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

from euryale.evaluation.doctor import Case
from euryale.system.paths import argument

LEAST_GAIN = 1.1  # times tau; less is within what another choice of prompts changes
WEAK_TOP1 = 0.35  # of the first head on text of its own training: with less, a chain gains about a third of a token
_FAR_SHARE = 0.1
_LOST_ACCURACY = 0.9  # of that after the training: less is not another draw of the same text


class Finding(NamedTuple):
    """One cause."""

    cause: str
    gain: float  # times tau, that there would be without it; infinity: nothing is drafted at all
    evidence: str
    remedy: str


def diagnose(case: Case, checkpoint: str, file: str) -> list[Finding]:
    """The causes, the greatest gain first. checkpoint and file are named in the commands."""
    checks: list[Callable[[Case, str, str], Finding | None]] = [
        _no_tree, _other_weights, _template, _temperature, _vocabulary, _context, _weak_heads,
    ]  # fmt: skip
    found = [finding for check in checks if (finding := check(case, checkpoint, file)) is not None]
    found = sorted(found, key=lambda finding: -finding.gain)
    rest = _kind_of_text(case, checkpoint, file, found[0].gain if found else 1.0)
    return [*found, rest] if rest is not None else found


def _no_tree(case: Case, checkpoint: str, file: str) -> Finding | None:
    if case.num_nodes > 1:
        return None
    return Finding(
        "no tree",
        math.inf,
        f"the tree for T = {case.temperature:g} has one node, so nothing is drafted: calibration found that no tree "
        "pays on its machine",
        f"python infer/calibrate.py {argument('checkpoint', checkpoint)} {argument('prompts', file)}"
        "   (on this machine), or tree.num_nodes=16",
    )


def _other_weights(case: Case, checkpoint: str, file: str) -> Finding | None:
    """On the very text of the training the heads were better than they are here."""
    now, then = case.own_text_now, case.own_text_then
    if not now or not then or now[0] >= _LOST_ACCURACY * then[0]:
        return None
    what = "; ".join(case.differences) or "dtype and quantisation are those of the training"
    keys = " ".join(f"{difference.partition('=')[0]}=auto" for difference in case.differences)
    return Finding(
        "another base",
        _with_accuracy(case.asked.tau, then[0] / max(now[0], 0.01)),
        f"on held-out text of its training the first head is right {now[0]:.0%} of the time here, and was "
        f"{then[0]:.0%} after it: {what}",
        keys or "the base that heads.json names: leave base.path out, or copy heads and base again",
    )


def _template(case: Case, checkpoint: str, file: str) -> Finding | None:
    other = case.other_form
    if case.num_nodes == 1 or other is None or other.tau < LEAST_GAIN * case.asked.tau:
        return None
    if case.num_chat:
        asked, better, remedy = "through the chat template", "as plain text", 'rows of {"prompt": "..."}'
    else:
        asked, better, remedy = "as plain text", "through the chat template", 'rows of {"question": "..."}'
    return Finding(
        "template",
        other.tau / case.asked.tau,
        f"the prompts were asked {asked}; {better} tau is {other.tau:.2f} instead of {case.asked.tau:.2f}",
        f"{remedy} in {file}; {'texts' if case.num_chat else 'conversations'} for Engine.generate; "
        f"/v1/{'' if case.num_chat else 'chat/'}completions over HTTP",
    )


def _temperature(case: Case, checkpoint: str, file: str) -> Finding | None:
    if case.num_nodes == 1 or case.greedy is None or case.greedy.tau < LEAST_GAIN * case.asked.tau:
        return None
    if not any(abs(known - case.temperature) < 0.1 for known in case.calibrated):
        known = ", ".join(f"{temperature:g}" for temperature in case.calibrated) or "no temperature"
        remedy = (
            f"python infer/calibrate.py {argument('checkpoint', checkpoint)} "
            f"calibrate.temperatures=[0.0,{case.temperature:g}]   (the tree was calibrated for {known})"
        )
    else:
        remedy = "a lower temperature; or train on text sampled at it (regenerate.temperature, regenerate.greedy_share)"
    return Finding(
        "temperature",
        case.greedy.tau / case.asked.tau,
        f"at T = {case.temperature:g} tau is {case.asked.tau:.2f}, and {case.greedy.tau:.2f} greedily: sampled words "
        "are harder to guess",
        remedy,
    )


def _vocabulary(case: Case, checkpoint: str, file: str) -> Finding | None:
    here, there = case.asked.outside_share, case.own.outside_share if case.own else 0.0
    gain = _with_accuracy(case.asked.tau, (1 - there) / max(1 - here, 0.01))
    if here - there < 0.05 or gain < LEAST_GAIN:
        return None
    beside = f", {there:.0%} of those of its training" if case.own else ""
    return Finding(
        "draft vocabulary",
        gain,
        f"{here:.0%} of the tokens of these answers are not in the draft vocabulary{beside}: heads cannot guess them",
        f"python train/run.py heads.vocab_share=1.0   (all tokens), or with text like {file} in its data",
    )


def _context(case: Case, checkpoint: str, file: str) -> Finding | None:
    sample = case.asked
    if sample.far_share < _FAR_SHARE or sample.near_top1 is None or sample.far_top1 is None:
        return None
    gain = _with_accuracy(sample.tau, sample.near_top1 / max(sample.top1[0], 0.01))
    if gain < LEAST_GAIN:
        return None
    longest = 2 * (case.block_size or 0)
    return Finding(
        "context length",
        gain,
        f"{sample.far_share:.0%} of the tokens stand beyond {case.block_size} tokens, the longest text of the "
        f"training: there the first head is right {sample.far_top1:.0%} of the time, before {sample.near_top1:.0%}",
        f"python train/run.py data.block_size={longest}   (with texts that are so long)",
    )


def _weak_heads(case: Case, checkpoint: str, file: str) -> Finding | None:
    """Heads that know not even the text of their training."""
    known = case.own_text_then or case.own_text_now or (case.own.top1 if case.own else None)
    if not known or known[0] >= WEAK_TOP1:
        return None
    tokens = "" if case.trained_tokens is None else f" of {case.trained_tokens:,} tokens"
    return Finding(
        "weak heads",
        _with_accuracy(case.asked.tau, WEAK_TOP1 / max(known[0], 0.01)),
        f"even on held-out text of their training{tokens} the first head is right only {known[0]:.0%} of the time",
        "python train/run.py optim.num_steps=MORE regenerate.num_prompts=MORE   (docs/recipes.md: what brings what)",
    )


def _kind_of_text(case: Case, checkpoint: str, file: str, explained: float) -> Finding | None:
    """What is left of the distance between the user's prompts and the training's. explained: by the first cause."""
    if math.isinf(explained):
        return None
    asked, own, then = case.asked, case.own, case.own_text_then
    if own is not None:
        gain = own.tau / asked.tau
        beside = f"tau is {own.tau:.2f} on openings of the training and {asked.tau:.2f} on these prompts"
    elif then:
        gain = _with_accuracy(asked.tau, then[0] / max(asked.top1[0], 0.01))
        beside = f"after the training the first head was right {then[0]:.0%} of the time, here {asked.top1[0]:.0%}"
    else:
        return None
    if gain / explained < LEAST_GAIN:
        return None
    return Finding(
        "kind of text",
        gain / explained,
        f"{beside}: the heads know this kind of text less well",
        f"python train/run.py data=files {argument('data.files', file)}"
        f"   (with {argument('heads.init', checkpoint)} to go on from these heads)",
    )


def _with_accuracy(tau: float, factor: float) -> float:
    """How many times tau grows where guesses are right `factor` times as often: what is gained beyond one token a step
    grows with them. A lower bound, as deeper guesses gain too."""
    return (1 + (tau - 1) * factor) / tau
