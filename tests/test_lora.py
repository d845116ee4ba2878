"""Adapters of every layer of a base, 4-bit ones included: they learn, come back from a file, and are removed."""

import copy
import json
import logging
import os
from pathlib import Path

import pytest
import torch
from killed_runs import make_batch, make_trainer
from plain_heads import plain_heads
from safetensors.torch import load_file, save_file
from tiny_llama import save_tiny_llama
from tolerance import assert_same_sums

from euryale.base.base import Base, load_base
from euryale.base.config import BaseConfig, LoraConfig
from euryale.base.lora import (
    adapter_disabled,
    adapter_parameters,
    add_adapter,
    chosen_targets,
    learning,
    load_adapter,
    remove_adapter,
    save_adapter,
)
from euryale.decoding.engine import Engine
from euryale.errors import UserError
from euryale.heads.checkpoint import load_heads, read_description, save_heads
from euryale.heads.heads import build_heads
from euryale.system.provenance import provenance
from euryale.training.config import ObjectiveConfig, OptimConfig
from euryale.training.objective import evaluate_joint, medusa2_loss
from euryale.training.optimizer import build_optimizer, check_optimizer
from euryale.training.stages import Stage

LINEARS = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
BATCH = make_batch(5)


def fresh_base(folder: Path, quantization: str = "none", **settings: object) -> Base:
    config = BaseConfig(path=str(folder), dtype="float32", device="cpu", quantization=quantization, **settings)  # type: ignore[arg-type]
    return load_base(config)


def adapted(folder: Path, quantization: str = "none", seed: int = 1) -> Base:
    """A base whose adapters say something: B is random too."""
    base = fresh_base(folder, quantization)
    add_adapter(base, LoraConfig(rank=3), seed)
    generator = torch.Generator().manual_seed(seed)
    for parameter in adapter_parameters(base).values():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return base


@torch.no_grad()
def states(base: Base) -> torch.Tensor:
    return base.forward_packed(BATCH.ids_BT, BATCH.positions_BT, BATCH.documents_BT)


@torch.no_grad()
def wide_states(base: Base) -> torch.Tensor:
    """transformers' own forward of one row in float64, in which the order of sums does not matter."""
    model = copy.deepcopy(base.model).double()
    return model.model(input_ids=BATCH.ids_BT[:1], use_cache=False).last_hidden_state


@pytest.fixture
def saved(tiny_llama_folder: Path, tmp_path: Path) -> Path:
    """A checkpoint of untrained heads with random adapters."""
    base = adapted(tiny_llama_folder)
    save_heads(tmp_path / "run", build_heads(plain_heads(num_heads=2), base.lm_head_weight), base, provenance())
    return tmp_path / "run"


def test_fresh_adapters_change_nothing_and_leave_no_trace(tiny_llama_folder: Path) -> None:
    base = fresh_base(tiny_llama_folder)
    names = [name for name, _ in base.model.named_parameters()]
    before = states(base)
    add_adapter(base, LoraConfig(rank=4), seed=1)
    parameters = adapter_parameters(base)
    assert len(parameters) == 2 * 2 * len(LINEARS) and {p.dtype for p in parameters.values()} == {torch.float32}
    assert torch.equal(states(base), before)
    for parameter in parameters.values():
        parameter.data += 0.1
    assert not torch.equal(states(base), before)
    with adapter_disabled(base):
        assert torch.equal(states(base), before)
    remove_adapter(base)
    assert torch.equal(states(base), before) and [name for name, _ in base.model.named_parameters()] == names


def test_the_seed_decides_the_adapters(tiny_llama_folder: Path) -> None:
    drawn = []
    for seed in (1, 1, 2):
        torch.rand(3)  # the caller's generator has no part in it
        base = fresh_base(tiny_llama_folder)
        add_adapter(base, LoraConfig(rank=4), seed)
        drawn.append(next(iter(adapter_parameters(base).values())).clone())
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("evaluated", [False, True])
@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_every_adapter_of_every_layer_receives_a_gradient(
    tiny_llama_folder: Path, quantization: str, evaluated: bool, recompute: bool
) -> None:
    """bitsandbytes would repack a 4-bit weight in its first evaluation, and then let no gradient through any more."""
    if quantization == "nf4":
        pytest.importorskip("bitsandbytes")
    base = adapted(tiny_llama_folder, quantization)
    heads = build_heads(plain_heads(num_heads=2), base.lm_head_weight)
    config = ObjectiveConfig(kind="medusa2")
    if evaluated:
        evaluate_joint(base, heads, [BATCH], 1, config)
        Engine(base, heads.eval()).generate([[40, 41, 42]], max_new_tokens=4)
    with learning(base, recompute):
        medusa2_loss(base, heads, BATCH, config, Stage(2, 0, 10)).loss.backward()
    gradients = {name: parameter.grad for name, parameter in adapter_parameters(base).items()}
    assert len(gradients) == 2 * 2 * len(LINEARS)
    assert not [name for name, grad in gradients.items() if grad is None or not grad.abs().max() > 0]
    assert all(p.grad is None for name, p in base.model.named_parameters() if ".lora_" not in name)


