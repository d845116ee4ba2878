"""Matrices of the heads, laid out for drafting one level at a time."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import silu

from euryale.base.base import Base
from euryale.base.compiled_llama import CompiledLlama
from euryale.decoding.drafters.interface import DraftInput
from euryale.decoding.drafters.ngram_index import of_slots
from euryale.heads.blocks import HeadBody, corrected
from euryale.heads.heads import Heads
from euryale.kernels.cpu_matrix import CpuLinear
from euryale.kernels.large_pages import LargePages
from euryale.kernels.packed_linear import Linear, packed
from euryale.kernels.rms_norm import normalise

_LARGE = 256  # width of the base from which matrices of heads are worth another layout
_TAKES_CORRECTION_IN = 1 << 22  # numbers of an output matrix up to which each head may have one for itself
_TABLE_ENTRIES = 1 << 25  # numbers of an embedding table that are kept a second time, normalised


class Entry(NamedTuple):
    """What a step's hidden state and root bring to the heads, in the dtype they are asked in."""

    hidden_B1D: Tensor
    inner_BKF: Tensor  # the first matrix of every head, without the path


class TokenTable:
    """Tokens as heads read them: normalised embeddings, all of them made once where that is small enough to keep."""

    @torch.no_grad()
    def __init__(self, base: Base, dtype: torch.dtype) -> None:
        self._base, self._dtype = base, dtype
        self._table_VD: Tensor | None = None
        if base.vocab_size * base.hidden_size <= _TABLE_ENTRIES:
            whole_VD = self._embed(torch.arange(base.vocab_size, device=base.device))
            self._table_VD = torch.cat([whole_VD, torch.zeros_like(whole_VD[:1])])  # its last row is that of no token

    def __call__(self, tokens_x: Tensor) -> Tensor:
        """[...] -> [..., D]; zeros for -1."""
        if self._table_VD is not None:
            return self._table_VD[tokens_x]
        return self._embed(tokens_x.clamp(min=0)).masked_fill(tokens_x[..., None] < 0, 0)

    def _embed(self, tokens_x: Tensor) -> Tensor:
        return normalise(self._base.embed(tokens_x)).to(self._dtype)


