"""Values of a command line against the kinds of their settings, before Hydra reads them.

Hydra says of a wrong one which classes of its own could not be converted; here it is said what the setting takes.
"""

from collections.abc import Sequence
from types import NoneType, UnionType
from typing import Union, get_args, get_origin

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from euryale.cli.overrides import is_setting, kind_of
from euryale.errors import UserError

_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
_WORDS_FOR_BOOL = {"true", "false", "yes", "no", "on", "off", "y", "n", "1", "0"}  # OmegaConf's


def check_kinds(arguments: Sequence[str], schema: type) -> None:
    """Raises UserError for a value that a setting of one number, one text, or true and false cannot have.

    Each choice of a sweep is looked at. Lists, interpolations and what cannot be parsed are Hydra's to judge.
    """
    parser = OverridesParser.create()
    for argument in filter(is_setting, arguments):
        key = argument.lstrip("+").partition("=")[0]
        taken = kind_of(key, schema)
        kinds = set(get_args(taken)) if get_origin(taken) in (Union, UnionType) else {taken}
        [kind, *others] = sorted(kinds - {NoneType}, key=str)
        if others or kind not in _NAMES or argument.startswith("~"):
            continue
        for value in _values(parser, argument):
            if not _suits(value, kind, NoneType in kinds):
                got = "null" if value is None else value
                raise UserError(
                    f"{key} must be {_NAMES[kind]}; got {got}. conf/ has every setting with its default and reason."
                )


def _values(parser: OverridesParser, argument: str) -> list[object]:
    """The value of an argument, or each choice of a sweep; none for other sweeps and for what cannot be parsed."""
    try:
        override = parser.parse_override(argument)
    except HydraException:
        return []
    if override.is_choice_sweep():
        return list(override.sweep_iterator())
    return [] if override.is_sweep_override() else [override.value()]


def _suits(value: object, kind: object, may_be_null: bool) -> bool:
    if value is None:
        return may_be_null
    text = str(value).strip()
    if kind is str or "${" in text:
        return True
    if kind is bool:
        return text.lower() in _WORDS_FOR_BOOL
    try:
        int(text) if kind is int else float(text)
    except ValueError:
        return isinstance(value, bool)
    return True
