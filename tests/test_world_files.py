"""Files as they come from elsewhere, of data and of models: read as they are meant, or refused in one line.

A case names where its fault was met first; "own" is ours.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_llama import save_tiny_llama

from euryale.base.base import load_base
from euryale.base.config import BaseConfig
from euryale.data.file_source import file_row
from euryale.data.prompt_files import read_prompts
from euryale.data.records import find_files, read_records
from euryale.errors import UserError
from euryale.heads.checkpoint import find_checkpoint
from euryale.system.paths import user_path

LINES = '{"text": "one"}\n{"text": "two"}\n'


def texts(path: Path) -> list[str | None]:
    rows = []
    for record in read_records(path):
        if isinstance(record.value, UserError):
            raise record.value
        rows.append(file_row(record, None).text)
    return rows


@pytest.mark.parametrize(
    "content",
    [LINES.encode("utf-8-sig"), LINES.replace("\n", "\r\n").encode(), LINES.replace("\n", "\r").encode(),
     LINES.replace("\n", "\n\n").encode(), LINES.rstrip().encode()],
    ids=["a byte order mark", "CRLF", "CR", "empty lines", "no last newline"],
)  # fmt: skip
def test_lines_end_and_begin_in_any_way(content: bytes, tmp_path: Path) -> None:  # own
    (tmp_path / "a.jsonl").write_bytes(content)
    assert texts(tmp_path / "a.jsonl") == ["one", "two"]


BAD_JSON = {
    "UTF-16 (datasets#5969)": (LINES.encode("utf-16"), "a.jsonl is in UTF-16 or UTF-32"),
    "UTF-16 of the other end": (b"\xfe\xff" + LINES.encode("utf-16-be"), "a.jsonl is in UTF-16 or UTF-32"),
    "UTF-32": (LINES.encode("utf-32"), "a.jsonl is in UTF-16 or UTF-32"),
    "Latin-1 (datasets#6641)": ('{"text": "caf\u00e9"}'.encode("latin-1"), "a.jsonl:1: the text must be valid Unicode"),
    "a key twice": (b'{"text": "a", "text": "b"}', "a.jsonl:1: .*the key 'text' stands twice"),
    "a role twice": (b'{"messages": [{"role": "user", "role": "assistant", "content": "b"}]}', "'role' stands twice"),
    "100,000 brackets": (b"[" * 100_000, "a.jsonl:1: not valid JSON .maximum recursion"),
    "a number of 5,000 digits": (b'{"text": "a", "n": ' + b"1" * 5000 + b"}", "a.jsonl:1: not valid JSON"),
    "zeros of a disk": (b'{"text": "a"}\n\0\0\0\0\n', "a.jsonl:2: not valid JSON"),
    "null": (b"null", "a.jsonl:1: a row must be a JSON object; got NoneType"),
    "a turn that is null": (b'{"messages": [null]}', "a.jsonl:1: messages: turn 1 must be an object"),
    "a content that is null": (b'{"messages": [{"role": "user", "content": null}]}', "turn 1 must have a text"),
    "a text that is null": (b'{"text": null}', "a.jsonl:1: text must be text; got None"),
}


@pytest.mark.parametrize("name", BAD_JSON)
def test_json_that_cannot_be_meant_is_refused_with_its_line(name: str, tmp_path: Path) -> None:
    content, words = BAD_JSON[name]
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=words):
        texts(tmp_path / "a.jsonl")


def test_a_list_in_json_is_read_with_the_same_care(tmp_path: Path) -> None:
    for content, words in ((b"[" * 100_000, "not valid JSON"), (b'[{"text": "a", "text": "b"}]', "stands twice")):
        (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(UserError, match=words):
            texts(tmp_path / "a.json")


def table(tmp_path: Path, **columns: pyarrow.Array) -> Path:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def of_type(value: object, kind: pyarrow.DataType) -> pyarrow.Array:
    return pyarrow.array([value], kind)


OTHER_COLUMNS = {
    "a time beyond years (awkward#4220)": of_type(2**62, pyarrow.timestamp("us")),
    "nanoseconds (aws-sdk-pandas#296)": of_type(1, pyarrow.timestamp("ns")),
    "a time zone that nobody knows": of_type(1, pyarrow.timestamp("us", tz="No/Such")),
    "a day beyond years": of_type(2**30, pyarrow.date32()),
    "a duration": of_type(2**60, pyarrow.duration("us")),
    "a decimal": of_type(1, pyarrow.decimal128(5)),
    "bytes": of_type(b"\xff", pyarrow.binary()),
    "nothing": of_type(None, pyarrow.null()),
    "lists of numbers": of_type([1.0], pyarrow.list_(pyarrow.float16())),
}


@pytest.mark.parametrize("name", OTHER_COLUMNS)
def test_columns_of_any_type_may_stand_beside_the_text(name: str, tmp_path: Path) -> None:
    assert texts(table(tmp_path, text=pyarrow.array(["one"]), other=OTHER_COLUMNS[name])) == ["one"]


@pytest.mark.parametrize("kind", [pyarrow.large_string(), pyarrow.string_view(),
                                  pyarrow.dictionary(pyarrow.int8(), pyarrow.string())], ids=str)  # fmt: skip
def test_a_text_may_be_stored_in_any_way(kind: pyarrow.DataType, tmp_path: Path) -> None:
    assert texts(table(tmp_path, text=pyarrow.array(["one", "two"]).cast(kind))) == ["one", "two"]


def test_a_text_that_is_no_unicode_is_one_bad_row(tmp_path: Path) -> None:
    path = table(tmp_path, text=pyarrow.array([b"one", b"\xff", b"two"]).view(pyarrow.string()))
    records = list(read_records(path))
    assert [record.position for record in records] == [1, 2, 3]
    assert isinstance(records[1].value, UserError) and "row 2: cannot be read" in str(records[1].value)
    assert [file_row(record, None).text for record in (records[0], records[2])] == ["one", "two"]


def test_a_column_that_stands_twice_is_refused(tmp_path: Path) -> None:
    columns = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["text", "text"])
    pyarrow.parquet.write_table(columns, tmp_path / "a.parquet")
    with pytest.raises(UserError, match="the column text stands twice"):
        texts(tmp_path / "a.parquet")


PLACES = ["a" * 5000 + ".jsonl", "~no_such_user/a.jsonl", "a\0b.jsonl", "\n", "[.jsonl", "a=b,c.jsonl"]


@pytest.mark.parametrize("name", PLACES, ids=lambda name: repr(name)[:30])
def test_a_path_that_cannot_be_is_refused_wherever_it_is_given(name: str, tmp_path: Path) -> None:  # own
    """Too long a name was an OSError, and ~ of an unknown user a RuntimeError."""
    calls: list[Callable[[], object]] = [
        lambda: find_files([name]),
        lambda: read_prompts(name),
        lambda: find_checkpoint(name, tmp_path),
        lambda: load_base(BaseConfig(path=f"./{name}" if name[0] != "~" else name, device="cpu")),
    ]
    for call in calls:
        with pytest.raises(UserError):
            call()


def test_links_that_lead_to_themselves_are_no_files(tmp_path: Path) -> None:  # own
    (tmp_path / "a.jsonl").symlink_to(tmp_path / "a.jsonl")
    with pytest.raises(UserError):
        find_files([str(tmp_path / "a.jsonl")])
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "again").symlink_to(tmp_path / "folder")
    (tmp_path / "folder" / "b.jsonl").write_text(LINES)
    assert find_files([str(tmp_path / "folder")]) == [tmp_path / "folder" / "b.jsonl"]


def test_a_folder_that_nobody_may_enter_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # own
    def closed(*given: object, **settings: object) -> os.stat_result:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "stat", closed)
    with pytest.raises(UserError, match=r"data.files=/secret/a.jsonl cannot be looked for \(Permission denied\)"):
        user_path("/secret/a.jsonl", "data.files")


# Folders of models


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("files") / "base")


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(original, tmp_path / "base"))


def save(folder: Path, tensors: dict[str, torch.Tensor], name: str = "model.safetensors") -> None:
    save_file(tensors, folder / name, metadata={"format": "pt"})


def changed(folder: Path, change: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
    tensors = load_file(folder / "model.safetensors")
    save(folder, {name: change(name, tensor) for name, tensor in tensors.items()})


def added(folder: Path, name: str) -> None:
    save(folder, load_file(folder / "model.safetensors") | {name: torch.ones(4)})


def shard(folder: Path, damage: str = "") -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    index = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        save(folder, {name: tensors[name] for name in part}, file)
        index |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    second = folder / "model-00002-of-00002.safetensors"
    if damage == "missing":
        second.unlink()
    if damage == "half":
        second.write_bytes(second.read_bytes()[: second.stat().st_size // 2])
    if damage == "lie":
        wrong = dict.fromkeys(names, "model-00001-of-00002.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": wrong}))
    if damage == "null":
        (folder / "model.safetensors.index.json").write_text("null")


def custom_code(folder: Path) -> None:
    path = folder / "config.json"
    code = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "own", "auto_map": code}))
    (folder / "own.py").write_text("raise SystemExit('it was run')")


class Runs:
    """What a pickle may do when it is read."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('it was run')",)


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Runs()}, folder / "pytorch_model.bin")


