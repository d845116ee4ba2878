"""Random matrices in NF4 as bitsandbytes makes them."""

import torch
from bitsandbytes import functional
from torch import Tensor

from euryale.kernels.nf4_weight import Nf4Weight, nf4_weight


def random_nf4(num_outputs: int, num_inputs: int, nested: bool) -> tuple[Nf4Weight, Tensor]:
    """The weight as kernels take it, and what bitsandbytes itself says it is, float32."""
    matrix = torch.randn(num_outputs, num_inputs) * 0.02
    packed, state = functional.quantize_4bit(matrix, blocksize=64, quant_type="nf4", compress_statistics=nested)
    return nf4_weight(packed, state), functional.dequantize_4bit(packed, state)