class HeadMatrices:
    """The heads, ready to be asked one level at a time: one set for all trees.

    The fast twin of `Heads.head_hidden`: the part of every first matrix that reads the hidden state and the root is
    one product for all heads, and each level adds only what its path brings. Everything is in the base's dtype, or in
    bfloat16 where the processor multiplies it: a guess needs no more, and half as much is read. Where the base is read
    by compiled products the heads are too, most in 4 or 8 bits, and CompiledHeads asks all levels in one call.
    """

    @torch.no_grad()
    def __init__(self, base: Base, heads: Heads) -> None:
        self.base = base
        self.dtype = draft_dtype(base)
        self.bits, self._memory = _compiled_bits(base), LargePages()
        self.reads_path = heads.config.reads_path
        self.induction, self.num_states = heads.config.induction, heads.num_states
        self.draft_ids, self.num_candidates = heads.draft_ids, heads.num_candidates
        self.reads_root = heads.config.root_token
        self._embed = TokenTable(base, self.dtype) if self.reads_root else None
        self._source = heads
        K, D = heads.num_heads, heads.hidden_size
        firsts = [heads.blocks(k)[0] for k in range(K)]
        with_root = [
            torch.cat([f.hidden_in.weight] + ([f.tokens_in.weight[:, :D]] if f.tokens_in is not None else []), 1)
            for f in firsts
        ]
        self._entry_weight_OC = torch.cat(with_root).to(self.dtype)
        self._entry_bias_O = torch.cat([f.hidden_in.bias for f in firsts]).to(self.dtype)
        self.entries: dict[int, Linear] = {}  # by number of heads
        after_root = [None if f.tokens_in is None else f.tokens_in.weight[:, D:] for f in firsts]
        self._found_KVF = self._tables_of_found(after_root) if self.induction and not self.bits else None
        if self._found_KVF is not None:
            after_root = [None if weight_FC is None else weight_FC[:, :-D] for weight_FC in after_root]
        # What every first block makes of the tokens after the root; None: it reads none.
        self.paths = [
            None if weight_FC is None or not weight_FC.shape[1] else self._product(weight_FC)
            for weight_FC in after_root
        ]
        self.bodies = [
            [Finish(body, self._product, is_first=layer == 0) for layer, body in enumerate(heads.blocks(k))]
            for k in range(K)
        ]
        if heads.config.output == "shared":
            self.outputs: list[Callable[[Tensor], Tensor]]
            self.outputs = [self._product(heads.draft_weight(0, base.lm_head_weight))] * K  # one copy serves all
        elif heads.config.output == "own":
            self.outputs = [self._product(heads.draft_weight(k, base.lm_head_weight)) for k in range(K)]
        else:
            self.outputs = self._corrected_outputs(base.lm_head_weight, K)

    def _product(self, weight_OI: Tensor, bias_O: Tensor | None = None) -> Linear:
        if self.bits:
            return CpuLinear(weight_OI, self.bits, bias_O, self._memory)
        return packed(weight_OI.to(self.dtype).contiguous(), None if bias_O is None else bias_O.to(self.dtype))

    def _tables_of_found(self, after_root: Sequence[Tensor | None]) -> list[Tensor] | None:
        """For each head what every token brings that followed earlier, [V + 1, F], -1 zeros; None: too much to keep."""
        D, V = self._source.hidden_size, self.base.vocab_size
        weights = [weight_FC[:, -D:].to(self.dtype) for weight_FC in after_root if weight_FC is not None]
        if self._embed is None or sum(map(Tensor.numel, weights)) // D * V > _TABLE_ENTRIES:
            return None
        tokens_V = torch.cat([torch.arange(V), torch.tensor([-1])]).to(self.base.device)
        return [torch.nn.functional.linear(self._embed(tokens_V), weight_FD) for weight_FD in weights]

    def _corrected_outputs(self, lm_head_weight_VD: Tensor, num_heads: int) -> list[Callable[[Tensor], Tensor]]:
        """Each head's output. Small matrices take the correction in: one product instead of three."""
        heads, outputs = self._source, list[Callable[[Tensor], Tensor]]()
        take_in = heads.num_candidates * heads.hidden_size <= _TAKES_CORRECTION_IN
        shared = None if take_in else self._product(heads.draft_parts(0, lm_head_weight_VD)[0])
        for k in range(num_heads):
            correction = heads.correction(k)
            assert correction is not None
            weight_VD, widen_VR = heads.draft_parts(k, lm_head_weight_VD)
            if shared is None:
                outputs.append(self._product(corrected(weight_VD, widen_VR, correction.narrow.weight)))
            else:
                outputs.append(Corrected(shared, self._product(correction.narrow.weight), self._product(widen_VR)))
        return outputs

    @torch.no_grad()
    def prepare(self, num_heads: int) -> None:
        """Lays out the first matrices of so many heads as one product, [C, and D for the root] -> [K x F].

        On a GPU it is a view of those of all heads; on a CPU each number of heads needs a layout of its own.
        """
        if num_heads and num_heads not in self.entries:
            F = len(self._entry_bias_O) // self._source.num_heads
            weight_OC, bias_O = self._entry_weight_OC[: num_heads * F], self._entry_bias_O[: num_heads * F]
            self.entries[num_heads] = self._product(weight_OC, bias_O)

    def enter(self, draft_input: DraftInput, num_heads: int) -> Entry:
        """What hidden state and root bring to the first `num_heads` heads (`prepare`d before); once a step."""
        states_BC = draft_input.hidden_BD.to(self.dtype)
        reads_BC = states_BC if self._embed is None else torch.cat([states_BC, self._embed(draft_input.root_B)], -1)
        inner_BKF = self.entries[num_heads](reads_BC).unflatten(-1, (num_heads, -1))
        return Entry(states_BC[:, None, : self.base.hidden_size], inner_BKF)

    def logits(self, k: int, entry: Entry, path_BPC: Tensor | None, found_BP: Tensor | None = None) -> Tensor:
        """Head k's logits [B, P, V] over the draft vocabulary.

        path_BPC: embeddings of each parent's path below the root, side by side; None at the root and where the heads
        do not read it. found_BP: with `induction` what followed each path's end earlier (-1: nothing).
        """
        inner_BPF = entry.inner_BKF[:, k : k + 1]
        path = self.paths[k]
        if found_BP is not None and self._found_KVF is not None:
            inner_BPF = inner_BPF + self._found_KVF[k][found_BP]
        elif found_BP is not None and self._embed is not None:
            found_BPD = self._embed(found_BP)
            path_BPC = found_BPD if path_BPC is None else torch.cat([path_BPC, found_BPD], -1)
        if path_BPC is not None and path is not None:
            inner_BPF = inner_BPF + path(path_BPC)
        x_BPD = entry.hidden_B1D
        for layer, body in enumerate(self.bodies[k]):
            x_BPD = body(x_BPD, inner_BPF if layer == 0 else None)
        return self.outputs[k](x_BPD)

    def extend(self, path_BPC: Tensor | None, slots: Tensor, tokens_BP: Tensor) -> Tensor | None:
        """The paths one token longer: `slots` says whose path each token continues ([P], or [B, P] by row)."""
        if not self.reads_path or self._embed is None:
            return None
        new_BPD = self._embed(tokens_BP)
        if path_BPC is None:
            return new_BPD
        return torch.cat([of_slots(path_BPC, slots), new_BPD], -1)


