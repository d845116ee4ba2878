"""How are the states between two layers of somebody's model read, and no others kept?

transformers can return the states of all layers, which keeps all of them in memory, and cannot where its modules were
wrapped (FSDP). A hook on the layers that are asked for does neither.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn
from transformers import PreTrainedModel

from euryale.errors import UserError


@contextmanager
def outputs_of_layers(model: PreTrainedModel, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Within it, a forward of `model` notes what the layers (numbered from 1) give: layer -> [B, T, D].

    Raises UserError for a model whose layers are not to be found.
    """
    found: dict[int, Tensor] = {}
    handles = []
    if layers:
        blocks = _layers_of(model)
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
