"""infer/load.py against servers on loopback: what it counts, what it calls an error, and equal texts."""

import asyncio
import json
import math
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fake_engine import FakeEngine
from on_loopback import MODEL, Running, running
from scripts import assert_refused, run_script

from euryale.cli.load_levels import measure_load, targets_of
from euryale.cli.load_schema import LoadConfig
from euryale.data.prompt_files import Prompt, read_prompts
from euryale.errors import UserError
from euryale.evaluation.load import closed_loop, open_loop, same_texts, spread, summarise
from euryale.evaluation.load_client import Asked, Timed, ask
from euryale.report.load_tables import load_table

TAU = 12 / 8  # the fake engine gains 1, 2, 1, 2, ... tokens: 12 in 8 steps


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(FakeEngine(step_seconds=0.001)) as started:
        yield started


@pytest.fixture
def prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Two texts and a conversation."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    file = tmp_path / "prompts.jsonl"
    lines = [{"prompt": "abc"}, {"prompt": "hello"}, {"messages": [{"role": "user", "content": "why"}]}]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(file)


def config_of(server: Running, prompts: str, **settings: object) -> LoadConfig:
    fields = {"url": f"{server.url}/v1", "prompts": prompts, "requests": 9, "max_tokens": 12, "clients": [1, 3]}
    config = LoadConfig(**{**fields, **settings})  # type: ignore[arg-type]
    config.check()
    return config


def test_a_closed_loop_counts_what_the_server_wrote(server: Running, prompts: str, tmp_path: Path) -> None:
    result = measure_load(config_of(server, prompts, output=str(tmp_path / "out")))
    assert [level["clients"] for level in result["levels"]] == [1, 3]
    for level in result["levels"]:
        assert level["requests"] == level["answered"] == 9 and level["errors"] == {}
        assert level["tokens"] == 9 * 12 and level["tau"] == pytest.approx(TAU)
        assert 0 < level["ttft_s"]["p50"] <= level["latency_s"]["p50"] and level["per_token_s"]["p50"] > 0
    lines = [json.loads(line) for line in (tmp_path / "out/requests.jsonl").read_text().splitlines()]
    assert len(lines) == 18 and {line["prompt"] for line in lines} == {0, 1, 2}
    assert lines[0]["text"] == "abcabcabcabc" and lines[0]["model"] == MODEL
    assert json.loads((tmp_path / "out/load.json").read_text()) == result
    assert (tmp_path / "out/load.png").read_bytes().startswith(b"\x89PNG")
    assert "3 clients" in load_table(result) and "9/9" in load_table(result)


def test_an_open_loop_does_not_wait_for_answers(prompts: str) -> None:
    with running(FakeEngine(step_seconds=0.02)) as slow:
        config = config_of(slow, prompts, rates=[500.0], warm_up=0)
        target, asked = targets_of(config)[0], read_prompts(prompts)
        timed = open_loop(target, asked, 500.0, 9, seed=0)
        level = measure_load(config)["levels"][0]
    assert timed[1].started < timed[0].started + (timed[0].seconds or 0.0)  # eight steps of 20 ms
    assert [item.prompt for item in timed] == [0, 1, 2] * 3 and {item.error for item in timed} == {None}
    assert level["answered"] == 9 and level["rate"] == 500.0 and level["clients"] is None


def test_two_servers_are_compared_by_their_texts(server: Running, prompts: str) -> None:
    with running() as other:
        same = measure_load(config_of(server, prompts, other=f"{other.url}/v1/", clients=[2]))
    assert same["same_text"] == {"compared": 9, "equal": 9, "different": []}
    assert len(same["levels"]) == 2 and "9 of 9 answers are the same text" in load_table(same)
    texts = [Timed(0, 0.0, text="a"), Timed(1, 0.0, text="b"), Timed(2, 0.0, error="status 503", text="")]
    others = [Timed(0, 0.0, text="a"), Timed(1, 0.0, text="c"), Timed(2, 0.0, text="d")]
    assert same_texts(texts, others) == {"compared": 2, "equal": 1, "different": [1]}


def test_refusals_failures_and_cut_streams_are_errors_by_name(prompts: str) -> None:
    """One place in all: clients that come beside are refused. A step that raises ends its stream with an error."""
    engine = FakeEngine(step_seconds=0.005)
    engine.info = engine.info._replace(num_rows=1)
    with running(engine, max_waiting=0) as server:
        result = measure_load(config_of(server, prompts, clients=[3], warm_up=0))
        assert result["levels"][0]["errors"].keys() == {"status 503"} and result["levels"][0]["answered"] > 0
        target = targets_of(config_of(server, prompts))[0]
        engine.failing_steps = 1
        assert closed_loop(target, read_prompts(prompts), 1, 1)[0].error == "status 500"
        url = target.url
    gone = closed_loop(target, read_prompts(prompts), 1, 1)[0]
    assert gone.error == "ConnectError" and gone.status is None and gone.text == ""
    with pytest.raises(UserError, match=f"url={url} must be the address"):
        targets_of(LoadConfig(url=url))


@pytest.mark.parametrize(("ending", "error"), [("length", None), (None, "stream cut off")])
def test_a_stream_without_done_is_whole_where_it_says_why_it_ended(ending: str | None, error: str | None) -> None:
    """transformers' own server sends no [DONE]; a server that was killed sends no finish_reason either."""
    choices = [[{"delta": {"content": "ab"}, "finish_reason": None}], [{"delta": {}, "finish_reason": ending}]]
    body = "".join(f"data: {json.dumps({'choices': choice})}\n\n" for choice in choices)

    async def asked() -> Timed:
        transport = httpx.MockTransport(lambda request: httpx.Response(200, text=body))
        async with httpx.AsyncClient(transport=transport, base_url="http://peer/v1") as client:
            return await ask(client, Asked(MODEL, 2, 0.0, 0, False), Prompt("why", None, "1"), 0, 0.0)

    timed = asyncio.run(asked())
    assert (timed.error, timed.text, timed.num_tokens) == (error, "ab", 1)


def test_a_level_without_answers_has_no_speeds() -> None:
    level = summarise([Timed(0, 0.0, 503, "status 503", seconds=0.1)])
    assert level["answered"] == 0 and level["ttft_s"] is None and level["tau"] is None
    assert spread([None]) is None
    assert spread([3.0]) == {"mean": 3.0, "p50": 3.0, "p95": 3.0, "p99": 3.0}
    many = spread([float(n) for n in range(101)])
    assert many is not None and math.isclose(many["p95"], 95.0) and math.isclose(many["p50"], 50.0)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("clients=[0]", "clients must be numbers of at least 1"),
        ("rates=[-1]", "rates must be above 0"),
        ("requests=0", "requests"),
        ("url=http://127.0.0.1:9/v1", "OpenAI-compatible server"),
    ],
)
def test_what_cannot_be_measured_is_refused(setting: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert_refused(run_script("infer/load.py", setting), words)


def test_the_script_prints_a_table_and_its_result(server: Running, prompts: str) -> None:
    run = run_script("infer/load.py", f"url={server.url}/v1", f"prompts={prompts}", "requests=3", "clients=[2]")
    assert run.status == 0, run.err
    assert "2 clients" in run.out and run.last_line["levels"][0]["answered"] == 3
