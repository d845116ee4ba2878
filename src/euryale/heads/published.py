"""Medusa heads that were published for other servers, as a checkpoint of ours.

Read by the names of their tensors:

    {head}.{layer}.linear.{weight,bias}, {head}.{number of layers}.weight
        FasterDecoding/Medusa, TGI, TensorRT-LLM, ModelOpt; with or without medusa_head. or medusa_heads. before it
    blocks.{head}.layers.{layer}.{weight,bias}, lm_heads.{head}.weight or lm_head.weight
        vLLM up to 0.32

They compute what our heads of kind medusa do with body resblock and without root token: x + SiLU(W x + b) on the base's
last hidden state, then an output matrix of their own or the base's (Cai et al. 2024, section 3.1). export.py goes the
other way. A pickle is read as tensors alone: what would run code is refused.

Letters: D width, V vocabulary.
"""

import logging
import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from euryale.base.base import Base
from euryale.errors import UserError
from euryale.heads.checkpoint import save_heads
from euryale.heads.config import HeadsConfig
from euryale.heads.heads import Heads
from euryale.system.files import check_writable, read_json
from euryale.system.tensor_files import check_finite

_BODY = re.compile(r"(?:medusa_heads?\.)?(\d+)\.(\d+)\.linear\.(weight|bias)")
_BLOCK = re.compile(r"(?:medusa_heads\.)?blocks\.(\d+)\.layers\.(\d+)\.(weight|bias)")
_OUTPUT = re.compile(r"(?:medusa_heads?\.)?(\d+)\.\d+\.weight|(?:medusa_heads\.)?lm_heads\.(\d+)\.weight")
_SHARED = re.compile(r"(?:medusa_heads\.)?lm_head\.weight")
_TOKEN_MAP = re.compile(r"(?:medusa_heads\.)?token_map")
_FILES = (
    "medusa_lm_head.safetensors",
    "medusa_lm_head.pt",
    "*.safetensors",
    "*.bin",
    "*.pt",
)  # the first that are there
_COUNTS = ("medusa_num_heads", "num_medusa_heads", "num_heads")
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
log = logging.getLogger(__name__)


class Imported(NamedTuple):
    """What was read and written."""

    heads: Heads
    num_heads: int
    num_layers: int
    output: str  # "own" | "shared"


class _Published(NamedTuple):
    bodies: dict[tuple[int, int, str], Tensor]  # by head, layer and part
    outputs: dict[int, Tensor]  # by head
    shared: Tensor | None  # one output matrix for all heads


def named_base(source: Path) -> str | None:
    """The base that config.json names, a folder or hub id; None where it names none. Raises UserError: not a folder of
    heads, no weights in it."""
    if not (source / "config.json").is_file():
        raise UserError(
            f"source={source} must be a folder with config.json and the weights of Medusa heads; there is none. From "
            "the hub: hf download REPOSITORY --local-dir DIR"
        )
    _weight_files(source)
    name = read_json(source / "config.json").get("base_model_name_or_path")
    return name if isinstance(name, str) and name else None


def check_output(output: Path) -> None:
    """Raises UserError for a folder that holds something or cannot be written."""
    if output.exists() and (output.is_file() or any(output.iterdir())):
        raise UserError(f"output={output} must be empty or not there yet; it already holds something.")
    check_writable(output, f"output={output}")


def import_heads(source: Path, output: Path, base: Base, provenance: Mapping[str, object]) -> Imported:
    """Writes the heads in `source` as a checkpoint of this base in the new folder `output`.

    Raises UserError: an `output` that holds something, files that are missing, damaged or would run code, tensors that
    are missing or of another size than this base needs, numbers that are not finite.
    """
    check_output(output)
    files = _weight_files(source)
    published = _read(files)
    check_finite(files[0], {f"{k}.{layer}.{part}": tensor for (k, layer, part), tensor in published.bodies.items()})
    check_finite(files[0], {f"output of head {k}": tensor for k, tensor in published.outputs.items()})
    heads = _build(source, published, base)
    told = read_json(source / "config.json")
    asked = next((told[name] for name in _COUNTS if name in told), heads.num_heads)
    if asked != heads.num_heads:
        log.warning("config.json says %s heads, and %d are there: these are imported", asked, heads.num_heads)
    save_heads(output, heads.to(base.device), base, dict(provenance) | {"imported_from": str(source)})
    return Imported(heads, heads.num_heads, heads.config.num_layers, heads.config.output)


