"""Lets the base write a training set of its own: python train/regenerate.py [base=...] [data=...]

train/run.py does this itself; alone it makes a set ahead of time, and goes on with one that was interrupted. Several
processes share the work: torchrun --nproc_per_node=N train/regenerate.py [...]
With regenerate.url=http://HOST:8000/v1 a server of the base writes, and its weights are not loaded here.
"""

import euryale.cli.ctrl_c  # noqa: F401  (first: what follows takes seconds to import)
from euryale.cli.preflight import check_rows
from euryale.cli.schemas import RegenerateScriptConfig
from euryale.cli.script import script, use_threads
from euryale.cli.text_stage import write_text, writing_base, written_questions
from euryale.regenerate.manifest import MANIFEST
from euryale.regenerate.regenerate import check_settings
from euryale.system import processes
from euryale.system.files import read_json


@script("regenerate")
def main(config: RegenerateScriptConfig) -> dict[str, object]:
    processes.join(config.base.device)
    use_threads(config.threads)
    config.regenerate.check()
    processes.first(lambda: check_rows(config.data, needs_held_out=False))
    base = writing_base(config)
    check_settings(config.regenerate, base)  # before questions are written, which may take long
    data = written_questions(base, config.data, config.regenerate)
    folder = write_text(base, data, config.regenerate)
    processes.leave()
    if not processes.is_first():
        return {}
    manifest = read_json(folder / MANIFEST)
    print(f"{manifest['num_rows']} rows, {manifest['num_tokens']} tokens in {folder}")
    return {"folder": str(folder), "num_rows": manifest["num_rows"], "num_tokens": manifest["num_tokens"]}


if __name__ == "__main__":
    main()
