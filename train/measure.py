"""Memory and speed of training on this machine, before a base is downloaded: python train/measure.py [recipe=...] [...]

Takes the settings of train/run.py that decide these. No weights and no data are read: a base of the same sizes gets
random ones. Without arguments: Medusa-1 and Medusa-2 for a Llama of 8 B in 4 bits, as recipe=medusa2_qlora_llama3_8b.
The last line on stdout is JSON.
"""

import euryale.cli.ctrl_c  # noqa: F401  (first: what follows takes seconds to import)
from euryale.cli.measure_training import measure, table
from euryale.cli.schemas import MeasureConfig
from euryale.cli.script import script, use_threads
from euryale.cli.sweeps import swept
from euryale.report.result_file import check_result, write_result
from euryale.system.paths import user_path
from euryale.system.provenance import provenance


@script("measure")
def main(config: MeasureConfig) -> dict[str, object]:
    use_threads(config.threads, config.deterministic, config.seed)
    check_result(config.output)
    measured = measure(config)
    print(table(measured))
    result = {**measured, "swept": swept(), "provenance": provenance()}
    if config.output is not None:
        write_result(user_path(config.output, "output"), result)
    return result | {"metric": measured["objectives"][config.objectives[-1]]["tokens_per_s"]}


if __name__ == "__main__":
    main()
