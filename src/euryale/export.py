"""Formats in which other servers take heads that were trained here.

Each format is a folder that its reader takes as it is:

    euryale  a clean copy: what decoding needs and what the report says, without the state of training
    vllm     vLLM up to 0.32, the last release with Medusa (models/medusa.py there)
    medusa   the heads-only layout of FasterDecoding/Medusa v0.1, as safetensors (TensorRT-LLM reads it too)
    tgi      Text Generation Inference 3 (layers/medusa.py there)

The three peers know one design of head, x + SiLU(W x + b) on the hidden state alone (Cai et al. 2024, section 3.1).
Their shift is ours: head k at position t guesses the token at t + 2 + k. They guess from the whole vocabulary, heads
with a draft vocabulary know a part of it: the rows of other tokens are then replaced by the mean of the known ones,
whose logit is never the largest. (vLLM's `token_map` would be shorter, but 0.32 refuses to load a file that has it.)

Letters: D width, V vocabulary.
"""

import shutil
from collections.abc import Callable
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from euryale.base.base import Base
from euryale.base.lora import FOLDER as ADAPTER
from euryale.decoding.tree.calibration import INT4_TREE_FILE, TREE_FILE
from euryale.errors import UserError, check_option
from euryale.heads.blocks import corrected
from euryale.heads.checkpoint import WEIGHTS, heads_config, load_heads, read_description, read_weights
from euryale.heads.config import HeadsConfig
from euryale.heads.find_checkpoint import DESCRIPTION
from euryale.heads.heads import Heads
from euryale.system.files import json_text, write_atomically

# How a person trains heads that the peers can express.
EXPORTABLE = "heads=medusa heads.body=resblock heads.root_token=false"
_KEPT = (DESCRIPTION, WEIGHTS, TREE_FILE, INT4_TREE_FILE, "report.json", "README.md", ADAPTER)
_KEPT_SUFFIX = ".png"


class Trained(NamedTuple):
    """A checkpoint that the peers can express."""

    config: HeadsConfig
    description: dict[str, Any]
    tensors: dict[str, Tensor]  # as in heads.safetensors
    output: Callable[[int], Tensor]  # the output matrix [V, D] of a head, as its reader needs it
    is_base_output: bool  # all heads read the base's own output matrix as it is


class Layout(NamedTuple):
    """One peer's folder."""

    config: dict[str, object]
    tensors: dict[str, Tensor]
    weights_file: str
    readme: str


def export(folder: Path, format_name: str, output: Path, load_base: Callable[[], Base]) -> list[Path]:
    """Writes the checkpoint in `folder` as a new folder `output`, all or nothing; returns its files.

    `load_base` is called only for a format that needs the base's output matrix. Raises UserError: an unknown
    format, an `output` that holds something, heads that the format cannot express, a damaged checkpoint.
    """
    check_option("format", format_name, FORMATS)
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise UserError(f"output={output} must be empty or not there yet; it already holds something.")
    read_description(folder)
    is_there = output.is_dir()
    if is_there:
        output.rmdir()  # empty: the new folder appears whole in its place
    try:
        with write_atomically(output) as staged:
            staged.mkdir()
            FORMATS[format_name](folder, staged, load_base)
    finally:
        if is_there:
            output.mkdir(parents=True, exist_ok=True)  # again, after a refusal
    return sorted(path for path in output.rglob("*") if path.is_file())


def _copy(folder: Path, staged: Path, load_base: Callable[[], Base]) -> None:
    _read_all(folder)
    for source in sorted(folder.iterdir()):
        if source.name in _KEPT or source.suffix == _KEPT_SUFFIX:
            (shutil.copytree if source.is_dir() else shutil.copyfile)(source, staged / source.name)


