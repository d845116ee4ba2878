"""A base of random numbers is what loading a base of these sizes would give, and building it holds little more."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from profiled import peak_of_tensors
from tiny_llama import save_tiny_llama
from torch import nn

from euryale.base.base import Base, load_base
from euryale.base.config import BaseConfig, LoraConfig, ShapeConfig
from euryale.base.locate import read_config
from euryale.base.lora import adapter_parameters, add_adapter
from euryale.base.random_base import random_base
from euryale.base.shape import config_of_shape
from euryale.errors import UserError

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


def of_family(family: str, tied: bool) -> Base:
    shape = ShapeConfig(family, 99, 32, 64, 2, 4, 2, 16, 256, tied)
    return random_base(config_of_shape(shape, BaseConfig()), BaseConfig(dtype="float32", device="cpu"))


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tied", [False, True])
def test_it_is_in_everything_but_its_numbers_what_is_loaded(
    tmp_path: Path, quantization: str, dtype: str, tied: bool
) -> None:
    if quantization == "nf4":
        pytest.importorskip("bitsandbytes")
    folder = save_tiny_llama(tmp_path / "base", tie_word_embeddings=tied)
    config = BaseConfig(path=str(folder), dtype=dtype, quantization=quantization, device="cpu")
    loaded, made = load_base(config), random_base(read_config(config), config)
    for base in (loaded, made):
        add_adapter(base, LoraConfig(rank=4))
    assert [(name, type(x)) for name, x in made.model.named_modules()] == [
        (name, type(x)) for name, x in loaded.model.named_modules()
    ]
    theirs, ours = dict(loaded.model.named_parameters()), dict(made.model.named_parameters())
    assert list(ours) == list(theirs)
    for name, parameter in ours.items():
        other = theirs[name]
        assert (parameter.shape, parameter.dtype, parameter.device) == (other.shape, other.dtype, other.device), name
        assert parameter.requires_grad == other.requires_grad, name
        if "base_layer.weight" in name and quantization == "nf4":
            mine, their = parameter.quant_state, other.quant_state
            for part in ("dtype", "blocksize", "quant_type", "shape", "nested"):
                assert getattr(mine, part) == getattr(their, part), (name, part)
            assert mine.state2.blocksize == their.state2.blocksize
    for name, buffer in loaded.model.named_buffers():  # the turns of positions are no random numbers
        assert torch.equal(buffer, dict(made.model.named_buffers())[name]), name
    for module in made.model.modules():
        assert not getattr(module, "support_avx512bf16_for_cpu", False)
    assert (made.quantization, made.dtype, made.max_length) == (loaded.quantization, loaded.dtype, loaded.max_length)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
def test_every_family_says_something_finite_with_states_of_a_base_s_size(family: str, tied: bool) -> None:
    base = of_family(family, tied)
    ids_BT = torch.arange(12)[None]
    states_BTD = base.forward_packed(ids_BT, ids_BT, torch.zeros_like(ids_BT))
    assert states_BTD.isfinite().all() and 0.5 < states_BTD.std() < 2
    assert base.logits(states_BTD).std() > 0
    assert (base.lm_head_weight is base.model.get_input_embeddings().weight) == tied
    assert all(p.device.type == "cpu" for p in [*base.model.parameters(), *base.model.buffers()])


def test_the_seed_decides_the_numbers_and_nobody_else_s_are_touched() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    config = config_of_shape(ShapeConfig("llama", 99, 32, 64, 2, 4, 2, None, 256, True), BaseConfig())
    first, again, other = (random_base(config, BaseConfig(device="cpu"), seed).lm_head_weight for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_adapters_of_a_4_bit_base_get_their_gradients() -> None:
    pytest.importorskip("bitsandbytes")
    config = config_of_shape(ShapeConfig("llama", 99, 32, 64, 2, 4, 2, None, 256, True), BaseConfig())
    base = random_base(config, BaseConfig(device="cpu", dtype="float32", quantization="nf4"))
    add_adapter(base, LoraConfig(rank=4))
    ids_BT = torch.arange(12)[None]
    base.forward_packed(ids_BT, ids_BT, torch.zeros_like(ids_BT)).square().sum().backward()
    gradients = {name: p.grad for name, p in adapter_parameters(base).items()}
    assert gradients and all(g is not None for g in gradients.values())
    assert all(g.abs().sum() > 0 for name, g in gradients.items() if g is not None and ".lora_B." in name)


def test_building_in_4_bits_never_holds_more_than_one_whole_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("bitsandbytes")
    config = config_of_shape(ShapeConfig("llama", 64, 256, 1024, 6, 4, 4, None, 64, True), BaseConfig())
    asked = BaseConfig(device="cpu", dtype="float32", quantization="nf4")
    monkeypatch.setattr("euryale.base.random_base.prepare_model", lambda model, path: None)  # it runs the model
    kept: list[Base] = []
    build: Callable[[], None] = lambda: kept.append(random_base(config, asked))  # noqa: E731
    build()
    stored = sum(p.numel() * p.element_size() for p in kept[0].model.parameters())
    largest, whole = 4 * 256 * 1024, 4 * sum(x.weight.numel() for x in linear(kept[0])) * 2
    peak = peak_of_tensors(build)
    assert peak < 1.2 * stored + 3 * largest < whole / 2, (peak, stored, largest, whole)


def linear(base: Base) -> list[nn.Linear]:
    output = base.model.get_output_embeddings()
    return [module for module in base.model.modules() if isinstance(module, nn.Linear) and module is not output]


def test_what_cannot_be_built_is_refused(monkeypatch: pytest.MonkeyPatch, tiny_llama_folder: Path) -> None:
    of_base = read_config(BaseConfig(path=str(tiny_llama_folder)))
    with pytest.raises(UserError, match="base.quantization must be one of .*none, nf4, int4; got int3"):
        random_base(of_base, BaseConfig(device="cpu", quantization="int3"))
    with pytest.raises(UserError, match="base.device must be .*; got tpu9"):
        random_base(of_base, BaseConfig(device="tpu9"))
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(UserError, match="nf4 needs bitsandbytes"):
        random_base(of_base, BaseConfig(device="cpu", quantization="nf4"))
