"""Every request is answered alike in any batch, and every wrong one is refused."""

import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from plain_decoding import slow_ids
from plain_heads import plain_heads
from random_models import FULL, engine_of, five_tokens, letter_tokenizer, random_base, random_heads, random_prompts
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.utils import logging as transformers_log

import euryale
from euryale.base.base import Base
from euryale.base.tree_attention import use_tree_attention
from euryale.decoding.engine import Engine
from euryale.decoding.tree.tree import ROOT_ONLY, Tree, chain, medusa63
from euryale.errors import UserError
from euryale.heads.checkpoint import save_heads

PROMPT = [0, 3, 1]


@pytest.mark.parametrize("length", [24, 25, 300])
def test_a_prompt_that_fills_the_context_is_refused(length: int) -> None:
    engine = engine_of(five_tokens(max_length=24))
    with pytest.raises(UserError, match=f"the prompt has {length} tokens and the context .* ends at 24. Shorten"):
        engine.generate([[1], [0] * length])


def test_a_text_that_is_too_long_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """Not by the tokenizer as well, which speaks of errors that will not come."""
    base = random_base(max_length=24)
    base.tokenizer.model_max_length = 24
    transformers_log.enable_propagation()
    try:
        with pytest.raises(UserError, match=r"the prompt has 30 tokens and the context .* ends at 24"):
            Engine(base, drafter="none").generate(["a" * 30])
    finally:
        transformers_log.disable_propagation()
    assert not caplog.records


def test_nodes_beyond_the_context_do_not_change_a_rope_that_depends_on_length() -> None:
    """Dynamic rope rescales all positions when one exceeds the context; AR never goes there, a tree would."""
    dynamic = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    base = random_base("llama", 5, seed=1, dtype=torch.float64, max_length=24, rope_parameters=dynamic)
    rng = random.Random(0)
    for _ in range(5):
        prompts = random_prompts(rng, 3, 5, longest=15)
        for prompt, generation in zip(prompts, engine_of(base).generate(prompts), strict=True):
            assert generation.ids == slow_ids(base, prompt, 100)


def test_nodes_beyond_a_learned_position_table_do_no_harm() -> None:
    config = GPT2Config(
        vocab_size=5, n_embd=16, n_layer=2, n_head=4, n_positions=20, eos_token_id=None, bos_token_id=None
    )
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config).double().eval().requires_grad_(False)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    use_tree_attention(model)
    base = Base(model, letter_tokenizer(5), "random-gpt2", "gpt2")
    prompts = [[1, 2, 3], [4] * 12]
    for prompt, generation in zip(prompts, engine_of(base).generate(prompts), strict=True):
        assert generation.finish_reason == "context" and generation.ids == slow_ids(base, prompt, 100)


def test_an_empty_prompt_begins_with_the_begin_of_text_token() -> None:
    base = five_tokens(bos_id=2)
    engine = engine_of(base)
    with_bos = engine.generate([[2]], max_new_tokens=8)[0].ids
    assert with_bos == slow_ids(base, [2], 8)
    empties: list[str | list[int]] = [[], ""]
    for empty in empties:
        assert engine.generate([empty], max_new_tokens=8)[0].ids == with_bos
    with pytest.raises(UserError, match="the prompt is empty and this base has no begin-of-text token"):
        engine_of(five_tokens()).generate([[]])
    assert engine.generate([]) == []


