"""Every file of conf/ fits its schema, and a wrong command line is one clear message and status 2."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigNode, ConfigStore
from hydra.core.plugins import Plugins
from omegaconf import DictConfig, OmegaConf
from scripts import ROOT, Result, run_main, run_script

from euryale import base, data, decoding, evaluation, export, training
from euryale.base.config import BaseConfig
from euryale.cli.check_run import check_settings
from euryale.cli.run_folder import save_settings, whole_or_nothing
from euryale.cli.schemas import EXPORT_FORMATS, SCHEMAS
from euryale.cli.script import CONF, script, use_threads
from euryale.cli.train_schemas import TrainConfig
from euryale.errors import UserError
from euryale.system.paths import argument, output_root
from euryale.training.signals import Interrupted

GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name != "hydra")


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def plain(path: Path) -> dict:
    """A YAML file as it stands."""
    content = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(content, dict)
    return content


@cache
def groups_of(name: str) -> list[str]:
    """The groups that a script's defaults list names."""
    entries = plain(CONF / f"{name}.yaml")["defaults"]
    return [key for entry in entries if isinstance(entry, dict) for key in entry if not key.startswith("override")]


@pytest.fixture(scope="module", autouse=True)
def schemas() -> None:
    for name, schema in SCHEMAS.items():
        ConfigStore.instance().store(name=f"{name}_schema", node=schema)


