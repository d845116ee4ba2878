"""Kills whole runs of train/run.py at random moments (kill -9) and goes on with them until they end.

python tests/random_kills.py [RUNS] [SEED]: RUNS runs, in turn of heads alone (medusa1) and of heads and then adapters
(medusa2), all in float32 on a tiny random base. Each is killed up to three times, once at least: a stage is drawn, and
a moment in it. After every kill whatever is on the disk must be readable; at the end heads, adapters, text and metrics
must be those of a run that was not killed, byte for byte. One process imports everything and forks, because importing
is what takes long.
"""

import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from killed_runs import fork, in_child
from scripts import SMALL, run_script, write_texts
from tiny_llama import save_tiny_llama

from euryale.base.base import load_base
from euryale.base.config import BaseConfig
from euryale.decoding.tree.calibration import TREE_FILE, read_calibrations
from euryale.heads.checkpoint import load_heads
from euryale.report import (
    plot_tree,
    plots,
)
from euryale.system.files import read_json
from euryale.training.resume import load_resume
from euryale.training.saves import find_run

assert plots and plot_tree
STEPS, BORDER = 24, 12
STAGES = ("start", "text", "heads", "second half of training", "calibration", "evaluation", "report")
OBJECTIVES = ("medusa1", "medusa2")
MORE = (
    f"optim.num_steps={STEPS}", "optim.warmup_steps=2", "optim.save_every=3", "optim.eval_every=4",
    "regenerate.batch_size=4", "base.device=cpu", "lora.rank=4",
)  # fmt: skip


class Place(NamedTuple):
    """A folder with a base, texts and what runs leave."""

    root: Path
    arguments: list[str]

    def run(self, name: str) -> Path:
        return self.root / "runs" / name

    def text(self, name: str) -> Path:
        """The folder of the set that this run wrote for itself."""
        [folder] = (self.root / "text" / name).iterdir()
        return folder


def make_place(root: Path) -> Place:
    write_texts(root)
    base = save_tiny_llama(root / "base")
    arguments = ["base=hf", f"base.path={base}", "data=files", f"data.files={root}/texts.jsonl", *SMALL, *MORE]
    return Place(root, [*arguments, f"output={root}/runs"])


def start(place: Place, name: str, objective: str) -> None:
    """What a user does: the command, or where it left a run, the one that goes on with it."""
    if (place.run(name) / "config.yaml").exists():
        result = run_script("train/run.py", f"resume={name}", f"output={place.root}/runs")
    else:
        own = (f"objective={objective}", f"name={name}", f"regenerate.output={place.root}/text/{name}")
        result = run_script("train/run.py", *place.arguments, *own)
    if result.status:
        print(result.err[-3000:], file=sys.stderr)
    assert result.status == 0


def has_reached(place: Place, name: str, stage: str) -> bool:
    """Whether a run has come to a stage, as far as the disk says."""
    run = place.run(name)
    saved = max((int(path.name[5:]) for path in run.glob("resume/step-*")), default=0)
    return {
        "start": True,
        "text": any((place.root / "text" / name).glob("*/parts")),
        "heads": (run / "config.yaml").exists(),
        "second half of training": saved >= BORDER,
        "calibration": saved >= STEPS,
        "evaluation": (run / TREE_FILE).exists(),
        "report": (run / "report.json").exists(),
    }[stage]


def killed(place: Place, name: str, objective: str, stage: str, delay: float) -> bool:
    """Starts a run in a fork and kills it `delay` seconds after it has come to `stage`; False when it ended before.

    AssertionError when it failed by itself.
    """
    child = fork(lambda: start(place, name, objective))
    deadline = None
    while deadline is None or time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            assert status == 0, f"the run failed by itself: {status}"
            return False
        if deadline is None and has_reached(place, name, stage):
            deadline = time.monotonic() + delay
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def durations(place: Place, name: str, objective: str) -> dict[str, float]:
    """Lets a run come to its end; how long it was in each of its stages."""
    child = fork(lambda: start(place, name, objective))
    times = {}
    while not os.waitpid(child, os.WNOHANG)[0]:
        for stage in STAGES:
            if stage not in times and has_reached(place, name, stage):
                times[stage] = time.monotonic()
        time.sleep(0.002)
    ends = [*list(times.values())[1:], time.monotonic()]
    assert list(times) == list(STAGES), times
    return {stage: end - times[stage] for stage, end in zip(STAGES, ends, strict=True)}


