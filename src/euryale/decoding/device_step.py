"""One whole step of decoding over tensors of fixed shape: draft, verify, accept walk, commit, lengths.

Nothing of it is read by the host, and everything that lasts is written in place, so a CUDA graph that holds it can be
replayed (step_graphs.py). n = 1 is plain decoding by the same function. The text is that of the decoder's own step: the
same draft, and the base's own token at every node, greedy or with the same keyed noise.

Letters: B batch, R rows of a shape (1 or B), N nodes, P longest path, C numbers of a state, S slots, V vocabulary,
T tokens that a text gains at most.
"""

from typing import Any

import torch
from torch import Tensor

from euryale.base.base import Base
from euryale.base.kernel_layer import backend_for
from euryale.base.kernel_llama import KernelLlama, Slots
from euryale.decoding.device_state import DeviceState, StepKind
from euryale.decoding.device_text import DeviceText
from euryale.decoding.drafters.interface import Draft, Drafter, DraftInput
from euryale.decoding.record import rank_tokens
from euryale.decoding.sampling_batch import SamplingBatch, warp
from euryale.decoding.token_tables import TokenTables, above_all_bans
from euryale.decoding.tree_pass import TreePass
from euryale.kernels.reference import Walk
from euryale.kernels.reference_small import gumbel_noise
from euryale.kernels.registry import choose


