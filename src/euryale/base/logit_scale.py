"""Factor of a base's logits, moved into its output matrix.

Some families multiply what the output matrix gives (Cohere), or divide it (Granite). Heads share that matrix and trees
read it alone, so they would not see the factor. A power of two only changes exponents: the logits of the matrix that
was multiplied are bit for bit those that were multiplied afterwards.
"""

import logging
import math

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

_FIELDS = ("logit_scale", "logits_scaling")
_DIVIDE = ("granite", "granitemoe", "granitemoeshared")
log = logging.getLogger(__name__)


def can_move(factor: object) -> bool:
    """Whether nothing is rounded when the output matrix is multiplied by it."""
    return isinstance(factor, (int, float)) and factor > 0 and math.frexp(factor)[0] == 0.5


def move_scale(model: PreTrainedModel) -> None:
    """Multiplies the output matrix by the factor, which is 1 afterwards. Embeddings that were tied to the matrix stay
    as they are: it becomes a matrix of its own."""
    config = model.config
    factor = _factor(config)
    output = model.get_output_embeddings()
    if factor == 1.0:
        return
    is_tied = output.weight is model.get_input_embeddings().weight
    output.weight = nn.Parameter(output.weight.detach() * factor, requires_grad=output.weight.requires_grad)
    if getattr(output, "bias", None) is not None:
        output.bias = nn.Parameter(output.bias.detach() * factor, requires_grad=output.bias.requires_grad)
    config.tie_word_embeddings = False
    for field in _FIELDS:
        for holder in (config, model):  # a family reads it from the one or from the other
            if hasattr(holder, field):
                setattr(holder, field, 1.0)
    if is_tied:
        log.info("logits are multiplied by %g: the output matrix becomes one of its own", factor)


def _factor(config: PreTrainedConfig) -> float:
    factor = 1.0
    for field in _FIELDS:
        value = getattr(config, field, None) if hasattr(type(config), field) else None
        if value is not None:
            factor *= 1 / value if config.model_type in _DIVIDE else value
    return factor
