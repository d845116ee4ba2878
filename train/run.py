"""Trains heads for a base and measures them: python train/run.py [group=option] [key=value]

Without arguments: the bundled base, its own text, a few minutes on two cores. The last line on stdout is JSON.
"""

import logging

from euryale import pipeline
from euryale.config import TrainConfig, script, settle_run, use_threads
from euryale.model.base import load_base
from euryale.serving.tables import training_summary

log = logging.getLogger(__name__)


@script("train")
def main(config: TrainConfig) -> dict[str, object]:
    config, folder = settle_run(config)
    use_threads(config.threads)
    pipeline.check(config)
    log.info("run folder %s", folder)
    if config.objective.kind == "pretrain":
        return pipeline.pretrain(config, folder)
    base = load_base(config.base)
    data = pipeline.prepare_text(base, config)
    heads = pipeline.make_heads(base, data, config)
    trained = pipeline.train(base, heads, data, config, folder)
    report = pipeline.measure(base, trained, config, folder)
    print(training_summary(report))
    return pipeline.headline(report, folder, config.metric)


if __name__ == "__main__":
    main()
