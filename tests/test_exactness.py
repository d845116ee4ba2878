"""Every answer is the one of plain decoding, the property that everything else is for; see random_decodes.py."""

from dataclasses import fields

import pytest
import torch
from chi_square import chi_square
from random_decodes import Report, random_decodes
from random_models import FAMILIES, FULL, engine_of, five_tokens, twin

from euryale.decoding.config import DRAFTERS
from euryale.decoding.sampling import Sampling


def assert_exact(report: Report) -> None:
    assert not report.mismatches, report.mismatches[0]


def test_random_decodes_equal_plain_decoding() -> None:
    report = random_decodes(400, seed=3)
    assert_exact(report)
    assert not report.near_ties, "float64 has none"
    # The sample reaches what can go wrong: every family both ways, every ending, short and long paths.
    assert set(report.kinds) == {f"{family} {way}" for family in FAMILIES for way in ("greedy", "sampled")}
    expected = {f"{name} {tree}" for name in DRAFTERS[1:] for tree in ("fixed", "dynamic")} | {"heads adaptive"}
    assert set(report.drafters) == expected - {"lookahead fixed"}, "lookahead makes its own tree"
    assert set(report.finish_reasons) == {"eos", "stop", "length", "context"}
    with_grammar = {"json_schema", "regex"}  # whose random decodes are those of test_grammar.py
    assert (
        set(report.settings) == {item.name for item in fields(Sampling)} - with_grammar
        and min(report.settings.values()) >= 5
    )
    assert max(report.gained) >= 5 and sum(n for gained, n in report.gained.items() if gained > 1) > 200
    assert report.num_mixed >= 20
    assert report.num_with_generate >= 20 and report.num_with_ar >= 40


@pytest.mark.parametrize("is_compiled", [True, False], ids=["compiled", "fast"])
def test_random_decodes_in_float32_differ_at_near_ties_alone(is_compiled: bool, request: pytest.FixtureRequest) -> None:
    if not is_compiled:
        request.getfixturevalue("no_compiled_forward")
    report = random_decodes(75, seed=0, dtype=torch.float32)
    assert_exact(report)
    # Two of 5 to 40 random scores lie within 1e-5 about once in 100,000 tokens; here are some 1,000.
    assert len(report.near_ties) <= 1


def test_random_decodes_in_4_bits_give_the_text_of_plain_decoding() -> None:
    assert_exact(random_decodes(100, seed=2, dtype=torch.bfloat16, is_int4=True))


@pytest.mark.parametrize("temperature", [0.7, 1.3])
def test_sampled_pairs_have_the_probabilities_of_the_base(temperature: float) -> None:
    """Without shared noise: 5,000 seeds, two tokens each out of one tree pass, against softmax times softmax.

    A tree that favoured its first candidate by a tenth of its share would add
    about 5,000 x 0.01 x 0.3 / 0.7 = 21 and be missed; by a fifth 86, and fail.
    """
    base, prompt, num = five_tokens(), [0, 3, 1], 5_000
    prompts = torch.tensor([[*prompt, token] for token in range(5)])
    logits_5TV = twin(base)(input_ids=prompts, use_cache=False).logits / temperature
    expected_55 = logits_5TV[0, 2].softmax(-1)[:, None] * logits_5TV[:, 3].softmax(-1) * num
    counts_55 = torch.zeros(5, 5, dtype=torch.float64)
    engine = engine_of(base, FULL)
    for start in range(0, num, 500):
        seeds = list(range(start, start + 500))
        for generation in engine.generate([prompt] * 500, 2, temperature=temperature, seed=seeds):
            assert generation.num_steps == 1, "the second token was drafted and accepted"
            counts_55[generation.ids[0], generation.ids[1]] += 1
    statistic, threshold = chi_square(counts_55, expected_55)
    assert statistic < threshold


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_thousand_random_decodes_equal_plain_decoding() -> None:
    assert_exact(random_decodes(10_000, seed=2))
