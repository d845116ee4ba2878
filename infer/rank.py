"""Ranks the runs of a sweep, or of any folder: python infer/rank.py runs=DIR [metric=tau]

Examples:
  python infer/rank.py
  python infer/rank.py runs=checkpoints/sweep-widths metric=speedup
  python infer/rank.py runs=checkpoints/sweep-widths output=ranking
"""

import euryale.cli.ctrl_c  # noqa: F401  (first: Ctrl-C ends with a line from here on)
from euryale.cli.schemas import RankConfig
from euryale.cli.script import script
from euryale.errors import UserError
from euryale.report.ranking import rank_jobs, ranking_table, save_ranking, summary
from euryale.system.paths import output_root, user_path


@script("rank", __doc__)
def main(config: RankConfig) -> dict[str, object]:
    here, ours = user_path(config.runs, "runs"), output_root(config.runs)
    root = here if here.is_dir() else ours
    if not root.is_dir():
        looked = " and ".join(dict.fromkeys([str(here.absolute()), str(ours)]))
        raise UserError(f"runs={config.runs}: there is no such folder (looked at {looked}).")
    jobs = rank_jobs(root, config.metric)
    print(ranking_table(jobs, config.metric))
    paths = save_ranking(user_path(config.output, "output") if config.output else root, jobs, config.metric)
    print("\n" + "\n".join(str(path) for path in paths))
    return summary(root, jobs, config.metric)


if __name__ == "__main__":
    main()
