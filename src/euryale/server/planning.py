"""From a request to the jobs that answer it: defaults, limits of this model, seeds. Nothing here waits.

Choice i of a request is drawn with its seed + i, so that any choice can be written again alone.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, fields

from euryale.data.rows import ROLES, Message
from euryale.decoding.sampling import Sampling
from euryale.errors import UserError
from euryale.server.backend import BackendInfo, Job
from euryale.server.errors import bad_request, shown
from euryale.server.limits import MAX_SEED, RANDOM_SEEDS
from euryale.server.schemas import ChatMessage, SamplingFields

_KNOBS = {knob.name for knob in fields(Sampling)} & set(SamplingFields.model_fields)
DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's, of /v1/completions


@dataclass
class Plan:
    """The jobs of a request, prompt after prompt, n choices each."""

    prompts: list[list[int]]
    num_choices: int  # of each prompt
    seed: int
    max_tokens: int
    needs_engine: bool  # False: nothing is to be written or scored
    jobs: list[Job] = field(default_factory=list)

    def prompt_of(self, index: int) -> int:
        """The number of the prompt that choice `index` answers."""
        return index // self.num_choices


def plan_jobs(
    request: SamplingFields,
    prompts: list[list[int]],
    max_tokens: int | None,
    info: BackendInfo,
    num_logprobs: int | None = None,
    wants_prompt_logprobs: bool = False,
) -> Plan:
    """max_tokens: None takes what the context leaves. Raises ApiError 400 for what the model cannot do."""
    room = info.row_tokens - max(len(prompt) for prompt in prompts)
    asked = max(room, 1) if max_tokens is None else max_tokens
    _check_length(prompts, asked, info.row_tokens)
    if request.min_tokens is not None and request.min_tokens > asked:
        raise bad_request(f"min_tokens must be at most max_tokens={asked}; got {request.min_tokens}.", "min_tokens")
    if num_logprobs is not None and not info.has_logprobs:
        raise bad_request("logprobs is not available yet. Leave it out.", "logprobs")
    sampling = _sampling(request, info.vocab_size)
    num_choices = request.n or 1
    seed = secrets.randbelow(RANDOM_SEEDS) if request.seed is None else request.seed
    plan = Plan(prompts, num_choices, seed, asked, asked > 0 or wants_prompt_logprobs)
    plan.jobs = [
        Job(
            prompts[plan.prompt_of(index)],
            max(asked, 1),
            sampling,
            (seed + index) % (MAX_SEED + 1),
            request.stops,
            _stop_ids(request.stop_token_ids or [], info.vocab_size),
            bool(request.ignore_eos),
            wants_text=bool(request.stream),
            num_logprobs=num_logprobs,
            wants_prompt_logprobs=wants_prompt_logprobs,
        )
        for index in range(len(prompts) * num_choices)
    ]
    return plan


def messages_of(messages: Sequence[ChatMessage]) -> list[Message]:
    """Raises ApiError 400 for a turn that is not text alone: a template would show the model another conversation."""
    turns = []
    for number, message in enumerate(messages):
        for name in ("tool_calls", "function_call"):
            if getattr(message, name):
                raise bad_request(
                    f"messages.{number}.{name} is not supported. Leave it out.", f"messages.{number}.{name}"
                )
        content = message.content
        if content is None:
            raise bad_request(f"messages.{number}.content must be text; got none.", f"messages.{number}.content")
        if isinstance(content, list):
            wrong = next((part.type for part in content if part.type != "text" or part.text is None), None)
            if wrong is not None:
                param = f"messages.{number}.content"
                raise bad_request(f"{param} must be text; got a part of type {shown(wrong)}.", param)
            content = "".join(part.text or "" for part in content)
        turns.append(Message(ROLES[message.role], content))
    return turns


def _check_length(prompts: Sequence[Sequence[int]], max_tokens: int, row_tokens: int) -> None:
    for prompt in prompts:
        if len(prompt) + max_tokens > row_tokens:
            raise bad_request(
                f"prompt and answer must be at most {row_tokens} tokens together; got {len(prompt)} of the prompt and "
                f"max_tokens={max_tokens}. Shorten one of them.",
                "max_tokens" if len(prompt) < row_tokens else "prompt",
                "context_length_exceeded",
            )


def _sampling(request: SamplingFields, vocab_size: int) -> Sampling:
    """The knobs that a request names; the others are the engine's own, but for OpenAI's temperature of 1."""
    knobs = {"temperature": 1.0} | request.model_dump(include=_KNOBS, exclude_none=True)
    knobs |= {
        "top_k": max(request.top_k or 0, 0),  # vLLM's -1 is all
        "logit_bias": _biases(request.logit_bias or {}, vocab_size),
        "min_new_tokens": request.min_tokens or 0,
        **_form(request),
    }
    try:
        return Sampling.of(**knobs)
    except UserError as error:
        raise bad_request(str(error)) from error


def _form(request: SamplingFields) -> dict[str, str | None]:
    """The grammar alone, so that an error names its field."""
    form = request.form
    if form is None:
        return {}
    asked = {"json_schema": form.json_schema, "regex": form.regex}
    try:
        Sampling.of(**asked)
    except UserError as error:
        raise bad_request(f"{form.param}: {error}", form.param) from error
    return asked


def _biases(asked: dict[str, float], vocab_size: int) -> dict[int, float]:
    biases = {}
    for key, bias in asked.items():
        if not (key.isascii() and key.isdigit() and len(key) <= 10 and int(key) < vocab_size):
            raise bad_request(
                f"logit_bias must have token ids from 0 to {vocab_size - 1} as keys; got {shown(key)}.", "logit_bias"
            )
        biases[int(key)] = bias
    return biases


def _stop_ids(asked: Sequence[int], vocab_size: int) -> tuple[int, ...]:
    wrong = next((token for token in asked if token >= vocab_size), None)
    if wrong is not None:
        param = "stop_token_ids"
        raise bad_request(f"{param} must hold token ids from 0 to {vocab_size - 1}; got {wrong}.", param)
    return tuple(asked)