def composed(name: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(name, list(overrides))


def test_every_script_has_a_schema_and_a_conf_file() -> None:
    assert {path.stem for path in CONF.glob("*.yaml")} - {"sampling"} == set(SCHEMAS), "several of them read sampling"
    named = {
        name
        for path in [*ROOT.glob("train/*.py"), *ROOT.glob("infer/*.py")]
        for name in re.findall(r'@script\("(\w+)", __doc__\)', path.read_text())
    }
    assert named == set(SCHEMAS)


def test_the_names_that_settings_may_have_are_those_of_the_tables() -> None:
    """The settings are checked before torch is imported, and most tables need it."""
    assert set(data.config.KINDS) == set(data.sources.SOURCES)
    assert set(training.config.KINDS) == set(training.objective.OBJECTIVES)
    assert set(training.config.LOSSES) == set(training.losses.LOSSES)
    assert set(decoding.config.DRAFTERS) == set(decoding.drafters.build._BUILDERS)
    assert set(evaluation.config.CONTENDERS) == set(evaluation.contenders.CONTENDERS)
    assert set(base.config.DTYPES) == set(base.precision.DTYPES)
    assert set(EXPORT_FORMATS) == set(export.FORMATS)


@pytest.fixture
def ray_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """What hydra-ray-launcher 1.2.2, which no extra installs, would register: conf/sweep/ray.yaml is merged into it."""
    Plugins.instance()  # registers those that are installed
    node = OmegaConf.create({"_target_": "RayLauncher", "ray": {"init": {"address": None}, "remote": {}}})
    launchers = ConfigStore.instance().repo["hydra"]["launcher"]
    monkeypatch.setitem(launchers, "ray.yaml", ConfigNode("ray.yaml", node, "hydra/launcher", None, "ray_launcher"))


@pytest.mark.parametrize("group", GROUPS)
def test_every_option_composes_wherever_it_can_be_chosen(group: str, ray_launcher: None) -> None:
    scripts = [name for name in SCHEMAS if group in groups_of(name)]
    assert scripts, f"no script takes {group}"
    if group != "recipe":  # which are written for the first, train/run.py
        scripts.sort(key=lambda name: len(groups_of(name)))  # the fewer, the sooner composed
    # The options of one group share a schema, so beyond the first script only whether the group is wired matters.
    for option in options(group):
        settings = composed(scripts[0], f"{group}={option}")
        assert isinstance(OmegaConf.to_object(settings), SCHEMAS[scripts[0]])
    for name in scripts[1:]:
        composed(name, f"{group}={options(group)[-1]}")


# Without measure's recipe and the sizes of its base, which stand in conf/ alone.
PLAIN = dict.fromkeys(("measure", "bench_steps"), ["~recipe", "shape=hf"])


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_default_of_a_dataclass_is_the_one_in_conf(name: str) -> None:
    """Objects of two classes are never equal: what a script composes is of its schema too."""
    assert OmegaConf.to_object(composed(name, *PLAIN.get(name, []))) == SCHEMAS[name]()


@pytest.mark.parametrize("name", PLAIN)
def test_what_stands_in_conf_alone_composes_into_its_schema(name: str) -> None:
    assert type(OmegaConf.to_object(composed(name))) is SCHEMAS[name]


def test_a_recipe_changes_what_it_says_and_the_command_line_wins() -> None:
    settings = composed("train", "recipe=pretrain_tiny", "optim.num_steps=3")
    assert (settings.objective.kind, settings.scratch.enabled, settings.data.regenerate) == ("pretrain", True, False)
    assert settings.optim.name == "adamw"  # muon, the default, moves heads
    assert (settings.optim.num_steps, settings.metric) == (3, "held_out_loss_nats")


@pytest.mark.parametrize("recipe", sorted(path.stem for path in (CONF / "recipe").glob("*.yaml")))
def test_every_recipe_can_be_run_and_says_what_came_of_it(recipe: str) -> None:
    settings = OmegaConf.to_object(composed("train", f"recipe={recipe}"))
    assert isinstance(settings, TrainConfig)
    if settings.data.kind == "hub":
        assert settings.data.repo
        settings.data.kind = "stdlib"  # the check opens the data, and there is no hub here
    check_settings(settings)
    text = (CONF / "recipe" / f"{recipe}.yaml").read_text()
    assert f"python train/run.py recipe={recipe}" in text
    assert "not yet measured" in text or "wo vCPUs" in text or "wo CPU cores" in text or "docs/recipes.md" in text


def test_a_base_or_data_that_must_be_named_has_no_default() -> None:
    # `???` in a group would not do: it leaves the value that another file gave, and the tiny base would be trained.
    settings = composed("train", "base=hf", "data=files")
    assert settings.base.path is None and settings.data.files == ""
    assert composed("train", "data=hub").data.repo == ""


# What a person gets wrong


def assert_refused(result: Result, *words: str) -> None:
    assert result.status == 2, result.err
    assert "Traceback" not in result.err and result.out == ""
    for word in words:
        assert word in result.err, result.err


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where runs would go. Whatever a test does, nothing is left there nor in the working folder."""
    working = tmp_path / "working"
    working.mkdir()
    monkeypatch.chdir(working)
    yield f"output={tmp_path / 'runs'}"
    assert not (tmp_path / "runs").exists() and not list(working.iterdir())


@pytest.mark.parametrize(
    "argument, words",
    [
        ("optim.lrr=1", ["error: optim.lrr is not a setting", "Did you mean optim.lr?", "warmup_steps"]),
        ("+oops=1", ["error: oops is not a setting", "wandb"]),
        ("base=llama9", ["base must be one of", "got llama9", "llama3_8b", "tiny"]),
        ("recipe=cake", ["recipe must be one of", "pretrain_tiny", "got cake"]),
        ("optim.lr=fast", ["optim.lr", "must be a number; got fast"]),
        ("calibrate.node_counts=[1,two]", ["calibrate.node_counts must be a list, each of it a whole number; got two"]),
        ("base=null", ["base=null chooses nothing", "llama3_8b"]),
        ("base=hf", ["base.path is not set", "base=hf base.path=FOLDER"]),
        ("name=${oops}", ["settings cannot be read", "oops"]),
        ("optim.lr=[", ["error: optim.lr=[ cannot be read", "quotes"]),
        ("data.files=a,b", ["data.files must be one value; got a,b", "for a sweep add -m"]),
        ("data=files", ["data.files is empty"]),
        ("data=checkpoint", ["data.kind must be one of stdlib, files, hub", "got checkpoint"]),
        ("metric=speed", ["metric must be one of tau, tau_16, speedup", "got speed"]),
        ("threads=-1", ["threads must be from 0 to 1024; got -1"]),
    ],
)
def test_a_wrong_setting_is_one_message_and_nothing_is_left(output: str, argument: str, words: list[str]) -> None:
    base = [] if argument.startswith("base=") else ["base.path=no/such/base"]  # should it go further than it must
    assert_refused(run_script("train/run.py", output, *base, argument), *words)


WITH_MODEL = ("drafter=model", "drafter.path=./gone")
NO_BASE = "checkpoint=no/such/run"  # should it go further than it must
NOT_OF_CALIBRATE = ["temperature", "top_p", "max_new_tokens", "tree.num_nodes", "drafter.depth", "seed", "accept.alpha"]
NEVER = ["temperature=-1.0", "top_p=2.0", "top_k=-1", "min_p=2.0", "seed=-1", "max_new_tokens=0", "min_new_tokens=-1",
         "repetition_penalty=0.0", "presence_penalty=3.0", "frequency_penalty=nan"]  # fmt: skip


@pytest.mark.parametrize(
    "name, arguments, words",
    [
        ("infer/run.py", ["checkpoint=no/such/run"], ["checkpoint=no/such/run", "train one with train/run.py"]),
        ("infer/run.py", ["max_tokens=3"], ["max_tokens is not a setting", "Did you mean max_new_tokens?"]),
        (
            "infer/calibrate.py",
            ["calibrate.repeats=0", "checkpoint=x"],
            ["calibrate.repeats must be at least 1; got 0"],
        ),
        ("infer/run.py", ["accept=nucleus"], ["accept must be one of exact, rejection, typical; got nucleus"]),
        ("infer/run.py", ["drafter=oracle"], ["drafter must be one of", "got oracle", "heads", "none"]),
        *(("infer/run.py", [setting, NO_BASE], [f"{setting.partition('=')[0]} must be"]) for setting in NEVER),
        *(
            ("infer/run.py", [f"{name}=0", NO_BASE], [f"{name} must be", "got 0"])
            for name in ("tree.num_nodes", "drafter.depth")
        ),
        ("infer/bench.py", ["temperature=-1", NO_BASE], ["temperature must be from 0 to 1e+06; got -1"]),
        ("infer/bench.py", ["batch=0", NO_BASE], ["batch must be at least 1; got 0"]),
        ("infer/bench.py", ["output=/dev/null/x.jsonl", NO_BASE], ["output=/dev/null/x.jsonl: nothing can be written"]),
        ("infer/eval.py", ["output=/dev/null/x.json", NO_BASE], ["output=/dev/null/x.json: nothing can be written"]),
        ("infer/bench.py", ["limit=0", NO_BASE], ["limit must be at least 1; got 0"]),
        ("infer/eval.py", ["batch_size=0", NO_BASE], ["batch_size must be at least 1; got 0"]),
        ("infer/run.py", ["drafter=model", NO_BASE], ["drafter=model needs a smaller model"]),
        ("infer/eval.py", ["top_p=0", NO_BASE], ["top_p must be above 0 and at most 1; got 0"]),
        *(("infer/calibrate.py", [f"{key}=1", NO_BASE], [f"{key} is not a setting"]) for key in NOT_OF_CALIBRATE),
        ("infer/bench.py", ["batch=8", "limit=4", NO_BASE], ["batch must be at most limit=4", "got 8"]),
        ("infer/bench.py", ["steps=/dev/null/x.jsonl", NO_BASE], ["steps=/dev/null/x.jsonl: nothing can be written"]),
        ("infer/run.py", ["steps=/dev/null/x.jsonl", NO_BASE], ["steps=/dev/null/x.jsonl: nothing can be written"]),
        ("infer/bench.py", [f"output={ROOT}/conf", NO_BASE], ["output must be a file; got the folder"]),
        ("infer/bench.py", [f"output={ROOT}/README.md", NO_BASE], ["output must be a new file or an earlier result"]),
        (
            "train/regenerate.py",
            ["regenerate.new_tokens=0", "base.path=no/such/base"],
            ["regenerate.new_tokens must be at least 1; got 0"],
        ),
        ("infer/run.py", ["stop=''", NO_BASE], ["a stop string must be text of at least one character; got ''"]),
        ("train/regenerate.py", ["optim.lr=1"], ["optim.lr is not a setting"]),
        ("train/regenerate.py", ["data=files", "data.files=gone.txt"], ["data.files=gone.txt", "no such file"]),
        ("train/regenerate.py", ["base.path=no/such/base/x"], ["base.path=no/such/base/x", "no such folder"]),
    ],
)
def test_the_other_scripts_refuse_as_clearly(output: str, name: str, arguments: list[str], words: list[str]) -> None:
    assert_refused(run_script(name, *arguments), *words)


def test_a_real_process_ends_with_status_2_and_leaves_no_file(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "train/run.py"), f"output={tmp_path}/runs", "base.path=no/such/base", "threads=1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 2 and done.stdout == ""
    assert "error: base.path=no/such/base: there is no such folder" in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["train/run.py", "optim.lr=-1"], "optim.lr must be a positive learning rate"),
        (["train/run.py", "data=files", "data.files=gone.txt"], "data.files=gone.txt: there is no such file"),
        (["infer/bench.py", "contenders=[vllm]"], "contenders must be of euryale, ar"),
        (["train/regenerate.py", "base.path=no/such/base"], "base.path=no/such/base: there is no such folder"),
        (["infer/run.py", NO_BASE], "checkpoint=no/such/run must be a checkpoint"),
        (["infer/calibrate.py", NO_BASE], "checkpoint=no/such/run must be a checkpoint"),
        (["infer/export.py", NO_BASE], "checkpoint=no/such/run must be a checkpoint"),
        (["infer/serve.py", "checkpoint=null", "base.path=./gone", "drafter=none"], "base.path=./gone: there is no"),
        (["infer/eval.py", "checkpoint=null", "base.path=gone", "drafter=none"], "base.path=gone: no such folder here"),
        (["infer/run.py", "checkpoint=null", "base=tiny", *WITH_MODEL], "drafter.path=./gone: there is no such folder"),
    ],
)
def test_a_real_process_refuses_a_setting_without_importing_torch(
    arguments: list[str], said: str, tmp_path: Path
) -> None:
    """Which takes seconds. An entry of None in sys.modules makes any import of it fail."""
    without = "import sys, runpy; sys.modules['torch'] = sys.modules['transformers'] = None; "
    run = f"sys.argv = sys.argv[1:]; runpy.run_path({str(ROOT / arguments[0])!r}, run_name='__main__')"
    command = [sys.executable, "-c", without + run, *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "" and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"error: {said}")


def test_python_without_docstrings_is_refused(tmp_path: Path) -> None:
    """transformers builds classes from its own, and would end in a traceback."""
    done = subprocess.run(
        [sys.executable, "-OO", str(ROOT / "infer/run.py")], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "error: PYTHONOPTIMIZE must be at most 1, and python started without -OO; got 2.\n"


# Going on with a run


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run that `resume` finds; it names a base that is gone, so nothing can begin."""
    folder = tmp_path / "runs" / "one"
    (folder / "resume" / "step-00000001").mkdir(parents=True)
    config = TrainConfig(base=BaseConfig(path="no/such/base"), seed=7, output=str(tmp_path / "runs"))
    save_settings(config, folder)
    return folder


def test_resume_takes_the_settings_of_the_run(run_folder: Path) -> None:
    for asked in (f"resume={run_folder}", "resume=last"):
        result = run_script("train/run.py", asked, f"output={run_folder.parent}")
        assert_refused(result, f"run folder {run_folder}", "base.path=no/such/base")


def test_resume_with_other_settings_is_refused_by_name(run_folder: Path) -> None:
    before = sorted(run_folder.rglob("*"))
    result = run_script("train/run.py", f"resume={run_folder}", "optim.lr=1", "heads=medusa")
    assert_refused(result, "Leave out: optim.lr=1 heads=medusa")
    assert sorted(run_folder.rglob("*")) == before


def test_resume_without_anything_to_go_on_with_lists_what_there_is(run_folder: Path) -> None:
    result = run_script("train/run.py", "resume=two", f"output={run_folder.parent}")
    assert_refused(result, "resume=two", str(run_folder))


@pytest.mark.parametrize("content", [None, "a: [", "oops: 1", "seed: many", "", "[1]", "base: {path: x}"])
def test_a_run_whose_settings_are_damaged_is_refused(run_folder: Path, content: str | None) -> None:
    (run_folder / "config.yaml").unlink()
    if content is not None:
        (run_folder / "config.yaml").write_text(content)
    result = run_script("train/run.py", f"resume={run_folder}")
    assert_refused(result, "config.yaml cannot be read")
    assert len(result.err.splitlines()) == 1


def test_a_folder_that_is_in_use_is_not_trained_into(run_folder: Path) -> None:
    (run_folder.parent / "notes").mkdir()
    (run_folder.parent / "notes" / "diary.txt").write_text("mine")
    for name in ("one", "notes"):
        before = sorted(run_folder.parent.rglob("*"))
        result = run_script("train/run.py", f"output={run_folder.parent}", f"name={name}", "base.path=no/such/base")
        assert_refused(result, f"{run_folder.parent / name} is there already", "name=")
        assert sorted(run_folder.parent.rglob("*")) == before


def test_what_a_run_leaves_that_was_killed_at_once_is_no_run(tmp_path: Path) -> None:
    folder = tmp_path / "one"
    for name in ("initial/.model.tmp", "wandb/offline", ".config.yaml.tmp"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    result = run_script("train/run.py", f"output={tmp_path}", "name=one", "base=hf", "base.path=no/such/base")
    assert_refused(result, "no/such/base")


@pytest.mark.parametrize(
    "where", ["output=/proc/nowhere", "output={0}/file", "name=" + 300 * "x", "regenerate.output=/proc/nope"]
)
def test_a_place_that_cannot_be_written_to_is_said_before_anything_is_done(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("mine")
    arguments = {"output": f"output={tmp_path}/runs", "name": "name=one", "path": "base.path=no/such/base"}
    arguments[where.partition("=")[0]] = where.format(tmp_path)
    assert_refused(
        run_script("train/run.py", "base=hf", *arguments.values()), "nothing can be written to", where.partition("=")[0]
    )
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("name", ["../../beside", "/tmp/elsewhere", "runs/../../beside"])
def test_a_name_that_leaves_the_output_folder_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "runs").mkdir()
    result = run_script("train/run.py", f"output={tmp_path}/runs", f"name={name}", "base=hf", "base.path=no/such/base")
    assert_refused(result, f"name must lie below output={tmp_path}/runs; got {name}", "output=DIR")
    assert [path.name for path in tmp_path.rglob("*")] == ["runs"]


def test_a_warm_up_that_outlasts_its_stage_is_told(tmp_path: Path) -> None:
    short = ("base=hf", "base.path=no/such/base", f"output={tmp_path}", "optim.num_steps=100", "optim.warmup_steps=50")
    assert "never comes to its peak" not in run_script("train/run.py", *short).err
    told = run_script("train/run.py", *short, "objective=medusa2")
    assert_refused(told, "optim.warmup_steps=50, and stage 1 has 50 steps", "no/such/base")


def test_saved_settings_read_back_as_they_were(run_folder: Path) -> None:
    saved = OmegaConf.load(run_folder / "config.yaml")
    assert OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TrainConfig), saved)) == TrainConfig(
        base=BaseConfig(path="no/such/base"), seed=7, output=str(run_folder.parent)
    )
    save_settings(TrainConfig(resume=str(run_folder), seed=8), run_folder)
    assert OmegaConf.load(run_folder / "config.yaml") == saved, "a resumed run leaves them alone"