class DeviceStep:
    """Everything that does not change from step to step: weights, tree, kernels."""

    def __init__(
        self, base: Base, tree_pass: TreePass, drafter: Drafter, is_coupled: bool, tables: TokenTables
    ) -> None:
        """is_coupled: candidates are ranked with the noise that the base draws with. tables: of the live rows.

        Raises UserError where a backend that is named cannot run one of the kernels.
        """
        assert isinstance(tree_pass.forward, KernelLlama) and tree_pass.attention is not None
        self._forward, self._attention, self._pass = tree_pass.forward, tree_pass.attention, tree_pass
        self._base, self._drafter, self._is_coupled, self._tables = base, drafter, is_coupled, tables
        self.max_path = drafter.max_depth + 1
        backend, num_nodes = base.forward_settings.backend, {"num_nodes": drafter.num_nodes}
        kernels = {"draw": {"dtype": base.dtype}, "accept_walk": num_nodes, "kv_commit": num_nodes}
        self._draw, self._accept_walk, self._kv_commit = (
            choose(name, base.device, backend_for(name, backend), **sizes).function  # type: ignore[arg-type]
            for name, sizes in kernels.items()
        )
        self._parents: tuple[Tensor, Tensor] | None = None  # of the last shape: as they were, and as int32

    def __call__(self, state: DeviceState, kv_L2BGSE: Tensor, kind: StepKind) -> None:
        """One step of all rows of `state`; rows that are done stay as they are. kv: of these rows."""
        answers = state.answers
        was_done_B = answers.is_done_B.clone()
        text = self._text(state, kv_L2BGSE.shape[4])
        draft = self._drafter.propose(self._draft_input(state, kind, text, kv_L2BGSE.shape[4]))
        tokens_BN = draft.tokens_BN.clone(
            memory_format=torch.contiguous_format
        )  # a root alone is a view of what the accept walk writes
        bits = self._pass.bits(draft.shape)
        hidden_BNC = self._forward.read_tree(
            tokens_BN, Slots(kv_L2BGSE, answers.lengths_B), bits, self._attention, self._drafter.layers
        )
        logits_BNV = self._forward.logits(hidden_BNC[..., : self._base.hidden_size])
        targets_BN, is_finite_BN = self._targets(state, logits_BNV, draft, kind)
        accept_walk: Any = self._accept_walk
        walk = accept_walk(
            tokens_BN, targets_BN, self._parents_of(draft), bits.words_RNW, answers, self.max_path,
            self._is_real(draft, state, kind),
        )  # fmt: skip
        if self.max_path > 1:
            self._kv_commit(kv_L2BGSE.view(-1, *kv_L2BGSE.shape[2:]), walk)
        on_path_BP = torch.arange(self.max_path, device=was_done_B.device) < walk.counts_B[:, None]
        is_lost_BP = on_path_BP & ~is_finite_BN.gather(1, walk.paths_BP.long())
        state.is_broken_B.logical_or_(is_lost_BP.any(-1))
        if text is not None:  # what it writes after a path is overwritten by later steps, or never read
            text.put(walk.starts_B, tokens_BN.gather(1, walk.paths_BP.long()))
        if self._drafter.reads_text or any(kind.has_penalty) or kind.has_logprobs:
            self._tell(state, gained(tokens_BN, answers.root_B, walk), hidden_BNC, logits_BNV, walk, kind)
        index_B1C = answers.last_B[:, None, None].expand(-1, 1, hidden_BNC.shape[-1])
        last_BC = hidden_BNC.gather(1, index_B1C)[:, 0]
        state.hidden_BC.copy_(torch.where(was_done_B[:, None], state.hidden_BC, last_BC))
        state.write_report()

    def _text(self, state: DeviceState, num_slots: int) -> DeviceText | None:
        """The texts up to their roots; None where the drafter searches none."""
        if not self._drafter.searches_text:
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
        if self._drafter.reads_text:
            # Drafters keep what they read, and no mask hides NaN.
            states_BPC = torch.where(state.is_broken_B[:, None, None], 0.0, along(hidden_BNC, path_BP))
            self._drafter.read_on_device(states_BPC, gained_BP, walk.starts_B)
        if any(kind.has_penalty):
            is_gained_BP = torch.arange(self.max_path, device=path_BP.device) < walk.counts_B[:, None]
            self._tables.extend_on_device(gained_BP, is_gained_BP, kind.penalties(state.penalties_B3))
        if kind.has_logprobs:
            numbers_BPL = rank_tokens(along(logits_BNV, path_BP), gained_BP, kind.has_top)
            state.logprobs_BTL[..., : numbers_BPL.shape[-1]].copy_(numbers_BPL)

    def _draft_input(self, state: DeviceState, kind: StepKind, text: DeviceText | None, num_slots: int) -> DraftInput:
        answers, noise_BPV = state.answers, None
        is_drawn_B11 = (state.temperature_B > 0)[:, None, None]
        if kind.asked.has_sampled and self._is_coupled and self.max_path > 1:
            B, depths = len(answers.root_B), self.max_path - 1
            positions_BP = answers.lengths_B[:, None] + torch.arange(1, depths + 1, device=is_drawn_B11.device)
            seeds_BP = state.seeds_B[:, None].expand(B, depths)
            noise_MV = gumbel_noise(seeds_BP.flatten(), positions_BP.flatten(), self._base.vocab_size)
            noise_BPV = torch.where(is_drawn_B11, noise_MV.unflatten(0, (B, depths)), 0.0)
        divisor_B11 = torch.where(is_drawn_B11, state.temperature_B[:, None, None], 1.0)
        penalties = kind.penalties(state.penalties_B3)

        def process(scores_BPV: Tensor, ids: Tensor | None, is_next: bool) -> Tensor:
            return above_all_bans(self._tables.guess(scores_BPV.float(), ids, penalties))

        return DraftInput(
            state.hidden_BC, answers.root_B, noise_BPV, divisor_B11,
            process=process if kind.is_processed else None, text=text, lengths_B=answers.lengths_B,
            num_slots=num_slots,
        )  # fmt: skip

    def _targets(self, state: DeviceState, logits_BNV: Tensor, draft: Draft, kind: StepKind) -> tuple[Tensor, Tensor]:
        """The base's own token after each node, and whether its score is finite."""
        B, N = logits_BNV.shape[:2]
        scores_BNV, temperature_B = logits_BNV, state.temperature_B
        if kind.is_processed:
            penalties = kind.penalties(state.penalties_B3)
            is_early_BN = None
            if kind.has_least:
                missing_B1 = (state.least_B - state.answers.written_B)[:, None]
                is_early_BN = self._pass.bits(draft.shape).depths_RN < missing_B1
            scores_BNV = self._tables.apply(
                scores_BNV.float(), draft.tokens_BN, draft.shape.ancestors_RNN, penalties, is_early_BN
            )
        if kind.asked.has_filters:
            settings = SamplingBatch(kind.asked, state.columns_B5)
            scores_BNV = torch.where(settings.is_sampled_B11, warp(scores_BNV, settings), scores_BNV.float())
            temperature_B = (temperature_B > 0).float()  # it has been divided by
        positions_BN = state.answers.lengths_B[:, None] + 1 + self._pass.bits(draft.shape).depths_RN
        rows = (temperature_B[:, None].expand(B, N), state.seeds_B[:, None].expand(B, N), positions_BN)
        draw: Any = self._draw
        targets_BN = draw(scores_BNV.flatten(0, 1).contiguous(), *(x.reshape(-1).contiguous() for x in rows)).view(B, N)
        return targets_BN, scores_BNV.gather(-1, targets_BN[..., None])[..., 0].isfinite()

    def _parents_of(self, draft: Draft) -> Tensor:
        """int32; made once for a shape that comes again, which is known by identity."""
        parents_RN = draft.shape.parents_RN
        if self._parents is None or self._parents[0] is not parents_RN:
            self._parents = parents_RN, parents_RN.int().contiguous()
        return self._parents[1]

    @staticmethod
    def _is_real(draft: Draft, state: DeviceState, kind: StepKind) -> Tensor | None:
        is_real_BN = draft.is_real_BN
        if kind.has_undrafted:
            drafts_BN = state.has_drafts_B[:, None].expand_as(draft.tokens_BN)
            is_real_BN = drafts_BN if is_real_BN is None else is_real_BN & drafts_BN
        return None if is_real_BN is None else is_real_BN.contiguous()


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
