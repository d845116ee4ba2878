"""Examination of heads on a user's prompts, beside the text that they were trained on.

The same engine answers both, and the answers are scored: tau, accuracy of each head, tokens that the heads cannot
draft, tokens beyond the length that they were trained on. Prompts are asked a second time in the other form (through
the chat template or as plain text), and greedily where they were sampled: what these change is seen, not guessed.
diagnosis.py says what it means.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from euryale.base.base import Base
from euryale.data.batches import Batch
from euryale.data.chat_template import chat_template
from euryale.data.config import DataConfig
from euryale.data.prompt_files import Prompt, read_prompts
from euryale.data.rows import Message
from euryale.data.tokens import prompt_ids
from euryale.decoding.engine import Engine
from euryale.decoding.sampling import Sampling
from euryale.errors import UserError
from euryale.evaluation.config import FEWEST_TOKENS
from euryale.evaluation.evaluate import answer, head_accuracy, held_out_accuracy, written_batches
from euryale.evaluation.prompts import CHECKPOINT_DATA, choose_data, data_is_gone, fit_prompts, load_prompts
from euryale.system.progress import Progress


class Sample(NamedTuple):
    """What was seen of the answers to one set of prompts."""

    num_prompts: int
    num_tokens: int  # of the answers
    tau: float
    top1: list[float]  # by head: the share of tokens that were its first guess
    outside_share: float  # of the answers' tokens: not in the draft vocabulary, so never drafted
    far_share: float  # of the answers' tokens: further from the text's beginning than any text of the training
    near_top1: float | None  # of the first head, where there are enough tokens on both sides
    far_top1: float | None


class Case(NamedTuple):
    """Everything that a diagnosis is made of. `own` and what follows it are None where they could not be measured."""

    asked: Sample  # the user's prompts
    own: Sample | None  # openings held out of the training
    other_form: Sample | None  # the prompts through the chat template, or as text where they went through it
    greedy: Sample | None  # the prompts at T = 0, where they were sampled
    own_text_now: list[float] | None  # top-1 accuracy by head on held-out text of the training, here
    own_text_then: list[float] | None  # and after the training, as report.json tells
    has_template: bool  # of the base
    num_chat: int  # prompts of `asked` that went through it
    temperature: float
    calibrated: list[float]  # temperatures
    num_nodes: int  # of the tree
    block_size: int | None  # tokens of the longest text of the training
    trained_tokens: int | None
    differences: list[str]  # of the base here from the base of the training: dtype, quantisation


@dataclass(frozen=True)
class ExamSettings:
    """How much is asked, and how answers are drawn."""

    limit: int = 16
    max_new_tokens: int = 64
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    batch_size: int = 8


def examine(
    engine: Engine,
    file: str,
    description: Mapping[str, Any],
    report: Mapping[str, Any] | None,
    settings: ExamSettings,
    data: DataConfig | None = None,
) -> Case:
    """file: of the prompts. description: heads.json. report: report.json of the training, where there is one. data:
    what the heads were trained on, where heads.json does not say it.

    Raises UserError: prompts that cannot be read or leave no room for an answer, a base that is not finite.
    """
    base, description = engine.base, dict(description)
    sampling = settings.sampling
    prompts = read_prompts(file)[: settings.limit]
    trained = description.get("provenance", {})
    block_size = trained.get("settings", {}).get("data.block_size")

    def sample(prompts: Sequence[Sequence[int]], name: str, drawn: Sampling = sampling) -> Sample:
        return take_sample(engine, prompts, settings, drawn, block_size, name)

    def form(prompts: Sequence[Prompt]) -> list[list[int]]:
        ids = (prompt_ids(prompt.text, prompt.messages, base.tokenizer, prompt.key) for prompt in prompts)
        return fit_prompts(base, ids, settings.limit, settings.max_new_tokens, file)

    has_template = chat_template(base.tokenizer) is not None
    can_compare = _names_data(data, trained) and not data_is_gone(data, description)
    own_prompts = None
    if can_compare:
        own_prompts = load_prompts(base, None, settings.limit, settings.max_new_tokens, description, data)
    greedy = replace(sampling, temperature=0.0)
    return Case(
        asked=sample(form(prompts), "prompts"),
        own=None if own_prompts is None else sample(own_prompts, "openings of the training"),
        other_form=sample(form([_other_form(p) for p in prompts]), "the other form") if has_template else None,
        greedy=sample(form(prompts), "prompts at T = 0", greedy) if sampling.temperature > 0 else None,
        own_text_now=_top1(held_out_accuracy(engine, choose_data(data, description))) if can_compare else None,
        own_text_then=_top1(report["accuracy"]) if report and report.get("accuracy") else None,
        has_template=has_template,
        num_chat=sum(prompt.messages is not None for prompt in prompts) if has_template else 0,
        temperature=sampling.temperature,
        calibrated=[calibration.temperature for calibration in engine.calibrations],
        num_nodes=engine.num_nodes(sampling.temperature),
        block_size=block_size,
        trained_tokens=trained.get("tokens"),
        differences=differences_of(base, description),
    )


def take_sample(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    settings: ExamSettings,
    sampling: Sampling,
    block_size: int | None,
    name: str,
) -> Sample:
    """Answers prompts with the engine's tree and scores the answers."""
    assert engine.heads is not None, "heads are what is examined"
    progress = Progress(name, len(prompts), "answers")
    answers = answer(engine, prompts, settings.max_new_tokens, sampling, settings.seed, settings.batch_size, progress)
    progress.close()
    batches = written_batches(prompts, answers, settings.batch_size)
    written = [token for generation in answers for token in generation.ids]
    if len(written) < FEWEST_TOKENS:
        raise UserError(
            f"the answers to {name} must have {FEWEST_TOKENS} tokens together to judge by; got {len(written)}. Give "
            "more prompts, a higher limit or max_new_tokens, or prompts that are answered at length."
        )
    draft_ids = engine.heads.draft_ids
    known = None if draft_ids is None else set(draft_ids.tolist())
    near, far = _near_and_far(batches, block_size)
    num_near, num_far = (sum(int(batch.is_target_BT.sum()) for batch in part) for part in (near, far))
    is_both = min(num_near, num_far) >= FEWEST_TOKENS
    return Sample(
        num_prompts=len(prompts),
        num_tokens=len(written),
        tau=len(written) / sum(generation.num_steps for generation in answers),
        top1=_top1(head_accuracy(engine, batches)),
        outside_share=0.0 if known is None else sum(token not in known for token in written) / len(written),
        far_share=num_far / len(written),
        near_top1=_top1(head_accuracy(engine, near))[0] if is_both else None,
        far_top1=_top1(head_accuracy(engine, far))[0] if is_both else None,
    )


