"""Measures the heads and checks the text: python infer/eval.py checkpoint=DIR [prompts=FILE] [data=...]"""

from euryale.config import script, use_threads
from euryale.model.checkpoint import provenance
from euryale.schemas import EvalConfig
from euryale.serving.evaluate import evaluate_text, held_out_accuracy
from euryale.serving.hardware import hardware
from euryale.serving.open import open_checkpoint, open_engine
from euryale.serving.prompts import choose_data, load_prompts
from euryale.serving.tables import accuracy_table, evaluation_table


@script("eval")
def main(config: EvalConfig) -> dict[str, object]:
    use_threads(config.threads)
    folder, description = open_checkpoint(config)
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
    held_out = [] if config.prompts else held_out_accuracy(engine, choose_data(config.data, description))
    accuracy = evaluation.pop("accuracy")
    result = {"accuracy": accuracy, "accuracy_held_out": held_out, "evaluation": evaluation}
    if held_out:
        print(f"heads on held-out text\n\n{accuracy_table(held_out)}\n\nheads on the base's own answers\n")
    print(evaluation_table(result))
    origin = {"checkpoint": None if folder is None else str(folder), "prompts": config.prompts}
    origin |= {"drafter": engine.drafter.name, "tau": evaluation["tau"]}
    return origin | result | {"hardware": hardware(), "provenance": provenance(), "metric": evaluation["tau"]}


if __name__ == "__main__":
    main()
