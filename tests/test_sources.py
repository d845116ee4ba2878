"""Sources give every row once, go on exactly where they stopped, and say clearly what is wrong with the data."""

import gzip
import hashlib
import itertools
import json
import logging
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from omegaconf import OmegaConf

from euryale.data.config import DataConfig
from euryale.data.documents import PARAGRAPHS_CHARS, split_documents
from euryale.data.file_source import library_files, library_root
from euryale.data.rows import Message, Row, Source
from euryale.data.sources import build_source
from euryale.data.transforms import Joined
from euryale.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


def write_lines(path: Path, records: Iterable[object]) -> Path:
    text = "".join(f"{json.dumps(record)}\n" for record in records)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


def files(*paths: Path, **changes: Any) -> DataConfig:
    """Order kept and nothing held out, unless asked."""
    settings: dict[str, Any] = {
        "kind": "files",
        "files": [str(p) for p in paths],
        "held_out_one_in": 0,
        "shuffle_window": 1,
    }
    return DataConfig(**(settings | changes))


def texts(source: Source) -> list[str | None]:
    return [row.text for row in source]


def rows_of(path: Path, **changes: Any) -> list[Row]:
    return list(build_source(files(path, **changes), "train"))


def write_shards(folder: Path) -> Path:
    folder.mkdir()
    integer = pyarrow.int32()
    schema = pyarrow.schema(
        [("ids", pyarrow.list_(integer)), ("num_prompt", integer), ("key", "string"), ("origin", "string")]
    )
    for part in range(2):
        rows = [{"ids": [part, n, 7], "num_prompt": 1, "key": f"{part} {n}", "origin": f"a.txt:{n}"} for n in range(20)]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema), folder / f"shard-{part}.parquet")
    (folder / "manifest.json").write_text(json.dumps({"shards": ["shard-0.parquet", "shard-1.parquet"]}))
    return folder


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, DataConfig]:
    """A source of every kind and file format, each of a few dozen rows."""
    folder = tmp_path_factory.mktemp("rows")
    lines = write_lines(folder / "a.jsonl", ({"text": f"line {n}"} for n in range(30)))
    packed = write_lines(folder / "b.jsonl.gz", ({"prompt": f"ask {n}", "response": f"say {n}"} for n in range(20)))
    table = pyarrow.Table.from_pylist([{"text": f"cell {n}"} for n in range(40)])
    pyarrow.parquet.write_table(table, folder / "c.parquet", row_group_size=7)
    (folder / "d.txt").write_text("<|endoftext|>".join(f"story {n}\n\nits end\n" for n in range(25)))
    (folder / "e.json").write_text(json.dumps([{"instruction": f"do {n}", "output": f"done {n}"} for n in range(15)]))
    shards = write_shards(tmp_path_factory.mktemp("regenerated") / "shards")
    mix = [
        {"kind": "files", "files": str(lines), "weight": 1},
        {"kind": "files", "files": str(packed), "weight": 3, "shuffle_window": 4},
        {"kind": "regenerated", "folder": str(shards), "weight": 0.5},
    ]
    return {
        "jsonl": files(lines),
        "jsonl.gz": files(packed, held_out_one_in=5),
        "parquet": files(folder / "c.parquet"),
        "txt": files(folder / "d.txt"),
        "json": files(folder / "e.json"),
        "a folder, shuffled": files(folder, shuffle_window=16, held_out_one_in=5, seed=3),
        "regenerated": DataConfig(kind="regenerated", folder=str(shards), shuffle_window=8),
        "mix": DataConfig(kind="mix", mix=mix, held_out_one_in=0),
        "stdlib": DataConfig(shuffle_window=16),
    }


