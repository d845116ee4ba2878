"""Heads read what followed the same tokens earlier; training and drafting find the same places."""

import pytest
import torch
from plain_heads import plain_heads
from random_models import random_base, random_heads
from slow_induction import follower_slowly
from torch import Tensor

from euryale.decoding.drafters.head_matrices import HeadMatrices
from euryale.decoding.drafters.heads import HeadsDrafter
from euryale.decoding.drafters.interface import DraftInput
from euryale.decoding.drafters.ngram_index import HostNgramIndex, NgramIndex, extend_ends
from euryale.decoding.tree.tree import chain
from euryale.errors import UserError
from euryale.heads.heads import PackedText
from euryale.heads.induction import followers, previous_places
from euryale.kernels.rms_norm import normalise


def packed_documents(seed: int, num_rows: int = 3, length: int = 40) -> tuple[Tensor, Tensor]:
    """Rows of documents of many lengths over few tokens, the end padded."""
    generator = torch.Generator().manual_seed(seed)
    ids_BT = torch.randint(0, 4, (num_rows, length), generator=generator)
    borders_BT = torch.rand(num_rows, length, generator=generator) < 0.12
    documents_BT = borders_BT.cumsum(1)
    documents_BT[:, -3:] = -1
    return ids_BT, documents_BT


@pytest.mark.parametrize("longest", [1, 2, 3])
def test_places_are_those_of_a_search_through_every_document(longest: int) -> None:
    ids_BT, documents_BT = packed_documents(longest)
    previous_LP = previous_places(ids_BT, documents_BT, longest, vocab_size=4)
    num_found = num_asked = 0
    for num_known in (1, 2, 4):
        for row in range(len(ids_BT)):
            for document in documents_BT[row].unique().tolist():
                (places_D,) = (documents_BT[row] == document).nonzero(as_tuple=True)
                start, ids = int(places_D[0]), ids_BT[row, places_D].tolist()
                sources = list(range(len(ids) - num_known))
                first = row * ids_BT.shape[1] + start
                found_M = followers(previous_LP, torch.tensor(sources, dtype=torch.long) + first, num_known)
                expected = [follower_slowly(ids, source, num_known, longest) for source in sources]
                assert found_M.tolist() == [-1 if place < 0 else place + first for place in expected]
                num_found += sum(place >= 0 for place in expected)
                num_asked += len(expected)
    assert 0 < num_found < num_asked  # both answers were asked for


@pytest.mark.parametrize("is_host", [False, True])
@pytest.mark.parametrize("longest", [1, 2, 3])
def test_drafting_finds_the_tokens_that_training_read(longest: int, is_host: bool) -> None:
    """Rows that grow, come and go; paths of every length after the root."""
    index = HostNgramIndex(longest) if is_host else NgramIndex(longest, 3, 56, torch.device("cpu"))
    generator = torch.Generator().manual_seed(longest)
    texts: list[list[int]] = []

    def add(row: int, length: int) -> None:
        index.add(row)
        texts[row : row + 1] = [torch.randint(0, 4, (length,), generator=generator).tolist()]

    num_found = 0
    for row, length in enumerate((12, 1, 5)):
        add(row, length)
    for step in range(12):
        if step == 4:
            index.swap_remove(0)
            texts[0] = texts[-1]
            texts.pop()
        if step == 6:
            add(1, 2)
        if step == 8:
            add(2, 30)
        ends_BP = index.read(texts)
        paths: list[list[list[int]]] = [[[]] for _ in texts]
        for level in range(3):
            found_BP = index.followers(ends_BP)
            for row, text in enumerate(texts):
                for parent, path in enumerate(paths[row]):
                    whole = text + path
                    place = follower_slowly(whole, len(text) - 2, 1 + level, longest)
                    assert found_BP[row, parent] == (-1 if place < 0 else whole[place])
                    num_found += place >= 0
            slots_P = torch.tensor([0] * 3 if level == 0 else [0, 2, 2])
            tokens_BP = torch.randint(0, 4, (len(texts), 3), generator=generator)
            ends_BP = extend_ends(ends_BP, slots_P, tokens_BP)
            for row, tokens in enumerate(tokens_BP.tolist()):
                paths[row] = [paths[row][slot] + [token] for slot, token in zip(slots_P.tolist(), tokens, strict=True)]
        for text in texts:
            text += torch.randint(0, 4, (1 + step % 3,), generator=generator).tolist()
    assert num_found > 50


@pytest.mark.parametrize("kind", ["hydra", "medusa"])
def test_heads_that_draft_say_what_heads_in_training_say(kind: str) -> None:
    base = random_base(dtype=torch.float64)
    heads = random_heads(plain_heads(kind, num_heads=3, induction=2), base)
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(0, 5, (24,), generator=generator).tolist()
    root = len(ids) - 1
    path = [ids[3], ids[4]]
    whole_1T = torch.tensor([ids + path])
    positions_1T = torch.arange(whole_1T.shape[1])[None]
    documents_1T = torch.zeros_like(whole_1T)
    states_1TC = base.forward_packed(whole_1T, positions_1T, documents_1T, heads.layers_read(base.num_layers))
    text = PackedText(states_1TC, normalise(base.embed(whole_1T)), positions_1T, documents_1T, whole_1T)
    expected_KMD = heads.guesses(text, [torch.tensor([root - 1])] * 3)

    matrices = HeadMatrices(base, heads)
    matrices.prepare(3)
    known = DraftInput(states_1TC[:, root - 1], torch.tensor(ids[-1:]), None, 0.0, [ids])
    index = NgramIndex(2, 1, 64, base.device)
    index.add(0)
    ends_BP, path_BPC = index.read([ids]), None
    entry = matrices.enter(known, 3)
    found_BP = index.followers(ends_BP)
    for k in range(3):
        if k:
            token_11, slot = torch.tensor([[path[k - 1]]]), torch.tensor([0])
            path_BPC = matrices.extend(path_BPC, slot, token_11)
            if kind == "hydra":
                ends_BP = extend_ends(ends_BP, slot, token_11)
                found_BP = index.followers(ends_BP)
        scores_BPV = matrices.logits(k, entry, path_BPC, found_BP)
        expected_1V = torch.nn.functional.linear(expected_KMD[k], heads.output_weight(k, base.lm_head_weight))
        # Scores of size 1 in float64, of embeddings normalised in float32 (1e-7): 1e-5 holds on every processor.
        torch.testing.assert_close(scores_BPV[0].double(), expected_1V, rtol=1e-5, atol=1e-5)


def test_a_drafter_of_heads_with_induction_remembers_its_rows() -> None:
    base = random_base()
    heads = random_heads(plain_heads("hydra", num_heads=2, induction=2), base)
    drafter = HeadsDrafter(base, heads, chain(2))
    assert drafter.begin(2, 32) is not drafter
    assert HeadsDrafter(base, random_heads(plain_heads("hydra"), base), chain(2)).begin(2, 32)._index is None


def test_induction_needs_a_known_token_and_a_length() -> None:
    with pytest.raises(UserError, match=r"heads\.induction=2 looks for what followed the last known token"):
        plain_heads("medusa", root_token=False, induction=2).check()
    for length in (-1, 4):
        with pytest.raises(UserError, match=rf"heads\.induction must be from 0 \(off\) to 3; got {length}"):
            plain_heads(induction=length).check()
    with pytest.raises(UserError, match="do not go with heads.kind=eagle"):
        plain_heads("eagle", induction=2).check()
