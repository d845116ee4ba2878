"""Weight files of a folder, looked at before and after they are read.

transformers casts whatever numbers a file holds and passes over tensors that no layer asks for: weights in 8 bits
without their scales would be loaded as nonsense.
"""

import logging
from collections.abc import Collection, Iterable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import nn

from euryale.errors import UserError

_POINTER = b"version https://git-lfs"
_SMALL = ("I8", "U8", "I4", "U4", "F8", "F4", "F6", "E8")  # what safetensors calls dtypes of a byte or less, begins so
# Names of tensors beside weights that are kept in few bits, or beside an adapter's.
_BESIDE = (
    "scale", "scales", "weight_scale", "weight_scale_inv", "input_scale", "scale_inv", "qweight", "qzeros", "g_idx",
    "SCB", "absmax", "quant_map", "weight_packed", "lora_A.weight", "lora_B.weight",
)  # fmt: skip
log = logging.getLogger(__name__)


def check_stored(folder: Path, asked: str, is_quantised: bool) -> None:
    """Raises UserError for pointers in place of files, and for weights of a byte or less that config.json does not
    call quantised. Reads the beginnings of the files alone."""
    for file in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        with file.open("rb") as stream:
            if stream.read(len(_POINTER)) == _POINTER:
                raise UserError(
                    f"base.path={asked}: {file} is a pointer of Git LFS, not the weights. Run git lfs pull in its "
                    "folder, or copy the model again."
                )
        if file.suffix == ".safetensors" and not is_quantised and (small := _small_weights(file)):
            raise UserError(
                f"base.path={asked}: {file} holds weights of a byte or less ({small[0]}), and config.json has no "
                "quantization_config that says how to read them. Give the model in 16 or 32 bits."
            )


def _small_weights(file: Path) -> list[str]:
    try:
        with safe_open(file, framework="pt") as tensors:
            names = [name for name in tensors.keys() if name.endswith(".weight")]  # noqa: SIM118
            dtypes = {name: str(tensors.get_slice(name).get_dtype()) for name in names}
    except (OSError, SafetensorError):
        return []  # the loader says what is wrong with it
    return [f"{name} in {dtype}" for name, dtype in dtypes.items() if dtype.startswith(_SMALL)]


def check_read(
    asked: str, missing: Collection[str], mismatched: Iterable[Iterable[object]], unread: Iterable[str]
) -> None:
    """What transformers reports after loading. Raises UserError for tensors that are missing, of another size, or that
    belong to weights which were not read as they are meant; others that were not read are one warning."""
    if missing:  # transformers fills them with random numbers
        raise UserError(
            f"base.path={asked}: the weights lack {len(missing)} tensors ({', '.join(sorted(missing)[:3])} ...) that "
            "config.json calls for. Copy the model again."
        )
    for name, stored, called_for in (tuple(one) for one in mismatched):
        raise UserError(
            f"base.path={asked}: {name} has the sizes {_sizes(stored)}, and config.json calls for "
            f"{_sizes(called_for)}. Copy the model again, with its own config.json."
        )
    left = sorted(unread)
    if beside := [name for name in left if name.endswith(tuple(f".{end}" for end in _BESIDE))]:
        raise UserError(
            f"base.path={asked}: its files hold {beside[0]}, which config.json does not call for: the weights are "
            "quantised, or an adapter is among them. Give the whole model in 16 or 32 bits."
        )
    if left:
        log.warning("base %s: %d tensors of its files are of no use to it (%s ...)", asked, len(left), left[0])


def _sizes(shape: object) -> str:
    return "x".join(map(str, shape)) if isinstance(shape, Iterable) else str(shape)


def release_files(model: nn.Module) -> None:
    """Copies norms and biases out of the mapped files. They are few numbers, and where the matrices were read into
    another dtype they alone would keep a whole file in memory."""
    for parameter in model.parameters():
        if parameter.ndim < 2:
            parameter.data = parameter.data.clone()
