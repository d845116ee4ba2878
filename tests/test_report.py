"""A report says what was measured: in tables, in a model card, in pictures that are pictures."""

import copy
import io
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from euryale.errors import UserError
from euryale.evaluation.repetition import repeated_ngram_share
from euryale.report import bench_tables, format, plots, tables
from euryale.report.model_card import model_card
from euryale.report.plot_tree import tree_plot
from euryale.report.report import calibrated_tree_plot, report_files, save_report
from euryale.system.hardware import hardware

PATHS = [[0], [0, 0], [1], [0, 1], [0, 0, 0], [1, 0], [2]]
PROBABILITIES = [0.62, 0.37, 0.11, 0.05, 0.19, 0.04, 0.03]
CALIBRATION: dict[str, Any] = {
    "format_version": 1,
    "device": "cpu",
    "dtype": "float32",
    "threads": 2,
    "calibrations": [
        {
            "temperature": temperature,
            "num_positions": 500,
            "num_nodes": num_nodes,
            "paths": PATHS,
            "probabilities": PROBABILITIES,
            "tau": {"1": 1.0, "2": 1.62, "4": 2.10, "8": 2.41},
            "step_ms": {"1": 2.0, "2": 2.4, "4": 2.5, "8": 4.0},
        }
        for temperature, num_nodes in ((0.0, 4), (0.8, 8))
    ],
}
REPORT: dict[str, Any] = {
    "base": {"path": "checkpoints/tiny-base", "architecture": "LlamaForCausalLM", "fingerprint": "ab12"},
    "heads": {"kind": "hydra", "num_heads": 3, "body": "mlp", "width": 4.0, "output": "shared", "root_token": True},
    "training": {"steps": 400, "tokens": 819200, "seconds": 151.3, "final_loss_nats": 1.23456},
    "accuracy": [{"head": k, "top1": 0.713 - 0.2 * k, "top5": 0.902 - 0.1 * k, "top10": 0.954} for k in range(3)],
    "calibration": CALIBRATION,
    "evaluation": {
        "num_prompts": 24, "temperature": 0.8, "tau": 2.431, "tau_by_depth": [0.66, 0.41, 0.23],
        "identical": 24, "total": 24, "identical_hf": 23, "repeated_8grams": 0.061,
    },
    "bench": {
        "contenders": {
            "euryale": {
                "tokens_per_s": 612.4, "tau": 2.44, "ms_per_step": 3.98,
                "split_ms": {"draft": 0.8, "verify": 2.9, "accept": 0.2, "commit": 0.1},
            },
            "ar": {"tokens_per_s": 437.4, "tau": 1.0, "ms_per_step": 2.29},
            "hf_generate": {"tokens_per_s": 400.3},
            "hf_prompt_lookup": {"tokens_per_s": 421.9},
        },
        "speedup_vs_ar": 1.4, "speedup_vs_hf": 1.53, "spread": {"euryale": [601.5, 620.7]},
        "temperature": 0.8, "num_nodes": 8, "max_new_tokens": 128, "num_prompts": 24, "repeated_8grams": 0.055,
    },
    "hardware": {"cpu": "Some CPU", "cores": 2, "threads": 1, "torch": "2.13.0", "gpu": None},
    "provenance": {"argv": ["train/run.py", "optim.num_steps=400"], "git_commit": "abc1234", "time": "2026-11-21"},
}  # fmt: skip


def report_without(*path: str) -> dict[str, Any]:
    report = copy.deepcopy(REPORT)
    section = report
    for name in path[:-1]:
        section = section[name]
    del section[path[-1]]
    return report


def pixels(png: bytes) -> np.ndarray:
    """[height, width, 3]; fails on anything that is not a whole PNG."""
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    return np.asarray(image.convert("RGB"))


def num_colours(png: bytes) -> int:
    return len(np.unique(pixels(png).reshape(-1, 3), axis=0))


# repeated n-grams


@pytest.mark.parametrize(
    ("ids_lists", "n", "share"),
    [
        ([[1, 2, 1, 2, 1, 2]], 2, 3 / 5),  # 12 21 12 21 12: the last three occurred before
        ([[7] * 10], 8, 2 / 3),  # three places for an 8-gram, two of them repeats
        ([list(range(50))], 8, 0.0),
        ([[1, 2, 3], [1, 2, 3]], 2, 0.0),  # another text is no repetition
        ([[5, 5, 5], [1, 2, 3, 4]], 2, 1 / 5),  # positions of all texts count alike
        ([[1, 2, 3], []], 8, 0.0),
        ([], 8, 0.0),
    ],
)
def test_the_share_of_repeated_ngrams_is_the_one_counted_by_hand(
    ids_lists: list[list[int]], n: int, share: float
) -> None:
    assert repeated_ngram_share(ids_lists, n=n) == pytest.approx(share, abs=1e-12)


