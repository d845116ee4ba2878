"""Fields that ask for an answer in a form: OpenAI's response_format, vLLM's structured_outputs and guided_*."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from euryale.server.errors import bad_request
from euryale.server.limits import MAX_CHOICES, MAX_FORM_CHARACTERS
from euryale.server.strict import Strict

ANY_OBJECT = json.dumps({"type": "object"})

Schema = dict[str, Any] | str  # vLLM takes its text too
Regex = Annotated[str, Field(min_length=1)]
Choices = Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=MAX_CHOICES)]


class NamedSchema(Strict):
    """`strict` asks for nothing more: every answer follows its schema."""

    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Strict):
    """OpenAI's."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None

    @model_validator(mode="after")
    def _schema_of_type(self) -> Self:
        if self.type == "json_schema" and self.json_schema is None:
            message = "response_format.json_schema must be given with the type json_schema, and hold a schema."
            raise bad_request(message, "response_format.json_schema")
        return self

    @property
    def schema_of_type(self) -> dict[str, Any] | None:
        return self.json_schema.schema_ if self.type == "json_schema" and self.json_schema else None


class StructuredOutputs(Strict):
    """vLLM's."""

    json_: Schema | None = Field(default=None, alias="json")
    json_object: bool | None = None
    regex: Regex | None = None
    choice: Choices | None = None
    grammar: str | None = None
    structural_tag: str | None = None

    @model_validator(mode="after")
    def _nothing_impossible(self) -> Self:
        for name in ("grammar", "structural_tag"):
            if getattr(self, name) is not None:
                param = f"structured_outputs.{name}"
                raise bad_request(f"{param} is not supported by this server. Take json, regex or choice.", param)
        return self


class Form(NamedTuple):
    """What an answer must fit, and the field that says so."""

    param: str
    json_schema: str | None = None
    regex: str | None = None


class FormFields(Strict):
    """The fields, for those who ask for completions."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Schema | None = None
    guided_regex: Regex | None = None
    guided_choice: Choices | None = None

    @property
    def form(self) -> Form | None:
        """None: any text."""
        return next(iter(self._forms()), None)

    @model_validator(mode="after")
    def _at_most_one_form(self) -> Self:
        forms = self._forms()
        if len(forms) > 1:
            message = "an answer can have one form only: give one of the fields that ask for a form."
            raise bad_request(message, forms[1].param)
        for form in forms:
            if len(form.json_schema or form.regex or "") > MAX_FORM_CHARACTERS:
                raise bad_request(f"{form.param} must be at most {MAX_FORM_CHARACTERS} characters long.", form.param)
        return self

    def _forms(self) -> list[Form]:
        openai, vllm = self.response_format, self.structured_outputs or StructuredOutputs()
        forms = [
            Form("response_format", ANY_OBJECT) if openai and openai.type == "json_object" else None,
            _by_schema("response_format", openai.schema_of_type if openai else None),
            _by_schema("structured_outputs", vllm.json_),
            Form("structured_outputs", ANY_OBJECT) if vllm.json_object else None,
            _by_regex("structured_outputs", vllm.regex),
            _by_choice("structured_outputs", vllm.choice),
            _by_schema("guided_json", self.guided_json),
            _by_regex("guided_regex", self.guided_regex),
            _by_choice("guided_choice", self.guided_choice),
        ]
        return [form for form in forms if form is not None]


def _by_schema(param: str, schema: Mapping[str, Any] | str | None) -> Form | None:
    if schema is None:
        return None
    return Form(param, schema if isinstance(schema, str) else json.dumps(schema))


def _by_regex(param: str, regex: str | None) -> Form | None:
    return None if regex is None else Form(param, regex=regex)


def _by_choice(param: str, choices: Sequence[str] | None) -> Form | None:
    return None if choices is None else Form(param, regex="|".join(map(re.escape, choices)))
