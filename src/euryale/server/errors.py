"""Errors of the HTTP API in OpenAI's envelope: {"error": {message, type, param, code}}."""

from collections.abc import Mapping, Sequence
from typing import Any

from euryale.server.limits import MAX_STOP_CHARACTERS, MAX_STOPS, RETRY_AFTER_SECONDS

AT_FAULT = "invalid_request_error"
_SHOWN = 80  # characters of a refused value that a message repeats
_LENGTHS = {"too_short": ("at least", "min_length"), "too_long": ("at most", "max_length")}
_UNIONS = {
    "prompt": "prompt must be a string, a list of strings, a list of token ids or a list of lists of token ids, "
    "none of them empty but the string",
    "guided_json": "guided_json must be a JSON schema or its text",
    "json": "json must be a JSON schema or its text",
    "stop": f"stop must be a string or a list of at most {MAX_STOPS} strings, of 1 to {MAX_STOP_CHARACTERS} characters",
    "content": "content must be a string or a list of parts like {'type': 'text', 'text': '...'}",
}


class ApiError(Exception):
    """An error that the client is told; `headers` go with its response."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        kind: str = AT_FAULT,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.kind = kind
        self.headers = dict(headers or {})

    def envelope(self) -> dict[str, dict[str, str | None]]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(400, message, param, code)


def unauthorized() -> ApiError:
    message = "the API key is missing or wrong. Send the header `Authorization: Bearer KEY`."
    return ApiError(401, message, None, "invalid_api_key", "authentication_error", {"WWW-Authenticate": "Bearer"})


def unknown_model(asked: str, served: str) -> ApiError:
    message = f"model must be {served}; got {shown(asked)}. GET /v1/models lists what is served."
    return ApiError(404, message, "model", "model_not_found")


def overloaded(num_places: int) -> ApiError:
    message = f"all {num_places} places for requests are taken. Try again in {RETRY_AFTER_SECONDS} s."
    return _unavailable(message, "overloaded")


def shutting_down() -> ApiError:
    return _unavailable("the server shuts down. Send the request to another replica, or later.", "shutting_down")


def replica_lost() -> ApiError:
    return _unavailable("the replica that had this request is gone. Send it again.", "replica_lost")


def not_alive() -> ApiError:
    return _unavailable("the engine has stopped after repeated failures. Restart the server.", "server_error")


def timed_out(seconds: float) -> ApiError:
    message = f"the answer was not finished after {seconds:g} s. Ask for fewer tokens."
    return ApiError(504, message, None, "timeout", "server_error")


def failed(request_id: str) -> ApiError:
    message = f"the server failed on this request. Its log has the reason under {request_id}."
    return ApiError(500, message, None, "server_error", "server_error")


def _unavailable(message: str, code: str) -> ApiError:
    return ApiError(503, message, None, code, "server_error", {"Retry-After": str(RETRY_AFTER_SECONDS)})


def from_validation(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """The first of pydantic's errors; those of a union's branches become one that names all forms."""
    first = errors[0]
    path = [str(part) for part in first["loc"] if part != "body"]
    field = next((part for part in reversed(path) if part in _UNIONS), None)
    if not path:
        return bad_request("the body must be a JSON object with the header `Content-Type: application/json`.")
    if first["type"] == "missing":
        return bad_request(f"{'.'.join(path)} must be given.", ".".join(path))
    if field is not None and path[-1] != field:
        path = path[: path.index(field) + 1]
    param = ".".join(path)
    if field is not None:
        return bad_request(f"{_UNIONS[field]}; got {shown(first['input'])}.", param)
    rule = str(first["msg"]).removeprefix("Value error, ")
    if rule.startswith("Input should be "):
        rule = f"{param} must be {rule.removeprefix('Input should be ')}; got {shown(first['input'])}."
    elif first["type"] in _LENGTHS:
        bound, name = _LENGTHS[first["type"]]
        count = first["ctx"]["actual_length"] or len(first["input"])  # of an object pydantic says none
        rule = f"{param} must have {bound} {first['ctx'][name]} entries; got {count}."
    elif first["type"] != "value_error":
        rule = f"{param}: {rule}; got {shown(first['input'])}."
    return bad_request(rule, param)


def shown(value: object) -> str:
    """A refused value, cut and in ASCII."""
    text = ascii(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
