"""Memory that a training run needs at its peak, estimated before a large base is loaded.

Sizes come from the base's config alone: its layers are built without memory, on torch's meta device. What is counted:

    process      on a CPU: what it holds before the base is loaded, what it grows by, and the freed blocks that it keeps
    weights      4-bit: half a byte a number, and a scale of one byte for 64 of them (double quantisation)
    packed       on a CPU: the matrices once more, in the layout and the bits that decoding multiplies with
    adapters, heads    float32, whatever the base is in
    gradients    as large as what is trained
    optimizer    two moments a number: 8 bytes, or 2 with the 8-bit optimizers
    activations  what the backward pass needs, at this batch and block length
    writing      what the text that the base writes first takes beyond all that training takes later

Activations are counted tensor by tensor for a Llama layer (they are the part that can be a third too high), those of
the heads by running them without memory, logits as chunked.py holds them. Letters as in the formulas: N tokens in a
batch, D width, F inner width, V vocabulary.
"""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from euryale.base.config import FAMILIES, LoraConfig
from euryale.base.lora import chosen_targets, linear_layers
from euryale.errors import UserError
from euryale.heads.config import HeadsConfig
from euryale.heads.heads import Heads, PackedText
from euryale.system.units import gigabytes
from euryale.training.config import ObjectiveConfig, OptimConfig
from euryale.training.objective import OBJECTIVES

_BITS_4 = 0.5 + (1 + 4 / 256) / 64  # bytes a number: nibble, 8-bit scale of 64 numbers, float32 scale of 256 scales
_INT4, _INT4_OUTPUT = 0.625, 1.125  # bytes a number of the compiled products in 4 and in 8 bits (kernels/few_bits.py)
_MOMENTS = {"adamw": 8, "muon": 8, "paged_adamw": 8, "adamw_8bit": 2, "paged_adamw_8bit": 2}
_NOISE_POSITIONS = 8  # of a row's noise that are kept (decoding/noise.py)
_PROMPT_CHUNK = 128  # tokens of a prompt that are read at once (decoding/prefill.py)
_LOGITS = 20  # bytes for a label of a chunk and a token of the vocabulary


class MemoryPlan(NamedTuple):
    """Everything that the memory of a run depends on."""

    base: PreTrainedConfig
    quantization: str
    dtype: torch.dtype
    heads: HeadsConfig
    objective: ObjectiveConfig
    lora: LoraConfig
    optim: OptimConfig
    batch_size: int
    block_size: int
    is_gpu: bool
    num_shares: int = 1  # processes that divide the base's weights among them
    process: int = 0  # bytes of this one before the base is loaded, on a CPU
    decodes: bool = False  # the base's own text is decoded: written, calibrated on, measured
    written_rows: int = 0  # answers that are written at once
    written_tokens: tuple[int, int] = (0, 0)  # of a prompt, of an answer


class Need(NamedTuple):
    """Bytes by purpose."""

    process: int
    weights: int
    packed: int
    adapters: int
    heads: int
    gradients: int
    optimizer: int
    activations: int
    writing: int

    @property
    def total(self) -> int:
        return sum(self)

    def describe(self) -> str:
        """The parts that are not nothing."""
        return ", ".join(f"{name} {gigabytes(size)}" for name, size in self._asdict().items() if size)


