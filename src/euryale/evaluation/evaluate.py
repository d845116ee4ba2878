"""Quality of the heads, and losslessness of the text.

Prompts are answered with the tree and without it, as batches, and by transformers' `generate` at T = 0. Equal ids are
counted; whatever differs is listed with how close the base's own choice was there. The same answers give tau, how
deep paths are accepted, and the accuracy of every head on the text that the base itself writes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any

import torch

from euryale.base.text_states import packed_states
from euryale.data.batches import PADDING, Batch, build_batches
from euryale.data.config import DataConfig
from euryale.decoding.engine import Engine
from euryale.decoding.request import Generation
from euryale.decoding.sampling import Sampling
from euryale.errors import UserError, check_least
from euryale.evaluation.hf_baselines import count_new, generate_ids, generation_settings, transformers_attention
from euryale.evaluation.losslessness import Places, first_divergence, judge, summarise
from euryale.evaluation.repetition import repeated_ngram_share
from euryale.system.progress import Progress
from euryale.training.objective import evaluate_heads
from euryale.training.scoring import RANKS

_MAX_LISTED = 20  # differences spelled out in a report; all are counted
_MAX_BATCHES = 8  # of held-out text: with the default block and batch size some 30,000 labels


def evaluate_text(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int = 128,
    *,
    seed: int = 0,
    batch_size: int = 8,
    against_hf: bool = True,
    **knobs: object,
) -> dict[str, Any]:
    """The `evaluation` section of a report, for prompts given as token ids that leave room for the answer.

    Prompt i is answered with seed + i; `accuracy` is that of the heads on the text of plain decoding.
    Raises UserError: no prompts, numbers out of range.
    """
    sampling = Sampling.of(**knobs)
    temperature = sampling.temperature
    if not prompts:
        raise UserError("the evaluation was given no prompts. Name a file with prompts=FILE.")
    check_least(1, batch_size=batch_size)
    with_hf = against_hf and temperature == 0 and sampling.is_known_to_transformers
    progress = Progress("evaluate", (2 + with_hf) * len(prompts), "answers")
    ours, plain = (
        answer(each, prompts, max_new_tokens, sampling, seed, batch_size, progress)
        for each in (engine, Engine(engine.base, drafter="none"))
    )
    others = {"": [generation.ids for generation in plain]}
    if with_hf:
        others["_hf"] = _hf_answers(engine, prompts, max_new_tokens, sampling, progress)
    progress.close()

    judged, judged_plain = (_judge_all(engine, prompts, found, sampling, seed) for found in (ours, plain))
    result: dict[str, Any] = {
        "num_prompts": len(prompts),
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": sampling.top_p,
        **sampling.keywords(),
        "seed": seed,
        "accept": asdict(engine.accept),
        "drafter": engine.drafter.name,
        "tree": engine.tree_name,
        "num_nodes": engine.num_nodes(temperature),
        "dtype": str(engine.base.dtype).removeprefix("torch."),
        "is_exact": engine.base.is_exact,
        "tau": sum(len(generation.ids) for generation in ours) / sum(generation.num_steps for generation in ours),
        "tau_by_depth": tau_by_depth((g.accepted for g in ours), engine.max_depth(temperature)),
        "repeated_8grams": repeated_ngram_share(generation.ids for generation in ours),
        "total": len(prompts),
        "accuracy": head_accuracy(engine, written_batches(prompts, plain, batch_size)),
        "teacher_forced": summarise(judged),
        "teacher_forced_ar": summarise(judged_plain),  # rounding moves plain decoding as well
    }
    for suffix, answers in others.items():
        rows = zip(ours, answers, judged, strict=True)
        found = [first_divergence(index, g.ids, other, places) for index, (g, other, places) in enumerate(rows)]
        different = [divergence._asdict() for divergence in found if divergence is not None]
        result[f"identical{suffix}"] = len(prompts) - len(different)
        result[f"differences{suffix}"] = different[:_MAX_LISTED]
    return result


def answer(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling,
    seed: int,
    batch_size: int,
    progress: Progress,
) -> list[Generation]:
    """Answers in the order of the prompts, made batch by batch."""
    answers: list[Generation] = []
    for start in range(0, len(prompts), batch_size):
        batch = [list(prompt) for prompt in prompts[start : start + batch_size]]
        seeds = range(seed + start, seed + start + len(batch))
        answers += engine.generate(batch, max_new_tokens, seed=seeds, **sampling.keywords())
        progress.advance(len(batch), sum(len(generation.ids) for generation in answers[start:]))
    return answers


def _judge_all(
    engine: Engine, prompts: Sequence[Sequence[int]], answers: Sequence[Generation], sampling: Sampling, seed: int
) -> list[Places]:
    return [
        judge(engine.base, prompt, generation.ids, sampling, seed + index)
        for index, (prompt, generation) in enumerate(zip(prompts, answers, strict=True))
    ]


def _hf_answers(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling,
    progress: Progress,
) -> list[list[int]]:
    base, answers = engine.base, []
    settings = generation_settings(base, sampling, max_new_tokens)
    with transformers_attention(base) as model:
        for prompt in prompts:
            ids = generate_ids(model, prompt, settings)
            answers.append(count_new(ids, len(prompt), base.eos_ids, max_new_tokens))
            progress.advance(1, len(answers[-1]))
    return answers


def tau_by_depth(accepted: Iterable[Sequence[int]], max_depth: int) -> list[float]:
    """Entry d - 1: the share of steps that gained at least d drafted tokens. Their sum is tau - 1.

    `accepted` holds the tokens gained by each step of each answer.
    One token of every step is the base's own; an answer's last step may be cut short and then counts what was kept.
    """
    gained = [tokens - 1 for steps in accepted for tokens in steps]
    return [sum(tokens >= depth for tokens in gained) / len(gained) for depth in range(1, max_depth + 1)]


def head_accuracy(engine: Engine, batches: Sequence[Batch]) -> list[dict[str, float]]:
    """The `accuracy` section of a report: per head the share of labels among its first 1, 5 and 10 guesses.

    Heads read the states that decoding gives them (text_states.py); they themselves are as they were trained.
    """
    base, heads = engine.base, engine.heads
    if heads is None:
        return []
    layers = heads.layers_read(base.num_layers)

    def states_of(batch: Batch) -> torch.Tensor:
        device = base.device
        documents_BT = batch.documents_BT.to(device)
        return packed_states(base, batch.ids_BT.to(device), batch.positions_BT.to(device), documents_BT, layers)

    found = evaluate_heads(base, heads, batches, len(batches), states_of=states_of)
    shares: dict[int, list[float]] = {rank: found[f"head_top{rank}"] for rank in RANKS}  # type: ignore[misc]
    return [{"head": k, **{f"top{rank}": shares[rank][k] for rank in RANKS}} for k in range(heads.num_heads)]


def held_out_accuracy(engine: Engine, data: DataConfig) -> list[dict[str, float]]:
    """The same on held-out rows as they are. Raises UserError when there are none."""
    if engine.heads is None:
        return []
    batches = islice(build_batches(data, "held_out", engine.base.tokenizer, engine.base.vocab_size), _MAX_BATCHES)
    return head_accuracy(engine, list(batches))


def written_batches(
    prompts: Sequence[Sequence[int]], generations: Sequence[Generation], batch_size: int = 8
) -> list[Batch]:
    """Prompts and their answers as batches for `head_accuracy`, a row each; the answers are what is scored."""
    texts = [([*prompt, *g.ids], len(prompt)) for prompt, g in zip(prompts, generations, strict=True)]
    batches = []
    for start in range(0, len(texts), batch_size):
        rows = texts[start : start + batch_size]
        B, T = len(rows), max(len(ids) for ids, _ in rows)
        ids_BT = torch.zeros(B, T, dtype=torch.int64)
        is_target_BT = torch.zeros(B, T, dtype=torch.bool)
        documents_BT = torch.full((B, T), PADDING, dtype=torch.int64)
        for row, (ids, num_prompt) in enumerate(rows):
            ids_BT[row, : len(ids)] = torch.tensor(ids)
            is_target_BT[row, num_prompt : len(ids)] = True
            documents_BT[row, : len(ids)] = 0
        positions_BT = torch.arange(T).expand(B, T)
        batches.append(Batch(ids_BT, is_target_BT, positions_BT, documents_BT))
    return batches
