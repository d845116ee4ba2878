"""The sizes in conf/shape mean what they say, and sizes out of range are refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from scripts import ROOT
from transformers import AutoModelForCausalLM

from euryale.base.config import BaseConfig, ShapeConfig
from euryale.base.shape import config_of_shape
from euryale.cli.script import CONF
from euryale.errors import UserError

SHAPES = sorted(path.stem for path in (CONF / "shape").glob("*.yaml"))


def shape_of(name: str) -> ShapeConfig:
    files = [OmegaConf.load(CONF / "shape" / f"{part}.yaml") for part in ("hf", name)]
    merged = OmegaConf.merge(*files)
    return ShapeConfig(**{key: merged[key] for key in files[0]})


SMALL = shape_of("tiny")


def num_parameters(name: str) -> int:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of_shape(shape_of(name), BaseConfig()))
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "count"),
    [("llama3_8b", 8_030_261_248), ("llama2_7b", 6_738_415_616), ("llama_100m", 109_529_856), ("tiny", 4_984_064)],
)
def test_a_shape_has_as_many_numbers_as_the_model_of_that_name(name: str, count: int) -> None:
    assert num_parameters(name) == count
    assert f"{count / 1e9:.2f} B" in (text := (CONF / f"shape/{name}.yaml").read_text()) or f"{count / 1e6:.0f}" in text


def test_every_base_that_can_be_trained_beside_has_a_shape() -> None:
    bases = {path.stem for path in (CONF / "base").glob("*.yaml")} - {"checkpoint"}
    assert bases <= set(SHAPES)
    for name in bases - {"tiny", "llama3_8b", "llama2_7b"}:
        assert shape_of(name) == ShapeConfig(), "read from its config.json"


def test_the_tiny_shape_is_the_bundled_base_s() -> None:
    bundled = json.loads((ROOT / "checkpoints/tiny-base/config.json").read_text())
    made = config_of_shape(SMALL, BaseConfig()).to_dict()
    for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                 "num_key_value_heads", "max_position_embeddings", "tie_word_embeddings", "model_type"):  # fmt: skip
        assert made[name] == bundled[name], name


def test_without_sizes_they_are_those_of_the_base(tiny_llama_folder: Path) -> None:
    config = config_of_shape(ShapeConfig(), BaseConfig(path=str(tiny_llama_folder)))
    assert (config.hidden_size, config.num_hidden_layers) == (32, 2)
    with pytest.raises(UserError, match="base.path is not set"):
        config_of_shape(ShapeConfig(), BaseConfig(path=None))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (ShapeConfig(num_layers=2), "shape.num_layers is given and shape.family, shape.vocab_size, .* not"),
        (replace(SMALL, family="gpt9"), "shape.family must be one of llama, mistral, qwen2, qwen3; got gpt9"),
        (replace(SMALL, num_layers=0), "shape.num_layers must be at least 1; got 0"),
        (replace(SMALL, num_heads=7), "shape.hidden_size=256 must be an even multiple of shape.num_heads=7"),
        (replace(SMALL, num_kv_heads=3), "multiple of shape.num_kv_heads=3"),
        (replace(SMALL, head_dim=33), "shape.head_dim must be even .*; got 33"),
    ],
)
def test_sizes_that_cannot_be_are_refused(shape: ShapeConfig, message: str) -> None:
    with pytest.raises(UserError, match=message):
        config_of_shape(shape, BaseConfig())
