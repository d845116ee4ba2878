"""The text that the base writes is kept whole, reused, gone on with, and the same however it was batched."""

import json
import logging
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock, patch

import pyarrow.parquet
import pytest
from forked import in_processes
from scripts import run_script

from euryale.base.base import Base, load_base
from euryale.base.base_info import describe_base
from euryale.base.config import BaseConfig
from euryale.cli.text_stage import prepare_text, write_text
from euryale.cli.train_schemas import TrainConfig
from euryale.data.config import DataConfig
from euryale.data.row_prompts import draw_openings
from euryale.data.rows import Message, Row, row_from_record
from euryale.data.sources import build_source
from euryale.data.tokens import tokenize_row
from euryale.decoding.engine import Engine
from euryale.errors import UserError
from euryale.regenerate import manifest
from euryale.regenerate import regenerate as module
from euryale.regenerate.completions import Answer
from euryale.regenerate.config import RegenerateConfig
from euryale.regenerate.conversations import converse
from euryale.regenerate.regenerate import regenerate
from euryale.system import processes
from euryale.system.files import read_json, write_json

# 11 rows in shards of 4: two full ones and a rest; 5 greedy rows, so that one shard holds both kinds.
CONFIG = RegenerateConfig(
    num_prompts=11, prompt_tokens=6, new_tokens=8, greedy_share=0.45, temperature=1.0, batch_size=3, shard_rows=4,
    seed=3,
)  # fmt: skip
NUM_GREEDY = 5
SETTINGS = {"kind": "files"}


def rows() -> list[Row]:
    return [Row(key=str(i), origin=f"t:{i}", text=f"{i:02d} the quick brown fox") for i in range(30)]


def write(base: Base, root: Path, **changes: object) -> Path:
    return regenerate(base, rows(), SETTINGS, replace(CONFIG, **changes), root)  # type: ignore[arg-type]


def records(folder: Path) -> list[dict]:
    names = read_json(folder / "manifest.json")["shards"]
    return [record for name in names for record in pyarrow.parquet.read_table(folder / name).to_pylist()]


