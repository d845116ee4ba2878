"""The CUDA sources on a CPU, compiled by g++ and run on fibers: results, barriers, and equality of tree and AR.

Three orders of threads must agree bit for bit. Memory that was not written is NaN, shared memory too.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from cuda_on_cpu.module import OnCpu, compile_on_cpu
from kernel_trees import deep_tree, random_tree
from torch import Tensor

from euryale.kernels import reference
from euryale.kernels.cuda.compile import FOLDER
from euryale.kernels.cuda.module import pointer
from euryale.kernels.cuda.nf4_linear import nf4_linear, num_splits
from euryale.kernels.cuda.tree_attention import tree_attention
from euryale.kernels.tree_split import REACH, TILE

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="CUDA sources run on a CPU through g++")
ORDERS = (0, 1, 2)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, OnCpu]:
    folder = tmp_path_factory.mktemp("cuda_on_cpu")
    sources = [*FOLDER.glob("*.cu"), Path(__file__).parent / "cuda_on_cpu" / "faults.cu"]
    return {source.stem: compile_on_cpu(source, folder) for source in sources}


@pytest.fixture(autouse=True)
def scratch_is_nan() -> Iterator[None]:
    """torch then fills new memory with NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def in_all_orders(module: OnCpu, run: object) -> Tensor:
    """The result of run(), which must be the same in every order of threads."""
    results = []
    for module.order in ORDERS:
        results.append(run())  # type: ignore[operator]
    assert all(torch.equal(results[0], other) for other in results[1:]), "the order of threads changes the result"
    return results[0]


@pytest.mark.parametrize(
    ("kernel", "told"),
    [
        ("leaves_early", "a barrier that not all threads reach at line .*: 40 threads wait, 24 have ended"),
        ("half_a_warp", "a warp's exchange that not all lanes reach"),
        ("writes_too_far", "written behind the dynamic shared memory"),
        ("no_such_kernel", "no kernel of the name no_such_kernel"),
    ],
)
def test_the_fibers_find_a_fault(built: dict[str, OnCpu], kernel: str, told: str) -> None:
    x, out = torch.randn(64), torch.zeros(64)
    with pytest.raises(RuntimeError, match=told):
        built["faults"].launch(kernel, (1, 1, 1), (64, 1, 1), (pointer(x), pointer(out)), shared_bytes=248)


def test_a_missing_barrier_shows_as_a_difference_between_orders(built: dict[str, OnCpu]) -> None:
    x = torch.randn(64)

    def run(kernel: str) -> Tensor:
        out = torch.zeros(64)
        built["faults"].launch(kernel, (1, 1, 1), (64, 1, 1), (pointer(x), pointer(out)))
        return out

    assert torch.equal(in_all_orders(built["faults"], lambda: run("with_barrier")), x.roll(-1))
    with pytest.raises(AssertionError, match="order of threads"):
        in_all_orders(built["faults"], lambda: run("without_barrier"))


CASES = {
    "one node, empty cache": (1, 1, 2, 2, 64, [0]),
    "one node, the first whole tile": (1, 1, 4, 1, 128, [REACH + TILE]),
    "ragged rows, groups of 3": (2, 5, 6, 2, 64, [70, 3]),
    "two blocks of rows, two splits": (1, 27, 8, 2, 64, [101]),
    "groups of 8, wide head": (1, 4, 8, 1, 128, [97]),
    "64 nodes": (1, 64, 1, 1, 64, [97]),
}


def random_case(B: int, N: int, H: int, G: int, D: int, lengths: list[int]) -> tuple[Tensor, ...]:
    """q, k, v in bfloat16, lengths, ancestor words; slots that no query may read are NaN."""
    torch.manual_seed(N * 1000 + D + lengths[0])
    S = max(lengths) + N + 3
    q, k, v = (torch.randn(*shape).bfloat16() for shape in ((B, N, H, D), (B, G, S, D), (B, G, S, D)))
    for b, length in enumerate(lengths):
        k[b, :, length + N :] = v[b, :, length + N :] = float("nan")
    words = reference.pack_ancestors(torch.cat([random_tree(N) for _ in range(B)]))
    return q, k, v, torch.tensor(lengths, dtype=torch.int32), words


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_tree_attention_is_the_specification(built: dict[str, OnCpu], case: tuple) -> None:
    """Shares are rounded to bfloat16 (2^-9 of values up to 4), and so is the result."""
    q, k, v, lengths, words = random_case(*case)
    module, scale = built["tree_attention"], q.shape[-1] ** -0.5
    got = in_all_orders(module, lambda: tree_attention(q, k, v, lengths, words, scale, module=module))
    want = reference.tree_attention(q.float(), k.float(), v.float(), lengths, words, scale)
    assert (got.float() - want).abs().max() < 0.02


