"""Messages of the WebSocket protocol of the live page, version 1; web/PROTOCOL.md says what each field means."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator
from pydantic_core import from_json

from euryale.server.backend import StepView
from euryale.server.errors import ApiError, bad_request, from_validation
from euryale.server.limits import MAX_MESSAGES, MAX_STOPS, RANDOM_SEEDS
from euryale.server.logprobs import TextOf
from euryale.server.schemas import ChatMessage, SamplingFields, Stop
from euryale.server.strict import Strict

VERSION = 1
DEFAULT_TOKENS = 128
Id = Annotated[str, Field(min_length=1, max_length=64)]


class Hello(Strict):
    """The first message of a client."""

    type: Literal["hello"]
    v: Literal[1]
    key: str | None = None


class LiveSampling(Strict):
    """Greedy where nothing is asked for, unlike the HTTP API: the page shows what the base itself says."""

    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0, lt=2**31)
    seed: int | None = Field(default=None, ge=0, lt=RANDOM_SEEDS)
    stop: Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None

    def as_request(self, model: str) -> SamplingFields:
        """The same as fields of the HTTP API."""
        return SamplingFields(
            model=model,
            temperature=self.temperature or 0.0,
            top_p=self.top_p,
            top_k=self.top_k,
            seed=self.seed,
            stop=self.stop,
            stream=True,
        )


class Generate(Strict):
    """A text to go on from, or a conversation to answer."""

    type: Literal["generate"]
    id: Id
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)] | None = None
    sampling: LiveSampling | None = None
    compare: bool | None = None

    @model_validator(mode="after")
    def _one_text(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise bad_request("exactly one of prompt and messages must be given.", "prompt")
        return self


class Cancel(Strict):
    type: Literal["cancel"]
    id: Id


_TYPES: dict[str, type[Hello] | type[Generate] | type[Cancel]] = {
    "hello": Hello,
    "generate": Generate,
    "cancel": Cancel,
}


def read_message(text: str | bytes | None) -> Hello | Generate | Cancel:
    """Raises BadMessage for what is not one of them."""
    try:
        value = from_json(text or "", allow_inf_nan=False)
    except ValueError as error:
        raise BadMessage(bad_request(f"a message must be JSON: {error}.")) from None
    kind = value.get("type") if isinstance(value, dict) else None
    if not isinstance(kind, str) or kind not in _TYPES:
        raise BadMessage(bad_request(f"type must be one of {', '.join(_TYPES)}.", "type"))
    request_id = value.get("id")
    request_id = request_id if isinstance(request_id, str) and 0 < len(request_id) <= 64 else None
    try:
        return _TYPES[kind].model_validate(value)
    except ValidationError as error:
        raise BadMessage(from_validation(error.errors()), request_id) from None
    except ApiError as error:
        raise BadMessage(error, request_id) from None


class BadMessage(Exception):
    """A message that was not understood, and the id of the request that it names."""

    def __init__(self, error: ApiError, request_id: str | None = None) -> None:
        super().__init__(error.message)
        self.error = ApiError(error.status, error.message, error.param, "bad_message")
        self.request_id = request_id


def error_message(error: ApiError, request_id: str | None) -> dict[str, Any]:
    return {"type": "error", "id": request_id, **error.envelope()}


def tree_fields(view: StepView, text_of: TextOf) -> dict[str, Any]:
    """A step's tree and its parts of time."""
    nodes = [
        {
            "token": node.token,
            "text": text_of(node.token),
            "parent": node.parent,
            "depth": node.depth,
            "rank": node.rank,
            "p": round(node.p, 6),
            "state": "root" if node.parent < 0 else "accepted" if node.is_accepted else "rejected",
        }
        for node in view.nodes
    ]
    bonus = None
    if view.bonus is not None:
        token, parent, p = view.bonus
        bonus = {"token": token, "text": text_of(token), "parent": parent, "p": round(p, 6)}
    parts_ms = {part: round(milliseconds, 3) for part, milliseconds in view.parts_ms.items()}
    return {"parts_ms": parts_ms, "nodes": nodes, "bonus": bonus}
