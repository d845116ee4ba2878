"""Which forward pass decoding takes, and the refusal of what cannot run, before weights take memory.

    kernels       KernelLlama, through the kernel registry: on a GPU, or where base.backend names a backend
    fast forward  FastLlama: on a CPU, and on a GPU for sizes that no kernel takes
    compiled      CompiledLlama: on a CPU where a C++ compiler is, in float32, bfloat16 and int4
    transformers  PlainForward: other families, and where a faster one does not agree with it; ParallelForward: a base
                  that is divided over several processes

Each of the first three is compared with the model on a few tokens before it is used (forward_check.py).
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from subprocess import SubprocessError
from typing import NamedTuple

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from euryale.base.compiled_llama import CompiledLlama, check_int4, why_not
from euryale.base.config import FAMILIES, BaseConfig
from euryale.base.fast_llama import fast_forward, fits, is_known
from euryale.base.forward import Forward, PlainForward
from euryale.base.forward_check import is_near, is_same_but_for_4_bits
from euryale.base.kernel_layer import backend_for, layer_kernels
from euryale.base.kernel_llama import KernelLlama
from euryale.base.plain_matrices import has_plain_matrices
from euryale.base.tensor_parallel import ParallelForward
from euryale.errors import UserError, check_option
from euryale.kernels.backends import BACKENDS
from euryale.kernels.cpu.compile import load_library, why_one_thread
from euryale.kernels.packed_linear import has_room
from euryale.kernels.registry import find

log = logging.getLogger(__name__)


class ForwardSettings(NamedTuple):
    """The settings of BaseConfig that decide."""

    forward: str = "auto"
    backend: str = "auto"
    nf4_runtime: str = "auto"
    tensor_parallel: int = 1
    cuda_graphs: bool = True
    is_int4: bool = False

    @staticmethod
    def of(config: BaseConfig) -> "ForwardSettings":
        """Raises UserError for unknown names and for settings that exclude each other."""
        settings = ForwardSettings(
            config.forward, config.backend, config.nf4_runtime, config.tensor_parallel, config.cuda_graphs,
            config.quantization == "int4",
        )  # fmt: skip
        config.check()
        check_option("base.backend", settings.backend, ("auto", *BACKENDS))
        if settings.backend != "auto" and settings.forward != "auto":
            raise UserError(
                f"base.forward must be auto with base.backend={settings.backend}; got {settings.forward}. The kernels "
                "are a forward of their own, whose sums are not proven equal in every tree. Leave one of them out."
            )
        return settings

    def check(self, of_base: PreTrainedConfig, device: torch.device, dtype: torch.dtype) -> None:
        """Raises UserError where the backend that is named, or int4, cannot run this base, by its config alone."""
        if self.is_int4:
            check_int4(of_base, device, dtype)
            return
        if self.backend == "auto":
            if self.nf4_runtime == "kernel" and device.type != "cuda":
                raise UserError(
                    f"base.nf4_runtime must be auto, expand or bnb where no kernels run; got kernel on {device}. Use "
                    "expand, or name base.backend."
                )
            return
        if not is_known(of_base):
            raise UserError(
                f"base.backend must be auto for model_type={of_base.model_type}; got {self.backend}. The kernel "
                f"forward knows {', '.join(FAMILIES)}."
            )
        width, head_size, group_size = _sizes(of_base)
        with _named_in_full():
            layer_kernels(device, self.backend, dtype, width, head_size, find)
            name = backend_for("tree_attention", self.backend)
            find("tree_attention", device, name, dtype=dtype, head_size=head_size, group_size=group_size)

    def check_tree(self, device: torch.device, num_nodes: int, max_depth: int) -> None:
        """Raises UserError where the backend that is named does not take trees of this size."""
        if self.backend == "auto":
            return
        with _named_in_full():
            for kernel in ("tree_attention", "accept_walk", "kv_commit"):
                sizes = {"num_nodes": num_nodes} | ({"depth": max_depth} if kernel == "tree_attention" else {})
                find(kernel, device, backend_for(kernel, self.backend), **sizes)


@contextmanager
def _named_in_full() -> Iterator[None]:
    """The registry knows a backend; a user knows base.backend."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace("backend=", "base.backend=")) from error


def choose_forward(model: PreTrainedModel, sample: list[int], settings: ForwardSettings) -> Forward:
    """The forward of this model. Raises UserError where kernels that are named do not fit or do not agree with it."""
    if settings.tensor_parallel > 1:
        return ParallelForward(model)
    if settings.is_int4:
        return _in_4_bits(model, sample)
    if settings.forward == "plain":
        return PlainForward(model)
    if settings.backend != "auto":
        return _named(model, sample, settings)
    if (kernels := _kernels_of_a_card(model, sample, settings)) is not None:
        return kernels
    if (compiled := _compiled(model, sample)) is not None:
        return compiled
    return fast_forward(model, sample, settings.nf4_runtime == "expand") or PlainForward(model)