@pytest.mark.parametrize("window", [1, 40, 500])
def test_a_window_and_strides_of_an_arena(built: dict[str, OnCpu], window: int) -> None:
    q, k, v, lengths, words = random_case(2, 6, 2, 1, 64, [130, 20])
    arena = torch.full((2, 2, 1, k.shape[2] + 9, 64), float("nan"), dtype=torch.bfloat16)
    arena[0, ..., : k.shape[2], :], arena[1, ..., : k.shape[2], :] = k, v
    fused = torch.randn(2, 6, 4, 64).bfloat16()
    fused[:, :, :2] = q
    arguments = (lengths, words[:1].contiguous(), 0.125, window)
    got = tree_attention(fused[:, :, :2], *arena, *arguments, module=built["tree_attention"])
    want = reference.tree_attention(q.float(), k.float(), v.float(), *arguments)
    assert (got.float() - want).abs().max() < 0.02


def test_every_node_of_a_tree_is_the_token_decoded_alone_bit_for_bit(built: dict[str, OnCpu]) -> None:
    """The path of a node committed, and the node as the only query. The tree is as deep as it may be."""
    length, N, D = 70, 40, 64
    q, k, v, lengths, _ = random_case(1, N, 2, 1, D, [length])
    trees, module = deep_tree(N), built["tree_attention"]
    tree = tree_attention(q, k, v, lengths, reference.pack_ancestors(trees), 0.125, split=64, module=module)
    alone = reference.pack_ancestors(torch.ones(1, 1, 1, dtype=torch.bool))
    for node in (0, 1, 25, 26, REACH, N - 1):
        slots = torch.cat([torch.arange(length), length + trees[0, node].nonzero()[:, 0]])
        keys, values = (torch.nn.functional.pad(x[:, :, slots], (0, 0, 0, 9), value=float("nan")) for x in (k, v))
        position = torch.tensor([len(slots) - 1], dtype=torch.int32)
        got = tree_attention(q[:, node : node + 1], keys, values, position, alone, 0.125, split=64, module=module)
        assert torch.equal(got[0, 0], tree[0, node]), node


@pytest.mark.parametrize("nested", [True, False], ids=["nested", "plain"])
@pytest.mark.parametrize(
    ("M", "num_outputs", "num_inputs", "splits"),
    [(1, 64, 256, 1), (5, 70, 320, 2), (16, 64, 1024, 3), (27, 130, 192, 4)],
)
def test_nf4_is_the_specification(
    built: dict[str, OnCpu], M: int, num_outputs: int, num_inputs: int, splits: int, nested: bool
) -> None:
    """Outputs and rows beyond a tile, splits of unequal size and with nothing to do; the result's rounding, 2^-9."""
    pytest.importorskip("bitsandbytes", reason="the weights are bitsandbytes' own")
    from nf4_weights import random_nf4

    torch.manual_seed(M)
    weight, by_bitsandbytes = random_nf4(num_outputs, num_inputs, nested)
    x, bias, module = torch.randn(M, num_inputs).bfloat16(), torch.randn(num_outputs).bfloat16(), built["nf4_linear"]
    got = in_all_orders(module, lambda: nf4_linear(x, weight, bias, splits, module)).float()
    want = reference.nf4_linear(x, weight, bias).float()
    assert (got - want).norm() < 1e-3 * want.norm()
    truth = x.float() @ by_bitsandbytes.T + bias
    assert (got - truth).norm() < 6e-3 * truth.norm()  # codes and result in bfloat16: 2^-9 each


def test_a_row_does_not_depend_on_the_others(built: dict[str, OnCpu]) -> None:
    """Nor on their number: the three kernels (8, 16 and 32 rows) do the same sums."""
    pytest.importorskip("bitsandbytes", reason="the weights are bitsandbytes' own")
    from nf4_weights import random_nf4

    weight, _ = random_nf4(64, 512, True)
    x, module = torch.randn(32, 512).bfloat16(), built["nf4_linear"]
    together = nf4_linear(x, weight, splits=2, module=module)
    for rows in (1, 8, 9, 16, 17):
        assert torch.equal(nf4_linear(x[:rows].contiguous(), weight, splits=2, module=module), together[:rows])


def test_splits_fill_a_card_and_leave_work_in_each() -> None:
    assert [num_splits(*shape) for shape in ((4096, 4096), (6144, 4096), (28672, 4096), (4096, 14336), (64, 64))] == [
        8, 4, 1, 8, 1,
    ]  # fmt: skip