KINDS = ["jsonl", "jsonl.gz", "parquet", "txt", "json", "a folder, shuffled", "regenerated", "mix", "stdlib"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_source_that_loads_a_cursor_gives_exactly_the_remaining_rows(
    configs: dict[str, DataConfig], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = library_files("small")[:8]
    monkeypatch.setattr("euryale.data.sources.library_files", lambda modules: some)

    def passes(source: Source) -> Iterable[Row]:
        return itertools.chain.from_iterable(iter(source) for _ in range(3))

    whole = list(passes(build_source(configs[kind], "train")))
    source = build_source(configs[kind], "train")
    cursors = [json.dumps(source.state_dict())]
    for _ in passes(source):
        cursors.append(json.dumps(source.state_dict()))
    assert len(cursors) == len(whole) + 1
    one_pass = len(list(build_source(configs[kind], "train")))
    for done in {0, 1, 2, one_pass // 2, one_pass - 1, one_pass, one_pass + 1, 2 * one_pass, len(whole) - 1}:
        resumed = build_source(configs[kind], "train")
        resumed.load_state_dict(json.loads(cursors[done]))
        assert list(passes(resumed))[: len(whole) - done] == whole[done:], f"after row {done}"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "mix"])
def test_every_pass_gives_every_row_once(configs: dict[str, DataConfig], kind: str) -> None:
    source = build_source(configs[kind], "train")
    first, second = list(source), list(source)
    assert first and Counter(first) == Counter(second)
    if kind in ("a folder, shuffled", "regenerated", "stdlib"):
        assert first != second, "each pass has an order of its own"


@pytest.mark.parametrize("kind", ["jsonl.gz", "a folder, shuffled", "regenerated", "stdlib"])
def test_held_out_rows_are_the_rest(configs: dict[str, DataConfig], kind: str) -> None:
    train, held_out = (list(build_source(configs[kind], split)) for split in ("train", "held_out"))
    assert train and held_out and not {row.key for row in train} & {row.key for row in held_out}
    everything = DataConfig(**{**vars(configs[kind]), "held_out_one_in": 0})
    assert Counter(train + held_out) == Counter(build_source(everything, "train"))


def test_the_library_is_held_out_by_the_hash_of_the_path() -> None:
    root = Path(sysconfig.get_paths()["stdlib"])
    held_out, train = (list(build_source(DataConfig(), split)) for split in ("held_out", "train"))
    assert 0.02 < len(held_out) / len(train) < 0.1
    assert all(int(hashlib.sha1(row.key.encode()).hexdigest(), 16) % 20 == 0 for row in held_out)
    assert not any(int(hashlib.sha1(row.key.encode()).hexdigest(), 16) % 20 == 0 for row in train)
    pieces: dict[str, dict[int, str]] = {}
    for row in held_out + train:
        name, _, number = row.key.partition("#")
        pieces.setdefault(name, {})[int(number)] = row.text or ""
    for name, texts in pieces.items():  # together they are the module, but for blank lines between them
        whole = (root / name).read_text(encoding="utf-8")
        assert sorted(texts) == list(range(1, len(texts) + 1)), name
        assert "".join("".join(texts[n] for n in sorted(texts)).split()) == "".join(whole.split()), name


def test_all_of_the_library_includes_its_packages_and_nothing_installed() -> None:
    found = {path.relative_to(library_root()) for path in library_files("all")}  # reading them all takes long
    assert any(len(path.parts) > 1 for path in found) and not any("site-packages" in path.parts for path in found)
    assert {path.relative_to(library_root()) for path in library_files("top")} < found


def test_copies_of_a_text_stand_on_one_side_of_the_split(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", ({"text": f"t{n % 40}", "id": n} for n in range(400)))
    sides = [set(texts(build_source(files(path, held_out_one_in=4), split))) for split in ("train", "held_out")]
    assert sides[0] and sides[1] and not sides[0] & sides[1]


SHAPES: list[tuple[dict[str, object], tuple[str | None, tuple[tuple[str, str], ...] | None]]] = [
    ({"text": "a", "meta": {"url": "b"}}, ("a", None)),
    ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
     (None, (("user", "q"), ("assistant", "a")))),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}]}, (None, (("user", "q"),))),
    ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
     (None, (("user", "q"), ("assistant", "a")))),
    ({"prompt": "q", "response": "a"}, (None, (("user", "q"), ("assistant", "a")))),
    ({"question": "q", "answer": "a"}, (None, (("user", "q"), ("assistant", "a")))),
    ({"instruction": "q", "input": "x", "output": "a"}, (None, (("user", "q\n\nx"), ("assistant", "a")))),
    ({"instruction": "q", "input": "", "output": "a", "text": "t"}, (None, (("user", "q"), ("assistant", "a")))),
    ({"instruction": "q", "instances": [{"input": "", "output": "a"}]}, (None, (("user", "q"), ("assistant", "a")))),
]  # fmt: skip


