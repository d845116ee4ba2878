"""Serves a checkpoint over OpenAI's HTTP API, with a live page: python infer/serve.py checkpoint=DIR port=8000"""

import euryale.cli.ctrl_c  # noqa: F401  (first: what follows takes seconds to import)
from euryale.cli.open_engine import open_engine
from euryale.cli.open_server import open_server
from euryale.cli.script import script, use_threads
from euryale.cli.serve_schema import ServeConfig


@script("serve")
def main(config: ServeConfig) -> dict[str, object]:
    config.check()
    serve = open_server(config)
    use_threads(config.threads, config.deterministic)
    return serve(open_engine(config))


if __name__ == "__main__":
    main()
