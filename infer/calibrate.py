"""Finds the fastest tree for a checkpoint on this machine: python infer/calibrate.py checkpoint=DIR

Examples:
  python infer/calibrate.py checkpoint=last
  python infer/calibrate.py checkpoint=last prompts=my-prompts.txt
  python infer/calibrate.py checkpoint=last calibrate.temperatures=[0.0] calibrate.num_prompts=64
"""

import euryale.cli.ctrl_c  # noqa: F401  (first: Ctrl-C ends with a line from here on)
from euryale.cli.places import check_base, check_checkpoint
from euryale.cli.schemas import CalibrateScriptConfig
from euryale.cli.script import script, use_threads
from euryale.report.tables import calibration_table


@script("calibrate", __doc__)
def main(config: CalibrateScriptConfig) -> dict[str, object]:
    check_checkpoint(config.checkpoint, is_written=True)
    check_base(config.base)
    # Here, so that a refusal and --help do not wait for torch.
    from euryale.cli.pipeline import recalibrate

    use_threads(config.threads, config.deterministic, config.calibrate.seed)
    folder, content = recalibrate(config)
    for entry in content["calibrations"]:
        print(calibration_table(entry))
    return {
        "checkpoint": str(folder),
        "num_nodes": {str(e["temperature"]): e.get("dynamic_nodes") or e["num_nodes"] for e in content["calibrations"]},
    }


if __name__ == "__main__":
    main()
