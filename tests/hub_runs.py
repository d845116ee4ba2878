"""A process of its own in which whole runs of train/run.py meet the hub named by HF_ENDPOINT, for test_hub_recipes.py.

It takes one JSON request a line, {"arguments": [...], "stop_before_step": null or a number}, and answers with one. Like
hub_client.py it has to be a fresh process; that it stays for several runs saves importing torch for each.
"""

import json
import signal
import sys

from scripts import run_script

from euryale.training.sums import HostSums
from euryale.training.trainer import Trainer

train_step = Trainer.train_step
stop_before_step: int | None = None


def step_or_stop(trainer: Trainer) -> HostSums:
    if trainer.step + 1 == stop_before_step:
        signal.raise_signal(signal.SIGTERM)  # which finishes this step
    return train_step(trainer)


if __name__ == "__main__":
    Trainer.train_step = step_or_stop  # type: ignore[method-assign]
    for line in sys.stdin:
        request = json.loads(line)
        stop_before_step = request["stop_before_step"]
        print(json.dumps(run_script("train/run.py", *request["arguments"])._asdict()), flush=True)
