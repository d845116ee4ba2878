"""Small tokenizers of every kind that the world has, and bases for them. Not a test file."""

from random_models import random_base
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from euryale.base.base import Base

WORDS = ["\u2581girl", "\u2581named", "\u2581a", "\u2581little", "\u2581", "girl", "little", "a", "b", ".", "\n", "b\n"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]


def _fast(tokenizer: Tokenizer, **settings: object) -> PreTrainedTokenizerFast:
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"} | settings
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    fast.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return fast


def llama2() -> PreTrainedTokenizerFast:
    """Pieces with a mark for spaces, bytes for everything else; `decode` leaves out the first space."""
    vocabulary = {piece: i for i, piece in enumerate(["<unk>", *SPECIAL, *BYTES, *WORDS])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _fast(tokenizer)


def metaspace() -> PreTrainedTokenizerFast:
    """Unigram pieces of sentencepiece, as of T5 and XLM-R; the first space is left out too."""
    pieces = [("<unk>", 0.0), *((piece, -1.0) for piece in [*SPECIAL, *WORDS])]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return _fast(tokenizer)


def wordpiece() -> PreTrainedTokenizerFast:
    """Words, and parts of words that stick to what is before them, as of BERT."""
    pieces = ["<unk>", *SPECIAL, "girl", "##named", "a", "little", "##s", "b", "."]
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return _fast(tokenizer, clean_up_tokenization_spaces=True)


def gpt2() -> PreTrainedTokenizerFast:
    """One token a byte: nothing is left out, but a character takes several tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: i for i, piece in enumerate(["<unk>", *SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _fast(tokenizer, clean_up_tokenization_spaces=True)


def gemma() -> PreTrainedTokenizerFast:
    """As Llama 2's, but nothing is put before a text and nothing is left out."""
    tokenizer = llama2()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.backend_tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def lower_case() -> PreTrainedTokenizerFast:
    """A normaliser that changes letters and runs of spaces, as sentencepiece's nmt_nfkc_cf does."""
    tokenizer = metaspace()
    steps = [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace(Regex(" {2,}"), " ")]
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.backend_tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    return tokenizer


def word_ends() -> PreTrainedTokenizerFast:
    """Words that end with a mark, as of GPT and XLM."""
    pieces = ["<unk>", *SPECIAL, "a", "b", "a</w>", "b</w>", "girl</w>", "little"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], end_of_word_suffix="</w>", unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    return _fast(tokenizer)


def repeats_left_out() -> PreTrainedTokenizerFast:
    """A decoder that takes two equal tokens in a row for one, as of speech models."""
    vocabulary = {piece: i for i, piece in enumerate(["<unk>", *SPECIAL, "a", "b", "|"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, "<unk>"))
    tokenizer.decoder = decoders.CTC(pad_token="<unk>", word_delimiter_token="|")
    return _fast(tokenizer)


def without_decoder() -> PreTrainedTokenizerFast:
    """Tokens that are put together with spaces between them."""
    vocabulary = {piece: i for i, piece in enumerate(["<unk>", *SPECIAL, *WORDS])}
    return _fast(Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>")))


def with_words_added(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The same with words that were added later: inside of others, with spaces of their own, of other letters."""
    words = [
        AddedToken("girlx"), AddedToken("<tool>", lstrip=True, rstrip=True), AddedToken("b b", single_word=True),
        AddedToken(" named"), AddedToken("\u4f60\u597d"),
    ]  # fmt: skip
    tokenizer.add_tokens(words)
    return tokenizer


# Kinds of which the vocabulary is too small for a chat.
MORE_KINDS = {
    "gemma": gemma,
    "lower case": lower_case,
    "word ends": word_ends,
    "repeats left out": repeats_left_out,
    "without decoder": without_decoder,
    "llama2 and words": lambda: with_words_added(llama2()),
    "gpt2 and words": lambda: with_words_added(gpt2()),
    "metaspace and words": lambda: with_words_added(metaspace()),
    "wordpiece and words": lambda: with_words_added(wordpiece()),
}
KINDS = {"llama2": llama2, "metaspace": metaspace, "wordpiece": wordpiece, "gpt2": gpt2}


def with_ends(tokenizer: PreTrainedTokenizerFast, single: str) -> PreTrainedTokenizerFast:
    """The same with a post-processor: `<s> $A </s>` puts both around every text."""
    ids = [(name, tokenizer.convert_tokens_to_ids(name)) for name in SPECIAL]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
    return tokenizer


def base_with(tokenizer: PreTrainedTokenizerBase, vocab_size: int | None = None, **settings: object) -> Base:
    """A random base whose matrix has a row for every token of this tokenizer."""
    base = random_base(vocab_size=vocab_size or len(tokenizer), max_length=4096, **settings)  # type: ignore[arg-type]
    return Base(base.model, tokenizer, base.path, base.fingerprint)