def _for_peer(layout: Callable[[Trained], Layout]) -> Callable[[Path, Path, Callable[[], Base]], None]:
    def write(folder: Path, staged: Path, load_base: Callable[[], Base]) -> None:
        config, tensors = _read_all(folder)
        _check_exportable(folder, config)
        draft_ids = tensors.get("draft_ids")

        @lru_cache(maxsize=1)
        def shared() -> Tensor:
            base = load_base()
            load_heads(folder, base)  # refuses a base that these heads were not trained for
            matrix_VD = base.lm_head_weight.detach().to("cpu", tensors["bodies.0.0.hidden_in.weight"].dtype)
            return keep_rows(matrix_VD, draft_ids)

        def output(k: int) -> Tensor:
            if config.output == "own":
                return keep_rows(tensors[f"outputs.{k}.weight"], draft_ids)
            if config.output == "shared":
                return shared()
            # Other servers do not know corrections of low rank: each head's becomes a matrix of its own.
            narrow, widen = (tensors[f"corrections.{k}.{part}.weight"] for part in ("narrow", "widen"))
            return keep_rows(corrected(shared(), widen, narrow), draft_ids)

        is_base_output = config.output == "shared" and draft_ids is None
        made = layout(Trained(config, read_description(folder), tensors, output, is_base_output))
        # Copies: safetensors refuses tensors that share memory, and several heads may share one matrix.
        save_file({name: t.clone().contiguous() for name, t in made.tensors.items()}, staged / made.weights_file)
        (staged / "config.json").write_text(json_text(made.config))
        (staged / "README.md").write_text(made.readme + _with_adapter(folder, staged))

    return write


def _with_adapter(folder: Path, staged: Path) -> str:
    """Copies the adapter that these heads were trained with; what a person must do with it."""
    if read_description(folder).get("adapter") is None:
        return ""
    shutil.copytree(folder / ADAPTER, staged / ADAPTER)
    return (
        "\nThese heads were trained with the LoRA adapter in adapter/ (peft's format). Merge it into the base and "
        "serve that:\nwithout it text is the plain base's, and drafts are accepted less often.\n"
    )


def keep_rows(matrix_VD: Tensor, ids: Tensor | None) -> Tensor:
    """The matrix with every row that is not named by `ids` replaced by the mean of those that are; None names all."""
    if ids is None:
        return matrix_VD
    kept_VD = matrix_VD[ids].float().mean(0).to(matrix_VD.dtype).repeat(len(matrix_VD), 1)
    kept_VD[ids] = matrix_VD[ids]
    return kept_VD


