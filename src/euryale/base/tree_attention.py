"""Tree attention in an unmodified transformers model.

transformers lets a caller register an attention function by name. Ours takes any mask that the engine or the
trainer made (4-D, True or 0 where a query may look) as it is, and folds the query heads of one key/value head
into its rows, so that grouped-query models never repeat the cache.

Letters: B batch, H query heads, G query heads per key/value head, N queries, S keys, D head width.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import sdpa_mask

from euryale.base.cache_config import written_by
from euryale.errors import UserError
from euryale.system.memory import is_out_of_memory

ATTENTION = "euryale"


def tree_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """Scaled dot-product attention under an arbitrary mask.

    query [B, H, N, D], key and value [B, H/G, S, D], attention_mask [B or 1, 1, N, S] bool or float, or None: then
    one query sees every key, and N > 1 queries are causal over exactly N keys. Returns ([B, N, H, D], None).
    """
    if attention_mask is None and query.shape[2] > 1:
        assert query.shape[2] == key.shape[2], "a mask is needed when queries continue a cached prefix"
        out = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, dropout_p=dropout, scale=scaling, is_causal=True, enable_gqa=True
        )
    else:
        out = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, dropout_p=dropout, scale=scaling, enable_gqa=True
        )
    return out.transpose(1, 2).contiguous(), None


def use_tree_attention(model: PreTrainedModel) -> None:
    """Registers the function and switches `model` to it (idempotent)."""
    AttentionInterface.register(ATTENTION, tree_attention)
    # Without a mask function of the same name transformers drops 2-D padding masks in silence.
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    model.set_attn_implementation(ATTENTION)


@torch.no_grad()
def adopt_tree_attention(model: PreTrainedModel, path: str) -> PreTrainedConfig:
    """use_tree_attention, and the proof on a few tokens that the model still says what it said before. Returns what a
    KVCache asks (written_by).

    Trees go through our attention and heads through the output matrix alone. Raises UserError for a family that
    does more: caps or scales its logits, adds sinks or biases to its attention, or has an attention of its own; for
    one whose logits are NaN or infinite; and for a config that describes a model which cannot read.
    """
    output = model.get_output_embeddings()
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", 8)
    num_tokens = min(8, output.weight.shape[0], positions)
    ids_BT = torch.arange(num_tokens, device=output.weight.device)[None]
    with _failures_named(model, path):
        before = model(input_ids=ids_BT, use_cache=False).logits.float()
        _check_finite(model, before, path)
        use_tree_attention(model)
        after = output(model.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state).float()
        cache_config = written_by(model, path)
    # The tolerance is that of half precision; what must be found here is far larger.
    is_same = torch.allclose(before, after, rtol=0.05, atol=0.05 * before.std(correction=0).item())
    if not is_same or model.config._attn_implementation != ATTENTION:
        raise UserError(
            f"base.path={path}: {type(model).__name__} does more than plain attention and an output matrix (attention "
            "sinks or biases, scaled or capped logits), which trees and heads cannot follow. "
            "Llama, Mistral, Qwen2 and Qwen3 work."
        )
    return cache_config


@contextmanager
def _failures_named(model: PreTrainedModel, path: str) -> Iterator[None]:
    """Raises UserError for whatever transformers raises where sizes do not fit each other."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise UserError(
            f"base.path={path}: the {type(model).__name__} that config.json describes cannot read a few tokens "
            f"({type(error).__name__}: {' '.join(str(error).split())[:200]}). Correct it, or copy the model again."
        ) from error


def _check_finite(model: PreTrainedModel, logits: torch.Tensor, path: str) -> None:
    """Raises UserError for logits that are NaN or infinite, with the first weights to blame.

    Attention hides scores that are NaN: the frequencies that positions are turned by are looked at themselves.
    """
    for name, buffer in model.named_buffers():
        if name.endswith("inv_freq") and not buffer.isfinite().all():
            raise UserError(f"base.path={path}: {name} holds NaN or infinity. Correct rope_parameters in config.json.")
    if logits.isfinite().all():
        return
    broken = [name for name, weight in model.named_parameters() if not weight.isfinite().all()]
    cause = (
        f"{len(broken)} of its weights hold NaN or infinity ({broken[0]} first). Copy the model again."
        if broken
        else f"its weights are numbers, so they overflow in {model.dtype}. Use base.dtype=float32."
    )
    raise UserError(f"base.path={path}: the model answers a few tokens with NaN or infinity; {cause}")
