"""CPU time of a step's forward and logits: the fast forward against itself with torch's own attention and row counts
("plain"), and where a base has it the compiled forward, in its dtype and in 4 bits.

    python tests/step_times.py BASE DTYPE CONTEXT ROUNDS [ROWS] [NODES,NODES,...]

All ways read the same random keys and trees in turns, so a neighbour on the machine slows all; medians of CPU time.
"""

import random
import sys
import time
from statistics import median

import torch
from torch import Tensor

from euryale.base.base import Base, load_base
from euryale.base.compiled_llama import CompiledLlama, why_not
from euryale.base.config import BaseConfig
from euryale.base.fast_llama import FastLlama
from euryale.base.forward import Forward
from euryale.decoding.kv_cache import KVCache, TreeMask

DEPTH = 4
CALLS = 8  # of each way a round; the first is left out


def tree_of(num_nodes: int) -> Tensor:
    """True where a node sees a node [1, N, N]."""
    rng = random.Random(num_nodes)
    paths = [[0]]
    while len(paths) < num_nodes:
        parent = rng.choice(paths)
        if len(parent) <= DEPTH:
            paths.append([*parent, len(paths)])
    seen_1NN = torch.zeros(1, num_nodes, num_nodes, dtype=torch.bool)
    for node, path in enumerate(paths):
        seen_1NN[0, node, path] = True
    return seen_1NN


class Way:
    """One forward over rows of equal length."""

    def __init__(self, base: Base, forward: Forward, num_rows: int, num_slots: int) -> None:
        forward.reserve(num_slots)
        self._forward = forward
        self._cache = KVCache(base.model.config, num_rows, num_slots, base.dtype, base.device)
        self._cache.kv.normal_(generator=torch.Generator().manual_seed(0))
        self._masks: dict[int, TreeMask] = {}

    @torch.inference_mode()
    def seconds(self, ids_BN: Tensor, seen_1NN: Tensor, length: int) -> float:
        """CPU time of one pass after `length` committed tokens."""
        B, N = ids_BN.shape
        mask = self._masks.setdefault(N, TreeMask(N, self._cache.num_slots, self._cache.kv.dtype, "cpu"))
        start = time.process_time()
        self._cache.lengths = [length] * B
        self._cache.begin(N)
        positions_1N = seen_1NN.sum(-1) - 1 + length
        hidden_BND = self._forward.hidden(ids_BN, positions_1N, self._cache, mask.of(self._cache, seen_1NN))
        self._forward.logits(hidden_BND)
        return time.process_time() - start


def main() -> None:
    path, dtype, context, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    num_rows = int(sys.argv[5]) if len(sys.argv) > 5 else 1
    counts = [int(n) for n in sys.argv[6].split(",")] if len(sys.argv) > 6 else [1, 4, 8, 16, 32, 64]
    base = load_base(BaseConfig(path=path, dtype=dtype))
    exact, plain = FastLlama(base.model), FastLlama(base.model)
    plain._is_exact_attention = False
    forwards: dict[str, Forward] = {"plain": plain, "exact": exact}
    if why_not(base.model.config, base.device, base.dtype) is None:
        bits = 16 if base.dtype == torch.bfloat16 else 32
        forwards |= {"compiled": CompiledLlama(base.model, bits), "int4": CompiledLlama(base.model, 4)}
    ways = {name: Way(base, forward, num_rows, context + max(counts)) for name, forward in forwards.items()}
    if not exact.is_exact:
        print("exactness is not proven on this machine")
    trees = {n: (torch.randint(base.vocab_size, (num_rows, n)), tree_of(n)) for n in counts}
    found: dict[tuple[str, int], list[float]] = {(name, n): [] for name in ways for n in counts}
    for number in range(rounds + 1):
        for n in counts:
            for call in range(CALLS):
                length = context - 16 + (number * CALLS + call) % 16
                for name in list(ways)[:: 1 if call % 2 else -1]:
                    seconds = ways[name].seconds(*trees[n], length)
                    if number and call:
                        found[name, n].append(1000 * seconds)
    print(f"{path} {dtype}, {context} tokens, {num_rows} rows, {torch.get_num_threads()} threads")
    for n in counts:
        parts = []
        for name in ways:
            ratio = median(b / a for a, b in zip(found["plain", n], found[name, n], strict=True))
            over = median(found[name, n]) / median(found[name, counts[0]])
            parts.append(
                f"{name} {median(found[name, n]):7.2f} ms ({ratio:.2f} of plain, t(n)/t({counts[0]}) {over:.2f})"
            )
        print(f"n {n:3d}: {', '.join(parts)}")


if __name__ == "__main__":
    main()
