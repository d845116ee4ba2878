"""The levels of load that infer/load.py asks for."""

import json
import os
from pathlib import Path
from typing import Any

from euryale.cli.load_schema import LoadConfig
from euryale.data.prompt_files import Prompt, read_prompts
from euryale.evaluation.load import Target, closed_loop, find_model, open_loop, same_texts, summarise
from euryale.evaluation.load_client import Asked, Timed
from euryale.system.files import write_json
from euryale.system.paths import user_path


def measure_load(config: LoadConfig) -> dict[str, Any]:
    """All levels on all servers, one after another; files where `output` says so."""
    targets, prompts = targets_of(config), read_prompts(config.prompts, config.limit)
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


def targets_of(config: LoadConfig) -> list[Target]:
    """The servers. Raises UserError for one that is not there."""
    key = os.environ.get(config.api_key_variable) or None
    targets = []
    for url, model in ((config.url, config.model), (config.other, config.other_model)):
        if url is not None:
            address = url.rstrip("/")
            name = model or find_model(address, key)
            asked = Asked(name, config.max_tokens, config.temperature, config.seed, config.ignore_eos)
            targets.append(Target(address, asked, key, config.timeout))
    return targets


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
