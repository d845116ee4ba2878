"""Files of tensors, checked against their description before any of it is used."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from euryale.errors import UserError


def read_tensors(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The tensors called for, on the CPU. Raises UserError when one is missing, extra or of another shape."""
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            _check_shapes(path, shapes, found)
            return {name: file.get_tensor(name) for name in shapes}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is missing or cut short: {error}. Copy it again or use another checkpoint.") from error


def check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raises UserError for NaN or infinity."""
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise UserError(f"{path}: tensor {name} holds NaN or infinity. Use another checkpoint.")


def _check_shapes(path: Path, expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> None:
    wrong = [
        f"{name} is {list(found[name]) if name in found else 'missing'}, "
        f"expected {list(expected[name]) if name in expected else 'no such tensor'}"
        for name in sorted(set(expected) | set(found))
        if expected.get(name) != found.get(name)
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(f"{path} does not fit its description: {'; '.join(wrong[:3])}{more}. Use another checkpoint.")
