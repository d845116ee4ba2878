"""The frozen language model: loading, checks, and what is asked of it.

The base is an unmodified `AutoModelForCausalLM`, from a folder or the hub, in the dtype and quantisation asked
for. Everything a user can get wrong about it is found here, before its weights take memory.

Letters: B batch, T tokens, D width, V vocabulary.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from euryale.base.cache_config import written_by
from euryale.base.choose_forward import ForwardSettings, choose_forward
from euryale.base.config import BaseConfig
from euryale.base.config_check import settle_leftovers
from euryale.base.families import check_family, context_length
from euryale.base.forward import Forward
from euryale.base.forward_check import sample_ids
from euryale.base.generation_defaults import tell_left_out
from euryale.base.hidden_states import join_states, outputs_of_layers
from euryale.base.locate import find_source, fingerprint, known_as, load_message, read_config_at
from euryale.base.logit_scale import move_scale
from euryale.base.precision import (
    is_stored_in_4_bits,
    keep_4bit_weights_trainable,
    multiply_stored_in,
    pick_device,
    pick_dtype,
    quantization_config,
)
from euryale.base.stored_weights import check_read, check_stored, release_files
from euryale.base.tensor_parallel import check_tensor_parallel, division, make_ends_whole
from euryale.base.token_ids import eos_ids, one_id
from euryale.base.tokenizer import load_tokenizer
from euryale.base.tree_attention import adopt_tree_attention
from euryale.errors import UserError
from euryale.system.memory import keep_freed_memory

log = logging.getLogger(__name__)


class Base:
    """A loaded base: the model, its tokenizer and the few facts the rest of the product asks for."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        path: str,
        fingerprint: str,
        quantization: str = "none",
        forward: str | ForwardSettings = "auto",
        cache_config: PreTrainedConfig | None = None,
    ) -> None:
        self.quantization = quantization
        self.forward_settings = ForwardSettings(forward) if isinstance(forward, str) else forward
        self._forward: Forward | None = None
        self.adapter: Any = None  # peft's PeftModel around `model`, while adapters stand beside its layers
        self.adapter_of: str | None = None  # the checkpoint folder that the adapter, merged or not, came from
        self.merge_adapter = False  # an adapter that is loaded becomes part of the weights
        self.model = model
        self.tokenizer = tokenizer
        self.path = path
        self.fingerprint = fingerprint
        self.revision: str | None = getattr(model.config, "_commit_hash", None)
        self.vocab_size, self.hidden_size = self.lm_head_weight.shape
        self._cache_config = cache_config
        self.max_length = context_length(model.config)
        self.eos_ids = eos_ids(self.vocab_size, model.generation_config, model.config)
        self.bos_id = one_id(self.vocab_size, tokenizer.bos_token_id)

    def __getstate__(self) -> dict[str, Any]:
        """What copy.deepcopy and pickle take: a copy finds a forward of its own, for this one may hold addresses."""
        return self.__dict__ | {"_forward": None}

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
        """The forward pass that decoding takes (choose_forward.py): a fast one where the family has one, else the
        model itself.

        That of a CPU is exact wherever that is proven. Raises UserError where forward=exact is asked for and it is not,
        and where kernels that are named cannot run.
        """
        if self._forward is not None and not self._forward.is_current():
            self._forward = None
        if self._forward is None:
            sample = sample_ids(self.tokenizer, self.vocab_size)
            self._forward = choose_forward(self.model, sample, self.forward_settings)
            if self.forward_settings.forward == "exact":
                self._check_exact(self._forward)
        return self._forward

    def _check_exact(self, forward: Forward) -> None:
        if forward.is_exact:
            return
        raise UserError(
            f"base.forward=exact must have sums that are proven not to depend on the tree; got {self.dtype} of "
            f"{type(self.model).__name__} on {self.device}, where they are not. Use base.forward=auto, or base.dtype="
            "float32 or bfloat16 on a CPU."
        )

    @property
    def is_exact(self) -> bool:
        """Whether decoding with any tree and batch is proven on this machine to give the bits of plain decoding.

        False: equality was only seen, and near-ties of logits can fall the other way.
        """
        return self.forward().is_exact

    def logits(self, hidden_xD: Tensor) -> Tensor:
        """Final hidden states [..., D] -> logits [..., V]."""
        return self.model.get_output_embeddings()(hidden_xD)

    def embed(self, ids_x: Tensor) -> Tensor:
        """Token ids [...] -> embeddings [..., D]."""
        return self.model.get_input_embeddings()(ids_x)

    @property
    def cache_config(self) -> PreTrainedConfig:
        """What a KVCache of this base is made from."""
        if self._cache_config is None:
            self._cache_config = written_by(self.model, self.path)
        return self._cache_config

    @property
    def num_layers(self) -> int:
        return int(self.model.config.get_text_config().num_hidden_layers)

    def forward_packed(
        self, ids_BT: Tensor, positions_BT: Tensor, documents_BT: Tensor, layers: Sequence[int] = ()
    ) -> Tensor:
        """One causal pass over packed documents; no token sees another document. Returns hidden [B, T, D].

        documents_BT numbers the documents of a row; -1 is padding, which sees (and is seen by) padding alone.
        The states are those after the final norm, which heads and the output matrix read; the outputs of `layers`
        (numbered from 1) follow them, [B, T, (1 + len(layers)) D], as heads of several features read them.
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
    or cut-off file, or one that lacks tensors; an unsupported family or stored quantisation; a base that its processes
    cannot divide; a missing GPU.
    """
    transformers.utils.logging.disable_progress_bar()
    path, source = find_source(config)
    assert config.path is not None
    settings = ForwardSettings.of(config)
    device = pick_device(config.device)
    if device.type == "cpu":
        keep_freed_memory()
    of_base = read_config_at(config, path, source)
    check_family(of_base, config.path)
    settle_leftovers(of_base)
    dtype = pick_dtype(config.dtype, device, of_base)
    settings.check(of_base, device, dtype)
    quantization = quantization_config(config.quantization, dtype)
    if is_stored := is_stored_in_4_bits(of_base, config.path, config.quantization):
        multiply_stored_in(of_base, dtype)
    check_tensor_parallel(config, of_base, device, is_stored or quantization is not None)
    if Path(path).is_dir():
        check_stored(Path(path), config.path, is_stored)
    name = "nf4" if quantization or is_stored else "int4" if settings.is_int4 else "none"
    division_and_dtype = division(config, dtype)
    try:
        tokenizer = load_tokenizer(path, source)
        model, info = AutoModelForCausalLM.from_pretrained(
            path,
            **source,
            config=of_base,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # check_read names them
            quantization_config=None if is_stored else quantization,
            device_map={"": device} if name == "nf4" else None,
            **division_and_dtype,
        )
        if config.tensor_parallel > 1:
            make_ends_whole(model)
        elif name != "nf4":
            release_files(model)
            model = model.to(device)
    # transformers reports a user's mistakes (a wrong id, a damaged file, an unknown family) with any of these.
    except Exception as error:
        raise UserError(load_message(config.path, error, device)) from error
    check_read(config.path, info["missing_keys"], info["mismatched_keys"], info["unexpected_keys"])
    tell_left_out(model.generation_config, config.path)
    cache_config = prepare_model(model, config.path)
    known, digest = known_as(config.path, path), fingerprint(path, model.config)
    base = Base(model, tokenizer, known, digest, name, settings, cache_config)
    base.merge_adapter = config.merge_adapter
    log.info("base %s: %s on %s in %s", config.path, type(model).__name__, base.device, base.dtype)
    if settings.backend != "auto" or settings.is_int4:
        base.forward()  # what it cannot do is said now
    return base


def prepare_model(model: PreTrainedModel, path: str) -> PreTrainedConfig:
    """What trees and training need of a model whose weights are in place. Returns what a KVCache asks.

    Raises UserError as adopt_tree_attention.
    """
    model.config.return_dict = True
    keep_4bit_weights_trainable(model)
    move_scale(model)
    model.eval().requires_grad_(False)
    return adopt_tree_attention(model, path)
