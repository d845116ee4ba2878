"""Streaming survives what networks do, against a loopback hub that misbehaves on request.

Every fault is met in the middle of the second file, so that some rows were given before it and some come after.
"""

import gzip
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from loopback_hub import COMMIT, Fault, LoopbackHub
from omegaconf import OmegaConf

from euryale.cli.script import CONF
from euryale.cli.train_schemas import TrainConfig

NUM_ROWS = 240
ARTICLES = [f" = Article {n} = \n \n First of {n} .\n \n = = Part = = \n \n Last of {n} .\n \n" for n in range(7)]

Ask = Callable[..., dict[str, Any]]


def text_of(number: int) -> str:
    return f"row {number} " + random.Random(number).randbytes(200).hex()


ALL = [text_of(n) for n in range(NUM_ROWS)]


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hub")
    for name in ("parquet", "lines", "gz", "articles", "broken", "script"):
        (root / "org" / name).mkdir(parents=True)
    for part in range(2):
        numbers = range(part * NUM_ROWS // 2, (part + 1) * NUM_ROWS // 2)
        records = [{"number": n, "body": text_of(n)} for n in numbers]
        table = pyarrow.Table.from_pylist(records)
        pyarrow.parquet.write_table(table, root / f"org/parquet/train-{part}.parquet", row_group_size=50)
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (root / f"org/lines/train-{part}.jsonl").write_text(lines)
        (root / f"org/gz/train-{part}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
        (root / f"org/script/part-{part}.jsonl").write_text(lines)
    (root / "org/script/script.py").write_text("# a loading script, which no longer runs\n")
    lines_of_articles = [{"text": line} for line in "".join(ARTICLES).splitlines(keepends=True)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(lines_of_articles), root / "org/articles/train.parquet")
    bad = [{"body": "good"}, {"body": None}, {"body": "also good"}]
    (root / "org/broken/train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in bad))
    return root


@pytest.fixture(scope="module")
def hub(repositories: Path) -> Iterator[LoopbackHub]:
    with LoopbackHub(repositories) as hub:
        yield hub


def start_client(endpoint: str, home: Path) -> tuple[subprocess.Popen[str], Ask]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DOWNLOAD_TIMEOUT": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("hub_client.py"))],
        env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip

    def ask(repo: str, count: int | None = None, state: object = None, side: str = "train", **config: object) -> dict:
        settings = {"kind": "hub", "repo": repo, "column": "body", "shuffle_window": 1, "held_out_one_in": 0, **config}
        assert process.stdin is not None and process.stdout is not None
        print(json.dumps({"config": settings, "count": count, "state": state, "split": side}), file=process.stdin)
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    return process, ask


@pytest.fixture(scope="module")
def client(hub: LoopbackHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    process, ask = start_client(hub.url, tmp_path_factory.mktemp("home"))
    yield ask
    process.terminate()
    process.wait()


@pytest.mark.parametrize("name", ["parquet", "lines", "gz"])
def test_rows_of_a_repository_come_once_and_in_order(client: Ask, name: str) -> None:
    assert client(f"org/{name}")["rows"] == ALL


@pytest.mark.parametrize("name", ["parquet", "lines", "gz"])
@pytest.mark.parametrize("kind", ["drop", "stall", "unavailable"])
def test_one_fault_loses_and_doubles_no_row(client: Ask, hub: LoopbackHub, name: str, kind: str) -> None:
    fault = Fault(kind, path="train-1", after_bytes=5000)
    hub.faults = [fault]
    answer = client(f"org/{name}")
    assert fault.times == 0, "the fault was met"
    assert answer["error"] is None
    assert answer["rows"] == ALL


@pytest.mark.parametrize("name", ["parquet", "lines", "gz"])
def test_an_outage_longer_than_the_client_library_waits_is_told_and_survived(
    client: Ask, hub: LoopbackHub, name: str
) -> None:
    fault = Fault("drop", path="train-1", after_bytes=5000, times=8)  # the library itself tries each read 6 times
    hub.faults = [fault]
    answer = client(f"org/{name}")
    assert fault.times == 0
    assert answer["rows"] == ALL
    told = [message for message in answer["messages"] if "no row is lost" in message]
    assert told and f"after row {NUM_ROWS // 2} of org/{name}" in told[0] and "retry 1 of 6 in 1 s" in told[0]


def test_waits_double_and_after_the_retries_the_offline_way_is_named(client: Ask, hub: LoopbackHub) -> None:
    hub.faults = [Fault("drop", path="train-1", after_bytes=100, times=1000)]
    answer = client("org/lines", num_retries=3)
    hub.faults = []
    assert answer["rows"] == ALL[: NUM_ROWS // 2]
    assert [message.split(" in ")[-1].split(",")[0] for message in answer["messages"]] == ["1 s", "2 s", "4 s"]
    assert "3 retries did not bring it back" in answer["error"] and "data=files" in answer["error"]


@pytest.mark.parametrize(("name", "window"), [("parquet", 1), ("parquet", 32), ("lines", 1)])
def test_a_resumed_stream_gives_exactly_the_remaining_rows(client: Ask, name: str, window: int) -> None:
    whole = client(f"org/{name}", shuffle_window=window)["rows"]
    assert sorted(whole) == sorted(ALL)
    for cut in (1, 120, 121, 240):
        first = client(f"org/{name}", count=cut, shuffle_window=window)
        rest = client(f"org/{name}", state=first["state"], shuffle_window=window)
        assert first["rows"] + rest["rows"] == whole


def test_after_the_end_the_next_pass_starts_at_the_first_row(client: Ask) -> None:
    end = client("org/parquet")["state"]
    assert client("org/parquet", state=end)["rows"] == ALL


def test_a_resumed_stream_stays_on_the_commit_it_began_with(client: Ask, hub: LoopbackHub) -> None:
    state = client("org/lines", count=3)["state"]
    assert state["commit"] == COMMIT
    older = "0" * 40
    assert client("org/lines", state={**state, "commit": older})["rows"] == ALL[3:]
    assert any(f"/resolve/{older}/train-1.jsonl" in request for request in hub.requests)


def test_lines_of_articles_are_joined_into_documents_and_resume_inside_one(client: Ask) -> None:
    settings: dict[str, Any] = {"column": "text", "join_rows": True, "text_separator": "headings"}
    whole = client("org/articles", **settings)["rows"]
    assert whole == [article.removesuffix("\n") for article in ARTICLES]
    for cut in (1, 3, len(ARTICLES) - 1):
        first = client("org/articles", count=cut, **settings)
        assert first["rows"] + client("org/articles", state=first["state"], **settings)["rows"] == whole


def test_held_out_and_training_rows_of_a_stream_are_disjoint_and_complete(client: Ask) -> None:
    train = client("org/lines", held_out_one_in=20)["rows"]
    held_out = client("org/lines", held_out_one_in=20, side="held_out")["rows"]
    assert held_out and not set(train) & set(held_out)
    assert sorted(train + held_out) == sorted(ALL)


def test_files_of_a_repository_with_a_loading_script_can_be_named(client: Ask) -> None:
    assert "cannot be opened" in client("org/script", count=1)["error"]
    assert client("org/script", data_files="part-*.jsonl")["rows"] == ALL


def chat(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": f"About {question}: yes."}]


def write_ultrachat(folder: Path) -> list[str]:
    """Rows as HuggingFaceH4/ultrachat_200k holds them; the questions of its split for training on answers."""
    (folder / "data").mkdir(parents=True)
    for split in ("train_sft", "test_sft", "train_gen"):
        rows = [{"prompt": f"{split} {n}", "prompt_id": str(n), "messages": chat(f"{split} {n}")} for n in range(6)]
        table = pyarrow.Table.from_pylist(rows)
        pyarrow.parquet.write_table(table, folder / f"data/{split}-00000-of-00001-0123456789abcdef.parquet")
    return [f"train_sft {n}" for n in range(6)]


def write_sharegpt(folder: Path) -> list[str]:
    """A list as in Aeala/ShareGPT_Vicuna_unfiltered, two of its rows not a chat, and an older file."""
    names = {"user": "human", "assistant": "gpt"}
    talks = [[{"from": names[t["role"]], "value": t["content"]} for t in chat(f"question {n}")] for n in range(6)]
    odd = [[], [{"from": "human", "value": "Hello"}, {"from": "weather", "value": "Rain"}]]
    rows = [{"id": f"abc_{n}", "conversations": talk} for n, talk in enumerate([*talks[:3], *odd, *talks[3:]])]
    folder.mkdir(parents=True)
    (folder / "ShareGPT_V4.3_unfiltered_cleaned_split.json").write_text(json.dumps(rows, indent=2))
    (folder / "ShareGPT_2023.05.04v0_Wasteland_Edition.json").write_text(json.dumps(rows[:1]))
    return [f"question {n}" for n in range(6)]


@pytest.mark.parametrize(
    ("option", "write", "skipped"), [("ultrachat", write_ultrachat, 0), ("sharegpt", write_sharegpt, 2)]
)
def test_ready_made_conversations_are_read_as_their_repositories_hold_them(
    client: Ask, repositories: Path, option: str, write: Callable[[Path], list[str]], skipped: int
) -> None:
    ConfigStore.instance().store(name="train_schema", node=TrainConfig)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        settings = OmegaConf.to_container(compose("train", [f"data={option}"]).data)
    assert isinstance(settings, dict)
    settings |= {"shuffle_window": 1, "held_out_one_in": 0}
    questions = write(repositories / str(settings["repo"]))
    answer = client(**settings)  # type: ignore[misc]  # a setting's name is a string
    assert answer["error"] is None and answer["state"]["num_skipped"] == skipped
    assert answer["rows"] == [[["user", q, 1], ["assistant", f"About {q}: yes.", 1]] for q in questions]
    first = client(**settings | {"count": 2})  # type: ignore[misc]
    rest = client(**settings | {"state": first["state"]})  # type: ignore[misc]
    assert first["rows"] + rest["rows"] == answer["rows"]


def test_without_streaming_the_set_is_downloaded_and_read_from_the_disk(client: Ask) -> None:
    assert client("org/lines", streaming=False)["rows"] == ALL


def test_a_row_without_text_stops_or_is_counted(client: Ask) -> None:
    assert "org/broken train row 2: body must be text; got None" in client("org/broken")["error"]
    answer = client("org/broken", on_error="skip")
    assert answer["rows"] == ["good", "also good"]
    assert answer["state"]["num_skipped"] == 1
    assert answer["messages"][0].startswith("1 bad rows were skipped")


def test_what_a_user_can_get_wrong_about_a_repository_is_one_message(client: Ask, hub: LoopbackHub) -> None:
    assert "no such data set" in client("org/nothing")["error"]
    assert "data=wikitext103" in client("")["error"]
    assert "cannot be opened" in client("org/lines", subset="nope")["error"]
    assert "data.column=txt must be a column of the row" in client("org/lines", column="txt")["error"]
    hub.faults = [Fault("gated", path="/api/datasets/org/lines")]
    assert "access is restricted" in client("org/lines")["error"]


def test_a_hub_that_cannot_be_reached_is_said_at_once(client: Ask, hub: LoopbackHub) -> None:
    """The last test of this file: its hub is gone afterwards."""
    hub.go_away()
    answer = client("org/lines")
    assert "cannot be reached" in answer["error"] and "data=files" in answer["error"]
    assert answer["seconds"] < 5 and not answer["waits"]
