"""Keys and values of a model, as it writes them: what a config says of them can be a leftover that its family does not
read, or be told in a way of its own (one key for all heads, a projection that is narrower)."""

import torch
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel

from euryale.errors import UserError


@torch.no_grad()
def written_by(model: PreTrainedModel, path: str) -> PreTrainedConfig:
    """What a KVCache asks: layers, heads of keys and their width, seen on one token.

    Raises UserError where keys and values, or layers, differ in shape.
    """
    cache = DynamicCache()
    ids_11 = torch.zeros(1, 1, dtype=torch.long, device=model.get_output_embeddings().weight.device)
    model.base_model(input_ids=ids_11, past_key_values=cache, use_cache=True)
    shapes = [tuple(kept.shape) for layer in cache.layers for kept in (layer.keys, layer.values)]
    if len(set(shapes)) != 1:
        raise UserError(
            f"base.path={path}: {type(model).__name__} keeps keys and values of different shapes "
            f"({', '.join(map(str, sorted(set(shapes))))}), which one cache cannot hold. docs/families.md lists what "
            "works."
        )
    _, num_heads, _, head_dim = shapes[0]
    return PreTrainedConfig(num_hidden_layers=len(cache.layers), num_attention_heads=num_heads, head_dim=head_dim)
