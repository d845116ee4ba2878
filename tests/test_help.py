"""--help says what a script does, and nothing that is not so."""

import ast
import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from scripts import ROOT, run_script

from euryale.cli.help import help_text
from euryale.cli.kinds import check_kinds
from euryale.cli.overrides import check_are_settings, check_keys
from euryale.cli.schemas import SCHEMAS
from euryale.cli.script import CONF, _groups

NAMES = {"train/run.py": "train", "infer/run.py": "infer"}
SCRIPTS = {
    NAMES.get(file := path.relative_to(ROOT).as_posix(), path.stem): file
    for path in [*ROOT.glob("train/*.py"), *ROOT.glob("infer/*.py")]
}
# A recipe changes what other files say, and measure and bench_steps have one by default.
PLAIN = {"measure": ["shape=hf"], "bench_steps": ["shape=hf"]}


def description(file: str) -> str:
    """A script's docstring."""
    found = ast.get_docstring(ast.parse((ROOT / file).read_text()))
    assert found is not None
    return found


def settings_of(text: str) -> dict:
    """The settings that a help text shows."""
    shown = text.partition("\nSettings ")[2].partition("\n")[2].partition("\n-m starts")[0]
    found = OmegaConf.to_container(OmegaConf.create(shown))
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("name", SCHEMAS)
def test_help_shows_every_setting_and_its_default(name: str) -> None:
    arguments = PLAIN.get(name, [])
    ConfigStore.instance().store(name=f"{name}_schema", node=SCHEMAS[name])
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = compose(name, [*arguments, *(["~recipe"] if arguments else [])])
    assert settings_of(help_text(name, "", CONF, arguments)) == OmegaConf.to_container(composed)


def test_help_shows_the_options_that_the_command_line_chooses() -> None:
    text = help_text("train", "", CONF, ["heads=eagle", "optim.lr=1"])
    assert "heads=eagle: eagle | hydra | medusa" in text
    assert settings_of(text)["heads"]["kind"] == "eagle" and settings_of(text)["heads"]["num_layers"] == 1
    assert "kind: hydra" not in text


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_begins_with_what_the_script_does(flag: str) -> None:
    result = run_script("infer/rank.py", flag)
    assert result.status == 0 and result.err == ""
    assert result.out.startswith(description("infer/rank.py") + "\n\nSettings ")
    assert "Hydra" not in result.out and "Groups" not in result.out, "infer/rank.py has none"


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_three_examples_of_a_script_are_commands_that_it_takes(name: str) -> None:
    file = SCRIPTS[name]
    examples = description(file).partition("\nExamples:\n")[2].splitlines()
    assert len(examples) == 3
    for example in examples:
        command, _, arguments = example.strip().partition(f" {file}")
        assert command in ("python", "torchrun --nproc_per_node=2"), example
        words = shlex.split(arguments.partition(" < ")[0])
        check_are_settings(words)
        check_keys(words, SCHEMAS[name], _groups())
        check_kinds(words, SCHEMAS[name])
        named = [word.partition("=")[2] for word in words if word.startswith("checkpoint=")]
        assert all(value == "last" or Path(ROOT / "checkpoints" / value).is_dir() for value in named)
