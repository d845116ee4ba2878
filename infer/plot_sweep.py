"""Plots a sweep of infer/bench.py: python infer/plot_sweep.py results=FILE.jsonl [by=temperature]"""

import euryale.cli.ctrl_c  # noqa: F401  (first: what follows takes seconds to import)
from euryale.cli.schemas import PlotSweepConfig
from euryale.cli.script import script
from euryale.errors import UserError
from euryale.report.plot_sweep import sweep_plot
from euryale.report.sweep_results import read_sweep, sweep_table
from euryale.system.files import write_atomically
from euryale.system.paths import user_path


@script("plot_sweep")
def main(config: PlotSweepConfig) -> dict[str, object]:
    if config.results is None:
        raise UserError("results=FILE.jsonl is missing: the file that infer/bench.py output=FILE.jsonl adds to.")
    results = user_path(config.results, "results")
    picture = user_path(config.output, "output") if config.output else results.with_suffix(".png")
    if picture.suffix != ".png":
        raise UserError(f"output must be a .png file; got {config.output}.")
    sweep = read_sweep(results, config.by)
    print(sweep_table(sweep))
    with write_atomically(picture) as staged:
        staged.write_bytes(sweep_plot(sweep))
    print(f"\n{picture}")
    return {"plot": str(picture), "by": sweep.by, "num_results": len(sweep.points)}


if __name__ == "__main__":
    main()
