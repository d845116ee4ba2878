"""The tree that an engine uses, and trees loaded from a folder, which answer as the saved ones."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from plain_heads import plain_heads
from random_models import five_tokens, random_base, random_heads

from euryale.base import precision
from euryale.base.base import Base, load_base
from euryale.base.config import BaseConfig
from euryale.decoding.config import TreeConfig
from euryale.decoding.engine import Engine
from euryale.decoding.tree.calibration import INT4_TREE_FILE, TREE_FILE, Calibration, find_tree
from euryale.decoding.tree.choose import plan_sizes
from euryale.decoding.tree.tree import ROOT_ONLY, DynamicTree, Tree, chain
from euryale.errors import UserError
from euryale.heads.checkpoint import save_heads


def calibration(temperature: float, paths: list[list[int]], num_nodes: int) -> Calibration:
    return Calibration(temperature, num_nodes, paths, [0.5] * len(paths), num_positions=10)


def test_the_tree_is_the_one_given_or_calibrated_nearest_or_a_chain() -> None:
    base = five_tokens()
    heads = random_heads(plain_heads("hydra", num_heads=3), base)
    assert Engine(base, heads).tree() == chain(3)
    assert Engine(base, heads, tree=chain(2)).tree() == chain(2)
    assert Engine(base, heads, drafter="none", tree=chain(2)).tree() == ROOT_ONLY
    found = [calibration(0.0, [[0], [0, 0]], 3), calibration(1.0, [[0], [1], [2], [3]], 4)]
    engine = Engine(base, heads, calibrations=found)
    assert engine.tree(0.0) == engine.tree(0.4) == chain(2)
    assert engine.tree(0.7).paths == ((), (0,), (1,), (2,))
    wide = Engine(base, heads, tree=Tree.from_paths([(0,), (7,), (7, 0)])).tree()
    assert wide == chain(1), "ranks beyond the vocabulary are cut off"


def test_calibrated_trees_can_have_another_size() -> None:
    base = five_tokens()
    heads = random_heads(plain_heads("hydra", num_heads=3), base)
    found = [calibration(0.0, [[0], [0, 0], [1]], 2)]

    def engine(num_nodes: int, calibrations: list[Calibration] = found) -> Engine:
        return Engine(base, heads, tree=TreeConfig(num_nodes=num_nodes), calibrations=calibrations)

    assert [engine(n).tree().num_nodes for n in (1, 2, 4)] == [1, 2, 4]
    with pytest.raises(UserError, match="num_nodes must be from 1 to 4, as trees were calibrated; got 5"):
        engine(5)
    with pytest.raises(UserError, match="num_nodes must be from 1 to 256; got 0"):
        engine(0)
    with pytest.raises(UserError, match="num_nodes needs a calibrated tree"):
        engine(2, [])


def test_a_tree_can_ask_fewer_heads() -> None:
    base = five_tokens()
    heads = random_heads(plain_heads("hydra", num_heads=3), base)
    found = [calibration(0.0, [[0], [0, 0], [0, 0, 0], [1]], 4)]

    def tree(drafter: str = "heads", **asked: object) -> Tree | DynamicTree:
        return Engine(base, heads, drafter, TreeConfig(**asked), found).tree()  # type: ignore[arg-type]

    assert tree(max_depth=2).paths == ((), (0,), (0, 0), (1,)), "a deeper node leaves its place"
    assert tree(max_depth=1, num_nodes=2) == chain(1)
    assert tree(max_depth=2, name="chain") == chain(2)
    assert tree(max_depth=1, name="medusa63").max_depth == 1
    assert tree(max_depth=2, name="dynamic") == DynamicTree(4, 2)
    assert tree("lookup", max_depth=2, name="chain") == chain(2)
    assert tree("lookup", max_depth=2, name="medusa63").max_depth == 2
    assert tree("none", max_depth=2) == ROOT_ONLY, "a sweep may hold both"
    with pytest.raises(UserError, match="tree.max_depth must be at most 3, the number of heads; got 4"):
        tree(max_depth=4)
    with pytest.raises(UserError, match=r"tree.max_depth must be at most 8, drafter.depth; got 9"):
        tree("lookup", max_depth=9)
    with pytest.raises(UserError, match="tree.max_depth must be at least 1; got 0"):
        tree(max_depth=0)


def test_a_calibration_for_more_heads_is_refused() -> None:
    base = five_tokens()
    heads = random_heads(plain_heads("hydra", num_heads=3), base)
    with pytest.raises(UserError, match="tree=calibrated is 4 deep, but the checkpoint has 3 heads"):
        Engine(base, heads, calibrations=[calibration(0.0, [[0], [0, 0], [0, 0, 0], [0, 0, 0, 0]], 5)])


TREE_JSON = (
    '{"format_version": 1, "calibrations": [{"temperature": 0.0, "num_nodes": 3, "paths": [[0], [0, 0], [1]], '
    '"probabilities": [0.5, 0.3, 0.1], "num_positions": 100}]}'
)


@pytest.fixture
def checkpoint(tmp_path: Path, tiny_base: Base) -> Path:
    folder = tmp_path / "run"
    heads = random_heads(plain_heads("hydra", num_heads=3), tiny_base)
    save_heads(folder, heads, tiny_base, {})
    (folder / "tree.json").write_text(TREE_JSON)
    return folder


def test_a_loaded_engine_answers_as_the_one_that_was_saved(checkpoint: Path, tiny_base: Base) -> None:
    expected = Engine(tiny_base, drafter="none").generate(["def f(x):", "a"], max_new_tokens=12)
    for tree, num_nodes in (("calibrated", 3), ("chain", 4)):
        engine = Engine.load(checkpoint, tree=tree, device="cpu", dtype="float32")
        assert engine.tree().num_nodes == num_nodes
        assert [g.ids for g in engine.generate(["def f(x):", "a"], max_new_tokens=12)] == [g.ids for g in expected]
    heads = random_heads(plain_heads("hydra", num_heads=3), tiny_base)
    assert engine.heads is not None
    for name, tensor in heads.state_dict().items():
        assert torch.equal(engine.heads.state_dict()[name], tensor)
    for base in (tiny_base, tiny_base.path):
        assert Engine.load(checkpoint, base=base, drafter="none").tree() == ROOT_ONLY


def test_heads_are_loaded_with_the_base_in_the_dtype_they_were_trained_on(
    tmp_path: Path, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "bfloat16_speedup", lambda: 2.0)
    base = load_base(BaseConfig(path=tiny_base.path, dtype="bfloat16"))
    save_heads(tmp_path / "heads", random_heads(plain_heads("hydra", num_heads=3), base), base, {})
    for asked, dtype in (("auto", torch.bfloat16), ("float32", torch.float32)):
        engine = Engine.load(tmp_path / "heads", tree="chain", device="cpu", dtype=asked)
        assert engine.base.dtype == dtype


def test_a_checkpoint_that_cannot_be_loaded_is_refused(checkpoint: Path, tiny_base: Base) -> None:
    with pytest.raises(UserError, match="is not a checkpoint"):
        Engine.load(checkpoint.parent)
    with pytest.raises(UserError, match="tree must be one of chain, medusa63, calibrated, dynamic; got bush"):
        Engine.load(checkpoint, base=tiny_base, tree="bush")
    with pytest.raises(UserError, match="drafter must be one of none, heads, lookup, .* model; got clover"):
        Engine.load(checkpoint, base=tiny_base, drafter="clover")
    with pytest.raises(UserError, match="tree=medusa63 is 4 deep, but the checkpoint has 3 heads"):
        Engine.load(checkpoint, base=tiny_base, tree="medusa63")
    with pytest.raises(UserError, match="trained for"):
        Engine.load(checkpoint, base=random_base("llama", 99))
    (checkpoint / "tree.json").write_text(
        TREE_JSON.replace("[0, 0]", "[0, 0], [0, 0, 0], [0, 0, 0, 0]")
        .replace("3,", "5,", 1)
        .replace("0.3,", "0.3, 0.2, 0.2,")
    )
    with pytest.raises(UserError, match="tree=calibrated is 4 deep"):
        Engine.load(checkpoint, base=tiny_base)
    (checkpoint / "tree.json").unlink()
    with pytest.raises(UserError, match="tree=calibrated: .* has no tree.json"):
        Engine.load(checkpoint, base=tiny_base)
    (checkpoint / "heads.json").write_text('{"format_version": 1, "hidden_size": 8, "vocab_size": 9}')
    with pytest.raises(UserError, match="does not say which base"):
        Engine.load(checkpoint)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"format_version": 2}',
        '{"format_version": 1, "calibrations": []}',
        TREE_JSON.replace("temperature", "heat"),
        TREE_JSON.replace("[0, 0]", '["a"]'),
        TREE_JSON.replace('"temperature": 0.0', '"temperature": "cold"'),
        TREE_JSON.replace("[0, 0]", "[2, 0]"),
        TREE_JSON.replace('"num_nodes": 3', '"num_nodes": 0'),
        TREE_JSON.replace('"num_nodes": 3', '"num_nodes": 5'),
        TREE_JSON.replace('"num_nodes": 3', '"num_nodes": 3, "dynamic_depth": 0'),
        TREE_JSON.replace('"num_nodes": 3', '"num_nodes": 3, "dynamic_nodes": "many"'),
        TREE_JSON.replace('"num_nodes": 3', '"num_nodes": 3, "dynamic": [{"num_nodes": 4, "max_depth": 2, "tau": 2}]'),
        TREE_JSON.replace("0.5, 0.3, 0.1", "0.5, 0.3"),
        TREE_JSON.replace("0.5", "9223372036854775808"),
        TREE_JSON.replace("0.5", "NaN"),
        TREE_JSON.replace("0.5", '"0.5"'),
        TREE_JSON.replace("[1]]", "[]]"),
        TREE_JSON.replace("[1]]", "[1.5]]"),
        TREE_JSON.replace("[1]]", "[1], null]").replace("0.1]", "0.1, 0.1]"),
        *(
            TREE_JSON.replace('"num_nodes": 3', f'"num_nodes": 3, {more}')
            for more in (
                '"tau": null',
                '"tau": {"a": 1}',
                '"tau": {"2": "x"}',
                '"step_ms": {"2": 0}',
                '"step_ms": Infinity',
                '"step_ms": {"0": 1}',
                '"max_depth": "x"',
                '"dynamic_nodes": 0',
                '"shallow": 1',
                '"shallow": [null]',
                '"shallow": [{"num_nodes": 2, "max_depth": 1, "tau": 1.5, "step_ms": []}]',
            )  # fmt: skip
        ),
        "[" * 100_000,
    ],
)
def test_a_damaged_tree_file_is_refused(checkpoint: Path, tiny_base: Base, content: str) -> None:
    (checkpoint / "tree.json").write_text(content)
    with pytest.raises(UserError, match="tree.json"):
        Engine.load(checkpoint, base=tiny_base)


@pytest.mark.parametrize("draft_ids", [[1, 2, 2], [-1, 2, 3], [1, 2, 99], [3, 2, 1]])
def test_a_damaged_draft_vocabulary_is_refused(tmp_path: Path, tiny_base: Base, draft_ids: list[int]) -> None:
    heads = random_heads(plain_heads("hydra", num_heads=3, vocab_share=3 / 99), tiny_base)
    heads.draft_ids = torch.tensor(draft_ids)
    save_heads(tmp_path, heads, tiny_base, {})
    with pytest.raises(UserError, match="draft_ids are not increasing ids of the vocabulary"):
        Engine.load(tmp_path, base=tiny_base, tree="chain")


def test_an_adaptive_size_has_the_depth_that_was_fastest() -> None:
    """Four nodes gain a little more two deep than flat, but the second level costs more than that."""
    paths, shares = [[0], [0, 0], [1], [2]], [0.5, 0.3, 0.2, 0.1]
    flat = {"num_nodes": 4, "max_depth": 1, "tau": 1.8, "step_ms": 1.1}
    timed = ({"1": 1.0, "4": 2.0}, {"1": 1.0, "4": 1.5})
    found = Calibration(0.0, 4, paths, shares, 100, *timed, shallow=[flat])
    assert (found.fastest_depth(4), found.fastest_depth(1)) == (1, None)
    assert found.promise(4, 1) == (1.8, 1.1)
    assert found.promise(4, 3) == found.promise(4) == (2.0, 1.5), "three levels were not timed"
    heads = random_heads(plain_heads("hydra", num_heads=3), random_base())
    for depth, expected in ((None, 1), (2, 2)):
        asked = TreeConfig("calibrated", size="adaptive", max_depth=depth)
        assert plan_sizes(asked, heads, [found], 0.0)[4].max_depth == expected


def test_an_adaptive_size_is_a_dynamic_tree_where_those_were_faster() -> None:
    """Of three nodes none was counted, and of four one two deep promises more than one that is three deep."""
    paths, shares = [[0], [0, 0], [1], [2]], [0.5, 0.3, 0.2, 0.1]
    timed = ({"1": 1.0, "3": 1.5, "4": 2.0}, {"1": 1.0, "3": 1.2, "4": 1.5})
    deep, flat = ({"num_nodes": 4, "max_depth": d, "tau": 2.0, "step_ms": 1.2 + d / 10} for d in (3, 2))
    found = Calibration(0.0, 4, paths, shares, 100, *timed, dynamic=[deep, flat], dynamic_depth=3)
    assert found.fastest_dynamic(4, 3) == DynamicTree(4, 2) and found.fastest_dynamic(4, 1) is None
    assert found.promise_of(DynamicTree(4, 3)) == (2.0, 1.5) and found.promise_of(DynamicTree(4, 2)) == (2.0, 1.4)
    assert found.promise_of(DynamicTree(3, 2)) == found.promise_of(chain(2)) == (1.5, 1.2)
    heads = random_heads(plain_heads("hydra", num_heads=3), random_base())
    fixed = replace(found, dynamic_depth=None)
    for name, calibrated, expected in (
        ("calibrated", found, DynamicTree(4, 2)),
        ("calibrated", fixed, found.tree_of(4)),
        ("dynamic", fixed, DynamicTree(4, 2)),
    ):
        sizes = plan_sizes(TreeConfig(name, size="adaptive"), heads, [calibrated], 0.0)
        assert sizes[4] == expected and sizes[3].num_nodes == 3


def test_the_tree_of_the_quantisation_is_read_or_else_the_other(tmp_path: Path) -> None:
    """Heads that were trained with int4 have a tree of 4 bits alone, and decode in 16 too."""
    assert [find_tree(tmp_path, name).name for name in ("none", "int4")] == [TREE_FILE, INT4_TREE_FILE]
    (tmp_path / INT4_TREE_FILE).touch()
    assert [find_tree(tmp_path, name).name for name in ("none", "nf4", "int4")] == [INT4_TREE_FILE] * 3
    (tmp_path / TREE_FILE).touch()
    assert [find_tree(tmp_path, name).name for name in ("none", "int4")] == [TREE_FILE, INT4_TREE_FILE]
    (tmp_path / INT4_TREE_FILE).unlink()
    assert find_tree(tmp_path, "int4").name == TREE_FILE


def test_auto_is_the_quantisation_of_the_training() -> None:
    for trained_on in ({"quantization": "int4"}, {"quantization": "nf4"}):
        assert precision.quantization_of_heads("auto", trained_on) == trained_on["quantization"]
        assert precision.quantization_of_heads("none", trained_on) == "none"
    assert precision.quantization_of_heads("auto", {}) == precision.quantization_of_heads("auto", None) == "none"
