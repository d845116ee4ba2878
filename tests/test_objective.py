"""The right labels are scored, with the right loss and gradient, without [positions, K, V] logits in memory."""

import copy
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from plain_heads import plain_heads
from slow_induction import follower_slowly
from tiny_llama import save_tiny_llama
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from euryale.base.base import Base, load_base
from euryale.base.config import BaseConfig
from euryale.data.batches import Batch
from euryale.errors import UserError
from euryale.heads.config import HeadsConfig
from euryale.heads.heads import Heads, build_heads
from euryale.kernels.rms_norm import normalise
from euryale.training.config import ObjectiveConfig
from euryale.training.labels import select_labels
from euryale.training.objective import evaluate_base, evaluate_heads, medusa1_loss, pretrain_loss

DESIGNS = [
    plain_heads(kind="hydra", num_heads=3),
    plain_heads(kind="hydra", num_heads=2, body="resblock", num_layers=2, output="own"),
    plain_heads(kind="medusa", num_heads=3, root_token=True, width=2.0),
    plain_heads(kind="medusa", num_heads=2, root_token=False, body="resblock", output="own"),
    plain_heads(kind="hydra", num_heads=2, features="several"),
    plain_heads(kind="hydra", num_heads=2, output="lowrank", output_rank=4),
    plain_heads(kind="hydra", num_heads=3, induction=2),
    plain_heads(kind="medusa", num_heads=2, induction=1),
]


def random_batch(seed: int = 0, rows: int = 2, length: int = 24, vocab_size: int = 99) -> SimpleNamespace:
    """Rows of several short documents, some tokens masked, padding at the end of the last row."""
    generator = torch.Generator().manual_seed(seed)
    documents_BT = (torch.rand(rows, length, generator=generator) < 0.15).cumsum(dim=1)
    documents_BT[-1, -5:] = -1
    positions_BT = torch.zeros_like(documents_BT)
    for t in range(1, length):
        positions_BT[:, t] = (positions_BT[:, t - 1] + 1) * (documents_BT[:, t] == documents_BT[:, t - 1])
    return SimpleNamespace(
        ids_BT=torch.randint(vocab_size, (rows, length), generator=generator),
        is_target_BT=torch.rand(rows, length, generator=generator) < 0.7,
        positions_BT=positions_BT,
        documents_BT=documents_BT,
    )


def random_heads(config: HeadsConfig, base: Base) -> Heads:
    """Heads that differ from the base (fresh ones do not)."""
    heads = build_heads(config, base.lm_head_weight).to(base.dtype)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))  # float32 numbers, whatever the dtype
    return heads


def counted(batch: SimpleNamespace, k: int) -> list[tuple[int, int]]:
    """(row, source position) of every label of head k, from the definition."""
    B, T = batch.ids_BT.shape
    return [
        (b, t)
        for b in range(B)
        for t in range(T - 2 - k)
        if batch.is_target_BT[b, t + 2 + k] and batch.documents_BT[b, t] == batch.documents_BT[b, t + 2 + k] >= 0
    ]


def followed(batch: SimpleNamespace, embeddings_BTD: Tensor, b: int, t: int, known: int, heads: Heads) -> Tensor:
    """The embedding of the token that followed what is known up to t + known before; zeros where nothing did."""
    start = (batch.documents_BT[b] == batch.documents_BT[b, t]).nonzero()[0, 0]
    place = follower_slowly(batch.ids_BT[b, start:].tolist(), t - int(start), known, heads.config.induction)
    return torch.zeros(1, heads.hidden_size) if place < 0 else embeddings_BTD[b, start + place][None]