def test_texts_and_ids_are_the_same_prompt() -> None:
    engine = engine_of(five_tokens())
    answers = [engine.generate(p, max_new_tokens=9)[0] for p in ("adb", ["adb"], PROMPT, [PROMPT], tuple(PROMPT))]
    assert all(a.ids == answers[0].ids and a.text == answers[0].text for a in answers)
    prompts: list[str | list[int]] = ["adb", PROMPT]
    mixed = engine.generate(prompts, max_new_tokens=9)
    assert [a.ids for a in mixed] == [answers[0].ids] * 2


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("tree", [FULL, medusa63(), chain(3), ROOT_ONLY], ids=["full", "medusa63", "chain", "root"])
def test_a_row_answers_the_same_in_any_batch(tree: Tree, temperature: float) -> None:
    base = random_base("llama", 5, seed=197, dtype=torch.float64, max_length=40, eos=[1])
    engine = engine_of(base, tree)
    rng = random.Random(4)
    prompts = [[0, 2], [3], *random_prompts(rng, 3, 5, longest=39)]
    seeds = [5, 5, 7, 2**62, 0]
    alone = [engine.generate([p], 20, temperature=temperature, seed=s)[0] for p, s in zip(prompts, seeds, strict=True)]
    together = engine.generate(prompts, 20, temperature=temperature, seed=seeds)
    backwards = engine.generate(prompts[::-1], 20, temperature=temperature, seed=seeds[::-1])[::-1]
    assert len({len(g.ids) for g in alone}) > 2, "rows end at different times"
    for other in (together, backwards):
        assert [(g.ids, g.text, g.accepted, g.finish_reason) for g in other] == [
            (g.ids, g.text, g.accepted, g.finish_reason) for g in alone
        ]


def test_the_longest_row_may_end_inside_a_path_while_others_go_on() -> None:
    """Its last path is kept whole, past where the answer ends: the cache has room for that."""
    base = five_tokens()
    engine = engine_of(base, Tree.from_paths([*FULL.paths[1:], (0, 0, 0), (0, 0, 0, 0)]))
    rng = random.Random(0)
    for num in range(1, 12):
        prompts = [[rng.randrange(5) for _ in range(length)] for length in (20, 1, 2)]
        found = engine.generate(prompts, max_new_tokens=num)
        assert [g.ids for g in found] == [slow_ids(base, p, num) for p in prompts]


def test_the_seed_alone_decides_what_is_sampled() -> None:
    base = five_tokens()
    with_tree, without = engine_of(base), Engine(base, drafter="none")
    drawn = [without.generate([PROMPT], 20, temperature=1.0, seed=seed)[0].ids for seed in range(4)]
    assert len({tuple(ids) for ids in drawn}) == 4
    assert [g.ids for g in with_tree.generate([PROMPT] * 4, 20, temperature=1.0, seed=[0, 1, 2, 3])] == drawn
    assert [g.ids for g in with_tree.generate([PROMPT] * 2, 20, temperature=1.0, seed=3)] == [drawn[3]] * 2
    assert with_tree.generate([PROMPT], 20, seed=1)[0].ids == with_tree.generate([PROMPT], 20, seed=2)[0].ids


@pytest.mark.parametrize("stop", [None, "ab", ["ba", "cc"]])
@pytest.mark.parametrize("eos", [None, 4])
def test_a_stream_adds_up_to_the_text_of_generate(eos: int | None, stop: str | list[str] | None) -> None:
    base = five_tokens(max_length=32, eos=eos)
    for tree in (FULL, ROOT_ONLY):
        engine = engine_of(base, tree)
        for seed in range(6):
            whole = engine.generate([PROMPT], 40, temperature=1.0, seed=seed, stop=stop)[0]
            stream = engine.stream(PROMPT, 40, temperature=1.0, seed=seed, stop=stop)
            pieces = list(stream)
            assert "".join(pieces) == whole.text and all(pieces)
            assert len(pieces) <= whole.num_steps + 1
            last = stream.generation
            assert last is not None and (last.ids, last.text, last.finish_reason) == (
                whole.ids,
                whole.text,
                whole.finish_reason,
            )


