"""Finds the fastest tree for a checkpoint on this machine: python infer/calibrate.py checkpoint=DIR"""

import euryale.cli.ctrl_c  # noqa: F401  (first: what follows takes seconds to import)
from euryale.cli.pipeline import recalibrate
from euryale.cli.schemas import CalibrateScriptConfig
from euryale.cli.script import script, use_threads
from euryale.report.tables import calibration_table


@script("calibrate")
def main(config: CalibrateScriptConfig) -> dict[str, object]:
    use_threads(config.threads, config.deterministic, config.calibrate.seed)
    folder, content = recalibrate(config)
    for entry in content["calibrations"]:
        print(calibration_table(entry))
    return {
        "checkpoint": str(folder),
        "num_nodes": {str(e["temperature"]): e["num_nodes"] for e in content["calibrations"]},
    }


if __name__ == "__main__":
    main()
