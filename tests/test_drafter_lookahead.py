"""The base's own iteration finds n-grams, and the next steps verify them."""

import pytest
import torch
from plain_decoding import slow_ids
from random_models import random_base

from euryale.base.base import Base
from euryale.decoding.config import DrafterConfig, TreeConfig, most_nodes
from euryale.decoding.drafters.interface import DraftInput
from euryale.decoding.drafters.lookahead import Iteration, LookaheadDrafter, Pool, Trie
from euryale.decoding.engine import Engine
from euryale.decoding.tree.tree import chain
from euryale.errors import UserError


def paths_of(tokens: list[int], parents: list[int]) -> set[tuple[int, ...]]:
    """Every node's tokens below the root."""
    paths: list[tuple[int, ...]] = [()]
    for token, parent in zip(tokens[1:], parents[1:], strict=True):
        paths.append((*paths[parent], token))
    return set(paths)


def test_a_base_that_counts_in_circles_is_iterated_to_its_ngrams() -> None:
    """After token t it says t + 1, after 9 it says 0: what follows a wrong guess is an n-gram of some other place."""
    row = Iteration(window=3, ngram=3, candidates=2, num_nodes=99)
    text = [2, 7]
    tokens, parents = row.nodes(text, [])
    # Columns begin at 7 (the root), 2 and 7 (first guesses, of the text), a position apart.
    assert paths_of(tokens, parents) == {(), (2,), (2, 7), (2, 7, 2)}
    drafted_right = []
    for _ in range(16):
        text.append((text[-1] + 1) % 10)
        tokens, parents = row.nodes(text, [(token + 1) % 10 for token in tokens])
        drafted_right.append(((text[-1] + 1) % 10, (text[-1] + 2) % 10) in paths_of(tokens, parents))
    assert not drafted_right[0] and all(drafted_right[8:]), (
        "a whole circle is known before the text has gone through it"
    )
    assert len(text) < 2 + 2 * 10


def test_a_step_that_gains_one_token_leaves_guesses_in_their_columns_and_more_move_them_left() -> None:
    guesses = {1: ([10, 22, 23, 24], [31, 32, 33, 34]), 3: ([10, 24], [33, 34])}
    for gained, (first, second) in guesses.items():
        row = Iteration(window=4, ngram=3, candidates=1, num_nodes=99)
        row.nodes([1, 2], [])
        row._window = [[2, 12, 13, 14], [21, 22, 23, 24]]
        row._ends = [0, 1, 2, 3]
        text = [1, 2, *[10] * gained]
        row.nodes(text, [31, 32, 33, 34])
        # What the base said after 21 stood three positions after the old root.
        assert row._window[0][: len(first)] == first and row._window[1][: len(second)] == second
        assert set(row._window[0][len(first) :] + row._window[1][len(second) :]) <= set(text), "the rest is new"
        assert row._pool.after(12) == [(22, 32)], "a column and what the base said after it"


def test_a_pool_keeps_the_latest_ngrams_of_a_token_each_once() -> None:
    pool = Pool(candidates=2)
    for ngram in ([1, 2, 3], [1, 4, 4], [5, 1, 2], [1, 2, 3], [1, 6, 6]):
        pool.add(ngram)
    assert pool.after(1) == [(6, 6), (2, 3)] and pool.after(5) == [(1, 2)] and pool.after(2) == []


def test_paths_with_the_same_beginning_share_its_nodes_and_a_full_trie_takes_no_more() -> None:
    trie = Trie(9, num_nodes=5)
    assert [trie.insert(path) for path in ([1, 2], [1, 3], [1, 2], [], [4, 5])] == [2, 3, 2, 0, None]
    assert (trie.tokens, trie.parents) == ([9, 1, 2, 3, 4], [0, 0, 1, 1, 0])


@pytest.mark.parametrize("how", [(1, 2, 1), (1, 5, 3), (5, 2, 4), (5, 4, 5), (3, 3, 2)])
def test_no_step_has_more_nodes_or_is_deeper_than_was_said(how: tuple[int, int, int]) -> None:
    base = random_base("llama", 40, seed=1, max_length=128)
    drafter = LookaheadDrafter(base, *how, num_nodes=256)
    assert drafter.num_nodes == most_nodes(*how)
    reached = []
    engine = Engine(base, drafter=DrafterConfig("lookahead", window=how[0], ngram=how[1], candidates=how[2]))
    engine.on_step = lambda seen: reached.append(seen.num_nodes)
    prompt = list(range(40))  # no token stands twice: nothing of the window is shared
    assert engine.generate([prompt], 60)[0].ids == slow_ids(base, prompt, 60)
    assert max(reached) <= most_nodes(*how) and len(reached) > 3
    row = Iteration(*how, num_nodes=256)
    tokens, parents = row.nodes(prompt, [])
    depths = [0]
    for parent in parents[1:]:
        depths.append(depths[parent] + 1)
    assert max(depths) <= drafter.max_depth and len(tokens) <= most_nodes(*how)


