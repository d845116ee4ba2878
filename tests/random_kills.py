"""Kills whole runs of train/run.py at random moments (kill -9) and goes on with them until they end.

python tests/random_kills.py [RUNS] [SEED]: RUNS runs, in turn of heads alone (medusa1) and of heads and then adapters
(medusa2), all in float32 on a tiny random base. Each is killed once to three times, anywhere between its first and its
last line: while the base writes text, in either stage of training, calibrating, evaluating. After every kill whatever
is on the disk must be readable; at the end heads, adapters, text and metrics must be those of a run that nobody killed,
byte for byte. One process imports everything and forks, because importing is what takes long.
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
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from conftest import save_tiny_llama
from killed_runs import in_child
from scripts import SMALL, run_script, write_texts

from euryale.decoding.calibrated import TREE_FILE, read_calibrations
from euryale.model.base import BaseConfig, load_base
from euryale.model.checkpoint import load_heads
from euryale.model.files import read_json
from euryale.serving import plots, treeplot  # imported before the first fork
from euryale.training.resume import find_run, load_resume

assert plots and treeplot
STEPS, BORDER = 12, 6
OBJECTIVES = ("medusa1", "medusa2")
MORE = (
    f"optim.num_steps={STEPS}", "optim.warmup_steps=2", "optim.save_every=2", "optim.eval_every=4",
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


def killed_after(work: Callable[[], None], seconds: float) -> bool:
    """Runs `work` in a fork and kills it; False when it had ended before. AssertionError when it failed by itself."""
    child = os.fork()
    if child == 0:
        in_this = 1
        try:
            work()
            in_this = 0
        finally:
            os._exit(in_this)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            assert status == 0, f"the run failed by itself: {status}"
            return False
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


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


def main(runs: int, seed: int) -> None:
    chance = random.Random(seed)
    root = Path(tempfile.mkdtemp(prefix="kills-"))
    place = make_place(root)
    expected, usual = {}, {}
    for objective in OBJECTIVES:
        began = time.monotonic()
        assert in_child(lambda objective=objective: start(place, objective, objective)) == 0  # type: ignore[misc]
        usual[objective] = time.monotonic() - began
        expected[objective] = facts(place, objective)
    kills: Counter[str] = Counter()
    for number in range(runs):
        objective = OBJECTIVES[number % len(OBJECTIVES)]
        name = f"killed-{number}"
        for _ in range(chance.randint(1, 3)):
            moment = chance.uniform(0, usual[objective])
            if not killed_after(lambda: start(place, name, objective), moment):  # noqa: B023
                break
            kills[look(place, name)] += 1
        assert in_child(lambda: start(place, name, objective)) == 0, name  # noqa: B023
        found = facts(place, name)
        different = [key for key in expected[objective] if found.get(key) != expected[objective][key]]
        assert not different and found.keys() == expected[objective].keys(), (name, different)
        print(f"{number + 1} of {runs} runs as if nothing had happened; kills by stage: {dict(kills)}", flush=True)
    shutil.rmtree(root)


if __name__ == "__main__":
    main(*(int(argument) for argument in [*sys.argv[1:], *("50", "0")[len(sys.argv) - 1 :]]))