def test_recomputed_layers_give_the_same_gradients(tiny_llama_folder: Path) -> None:
    gradients = []
    for recompute in (False, True):
        base = adapted(tiny_llama_folder)
        heads = build_heads(plain_heads(num_heads=2), base.lm_head_weight)
        torch.manual_seed(3)  # of the dropout
        with learning(base, recompute):
            medusa2_loss(base, heads, BATCH, ObjectiveConfig(), Stage(2, 0, 10)).loss.backward()
        gradients.append([parameter.grad for parameter in adapter_parameters(base).values()])
    for kept, recomputed in zip(*gradients, strict=True):
        assert torch.equal(kept, recomputed)


def test_inputs_are_dropped_while_learning_and_at_no_other_time(tiny_llama_folder: Path) -> None:
    base = adapted(tiny_llama_folder)
    assert torch.equal(states(base), states(base))
    with learning(base):
        assert not torch.equal(states(base), states(base))
    assert torch.equal(states(base), states(base))
    assert not any(module.training for module in base.model.modules())


def test_targets_that_match_nothing_are_refused_with_the_layers_that_exist(tiny_base: Base) -> None:
    for targets in (["query"], ["q_proj", "query"], ["lm_head"], ["embed_tokens"]):
        with pytest.raises(UserError, match=f"{targets[-1]}.*Choose among: {', '.join(LINEARS)}"):
            chosen_targets(tiny_base.model, LoraConfig(targets=targets))
    assert chosen_targets(tiny_base.model, LoraConfig()) == LINEARS
    assert chosen_targets(tiny_base.model, LoraConfig(targets=["v_proj", "q_proj"])) == ["q_proj", "v_proj"]


def test_only_the_chosen_layers_are_adapted(tiny_llama_folder: Path) -> None:
    base = fresh_base(tiny_llama_folder)
    add_adapter(base, LoraConfig(rank=4, targets=["v_proj"]))
    assert len(adapter_parameters(base)) == 2 * 2 and all(".v_proj." in name for name in adapter_parameters(base))


@pytest.mark.parametrize("changes", [{"rank": 0}, {"alpha": 0.0}, {"dropout": 1.0}, {"targets": []}], ids=str)
def test_a_setting_that_cannot_be_is_refused(changes: dict) -> None:
    with pytest.raises(UserError, match=f"lora.{next(iter(changes))} must .*; got "):
        LoraConfig(**changes).check()


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_a_saved_adapter_comes_back_to_the_bit(tiny_llama_folder: Path, tmp_path: Path, quantization: str) -> None:
    base = adapted(tiny_llama_folder, quantization)
    save_adapter(tmp_path, base)
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors", "base.json",
    ]  # fmt: skip
    other = fresh_base(tiny_llama_folder, quantization)
    load_adapter(tmp_path, other)
    assert torch.equal(states(base), states(other))
    assert not any(p.requires_grad for p in other.model.parameters())


