"""Serves a checkpoint over OpenAI's HTTP API, with a live page: python infer/serve.py checkpoint=DIR port=8000

Examples:
  python infer/serve.py checkpoint=last
  python infer/serve.py checkpoint=smollm2-heads port=8080 max_rows=16
  torchrun --nproc_per_node=2 infer/serve.py checkpoint=last base.tensor_parallel=2
"""

import euryale.cli.ctrl_c  # noqa: F401  (first: Ctrl-C ends with a line from here on)
from euryale.cli.places import check_engine
from euryale.cli.script import script, use_threads
from euryale.cli.serve_schema import ServeConfig


@script("serve", __doc__)
def main(config: ServeConfig) -> dict[str, object]:
    check_engine(config)
    # Here, so that a refusal and --help do not wait for torch.
    from euryale.cli.open_engine import open_engine
    from euryale.cli.open_server import open_server

    serve = open_server(config)
    use_threads(config.threads, config.deterministic)
    return serve(open_engine(config))


if __name__ == "__main__":
    main()
