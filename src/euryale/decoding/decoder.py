"""What happens between one token and the next? Draft, verify, accept, commit; and rows come and go in between.

The prompt's last token is the first root, so prefill covers the tokens before it and every emitted token comes
from a step.

Letters: B batch, N nodes, P depths below the root plus one, D width, V vocabulary, T prompt tokens.
"""

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from euryale.base.base import Base
from euryale.base.nan_check import first_not_finite
from euryale.decoding.accept import AcceptConfig
from euryale.decoding.drafters.interface import Draft, Drafter, Known
from euryale.decoding.kv_cache import Arena, TreeMask
from euryale.decoding.mixture import Judged, Mixture
from euryale.decoding.random_streams import StepNoise, Streams
from euryale.decoding.sampling import Sampling

_PREFILL_CHUNK = 512  # prompt tokens a forward: bounds the memory of long prompts


class Decoder:
    """The state of the live rows: arena, roots, and the hidden states that the drafter reads.

    Everything that keeps something of a row (arena, noise, processors, drafter) has the same two verbs: `admit` puts
    new rows in the place of ended ones or behind the last; `retire` lets the last row take the place of an ended one.
    """

    def __init__(
        self,
        base: Base,
        drafter: Drafter,
        sampling: Sampling,
        num_rows: int,
        num_slots: int,
        seconds: dict[str, float],
        rule: AcceptConfig | None = None,
    ) -> None:
        """num_rows: that live at once, at most; none does yet. num_slots: the longest row, plus the nodes of a tree.

        `seconds` collects the time of each part of a step. rule: default `exact`.
        """
        self.base = base
        self.drafter = drafter.begin(num_rows, num_slots)
        self.sampling = sampling
        self.seconds = seconds
        self._forward = base.forward()
        self._forward.reserve(num_slots)
        self.arena = Arena(base.model.config, num_rows, num_slots, base.dtype, base.device)
        self.arena.lengths.clear()
        self.broken: dict[int, str] = {}  # rows of the last step that nothing can follow, and why
        self.ids: list[list[int]] = []  # prompt and answer so far of each live row; the last is the root
        device = base.device
        self._targets: list[list[int]] = []  # what was chosen behind each node of a row's last step
        self.num_nodes = 1  # of the last step
        self._num_slots = num_slots
        self._masks: dict[int, TreeMask] = {}  # by number of nodes: a drafter has few
        self.rule = rule or AcceptConfig()
        self._streams = Streams(num_rows, self.rule, base.vocab_size, drafter.num_nodes, device)
        self._mixture = Mixture(self.rule, num_rows, base.vocab_size, device)
        self._root_B = torch.zeros(0, dtype=torch.long, device=device)
        self._layers = drafter.layers
        num_numbers = base.hidden_size * (1 + len(self._layers))
        self._hidden_BD = torch.zeros(0, num_numbers, dtype=base.dtype, device=device)

    @torch.inference_mode()
    def admit(
        self,
        row: int,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        end_ids: Sequence[Sequence[int]] | None = None,
        samplings: Sequence[Sampling] | None = None,
    ) -> None:
        """Reads prompts into `row` and the rows behind it, which have ended or are the next behind the last.

        All of a prompt but its last token is committed; that becomes the root.
        end_ids: for each row the tokens that would end its answer; only `min_new_tokens` asks for them.
        samplings: of each row; None: the decoder's own for all.
        """
        start = time.perf_counter()
        behind = row + len(prompts)
        samplings = samplings or [self.sampling] * len(prompts)
        self._streams.admit(row, seeds, [sampling.temperature for sampling in samplings])
        texts = zip(samplings, prompts, end_ids or [()] * len(prompts), strict=True)
        for place, text in enumerate(texts, start=row):
            self._mixture.admit(place, *text)
            self.drafter.admit(place)
        hidden_BD = self._prefill(self.arena.part(row, len(prompts)), prompts, row)
        self.arena.admit(row, [len(prompt) - 1 for prompt in prompts])
        self.ids[row:behind] = [list(prompt) for prompt in prompts]
        self._targets[row:behind] = [[] for _ in prompts]
        root_B = torch.tensor([prompt[-1] for prompt in prompts], device=self.base.device)
        self._root_B = torch.cat([self._root_B[:row], root_B, self._root_B[behind:]])
        self._hidden_BD = torch.cat([self._hidden_BD[:row], hidden_BD, self._hidden_BD[behind:]])
        self.seconds["prefill"] += time.perf_counter() - start

    @torch.inference_mode()
    def retire(self, row: int) -> None:
        """The row has ended; the last one goes on in its place."""
        for keeper in (self.arena, self.drafter, self._streams, self._mixture):
            keeper.retire(row)
        for lists in (self.ids, self._targets):
            lists[row] = lists[-1]
            lists.pop()
        for rows_BX in (self._root_B, self._hidden_BD):
            rows_BX[row] = rows_BX[-1]
        self._root_B, self._hidden_BD = self._root_B[:-1], self._hidden_BD[:-1]

    def _prefill(self, part: Arena, prompts: Sequence[Sequence[int]], first_row: int) -> Tensor:
        """The hidden states [B, D] at each prompt's last token but one; zeros where there is none.

        Rows of different lengths go through together, padded at the end: the padding lies behind each row's
        committed length, where no mask shows it and the first step writes over it. Rows that were read stay out of the
        next chunk as far as longer ones come first.
        """
        device = self.base.device
        lengths = [len(prompt) - 1 for prompt in prompts]
        longest = max(lengths)
        hidden_BD = torch.zeros(len(prompts), self._hidden_BD.shape[1], dtype=self.base.dtype, device=device)
        ids = [[*prompt[:-1], *[0] * (longest - length)] for prompt, length in zip(prompts, lengths, strict=True)]
        ids_BT = torch.tensor(ids, dtype=torch.long, device=device)
        for begin in range(0, longest, _PREFILL_CHUNK):
            B = max(row for row, length in enumerate(lengths) if length > begin) + 1
            del part.lengths[B:]
            chunk_BT = ids_BT[:B, begin : begin + _PREFILL_CHUNK]
            T = chunk_BT.shape[1]
            causal_1TT = torch.ones(1, T, T, dtype=torch.bool, device=device).tril()
            positions_BT = torch.arange(begin, begin + T, device=device).expand(B, T)
            mask = TreeMask(T, begin, self.base.dtype, device)
            hidden_BTD = self._read(part, chunk_BT, positions_BT, mask, causal_1TT)
            if self.drafter.reader is not None:
                behind = [prompt[begin + 1 : begin + T + 1] for prompt in prompts[:B]]
                self.drafter.reader.read(first_row, hidden_BTD, behind, part.lengths)
            part.commit([list(range(T))] * B)
            for row, length in enumerate(lengths[:B]):
                if begin < length <= begin + T:
                    hidden_BD[row] = hidden_BTD[row, length - 1 - begin]
        return hidden_BD

    @torch.inference_mode()
    def step(self) -> list[list[int]]:
        """One step. Returns the tokens gained by each live row: what its path accepted, then the bonus token.

        A row that no token can follow is named in `broken`, with the reason. Its token means nothing, and neither does
        what comes after it: it has to be retired.
        """
        marks = [time.perf_counter()]
        noise = self._streams.at(self.arena.lengths, self.drafter.max_depth + 1)
        known = Known(
            self._hidden_BD,
            self._root_B,
            noise.ranking_BPV,
            self._streams.temperature,
            self.ids,
            self._targets,
            self._mixture.guess,
            self._streams.draws,
        )
        draft = self.drafter.propose(known)
        marks.append(time.perf_counter())

        verified = self._verify(draft, noise)
        marks.append(time.perf_counter())

        accepted = self._mixture.accept(verified)
        targets_BN, is_finite_BN = accepted.targets_BN, accepted.is_finite_BN
        # The one wait of a step: what the host must know travels in one piece.
        flags, is_finite, tokens, targets = torch.stack(
            [accepted.is_accepted_BN.long(), is_finite_BN.long(), draft.tokens_BN, targets_BN]
        ).tolist()
        paths = [[node for node, flag in enumerate(row) if flag] for row in flags]
        gained = [
            [row_tokens[node] for node in path[1:]] + [row_targets[path[-1]]]
            for path, row_tokens, row_targets in zip(paths, tokens, targets, strict=True)
        ]
        self.broken = {
            row: self._what_is_broken(row, tokens[row])
            for row, (path, finite) in enumerate(zip(paths, is_finite, strict=True))
            if not all(finite[node] for node in path)
        }
        marks.append(time.perf_counter())

        self._targets = targets
        for row in self.broken:
            verified.hidden_BND[row] = 0.0  # drafters keep what they read
        if self.drafter.reader is not None:
            self.drafter.reader.read(0, _along(verified.hidden_BND, paths), gained, self.arena.lengths)
        self.arena.commit(paths)
        for row, tokens_gained in enumerate(gained):
            self.ids[row] += tokens_gained
            self._mixture.extend(row, tokens_gained)
        self._advance(verified.hidden_BND, targets_BN, [path[-1] for path in paths])
        for row in self.broken:
            self.arena.wipe(row)
        marks.append(time.perf_counter())
        for part, begin, end in zip(("draft", "verify", "accept", "commit"), marks, marks[1:], strict=False):
            self.seconds[part] += end - begin
        return gained

    def _verify(self, draft: Draft, noise: StepNoise) -> Judged:
        """One forward over the whole tree: the hidden state and the base's own next token at every node."""
        depths_RN = draft.shape.depths_RN
        if self.arena.is_uniform:
            positions_BN = (depths_RN + self.arena.lengths[0]).expand(len(draft.tokens_BN), -1)
        else:
            positions_BN = torch.tensor(self.arena.lengths, device=self.base.device)[:, None] + depths_RN
        if max(self.arena.lengths) + self.drafter.max_depth + 1 > self.base.max_length:
            # What lies beyond the context is never kept; but a learned position table ends there, and dynamic rope
            # would change its frequencies for everybody.
            positions_BN = positions_BN.clamp(max=self.base.max_length - 1)
        self.num_nodes = N = draft.tokens_BN.shape[1]
        if N not in self._masks:
            self._masks[N] = TreeMask(N, self._num_slots, self.base.dtype, self.base.device)
        hidden_BND = self._read(self.arena, draft.tokens_BN, positions_BN, self._masks[N], draft.shape.ancestors_RNN)
        noise_BNV = _at_depths(noise.drawing_BPV, depths_RN) if noise.drawing_BPV is not None else None
        final_BND = hidden_BND[..., : self.base.hidden_size] if self._layers else hidden_BND
        logits_BNV = self._forward.logits(final_BND)
        return self._mixture.judge(draft, hidden_BND, logits_BNV, noise_BNV, noise.chance(depths_RN), self.ids)

    def _read(
        self, arena: Arena, tokens_BN: Tensor, positions_BN: Tensor, mask: TreeMask, ancestors_RNN: Tensor
    ) -> Tensor:
        arena.begin(tokens_BN.shape[1])
        return self._forward.hidden(tokens_BN, positions_BN, arena, mask.of(arena, ancestors_RNN), self._layers)

    def _advance(self, hidden_BND: Tensor, targets_BN: Tensor, last_nodes: list[int]) -> None:
        """The bonus token becomes the root, and the state it follows from is what the drafter reads next."""
        if len(last_nodes) == 1:
            self._hidden_BD, self._root_B = hidden_BND[:, last_nodes[0]], targets_BN[:, last_nodes[0]]
            return
        rows_B = torch.arange(len(last_nodes), device=self.base.device)
        nodes_B = torch.tensor(last_nodes, device=self.base.device)
        self._hidden_BD, self._root_B = hidden_BND[rows_B, nodes_B], targets_BN[rows_B, nodes_B]

    def _what_is_broken(self, row: int, drafted: list[int]) -> str:
        """Why no score behind this row's text was a number."""
        text = self.ids[row]
        # A candidate whose keys or values are NaN spoils what does not see it, because 0 x NaN is NaN.
        with_drafts = [*text[:-1], *drafted][: self.base.max_length]
        name = first_not_finite(self.base, text) or first_not_finite(self.base, with_drafts)
        if name is None and self._mixture.is_processed(row):
            return (
                f"no token is left to write after {len(text)} tokens: logit_bias, banned_tokens and "
                "min_new_tokens together forbid all. Forbid less."
            )
        where = f"the first output that is not finite is that of {name}" if name else "a pass without a tree is finite"
        return (
            f"the logits of {self.base.path} are not finite after {len(text)} tokens: {where}. Weights are "
            f"broken, or too large for {str(self.base.dtype).removeprefix('torch.')}. Load it in float32 or bfloat16 "
            "(base.dtype), or copy the model again."
        )


def _along(hidden_BND: Tensor, paths: Sequence[Sequence[int]]) -> Tensor:
    """The states of the nodes of each row's path, as many as the longest has."""
    longest = max(map(len, paths))
    if all(path[-1] == len(path) - 1 for path in paths):  # the first nodes, as of a chain
        return hidden_BND[:, :longest]
    index_BN = torch.tensor([[*path, *[0] * (longest - len(path))] for path in paths], device=hidden_BND.device)
    return hidden_BND[torch.arange(len(paths), device=hidden_BND.device)[:, None], index_BN]


def _at_depths(noise_BPV: Tensor, depths_RN: Tensor) -> Tensor:
    """The noise of each node's position, [B, N, V]."""
    if len(depths_RN) == 1:
        return noise_BPV[:, depths_RN[0]]
    return noise_BPV[torch.arange(len(depths_RN), device=depths_RN.device)[:, None], depths_RN]
