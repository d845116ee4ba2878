"""Loading of GGUF files, the format of llama.cpp, by way of a dequantised copy in the user's cache folder.

transformers reads a GGUF file in Python, half a minute for a small model, so it is read once: tokenizer, chat template,
end tokens and weights are kept as an ordinary Hugging Face folder, named by the file's SHA-256. Each tensor of the copy
is bfloat16 where that holds its every value exactly and float32 elsewhere: nothing is rounded before base.dtype is
known. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import hashlib
import logging
from copy import deepcopy
from pathlib import Path

import gguf
import torch
import transformers
from filelock import FileLock
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel

from euryale.base.find_model import GGUF_SUFFIX
from euryale.errors import UserError
from euryale.system.files import check_writable, write_atomically, write_json
from euryale.system.memory import free_bytes
from euryale.system.paths import cache_root
from euryale.system.units import gigabytes

SOURCE_FILE = "gguf.json"  # in the copy: which file it came from
_FORMAT = 1  # of the copy; another number makes new copies
_END_FIELDS = ("eos_token_id", "eot_token_id", "eom_token_id")  # of tokenizer.ggml: end of text, of turn, of message
_UNREAD_ROPE = ("rope_freqs", "rope_factors_long", "rope_factors_short")  # tensors that transformers leaves out
log = logging.getLogger(__name__)


def find_gguf(path: Path, asked: str) -> Path | None:
    """The GGUF file that `path` is, or the one in a folder without config.json; None where there is none.

    Raises UserError for a folder with several.
    """
    if path.is_file():
        return path if path.suffix == GGUF_SUFFIX else None
    if (path / "config.json").is_file():
        return None
    files = sorted(path.glob(f"*{GGUF_SUFFIX}"))
    if len(files) > 1:
        names = ", ".join(file.name for file in files[:4]) + (" ..." if len(files) > 4 else "")
        raise UserError(
            f"base.path must name one GGUF file; got {asked} with {len(files)} of them ({names}). "
            "Give the path of one file. Parts of one model must be joined first (llama-gguf-split --merge)."
        )
    return files[0] if files else None


def dequantised(file: Path, asked: str) -> Path:
    """The Hugging Face folder with the tokenizer and weights of a GGUF file, made at its first use.

    Raises UserError: not a GGUF file, one cut short or damaged, tensors of an unknown quantisation, an architecture or
    a rope that transformers cannot read, too little memory, a cache folder that cannot be written.
    """
    digest = _sha256(file, asked)
    folder = cache_root() / "gguf" / f"{digest[:32]}-{_FORMAT}"
    if (folder / SOURCE_FILE).is_file():
        return folder
    check_writable(folder.parent, f"base.path={asked}: the cache folder (XDG_CACHE_HOME)")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not (folder / SOURCE_FILE).is_file():  # another process may have made it meanwhile
            _convert(file, asked, digest, folder)
    return folder


def source_digest(folder: Path) -> str | None:
    """The SHA-256 of the GGUF file that a copy was made of; None for any other folder."""
    if folder.parent != cache_root() / "gguf" or not (folder / SOURCE_FILE).is_file():
        return None
    return folder.name.split("-")[0]


def _convert(file: Path, asked: str, digest: str, folder: Path) -> None:
    reader = _read(file, asked)
    log.info("base %s: dequantising it once; the copy is kept in %s", asked, folder)
    transformers.utils.logging.disable_progress_bar()
    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    try:
        config = AutoConfig.from_pretrained(**where)
        _check_rope(reader, config, asked)
        _check_memory(reader, asked)
        tokenizer = AutoTokenizer.from_pretrained(**where)
        model, info = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32, output_loading_info=True)
    except UserError:
        raise
    # transformers reports an architecture, a tokenizer or a tensor that it cannot read with any of these.
    except Exception as error:
        text = " ".join(str(error).split())[:400]
        raise UserError(
            f"base.path={asked} is a GGUF file that transformers cannot read ({type(error).__name__}): {text} "
            "Give the model as a Hugging Face folder or hub id instead."
        ) from error
    if missing := sorted(info["missing_keys"]):
        raise UserError(
            f"base.path={asked}: the GGUF file lacks {len(missing)} tensors of a {type(model).__name__} "
            f"({', '.join(missing[:3])} ...). Give the model as a Hugging Face folder or hub id instead."
        )
    model = _serialisable(model, _own_dtype(reader))
    if ends := _end_ids(reader):
        model.generation_config.eos_token_id = ends
    with write_atomically(folder) as staged:
        model.save_pretrained(staged)
        tokenizer.save_pretrained(staged)
        write_json(
            staged / SOURCE_FILE, {"file": file.name, "sha256": digest, "transformers": transformers.__version__}
        )


def _read(file: Path, asked: str) -> gguf.GGUFReader:
    """The file's header. Raises UserError where it is not whole, or has tensors that nothing here can dequantise."""
    with file.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise UserError(f"base.path={asked} must be a GGUF file; {file} does not begin as one. Download it again.")
    try:
        reader = gguf.GGUFReader(file)
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        if "GGMLQuantizationType" in str(error):
            raise UserError(
                f"base.path={asked}: a tensor has a quantisation that gguf {_gguf_version()} does not know ({error}). "
                "Update the package gguf, or give a file in another quantisation (Q8_0, Q4_K_M)."
            ) from error
        raise UserError(
            f"base.path={asked}: {file} ({gigabytes(file.stat().st_size)}) is cut short or damaged: "
            f"{' '.join(str(error).split())}. Download it again."
        ) from error
    for kind in {tensor.tensor_type: tensor for tensor in reader.tensors}.values():
        try:
            gguf.dequantize(kind.data[:1], kind.tensor_type)
        except NotImplementedError as error:
            raise UserError(
                f"base.path={asked}: tensor {kind.name} has the quantisation {kind.tensor_type.name}, which gguf "
                f"{_gguf_version()} cannot dequantise. Give a file in another one (Q8_0, Q4_K_M)."
            ) from error
    if len(reader.tensors) == 0:
        raise UserError(f"base.path={asked}: the GGUF file holds no tensors (a vocabulary alone?). Give a whole model.")
    return reader


