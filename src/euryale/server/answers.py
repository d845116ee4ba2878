"""Answers of the HTTP API, in OpenAI's shapes.

Fields that were never set are left out when a model is written, so null appears where OpenAI's API has it alone.
`metrics` has vLLM's names; `euryale` is our own.
"""

from typing import Literal

from pydantic import BaseModel

FinishReason = Literal["stop", "length"]


class ErrorInfo(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    error: ErrorInfo


class PromptDetails(BaseModel):
    cached_tokens: int


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails | None = None


class SpeculativeDecoding(BaseModel):
    """Of all sequences of the request. Drafted tokens are the nodes of the trees, roots excluded."""

    mean_acceptance_length: float
    draft_acceptance_rate: float
    acceptance_histogram: list[int]  # steps that accepted 0, 1, 2, ... drafted tokens
    num_spec_steps: int
    num_accepted_draft_tokens: int
    num_draft_tokens: int
    num_spec_tokens: int  # drafted tokens that a step can gain at most


class RequestMetrics(BaseModel):
    time_to_first_token_ms: float | None
    queue_time_ms: float
    tokens_per_second: float | None
    speculative_decoding: SpeculativeDecoding | None


class EuryaleInfo(BaseModel):
    """Choice i was drawn with seed + i."""

    tau: float | None  # tokens a step
    seed: int
    is_lossless: bool
    drafter: str


class CompletionLogprobs(BaseModel):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class CompletionChoice(BaseModel):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None


class Completion(BaseModel):
    """An answer of /v1/completions, or one event of its stream."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
    metrics: RequestMetrics | None = None
    euryale: EuryaleInfo | None = None


class RankedToken(BaseModel):
    token: str
    logprob: float
    bytes: list[int] | None


class ChatToken(RankedToken):
    top_logprobs: list[RankedToken]


class ChatLogprobs(BaseModel):
    content: list[ChatToken]
    refusal: None


class ChatAnswerMessage(BaseModel):
    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(BaseModel):
    index: int
    message: ChatAnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason
    token_ids: list[int] | None = None


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_token_ids: list[int] | None = None
    metrics: RequestMetrics | None = None
    euryale: EuryaleInfo | None = None


class ChatDelta(BaseModel):
    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChunkChoice(BaseModel):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None
    token_ids: list[int] | None = None


class ChatChunk(BaseModel):
    """One event of a stream of /v1/chat/completions."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChunkChoice]
    prompt_token_ids: list[int] | None = None
    usage: Usage | None = None
    metrics: RequestMetrics | None = None
    euryale: EuryaleInfo | None = None


class ModelCard(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[ModelCard]


class Tokenized(BaseModel):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class Detokenized(BaseModel):
    prompt: str
