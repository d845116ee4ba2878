"""The base answers as the user's model does, and one that cannot serve is refused before it does harm."""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from plain_decoding import slow_ids
from random_models import FAMILIES, engine_of, random_base, twin
from safetensors.torch import load_file, save_file
from tiny_llama import save_tiny_llama
from tolerance import assert_same_sums
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GenerationConfig,
    GptOssConfig,
    GptOssForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from euryale.base.base import Base, load_base, pick_device
from euryale.base.config import BaseConfig
from euryale.base.tree_attention import adopt_tree_attention
from euryale.errors import UserError


def load(folder: Path, dtype: str = "float32", **settings: str) -> Base:
    return load_base(BaseConfig(path=str(folder), dtype=dtype, device="cpu", **settings))


@pytest.fixture
def folder(tiny_llama_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_llama_folder, tmp_path / "base"))


def test_the_facts_are_those_of_the_model(tiny_base: Base, tiny_llama_folder: Path) -> None:
    assert (tiny_base.vocab_size, tiny_base.hidden_size, tiny_base.max_length) == (99, 32, 256)
    assert (tiny_base.eos_ids, tiny_base.bos_id) == ((2,), 1)
    assert tiny_base.device.type == "cpu" and tiny_base.dtype == torch.float32
    assert not tiny_base.model.training and not any(p.requires_grad for p in tiny_base.model.parameters())
    identity = tiny_base.identity()
    assert identity["path"] == str(tiny_llama_folder) and identity["architecture"] == "LlamaForCausalLM"
    assert (identity["vocab_size"], identity["hidden_size"]) == (99, 32)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_of_hidden_states_are_the_models_own(family: str) -> None:
    base = random_base(family, 17)
    ids_BT = torch.randint(17, (2, 9), generator=torch.Generator().manual_seed(0))
    hidden_BTD = base.model.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state
    expected = twin(base)(input_ids=ids_BT, use_cache=False).logits
    assert_same_sums(base.logits(hidden_BTD), expected)
    assert_same_sums(hidden_BTD @ base.lm_head_weight.T, expected)
    assert torch.equal(base.embed(ids_BT), base.model.get_input_embeddings().weight[ids_BT])


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_documents_do_not_see_each_other_or_the_padding(family: str) -> None:
    base, model = random_base(family, 17), twin(random_base(family, 17))
    rng = random.Random(0)
    lengths = [[5, 1, 7], [13], [3, 4]]  # the last row ends with padding
    texts = [[[rng.randrange(17) for _ in range(n)] for n in row] for row in lengths]
    ids_BT = torch.zeros(3, 13, dtype=torch.long)
    positions_BT, documents_BT = torch.zeros_like(ids_BT), torch.full_like(ids_BT, -1)
    for row, documents in enumerate(texts):
        at = 0
        for number, text in enumerate(documents):
            piece = slice(at, at + len(text))
            ids_BT[row, piece] = torch.tensor(text)
            positions_BT[row, piece] = torch.arange(len(text))
            documents_BT[row, piece] = number
            at += len(text)
    hidden_BTD = base.forward_packed(ids_BT, positions_BT, documents_BT)
    assert hidden_BTD.isfinite().all(), "padding too"
    for row, documents in enumerate(texts):
        at = 0
        for text in documents:
            alone_TD = model.base_model(input_ids=torch.tensor([text]), use_cache=False).last_hidden_state[0]
            assert_same_sums(hidden_BTD[row, at : at + len(text)], alone_TD)
            at += len(text)


def test_a_padded_batch_of_plain_transformers_still_works(tiny_base: Base) -> None:
    """Our attention has a mask function of its own name, without which transformers drops a padding mask silently."""
    ids_BT = torch.tensor([[0, 0, 40, 41, 42], [50, 51, 52, 53, 54]])
    mask_BT = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    logits = tiny_base.model(
        input_ids=ids_BT, attention_mask=mask_BT, position_ids=(mask_BT.cumsum(-1) - 1).clamp(0)
    ).logits
    alone = twin(tiny_base)(input_ids=ids_BT[:1, 2:]).logits
    assert_same_sums(logits[:1, 2:], alone)


def test_the_context_ends_at_a_sliding_window() -> None:
    assert random_base("mistral", max_length=64, sliding_window=20).max_length == 20
    assert random_base("mistral", max_length=64, sliding_window=100).max_length == 64
    unused = random_base("qwen2", max_length=64, sliding_window=20, use_sliding_window=False)
    assert unused.max_length == 64, "Qwen2 names a window that it does not use"


@pytest.mark.parametrize(("eos", "expected"), [(5, (5,)), ([5, 7], (5, 7)), (None, (2,))])
def test_end_of_text_comes_from_the_generation_config_first(
    folder: Path, eos: object, expected: tuple[int, ...]
) -> None:
    GenerationConfig(eos_token_id=eos).save_pretrained(folder)
    assert load(folder).eos_ids == expected


def test_the_fingerprint_names_the_weights_and_not_the_dtype_or_the_place(
    folder: Path, tiny_base: Base, tmp_path: Path
) -> None:
    assert load(folder).fingerprint == load(folder, "bfloat16").fingerprint == tiny_base.fingerprint
    other = save_tiny_llama(tmp_path / "other", seed=1)
    assert load(other).fingerprint != tiny_base.fingerprint


