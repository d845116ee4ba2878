"""The states between layers are those that transformers returns, and no hook stays."""

import pytest
import torch
from random_models import FAMILIES, random_base

from euryale.base.base import Base
from euryale.base.hidden_states import outputs_of_layers


def num_hooks(base: Base) -> int:
    return sum(len(module._forward_hooks) for module in base.model.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_noted_states_are_those_that_transformers_returns(family: str) -> None:
    base = random_base(family, 29, seed=1, num_hidden_layers=4)
    ids_BT = torch.randint(29, (2, 7), generator=torch.Generator().manual_seed(0))
    expected = base.model.base_model(input_ids=ids_BT, output_hidden_states=True).hidden_states
    hooks = num_hooks(base)  # transformers leaves some of its own
    with outputs_of_layers(base.model, (1, 3)) as between:
        base.model.base_model(input_ids=ids_BT)
    assert set(between) == {1, 3}
    for layer, state in between.items():
        torch.testing.assert_close(state, expected[layer])
    assert num_hooks(base) == hooks


def test_a_forward_that_fails_leaves_no_hook() -> None:
    base = random_base("llama", 29)
    with pytest.raises(ZeroDivisionError), outputs_of_layers(base.model, (1,)):
        raise ZeroDivisionError
    assert num_hooks(base) == 0
