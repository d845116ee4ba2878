"""Times decoding steps at the sizes of a base, with random weights: python infer/bench_steps.py [shape=...] [...]

Before a base is downloaded: what trees of 1 to 64 nodes cost on this machine in 16 and 4 bits, captured and eager, with
heads and without, against transformers' `generate` and the roofline. Without arguments at the sizes of an 8B
(recipe=gpu_8b); shape=tiny runs anywhere. The last line on stdout is JSON.

Examples:
  python infer/bench_steps.py shape=tiny
  python infer/bench_steps.py shape=llama_100m steps.nodes=[1,8,16] steps.ways=[dense]
  python infer/bench_steps.py recipe=gpu_8b output=steps.json
"""

from pathlib import Path

import euryale.cli.ctrl_c  # noqa: F401  (first: Ctrl-C ends with a line from here on)
from euryale.cli.places import check_base
from euryale.cli.script import script, use_threads
from euryale.cli.train_schemas import BenchStepsConfig
from euryale.report.result_file import check_result, write_result
from euryale.report.step_tables import roofline_card, steps_table
from euryale.system.provenance import provenance


@script("bench_steps", __doc__)
def main(config: BenchStepsConfig) -> dict[str, object]:
    check_result(config.output)
    if config.shape.family is None:
        check_base(config.base)
    # Here, so that a refusal and --help do not wait for torch.
    from euryale.base.shape import config_of_shape
    from euryale.evaluation.bench_steps import bench_steps, check_memory, check_steps_config
    from euryale.system.hardware import hardware

    use_threads(config.threads)
    of_base = config_of_shape(config.shape, config.base)
    check_steps_config(config.steps, of_base)
    if config.check_memory:
        check_memory(of_base, config.base, config.steps)
    measured = bench_steps(of_base, config.heads, config.base, config.steps)
    print(roofline_card(measured), steps_table(measured), sep="\n\n")
    sizes = {name: value for name, value in vars(config.shape).items() if value is not None}
    result = {
        "shape": sizes, "steps": vars(config.steps), **measured, "hardware": hardware(), "provenance": provenance()
    }  # fmt: skip
    if config.output is not None:
        write_result(Path(config.output), result)
    return result


if __name__ == "__main__":
    main()