def _build(source: Path, published: _Published, base: Base) -> Heads:
    num_heads = 1 + max(k for k, _, _ in published.bodies)
    num_layers = 1 + max(layer for _, layer, _ in published.bodies)
    outputs = published.outputs
    if not outputs and published.shared is not None:
        outputs = dict.fromkeys(range(num_heads), published.shared)
    is_shared = not outputs or all(_is_same(matrix, base.lm_head_weight) for matrix in outputs.values())
    config = HeadsConfig(
        kind="medusa", num_heads=num_heads, num_layers=num_layers, body="resblock", width=1.0,
        output="shared" if is_shared else "own", root_token=False, vocab_share=1.0, vocab_min=0, features="last",
        residual=True, induction=0,
    )  # fmt: skip
    with torch.device("meta"):
        heads = Heads(config, base.hidden_size, base.vocab_size)
    found = {
        f"bodies.{k}.{layer}.hidden_in.{part}": tensor for (k, layer, part), tensor in published.bodies.items()
    } | ({} if is_shared else {f"outputs.{k}.weight": tensor for k, tensor in outputs.items()})
    state: dict[str, Tensor] = {}
    for name, expected in heads.state_dict().items():
        tensor = found.pop(name, None)
        if tensor is None and name.endswith(".bias"):
            tensor = torch.zeros(expected.shape, dtype=torch.float32)  # vLLM writes none where medusa_fc_bias is false
        _check(source, name, tensor, tuple(expected.shape), base)
        assert tensor is not None, "_check refuses it"
        state[name] = tensor.to(base.dtype, copy=True)
    heads.load_state_dict(state, assign=True)
    return heads.eval().requires_grad_(False)


def _check(source: Path, name: str, tensor: Tensor | None, shape: tuple[int, ...], base: Base) -> None:
    if tensor is None:
        raise UserError(
            f"source={source} lacks {_published_name(name)}: every head must have as many layers as the others, and an "
            "output matrix where one has it. Copy it again, or give other heads."
        )
    if tensor.dtype not in _DTYPES:
        raise UserError(
            f"source={source}: {_published_name(name)} must hold floating-point numbers; got {tensor.dtype}. Give "
            "heads that are not quantised."
        )
    if tuple(tensor.shape) != shape:
        raise UserError(
            f"source={source}: {_published_name(name)} must be {list(shape)} for the base {base.path} (hidden size "
            f"{base.hidden_size}, vocabulary {base.vocab_size}); got {list(tensor.shape)}. Give the base that they "
            "were trained for: base.path=FOLDER_OR_HUB_ID."
        )


def _published_name(name: str) -> str:
    parts = name.split(".")
    if parts[0] == "outputs":
        return f"the output matrix of head {parts[1]}"
    return f"the {parts[-1]} of layer {parts[2]} of head {parts[1]}"


def _weight_files(source: Path) -> list[Path]:
    for pattern in _FILES:
        files = sorted(source.glob(pattern))
        if files:
            return files
    raise UserError(f"source={source} holds no weights. Looked for: {', '.join(_FILES)}.")


def _read(files: list[Path]) -> _Published:
    """The tensors of heads in these files; those of a whole model beside them are not read."""
    published = _Published({}, {}, None)
    for name, tensor in (pair for file in files for pair in _tensors(file)):
        body, output = _BODY.fullmatch(name) or _BLOCK.fullmatch(name), _OUTPUT.fullmatch(name)
        if body is not None:
            published.bodies[int(body[1]), int(body[2]), body[3]] = tensor
        elif output is not None:
            published.outputs[int(output[1] or output[2])] = tensor
        elif _SHARED.fullmatch(name):
            published = published._replace(shared=tensor)
        else:
            raise UserError(
                f"{files[0].parent}: heads with a token_map guess from a part of the vocabulary, which cannot be "
                "imported. Give heads for the whole vocabulary."
            )
    if not published.bodies:
        raise UserError(
            f"{', '.join(file.name for file in files[:3])} in {files[0].parent} holds no Medusa heads: no tensor is "
            "named like 0.0.linear.weight or blocks.0.layers.0.weight. Give another folder."
        )
    return published


def _tensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    """Raises UserError for a file that is damaged, or a pickle of anything but tensors."""
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as opened:
                yield from ((name, opened.get_tensor(name)) for name in opened.keys() if _is_of_heads(name))  # noqa: SIM118
            return
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{file} must be a pickle of tensors alone; got one that would run code, or a damaged one. Ask for the "
            "heads as safetensors."
        ) from error
    except (OSError, SafetensorError, RuntimeError, EOFError) as error:
        raise UserError(f"{file} is damaged: {str(error).splitlines()[0]}. Copy it again.") from error
    if not isinstance(loaded, dict) or not all(isinstance(tensor, Tensor) for tensor in loaded.values()):
        raise UserError(f"{file} must hold tensors by name; got something else. Ask for the heads as safetensors.")
    yield from ((name, tensor) for name, tensor in loaded.items() if _is_of_heads(name))


def _is_of_heads(name: str) -> bool:
    return any(pattern.fullmatch(name) for pattern in (_BODY, _BLOCK, _OUTPUT, _SHARED, _TOKEN_MAP))


def _is_same(matrix: Tensor, base_VD: Tensor) -> bool:
    return matrix.shape == base_VD.shape and torch.equal(matrix.to(base_VD.device, base_VD.dtype), base_VD)