def test_eight_is_the_default_length_of_a_repeated_ngram() -> None:
    ids = [*range(8), 99, *range(8)]
    assert repeated_ngram_share([ids]) == pytest.approx(1 / 10)
    assert repeated_ngram_share([[*range(7), 99, *range(7)]]) == 0.0


# tables


def test_columns_line_up_under_their_header() -> None:
    lines = tables.align(["name", "x"], [["a", "1.0"], ["longer", "123.0"]]).splitlines()
    assert lines == ["name        x", "------  -----", "a         1.0", "longer  123.0"]


def test_the_training_summary_holds_every_number_a_person_asks_for() -> None:
    text = tables.training_summary(REPORT)
    for shown in (
        "checkpoints/tiny-base", "3 hydra heads", "400", "819,200", "2 min 31 s", "1.2346 nats", "71.3%", "90.2%",
        "95.4%", "2.43", "8, chosen by timing", "612.4 tokens/s", "1.40x", "1.53x", "24/24 outputs identical", "6.1%",
    ):  # fmt: skip
        assert shown in text, shown
    assert text.isascii()
    assert "WARNING" not in text


def test_a_looping_text_is_warned_about_wherever_it_was_measured() -> None:
    for section in ("evaluation", "bench"):
        report = copy.deepcopy(REPORT)
        report[section]["repeated_8grams"] = 0.34
        assert "WARNING: 34.0% of the 8-grams" in tables.training_summary(report)
        assert f"Warning ({'benchmark' if section == 'bench' else section})" in model_card(report)
    assert format.looping_warning(0.2) is None
    assert format.looping_warning(None) is None


def test_outputs_that_differ_are_counted_and_equal_ones_are_proven_or_only_seen() -> None:
    report = copy.deepcopy(REPORT)
    for is_exact, words in ((True, "drafts, as proven for this machine"), (False, "drafts (seen, not guaranteed)")):
        report["evaluation"]["is_exact"] = is_exact
        assert f"24/24 outputs identical to decoding without {words}" in tables.training_summary(report)
    report["evaluation"]["identical"] = 22
    assert "22/24 outputs identical to decoding without drafts; 2 differ" in tables.training_summary(report)
    assert "2 differ" in model_card(report)


def test_the_evaluation_table_gives_tau_by_depth() -> None:
    text = tables.evaluation_table(REPORT)
    depths = [line.split() for line in text.splitlines() if line[:2] in {"1 ", "2 ", "3 "} and "ahead" not in line]
    assert depths == [["1", "66.0%"], ["2", "41.0%"], ["3", "23.0%"]]
    assert "23/24 identical" in text


def test_the_bench_table_compares_everybody_with_ar_and_hf() -> None:
    text = bench_tables.bench_table(REPORT["bench"])
    rows = {line.split("  ")[0]: line.split() for line in text.splitlines()}
    assert rows["Euryale"][1:] == ["612.4", "601.5..620.7", "1.40x", "1.53x", "2.44", "3.98"]
    assert rows["HF prompt lookup"][3:] == ["421.9", "-", "0.96x", "1.05x", "-", "-"]
    assert rows["verify"][1:] == ["2.900", "72.5%"]


def test_the_calibration_table_ends_with_the_chosen_tree() -> None:
    lines = tables.calibration_table(CALIBRATION["calibrations"][0]).splitlines()
    assert [line for line in lines if "chosen" in line] == [lines[-1]]
    assert lines[-1].split() == ["chosen:", "4", "nodes", "2.10", "2.50", "840.0", "1.68x"]
    assert lines[5].split()[-1] == "1.21x"  # 2.41 / 4.0 ms against 1.0 / 2.0 ms


def test_a_dynamic_tree_that_was_chosen_stands_below_the_best_fixed_one() -> None:
    entry = CALIBRATION["calibrations"][0] | {"dynamic_depth": 3, "dynamic_nodes": 6}
    entry["dynamic"] = [{"num_nodes": 6, "max_depth": 3, "tau": 2.4, "step_ms": 2.6}]
    fixed, dynamic = tables.calibration_table(entry).splitlines()[-2:]
    assert fixed.split()[:4] == ["best", "of", "one", "tree:"]
    assert dynamic.split() == ["chosen:", "dynamic,", "6", "nodes,", "3", "deep", "2.40", "2.60", "923.1", "1.85x"]
    older = CALIBRATION["calibrations"][0] | {"dynamic_depth": 3}
    assert format.dynamic_tree(older) == {"num_nodes": 4, "max_depth": 3}
    assert tables.calibration_table(older).splitlines()[-1].startswith("chosen: dynamic, 4 nodes, 3 deep")


