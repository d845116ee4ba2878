"""Memory and speed of training on this machine, before a base is downloaded: python train/measure.py [recipe=...] [...]

Takes the settings of train/run.py that decide these. No weights and no data are read: a base of the same sizes gets
random ones. Without arguments: Medusa-1 and Medusa-2 for a Llama of 8 B in 4 bits, as recipe=medusa2_qlora_llama3_8b.
The last line on stdout is JSON.

Examples:
  python train/measure.py shape=llama_100m data.block_size=256 optim.gradient_accumulation=1
  python train/measure.py recipe=medusa2_qlora_llama2_7b objectives=[medusa2] output=measured.json
  python train/measure.py -m data.batch_size=1,2,4 output=measured.jsonl
"""

import euryale.cli.ctrl_c  # noqa: F401  (first: Ctrl-C ends with a line from here on)
from euryale.cli.places import check_base
from euryale.cli.script import script, use_threads
from euryale.cli.sweeps import swept
from euryale.cli.train_schemas import MeasureConfig
from euryale.report.result_file import check_result, write_result
from euryale.system.paths import user_path
from euryale.system.provenance import provenance


@script("measure", __doc__)
def main(config: MeasureConfig) -> dict[str, object]:
    check_result(config.output)
    if config.shape.family is None:
        check_base(config.base)
    # Here, so that a refusal and --help do not wait for torch.
    from euryale.cli.measure_training import measure, table

    use_threads(config.threads, config.deterministic, config.seed)
    measured = measure(config)
    print(table(measured))
    result = {**measured, "swept": swept(), "provenance": provenance()}
    if config.output is not None:
        write_result(user_path(config.output, "output"), result)
    return result | {"metric": measured["objectives"][config.objectives[-1]]["tokens_per_s"]}


if __name__ == "__main__":
    main()
