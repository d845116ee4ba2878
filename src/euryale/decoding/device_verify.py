"""What the base makes of a draft in a step on the device: its own token after each node, and what may be accepted.

The accept walk, a kernel, goes down while a node carries its parent's token: that is the rule `exact`. For the other
rules (accept.py) it is given tokens that lead it down the path which the rule has chosen.

Letters: B batch, R rows of a shape (1 or B), N nodes, P places of a path, M rows of a draw, V vocabulary.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from euryale.base.base import Base
from euryale.base.kernel_layer import backend_for
from euryale.decoding.accept import VerifyOutput, verify
from euryale.decoding.config import AcceptConfig
from euryale.decoding.device_state import DeviceState, StepKind
from euryale.decoding.drafters.interface import Draft
from euryale.decoding.random_streams import StepNoise
from euryale.decoding.sampling_batch import SamplingBatch, warp
from euryale.decoding.token_tables import TokenTables
from euryale.kernels.reference_small import gumbel_noise
from euryale.kernels.registry import choose


class Targets(NamedTuple):
    """What the accept walk goes by."""

    tokens_BN: Tensor  # that follow each node
    is_finite_BN: Tensor  # whether the score of the base's own token is finite
    is_real_BN: Tensor | None  # False: the node cannot be accepted; None: all can


class DeviceVerify:
    """One rule over the rows of a decoder."""

    def __init__(self, base: Base, rule: AcceptConfig, tables: TokenTables) -> None:
        """tables: of the live rows. Raises UserError where a backend that is named cannot draw."""
        backend = backend_for("draw", base.forward_settings.backend)
        self._draw: Any = choose("draw", base.device, backend, dtype=base.dtype).function
        self._rule, self._tables, self._vocab_size = rule, tables, base.vocab_size

    def noise(self, state: DeviceState, kind: StepKind, max_path: int, num_nodes: int) -> StepNoise:
        """As Streams.at; the noise that `exact` draws with is made where it is added, by the kernel."""
        is_exact, is_rejection = self._rule.name == "exact", self._rule.name == "rejection"
        num_places = max_path - 1 if is_exact else max_path
        if not kind.asked.has_sampled or not num_places or (is_exact and not self._rule.coupled):
            return StepNoise(None, None, None)
        places_P = torch.arange(1, num_places + 1, device=state.seeds_B.device)
        positions_BP = state.answers.lengths_B[:, None] + places_P

        def of(seeds_B: Tensor, width: int) -> Tensor:
            seeds_BP = seeds_B[:, None].expand_as(positions_BP)
            return gumbel_noise(seeds_BP.flatten(), positions_BP.flatten(), width).unflatten(0, positions_BP.shape)

        drawing_BPV, uniform_BPN = of(state.seeds_B, self._vocab_size), None
        ranking_BPV = drawing_BPV if self._rule.coupled else None
        if is_rejection:
            drafting_B, uniform_B = state.stream_seeds_B2.unbind(1)
            ranking_BPV, uniform_BPN = of(drafting_B, self._vocab_size), of(uniform_B, num_nodes)
        if ranking_BPV is not None:  # what is drawn without noise is ranked without noise
            ranking_BPV = torch.where((state.temperature_B > 0)[:, None, None], ranking_BPV, 0.0)
        return StepNoise(drawing_BPV, ranking_BPV, uniform_BPN)

    def draws(self, kind: StepKind) -> bool:
        """As DraftInput.draws."""
        return self._rule.name == "rejection" and kind.asked.has_sampled

    def __call__(
        self,
        state: DeviceState,
        kind: StepKind,
        draft: Draft,
        depths_RN: Tensor,
        logits_BNV: Tensor,
        noise: StepNoise,
    ) -> Targets:
        """depths_RN: int32, of the draft's shape. logits_BNV: the base's own."""
        scores_BNV = self._processed(state, kind, draft, depths_RN, logits_BNV)
        if kind.has_undrafted:
            drafts_BN = state.has_drafts_B[:, None].expand_as(draft.tokens_BN)
            is_real_BN = drafts_BN if draft.is_real_BN is None else draft.is_real_BN & drafts_BN
            draft = draft._replace(is_real_BN=is_real_BN)
        if self._rule.name != "exact" and kind.asked.has_sampled:
            settings = SamplingBatch(kind.asked, state.columns_B5)
            return lead(verify(self._rule, draft, scores_BNV, settings, noise), draft)
        targets_BN = self._drawn(state, kind, scores_BNV, depths_RN)
        is_finite_BN = scores_BNV.gather(-1, targets_BN[..., None])[..., 0].isfinite()
        return Targets(targets_BN, is_finite_BN, None if draft.is_real_BN is None else draft.is_real_BN.contiguous())

    def _processed(
        self, state: DeviceState, kind: StepKind, draft: Draft, depths_RN: Tensor, logits_BNV: Tensor
    ) -> Tensor:
        if not kind.is_processed:
            return logits_BNV
        is_early_BN = None
        if kind.has_least:
            is_early_BN = depths_RN < (state.least_B - state.answers.written_B)[:, None]
        penalties, ancestors_RNN = kind.penalties(state.penalties_B3), draft.shape.ancestors_RNN
        return self._tables.apply(logits_BNV.float(), draft.tokens_BN, ancestors_RNN, penalties, is_early_BN)

    def _drawn(self, state: DeviceState, kind: StepKind, scores_BNV: Tensor, depths_RN: Tensor) -> Tensor:
        B, N = scores_BNV.shape[:2]
        temperature_B = state.temperature_B
        if kind.asked.has_filters:
            settings = SamplingBatch(kind.asked, state.columns_B5)
            scores_BNV = torch.where(settings.is_sampled_B11, warp(scores_BNV, settings), scores_BNV.float())
            temperature_B = (temperature_B > 0).float()  # it has been divided by
        positions_BN = state.answers.lengths_B[:, None] + 1 + depths_RN
        rows = (temperature_B[:, None].expand(B, N), state.seeds_B[:, None].expand(B, N), positions_BN)
        rows_M = (x.reshape(-1).contiguous() for x in rows)
        targets_BN: Tensor = self._draw(scores_BNV.flatten(0, 1).contiguous(), *rows_M).view(B, N)
        return targets_BN


def lead(output: VerifyOutput, draft: Draft) -> Targets:
    """Targets by which the accept walk accepts what a rule has accepted, and nothing else."""
    B, N = draft.tokens_BN.shape
    parents_BN = draft.shape.parents_RN.expand(B, N)
    # After a node of the path comes the path's next one; what leads nowhere is written beside.
    is_next_BN = output.is_accepted_BN & (torch.arange(N, device=parents_BN.device) > 0)
    beside_BN = torch.nn.functional.pad(output.targets_BN, (0, 1))
    targets_BN = beside_BN.scatter(1, torch.where(is_next_BN, parents_BN, N), draft.tokens_BN)[:, :N]
    return Targets(targets_BN.contiguous(), output.is_finite_BN, output.is_accepted_BN.contiguous())
