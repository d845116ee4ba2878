"""Times any OpenAI-compatible server under load: python infer/load.py url=http://127.0.0.1:8000/v1 clients=[1,4,8]

Examples:
  python infer/load.py url=http://127.0.0.1:8000/v1
  python infer/load.py rates=[1,2,4] requests=64 output=load
  python infer/load.py url=http://127.0.0.1:8000/v1 other=http://127.0.0.1:8001/v1
"""

import euryale.cli.ctrl_c  # noqa: F401  (first: Ctrl-C ends with a line from here on)
from euryale.cli.load_schema import LoadConfig
from euryale.cli.script import script
from euryale.report.load_tables import load_table
from euryale.system.provenance import provenance


@script("load", __doc__)
def main(config: LoadConfig) -> dict[str, object]:
    # Here, so that a refusal and --help do not wait for torch.
    from euryale.cli.load_levels import measure_load
    from euryale.system.hardware import hardware

    result = measure_load(config)
    print(load_table(result))
    best = max((level["tokens_per_s"] or 0.0 for level in result["levels"]), default=0.0)
    return result | {"hardware": hardware(), "provenance": provenance(), "metric": best}


if __name__ == "__main__":
    main()
