"""Requests of the HTTP API: OpenAI's fields, and those of vLLM's extras that this server follows.

Null is absent and unknown fields are ignored. Fields that are known and asked for what is not possible are refused:
to ignore them would answer another question than the client's.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from euryale.decoding.record import MOST_LOGPROBS
from euryale.decoding.sampling import RANGES
from euryale.server import limits
from euryale.server.errors import bad_request
from euryale.server.response_format import FormFields
from euryale.server.strict import Strict

_OFF: dict[str, tuple[Any, ...]] = {  # known fields: the values that ask for nothing
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "use_beam_search": (False,),
    "prompt_logprobs": (),
    "allowed_token_ids": ([],),
    "bad_words": ([],),
    "guided_grammar": (),
    "truncate_prompt_tokens": (),
    "include_stop_str_in_output": (False,),
    "skip_special_tokens": (True,),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
}

TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Ids = Annotated[list[TokenId], Field(min_length=1)]
Stop = Annotated[str, Field(min_length=1, max_length=limits.MAX_STOP_CHARACTERS)]
Bias = Annotated[float, Field(ge=-100, le=100)]


def _knob(name: str, most: float | None = None) -> Any:
    """In the range that the engine takes, or up to OpenAI's bound; absent: the engine's default."""
    least, highest, _, is_open = RANGES[name]
    gt, ge = (least, None) if is_open else (None, least)
    return Field(default=None, gt=gt, ge=ge, le=highest if most is None else most)


class StreamOptions(Strict):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class TextPart(Strict):
    type: str
    text: str | None = None


class ChatMessage(Strict):
    """A turn; the roles are OpenAI's, and a template sees developer as system and function as tool."""

    role: Literal["developer", "system", "user", "assistant", "tool", "function"]
    content: str | list[TextPart] | None = None
    tool_calls: list[Any] | None = None
    function_call: dict[str, Any] | None = None


class SamplingFields(FormFields):
    """What both kinds of completions share."""

    model_config = ConfigDict(strict=True, extra="allow")  # the extras are looked at once, below

    model: str
    max_tokens: int | None = Field(default=None, ge=0)
    temperature: float | None = _knob("temperature", most=2)
    top_p: float | None = _knob("top_p")
    n: int | None = Field(default=None, ge=1, le=limits.MAX_SEQUENCES)
    seed: int | None = Field(default=None, ge=0, le=limits.MAX_SEED)
    stop: Stop | Annotated[list[Stop], Field(max_length=limits.MAX_STOPS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    presence_penalty: float | None = _knob("presence_penalty")
    frequency_penalty: float | None = _knob("frequency_penalty")
    logit_bias: dict[str, Bias] | None = Field(default=None, max_length=limits.MAX_BIASES)
    user: str | None = None
    top_k: int | None = Field(default=None, ge=-1, lt=2**31)
    min_p: float | None = _knob("min_p")
    repetition_penalty: float | None = _knob("repetition_penalty", most=100)
    min_tokens: int | None = Field(default=None, ge=0)
    stop_token_ids: Annotated[list[TokenId], Field(max_length=limits.MAX_STOP_IDS)] | None = None
    ignore_eos: bool | None = None
    add_special_tokens: bool | None = None
    return_token_ids: bool | None = None

    @model_validator(mode="after")
    def _nothing_impossible(self) -> Self:
        for name, value in (self.model_extra or {}).items():
            if name in _OFF and value is not None and not any(value == off for off in _OFF[name]):
                raise bad_request(f"{name} is not supported by this server. Leave it out.", name)
        if self.stream_options is not None and not self.stream:
            raise bad_request("stream_options goes with stream=true. Leave it out.", "stream_options")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class CompletionRequest(SamplingFields):
    """POST /v1/completions"""

    prompt: str | Annotated[list[str], Field(min_length=1)] | Ids | Annotated[list[Ids], Field(min_length=1)]
    best_of: int | None = None
    logprobs: int | None = Field(default=None, ge=0, le=MOST_LOGPROBS)
    echo: bool | None = None

    @model_validator(mode="after")
    def _one_choice_each(self) -> Self:
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise bad_request("best_of must be equal to n: choices are not ranked here. Leave it out.", "best_of")
        return self


class ChatRequest(SamplingFields):
    """POST /v1/chat/completions"""

    messages: list[ChatMessage] = Field(min_length=1, max_length=limits.MAX_MESSAGES)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MOST_LOGPROBS)

    @model_validator(mode="after")
    def _ranks_of_something(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            message = "top_logprobs goes with logprobs=true. Add it, or leave top_logprobs out."
            raise bad_request(message, "top_logprobs")
        return self


class TokenizeRequest(Strict):
    """POST /tokenize: exactly one of `prompt` and `messages`."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=limits.MAX_MESSAGES)] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None

    @model_validator(mode="after")
    def _one_text(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise bad_request("exactly one of prompt and messages must be given.", "prompt")
        return self


class DetokenizeRequest(Strict):
    """POST /detokenize"""

    model: str | None = None
    tokens: list[TokenId]
