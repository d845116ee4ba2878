"""infer/load.py: its settings, and the levels of load that they ask for."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from euryale.data.prompt_files import Prompt, read_prompts
from euryale.errors import UserError, check_least
from euryale.evaluation.load import Target, closed_loop, find_model, open_loop, same_texts, summarise
from euryale.evaluation.load_client import Asked, Timed
from euryale.system.files import check_writable, write_json
from euryale.system.paths import user_path


@dataclass
class LoadConfig:
    """infer/load.py"""

    url: str = "http://127.0.0.1:8000/v1"
    other: str | None = None
    model: str | None = None
    other_model: str | None = None
    prompts: str = "data/prompts.txt"
    limit: int = 32
    requests: int = 32
    clients: list[int] = field(default_factory=lambda: [1, 4, 8])
    rates: list[float] = field(default_factory=list)
    warm_up: int = 2
    max_tokens: int = 128
    ignore_eos: bool = False
    temperature: float = 0.0
    seed: int = 0
    timeout: float = 600.0
    api_key_variable: str = "EURYALE_API_KEY"
    output: str | None = None

    def check(self) -> None:
        """Raises UserError for numbers out of range, and for a folder that cannot be written to."""
        check_least(1, limit=self.limit, requests=self.requests, max_tokens=self.max_tokens)
        if not self.rates and (not self.clients or min(self.clients) < 1):
            raise UserError(f"clients must be numbers of at least 1; got {self.clients}.")
        if self.rates and min(self.rates) <= 0:
            raise UserError(f"rates must be above 0; got {self.rates}.")
        if self.warm_up < 0 or self.timeout <= 0 or self.temperature < 0:
            raise UserError("warm_up and temperature must be at least 0, and timeout above 0.")
        if self.output is not None:
            check_writable(user_path(self.output, "output"), f"output={self.output}")

    def loads(self) -> list[tuple[int | None, float | None]]:
        """The levels: so many clients, or so many requests a second."""
        return [(None, rate) for rate in self.rates] if self.rates else [(num, None) for num in self.clients]

    def targets(self) -> list[Target]:
        """The servers. Raises UserError for one that is not there."""
        key = os.environ.get(self.api_key_variable) or None
        targets = []
        for url, model in ((self.url, self.model), (self.other, self.other_model)):
            if url is not None:
                address = url.rstrip("/")
                name = model or find_model(address, key)
                asked = Asked(name, self.max_tokens, self.temperature, self.seed, self.ignore_eos)
                targets.append(Target(address, asked, key, self.timeout))
        return targets


def measure_load(config: LoadConfig) -> dict[str, Any]:
    """All levels on all servers, one after another; files where `output` says so."""
    targets, prompts = config.targets(), read_prompts(config.prompts, config.limit)
    levels: list[dict[str, Any]] = []
    lines: list[dict[str, Any]] = []
    by_server: list[list[Timed]] = []
    for target in targets:
        if config.warm_up:
            closed_loop(target, prompts, 1, config.warm_up)
        taken: list[Timed] = []
        for clients, rate in config.loads():
            timed = _level(target, prompts, clients, rate, config)
            head = {"url": target.url, "model": target.asked.model, "clients": clients, "rate": rate}
            levels.append(head | summarise(timed))
            lines += [head | item.as_dict() for item in timed]
            taken += timed
        by_server.append(taken)
    result: dict[str, Any] = {"levels": levels}
    if len(by_server) == 2:
        result["same_text"] = same_texts(*by_server)
    if config.output is not None:
        _write(user_path(config.output, "output"), result, lines)
    return result


def _level(
    target: Target, prompts: list[Prompt], clients: int | None, rate: float | None, config: LoadConfig
) -> list[Timed]:
    if rate is not None:
        return open_loop(target, prompts, rate, config.requests, config.seed)
    assert clients is not None, "a level has clients or a rate"
    return closed_loop(target, prompts, clients, config.requests)


def _write(folder: Path, result: dict[str, Any], lines: list[dict[str, Any]]) -> None:
    from euryale.report.plot_load import load_plot  # here: every script reads LoadConfig, none waits for matplotlib

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "requests.jsonl").open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(line) + "\n" for line in lines)
    write_json(folder / "load.json", result)
    (folder / "load.png").write_bytes(load_plot(result))
