"""A lookup over texts in device memory finds what the lookup over lists finds."""

import random

import pytest
import torch

from euryale.decoding.device_text import DeviceText
from euryale.decoding.drafters.interface import Draft
from euryale.decoding.drafters.lookup import Guess, Memory
from euryale.decoding.drafters.text_lookup import TextLookup


def search(texts: list[list[int]], depth: int) -> TextLookup:
    """What stands after the roots must not be read."""
    slots = max(map(len, texts)) + 40
    tokens_BS = torch.tensor([text + [text[0]] * (slots - len(text)) for text in texts], dtype=torch.int32)
    return TextLookup(DeviceText(tokens_BS, torch.tensor([len(text) - 1 for text in texts])), depth)


def any_texts(rng: random.Random) -> list[list[int]]:
    """Few tokens, so that there are many places; short texts, where nothing repeats."""
    vocab_size = rng.choice([2, 3, 6])
    return [[rng.randrange(vocab_size) for _ in range(rng.choice([1, 2, 5, 30, 90]))] for _ in range(3)]


def guess_of(text: list[int], depth: int) -> Guess:
    memory = Memory()
    memory.read(text)
    return memory.guess(depth)


def chances_of(guess: Guess, path: tuple[int, ...] = ()) -> dict[tuple[int, ...], float]:
    found = {path: guess.chance} if path else {}
    for token, child in guess.children.items():
        found |= chances_of(child, (*path, token))
    return found


def paths_of(draft: Draft, row: int) -> list[tuple[int, ...]]:
    """Of the nodes that carry a candidate; the root's is left out."""
    assert draft.is_real_BN is not None and draft.is_real_BN[row, 0]
    tokens, parents = draft.tokens_BN[row].tolist(), draft.shape.parents_RN[row].tolist()
    paths: list[tuple[int, ...]] = [()]
    for node in range(1, len(tokens)):
        assert parents[node] < node
        paths.append((*paths[parents[node]], tokens[node]))
    return [path for path, is_real in zip(paths, draft.is_real_BN[row].tolist(), strict=True) if is_real and path]


def test_a_budget_takes_nodes_as_likely_as_those_of_the_trie() -> None:
    """Equally likely ones may be exchanged."""
    rng = random.Random(0)
    for _ in range(60):
        texts, depth, num_nodes = any_texts(rng), rng.randint(1, 6), rng.choice([2, 8, 40])
        roots_B = torch.tensor([text[-1] for text in texts])
        draft = search(texts, depth).draft(roots_B, num_nodes, depth)
        assert draft.tokens_BN[:, 0].tolist() == roots_B.tolist()
        for row, text in enumerate(texts):
            chances, paths = chances_of(guess_of(text, depth)), paths_of(draft, row)
            assert len(set(paths)) == len(paths) == min(num_nodes - 1, len(chances))
            best = sorted(chances.values(), reverse=True)[: len(paths)]
            # Sums of at most 32 float32 of size 1: 1e-5 is above their rounding.
            assert sorted((chances[path] for path in paths), reverse=True) == pytest.approx(best, abs=1e-5)


def test_the_likeliest_continuation_is_that_of_the_trie() -> None:
    """Of each token it is as likely as the best that there is."""
    rng = random.Random(1)
    for _ in range(60):
        texts, depth = any_texts(rng), rng.randint(1, 6)
        tokens_BD, lengths_B = search(texts, depth).chain()
        for row, text in enumerate(texts):
            guess = guess_of(text, depth)
            for token in tokens_BD[row, : lengths_B[row]].tolist():
                assert guess.children[token].chance == pytest.approx(guess.ranked()[0].chance, abs=1e-5)
                guess = guess.children[token]
            assert not guess.children, "the chain goes on where the trie does"
