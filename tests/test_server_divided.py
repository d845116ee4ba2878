"""Two processes that divide a base serve what one serves: the second takes the steps of the first."""

import http.client
import json
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from fake_engine import FakeEngine
from forked import in_processes
from scripts import Result, run_script

from euryale.base.base import load_base
from euryale.base.config import BaseConfig
from euryale.decoding.engine import Engine
from euryale.decoding.sampling import Sampling
from euryale.errors import UserError
from euryale.server.address import find_port
from euryale.server.backend import Ending, Job
from euryale.server.config import ServerConfig
from euryale.server.divided import Cancel, LeadingBackend, Start, Stop, follow
from euryale.server.scheduler_adapter import SchedulerAdapter
from euryale.system.channel import Channel


class Heard:
    """A channel to nobody: it keeps what is said, and gives it again."""

    def __init__(self) -> None:
        self.words: list[object] = []

    def say(self, word: object) -> None:
        self.words.append(word)

    def hear(self) -> object:
        return self.words.pop(0)


def job(num_tokens: int, **changes: object) -> Job:
    return Job([1, 2, 3], num_tokens, Sampling(), 0, **changes)  # type: ignore[arg-type]


def test_the_others_are_told_of_jobs_and_cancels_before_each_step() -> None:
    heard, first, second = Heard(), FakeEngine(), FakeEngine()
    leading = LeadingBackend(first, heard)  # type: ignore[arg-type]
    short, long, refused = job(1), job(9), job(1)
    leading.start(short)
    leading.start(long)
    assert [item.is_last for item in leading.step()] == [True, False]
    leading.cancel(short)  # it has ended: nobody is told
    leading.cancel(long)
    first.refusal = "no"
    with pytest.raises(UserError):
        leading.start(refused)
    assert leading.step() == []
    leading.close()
    assert heard.words == [[Start(0, short), Start(1, long)], [Cancel(1)], Stop()]
    follow(second, heard)  # type: ignore[arg-type]
    assert second.started == [short, long] and second.cancelled == [long] and second.num_steps == first.num_steps


def test_a_divided_server_does_not_go_on_after_a_failed_step() -> None:
    with pytest.raises(RuntimeError, match="cannot go on after a failed step"):
        LeadingBackend(FakeEngine(), Heard()).reset()  # type: ignore[arg-type]


def test_jobs_that_come_and_go_are_written_as_by_one_process(tiny_llama_folder: Path, tmp_path: Path) -> None:
    """More jobs than rows, plain ones and drawn ones among them, and one that is cancelled half way."""
    config = BaseConfig(path=str(tiny_llama_folder), dtype="float32", device="cpu")

    def written(backend: SchedulerAdapter | LeadingBackend) -> list[Ending]:
        drawn = Sampling(temperature=0.9, logit_bias={5: 1.0})
        waiting = [
            Job([1, 40 + n, 50, 40 + n], 6 + n, drawn if n % 2 else Sampling(), n, ignore_eos=True, with_drafter=n != 2)
            for n in range(5)
        ]
        endings: dict[int, Ending] = {}
        gone = Job([1, 7, 8], 40, Sampling(), 0, ignore_eos=True)
        backend.start(gone)
        for _ in range(3):
            backend.step()
        backend.cancel(gone)
        while waiting or backend.num_live:
            while waiting and backend.num_live < backend.info.num_rows:
                backend.start(waiting.pop(0))
            for item in backend.step():
                if item.ending is not None:
                    endings[item.job.seed] = item.ending
        return [endings[seed] for seed in sorted(endings)]

    def backend_of(base: BaseConfig) -> SchedulerAdapter:
        return SchedulerAdapter(Engine(load_base(base), drafter="lookup"), "tiny", 2, 64, 0.0)

    def work() -> list[Ending] | None:
        backend, channel = backend_of(replace(config, tensor_parallel=2)), Channel()
        if os.environ["RANK"] == "1":
            return follow(backend, channel)
        leading = LeadingBackend(backend, channel)
        endings = written(leading)
        leading.close()
        return endings

    alone = written(backend_of(config))
    first, second = in_processes(2, work, tmp_path)
    assert [ending.ids for ending in first] == [ending.ids for ending in alone] and len(alone) == 5
    assert second is None


def test_infer_serve_answers_for_both_and_both_end_at_sigterm(tiny_llama_folder: Path, tmp_path: Path) -> None:
    port = find_port(ServerConfig(port=0))
    settings = ["checkpoint=null", f"base.path={tiny_llama_folder}", "base.dtype=float32", "base.device=cpu"]
    settings += ["drafter=lookup", "threads=1", "max_model_len=64", "max_rows=2", f"port={port}", "model=tiny"]

    def ask() -> str:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        fields = {"model": "tiny", "prompt": "a b c", "max_tokens": 12, "ignore_eos": True, "temperature": 0}
        connection.request("POST", "/v1/completions", json.dumps(fields), {"Content-Type": "application/json"})
        return str(json.loads(connection.getresponse().read())["choices"][0]["text"])

    def client(texts: list[str]) -> None:
        for _ in range(300):
            try:
                texts.append(ask())
                break
            except ConnectionRefusedError:
                time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)

    def work() -> tuple[Result, list[str]]:
        texts: list[str] = []
        if os.environ["RANK"] == "0":
            threading.Thread(target=client, args=(texts,), daemon=True).start()
        return run_script("infer/serve.py", *settings, "base.tensor_parallel=2"), texts

    base = load_base(BaseConfig(path=str(tiny_llama_folder), dtype="float32", device="cpu"))
    [alone] = Engine(base, drafter="none").generate(["a b c"], 12, ignore_eos=True)
    (first, texts), (second, _) = in_processes(2, work, tmp_path)
    assert (first.status, second.status) == (0, 0), first.err + second.err
    assert texts == [alone.text] and first.last_line == {"num_requests": 1, "num_tokens": 12}
    assert second.out == "" and second.err == ""
