"""A fair comparison: the same work, one counter, turns, and a model that is given back as it was."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from plain_heads import plain_heads
from random_models import random_base, random_heads
from transformers import GenerationConfig

from euryale.base.base import Base
from euryale.decoding.drafters import head_matrices
from euryale.decoding.engine import Engine
from euryale.decoding.sampling import Sampling
from euryale.decoding.tree.tree import Tree
from euryale.errors import UserError
from euryale.evaluation import bench as bench_module
from euryale.evaluation import contenders, roofline
from euryale.evaluation.bench import bench, in_turns
from euryale.evaluation.config import BenchSettings
from euryale.evaluation.contenders import Turn
from euryale.evaluation.hf_baselines import count_new, generate_ids, generation_settings, transformers_attention
from euryale.report.bench_tables import bench_table
from euryale.report.result_file import write_result

PROMPTS = [[3, 1, 4, 1, 5], [9, 2, 6], [5, 3, 5, 8, 9, 7]]
TREE = Tree.from_paths([(0,), (0, 0), (1,), (0, 1)])


@pytest.fixture(scope="module")
def base() -> Base:
    return random_base("llama", vocab_size=13, seed=3, eos=[0, 7])


@pytest.fixture(scope="module")
def engine(base: Base) -> Engine:
    return Engine(base, random_heads(plain_heads(num_heads=3, width=1.0), base), tree=TREE)


def stub(speeds: list[tuple[int, float]]) -> Callable[..., Callable[[list[int], int], Turn]]:
    """A contender whose answers have these (tokens, seconds), one after the other, the warm-up first."""
    turns = iter(speeds)

    def build(*_: object) -> Callable[[list[int], int], Turn]:
        def answer(prompt: list[int], seed: int) -> Turn:
            tokens, seconds = next(turns)
            return Turn([1] * tokens, seconds)

        return answer

    return build


def test_the_counter_takes_new_ids_up_to_the_first_end_included() -> None:
    assert count_new([9, 9, 1, 2, 3], 2, (), 10) == [1, 2, 3]
    assert count_new([9, 7, 1, 7, 7, 3], 2, (7,), 10) == [1, 7]
    assert count_new([9, 1, 2, 3], 1, (3,), 2) == [1, 2]
    assert count_new([9], 1, (9,), 2) == []


@pytest.mark.parametrize("name", sorted(set(contenders.CONTENDERS) - {"llama_cpp"}))
def test_every_contender_gives_the_same_greedy_ids(engine: Engine, name: str) -> None:
    for prompt in PROMPTS:
        [expected] = Engine(engine.base, drafter="none").generate([prompt], 24)
        turn = contenders.CONTENDERS[name](engine, Sampling(), 24)(prompt, 0)
        assert turn.ids == expected.ids
        assert turn.seconds > 0


def test_sampled_contenders_of_ours_agree_and_those_of_transformers_depend_on_the_seed(engine: Engine) -> None:
    how = (engine, Sampling(0.9, 0.95), 16)
    ours, plain, rival = (contenders.CONTENDERS[name](*how) for name in ("euryale", "ar", "hf_generate"))
    state = torch.random.get_rng_state()
    assert ours(PROMPTS[0], 5).ids == plain(PROMPTS[0], 5).ids
    answers = {tuple(rival(PROMPTS[0], seed).ids) for seed in (5, 5, 6, 7, 8)}
    assert 1 < len(answers) < 5
    assert torch.equal(torch.random.get_rng_state(), state), "a benchmark must not move the caller's generator"


def test_the_model_comes_back_as_it_was_also_after_an_error(base: Base) -> None:
    own_config = base.model.generation_config
    with pytest.raises(RuntimeError, match="broken"), transformers_attention(base) as model:
        assert model.config._attn_implementation == "sdpa"
        assert model.generation_config is not own_config
        raise RuntimeError("broken")
    assert base.model.config._attn_implementation == "euryale"
    assert base.model.generation_config is own_config


def test_a_models_own_generation_config_does_not_change_the_baseline(base: Base) -> None:
    own_config = base.model.generation_config
    base.model.generation_config = GenerationConfig(
        repetition_penalty=9.0, do_sample=True, temperature=3.0, top_k=2, max_length=3, suppress_tokens=[1, 2, 3]
    )
    try:
        [expected] = Engine(base, drafter="none").generate([PROMPTS[0]], 16)
        with transformers_attention(base) as model:
            ids = generate_ids(model, PROMPTS[0], generation_settings(base, Sampling(), 16))
    finally:
        base.model.generation_config = own_config
    assert count_new(ids, len(PROMPTS[0]), base.eos_ids, 16) == expected.ids


def test_transformers_prints_no_warning_while_it_is_timed(
    engine: Engine, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    transformers.utils.logging.enable_propagation()
    try:
        with caplog.at_level(logging.WARNING):
            for name in ("hf_generate", "hf_prompt_lookup"):
                for sampling in (Sampling(), Sampling(0.7, 0.9)):
                    contenders.CONTENDERS[name](engine, sampling, 8)(PROMPTS[0], 0)
    finally:
        transformers.utils.logging.disable_propagation()
    assert not caplog.records
    assert not [str(w.message) for w in recwarn if "generat" in str(w.message)]


def test_whoever_begins_changes_with_every_prompt_and_round(monkeypatch: pytest.MonkeyPatch, engine: Engine) -> None:
    turns = list(in_turns(["a", "b", "c"], 2, 2))
    assert [name for _, _, name in turns] == [*"abc", *"bca", *"bca", *"cab"]
    assert sorted(turns) == [(r, i, n) for r in range(2) for i in range(2) for n in "abc"]
    order: list[str] = []

    def recording(name: str) -> Callable[..., Callable[[list[int], int], Turn]]:
        def build(*_: object) -> Callable[[list[int], int], Turn]:
            def answer(prompt: list[int], seed: int) -> Turn:
                order.append(name)
                return Turn([1], 1.0)

            return answer

        return build

    monkeypatch.setattr("euryale.evaluation.config.CONTENDERS", ("a", "b"))
    monkeypatch.setattr(bench_module, "CONTENDERS", {name: recording(name) for name in "ab"})
    bench(engine, PROMPTS[:2], BenchSettings(("a", "b"), repeats=2))
    assert "".join(order) == "ab" + "abba" + "baab"  # warm-up, round 0, round 1


def test_speed_is_tokens_over_seconds_of_the_median_round(monkeypatch: pytest.MonkeyPatch, engine: Engine) -> None:
    warm_up = (1, 1000.0)
    ours = [warm_up, (10, 1.0), (30, 1.0), (40, 1.0), (40, 1.0), (10, 1.0), (10, 1.0)]  # 20, 40 and 10 a second
    plain = [warm_up, (10, 1.0), (10, 3.0), (5, 1.0), (5, 1.0), (8, 1.0), (8, 1.0)]  # 5, 5 and 8 a second
    monkeypatch.setattr(
        bench_module, "CONTENDERS", {"euryale": stub(ours), "ar": stub(plain), "hf_generate": stub(list(plain))}
    )
    result = bench(engine, PROMPTS[:2], BenchSettings(("euryale", "ar", "hf_generate"), repeats=3))
    assert result["contenders"]["euryale"]["tokens_per_s"] == 20.0
    assert result["contenders"]["ar"]["tokens_per_s"] == 5.0  # 20 tokens in 4 s, not the mean of 10 and 3.3
    assert result["spread"] == {"euryale": [10.0, 40.0], "ar": [5.0, 8.0], "hf_generate": [5.0, 8.0]}
    assert result["speedup_vs_ar"] == 4.0 == result["speedup_vs_hf"]
    assert result["speedup_vs_ar_spread"] == [1.25, 8.0]
    assert result["identical"] == 0, "the answers differ in length"


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_the_result_is_the_bench_section_of_a_report(engine: Engine, temperature: float) -> None:
    settings = BenchSettings(repeats=2, max_new_tokens=12, sampling=Sampling(temperature), seed=4)
    result = bench(engine, PROMPTS, settings)
    assert list(result["contenders"]) == ["euryale", "ar", "hf_generate", "hf_prompt_lookup"]
    assert (result["identical"], result["total"], result["num_prompts"]) == (3, 3, 3)
    assert result.get("identical_hf") == (3 if temperature == 0 else None)
    assert (result["num_nodes"], result["max_new_tokens"], result["temperature"]) == (5, 12, temperature)
    ours, plain = result["contenders"]["euryale"], result["contenders"]["ar"]
    assert ours["tau"] >= 1.0 == plain["tau"]
    assert (
        ours["tokens"]
        == plain["tokens"]
        == sum(
            len(g.ids)
            for i, p in enumerate(PROMPTS)
            for g in engine.generate([p], 12, temperature=temperature, seed=4 + i)
        )
    )
    for row in (ours, plain):
        assert set(row["split_ms"]) == {"draft", "verify", "accept", "commit"}
        assert 0 < sum(row["split_ms"].values()) <= row["ms_per_step"] * 1.5
        assert row["peak_host_bytes"] > 1e7, "an interpreter with torch needs more"
        assert "peak_device_bytes" not in row, "there is no such memory on a CPU"
    assert len(result["tau_by_depth"]) == result["max_depth"] == TREE.max_depth
    assert sum(result["tau_by_depth"]) == pytest.approx(ours["tau"] - 1)
    assert 0.0 <= result["repeated_8grams"] <= 1.0
    assert json.loads(json.dumps(result)) == result
    assert "HF prompt lookup" in bench_table(result)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (BenchSettings(("euryale", "vllm")), "contenders must be of euryale, ar, .*; got vllm"),
        (BenchSettings(()), "contenders must be of euryale, ar, .*; got none"),
        (BenchSettings(repeats=0), "repeats must be at least 1; got 0"),
        (BenchSettings(max_new_tokens=0), "max_new_tokens must be at least 1; got 0"),
        (BenchSettings(sampling=Sampling(presence_penalty=1.0)), "no presence and frequency penal.* out: hf_generate"),
    ],
)
def test_what_cannot_be_asked_is_refused(engine: Engine, settings: BenchSettings, message: str) -> None:
    with pytest.raises(UserError, match=message):
        bench(engine, PROMPTS, settings)


def test_a_lossy_rule_is_named_in_the_table(engine: Engine) -> None:
    lossy = Engine(engine.base, engine.heads, tree=TREE, accept="typical")
    settings = BenchSettings(("euryale", "ar"), repeats=1, max_new_tokens=6, sampling=Sampling(1.0))
    table = bench_table(bench(lossy, PROMPTS[:1], settings))
    assert "Euryale (LOSSY)" in table and "LOSSY: typical (threshold 0.09, alpha 0.3)" in table
    assert "AR (same engine, no drafts) " in table


def test_no_prompts_are_refused(engine: Engine) -> None:
    with pytest.raises(UserError, match="no prompts"):
        bench(engine, [], BenchSettings())


def test_a_busy_machine_is_mentioned(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for used, is_said in ((99.0, True), (3.0, False)):
        caplog.clear()
        monkeypatch.setattr("psutil.cpu_percent", lambda interval, used=used: used)
        bench(engine, PROMPTS[:1], BenchSettings(("ar",), repeats=1, max_new_tokens=2))
        assert ("machine is busy" in caplog.text) == is_said


def test_results_are_written_as_json_or_added_to_json_lines(tmp_path: Path) -> None:
    for _ in range(2):
        write_result(tmp_path / "a.json", {"x": 1})
        write_result(tmp_path / "deep" / "a.jsonl", {"x": 1})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}
    assert (tmp_path / "deep" / "a.jsonl").read_text() == '{"x": 1}\n' * 2
    with pytest.raises(UserError, match="cannot be written"):
        write_result(tmp_path / "a.json" / "b.jsonl", {})


def test_the_ceiling_counts_what_a_step_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "_best_seconds", lambda work, device: 0.001)
    tied = random_base(vocab_size=13, tie_word_embeddings=True)
    untied = random_base(vocab_size=13, tie_word_embeddings=False)
    expected = sum(p.numel() for p in tied.model.parameters())
    for base in (tied, untied):  # an input embedding of its own is only looked up
        found = roofline.measure_ceiling(Engine(base, drafter="none"))
        assert found.base_bytes == found.step_bytes == 4 * expected
        assert found.step_flops == 2 * expected
        assert found.bytes_per_s == 2**20 / 0.001
        assert found.ar_tokens_per_s == found.bytes_per_s / found.base_bytes
    for kind, share, evaluations in (("medusa", 1.0, [1, 1]), ("hydra", 1.0, [1, 2]), ("hydra", 0.5, [1, 2])):
        heads = random_heads(plain_heads(kind, num_heads=3, width=1.0, vocab_share=share), tied)
        # Below the root two parents: the tree asks head 0 once, and head 1 once or (hydra) once for each of them.
        tree = Tree.from_paths([(0,), (1,), (0, 0), (1, 0)])
        found = roofline.measure_ceiling(Engine(tied, heads, tree=tree))
        rows = 13 if share == 1.0 else 7
        sizes = [sum(p.numel() for p in heads.bodies[k].parameters()) + rows * 16 for k in range(2)]
        assert found.step_bytes == 4 * (expected + sum(sizes))
        asked = sum(2 * size * times for size, times in zip(sizes, evaluations, strict=True))
        assert found.step_flops == 2 * expected * 5 + asked
        assert f"With 5 nodes a step reads {found.step_bytes / 1e6:.1f} MB" in found.describe()
        assert found.as_dict()["step_ms"] == found.step_ms > 0


@pytest.mark.usefixtures("no_compiled_forward")
def test_heads_that_are_asked_in_bfloat16_are_counted_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Next to a float32 base, on a processor that multiplies bfloat16."""
    monkeypatch.setattr(roofline, "_best_seconds", lambda work, device: 0.001)
    base = random_base(vocab_size=13)
    engine = Engine(base, random_heads(plain_heads("medusa", num_heads=2, vocab_share=1.0), base), tree="chain")
    bytes_of: dict[torch.dtype, int] = {}
    for dtype in (torch.float32, torch.bfloat16):
        monkeypatch.setattr(head_matrices, "draft_dtype", lambda base, dtype=dtype: dtype)
        found = roofline.measure_ceiling(engine)
        bytes_of[dtype] = found.step_bytes - found.base_bytes
    assert bytes_of[torch.float32] == 2 * bytes_of[torch.bfloat16] > 0