def test_a_new_folder_goes_when_the_run_was_refused_and_stays_once_it_began(tmp_path: Path) -> None:
    for is_begun in (False, True):
        folder = tmp_path / str(is_begun)
        with pytest.raises(UserError), whole_or_nothing(folder):
            (folder / "initial").mkdir(parents=True)
            if is_begun:
                save_settings(TrainConfig(), folder)
            raise UserError("no")
        assert folder.exists() == is_begun


@pytest.mark.parametrize("is_there", [["wandb/theirs", "initial/theirs"], []], ids=["with files", "empty"])
def test_what_was_in_the_folder_of_a_refused_run_stays(tmp_path: Path, is_there: list[str]) -> None:
    """output=. name=experiments, where experiments/ held a wandb/ folder, removed it all."""
    folder = tmp_path / "experiments"
    folder.mkdir()
    for name in is_there:
        (folder / name).parent.mkdir()
        (folder / name).write_text("theirs")
    before = sorted(folder.rglob("*"))
    with pytest.raises(UserError), whole_or_nothing(folder):
        (folder / ".metrics.tmp").write_text("ours")
        raise UserError("no")
    assert sorted(folder.rglob("*")) == before and folder.is_dir()


def test_what_somebody_else_puts_into_a_refused_run_stays(tmp_path: Path) -> None:
    with pytest.raises(UserError), whole_or_nothing(tmp_path / "run"):
        (tmp_path / "run" / "initial").mkdir(parents=True)
        (tmp_path / "run" / "notes.txt").write_text("theirs")
        raise UserError("no")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]


