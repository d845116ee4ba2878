"""From a command line to the settings of a script, and from an error to a message and an exit status.

Hydra composes the schema (schemas.py), the values in conf/*.yaml and the command line, so an unknown key, a wrong
type or an unknown option is refused before anything runs, and what exists is named.
"""

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from euryale.base.config import BaseConfig
from euryale.cli import ctrl_c, help, sweeps
from euryale.cli.kinds import check_kinds
from euryale.cli.overrides import (
    check_are_settings,
    check_keys,
    check_numbers,
    is_setting,
    quote_names,
    quote_text,
    read_escapes,
)
from euryale.cli.schemas import SCHEMAS, BenchConfig, EvalConfig, InferConfig
from euryale.cli.serve_schema import ServeConfig
from euryale.errors import UserError, check_threads
from euryale.system import processes, streams
from euryale.system.determinism import be_deterministic, refusal
from euryale.system.paths import PROJECT
from euryale.training.signals import Interrupted

USER_ERROR_STATUS = 2
CONF = PROJECT / "conf"
log = logging.getLogger(__name__)
FREE_TEXT = {"prompt"}  # settings whose value is taken letter by letter
_DIVIDED = (BenchConfig, EvalConfig, ServeConfig)  # scripts whose processes share a base, beside one answer
WITH_ESCAPES = {"stop"}  # settings whose double-quoted texts are read as in JSON


def script(
    name: str, description: str | None = None
) -> Callable[[Callable[[Any], dict[str, object]]], Callable[[], None]]:
    """Makes a script's main: composes conf/NAME.yaml with the command line, checks the schema's dataclass, and calls
    it with that. `description` begins --help.

    The dictionary that main returns becomes the last line on stdout, as JSON, and its `metric` entry is what a
    sweeper sees. A UserError, or a setting that Hydra refuses, ends with its message and status 2. Nothing here imports
    torch, nor does a script before its main runs: a refusal and --help come at once. Streams that take nothing are
    those of euryale/system/streams.py.
    """

    def decorate(main: Callable[[Any], dict[str, object]]) -> Callable[[], None]:
        ConfigStore.instance().store(name=f"{name}_schema", node=SCHEMAS[name])
        is_composed = False
        num_failed = 0  # jobs of a sweep, of those that run here

        def task(composed: DictConfig) -> object:
            nonlocal is_composed, num_failed
            is_composed = True
            with _speaking():
                result = _result_of_job(main, composed)
            if result is None:
                num_failed += 1
                return None
            if processes.is_first():
                print(json.dumps(result), flush=True)
            is_composed = False  # a sweep composes the next job
            return result.get("metric")

        @streams.guarded()
        def run() -> None:
            if sys.flags.optimize > 1:  # transformers reads the docstrings that it drops
                sys.exit(_refuse("PYTHONOPTIMIZE must be at most 1, and python started without -OO; got 2."))
            if any(flag in sys.argv[1:] for flag in help.FLAGS):
                print(help.help_text(name, description or "", CONF, sys.argv[1:]), end="")
                return
            _settle_command_line(name)
            try:
                with sweeps.launching():
                    hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)(task)()
            except (HydraException, OmegaConfBaseException, OSError, ValueError) as error:
                # Before main begins it is Hydra that stumbles, on the command line; later it is a bug.
                if is_composed or sweeps.RAW_ERRORS in os.environ:
                    raise
                sys.exit(_refuse(_in_one_line(error)))
            if num_failed:
                sys.exit(USER_ERROR_STATUS)

        return run

    return decorate


def _settle_command_line(name: str) -> None:
    """Checks sys.argv and makes it what Hydra reads as it is meant. Ends the process for a wrong one."""
    try:
        processes.check_environment()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)  # which process this is cannot be asked
        sys.exit(USER_ERROR_STATUS)
    try:
        check_are_settings(sys.argv[1:])
        check_keys(sys.argv[1:], SCHEMAS[name], _groups())
        sys.argv[1:] = sweeps.settle_arguments(sys.argv[1:])
        sys.argv[1:] = read_escapes(quote_text(sys.argv[1:], FREE_TEXT), WITH_ESCAPES)
        sys.argv[1:] = quote_names(sys.argv[1:], SCHEMAS[name], _can_read)
        _check_grammar(sys.argv[1:])
        check_kinds(sys.argv[1:], SCHEMAS[name])
    except UserError as error:
        sys.exit(_refuse(str(error)))


