"""What the doctor saw and what it says, as text for a terminal."""

import math
import textwrap
from collections.abc import Sequence

from euryale.evaluation.diagnosis import Finding
from euryale.evaluation.doctor import Case, Sample
from euryale.report.format import MISSING
from euryale.report.tables import align

_WIDTH = 110


def doctor_table(case: Case, findings: Sequence[Finding]) -> str:
    """Samples side by side, then the causes with what helps."""
    other = "as plain text" if case.num_chat else "as questions"
    samples = [("prompts", case.asked), ("own openings", case.own), (other, case.other_form), ("T = 0", case.greedy)]
    shown = [(name, sample) for name, sample in samples if sample is not None]
    header = ["", *(name for name, _ in shown)]
    rows = [
        ["tau (tokens a step)", *(f"{sample.tau:.2f}" for _, sample in shown)],
        *(
            [f"head {head} right at first", *(f"{sample.top1[head]:.1%}" for _, sample in shown)]
            for head in range(len(case.asked.top1))
        ),
        ["outside of the draft vocabulary", *(f"{sample.outside_share:.1%}" for _, sample in shown)],
        ["beyond the training's length", *(f"{sample.far_share:.1%}" for _, sample in shown)],
        ["answers, tokens", *(_counts(sample) for _, sample in shown)],
    ]
    own = " / ".join(_percent(top1) for top1 in (case.own_text_now, case.own_text_then))
    lines = [align(header, rows), f"head 0 on held-out text of its training, here / after the training: {own}"]
    return "\n\n".join([*lines, verdict(case, findings)])


def verdict(case: Case, findings: Sequence[Finding]) -> str:
    """The causes, the likeliest first."""
    if not findings and case.own is not None:
        return "Nothing found: tau is what these heads reach on text of their training too."
    if not findings:
        return (
            "Nothing found; text of the training, which would say what these heads can reach, is not on this machine."
        )
    blocks = []
    for place, finding in enumerate(findings):
        gain = "nothing is drafted" if math.isinf(finding.gain) else f"tau would be about {finding.gain:.2f} times"
        title = f"{'likeliest cause' if place == 0 else 'also'}: {finding.cause} ({gain})"
        evidence = textwrap.fill(finding.evidence, _WIDTH, initial_indent="  ", subsequent_indent="  ")
        blocks.append(f"{title}\n{evidence}\n  try: {finding.remedy}")
    return "\n\n".join(blocks)


def _counts(sample: Sample) -> str:
    return f"{sample.num_prompts}, {sample.num_tokens}"


def _percent(top1: Sequence[float] | None) -> str:
    return f"{top1[0]:.1%}" if top1 else MISSING