@pytest.mark.parametrize(("record", "expected"), SHAPES, ids=["-".join(shape) for shape, _ in SHAPES])
def test_a_row_may_have_any_of_these_shapes(tmp_path: Path, record: dict[str, object], expected: tuple) -> None:
    (row,) = rows_of(write_lines(tmp_path / "a.jsonl", [record]))
    text, turns = expected
    assert row.text == text
    assert row.messages == (None if turns is None else tuple(Message(*turn) for turn in turns))
    assert row.origin == f"{tmp_path / 'a.jsonl'}:1"


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"txt": "a", "id": 3}', "no text in this row. Its keys: txt, id. Accepted: text | messages"),
        ('{"question_id": 1, "turns": ["a"]}', "Its keys: question_id, turns"),
        ('{"text": null}', "text must be text; got None"),
        ('{"text": 3}', "text must be text; got 3"),
        ('["a"]', "a row must be a JSON object; got list"),
        ('{"text": "a"', "not valid JSON"),
        ('{"text": "\\ud83d"}', "must be valid Unicode"),
        ('{"messages": []}', "messages must be a list of turns; got []"),
        ('{"messages": [{"role": "cat", "content": "a"}]}', "turn 1 must have one of the roles system"),
        (
            '{"conversations": [{"from": "gpt", "value": null}]}',
            "must have a text in content or value; got Its keys",
        ),
    ],
)
def test_a_bad_row_is_named_with_file_and_line_or_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, line: str, complaint: str
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"text": "first"}}\n\n{line}\n{{"text": "last"}}\n')
    with pytest.raises(UserError) as caught:
        rows_of(path)
    assert f"{path}:3: " in str(caught.value) and complaint in str(caught.value)
    source = build_source(files(path, on_error="skip"), "train")
    with caplog.at_level(logging.WARNING):
        assert texts(source) == ["first", "last"]
    assert source.num_skipped == 1
    (message,) = caplog.messages
    assert message.startswith("1 bad rows were skipped") and f"{path}:3: " in message


def test_text_may_be_in_another_column(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"raw_content": "a", "text": "b"}])
    assert [row.text for row in rows_of(path, column="raw_content")] == ["a"]
    with pytest.raises(UserError, match="data.column=body must be a column of the row. Its keys: raw_content"):
        rows_of(path, column="body")


def test_bytes_that_are_not_utf8_are_refused_row_by_row(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"good<|endoftext|>\nb\xe9d<|endoftext|>\nlast")
    with pytest.raises(UserError, match=r"a.txt:2: the text must be valid Unicode"):
        rows_of(path)
    assert [row.text for row in rows_of(path, on_error="skip")] == ["good", "last"]


def test_byte_order_marks_and_windows_newlines_leave_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n{"text": "b"}\r\n')
    assert [row.text for row in rows_of(path)] == ["a", "b"]