Q = "model.layers.0.self_attn.q_proj"
DAMAGED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a shard that is missing": (lambda folder: shard(folder, "missing"), "model-00002-of-00002.safetensors"),
    "half a shard": (lambda folder: shard(folder, "half"), "could not be loaded"),
    "an index that names the wrong shard": (lambda folder: shard(folder, "lie"), "the weights lack"),
    "an index that is null": (lambda folder: shard(folder, "null"), "could not be loaded"),
    "a pointer of Git LFS (transformers#27923)": (
        lambda folder: (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n"),
        "model.safetensors is a pointer of Git LFS.* Run git lfs pull",
    ),
    "a page of a web server": (
        lambda folder: (folder / "model.safetensors").write_text("<html>not found</html>"), "could not be loaded"
    ),
    "FP8 without its config (unsloth#6200)": (
        lambda folder: changed(folder, lambda _, t: t.to(torch.float8_e4m3fn) if t.ndim > 1 else t),
        "holds weights of a byte or less .*F8_E4M3.* no quantization_config",
    ),
    "int8 without its config": (
        lambda folder: changed(folder, lambda name, t: t.to(torch.int8) if "proj" in name else t), "in I8"
    ),
    "scales that are not read (stable-diffusion.cpp#1898)": (
        lambda folder: added(folder, f"{Q}.weight_scale_inv"), f"its files hold {Q}.weight_scale_inv"
    ),
    "GPTQ without its config": (lambda folder: added(folder, f"{Q}.qweight"), f"its files hold {Q}.qweight"),
    "an adapter among the weights": (lambda folder: added(folder, f"{Q}.lora_A.weight"), "an adapter is among them"),
    "a norm of another size": (
        lambda folder: changed(folder, lambda name, t: torch.ones(7) if name == "model.norm.weight" else t),
        "model.norm.weight has the sizes 7, and config.json calls for",
    ),
    "an adapter alone (peft#309)": (
        lambda folder: (folder / "config.json").rename(folder / "adapter_config.json"), "an adapter .peft., not a whole"
    ),
    "an adapter beside the weights (peft#1381)": (
        lambda folder: (folder / "adapter_config.json").write_text("{}"), "Merge it into its base"
    ),
    "code of its own (mlx-lm#383)": (custom_code, "it comes with code of its own, which is never run here"),
    "a pickle that runs": (pickled, "it comes with code of its own, which is never run here"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_model_is_refused_in_one_line_with_what_is_wrong(name: str, folder: Path) -> None:
    damage, words = DAMAGED[name]
    damage(folder)
    with pytest.raises(UserError, match=words) as refused:
        load_base(BaseConfig(path=str(folder), dtype="float32", device="cpu"))
    assert "\n" not in str(refused.value)


def test_weights_in_shards_are_the_same(folder: Path, original: Path) -> None:
    shard(folder)
    found, whole = (load_base(BaseConfig(path=str(path), dtype="float32", device="cpu")) for path in (folder, original))
    assert torch.equal(found.lm_head_weight, whole.lm_head_weight)


def test_tensors_that_no_layer_asks_for_are_told(folder: Path, caplog: pytest.LogCaptureFixture) -> None:  # own
    added(folder, "model.layers.99.self_attn.q_proj.weight")
    with caplog.at_level(logging.WARNING):
        load_base(BaseConfig(path=str(folder), dtype="float32", device="cpu"))
    assert "1 tensors of its files are of no use to it (model.layers.99.self_attn.q_proj.weight" in caplog.text
