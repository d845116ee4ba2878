"""States of known texts are those of decoding, packed or not."""

import pytest
import torch
from compiled_models import compiled_base

from euryale.base.text_states import packed_states, text_states

IDS_BT = torch.tensor([[4, 1, 7, 2, 9, 9, 3, 0], [5, 6, 1, 2, 3, 8, 7, 1]])
POSITIONS_BT = torch.tensor([[0, 1, 2, 0, 1, 0, 1, 0], [0, 1, 2, 3, 4, 5, 6, 7]])
DOCUMENTS_BT = torch.tensor([[0, 0, 0, 1, 1, 2, 2, -1], [0, 0, 0, 0, 0, 0, 0, 0]])
PIECES = [[4, 1, 7], [2, 9], [9, 3], [5, 6, 1, 2, 3, 8, 7, 1]]


@pytest.mark.parametrize("bits", [4, 16, None])
def test_packed_documents_have_the_states_that_each_has_alone(bits: int | None) -> None:
    """None: transformers, which is the forward of a base on which the compiled one is not used."""
    base = compiled_base(bits or 16)
    if bits is None:
        base.forward_settings = base.forward_settings._replace(forward="plain")
        base._forward = None
    found_BTC = packed_states(base, IDS_BT, POSITIONS_BT, DOCUMENTS_BT, [1])
    alone_TC = torch.cat([text_states(base, ids, [1]) for ids in PIECES])
    torch.testing.assert_close(found_BTC[DOCUMENTS_BT >= 0], alone_TC, rtol=0.0, atol=1e-5 if bits is None else 0.0)
    if bits == 4:  # another base than its weights as they are
        assert (found_BTC - base.forward_packed(IDS_BT, POSITIONS_BT, DOCUMENTS_BT, [1])).abs().max() > 0.01
