"""How is somebody's language model loaded and asked, without changing it?

The base is an unmodified `AutoModelForCausalLM`, from a folder or the hub, in the dtype and quantisation asked
for. Everything a user can get wrong about it is found here, before its weights take memory.

Letters: B batch, T tokens, D width, V vocabulary.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from euryale.errors import UserError
from euryale.model.attention import adopt_tree_attention
from euryale.model.heads import join_states
from euryale.model.lean import Forward, LeanForward, PlainForward, lean_forward
from euryale.model.locate import PROJECT, check_folder, find_model, hub_answers
from euryale.model.numbers import keep_4bit_weights_trainable, pick_device, pick_dtype, quantization_config
from euryale.model.states import outputs_of_layers

FORWARDS = ("auto", "plain")
log = logging.getLogger(__name__)


@dataclass
class BaseConfig:
    """Which language model, and in which numbers."""

    path: str | None = "checkpoints/tiny-base"  # None: the one that a heads checkpoint names
    revision: str | None = None
    dtype: str = "auto"
    quantization: str = "none"
    device: str = "auto"
    forward: str = "auto"
    merge_adapter: bool = False


class Base:
    """A loaded base: the model, its tokenizer and the few facts the rest of the product asks for."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        path: str,
        fingerprint: str,
        quantization: str = "none",
        forward: str = "auto",
    ) -> None:
        self.quantization = quantization
        self._forward: Forward | None = PlainForward(model) if forward == "plain" else None
        self.adapter: Any = None  # peft's PeftModel around `model`, while adapters stand beside its layers
        self.adapter_of: str | None = None  # the checkpoint folder that the adapter, merged or not, came from
        self.merge_adapter = False  # an adapter that is loaded becomes part of the weights
        self.model = model
        self.tokenizer = tokenizer
        self.path = path
        self.fingerprint = fingerprint
        self.revision: str | None = getattr(model.config, "_commit_hash", None)
        config = model.config.get_text_config()
        self.hidden_size: int = config.hidden_size
        self.vocab_size: int = self.lm_head_weight.shape[0]
        self.max_length = context_length(model.config)
        self.eos_ids = eos_ids(model.generation_config, model.config)
        self.bos_id: int | None = tokenizer.bos_token_id

    @property
    def device(self) -> torch.device:
        return self.lm_head_weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of hidden states."""
        return self.lm_head_weight.dtype

    @property
    def lm_head_weight(self) -> Tensor:
        """The output matrix [V, D]."""
        return self.model.get_output_embeddings().weight

    def forward(self) -> Forward:
        """The forward pass that decoding takes: the lean one where the family has one, else the model itself."""
        if isinstance(self._forward, LeanForward) and not self._forward.is_current():
            self._forward = None
        if self._forward is None:
            self._forward = lean_forward(self.model) or PlainForward(self.model)
        return self._forward

    def logits(self, hidden_xD: Tensor) -> Tensor:
        """Final hidden states [..., D] -> logits [..., V]."""
        return self.model.get_output_embeddings()(hidden_xD)

    def embed(self, ids_x: Tensor) -> Tensor:
        """Token ids [...] -> embeddings [..., D]."""
        return self.model.get_input_embeddings()(ids_x)

    @property
    def num_layers(self) -> int:
        return int(self.model.config.get_text_config().num_hidden_layers)

    def forward_packed(
        self, ids_BT: Tensor, positions_BT: Tensor, documents_BT: Tensor, layers: Sequence[int] = ()
    ) -> Tensor:
        """One causal pass over packed documents; nobody sees another document. Returns hidden [B, T, D].

        documents_BT numbers the documents of a row; -1 is padding, which sees (and is seen by) padding alone.
        The states are those after the final norm, which heads and the output matrix read; the outputs of `layers`
        (numbered from 1) lie behind them, [B, T, (1 + len(layers)) D], as heads of several features read them.
        """
        same_BTT = documents_BT[:, :, None] == documents_BT[:, None, :]
        mask_B1TT = (same_BTT & torch.ones_like(same_BTT[0]).tril())[:, None]
        with outputs_of_layers(self.model, layers) as between:
            out = self.model.base_model(
                input_ids=ids_BT, position_ids=positions_BT, attention_mask=mask_B1TT, use_cache=False
            )
        return join_states(out.last_hidden_state, [between[layer] for layer in layers])

    def identity(self) -> dict[str, str | int | None]:
        """What a heads checkpoint remembers of its base."""
        return {
            "path": self.path,
            "revision": self.revision,
            "architecture": type(self.model).__name__,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "fingerprint": self.fingerprint,
            "quantization": self.quantization,
        }


def load_base(config: BaseConfig) -> Base:
    """Loads the base, in eval mode, with tree attention in place.

    Raises UserError: no path, no such folder or hub id; a folder without config, weights or tokenizer; an unreadable
    or cut-off file, or one that lacks tensors; a family that computes more than trees and heads can follow; a missing
    GPU.
    """
    transformers.utils.logging.disable_progress_bar()
    path, source = find_source(config)
    assert config.path is not None
    if config.forward not in FORWARDS:
        raise UserError(f"base.forward={config.forward} is not known. Choose one of: {', '.join(FORWARDS)}.")
    device = pick_device(config.device)
    dtype = pick_dtype(config.dtype, device, _read_config(config, path, source))
    quantization = quantization_config(config.quantization, dtype)
    name = "nf4" if quantization else "none"
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **source)
        model, info = AutoModelForCausalLM.from_pretrained(
            path,
            **source,
            output_loading_info=True,
            dtype=dtype,
            quantization_config=quantization,
            device_map={"": device} if quantization else None,
        )
    # transformers reports a user's mistakes (a wrong id, a damaged file, an unknown family) with any of these.
    except Exception as error:
        raise UserError(load_message(config.path, error)) from error
    if missing := sorted(info["missing_keys"]):  # transformers fills them with random numbers
        raise UserError(
            f"base.path={config.path}: the weights lack {len(missing)} tensors ({', '.join(missing[:3])} ...) that "
            "config.json calls for. Copy the model again."
        )
    if not quantization:
        model = model.to(device)
    prepare_model(model, config.path)
    base = Base(model, tokenizer, known_as(config.path, path), fingerprint(path, model.config), name, config.forward)
    base.merge_adapter = config.merge_adapter
    log.info("base %s: %s on %s in %s", config.path, type(model).__name__, base.device, base.dtype)
    return base


def prepare_model(model: PreTrainedModel, path: str) -> None:
    """What trees and training need of a model whose weights are in place. Raises UserError as adopt_tree_attention."""
    keep_4bit_weights_trainable(model)
    model.eval().requires_grad_(False)
    adopt_tree_attention(model, path)


def read_config(config: BaseConfig, is_whole: bool = True) -> PreTrainedConfig:
    """The base's own config.json; its weights are not touched, and unless `is_whole` they need not be there. Raises
    UserError as load_base does."""
    path, source = find_source(config, is_whole)
    return _read_config(config, path, source)


def find_source(config: BaseConfig, is_whole: bool = True) -> tuple[str, dict[str, Any]]:
    """A folder or hub id, and how transformers is to look for it."""
    if not config.path:
        raise UserError(
            "base.path is not set. Give base=hf base.path=FOLDER_OR_HUB_ID, or a ready-made base such as base=tiny."
        )
    path = find_model(config.path)
    is_local = Path(path).is_dir()
    if is_local:
        check_folder(Path(path), config.path, is_whole)
    return path, {"revision": config.revision, "local_files_only": is_local or not hub_answers(path, config.revision)}


def _read_config(config: BaseConfig, path: str, source: dict[str, Any]) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(path, **source)
    except Exception as error:  # as in load_base
        raise UserError(load_message(str(config.path), error)) from error


def load_message(asked: str, error: Exception) -> str:
    text = " ".join(str(error).split())
    if len(text) > 400:
        text = text[:400] + " ..."
    return (
        f"base.path={asked} could not be loaded ({type(error).__name__}): {text} "
        "If it is a hub id and this machine is offline, give a folder that holds the model instead."
    )


def known_as(asked: str, path: str) -> str:
    """The name that a checkpoint remembers: it is opened from other working folders."""
    return asked if not Path(path).is_dir() or (PROJECT / asked).is_dir() else str(Path(path).resolve())


def context_length(config: PreTrainedConfig) -> int:
    """Tokens of context. Beyond a sliding window keys would have to be forgotten: the context simply ends there."""
    text = config.get_text_config()
    return min(text.max_position_embeddings, getattr(text, "sliding_window", None) or text.max_position_embeddings)


def eos_ids(*configs: object) -> tuple[int, ...]:
    """End-of-text ids of the first config (of generation, of the model) that has any; one or a list."""
    for config in configs:
        eos = getattr(config, "eos_token_id", None)
        if eos is not None:
            return tuple(eos) if isinstance(eos, (list, tuple)) else (int(eos),)
    return ()


def fingerprint(path: str, config: PreTrainedConfig) -> str:
    """Names the weights: sizes and samples of the weight files, the same whatever dtype they are loaded in."""
    folder = Path(path)
    if not folder.is_dir():
        return f"hub:{getattr(config, '_commit_hash', None)}"
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin")):
        size = file.stat().st_size
        digest.update(f"{file.name}:{size};".encode())
        with file.open("rb") as stream:
            for part in range(8):
                stream.seek(size * part // 8)
                digest.update(stream.read(4096))
    return digest.hexdigest()[:32]
