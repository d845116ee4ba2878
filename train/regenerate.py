"""Lets the base write a training set of its own: python train/regenerate.py [base=...] [data=...]

train/run.py does this itself; alone it makes a set ahead of time, and goes on with one that was interrupted. Several
processes share the work: torchrun --nproc_per_node=N train/regenerate.py [...]
With regenerate.url=http://HOST:8000/v1 a server of the base writes, and its weights are not loaded here.

Examples:
  python train/regenerate.py base=smollm2 data=self regenerate.num_prompts=10000
  python train/regenerate.py base=hf base.path=my-llama data=files data.files=my-texts.jsonl
  python train/regenerate.py base=llama3_8b data=ultrachat regenerate.url=http://127.0.0.1:8000/v1
"""

import euryale.cli.ctrl_c  # noqa: F401  (first: Ctrl-C ends with a line from here on)
from euryale.cli.places import check_base
from euryale.cli.script import script, use_threads
from euryale.cli.train_schemas import RegenerateScriptConfig
from euryale.system import processes
from euryale.system.files import read_json


@script("regenerate", __doc__)
def main(config: RegenerateScriptConfig) -> dict[str, object]:
    from euryale.cli.check_run import check_rows  # here, as below: it opens the data, which takes a second

    processes.join(config.base.device)
    processes.first(lambda: check_rows(config.data, needs_held_out=False))
    processes.first(lambda: check_base(config.base))
    # Here, so that no refusal above, nor --help, waits for torch.
    from euryale.cli.text_stage import write_text, writing_base, written_questions
    from euryale.regenerate.manifest import MANIFEST
    from euryale.regenerate.regenerate import check_settings

    use_threads(config.threads)
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