def test_the_clock_runs_while_memory_for_keys_and_values_is_taken(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It began when the scheduler, and its cache, were made."""
    now, plain = 0.0, Engine._schedule

    def slow(self: Engine, *asked: object, **more: object) -> object:
        nonlocal now
        now += 1000.0
        return plain(self, *asked, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(contenders.time, "perf_counter", lambda: now)
    monkeypatch.setattr(Engine, "_schedule", slow)
    for name in ("euryale", "ar"):
        assert contenders.CONTENDERS[name](engine, Sampling(), 4)(PROMPTS[0], 0).seconds == 1000.0


def test_every_contender_turns_its_ids_into_text(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[list[int]] = []
    tokenizer = engine.base.tokenizer
    plain = tokenizer.decode
    monkeypatch.setattr(tokenizer, "decode", lambda ids, **more: decoded.append(list(ids)) or plain(ids, **more))
    for name in ("ar", "hf_generate"):
        decoded.clear()
        contenders.CONTENDERS[name](engine, Sampling(), 4)(PROMPTS[0], 0)
        assert decoded, name


def test_the_ceiling_measures_this_machine(engine: Engine) -> None:
    found = roofline.measure_ceiling(engine)
    assert 1e7 < found.bytes_per_s < 1e14
    assert 1e7 < found.flops_per_s < 1e16