def _check_rope(reader: gguf.GGUFReader, config: PreTrainedConfig, asked: str) -> None:
    """Raises UserError for scaled positions that transformers would silently read as unscaled."""
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") != "default":
        return
    field = next((field for name, field in reader.fields.items() if name.endswith(".rope.scaling.type")), None)
    kind = field.contents() if field is not None else "none"
    tensors = [tensor.name for tensor in reader.tensors if tensor.name.startswith(_UNREAD_ROPE)]
    if kind != "none" or tensors:
        found = f"rope.scaling.type {kind}" if kind != "none" else f"the tensor {tensors[0]}"
        raise UserError(
            f"base.path={asked}: the GGUF file scales its positions ({found}), and transformers would read it without. "
            "Give the model as a Hugging Face folder or hub id instead."
        )


def _check_memory(reader: gguf.GGUFReader, asked: str) -> None:
    """Dequantised tensors and the model made of them are in memory at once."""
    needed = 8 * sum(int(tensor.n_elements) for tensor in reader.tensors)
    if needed > (free := free_bytes(torch.device("cpu"))):
        raise UserError(
            f"base.path={asked}: dequantising needs {gigabytes(needed)} of memory, once; {gigabytes(free)} are free. "
            "Close other programs, or give the model as a Hugging Face folder instead."
        )


def _serialisable(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The model without the mark of a quantised one, its tensors in the smallest dtype that loses nothing."""
    config = deepcopy(model.config)
    del config.quantization_config  # save_pretrained refuses what was loaded from GGUF
    config.dtype = dtype
    with torch.device("meta"):
        plain = type(model)(config)
    plain.load_state_dict({name: _smallest(x) for name, x in model.state_dict().items()}, strict=False, assign=True)
    plain.tie_weights()
    plain.generation_config = model.generation_config
    return plain


def _smallest(tensor: torch.Tensor) -> torch.Tensor:
    rounded = tensor.bfloat16()
    return rounded if torch.equal(rounded.to(tensor.dtype), tensor) else tensor


def _own_dtype(reader: gguf.GGUFReader) -> torch.dtype:
    """What base.dtype=auto takes on a GPU: the dtype of most weights, or bfloat16 for quantised ones."""
    largest = max(reader.tensors, key=lambda tensor: int(tensor.n_elements)).tensor_type
    own = {gguf.GGMLQuantizationType.F32: torch.float32, gguf.GGMLQuantizationType.F16: torch.float16}
    return own.get(largest, torch.bfloat16)


def _end_ids(reader: gguf.GGUFReader) -> list[int]:
    """Every id at which llama.cpp would end an answer."""
    fields = [reader.get_field(f"tokenizer.ggml.{name}") for name in _END_FIELDS]
    return list(dict.fromkeys(int(field.contents()) for field in fields if field is not None))


def _sha256(file: Path, asked: str) -> str:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"base.path={asked}: {file} cannot be read ({error.strerror}). Give another file.") from error


def _gguf_version() -> str:
    from importlib.metadata import version  # only for a message

    return version("gguf")
