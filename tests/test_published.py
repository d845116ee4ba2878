"""Published Medusa heads become a checkpoint that decodes, in every layout; what is not such heads is refused."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from plain_heads import plain_heads
from random_models import random_base, random_heads
from safetensors.torch import load_file, save_file
from scripts import assert_refused, run_script
from torch import Tensor

from euryale.base.base import Base, load_base
from euryale.base.config import BaseConfig
from euryale.decoding.engine import Engine
from euryale.errors import UserError
from euryale.export import export
from euryale.heads.checkpoint import load_heads, read_description, save_heads
from euryale.heads.heads import Heads
from euryale.heads.published import import_heads, named_base

D, V, K = 16, 13, 3
PEERS = ("vllm", "medusa", "tgi")


@pytest.fixture(scope="module")
def base() -> Base:
    return random_base(vocab_size=V, seed=1)


def published(folder: Path, base: Base, peer: str, output: str = "own", num_layers: int = 1) -> Heads:
    """Random heads in `folder`/out, in a peer's layout."""
    design = plain_heads(
        "medusa", num_heads=K, num_layers=num_layers, body="resblock", width=1.0, output=output, root_token=False
    )
    heads = random_heads(design, base)
    save_heads(folder / "run", heads, base, {"argv": ["test"]})
    export(folder / "run", peer, folder / "out", lambda: base)
    return heads


def rewritten(folder: Path, **changes: Any) -> dict[str, Tensor]:
    """The tensors of a published folder, and its config.json with changes (None takes a key out)."""
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    [file] = folder.glob("*.safetensors")
    return load_file(file)


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("output", ["own", "shared"])
@pytest.mark.parametrize("peer", PEERS)
def test_what_was_exported_comes_back_bit_for_bit_and_decodes(
    tmp_path: Path, base: Base, peer: str, output: str, num_layers: int
) -> None:
    heads = published(tmp_path, base, peer, output, num_layers)
    made = import_heads(tmp_path / "out", tmp_path / "back", base, {"argv": ["test"]})
    assert (made.num_heads, made.num_layers, made.output) == (K, num_layers, output)
    back = load_heads(tmp_path / "back", base)
    assert back.config.design() == heads.config.design()
    assert all(torch.equal(tensor, heads.state_dict()[name]) for name, tensor in back.state_dict().items())
    assert read_description(tmp_path / "back")["provenance"]["imported_from"] == str(tmp_path / "out")
    found, expected = (
        Engine(base, some, "heads", "chain").generate([[1, 2, 3]], 20, temperature=0.8, seed=2)[0]
        for some in (back, heads)
    )
    assert (found.ids, found.accepted) == (expected.ids, expected.accepted)


@pytest.mark.parametrize("prefix", ["", "medusa_head.", "medusa_heads."])
@pytest.mark.parametrize("name", ["medusa_lm_head.pt", "pytorch_model.bin", "model-00001-of-00001.safetensors"])
def test_pickles_of_tensors_whole_models_and_prefixes_are_read(
    tmp_path: Path, base: Base, name: str, prefix: str
) -> None:
    heads = published(tmp_path, base, "medusa")
    tensors = {f"{prefix}{key}": tensor for key, tensor in rewritten(tmp_path / "out").items()}
    tensors |= {"model.layers.0.mlp.up_proj.weight": torch.zeros(3, 3), "lm_head.weight": torch.zeros(V, D)}
    (tmp_path / "out" / "medusa_lm_head.safetensors").unlink()
    (save_file if name.endswith("safetensors") else torch.save)(tensors, tmp_path / "out" / name)  # type: ignore[operator]
    import_heads(tmp_path / "out", tmp_path / "back", base, {})
    back = load_heads(tmp_path / "back", base)
    assert all(torch.equal(tensor, heads.state_dict()[key]) for key, tensor in back.state_dict().items())


def test_the_heads_that_are_there_count_and_not_what_config_json_says(
    tmp_path: Path, base: Base, caplog: pytest.LogCaptureFixture
) -> None:
    published(tmp_path, base, "medusa")
    rewritten(tmp_path / "out", medusa_num_heads=5)
    assert import_heads(tmp_path / "out", tmp_path / "back", base, {}).num_heads == K
    assert "config.json says 5 heads, and 3 are there" in caplog.text


def test_heads_of_vllm_without_biases_get_zeros(tmp_path: Path, base: Base) -> None:
    published(tmp_path, base, "vllm")
    tensors = rewritten(tmp_path / "out", medusa_fc_bias=False)
    weights = {name: tensor for name, tensor in tensors.items() if not name.endswith(".bias")}
    save_file(weights, tmp_path / "out" / "model.safetensors")
    import_heads(tmp_path / "out", tmp_path / "back", base, {})
    back = load_heads(tmp_path / "back", base).state_dict()
    assert not any(tensor.any() for name, tensor in back.items() if name.endswith(".bias"))
    assert torch.equal(back["bodies.1.0.hidden_in.weight"], tensors["blocks.1.layers.0.weight"])


