"""From the settings of infer/serve.py to a server around an engine."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import euryale
from euryale.base.wheel_model import PREFIX
from euryale.cli.serve_schema import ServeConfig
from euryale.decoding.engine import Engine
from euryale.errors import UserError
from euryale.server.address import find_port
from euryale.server.limits import Timeouts
from euryale.system import processes

if TYPE_CHECKING:
    from euryale.server.backend import Backend
    from euryale.server.scheduler_adapter import SchedulerAdapter
    from euryale.server.service import Service


def open_server(config: ServeConfig) -> Callable[[Engine], dict[str, object]]:
    """What serves an engine until it is stopped, and returns what was served. Of the processes that divide a base the
    first one answers; in the others it takes the same steps and returns nothing.

    Raises UserError where a package of the extra `serve` is missing or the address is taken, before a base is loaded.
    """
    if processes.is_first():
        find_port(config)
    with extra("serve"):
        from euryale.server.app import build_app  # here: the extra `serve` is optional
        from euryale.server.run import serve

    def serve_backend(backend: "Backend", engine: Engine) -> dict[str, object]:
        service = make_service(backend, engine, config)
        return serve(service, build_app(service, config), config)

    def serve_engine(engine: Engine) -> dict[str, object]:
        backend = make_backend(engine, config)
        if config.base.tensor_parallel == 1:
            return serve_backend(backend, engine)
        return share(backend, lambda leading: serve_backend(leading, engine))

    return serve_engine


def share(backend: "Backend", lead: Callable[["Backend"], dict[str, object]]) -> dict[str, object]:
    """Calls `lead` in the first process, with a backend that the others follow until it returns."""
    from euryale.server.divided import LeadingBackend, follow  # here: one process does not need it
    from euryale.system.channel import Channel

    channel = Channel()
    if not processes.is_first():
        for ending in (signal.SIGINT, signal.SIGTERM):  # all processes get them, and the first one says when to end
            signal.signal(ending, signal.SIG_IGN)
        follow(backend, channel)
        return {}
    leading = LeadingBackend(backend, channel)
    try:
        return lead(leading)
    finally:
        leading.close()


def make_backend(engine: Engine, config: ServeConfig) -> "SchedulerAdapter":
    """What decodes; the memory of all rows is taken here."""
    from euryale.server.scheduler_adapter import SchedulerAdapter  # as in open_server

    engine.row_budget = config.row_budget
    name, sizes = config.model or served_name(engine.base.path), (config.max_rows, config.max_model_len)
    return SchedulerAdapter(engine, name, *sizes, config.temperature, config.prefix_tokens)


def make_service(backend: "Backend", engine: Engine, config: ServeConfig) -> "Service":
    """A service of this engine, not yet started."""
    from euryale.server.service import ModelName, Service  # as in open_server
    from euryale.server.tokens import Tokens

    name = config.model or served_name(engine.base.path)
    tokens = Tokens(engine.base.tokenizer, engine.base.vocab_size, engine.base.bos_id)
    timeouts = replace(Timeouts(), deadline=config.deadline, drain=config.drain)
    model = ModelName(name, int(time.time()), euryale.__version__)
    return Service(backend, tokens, model, config.max_waiting, timeouts, config.warm_up)


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Raises UserError for an import inside that needs the extra `name`."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(
            f"the package {error.name} is missing. Install the server's packages: "
            f"pip install -c constraints.txt -e '.[{name}]'"
        ) from error


def served_name(path: str) -> str:
    """What a base is called where the settings do not say: its folder's name, its package's, or its hub id."""
    return Path(path).resolve().name if Path(path).is_dir() else path.removeprefix(PREFIX)
