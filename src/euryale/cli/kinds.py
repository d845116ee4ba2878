"""Values of a command line against the kinds of their settings, before Hydra reads them.

Hydra says of a wrong one which classes of its own could not be converted; here it is said what the setting takes.
"""

from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from euryale.cli.overrides import is_setting, kind_of
from euryale.errors import UserError

_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
_WORDS_FOR_BOOL = {"true", "false", "yes", "no", "on", "off", "y", "n", "1", "0"}  # OmegaConf's
_REASON = "conf/ has every setting with its default and reason."


def check_kinds(arguments: Sequence[str], schema: type) -> None:
    """Raises UserError for a value that a setting of the schema cannot have, and for several values without a sweep.

    Each choice of a sweep is looked at. Interpolations and what cannot be parsed are Hydra's to judge.
    """
    is_sweep = any(argument in ("-m", "--multirun") or argument.startswith("hydra.mode=") for argument in arguments)
    parser = OverridesParser.create()
    for argument in filter(is_setting, arguments):
        key = argument.lstrip("+").partition("=")[0]
        taken = kind_of(key, schema)
        if argument.startswith("~") or taken is None:
            continue
        for value in _values(parser, argument, is_sweep):
            _check(key, value, taken)


def _values(parser: OverridesParser, argument: str, is_sweep: bool) -> list[object]:
    """The value of an argument, or each choice of a sweep; none for other sweeps and for what cannot be parsed.

    Raises UserError for a sweep where none was asked for.
    """
    try:
        override = parser.parse_override(argument)
    except HydraException:
        return []
    if override.is_sweep_override() and not is_sweep:
        key, _, values = argument.partition("=")
        raise UserError(f"{key} must be one value; got {values}. For a list write {key}=[...], for a sweep add -m.")
    if override.is_choice_sweep():
        return list(override.sweep_iterator())
    return [] if override.is_sweep_override() else [override.value()]


def _check(key: str, value: object, taken: object) -> None:
    """`taken` is the type of the setting in its schema."""
    if isinstance(value, Mapping) and (taken is Any or get_origin(taken) is list):
        raise UserError(f"{key} must not be a mapping; got {value}. {_REASON}")
    if get_origin(taken) is list:
        if not isinstance(value, list):
            if not _is_interpolation(value):
                raise UserError(f"{key} must be a list; got {_shown(value)}. Write {key}=[...].")
            return
        [element] = get_args(taken)
        for member in value:
            if element in _NAMES and not _suits(member, element, may_be_null=False):
                raise UserError(f"{key} must be a list, each of it {_NAMES[element]}; got {_shown(member)}. {_REASON}")
        return
    kinds = set(get_args(taken)) if get_origin(taken) in (Union, UnionType) else {taken}
    [kind, *others] = sorted(kinds - {NoneType}, key=str)
    if not others and kind in _NAMES and not _suits(value, kind, NoneType in kinds):
        raise UserError(f"{key} must be {_NAMES[kind]}; got {_shown(value)}. {_REASON}")


def _suits(value: object, kind: object, may_be_null: bool) -> bool:
    if value is None:
        return may_be_null
    if _is_interpolation(value):
        return True
    if kind is str:
        return not isinstance(value, list | Mapping)
    text = str(value).strip()
    if kind is bool:
        return text.lower() in _WORDS_FOR_BOOL
    try:
        int(text) if kind is int else float(text)
    except ValueError:
        return isinstance(value, bool)
    return True


def _is_interpolation(value: object) -> bool:
    return "${" in str(value)


def _shown(value: object) -> object:
    return "null" if value is None else value
