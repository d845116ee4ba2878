"""Device and dtype of a base: 32, 16 or 4 bits.

bfloat16 halves what a step reads, and on some processors (AMX, AVX512-BF16) multiplies twice as fast or more; on others
it is emulated and slower than float32. base.dtype=auto asks the clock, once per process.
"""

import logging
import time
from functools import cache

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel

from euryale.base.config import QUANTIZATIONS
from euryale.errors import UserError, check_option
from euryale.kernels.packed_linear import multiplies_bfloat16, packed

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FROM_WIDTH = 512  # below, a product costs its call rather than its weights, and float32 is as quick
_WORTH_IT = 1.2  # times quicker that bfloat16 must be
_TIMED = (16, 1024, 4096)  # rows, inputs, outputs of the product that is timed: 16 MB in float32
_ROUNDS = 15  # turns of each, 15 to 50 ms in all
log = logging.getLogger(__name__)


def pick_device(name: str, setting: str = "base.device") -> torch.device:
    """`auto` is the GPU when there is one. `setting` is what a message calls it."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"{setting} must be auto, cpu, cuda or cuda:N; got {name}.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"{setting}={name} needs a GPU; torch {torch.__version__} sees none. Use cpu or auto.")
    return device


def pick_dtype(name: str, device: torch.device, of_base: PreTrainedConfig) -> torch.dtype:
    """`auto` is the checkpoint's own dtype on a GPU; on a CPU bfloat16 where that is quicker, else float32.

    Raises UserError for a name that is not in DTYPES. bfloat16 asked for where it is slow is one warning.
    """
    check_option("base.dtype", name, ("auto", *DTYPES))
    text = of_base.get_text_config()
    if device.type != "cpu":
        return DTYPES[name] if name != "auto" else text.dtype or torch.bfloat16
    if name == "auto":
        return _cpu_dtype(text.hidden_size >= FROM_WIDTH)
    if name == "bfloat16" and text.hidden_size >= FROM_WIDTH:
        _warn_if_slow()
    return DTYPES[name]


@cache
def _cpu_dtype(is_wide: bool) -> torch.dtype:
    """Logs which dtype and why, once per process."""
    if not is_wide:
        log.info("base.dtype=auto: float32, because the base is less than %d wide", FROM_WIDTH)
        return torch.float32
    ratio = bfloat16_speedup()
    dtype = torch.bfloat16 if ratio >= _WORTH_IT else torch.float32
    why = (
        f"this processor multiplies bfloat16 {ratio:.1f} times as fast as float32"
        if ratio
        else "there is no bfloat16 here"
    )
    log.info("base.dtype=auto: %s, because %s", str(dtype).removeprefix("torch."), why)
    return dtype


@cache
def _warn_if_slow() -> None:
    ratio = bfloat16_speedup()
    if ratio < 1.0:
        speed = f"{ratio:.1f} times its speed" if ratio else "it has no products of it"
        log.warning("base.dtype=bfloat16 is slower than float32 on this processor (%s)", speed)


def dtype_of_heads(trained_on: str, device: torch.device) -> str:
    """What base.dtype=auto is for heads of a base in the dtype `trained_on`: that, unless this processor is quicker in
    float32 than in bfloat16. One line says so where it is."""
    if trained_on != "bfloat16" or device.type != "cpu" or bfloat16_speedup() >= 1.0:
        return trained_on
    ratio = bfloat16_speedup()
    speed = f"multiplies bfloat16 only {ratio:.1f} times as fast" if ratio else "has no products of bfloat16"
    log.info("base.dtype=auto: float32, because this processor %s, which the heads were trained on", speed)
    return "float32"


@cache
@torch.no_grad()
def bfloat16_speedup() -> float:
    """How many times as fast as float32 a packed bfloat16 product is here, timed in turns; 0.0 where there is none."""
    if not multiplies_bfloat16():
        return 0.0
    rows, inputs, outputs = _TIMED
    ways = []
    for dtype in (torch.float32, torch.bfloat16):
        ways.append((packed(torch.ones(outputs, inputs, dtype=dtype)), torch.ones(rows, inputs, dtype=dtype)))
    seconds: list[list[float]] = [[], []]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a second one waits wherever another program has its core
    try:
        for _ in range(_ROUNDS):
            for found, (linear, x_MI) in zip(seconds, ways, strict=True):
                start = time.perf_counter()
                linear(x_MI)
                found.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return min(seconds[0]) / min(seconds[1])  # neighbours only ever add time


def quantization_of_heads(asked: str, trained_on: object) -> str:
    """What base.quantization=auto is for heads: that of the base `trained_on`, as heads.json names it."""
    if asked != "auto":
        return asked
    return str(trained_on.get("quantization", "none")) if isinstance(trained_on, dict) else "none"


def quantization_config(name: str, dtype: torch.dtype) -> object | None:
    if name in ("none", "auto", "int4"):  # auto asks a heads checkpoint; int4 is made of weights in 16 or 32 bits
        return None
    check_option("base.quantization", name, QUANTIZATIONS)
    try:
        import bitsandbytes  # noqa: F401  (optional: only a 4-bit base needs it)
    except ImportError as error:
        raise UserError("base.quantization=nf4 needs bitsandbytes: pip install 'euryale[train]'.") from error
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def is_stored_in_4_bits(of_base: PreTrainedConfig, asked: str, quantization: str = "auto") -> bool:
    """Whether the folder's own weights are in 4 bits (NF4).

    Raises UserError for weights that are stored in any other kind of quantisation, by its name, and for int4 of NF4.
    """
    settings = _stored_quantization(of_base)
    if not settings:
        return False
    method = str(settings.get("quant_method", "of an unknown kind"))
    if method == "bitsandbytes":
        is_4_bit = bool(settings.get("load_in_4bit") or settings.get("_load_in_4bit"))
        method = f"bitsandbytes {settings.get('bnb_4bit_quant_type', 'fp4') if is_4_bit else 'int8'}"
    if method != "bitsandbytes nf4":
        raise UserError(
            f"base.path={asked}: its weights are stored in the quantisation {method} (quantization_config in "
            "config.json), which is not supported. Give the model in 16 or 32 bits (base.quantization=nf4 makes 4 bits "
            "of it), or in 4 bits of bitsandbytes (nf4)."
        )
    if quantization == "int4":
        raise UserError(
            f"base.quantization=int4 is made of weights in 16 or 32 bits; those of base.path={asked} are stored in "
            "nf4. Give the model that they were made of, or leave base.quantization=int4 out."
        )
    return True


def multiply_stored_in(of_base: PreTrainedConfig, dtype: torch.dtype) -> None:
    """Weights that are stored in 4 bits are multiplied in `dtype`, not in the one that they were made for."""
    quantization_config("nf4", dtype)  # raises UserError where bitsandbytes is missing
    compute = {"bnb_4bit_compute_dtype": str(dtype).removeprefix("torch.")}
    of_base.quantization_config = _stored_quantization(of_base) | compute


def _stored_quantization(of_base: PreTrainedConfig) -> dict[str, object]:
    stored = getattr(of_base, "quantization_config", None) or {}
    return dict(stored) if isinstance(stored, dict) else dict(stored.to_dict())


def keep_4bit_weights_trainable(model: PreTrainedModel) -> None:
    """Stops bitsandbytes from repacking its weights for a kernel without gradients (CPUs with AVX512-BF16)."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