def test_output_is_below_the_project_unless_it_is_absolute(tmp_path: Path) -> None:
    assert output_root("checkpoints") == ROOT / "checkpoints"
    assert output_root(str(tmp_path)) == tmp_path
    assert output_root("~/runs") == Path.home() / "runs"


def test_a_path_in_a_command_to_copy_is_one_argument_of_a_shell() -> None:
    assert argument("resume", Path("/runs/my run's")) == """'resume=/runs/my run'"'"'s'"""
    assert argument("resume", "checkpoints/2026-11-29_04-00-00") == "resume=checkpoints/2026-11-29_04-00-00"


# What a script's main may do


def call(main: Callable[[object], dict[str, object]], *arguments: str) -> Result:
    return run_main(script("export")(main), "export.py", *arguments)


def test_what_main_returns_is_the_last_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def main(config: object) -> dict[str, object]:
        print("a table")
        return {"metric": 2.5, "format": config.format}  # type: ignore[attr-defined]

    result = call(main, "format=vllm")
    assert result.status == 0 and result.out.startswith("a table\n")
    assert result.last_line == {"metric": 2.5, "format": "vllm"}
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "error, status, said",
    [
        (UserError("too bad"), 2, "error: too bad\n"),
        (Interrupted("go on with resume=x", 2), 130, "go on with resume=x\n"),
        (Interrupted("go on with resume=x", 15), 143, "go on with resume=x\n"),
        (KeyboardInterrupt(), 130, "interrupted; what was saved before is kept\n"),
    ],
)
def test_an_end_from_outside_is_a_line_and_a_status(error: BaseException, status: int, said: str) -> None:
    def main(config: object) -> dict[str, object]:
        raise error

    assert call(main) == Result(status, "", said)


