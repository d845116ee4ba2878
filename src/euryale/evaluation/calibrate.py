"""Which tree is fastest with these heads, on this machine?

For deterministic candidates the walk depends only on the ranks of the true next tokens under the heads. So the base's
own text is read once, and at every position the vector of those ranks is noted. The share of positions whose vector
starts with a path is that node's chance of being accepted: no independence between heads is assumed. A child is never
likelier than its parent, hence the best n-node tree is the root and the n - 1 most frequent paths: one sort. What a
loop of steps with that tree gains is then counted along the same text (replay.py), and the time
of a real step is then measured for several n, and for small trees also at every smaller depth, since each level is
one more round of drafting. The size with the most tokens a second is kept.

Letters: B batch, T tokens, M positions, K heads, D width, V vocabulary.
"""

import logging
import statistics
import time
from collections import Counter
from typing import NamedTuple

import torch
from torch import Tensor

from euryale.base.base import Base
from euryale.data.row_prompts import Opening
from euryale.decoding.decoder import Decoder
from euryale.decoding.drafters.build import build_drafter, build_matrices
from euryale.decoding.engine import Engine
from euryale.decoding.noise import gumbel
from euryale.decoding.request import Request
from euryale.decoding.sampling import Sampling
from euryale.decoding.tree.calibration import TREE_FORMAT, Calibration
from euryale.decoding.tree.tree import Path, Tree
from euryale.errors import UserError
from euryale.evaluation.config import CalibrateConfig
from euryale.evaluation.repetition import repeated_ngram_share
from euryale.evaluation.simulate_tau import replay
from euryale.heads.heads import Heads, PackedText
from euryale.kernels.rms_norm import normalise
from euryale.system.hardware import hardware
from euryale.system.progress import Progress

log = logging.getLogger(__name__)
Size = tuple[int, int | None]  # nodes of a tree, and the depth it was held to
_SHALLOW_UP_TO = 16  # nodes; in larger trees the verifier's time hides what a level costs
_BURST = 4  # steps of one size at a time, of which the first is not counted
_CHUNK = 256  # positions whose [M, V] scores exist at a time


class Text(NamedTuple):
    """What the base wrote after one opening."""

    ids: list[int]  # the opening included
    num_prompt: int
    seed: int