def reference_loss(base: Base, heads: Heads, batch: SimpleNamespace, loss: str) -> tuple[Tensor, list[float]]:
    """The specification: one label at a time, plain autograd. Returns the sum and the sum of each head."""
    with torch.no_grad():
        layers = heads.layers_read(base.num_layers)
        hidden_BTC = base.forward_packed(batch.ids_BT, batch.positions_BT, batch.documents_BT, layers)
        base_logits_BTV = base.logits(hidden_BTC[..., : base.hidden_size])
        embeddings_BTD = normalise(base.embed(batch.ids_BT))
    total, by_head = torch.zeros((), dtype=base.dtype), []
    for k in range(heads.num_heads):
        sum_k = torch.zeros((), dtype=base.dtype)
        for b, t in counted(batch, k):
            known = embeddings_BTD[b, t + 1 : t + 1 + heads.num_known_tokens(k)]
            if heads.config.induction:
                known = torch.cat([known, followed(batch, embeddings_BTD, b, t, heads.num_known_tokens(k), heads)])
            hidden = heads.head_hidden(k, hidden_BTC[b, t][None], known[None])
            log_q_V = torch.log_softmax(hidden @ heads.output_weight(k, base.lm_head_weight).T, dim=-1)[0]
            if loss == "ce":
                sum_k = sum_k - log_q_V[batch.ids_BT[b, t + 2 + k]]
            else:
                log_p_V = torch.log_softmax(base_logits_BTV[b, t + 1 + k], dim=-1)
                kl = (log_p_V.exp() * (log_p_V - log_q_V)).sum()
                accepted = torch.minimum(log_p_V.exp(), log_q_V.exp()).sum()
                weight = torch.exp(-3 * accepted.detach()) if loss == "lk" else 1.0
                sum_k = sum_k + weight * kl + (1 - weight) * (1 - accepted)
        total = total + sum_k
        by_head.append(float(sum_k.detach()))
    return total, by_head


@pytest.fixture(scope="module")
def base64(tiny_llama_folder: Path) -> Base:
    base = load_base(BaseConfig(path=str(tiny_llama_folder), dtype="float32", device="cpu"))
    base.model.double()
    return base