def test_a_row_budget_leaves_out_the_window_first() -> None:
    row = Iteration(window=3, ngram=3, candidates=2, num_nodes=3)
    tokens, parents = row.nodes([5, 1, 2, 5], [])
    assert (tokens, parents) == ([5, 1, 2], [0, 0, 1]), "the n-gram of the text comes first"
    engine = Engine(random_base(), drafter="lookahead", row_budget=12)
    assert engine.tree(num_rows=2).num_nodes == 6 and engine.tree().num_nodes == 12
    assert Engine(random_base(), drafter="lookahead").num_nodes() == most_nodes(5, 3, 5)


def looping_base() -> Base:
    """A base whose greedy answer to [1, 2, 3] repeats itself soon."""
    return random_base("llama", 13, dtype=torch.float64)


@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_ragged_rows_are_answered_as_alone_in_as_many_steps(temperature: float) -> None:
    """A row's window and pool are its own."""
    engine = Engine(looping_base(), drafter="lookahead", max_rows=2)
    prompts = [[1, 2, 3], [4], [7, 7, 2, 9, 11, 0, 5], [12, 1]]
    together = engine.generate(prompts, 40, temperature=temperature, seed=range(4))
    for seed, (prompt, answer) in enumerate(zip(prompts, together, strict=True)):
        [alone] = engine.generate([prompt], 40, temperature=temperature, seed=seed)
        assert (answer.ids, answer.accepted) == (alone.ids, alone.accepted)
        assert answer.ids == slow_ids(engine.base, prompt, 40, temperature, seed)


def test_text_that_repeats_itself_is_written_several_tokens_a_step() -> None:
    [answer] = Engine(looping_base(), drafter="lookahead").generate([[1, 2, 3]], 100)
    assert answer.tau > 2.5


def test_tokens_are_gained_that_the_text_could_not_have_told() -> None:
    """What a copying drafter never finds: a token after one that it has not followed before."""
    engine = Engine(random_base("llama", 40, seed=5, dtype=torch.float64), drafter="lookahead")
    found = 0
    for start in range(12):
        prompt = [start, start + 20]
        [answer] = engine.generate([prompt], 24)
        text, at = [*prompt, *answer.ids], 1
        for gained in answer.accepted:
            met = set(zip(text[:at], text[1 : at + 1], strict=False))
            found += gained > 1 and (text[at], text[at + 1]) not in met
            at += gained
    assert found >= 3


def test_a_known_without_targets_is_a_new_beginning() -> None:
    """A drafter that is asked outside of a step fills its window from the text."""
    drafter = LookaheadDrafter(random_base(), 2, 3, 1, 99).begin(1, 64)
    drafter.add(0)
    draft = drafter.propose(DraftInput(torch.zeros(1, 16), torch.tensor([3]), None, 0.0, [[1, 2, 3]]))
    assert draft.tokens_BN[0, 0] == 3 and draft.tokens_BN.shape[1] > 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 0}, "drafter.window must be from 1 to 64; got 0. 5 is usual."),
        ({"ngram": 1}, "drafter.ngram must be from 2 to 64; got 1. 3 is usual."),
        ({"candidates": 65}, "drafter.candidates must be from 1 to 64; got 65. 5 is usual."),
        ({"window": 40, "ngram": 12}, "need steps of 495 nodes, and 256 is the most"),
    ],
)
def test_numbers_that_cannot_be_are_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Engine(random_base(), drafter=DrafterConfig("lookahead", **settings))


@pytest.mark.parametrize("tree", [chain(3), TreeConfig("chain"), TreeConfig("medusa63"), TreeConfig(max_depth=3)])
def test_a_tree_of_another_s_making_is_refused(tree: object) -> None:
    with pytest.raises(UserError, match="lookahead makes its own tree.*takes tree.num_nodes alone"):
        Engine(random_base(), drafter="lookahead", tree=tree)  # type: ignore[arg-type]