def test_peft_itself_reads_what_was_saved(tiny_llama_folder: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    base = adapted(tiny_llama_folder)
    save_adapter(tmp_path, base)
    model = fresh_base(tiny_llama_folder)
    theirs = peft.PeftModel.from_pretrained(model.model, tmp_path / "adapter").eval()
    out = theirs(input_ids=BATCH.ids_BT, position_ids=BATCH.positions_BT, use_cache=False).logits
    assert_same_sums(out, base.logits(states(base)))


def test_a_half_precision_base_gets_its_adapter_in_its_own_dtype(saved: Path, tiny_llama_folder: Path) -> None:
    base = load_base(BaseConfig(path=str(tiny_llama_folder), dtype="bfloat16", device="cpu"))
    load_heads(saved, base)
    assert {p.dtype for p in adapter_parameters(base).values()} == {torch.bfloat16}
    assert Engine.load(saved, base, tree="chain").generate([[40, 41]], max_new_tokens=3)[0].num_steps


def test_the_engine_decodes_with_the_adapter_as_without_drafts(saved: Path, tiny_llama_folder: Path) -> None:
    assert read_description(saved)["adapter"] == "adapter"
    engine = Engine.load(saved, device="cpu", tree="chain")
    plain = fresh_base(tiny_llama_folder)
    prompts = [[40, 41, 42], [50]]
    answers = [row.ids for row in engine.generate(prompts, max_new_tokens=16)]
    assert answers == [row.ids for row in Engine(engine.base, drafter="none").generate(prompts, max_new_tokens=16)]
    assert answers != [row.ids for row in Engine(plain, drafter="none").generate(prompts, max_new_tokens=16)]


def test_a_merged_adapter_says_the_same_without_its_layers(saved: Path, tiny_llama_folder: Path) -> None:
    """Compared in float64, in states of size 1. Left are merged weights in float32 and norms, float32 in any dtype:
    5e-6 on one processor, and at most ten times that elsewhere. A float32 forward differs by 8e-5 to 3e-4 between
    processors, in the order of its sums alone; an adapter that is left out moves states by more than 1."""
    beside = fresh_base(tiny_llama_folder)
    load_heads(saved, beside)
    merged = fresh_base(tiny_llama_folder, merge_adapter=True)
    load_heads(saved, merged)
    assert merged.adapter is None and not [name for name, _ in merged.model.named_parameters() if "lora" in name]
    assert (wide_states(fresh_base(tiny_llama_folder)) - wide_states(beside)).abs().max() > 1
    torch.testing.assert_close(wide_states(merged), wide_states(beside), rtol=0, atol=5e-5)
    load_heads(saved, merged)  # it is there already
    torch.testing.assert_close(wide_states(merged), wide_states(beside), rtol=0, atol=5e-5)
    engine = Engine.load(saved, device="cpu", tree="chain", merge_adapter=True)
    assert engine.base.adapter is None and torch.equal(states(engine.base), states(merged))


def test_merging_into_4_bit_says_that_it_rounds(
    saved: Path, tiny_llama_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("bitsandbytes")
    base = fresh_base(tiny_llama_folder, "nf4", merge_adapter=True)
    before = states(base)
    with caplog.at_level(logging.WARNING, logger="euryale"):
        heads = load_heads(saved, base)
    assert "rounded to 4 bits again" in caplog.text and not torch.equal(before, states(base))
    prompts = [[40, 41, 42], [50]]
    answers = [row.ids for row in Engine(base, heads).generate(prompts, max_new_tokens=12)]
    assert answers == [row.ids for row in Engine(base, drafter="none").generate(prompts, max_new_tokens=12)]


def test_adapters_of_another_base_are_refused(saved: Path, tmp_path: Path) -> None:
    twin = save_tiny_llama(tmp_path / "twin", seed=1)
    base = fresh_base(twin)
    with pytest.raises(UserError, match="heads in .* they differ in fingerprint"):
        load_heads(saved, base)
    save_adapter(tmp_path / "twin-run", adapted(twin))
    for name in ("adapter_model.safetensors", "base.json"):  # somebody copies an adapter between checkpoints
        (saved / "adapter" / name).write_bytes((tmp_path / "twin-run/adapter" / name).read_bytes())
    with pytest.raises(UserError, match="adapters in .*twin.* they differ in fingerprint"):
        Engine.load(saved, device="cpu", tree="chain")


def damage_weights(adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-40])


def poison_weights(adapter: Path) -> None:
    tensors = load_file(adapter / "adapter_model.safetensors")
    next(iter(tensors.values())).view(-1)[0] = torch.nan
    save_file(tensors, adapter / "adapter_model.safetensors")


def change_rank(adapter: Path) -> None:
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(settings | {"r": 5}))


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda adapter: (adapter / "base.json").unlink(), "base.json cannot be read"),
        (lambda adapter: (adapter / "adapter_config.json").write_text("{"), "adapter_config.json is damaged"),
        (lambda adapter: (adapter / "adapter_config.json").write_text('{"peft_type": "XYZ"}'), "adapter_config.json"),
        (lambda adapter: (adapter / "adapter_model.safetensors").unlink(), "missing or cut short"),
        (damage_weights, "missing or cut short"),
        (poison_weights, "NaN or infinity"),
        (change_rank, "does not fit its description"),
    ],
    ids=["no base", "damaged settings", "unknown kind", "no weights", "cut short", "NaN", "another rank"],
)
def test_a_damaged_adapter_is_refused_and_the_base_stays_as_it_was(
    saved: Path, tiny_llama_folder: Path, damage, message: str
) -> None:  # type: ignore[no-untyped-def]
    damage(saved / "adapter")
    base = fresh_base(tiny_llama_folder)
    before = states(base)
    with pytest.raises(UserError, match=message):
        load_heads(saved, base)
    assert base.adapter is None and torch.equal(states(base), before)


