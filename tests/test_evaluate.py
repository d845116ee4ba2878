"""The evaluation notices a wrong token, and says how close the call was."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from compiled_models import int4_base
from plain_heads import plain_heads
from random_models import random_base, random_heads, twin

from euryale.base.base import Base
from euryale.data.config import DataConfig
from euryale.decoding.engine import Engine
from euryale.decoding.noise import gumbel
from euryale.decoding.request import Generation
from euryale.decoding.sampling import Sampling
from euryale.decoding.tree.tree import Tree
from euryale.errors import UserError
from euryale.evaluation.evaluate import (
    evaluate_text,
    head_accuracy,
    held_out_accuracy,
    tau_by_depth,
    written_batches,
)
from euryale.evaluation.losslessness import ULPS, Places, first_divergence, judge, summarise
from euryale.evaluation.prompts import choose_data, fit_prompts, load_prompts
from euryale.evaluation.rank_vectors import Text, read_states
from euryale.kernels.rms_norm import normalise
from euryale.report.tables import evaluation_table
from euryale.training.scoring import RANKS

PROMPTS = [[3, 1, 4, 1, 5], [9, 2, 6], [5, 3, 5, 8, 9, 7], [2, 7]]
TREE = Tree.from_paths([(0,), (0, 0), (1,), (0, 1), (2,)])


@pytest.fixture(scope="module")
def base() -> Base:
    """In float64: no two scores are so close that the order of sums, another on each processor, decides."""
    return random_base("llama", vocab_size=13, seed=3, eos=12, dtype=torch.float64)


@pytest.fixture(scope="module")
def engine(base: Base) -> Engine:
    return Engine(base, random_heads(plain_heads(num_heads=3, width=1.0), base), tree=TREE)


class Liar(Engine):
    """An engine that writes another token at one place of one prompt's answer."""

    def __init__(self, honest: Engine, prompt: list[int], position: int, token: int) -> None:
        super().__init__(honest.base, honest.heads, tree=TREE)
        self.told = (prompt, position, token)

    def generate(self, prompts: Any, *args: Any, **kwargs: Any) -> list[Generation]:
        answers = super().generate(prompts, *args, **kwargs)
        prompt, position, token = self.told
        for asked, answer in zip(prompts, answers, strict=True):
            if list(asked) == prompt:
                answer.ids[position] = token
        return answers


def logits_after(base: Base, ids: list[int]) -> torch.Tensor:
    """[V], by transformers' eager attention."""
    return twin(base)(torch.tensor([ids])).logits[0, -1]


@pytest.mark.parametrize(("temperature", "top_p"), [(0.0, 1.0), (0.8, 1.0), (1.2, 0.9)])
def test_an_honest_engine_is_found_honest(engine: Engine, temperature: float, top_p: float) -> None:
    found = evaluate_text(engine, PROMPTS, 20, temperature=temperature, top_p=top_p, seed=3, batch_size=3)
    assert found["identical"] == found["total"] == found["num_prompts"] == 4
    assert found["differences"] == []
    assert found.get("identical_hf") == (4 if temperature == 0 else None)
    for name in ("teacher_forced", "teacher_forced_ar"):
        assert found[name]["base_choice_share"] == found[name]["within_gap_share"] == 1.0
        assert found[name]["worst_gap"] == 0.0
    assert sum(found["tau_by_depth"]) == pytest.approx(found["tau"] - 1)
    assert len(found["tau_by_depth"]) == TREE.max_depth
    assert found["num_nodes"] == 6
    assert json.loads(json.dumps(found)) == found
    assert "all" in evaluation_table({"evaluation": found})


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_processed_text_is_judged_by_the_processed_base(engine: Engine, temperature: float) -> None:
    how: dict[str, Any] = {"repetition_penalty": 1.5, "logit_bias": {4: 0.5}, "banned_tokens": [[3, 1], 7]}
    how |= {"min_new_tokens": 6, "top_k": 6, "min_p": 0.02}
    found = evaluate_text(engine, PROMPTS, 20, temperature=temperature, **how)
    assert found["identical"] == found["total"] == 4
    assert found.get("identical_hf") == (4 if temperature == 0 else None), "transformers' processors say the same"
    assert found["teacher_forced"]["base_choice_share"] == found["teacher_forced_ar"]["base_choice_share"] == 1.0
    assert found["repetition_penalty"] == 1.5 and found["banned_tokens"] == ((3, 1), 7)
    plain = evaluate_text(engine, PROMPTS, 20, temperature=temperature)
    assert plain["tau"] != found["tau"], "the settings change the text"