def test_source_code_is_read_in_the_encoding_it_declares(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_bytes("# -*- coding: latin-1 -*-\nx = '\xe9'\n".encode("latin-1"))
    (tmp_path / "b.py").write_bytes(b"x = '\xff'\r\n")
    found = sorted(str(row.text) for row in rows_of(tmp_path))
    assert found == ["# -*- coding: latin-1 -*-\nx = '\xe9'\n", "x = '\xff'\n"]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.parquet", "a.json"])
def test_a_damaged_file_stops_or_is_counted_and_the_next_is_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write_lines(path, ({"text": f"{n:05d}" * 50} for n in range(2000)))
    if name == "a.jsonl.gz":
        path.write_bytes(path.read_bytes()[:-500])
    if name == "a.json":
        path.write_text('[{"text": "a"},\n {"text": ]')
    with pytest.raises(UserError, match=rf"{path}(:2: not valid JSON| cannot be read)"):
        rows_of(path)
    other = write_lines(tmp_path / "b.jsonl", [{"text": "whole"}])
    source = build_source(files(path, other, on_error="skip"), "train")
    assert "whole" in texts(source)
    assert source.num_skipped == 1


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("nothing.txt", "there is no such file or folder"),
        ("*.jsonl", "matches no file"),
        ("empty.txt", "empty.txt is empty"),
        ("photo.png", "cannot read photo.png. Known: .txt"),
        ("*.png", "holds no file that can be read: 1 file was left out (1 .png)"),
        ("folders", "this folder holds no file"),
        ("pictures", "holds no file that can be read: 1 file was left out (1 .png). Read are .txt"),
    ],
)
def test_files_that_cannot_be_meant_are_refused_before_anything_is_read(
    tmp_path: Path, name: str, complaint: str
) -> None:
    (tmp_path / "empty.txt").touch()
    (tmp_path / "photo.png").write_text("x")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "photo.png").write_text("x")
    (tmp_path / "folders" / "inside").mkdir(parents=True)
    with pytest.raises(UserError) as caught:
        build_source(files(tmp_path / name), "train")
    assert complaint in str(caught.value)


def test_folders_globs_and_lists_give_each_file_once(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / ".hidden").mkdir()
    for name in ("a.txt", "sub/b.txt", ".hidden/c.txt"):
        (tmp_path / name).write_text(name)
    assert sorted(map(str, texts(build_source(files(tmp_path), "train")))) == ["a.txt", "sub/b.txt"]
    many = files(tmp_path / "*.txt", tmp_path / "**" / "*.txt", tmp_path / "a.txt")
    assert sorted(map(str, texts(build_source(many, "train")))) == ["a.txt", "sub/b.txt"]
    one = DataConfig(kind="files", files=str(tmp_path / "a.txt"), held_out_one_in=0)
    assert texts(build_source(one, "train")) == ["a.txt"]


def test_a_cursor_is_refused_when_the_files_have_changed(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"text": "a"}, {"text": "b"}])
    state = build_source(files(path), "train").state_dict()
    write_lines(path, [{"text": "changed"}])
    with pytest.raises(UserError, match="are not those it read"):
        build_source(files(path), "train").load_state_dict(state)


@pytest.mark.parametrize(
    ("rule", "text", "expected"),
    [
        ("<|endoftext|>", "a\nb<|endoftext|>c<|endoftext|>\n\n<|endoftext|>\nd\n", [(1, "a\nb"), (2, "c"), (5, "d")]),
        ("headings", "intro\n \n = A = \n \n = = S = = \n x\n = 1 + y = \n \n = B = \n y\n",
         [(1, "intro\n "), (3, " = A = \n \n = = S = = \n x\n = 1 + y = \n "), (9, " = B = \n y")]),
        ("lines", "a\n\nb\n", [(1, "a"), (3, "b")]),
        ("whole", "a\n\nb\n", [(1, "a\n\nb")]),
        ("paragraphs", "a\n\nb\n", [(1, "a\n\nb")]),
        ("paragraphs", f"{'x' * PARAGRAPHS_CHARS}\n\nb\n", [(1, "x" * PARAGRAPHS_CHARS), (3, "b")]),
    ],
)  # fmt: skip
def test_running_text_is_divided_by_the_rule(rule: str, text: str, expected: list[tuple[int, str]]) -> None:
    assert [tuple(document) for document in split_documents(text.splitlines(keepends=True), rule)] == expected


def test_text_without_paragraphs_still_becomes_documents_of_bounded_size() -> None:
    lines = [f"{n:09d}\n" for n in range(5000)]
    documents = [document.text for document in split_documents(lines, "paragraphs")]
    assert "\n".join(documents) + "\n" == "".join(lines)
    assert max(map(len, documents)) <= 4 * PARAGRAPHS_CHARS + 10


