"""Whole runs of the recipes that stream from the hub, against a loopback hub that has base and rows.

Its repositories have the names, files, columns and empty rows of the real ones, and a few dozen rows; bases are tiny.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from loopback_hub import LoopbackHub
from scripts import ROOT, SMALL, Result

from euryale.system.files import read_json

WIKITEXT, REDPAJAMA = "Salesforce/wikitext", "sade-adrien/redpajama_v2_sample_1M"
BASES = ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", "meta-llama/Llama-2-7b-chat-hf")
WORDS = "the quick brown fox jumps over the lazy dog "

Run = Callable[..., Result]


def write_wikitext(folder: Path) -> None:
    """Forty articles, a row a line as the real set has them: headings between equals signs, empty rows between."""
    lines = [
        line
        for n in range(40)
        for line in ("", f" = Article {n} = \n", "", f" {n} {WORDS * 2}\n", "", " = = Part = = \n", "", f" {WORDS}\n")
    ]
    (folder / "wikitext-103-raw-v1").mkdir(parents=True)
    for part, name in enumerate(("train-00000-of-00002", "train-00001-of-00002")):
        half = len(lines) // 2
        table = pyarrow.table({"text": lines[part * half : (part + 1) * half]})
        pyarrow.parquet.write_table(table, folder / f"wikitext-103-raw-v1/{name}.parquet")
    card = "".join(
        f"- config_name: {subset}\n  data_files:\n  - split: train\n    path: {subset}/train-*\n"
        for subset in ("wikitext-103-raw-v1", "wikitext-2-raw-v1")
    )
    (folder / "README.md").write_text(f"---\nconfigs:\n{card}---\n")


def write_redpajama(folder: Path) -> None:
    """Sixty web pages with the columns of RedPajama-V2."""
    (folder / "data").mkdir(parents=True)
    rows = [
        {
            "raw_content": f"page {n}: {WORDS * 3}",
            "doc_id": f"2023-06/{n:04}/en_head.json.gz/{n}",
            "meta": json.dumps({"url": f"https://example.org/{n}", "language": "en"}),
            "quality_signals": json.dumps({"ccnet_length": [[0, 100, 100.0]]}),
        }
        for n in range(60)
    ]
    for part in range(2):
        table = pyarrow.Table.from_pylist(rows[part * 30 : (part + 1) * 30])
        pyarrow.parquet.write_table(table, folder / f"data/train-0000{part}-of-00002.parquet")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recipes")


@pytest.fixture(scope="module")
def hub(place: Path, tiny_llama_folder: Path) -> Iterator[LoopbackHub]:
    write_wikitext(place / "hub" / WIKITEXT)
    write_redpajama(place / "hub" / REDPAJAMA)
    for name in BASES:
        shutil.copytree(tiny_llama_folder, place / "hub" / name)
    with LoopbackHub(place / "hub") as hub:
        yield hub


@pytest.fixture(scope="module")
def run(hub: LoopbackHub, place: Path) -> Iterator[Run]:
    """`run(*arguments, stop_before_step=N)` is train/run.py with that hub."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(place / "home"), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("hub_runs.py"))],
        env=environment, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip

    def run(*arguments: str, stop_before_step: int | None = None) -> Result:
        assert process.stdin is not None and process.stdout is not None
        settings = [*arguments, f"output={place}"]
        print(json.dumps({"arguments": settings, "stop_before_step": stop_before_step}), file=process.stdin, flush=True)
        return Result(**json.loads(process.stdout.readline()))

    yield run
    process.terminate()
    process.wait()


def test_wikitext103_comes_to_its_end(run: Run, hub: LoopbackHub, place: Path) -> None:
    result = run("recipe=wikitext103", *SMALL, f"regenerate.output={place}/text", "name=wikitext")
    assert result.status == 0, result.err
    assert result.last_line["identical"] == result.last_line["total"] == 2
    said = read_json(place / "wikitext" / "heads.json")
    assert said["base"]["path"] == BASES[0]
    assert "HTTP Request" not in result.err
    assert any(f"{WIKITEXT}/resolve" in request and "00001-of-00002" in request for request in hub.requests)


def test_redpajama_is_interrupted_and_goes_on_to_the_same_heads(run: Run, place: Path) -> None:
    recipe = ["recipe=redpajama", *SMALL, "optim.gradient_accumulation=2", "optim.num_steps=6", "data.regenerate=false"]
    whole = run(*recipe, "name=whole")
    assert whole.status == 0, whole.err
    assert read_json(place / "whole" / "heads.json")["base"]["quantization"] == "nf4"
    stopped = run(*recipe, "name=cut", stop_before_step=3)
    assert stopped.status == 143 and "resume=" in stopped.err, stopped.err
    result = run(f"resume={place / 'cut'}")
    assert result.status == 0, result.err
    heads = [(place / name / "heads.safetensors").read_bytes() for name in ("whole", "cut")]
    assert heads[0] == heads[1]
    assert result.last_line["held_out_loss_nats"] == whole.last_line["held_out_loss_nats"]


def test_two_sets_of_the_hub_are_mixed(run: Run, place: Path) -> None:
    mix = (
        f"[{{kind: hub, repo: {WIKITEXT}, subset: wikitext-103-raw-v1, column: text, join_rows: true, "
        f"text_separator: headings, weight: 1}}, {{kind: hub, repo: {REDPAJAMA}, column: raw_content, weight: 2}}]"
    )
    result = run("base=tinyllama", "data=mix", f"data.mix={mix}", *SMALL, "data.regenerate=false", "name=mixed")
    assert result.status == 0, result.err
    assert read_json(place / "mixed" / "report.json")["training"]["steps"] == 4
