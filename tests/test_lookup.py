"""A lookup finds what followed the same tokens before, and a draft copies the likeliest of it."""

import random

import torch
from random_models import random_base

from euryale.decoding.drafters.interface import DraftInput
from euryale.decoding.drafters.lookup import Guess, LookupDrafter, Memory, arrange
from euryale.decoding.engine import Engine
from euryale.decoding.tree.tree import DynamicTree, chain, medusa63


def memory_of(text: str) -> Memory:
    memory = Memory()
    memory.read([ord(letter) for letter in text])
    return memory


def spelled(ids: list[int]) -> str:
    return "".join(map(chr, ids))


def test_the_longest_match_is_followed() -> None:
    # "b" alone was last followed by "z"; "ab" by "c", "xab" by "d".
    assert spelled(memory_of("xabdef abcghi bz xab").chain(3)) == "def"
    assert spelled(memory_of("abcghi bz ab").chain(3)) == "cgh"
    assert spelled(memory_of("bz b").chain(1)) == "z"
    assert spelled(memory_of("bz b").chain(8)) == "z b", "a copy ends where the text does"
    assert memory_of("abcdef").chain(8) == [] and memory_of("a").chain(3) == []


def test_of_equal_matches_the_more_frequent_and_then_the_later_wins() -> None:
    assert spelled(memory_of("qa1 qa2 qa2 qa1 qa2 qa").chain(1)) == "2"
    assert spelled(memory_of("qa1 qa2 qa").chain(1)) == "2"


def test_several_continuations_are_one_trie_whose_children_are_never_likelier() -> None:
    root = memory_of("the cat sat, the cat ran, the cow sat, the c").guess(4)
    assert {chr(token) for token in root.children} == {"a", "o"}
    at = root.children[ord("a")].children[ord("t")].children[ord(" ")]
    assert {chr(token) for token in at.children} == {"s", "r"}

    def check(guess: Guess) -> int:
        assert sum(child.chance for child in guess.children.values()) <= guess.chance + 1e-12
        return max((1 + check(child) for child in guess.children.values()), default=0)

    assert check(root) == 4


def test_reading_on_equals_reading_at_once() -> None:
    rng = random.Random(0)
    for _ in range(30):
        ids = [rng.randrange(4) for _ in range(40)]
        growing = Memory()
        text: list[int] = []
        while len(text) < 40:
            text += ids[len(text) : len(text) + rng.randint(0, 5)]
            if text:
                growing.read(text)
                fresh = Memory()
                fresh.read(list(text))
                assert growing.guess(6) == fresh.guess(6)


def nodes_of(root: Guess, path: tuple[int, ...] = ()) -> dict[tuple[int, ...], float]:
    found = {path: root.chance}
    for token, child in root.children.items():
        found |= nodes_of(child, (*path, token))
    return found


def paths_of(tokens: list[int], parents: list[int]) -> list[tuple[int, ...]]:
    paths: list[tuple[int, ...]] = [()]
    for token, parent in list(zip(tokens, parents, strict=True))[1:]:
        paths.append((*paths[parent], token))
    return paths


def test_a_budget_takes_the_likeliest_nodes() -> None:
    rng = random.Random(3)
    for _ in range(50):
        memory = Memory()
        memory.read([rng.randrange(3) for _ in range(60)])
        root = memory.guess(5)
        chances = nodes_of(root)
        for num_nodes in (1, 4, 16, 400):
            taken = paths_of(*arrange(root, DynamicTree(num_nodes, 5)))
            assert len(set(taken)) == len(taken) == min(num_nodes, len(chances))
            best = sorted(chances.values(), reverse=True)[: len(taken)]
            assert sorted((chances[path] for path in taken), reverse=True) == best


def test_a_fixed_tree_takes_children_by_rank_and_leaves_out_what_is_not_there() -> None:
    root = Guess(0, 1.0, {5: Guess(5, 0.2), 7: Guess(7, 0.5, {1: Guess(1, 0.4)})})
    assert arrange(root, chain(3)) == ([0, 7, 1], [0, 0, 1])
    assert paths_of(*arrange(root, medusa63())) == [(), (7,), (7, 1), (5,)]


def known_of(ids: list[list[int]]) -> DraftInput:
    return DraftInput(torch.zeros(len(ids), 16), torch.tensor([row[-1] for row in ids]), None, 0.0, ids)


def test_rows_with_fewer_candidates_are_masked_and_a_step_without_any_is_a_plain_one() -> None:
    drafter = LookupDrafter(random_base(), DynamicTree(16, 4)).begin(2, 64)
    for row in range(2):
        drafter.add(row)
    draft = drafter.propose(known_of([[1, 2, 3], [4]]))
    assert draft.tokens_BN.tolist() == [[3], [4]] and draft.is_real_BN is None
    draft = drafter.propose(known_of([[1, 2, 3, 1], [4, 5]]))
    assert draft.tokens_BN[0].tolist() == [1, 2, 3, 1] and draft.is_real_BN is not None
    assert draft.is_real_BN.tolist() == [[True] * 4, [True] + [False] * 3]
    assert draft.shape.depths_RN[0].tolist() == [0, 1, 2, 3]


def test_a_text_that_repeats_itself_is_written_several_tokens_a_step() -> None:
    base = random_base("llama", 13, dtype=torch.float64)
    [plain], [copied] = (
        Engine(base, drafter=name).generate([[1, 2, 3]], max_new_tokens=100) for name in ("none", "lookup")
    )
    assert copied.ids == plain.ids and copied.tau > 3 > plain.tau
