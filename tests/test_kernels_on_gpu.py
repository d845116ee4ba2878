"""Kernels on a GPU: every backend against its specification, exactness of trees in bfloat16, and graph capture."""

import pytest
import torch
from kernel_trees import deep_tree

from euryale.errors import UserError
from euryale.evaluation.config import KernelShapes
from euryale.evaluation.kernel_cases import cases
from euryale.kernels import reference
from euryale.kernels.registry import KERNELS, find

pytestmark = pytest.mark.gpu
PAIRS = [(kernel, x.backend) for kernel, all_of_it in KERNELS.items() for x in all_of_it if x.backend != "torch"]


def tensors(value: object) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for part in value for t in tensors(part)] if isinstance(value, tuple) else []


@pytest.mark.parametrize("num_nodes", [1, 5, 32])
@pytest.mark.parametrize(("kernel", "backend"), PAIRS)
def test_a_backend_is_the_specification(kernel: str, backend: str, num_nodes: int) -> None:
    """In bfloat16; ids and copies are equal, numbers differ by roundings of 2^-9."""
    device = torch.device("cuda")
    shapes = KernelShapes(context=300, hidden=1024, inner=1024, layers=2, vocab=5000)
    (case,) = cases(shapes, num_nodes, torch.bfloat16, device, [kernel])
    expected, found = [], []
    for name, into in (("torch", expected), (backend, found)):
        arguments = case.make()
        into += tensors((find(kernel, device, name, **case.sizes).function(*arguments), *arguments))
    for one, other in zip(found, expected, strict=True):
        if one.is_floating_point():
            assert (one.double() - other.double()).norm() <= 0.01 * other.double().norm()
        else:
            assert torch.equal(one, other)


@pytest.mark.parametrize("backend", ["triton", "cuda"])
@pytest.mark.parametrize("D", [64, 128])
def test_every_node_of_a_tree_is_the_token_decoded_alone_bit_for_bit(backend: str, D: int) -> None:
    length, N, H, G = 717, 64, 32, 8
    attend = find("tree_attention", torch.device("cuda"), backend, dtype=torch.bfloat16, head_size=D).function
    torch.manual_seed(0)
    q = torch.randn(1, N, H, D, device="cuda").bfloat16()
    k, v = (torch.randn(1, G, length + N, D, device="cuda").bfloat16() for _ in range(2))
    trees = deep_tree(N)
    words = reference.pack_ancestors(trees).cuda()
    lengths = torch.tensor([length], dtype=torch.int32, device="cuda")
    tree = attend(q, k, v, lengths, words, D**-0.5, split=64)
    alone = reference.pack_ancestors(torch.ones(1, 1, 1, dtype=torch.bool)).cuda()
    for node in range(0, N, 3):
        slots = torch.cat([torch.arange(length), length + trees[0, node].nonzero()[:, 0]]).cuda()
        position = torch.tensor([len(slots) - 1], dtype=torch.int32, device="cuda")
        got = attend(q[:, node : node + 1], k[:, :, slots], v[:, :, slots], position, alone, D**-0.5, split=64)
        assert torch.equal(got[0, 0], tree[0, node]), node


@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_a_row_of_the_4_bit_product_does_not_depend_on_the_others(backend: str) -> None:
    device = torch.device("cuda")
    (case,) = cases(KernelShapes(hidden=1024, inner=1024), 16, torch.bfloat16, device, ["nf4_linear"])
    multiply = find("nf4_linear", device, backend, **case.sizes).function
    x, weight = case.make()
    together = multiply(x, weight)
    for rows in (1, 7, 15):
        assert torch.equal(multiply(x[:rows].contiguous(), weight), together[:rows])


@pytest.mark.parametrize(("kernel", "backend"), PAIRS)
def test_a_graph_replays_what_was_captured(kernel: str, backend: str) -> None:
    """Two replays on fresh state give what two calls give."""
    device = torch.device("cuda")
    shapes = KernelShapes(context=100, hidden=1024, inner=1024, layers=2, vocab=5000)
    (case,) = cases(shapes, 16, torch.bfloat16, device, [kernel])
    function = find(kernel, device, backend, **case.sizes).function
    function(*case.make())  # compiles and loads: neither can be captured
    arguments, expected = case.make(), case.make()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function(*arguments)
    for one, other in zip(tensors(arguments), tensors(case.make()), strict=True):
        one.copy_(other)
    for _ in range(2):
        graph.replay()
        function(*expected)
    torch.cuda.synchronize()
    for one, other in zip(tensors(arguments), tensors(expected), strict=True):
        assert torch.equal(one, other)


def test_a_card_is_asked_for_its_capability() -> None:
    with pytest.raises(UserError, match="head_size must be 64 or 128; got 96. Use backend=torch"):
        find("tree_attention", torch.device("cuda"), "cuda", dtype=torch.bfloat16, head_size=96)
