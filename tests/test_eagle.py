"""The layer of kind eagle reads what it should, learns, and drafts what it was trained to say."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from plain_heads import plain_heads
from random_models import random_base, random_heads
from torch import Tensor

from euryale.base.base import Base
from euryale.data.batches import Batch
from euryale.decoding.config import TreeConfig
from euryale.decoding.drafters.eagle import EagleDrafter
from euryale.decoding.drafters.interface import Draft, DraftInput
from euryale.decoding.engine import Engine
from euryale.decoding.kv_cache import KVCache
from euryale.decoding.tree.calibration import Calibration
from euryale.decoding.tree.tree import Tree, chain
from euryale.errors import UserError
from euryale.export import export
from euryale.heads.checkpoint import load_heads, save_heads
from euryale.heads.config import HeadsConfig
from euryale.heads.eagle import EagleLayer
from euryale.heads.heads import Heads, PackedText, build_heads
from euryale.kernels.rms_norm import normalise
from euryale.training.config import ObjectiveConfig, OptimConfig
from euryale.training.objective import medusa1_loss
from euryale.training.optimizer import build_optimizer

EAGLE = plain_heads("eagle", num_heads=3, features="several")
DESIGNS = [EAGLE, plain_heads("eagle", num_heads=3, width=1.0, vocab_share=0.6)]
WIDE = Tree.from_paths([(0,), (1,), (3,), (0, 0), (0, 2), (1, 0), (0, 2, 1), (1, 0, 0)])
V = 13


def random_batch(seed: int, rows: int, length: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    ids_BT = torch.randint(V, (rows, length), generator=generator)
    is_target_BT = torch.rand(rows, length, generator=generator) < 0.8
    return Batch(ids_BT, is_target_BT, torch.arange(length).expand(rows, length), torch.zeros_like(ids_BT))


def read_text(base: Base, heads: Heads, ids: list[int], path: list[int]) -> PackedText:
    """The text and a path after it, as one document. The base's states end before the last token of the text."""
    layers = heads.layers_read(base.num_layers)
    whole_1T = torch.tensor([ids + path])
    known_1T, positions_1T = whole_1T[:, : len(ids) - 1], torch.arange(whole_1T.shape[1])[None]
    states_1TC = torch.full((1, whole_1T.shape[1], base.hidden_size * (1 + len(layers))), 1e3, dtype=base.dtype)
    if len(ids) > 1:
        documents_1T = torch.zeros_like(known_1T)
        states_1TC[:, : len(ids) - 1] = base.forward_packed(
            known_1T, positions_1T[:, : len(ids) - 1], documents_1T, layers
        )
    return PackedText(states_1TC, normalise(base.embed(whole_1T)), positions_1T, torch.zeros_like(whole_1T), whole_1T)