@pytest.mark.parametrize(
    ("text", "num_documents"),
    [("a\n\nb\n<|endoftext|>\nc", 2), (" \n = T = \n x\n \n = U = \n y\n", 2), ("a\n\nb\n\nc\n", 1)],
)
def test_auto_recognises_the_form_of_a_text_file(tmp_path: Path, text: str, num_documents: int) -> None:
    (tmp_path / "a.txt").write_text(text)
    assert len(rows_of(tmp_path / "a.txt")) == num_documents


def test_joined_lines_resume_in_the_middle_of_a_document(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", ({"text": line} for line in ("a", "b|c|d", "e", "", "f|", "g")))

    def joined() -> Joined:
        return Joined(build_source(files(path), "train"), "|")

    whole = ["a\nb", "c", "d\ne\n\nf", "g"]
    assert texts(joined()) == whole
    for done in range(len(whole) + 1):
        source = joined()
        rows = iter(source)
        assert [next(rows).text for _ in range(done)] == whole[:done]
        resumed = joined()
        resumed.load_state_dict(json.loads(json.dumps(source.state_dict())))
        assert texts(resumed) == whole[done:]


@pytest.fixture
def mixture(tmp_path: Path) -> Callable[..., DataConfig]:
    small = write_lines(tmp_path / "small.jsonl", ({"text": f"small {n}"} for n in range(5)))
    large = write_lines(tmp_path / "large.jsonl", ({"text": f"large {n}"} for n in range(400)))

    def make(**changes: Any) -> DataConfig:
        parts = [
            {"kind": "files", "files": str(small), "weight": 1},
            {"kind": "files", "files": str(large), "weight": 3, **changes},
        ]
        return DataConfig(kind="mix", mix=parts, held_out_one_in=0, shuffle_window=1)

    return make


def test_a_mixture_keeps_its_proportions_to_the_end_of_the_longest_source(mixture: Callable[..., DataConfig]) -> None:
    rows = [str(row.text) for row in build_source(mixture(), "train")]
    large = [text for text in rows if text.startswith("large")]
    assert large == [f"large {n}" for n in range(400)], "the longest is read once, in order"
    for part in (rows[:200], rows[-200:]):
        assert 0.65 < sum(text.startswith("large") for text in part) / 200 < 0.85


def test_a_held_out_mixture_gives_each_row_once(mixture: Callable[..., DataConfig]) -> None:
    config = mixture()
    config.held_out_one_in = 2
    rows = texts(build_source(config, "held_out"))
    train = set(texts(build_source(config, "train")))
    assert len(rows) == len(set(rows)) > 100 and not train & set(rows)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"weight": 0}, r"data.mix\[1\] must be a weight above 0"),
        ({"file": "x"}, r"data.mix\[1\] has unknown settings: file. Known: weight, kind, modules, files"),
        ({"seed": "x"}, r"data.mix\[1\].seed must be of type int; got 'x'"),
        ({"kind": "mix"}, r"data.mix\[1\] must not be a mixture itself"),
        ({"kind": "file"}, "data.kind must be one of stdlib, files, hub, mix, regenerated"),
    ],
)
def test_a_mistake_in_a_mixture_is_named(
    mixture: Callable[..., DataConfig], changes: dict[str, object], complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint):
        build_source(mixture(**changes), "train")


def test_a_part_of_a_mixture_without_a_kind_is_told_so(mixture: Callable[..., DataConfig]) -> None:
    config = mixture()
    del config.mix[1]["kind"]
    with pytest.raises(UserError, match=r"data.mix\[1\] must name its kind: stdlib, files"):
        build_source(config, "train")


def test_a_source_of_a_mixture_that_gives_nothing_is_an_error_and_not_a_loop(
    mixture: Callable[..., DataConfig], tmp_path: Path
) -> None:
    (tmp_path / "blank.jsonl").write_text("\n\n")
    with pytest.raises(UserError, match=r"data.mix\[1\] gave no row"):
        list(build_source(mixture(files=str(tmp_path / "blank.jsonl")), "train"))


