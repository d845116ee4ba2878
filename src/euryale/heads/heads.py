"""Heads: what each one reads when it guesses, and what it computes.

Head k (0-based) stands at position t of the text. It reads the base's final hidden state h_t and, when it is
told them, tokens that are already known at drafting time: the root (the token after t, which the base itself
chose) and, for kind `hydra`, the k tokens of the path below the root. It predicts the token at t + 2 + k.

    kind `medusa`   h_t, and the root when `root_token` (off: the published form, Cai et al. 2024, section 3.1)
    kind `hydra`    h_t, the root and the path (Ankner et al. 2024: sequentially dependent heads)
    kind `eagle`    one layer for all heads, which goes on from its own answers and looks back at the text (eagle.py)

    body `resblock`  x + SiLU(W [h; e_root; e_path] + b)
    body `mlp`       x + W_out SiLU(W [h; e_root; e_path] + b), `width` times the hidden size inside

The first matrix reads h as the output matrix does (features `last`), or also the outputs of two middle layers of
the base, scaled to unit root-mean-square (features `several`; Li et al. 2025, EAGLE-3): the last state is made to tell
the next token, earlier ones still know more of the text. x is the last state in any case. With `induction` it also
reads the token that followed the last known ones where they stood before in the text (induction.py).

The last matrix of every body starts at zero, so an untrained head is the base; without `residual` it holds all tokens
for equally likely (blocks.py). Token embeddings are the base's own, frozen, scaled to unit root-mean-square because
bases differ by two orders of magnitude in theirs.
The result goes through the base's frozen output matrix (`shared`), one of the head's own (`own`), or the base's with a
correction of low rank that is the head's own (`lowrank`, blocks.py). With `vocab_share` below 1 only the most
frequent tokens are drafted, `vocab_min` of them at least: fewer rows to read, and rare tokens are never guessed.

Letters: M positions, J known tokens, D width, C numbers of the features, F inner width, V vocabulary, K heads,
R rank of the correction (0 where there is none), X = D + R.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from euryale.base.hidden_states import middle_layers
from euryale.heads.blocks import Correction, HeadBody, as_one, blocks_of_a_head
from euryale.heads.config import FEATURES, HeadsConfig
from euryale.heads.eagle import EagleLayer
from euryale.heads.induction import followers, previous_places


class PackedText(NamedTuple):
    """Tokens of packed documents and what the base says of them."""

    states_BTC: Tensor  # as Base.forward_packed gives them
    embedded_BTD: Tensor  # `normalise`d embeddings of the tokens
    positions_BT: Tensor  # in their document
    documents_BT: Tensor  # its number; -1 is padding
    ids_BT: Tensor  # the tokens; only `induction` reads them


class Heads(nn.Module):
    """All heads of one base. Every layer is a module of its own (a list multiplied by n would share one)."""

    def __init__(self, config: HeadsConfig, hidden_size: int, vocab_size: int) -> None:
        super().__init__()
        config.check()
        self.config = config
        self.hidden_size = hidden_size
        self.vocab_size = vocab_size
        self.num_heads = config.num_heads
        self.num_states = FEATURES[config.features]
        num_bodies = config.num_heads if config.kind != "eagle" else 0
        self.bodies = nn.ModuleList(blocks_of_a_head(config, hidden_size, k) for k in range(num_bodies))
        self.layer = EagleLayer(hidden_size, self.num_states, config.width) if config.kind == "eagle" else None
        self.outputs = nn.ModuleList(
            nn.Linear(hidden_size, vocab_size, bias=False) for _ in range(config.num_heads) if config.output == "own"
        )
        self.corrections = nn.ModuleList(
            Correction(hidden_size, vocab_size, config.output_rank)
            for _ in range(config.num_heads)
            if config.output == "lowrank"
        )
        num_draft = config.num_draft_tokens(vocab_size)
        self.draft_ids: Tensor | None
        self.register_buffer("draft_ids", torch.arange(num_draft) if num_draft < vocab_size else None)

    def num_known_tokens(self, k: int) -> int:
        """How many tokens after position t head k reads (see HeadsConfig)."""
        return self.config.num_known_tokens(k)

    def blocks(self, k: int) -> list[HeadBody]:
        """The residual blocks of head k, in order."""
        blocks = self.bodies[k]
        assert isinstance(blocks, nn.ModuleList)
        return [block for block in blocks if isinstance(block, HeadBody)]

    def head_hidden(self, k: int, states_MC: Tensor, embeddings_MJD: Tensor | None) -> Tensor:
        """What head k hands to its output matrix.

        states_MC: the base's final hidden states (after its last norm), [M, D]; with features `several` the states of
        `middle_layers` after them, as Base.forward_packed gives them. embeddings_MJD: `normalise`d embeddings
        of the J = num_tokens_read(k) tokens it reads (the first after each position; with `induction` last the one that
        followed them earlier, zeros where none did), ignored when J is 0. Returns [M, D], or [M, D + R] with what the
        correction reads after it.
        """
        J = self.config.num_tokens_read(k)
        tokens = None
        if J:
            assert embeddings_MJD is not None and embeddings_MJD.shape[1] >= J, "too few known tokens"
            tokens = embeddings_MJD[:, :J].flatten(1)
        x_MD = states_MC[:, : self.hidden_size]
        for body in self.blocks(k):
            x_MD = body(x_MD, states_MC, tokens)
            states_MC, tokens = x_MD, None
        correction = self.correction(k)
        return x_MD if correction is None else correction.appended(x_MD)

    def guesses(self, text: PackedText, sources_KM: Sequence[Tensor]) -> list[Tensor]:
        """What each head hands to its output matrix at its sources (places in the flattened [B x T]); [M, D] a head.

        Head k at t reads up to token t + 1 + k, which must be of t's document. This is how heads are trained and
        calibrated; while drafting the path stands for the tokens that are not known yet.
        """
        if self.layer is not None:
            depths = self.layer.unroll(
                text.states_BTC, text.embedded_BTD, text.positions_BT, text.documents_BT, len(sources_KM)
            )
            heads = zip(depths, sources_KM, strict=True)
            return [states_BTC.flatten(0, 1)[sources_M, : self.hidden_size] for states_BTC, sources_M in heads]
        states_PC, embedded_PD = text.states_BTC.flatten(0, 1), text.embedded_BTD.flatten(0, 1)
        previous_LP = None
        if self.config.induction:
            previous_LP = previous_places(text.ids_BT, text.documents_BT, self.config.induction, self.vocab_size)
        hidden_KMD = []
        for k, sources_M in enumerate(sources_KM):
            known_J = 1 + torch.arange(self.num_known_tokens(k), device=sources_M.device)
            read_MJD = embedded_PD[sources_M[:, None] + known_J]
            if previous_LP is not None:
                places_M1 = followers(previous_LP, sources_M, len(known_J))[:, None]
                found_M1D = embedded_PD[places_M1].masked_fill(places_M1[..., None] < 0, 0)
                read_MJD = torch.cat([read_MJD, found_M1D], 1)
            hidden_KMD.append(self.head_hidden(k, states_PC[sources_M], read_MJD))
        return hidden_KMD

    def layers_read(self, num_layers: int) -> tuple[int, ...]:
        """Which outputs of the base's layers (1 to num_layers) heads read in addition to the last."""
        return middle_layers(num_layers) if self.num_states > 1 else ()

    def correction(self, k: int) -> Correction | None:
        """What head k adds to the base's output, if anything."""
        correction = self.corrections[k] if len(self.corrections) else None
        assert correction is None or isinstance(correction, Correction)
        return correction

    def output_parts(self, k: int, lm_head_weight_VD: Tensor) -> tuple[Tensor, ...]:
        """What turns head k's answer into logits, side by side: [V, D], and [V, R] where there is a correction."""
        if len(self.outputs):
            output = self.outputs[k]
            assert isinstance(output, nn.Linear)
            return (output.weight,)
        correction = self.correction(k)
        return (lm_head_weight_VD,) if correction is None else (lm_head_weight_VD, correction.widen.weight)

    def output_weight(self, k: int, lm_head_weight_VD: Tensor) -> Tensor:
        """The parts as one matrix [V, X]; of a single part, that part itself."""
        return as_one(self.output_parts(k, lm_head_weight_VD))

    @property
    def num_candidates(self) -> int:
        """How many tokens can be drafted: the vocabulary, or the draft vocabulary where there is one."""
        return self.vocab_size if self.draft_ids is None else len(self.draft_ids)

    def choose_draft_ids(self, counts_V: Tensor) -> None:
        """Makes the most frequent tokens the draft vocabulary (Zhao et al. 2025, FR-Spec). Ids stay in order.

        Training and drafting are restricted to it; verification never is.
        """
        if self.draft_ids is not None:
            best = counts_V.argsort(descending=True, stable=True)[: len(self.draft_ids)]
            self.draft_ids.copy_(best.sort().values)

    def draft_parts(self, k: int, lm_head_weight_VD: Tensor) -> tuple[Tensor, ...]:
        """The rows of head k's output matrices that drafting reads: row i stands for token draft_ids[i]."""
        parts = self.output_parts(k, lm_head_weight_VD)
        return parts if self.draft_ids is None else tuple(part[self.draft_ids] for part in parts)

    def draft_weight(self, k: int, lm_head_weight_VD: Tensor) -> Tensor:
        """The same as one matrix."""
        return as_one(self.draft_parts(k, lm_head_weight_VD))

    def blocks_of_matrices(self) -> dict[str, int]:
        """The matrices that Muon moves by parameter name, and how many vectors each reads side by side."""
        if self.layer is not None:
            return {f"layer.{name}.weight": num for name, num in self.layer.blocks_of_matrices().items()}
        return {f"corrections.{k}.narrow.weight": 1 for k in range(len(self.corrections))} | {
            f"bodies.{name}.weight": matrix.in_features
            // (matrix.in_features if name.endswith(".out") else self.hidden_size)
            for name, matrix in self.bodies.named_modules()
            if isinstance(matrix, nn.Linear)
        }

    def num_read(self, k: int) -> int:
        """Parameters read per guess of head k, output matrix excluded."""
        body = self.bodies[k] if self.layer is None else self.layer
        return sum(p.numel() for p in body.parameters())

    def num_parameters(self) -> int:
        """Trainable numbers in all heads."""
        return sum(p.numel() for p in self.parameters())


def build_heads(config: HeadsConfig, lm_head_weight_VD: Tensor, seed: int = 0) -> Heads:
    """Fresh heads in float32 on the device of the base's output matrix [V, D].

    Own output matrices start as copies of the base's, so that an untrained head predicts what the base does.
    """
    vocab_size, hidden_size = lm_head_weight_VD.shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        heads = Heads(config, hidden_size, vocab_size)
    with torch.no_grad():
        for k in range(len(heads.outputs)):
            heads.output_weight(k, lm_head_weight_VD).copy_(lm_head_weight_VD)
    return heads.to(lm_head_weight_VD.device)
