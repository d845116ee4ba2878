"""A base divided among several processes that train heads on it: no single device need hold it.

Each process keeps its share of every layer (torch's fully_shard, FSDP 2) and gathers one layer at a time while it
runs forward. Embeddings, the last norm and the output matrix stay whole in every process: heads read them directly.
"""

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from euryale.base.base import Base
from euryale.errors import UserError


def shard_base(base: Base, device: torch.device) -> None:
    """Divides the layers of a base in main memory among all processes and moves what is kept to `device`.

    Raises UserError for a 4-bit base: its packed weights cannot be cut.
    """
    if base.quantization != "none":
        raise UserError(
            f"parallel=fsdp cannot divide a base with base.quantization={base.quantization}. Use parallel=ddp (a 4-bit "
            "base is a quarter of the size), or base.quantization=none."
        )
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    model = base.model.base_model
    layers = _layers(model)
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)  # sends its share to the device, layer by layer
    base.model.to(device)
    whole = {parameter for parameter in model.parameters() if not isinstance(parameter, DTensor)}
    fully_shard(model, mesh=mesh, ignored_params=whole)  # has the next layer gathered while one computes


def _layers(model: nn.Module) -> nn.ModuleList:
    """The decoder layers: the list of modules that holds the most weights."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=lambda modules: sum(p.numel() for p in modules.parameters()))