def estimate(plan: MemoryPlan) -> Need:
    """Bytes that a run of this plan takes. Raises UserError for lora.targets that match nothing."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(plan.base)
        trains_base = plan.objective.kind == "pretrain"
        vocab_size, hidden_size = model.get_output_embeddings().weight.shape
        heads = None if trains_base else Heads(plan.heads, hidden_size, vocab_size)
    num_heads = 0 if heads is None else _size(heads)
    num_adapters = 0
    targets: list[nn.Linear] = []
    if OBJECTIVES[plan.objective.kind].trains_adapter:
        layers = linear_layers(model)
        targets = [layer for name in chosen_targets(model, plan.lora) for layer in layers[name]]
        num_adapters = plan.lora.rank * sum(layer.in_features + layer.out_features for layer in targets)
    trained = num_heads + num_adapters + (_size(model) if trains_base else 0)
    weights = _weights(model, plan) // plan.num_shares
    of_training = {
        "adapters": 4 * num_adapters,
        "heads": 4 * num_heads,
        "gradients": 4 * trained,
        "optimizer": _MOMENTS[plan.optim.name] * trained,
        "activations": _activations(plan, heads, vocab_size, hidden_size, sum(layer.in_features for layer in targets)),
    }
    return Need(
        process=plan.process,
        weights=weights,
        packed=_packed(model, plan, vocab_size * hidden_size),
        writing=max(0, _writing(plan, vocab_size, hidden_size) - sum(of_training.values())),
        **of_training,
    )


def check_fits(plan: MemoryPlan, free: int, device: str) -> Need:
    """The estimate. Raises UserError when it is more than what is free beside the process, with the three settings
    that save most."""
    need = estimate(plan)
    if need.total - need.process <= free:
        return need
    smaller = sorted((estimate(changed).total, setting) for setting, changed in _knobs(plan).items())
    helps = [f"{setting} (then {gigabytes(size)})" for size, setting in smaller if size < need.total][:3]
    raise UserError(
        f"this run needs about {gigabytes(need.total)} ({need.describe()}), and {device} has {gigabytes(free)} free. "
        f"What saves most: {', '.join(helps)}. check_memory=false tries it anyway."
    )


def _knobs(plan: MemoryPlan) -> dict[str, MemoryPlan]:
    """Settings that may save memory, and the plan with each of them."""
    knobs = {
        f"data.batch_size={plan.batch_size // 2}": plan._replace(batch_size=plan.batch_size // 2),
        f"data.block_size={plan.block_size // 2}": plan._replace(block_size=plan.block_size // 2),
        "base.quantization=nf4": plan._replace(quantization="nf4"),
        "optim.name=adamw_8bit": plan._replace(optim=replace(plan.optim, name="adamw_8bit")),
        "optim.gradient_checkpointing=true": plan._replace(optim=replace(plan.optim, gradient_checkpointing=True)),
        "heads.output=shared": plan._replace(heads=replace(plan.heads, output="shared")),
        "heads.width=1.0": plan._replace(heads=replace(plan.heads, width=min(1.0, plan.heads.width))),
        "heads.kind=hydra": plan._replace(heads=replace(plan.heads, kind=_lighter(plan.heads.kind))),
        "lora.rank=8": plan._replace(lora=replace(plan.lora, rank=min(8, plan.lora.rank))),
        "regenerate.batch_size=32": plan._replace(written_rows=min(32, plan.written_rows)),
    }
    if plan.batch_size < 2:
        knobs.pop(f"data.batch_size={plan.batch_size // 2}")
    if plan.objective.kind == "pretrain":
        knobs.pop("base.quantization=nf4")
    return knobs


def _lighter(kind: str) -> str:
    """The kind that keeps no share of every position on every other."""
    return "hydra" if kind == "eagle" else kind


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _weights(model: nn.Module, plan: MemoryPlan) -> int:
    """bitsandbytes quantises the linear layers but the output matrix."""
    total = _size(model)
    quantised = 0
    if plan.quantization == "nf4":
        quantised = sum(x.weight.numel() for of_one in linear_layers(model).values() for x in of_one)
    return int((total - quantised) * plan.dtype.itemsize + quantised * _BITS_4)


def _packed(model: PreTrainedModel, plan: MemoryPlan, output_size: int) -> int:
    """The copies of the matrices that a fast or compiled forward reads; input embeddings have none."""
    if not plan.decodes or plan.is_gpu or plan.quantization == "nf4" or plan.base.model_type not in FAMILIES:
        return 0
    layers = sum(x.weight.numel() for of_one in linear_layers(model).values() for x in of_one)
    if plan.quantization == "int4":
        return int(_INT4 * layers + _INT4_OUTPUT * output_size)
    return (layers + output_size) * plan.dtype.itemsize


class _Widths(NamedTuple):
    """Numbers of one token in a layer."""

    queries: int
    keys: int
    inner: int


def _widths(plan: MemoryPlan, D: int) -> _Widths:
    config = plan.base.get_text_config()
    head_dim = getattr(config, "head_dim", None) or D // config.num_attention_heads
    num_kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    inner = getattr(config, "intermediate_size", None) or 4 * D
    return _Widths(config.num_attention_heads * head_dim, num_kv_heads * head_dim, inner)


def _writing(plan: MemoryPlan, V: int, D: int) -> int:
    """Keys and values, the noise of sampled tokens, and the pass that reads all prompts, which was seen to take two of
    what a layer holds."""
    rows, (prompt, answer) = plan.written_rows, plan.written_tokens
    queries, keys, inner = _widths(plan, D)
    itemsize = plan.dtype.itemsize
    cache = 2 * plan.base.get_text_config().num_hidden_layers * keys * itemsize * (prompt + answer)
    noise = 4 * _NOISE_POSITIONS * V
    reading = 2 * min(prompt, _PROMPT_CHUNK) * (4 * D + 2 * queries + 2 * keys + 3 * inner) * itemsize
    return rows * (cache + noise + reading)


def _activations(plan: MemoryPlan, heads: Heads | None, V: int, D: int, adapted_inputs: int) -> int:
    config = plan.base.get_text_config()
    N, L = plan.batch_size * plan.block_size, config.num_hidden_layers
    queries, keys, F = _widths(plan, D)
    width = 2 if plan.is_gpu and plan.optim.autocast != "none" else plan.dtype.itemsize
    mask = plan.batch_size * plan.block_size**2 * (1 + width)
    frozen_layer = N * (4 * D + 2 * queries + 2 * keys + 3 * F) * width
    # Kept for the backward pass: both norms' inputs, queries, keys, values and output of attention, and the MLP's gate,
    # activation and product; for an adapter what dropout let through, and what it drew.
    kept_layer = N * (8 * D + (2 * queries + 2 * keys + 3 * F) * width)
    kept_layer += N * adapted_inputs // L * (width + (1 if plan.is_gpu else 4)) + mask
    kept, again = 0, 0  # by all layers at once, and by the one that is run again
    if plan.objective.kind != "medusa1":
        kept, again = (L * kept_layer, 0)
        if plan.optim.gradient_checkpointing:
            kept, again = L * N * D * width, kept_layer
        kept += 2 * N * D * width  # final states, of teacher and student
    by_heads, drafted = 0, V
    if heads is not None:
        by_heads = _held_by_heads(heads, plan.batch_size, plan.block_size) + N * D * (
            heads.num_states * width + 4
        )  # and what they read, of all tokens
        if heads.layer is not None:  # scores of one depth on their way through its softmax; gradients of what it reads
            by_heads += 4 * N * 2 * (plan.block_size * heads.layer.num_attention_heads + heads.num_states * D)
        drafted = V if plan.objective.kind == "medusa2" else heads.num_candidates
        by_heads += heads.num_candidates * D * width if heads.num_candidates < V else 0
    logits = _LOGITS * min(N, plan.objective.chunk_tokens) * drafted
    # The heads' part is done with when the backward pass comes to the layers, and a pass without gradients before it.
    return mask + max(frozen_layer, kept + max(again, by_heads + logits))


def _held_by_heads(heads: Heads, batch_size: int, block_size: int) -> int:
    """Bytes that heads over such a batch take until their backward pass: what autograd keeps, what they give out, and
    the gradient of that. Counted on tensors without memory, so that it holds for any kind of heads."""
    shape, D = (batch_size, block_size), heads.hidden_size
    held: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        held[storage._cdata] = storage
        return tensor

    with torch.device("meta"):
        places = [torch.empty(shape, dtype=torch.long) for _ in range(3)]  # positions, documents, tokens
        text = PackedText(torch.empty(*shape, heads.num_states * D), torch.empty(*shape, D), *places)
        sources = [torch.empty(batch_size * block_size, dtype=torch.long)] * heads.num_heads
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            outputs = [keep(hidden_MD) for hidden_MD in heads.guesses(text, sources)]
    for tensor in (*heads.parameters(), *text, *sources):
        held.pop(tensor.untyped_storage()._cdata, None)
    return sum(storage.nbytes() for storage in held.values()) + sum(4 * output.numel() for output in outputs)