def look(place: Place, name: str) -> str:
    """Reads everything that a killed run left; UserError for what cannot be read. Returns the stage that it was in."""
    run = place.run(name)
    if (run / "heads.json").exists():
        load_heads(run, load_base(BaseConfig(path=str(place.root / "base"), dtype="float32", device="cpu")))
    if not (run / "resume").exists() or not list((run / "resume").glob("step-*")):
        return "text" if not (run / "config.yaml").exists() else "before the first save"
    assert find_run(name, place.root / "runs") == run
    settings = read_json(sorted((run / "resume").glob("step-*"))[-1] / "state.json")["settings"]
    step = load_resume(run, settings)[1]["step"]
    if step < STEPS:
        return "heads" if step < BORDER else "second half of training"
    for file in ("report.json", "result.json"):
        if (run / file).exists():
            read_json(run / file)
    if not (run / TREE_FILE).exists():
        return "calibration"
    read_calibrations(run)
    return "report" if (run / "report.json").exists() else "evaluation"


def facts(place: Place, name: str) -> dict[str, object]:
    """All of a finished run that does not depend on the clock."""
    run, text = place.run(name), place.text(name)
    found: dict[str, object] = {
        str(path.relative_to(run)): path.read_bytes() for path in sorted(run.rglob("*.safetensors"))
    }
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found["metrics"] = [{k: v for k, v in line.items() if k != "tokens_per_s"} for line in lines]
    found["text"] = {path.name: path.read_bytes() for path in sorted(text.glob("*.parquet"))}
    found["manifest"] = {k: v for k, v in read_json(text / "manifest.json").items() if k != "started"}
    report = read_json(run / "report.json")
    found["evaluation"] = [report["evaluation"][key] for key in ("identical", "total")]
    found["files"] = sorted(str(path.relative_to(run)) for path in run.rglob("*"))
    found["text files"] = sorted(path.name for path in text.iterdir())
    return found


def main(runs: int, seed: int, root: Path) -> Counter[str]:
    """Kills and resumes `runs` runs below `root`; AssertionError for one that differs. Returns kills by stage."""
    chance = random.Random(seed)
    place = make_place(root)
    kinds = OBJECTIVES[: min(runs, len(OBJECTIVES))]
    usual = {objective: durations(place, objective, objective) for objective in kinds}
    expected = {objective: facts(place, objective) for objective in kinds}
    kills: Counter[str] = Counter()
    for number in range(runs):
        objective = kinds[number % len(kinds)]
        name = f"killed-{number}"
        stage = chance.choice(STAGES[:-1])  # the last one is over in a moment
        while not killed(place, name, objective, stage, chance.uniform(0, usual[objective][stage])):
            shutil.rmtree(place.run(name))  # it was faster this time
            shutil.rmtree(root / "text" / name)
        kills[look(place, name)] += 1
        for _ in range(chance.randint(0, 2)):
            stage = chance.choice(STAGES)
            if not killed(place, name, objective, stage, chance.uniform(0, usual[objective][stage])):
                break
            kills[look(place, name)] += 1
        assert in_child(lambda: start(place, name, objective)) == 0, name  # noqa: B023
        found = facts(place, name)
        different = [key for key in expected[objective] if found.get(key) != expected[objective][key]]
        assert not different and found.keys() == expected[objective].keys(), (name, different)
        print(f"{number + 1} of {runs} runs as if nothing had happened; kills by stage: {dict(kills)}", flush=True)
    return kills


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        given = [int(argument) for argument in sys.argv[1:]]
        main(*given, *(50, 0)[len(given) :], root=Path(folder))
