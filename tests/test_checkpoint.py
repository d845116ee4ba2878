"""A checkpoint is what was saved, all of it or none; what does not fit is refused in plain words."""

import json
import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from plain_heads import plain_heads
from safetensors.torch import load_file, save_file
from tiny_llama import save_tiny_llama

from euryale.base.base import Base, load_base
from euryale.base.config import BaseConfig
from euryale.errors import UserError
from euryale.heads.checkpoint import (
    check_initial,
    load_heads,
    load_initial,
    read_description,
    save_heads,
)
from euryale.heads.config import HeadsConfig
from euryale.heads.find_checkpoint import find_checkpoint
from euryale.heads.heads import Heads, build_heads
from euryale.system.files import check_writable, read_json, write_atomically, write_json
from euryale.system.provenance import provenance
from euryale.training.publish import save_base


def random_heads(base: Base, config: HeadsConfig | None = None, seed: int = 0) -> Heads:
    heads = build_heads(config or plain_heads(num_heads=2), base.lm_head_weight)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter.normal_()
    return heads


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """The system refuses longer files, in the middle of a write, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)


@pytest.fixture
def saved(tiny_base: Base, tmp_path: Path) -> Path:
    save_heads(tmp_path / "run", random_heads(tiny_base), tiny_base, {"argv": ["train/run.py"]})
    return tmp_path / "run"


@pytest.mark.parametrize(
    "config",
    [plain_heads(num_heads=3), plain_heads(kind="medusa", root_token=False, body="resblock", output="own")],
    ids=["hydra", "own"],
)
def test_loaded_heads_equal_the_saved_ones_to_the_bit(tiny_base: Base, tmp_path: Path, config: HeadsConfig) -> None:
    heads = random_heads(tiny_base, config)
    save_heads(tmp_path / "a" / "run", heads, tiny_base, provenance(), {"kind": "medusa1"})
    loaded = load_heads(tmp_path / "a" / "run", tiny_base)
    assert loaded.config == config and not loaded.training
    for (name, tensor), other in zip(heads.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert torch.equal(tensor, other), name
    description = read_description(tmp_path / "a" / "run")
    assert description["base"] == tiny_base.identity()
    assert description["objective"] == {"kind": "medusa1"}
    assert description["num_parameters"] == heads.num_parameters()
    assert sorted(contents(tmp_path / "a")) == ["run/heads.json", "run/heads.safetensors"]


def test_heads_are_stored_and_loaded_in_the_dtype_of_the_base(tiny_llama_folder: Path, tmp_path: Path) -> None:
    base = load_base(BaseConfig(path=str(tiny_llama_folder), dtype="bfloat16", device="cpu"))
    heads = random_heads(base)
    save_heads(tmp_path / "run", heads, base, {})
    assert {tensor.dtype for tensor in load_file(tmp_path / "run/heads.safetensors").values()} == {torch.bfloat16}
    loaded = load_heads(tmp_path / "run", base)
    assert all(torch.equal(a.bfloat16(), b) for a, b in zip(heads.parameters(), loaded.parameters(), strict=True))


def test_the_same_base_in_another_dtype_is_the_same_base(saved: Path, tiny_llama_folder: Path) -> None:
    base = load_base(BaseConfig(path=str(tiny_llama_folder), dtype="bfloat16", device="cpu"))
    assert next(load_heads(saved, base).parameters()).dtype == torch.bfloat16


def test_saving_again_replaces_the_heads_and_keeps_other_files(saved: Path, tiny_base: Base) -> None:
    (saved / "metrics.jsonl").write_text("{}\n")
    heads = random_heads(tiny_base, plain_heads(num_heads=1), seed=7)
    save_heads(saved, heads, tiny_base, {})
    assert load_heads(saved, tiny_base).num_heads == 1
    assert sorted(contents(saved)) == ["heads.json", "heads.safetensors", "metrics.jsonl"]


@pytest.mark.parametrize("limit", [100, 3000, 20_000], ids=["at once", "in the weights", "deep in the weights"])
def test_a_full_disk_leaves_the_old_checkpoint_whole(saved: Path, tiny_base: Base, limit: int) -> None:
    before = contents(saved.parent)
    with largest_file(limit), pytest.raises(UserError, match=r"could not be saved.*unchanged"):
        save_heads(saved, random_heads(tiny_base, seed=5), tiny_base, {})
    assert contents(saved.parent) == before
    assert load_heads(saved, tiny_base).num_heads == 2


def test_a_full_disk_leaves_no_half_of_a_new_checkpoint(tiny_base: Base, tmp_path: Path) -> None:
    with largest_file(3000), pytest.raises(UserError):
        save_heads(tmp_path / "new", random_heads(tiny_base), tiny_base, {})
    assert list(tmp_path.iterdir()) == []


def test_the_folder_one_is_in_can_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in (".", "new", "new/deeper"):
        check_writable(Path(folder), f"output={folder}")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_write_changes_nothing_and_its_leftovers_are_cleared(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(KeyboardInterrupt), write_atomically(tmp_path / "a.json") as staged:
        staged.write_text("half")
        raise KeyboardInterrupt
    assert read_json(tmp_path / "a.json") == {"x": 1}
    left = tmp_path / ".a.json.tmp"  # as after kill -9
    left.mkdir()
    (left / "half").write_text("half")
    write_json(tmp_path / "a.json", {"x": 2})
    assert read_json(tmp_path / "a.json") == {"x": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_the_description_arrives_last(saved: Path, tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    order = []
    plain = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: order.append(Path(b).name) or plain(a, b))
    save_heads(saved, random_heads(tiny_base), tiny_base, {})
    assert order == ["heads.safetensors", "heads.json"]


def cut_short(folder: Path) -> None:
    path = folder / "heads.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def empty_weights(folder: Path) -> None:
    (folder / "heads.safetensors").write_bytes(b"")


def no_weights(folder: Path) -> None:
    (folder / "heads.safetensors").unlink()


def a_pickle_instead(folder: Path) -> None:
    torch.save({"bodies.0.0.hidden_in.weight": torch.zeros(2)}, folder / "heads.safetensors")


def edit_tensors(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / "heads.safetensors")
        change(tensors)
        save_file(tensors, folder / "heads.safetensors")

    return damage


def edit_json(**changes: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = json.loads((folder / "heads.json").read_text())
        for path, value in changes.items():
            *parents, key = path.split("__")
            place = content
            for parent in parents:
                place = place[parent]
            place[key] = value
        (folder / "heads.json").write_text(json.dumps(content))

    return damage


NAME = "bodies.0.0.hidden_in.weight"
DAMAGES = {
    "cut short": (cut_short, "cut short"),
    "empty": (empty_weights, "cut short"),
    "missing file": (no_weights, "missing"),
    "pickle": (a_pickle_instead, "cut short"),
    "wrong shape": (edit_tensors(lambda t: t.update({NAME: torch.zeros(3, 3)})), rf"{NAME} is \[3, 3\], expected"),
    "missing tensor": (edit_tensors(lambda t: t.pop(NAME)), f"{NAME} is missing"),
    "extra tensor": (edit_tensors(lambda t: t.update(more=torch.zeros(1))), "no such tensor"),
    "not a number": (edit_tensors(lambda t: t[NAME].fill_(float("nan"))), "NaN"),
    "broken JSON": (lambda f: (f / "heads.json").write_text("{"), r"heads\.json is damaged"),
    "binary JSON": (lambda f: (f / "heads.json").write_bytes(b"\xff\xfe\x00"), r"heads\.json is damaged"),
    "list JSON": (lambda f: (f / "heads.json").write_text("[]"), "JSON object"),
    "no JSON": (lambda f: (f / "heads.json").unlink(), "is not a checkpoint"),
    "future format": (edit_json(format_version=99), "format_version 99"),
    "no base": (edit_json(base=None), "which base"),
    "no heads": (edit_json(heads=[]), "does not describe its heads"),
    "unknown key": (edit_json(heads__depth=3), "depth"),
    "mistyped key": (edit_json(heads__num_heads="2"), "num_heads"),
    "unknown kind": (edit_json(heads__kind="os.system"), r"heads\.json.*kind must be .*os\.system"),
    "too many heads": (edit_json(heads__num_heads=10**9), "num_heads"),
    "other size": (edit_json(heads__num_heads=3), "num_heads is 2, and these heads have 3"),
    "other offset": (edit_json(label_offset=1), "label_offset is 1, and these heads have 2"),
    "other width": (edit_json(hidden_size=7), "hidden_size is 7, and these heads have"),
    "mistyped vocabulary": (edit_json(vocab_size="abc"), "vocab_size must be a whole number from 1 to"),
    "negative width": (edit_json(hidden_size=-1), "hidden_size must be a whole number from 1 to"),
    "width of no machine": (edit_json(hidden_size=10**12), "hidden_size must be a whole number from 1 to"),
    "no width": (edit_json(hidden_size=None), "hidden_size must be a whole number from 1 to"),
    "rank of no machine": (edit_json(heads__output_rank=10**15), "output_rank must be from 1 to 65536"),
    "other base": (edit_json(base__vocab_size=32000, base__path="far/llama"), r"far/llama.*32000.*vocab_size"),
    "other weights": (edit_json(base__fingerprint="0123"), r"0123.*differ in fingerprint"),
}


def test_heads_from_before_features_could_be_chosen_read_the_last_state(saved: Path, tiny_base: Base) -> None:
    content = json.loads((saved / "heads.json").read_text())
    del content["heads"]["features"]
    (saved / "heads.json").write_text(json.dumps(content))
    assert load_heads(saved, tiny_base).config.features == "last"


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_checkpoint_that_does_not_fit_is_refused(saved: Path, tiny_base: Base, damage: str) -> None:
    spoil, message = DAMAGES[damage]
    spoil(saved)
    with pytest.raises(UserError, match=message):
        load_heads(saved, tiny_base)


def test_a_different_base_is_named_with_its_sizes(saved: Path, tiny_base: Base, tmp_path: Path) -> None:
    other = load_base(BaseConfig(path=str(save_tiny_llama(tmp_path / "other", vocab_size=120)), device="cpu"))
    with pytest.raises(UserError) as error:
        load_heads(saved, other)
    for fact in (tiny_base.path, other.path, "vocab_size 99", "vocab_size 120", "hidden_size 32"):
        assert fact in str(error.value)


def test_other_weights_of_the_same_sizes_are_told_apart(saved: Path, tmp_path: Path) -> None:
    twin = load_base(BaseConfig(path=str(save_tiny_llama(tmp_path / "twin", seed=1)), device="cpu"))
    with pytest.raises(UserError, match="differ in fingerprint"):
        load_heads(saved, twin)


def test_last_is_the_newest_checkpoint_and_errors_list_what_exists(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none yet"):
        find_checkpoint("last", tmp_path)
    for age, name in enumerate(["new", "sweep/1", "old"]):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "heads.json").write_text("{}")
        os.utime(tmp_path / name / "heads.json", (1000 - age, 1000 - age))
    (tmp_path / ".half.tmp").mkdir()
    (tmp_path / ".half.tmp" / "heads.json").write_text("{}")
    assert find_checkpoint("last", tmp_path) == tmp_path / "new"
    assert find_checkpoint("sweep/1", tmp_path) == tmp_path / "sweep/1"
    assert find_checkpoint(str(tmp_path / "old"), Path("elsewhere")) == tmp_path / "old"
    with pytest.raises(UserError, match=r"checkpoint=none-such.*sweep/1"):
        find_checkpoint("none-such", tmp_path)
    with pytest.raises(UserError, match=r"checkpoint=sweep must be .* this folder holds some: \S*sweep/1\. Name one"):
        find_checkpoint("sweep", tmp_path)


def test_a_trained_base_is_saved_as_a_folder_that_loads(tiny_base: Base, tmp_path: Path) -> None:
    save_base(tmp_path / "base", tiny_base)
    again = load_base(BaseConfig(path=str(tmp_path / "base"), dtype="float32", device="cpu"))
    assert torch.equal(again.lm_head_weight, tiny_base.lm_head_weight.bfloat16().float())
    assert again.tokenizer.encode("a b") == tiny_base.tokenizer.encode("a b")
    assert json.loads((tmp_path / "base/config.json").read_text())["dtype"] == "bfloat16"


def test_provenance_says_command_versions_and_commit() -> None:
    facts = provenance()
    # PyPI's own wheel for CUDA says +cu130 of itself and nothing in its metadata.
    assert torch.__version__.split("+")[0] == facts["versions"]["torch"].split("+")[0]
    assert isinstance(facts["argv"], list) and facts["time"] and facts["python"]
    assert facts["git_commit"] is None or len(facts["git_commit"]) in (40, 41)
    json.dumps(facts)


# Training that goes on from a checkpoint (heads.init)


def test_heads_to_go_on_with_are_the_saved_ones_in_thirty_two_bits(tiny_base: Base, tmp_path: Path) -> None:
    design = plain_heads(num_heads=2, vocab_share=0.3)
    heads = random_heads(tiny_base, design)
    heads.choose_draft_ids(torch.arange(99))
    save_heads(tmp_path / "run", heads, tiny_base, {})
    check_initial(tmp_path / "run", replace(design, init=str(tmp_path / "run")), tiny_base.identity())
    found = load_initial(tmp_path / "run", tiny_base)
    assert found.config == design, "where training began is no part of the design"
    assert all(torch.equal(a, b) for a, b in zip(found.state_dict().values(), heads.state_dict().values(), strict=True))
    assert {p.dtype for p in found.parameters()} == {torch.float32}


def test_corrections_are_kept_for_the_draft_vocabulary_alone(tiny_base: Base, tmp_path: Path) -> None:
    design = plain_heads(num_heads=2, vocab_share=0.3, output="lowrank", output_rank=4)
    heads = random_heads(tiny_base, design)
    heads.choose_draft_ids(torch.arange(99).flip(0))
    save_heads(tmp_path / "run", heads, tiny_base, {})
    assert heads.draft_ids is not None
    ids = heads.draft_ids.tolist()
    stored = load_file(tmp_path / "run/heads.safetensors")
    assert stored["corrections.1.widen.weight"].shape == (len(ids), 4)
    found = load_heads(tmp_path / "run", tiny_base)
    assert found.draft_ids is not None and found.draft_ids.tolist() == ids
    for k in range(2):
        before, after = (h.draft_parts(k, tiny_base.lm_head_weight) for h in (heads, found))
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        whole = found.output_parts(k, tiny_base.lm_head_weight)[1]
        assert whole.shape == (tiny_base.vocab_size, 4)
        assert not whole[[i for i in range(len(whole)) if i not in ids]].any()
    # Files of before hold all rows, and their description says nothing of it.
    description = read_description(tmp_path / "run")
    del description["rows"]
    write_json(tmp_path / "run/heads.json", description)
    with pytest.raises(UserError, match="does not fit its description"):
        load_heads(tmp_path / "run", tiny_base)
    save_file({name: t.contiguous() for name, t in heads.state_dict().items()}, tmp_path / "run/heads.safetensors")
    older = load_heads(tmp_path / "run", tiny_base)
    assert torch.equal(
        older.output_parts(0, tiny_base.lm_head_weight)[1], heads.output_parts(0, tiny_base.lm_head_weight)[1]
    )


def test_heads_of_another_design_name_each_field_and_both_values(tiny_base: Base, saved: Path) -> None:
    asked = plain_heads(num_heads=3, width=4.0)
    with pytest.raises(UserError, match=r"got heads.num_heads=2 there, 3 here, heads.width=2.0 there, 4.0 here\."):
        check_initial(saved, asked, tiny_base.identity())


def test_heads_of_another_base_name_both(tiny_base: Base, saved: Path) -> None:
    other = tiny_base.identity() | {"path": "another", "fingerprint": "f"}
    with pytest.raises(UserError, match=rf"trained for {tiny_base.path} .*the base given is another .*print f"):
        check_initial(saved, plain_heads(num_heads=2), other)


def test_heads_that_were_trained_with_an_adapter_are_refused(tiny_base: Base, saved: Path) -> None:
    write_json(saved / "heads.json", read_json(saved / "heads.json") | {"adapter": "adapter"})
    with pytest.raises(UserError, match="must be heads of a base alone; these were trained with an adapter"):
        check_initial(saved, plain_heads(num_heads=2), tiny_base.identity())
