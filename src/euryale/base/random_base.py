"""A base of given sizes with random weights, on the device, in 4 bits too.

Its layers are made on torch's meta device, which holds nothing, and filled one by one where they are to stay, with
the random numbers that its family starts from. A matrix to be quantised is made, quantised and dropped before the next
one: what is held beyond the finished base is one matrix.
"""

import copy
import logging

import torch
from tokenizers import Tokenizer, models
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from euryale.base.base import Base, prepare_model
from euryale.base.choose_forward import ForwardSettings
from euryale.base.config import BaseConfig
from euryale.base.precision import pick_device, pick_dtype, quantization_config

NAME = "random numbers"
log = logging.getLogger(__name__)


@torch.no_grad()
def random_base(of_base: PreTrainedConfig, config: BaseConfig, seed: int = 0) -> Base:
    """A base of these sizes with random weights and a tokenizer without tokens, on the device and in the dtype and
    quantisation of `config`. Heads can be trained on it; its text means nothing. Raises
    UserError as load_base does for these three.
    """
    device = pick_device(config.device)
    dtype = pick_dtype(config.dtype, device, of_base)
    settings = ForwardSettings.of(config)
    settings.check(of_base, device, dtype)
    is_4_bit = quantization_config(config.quantization, dtype) is not None
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(copy.deepcopy(of_base), dtype=dtype)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        _fill(model, device, is_4_bit)
    if is_4_bit:
        model.is_loaded_in_4bit = True  # peft asks
    cache_config = prepare_model(model, NAME)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    log.info("base of %s: %s on %s in %s", NAME, type(model).__name__, device, "nf4" if is_4_bit else dtype)
    return Base(model, tokenizer, NAME, NAME, "nf4" if is_4_bit else "none", settings, cache_config)


def _fill(model: PreTrainedModel, device: torch.device, is_4_bit: bool) -> None:
    output = model.get_output_embeddings()
    is_tied = output.weight is model.get_input_embeddings().weight
    # By name: a list of modules would hold every matrix that was quantised.
    for name in [name for name, _ in model.named_modules()]:
        module = model.get_submodule(name)
        if is_tied and module is output:
            continue
        if not [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
            continue
        module.to_empty(device=device, recurse=False)
        model._init_weights(module)
        if is_4_bit and isinstance(module, nn.Linear) and module is not output:  # what transformers quantises
            model.set_submodule(name, _in_4_bit(module))
    model.tie_weights()


def _in_4_bit(layer: nn.Linear) -> nn.Module:
    """The same layer as transformers would load it: NF4 with double quantisation, products in the layer's dtype."""
    import bitsandbytes as bnb  # optional: only a 4-bit base needs it

    with torch.device("meta"):
        small = bnb.nn.Linear4bit(
            layer.in_features, layer.out_features, bias=layer.bias is not None, compute_dtype=layer.weight.dtype,
            compress_statistics=True, quant_type="nf4",
        )  # fmt: skip
    small.weight = bnb.nn.Params4bit(
        layer.weight.data, requires_grad=False, compress_statistics=True, quant_type="nf4", module=small
    ).to(layer.weight.device)
    small.bias = layer.bias
    return small
