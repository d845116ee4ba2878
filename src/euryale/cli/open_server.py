"""From the settings of infer/serve.py to a server around an engine."""

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

if TYPE_CHECKING:
    from euryale.server.service import Service


def open_server(config: ServeConfig) -> Callable[[Engine], dict[str, object]]:
    """What serves an engine until it is stopped, and returns what was served.

    Raises UserError where a package of the extra `serve` is missing or the address is taken, before a base is loaded.
    """
    find_port(config)
    with extra("serve"):
        from euryale.server.app import build_app  # here: the extra `serve` is optional
        from euryale.server.run import serve

    def serve_engine(engine: Engine) -> dict[str, object]:
        service = make_service(engine, config)
        return serve(service, build_app(service, config), config)

    return serve_engine


def make_service(engine: Engine, config: ServeConfig) -> "Service":
    """A service of this engine, not yet started."""
    from euryale.server.scheduler_adapter import SchedulerAdapter  # as in open_server
    from euryale.server.service import ModelName, Service
    from euryale.server.tokens import Tokens

    name = config.model or served_name(engine.base.path)
    sizes = (config.max_rows, config.max_model_len)
    backend = SchedulerAdapter(engine, name, *sizes, config.temperature, config.prefix_tokens)
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
