"""Is the text that the base writes kept whole, reused, gone on with, and the same however it was batched?"""

import json
import logging
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pyarrow.parquet
import pytest

from euryale.data.openings import draw_openings
from euryale.data.rows import Message, Row
from euryale.data.sources import DataConfig, build_source
from euryale.decoding.engine import Engine
from euryale.errors import UserError
from euryale.model.base import Base
from euryale.model.files import read_json, write_json
from euryale.pipeline import prepare_text, write_text
from euryale.schemas import TrainConfig
from euryale.serving import regenerate as module
from euryale.serving.regenerate import regenerate
from euryale.serving.settings import RegenerateConfig

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
        [answer] = engine.generate([opening.ids], 8, temperature, seed=record["seed"])
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
        return {"is_complete": True, "num_rows": 0, "num_tokens": 0}

    monkeypatch.setattr(module, "_read_manifest", whole)
    write(tiny_base, written.parent)
    assert folders == [written]
    write(tiny_base, written.parent, **changes)
    regenerate(tiny_base, rows(), {"kind": "hub"}, CONFIG, written.parent)
    assert len(set(folders)) == 3


def kill_after(count: int, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Kills this process before the count-th call of a function of the module."""
    plain: Callable = getattr(module, name)
    calls = []

    def counted(*arguments: object, **keywords: object) -> object:
        calls.append(name)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(*arguments, **keywords)

    monkeypatch.setattr(module, name, counted)


@pytest.mark.parametrize(
    "name, count, num_shards",
    [("_answer", 1, 0), ("_answer", 4, 1), ("write_json", 2, 2), ("write_atomically", 3, 2)],
    ids=["at once", "in the middle of a shard", "between a shard and the manifest", "before the last shard"],
)
def test_a_killed_run_goes_on_to_the_same_rows(
    written: Path,
    tiny_base: Base,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    count: int,
    num_shards: int,
) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            kill_after(count, monkeypatch, name)
            write(tiny_base, tmp_path)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert len(list(tmp_path.rglob("shard-*.parquet"))) == num_shards
    writer = Mock(side_effect=module.write_atomically)
    monkeypatch.setattr(module, "write_atomically", writer)
    folder = write(tiny_base, tmp_path)
    assert records(folder) == records(written)
    expected = read_json(written / "manifest.json") | {"started": ""}
    assert read_json(folder / "manifest.json") | {"started": ""} == expected
    num_kept = num_shards - (name == "write_json")  # a shard that no manifest lists is written again
    assert writer.call_count == 3 - num_kept


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
    else:
        write_json(manifest, read_json(manifest) | {"format_version": 0})


@pytest.mark.parametrize(
    "how",
    ["a missing shard", "a shard cut short", "an empty shard", "another shard's rows", "a manifest cut short",
     "a manifest without its counts", "an old format"],
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
    with pytest.raises(UserError, match="shard-00001.parquet could not be saved.*No space left"):
        write(tiny_base, tmp_path)
    assert sorted(path.name for path in (tmp_path / written.name).iterdir()) == ["manifest.json", "shard-00000.parquet"]
    assert records(write(tiny_base, tmp_path)) == records(written)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_prompts": 0}, "regenerate.num_prompts=0"),
        ({"batch_size": -1}, "regenerate.batch_size=-1"),
        ({"greedy_share": 1.5}, "regenerate.greedy_share=1.5"),
        ({"temperature": 0.0}, "regenerate.temperature=0.0 cannot sample"),
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
    for changes in ({"regenerate": False}, {"kind": "regenerated", "folder": "anywhere"}):
        data = replace(config.data, **changes)
        assert prepare_text(tiny_base, replace(config, data=data)) is data


def test_how_rows_are_batched_makes_no_other_set_but_another_file_does(
    config: TrainConfig, tiny_base: Base, tmp_path: Path
) -> None:
    folder = write_text(tiny_base, config.data, config.regenerate)
    batched = replace(config.data, batch_size=7, block_size=64, held_out_one_in=9)
    assert write_text(tiny_base, batched, config.regenerate) == folder
    with (tmp_path / "texts.jsonl").open("a") as file:
        file.write('{"text": "one more, under the same name"}\n')
    assert write_text(tiny_base, config.data, config.regenerate) != folder
