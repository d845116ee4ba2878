"""A command line becomes a measured checkpoint, goes on after Ctrl-C to the same bits, and refuses wrong settings.

Everything runs on a tiny random base and sixty short rows; one run is shared by most tests.
"""

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from scripts import SMALL, Result, assert_refused, run_script, write_texts
from tiny_llama import save_tiny_llama

from euryale.base.base import Base, load_base
from euryale.base.config import BaseConfig
from euryale.cli.pipeline import accuracy_rows, headline, headline_temperature
from euryale.cli.text_stage import draw_prompts
from euryale.cli.train_schemas import EvaluateConfig, TrainConfig
from euryale.data.config import DataConfig
from euryale.data.sources import build_source
from euryale.decoding.engine import Engine
from euryale.decoding.tree.calibration import read_calibrations
from euryale.errors import UserError
from euryale.evaluation.config import CalibrateConfig
from euryale.evaluation.prompts import held_out_openings
from euryale.heads.checkpoint import read_description
from euryale.regenerate import regenerate as regenerate_module
from euryale.system.files import read_json
from euryale.training.sums import HostSums
from euryale.training.trainer import Trainer


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds texts.jsonl and, below runs/ and written/, what the scripts leave."""
    place = tmp_path_factory.mktemp("pipeline")
    write_texts(place)
    return place


@pytest.fixture(scope="session")
def arguments(place: Path, tiny_llama_folder: Path) -> list[str]:
    """A run of a second or two."""
    return [
        "base=hf", f"base.path={tiny_llama_folder}", "data=files", f"data.files={place}/texts.jsonl",
        f"output={place}/runs", f"regenerate.output={place}/written", *SMALL,
    ]  # fmt: skip


def train(*arguments: str, renders: bool = False) -> Result:
    result = run_script("train/run.py", *arguments, renders=renders)
    assert result.status == 0, result.err
    return result


@pytest.fixture(scope="session")
def trained(place: Path, arguments: list[str]) -> Result:
    return train(*arguments, "name=one", renders=True)


@pytest.fixture(scope="session")
def run(place: Path, trained: Result) -> Path:
    """The folder of the shared run; leave it as it is."""
    return place / "runs" / "one"


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copy"))


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# A whole run


def test_the_last_line_is_json_with_the_numbers_of_the_run(trained: Result, run: Path) -> None:
    last = trained.last_line
    assert last["checkpoint"] == str(run) and last["metric"] == last["tau"]
    report = read_json(run / "report.json")
    assert last["tau"] == report["evaluation"]["tau"] >= 1.0
    assert last["identical"] == last["total"] == 2
    assert last["speedup"] == report["bench"]["speedup_vs_ar"] > 0
    assert last["speedup_vs_hf"] == report["bench"]["speedup_vs_hf"] > 0
    assert last["tokens_per_s"] == report["bench"]["contenders"]["euryale"]["tokens_per_s"] > 0
    assert last["held_out_loss_nats"] == report["training"]["final_loss_nats"] > 0
    assert report["training"]["steps"] == 4 and [row["head"] for row in report["accuracy"]] == [0, 1]


def test_people_read_a_table_before_it_and_progress_on_stderr(trained: Result) -> None:
    for words in ("2 hydra heads", "tau (tokens per step)", "over HF generate", "2/2 outputs identical"):
        assert words in trained.out
    for words in ("base writes text 24/24 rows", "training 4/4 steps: loss", "calibration at T = 0.0"):
        assert words in trained.err


def test_the_checkpoint_folder_is_complete(run: Path, trained: Result) -> None:
    names = {path.name for path in run.iterdir()}
    assert names == {
        "config.yaml", "heads.json", "heads.safetensors", "metrics.jsonl", "resume", "tree.json", "report.json",
        "README.md", "accuracy.png", "bench.png", "calibration.png", "tree.png",
    }  # fmt: skip
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in run.glob("*.png"))
    assert {c.temperature for c in read_calibrations(run)} == {0.0, 0.8}
    settings = read_description(run)["provenance"]["settings"]
    assert settings["data.kind"] == "regenerated" and settings["optim.num_steps"] == 4
    assert f"{trained.last_line['tau']:.2f}" in (run / "README.md").read_text()


def test_a_loaded_engine_writes_what_the_base_writes(run: Path, tiny_base: Base) -> None:
    engine = Engine.load(run, device="cpu")
    [plain] = Engine(tiny_base, drafter="none").generate(["the quick"], 20)
    assert engine.generate(["the quick"], 20)[0].ids == plain.ids


def test_what_was_written_is_reused_by_the_next_run_and_by_the_script_alone(
    run: Path, place: Path, arguments: list[str], tiny_llama_folder: Path
) -> None:
    [folder] = (place / "written").iterdir()
    before = content(folder)
    keys = ("base", "data", "regenerate", "threads")
    own = [a for a in arguments if a.split("=")[0].split(".")[0] in keys]
    result = run_script("train/regenerate.py", *own)
    assert result.status == 0 and "reusing" in result.err
    assert result.last_line == {"folder": str(folder), "num_rows": 21, "num_tokens": result.last_line["num_tokens"]}
    assert content(folder) == before and [folder] == list((place / "written").iterdir())


def test_the_published_recipe_trains_on_the_rows_themselves(arguments: list[str], place: Path) -> None:
    recipe = ["heads=medusa", "heads.output=own", "heads.root_token=false"]
    recipe += ["data.regenerate=false", "objective.loss=ce"]
    result = train(*arguments, *recipe, "name=published", "metric=held_out_loss_nats", "calibrate.temperatures=[0.0]")
    assert "base writes text" not in result.err and result.last_line["metric"] == result.last_line["held_out_loss_nats"]
    description = read_description(place / "runs/published")
    assert description["heads"]["kind"] == "medusa" and description["heads"]["output"] == "own"
    assert description["provenance"]["settings"]["data.kind"] == "files"


# Ctrl-C and going on


def test_ctrl_c_saves_and_resume_ends_with_the_same_bits(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal comes in the sixth step, which is finished; test_processes.py sends one to a process of its own."""
    arguments = [*arguments, "optim.num_steps=12", f"output={tmp_path}", "calibrate.temperatures=[0.0]"]
    cut, take_step = tmp_path / "cut", Trainer.train_step

    def step_and_ctrl_c(trainer: Trainer) -> HostSums:
        if trainer.step == 5:
            signal.raise_signal(signal.SIGINT)
        return take_step(trainer)

    with monkeypatch.context() as during:
        during.setattr(Trainer, "train_step", step_and_ctrl_c)
        stopped = run_script("train/run.py", *arguments, "name=cut")
    assert stopped.status == 130, stopped.err
    assert stopped.out == "" and "Traceback" not in stopped.err
    assert f"Go on with: python train/run.py resume={cut}" in stopped.err
    assert [save.name for save in (cut / "resume").iterdir()] == ["step-00000006"]
    assert not (cut / "tree.json").exists()

    resumed = train("resume=last", f"output={tmp_path}")
    assert f"going on with {cut} after step 6 of 12" in resumed.err
    assert resumed.last_line["checkpoint"] == str(cut) and (cut / "report.json").is_file()
    train(*arguments, "name=whole")
    assert (cut / "heads.safetensors").read_bytes() == (tmp_path / "whole/heads.safetensors").read_bytes()
    losses = [
        [json.loads(line)["loss_nats"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("cut", "whole")
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 12


def test_training_goes_on_from_heads_and_resumes_without_them(arguments: list[str], run: Path, tmp_path: Path) -> None:
    initial = Path(shutil.copytree(run, tmp_path / "initial"))
    more = [f"output={tmp_path}", "calibrate.temperatures=[0.0]", "name=more", "heads.init=initial"]
    result = train(*arguments, *more, "optim.num_steps=2", "optim.lr=1e-6", "optim.adamw_lr=1e-6")
    one, two = (load_file(folder / "heads.safetensors") for folder in (initial, tmp_path / "more"))
    assert all(torch.allclose(one[name], two[name], atol=1e-3) for name in one), "at this rate nothing moves"
    settings = read_description(tmp_path / "more")["provenance"]["settings"]
    assert settings["heads.init"] == str(initial) and "init" not in read_description(tmp_path / "more")["heads"]
    shutil.rmtree(initial)
    assert train(f"resume={tmp_path}/more").last_line["held_out_loss_nats"] == result.last_line["held_out_loss_nats"]


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("heads.init=nowhere", ("heads.init=nowhere must be a checkpoint", "Name one of them")),
        ("heads.init=one heads.width=4", ("heads.width=2.0 there, 4.0 here",)),
        ("heads.init=one base=tiny", ("were trained for", "but the base given is checkpoints/tiny-base")),
        ("heads.init=one objective=pretrain optim=adamw", ("objective=pretrain trains none",)),
    ],
)
def test_heads_that_training_cannot_go_on_from_are_refused_before_anything_is_loaded(
    arguments: list[str], run: Path, setting: str, words: tuple[str, ...]
) -> None:
    asked = [*arguments, "base.path=checkpoints/tiny-base"] if "tiny" in setting else arguments
    assert_refused(
        run_script("train/run.py", *asked, *setting.replace("base=tiny", "").split(), "name=refused"), *words
    )
    assert not (run.parent / "refused").exists()


def test_a_finished_run_is_measured_again_by_resume(copied: Path) -> None:
    before = content(copied)
    (copied / "report.json").unlink()
    (copied / "tree.json").unlink()
    result = train(f"resume={copied}")
    after = content(copied)
    assert set(after) == set(before) and after["heads.safetensors"] == before["heads.safetensors"]
    assert result.last_line["identical"] == 2


def test_ctrl_c_while_the_base_writes_keeps_its_shards_and_leaves_no_run(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, calls = regenerate_module._answer, []

    def interrupted(*given: object) -> object:
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return plain(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(regenerate_module, "_answer", interrupted)
    place = [f"output={tmp_path}/runs", f"regenerate.output={tmp_path}/written", "regenerate.greedy_share=0.25"]
    result = run_script("train/run.py", *arguments, *place)
    assert result.status == 130 and result.err.endswith("interrupted; what was saved before is kept\n")
    assert not (tmp_path / "runs").exists()
    assert len(list((tmp_path / "written").rglob("part-*"))) == 1


# Answering


def test_a_prompt_is_answered_as_it_stands_and_summed_up(run: Path) -> None:
    prompt = "def f(x): return [x, {1: 'a'}], ${y}"
    [expected] = Engine.load(run, device="cpu").generate([prompt], 12)
    result = run_script("infer/run.py", f"checkpoint={run}", f"prompt={prompt}", "max_new_tokens=12", "threads=1")
    assert result.status == 0 and result.out.startswith(expected.text + "\n")
    assert result.last_line["text"] == expected.text and result.last_line["num_tokens"] == len(expected.ids)
    assert result.last_line["seconds"] > 0


def test_a_prompt_comes_from_stdin_with_all_its_lines(run: Path) -> None:
    prompt = "first\nsecond, line\n"
    settings = ["max_new_tokens=12", "temperature=0.8", "seed=3", "drafter=none"]
    [expected] = Engine.load(run, device="cpu").generate([prompt], 12, temperature=0.8, seed=3)
    result = run_script("infer/run.py", f"checkpoint={run}", "prompt=-", *settings, stdin=prompt)
    assert result.last_line["text"] == expected.text and result.last_line["tau"] == 1.0


def test_without_a_prompt_a_chat_opens(run: Path) -> None:
    result = run_script("infer/run.py", f"checkpoint={run}", "max_new_tokens=6", stdin="hello\nagain\n\n")
    assert result.status == 0 and result.out.count("> ") >= 3 and "tokens, tau" in result.out
    assert result.last_line["num_answers"] == 2


def test_calibrating_again_writes_the_tree_alone(copied: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("the quick\nbrown fox jumps\n")
    before = content(copied)
    small = [a for a in SMALL if a.startswith("calibrate.")] + ["calibrate.temperatures=[0.5]", "threads=1"]
    for source in ([], [f"prompts={tmp_path}/prompts.txt"]):
        result = run_script("infer/calibrate.py", f"checkpoint={copied}", *small, *source)
        assert result.status == 0, result.err
        [calibration] = read_calibrations(copied)
        assert result.last_line == {"checkpoint": str(copied), "num_nodes": {"0.5": calibration.num_nodes}}
        assert "chosen: " in result.out
    after = content(copied)
    assert {name for name in before if before[name] != after[name]} == {"tree.json"} and set(before) == set(after)


# What cannot be


@pytest.fixture(scope="session")
def other_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("bases") / "other", seed=1)


def ask(folder: Path, *arguments: str) -> Result:
    """Tries to answer a prompt, and finds the folder as it was."""
    before = content(folder)
    result = run_script("infer/run.py", f"checkpoint={folder}", "prompt=hello", *arguments)
    assert content(folder) == before
    return result


def test_heads_of_another_base_are_refused(run: Path, other_base: Path, tiny_llama_folder: Path) -> None:
    result = ask(run, f"base.path={other_base}")
    assert_refused(result, f"The heads in {run} were trained for {tiny_llama_folder}", str(other_base), "fingerprint")


@pytest.mark.parametrize(
    ("script", "asked", "words"),
    [
        ("infer/run.py", ["tree=medusa63"], ["tree=medusa63 is 4 deep"]),
        ("infer/run.py", ["tree.num_nodes=200"], ["tree.num_nodes must be from 1 to", "got 200"]),
        ("infer/bench.py", ["tree.max_depth=9"], ["tree.max_depth must be at most", "got 9"]),
        ("infer/eval.py", ["drafter=eagle"], ["drafter=eagle"]),
        ("infer/run.py", ["tree=calibrated", "without tree.json"], ["has no tree.json"]),
        ("infer/bench.py", ["prompts=gone.txt"], ["prompts=gone.txt: there is no such file"]),
        ("infer/eval.py", ["prompts=gone.txt"], ["prompts=gone.txt: there is no such file"]),
        ("infer/calibrate.py", ["prompts=gone.txt"], ["prompts=gone.txt: there is no such file"]),
        ("infer/eval.py", ["data=files", "data.files=gone.txt"], ["data.files=gone.txt"]),
    ],
)
def test_what_needs_no_base_is_refused_before_one_is_loaded(
    copied: Path, script: str, asked: list[str], words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Minutes of loading must not end at it."""

    def too_late(*_: object) -> None:
        raise AssertionError("the base was loaded")

    monkeypatch.setattr("euryale.cli.open_engine.load_base", too_late)
    if "without tree.json" in asked:
        (copied / "tree.json").unlink()
        asked = asked[:-1]
    assert_refused(run_script(script, f"checkpoint={copied}", *asked), *words)


def test_a_tree_deeper_than_the_heads_is_refused(run: Path) -> None:
    assert_refused(ask(run, "tree=medusa63"), "tree=medusa63 is 4 deep, but the checkpoint has 2 heads", "tree=chain")


def test_more_nodes_than_were_calibrated_are_refused(run: Path) -> None:
    assert_refused(
        ask(run, "tree.num_nodes=200"), "tree.num_nodes must be from 1 to", "as trees were calibrated; got 200"
    )


@pytest.mark.parametrize(
    "name, words",
    [
        ("heads.safetensors", ["heads.safetensors is missing or cut short", "Copy it again"]),
        ("heads.json", ["heads.json is damaged"]),
        ("tree.json", ["tree.json cannot be read", "infer/calibrate.py"]),
    ],
)
def test_a_checkpoint_cut_short_is_refused(copied: Path, name: str, words: list[str]) -> None:
    (copied / name).write_bytes((copied / name).read_bytes()[:-40])
    assert_refused(ask(copied), *words)


def test_a_damaged_tree_matters_only_to_those_who_ask_for_it(copied: Path) -> None:
    (copied / "tree.json").write_text("[")
    assert ask(copied, "tree=chain").status == 0


def test_a_checkpoint_that_does_not_name_its_base_is_refused(copied: Path) -> None:
    description = read_json(copied / "heads.json")
    (copied / "heads.json").write_text(json.dumps(description | {"base": None}))
    assert_refused(ask(copied), "does not say which base")


def test_a_checkpoint_without_a_calibrated_tree_still_has_a_chain(copied: Path) -> None:
    (copied / "tree.json").unlink()
    assert_refused(ask(copied), "has no tree.json", "infer/calibrate.py", "tree=chain")
    assert ask(copied, "tree=chain").status == 0


@pytest.mark.parametrize(
    "changes, words",
    [
        (["data.files=gone.jsonl"], ["data.files=gone.jsonl", "no such file"]),
        (["data.files={place}/empty.jsonl"], ["empty.jsonl is empty"]),
        (["data.files={place}/blank.txt"], ["blank.txt gives no row for the split train"]),
        (["data.files={place}/bad.jsonl"], ["bad.jsonl:31: not valid JSON", "data.on_error=skip"]),
        (
            ["data.files={place}/textless.jsonl"],
            ["textless.jsonl:31", "no text in this row", "title", "data.on_error=skip"],
        ),
        (["data.files={place}/one.jsonl"], ["no row for the split"]),
        (["base.path={place}/nowhere"], ["there is no such folder"]),
        (["base.path={place}"], ["has no config.json", "texts.jsonl"]),
        (["data.block_size=512"], ["data.block_size=512", "ends at 256"]),
        (["data.block_size=10000000"], ["data.block_size=10000000", "ends at 256"]),  # before memory is spoken of
        (["regenerate.new_tokens=250"], ["regenerate.prompt_tokens + new_tokens = 258"]),
        (["evaluate.max_new_tokens=250"], ["none of the prompts", "max_new_tokens=250"]),
        (["base.dtype=int4"], ["base.dtype must be one of auto, float32, bfloat16, float16; got int4"]),
        (["wandb=online"], ["WANDB_API_KEY"]),
    ],
)
def test_a_run_that_cannot_be_leaves_nothing(
    arguments: list[str],
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: list[str],
    words: list[str],
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    lines = (place / "texts.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "blank.txt").write_text("\n \n")
    (tmp_path / "bad.jsonl").write_text("".join([*lines[:30], '{"text": "cut\n', *lines[30:]]))
    (tmp_path / "textless.jsonl").write_text("".join([*lines[:30], '{"title": "x"}\n', *lines[30:]]))
    (tmp_path / "one.jsonl").write_text(lines[0])
    (tmp_path / "texts.jsonl").write_text("".join(lines))
    before = content(tmp_path)
    own = [f"output={tmp_path}/runs", f"regenerate.output={tmp_path}/written"]
    result = run_script("train/run.py", *arguments, *own, *(change.format(place=tmp_path) for change in changes))
    assert_refused(result, *words)
    assert content(tmp_path) == before and not (tmp_path / "runs").exists() and not (tmp_path / "written").exists()


def test_bad_rows_can_be_left_out_and_are_told(arguments: list[str], place: Path, tmp_path: Path) -> None:
    lines = (place / "texts.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "bad.jsonl").write_text("".join([*lines[:30], "not json\n", *lines[30:]]))
    own = [f"output={tmp_path}/runs", f"regenerate.output={tmp_path}/written", f"data.files={tmp_path}/bad.jsonl"]
    result = train(*arguments, *own, "data.on_error=skip", "calibrate.temperatures=[0.0]", "optim.num_steps=1")
    assert "1 bad rows were skipped" in result.err and "bad.jsonl:31" in result.err


# A base from nothing

PRETRAIN = [
    "recipe=pretrain_tiny", "data=files", "data.block_size=32", "data.batch_size=2", "data.held_out_one_in=4",
    "scratch.vocab_size=270", "scratch.hidden_size=16", "scratch.intermediate_size=24", "scratch.num_layers=1",
    "scratch.num_heads=2", "scratch.num_kv_heads=1", "scratch.max_length=64", "optim.num_steps=2",
    "optim.eval_batches=1", "optim.autocast=none", "threads=1",
]  # fmt: skip


def test_a_base_is_pretrained_and_loads(place: Path, tmp_path: Path) -> None:
    arguments = [*PRETRAIN, f"data.files={place}/texts.jsonl", f"output={tmp_path}"]
    result = train(*arguments, "name=base")
    last = result.last_line
    assert last["checkpoint"] == str(tmp_path / "base/base") and last["metric"] == last["held_out_loss_nats"] > 0
    base = load_base(BaseConfig(path=last["checkpoint"], device="cpu"))
    assert base.vocab_size == 270 and Engine(base, drafter="none").generate(["row"], 3)[0].ids
    assert train(f"resume={tmp_path / 'base'}").last_line == last
    unmeasured = train(*arguments, "name=unmeasured", "optim.eval_batches=0", "data.held_out_one_in=0")
    assert unmeasured.last_line["metric"] is None


@pytest.mark.parametrize(
    "change, words",
    [
        ("scratch.vocab_size=4096", "the tokens that the text gives; got 4096"),
        ("scratch.num_heads=3", "scratch.hidden_size=16"),
        ("scratch.hidden_size=1000000", "this run needs about"),  # before it is built
        ("data.block_size=128", "data.block_size=128"),
        ("base.dtype=bfloat16", "base.dtype=float32"),
    ],
)
def test_a_base_that_cannot_be_pretrained_leaves_nothing(place: Path, tmp_path: Path, change: str, words: str) -> None:
    result = run_script("train/run.py", *PRETRAIN, f"data.files={place}/texts.jsonl", f"output={tmp_path}/runs", change)
    assert_refused(result, words)
    assert not list(tmp_path.rglob("*.json")) and not list(tmp_path.glob("runs/*"))


def test_a_sweep_has_a_folder_for_each_job(place: Path, tmp_path: Path) -> None:
    own = [f"data.files={place}/texts.jsonl", f"output={tmp_path}", "optim.num_steps=1", "optim.lr=0.001,0.002"]
    result = run_script("train/run.py", "-m", *PRETRAIN, *own)
    assert result.status == 0, result.err
    folders = sorted(path.parent for path in tmp_path.glob("sweep-*/*/config.yaml"))
    assert [folder.name for folder in folders] == ["0", "1"]
    losses = [read_json(folder / "result.json")["held_out_loss_nats"] for folder in folders]
    assert result.last_line["finished"] == 2 and result.last_line["metric"] == min(losses) > 0


# The stages' own arithmetic


def calibration(**repeated: float) -> dict:
    return {"calibrations": [{"temperature": float(t[1:]), "repeated_8grams": r} for t, r in repeated.items()]}


def test_looping_greedy_text_is_measured_by_sampling(caplog: pytest.LogCaptureFixture) -> None:
    assert headline_temperature(calibration(T0=0.1, T1=0.9), None) == 0.0
    assert headline_temperature(calibration(T0=0.5), None) == 0.0, "nothing else was calibrated"
    assert headline_temperature(calibration(T1=0.1), None) == 0.0
    assert not caplog.records
    assert headline_temperature(calibration(T0=0.5, T1=0.9), None) == 1.0
    assert "repeats itself (50% of its 8-grams): measuring at temperature 1.0" in caplog.text
    assert headline_temperature(calibration(T0=0.5, T1=0.9), 0.0) == 0.0, "as asked"


def test_accuracies_are_a_row_a_head() -> None:
    trained = {"held_out_head_top1": [0.5, 0.25], "held_out_head_top5": [0.75, 0.5], "held_out_head_top10": [1.0, 0.75]}
    assert accuracy_rows(trained) == [
        {"head": 0, "top1": 0.5, "top5": 0.75, "top10": 1.0},
        {"head": 1, "top1": 0.25, "top5": 0.5, "top10": 0.75},
    ]
    assert accuracy_rows({}) == []


def test_the_headline_carries_the_metric_that_was_asked_for(run: Path) -> None:
    report = read_json(run / "report.json")
    for metric in ("tau", "speedup", "speedup_vs_hf", "tokens_per_s", "held_out_loss_nats"):
        numbers = headline(report, run, metric)
        assert numbers["metric"] == numbers[metric] is not None


@pytest.fixture
def config(place: Path) -> TrainConfig:
    data = DataConfig(kind="files", files=str(place / "texts.jsonl"), held_out_one_in=4)
    small = CalibrateConfig(num_prompts=3, prompt_tokens=8)
    return TrainConfig(data=data, calibrate=small, evaluate=EvaluateConfig(num_prompts=2, max_new_tokens=8))


def test_prompts_to_calibrate_and_to_measure_come_from_other_held_out_rows(
    config: TrainConfig, tiny_base: Base
) -> None:
    openings, prompts = draw_prompts(tiny_base, config)
    assert len(openings) == 3 and len(prompts) == 2
    own, others = held_out_openings(tiny_base, config.data, 3, 8)
    assert openings == own and prompts == [opening.ids for opening in others[:2]]
    assert not {opening.key for opening in own} & {opening.key for opening in others}
    assert {opening.key for opening in own} <= {row.key for row in build_source(config.data, "held_out")}


def test_too_few_held_out_prompts_are_refused_before_training(
    config: TrainConfig, tiny_base: Base, tmp_path: Path
) -> None:
    file = tmp_path / "few.jsonl"
    file.write_text("".join(json.dumps({"text": f"short {i}"}) + "\n" for i in range(3)))
    several = [replace(config.data, files=str(file), held_out_one_in=number) for number in range(2, 40)]
    data = next(data for data in several if len(list(build_source(data, "held_out"))) == 1)
    with pytest.raises(UserError, match=f"a single prompt.* smaller data.held_out_one_in than {data.held_out_one_in}"):
        draw_prompts(tiny_base, replace(config, data=data))
