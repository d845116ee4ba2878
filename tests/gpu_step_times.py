"""Times of the engine's steps on a GPU, in 16 and 4 bits, captured and eager, for trees of 1 to 64 nodes.

    python tests/gpu_step_times.py OUTPUT.json [small]

A base of Llama-3-8B's sizes with random weights; `small` takes a tiny one, on a CPU too, to see that it runs. Drafts
are tokens without meaning on a binary tree, so a step is forward, draw, accept walk and commit. Prints a table, and
writes JSON: milliseconds a step (medians), and at one node the share of a copy's bandwidth that reading the weights
reaches. Not yet run on a GPU. Not a test file itself.
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch
from omegaconf import OmegaConf

from euryale.base.base import Base
from euryale.base.choose_forward import ForwardSettings
from euryale.base.config import BaseConfig
from euryale.base.random_base import random_base
from euryale.base.shape import ShapeConfig, config_of_shape
from euryale.decoding import step_graphs
from euryale.decoding.decoder import Decoder
from euryale.decoding.drafters.interface import Draft, Drafter, DraftInput
from euryale.decoding.request import Request
from euryale.decoding.tree.tree import Shape, Tree
from euryale.evaluation.bench_kernels import copy_bandwidth
from euryale.system.provenance import provenance

ROOT = Path(__file__).resolve().parents[1]
NODES = (1, 8, 16, 32, 64)
BURST, UNCOUNTED, BURSTS = 10, 4, 7
CONTEXT = 1000
PARTS = ("prefill", "draft", "verify", "accept", "commit")


class Way(NamedTuple):
    """How steps run."""

    name: str
    quantization: str
    settings: ForwardSettings
    is_captured: bool = True


WAYS = (
    Way("bfloat16", "none", ForwardSettings()),
    Way("bfloat16, eager", "none", ForwardSettings(), is_captured=False),
    Way("bfloat16, transformers", "none", ForwardSettings("plain")),
    Way("nf4 kernel", "nf4", ForwardSettings(nf4_runtime="kernel")),
    Way("nf4 bnb", "nf4", ForwardSettings(nf4_runtime="bnb")),
    Way("nf4 expand", "nf4", ForwardSettings(nf4_runtime="expand")),
)


class AnyTokens(Drafter):
    """A binary tree whose nodes carry the tokens after the root's."""

    is_on_device = True

    def __init__(self, base: Base, num_nodes: int) -> None:
        parents = (-1, *((node - 1) // 2 for node in range(1, num_nodes)))
        tree = Tree(parents, (0, *((node - 1) % 2 for node in range(1, num_nodes))))
        self.num_nodes, self.max_depth = num_nodes, tree.max_depth
        self._shape = Shape.of_tree(tree, base.device)
        self._offsets_N = torch.arange(num_nodes, device=base.device)
        self._vocab_size = base.vocab_size

    def propose(self, draft_input: DraftInput) -> Draft:
        return Draft((draft_input.root_B[:, None] + self._offsets_N) % self._vocab_size, self._shape)


def step_ms(base: Base, num_nodes: int, context: int, bursts: int) -> float:
    """The median of bursts of steps, each from the same context on."""
    drafter = AnyTokens(base, num_nodes)
    # Each of a burst's steps may accept a whole path.
    num_slots = context + BURST * (drafter.max_depth + 1) + num_nodes
    decoder = Decoder(
        base, drafter, 1, num_slots, dict.fromkeys(("prefill", "draft", "verify", "accept", "commit"), 0.0)
    )
    prompt = [number * 7919 % base.vocab_size for number in range(context)]
    decoder.add(0, [Request(prompt, base.tokenizer, max_ids=1 << 20)])
    times = []
    for _ in range(bursts + 1):  # the first compiles and captures
        decoder.rewind([context - 1])
        for number in range(BURST):
            if number == UNCOUNTED:
                wait(base.device)
                start = time.perf_counter()
            decoder.step()
        wait(base.device)
        times.append(1e3 * (time.perf_counter() - start) / (BURST - UNCOUNTED))
    return statistics.median(times[1:])


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def weight_bytes(base: Base) -> int:
    """What a step of one node must read: all weights but the embedding table."""
    embeddings = base.model.get_input_embeddings().weight
    read = {p.data_ptr(): p.numel() * p.element_size() for p in base.model.parameters()}
    if base.lm_head_weight is not embeddings:
        read.pop(embeddings.data_ptr())
    return sum(read.values())


def main(output: Path, is_small: bool) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sizes = OmegaConf.load(ROOT / "conf" / "shape" / f"{'tiny' if is_small else 'llama3_8b'}.yaml")
    config = BaseConfig(device=str(device), dtype="bfloat16")
    numbers = {str(name): value for name, value in sizes.items() if name != "defaults"}
    of_base = config_of_shape(ShapeConfig(**numbers), config)
    context, bursts, nodes = (40, 1, (1, 8)) if is_small else (CONTEXT, BURSTS, NODES)
    bandwidth = copy_bandwidth(device, 20)
    result: dict[str, object] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "copy_gb_per_s": round(bandwidth / 1e9, 1), "context": context, "provenance": provenance(),
    }  # fmt: skip
    rows: list[dict[str, object]] = []
    base, quantization = None, None
    for way in WAYS:
        if device.type == "cpu" and way.settings.nf4_runtime == "kernel":
            continue  # no kernels run there
        if way.quantization != quantization:
            base, quantization = None, way.quantization
            gc.collect()
            config.quantization = way.quantization
            base = random_base(of_base, config)
        assert base is not None
        one = Base(base.model, base.tokenizer, base.path, base.fingerprint, base.quantization, way.settings)
        step_graphs.EAGER_STEPS = 2 if way.is_captured else 1 << 30
        found = {n: step_ms(one, n, context, bursts) for n in nodes}
        share = weight_bytes(one) / (found[1] / 1e3) / bandwidth
        row: dict[str, object] = {"way": way.name, "ms": found}
        if way.settings.nf4_runtime != "expand":  # which reads other bytes than the model holds
            row["share_of_copy"] = round(share, 3)
        rows.append(row)
        print(f"{way.name:24}", *(f"{n}: {ms:.3f} ms" for n, ms in found.items()), f"copy x {share:.2f}", flush=True)
    output.write_text(json.dumps(result | {"ways": rows}, indent=2) + "\n")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3) or sys.argv[2:] not in ([], ["small"]):
        sys.exit("usage: python tests/gpu_step_times.py OUTPUT.json [small]")
    main(Path(sys.argv[1]), is_small=len(sys.argv) == 3)