class Code:
    """Runs when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("was_run"),))


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(
    tmp_path: Path, base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "medusa_lm_head.pt").write_bytes(pickle.dumps({"0.0.linear.weight": Code()}, protocol=2))
    with pytest.raises(UserError, match="must be a pickle of tensors alone; got one that would run code"):
        import_heads(tmp_path, tmp_path / "back", base, {})
    torch.save({"0.0.linear.weight": Code()}, tmp_path / "medusa_lm_head.pt")
    with pytest.raises(UserError, match="must be a pickle of tensors alone; got one that would run code"):
        import_heads(tmp_path, tmp_path / "back", base, {})
    torch.save([torch.zeros(2)], tmp_path / "medusa_lm_head.pt")
    with pytest.raises(UserError, match="must hold tensors by name"):
        import_heads(tmp_path, tmp_path / "back", base, {})
    assert not (tmp_path / "was_run").exists() and not (tmp_path / "back").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t | {"1.0.linear.weight": torch.zeros(D, D + 1)},
         r"the weight of layer 0 of head 1 must be \[16, 16\] for the base .* got \[16, 17\]. Give the base"),
        (lambda t: t | {"2.1.weight": torch.zeros(V + 1, D)}, r"the output matrix of head 2 must be \[13, 16\]"),
        (lambda t: {name: x for name, x in t.items() if name != "1.0.linear.weight"}, "lacks the weight of layer 0"),
        (lambda t: {name: x for name, x in t.items() if name != "0.1.weight"}, "lacks the output matrix of head 0"),
        (lambda t: t | {"0.0.linear.bias": torch.full((D,), float("nan"))}, "holds NaN or infinity"),
        (lambda t: t | {"0.0.linear.weight": torch.zeros(D, D, dtype=torch.int8)}, "must hold floating-point numbers"),
        (lambda t: t | {"token_map": torch.arange(5)}, "heads with a token_map"),
        (lambda t: {"model.embed_tokens.weight": torch.zeros(V, D)}, "holds no Medusa heads: no tensor is named"),
    ],
)  # fmt: skip
def test_tensors_that_are_not_heads_of_this_base_are_refused_and_nothing_is_left(
    tmp_path: Path, base: Base, change: Any, message: str
) -> None:
    published(tmp_path, base, "medusa")
    save_file(change(rewritten(tmp_path / "out")), tmp_path / "out" / "medusa_lm_head.safetensors")
    with pytest.raises(UserError, match=message):
        import_heads(tmp_path / "out", tmp_path / "back", base, {})
    assert not (tmp_path / "back").exists()


def test_folders_that_hold_no_heads_are_refused(tmp_path: Path, base: Base) -> None:
    with pytest.raises(UserError, match="must be a folder with config.json and the weights of Medusa heads"):
        named_base(tmp_path / "none")
    (tmp_path / "config.json").write_text('{"base_model_name_or_path": "some/model"}')
    with pytest.raises(UserError, match="holds no weights. Looked for: medusa_lm_head.safetensors"):
        named_base(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x10")
    assert named_base(tmp_path) == "some/model"
    with pytest.raises(UserError, match="model.safetensors is damaged"):
        import_heads(tmp_path, tmp_path / "back", base, {})
    with pytest.raises(UserError, match="already holds something"):
        import_heads(tmp_path, tmp_path, base, {})


def test_the_script_imports_for_the_base_that_config_json_names(tmp_path: Path) -> None:
    base = load_base(BaseConfig())
    design = plain_heads("medusa", num_heads=2, body="resblock", width=1.0, root_token=False)
    save_heads(tmp_path / "run", random_heads(design, base), base, {"argv": ["test"]})
    export(tmp_path / "run", "tgi", tmp_path / "out", lambda: base)
    result = run_script(
        "infer/import_heads.py", f"source={tmp_path / 'out'}", f"output={tmp_path / 'back'}", "threads=1"
    )
    assert result.status == 0, result.err
    assert result.last_line["base"] == base.path and result.last_line["num_heads"] == 2
    assert "infer/calibrate.py" in result.out and (tmp_path / "back" / "heads.json").is_file()
    export(tmp_path / "run", "vllm", tmp_path / "vllm", lambda: base)
    assert_refused(
        run_script("infer/import_heads.py", f"source={tmp_path / 'vllm'}"), "names no base", "base.path=MODEL"
    )
    assert_refused(run_script("infer/import_heads.py"), "source must be a folder")
