"""Times of whole decoding steps at the sizes of a base, with random weights: t(n) of trees of n nodes, in several ways.

Random weights cost what trained ones cost, so a machine can be judged before anything is downloaded. Where drafts are
not those of heads a step is forward, draw, accept walk and commit. transformers' `generate` runs on the same weights,
with the cache that grows and with the static one.
"""

import logging
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

from euryale.base.base import Base
from euryale.base.config import BaseConfig
from euryale.base.families import context_length
from euryale.base.precision import pick_device, pick_dtype
from euryale.base.random_base import random_base
from euryale.decoding.decoder import Decoder
from euryale.decoding.drafters.build import build_drafter
from euryale.decoding.drafters.interface import Drafter
from euryale.decoding.drafters.none import NoDrafter
from euryale.decoding.request import Request
from euryale.decoding.sampling import Sampling
from euryale.decoding.tree.tree import DynamicTree
from euryale.errors import UserError
from euryale.evaluation.bench_kernels import copy_bandwidth
from euryale.evaluation.config import StepsConfig
from euryale.evaluation.hf_baselines import generate_ids, generation_settings, transformers_attention
from euryale.evaluation.roofline import flop_rate, weights_read
from euryale.evaluation.step_ways import WAYS, AnyTokens, Way, runs_on
from euryale.heads.config import HeadsConfig
from euryale.heads.heads import Heads, build_heads
from euryale.system.memory import begin_peak, free_bytes, let_go, peak
from euryale.system.units import gigabytes

BURST, UNCOUNTED = 10, 4  # steps from one context on, of which the first are not counted
COPIES = 20
NF4_BYTES = 0.6  # of a weight, double quantisation and what stays in 16 bits included
PARTS = ("prefill", "draft", "verify", "accept", "commit")
CACHES: dict[str, dict[str, object]] = {"dynamic": {}, "static": {"cache_implementation": "static"}}
log = logging.getLogger(__name__)


def check_steps_config(config: StepsConfig, of_base: PreTrainedConfig) -> None:
    """Raises UserError for unknown ways, numbers out of range, and steps beyond the context of the base."""
    config.check()
    if unknown := [name for name in config.ways if name not in WAYS]:
        raise UserError(f"steps.ways must be of {', '.join(WAYS)}; got {unknown[0]}.")
    longest = context_length(of_base)
    if config.context_tokens + config.generate_tokens > longest:
        raise UserError(
            f"steps.context_tokens and steps.generate_tokens must fit into a context of {longest} tokens; got "
            f"{config.context_tokens} and {config.generate_tokens}. Take fewer."
        )


def check_memory(of_base: PreTrainedConfig, base: BaseConfig, config: StepsConfig) -> None:
    """Raises UserError where the weights alone take more than is free; nothing is built."""
    device = pick_device(base.device)
    ways = [WAYS[name] for name in config.ways or WAYS if runs_on(WAYS[name], device)]
    with torch.device("meta"):
        numbers = sum(p.numel() for p in AutoModelForCausalLM.from_config(of_base).parameters())
    dense = numbers * pick_dtype(base.dtype, device, of_base).itemsize
    nf4 = int(numbers * NF4_BYTES)
    by_way = [
        dense if way.quantization == "none" else nf4 + (dense if way.settings.nf4_runtime == "expand" else 0)
        for way in ways
    ]
    need, free = max(by_way, default=0), free_bytes(device)
    if need > free:
        raise UserError(
            f"the weights of steps.ways must fit into memory: at these sizes they take about {gigabytes(need)}, and "
            f"{gigabytes(free)} are free on {device}. Use shape=llama_100m, fewer layers (shape.num_layers=4), or "
            "check_memory=false."
        )


def bench_steps(
    of_base: PreTrainedConfig, of_heads: HeadsConfig, base: BaseConfig, config: StepsConfig
) -> dict[str, Any]:
    """The roofline of each quantisation, milliseconds a step of every way, and of transformers' `generate`.

    Raises UserError as check_steps_config does.
    """
    check_steps_config(config, of_base)
    device = pick_device(base.device)
    names = [name for name in config.ways or WAYS if runs_on(WAYS[name], device)]
    for name in set(config.ways) - set(names):
        log.warning("%s is left out: there is no such way on %s", name, device.type)
    result: dict[str, Any] = {
        "copy_gb_per_s": copy_bandwidth(device, COPIES) / 1e9,
        "roofline": {},
        "ways": {},
        "generate": {},
    }
    for quantization in ("none", "nf4"):
        ours = [name for name in names if WAYS[name].quantization == quantization]
        if ours:
            _bench_base(of_base, of_heads, base, config, ours, result)
        let_go(device)
    return result


