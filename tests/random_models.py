"""Tiny random bases, heads, trees and tokenizers: what the decoding tests run on. Not a test file itself.

Weights are large on purpose: at transformers' usual initialisation a two-layer model repeats one token for ever,
and a decoder that is wrong would go unnoticed.
"""

from __future__ import annotations

import copy
import random

import torch
from plain_heads import plain_heads
from tokenizers import Tokenizer, decoders, models
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from euryale.base.base import Base
from euryale.base.tree_attention import use_tree_attention
from euryale.decoding.engine import Engine
from euryale.decoding.tree.tree import Tree
from euryale.heads.config import HeadsConfig
from euryale.heads.heads import Heads, build_heads

# Models this small gain nothing from a second thread, and lose tenfold when the cores are shared.
torch.set_num_threads(1)

FAMILIES: dict[str, tuple[type[PreTrainedConfig], type[PreTrainedModel]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}
HEAD_DESIGNS = tuple(
    plain_heads(kind, num_heads=4, num_layers=num_layers, body=body, width=1.5, output=output, root_token=root_token)
    for kind, root_token in (("hydra", True), ("medusa", True), ("medusa", False))
    for body in ("mlp", "resblock")
    for output in ("shared", "own")
    for num_layers in (1, 2)
) + (
    plain_heads("hydra", vocab_share=0.5),
    plain_heads("medusa", output="own", vocab_share=0.3),
    plain_heads("hydra", num_layers=2, features="several"),
    plain_heads("medusa", body="resblock", features="several"),
    plain_heads("hydra", output="lowrank", output_rank=3),
    plain_heads("hydra", num_layers=2, output="lowrank", output_rank=5, vocab_share=0.5),
    plain_heads("hydra", num_layers=2, features="several", residual=False),
    plain_heads("medusa", root_token=False, residual=False),
    plain_heads("medusa", body="resblock", residual=False),
    plain_heads("hydra", induction=2),
    plain_heads("hydra", num_layers=2, features="several", induction=1, vocab_share=0.6),
    plain_heads("medusa", induction=3),
)
EAGLE_DESIGNS = (
    plain_heads("eagle", features="several"),
    plain_heads("eagle", width=1.0, vocab_share=0.6),
)


def random_base(
    family: str = "llama",
    vocab_size: int = 13,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    max_length: int = 128,
    eos: int | list[int] | None = None,
    bos_id: int | None = None,
    **config: object,
) -> Base:
    """A two-layer base of width 16 with grouped-query attention; every id is an ordinary token but eos and bos."""
    config_class, model_class = FAMILIES[family]
    settings: dict[str, object] = {
        "vocab_size": vocab_size,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8 if family == "qwen3" else 4,
        "max_position_embeddings": max_length,
        "eos_token_id": eos,
        "bos_token_id": bos_id,
        "pad_token_id": None,
        "tie_word_embeddings": False,
        "sliding_window": None,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config_class(**(settings | config)))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.6 if parameter.ndim > 1 else 1.0)
    model.to(dtype).eval().requires_grad_(False)
    use_tree_attention(model)
    return Base(model, letter_tokenizer(vocab_size, bos_id), f"random-{family}", f"{family}:{vocab_size}:{seed}")


def twin(base: Base) -> PreTrainedModel:
    """The same weights under transformers' own eager attention: shares nothing with our attention, mask or cache."""
    model = copy.deepcopy(base.model)
    model.set_attn_implementation("eager")
    return model


def letter_tokenizer(vocab_size: int, bos_id: int | None = None) -> PreTrainedTokenizerFast:
    """Token i is one character, so text and ids are easily compared; nothing is put between or in front."""
    characters = [chr(ord("a") + i) if i < 26 else chr(0x4E00 + i) for i in range(vocab_size)]
    vocabulary = {character: i for i, character in enumerate(characters)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], fuse_unk=False))
    tokenizer.decoder = decoders.Fuse()
    bos = characters[bos_id] if bos_id is not None else None
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos)


def random_heads(design: HeadsConfig, base: Base, seed: int = 0) -> Heads:
    """Heads whose every weight is random, the ones that training starts at zero included, and the draft vocabulary."""
    heads = build_heads(design, base.lm_head_weight.float(), seed)
    generator = torch.Generator().manual_seed(seed)
    if heads.draft_ids is not None:
        heads.choose_draft_ids(torch.rand(base.vocab_size, generator=generator))
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
    return heads.to(base.dtype).eval().requires_grad_(False)


def random_tree(rng: random.Random, max_depth: int, num_ranks: int, num_nodes: int) -> Tree:
    """At most num_nodes nodes; a node's children have distinct ranks below num_ranks, with gaps."""
    paths: list[tuple[int, ...]] = [()]
    for _ in range(num_nodes - 1):
        path = (*rng.choice([p for p in paths if len(p) < max_depth]), rng.randrange(num_ranks))
        if path not in paths:
            paths.append(path)
    return Tree.from_paths(paths[1:])


def random_prompts(rng: random.Random, num: int, vocab_size: int, longest: int) -> list[list[int]]:
    return [[rng.randrange(vocab_size) for _ in range(rng.randint(1, longest))] for _ in range(num)]


# Every continuation of two tokens of a vocabulary of five: nothing that such a base says is ever rejected.
FULL = Tree.from_paths([(a,) for a in range(5)] + [(a, b) for a in range(5) for b in range(5)])


def five_tokens(max_length: int = 128, **config: object) -> Base:
    """float64, so that no two scores are close; a seed whose greedy answers do not loop soon."""
    return random_base("qwen2", 5, seed=50, dtype=torch.float64, max_length=max_length, **config)  # type: ignore[arg-type]


def engine_of(base: Base, tree: Tree = FULL) -> Engine:
    """The base with random heads."""
    return Engine(base, random_heads(HEAD_DESIGNS[0], base), "heads", tree)
