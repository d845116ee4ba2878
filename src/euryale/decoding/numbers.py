"""Numbers, flags and ids of a request as callers give them: Python's, numpy's, or arrays and tensors of them."""

import math
import secrets
from collections.abc import Sequence
from numbers import Integral, Number, Real
from typing import Any, TypeGuard

import numpy as np

from euryale.errors import UserError

MOST_SEED = 2**63 - 1


def whole_number(name: str, value: object, least: int) -> int:
    """Raises UserError for what is not a whole number of at least `least`."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise UserError(f"{name} must be a whole number; got {shown(value)}.")
    if value < least:
        raise UserError(f"{name} must be at least {least}; got {value}.")
    return int(value)


def real_number(name: str, value: object) -> float:
    """Raises UserError for what is not a number; NaN is none."""
    if not isinstance(value, Real) or isinstance(value, bool):
        raise UserError(f"{name} must be a number; got {shown(value)}.")
    try:
        number = float(value)
    except OverflowError as error:
        raise UserError(f"{name} must be a number below 1e308; got a longer one.") from error
    if math.isnan(number):
        raise UserError(f"{name} must be a number; got nan.")
    return number


def flag(name: str, value: object) -> bool:
    """Raises UserError for what is neither true nor false."""
    if not isinstance(value, (bool, np.bool_)):
        raise UserError(f"{name} must be true or false; got {shown(value)}.")
    return bool(value)


def token_ids(name: str, value: object) -> list[int]:
    """One id, several or none -> a list. Raises UserError for what is not a whole number in it."""
    value = to_list(name, value)
    if value is None:
        return []
    ids = []
    for token in value if is_list(value) else [value]:
        if not is_id(token):
            raise UserError(f"{name} must be token ids; got {shown(token)}.")
        ids.append(int(token))
    return ids


def is_id(value: object) -> TypeGuard[int]:
    """Whether it is a whole number, of Python or numpy; it may be out of range."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_list(value: object) -> TypeGuard[Sequence[Any]]:
    """Whether it has an order and members of its own: text and bytes have not, a set has no order."""
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray, memoryview))


def to_list(name: str, value: object) -> object:
    """Arrays and tensors of whole numbers as lists (one number as such); anything else as it is.

    Raises UserError for an array of another dtype: ids that were rounded are other ids.
    """
    if value is None or isinstance(value, (Number, Sequence)):
        return value
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "iu":
            raise UserError(f"{name} must hold whole numbers in rows of one length; got an array of {value.dtype}.")
        return value.tolist()
    import torch  # here: settings are checked before it is imported, and none of them is a tensor

    if isinstance(value, torch.Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        if not dtype.startswith(("int", "uint")):
            raise UserError(f"{name} must hold whole numbers; got a tensor of {dtype}.")
        return value.tolist()
    return value


def seeds_of(seed: object, num_rows: int) -> list[int]:
    """One seed for all rows, or one each; None draws one for each row.

    Raises UserError for another number of seeds, and for what is not a seed.
    """
    seed = to_list("seed", seed)
    seeds = list(seed) if is_list(seed) else [seed] * num_rows
    if len(seeds) != num_rows:
        raise UserError(f"seed must be one number, or one for each prompt; got {len(seeds)} for {num_rows} prompts.")
    return [one_seed(number) for number in seeds]


def one_seed(seed: object) -> int:
    """A seed, drawn where it is None. Raises UserError for what is not one."""
    if seed is None:
        return secrets.randbelow(MOST_SEED)
    if not is_id(seed) or not 0 <= int(seed) <= MOST_SEED:
        raise UserError(f"seed must be a whole number from 0 to 2**63 - 1, or None to draw one; got {shown(seed)}.")
    return int(seed)


def shown(value: object) -> str:
    """A value in a message: short, and with its type where that says more."""
    if value is None or isinstance(value, (bool, int, float, str)):
        text = repr(value)
        return text if len(text) <= 60 else f"{text[:60]}..."
    return f"{type(value).__module__.partition('.')[0]}.{type(value).__name__}".removeprefix("builtins.")