def differences_of(base: Base, description: Mapping[str, Any]) -> list[str]:
    """In what the base here is not the base of the training, as settings."""
    trained = description.get("base", {})
    pairs = [
        ("base.dtype", str(base.dtype).removeprefix("torch."), description.get("dtype")),
        ("base.quantization", base.quantization, trained.get("quantization")),
    ]
    return [f"{name}={here} here, {there} in training" for name, here, there in pairs if there and here != there]


def _names_data(data: DataConfig | None, trained: Mapping[str, Any]) -> bool:
    """Whether rows of the training are named; heads that were imported do not say what they learned from."""
    is_asked = data is not None and data.kind != CHECKPOINT_DATA
    return is_asked or "data.kind" in trained.get("settings", {})


def _near_and_far(batches: Sequence[Batch], block_size: int | None) -> tuple[list[Batch], list[Batch]]:
    """The same batches with the targets within the length of the training's texts, and with those beyond it."""
    if block_size is None:
        return list(batches), []
    near = [b._replace(is_target_BT=b.is_target_BT & (b.positions_BT < block_size)) for b in batches]
    far = [b._replace(is_target_BT=b.is_target_BT & (b.positions_BT >= block_size)) for b in batches]
    return near, far


def _other_form(prompt: Prompt) -> Prompt:
    """A question as plain text, or text as a question."""
    if prompt.messages is None:
        return Prompt(None, (Message("user", prompt.text or ""),), prompt.key)
    return Prompt(prompt.messages[-1].content, None, prompt.key)


def _top1(accuracy: Sequence[Mapping[str, float]]) -> list[float]:
    return [head["top1"] for head in accuracy]
