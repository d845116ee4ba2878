"""Hidden states between two layers of an unmodified model, and only those that are asked for.

transformers can return the states of all layers, which keeps all of them in memory, and cannot where its modules were
wrapped (FSDP). A hook on the layers that are asked for does neither.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from euryale.errors import UserError
from euryale.kernels.rms_norm import normalise


@contextmanager
def outputs_of_layers(model: PreTrainedModel, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Within it, a forward of `model` notes what the layers (numbered from 1) give: layer -> [B, T, D].

    Raises UserError for a model whose layers are not to be found, or are wider than its final states.
    """
    found: dict[int, Tensor] = {}
    handles = []
    if layers:
        blocks = _layers_of(model)
        inner, last = model.config.get_text_config().hidden_size, model.get_output_embeddings().weight.shape[1]
        if inner != last:  # a projection stands in between (OPT-350m)
            raise UserError(
                f"heads.features=several: the layers of {type(model).__name__} are {inner} wide and its last states "
                f"{last}. Use heads.features=last."
            )
        for layer in layers:

            def note(module: nn.Module, given: object, out: Tensor | tuple[Tensor, ...], layer: int = layer) -> None:
                found[layer] = out[0] if isinstance(out, tuple) else out

            handles.append(blocks[layer - 1].register_forward_hook(note))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _layers_of(model: PreTrainedModel) -> nn.ModuleList:
    count = model.config.get_text_config().num_hidden_layers
    for module in model.base_model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise UserError(
        f"heads.features=several: the {count} layers of {type(model).__name__} were not found. Use heads.features=last."
    )


def middle_layers(num_layers: int) -> tuple[int, int]:
    """The layers of features `several`: a third and two thirds of the way through the base."""
    return max(1, num_layers // 3), max(1, 2 * num_layers // 3)


def join_states(final_xD: Tensor, middle: Sequence[Tensor]) -> Tensor:
    """What heads read of the base: final states, and after them middle ones, at the scale of embeddings."""
    return torch.cat([final_xD, *map(normalise, middle)], -1) if middle else final_xD
