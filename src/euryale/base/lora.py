"""LoRA adapters of a frozen base, 4-bit ones included.

LoRA (Hu et al. 2021) on its linear layers, by peft: y = W x + alpha / rank * B A x, where W stays as it is and B
starts at zero. The layers are put into the loaded model itself, so everything that runs the model runs them too;
switched off, the model is the base as it was: teacher and student are one model in memory.

`adapter/` in a checkpoint is peft's own format, and its base.json says which base it belongs to.
"""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from euryale.base.base import Base
from euryale.base.config import ALL, LoraConfig
from euryale.base.identity import check_same_base
from euryale.errors import UserError
from euryale.system.files import json_text, read_json, write_atomically
from euryale.system.tensor_files import check_finite, read_tensors

FOLDER = "adapter"
_WEIGHTS = "adapter_model.safetensors"
_SETTINGS = "adapter_config.json"
_BASE = "base.json"
log = logging.getLogger(__name__)


def linear_layers(model: PreTrainedModel) -> dict[str, list[nn.Linear]]:
    """The linear layers that can be adapted, by the last part of their names; not the output matrix,
    which heads and engine read as one matrix."""
    layers: dict[str, list[nn.Linear]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module is not model.get_output_embeddings():
            layers.setdefault(name.rpartition(".")[2], []).append(module)
    return layers


def chosen_targets(model: PreTrainedModel, config: LoraConfig) -> list[str]:
    """The names in linear_layers that `lora.targets` means. Raises UserError for one that matches nothing."""
    known = sorted(linear_layers(model))
    targets = known if list(config.targets) == [ALL] else sorted(set(config.targets))
    unknown = [name for name in targets if name not in known]
    if unknown:
        raise UserError(
            f"lora.targets names {', '.join(unknown)}, and {type(model).__name__} has no such linear layer to adapt. "
            f"Choose among: {', '.join(known)} (or [{ALL}] for all of them)."
        )
    return targets


def add_adapter(base: Base, config: LoraConfig, seed: int = 0) -> None:
    """Puts fresh adapters, in float32, on the layers of `base`: it says the same as before.

    Raises UserError for targets that match nothing, and without peft.
    """
    peft = _peft()
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=chosen_targets(base.model, config),
        bias="none",
        task_type="CAUSAL_LM",
        base_model_name_or_path=base.path,
        revision=base.revision,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        base.adapter = _wrap(base, settings)
    base.adapter_of = "this run"
    base.adapter.eval()
    for parameter in adapter_parameters(base).values():
        parameter.data = parameter.data.float().requires_grad_(True)


def remove_adapter(base: Base) -> None:
    """Leaves the base as it was before it had adapters."""
    if base.adapter is not None:
        base.adapter.base_model.unload()
        base.adapter = base.adapter_of = None


def adapter_parameters(base: Base) -> dict[str, nn.Parameter]:
    """The adapters' matrices by name, in the order of the layers. Raises UserError for a base without adapters."""
    if base.adapter is None:
        raise UserError("this objective trains adapters of the base; it has none. Use train/run.py lora=default.")
    return {name: parameter for name, parameter in base.model.named_parameters() if ".lora_" in name}


@contextmanager
def adapter_disabled(base: Base) -> Iterator[None]:
    """Within it the base is what it was before it had adapters."""
    assert base.adapter is not None
    with base.adapter.disable_adapter():
        yield


@contextmanager
def learning(base: Base, recompute: bool = False) -> Iterator[None]:
    """Within it a step may go through the base: adapters drop some of their inputs, and with `recompute` each layer
    keeps its input alone and is run again by the backward pass, which therefore belongs inside.

    Nothing else changes: dropout of the base itself stays off, since its teacher has none.
    """
    dropouts = [module for name, module in base.model.named_modules() if ".lora_dropout." in name]
    layers = [module for module in base.model.modules() if isinstance(module, GradientCheckpointingLayer) and recompute]
    for module in [*dropouts, *layers]:
        module.training = True
    for layer in layers:
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
    try:
        yield
    finally:
        for module in [*dropouts, *layers]:
            module.training = False
        for layer in layers:
            layer.gradient_checkpointing = False


def check_recompute(base: Base) -> None:
    """Raises UserError for a family whose layers cannot be run again by the backward pass."""
    if not any(isinstance(module, GradientCheckpointingLayer) for module in base.model.modules()):
        raise UserError(
            f"optim.gradient_checkpointing=true: {type(base.model).__name__} does not support it. Use false, and a "
            "smaller data.batch_size or data.block_size."
        )


def save_adapter(folder: Path, base: Base) -> None:
    """Writes `folder`/adapter in the base's dtype, file by file: a kill leaves files of one save or the other, all of
    which can be read."""
    peft = _peft()
    assert base.adapter is not None
    state = peft.get_peft_model_state_dict(base.adapter)
    tensors = {name: tensor.detach().to("cpu", base.dtype).contiguous() for name, tensor in state.items()}
    with write_atomically(folder / FOLDER, last=_SETTINGS) as staged:
        base.adapter.save_pretrained(str(staged), state_dict=tensors, save_embedding_layers=False)
        (staged / "README.md").unlink(missing_ok=True)  # the checkpoint has a card of its own
        (staged / _BASE).write_text(json_text(base.identity()))


def check_adapter(description: Mapping[str, Any], quantization: str, merge_adapter: bool) -> None:
    """Raises UserError, before a base is loaded, for int4 of heads whose adapter stays beside the layers.

    description: what heads.json says.
    """
    if quantization == "int4" and description.get("adapter") is not None and not merge_adapter:
        raise UserError(
            "base.quantization=int4 must have plain matrices, and these heads were trained with an adapter. Merge it "
            "(base.merge_adapter=true), or use base.quantization=none."
        )


def load_adapter(folder: Path, base: Base) -> None:
    """Puts the adapter of the checkpoint `folder` on `base`, to be used: in the base's dtype, not to be trained.

    With base.merge_adapter it is added to the weights and gone: quicker, but a 4-bit base rounds the sum to 4 bits
    again. Raises UserError for an adapter of another base, a damaged one, a divided base, and without peft.
    """
    if base.forward_settings.tensor_parallel > 1:
        raise UserError(f"base.tensor_parallel must be 1 with the adapter of {folder}: adapters are not divided.")
    peft = _peft()
    source = folder / FOLDER
    check_same_base(f"The adapters in {source}", read_json(source / _BASE), base.identity())
    read_json(source / _SETTINGS)
    try:
        settings = peft.LoraConfig.from_pretrained(str(source))
        _check_kind(settings, source / _SETTINGS, base.merge_adapter)
        settings.inference_mode = True
        adapter = _wrap(base, settings)
    except (TypeError, ValueError, KeyError) as error:  # what peft raises for settings that are not its own
        raise UserError(
            f"{source / _SETTINGS} cannot be used: {error}. Copy it again or use another checkpoint."
        ) from error
    base.adapter = adapter
    try:
        state = peft.get_peft_model_state_dict(adapter)
        tensors = read_tensors(source / _WEIGHTS, {name: tuple(tensor.shape) for name, tensor in state.items()})
        check_finite(source / _WEIGHTS, tensors)
    except UserError:
        remove_adapter(base)
        raise
    peft.set_peft_model_state_dict(adapter, tensors)
    for parameter in adapter_parameters(base).values():
        parameter.data = parameter.data.to(base.dtype, copy=True)
    adapter.eval().requires_grad_(False)
    if base.merge_adapter:
        adapter.base_model.merge_and_unload()
        base.adapter = None
        if base.quantization == "nf4":
            log.warning("the adapter was merged into nf4 weights: the sum was rounded to 4 bits again")


def _check_kind(settings: Any, file: Path, is_merged: bool) -> None:
    """Raises UserError for adapters that are no LoRA (some work on the prompt, and would be passed over), and for
    biases of their own where they are to be merged: a layer has none to add them to."""
    if settings.peft_type != "LORA":
        kind = str(settings.peft_type).rpartition(".")[2]
        raise UserError(f"{file} must be of the kind LORA; got {kind}. Merge it into its base, and give that instead.")
    if is_merged and settings.lora_bias:
        raise UserError(f"{file} has lora_bias=true, which cannot be merged. Use base.merge_adapter=false.")


def _wrap(base: Base, settings: Any) -> Any:
    """peft's PeftModel around the model; its layers now stand in the model itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks the model under a name that transformers gave up
        return _peft().PeftModel(base.model, settings)


def _peft() -> Any:
    try:
        import peft  # optional, and slow to import: only bases with adapters need it
    except ImportError as error:
        raise UserError("adapters (LoRA) need peft: pip install 'euryale[train]'.") from error
    return peft
