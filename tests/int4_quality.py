"""How far base.quantization=int4 takes a base from itself: python tests/int4_quality.py BASE_PATH TEXT_FILE...

Prints, for bfloat16 and for int4, the loss on the text, how often the likeliest next token is that of float32, and the
mean KL divergence from float32 (nats a token). The text is read in pieces of 256 tokens.
"""

import json
import sys
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from euryale.base.base import Base, load_base
from euryale.base.config import BaseConfig
from euryale.decoding.kv_cache import KVCache, TreeMask

PIECE, MOST_TOKENS = 256, 8192
WAYS = {"float32": ("float32", "none"), "bfloat16": ("bfloat16", "none"), "int4": ("bfloat16", "int4")}


@torch.inference_mode()
def logits_of(base: Base, ids_T: Tensor) -> Tensor:
    """[T, V] in float32, by the forward that decoding takes."""
    cache = KVCache(base.cache_config, 1, PIECE, base.dtype, base.device)
    cache.lengths = [0]
    T, forward = len(ids_T), base.forward()
    forward.reserve(T)
    cache.begin(T)
    mask = TreeMask(T, 0, base.dtype, base.device).of(cache, torch.ones(1, T, T, dtype=torch.bool).tril())
    return forward.logits(forward.hidden(ids_T[None], torch.arange(T)[None], cache, mask))[0].float()


def main() -> None:
    path, *files = sys.argv[1:]
    bases = {name: load_base(BaseConfig(path, dtype=d, quantization=q, device="cpu")) for name, (d, q) in WAYS.items()}
    text = "\n\n".join(Path(file).read_text() for file in files)
    ids = torch.tensor(bases["float32"].tokenizer.encode(text, add_special_tokens=False)[:MOST_TOKENS])
    sums = {name: torch.zeros(3, dtype=torch.float64) for name in WAYS}
    num = 0
    for ids_T in ids.split(PIECE):
        if len(ids_T) < 2:
            continue
        truth_TV = logits_of(bases["float32"], ids_T)[:-1].log_softmax(-1)
        num += len(truth_TV)
        for name, base in bases.items():
            found_TV = logits_of(base, ids_T)[:-1].log_softmax(-1)
            sums[name] += torch.tensor([
                cross_entropy(found_TV, ids_T[1:], reduction="sum"),
                (found_TV.argmax(-1) == truth_TV.argmax(-1)).sum(),
                kl_div(found_TV, truth_TV, reduction="sum", log_target=True),
            ])  # fmt: skip
    for name, (loss, same, kl) in sums.items():
        means = {"loss": loss.item() / num, "same_top1": same.item() / num, "kl": kl.item() / num}
        print(json.dumps({"numbers": name, "tokens": num} | means))


if __name__ == "__main__":
    main()