def shallow_choice(finalists: bool) -> dict[str, Any]:
    """The first entry, with a tree of 4 nodes and depth 2 chosen instead of the full depth."""
    entry = copy.deepcopy(CALIBRATION["calibrations"][0]) | {"max_depth": 2}
    entry["shallow"] = [{"num_nodes": 4, "max_depth": 2, "tau": 1.9, "step_ms": 2.1}]
    if finalists:
        alone = {"num_nodes": 1, "max_depth": None, "tau": 1.0, "step_ms": 2.0, "error_ms": 0.1}
        entry["finalists"] = [alone, entry["shallow"][0] | {"step_ms": 2.2, "error_ms": 0.1}]
    return entry


@pytest.mark.parametrize(("finalists", "step_ms"), [(False, 2.1), (True, 2.2)], ids=["once", "timed again"])
def test_what_is_shown_of_the_choice_is_the_tree_that_was_chosen(
    finalists: bool, step_ms: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the tree of as many nodes and full depth: table, title and plot have one tau."""
    entry = shallow_choice(finalists)
    speedup = 1.9 / step_ms * 2.0
    chosen = format.chosen_tree(entry)
    assert (chosen["tau"], chosen["step_ms"], chosen["speedup"]) == (1.9, step_ms, pytest.approx(speedup))
    last = tables.calibration_table(entry).splitlines()[-1]
    assert last.split()[:5] == ["chosen:", "4", "nodes,", "2", "deep"] and f"{speedup:.2f}x" in last
    titles: list[str] = []
    monkeypatch.setattr("euryale.report.report.tree_plot", lambda paths, shares, title: titles.append(title) or b"")
    calibrated_tree_plot(entry)
    assert titles == ["Tree of 4 nodes, 2 deep, temperature 0, tau 1.90"]
    drawn: list[tuple[list[float], list[float], str]] = []
    plain = plots.Axes.plot

    def noted(self: plots.Axes, xs: list[float], ys: list[float], *more: object, **how: object) -> object:
        drawn.append((list(xs), list(ys), str(how.get("label", ""))))
        return plain(self, xs, ys, *more, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(plots.Axes, "plot", noted)
    plots.calibration_plot({"calibrations": [entry]})
    rings = [(xs, ys) for xs, ys, _ in drawn if len(xs) == 1]
    assert rings == [([4], [1.9]), ([4], [step_ms]), ([4], [pytest.approx(speedup)])]
    assert [label for *_, label in drawn if label][0] == "T = 0: 1.90 with 4 nodes, 2 deep"


@pytest.mark.parametrize("tree", ["chain", "calibrated"])
def test_tables_say_which_tree_ran(tree: str) -> None:
    report = copy.deepcopy(REPORT)
    report["bench"]["tree"] = report["evaluation"]["tree"] = tree
    for text in (
        bench_tables.bench_table(report["bench"]), tables.evaluation_table(report), tables.training_summary(report)
    ):  # fmt: skip
        assert re.search(rf"^tree +{tree}$", text, flags=re.M), text


def test_speedups_follow_from_tokens_per_second_when_not_given() -> None:
    bench = report_without("bench", "speedup_vs_ar")["bench"]
    assert format.speedups(bench) == (pytest.approx(612.4 / 437.4), 1.53)
    assert format.speedups({}) == (None, None)


def test_the_calibration_nearest_in_temperature_is_shown() -> None:
    chosen = [(format.nearest_calibration(CALIBRATION, t) or {})["num_nodes"] for t in (None, 0.0, 0.3, 0.7, 2.0)]
    assert chosen == [4, 4, 4, 8, 8]
    assert format.nearest_calibration({}, 0.0) is None


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (59.9, "59.9 s"), (119.7, "2 min 00 s"), (7260, "2 h 01 min")]
)
def test_durations_are_rounded_without_sixty_seconds(seconds: float, text: str) -> None:
    assert format.duration(seconds) == text


# the model card


def test_the_card_says_what_it_is_how_to_use_it_and_where_its_numbers_come_from() -> None:
    card = model_card(REPORT, ["tree.png"])
    for shown in (
        "`checkpoints/tiny-base`", "Engine.load(", "| 2.43 |", "| 1.40x |", "24/24 outputs identical",
        "`python train/run.py optim.num_steps=400`", "Some CPU (2 cores, 1 threads)", "abc1234", "(tree.png)",
    ):  # fmt: skip
        assert shown in card, shown
    assert "(bench.png)" not in card
    compile(card.split("```python\n")[1].split("```")[0], "card", "exec")


def test_the_card_links_to_a_base_of_the_hub_only() -> None:
    assert "base_model" not in model_card(REPORT)
    report = copy.deepcopy(REPORT)
    report["base"] |= {"path": "meta-llama/Llama-3.1-8B", "fingerprint": "hub:0e9e39f"}
    assert "base_model: meta-llama/Llama-3.1-8B\n---" in model_card(report)


@pytest.mark.parametrize("section", sorted(REPORT))
def test_an_absent_section_is_left_out_and_nothing_is_invented(section: str) -> None:
    report = report_without(section)
    text = tables.training_summary(report) + tables.evaluation_table(report) + model_card(report)
    assert "None" not in text
    assert "nan" not in text.split()


def test_an_empty_report_is_still_a_card_and_makes_no_claim() -> None:
    files = report_files({})
    assert sorted(files) == ["README.md", "report.json"]
    assert "Nothing yet" in str(files["README.md"])
    assert tables.training_summary({}) == ""


# pictures


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plots.accuracy_plot(REPORT["accuracy"]),
        lambda: plots.calibration_plot(CALIBRATION),
        lambda: plots.bench_plot(REPORT["bench"]),
        lambda: plots.bench_plot({"contenders": {"ar": {"tokens_per_s": 3.0}}}),
        lambda: tree_plot(PATHS, PROBABILITIES),
    ],
    ids=["accuracy", "calibration", "bench", "bench of one", "tree"],
)
def test_a_plot_is_a_png_with_something_on_it(draw: Callable[[], bytes]) -> None:
    png = draw()
    height, width, _ = pixels(png).shape
    assert min(height, width) >= 200
    assert num_colours(png) > 20
    assert (pixels(png) == 255).all(axis=-1).mean() < 0.99


def test_a_plot_shows_its_numbers() -> None:
    changed = copy.deepcopy(REPORT["accuracy"])
    changed[1]["top1"] = 0.1
    assert plots.accuracy_plot(REPORT["accuracy"]) != plots.accuracy_plot(changed)
    assert plots.accuracy_plot(changed) == plots.accuracy_plot(changed)


def test_a_tree_is_drawn_at_the_size_its_leaves_need() -> None:
    paths = [[first] for first in range(9)] + [[0, second] for second in range(54)]
    large = pixels(tree_plot(paths, [0.9 / (1 + sum(path)) / len(path) for path in paths]))
    small = pixels(tree_plot(paths[:3], [0.5, 0.2, 0.1]))
    root_alone = pixels(tree_plot([], []))
    assert large.shape[0] > 62 * 30 > small.shape[0] >= root_alone.shape[0]


def test_a_path_without_its_parent_is_no_tree() -> None:
    with pytest.raises(AssertionError, match="has no parent"):
        tree_plot([[0], [1, 0]], [0.5, 0.1])


# files


def test_a_saved_report_lies_beside_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "heads.json").write_text("{}")
    (tmp_path / "tree.png").write_text("old")
    paths = save_report(tmp_path, REPORT)
    names = {"report.json", "README.md", "accuracy.png", "calibration.png", "tree.png", "bench.png"}
    assert {path.name for path in paths} == names
    assert {path.name for path in tmp_path.iterdir()} == names | {"heads.json"}
    assert json.loads((tmp_path / "report.json").read_text()) == REPORT
    for path in tmp_path.glob("*.png"):
        assert num_colours(path.read_bytes()) > 20
        assert f"({path.name})" in (tmp_path / "README.md").read_text()


def test_a_report_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_report(tmp_path, {"training": {"steps": 1}})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full_disk(self: Path, content: bytes) -> int:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(UserError, match="could not be saved"):
        save_report(tmp_path, REPORT)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_hardware_of_this_machine_has_a_name() -> None:
    found = hardware()
    assert found["cpu"]
    assert isinstance(found["cores"], int) and found["cores"] >= 1
    assert isinstance(found["threads"], int) and found["threads"] >= 1
    assert str(found["torch"]) in format.describe_hardware(found)