def _bench_base(
    of_base: PreTrainedConfig, of_heads: HeadsConfig, settings: BaseConfig, config: StepsConfig, names: Sequence[str],
    result: dict[str, Any],
) -> None:  # fmt: skip
    """Everything that is measured on one base, which is dropped after it."""
    quantization = WAYS[names[0]].quantization
    base = random_base(of_base, BaseConfig(dtype=settings.dtype, device=settings.device, quantization=quantization))
    kind = "nf4" if quantization == "nf4" else "dense"
    num_bytes, num_weights = weights_read(base)
    ceiling = {"bytes": num_bytes, "weights": num_weights, "ms": num_bytes / result["copy_gb_per_s"] / 1e6}
    result["roofline"][kind] = ceiling | {"flops_per_s": flop_rate(base), "dtype": str(base.dtype)}
    heads = build_heads(of_heads, base.lm_head_weight).to(base.device, base.dtype).eval().requires_grad_(False)
    for name in names:
        with _kept_alive(name, result["ways"]):
            result["ways"][name] = _time_way(base, heads, WAYS[name], config, ceiling["ms"])
            log.info("%s: %s", name, ", ".join(f"{n}: {ms:.3f} ms" for n, ms in result["ways"][name]["ms"].items()))
        let_go(base.device)
    for cache, extra in CACHES.items():
        if quantization == "none" or cache == "dynamic":
            with _kept_alive(f"{kind}_{cache}", result["generate"]):
                result["generate"][f"{kind}_{cache}"] = {"ms": _generate_ms(base, config, extra)}


@contextmanager
def _kept_alive(name: str, results: dict[str, Any]) -> Iterator[None]:
    """What does not fit into memory, or what torch cannot compile, costs its own figures and no others."""
    try:
        yield
    except RuntimeError as error:
        results[name] = {"failed": str(error).partition("\n")[0]}
        log.warning("%s was not measured: %s", name, results[name]["failed"])


def _time_way(base: Base, heads: Heads, way: Way, config: StepsConfig, least_ms: float) -> dict[str, Any]:
    """least_ms: of reading the weights at a copy's speed."""
    one = Base(base.model, base.tokenizer, base.path, base.fingerprint, base.quantization, way.settings)
    begin_peak(base.device)
    ms = {num: _step_ms(one, _drafter(one, heads, way, num), config) for num in config.nodes}
    host, on_device = peak(base.device)
    row: dict[str, Any] = {
        "ms": ms,
        "of_one": {num: value / ms[min(ms)] for num, value in ms.items()},
        "peak_bytes": host if on_device is None else on_device,
    }
    if 1 in ms and way.settings.nf4_runtime != "expand":  # which reads other bytes than the model holds
        row["share_of_copy"] = least_ms / ms[1]
    return row


def _drafter(base: Base, heads: Heads, way: Way, num_nodes: int) -> Drafter:
    if num_nodes == 1:
        return NoDrafter(base)
    if way.has_heads:
        return build_drafter("heads", base, heads, DynamicTree(num_nodes, heads.num_heads))
    return AnyTokens(base, num_nodes)


def _prompt(base: Base, config: StepsConfig) -> list[int]:
    return [number * 7919 % base.vocab_size for number in range(config.context_tokens)]


def _step_ms(base: Base, drafter: Drafter, config: StepsConfig) -> float:
    """The median of bursts of steps, each from the same context on."""
    context = config.context_tokens
    # Each of a burst's steps may accept a whole path.
    num_slots = context + BURST * (drafter.max_depth + 1) + drafter.num_nodes
    decoder = Decoder(base, drafter, 1, num_slots, dict.fromkeys(PARTS, 0.0))
    decoder.add(0, [Request(_prompt(base, config), base.tokenizer, max_ids=1 << 20)])
    times = []
    for _ in range(config.repeats + 1):  # the first compiles and captures
        decoder.rewind([context - 1])
        for number in range(BURST):
            if number == UNCOUNTED:
                _wait(base.device)
                start = time.perf_counter()
            decoder.step()
        _wait(base.device)
        times.append(1e3 * (time.perf_counter() - start) / (BURST - UNCOUNTED))
    return statistics.median(times[1:])


def _generate_ms(base: Base, config: StepsConfig, extra: dict[str, object]) -> float:
    """Milliseconds a token of transformers' `generate`, the prompt's own pass left out; warm, and compiled where
    transformers compiles."""
    prompt, seconds = _prompt(base, config), {}
    with transformers_attention(base) as model:
        for num in (config.generate_tokens, 1):
            settings = generation_settings(base, Sampling(), num, min_new_tokens=num, **extra)
            for _ in range(2):
                start = time.perf_counter()
                ids = generate_ids(model, prompt, settings)
                seconds[num] = time.perf_counter() - start
            assert len(ids) == len(prompt) + num, "nothing ends the answer"
    return 1e3 * (seconds[config.generate_tokens] - seconds[1]) / (config.generate_tokens - 1)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
