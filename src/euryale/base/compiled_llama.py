"""Forward pass of the Llama family on a CPU, compiled: weights as loaded, or in 4 bits (base.quantization=int4).

All layers are one call of C++ (kernels/cpu/llama.cpp), which reads weights as fast as memory gives them and has no
Python between its products. Rows are computed apart from each other, and every node adds up what it sees in the order
of the text, so a tree gives the bits of plain decoding by construction.

In 16 bits weights, and rows before each product, are bfloat16; in 32 both are float32. In 4 bits the output matrix has
8, and rows have 8.
Embeddings, norms and biases are as loaded; keys and values are kept in the base's dtype; everything else is float32.
The transformers model keeps its own weights, for training and for what is compared with it.

Letters: B batch, N nodes or tokens, M = B x N rows, D width, E head width.
"""

import ctypes
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache

from euryale.base.fast_llama import FAMILIES, is_known, state_of
from euryale.base.plain_matrices import plain
from euryale.base.rope import half_tables
from euryale.errors import UserError
from euryale.kernels.cpu.compile import load_library
from euryale.kernels.cpu_matrix import CMatrix, CpuLinear, CpuMatrix, filled, whole_blocks
from euryale.kernels.large_pages import LargePages
from euryale.kernels.rms_norm import NORMALISE_EPS

_HEADS = (16, 32, 48, 64, 80, 96, 112, 128, 160, 192, 256)  # widths that llama.cpp is compiled for
log = logging.getLogger(__name__)


class _Layer(ctypes.Structure):
    """struct Layer of llama.cpp."""

    _fields_ = [
        *((name, CMatrix) for name in ("qkv", "out", "gate_up", "down")),
        *((name, ctypes.c_void_p) for name in ("norm_in", "norm_mlp", "q_norm", "k_norm")),
    ]


class _Model(ctypes.Structure):
    """struct Model of llama.cpp."""

    _fields_ = [
        ("layers", ctypes.POINTER(_Layer)),
        ("norm", ctypes.c_void_p),
        *((name, ctypes.c_int32) for name in ("num_layers", "D", "H", "G", "E", "F", "width", "head")),
        *((name, ctypes.c_float) for name in ("eps", "scaling", "normalise_eps")),
    ]


class _Pass(ctypes.Structure):
    """struct Pass of llama.cpp."""

    _fields_ = [
        ("cache", ctypes.c_void_p),
        *((f"{name}_stride", ctypes.c_int64) for name in ("layer", "kind", "row", "head")),
        ("mask", ctypes.c_void_p),
        *((f"mask_{name}_stride", ctypes.c_int64) for name in ("row", "node")),
        ("lengths", ctypes.POINTER(ctypes.c_int32)),
        *((name, ctypes.c_void_p) for name in ("positions", "cos", "sin")),
        ("layers", ctypes.POINTER(ctypes.c_int32)),
        ("states", ctypes.c_void_p),
        *((name, ctypes.c_int32) for name in ("B", "N", "W", "K", "is_bfloat16", "threads")),
    ]


class OneText(NamedTuple):
    """A cache of one row from its beginning, as `CompiledLlama.hidden` asks one."""

    kv: Tensor
    lengths: list[int]
    bound: int


