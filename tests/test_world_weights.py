"""Folders of models as they come from elsewhere: read as they are meant, or refused in one line.

A case names where its fault was met first; "own" is ours.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_llama import save_tiny_llama

from euryale.base.base import load_base
from euryale.base.config import BaseConfig
from euryale.errors import UserError


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("files") / "base")


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(original, tmp_path / "base"))


def save(folder: Path, tensors: dict[str, torch.Tensor], name: str = "model.safetensors") -> None:
    save_file(tensors, folder / name, metadata={"format": "pt"})


def changed(folder: Path, change: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
    tensors = load_file(folder / "model.safetensors")
    save(folder, {name: change(name, tensor) for name, tensor in tensors.items()})


def added(folder: Path, name: str) -> None:
    save(folder, load_file(folder / "model.safetensors") | {name: torch.ones(4)})


def shard(folder: Path, damage: str = "") -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    index = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        save(folder, {name: tensors[name] for name in part}, file)
        index |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    second = folder / "model-00002-of-00002.safetensors"
    if damage == "missing":
        second.unlink()
    if damage == "half":
        second.write_bytes(second.read_bytes()[: second.stat().st_size // 2])
    if damage == "lie":
        wrong = dict.fromkeys(names, "model-00001-of-00002.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": wrong}))
    if damage == "null":
        (folder / "model.safetensors.index.json").write_text("null")


def custom_code(folder: Path) -> None:
    path = folder / "config.json"
    code = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "own", "auto_map": code}))
    (folder / "own.py").write_text("raise SystemExit('it was run')")


class Runs:
    """What a pickle may do when it is read."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('it was run')",)


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Runs()}, folder / "pytorch_model.bin")


Q = "model.layers.0.self_attn.q_proj"
DAMAGED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a shard that is missing": (lambda folder: shard(folder, "missing"), "model-00002-of-00002.safetensors"),
    "half a shard": (lambda folder: shard(folder, "half"), "could not be loaded"),
    "an index that names the wrong shard": (lambda folder: shard(folder, "lie"), "the weights lack"),
    "an index that is null": (lambda folder: shard(folder, "null"), "could not be loaded"),
    "a pointer of Git LFS (transformers#27923)": (
        lambda folder: (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n"),
        "model.safetensors is a pointer of Git LFS.* Run git lfs pull",
    ),
    "a page of a web server": (
        lambda folder: (folder / "model.safetensors").write_text("<html>not found</html>"), "could not be loaded"
    ),
    "FP8 without its config (unsloth#6200)": (
        lambda folder: changed(folder, lambda _, t: t.to(torch.float8_e4m3fn) if t.ndim > 1 else t),
        "holds weights of a byte or less .*F8_E4M3.* no quantization_config",
    ),
    "int8 without its config": (
        lambda folder: changed(folder, lambda name, t: t.to(torch.int8) if "proj" in name else t), "in I8"
    ),
    "scales that are not read (stable-diffusion.cpp#1898)": (
        lambda folder: added(folder, f"{Q}.weight_scale_inv"), f"its files hold {Q}.weight_scale_inv"
    ),
    "GPTQ without its config": (lambda folder: added(folder, f"{Q}.qweight"), f"its files hold {Q}.qweight"),
    "an adapter among the weights": (lambda folder: added(folder, f"{Q}.lora_A.weight"), "an adapter is among them"),
    "a norm of another size": (
        lambda folder: changed(folder, lambda name, t: torch.ones(7) if name == "model.norm.weight" else t),
        "model.norm.weight has the sizes 7, and config.json calls for",
    ),
    "an adapter alone (peft#309)": (
        lambda folder: (folder / "config.json").rename(folder / "adapter_config.json"), "an adapter .peft., not a whole"
    ),
    "an adapter beside the weights (peft#1381)": (
        lambda folder: (folder / "adapter_config.json").write_text("{}"), "Merge it into its base"
    ),
    "code of its own (mlx-lm#383)": (custom_code, "it comes with code of its own, which is never run here"),
    "a pickle that runs": (pickled, "it comes with code of its own, which is never run here"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_model_is_refused_in_one_line_with_what_is_wrong(name: str, folder: Path) -> None:
    damage, words = DAMAGED[name]
    damage(folder)
    with pytest.raises(UserError, match=words) as refused:
        load_base(BaseConfig(path=str(folder), dtype="float32", device="cpu"))
    assert "\n" not in str(refused.value)


def test_weights_in_shards_are_the_same(folder: Path, original: Path) -> None:
    shard(folder)
    found, whole = (load_base(BaseConfig(path=str(path), dtype="float32", device="cpu")) for path in (folder, original))
    assert torch.equal(found.lm_head_weight, whole.lm_head_weight)


def test_tensors_that_no_layer_asks_for_are_told(folder: Path, caplog: pytest.LogCaptureFixture) -> None:  # own
    added(folder, "model.layers.99.self_attn.q_proj.weight")
    with caplog.at_level(logging.WARNING):
        load_base(BaseConfig(path=str(folder), dtype="float32", device="cpu"))
    assert "1 tensors of its files are of no use to it (model.layers.99.self_attn.q_proj.weight" in caplog.text


@pytest.mark.skipif(sys.platform != "linux", reason="the files of a process are looked up in /proc")
def test_norms_in_another_dtype_than_the_matrices_do_not_keep_the_file_in_memory(folder: Path) -> None:
    """A GGUF file's copy is such a file: the mapping of 0.5 GB stayed for 61 norms."""
    changed(folder, lambda name, tensor: tensor.to(torch.bfloat16 if tensor.ndim < 2 else torch.float32))
    base = load_base(BaseConfig(path=str(folder), dtype="bfloat16", device="cpu"))
    assert base.dtype == torch.bfloat16
    assert str(folder) not in Path("/proc/self/maps").read_text()