def _compiled(model: PreTrainedModel, sample: list[int]) -> CompiledLlama | None:
    """None: a dtype, family or processor for which the fast forward is kept, or no C++ compiler."""
    weight = model.get_input_embeddings().weight
    is_fit = why_not(model.config, weight.device, weight.dtype) is None
    if not is_fit or not has_plain_matrices(model) or not has_room(model):
        return None
    is_half = weight.dtype == torch.bfloat16
    if is_half and torch.cpu._is_amx_tile_supported():  # oneDNN's products use it, the compiled ones do not
        return None
    try:
        if torch.get_num_threads() > 1 and (reason := why_one_thread()):
            log.info("the fast forward: the compiled one would run on one thread, because %s", reason)
            return None
        compiled = CompiledLlama(model, 16 if is_half else 32)
    except UserError as error:
        log.info("the fast forward goes without compiled C++, which would be quicker: %s", error)
        return None
    if is_near(model, compiled.read_sample(sample), sample):
        return compiled
    log.warning("the compiled forward does not agree with %s on this machine", type(model).__name__)
    return None


def _in_4_bits(model: PreTrainedModel, sample: list[int]) -> CompiledLlama:
    weight = model.get_input_embeddings().weight
    check_int4(model.config, weight.device, weight.dtype)
    try:
        load_library()
    except UserError as error:
        raise UserError(f"base.quantization=int4: {error} Or leave base.quantization=int4 out.") from error
    fast = CompiledLlama(model, 4)
    if torch.get_num_threads() > 1 and (reason := why_one_thread()):
        log.warning("the compiled forward runs on one thread, because %s", reason)
    if not is_same_but_for_4_bits(model, fast.read_sample(sample), sample):
        raise UserError(
            f"base.quantization=int4: in 4 bits {type(model).__name__} is no longer the same model (its states differ "
            "by more than half). Use base.quantization=none."
        )
    return fast


def _named(model: PreTrainedModel, sample: list[int], settings: ForwardSettings) -> KernelLlama:
    embeddings = model.get_input_embeddings().weight
    settings.check(model.config, embeddings.device, embeddings.dtype)
    assert fits(model), "settings.check has seen its config"
    kernels = KernelLlama(model, settings.backend, settings.nf4_runtime)
    if not is_near(model, kernels.read_sample(sample), sample):
        raise UserError(
            f"base.backend={settings.backend}: the kernels do not agree with {type(model).__name__} on this machine. "
            "Use base.backend=auto."
        )
    return kernels


def _kernels_of_a_card(model: PreTrainedModel, sample: list[int], settings: ForwardSettings) -> KernelLlama | None:
    """None: no GPU, no kernel for these sizes, or what `_checked` refuses."""
    embeddings = model.get_input_embeddings().weight
    if embeddings.device.type != "cuda" or settings.forward != "auto" or not fits(model):
        return None
    _, head_size, group_size = _sizes(model.config)
    attention = find(
        "tree_attention", embeddings.device, dtype=embeddings.dtype, head_size=head_size, group_size=group_size
    )
    if attention.backend == "torch":
        log.info("base.backend=auto: torch's own operations instead of kernels, because %s", attention.reason)
        return None
    return _checked(model, sample, settings)


def _checked(model: PreTrainedModel, sample: list[int], settings: ForwardSettings) -> KernelLlama | None:
    """None, and a warning: the kernels do not run, or do not say what the model says."""
    try:
        kernels = KernelLlama(model, "auto", settings.nf4_runtime)
        hidden = kernels.read_sample(sample)
    except _kernel_errors() as error:
        reason = str(error).partition("\n")[0]
        log.warning("the kernels do not run on this machine (%s); decoding goes without", reason)
        return None
    if is_near(model, hidden, sample):
        return kernels
    log.warning("the kernels do not agree with %s on this machine; decoding goes without", type(model).__name__)
    return None


def _kernel_errors() -> tuple[type[Exception], ...]:
    """What compiling and calling a kernel raises: no C compiler, a driver that is too old, memory that is too short.

    Triton has errors of its own, which are known once it was imported.
    """
    triton = sys.modules.get("triton.errors")
    of_triton = () if triton is None else (triton.TritonError,)
    return (RuntimeError, OSError, SubprocessError, UserError, *of_triton)


def _sizes(config: PreTrainedConfig) -> tuple[int, int, int]:
    """Width, head width, query heads of a key/value head."""
    text = config.get_text_config()
    num_heads = text.num_attention_heads
    num_kv_heads = getattr(text, "num_key_value_heads", None) or num_heads
    return text.hidden_size, getattr(text, "head_dim", None) or text.hidden_size // num_heads, num_heads // num_kv_heads