def test_time_is_accounted_to_the_parts_of_a_step() -> None:
    engine = engine_of(five_tokens())
    generation = engine.generate([PROMPT], max_new_tokens=20)[0]
    assert set(engine.seconds) == {"prefill", "draft", "verify", "accept", "commit"}
    assert all(value > 0 for value in engine.seconds.values())
    assert sum(engine.seconds.values()) <= generation.seconds


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"prompts": [[5]]}, "token ids of random-qwen2, 0 to 4; got 5 to 5"),
        ({"prompts": [[1, -1]]}, "token ids of .*; got -1 to 1"),
        ({"prompts": [PROMPT], "max_new_tokens": 0}, "max_new_tokens must be at least 1; got 0"),
        ({"prompts": [PROMPT], "temperature": -1.0}, "temperature must be from 0 to 1e\\+06; got -1"),
        ({"prompts": [PROMPT], "top_p": 0.0}, "top_p must be above 0 and at most 1; got 0"),
        ({"prompts": [PROMPT], "stop": ""}, "stop="),
        ({"prompts": [PROMPT], "seed": [1, 2]}, "seed must be one number, or one for each prompt; got 2 for 1 prompts"),
        ({"prompts": [PROMPT], "temperature": 1.0, "seed": -1}, "seed must be .*; got -1"),
        ({"prompts": [PROMPT], "seed": 2**63}, "seed must be .*; got 9223372036854775808"),
        ({"prompts": [PROMPT], "seed": 1.5}, "seed must be .*; got 1.5"),
        ({"prompts": [PROMPT], "top_k": -1}, "top_k must be at least 0; got -1"),
        ({"prompts": [PROMPT], "min_p": 2.0}, "min_p must be from 0 to 1; got 2"),
        ({"prompts": [PROMPT], "repetition_penalty": 0.0}, "repetition_penalty must be from 1e-06 to 1e\\+06; got 0"),
        ({"prompts": [PROMPT], "presence_penalty": 3.0}, "presence_penalty must be from -2 to 2; got 3"),
        ({"prompts": [PROMPT], "logit_bias": {5: 1.0}}, "logit_bias must name tokens of this base, 0 to 4; got 5"),
        (
            {"prompts": [PROMPT], "banned_tokens": range(5)},
            "must leave a token to write; they forbid all 5",
        ),
        ({"prompts": [PROMPT], "min_new_tokens": 200}, "min_new_tokens must be at most max_new_tokens=128; got 200"),
        ({"prompts": [PROMPT], "stop_ids": [5]}, "stop_ids must name tokens .*; got 5"),
    ],
)
def test_a_request_that_cannot_be_is_refused_at_the_call(request_: dict, message: str) -> None:
    engine = engine_of(five_tokens())
    with pytest.raises(UserError, match=message):
        engine.generate(**request_)
    if not isinstance(request_.get("seed"), list):
        prompts = request_.pop("prompts")
        with pytest.raises(UserError, match=message):
            engine.stream(prompts[0], **request_)  # no piece was asked for yet


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_broken_base_is_refused_by_the_name_of_its_first_broken_layer(temperature: float, value: float) -> None:
    for part in ("model.layers.1.mlp.down_proj", "model.layers.0.self_attn.q_proj", "lm_head", "model.embed_tokens"):
        base = five_tokens()
        base.model.get_parameter(f"{part}.weight")[1] = value  # token 1, which the prompt ends with
        engine = engine_of(base)
        message = f"not finite after 3 tokens: the first output that is not finite is that of {part}. Weights are"
        with pytest.raises(UserError, match=message):
            engine.generate([PROMPT], temperature=temperature)
        with pytest.raises(UserError, match=message):
            list(engine.stream(PROMPT, temperature=temperature))


def test_a_row_that_is_broken_later_is_refused_then() -> None:
    base = five_tokens()
    ids = slow_ids(base, PROMPT, 20)
    at = next(i for i, token in enumerate(ids) if token not in PROMPT)
    base.model.get_input_embeddings().weight[ids[at]] = float("nan")
    plain = Engine(base, drafter="none")
    assert plain.generate([PROMPT], max_new_tokens=at + 1)[0].ids == ids[: at + 1]
    with pytest.raises(UserError, match=f"not finite after {3 + at + 1} tokens: .* model.embed_tokens"):
        plain.generate([PROMPT], max_new_tokens=20)
    # As a candidate the token spoils the whole tree, so it is found no later.
    with pytest.raises(UserError, match="not finite after . tokens: the first .* is that of model.embed_tokens"):
        engine_of(base).generate([PROMPT], max_new_tokens=20)