def calibrate(base: Base, heads: Heads, openings: list[Opening], config: CalibrateConfig, coupled: bool = True) -> dict:
    """Counts ranks and times steps; returns the content of tree.json. coupled: as in the accept rule (AcceptConfig).

    Raises UserError for settings that cannot be, or when the base's answers are too short to count anything.
    """
    check(config)
    if not openings:
        raise UserError("calibration was given no prompts. Give prompts=FILE, or data with held-out rows.")
    entries = []
    for temperature in config.temperatures:
        texts = _write(base, openings, temperature, config)
        ranks_by_text = [rank_vectors(base, heads, text, temperature, config.max_rank, coupled) for text in texts]
        ranks = torch.cat(ranks_by_text)
        if not len(ranks):
            raise UserError(
                f"calibration needs answers of at least {heads.num_heads} tokens, and the base ended all "
                f"{len(texts)} sooner. Give other prompts, or a higher calibrate.new_tokens."
            )
        paths, probabilities = frequent_paths(ranks, config.max_rank, max(config.node_counts) - 1)
        calibration = Calibration(temperature, 1, paths, probabilities, len(ranks))
        sizes = _sizes(calibration, config.node_counts)
        trees = {size: calibration.tree_of(*size) for size in sizes}
        tau = dict(zip(sizes, replay(ranks_by_text, trees.values()), strict=True))
        step_ms = time_steps(base, heads, trees, openings[0].ids, temperature, config)
        best = max(sizes, key=lambda size: tau[size] / step_ms[size])
        answers = [text.ids[text.num_prompt :] for text in texts]
        entries.append(
            {
                **vars(calibration),
                "num_nodes": best[0],
                "max_depth": best[1],
                "tau": {str(n): tau[n, depth] for n, depth in sizes if depth is None},
                "step_ms": {str(n): step_ms[n, depth] for n, depth in sizes if depth is None},
                "shallow": [
                    {"num_nodes": n, "max_depth": depth, "tau": tau[n, depth], "step_ms": step_ms[n, depth]}
                    for n, depth in sizes
                    if depth is not None
                ],
                "repeated_8grams": repeated_ngram_share(answers),
            }
        )
        chosen = trees[best]
        log.info(
            "calibration at T = %s: %d nodes, %d deep, tau %.2f",
            *(temperature, chosen.num_nodes, chosen.max_depth, tau[best]),
        )
        if chosen.num_nodes == 1 and len(sizes) > 1:
            size = max(sizes[1:], key=lambda size: tau[size] / step_ms[size])
            log.warning(
                "no tree pays at T = %s: the best, of %d nodes, gains %.2f tokens in %.2f ms, and a plain step takes "
                "%.2f ms. Decoding will not draft there. If others used the machine, fit the tree again with "
                "infer/calibrate.py; else heads that guess better are needed",
                *(temperature, size[0], tau[size], step_ms[size], step_ms[sizes[0]]),
            )
    return {
        "format_version": TREE_FORMAT,
        "device": hardware()["gpu"] or hardware()["cpu"],
        "dtype": str(base.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "calibrations": entries,
    }


def _sizes(calibration: Calibration, node_counts: list[int]) -> list[Size]:
    """The trees to time; the root alone first."""
    counts = [n for n in sorted(set(node_counts)) if n <= len(calibration.paths) + 1]
    shallow: list[Size] = []
    for n in counts:
        if n <= _SHALLOW_UP_TO:
            shallow += [
                (n, d) for d in range(1, calibration.tree_of(n).max_depth) if calibration.tree_of(n, d).num_nodes == n
            ]
    return [(n, None) for n in counts] + shallow


def check(config: CalibrateConfig) -> None:
    """Raises UserError for settings that cannot be."""
    if not config.node_counts or min(config.node_counts) < 1 or 1 not in config.node_counts:
        raise UserError(f"calibrate.node_counts={config.node_counts}: give positive numbers, 1 (no tree) among them.")
    for name in ("num_prompts", "prompt_tokens", "new_tokens", "max_rank", "repeats", "context_tokens", "batch_size"):
        if getattr(config, name) < 1:
            raise UserError(f"calibrate.{name}={getattr(config, name)} cannot be. Give a number of at least 1.")
    if not config.temperatures:
        raise UserError("calibrate.temperatures is empty. Give at least one, for example [0.0].")
    for temperature in config.temperatures:
        Sampling(temperature)


def _write(base: Base, openings: list[Opening], temperature: float, config: CalibrateConfig) -> list[Text]:
    """The base's own answers, without heads."""
    engine = Engine(base, drafter="none")
    progress = Progress(f"calibration text at T = {temperature}", len(openings), "rows")
    texts = []
    for start in range(0, len(openings), config.batch_size):
        batch = openings[start : start + config.batch_size]
        seeds = [config.seed + start + i for i in range(len(batch))]
        answers = engine.generate([o.ids for o in batch], config.new_tokens, temperature, seed=seeds)
        progress.advance(len(batch), tokens=sum(len(a.ids) for a in answers))
        texts += [Text(o.ids + a.ids, len(o.ids), s) for o, a, s in zip(batch, answers, seeds, strict=True)]
    progress.close()
    return texts


@torch.inference_mode()
def rank_vectors(
    base: Base, heads: Heads, text: Text, temperature: float, max_rank: int, coupled: bool = True
) -> Tensor:
    """The rank of each of the K true next tokens under its head, at every position a step can start from; [M, K].

    Ranks start at 0; max_rank stands for that and everything worse. At T > 0 coupled heads rank with the verifier's
    noise.
    """
    K = heads.num_heads
    ids_T = torch.tensor(text.ids, device=base.device)
    first = max(text.num_prompt - 2, 0)  # the first root is the prompt's last token
    M = len(text.ids) - first - 1 - K  # every position whose K next tokens after the root are all known
    if M < 1:
        return torch.empty(0, K, dtype=torch.long)
    positions_1T = torch.arange(len(ids_T), device=base.device)[None]
    layers = heads.layers_read(base.num_layers)
    documents_1T = torch.zeros_like(positions_1T)
    hidden_1TC = base.forward_packed(ids_T[None], positions_1T, documents_1T, layers)
    packed = PackedText(hidden_1TC, normalise(base.embed(ids_T[None])), positions_1T, documents_1T, ids_T[None])
    hidden_KMD = heads.guesses(packed, [torch.arange(first, first + M, device=base.device)] * K)
    # Token -> row of the draft vocabulary; a token outside of it is nobody's candidate.
    place_V = torch.full((base.vocab_size,), -1, device=base.device)
    draft_ids = torch.arange(base.vocab_size, device=base.device) if heads.draft_ids is None else heads.draft_ids
    place_V[draft_ids] = torch.arange(len(draft_ids), device=base.device)
    ranks_MK = torch.empty(M, K, dtype=torch.long)
    for start in range(0, M, _CHUNK):
        here = torch.arange(first + start, first + min(start + _CHUNK, M), device=base.device)
        for k in range(K):
            hidden_MD = hidden_KMD[k][start : start + len(here)]
            scores_MV = torch.nn.functional.linear(hidden_MD, heads.draft_weight(k, base.lm_head_weight)).float()
            if temperature > 0 and coupled:
                noise = gumbel(text.seed, int(here[0]) + 2 + k, len(here), base.vocab_size, base.device)
                scores_MV = scores_MV / temperature + noise[:, draft_ids]
            place_M1 = place_V[ids_T[here + 2 + k, None]]
            rank_M = (scores_MV > scores_MV.gather(1, place_M1.clamp(min=0))).sum(1).clamp(max=max_rank)
            ranks_MK[start : start + len(here), k] = rank_M.masked_fill(place_M1[:, 0] < 0, max_rank).cpu()
    return ranks_MK


def frequent_paths(ranks_MK: Tensor, max_rank: int, num_paths: int) -> tuple[list[list[int]], list[float]]:
    """The most frequent paths and their shares of all positions, parents before children.

    A path ends before the first rank of max_rank, which stands for "not among the candidates".
    """
    counts: Counter[Path] = Counter()
    for vector in ranks_MK.tolist():
        for depth in range(1, len(vector) + 1):
            if vector[depth - 1] >= max_rank:
                break
            counts[tuple(vector[:depth])] += 1
    best = sorted(counts.items(), key=lambda item: (-item[1], len(item[0]), item[0]))[:num_paths]
    return [list(path) for path, _ in best], [count / len(ranks_MK) for _, count in best]


def time_steps(
    base: Base,
    heads: Heads,
    trees: dict[Size, Tree],
    prompt: list[int],
    temperature: float,
    config: CalibrateConfig,
) -> dict[Size, float]:
    """Median milliseconds of a whole step for each tree, in turns so that a busy moment hits all.

    A turn is several steps of one size, as in decoding: single steps would each start with cold caches, which costs
    the smallest the most and makes speculation look better than it is.

    The context is the prompt repeated to calibrate.context_tokens, and every timed step starts from it again.
    """
    context = (prompt * (config.context_tokens // len(prompt) + 1))[: min(config.context_tokens, base.max_length // 2)]
    decoders, matrices = {}, build_matrices(base, heads)
    for size, tree in trees.items():
        n = tree.num_nodes
        drafter = build_drafter("heads" if n > 1 else "none", base, heads, tree, matrices=matrices)
        seconds = dict.fromkeys(("prefill", "draft", "verify", "accept", "commit"), 0.0)
        decoders[size] = Decoder(base, drafter, 1, len(context) + 2 * n + 8, seconds)
        decoders[size].add(0, [Request(context, base.tokenizer, Sampling(temperature), config.seed)])
    times: dict[Size, list[float]] = {size: [] for size in trees}
    for _ in range(config.repeats):
        for size, decoder in decoders.items():
            for step in range(_BURST):
                decoder.cache.lengths = [len(context) - 1]
                _synchronise(base)
                start = time.perf_counter()
                decoder.step()
                _synchronise(base)
                if step:  # the first step of a turn finds other trees' weights in the processor's caches
                    times[size].append((time.perf_counter() - start) * 1e3)
    return {size: statistics.median(values) for size, values in times.items()}


def _synchronise(base: Base) -> None:
    if base.device.type == "cuda":
        torch.cuda.synchronize(base.device)
