"""Asks questions and shows what each decoder makes of them: python infer/compare.py checkpoint=DIR questions='["..."]'

Same weights, prompts, machine and threads; by default transformers' generate, plain decoding, and the heads.

Examples:
  python infer/compare.py checkpoint=last
  python infer/compare.py checkpoint=smollm2-heads 'questions=["Why is the sky blue?"]'
  python infer/compare.py checkpoint=last prompts=my-prompts.txt limit=5 output=compared.json
"""

from typing import Any

import euryale.cli.ctrl_c  # noqa: F401  (first: Ctrl-C ends with a line from here on)
from euryale.cli.places import check_engine
from euryale.cli.schemas import CompareConfig
from euryale.cli.script import script, use_threads
from euryale.evaluation.config import BenchSettings
from euryale.report.compare_tables import comparison_table, question_block
from euryale.report.result_file import check_result, write_result
from euryale.system.paths import user_path
from euryale.system.provenance import provenance


@script("compare", __doc__)
def main(config: CompareConfig) -> dict[str, object]:
    check_result(config.output)
    check_engine(config)
    # Here, so that a refusal and --help do not wait for torch.
    from euryale.cli.open_engine import open_checkpoint, open_engine
    from euryale.evaluation.compare import compare, read_questions
    from euryale.system.hardware import hardware

    use_threads(config.threads, config.deterministic, config.seed)
    folder, _ = open_checkpoint(config)
    settings = BenchSettings.of(config, config.contenders, config.repeats)
    engine = open_engine(config)
    questions = read_questions(engine, config.questions, config.prompts, config.limit, config.max_new_tokens)
    compared = compare(engine, questions, settings, show)
    print(comparison_table(compared))
    result = {
        "checkpoint": None if folder is None else str(folder),
        "prompts": config.prompts,
        **compared,
        "hardware": hardware(),
        "provenance": provenance(),
    }
    if config.output is not None:
        write_result(user_path(config.output, "output"), result)
    told = compared["contenders"]
    return result | {"metric": told.get("euryale", next(iter(told.values())))["tokens_per_s"]}


def show(entry: dict[str, Any]) -> None:
    """One question as soon as all have answered it."""
    print(question_block(entry) + "\n", flush=True)


if __name__ == "__main__":
    main()