@pytest.mark.parametrize("num_rows", [1, 2])
def test_a_broken_answer_leaves_nothing_in_the_place_of_the_next(num_rows: int) -> None:
    base = five_tokens()
    expected, bad = slow_ids(base, PROMPT, 6), 2
    assert bad not in [*PROMPT, *expected]
    base.model.get_input_embeddings().weight[bad] = float("nan")
    scheduler = Engine(base, drafter="none").scheduler(num_rows, 60)
    broken = [scheduler.submit([bad] * 30, 6) for _ in range(2)]
    whole = [scheduler.submit(PROMPT, 6) for _ in range(2)]
    scheduler.run()
    assert all(handle.error is not None and "model.embed_tokens" in handle.error for handle in broken)
    assert [handle.generation.ids for handle in whole if handle.generation] == [expected] * 2


def test_settings_that_leave_no_token_say_so() -> None:
    base = five_tokens(eos=[3, 4])
    with pytest.raises(
        UserError, match="no token is left to write after 3 tokens: logit_bias, banned_tokens, min_new_tokens"
    ):
        engine_of(base).generate([PROMPT], banned_tokens=[0, 1, 2], min_new_tokens=5)


def test_a_text_beyond_the_vocabulary_is_refused() -> None:
    base = five_tokens()
    base.tokenizer = letter_tokenizer(26)
    with pytest.raises(UserError, match="token ids of .*; got 25 to 25"):
        Engine(base, drafter="none").generate(["z"])


def test_an_engine_that_cannot_be_is_refused() -> None:
    base = five_tokens()
    heads = random_heads(plain_heads("hydra", num_heads=3), base)
    with pytest.raises(UserError, match="drafter must be one of none, heads, lookup, .* model; got clover"):
        Engine(base, heads, drafter="clover")
    with pytest.raises(UserError, match="drafter=heads needs a heads checkpoint"):
        Engine(base)
    with pytest.raises(UserError, match="tree=given is 4 deep, but the checkpoint has 3 heads"):
        Engine(base, heads, tree=medusa63())


def test_streams_that_are_read_in_turn_each_end_with_their_own_answer() -> None:
    engine = engine_of(five_tokens())
    streams = [engine.stream(PROMPT, 9 + 6 * seed, temperature=1.0, seed=seed) for seed in range(2)]
    texts = ["", ""]
    assert all(stream.generation is None for stream in streams)
    for _ in range(30):
        for number, stream in enumerate(streams):
            texts[number] += next(stream, "")
    for seed, (stream, text) in enumerate(zip(streams, texts, strict=True)):
        [whole] = engine.generate([PROMPT], 9 + 6 * seed, temperature=1.0, seed=seed)
        assert stream.generation is not None and stream.generation.ids == whole.ids and text == whole.text


def test_a_rule_that_is_not_known_is_told_before_the_base_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = five_tokens()
    save_heads(tmp_path / "run", random_heads(plain_heads("hydra"), base), base, {})
    monkeypatch.setattr("euryale.decoding.engine.load_base", lambda config: pytest.fail("the base was loaded"))
    with pytest.raises(UserError, match="accept must be one of .*; got nucleus"):
        Engine.load(tmp_path / "run", tree="chain", accept="nucleus")


def test_the_public_names_come_from_the_package_and_cost_nothing_until_they_are_used() -> None:
    code = "import euryale, sys; assert 'torch' not in sys.modules; print(*dir(euryale))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    names = {"Engine", "Generation", "Scheduler", "Request", "Sampling", "Tree", "UserError", "load_base", "load_heads"}
    assert set(found.split()) == names | {"__version__"}
    assert all(getattr(euryale, name).__name__ == name for name in names)
    with pytest.raises(AttributeError, match="no attribute 'engine_of'"):
        _ = euryale.engine_of
