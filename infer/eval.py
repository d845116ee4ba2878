"""Measures the heads and checks the text: python infer/eval.py checkpoint=DIR [prompts=FILE] [data=...]

With suite=NAME prompts=FILE: tau and speed on a published set of prompts, task by task.

Examples:
  python infer/eval.py checkpoint=last
  python infer/eval.py checkpoint=last suite=breadth
  python infer/eval.py checkpoint=last suite=gsm8k prompts=gsm8k.jsonl output=gsm8k.json
"""

from typing import Any

import euryale.cli.ctrl_c  # noqa: F401  (first: Ctrl-C ends with a line from here on)
from euryale.cli.places import check_engine
from euryale.cli.schemas import EvalConfig
from euryale.cli.script import script, use_threads
from euryale.data.suites import read_suite
from euryale.evaluation.config import BenchSettings
from euryale.report.bench_tables import suite_table
from euryale.report.result_file import check_result, write_result
from euryale.report.tables import accuracy_table, evaluation_table
from euryale.system.paths import user_path
from euryale.system.provenance import provenance

SUITE_CONTENDERS = ("euryale", "ar", "hf_generate")


@script("eval", __doc__)
def main(config: EvalConfig) -> dict[str, object]:
    check_result(config.output)
    check_engine(config)
    # Here, so that a refusal and --help do not wait for torch.
    from euryale.cli.open_engine import open_checkpoint
    from euryale.system.hardware import hardware

    use_threads(config.threads, config.deterministic, config.seed)
    folder, description = open_checkpoint(config)
    origin: dict[str, object] = {"checkpoint": None if folder is None else str(folder), "prompts": config.prompts}
    result = on_suite(config) if config.suite is not None else on_prompts(config, description)
    metric = result.pop("metric")
    result = origin | result | {"hardware": hardware(), "provenance": provenance()}
    if config.output is not None:
        write_result(user_path(config.output, "output"), result)
    return result | {"metric": metric}


def on_suite(config: EvalConfig) -> dict[str, object]:
    """Standings of every task."""
    from euryale.cli.open_engine import open_engine  # these as in main
    from euryale.evaluation import breadth
    from euryale.evaluation.bench_suite import bench_suite

    assert config.suite is not None
    sampling = config.sampling()
    usual = [name for name in SUITE_CONTENDERS if name != "hf_generate" or sampling.is_known_to_transformers]
    contenders = usual if config.contenders is None else config.contenders
    settings = BenchSettings.of(config, contenders, config.repeats)
    is_bundled = config.suite == breadth.NAME and config.prompts is None
    questions = breadth.measured_questions() if is_bundled else read_suite(config.suite, config.prompts)
    measured = bench_suite(open_engine(config), questions, config.limit, settings)
    print(suite_table(measured))
    return {"suite": config.suite} | measured | {"metric": measured["overall"]["contenders"]["euryale"]["tau"]}


def on_prompts(config: EvalConfig, description: dict[str, Any]) -> dict[str, object]:
    """Accuracy of the heads, tau by depth, losslessness."""
    from euryale.cli.open_engine import open_engine  # these as in main
    from euryale.evaluation.evaluate import evaluate_text, held_out_accuracy
    from euryale.evaluation.prompts import check_prompts, choose_data, data_is_gone, load_prompts

    check_prompts(config.prompts, config.data, description)
    engine = open_engine(config)
    prompts = load_prompts(engine.base, config.prompts, config.limit, config.max_new_tokens, description, config.data)
    evaluation = evaluate_text(
        engine,
        prompts,
        config.max_new_tokens,
        seed=config.seed,
        batch_size=config.batch_size,
        **config.sampling().keywords(),
    )
    has_rows = config.prompts is None and not data_is_gone(config.data, description)
    held_out = held_out_accuracy(engine, choose_data(config.data, description)) if has_rows else []
    accuracy = evaluation.pop("accuracy")
    result = {"accuracy": accuracy, "accuracy_held_out": held_out, "evaluation": evaluation}
    if held_out:
        print(f"heads on held-out text\n\n{accuracy_table(held_out)}\n\nheads on the base's own answers\n")
    print(evaluation_table(result))
    told = {"drafter": engine.drafter.name, "tau": evaluation["tau"]}
    return told | result | {"metric": evaluation["tau"]}


if __name__ == "__main__":
    main()