def test_a_base_carries_one_adapter_and_heads_know_whether_it_is_theirs(saved: Path, tiny_llama_folder: Path) -> None:
    base = fresh_base(tiny_llama_folder)
    load_heads(saved, base)
    assert load_heads(saved, base).num_heads == 2
    plain, other = saved.parent / "plain", saved.parent / "other"
    clean = fresh_base(tiny_llama_folder)
    save_heads(plain, build_heads(plain_heads(num_heads=1), clean.lm_head_weight), clean, provenance())
    own = adapted(tiny_llama_folder, seed=2)
    save_heads(other, build_heads(plain_heads(num_heads=1), own.lm_head_weight), own, provenance())
    with pytest.raises(UserError, match="trained for the base alone"):
        load_heads(plain, base)
    with pytest.raises(UserError, match="an adapter of their own"):
        load_heads(other, base)


def test_at_no_moment_of_a_save_does_the_description_name_an_adapter_that_is_not_there(
    saved: Path, tiny_llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = adapted(tiny_llama_folder, seed=2)
    heads = build_heads(plain_heads(num_heads=2), base.lm_head_weight)
    plain, seen = os.replace, []

    def replace(source: Path, target: Path) -> None:
        for _ in range(2):  # before and after
            names = {path.name for path in (saved / "adapter").iterdir() if not path.name.startswith(".")}
            seen.append(names == {"adapter_config.json", "adapter_model.safetensors", "base.json"})
            if source.exists():
                plain(source, target)

    monkeypatch.setattr(os, "replace", replace)
    save_heads(saved, heads, base, provenance())
    assert len(seen) == 10 and all(seen)


def test_8_bit_moments_take_a_quarter_and_resume_exactly(tiny_base: Base, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    heads = plain_heads(num_heads=2, width=8.0)  # matrices above the 4,096 numbers that are kept in 32 bits
    changes = {"name": "adamw_8bit"}
    whole = make_trainer(tiny_base, tmp_path / "whole", heads=heads, optim=changes)
    whole.fit()
    moments = [state["state1"] for state in whole.optimizer.state.values()]
    assert {moment.dtype for moment in moments} == {torch.uint8, torch.float32}
    cut = make_trainer(tiny_base, tmp_path / "cut", heads=heads, optim=changes)
    for _ in range(4):
        cut.train_step()
    cut.save()
    again = make_trainer(tiny_base, tmp_path / "cut", heads=heads, optim=changes, resume=True)
    assert again.step == 4
    again.fit()
    for a, b in zip(whole.parameters.values(), again.parameters.values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["paged_adamw", "paged_adamw_8bit"])
def test_paged_moments_are_refused_without_a_gpu(name: str) -> None:
    with pytest.raises(UserError, match=f"optim.name={name}.*this run is on cpu.*adamw_8bit"):
        check_optimizer(OptimConfig(name=name), torch.device("cpu"))
    with pytest.raises(UserError, match=f"optim.name={name}"):
        build_optimizer({"a": torch.nn.Parameter(torch.ones(2, 2))}, OptimConfig(name=name))


def test_heads_learn_at_their_own_rate_biases_included() -> None:
    parameters = {
        "bodies.0.weight": torch.nn.Parameter(torch.ones(2, 2)),
        "bodies.0.bias": torch.nn.Parameter(torch.ones(2)),
        "adapter.q_proj.lora_A": torch.nn.Parameter(torch.ones(2, 2)),
    }
    groups = build_optimizer(parameters, OptimConfig(name="adamw", weight_decay=0.1), heads_multiplier=4.0).param_groups
    found = [(group["lr_multiplier"], group["weight_decay"], [p.ndim for p in group["params"]]) for group in groups]
    assert found == [(4.0, 0.1, [2]), (4.0, 0.0, [1]), (1.0, 0.1, [2])]
