"""On which device is a base, and in which numbers: 32, 16 or 4 bits?"""

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel

from euryale.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(name: str) -> torch.device:
    """`auto` is the GPU when there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"base.device={name} is not a device. Choose auto, cpu, cuda or cuda:N.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"base.device={name} was asked for, but torch {torch.__version__} sees no GPU. Use cpu or auto."
        )
    return device


def pick_dtype(name: str, device: torch.device, of_base: PreTrainedConfig) -> torch.dtype:
    """`auto` is float32 on a CPU and the checkpoint's own dtype on a GPU."""
    if name == "auto":
        # On a CPU exact greedy equality matters more than the last bit of speed; float32 gives it.
        return torch.float32 if device.type == "cpu" else of_base.get_text_config().dtype or torch.bfloat16
    if name not in DTYPES:
        raise UserError(f"base.dtype={name} is not known. Choose one of: auto, {', '.join(DTYPES)}.")
    return DTYPES[name]


def quantization_config(name: str, dtype: torch.dtype) -> object | None:
    if name in ("none", "auto"):  # auto asks a heads checkpoint; without one there is nothing to ask
        return None
    if name != "nf4":
        raise UserError(f"base.quantization={name} is not known. Choose one of: none, nf4.")
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


def keep_4bit_weights_trainable(model: PreTrainedModel) -> None:
    """Stops bitsandbytes from repacking its weights for a kernel without gradients (CPUs with AVX512-BF16)."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
