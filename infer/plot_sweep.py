"""Plots a sweep of infer/bench.py: python infer/plot_sweep.py results=FILE.jsonl [by=temperature]

Examples:
  python infer/plot_sweep.py results=sweep.jsonl
  python infer/plot_sweep.py results=sweep.jsonl by=temperature
  python infer/plot_sweep.py results=sweep.jsonl output=sweep.png
"""

import euryale.cli.ctrl_c  # noqa: F401  (first: Ctrl-C ends with a line from here on)
from euryale.cli.schemas import PlotSweepConfig
from euryale.cli.script import script
from euryale.report.sweep_results import read_sweep, sweep_table
from euryale.system.files import write_atomically
from euryale.system.paths import user_path


@script("plot_sweep", __doc__)
def main(config: PlotSweepConfig) -> dict[str, object]:
    # Here, so that a refusal and --help do not wait for torch.
    from euryale.report.plot_sweep import sweep_plot

    assert config.results is not None, "PlotSweepConfig.check refuses none"
    results = user_path(config.results, "results")
    picture = user_path(config.output, "output") if config.output else results.with_suffix(".png")
    sweep = read_sweep(results, config.by)
    print(sweep_table(sweep))
    with write_atomically(picture) as staged:
        staged.write_bytes(sweep_plot(sweep))
    print(f"\n{picture}")
    return {"plot": str(picture), "by": sweep.by, "num_results": len(sweep.points)}


if __name__ == "__main__":
    main()