@pytest.mark.parametrize(("rule", "word"), [("typical", "LOSSY"), ("rejection", "lossless in distribution")])
def test_a_result_of_another_accept_rule_says_so(engine: Engine, rule: str, word: str) -> None:
    other = Engine(engine.base, engine.heads, tree=TREE, accept=rule)
    found = evaluate_text(other, PROMPTS, 20, temperature=0.9, against_hf=False)
    assert found["accept"]["name"] == rule
    table = evaluation_table({"evaluation": found})
    assert word in table and "identical" not in table, "the same text was not promised"
    greedy = evaluation_table({"evaluation": evaluate_text(other, PROMPTS, 20, against_hf=False)})
    assert word not in greedy and "4/4 outputs identical" in greedy


def test_prompts_are_answered_with_seeds_of_their_own(engine: Engine) -> None:
    same = [PROMPTS[0]] * 3
    found = evaluate_text(engine, same, 20, temperature=1.5, seed=3, batch_size=2)
    [alone] = engine.generate([PROMPTS[0]], 20, temperature=1.5, seed=5)  # the third prompt: in the second batch
    answers = [engine.generate([PROMPTS[0]], 20, temperature=1.5, seed=seed)[0] for seed in (3, 4)] + [alone]
    assert found["tau"] == sum(len(g.ids) for g in answers) / sum(g.num_steps for g in answers)
    assert len({tuple(g.ids) for g in answers}) == 3


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_wrong_token_is_counted_and_measured(engine: Engine, temperature: float) -> None:
    [true] = engine.generate([PROMPTS[2]], 20, temperature=temperature, seed=2)
    at = 2
    assert len(true.ids) > at + 1
    wrong = (true.ids[at] + 1) % 13
    found = evaluate_text(Liar(engine, PROMPTS[2], at, wrong), PROMPTS, 20, temperature=temperature, batch_size=4)
    assert found["identical"] == 3
    [difference] = found["differences"]
    assert (difference["prompt"], difference["position"]) == (2, at)
    assert (difference["token"], difference["other"]) == (wrong, true.ids[at])
    scores = logits_after(engine.base, PROMPTS[2] + true.ids[:at])
    if temperature:
        place = len(PROMPTS[2]) + at
        scores = scores / temperature + gumbel(2, place, 1, 13, torch.device("cpu"))[0]
    best = scores.topk(2).values
    close = 1e-5 * float(scores.abs().max())  # norms are float32 in any dtype, 1e-7 of it; gaps are told as float32
    assert difference["emitted_gap"] == pytest.approx(float(best[0] - scores[wrong]), rel=0, abs=close)
    assert difference["top2_gap"] == pytest.approx(float(best[0] - best[1]), rel=0, abs=close)
    assert found["teacher_forced"]["base_choice_share"] < 1 == found["teacher_forced_ar"]["base_choice_share"]
    assert found["teacher_forced"]["within_gap_share"] < 1
    assert found["teacher_forced"]["worst_gap"] >= difference["emitted_gap"] > 0
    if temperature == 0:
        assert found["identical_hf"] == 3
        assert found["differences_hf"] == found["differences"]
        assert "3/4 outputs identical" in evaluation_table({"evaluation": found})


def test_a_token_outside_of_top_p_has_no_finite_gap_and_fails_the_limit(engine: Engine) -> None:
    prompt = PROMPTS[0]
    unlikely = int(logits_after(engine.base, prompt).argmin())
    places = judge(engine.base, prompt, [unlikely], Sampling(0.7, 0.5), seed=0)
    assert places.emitted_gap == [float("inf")]
    found = summarise([places, Places([0.0], [1.0], [0.1])])
    assert found["within_gap_share"] == 0.5
    assert found["worst_gap"] == 0.0


def test_the_limit_is_in_units_of_the_last_place_of_the_dtype(base: Base) -> None:
    for dtype, bits in ((torch.float32, 23), (torch.bfloat16, 7), (torch.float16, 10)):
        places = judge(random_base(vocab_size=13, seed=3, dtype=dtype), PROMPTS[0], [1], Sampling(), 0)
        largest = float(logits_after(base, PROMPTS[0]).abs().max())
        exponent = torch.tensor(largest).log2().floor()
        assert places.gap_limit == [pytest.approx(float(ULPS * 2 ** (exponent - bits)))]


