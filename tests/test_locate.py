"""A model that is missing, not whole or out of reach is named clearly, before anything is loaded."""

import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import constants

from euryale.base import locate as locate_module
from euryale.base.base import load_base
from euryale.base.config import BaseConfig
from euryale.base.find_model import find_model, hub_answers
from euryale.base.locate import check_folder, find_source
from euryale.errors import UserError
from euryale.system.paths import PROJECT

HUB_ID = "meta-llama/Llama-3.1-8B"


@pytest.fixture
def folder(tiny_llama_folder: Path, tmp_path: Path) -> Path:
    """A whole model of one's own to damage."""
    return Path(shutil.copytree(tiny_llama_folder, tmp_path / "model"))


def refuses(folder: Path) -> str:
    with pytest.raises(UserError) as refused:
        load_base(BaseConfig(path=str(folder), device="cpu"))
    return str(refused.value)


def test_a_folder_is_found_from_here_from_the_project_and_from_home(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_model("model") == "model"
    assert find_model("~/model") == str(folder)
    assert find_model(str(folder)) == str(folder)
    assert find_model("tests") == str(PROJECT / "tests")


def test_a_name_like_a_hub_id_is_taken_for_one() -> None:
    assert find_model(HUB_ID) == HUB_ID
    assert find_model("gpt2") == "gpt2"


@pytest.mark.parametrize("path", ["./missing", "/no/such", "~/missing/x", "a/b/c", "checkpoints/none", "../no-base"])
def test_a_folder_that_is_not_there_is_refused(path: str) -> None:
    with pytest.raises(UserError, match="there is no such folder .* Give a folder .* or a hub id"):
        find_model(path)


def test_a_place_that_was_looked_in_is_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT)
    with pytest.raises(UserError, match=rf"\(looked in {PROJECT}\)"):
        find_model("/no/such")


def test_no_path_at_all_is_refused() -> None:
    for path in (None, ""):
        with pytest.raises(UserError, match="base.path is not set. Give base=hf base.path=FOLDER_OR_HUB_ID"):
            load_base(BaseConfig(path=path))


def test_a_whole_folder_passes(folder: Path) -> None:
    check_folder(folder, "model")


def remove(pattern: str) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        found = list(folder.glob(pattern))
        assert found
        for path in found:
            path.unlink()

    return act


def write(name: str, content: bytes) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return act


def cut_short(folder: Path) -> None:
    [weights] = folder.glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])


@pytest.mark.parametrize(
    "damage, message",
    [
        (remove("*"), "must be a model folder; it has no config.json. Found: nothing"),
        (remove("config.json"), "must be a model folder; it has no config.json. Found: generation_config.json"),
        (remove("*.safetensors"), "has no weights"),
        (remove("tokenizer*"), "has no tokenizer"),
        (remove("tokenizer.json"), "could not be loaded"),
        (write("config.json", b'{"model_type": "lla'), "config.json is not JSON"),
        (write("config.json", b"\xff\xfe\x00"), "config.json is not JSON"),
        (write("config.json", b"[]"), "must hold one JSON object; got"),
        (write("config.json", b'{"model_type": "unheard-of"}'), "could not be loaded"),
        (write("tokenizer.json", b"{"), "could not be loaded"),
        (cut_short, "could not be loaded"),
    ],
)  # fmt: skip
def test_a_folder_that_is_not_whole_is_refused(folder: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(folder)
    said = refuses(folder)
    assert said.startswith(f"base.path={folder}") and message in said and len(said) < 900


def test_a_long_listing_is_cut() -> None:
    with pytest.raises(UserError, match=r"Found: .*, .* \.\.\."):
        check_folder(PROJECT / "tests", "tests")


# The hub


class Hub:
    """Stands in for the hub's HTTP session; `error` is what a request meets."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error
        self.calls: list[tuple[str, float]] = []

    def head(self, url: str, timeout: float) -> SimpleNamespace:
        self.calls.append((url, timeout))
        if self.error is not None:
            raise self.error
        return SimpleNamespace(status_code=200)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A hub that cannot be reached, and an empty cache."""
    hub = Hub(ConnectionError("no route to host"))
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: hub)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repo, name, revision=None: None)
    return hub


def test_a_hub_that_answers_is_used(hub: Hub) -> None:
    hub.error = None
    assert hub_answers(HUB_ID, None)
    assert hub.calls == [(constants.ENDPOINT, 5.0)], "asked once, and not for long"


def test_an_unreachable_hub_is_said_at_once_with_the_alternative(hub: Hub) -> None:
    start = time.perf_counter()
    with pytest.raises(UserError) as refused:
        load_base(BaseConfig(path=HUB_ID))
    said = str(refused.value)
    assert time.perf_counter() - start < 2 and len(hub.calls) == 1
    assert f"base.path={HUB_ID}" in said and constants.ENDPOINT in said and "ConnectionError" in said
    assert "Give a folder that holds the model, or base=tiny, which needs no download" in said


def test_a_cached_copy_needs_no_hub(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[tuple[str, str, str | None]] = []

    def cached(repo: str, name: str, revision: str | None = None) -> str:
        asked.append((repo, name, revision))
        return str(folder / name)

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    with caplog.at_level(logging.WARNING, logger="euryale"):
        assert not hub_answers(HUB_ID, "v1")
    assert asked == [(HUB_ID, "config.json", "v1")]
    assert f"using the copy of {HUB_ID} in the cache" in caplog.text


@pytest.mark.parametrize("is_online", [False, True])
def test_only_a_hub_that_answers_is_asked_for_files(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch, is_online: bool
) -> None:
    seen: list[dict] = []

    class Config:
        @staticmethod
        def from_pretrained(path: str, **source: object) -> object:
            seen.append(source)
            raise OSError("no further")

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: str(folder / "config.json"))
    monkeypatch.setattr(locate_module, "AutoConfig", Config)
    hub.error = None if is_online else hub.error
    with pytest.raises(UserError, match=f"base.path={HUB_ID} could not be loaded .*no further"):
        load_base(BaseConfig(path=HUB_ID, revision="v1"))
    assert seen == [{"revision": "v1", "local_files_only": not is_online, "trust_remote_code": False}]


def test_a_local_folder_asks_nobody(hub: Hub, folder: Path) -> None:
    load_base(BaseConfig(path=str(folder), device="cpu"))
    assert not hub.calls


def test_a_revision_of_a_folder_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="base.revision must be left out where base.path is a folder .* got v1"):
        find_source(BaseConfig(path=str(folder), revision="v1"))
