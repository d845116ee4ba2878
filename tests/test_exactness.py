"""Is every answer the one of plain decoding? The property that everything else is for; see random_decodes.py."""

import pytest
import torch
from random_decodes import Report, random_decodes
from random_models import FAMILIES


def assert_exact(report: Report) -> None:
    assert not report.mismatches, report.mismatches[0]


def test_random_decodes_equal_plain_decoding() -> None:
    report = random_decodes(400, seed=1)
    assert_exact(report)
    assert not report.near_ties, "float64 has none"
    # The sample reaches what can go wrong: every family both ways, every ending, short and long paths.
    assert set(report.kinds) == {f"{family} {way}" for family in FAMILIES for way in ("greedy", "sampled")}
    assert set(report.finish_reasons) == {"eos", "length", "context"}
    assert max(report.gained) >= 5 and sum(n for gained, n in report.gained.items() if gained > 1) > 200
    assert report.num_with_generate >= 20 and report.num_with_ar >= 40


def test_random_decodes_in_float32_differ_at_near_ties_alone() -> None:
    report = random_decodes(150, seed=0, dtype=torch.float32)
    assert_exact(report)
    # Two of 5 to 40 random scores lie within 1e-5 about once in 100,000 tokens; here are some 1,500.
    assert len(report.near_ties) <= 1


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_thousand_random_decodes_equal_plain_decoding() -> None:
    assert_exact(random_decodes(10_000, seed=2))
