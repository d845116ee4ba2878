"""Arguments of a command line before Hydra reads them.

Hydra says that a key is unknown but not which keys there are, and it reads commas, brackets and `${` of a prompt as
its own grammar. Both are put right here.
"""

import math
import re
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from itertools import pairwise
from typing import Any, get_args, get_type_hints

from euryale.errors import UserError

_MOST = 2**63 - 1
_MOST_FLOAT = 3.4e38  # more than a tensor of float32 holds
_CHOICES = re.compile(r"[\w.+-]+(,[\w.+-]+)*")  # anything else is Hydra's grammar, and Hydra's to judge
_QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)
_ESCAPE = re.compile(r"\\([ntr\\\"'])")
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r"}
_NUMBER = re.compile(r"[+-]?[\d_]*\.?[\d_]+(e[+-]?\d+)?|true|false|nan|[+-]?inf", re.IGNORECASE)
_SETTING = re.compile(r"(\+{0,2}[A-Za-z_][\w.]*=|~[A-Za-z_][\w.]*(=|$))")


def check_are_settings(arguments: Sequence[str]) -> None:
    """Raises UserError for the first argument that sets nothing: no KEY=VALUE, flag, or word after a flag."""
    for before, argument in pairwise(["", *arguments]):
        key, is_assignment, _ = argument.partition("=")
        is_loose = not key or " " in key or not (is_assignment or key.startswith(("-", "~")))
        if is_loose and not before.startswith("-"):
            raise UserError(
                f"{argument or 'an empty argument'} sets nothing. Write KEY=VALUE, without spaces beside the =, and a "
                'value with spaces in quotes: prompt="two words".'
            )


def check_keys(arguments: Sequence[str], schema: type, groups: Mapping[str, Sequence[str]]) -> None:
    """Raises UserError for the first `a.b=value` that is not a setting of the schema (nested dataclasses).

    `groups` are settings too, each with its options, to which a --config-dir may add; null is none of them.
    """
    may_be_more = any(argument.startswith(("--config-dir", "-cd")) for argument in arguments)
    for argument in filter(is_setting, arguments):
        key = argument.lstrip("+~").partition("=")[0]
        if key in groups:
            _check_choice(argument, key, groups[key], may_be_more)
        elif not key.startswith("hydra."):
            _check_key(key, schema)


def _check_choice(argument: str, group: str, options: Sequence[str], may_be_more: bool) -> None:
    """Raises UserError for an option that does not exist; a sweep's list of options is one choice after another."""
    value = argument.partition("=")[2]
    if value == "null":
        raise UserError(f"{argument} chooses nothing. The options of {group} are: {', '.join(options)}.")
    for choice in value.split(",") if _CHOICES.fullmatch(value) else ():
        if choice not in options and not may_be_more:
            raise UserError(f"{group} must be one of {', '.join(options)}; got {choice}.")


def is_setting(argument: str) -> bool:
    """Whether it sets (or ~ removes) something: not a flag of Hydra's, nor the value after one."""
    return _SETTING.match(argument) is not None


def _check_key(key: str, schema: type) -> None:
    path: list[str] = []
    for part in key.split("."):
        known = [field.name for field in fields(schema)]
        if part not in known:
            close = get_close_matches(part, known, n=1)
            guess = f" Did you mean {'.'.join([*path, close[0]])}?" if close else ""
            where = f" of {'.'.join(path)}" if path else ""
            raise UserError(f"{key} is not a setting.{guess} The settings{where} are: {', '.join(known)}.")
        path.append(part)
        schema = get_type_hints(schema)[part]
        if not is_dataclass(schema):  # what is below a list or a mapping has no schema
            return


def check_numbers(settings: object, key: str = "") -> None:
    """Raises UserError, with the key, for nan anywhere among the (nested) settings, for infinity (in float32) where
    one number stands, and for whole numbers that no tensor or random generator can count to."""
    if is_dataclass(settings):
        for field in fields(settings):
            check_numbers(getattr(settings, field.name), f"{key}.{field.name}" if key else field.name)
    elif isinstance(settings, float) and not abs(settings) <= _MOST_FLOAT:
        why = ", which is infinite in float32" if math.isfinite(settings) else ""
        raise UserError(f"{key} must be a finite number; got {settings}{why}.")
    elif isinstance(settings, int) and not -_MOST <= settings <= _MOST:
        raise UserError(f"{key} must be a whole number below 2**63; got one of {len(str(abs(settings)))} digits.")
    elif isinstance(settings, list | tuple):
        for number in settings:  # -inf in a list is a ban of a token
            if isinstance(number, float) and math.isnan(number):
                raise UserError(f"{key} must hold numbers; got nan.")


def quote_text(arguments: Sequence[str], keys: Container[str]) -> list[str]:
    """The same arguments, those of `keys` quoted so that Hydra takes their text as it is.

    Left alone: `null`, and what is quoted already, as Hydra's own manual asks for.
    """
    quoted = []
    for argument in arguments:
        key, is_setting, text = argument.partition("=")
        if is_setting and key in keys and text != "null" and not _is_quoted(text):
            argument = f"{key}={_quote(text)}"
        quoted.append(argument)
    return quoted


def quote_names(arguments: Sequence[str], schema: type, can_read: Callable[[str], bool]) -> list[str]:
    """The same arguments, where a setting holds a text, those quoted that Hydra would read as a number (it takes
    name=2026_11_28 for 20261128) or cannot read at all (a path with ~, quotes, brackets or letters beyond ASCII).

    Lists, null, and what is quoted already are Hydra's to read.
    """
    quoted = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if is_setting(argument) and value not in ("", "null") and not value.startswith(("[", "{", "'", '"')):
            kind = kind_of(key.lstrip("+"), schema)
            is_text = kind is str or str in get_args(kind)
            if (is_text and _NUMBER.fullmatch(value)) or ((is_text or kind is Any) and not can_read(argument)):
                argument = f"{key}={_quote(value)}"
        quoted.append(argument)
    return quoted


def kind_of(key: str, schema: type) -> object:
    """The type of a setting of the schema; None where there is none of this name."""
    for part in key.split("."):
        if not is_dataclass(schema) or part not in (hints := get_type_hints(schema)):
            return None
        schema = hints[part]
    return schema


def read_escapes(arguments: Sequence[str], keys: Container[str]) -> list[str]:
    r"""The same arguments, in those of `keys` with \n, \t, \r and \\ of double-quoted texts read as in JSON.

    Hydra leaves them two letters: stop="\n" would wait for a backslash. Single quotes keep a text letter by letter.
    """
    read = []
    for argument in arguments:
        key, is_setting, value = argument.partition("=")
        if is_setting and key.lstrip("+") in keys:
            argument = f"{key}={_QUOTED.sub(_read_quoted, value)}"
        read.append(argument)
    return read


def _read_quoted(quoted: re.Match[str]) -> str:
    text = quoted.group()
    if text[0] == "'":
        return text
    return _quote(_ESCAPE.sub(lambda escape: _ESCAPED.get(escape.group(1), escape.group(1)), text[1:-1]))


def _is_quoted(text: str) -> bool:
    return len(text) > 1 and text[0] == text[-1] and text[0] in "'\""


def _quote(text: str) -> str:
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)  # else an interpolation
    text = re.sub(r"(\\+)(?='|\Z)", r"\1\1", text)  # a backslash counts twice only where a quote follows
    return "'" + text.replace("'", "\\'") + "'"