def test_half_precision_is_reported_not_hidden() -> None:
    base = random_base(vocab_size=61, seed=5, dtype=torch.bfloat16)
    engine = Engine(base, random_heads(plain_heads(num_heads=3, width=1.0), base), tree=TREE)
    found = evaluate_text(engine, PROMPTS, 24)
    assert found["dtype"] == "bfloat16"
    assert found["identical"] == 4 - len(found["differences"])
    share = found["teacher_forced"]["base_choice_share"]
    assert 0.8 < share <= found["teacher_forced"]["within_gap_share"] <= 1.0
    text = evaluation_table(
        {"evaluation": found | {"teacher_forced": found["teacher_forced"] | {"base_choice_share": 0.97}}}
    )
    assert "97.00% of 96 tokens are the base's own choice" in text


def test_an_answer_that_ends_early_differs_where_it_ends() -> None:
    places = Places([0.0, 0.5], [1.0, 2.0], [0.1, 0.1])
    assert first_divergence(7, [1, 2], [1, 2], places) is None
    longer = first_divergence(7, [1, 2], [1], places)
    assert longer is not None and longer[:4] == (7, 1, 2, None) and longer.emitted_gap == 0.5
    shorter = first_divergence(7, [1, 2], [1, 2, 3], places)
    assert shorter is not None and shorter == (7, 2, None, 3, None, None)


def test_depth_shares_count_drafted_tokens_only() -> None:
    answers = [Generation("", [1] * 6, 3, [3, 1, 2], "length", 1.0), Generation("", [1] * 4, 1, [4], "eos", 1.0)]
    assert tau_by_depth((answer.accepted for answer in answers), 4) == [0.75, 0.5, 0.25, 0.0]


