"""Times any OpenAI-compatible server under load: python infer/load.py url=http://127.0.0.1:8000/v1 clients=[1,4,8]"""

import euryale.cli.ctrl_c  # noqa: F401  (first: what follows takes seconds to import)
from euryale.cli.load_levels import LoadConfig, measure_load
from euryale.cli.script import script
from euryale.report.load_tables import load_table
from euryale.system.hardware import hardware
from euryale.system.provenance import provenance


@script("load")
def main(config: LoadConfig) -> dict[str, object]:
    config.check()
    result = measure_load(config)
    print(load_table(result))
    best = max((level["tokens_per_s"] or 0.0 for level in result["levels"]), default=0.0)
    return result | {"hardware": hardware(), "provenance": provenance(), "metric": best}


if __name__ == "__main__":
    main()