class CompiledLlama:
    """Token ids to final hidden states and logits, for decoding only."""

    is_exact = True  # by construction

    @torch.no_grad()
    def __init__(self, model: PreTrainedModel, bits: int) -> None:
        """bits of a weight of the layers: 4, 16 or 32.

        Raises UserError: matrices that are more than themselves (adapters), no C++ compiler. What `why_not` names must
        not be given.
        """
        self._library, self._bits = load_library(), bits
        inner: Any = model.base_model
        self._model, self._inner, self._weights = model, inner, state_of(model)
        self._dtype = inner.embed_tokens.weight.dtype
        self._kept: list[CpuMatrix | Tensor] = []  # what C++ has addresses of
        memory = LargePages()
        first = inner.layers[0]
        self._embed = inner.embed_tokens
        self._width = width = inner.embed_tokens.weight.shape[1]
        self._head = head = first.self_attn.head_dim
        self._inner_width = first.mlp.gate_proj.out_features
        self._D, self._E, self._F = whole_blocks(width), _head_width(head), whole_blocks(self._inner_width)
        self._layers = (_Layer * len(inner.layers))(*(self._layer(layer, memory) for layer in inner.layers))
        [output] = plain([model.get_output_embeddings()])
        self._lm_head = CpuLinear(output.weight, max(bits, 8), output.bias, memory)
        self._c = _Model(
            self._layers, self._norm(inner.norm, self._D), len(inner.layers), self._D,
            first.self_attn.q_proj.out_features // head, first.self_attn.k_proj.out_features // head, self._E, self._F,
            width, head, inner.norm.variance_epsilon, first.self_attn.scaling, NORMALISE_EPS,
        )  # fmt: skip
        self._tables = (torch.empty(0, 0, dtype=torch.float32),) * 2
        matrices = [part for part in [*self._kept, self._lm_head.weight] if isinstance(part, CpuMatrix)]
        self.num_bytes = sum(matrix.num_bytes for matrix in matrices)  # what a step reads
        self.num_weights = sum(matrix.num_inputs * matrix.num_outputs for matrix in matrices)
        what = {4: "in 4 bits, the output matrix in 8", 16: "in bfloat16", 32: "in float32"}[bits]
        log.info("the compiled forward: layers %s, %d MB", what, self.num_bytes // 10**6)

    def _layer(self, layer: Any, memory: LargePages) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp
        width, head, E, F = self._width, self._head, self._E, self._F
        has_norms = hasattr(attention, "q_norm")
        return _Layer(
            self._packed([attention.q_proj, attention.k_proj, attention.v_proj], memory, outputs=(head, E)),
            self._packed([attention.o_proj], memory, inputs=(head, E), outputs=(width, self._D)),
            self._packed([mlp.gate_proj, mlp.up_proj], memory, outputs=(self._inner_width, F)),
            self._packed([mlp.down_proj], memory, outputs=(width, self._D)),
            self._norm(layer.input_layernorm, self._D),
            self._norm(layer.post_attention_layernorm, self._D),
            self._norm(attention.q_norm, E) if has_norms else None,
            self._norm(attention.k_norm, E) if has_norms else None,
        )

    def _packed(
        self,
        modules: Sequence[nn.Module],
        memory: LargePages,
        outputs: tuple[int, int],
        inputs: tuple[int, int] = (1, 1),
    ) -> CMatrix:
        """Linear layers that read the same rows, side by side. Runs of outputs, or inputs, are filled up (`filled`)."""
        linears = plain(modules)
        biases = [x.weight.new_zeros(x.out_features) if x.bias is None else x.bias.detach() for x in linears]
        has_bias = any(linear.bias is not None for linear in linears)
        weight_OI = filled(torch.cat([linear.weight.detach() for linear in linears]), 0, *outputs)
        bias_O = filled(torch.cat(biases), 0, *outputs) if has_bias else None
        made = CpuMatrix(filled(weight_OI, 1, *inputs), self._bits, bias_O, memory)
        self._kept.append(made)
        return made.c

    def _norm(self, norm: Any, size: int) -> int:
        weight_D = norm.weight.detach().float()
        self._kept.append(weight_D := filled(weight_D, 0, len(weight_D), size).contiguous())
        return weight_D.data_ptr()

    def is_current(self) -> bool:
        """Whether the model's weights are still those that were brought to few bits."""
        return self._weights == state_of(self._model)

    def reserve(self, num_positions: int) -> None:
        """Prepares for positions below num_positions."""
        if len(self._tables[0]) < num_positions:
            self._tables = half_tables(self._inner, num_positions)

    def hidden(
        self, ids_BN: Tensor, positions_BN: Tensor, cache: Cache, mask: Tensor | None, layers: Sequence[int] = ()
    ) -> Tensor:
        """The final hidden states [B, N, D], and after them those of `layers` (as join_states).

        `cache` is one of slots (KVCache); mask: None where one token sees all that is committed and itself.
        """
        ours: Any = cache
        kv, lengths = ours.kv, ours.lengths
        cos, sin = self._tables  # held: another thread may reserve longer ones while this pass reads
        (B, N), K = ids_BN.shape, len(layers)
        x_MD: Tensor = filled(self._embed(ids_BN.flatten()).float(), 1, self._width, self._D)
        positions_BN = positions_BN.expand(B, N).contiguous()
        states_BNC = x_MD.new_empty(B, N, (1 + K) * self._width)
        lengths_B, layers_K = (ctypes.c_int32 * B)(*lengths), (ctypes.c_int32 * K)(*layers)
        seen, row_stride, node_stride = None, 0, 0
        if mask is not None:
            assert mask.dtype == kv.dtype and mask.stride(3) == 1, "the mask has the cache's numbers, side by side"
            seen, row_stride, node_stride = mask.data_ptr(), mask.stride(0) * (len(mask) > 1), mask.stride(2)
        self._library.euryale_read(
            ctypes.byref(self._c),
            ctypes.byref(
                _Pass(
                    kv.data_ptr(), *kv.stride()[:4], seen, row_stride, node_stride, lengths_B,
                    positions_BN.data_ptr(), cos.data_ptr(), sin.data_ptr(),
                    layers_K, states_BNC.data_ptr(), B, N, ours.bound, K, kv.dtype == torch.bfloat16,
                    torch.get_num_threads(),
                )
            ),
            ctypes.c_void_p(x_MD.data_ptr()),
        )  # fmt: skip
        return states_BNC.to(self._dtype)

    def logits(self, hidden_BND: Tensor) -> Tensor:
        """Final hidden states [..., D] -> logits [..., V]."""
        return self._lm_head(hidden_BND)

    def read_sample(self, ids: list[int], layers: Sequence[int] = ()) -> Tensor:
        """The states (as `hidden`) [1, T, D] of a text from its beginning."""
        c, T = self._c, len(ids)
        self.reserve(T)
        text: Any = OneText(torch.zeros(c.num_layers, 2, 1, c.G, T, c.head, dtype=self._dtype), [0], T)
        mask = torch.full((T, T), -1.0, dtype=self._dtype).triu(1)[None, None]
        return self.hidden(torch.tensor([ids]), torch.arange(T)[None], text, mask, layers)


def why_not(of_base: PreTrainedConfig, device: torch.device, dtype: torch.dtype) -> str | None:
    """What of a base the compiled forward does not take; None: it takes it."""
    text = of_base.get_text_config()
    if device.type != "cpu":
        return f"it is of the CPU; got base.device={device}"
    if dtype not in (torch.float32, torch.bfloat16):
        return f"base.dtype must be float32 or bfloat16; got {str(dtype).removeprefix('torch.')}"
    if not is_known(of_base):
        return (
            f"the base must be of the families {', '.join(FAMILIES)} with a static rope; got "
            f"model_type={of_base.model_type}"
        )
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    if head > _HEADS[-1]:
        return f"heads must be at most {_HEADS[-1]} wide; got {head}"
    return None


def _head_width(head: int) -> int:
    """What llama.cpp is compiled for, from this width on."""
    return next(width for width in _HEADS if width >= head)


def check_int4(of_base: PreTrainedConfig, device: torch.device, dtype: torch.dtype) -> None:
    """Raises UserError for a device, family, sizes or a dtype that int4 does not take."""
    if reason := why_not(of_base, device, dtype):
        raise UserError(f"base.quantization=int4: {reason}. Use base.quantization=none.")
