"""Check of a fast forward against transformers, before decoding relies on it.

In float32 and float64 the two must agree. In 16 bits each is far from the other by its own rounding, so both are
compared with the same layers in float32, one layer in memory at a time: the fast forward may be as far from them as
transformers is, with some room. What must be found (a wrong rope, a hook, a layer that is more than its matrices) is
far larger.

Letters: T tokens, D width.
"""

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from euryale.base.forward import Forward

SAMPLE = "The sky is blue because air scatters short waves of light more than long ones. def area(r): return r * r"
_MOST = 48  # tokens
_TOLERANCE = 1e-4  # of the states' root-mean-square, in float32 and float64
_ROOM, _LEAST = 2.0, 0.02  # in 16 bits: times the error of transformers, and what may always be
_UNKNOWN = 0.5  # in 16 bits where the layers have no float32 form (4-bit weights)


def sample_ids(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> list[int]:
    """Tokens of a text: random ones have states that no text has, with larger rounding."""
    ids = [token for token in tokenizer.encode(SAMPLE, add_special_tokens=False) if token < vocab_size][:_MOST]
    return ids if len(ids) >= 8 else [number * 7919 % vocab_size for number in range(12)]


@torch.no_grad()
def agrees(model: PreTrainedModel, fast: Forward, ids: list[int]) -> bool:
    """Whether the final hidden states of `fast` are those of the model but for rounding."""
    device = model.get_input_embeddings().weight.device
    ids_1T = torch.tensor([ids], device=device)
    positions_1T = torch.arange(len(ids), device=device)[None]
    fast.reserve(len(ids))
    return is_near(model, fast.hidden(ids_1T, positions_1T, DynamicCache(config=model.config), None), ids)


@torch.no_grad()
def is_near(model: PreTrainedModel, of_fast: Tensor, ids: list[int]) -> bool:
    """Whether these final hidden states [1, T, D] of a text are those of the model but for rounding."""
    ids_1T = torch.tensor([ids], device=of_fast.device)
    positions_1T = torch.arange(len(ids), device=of_fast.device)[None]
    of_model = model.base_model(input_ids=ids_1T, use_cache=False).last_hidden_state
    if of_model.dtype in (torch.float32, torch.float64):
        return _error(of_fast, of_model) <= _TOLERANCE
    if not all(parameter.is_floating_point() for parameter in model.parameters()):
        return _error(of_fast, of_model) <= _UNKNOWN
    truth = _in_float32(model.base_model, ids_1T, positions_1T)
    return _error(of_fast, truth) <= max(_ROOM * _error(of_model, truth), _LEAST)


@torch.no_grad()
def is_same_but_for_4_bits(model: PreTrainedModel, of_fast: Tensor, ids: list[int]) -> bool:
    """The same of weights that were brought to 4 bits: rounding in every layer, not another computation."""
    of_model = model.base_model(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state
    return _error(of_fast, of_model) <= _UNKNOWN


def _error(found: Tensor, truth: Tensor) -> float:
    difference = (found.double() - truth.double()).square().mean().sqrt()
    return float(difference / truth.double().square().mean().sqrt().clamp(min=1e-6))


def _in_float32(inner: Any, ids_1T: Tensor, positions_1T: Tensor) -> Tensor:
    """The final hidden states [1, T, D] of a Llama-like model, its layers copied to float32 one by one."""
    x_1TD = inner.embed_tokens(ids_1T).float()
    rope = copy.deepcopy(inner.rotary_emb).float()(x_1TD, positions_1T)
    T = ids_1T.shape[1]
    mask_11TT = x_1TD.new_full((T, T), torch.finfo(torch.float32).min).triu(1)[None, None]
    for layer in inner.layers:
        out = copy.deepcopy(layer).float()(
            x_1TD, attention_mask=mask_11TT, position_ids=positions_1T, position_embeddings=rope
        )
        x_1TD = out[0] if isinstance(out, tuple) else out
    return copy.deepcopy(inner.norm).float()(x_1TD)
