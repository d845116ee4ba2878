"""One whole step of decoding over tensors of fixed shape: draft, verify, accept walk, commit, lengths.

Nothing of it is read by the host, and everything that lasts is written in place, so a CUDA graph that holds it can be
replayed (step_graphs.py). n = 1 is plain decoding by the same function. The text is that of the decoder's own step: the
same draft, and the base's own token at every node, greedy or with the same keyed noise.

Letters: B batch, R rows of a shape (1 or B), N nodes, P longest path, C numbers of a state, S slots, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor

from euryale.base.base import Base
from euryale.base.kernel_layer import backend_for
from euryale.base.kernel_llama import KernelLlama, Slots
from euryale.decoding.config import AcceptConfig
from euryale.decoding.device_state import DeviceState, StepKind
from euryale.decoding.device_text import DeviceText
from euryale.decoding.device_verify import DeviceVerify
from euryale.decoding.drafters.interface import Draft, Drafter, DraftInput
from euryale.decoding.record import rank_tokens
from euryale.decoding.token_tables import TokenTables, above_all_bans
from euryale.decoding.tree_pass import TreePass
from euryale.kernels.reference import Walk
from euryale.kernels.registry import choose


class DeviceStep:
    """Everything that does not change from step to step: weights, tree, kernels."""

    def __init__(
        self,
        base: Base,
        tree_pass: TreePass,
        drafter: Drafter,
        whole: Drafter,
        rule: AcceptConfig,
        tables: TokenTables,
    ) -> None:
        """drafter: of trees of one size. whole: the drafter that it is a part of, or itself; this one says what is kept
        of the rows. tables: of the live rows.

        Raises UserError where a backend that is named cannot run one of the kernels.
        """
        assert isinstance(tree_pass.forward, KernelLlama) and tree_pass.attention is not None
        self._forward, self._attention, self._pass = tree_pass.forward, tree_pass.attention, tree_pass
        self._base, self._drafter, self._whole, self._tables = base, drafter, whole, tables
        self.max_path = drafter.max_depth + 1
        backend, num_nodes = base.forward_settings.backend, {"num_nodes": drafter.num_nodes}
        self._accept_walk, self._kv_commit = (
            choose(name, base.device, backend_for(name, backend), **num_nodes).function
            for name in ("accept_walk", "kv_commit")
        )
        self._verify = DeviceVerify(base, rule, tables)
        self._parents: tuple[Tensor, Tensor] | None = None  # of the last shape: as they were, and as int32

    def __call__(self, state: DeviceState, kv_L2BGSE: Tensor, kind: StepKind) -> None:
        """One step of all rows of `state`; rows that are done stay as they are. kv: of these rows."""
        answers = state.answers
        was_done_B = answers.is_done_B.clone()
        text = self._text(state, kv_L2BGSE.shape[4])
        noise = self._verify.noise(state, kind, self.max_path, self._drafter.num_nodes)
        draft_input = self._draft_input(state, kind, text, noise.ranking_BPV)
        draft = self._drafter.propose(draft_input._replace(num_slots=kv_L2BGSE.shape[4]))
        tokens_BN = draft.tokens_BN.clone(
            memory_format=torch.contiguous_format
        )  # a root alone is a view of what the accept walk writes
        bits = self._pass.bits(draft.shape)
        hidden_BNC = self._forward.read_tree(
            tokens_BN, Slots(kv_L2BGSE, answers.lengths_B), bits, self._attention, self._whole.layers
        )
        logits_BNV = self._forward.logits(hidden_BNC[..., : self._base.hidden_size])
        targets = self._verify(state, kind, draft._replace(tokens_BN=tokens_BN), bits.depths_RN, logits_BNV, noise)
        accept_walk: Any = self._accept_walk
        walk = accept_walk(
            tokens_BN, targets.tokens_BN, self._parents_of(draft), bits.words_RNW, answers, self.max_path,
            targets.is_real_BN,
        )  # fmt: skip
        if self.max_path > 1:
            self._kv_commit(kv_L2BGSE.view(-1, *kv_L2BGSE.shape[2:]), walk)
        on_path_BP = torch.arange(self.max_path, device=was_done_B.device) < walk.counts_B[:, None]
        is_lost_BP = on_path_BP & ~targets.is_finite_BN.gather(1, walk.paths_BP.long())
        state.is_broken_B.logical_or_(is_lost_BP.any(-1))
        if text is not None:  # what it writes after a path is overwritten by later steps, or never read
            text.put(walk.starts_B, tokens_BN.gather(1, walk.paths_BP.long()))
        if self._whole.reads_text or any(kind.has_penalty) or kind.has_logprobs:
            self._tell(state, gained(tokens_BN, answers.root_B, walk), hidden_BNC, logits_BNV, walk, kind)
        index_B1C = answers.last_B[:, None, None].expand(-1, 1, hidden_BNC.shape[-1])
        last_BC = hidden_BNC.gather(1, index_B1C)[:, 0]
        state.hidden_BC.copy_(torch.where(was_done_B[:, None], state.hidden_BC, last_BC))
        state.write_report()

    def _text(self, state: DeviceState, num_slots: int) -> DeviceText | None:
        """The texts up to their roots; None where the drafter searches none."""
        if not self._whole.searches_text:
            return None
        text = DeviceText(state.text_BS[:, :num_slots], state.answers.lengths_B)
        text.put(text.lengths_B, state.answers.root_B[:, None])
        return text

    def _tell(
        self,
        state: DeviceState,
        gained_BP: Tensor,
        hidden_BNC: Tensor,
        logits_BNV: Tensor,
        walk: Walk,
        kind: StepKind,
    ) -> None:
        """Brings what was gained to the drafter, the tables and the report."""
        path_BP = walk.paths_BP.long()
        if self._whole.reads_text:
            # Drafters keep what they read, and no mask hides NaN.
            states_BPC = torch.where(state.is_broken_B[:, None, None], 0.0, along(hidden_BNC, path_BP))
            self._whole.read_on_device(states_BPC, gained_BP, walk.starts_B)
        if any(kind.has_penalty):
            is_gained_BP = torch.arange(self.max_path, device=path_BP.device) < walk.counts_B[:, None]
            self._tables.extend_on_device(gained_BP, is_gained_BP, kind.penalties(state.penalties_B3))
        if kind.has_logprobs:
            numbers_BPL = rank_tokens(along(logits_BNV, path_BP), gained_BP, kind.has_top)
            state.logprobs_BTL[:, : self.max_path, : numbers_BPL.shape[-1]].copy_(numbers_BPL)

    def _draft_input(
        self, state: DeviceState, kind: StepKind, text: DeviceText | None, noise_BPV: Tensor | None
    ) -> DraftInput:
        answers, is_drawn_B11 = state.answers, (state.temperature_B > 0)[:, None, None]
        divisor_B11 = torch.where(is_drawn_B11, state.temperature_B[:, None, None], 1.0)
        penalties = kind.penalties(state.penalties_B3)

        def process(scores_BPV: Tensor, ids: Tensor | None, is_next: bool) -> Tensor:
            return above_all_bans(self._tables.guess(scores_BPV.float(), ids, penalties))

        return DraftInput(
            state.hidden_BC, answers.root_B, noise_BPV, divisor_B11,
            process=process if kind.is_processed else None, draws=self._verify.draws(kind), text=text,
            lengths_B=answers.lengths_B,
        )  # fmt: skip

    def _parents_of(self, draft: Draft) -> Tensor:
        """int32; made once for a shape that comes again, which is known by identity."""
        parents_RN = draft.shape.parents_RN
        if self._parents is None or self._parents[0] is not parents_RN:
            self._parents = parents_RN, parents_RN.int().contiguous()
        return self._parents[1]


def gained(tokens_BN: Tensor, root_B: Tensor, walk: Walk) -> Tensor:
    """The token after each node of each row's path, [B, P]; root_B follows the last one.

    Places after a path repeat the root with which it began, which is in the text.
    """
    path_tokens_BP = tokens_BN.gather(1, walk.paths_BP.long())
    next_BP = torch.cat([path_tokens_BP[:, 1:], path_tokens_BP[:, :1]], 1)
    return next_BP.scatter(1, (walk.counts_B[:, None] - 1).clamp(min=0).long(), root_B[:, None])


def along(values_BNx: Tensor, path_BP: Tensor) -> Tensor:
    """What belongs to the nodes of each row's path, [B, P, ...]."""
    return values_BNx[torch.arange(len(path_BP), device=path_BP.device)[:, None], path_BP]
