"""Adapters that peft made: the text is peft's own, beside the layers and merged into them, or they are refused.

A case names who met its kind first; "own" is ours.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from random_models import HEAD_DESIGNS, random_base, random_heads, twin

from euryale.base.base import Base
from euryale.base.lora import load_adapter
from euryale.decoding.engine import Engine
from euryale.errors import UserError

PROMPT = [1, 2, 3]
TARGETS = ["q_proj", "v_proj"]


def saved(folder: Path, base: Base, settings: Any) -> Any:
    """peft's own model of these random adapters, which are in `folder`/adapter as those of a checkpoint are."""
    model = peft.get_peft_model(twin(base), settings)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name or "trainable_tokens" in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    model.save_pretrained(str(folder / "adapter"), save_embedding_layers=False)
    (folder / "adapter" / "base.json").write_text(json.dumps(base.identity()))
    return model.eval()


@torch.no_grad()
def greedy(model: Any, num: int) -> list[int]:
    ids = list(PROMPT)
    for _ in range(num):
        ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(PROMPT) :]


KINDS: dict[str, dict[str, Any]] = {
    "plain (own)": {},
    "the output matrix saved whole (own)": {"modules_to_save": ["lm_head"]},
    "embeddings saved whole (own)": {"modules_to_save": ["embed_tokens"]},
    "a norm saved whole (own)": {"modules_to_save": ["norm"]},
    "DoRA (own)": {"use_dora": True},
    "rank-stabilised (own)": {"use_rslora": True},
    "ranks by layer (own)": {"rank_pattern": {"layers.1.self_attn.q_proj": 3}, "alpha_pattern": {"v_proj": 9}},
    "biases (own)": {"bias": "all"},
    "one layer (own)": {"layers_to_transform": [1]},
    "every linear layer (own)": {"target_modules": "all-linear"},
    "single tokens (own)": {"trainable_token_indices": [1, 2]},
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("is_merged", [False, True], ids=["beside", "merged"])
def test_an_adapter_of_peft_says_what_it_says_in_peft(name: str, is_merged: bool, tmp_path: Path) -> None:
    base = random_base()
    settings = peft.LoraConfig(**{"r": 2, "target_modules": TARGETS, "task_type": "CAUSAL_LM"} | KINDS[name])
    model = saved(tmp_path, base, settings)
    base.merge_adapter = is_merged
    load_adapter(tmp_path, base)
    expected = greedy(model, 8)
    engine = Engine(base, random_heads(HEAD_DESIGNS[0], base), "heads")
    for drafter in (None, "none"):
        assert engine.generate([PROMPT], 8, ignore_eos=True, drafter=drafter)[0].ids == expected


REFUSED: dict[str, tuple[Any, bool, str]] = {
    "a prefix (own)": (peft.PrefixTuningConfig(num_virtual_tokens=3), False, "of the kind LORA; got PREFIX_TUNING"),
    "IA3 (own)": (peft.IA3Config(target_modules=TARGETS, feedforward_modules=[]), False, "of the kind LORA"),
    "LoHa (own)": (peft.LoHaConfig(r=2, target_modules=TARGETS), False, "of the kind LORA"),
    "a bias that the layer has not (own)": (
        peft.LoraConfig(r=2, target_modules=TARGETS, lora_bias=True), True, "lora_bias=true, which cannot be merged"
    ),
    "the tied output matrix (own)": (
        peft.LoraConfig(r=2, target_modules=[*TARGETS, "lm_head"]), False, "does not fit its description"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_another_adapter_is_refused_and_the_base_is_as_it_was(name: str, tmp_path: Path) -> None:
    """A learned prefix was passed over without a word."""
    settings, is_merged, words = REFUSED[name]
    settings.task_type = "CAUSAL_LM"
    base = random_base()
    before = greedy(base.model, 8)
    saved(tmp_path, base, settings)
    base.merge_adapter = is_merged
    with pytest.raises(UserError, match=words):
        load_adapter(tmp_path, base)
    assert base.adapter is None and greedy(base.model, 8) == before
