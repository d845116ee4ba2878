"""Exported folders hold what other servers look for; what these compute is what our heads compute.

The peers' forwards are written again here from the description of their formats, not from their code.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from plain_heads import plain_heads
from random_models import random_base, random_heads
from safetensors.torch import load_file
from tolerance import assert_same_sums
from torch import Tensor
from torch.nn.functional import linear, silu

from euryale import export as export_module
from euryale.base.base import Base
from euryale.errors import UserError
from euryale.export import EXPORTABLE, export
from euryale.heads.checkpoint import load_heads, save_heads
from euryale.heads.heads import Heads

D, V, K = 16, 13, 3  # width and vocabulary of the random base, heads
PEERS = ("vllm", "medusa", "tgi")


@pytest.fixture(scope="module")
def base() -> Base:
    return random_base(vocab_size=V, seed=1)


def no_base() -> Base:
    raise AssertionError("this format does not need the base")


def checkpoint(
    folder: Path,
    base: Base,
    output: str = "shared",
    num_layers: int = 1,
    draft_ids: tuple[int, ...] = (),
    **changes: object,
) -> Heads:
    """Random heads of the form that peers know, saved in `folder`."""
    config = {"kind": "medusa", "num_heads": K, "body": "resblock", "width": 1.0, "root_token": False} | changes
    heads = random_heads(plain_heads(num_layers=num_layers, output=output, **config), base)  # type: ignore[arg-type]
    heads.choose_draft_ids(torch.tensor([float(i in draft_ids) for i in range(V)]))
    save_heads(folder, heads, base, {"argv": ["test"]})
    return heads


def exported(tmp_path: Path, name: str, load_base: Callable[[], Base]) -> tuple[dict, dict[str, Tensor]]:
    export(tmp_path / "run", name, tmp_path / "out", load_base)
    [weights] = (tmp_path / "out").glob("*.safetensors")
    return json.loads((tmp_path / "out" / "config.json").read_text()), load_file(weights)


def vllm_logits(config: dict, tensors: dict[str, Tensor], hidden_MD: Tensor, base: Base) -> list[Tensor]:
    """vLLM 0.32: blocks of SiLU residual layers, biases only if asked for, one output matrix or one a head."""
    settings: dict[str, object] = {"hidden_size": 4096, "vocab_size": 32001, "medusa_fc_bias": False}
    for key, value in config.items():  # its configuration class folds such keys into two names
        if "num" in key and "heads" in key:
            key = "num_heads"
        elif "num" in key and "layers" in key:
            key = "num_hidden_layers"
        settings[key] = value
    assert (settings["hidden_size"], settings["vocab_size"], settings["truncated_vocab_size"]) == (D, V, V)
    used, logits = set(), []
    for k in range(settings["num_heads"]):  # type: ignore[call-overload]
        x_MD = hidden_MD
        for layer in range(settings["num_hidden_layers"]):  # type: ignore[call-overload]
            name = f"blocks.{k}.layers.{layer}"
            bias = tensors[f"{name}.bias"] if settings["medusa_fc_bias"] else None
            x_MD = x_MD + silu(linear(x_MD, tensors[f"{name}.weight"], bias))
            used |= {f"{name}.weight", f"{name}.bias"}
        output = "lm_head.weight" if settings.get("original_lm_head") else f"lm_heads.{k}.weight"
        used.add(output)
        logits.append(linear(x_MD, tensors[output]))
    assert used == set(tensors), "every tensor has a place, and none is missing"
    return logits


def medusa_logits(config: dict, tensors: dict[str, Tensor], hidden_MD: Tensor, base: Base) -> list[Tensor]:
    """FasterDecoding v0.1 and TGI: head.layer.linear, then the head's own matrix under the number of its layers.

    TGI's second form has no such matrices: the base's own serves all heads, of one layer each.
    """
    L, used, logits = config["medusa_num_layers"], set(), []
    for k in range(config["medusa_num_heads"]):
        x_MD = hidden_MD
        for layer in range(L):
            name = f"{k}.{layer}.linear"
            x_MD = x_MD + silu(linear(x_MD, tensors[f"{name}.weight"], tensors[f"{name}.bias"]))
            used |= {f"{name}.weight", f"{name}.bias"}
        if f"{k}.{L}.weight" in tensors:
            used.add(f"{k}.{L}.weight")
            logits.append(linear(x_MD, tensors[f"{k}.{L}.weight"]))
        else:
            assert L == 1
            logits.append(linear(x_MD, base.lm_head_weight))
    assert used == set(tensors)
    return logits


PEER_LOGITS = {"vllm": vllm_logits, "medusa": medusa_logits, "tgi": medusa_logits}


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("output", ["shared", "own", "lowrank"])
@pytest.mark.parametrize("peer", PEERS)
def test_a_peer_computes_what_our_heads_compute(
    tmp_path: Path, base: Base, peer: str, output: str, num_layers: int
) -> None:
    heads = checkpoint(tmp_path / "run", base, output, num_layers)
    config, tensors = exported(tmp_path, peer, lambda: base)
    hidden_MD = torch.randn(5, D, generator=torch.Generator().manual_seed(0))
    found = PEER_LOGITS[peer](config, tensors, hidden_MD, base)
    assert len(found) == K
    for k, logits_MV in enumerate(found):
        expected = linear(heads.head_hidden(k, hidden_MD, None), heads.output_weight(k, base.lm_head_weight))
        if output == "lowrank":  # W x + B A x against (W + B A) x
            assert_same_sums(logits_MV, expected)
        else:
            assert torch.equal(logits_MV, expected)
    assert all(t.dtype == base.dtype for t in tensors.values())
    if num_layers == 2:  # a list of one module twice would have saved one layer under both names
        layers = [t for name, t in tensors.items() if t.shape == (D, D)]
        assert len({t.numpy().tobytes() for t in layers}) == len(layers) == 2 * K


@pytest.mark.parametrize("output", ["shared", "own", "lowrank"])
@pytest.mark.parametrize("peer", PEERS)
def test_a_peer_guesses_from_the_draft_vocabulary_alone(tmp_path: Path, base: Base, peer: str, output: str) -> None:
    heads = checkpoint(tmp_path / "run", base, output, vocab_share=0.35, draft_ids=(1, 3, 7, 8, 11))
    config, tensors = exported(tmp_path, peer, lambda: base)
    hidden_MD = torch.randn(200, D, generator=torch.Generator().manual_seed(0))
    for k, logits_MV in enumerate(PEER_LOGITS[peer](config, tensors, hidden_MD, base)):
        hidden = heads.head_hidden(k, hidden_MD, None)
        drafted = linear(hidden, heads.draft_weight(k, base.lm_head_weight))
        assert heads.draft_ids is not None
        assert_same_sums(logits_MV[:, heads.draft_ids], drafted)
        assert torch.equal(logits_MV.argmax(-1), heads.draft_ids[drafted.argmax(-1)])
        whole = linear(hidden, heads.output_weight(k, base.lm_head_weight))
        assert not torch.equal(whole.argmax(-1), logits_MV.argmax(-1)), "else this shows nothing"


def test_the_keys_of_each_configuration_are_those_its_reader_wants(tmp_path: Path, base: Base) -> None:
    checkpoint(tmp_path / "run", base)
    found = {}
    for peer in PEERS:
        export(tmp_path / "run", peer, tmp_path / peer, lambda: base)
        found[peer] = json.loads((tmp_path / peer / "config.json").read_text())
        assert base.path in (tmp_path / peer / "README.md").read_text()
    counts = [key for key in found["vllm"] if "num" in key]
    assert counts == ["num_heads", "num_hidden_layers"], "any further one would overwrite these"
    assert found["vllm"]["model_type"] == "medusa"
    assert found["vllm"]["medusa_fc_bias"] is True
    assert found["vllm"]["original_lm_head"] is True
    for peer in ("medusa", "tgi"):
        assert not {"architectures", "model_type"} & set(found[peer])
        assert (found[peer]["medusa_num_heads"], found[peer]["medusa_num_layers"]) == (K, 1)
        assert found[peer]["base_model_name_or_path"] == base.path
    assert (tmp_path / "tgi" / "medusa_lm_head.safetensors").is_file()
    assert "leaves those it does not find untrained" in (tmp_path / "medusa" / "README.md").read_text()


def test_a_shared_output_matrix_is_written_where_the_reader_needs_it(tmp_path: Path, base: Base) -> None:
    checkpoint(tmp_path / "run", base)
    outputs = {}
    for peer in PEERS:
        export(tmp_path / "run", peer, tmp_path / peer, no_base if peer == "tgi" else lambda: base)
        [weights] = (tmp_path / peer).glob("*.safetensors")
        outputs[peer] = [name for name, t in load_file(weights).items() if t.shape == (V, D)]
    assert outputs == {"vllm": ["lm_head.weight"], "medusa": [f"{k}.1.weight" for k in range(K)], "tgi": []}


def test_the_base_is_loaded_only_where_its_matrix_is_needed(tmp_path: Path, base: Base) -> None:
    checkpoint(tmp_path / "run", base, output="own")
    for peer in (*PEERS, "euryale"):
        assert export(tmp_path / "run", peer, tmp_path / peer, no_base)


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"kind": "hydra", "root_token": True}, "heads.kind=hydra, heads.root_token=true"),
        ({"root_token": True}, "heads.root_token=true"),
        ({"body": "mlp"}, "heads.body=mlp"),
        ({"features": "several"}, "heads.features=several"),
    ],
)
def test_heads_that_a_peer_cannot_express_are_refused_by_the_setting(
    tmp_path: Path, base: Base, peer: str, changes: dict[str, Any], named: str
) -> None:
    checkpoint(tmp_path / "run", base, **changes)
    with pytest.raises(UserError) as refused:
        export(tmp_path / "run", peer, tmp_path / "out", lambda: base)
    assert f"trained with {named}, and" in str(refused.value)
    assert EXPORTABLE in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_our_own_format_is_a_copy_without_the_state_of_training(tmp_path: Path, base: Base) -> None:
    run = tmp_path / "run"
    heads = checkpoint(run, base, kind="hydra", root_token=True, body="mlp")
    for name in ("tree.json", "report.json", "README.md", "tree.png", "metrics.jsonl", "notes.txt"):
        (run / name).write_text(name)
    for name in ("resume/step-1", "adapter"):
        (run / name).mkdir(parents=True)
        (run / name / "state.bin").write_text("x")
    files = export(run, "euryale", tmp_path / "out", no_base)
    assert [path.relative_to(tmp_path / "out").as_posix() for path in files] == [
        "README.md", "adapter/state.bin", "heads.json", "heads.safetensors", "report.json", "tree.json", "tree.png",
    ]  # fmt: skip
    copied = load_heads(tmp_path / "out", base)
    assert all(torch.equal(t, copied.state_dict()[name]) for name, t in heads.state_dict().items())


def test_heads_keep_the_dtype_they_are_stored_in(tmp_path: Path) -> None:
    half = random_base(vocab_size=V, seed=1, dtype=torch.bfloat16)
    checkpoint(tmp_path / "run", half)
    full = random_base(vocab_size=V, seed=1)
    full.model.load_state_dict(half.model.state_dict())  # the same base, loaded in float32
    _, tensors = exported(tmp_path, "vllm", lambda: full)
    assert {t.dtype for t in tensors.values()} == {torch.bfloat16}
    assert torch.equal(tensors["lm_head.weight"], half.lm_head_weight)


def test_what_cannot_be_written_is_refused_and_leaves_nothing(
    tmp_path: Path, base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    checkpoint(run, base)
    with pytest.raises(UserError, match="format must be one of euryale, vllm, medusa, tgi; got onnx"):
        export(run, "onnx", out, lambda: base)
    with pytest.raises(UserError, match="already holds something"):
        export(run, "vllm", run, lambda: base)
    with pytest.raises(UserError, match="is not a checkpoint"):
        export(tmp_path / "elsewhere", "vllm", out, lambda: base)
    other = random_base(vocab_size=V, seed=2)
    with pytest.raises(UserError, match="were trained for"):
        export(run, "vllm", out, lambda: other)

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="were trained for"):
        export(run, "vllm", tmp_path / "empty", lambda: other)
    (tmp_path / "empty").rmdir()  # the user's own folder is still there
    monkeypatch.setattr(export_module, "save_file", full_disk)
    with pytest.raises(UserError, match="No space left"):
        export(run, "vllm", out, lambda: base)
    monkeypatch.undo()
    (run / "heads.safetensors").write_bytes((run / "heads.safetensors").read_bytes()[:-8])
    for name in ("euryale", "tgi"):
        with pytest.raises(UserError, match="cut short"):
            export(run, name, out, lambda: base)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_an_empty_folder_may_be_the_output(tmp_path: Path, base: Base) -> None:
    checkpoint(tmp_path / "run", base)
    (tmp_path / "out").mkdir()
    assert export(tmp_path / "run", "tgi", tmp_path / "out", no_base)