def _read_all(folder: Path) -> tuple[HeadsConfig, dict[str, Tensor]]:
    """Design and tensors of a checkpoint, by its own description; no base is needed."""
    description = read_description(folder)
    config = heads_config(folder, description)
    try:
        with torch.device("meta"):
            heads = Heads(config, description["hidden_size"], description["vocab_size"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / DESCRIPTION} lacks {error}. Use another checkpoint.") from error
    return config, read_weights(folder, description, heads)


def _check_exportable(folder: Path, config: HeadsConfig) -> None:
    wanted = {"kind": "medusa", "root_token": False, "body": "resblock", "features": "last"}
    wrong = [f"heads.{name}={asdict(config)[name]}" for name, value in wanted.items() if asdict(config)[name] != value]
    if wrong:
        raise UserError(
            f"{folder} was trained with {', '.join(wrong).lower()}, and the Medusa heads of other servers read the "
            f"hidden state alone, through residual blocks. Train heads for them with {EXPORTABLE}, "
            "or use format=euryale."
        )


def _vllm(trained: Trained) -> Layout:
    """Native names. Shared output: `original_lm_head`, and the matrix once; the loader wants it in the file."""
    K, L, V = trained.config.num_heads, trained.config.num_layers, trained.description["vocab_size"]
    tensors = _bodies(trained, "blocks.{k}.layers.{layer}.{part}")
    if trained.config.output == "shared":
        tensors["lm_head.weight"] = trained.output(0)
    else:
        tensors |= {f"lm_heads.{k}.weight": trained.output(k) for k in range(K)}
    config: dict[str, object] = {
        "architectures": ["MedusaModel"],
        "model_type": "medusa",
        "hidden_size": trained.description["hidden_size"],
        "vocab_size": V,
        "truncated_vocab_size": V,
        # vLLM takes any other key with "num" and "heads", or "num" and "layers", in it for one of these two.
        "num_heads": K,
        "num_hidden_layers": L,
        "medusa_fc_bias": True,  # without it the biases are dropped in silence
        "original_lm_head": trained.config.output == "shared",
    }
    usage = (
        f"vllm serve {_base_path(trained)} --speculative-config "
        f'\'{{"method": "medusa", "model": "THIS_FOLDER", "num_speculative_tokens": {K}}}\''
    )
    return Layout(config, tensors, "model.safetensors", _readme(trained, "vLLM up to 0.32", usage))


def _medusa(trained: Trained) -> Layout:
    """Every head with an output matrix of its own: a shared one is written once a head."""
    tensors = _bodies(trained, "{k}.{layer}.linear.{part}") | _own_outputs(trained)
    usage = (
        "python - <<'END'  # its loader wants a pickle; TensorRT-LLM reads the safetensors file\n"
        "import torch, safetensors.torch\n"
        'torch.save(safetensors.torch.load_file("medusa_lm_head.safetensors"), "medusa_lm_head.pt")\nEND'
    )
    note = (
        "\nIts loader builds five heads whatever this file says, and leaves those it does not find untrained: text "
        "stays right, drafts of such heads are wasted.\n"
        if trained.config.num_heads < 5
        else ""
    )
    readme = _readme(trained, "FasterDecoding/Medusa v0.1 and TensorRT-LLM up to 1.2", usage) + note
    # Two spellings of the number of heads: Medusa's, and the one of TensorRT-LLM's configuration.
    config = _medusa_config(trained) | {"num_medusa_heads": trained.config.num_heads}
    return Layout(config, tensors, "medusa_lm_head.safetensors", readme)


def _tgi(trained: Trained) -> Layout:
    """Bodies alone where the base's output matrix serves; but that form has one layer, so with more all get theirs."""
    tensors = _bodies(trained, "{k}.{layer}.linear.{part}")
    if not trained.is_base_output or trained.config.num_layers > 1:
        tensors |= _own_outputs(trained)
    usage = f"text-generation-launcher --model-id THIS_FOLDER --speculate {trained.config.num_heads}"
    readme = _readme(trained, "Text Generation Inference 3", usage)
    return Layout(_medusa_config(trained), tensors, "medusa_lm_head.safetensors", readme)


def _medusa_config(trained: Trained) -> dict[str, object]:
    """No model_type and no architectures: Medusa's and TGI's loaders would then take the folder for a whole model."""
    return {
        "medusa_num_heads": trained.config.num_heads,
        "medusa_num_layers": trained.config.num_layers,
        "base_model_name_or_path": _base_path(trained),
        "hidden_size": trained.description["hidden_size"],
        "vocab_size": trained.description["vocab_size"],
    }


def _bodies(trained: Trained, name: str) -> dict[str, Tensor]:
    """The residual blocks under a peer's names; {k} head, {layer} block, {part} weight [D, D] or bias [D]."""
    return {
        name.format(k=k, layer=layer, part=part): trained.tensors[f"bodies.{k}.{layer}.hidden_in.{part}"]
        for k in range(trained.config.num_heads)
        for layer in range(trained.config.num_layers)
        for part in ("weight", "bias")
    }


def _own_outputs(trained: Trained) -> dict[str, Tensor]:
    """`{head}.{number of layers}.weight` [V, D], as Medusa and TGI name a head's output matrix."""
    return {f"{k}.{trained.config.num_layers}.weight": trained.output(k) for k in range(trained.config.num_heads)}


def _base_path(trained: Trained) -> str:
    return str(trained.description["base"]["path"])


def _readme(trained: Trained, reader: str, usage: str) -> str:
    return (
        f"# Medusa heads for {_base_path(trained)}\n\n"
        f"{trained.config.num_heads} heads, trained with Euryale, in the layout of {reader}.\n\n"
        f"```\n{usage}\n```\n"
    )


FORMATS: dict[str, Callable[[Path, Path, Callable[[], Base]], None]] = {
    "euryale": _copy,
    "vllm": _for_peer(_vllm),
    "medusa": _for_peer(_medusa),
    "tgi": _for_peer(_tgi),
}
