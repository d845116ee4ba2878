"""Everything that is to be measured on a GPU, in one call: python tests/on_a_gpu.py FOLDER [small] [NAME ...]

Or make gpu. Into FOLDER go the results as JSON, log.txt with what every command said, and summary.json with how each
ended. A command that fails or takes too long does not cost the others; NAMEs choose some. Nothing is downloaded.
Time on a GPU: not yet measured. By estimate the first two, which are recipe=gpu_8b, take under 9 minutes: 4 for the
steps (2 of them compiling: Triton, nvcc, transformers' static cache), 2 for training. `small` runs the same commands,
but for the tests that need a GPU, on sizes that a CPU does in two minutes. Not a test file itself.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
TOO_LONG_S = 420


class Command(NamedTuple):
    """What is run, from the project's root; {folder} is where results go, {runs} a place that is removed."""

    name: str
    arguments: tuple[str, ...]
    small: tuple[str, ...] | None  # further arguments where the sizes are small; None: it is left out


_MEASURE_SMALL = ("shape=tiny", "optim.name=adamw", "optim.gradient_accumulation=1", "data.block_size=64", "steps=1")
_STEPS_SMALL = (
    "shape=tiny",
    "shape.num_layers=2",
    "steps.nodes=[1,3]",
    "steps.repeats=1",
    "steps.context_tokens=40",
    "steps.generate_tokens=3",
)
COMMANDS = (
    Command("steps_8b", ("infer/bench_steps.py", "recipe=gpu_8b", "output={folder}/steps_8b.json"), _STEPS_SMALL),
    Command("training_8b", ("train/measure.py", "recipe=gpu_8b", "output={folder}/training_8b.json"), _MEASURE_SMALL),
    Command(
        "measure_llama2_7b",
        ("train/measure.py", "recipe=medusa2_qlora_llama2_7b", "output={folder}/measure_llama2_7b.json"),
        _MEASURE_SMALL,
    ),
    Command(
        "bench_kernels",
        ("infer/bench_kernels.py", "output={folder}/bench_kernels.jsonl"),
        ("nodes=[1,4]", "repeats=2", "shapes.context=40", "shapes.heads=4", "shapes.kv_heads=2", "shapes.head_size=64",
         "shapes.hidden=128", "shapes.inner=256", "shapes.layers=2", "shapes.vocab=500"),
    ),
    Command("tests", ("-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"), None),
    Command(
        "train_tiny_base",
        ("train/run.py", "optim.num_steps=300", "output={runs}", "regenerate.output={runs}/text", "name=tiny"),
        ("optim.num_steps=2", "optim.eval_batches=1", "regenerate.num_prompts=48", "regenerate.new_tokens=16",
         "calibrate.num_prompts=2", "calibrate.new_tokens=16", "calibrate.repeats=1", "calibrate.node_counts=[1,2,4]",
         "evaluate.num_prompts=2", "evaluate.max_new_tokens=12", "evaluate.repeats=1", "data.block_size=64"),
    ),
    Command(
        "bench_tiny_base",
        ("infer/bench.py", "checkpoint={runs}/tiny", "output={folder}/bench_tiny_base.json"),
        ("limit=2", "repeats=1", "max_new_tokens=12"),
    ),
    Command(
        "bench_tiny_base_batch",
        ("infer/bench.py", "checkpoint={runs}/tiny", "batch=8", "prompts=data/prompts.txt",
         "output={folder}/bench_tiny_base_batch.json"),
        ("batch=2", "limit=2", "repeats=1", "max_new_tokens=12"),
    ),
)  # fmt: skip


def main(folder: Path, is_small: bool, names: Sequence[str] = ()) -> int:
    """How many commands failed; names: of those to be run, () is all."""
    folder.mkdir(parents=True, exist_ok=True)
    summary: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory() as runs, (folder / "log.txt").open("w") as log:
        for command in COMMANDS:
            if (is_small and command.small is None) or (names and command.name not in names):
                continue
            arguments = [a.format(folder=folder, runs=runs) for a in command.arguments]
            line = [sys.executable, *arguments, *((command.small or ()) if is_small else ())]
            print("$", *line[1:], file=log, flush=True)
            begin = time.monotonic()
            try:
                status = subprocess.run(line, cwd=ROOT, stdout=log, stderr=log, timeout=TOO_LONG_S).returncode
                ended = "ok" if status == 0 else f"status {status}"
            except subprocess.TimeoutExpired:
                ended = f"stopped after {TOO_LONG_S} s"
            summary[command.name] = {"ended": ended, "seconds": round(time.monotonic() - begin, 1)}
            print(command.name, ended, f"{summary[command.name]['seconds']} s", flush=True)
            (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    return sum(entry["ended"] != "ok" for entry in summary.values())


if __name__ == "__main__":
    folder, *rest = sys.argv[1:] or [""]
    is_small, names = rest[:1] == ["small"], [name for name in rest if name != "small"]
    if not folder or not set(names) <= {command.name for command in COMMANDS}:
        sys.exit(
            f"usage: python tests/on_a_gpu.py FOLDER [small] [NAME ...]\nNAME: {', '.join(c.name for c in COMMANDS)}"
        )
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # What is measured is this checkout, installed or not.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    sys.exit(min(1, main(Path(folder).resolve(), is_small, names)))
