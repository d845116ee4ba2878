"""Heads of several states of the base see the same ones in training, in calibration and while decoding."""

import pytest
import torch
from plain_heads import plain_heads
from random_models import FAMILIES, random_base, random_heads, twin
from torch import Tensor
from transformers import DynamicCache

from euryale.base.base import Base
from euryale.base.fast_llama import FastLlama
from euryale.base.forward import PlainForward
from euryale.base.hidden_states import middle_layers
from euryale.decoding.drafters.heads import HeadsDrafter
from euryale.decoding.drafters.heads_lookup import HeadsLookupDrafter
from euryale.decoding.drafters.interface import Draft, DraftInput
from euryale.decoding.engine import Engine
from euryale.decoding.tree.tree import Tree
from euryale.kernels.rms_norm import normalise

SEVERAL = plain_heads("hydra", num_heads=2, features="several")
TREE = Tree.from_paths([(0,), (1,), (2,), (0, 0), (0, 1), (1, 0)])


def states_by_hand(base: Base, ids: list[int], layers: tuple[int, ...]) -> Tensor:
    """[T, C] from transformers' own attention, cache and hidden states."""
    out = twin(base).base_model(torch.tensor([ids]), use_cache=False, output_hidden_states=True)
    return torch.cat([out.last_hidden_state[0]] + [normalise(out.hidden_states[layer][0]) for layer in layers], -1)


def test_middle_layers_lie_a_third_and_two_thirds_of_the_way_through() -> None:
    assert [middle_layers(n) for n in (1, 2, 3, 6, 32)] == [(1, 1), (1, 1), (1, 2), (2, 4), (10, 21)]
    base = random_base(num_hidden_layers=6)
    assert random_heads(SEVERAL, base).layers_read(base.num_layers) == (2, 4)
    assert random_heads(plain_heads("hydra"), base).layers_read(base.num_layers) == ()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_way_through_the_base_gives_the_same_states(family: str) -> None:
    base = random_base(family, 29, seed=2, dtype=torch.float64, num_hidden_layers=4)
    ids = torch.randint(29, (7,), generator=torch.Generator().manual_seed(0)).tolist()
    layers = (3, 1)  # in the order asked for
    expected_TC = states_by_hand(base, ids, layers)
    for forward in (PlainForward(base.model), FastLlama(base.model)):
        forward.reserve(7)
        cache = DynamicCache(config=base.model.config)
        found_1TC = forward.hidden(torch.tensor([ids]), torch.arange(7)[None], cache, None, layers)
        torch.testing.assert_close(found_1TC[0], expected_TC, rtol=1e-5, atol=1e-5)  # norms are float32 in any dtype
    packed_1TC = base.forward_packed(
        torch.tensor([ids + ids]), torch.arange(7).repeat(2)[None], torch.arange(2).repeat_interleave(7)[None], layers
    )
    torch.testing.assert_close(packed_1TC[0], expected_TC.repeat(2, 1), rtol=1e-5, atol=1e-5)


def test_what_is_drafted_beside_heads_leaves_them_their_states() -> None:
    base = random_base(num_hidden_layers=6)
    drafter = HeadsDrafter(base, random_heads(SEVERAL, base), TREE)
    assert HeadsLookupDrafter(base, drafter, spare=3).begin(1, 9).layers == drafter.layers == (2, 4)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_decoding_hands_heads_the_states_of_the_last_committed_token(
    temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = random_base("qwen3", 13, seed=11, dtype=torch.float64, num_hidden_layers=3)
    heads = random_heads(SEVERAL, base)
    plain, seen = HeadsDrafter.propose, []

    def propose(self: HeadsDrafter, known: DraftInput) -> Draft:
        seen.append((known.hidden_BD.clone(), [list(ids) for ids in known.texts]))
        return plain(self, known)

    monkeypatch.setattr(HeadsDrafter, "propose", propose)
    prompts = [[4, 1, 7], [2, 9, 9, 3, 1]]
    answers = Engine(base, heads, "heads", TREE).generate(prompts, 12, temperature=temperature, seed=3)
    expected = Engine(base, drafter="none").generate(prompts, 12, temperature=temperature, seed=3)
    assert [answer.ids for answer in answers] == [answer.ids for answer in expected]
    assert min(answer.num_steps for answer in answers) < 12, "some guesses were accepted"
    for states_BC, texts in seen[:5]:
        for states_C, ids in zip(states_BC, texts, strict=True):
            torch.testing.assert_close(states_C, states_by_hand(base, ids[:-1], (1, 2))[-1], rtol=1e-5, atol=1e-5)