@pytest.fixture(scope="module")
def written(tiny_base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole set; leave it as it is."""
    return write(tiny_base, tmp_path_factory.mktemp("sets"))


@pytest.fixture
def copied(written: Path, tmp_path: Path) -> Path:
    """The same set in a place of its own; returns its folder."""
    folder = tmp_path / written.name
    folder.mkdir()
    for file in written.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_every_record_is_what_the_base_says_after_the_opening(written: Path, tiny_base: Base) -> None:
    openings = draw_openings(rows(), tiny_base.tokenizer, 11, 6, seed=3)
    engine = Engine(tiny_base, drafter="none")
    found = records(written)
    assert len(found) == 11
    for number, (record, opening) in enumerate(zip(found, openings, strict=True)):
        temperature = 0.0 if number < NUM_GREEDY else 1.0
        [answer] = engine.generate([opening.ids], 8, temperature=temperature, seed=record["seed"])
        assert record["ids"] == opening.ids + answer.ids and record["num_prompt"] == len(opening.ids)
        assert (record["key"], record["origin"], record["text"]) == (opening.key, opening.origin, answer.text)
        assert record["temperature"] == temperature
    assert len({record["seed"] for record in found}) == 11


def test_the_manifest_says_what_the_set_is(written: Path, tiny_base: Base) -> None:
    manifest = read_json(written / "manifest.json")
    assert manifest["is_complete"] and manifest["num_rows"] == 11
    assert manifest["shards"] == [f"shard-0000{i}.parquet" for i in range(3)]
    assert manifest["num_tokens"] == sum(len(r["ids"]) - r["num_prompt"] for r in records(written))
    assert manifest["base"] == tiny_base.identity() and manifest["data"] == SETTINGS
    assert manifest["regenerate"]["new_tokens"] == 8
    assert sorted(path.name for path in written.iterdir()) == ["manifest.json", *manifest["shards"]]
    assert written.name.startswith("tiny-llama-")


def test_the_data_stage_reads_what_was_written(written: Path) -> None:
    source = build_source(DataConfig(kind="regenerated", folder=str(written), held_out_one_in=0), "train")
    found = sorted((row.key, row.ids, row.num_prompt) for row in source)
    assert found == sorted((r["key"], tuple(r["ids"]), r["num_prompt"]) for r in records(written))


def test_a_whole_set_is_reused(written: Path, tiny_base: Base, caplog: pytest.LogCaptureFixture) -> None:
    before = {path: path.stat().st_mtime_ns for path in written.iterdir()}

    def no_rows() -> Iterator[Row]:
        raise AssertionError("the rows are not read again")
        yield

    with caplog.at_level(logging.INFO, logger="euryale"):
        assert regenerate(tiny_base, no_rows(), SETTINGS, replace(CONFIG, batch_size=7), written.parent) == written
    assert "reusing" in caplog.text and {path: path.stat().st_mtime_ns for path in written.iterdir()} == before


@pytest.mark.parametrize("batch_size", [1, 64])
def test_the_batch_size_does_not_change_what_is_written(
    written: Path, tiny_base: Base, tmp_path: Path, batch_size: int
) -> None:
    assert records(write(tiny_base, tmp_path, batch_size=batch_size)) == records(written)


@pytest.mark.parametrize(
    "changes",
    [{"new_tokens": 7}, {"temperature": 0.9}, {"seed": 4}, {"num_prompts": 10}, {"greedy_share": 0.5},
     {"shard_rows": 5}],
    ids=str,
)  # fmt: skip
def test_other_settings_are_another_set(
    written: Path, tiny_base: Base, monkeypatch: pytest.MonkeyPatch, changes: dict
) -> None:
    folders = []

    def whole(folder: Path, identity: dict) -> dict:
        folders.append(folder)
        return {"is_complete": True, "num_rows": 1, "num_tokens": 2, "num_duplicates": 0}

    monkeypatch.setattr(module, "read_manifest", whole)
    write(tiny_base, written.parent)
    assert folders == [written]
    write(tiny_base, written.parent, **changes)
    regenerate(tiny_base, rows(), {"kind": "hub"}, CONFIG, written.parent)
    assert len(set(folders)) == 3


def kill_after(count: int, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Kills this process before the count-th call of a function of regenerate.py or manifest.py."""
    home = module if hasattr(module, name) else manifest
    plain: Callable = getattr(home, name)
    calls = []

    def counted(*arguments: object, **keywords: object) -> object:
        calls.append(name)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(*arguments, **keywords)

    monkeypatch.setattr(home, name, counted)


@pytest.mark.parametrize(
    "name, count, num_parts",
    [("_answer", 1, 0), ("_answer", 3, 2), ("make_shards", 1, 4), ("write_json", 2, 4)],
    ids=["at once", "after two batches", "before the shards", "between the shards and the manifest"],
)
def test_a_killed_run_goes_on_to_the_same_rows(
    written: Path,
    tiny_base: Base,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    count: int,
    num_parts: int,
) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            kill_after(count, monkeypatch, name)
            write(tiny_base, tmp_path)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert len(list(tmp_path.rglob("part-*.parquet"))) == num_parts
    with pytest.raises(UserError, match="is not finished"):
        build_source(DataConfig(kind="regenerated", folder=str(tmp_path / written.name)), "train")
    writer = Mock(side_effect=module._answer)
    monkeypatch.setattr(module, "_answer", writer)
    folder = write(tiny_base, tmp_path, batch_size=2)
    assert records(folder) == records(written)
    expected = read_json(written / "manifest.json") | {"started": ""}
    assert read_json(folder / "manifest.json") | {"started": ""} == expected
    num_rows = sum(len(call.args[3]) for call in writer.call_args_list)
    assert num_rows == {0: 11, 2: 6, 4: 0}[num_parts], "no row is written twice"
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in written.iterdir())


