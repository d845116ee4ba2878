"""Times euryale and other decoders on the same weights and prompts: python infer/bench.py checkpoint=DIR prompts=FILE

A sweep adds a line for each job to output=FILE.jsonl; infer/plot_sweep.py draws it.

Examples:
  python infer/bench.py checkpoint=last
  python infer/bench.py checkpoint=last prompts=my-prompts.txt contenders=[euryale,ar] output=bench.json
  python infer/bench.py -m tree.num_nodes=1,4,16 temperature=0,0.8 output=sweep.jsonl
"""

import euryale.cli.ctrl_c  # noqa: F401  (first: Ctrl-C ends with a line from here on)
from euryale.cli.places import check_engine
from euryale.cli.schemas import BenchConfig
from euryale.cli.script import script, use_threads
from euryale.cli.sweeps import swept
from euryale.evaluation.config import BenchSettings
from euryale.report.bench_tables import batch_table, bench_table
from euryale.report.result_file import check_result, write_result
from euryale.system.paths import user_path
from euryale.system.provenance import provenance


@script("bench", __doc__)
def main(config: BenchConfig) -> dict[str, object]:
    check_result(config.output)
    check_engine(config)
    # Here, so that a refusal and --help do not wait for torch.
    from euryale.cli.open_engine import open_checkpoint, open_engine
    from euryale.evaluation.bench import bench
    from euryale.evaluation.bench_batches import bench_batches
    from euryale.evaluation.prompts import BREADTH_FILE, check_prompts, data_is_gone, load_prompts
    from euryale.evaluation.roofline import measure_ceiling
    from euryale.evaluation.step_log import log_steps
    from euryale.system.hardware import hardware

    use_threads(config.threads, config.deterministic, config.seed)
    folder, description = open_checkpoint(config)
    settings = BenchSettings.of(config, config.contenders, config.repeats)
    file = config.prompts
    check_prompts(file, None, description)
    engine = open_engine(config)
    prompts = load_prompts(engine.base, file, config.limit, config.max_new_tokens, description)
    ceiling = measure_ceiling(engine, config.temperature)
    print(ceiling.describe(), flush=True)
    if config.batch > 1:
        engine.row_budget = config.row_budget
    with log_steps(engine, config.steps):
        if config.batch > 1:
            measured = bench_batches(engine, prompts, settings, config.batch)
        else:
            measured = bench(engine, prompts, settings)
    print(batch_table(measured) if config.batch > 1 else bench_table(measured))
    result = {
        "checkpoint": None if folder is None else str(folder),
        "prompts": file if file is not None or not data_is_gone(None, description) else BREADTH_FILE,
        "swept": swept(),
        "batch": config.batch,
        **measured,
        "ceiling": ceiling.as_dict(),
        "hardware": hardware(),
        "provenance": provenance(),
    }
    if config.output is not None:
        write_result(user_path(config.output, "output"), result)
    return result | {"metric": next(iter(measured["contenders"].values()))["tokens_per_s"]}


if __name__ == "__main__":
    main()