@pytest.mark.parametrize(
    ("dtype", "expected"), [("auto", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)]
)
def test_the_dtype_is_the_one_asked_for(folder: Path, dtype: str, expected: torch.dtype) -> None:
    assert load(folder, dtype).dtype == expected


def test_a_model_folder_that_lacks_something_is_refused(folder: Path) -> None:
    for name, message in (
        ("tokenizer*", "has no tokenizer"),
        ("model.safetensors", "has no weights"),
        ("config.json", "must be a model folder; it has no config.json"),
    ):
        for file in folder.glob(name):
            file.unlink()
        with pytest.raises(UserError, match=message):
            load(folder)
    with pytest.raises(UserError, match="no such folder"):
        load(folder / "nowhere" / "at-all")


def test_a_damaged_model_folder_is_refused(folder: Path) -> None:
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(UserError, match="could not be loaded"):
        load(folder)
    (folder / "model.safetensors").write_bytes(weights)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "no-such-family"}))
    with pytest.raises(UserError, match="could not be loaded"):
        load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match="config.json is not JSON"):
        load(folder)


def test_settings_that_cannot_be_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="base.dtype must be one of auto, float32, bfloat16, float16; got int8"):
        load(folder, "int8")
    with pytest.raises(UserError, match="base.quantization must be one of .*none, nf4, int4; got int3"):
        load(folder, quantization="int3")
    with pytest.raises(UserError, match="base.device must be auto, cpu, cuda or cuda:N; got tpu-x"):
        pick_device("tpu-x")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="sees none"):
        pick_device("cuda")
    assert pick_device("auto") == torch.device("cpu")


def test_a_hub_that_cannot_be_reached_is_said_at_once_with_the_offline_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise ConnectionError("nobody there")

    monkeypatch.setattr("huggingface_hub.get_session", lambda: type("Session", (), {"head": refuse})())
    with pytest.raises(UserError, match="base.path=nobody/nothing: .* cannot be reached .*base=tiny"):
        load(Path("nobody/nothing"))


SMALL = {
    "vocab_size": 99, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 4, "initializer_range": 0.5,
}  # fmt: skip


@pytest.mark.parametrize(
    ("model_class", "config"),
    [
        (Gemma2ForCausalLM, Gemma2Config(**SMALL, final_logit_softcapping=1.0)),
        (GptOssForCausalLM, GptOssConfig(**SMALL, num_local_experts=2, num_experts_per_tok=1)),
        (BloomForCausalLM, BloomConfig(vocab_size=99, hidden_size=16, n_layer=2, n_head=4)),
    ],
    ids=["capped logits", "attention sinks", "an attention of its own"],
)
def test_a_few_tokens_show_what_trees_cannot_follow_whatever_the_config_says(
    model_class: type[PreTrainedModel], config: PreTrainedConfig
) -> None:
    """The second check: base/families.py refuses these by their config, before there are weights."""
    torch.manual_seed(0)
    model = model_class(config)
    for name, parameter in model.named_parameters():
        if name.endswith("sinks"):
            torch.nn.init.normal_(parameter)
    with pytest.raises(UserError, match=f"{model_class.__name__} does more than plain attention and an output matrix"):
        adopt_tree_attention(model.eval(), "given")


def test_a_real_model_continues_as_its_author_published(material: Path) -> None:
    base = load(material / "models" / "stories260K")
    assert base.eos_ids == (1, 2)
    text = engine_of(base).generate("Once upon a time", max_new_tokens=40)[0].text
    assert text.startswith(", there was a little girl named Lily. She loved to play outside in the park.")


def test_a_4_bit_base_decodes_exactly_and_lets_gradients_through(folder: Path) -> None:
    """On CPUs with AVX512-BF16 bitsandbytes would repack its weights for a kernel without autograd."""
    bnb = pytest.importorskip("bitsandbytes")
    base = load(folder, quantization="nf4")
    linears = [m for m in base.model.modules() if isinstance(m, bnb.nn.Linear4bit)]
    assert len(linears) == 14 and not any(getattr(m, "support_avx512bf16_for_cpu", False) for m in linears)
    assert base.identity()["quantization"] == "nf4" and base.lm_head_weight.dtype == torch.float32
    prompt = [40, 41, 42]
    assert engine_of(base).generate([prompt], max_new_tokens=12)[0].ids == slow_ids(base, prompt, 12)
    embeddings = base.embed(torch.tensor([prompt])).requires_grad_()
    base.model.base_model(inputs_embeds=embeddings, use_cache=False).last_hidden_state.square().sum().backward()
    assert embeddings.grad is not None and embeddings.grad.abs().min() > 0


def test_weights_are_never_made_up(folder: Path) -> None:
    """transformers fills what a file lacks with random numbers and a warning."""
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="up_proj"):
        load(folder)


def test_a_base_whose_weights_are_no_numbers_is_refused_with_their_name(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if "mlp.down_proj" in name)
    weights[name][0, 0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"NaN or infinity; 1 of its weights .*{name} first.* Copy the model again"):
        load_base(BaseConfig(path=str(folder)))
    for name, weight in weights.items():
        weights[name] = weight.nan_to_num().clamp(-1, 1) * (1e30 if "down_proj" in name or "up_proj" in name else 1)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"NaN or infinity; .* overflow in torch.float32"):
        load_base(BaseConfig(path=str(folder)))