def _result_of_job(main: Callable[[Any], dict[str, object]], composed: DictConfig) -> dict[str, object] | None:
    """What main returns; None for a job of a sweep that failed. Alone, a failure ends the process."""
    logging.captureWarnings(True)
    if not processes.is_first():
        logging.getLogger().setLevel(logging.ERROR)  # the first one says it
    is_sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    try:
        return _call(main, _to_dataclass(composed))
    except UserError as error:
        if not is_sweep:
            sys.exit(_refuse(str(error)))
        sweeps.give_up_job(str(error))
    except Interrupted as interruption:
        _say(str(interruption))
        sys.exit(interruption.exit_status)
    except KeyboardInterrupt:
        ctrl_c.end()
    except Exception as error:  # a bug, which must not cost the other jobs of a sweep
        if not is_sweep:
            raise
        log.exception("this job of the sweep failed")
        sweeps.give_up_job(f"{type(error).__name__}: {error}")
    return None


@contextmanager
def _speaking() -> Iterator[None]:
    """stdout is the first process's; what the others print goes nowhere."""
    if processes.is_first():
        yield
        return
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        yield


def _call(main: Callable[[Any], dict[str, object]], settings: object) -> dict[str, object]:
    """main(settings). UserError for what a GPU cannot do deterministically, and for a process that waited in vain."""
    try:
        return main(settings)
    except RuntimeError as error:
        if (message := refusal(error) or processes.refusal(error)) is None:
            raise
        raise UserError(message) from error


def _groups() -> dict[str, list[str]]:
    """The folders of conf/ and the options in each."""
    return {folder.name: sorted(p.stem for p in folder.glob("*.yaml")) for folder in CONF.iterdir() if folder.is_dir()}


def _can_read(argument: str) -> bool:
    try:
        OverridesParser.create().parse_override(argument)
    except HydraException:
        return False
    return True


def _check_grammar(arguments: list[str]) -> None:
    """Hydra says what it stumbles on, but not in which argument."""
    parser = OverridesParser.create()
    for argument in filter(is_setting, arguments):
        try:
            parser.parse_override(argument)
        except HydraException as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{argument} cannot be read ({reason}). Put a value with special characters into two kinds of quotes: "
                """key='"value"'."""
            ) from error


def _to_dataclass(composed: DictConfig) -> object:
    """The schema's own classes, checked. UserError for what only shows when values are read, as an interpolation does,
    for numbers that no setting can have, and for what the schema's `check` refuses."""
    try:
        settings: Any = OmegaConf.to_object(composed)
    except OmegaConfBaseException as error:
        raise UserError(f"the settings cannot be read: {_in_one_line(error)}") from error
    check_numbers(settings)
    _check_divided(settings)
    settings.check()
    return settings


def _in_one_line(error: Exception) -> str:
    """What Hydra, OmegaConf or the file system says, without where Hydra looked and the classes of its own."""
    if isinstance(error, OmegaConfBaseException):
        return f"{error.full_key}: {str(error).splitlines()[0]}." if error.full_key else str(error).splitlines()[0]
    said = " ".join(str(error).partition("Config search path")[0].split()).rstrip(".")
    cause = error.__cause__
    return f"{said}. {_in_one_line(cause)}" if isinstance(cause, OmegaConfBaseException) else f"{said}."


def _check_divided(settings: object) -> None:
    """Raises UserError for a divided base in a script whose processes would not all do the same."""
    base = getattr(settings, "base", None)
    if not isinstance(base, BaseConfig) or base.tensor_parallel == 1:
        return
    is_answer = isinstance(settings, InferConfig) and settings.prompt not in (None, "-")
    if not is_answer and type(settings) not in _DIVIDED:
        raise UserError(
            "base.tensor_parallel must be 1, except for infer/serve.py, bench.py, eval.py and run.py with prompt=TEXT; "
            f"got {base.tensor_parallel}. From Python load_base(BaseConfig(tensor_parallel=...)) divides a base for "
            "any Engine."
        )


def use_threads(threads: int, deterministic: bool = False, seed: int = 0) -> None:
    """Sets the number of CPU threads; 0 keeps torch's choice (one a core; one at all when it has to be deterministic).

    Raises UserError below 0, and for more than any machine has.
    """
    import torch  # here: composing a config must not wait for torch

    check_threads(threads)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if threads:
        torch.set_num_threads(threads)
    if deterministic:
        be_deterministic(seed, threads)


def _refuse(message: str) -> int:
    processes.hold_back()
    rank = "" if processes.is_first() else f" (process {processes.number()} of {processes.count()})"
    print(f"error{rank}: {message}", file=sys.stderr, flush=True)
    return USER_ERROR_STATUS


def _say(message: str) -> None:
    if processes.is_first():
        print(message, file=sys.stderr, flush=True)