def test_regenerated_rows_keep_ids_prompt_length_and_key(tmp_path: Path) -> None:
    config = DataConfig(kind="regenerated", folder=str(write_shards(tmp_path / "s")), held_out_one_in=0)
    row = next(row for row in build_source(config, "train") if row.key == "1 4")
    assert (row.ids, row.num_prompt, row.origin) == ((1, 4, 7), 1, "a.txt:4")
    (tmp_path / "s" / "shard-1.parquet").unlink()
    with pytest.raises(UserError, match="not all 2 shards of the manifest are there"):
        build_source(config, "train")
    with pytest.raises(UserError, match="no manifest.json here"):
        build_source(DataConfig(kind="regenerated", folder=str(tmp_path)), "train")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"kind": "web"}, "data.kind must be one of stdlib"),
        ({"on_error": "ignore"}, "data.on_error must be one of stop, skip; got"),
        ({"modules": "some"}, "data.modules must be one of small, top, all; got"),
        ({"block_size": 0}, "data.block_size must be at least 8; got 0"),
        ({"held_out_one_in": 1}, "would hold every row out"),
        ({"kind": "files"}, "data.files is empty"),
        ({"kind": "mix"}, "data=mix needs data.mix"),
        ({"text_separator": ""}, "data.text_separator must be auto"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        build_source(DataConfig(**changes), "train")


def test_the_configuration_files_name_every_setting_and_carry_the_same_defaults() -> None:
    folder = ROOT / "conf" / "data"
    assert OmegaConf.to_container(OmegaConf.load(folder / "stdlib.yaml")) == vars(DataConfig())
    for path in folder.glob("*.yaml"):
        values = OmegaConf.to_container(OmegaConf.load(path))
        assert isinstance(values, dict)
        values.pop("defaults", None)
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(DataConfig), values))
        assert isinstance(config, DataConfig)
        for part in config.mix:
            assert set(part) <= {*vars(config), "weight"}, path.name


def test_files_may_be_one_name_or_a_list_on_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    for names in (str(tmp_path / "a.txt"), [str(tmp_path / "a.txt")]):
        values = {"kind": "files", "files": names, "held_out_one_in": 0}
        config: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(DataConfig), values))
        assert texts(build_source(config, "train")) == ["a"]


@pytest.mark.parametrize(
    ("name", "num_rows", "beginning"),
    [
        ("wikitext2_valid.txt", 60, " = Homarus gammarus = \n"),
        ("wikitext2_test.txt", 60, " = Robert <unk> = \n"),
        ("tinystories_train_sample_2M.txt", 2317, "One day, a little girl named Lily found a needle in her room."),
        ("redpajama_arxiv.jsonl", 11, "\\section{Riemannian Langevin dynamics}"),
        ("redpajama_stack_exchange.jsonl", 70, "Q: "),
        ("code_redpajama_github.jsonl.gz", 607, "#include <torch/torch.h>"),
        ("redpajama_style_mixed.jsonl.gz", 1544, "Valentine"),
    ],
)
def test_real_texts_are_read_as_they_are(material: Path, name: str, num_rows: int, beginning: str) -> None:
    rows = rows_of(material / "text" / name)
    assert len(rows) == num_rows
    assert str(rows[0].text).startswith(beginning)


@pytest.mark.parametrize(
    ("name", "num_rows"),
    [("gsm8k_test.jsonl", 1319), ("HumanEval.jsonl.gz", 164), ("gpteacher_codegen_instruct.json", 4535),
     ("sharegpt_dummy_conversation.json", 500), ("self_instruct_seed_tasks.jsonl", 175)],
)  # fmt: skip
def test_real_questions_with_answers_are_rows_too(material: Path, name: str, num_rows: int) -> None:
    rows = rows_of(material / "prompts" / name)
    assert len(rows) == num_rows
    assert all(row.messages is not None and row.messages[0].role == "user" for row in rows)
