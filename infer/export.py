"""Writes a checkpoint as another server reads it: python infer/export.py checkpoint=DIR format=vllm output=DIR

Examples:
  python infer/export.py checkpoint=last format=vllm
  python infer/export.py checkpoint=last format=medusa output=exported
  python infer/export.py checkpoint=last format=tgi output=exported
"""

import euryale.cli.ctrl_c  # noqa: F401  (first: Ctrl-C ends with a line from here on)
from euryale.cli.places import check_base
from euryale.cli.schemas import ExportConfig
from euryale.cli.script import script
from euryale.heads.find_checkpoint import find_checkpoint
from euryale.system.paths import PROJECT, user_path


@script("export", __doc__)
def main(config: ExportConfig) -> dict[str, object]:
    folder = find_checkpoint(config.checkpoint, PROJECT / "checkpoints")
    check_base(config.base)
    # Here, so that a refusal and --help do not wait for torch.
    from euryale.cli.open_engine import open_base
    from euryale.export import export
    from euryale.heads.checkpoint import read_description

    output = user_path(config.output, "output") if config.output else folder.with_name(f"{folder.name}-{config.format}")
    files = export(folder, config.format, output, lambda: open_base(config.base, read_description(folder)))
    for file in files:
        print(f"{file} ({file.stat().st_size:,} bytes)")
    return {"checkpoint": str(folder), "format": config.format, "output": str(output), "files": [f.name for f in files]}


if __name__ == "__main__":
    main()
