"""A value of the wrong kind is met with what its setting takes."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from euryale.cli.kinds import check_kinds
from euryale.errors import UserError


@dataclass
class Optim:
    lr: float = 1.0
    steps: int = 2
    seed: int | None = None
    nesterov: bool = False


@dataclass
class Schema:
    optim: Optim = field(default_factory=Optim)
    files: list[str] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    stop: str | list[str] = ""
    name: str | None = None
    checkpoint: str = "last"
    any: Any = ""


@pytest.mark.parametrize(
    "argument",
    ["optim.lr=3", "optim.lr=1e-3", "optim.lr=inf", "optim.steps=5", "optim.steps='5'", "optim.seed=null",
     "optim.nesterov=yes", "optim.nesterov=1", "name=null", "name=5", "files=[a,b]", "counts=[1,4]", "stop=[a]",
     "stop=null", "optim.lr=1,2", "optim.lr=${optim.steps}", "optim.lr=interval(0,1)",
     "optim.steps=range(1,3)", "~optim.lr", "counts=[1],[1,4]", "counts=[]", "files=${name}", "counts=['4']",
     "files=[5]", "any=[{a: 1}]", "any=5", "any=null", "name='[a]'", "optim=adamw", "-m", "hydra.verbose=true"],
)  # fmt: skip
def test_what_a_setting_takes_passes(argument: str) -> None:
    check_kinds(["-m", argument], Schema)


@pytest.mark.parametrize(
    "argument, message",
    [
        ("optim.steps=abc", "optim.steps must be a whole number; got abc."),
        ("optim.steps=1.5", "optim.steps must be a whole number; got 1.5."),
        ("optim.steps=null", "optim.steps must be a whole number; got null."),
        ("+optim.seed=x", "optim.seed must be a whole number; got x."),
        ("optim.lr=[1,2]", "optim.lr must be a number; got [1, 2]."),
        ("optim.lr=1,wide", "optim.lr must be a number; got wide."),
        ("counts=4", "counts must be a list; got 4. Write counts=[...]."),
        ("counts=null", "counts must be a list; got null."),
        ("counts=[a]", "counts must be a list, each of it a whole number; got a."),
        ("counts=[1.5]", "counts must be a list, each of it a whole number; got 1.5."),
        ("counts=[1],[x]", "counts must be a list, each of it a whole number; got x."),
        ("files=[[a]]", "files must be a list, each of it a text; got ['a']."),
        ("files={a: 1}", "files must not be a mapping; got {'a': 1}."),
        ("any={a: 1}", "any must not be a mapping; got {'a': 1}."),
        ("name=[a]", "name must be a text; got ['a']."),
        ("checkpoint={a: 1}", "checkpoint must be a text; got {'a': 1}."),
        ("checkpoint=null", "checkpoint must be a text; got null."),
        ("optim.nesterov=perhaps", "optim.nesterov must be true or false; got perhaps."),
    ],
)
def test_what_it_cannot_take_is_refused_in_its_own_words(argument: str, message: str) -> None:
    with pytest.raises(UserError) as refused:
        check_kinds(["name=ok", argument, "-m"], Schema)
    assert str(refused.value).startswith(message)


@pytest.mark.parametrize("argument", ["optim.lr=1,2", "name=a,b", "any=a,b", "optim.steps=range(1,3)"])
def test_several_values_need_a_sweep(argument: str) -> None:
    key = argument.partition("=")[0]
    with pytest.raises(UserError, match=rf"{key} must be one value; got .* write {key}=\[\.\.\.\], for a sweep add -m"):
        check_kinds([argument], Schema)
