"""Does calibration count what steps really accept, find the best tree of every size, and choose the fastest?"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from plain_heads import plain_heads
from random_models import random_base, random_heads, twin

from euryale.base.base import Base
from euryale.base.hidden_states import join_states
from euryale.data.row_prompts import Opening
from euryale.decoding.decoder import Decoder
from euryale.decoding.drafters.build import build_drafter
from euryale.decoding.engine import Engine
from euryale.decoding.noise import gumbel
from euryale.decoding.request import Request
from euryale.decoding.sampling import Sampling
from euryale.decoding.tree.calibration import TREE_FILE, Calibration, read_calibrations
from euryale.decoding.tree.tree import Tree, chain
from euryale.errors import UserError
from euryale.evaluation import calibrate as module
from euryale.evaluation.calibrate import Text, calibrate, check, frequent_paths, rank_vectors, time_steps
from euryale.evaluation.config import CalibrateConfig
from euryale.evaluation.simulate_tau import replay
from euryale.heads.heads import Heads
from euryale.kernels.rms_norm import normalise
from euryale.system.files import read_json, write_json

MAX_RANK = 6
DESIGNS = {
    "hydra": plain_heads("hydra", num_heads=3, vocab_share=1.0),
    "hydra, draft vocabulary": plain_heads("hydra", num_heads=3, vocab_share=0.5),
    "hydra, several features": plain_heads("hydra", num_heads=3, features="several"),
    "medusa": plain_heads("medusa", num_heads=3, body="resblock", vocab_share=1.0),
    "medusa, published form": plain_heads(
        "medusa", num_heads=3, body="resblock", output="own", root_token=False, vocab_share=1.0
    ),
}
SMALL = CalibrateConfig(
    num_prompts=3, new_tokens=12, temperatures=[0.0, 0.8], max_rank=5, node_counts=[1, 2, 4, 8], repeats=2,
    context_tokens=8, batch_size=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def base() -> Base:
    """float64, so that no two scores are close; a seed whose greedy answers do not loop soon."""
    return random_base(vocab_size=13, seed=11, dtype=torch.float64)


def written(base: Base, prompt: Sequence[int], temperature: float, seed: int = 5, new_tokens: int = 14) -> Text:
    [answer] = Engine(base, drafter="none").generate([list(prompt)], new_tokens, temperature, seed=seed)
    return Text([*prompt, *answer.ids], len(prompt), seed)


def slow_rank(base: Base, heads: Heads, ids: list[int], t: int, k: int, temperature: float, seed: int) -> int:
    """Head k's rank of the true token at t + 2 + k: one position, transformers' own forward, a whole sort."""
    out = twin(base).base_model(torch.tensor([ids[: t + 1]]), use_cache=False, output_hidden_states=True)
    layers = heads.layers_read(base.num_layers)
    hidden_D = join_states(out.last_hidden_state, [out.hidden_states[layer] for layer in layers])[0, -1]
    embedded_JD = normalise(base.embed(torch.tensor(ids[t + 1 : t + 2 + k])))
    head_hidden_D = heads.head_hidden(k, hidden_D[None], embedded_JD[None])[0]
    scores_V = heads.output_weight(k, base.lm_head_weight) @ head_hidden_D
    if temperature > 0:
        scores_V = scores_V.float() / temperature + gumbel(seed, t + 2 + k, 1, base.vocab_size, base.device)[0]
    candidates = range(base.vocab_size) if heads.draft_ids is None else heads.draft_ids.tolist()
    order = sorted(candidates, key=lambda token: -float(scores_V[token]))
    true = ids[t + 2 + k]
    return min(order.index(true), MAX_RANK) if true in order else MAX_RANK


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("design", DESIGNS)
def test_rank_vectors_are_those_of_a_slow_walk(
    base: Base, design: str, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CHUNK", 5)  # several chunks, the last one not full
    heads = random_heads(DESIGNS[design], base)
    text = written(base, [4, 1, 7], temperature)
    found = rank_vectors(base, heads, text, temperature, MAX_RANK)
    first = 1  # the state that the prompt's last token, the first root, follows from
    expected = [
        [slow_rank(base, heads, text.ids, t, k, temperature, text.seed) for k in range(3)]
        for t in range(first, len(text.ids) - 1 - 3)
    ]
    assert found.tolist() == expected
    assert len({rank for vector in expected for rank in vector}) > 3, "the case tells ranks apart"
    if "draft" in design:
        assert heads.draft_ids is not None
        assert set(text.ids[first + 2 :]) - set(heads.draft_ids.tolist()), "some true tokens are never drafted"


def test_a_prompt_of_one_token_starts_at_its_first_answer(base: Base) -> None:
    heads = random_heads(DESIGNS["hydra"], base)
    text = written(base, [4], 0.0, new_tokens=6)
    # Roots are positions 1.. : the first one has no state to draft from but that of the prompt itself.
    assert len(rank_vectors(base, heads, text, 0.0, MAX_RANK)) == len(text.ids) - 1 - 3


def test_answers_shorter_than_the_heads_reach_count_nothing(base: Base) -> None:
    heads = random_heads(DESIGNS["hydra"], base)
    for new_tokens, num_positions in ((2, 0), (3, 1)):
        text = written(base, [4, 1], 0.0, new_tokens=new_tokens)
        assert rank_vectors(base, heads, text, 0.0, MAX_RANK).shape == (num_positions, 3)


def gained(base: Base, heads: Heads, tree: Tree, prompt: list[int], temperature: float, seed: int) -> int:
    """Tokens that one real step gains behind a prompt."""
    seconds = dict.fromkeys(("prefill", "draft", "verify", "accept", "commit"), 0.0)
    drafter = build_drafter("heads", base, heads, tree)
    decoder = Decoder(base, drafter, 1, len(prompt) + 40, seconds)
    decoder.add(0, [Request(prompt, base.tokenizer, Sampling(temperature), seed)])
    return len(decoder.step()[0])


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("design", ["hydra, draft vocabulary", "medusa"])
def test_the_expected_tokens_of_a_tree_are_those_that_real_steps_gain(
    base: Base, design: str, temperature: float
) -> None:
    heads = random_heads(DESIGNS[design], base)
    text = written(base, [4, 1, 7], temperature, new_tokens=20)
    ranks = rank_vectors(base, heads, text, temperature, MAX_RANK)
    paths, probabilities = frequent_paths(ranks, MAX_RANK, 11)
    calibration = Calibration(temperature, 1, paths, probabilities, len(ranks))
    for num_nodes in (2, 5, 12):
        tree = calibration.tree_of(num_nodes)
        steps = [
            gained(base, heads, tree, text.ids[: root + 1], temperature, text.seed) for root in range(2, 2 + len(ranks))
        ]
        assert sum(steps) / len(steps) == pytest.approx(1 + sum(probabilities[: num_nodes - 1]), abs=1e-12)
        assert max(steps) > 1


def all_trees(num_heads: int, max_rank: int, num_paths: int) -> Iterator[tuple[tuple[int, ...], ...]]:
    """Every tree of so many nodes below the root."""
    paths = [path for d in range(1, num_heads + 1) for path in itertools.product(range(max_rank), repeat=d)]
    for chosen in itertools.combinations(paths, num_paths):
        if all(len(path) == 1 or path[:-1] in chosen for path in chosen):
            yield chosen


def mean_accepted(ranks: list[list[int]], paths: Sequence[Sequence[int]]) -> float:
    """Tokens a step beyond the bonus: the walk goes down as long as the path to there is in the tree."""
    known = {tuple(path) for path in paths}
    total = 0
    for vector in ranks:
        depth = 0
        while depth < len(vector) and tuple(vector[: depth + 1]) in known:
            depth += 1
        total += depth
    return total / len(ranks)


@pytest.mark.parametrize("seed", range(6))
def test_no_tree_of_the_same_size_accepts_more(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    num_heads, max_rank = (3, 2) if seed % 2 else (2, 3)
    # Small ranks are likelier, and heads agree with one another: an independence assumption would go wrong here.
    ranks = (torch.rand(40, 1, generator=generator) * torch.rand(40, num_heads, generator=generator) * 5).long()
    ranks = ranks.clamp(max=max_rank)
    for num_paths in range(1, 6):
        paths, probabilities = frequent_paths(ranks, max_rank, num_paths)
        best = max(mean_accepted(ranks.tolist(), tree) for tree in all_trees(num_heads, max_rank, num_paths))
        assert mean_accepted(ranks.tolist(), paths) == pytest.approx(sum(probabilities)) == pytest.approx(best)
        assert Tree.from_paths(paths).num_nodes == len(paths) + 1


def test_paths_are_nested_and_end_where_no_candidate_is_right() -> None:
    ranks = torch.tensor([[0, 0, 4], [0, 0, 4], [0, 1, 0], [4, 0, 0], [2, 4, 1]])
    paths, probabilities = frequent_paths(ranks, max_rank=4, num_paths=100)
    assert paths == [[0], [0, 0], [2], [0, 1], [0, 1, 0]]
    assert probabilities == [0.6, 0.4, 0.2, 0.2, 0.2]
    assert frequent_paths(ranks, 4, 2) == (paths[:2], probabilities[:2])
    for count in range(1, 6):
        Tree.from_paths(paths[:count])
    assert frequent_paths(torch.full((3, 2), 4), 4, 5) == ([], [])


def openings(*prompts: list[int]) -> list[Opening]:
    return [Opening(prompt, str(number), "test") for number, prompt in enumerate(prompts)]


PROMPTS = openings([4, 1, 7], [2, 2], [9, 0, 3, 5])


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_replayed_text_takes_the_steps_that_decoding_takes(base: Base, temperature: float) -> None:
    """Not the mean over positions: a step skips the easy ones that it has accepted."""
    heads = random_heads(DESIGNS["hydra"], base)
    texts = [written(base, o.ids, temperature, seed, new_tokens=40) for seed, o in enumerate(PROMPTS)]
    ranks = [rank_vectors(base, heads, text, temperature, MAX_RANK) for text in texts]
    paths, probabilities = frequent_paths(torch.cat(ranks), MAX_RANK, 8)
    calibration = Calibration(temperature, 1, paths, probabilities, sum(map(len, ranks)))
    tree = calibration.tree_of(9)
    gained = []
    for text, ranks_MK in zip(texts, ranks, strict=True):
        engine = Engine(base, heads, tree=tree)
        [answer] = engine.generate([text.ids[: text.num_prompt]], 40, temperature, seed=text.seed)
        position = 0
        for tokens in answer.accepted:  # as long as the text's ranks are known
            if position < len(ranks_MK):
                gained.append(tokens)
            position += tokens
    assert replay(ranks, [tree]) == [pytest.approx(sum(gained) / len(gained))]
    assert replay([torch.tensor([[0, 1], [9, 9], [0, 0]])], [chain(1), chain(2)]) == [2.0, 2.5]


@pytest.mark.parametrize("step_ms, fastest", [([1.0] * 4, 8), ([1.0, 5, 5, 5], 1), ([1.0, 1.001, 9, 9], 2)])
def test_the_chosen_size_gives_most_tokens_a_second(
    base: Base,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    step_ms: list[float],
    fastest: int,
) -> None:
    heads = random_heads(DESIGNS["hydra"], base)
    given = dict(zip("1248", step_ms, strict=True))
    monkeypatch.setattr(module, "time_steps", lambda b, h, trees, *_: {size: given[str(size[0])] for size in trees})
    for entry in calibrate(base, heads, PROMPTS, SMALL)["calibrations"]:
        speeds = {n: entry["tau"][n] / given[n] for n in given}
        assert entry["step_ms"] == given and (entry["num_nodes"], entry["max_depth"]) == (fastest, None)
        assert speeds[str(fastest)] == max(speeds.values())
    told = [record.getMessage() for record in caplog.records if "no tree pays" in record.getMessage()]
    assert len(told) == (len(SMALL.temperatures) if fastest == 1 else 0)
    assert all("5.00 ms, and a plain step takes 1.00 ms" in message for message in told)


def test_a_shallower_tree_is_chosen_where_levels_cost_more_than_they_bring(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads = random_heads(DESIGNS["hydra"], base)
    seen: dict[module.Size, Tree] = {}

    def by_depth(base: Base, heads: Heads, trees: dict[module.Size, Tree], *rest: object) -> dict[module.Size, float]:
        seen.update(trees)
        return {size: 1.0 + 9.0 * max(tree.max_depth - 1, 0) for size, tree in trees.items()}

    monkeypatch.setattr(module, "time_steps", by_depth)
    config = replace(SMALL, node_counts=[1, 2, 4, 6, 30])
    entry = calibrate(base, heads, PROMPTS, config)["calibrations"][0]
    calibration = Calibration(**entry)
    assert calibration.max_depth == 1 and calibration.tree().max_depth == 1
    assert calibration.tree().num_nodes == calibration.num_nodes == max(n for n, depth in seen if depth == 1)
    for size, tree in seen.items():
        nodes = calibration.likeliest(*size)
        assert tree.num_nodes == size[0] == len(nodes) + 1
        assert all(size[1] is None or len(path) <= size[1] for path, _ in nodes)
        left_out = [p for path, p in zip(calibration.paths, calibration.probabilities, strict=True)
                    if list(path) not in [n for n, _ in nodes] and len(path) <= (size[1] or 99)]  # fmt: skip
        assert not nodes or not left_out or min(p for _, p in nodes) >= max(left_out)
    for tree in entry["shallow"]:
        nodes = calibration.likeliest(tree["num_nodes"], tree["max_depth"])
        assert 1 <= tree["tau"] <= 2 and len(nodes) == tree["num_nodes"] - 1
        assert tree["step_ms"] == 1.0 + 9.0 * (tree["max_depth"] - 1)


def test_what_is_written_reads_back_and_an_engine_uses_it(base: Base, tmp_path: Path) -> None:
    heads = random_heads(DESIGNS["hydra"], base)
    content = calibrate(base, heads, PROMPTS, SMALL)
    write_json(tmp_path / TREE_FILE, content)
    assert read_json(tmp_path / TREE_FILE) == content, "plain JSON types"
    found = read_calibrations(tmp_path)
    assert found == [Calibration(**entry) for entry in content["calibrations"]]
    assert [calibration.temperature for calibration in found] == [0.0, 0.8]
    assert (content["dtype"], content["threads"]) == ("float64", 1) and content["device"]
    for calibration in found:
        texts = [written(base, o.ids, calibration.temperature, 1 + i, 12) for i, o in enumerate(PROMPTS)]
        ranks_by_text = [rank_vectors(base, heads, text, calibration.temperature, 5) for text in texts]
        ranks = torch.cat(ranks_by_text)
        assert calibration.num_positions == len(ranks) and len(calibration.paths) <= 7
        for n, tau in calibration.tau.items():
            assert [tau] == replay(ranks_by_text, [calibration.tree_of(int(n))])
        assert set(calibration.tau) == set(calibration.step_ms) and min(calibration.step_ms.values()) > 0
        assert max(itertools.chain(*calibration.paths)) < 5
    engine = Engine(base, heads, calibrations=found)
    assert [engine.tree(c.temperature).num_nodes for c in found] == [c.num_nodes for c in found]
    [plain], [drafted] = (e.generate([[4, 1, 7]], 20) for e in (Engine(base, drafter="none"), engine))
    assert plain.ids == drafted.ids


def test_sizes_beyond_the_paths_that_were_seen_are_not_timed(base: Base) -> None:
    heads = random_heads(plain_heads("hydra", num_heads=1, vocab_share=1.0), base)
    config = CalibrateConfig(
        new_tokens=8, temperatures=[0.0], max_rank=2, node_counts=[1, 2, 3, 64], repeats=1, context_tokens=4
    )
    [entry] = calibrate(base, heads, PROMPTS, config)["calibrations"]
    assert max(map(int, entry["tau"])) <= len(entry["paths"]) + 1 <= 3


def test_steps_are_timed_in_turn_from_one_context(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    heads = random_heads(DESIGNS["hydra"], base)
    calibration = Calibration(0.0, 1, [[0], [0, 0], [1], [0, 0, 0], [2], [3], [4]], [0.1] * 7, 10)
    seen: list[tuple[int, int]] = []
    plain = Decoder.step

    def noted(self: Decoder) -> list[list[int]]:
        seen.append((self.drafter.num_nodes, self.cache.lengths[0]))
        return plain(self)

    monkeypatch.setattr(Decoder, "step", noted)
    trees: dict[module.Size, Tree] = {(n, None): calibration.tree_of(n) for n in (1, 2, 8)}
    found = time_steps(base, heads, trees, [4, 1, 7], 0.8, SMALL)
    assert list(found) == list(trees) and min(found.values()) > 0
    expected = [(n, SMALL.context_tokens - 1) for _ in range(SMALL.repeats) for n in (1, 2, 8) for _ in range(4)]
    assert seen == expected


def test_the_timing_context_ends_at_half_of_the_base_s(monkeypatch: pytest.MonkeyPatch) -> None:
    base = random_base(vocab_size=13, max_length=20)
    prompts: list[int] = []
    plain = Decoder.add

    def noted(self: Decoder, row: int, requests: list[Request]) -> None:
        prompts.append(len(requests[0].prompt))
        plain(self, row, requests)

    monkeypatch.setattr(Decoder, "add", noted)
    config = CalibrateConfig(repeats=1, context_tokens=1000)
    calibration = Calibration(0.0, 1, [[0]], [0.1], 10)
    trees: dict[module.Size, Tree] = {(n, None): calibration.tree_of(n) for n in (1, 2)}
    time_steps(base, random_heads(DESIGNS["hydra"], base), trees, [4], 0.0, config)
    assert prompts == [10, 10]


def test_answers_that_all_end_at_once_are_refused() -> None:
    base = random_base(vocab_size=13, eos=list(range(13)))
    with pytest.raises(UserError, match="answers of at least 3 tokens, and the base ended all 3 sooner"):
        calibrate(base, random_heads(DESIGNS["hydra"], base), PROMPTS, SMALL)
    heads = random_heads(plain_heads("hydra", num_heads=1, vocab_share=1.0), base)
    [entry, _] = calibrate(base, heads, PROMPTS, SMALL)["calibrations"]
    assert entry["num_positions"] == 3, "one head learns something from an answer of one token"


def test_no_prompts_are_refused(base: Base) -> None:
    with pytest.raises(UserError, match="calibration was given no prompts"):
        calibrate(base, random_heads(DESIGNS["hydra"], base), [], SMALL)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"node_counts": []}, "node_counts"),
        ({"node_counts": [0, 1]}, "node_counts"),
        ({"node_counts": [2]}, "1 .no tree. among them"),
        ({"repeats": 0}, "calibrate.repeats=0"),
        ({"max_rank": 0}, "calibrate.max_rank=0"),
        ({"context_tokens": 0}, "calibrate.context_tokens=0"),
        ({"temperatures": []}, "calibrate.temperatures is empty"),
        ({"temperatures": [float("nan")]}, "temperature=nan"),
    ],
)
def test_impossible_settings_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(CalibrateConfig(**changes))