def test_labels_stay_inside_documents_targets_and_padding() -> None:
    for seed in range(20):
        batch = random_batch(seed, rows=3, length=17)
        gaps = [2, 3, 4, 30]
        selection = select_labels(batch, gaps)
        for gap, members_M in zip(gaps, selection.members_KM, strict=True):
            labels = selection.positions_U[members_M]
            found = [(int(p) // 17, int(p) % 17 - gap) for p in labels]
            assert found == counted(batch, gap - 2)
        assert len(counted(batch, 0)) > 5


@pytest.mark.parametrize("loss", ["kl", "ce", "lk"])
@pytest.mark.parametrize("config", DESIGNS, ids=lambda c: "-".join(map(str, vars(c).values())))
def test_loss_and_gradient_equal_the_plain_definition(base64: Base, config: HeadsConfig, loss: str) -> None:
    # float64, so the two may only differ by rounding: 1e-10 is five orders above it and far below any slip of sign,
    # shift or mask. Chunks of 7 leave a shorter last one and heads whose labels are only part of a chunk.
    batch = random_batch(vocab_size=6 if config.induction else 99)  # of few tokens, each stood there before
    heads = random_heads(config, base64)
    expected, expected_by_head = reference_loss(base64, heads, batch, loss)
    expected_grads = torch.autograd.grad(expected, list(heads.parameters()))
    sums = medusa1_loss(base64, heads, batch, ObjectiveConfig(loss=loss, chunk_tokens=7))
    grads = torch.autograd.grad(sums.loss, list(heads.parameters()))
    assert sums.count_K.tolist() == [len(counted(batch, k)) for k in range(config.num_heads)]
    torch.testing.assert_close(sums.loss, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(sums.loss_K.tolist(), expected_by_head, rtol=1e-10, atol=1e-10)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad, rtol=1e-9, atol=1e-10)


def test_float32_agrees_with_float64(tiny_base: Base, base64: Base) -> None:
    # Of float32 forwards the states of this base differ by 3e-4 between processors (test_lora.py), and a loss by less,
    # as 60 labels of either sign are added up: 1e-3 of it holds on all. A label more or less is 1 in 60.
    config, batch = plain_heads(num_heads=2), random_batch()
    narrow, wide = (
        medusa1_loss(base, random_heads(config, base), batch, ObjectiveConfig(chunk_tokens=7))
        for base in (tiny_base, base64)
    )
    torch.testing.assert_close(narrow.loss.double(), wide.loss, rtol=1e-3, atol=0)


def test_chunk_size_changes_nothing(base64: Base) -> None:
    batch, heads = random_batch(3), random_heads(DESIGNS[1], base64)
    losses, grads = [], []
    for chunk in (1, 5, 16, 1000):
        sums = medusa1_loss(base64, heads, batch, ObjectiveConfig(chunk_tokens=chunk))
        losses.append(sums.loss.detach())
        grads.append(torch.cat([g.flatten() for g in torch.autograd.grad(sums.loss * 3, list(heads.parameters()))]))
    for loss, grad in zip(losses[1:], grads[1:], strict=True):
        torch.testing.assert_close(loss, losses[0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(grad, grads[0], rtol=1e-10, atol=1e-11)


class LargestTensor(TorchDispatchMode):
    """Records the size of the largest tensor any operation hands back."""

    num_elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, Tensor):
                self.num_elements = max(self.num_elements, tensor.numel())
        return out


@pytest.mark.parametrize("output", ["shared", "own"])
def test_no_tensor_of_positions_times_vocabulary_exists(tmp_path: Path, output: str) -> None:
    V, rows, length, chunk = 2000, 2, 64, 16
    folder = save_tiny_llama(tmp_path / "wide", vocab_size=V)
    base = load_base(BaseConfig(path=str(folder), dtype="float32", device="cpu"))
    batch = random_batch(0, rows, length, V)
    heads = random_heads(plain_heads(num_heads=4, output=output), base)
    sizes = {}
    for chunk_tokens in (chunk, 10_000):
        with LargestTensor() as largest:
            medusa1_loss(base, heads, batch, ObjectiveConfig(chunk_tokens=chunk_tokens)).loss.backward()
        sizes[chunk_tokens] = largest.num_elements
    assert sizes[10_000] > 40 * V  # the instrument sees what it should
    assert sizes[chunk] <= max(chunk * V, V * base.hidden_size)  # logits of a chunk, or the matrix itself


def test_heads_run_on_counted_positions_only(tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    heads, batch, seen = random_heads(plain_heads(num_heads=2), tiny_base), random_batch(), []
    plain = heads.head_hidden
    monkeypatch.setattr(heads, "head_hidden", lambda k, h, e: seen.append(len(h)) or plain(k, h, e))
    medusa1_loss(tiny_base, heads, batch, ObjectiveConfig())
    assert seen == [len(counted(batch, 0)), len(counted(batch, 1))]


def test_the_base_runs_once_whatever_the_number_of_heads(tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    plain = tiny_base.forward_packed
    monkeypatch.setattr(tiny_base, "forward_packed", lambda *a: calls.append(torch.is_grad_enabled()) or plain(*a))
    medusa1_loss(tiny_base, random_heads(plain_heads(num_heads=4), tiny_base), random_batch(), ObjectiveConfig())
    assert calls == [False]


def test_a_batch_without_labels_costs_nothing_and_breaks_nothing(tiny_base: Base) -> None:
    batch, heads = random_batch(), random_heads(DESIGNS[1], tiny_base)
    batch.is_target_BT[:] = False
    sums = medusa1_loss(tiny_base, heads, batch, ObjectiveConfig())
    sums.loss.backward()
    assert float(sums.loss.detach()) == 0 and sums.count_K.sum() == 0
    assert all(not p.grad.any() for p in heads.parameters() if p.grad is not None)
    with pytest.raises(UserError, match="no token to score"):
        evaluate_heads(tiny_base, heads, [batch], 1)


def test_evaluation_ranks_and_losses_equal_full_sorting(base64: Base) -> None:
    batches = [random_batch(seed) for seed in range(3)]
    heads = random_heads(plain_heads(kind="medusa", num_heads=2), base64)
    metrics = evaluate_heads(base64, heads, batches, 2, ObjectiveConfig(chunk_tokens=5))
    top = {1: [0, 0], 5: [0, 0], 10: [0, 0]}
    loss, count = [0.0, 0.0], [0, 0]
    for batch in batches[:2]:
        with torch.no_grad():
            hidden_BTD = base64.forward_packed(batch.ids_BT, batch.positions_BT, batch.documents_BT)
            embeddings_BTD = normalise(base64.embed(batch.ids_BT))
            loss = [a + b for a, b in zip(loss, reference_loss(base64, heads, batch, "kl")[1], strict=True)]
            for k in range(2):
                for b, t in counted(batch, k):
                    hidden = heads.head_hidden(k, hidden_BTD[b, t][None], embeddings_BTD[b, t + 1][None, None])
                    order = base64.logits(hidden)[0].sort(descending=True, stable=True).indices.tolist()
                    rank = order.index(int(batch.ids_BT[b, t + 2 + k]))
                    count[k] += 1
                    for limit, hits in top.items():
                        hits[k] += rank < limit
    assert metrics["num_labels"] == count
    for limit, hits in top.items():
        assert metrics[f"head_top{limit}"] == [hits[k] / count[k] for k in range(2)]
    torch.testing.assert_close(metrics["head_loss_nats"], [loss[k] / count[k] for k in range(2)], rtol=1e-6, atol=0)
    assert metrics["loss_nats"] == pytest.approx(
        sum(loss) / sum(count), rel=1e-6
    )  # summed in float64, shown in float32


def test_training_hits_equal_evaluated_top1(base64: Base) -> None:
    batch, heads = random_batch(5), random_heads(DESIGNS[0], base64)
    sums = medusa1_loss(base64, heads, batch, ObjectiveConfig())
    metrics = evaluate_heads(base64, heads, [batch], 1)
    assert (sums.hits_K / sums.count_K).tolist() == metrics["head_top1"]


def test_untrained_heads_predict_what_the_base_would(base64: Base) -> None:
    # A fresh head is the base one position late: on a text of one repeated token its KL divergence is nearly zero.
    # In float64, where nothing but the norms of transformers is rounded to float32.
    batch = random_batch()
    batch.ids_BT[:] = 7
    batch.documents_BT[:] = 0
    batch.positions_BT[:] = 50  # rotary embeddings then give every position the same hidden state
    heads = build_heads(plain_heads(num_heads=2), base64.lm_head_weight)
    sums = medusa1_loss(base64, heads, batch, ObjectiveConfig(loss="kl"))
    assert abs(float(sums.loss.detach() / sums.count_K.sum())) < 1e-9


def test_autocast_gives_the_same_loss_to_bfloat16_and_finite_gradients(tiny_base: Base) -> None:
    # bfloat16 keeps 8 bits: 2% on a mean of dozens of labels is generous, a wrong shift or sign is 100%.
    batch, heads = random_batch(), random_heads(DESIGNS[1], tiny_base)
    plain = medusa1_loss(tiny_base, heads, batch, ObjectiveConfig())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = medusa1_loss(tiny_base, heads, batch, ObjectiveConfig())
    cast.loss.backward()
    assert cast.loss.dtype == torch.float32
    torch.testing.assert_close(cast.loss, plain.loss, rtol=0.02, atol=0.02)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in heads.parameters())


@pytest.mark.parametrize("tied", [False, True])
def test_pretraining_equals_the_models_own_loss_and_gradient(tmp_path: Path, tied: bool) -> None:
    folder = save_tiny_llama(tmp_path / "base", tie_word_embeddings=tied)
    base = load_base(BaseConfig(path=str(folder), dtype="float32", device="cpu"))
    base.model.double()  # both differ by the order of sums alone, and by norms, which are float32 in any dtype: 1e-7
    base.model.requires_grad_(True)
    ids_BT = random_batch(0, 2, 20).ids_BT
    batch = SimpleNamespace(
        ids_BT=ids_BT,
        is_target_BT=torch.ones_like(ids_BT, dtype=torch.bool),
        positions_BT=torch.arange(20).expand(2, 20),
        documents_BT=torch.zeros_like(ids_BT),
    )
    twin = copy.deepcopy(base.model)
    expected = twin(input_ids=ids_BT, labels=ids_BT).loss
    expected.backward()
    sums = pretrain_loss(base, None, batch, ObjectiveConfig(kind="pretrain", loss="ce", chunk_tokens=9))
    (sums.loss / sums.count_K.sum()).backward()
    assert sums.count_K.tolist() == [38]
    torch.testing.assert_close(sums.loss / 38, expected.double(), rtol=1e-5, atol=0)
    for (name, parameter), other in zip(base.model.named_parameters(), twin.parameters(), strict=True):
        assert (parameter.grad - other.grad).norm() < 1e-5 * other.grad.norm(), name
    metrics = evaluate_base(base, None, [batch], 1, ObjectiveConfig(kind="pretrain"))
    assert metrics["perplexity"] == pytest.approx(math.exp(float(expected.detach())), rel=1e-4)


@pytest.mark.parametrize(
    "config", [ObjectiveConfig(kind="medusa3"), ObjectiveConfig(loss="mse"), ObjectiveConfig(chunk_tokens=0)]
)
def test_an_unknown_objective_is_refused_with_the_options(config: ObjectiveConfig) -> None:
    with pytest.raises(UserError, match=r"objective\.(kind|loss|chunk_tokens) must be"):
        config.check()


def test_a_draft_vocabulary_restricts_heads_and_teacher_and_drops_other_labels(base64: Base) -> None:
    """The slow twin: full logits, columns of the draft vocabulary, labels outside of it skipped one by one."""
    torch.manual_seed(5)
    heads = build_heads(plain_heads(num_heads=2, width=1.0, vocab_share=0.4), base64.lm_head_weight.float()).double()
    counts = torch.rand(base64.vocab_size).mul(1000).long()
    heads.choose_draft_ids(counts)
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    ids_BT = torch.randint(0, base64.vocab_size, (1, 24))
    zeros = torch.zeros_like(ids_BT)
    batch = Batch(ids_BT, torch.ones_like(ids_BT, dtype=torch.bool), torch.arange(24)[None], zeros)
    assert heads.draft_ids is not None
    chosen = heads.draft_ids.tolist()
    for loss in ("kl", "ce"):
        sums = medusa1_loss(base64, heads, batch, ObjectiveConfig(loss=loss, chunk_tokens=7))
        hidden_TD = base64.forward_packed(ids_BT, batch.positions_BT, zeros)[0]
        embedded_TD = normalise(base64.embed(ids_BT[0]))
        expected, counted = torch.zeros(()), [0, 0]
        for k in range(2):
            for t in range(24 - 2 - k):
                label = int(ids_BT[0, t + 2 + k])
                if label not in chosen:
                    continue
                head = heads.head_hidden(k, hidden_TD[t][None], embedded_TD[t + 1 : t + 2 + k][None])[0]
                log_q = (base64.lm_head_weight @ head)[chosen].log_softmax(0)
                p = (base64.lm_head_weight @ hidden_TD[t + 1 + k])[chosen].softmax(0)
                one = -log_q[chosen.index(label)] if loss == "ce" else (p * (p.log() - log_q)).sum()
                expected, counted[k] = expected + one, counted[k] + 1
        assert sums.count_K.tolist() == counted and 0 < counted[0] < 22
        torch.testing.assert_close(sums.loss, expected, rtol=1e-9, atol=0)


def test_a_token_that_cannot_be_drafted_counts_as_a_miss(base64: Base) -> None:
    """Accuracy over all labels, by hand: first choice among the draft vocabulary, label by label."""
    torch.manual_seed(6)
    heads = build_heads(plain_heads(num_heads=2, width=1.0, vocab_share=0.3), base64.lm_head_weight.float()).double()
    ids_BT = torch.randint(0, base64.vocab_size, (2, 40))
    zeros = torch.zeros_like(ids_BT)
    batch = Batch(ids_BT, torch.ones_like(ids_BT, dtype=torch.bool), torch.arange(40).expand(2, 40), zeros)
    found = evaluate_heads(base64, heads, [batch], 1)
    assert heads.draft_ids is not None and found["num_labels"] == [2 * 38, 2 * 37]
    hidden_BTD = base64.forward_packed(ids_BT, batch.positions_BT, zeros)
    hits = 0  # untrained heads pass the hidden state through
    for b in range(2):
        for t in range(38):
            choice = heads.draft_ids[(base64.lm_head_weight[heads.draft_ids] @ hidden_BTD[b, t]).argmax()]
            hits += int(choice == ids_BT[b, t + 2])
    assert found["head_top1"][0] == pytest.approx(hits / 76)  # type: ignore[index]