class Finish:
    """A head body over products."""

    def __init__(self, body: HeadBody, product: Callable[..., Linear], is_first: bool) -> None:
        """is_first: its first matrix is asked with those of the other heads (HeadMatrices.enter)."""
        self.out = None if body.out is None else product(body.out.weight)
        self.entry = None if is_first else product(body.hidden_in.weight, body.hidden_in.bias)
        self.is_residual = body.residual

    def __call__(self, x: Tensor, inner: Tensor | None) -> Tensor:
        if inner is None:
            assert self.entry is not None, "the first body is given what it reads"
            inner = self.entry(x)
        inner = silu(inner)
        answer = inner if self.out is None else self.out(inner)
        return x + answer if self.is_residual else answer


class Corrected:
    """The base's output and a correction of low rank, as products."""

    def __init__(self, shared: Linear, narrow: Linear, widen: Linear) -> None:
        self.shared, self.narrow, self.widen = shared, narrow, widen

    def __call__(self, x: Tensor) -> Tensor:
        return self.shared(x) + self.widen(self.narrow(x))


def _compiled_bits(base: Base) -> int:
    """Bits of a weight in the compiled products, where the base is read by them; else 0.

    A guess needs no more than 8, and a quarter of float32 is read. 4 lose some guesses (SmolLM2 with 8 nodes: 2%): more
    than a step in 16 bits gains, and less than one in 4 bits does. A narrow base is in the nearest cache anyway.
    """
    if not isinstance(base.forward(), CompiledLlama):
        return 0
    if base.hidden_size < _LARGE:
        return 32 if base.dtype == torch.float32 else 8
    return 4 if base.quantization == "int4" else 8


def bytes_of_a_number(base: Base) -> float:
    """What drafting reads for a number of a matrix of the heads."""
    bits = _compiled_bits(base)
    of_bits = {4: 0.625, 8: 1.125, 32: 4.0}  # in 4 and 8 blocks of 32 with two numbers of 16 bits
    return of_bits.get(bits, float(draft_dtype(base).itemsize))


def draft_dtype(base: Base) -> torch.dtype:
    """The dtype that heads are asked in: for matrices worth it (packed_linear.py) bfloat16, where that is quick."""
    is_large = base.hidden_size >= _LARGE
    is_quick = is_large and base.device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if base.dtype == torch.float32 and is_quick else base.dtype
