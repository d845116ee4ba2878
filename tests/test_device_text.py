"""Texts in device memory are those of the lists, whoever wrote them last."""

import random

import torch
from torch import Tensor

from euryale.decoding.device_text import DeviceText, TextRows


def texts_in(text: DeviceText) -> list[list[int]]:
    """Prompt, answer and root of each row."""
    rows: list[list[int]] = text.tokens_BS.tolist()
    return [row[: length + 1] for row, length in zip(rows, text.lengths_B.tolist(), strict=True)]


def step_on_device(tokens_BS: Tensor, texts: list[list[int]], rng: random.Random) -> list[int]:
    """Every text grows by a path of three nodes at most and a new root, as a step on the device writes it."""
    text = DeviceText(tokens_BS[: len(texts)], torch.tensor([len(text) - 1 for text in texts], dtype=torch.int32))
    text.put(text.lengths_B, torch.tensor([[text[-1]] for text in texts]))
    paths = [[t[-1], *(rng.randrange(50) for _ in range(rng.randint(0, 2)))] for t in texts]
    # What stands after a path is overwritten.
    text.put(text.lengths_B, torch.tensor([path + [49] * (3 - len(path)) for path in paths]))
    for one, path in zip(texts, paths, strict=True):
        one += [*path[1:], rng.randrange(50)]
    roots_B1 = torch.tensor([[text[-1]] for text in texts])
    lengths = [len(text) - 1 for text in texts]
    DeviceText(text.tokens_BS, torch.tensor(lengths)).put(torch.tensor(lengths), roots_B1)
    return lengths


def test_rows_go_between_steps_of_the_host_and_of_the_device() -> None:
    """They come, go and take slots of others, and grow here and there."""
    rng = random.Random(0)
    tokens_BS = torch.zeros(3, 200, dtype=torch.int32)
    rows, texts = TextRows(tokens_BS), list[list[int]]()
    for _ in range(120):
        if len(texts) < 3 and rng.random() < 0.4:
            rows.add(len(texts))
            texts.append([rng.randrange(50) for _ in range(rng.randint(1, 20))])
        elif texts and (rng.random() < 0.2 or max(map(len, texts)) > 180):
            row = rng.randrange(len(texts))
            rows.swap_remove(row)
            texts[row] = texts[-1]
            texts.pop()
        if not texts:
            continue
        assert texts_in(rows.read(texts)) == texts
        if rng.random() < 0.5:
            rows.have_grown(step_on_device(tokens_BS, texts, rng))
        else:
            for text in texts:
                text += [rng.randrange(50) for _ in range(rng.randint(1, 3))]
    assert texts_in(rows.read(texts)) == texts