def best_tokens(base: Base, heads: Heads, ids: list[int], path: list[int], known: DraftInput, row: int) -> list[int]:
    """What the layer says may follow the path, best first: recomputed over the whole text, as in training."""
    depth = len(path)
    source = torch.tensor([len(ids) - 2])
    hidden_1D = heads.guesses(read_text(base, heads, ids, path), [source] * (depth + 1))[depth]
    scores_V = (hidden_1D @ heads.draft_weight(depth, base.lm_head_weight).T)[0]
    if known.noise_BPV is not None:
        noise_V = known.noise_BPV[row, depth]
        noise_V = noise_V if heads.draft_ids is None else noise_V[heads.draft_ids]
        assert isinstance(known.temperature_B11, Tensor)
        scores_V = scores_V.float() / known.temperature_B11[row, 0] + noise_V
    best = scores_V.argsort(descending=True)
    return (best if heads.draft_ids is None else heads.draft_ids[best]).tolist()


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("design", DESIGNS, ids=["several", "last"])
def test_every_node_is_what_training_says_there(
    design: HeadsConfig, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of unequal lengths, accepted at different depths, that come and go in two places."""
    base = random_base("qwen3", V, seed=11, dtype=torch.float64, num_hidden_layers=3)
    heads = random_heads(design, base, seed=2)
    plain, seen = EagleDrafter.propose, []

    def propose(self: EagleDrafter, known: DraftInput) -> Draft:
        draft = plain(self, known)
        noise = None if known.noise_BPV is None else known.noise_BPV.clone()  # a window that moves on
        seen.append((known._replace(noise_BPV=noise), [list(ids) for ids in known.texts], draft.tokens_BN.tolist()))
        return draft

    monkeypatch.setattr(EagleDrafter, "propose", propose)
    prompts = [[4, 1, 7], [2, 9, 9, 3, 1, 5], [8], [6, 6]]
    answers = Engine(base, heads, "eagle", WIDE, max_rows=2).generate(prompts, 7, temperature=temperature, seed=3)
    expected = Engine(base, drafter="none").generate(prompts, 7, temperature=temperature, seed=3)
    assert [answer.ids for answer in answers] == [answer.ids for answer in expected]
    assert any(len(set(map(len, texts))) > 1 for _, texts, _ in seen) and sum(a.num_steps for a in answers) < 28
    num_compared = 0
    for known, texts, drafts in seen:
        for row, (ids, tokens) in enumerate(zip(texts, drafts, strict=True)):
            if len(ids) == 1:
                continue  # there is no state before the first token: nothing that training has seen
            for node in range(1, WIDE.num_nodes):
                path, above = [], WIDE.parents[node]
                while above > 0:
                    path.insert(0, tokens[above])
                    above = WIDE.parents[above]
                assert tokens[node] == best_tokens(base, heads, ids, path, known, row)[WIDE.ranks[node]]
                num_compared += 1
    assert num_compared > 100


@pytest.mark.parametrize("max_rows", [1, 64])
def test_long_prompts_are_read_in_pieces(max_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    base = random_base("llama", V, seed=5, dtype=torch.float64)
    heads = random_heads(EAGLE, base)
    prompts = [list(range(length % V)) * 3 + [length % 7] for length in (9, 1, 4, 12, 7)]
    whole = Engine(base, heads, "heads", chain(3), max_rows=max_rows).generate(prompts, 12)
    monkeypatch.setattr("euryale.decoding.prefill.CHUNK", 5)
    parts = Engine(base, heads, "heads", chain(3), max_rows=max_rows).generate(prompts, 12)
    assert [(a.ids, a.accepted) for a in parts] == [(a.ids, a.accepted) for a in whole]


def unroll_slowly(layer: EagleLayer, text: PackedText, source: int, depth: int) -> Tensor:
    """Position by position and attention head by attention head, for one row that is one document."""
    states_TC, embedded_TD, positions_T, *_ = (tensor[0] for tensor in text)
    H, E, D = layer.num_attention_heads, layer.head_width, layer.hidden_size

    def turn(vector_E: Tensor, position: int) -> Tensor:
        out_E = vector_E.clone()
        for i in range(E // 2):
            angle = position * 10_000.0 ** (-2 * i / E)
            a, b = vector_E[i], vector_E[i + E // 2]
            out_E[i] = a * math.cos(angle) - b * math.sin(angle)
            out_E[i + E // 2] = b * math.cos(angle) + a * math.sin(angle)
        return out_E

    def read(states_C: Tensor, token: int, position: int) -> tuple[list[Tensor], list[Tensor], list[Tensor], Tensor]:
        parts = [part / (part.square().mean() + 1e-6).sqrt() for part in states_C.split(D)]
        x_C = torch.cat([*parts, embedded_TD[token]])
        query, key, value = ((m.weight @ x_C).split(E) for m in (layer.query, layer.key, layer.value))
        inner_F = layer.inner.weight @ x_C + layer.inner.bias
        return [turn(q, position) for q in query], [turn(k, position) for k in key], list(value), inner_F

    at = int(positions_T[source])
    entries = [read(states_TC[t], t + 1, int(positions_T[t])) for t in range(source)]
    state_C = states_TC[source]
    for step in range(depth + 1):
        entries.append(read(state_C, source + 1 + step, at + step))
        query, _, _, inner_F = entries[-1]
        attended = []
        for h in range(H):
            scores = torch.stack([query[h] @ key[h] for _, key, _, _ in entries]) / E**0.5
            attended.append(sum(w * value[h] for w, (_, _, value, _) in zip(scores.softmax(0), entries, strict=True)))
        inner_F = inner_F + layer.attended_in.weight @ torch.cat(attended)  # type: ignore[arg-type]
        state_C = state_C + layer.out.weight @ (inner_F * torch.sigmoid(inner_F))
    return state_C


@pytest.mark.parametrize("design", DESIGNS, ids=["several", "last"])
def test_the_layer_is_its_formula(design: HeadsConfig) -> None:
    heads = random_heads(design, random_base(vocab_size=V, dtype=torch.float64))
    assert heads.layer is not None
    generator = torch.Generator().manual_seed(1)
    states_1TC = torch.randn(1, 9, 16 * heads.num_states, generator=generator, dtype=torch.float64)
    embedded_1TD = normalise(torch.randn(1, 9, 16, generator=generator, dtype=torch.float64))
    text = PackedText(states_1TC, embedded_1TD, torch.arange(9)[None] + 4, *torch.zeros(2, 1, 9, dtype=torch.long))
    depths = heads.layer.unroll(*text[:4], 3)
    for source, depth in ((0, 0), (0, 2), (3, 1), (5, 2)):
        slow_C = unroll_slowly(heads.layer, text, source, depth)
        torch.testing.assert_close(depths[depth][0, source], slow_C, rtol=1e-5, atol=1e-6)  # angles are float32


def test_no_document_sees_another() -> None:
    """Two documents and padding in one row, against each in a row of its own."""
    base = random_base(vocab_size=V, dtype=torch.float64)
    heads = random_heads(EAGLE, base)
    generator = torch.Generator().manual_seed(1)
    states_TC = torch.randn(14, 48, generator=generator, dtype=torch.float64)
    embedded_TD = normalise(torch.randn(14, 16, generator=generator, dtype=torch.float64))
    places = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6, 0, 0], [3] * 5 + [4] * 7 + [-1] * 2])
    whole = PackedText(states_TC[None], embedded_TD[None], *places[:, None], places[:1])
    together = heads.guesses(whole, [torch.arange(14)] * 3)
    for first, length in ((0, 5), (5, 7)):
        part = slice(first, first + length)
        alone = PackedText(states_TC[None, part], embedded_TD[None, part], *places[:, None, part], places[:1, part])
        for k, hidden_TD in enumerate(heads.guesses(alone, [torch.arange(length)] * 3)):
            inside = length - 1 - k  # after them the tokens of the path lie outside of the document
            torch.testing.assert_close(hidden_TD[:inside], together[k][part][:inside], rtol=1e-12, atol=1e-12)
    assert all(hidden_TD.isfinite().all() for hidden_TD in together)


def test_an_untrained_layer_is_the_base() -> None:
    base = random_base(vocab_size=V)
    heads = build_heads(EAGLE, base.lm_head_weight)
    text = read_text(base, heads, [1, 2, 3, 4, 5], [])
    for hidden_MD in heads.guesses(text, [torch.arange(3)] * 3):
        assert torch.equal(hidden_MD, text.states_BTC[0, :3, :16])


def test_gradients_flow_through_its_own_answers() -> None:
    """Finite differences of the loss of every depth, in every matrix."""
    base = random_base(vocab_size=V, dtype=torch.float64)
    heads = random_heads(EAGLE, base)
    heads.requires_grad_(True)
    batch = random_batch(3, 2, 12)

    def loss() -> Tensor:
        return medusa1_loss(base, heads, batch, ObjectiveConfig()).loss

    gradients = torch.autograd.grad(loss(), list(heads.parameters()))
    generator = torch.Generator().manual_seed(0)
    for (name, parameter), gradient in zip(heads.named_parameters(), gradients, strict=True):
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            parameter += 1e-6 * direction
            above = loss()
            parameter -= 2e-6 * direction
            below = loss()
            parameter += 1e-6 * direction
        expected = float(above - below) / 2e-6
        assert float((gradient * direction).sum()) == pytest.approx(expected, rel=1e-4, abs=1e-5), name


def test_it_learns_what_only_attention_can_know() -> None:
    """Every token comes again four places later, and the base is blind to all but the last one: so is a hydra head."""
    base = random_base(vocab_size=V, seed=4)
    for layer in base.model.base_model.layers:  # type: ignore[union-attr]
        layer.self_attn.o_proj.weight.zero_()
    losses = {}
    for design in (replace(EAGLE, num_heads=1), plain_heads("hydra", num_heads=1, features="several")):
        heads = build_heads(design, base.lm_head_weight)
        moved = build_optimizer(
            dict(heads.named_parameters()), OptimConfig(name="muon", lr=0.03), blocks=heads.blocks_of_matrices()
        )
        for step in range(80):
            batch = random_batch(step, 16, 16)
            batch.ids_BT[:] = batch.ids_BT[:, :4].repeat(1, 4)
            sums = medusa1_loss(base, heads, batch, ObjectiveConfig(loss="ce"))
            moved.zero_grad()
            (sums.loss / sums.count_K.sum()).backward()
            moved.step()
        losses[design.kind] = float(sums.loss_K.sum() / sums.count_K.sum())
    print(losses)
    assert losses["eagle"] < 0.75 * math.log(V) and losses["hydra"] > 0.95 * math.log(V)


def test_a_checkpoint_holds_it_and_says_what_it_is(tmp_path: Path) -> None:
    base = random_base(vocab_size=V)
    heads = random_heads(DESIGNS[1], base)
    save_heads(tmp_path / "run", heads, base, {})
    loaded = load_heads(tmp_path / "run", base)
    assert loaded.config == heads.config
    assert all(
        torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), heads.state_dict().values(), strict=True)
    )
    description = json.loads((tmp_path / "run" / "heads.json").read_text())
    assert description["heads"]["kind"] == "eagle" and description["num_parameters"] == heads.num_parameters()
    with pytest.raises(UserError, match=r"trained with heads.kind=eagle, .*Train heads for them with heads=medusa"):
        export(tmp_path / "run", "vllm", tmp_path / "out", lambda: base)
    assert {path.name for path in export(tmp_path / "run", "euryale", tmp_path / "copy", lambda: base)} == {
        "heads.json", "heads.safetensors",
    }  # fmt: skip


def test_what_does_not_go_together_is_refused() -> None:
    base = random_base(vocab_size=V)
    eagle, hydra = random_heads(EAGLE, base), random_heads(plain_heads("hydra"), base)
    with pytest.raises(UserError, match="these heads are of kind hydra. Use drafter=heads"):
        Engine(base, hydra, "eagle")
    with pytest.raises(UserError, match="drafter=eagle needs a heads checkpoint"):
        Engine(base, None, "eagle")
    timed = Calibration(0.0, 2, [[0]], [0.5], 9, {"1": 1.0, "2": 1.5}, {"1": 1.0, "2": 1.1})
    with pytest.raises(UserError, match="heads of kind eagle follow the text in every step. Use tree.size=fixed"):
        Engine(base, eagle, "heads", TreeConfig("dynamic", size="adaptive"), [timed])
    for change in ({"body": "resblock"}, {"output": "own"}, {"num_layers": 2}, {"residual": False}):
        with pytest.raises(UserError, match="do not go with heads.kind=eagle"):
            Heads(replace(EAGLE, **change), 16, V)
    with pytest.raises(UserError, match="heads.root_token must be true for heads.kind=eagle"):
        Heads(replace(EAGLE, root_token=False), 16, V)


def test_its_memory_is_allocated_once_and_no_larger_than_the_base_s(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[int, ...]] = []
    plain = KVCache.__init__

    def init(self: KVCache, *args: object) -> None:
        plain(self, *args)  # type: ignore[arg-type]
        made.append(tuple(self.kv.shape))

    monkeypatch.setattr(KVCache, "__init__", init)
    base = random_base(vocab_size=V, dtype=torch.float64)
    Engine(base, random_heads(EAGLE, base), "eagle", chain(3), max_rows=3).generate([[1, 2]] * 7, 20)
    (_, _, rows, _, slots, _), own = sorted(made, reverse=True)
    assert len(made) == 2 and own == (1, 2, rows, 4, slots, 4)
