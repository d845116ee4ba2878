"""A base whose matrices are divided over several processes, for decoding (tensor parallelism).

transformers divides them, by the plan that comes with each family: every process holds a part of the attention heads
and of the rows between the two halves of an MLP, and two sums over the processes in each layer make the hidden states
whole. They are the same bits in every process, so each drafts, accepts and samples for itself and arrives at the same
tokens; nothing else is sent.

The embeddings and the output matrix stay whole everywhere: heads and drafters read them directly.

Letters: B batch, N nodes or tokens of a forward.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache

from euryale.base.config import BaseConfig
from euryale.base.forward import PlainForward
from euryale.errors import UserError, check_least
from euryale.system import processes


def check_tensor_parallel(config: BaseConfig, of_base: PreTrainedConfig, device: torch.device, is_4bit: bool) -> None:
    """Raises UserError for what cannot be divided, before weights take memory."""
    num = config.tensor_parallel
    check_least(1, **{"base.tensor_parallel": num})
    if num == 1:
        return
    start = f"base.tensor_parallel={num}"
    if processes.count() != num:
        raise UserError(
            f"base.tensor_parallel must be the number of processes; got {num} and {processes.count()}. Start them with "
            f"torchrun --nproc_per_node={num} infer/run.py ..."
        )
    if is_4bit:
        raise UserError(f"{start} cannot divide 4-bit weights. Use base.quantization=none, or one process.")
    if config.forward == "exact" or config.backend != "auto":
        raise UserError(
            f"{start} reads through transformers' forward, which needs base.forward=auto or plain and "
            f"base.backend=auto; got {config.forward} and {config.backend}. Its sums depend on the number of processes."
        )
    if device.type == "cpu" and torch.cuda.is_available():
        raise UserError(f"{start} takes a GPU for each process where there are GPUs; got base.device=cpu. Use cuda.")
    _check_heads(of_base, num, str(config.path))


def _check_heads(of_base: PreTrainedConfig, num: int, path: str) -> None:
    text = of_base.get_text_config()
    if not text.base_model_tp_plan:
        raise UserError(
            f"base.path={path}: transformers has no plan to divide model_type={of_base.model_type}. Use "
            "base.tensor_parallel=1."
        )
    num_heads = text.num_attention_heads
    num_kv_heads = getattr(text, "num_key_value_heads", None) or num_heads
    if num_heads % num or num_kv_heads % num:
        raise UserError(
            f"base.tensor_parallel must divide the attention heads of base.path={path}, {num_heads} of queries and "
            f"{num_kv_heads} of keys; got {num}. Start as many processes as divide both."
        )


def division(config: BaseConfig, dtype: torch.dtype) -> dict[str, Any]:
    """Connects the processes, and returns what from_pretrained has to be told of the division and the dtype."""
    if config.tensor_parallel == 1:
        return {"dtype": dtype}
    from transformers.distributed import DistributedConfig  # here: one process does not need it

    processes.join(config.device)
    # base.dtype=auto was timed by each: the first one's is taken.
    settled = processes.first(lambda: dtype)
    return {"dtype": settled, "distributed_config": DistributedConfig(tp_size=config.tensor_parallel)}


@torch.no_grad()
def make_ends_whole(model: PreTrainedModel) -> None:
    """Embeddings and output matrix, which the plan has divided, as they are without it."""
    whole: dict[int, nn.Parameter] = {}  # tied ones stay one
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) not in whole:
                gather = getattr(parameter, "full_tensor", None)
                whole[id(parameter)] = parameter if gather is None else nn.Parameter(gather(), requires_grad=False)
            setattr(module, name, whole[id(parameter)])
        # The plan has put its own forward before that of the class.
        module.__dict__.pop("forward", None)


class ParallelForward(PlainForward):
    """The forward of a divided model. Before each pass the processes compare what they are about to read."""

    def hidden(
        self, ids_BN: Tensor, positions_BN: Tensor, cache: Cache, mask: Tensor | None, layers: Sequence[int] = ()
    ) -> Tensor:
        """As PlainForward. Raises RuntimeError where the processes have come apart: their sums would mean nothing."""
        check_same(ids_BN, positions_BN)
        return super().hidden(ids_BN, positions_BN, cache, mask, layers)


def check_same(ids_BN: Tensor, positions_BN: Tensor) -> None:
    """Raises RuntimeError unless every process has these ids, in this shape, at these positions."""
    weights_BN = torch.arange(1, ids_BN.numel() + 1, device=ids_BN.device).view_as(ids_BN)
    sums = [(weights_BN * ids_BN).sum(), (weights_BN * positions_BN.expand_as(ids_BN)).sum()]
    digest = torch.stack([torch.full_like(sums[0], size) for size in ids_BN.shape] + sums)
    both = torch.cat([digest, -digest])
    torch.distributed.all_reduce(both, op=torch.distributed.ReduceOp.MAX)
    largest, smallest = both.chunk(2)
    if not torch.equal(largest, -smallest):
        raise RuntimeError(
            "the processes of base.tensor_parallel read different tokens. They must get the same prompts, seeds and "
            "settings, on processors of one kind."
        )