def test_a_bug_keeps_its_traceback() -> None:
    def main(config: object) -> dict[str, object]:
        raise RuntimeError("a bug of ours")

    result = call(main)
    assert result.status == 1 and "Traceback" in result.err and "a bug of ours" in result.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["hydra/launcher=none-such"], "Could not find 'hydra/launcher/none-such' Available options"),
        (["hydra.mode=x"], "hydra.mode: Invalid value 'x', expected one of [RUN, MULTIRUN]."),
        (["hydra.output_subdir=/dev/null/x"], "Not a directory: '/dev/null/x'."),
        (["format=${nothing}"], "the settings cannot be read: format: Interpolation key 'nothing' not found."),
        (["--resolve"], "--resolve flag can only be used"),
        (["~format=x"], "Could not delete from config."),
    ],
)
def test_what_hydra_refuses_is_one_line(arguments: list[str], said: str) -> None:
    result = call(lambda config: {}, *arguments)
    assert result.status == 2 and result.err.startswith("error: ") and said in result.err
    assert len(result.err.splitlines()) == 1


def test_a_sweep_runs_every_job_and_refuses_a_wrong_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    formats: list[str] = []

    def main(config: object) -> dict[str, object]:
        formats.append(config.format)  # type: ignore[attr-defined]
        return {"metric": len(formats)}

    assert call(main, "-m", "format=vllm,tgi").status == 0 and formats == ["vllm", "tgi"]
    assert call(main, "format=tgi,vllm", "-m").status == 0 and formats[2:] == ["tgi", "vllm"]
    result = call(main, "-m", "base=tiny,nobody")
    assert (
        result.status == 2
        and "base must be one of" in result.err
        and "got nobody" in result.err
        and "Traceback" not in result.err
    )


def test_a_sweep_of_which_a_job_was_refused_ends_with_status_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def main(config: object) -> dict[str, object]:
        if config.format == "tgi":  # type: ignore[attr-defined]
            raise UserError("no tgi")
        return {"format": config.format}  # type: ignore[attr-defined]

    result = call(main, "-m", "format=tgi,vllm")
    assert result.status == 2 and "error: no tgi" in result.err and result.last_line == {"format": "vllm"}


def test_threads_are_set_as_asked() -> None:
    import torch

    before = torch.get_num_threads()
    try:
        use_threads(0)
        assert torch.get_num_threads() == before
        use_threads(3)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    with pytest.raises(UserError, match="threads must be from 0 to 1024; got -2"):
        use_threads(-2)
