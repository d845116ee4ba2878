"""A mistyped key is met with the keys there are, and a prompt reaches its script letter by letter."""

from dataclasses import dataclass, field

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from euryale.cli.overrides import check_are_settings, check_keys, quote_text
from euryale.errors import UserError


@dataclass
class Optim:
    lr: float = 1.0
    warmup_steps: int = 2


@dataclass
class Schema:
    optim: Optim = field(default_factory=Optim)
    files: list[str] = field(default_factory=list)
    prompt: str | None = None


@pytest.mark.parametrize(
    "argument",
    ["optim.lr=3", "+optim.lr=3", "++optim.lr=3", "~optim.lr", "optim=adamw", "recipe=x", "files.0=a", "files=[a,b]",
     "hydra.verbose=true", "hydra/launcher=joblib", "-m", "--config-dir", "folder", "base@other=x", "prompt=a.b=c"],
)  # fmt: skip
def test_settings_groups_and_hydras_own_arguments_pass(argument: str) -> None:
    check_keys([argument], Schema, groups={"optim": ["adamw"], "recipe": ["x"]})


@pytest.mark.parametrize(
    "argument, message",
    [
        ("promt=x", "promt is not a setting. Did you mean prompt? The settings are: optim, files, prompt."),
        (
            "optim.lrr=1",
            "optim.lrr is not a setting. Did you mean optim.lr? The settings of optim are: lr, warmup",
        ),
        (
            "+optim.warmup=1",
            "optim.warmup is not a setting. Did you mean optim.warmup_steps? The settings of",
        ),
        ("~zzz", "zzz is not a setting. The settings are: optim, files, prompt."),
        ("zzz.lr=1", "zzz.lr is not a setting. The settings are: optim, files, prompt."),
    ],
)
def test_an_unknown_key_is_met_with_those_there_are(argument: str, message: str) -> None:
    with pytest.raises(UserError) as refused:
        check_keys(["prompt=ok", argument], Schema, groups={"recipe": ["x"]})
    assert str(refused.value).startswith(message)


@pytest.mark.parametrize("arguments", [["prompt", "=", "hi"], ["prompt=two", "words"], ["=hi"], [""], ["two words=x"]])
def test_an_argument_that_sets_nothing_is_refused(arguments: list[str]) -> None:
    with pytest.raises(UserError, match="sets nothing. Write KEY=VALUE, without spaces beside the ="):
        check_are_settings(arguments)


def test_flags_and_what_follows_them_are_arguments_too() -> None:
    check_are_settings(["-m", "--config-dir", "folder", "~optim.lr", "base@other=x", "hydra/launcher=joblib", "a=b"])


def test_a_group_is_not_switched_off_with_null() -> None:
    with pytest.raises(UserError, match="optim=null chooses nothing. The options of optim are: adamw, sgd"):
        check_keys(["optim=null"], Schema, groups={"optim": ["adamw", "sgd"]})


def test_an_option_that_does_not_exist_is_met_with_those_there_are() -> None:
    groups = {"optim": ["adamw", "heads+muon"]}
    for argument in ("optim=sgd", "+optim=sgd", "optim=adamw,sgd"):
        with pytest.raises(UserError, match=r"^optim must be one of adamw, heads\+muon; got sgd\.$"):
            check_keys([argument], Schema, groups)
    for arguments in (["optim=adamw,heads+muon"], ["--config-dir", "mine", "optim=sgd"], ["optim=choice(adamw,sgd)"]):
        check_keys(arguments, Schema, groups)  # the last is Hydra's grammar, and Hydra's to judge


def as_hydra_reads(argument: str) -> object:
    override = OverridesParser.create().parse_overrides([argument])[0]
    config = OmegaConf.create({override.key_or_group: "before"})
    OmegaConf.update(config, override.key_or_group, override.value(), merge=True)
    return config[override.key_or_group]


@pytest.mark.parametrize(
    "prompt",
    ["import os", "Hello, world", "def f(x): return [x, {1: 'a'}]", 'it\'s "quoted"', "one\nline\tmore", "", "7",
     "true", "a=b", "-", "C:\\temp\\", "\\'", "'", "\\", "\\\\'", "echo ${HOME} $x", "\\${x}", "\\\\${x}'", "x${a",
     "caf\u00e9 \u4f60", "\\n", "{", "]", "#", "!", "?*;&|<>`~^%@"],
)  # fmt: skip
def test_a_prompt_arrives_letter_by_letter(prompt: str) -> None:
    [quoted] = quote_text([f"prompt={prompt}"], {"prompt"})
    assert as_hydra_reads(quoted) == prompt


def test_what_is_quoted_already_and_other_settings_stay_as_they_are() -> None:
    arguments = ["prompt='a, b'", 'prompt="a, b"', "prompt=null", "stop=[a,b]", "-m", "checkpoint=prompt=x"]
    assert quote_text(arguments, {"prompt"}) == arguments
    assert as_hydra_reads("prompt='a, b'") == "a, b"