def test_a_damaged_part_is_written_again(
    written: Path, tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(manifest, "make_shards", Mock(side_effect=UserError("no room")))
        with pytest.raises(UserError):
            write(tiny_base, tmp_path)
    parts = sorted(tmp_path.rglob("part-*.parquet"))
    parts[1].write_bytes(b"no parquet")
    assert records(write(tiny_base, tmp_path)) == records(written)
    assert f"{parts[1]} is damaged" in caplog.text


def damage(folder: Path, how: str) -> None:
    shard, manifest = folder / "shard-00001.parquet", folder / "manifest.json"
    if how == "a missing shard":
        shard.unlink()
    elif how == "a shard cut short":
        shard.write_bytes(shard.read_bytes()[:-20])
    elif how == "an empty shard":
        shard.write_bytes(b"")
    elif how == "another shard's rows":
        shard.write_bytes((folder / "shard-00002.parquet").read_bytes())
    elif how == "a manifest cut short":
        manifest.write_text(manifest.read_text()[:-30])
    elif how == "a manifest without its counts":
        write_json(manifest, {"format_version": 1, "shards": [], "is_complete": True})
    elif how == "a manifest whose shards are no names":
        write_json(manifest, read_json(manifest) | {"shards": [["x"]]})
    elif how == "a manifest whose counts are none":
        write_json(manifest, read_json(manifest) | {"num_duplicates": []})
    else:
        write_json(manifest, read_json(manifest) | {"format_version": 0})


@pytest.mark.parametrize(
    "how",
    ["a missing shard", "a shard cut short", "an empty shard", "another shard's rows", "a manifest cut short",
     "a manifest without its counts", "a manifest whose shards are no names", "a manifest whose counts are none",
     "an old format"],
)  # fmt: skip
def test_a_damaged_set_is_written_anew(
    copied: Path, written: Path, tiny_base: Base, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    damage(copied, how)
    assert write(tiny_base, copied.parent) == copied
    assert "is not whole" in caplog.text and "writing it anew" in caplog.text
    assert records(copied) == records(written)


def test_a_full_disk_keeps_the_shards_before_it(
    written: Path, tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, calls = pyarrow.parquet.write_table, []

    def full(table: object, path: Path) -> None:
        calls.append(path)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        plain(table, path)

    monkeypatch.setattr(pyarrow.parquet, "write_table", full)
    with pytest.raises(UserError, match="part-.*parquet could not be saved.*No space left"):
        write(tiny_base, tmp_path)
    assert len(list((tmp_path / written.name).rglob("part-*.parquet"))) == 1
    assert records(write(tiny_base, tmp_path)) == records(written)


def test_a_base_that_answers_nothing_is_told_before_heads_learn_its_silence(
    tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Silent:
        def write(self, prompts: list[list[int]], *_: object) -> list[Answer]:
            return [Answer([2], "", True) for _ in prompts]

    monkeypatch.setattr("euryale.regenerate.regenerate._writer", lambda base, config: Silent())
    for _ in range(2):  # also when the set is there already
        with pytest.raises(UserError, match="must write answers; got its end token alone after all"):
            write(tiny_base, tmp_path)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_prompts": 0}, "regenerate.num_prompts must be at least 1; got 0"),
        ({"batch_size": -1}, "regenerate.batch_size must be at least 1; got -1"),
        ({"greedy_share": 1.5}, "regenerate.greedy_share must be from 0 to 1; got 1.5"),
        ({"temperature": 0.0}, "regenerate.temperature must be above 0 to sample, and at most 1e.06; got 0.0"),
        ({"temperature": 1e308}, "regenerate.temperature must be above 0 to sample, and at most 1e.06"),
        ({"prompt_tokens": 200, "new_tokens": 100}, "= 300, and the context of .* ends at 256"),
    ],
)
def test_impossible_settings_are_refused_and_nothing_is_written(
    tiny_base: Base, tmp_path: Path, changes: dict, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        write(tiny_base, tmp_path, **changes)
    assert not list(tmp_path.iterdir())


def test_questions_that_fill_the_context_are_left_out_or_refused(tiny_base: Base, tmp_path: Path) -> None:
    long = Row(key="long", origin="q:1", messages=(Message("user", "x" * 255),))
    short = Row(key="short", origin="q:2", messages=(Message("user", "y" * 9),))
    with pytest.raises(UserError, match="none of the prompts leaves room"):
        regenerate(tiny_base, [long], SETTINGS, CONFIG, tmp_path)
    assert not list(tmp_path.iterdir())
    found = records(regenerate(tiny_base, [long, short], SETTINGS, replace(CONFIG, greedy_share=0.5), tmp_path))
    assert {r["key"] for r in found} == {"short"} and len(found) == CONFIG.num_prompts
    assert [r["temperature"] for r in found].count(0.0) == 1, "one opening has one greedy answer"
    assert len({r["seed"] for r in found}) == len(found), "taken again, it is sampled anew"


def test_all_greedy_needs_no_temperature(tiny_base: Base, tmp_path: Path) -> None:
    found = records(write(tiny_base, tmp_path, greedy_share=1.0, temperature=0.0, num_prompts=2))
    assert [record["temperature"] for record in found] == [0.0, 0.0]


# As a stage of training


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    texts = [{"text": f"{i:02d} the quick brown fox"} for i in range(30)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    data = DataConfig(kind="files", files=str(tmp_path / "texts.jsonl"), held_out_one_in=3, batch_size=2)
    small = replace(CONFIG, num_prompts=30, new_tokens=2, output=str(tmp_path / "sets"))
    return TrainConfig(data=data, regenerate=small)


def test_a_row_s_text_stays_on_its_side_of_the_split(config: TrainConfig, tiny_base: Base) -> None:
    data = prepare_text(tiny_base, config)
    assert data.kind == "regenerated" and Path(data.folder).parent == Path(config.regenerate.output)
    for split in ("train", "held_out"):
        raw = {row.key for row in build_source(config.data, split)}
        assert {row.key for row in build_source(data, split)} == raw and raw


def test_text_that_was_written_already_or_is_not_wanted_is_taken_as_it_is(config: TrainConfig, tiny_base: Base) -> None:
    folder = str(write_text(tiny_base, config.data, config.regenerate))
    for changes in ({"regenerate": False}, {"kind": "regenerated", "folder": folder}):
        data = replace(config.data, **changes)
        assert prepare_text(tiny_base, replace(config, data=data)) is data


def test_a_set_of_another_base_or_template_is_refused(
    config: TrainConfig, written: Path, tiny_base: Base, copied: Path
) -> None:
    manifest = read_json(copied / "manifest.json")
    for changes, message in (
        ({"base": manifest["base"] | {"path": "other-base", "fingerprint": "f00"}}, "another base: other-base .*f00"),
        ({"chat_template": "beef"}, "another chat template .beef."),
        ({"is_complete": False}, "is not finished"),
    ):
        write_json(copied / "manifest.json", manifest | changes)
        for data in (
            replace(config.data, kind="regenerated", folder=str(copied)),
            replace(config.data, kind="mix", mix=[{"kind": "regenerated", "folder": str(copied), "weight": 1}]),
        ):
            with pytest.raises(UserError, match=message):
                prepare_text(tiny_base, replace(config, data=data))


def test_exact_duplicates_are_dropped_and_counted(tiny_base: Base, tmp_path: Path) -> None:
    same = [Row(key=str(i), origin=f"t:{i}", text="the same opening") for i in range(4)]
    folder = regenerate(tiny_base, same, SETTINGS, replace(CONFIG, greedy_share=1.0, num_prompts=4), tmp_path)
    manifest = read_json(folder / "manifest.json")
    assert (manifest["num_rows"], manifest["num_duplicates"], len(records(folder))) == (1, 3, 1)


def test_two_processes_write_the_set_of_one(written: Path, tiny_base: Base, tmp_path: Path) -> None:
    folders = in_processes(2, lambda: (processes.join("cpu"), write(tiny_base, tmp_path / "sets"))[1], tmp_path)
    assert folders[0] == folders[1] and records(folders[0]) == records(written)


def test_more_processes_than_batches_is_said(
    tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module.processes, "count", lambda: 8)
    monkeypatch.setattr(module.processes, "first", lambda work: work())
    monkeypatch.setattr(module.processes, "wait", lambda: None)
    openings = draw_openings(rows(), tiny_base.tokenizer, 11, 6, seed=3)
    module._write_missing(tiny_base, openings, replace(CONFIG, batch_size=6), tmp_path)
    assert "8 processes, and only 2 batches" in caplog.text and "6 have nothing to do" in caplog.text


def test_a_second_writer_of_the_same_set_waits_and_reuses_it(written: Path, tiny_base: Base, tmp_path: Path) -> None:
    pid = os.fork()  # the same work at the same time, as two jobs of a sweep do it
    if pid == 0:
        os._exit(0 if write(tiny_base, tmp_path).is_dir() else 1)
    assert records(write(tiny_base, tmp_path)) == records(written)
    assert os.waitpid(pid, 0)[1] == 0
    assert records(tmp_path / written.name) == records(written)


# Conversations


class Echo:
    """Answers every prompt with a fixed text and the end of the text, or is cut off."""

    def __init__(self, base: Base, text: str = "yes", ends: bool = True) -> None:
        self.base, self.text, self.ends, self.prompts = base, text, ends, []  # type: ignore[var-annotated]

    def write(self, prompts: list, new_tokens: int, temperature: float, seeds: object) -> list[Answer]:
        self.prompts += [self.base.tokenizer.decode(ids) for ids in prompts]
        ids = self.base.tokenizer(self.text, add_special_tokens=False)["input_ids"] + [2] * self.ends
        return [Answer(ids, self.text, self.ends) for _ in prompts]


TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% if m.role == 'assistant' %}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture
def chat_base(tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> Base:
    monkeypatch.setattr(tiny_base.tokenizer, "chat_template", TEMPLATE)
    return tiny_base


def talk(*contents: str) -> Row:
    turns = tuple(Message(("user", "assistant")[i % 2], text) for i, text in enumerate(contents))
    return Row(key="k", origin="t:1", messages=turns)


def test_turns_are_answered_one_after_the_other_in_one_row(chat_base: Base) -> None:
    [opening] = draw_openings([talk("one?", "old", "two?", "old", "three?")], chat_base.tokenizer, 1, 8, seed=0)
    echo = Echo(chat_base)
    [record] = converse(echo, chat_base, [opening], 8, 0.0, [5], max_turns=2)
    assert echo.prompts == ["[user]one?[assistant]", "[user]one?[assistant]yes</s>[user]two?[assistant]"]
    row = Row(
        key="k", origin="o", ids=tuple(record["ids"]), num_prompt=record["num_prompt"], spans=tuple(record["spans"])
    )
    sample = tokenize_row(row, chat_base.tokenizer)
    assert (
        chat_base.tokenizer.decode([i for i, t in zip(sample.ids, sample.is_target, strict=True) if t]) == "yes</s>" * 2
    )
    assert chat_base.tokenizer.decode(sample.ids) == "[user]one?[assistant]yes</s>[user]two?[assistant]yes</s>"


def test_an_answer_that_was_cut_off_ends_its_conversation(chat_base: Base) -> None:
    [opening] = draw_openings([talk("one?", "old", "two?")], chat_base.tokenizer, 1, 8, seed=0)
    [record] = converse(Echo(chat_base, ends=False), chat_base, [opening], 8, 0.0, [5], max_turns=4)
    assert record["spans"] == [] and record["text"] == "yes"


def test_a_template_that_changes_what_was_said_begins_another_row(
    chat_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_base.tokenizer, "chat_template", TEMPLATE.replace("m.content", "m.content | upper"))
    [opening] = draw_openings([talk("one?", "old", "two?")], chat_base.tokenizer, 1, 8, seed=0)
    echo = Echo(chat_base)
    first, second = converse(echo, chat_base, [opening], 8, 0.0, [5], max_turns=4)
    assert chat_base.tokenizer.decode(first["ids"]) == "[user]ONE?[assistant]yes</s>"
    assert chat_base.tokenizer.decode(second["ids"]) == "[user]ONE?[assistant]YES</s>[user]TWO?[assistant]yes</s>"
    assert second["num_prompt"] == len(second["ids"]) - 4 and first["spans"] == second["spans"] == []


@pytest.mark.parametrize(
    "record, question",
    [
        ({"conversations": [{"from": "human", "value": "a?"}, {"from": "gpt", "value": "b"}]}, "a?"),
        ({"messages": [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}]}, "a?"),
        ({"data": ["a?", "b", "c?", "d"]}, "a?"),
        ({"instruction": "a?", "input": "", "output": "b"}, "a?"),
        ({"instruction": "a?", "instances": [{"input": "", "output": "b"}]}, "a?"),
        ({"prompt": "a?"}, "a?"),
    ],
)
def test_prompts_of_every_source_go_through_the_template(chat_base: Base, record: dict, question: str) -> None:
    [opening] = draw_openings([row_from_record(record, "f:1")], chat_base.tokenizer, 1, 8, seed=0)
    assert chat_base.tokenizer.decode(opening.ids) == f"[user]{question}[assistant]"
    assert [turn.content for turn in opening.later] == (["c?"] if "data" in record else [])


# A server as the writer


@pytest.fixture
def server(tiny_base: Base) -> Iterator[SimpleNamespace]:
    """An OpenAI-compatible server on the loopback that has the same base."""
    engine = Engine(tiny_base, drafter="none")
    state = SimpleNamespace(asked=[], failures=0, refuses=False, gives_ids=True)

    class Handler(BaseHTTPRequestHandler):
        def reply(self, status: int, content: dict) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            self.reply(200, {"data": [{"id": "served"}]})

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state.asked.append(asked)
            if state.refuses:
                return self.reply(400, {"error": "prompt must be a string"})
            if state.failures:
                state.failures -= 1
                return self.reply(503, {"error": "busy"})
            with lock:
                [answer] = engine.generate(
                    [asked["prompt"]], asked["max_tokens"], temperature=asked["temperature"], seed=asked["seed"]
                )
            finish = "stop" if answer.finish_reason == "eos" else "length"
            choice: dict = {"text": answer.text, "finish_reason": finish}
            self.reply(200, {"choices": [choice | ({"token_ids": answer.ids} if state.gives_ids else {})]})

        def log_message(self, *_: object) -> None:
            pass

    lock = threading.Lock()
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    state.url = f"http://127.0.0.1:{http.server_port}/v1"
    yield state
    http.shutdown()
    http.server_close()


def test_a_server_of_the_base_writes_the_same_rows(
    server: SimpleNamespace, written: Path, tiny_base: Base, tmp_path: Path
) -> None:
    server.failures = 1
    with patch("euryale.regenerate.completions.WAITS_S", (0.0, 0.0)):
        folder = write(tiny_base, tmp_path, url=server.url)
    assert folder.name != written.name and records(folder) == records(written)
    assert read_json(folder / "manifest.json")["writer"] == "server"
    assert {asked["model"] for asked in server.asked} == {"served"} and len(server.asked) == 12


def test_a_base_whose_weights_stay_unread_is_known_by_the_same_facts(tiny_base: Base, tiny_llama_folder: Path) -> None:
    known = describe_base(BaseConfig(path=str(tiny_llama_folder)))
    assert known.identity() == tiny_base.identity()
    assert (known.max_length, known.eos_ids) == (tiny_base.max_length, tiny_base.eos_ids)
    assert known.tokenizer("fox")["input_ids"] == tiny_base.tokenizer("fox")["input_ids"]
    with pytest.raises(UserError, match="no such folder"):
        describe_base(BaseConfig(path="nowhere/at/all"))


def test_the_script_reads_no_weights_where_a_server_writes(
    server: SimpleNamespace, config: TrainConfig, tiny_llama_folder: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(tiny_llama_folder, tmp_path / "base"))
    data = ["data=files", f"data.files={tmp_path}/texts.jsonl"]
    settings = [f"regenerate.{key}={value}" for key, value in asdict(config.regenerate).items() if value is not None]
    command = [*data, *settings, f"regenerate.url={server.url}", "base=hf", f"base.path={base}"]
    whole = run_script("train/regenerate.py", *command)
    assert whole.status == 0, whole.err
    assert write_text(load_base(BaseConfig(path=str(base), device="cpu")), config.data,
                      replace(config.regenerate, url=server.url)) == Path(whole.last_line["folder"])  # fmt: skip
    (base / "model.safetensors").write_bytes(b"loading this fails")
    unread = run_script("train/regenerate.py", *command)
    assert unread.status == 0 and unread.last_line["num_rows"] == whole.last_line["num_rows"] > 0, unread.err
    assert unread.last_line["folder"] != whole.last_line["folder"], "other weights are another base"


def test_text_of_a_server_that_keeps_its_ids_is_encoded_again(
    server: SimpleNamespace, tiny_base: Base, tmp_path: Path
) -> None:
    server.gives_ids = False
    found = records(write(tiny_base, tmp_path, url=server.url, greedy_share=1.0, num_prompts=3))
    own = records(write(tiny_base, tmp_path, greedy_share=1.0, num_prompts=3))
    assert [r["text"] for r in found] == [r["text"] for r in own]
    for record in found:
        answer = record["ids"][record["num_prompt"] :]
        assert tiny_base.tokenizer.decode(answer, skip_special_tokens=True) == record["text"]


def test_a_server_that_refuses_or_is_not_there_is_said(
    server: SimpleNamespace, tiny_base: Base, tmp_path: Path
) -> None:
    server.refuses = True
    with pytest.raises(UserError, match="must take token ids .* got 400 .*prompt must be a string"):
        write(tiny_base, tmp_path, url=server.url)
    with pytest.raises(UserError, match="regenerate.model=other: .* serves served"):
        write(tiny_base, tmp_path, url=server.url, model="other")
    with pytest.raises(UserError, match="regenerate.url must be an address as http://.*; got localhost:8000"):
        write(tiny_base, tmp_path, url="localhost:8000")
    with pytest.raises(UserError, match="does not answer"):
        write(tiny_base, tmp_path, url="http://127.0.0.1:9/v1")


def test_how_rows_are_batched_makes_no_other_set_but_another_file_does(
    config: TrainConfig, tiny_base: Base, tmp_path: Path
) -> None:
    folder = write_text(tiny_base, config.data, config.regenerate)
    batched = replace(config.data, batch_size=7, block_size=64, held_out_one_in=9)
    assert write_text(tiny_base, batched, config.regenerate) == folder
    with (tmp_path / "texts.jsonl").open("a") as file:
        file.write('{"text": "one more, under the same name"}\n')
    assert write_text(tiny_base, config.data, config.regenerate) != folder
