"""llama.cpp as a contender: what it is asked, how its answer is counted, and when it is refused by name."""

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from scripts import assert_refused, run_script

from euryale.base.base import Base
from euryale.decoding.engine import Engine
from euryale.decoding.sampling import Sampling
from euryale.errors import UserError
from euryale.evaluation import llama_cpp
from euryale.evaluation.config import BenchSettings
from euryale.evaluation.contenders import CONTENDERS
from euryale.evaluation.llama_cpp import LlamaCpp

EOS = 2


class StandIn(ModuleType):
    """A package with the two classes that are used; its server answers 40, 41 and ends."""

    def __init__(self) -> None:
        super().__init__("xllamacpp")
        self.__spec__ = ModuleSpec("xllamacpp", None)
        self.asked: list[dict[str, Any]] = []
        self.params: list[SimpleNamespace] = []

    def CommonParams(self) -> SimpleNamespace:
        parts = {name: SimpleNamespace() for name in ("model", "cpuparams", "cpuparams_batch")}
        self.params.append(SimpleNamespace(**parts))
        return self.params[-1]

    def Server(self, params: SimpleNamespace) -> SimpleNamespace:
        def handle_completions(asked: dict[str, Any]) -> dict[str, Any]:
            self.asked.append(asked)
            ended = asked["max_tokens"] > 2
            tokens = [{"id": 40}, {"id": 41}]
            return {
                "choices": [{"logprobs": {"content": tokens}, "finish_reason": "stop" if ended else "length"}],
            }

        return SimpleNamespace(handle_completions=handle_completions)


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    made = StandIn()
    monkeypatch.setitem(sys.modules, "xllamacpp", made)
    monkeypatch.setattr(llama_cpp, "gguf_file", lambda path: Path("model.gguf"))
    return made


def test_it_gets_the_prompt_s_ids_greedily_with_as_many_threads(package: StandIn, tiny_base: Base) -> None:
    turn = CONTENDERS["llama_cpp"](Engine(tiny_base, drafter="none"), Sampling(), 8)([5, 6, 7], 0)
    [asked], [params] = package.asked, package.params
    assert asked["prompt"] == [5, 6, 7] and asked["temperature"] == 0 and asked["cache_prompt"] is False
    assert params.model.path == "model.gguf" and params.n_ctx == tiny_base.max_length
    assert params.cpuparams.n_threads == params.cpuparams_batch.n_threads == 1
    assert turn.ids == [40, 41, EOS] and turn.seconds > 0


def test_an_answer_that_was_cut_has_no_end_token(package: StandIn, tiny_base: Base) -> None:
    assert LlamaCpp(tiny_base, 2, 1).answer([5]) == [40, 41]


def test_only_greedy_decoding_can_be_asked_of_it(package: StandIn) -> None:
    BenchSettings(("ar", "llama_cpp")).check()
    for sampling in (Sampling(temperature=0.5), Sampling(top_p=0.9)):
        settings = BenchSettings(("llama_cpp",), sampling=sampling)
        with pytest.raises(UserError, match="llama_cpp is timed with temperature=0"):
            settings.check()


def test_a_base_in_another_format_is_refused(
    package: StandIn, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    with pytest.raises(UserError, match="llama_cpp needs a base in a GGUF file; got .*tiny-llama"):
        LlamaCpp(tiny_base, 4, 1)


def test_without_the_package_it_is_refused_by_name(tiny_llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    base = ["checkpoint=null", f"base.path={tiny_llama_folder}", "drafter=lookup"]
    result = run_script("infer/bench.py", *base, "contenders=[ar,llama_cpp]", "prompts=data/prompts.txt")
    assert_refused(result, "llama_cpp", "xllamacpp", "is not installed")