def test_accuracy_on_written_text_counts_the_answers_tokens_under_each_head(engine: Engine) -> None:
    base, heads = engine.base, engine.heads
    assert heads is not None
    answers = Engine(base, drafter="none").generate([list(p) for p in PROMPTS], 12)
    found = head_accuracy(engine, written_batches(PROMPTS, answers, batch_size=3))
    for k in range(3):
        ranks = []
        for prompt, answer in zip(PROMPTS, answers, strict=True):
            ids = [*prompt, *answer.ids]
            hidden = twin(base).model(torch.tensor([ids])).last_hidden_state[0]
            known = normalise(base.embed(torch.tensor(ids)))
            for t in range(len(ids) - 2 - k):
                if t + 2 + k < len(prompt):
                    continue  # a prompt's token is never a guess
                x = heads.head_hidden(k, hidden[t : t + 1], known[None, t + 1 : t + 2 + k])
                logits = x @ heads.output_weight(k, base.lm_head_weight).T
                ranks.append(int((logits > logits[0, ids[t + 2 + k]]).sum()))
        for rank in (1, 5, 10):
            assert found[k][f"top{rank}"] == pytest.approx(sum(r < rank for r in ranks) / len(ranks))
    assert head_accuracy(Engine(base, drafter="none"), []) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": []}, "no prompts"),
        ({"batch_size": 0}, "batch_size must be at least 1; got 0"),
        ({"temperature": -1.0}, "temperature"),
    ],
)
def test_what_cannot_be_asked_is_refused(engine: Engine, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        evaluate_text(engine, **({"prompts": PROMPTS} | changes))


def write_texts(folder: Path) -> DataConfig:
    (folder / "a.jsonl").write_text(
        "".join(json.dumps({"text": f"row {i} " + "some text to go on from. " * 8}) + "\n" for i in range(40))
    )
    return DataConfig(kind="files", files=str(folder / "a.jsonl"), held_out_one_in=4, block_size=64, batch_size=2)


def test_prompts_come_from_a_file_or_from_held_out_rows(tiny_base: Base, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("one\ntwo\nthree\n")
    from_file = load_prompts(tiny_base, str(tmp_path / "p.txt"), 2, 20, {})
    assert [tiny_base.tokenizer.decode(ids) for ids in from_file] == ["one", "two"]

    data = write_texts(tmp_path)
    asked = load_prompts(tiny_base, None, 5, 20, {}, data)
    assert 1 <= len(asked) <= 5
    settings = {f"data.{name}": value for name, value in vars(data).items()}
    described = {"provenance": {"settings": settings | {"seed": 3}}}
    assert choose_data(DataConfig(kind="checkpoint"), described) == data
    assert load_prompts(tiny_base, None, 5, 20, described) == asked
    engine = Engine(tiny_base, random_heads(plain_heads(num_heads=2, width=1.0), tiny_base))
    accuracy = held_out_accuracy(engine, data)
    assert [row["head"] for row in accuracy] == [0, 1]
    assert all(0 <= row["top1"] <= row["top5"] <= row["top10"] <= 1 for row in accuracy)


def test_prompts_that_cannot_be_had_are_explained(tiny_base: Base, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="limit must be at least 1; got 0"):
        load_prompts(tiny_base, None, 0, 20, {})
    with pytest.raises(UserError, match="without a checkpoint.*prompts=FILE"):
        load_prompts(tiny_base, None, 4, 20, {})
    with pytest.raises(UserError, match="does not say what it was trained on.*prompts=FILE"):
        load_prompts(tiny_base, None, 5, 20, {"heads": {}})
    gone = {"provenance": {"settings": {"data.kind": "regenerated", "data.folder": str(tmp_path / "gone")}}}
    with pytest.raises(UserError, match="no held-out prompts.*prompts=FILE"):
        load_prompts(tiny_base, None, 5, 20, gone)
    with pytest.raises(UserError, match="no such file"):
        load_prompts(tiny_base, str(tmp_path / "none.txt"), 5, 20, {})


def test_prompts_without_room_for_an_answer_are_left_out_aloud(
    tiny_base: Base, caplog: pytest.LogCaptureFixture
) -> None:
    room = tiny_base.max_length - 20
    prompts = [[5] * (room + 1), [5] * room, [], [6], [7]]
    with caplog.at_level(logging.WARNING):
        assert fit_prompts(tiny_base, prompts, 2, 20, "a.txt") == [[5] * room, [6]]
    assert "left out 1 prompts without room for 20 new tokens in a context of 256, and 1 empty" in caplog.text
    with pytest.raises(UserError, match="none of the prompts of a.txt.*Lower max_new_tokens"):
        fit_prompts(tiny_base, prompts[:1], 2, 20, "a.txt")


def test_text_in_4_bits_is_judged_by_the_base_in_4_bits() -> None:
    """The weights in float32 are another base, whose own choice some tokens are not."""
    base = int4_base(seed=7)
    prompts = [[1, 2, 3], [5], [7, 8]]
    answers = [one.ids for one in Engine(base, drafter="none").generate(prompts, 24)]
    for prompt, ids in zip(prompts, answers, strict=True):
        assert judge(base, prompt, ids, Sampling(), 0).emitted_gap == [0.0] * len(ids)
    whole = Base(base.model, base.tokenizer, base.path, base.fingerprint)
    assert any(sum(judge(whole, *each, Sampling(), 0).emitted_gap) for each in zip(prompts, answers, strict=True))


def test_heads_are_counted_on_the_states_in_4_bits_that_they_read_when_they_draft() -> None:
    base = int4_base(seed=7)
    heads = random_heads(plain_heads(num_heads=2, width=1.0), base)
    prompts = [[1, 2, 3], [5], [7, 8]]
    answers = Engine(base, drafter="none").generate(prompts, 40)
    found = head_accuracy(Engine(base, heads), written_batches(prompts, answers, batch_size=2))
    whole = Base(base.model, base.tokenizer, base.path, base.fingerprint, forward="plain")
    of_16_bits = head_accuracy(Engine(whole, heads), written_batches(prompts, answers, batch_size=2))
    texts = [Text([*prompt, *answer.ids], len(prompt), 0) for prompt, answer in zip(prompts, answers, strict=True)]
    for k in range(2):
        ranks = []
        for text in texts:
            states_TD = read_states(base, heads, text)
            for t in range(max(0, text.num_prompt - 2 - k), len(text.ids) - 2 - k):
                known_JD = normalise(base.embed(torch.tensor(text.ids[t + 1 : t + 2 + k])))
                x_1D = heads.head_hidden(k, states_TD[t : t + 1], known_JD[None])
                scores_V = (x_1D @ heads.output_weight(k, base.lm_head_weight).T)[0]
                ranks.append(int((scores_V > scores_V[text.ids[t + 2 + k]]).sum()))
        for rank in RANKS:
            assert found[k][f"top{rank}"] == pytest.approx(sum(r < rank for r in ranks) / len(ranks))
    assert found != of_16_bits, "the case tells the two apart"
