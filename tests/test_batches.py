"""Packing keeps every token, keeps documents apart, and goes on exactly where it stopped."""

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_llama import character_tokenizer
from transformers import AutoTokenizer

from euryale.data.batches import Batch, BatchStream, build_batches
from euryale.data.config import DataConfig
from euryale.data.sources import build_source
from euryale.data.tokens import tokenize_row
from euryale.errors import UserError

TOKENIZER = character_tokenizer()


def write_rows(path: Path, records: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    """Thirty texts of 0 to 79 characters (some too short to learn from) for blocks of 16 tokens, two in a batch."""
    random.seed(0)
    records = [{"text": "".join(random.choices("abcdefgh ", k=random.randrange(80)))} for _ in range(27)]
    records += [{"text": ""}, {"text": "x"}, {"text": " "}]
    path = write_rows(tmp_path / "a.jsonl", records)
    return DataConfig(
        kind="files", files=path, held_out_one_in=0, shuffle_window=4, block_size=16, batch_size=2, seed=5
    )


def pieces_of(batch: Batch) -> list[list[int]]:
    """The ids of each piece, in order; checks on the way that a block is well formed."""
    pieces = []
    for ids, is_target, positions, documents in zip(*batch, strict=True):
        for number in range(int(documents.max()) + 1):
            (where,) = torch.nonzero(documents == number, as_tuple=True)
            assert where.numel() and where[-1] - where[0] + 1 == where.numel(), "a piece is one stretch"
            assert positions[where].tolist() == list(range(where.numel())), "positions count from 0 in each piece"
            pieces.append(ids[where].tolist())
        padding = documents == -1
        assert not padding[: int((~padding).sum())].any(), "padding stands at the end"
        assert not is_target[padding].any()
    return pieces


def documents_of(config: DataConfig, num_passes: int = 1) -> list[list[int]]:
    source = build_source(config, "train")
    samples = [tokenize_row(row, TOKENIZER) for _ in range(num_passes) for row in source]
    return [sample.ids for sample in samples if len(sample.ids) >= 3]


def test_all_tokens_come_in_order_and_documents_stay_apart(config: DataConfig) -> None:
    stream = BatchStream(build_source(config, "train"), TOKENIZER, 16, 2, repeat=False)
    batches = list(stream)
    pieces = [piece for batch in batches for piece in pieces_of(batch)]
    documents = documents_of(config)
    assert [id for piece in pieces for id in piece] == [id for document in documents for id in document]
    ends = set(itertools.accumulate(map(len, documents)))
    assert ends <= set(itertools.accumulate(map(len, pieces))), "no piece holds tokens of two documents"
    assert len(pieces) < len(documents) + 2 * len(batches), "a document is cut at the end of a block and nowhere else"
    assert [batch.ids_BT.shape for batch in batches[:-1]] == [(2, 16)] * (len(batches) - 1)


def test_the_training_stream_goes_on_into_the_next_pass_without_padding(config: DataConfig) -> None:
    stream = build_batches(config, "train", TOKENIZER)
    documents = documents_of(config, num_passes=3)
    batches = list(itertools.islice(stream, sum(map(len, documents)) // 32 - 1))
    assert all((batch.documents_BT >= 0).all() for batch in batches)
    ids = [id for batch in batches for id in batch.ids_BT.flatten().tolist()]
    assert ids == [id for document in documents for id in document][: len(ids)]
    assert stream.epoch == 2
    assert stream.num_skipped >= 3 * stream.epoch, "three rows have no text"
    assert stream.num_rows - stream.num_skipped >= len(documents_of(config, num_passes=2))


@pytest.mark.parametrize("block_size", [8, 16, 100])
def test_a_resumed_stream_gives_the_same_batches(config: DataConfig, block_size: int) -> None:
    config.block_size = block_size
    stream = build_batches(config, "train", TOKENIZER)
    states, batches = [json.dumps(stream.state_dict())], []
    num_batches = 3 * sum(map(len, documents_of(config))) // (2 * block_size)
    for batch in itertools.islice(stream, num_batches):
        batches.append(batch)
        states.append(json.dumps(stream.state_dict()))
    for done, state in enumerate(states[:-1]):
        resumed = build_batches(config, "train", TOKENIZER)
        resumed.load_state_dict(json.loads(state))
        assert json.dumps(resumed.state_dict()) == state
        for expected in batches[done : done + 3]:
            for tensor, other in zip(expected, next(resumed), strict=True):
                assert torch.equal(tensor, other)
        last = min(done + 3, num_batches)
        assert json.loads(json.dumps(resumed.state_dict())) == json.loads(states[last])
        assert resumed.num_rows >= resumed.num_skipped


def test_a_document_longer_than_many_batches_is_not_stored_in_the_state(config: DataConfig, tmp_path: Path) -> None:
    config.files = write_rows(tmp_path / "long.jsonl", [{"text": "abcdefgh" * 1000}])
    stream = build_batches(config, "train", TOKENIZER)
    first = list(itertools.islice(stream, 100))
    state = json.dumps(stream.state_dict())
    assert len(state) < 1000
    resumed = build_batches(config, "train", TOKENIZER)
    resumed.load_state_dict(json.loads(state))
    assert torch.equal(next(stream).ids_BT, next(resumed).ids_BT)
    assert pieces_of(first[0])[0] == TOKENIZER("abcdefgh" * 2, add_special_tokens=False)["input_ids"]


def test_the_held_out_pass_ends_with_padding_and_no_empty_block(config: DataConfig) -> None:
    config.held_out_one_in = 3
    batches = list(build_batches(config, "held_out", TOKENIZER))
    assert len(batches) >= 2
    last = batches[-1]
    assert 1 <= len(last.ids_BT) <= 2
    assert (last.documents_BT[:, 0] == 0).all(), "a block holds at least one piece"
    train = documents_of(config)
    held_out = [id for batch in batches for piece in pieces_of(batch) for id in piece]
    everything = documents_of(DataConfig(**{**vars(config), "held_out_one_in": 0}))
    assert len(held_out) + sum(map(len, train)) == sum(map(len, everything))


def test_targets_follow_the_tokens_across_blocks(config: DataConfig, tmp_path: Path) -> None:
    config.files = write_rows(tmp_path / "b.jsonl", [{"prompt": "q" * 20 + "\n", "response": "a" * 20}])
    batches = list(BatchStream(build_source(config, "train"), TOKENIZER, 16, 1, repeat=False))
    text = "".join(TOKENIZER.decode(batch.ids_BT[batch.is_target_BT]) for batch in batches)
    assert text == "a" * 20 + "</s>"


@pytest.mark.parametrize("records", [[{"text": ""}] * 5, [{"messages": [{"role": "user", "content": "hello"}]}] * 5])
@pytest.mark.parametrize("split", ["train", "held_out"])
def test_data_with_nothing_to_learn_from_is_an_error_and_not_a_loop(
    config: DataConfig, tmp_path: Path, records: list[dict[str, Any]], split: str
) -> None:
    config.files = write_rows(tmp_path / "b.jsonl", records)
    with pytest.raises(UserError, match="nothing to train on: [05] rows read"):
        next(build_batches(config, split, TOKENIZER))


def test_data_that_is_all_bad_is_an_error_also_when_bad_rows_are_skipped(config: DataConfig, tmp_path: Path) -> None:
    config.files = write_rows(tmp_path / "b.jsonl", [{"txt": "abc"}] * 4)
    config.on_error = "skip"
    with pytest.raises(UserError, match="0 rows read, 4 "):
        next(build_batches(config, "train", TOKENIZER))


def test_conversations_that_the_template_refuses_stop_or_are_counted(config: DataConfig, tmp_path: Path) -> None:
    tokenizer = character_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{{ m.content }}\n{% endfor %}"
    )
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "world"}]
    records = [{"messages": turns}, {"messages": [{"role": "system", "content": "s"}, *turns]}, {"messages": turns}]
    config.files = write_rows(tmp_path / "b.jsonl", records)
    with pytest.raises(UserError, match=r"b.jsonl:2: .*no system"):
        list(itertools.islice(build_batches(config, "train", tokenizer), 10))
    config.on_error = "skip"
    stream = BatchStream(build_source(config, "train"), tokenizer, 16, 2, "skip", repeat=False)
    (batch,) = stream
    assert tokenizer.decode(batch.ids_BT[batch.is_target_BT]) == "world" * 2
    assert (stream.num_rows, stream.num_skipped) == (3, 1)


def test_the_library_becomes_blocks_of_the_bundled_form(material: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(material / "models" / "tiny-base")
    stream = build_batches(DataConfig(), "train", tokenizer)
    batch = next(stream)
    assert batch.ids_BT.shape == (2, 512) and batch.ids_BT.max() < 4096
    assert batch.is_target_BT.all()
    assert "def " in tokenizer.decode(batch.ids_BT[0])


def test_real_stories_become_blocks_for_their_model(material: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(material / "models" / "stories260K")
    path = str(material / "text" / "tinystories_train_sample_2M.txt")
    config = DataConfig(kind="files", files=path, block_size=256, batch_size=4)
    batch = next(build_batches(config, "train", tokenizer))
    starts = batch.ids_BT[(batch.positions_BT == 0) & (torch.arange(256) > 0)]
    assert (starts == tokenizer.bos_token_id).all(), "stories that begin inside a block begin with bos"
