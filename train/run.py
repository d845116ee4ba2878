"""Trains heads for a base and measures them: python train/run.py [group=option] [key=value]

Without arguments: the bundled base, its own text, a few minutes on two cores. The last line on stdout is JSON.
Several GPUs: torchrun --nproc_per_node=N train/run.py [...]

Examples:
  python train/run.py base=hf base.path=my-llama data=files data.files=my-texts.jsonl name=mine
  python train/run.py -m heads.width=1,2,4
  python train/run.py resume=last
"""

import logging

import euryale.cli.ctrl_c  # noqa: F401  (first: Ctrl-C ends with a line from here on)
from euryale.cli.places import check_run
from euryale.cli.run_folder import device_of, settle_run, whole_or_nothing
from euryale.cli.script import script, use_threads
from euryale.cli.train_schemas import TrainConfig
from euryale.report.tables import training_summary
from euryale.system import processes

log = logging.getLogger(__name__)


@script("train", __doc__)
def main(config: TrainConfig) -> dict[str, object]:
    from euryale.cli.check_run import check_settings  # here, as below: it opens the data, which takes a second

    processes.join(device_of(config))
    config, folder = processes.first(lambda: settle_run(config))
    processes.first(lambda: check_settings(config))
    log.info("run folder %s", folder)
    processes.first(lambda: check_run(config))
    # Here, so that no refusal above, nor --help, waits for torch.
    from euryale.cli import pipeline, preflight, text_stage

    use_threads(config.threads, config.deterministic, config.seed)
    with whole_or_nothing(folder):
        if config.objective.kind == "pretrain":
            return pipeline.pretrain(config, folder)
        config = processes.first(lambda: preflight.settle_init(config, folder))
        memory = processes.first(lambda: preflight.check_memory(config))
        base = pipeline.load(config)
        preflight.check_base(base, config)
        text_stage.try_training(base, config)
        config = text_stage.with_questions(base, config)
        openings, prompts = processes.first(lambda: text_stage.draw_prompts(base, config))
        data = text_stage.prepare_text(base, config)
        heads = pipeline.make_heads(base, data, config, folder)
        trained = pipeline.train(base, heads, data, config, folder) | {"estimated_memory": memory}
        processes.leave()
        if not processes.is_first():
            return {}
        if config.parallel == "fsdp":
            return pipeline.headline_unmeasured(trained, folder)
        report = pipeline.measure(base, trained, openings, prompts, config, folder)
    print(training_summary(report))
    return pipeline.headline(report, folder, config.metric)


if __name__ == "__main__":
    main()
