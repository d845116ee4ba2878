"""Specification of every kernel in plain torch: short, slow, and what the tests compare the fast ones with.

All functions run on any device without a value read by the host, so the reference is a working backend as well. Sums
are taken in float32 whatever the inputs are.

Letters: B batch, N nodes of a tree, R rows of a tree (1 when all rows of the batch share it, else B), H query heads,
G key/value heads, S slots of the cache, D head width, L layers, M rows of a matrix product, I inputs, O outputs,
V vocabulary, K best, P longest path.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from euryale.kernels.nf4_weight import Nf4Weight

WORDS = 2  # 32-bit words of a node's ancestor mask; more nodes than 64 take more, and only the specification
MASK32 = 0xFFFFFFFF


def pack_ancestors(ancestors_RNN: Tensor) -> Tensor:
    """Bool [R, N, N] -> int32 [R, N, words]: bit m % 32 of word m // 32 says that node m is on the path to the node."""
    N = ancestors_RNN.shape[-1]
    num_words = max(WORDS, -(-N // 32))
    bits = torch.nn.functional.pad(ancestors_RNN.long(), (0, 32 * num_words - N)).unflatten(-1, (num_words, 32))
    words = (bits << torch.arange(32, device=bits.device)).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).int()


def unpack_ancestors(words_RNW: Tensor) -> Tensor:
    """The inverse of pack_ancestors: bool [R, N, N]."""
    bits = words_RNW[..., None] >> torch.arange(32, device=words_RNW.device) & 1
    return bits.flatten(-2)[..., : words_RNW.shape[1]].bool()


def tree_attention(
    q_BNHD: Tensor,
    k_BGSD: Tensor,
    v_BGSD: Tensor,
    lengths_B: Tensor,
    ancestors_RNW: Tensor,
    scale: float,
    window: int | None = None,
) -> Tensor:
    """Softmax attention of N nodes over lengths_B committed slots and over their own ancestors; [B, N, H, D].

    Node m lies in slot lengths_B + m, at position lengths_B + its depth. What lies in later slots is not read, and
    may be NaN. `window`: a query sees the keys of the last `window` positions, its own included; None: all.
    """
    B, N, H, D = q_BNHD.shape
    G, S = k_BGSD.shape[1:3]
    seen_RNN = unpack_ancestors(ancestors_RNW)
    depths_BN = (seen_RNN.sum(-1) - 1).expand(B, N)
    slots_BS = torch.arange(S, device=q_BNHD.device).expand(B, S)
    node_BS = slots_BS - lengths_B[:, None]
    index_BNS = node_BS.clamp(0, N - 1)[:, None].expand(B, N, S)
    sees_BNS = seen_RNN.expand(B, N, N).gather(2, index_BNS) & ((node_BS >= 0) & (node_BS < N))[:, None]
    sees_BNS = sees_BNS | (node_BS < 0)[:, None]
    if window is not None:
        positions_BS = torch.where(node_BS < 0, slots_BS, lengths_B[:, None] + depths_BN.gather(1, index_BNS[:, 0]))
        oldest_BN = lengths_B[:, None] + depths_BN - window
        sees_BNS = sees_BNS & (positions_BS[:, None] > oldest_BN[..., None])
    is_written_BS = (node_BS < N)[:, None, :, None]
    k_BGSD, v_BGSD = (x.float().masked_fill(~is_written_BS, 0.0) for x in (k_BGSD, v_BGSD))
    q_BGRND = q_BNHD.float().unflatten(2, (G, H // G)).permute(0, 2, 3, 1, 4)
    scores = q_BGRND @ k_BGSD[:, :, None].mT * scale
    shares = scores.masked_fill(~sees_BNS[:, None, None], -torch.inf).softmax(-1)
    return (shares @ v_BGSD[:, :, None]).permute(0, 3, 1, 2, 4).reshape(B, N, H, D).to(q_BNHD.dtype)


def nf4_linear(x_MI: Tensor, weight: Nf4Weight, bias_O: Tensor | None = None) -> Tensor:
    """x W^T + b [M, O] in x's dtype, with the codebook rounded to x's dtype and everything after that in float32.

    So a weight is off by half a unit of the codebook's last place; bitsandbytes rounds the product of code and absmax
    to 16 bits instead, which is off by the same and by the rounding of the code.
    """
    y_MO = x_MI.float() @ weight.matrix(x_MI.dtype).T
    return (y_MO if bias_O is None else y_MO + bias_O.float()).to(x_MI.dtype)


class Answers(NamedTuple):
    """What a row has said and when it ends; every tensor is written in place by accept_walk."""

    lengths_B: Tensor  # int32: committed slots
    root_B: Tensor  # int64: the token after them, decided but not in the cache
    last_B: Tensor  # int64: the node accepted last, whose hidden state the heads read
    ring_BT: Tensor  # int64: answer token i lies at i % T, T >= max_path; the host reads later
    written_B: Tensor  # int32: answer tokens so far
    limit_B: Tensor  # int32: and at most
    ends_BE: Tensor  # int64: ids that end the answer; -1 is none
    is_done_B: Tensor  # bool: a finished row stays as it is


class Walk(NamedTuple):
    """The accepted path of every row, as kv_commit takes it."""

    paths_BP: Tensor  # int32: nodes from the root down, then 0
    starts_B: Tensor  # int32: the row's length before the walk
    counts_B: Tensor  # int32: accepted nodes; 0 for a row that was done


def accept_walk(
    tokens_BN: Tensor,
    targets_BN: Tensor,
    parents_RN: Tensor,
    ancestors_RNW: Tensor,
    answers: Answers,
    max_path: int,
    is_real_BN: Tensor | None = None,
) -> Walk:
    """Accepts the path on which every node carries its parent's target; appends the tokens it gained to the answers.

    targets_BN: the base's own token after each node, greedy or drawn with keyed noise (draw). A path has at most
    max_path nodes. An accepted path that holds an end, or more than the row's limit, is committed whole: the row is
    done and its later slots are never read.
    """
    B, N = tokens_BN.shape
    assert answers.ring_BT.shape[1] >= max_path, (answers.ring_BT.shape, max_path)
    parents_BN = parents_RN.long().expand(B, N)
    is_miss_BN = tokens_BN != targets_BN.gather(1, parents_BN)
    if is_real_BN is not None:
        is_miss_BN = is_miss_BN | ~is_real_BN
    is_miss_BN[:, 0].fill_(False)
    seen_BNN = unpack_ancestors(ancestors_RNW).expand(B, N, N)
    is_accepted_BN = ~(seen_BNN & is_miss_BN[:, None]).any(-1)
    counts_B = is_accepted_BN.sum(-1)
    nodes = torch.arange(N, device=tokens_BN.device)
    order_BN = torch.where(is_accepted_BN, nodes, N).sort(-1).values  # ascending nodes: from the root down
    order_BP = torch.nn.functional.pad(order_BN, (0, max_path), value=N)[:, :max_path]
    is_path_BP = order_BP < N
    paths_BP = torch.where(is_path_BP, order_BP, 0)
    last_B = is_accepted_BN.long().mul(nodes).amax(-1)
    root_B = targets_BN.gather(1, last_B[:, None])[:, 0]
    gained_BP = torch.nn.functional.pad(tokens_BN.gather(1, paths_BP)[:, 1:], (0, 1))
    gained_BP = gained_BP.scatter(1, (counts_B - 1)[:, None], root_B[:, None].to(gained_BP.dtype))
    was_done_B = answers.is_done_B.clone()
    index_BP = torch.arange(max_path, device=tokens_BN.device).expand(B, max_path)
    is_end_BP = (gained_BP[..., None] == answers.ends_BE[:, None]).any(-1)
    is_end_BP = is_end_BP | (answers.written_B[:, None] + index_BP + 1 >= answers.limit_B[:, None])
    ended_before_BP = (is_end_BP & is_path_BP).long().cumsum(-1) - is_end_BP.long() > 0
    writes_BP = is_path_BP & ~ended_before_BP & ~was_done_B[:, None]
    T = answers.ring_BT.shape[1]
    at_BP = (answers.written_B[:, None] + index_BP) % T
    kept_BP = torch.where(writes_BP, gained_BP, answers.ring_BT.gather(1, at_BP))
    answers.ring_BT.scatter_(1, at_BP, kept_BP.to(answers.ring_BT.dtype))
    starts_B, counts_B = answers.lengths_B.clone(), torch.where(was_done_B, 0, counts_B).int()
    answers.lengths_B.add_(counts_B)
    answers.written_B.add_(writes_BP.sum(-1).int())
    answers.root_B.copy_(torch.where(was_done_B, answers.root_B, root_B))
    answers.last_B.copy_(torch.where(was_done_B, answers.last_B, last_B))
    answers.is_done_B.logical_or_((writes_BP & is_end_BP).any(-1))
    return Walk(paths_BP.int(), starts_B, counts_B)


def kv_commit(kv_LBGSD: Tensor, walk: Walk) -> None:
    """Moves the accepted nodes of all layers to the front, in place: slot start + i takes slot start + path[i].

    kv_LBGSD: keys and values of all layers, [2 L, B, G, S, D].
    """
    P = walk.paths_BP.shape[1]
    index_P = torch.arange(P, device=kv_LBGSD.device)
    is_kept_BP = index_P < walk.counts_B[:, None]
    targets_BP = (walk.starts_B[:, None] + index_P).clamp(max=kv_LBGSD.shape[3] - 1)
    sources_BP = torch.where(is_kept_BP, walk.starts_B[:, None] + walk.paths_BP, targets_BP).long()
    rows_B1 = torch.arange(len(walk.paths_BP), device=kv_LBGSD.device)[:, None]
    kv_LBGSD[:, rows_B1, :, targets_BP.long()] = kv_LBGSD[:, rows_B1, :, sources_BP]
