"""The live page on a real server: infer/serve.py with the bundled base, whose guesses are found by lookup."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from page_driver import (
    answer,
    assert_accessible,
    chromium,
    generate,
    nodes_sent,
    nodes_shown,
    opened,
    show_step,
)
from served import Served, fork_that_serves_when_asked, served_by_a_fork

# After page_driver, which skips this file where it may be missing.
from playwright.sync_api import Browser, Page, WebSocket, expect  # isort: skip

SETTINGS = [
    "checkpoint=null", "base=tiny", "base.dtype=float32", "base.device=cpu", "drafter=lookup", "threads=1",
    "max_rows=2", "max_model_len=256", "warm_up=false",
]  # fmt: skip
REPEATING = "one = 1\ntwo = 2\none = 1\ntwo = 2\none = 1\n"  # so that lookup has something to guess
HOSTILE = "a = '<img src=x onerror=alert(1)>'\nb = '<img src=x onerror=alert(1)>'\nc = '<img src=x onerror=alert(1)>'\n"


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served_by_a_fork(*SETTINGS, "port=0") as server:
        yield server


@pytest.fixture(scope="module")
def serve_again() -> Iterator[Callable[..., Served]]:
    """Starts a second server, whose process is there already."""
    with fork_that_serves_when_asked() as serve:
        yield serve


@pytest.fixture(scope="module")
def browser(server: Served, serve_again: Callable[..., Served]) -> Iterator[Browser]:
    """After the servers, which fork."""
    with chromium() as browser:
        yield browser


@pytest.fixture
def problems() -> list[str]:
    """What the console of any tab complained of; `page` checks that there was nothing."""
    return []


@pytest.fixture
def heard() -> list[dict[str, Any]]:
    """What the server sent over the sockets of `page`."""
    return []


@pytest.fixture
def page(browser: Browser, server: Served, problems: list[str], heard: list[dict[str, Any]]) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    page.on("websocket", lambda it: hear(it, heard))
    yield opened(page, server.url, problems)
    context.close()
    assert problems == []


def hear(socket: WebSocket, heard: list[dict[str, Any]]) -> None:
    socket.on("framereceived", lambda text: heard.append(json.loads(text)))


def ask_for(page: Page, prompt: str, tokens: int, is_compared: bool = False) -> None:
    page.get_by_label("Tokens").fill(str(tokens))
    generate(page, prompt, is_compared)


def wait_until_cut(page: Page) -> None:
    expect(page.locator("#status")).to_contain_text("the number of tokens asked for is reached")


def text_of_the_api(server: Served, prompt: str, tokens: int) -> str:
    """The same answer, over the HTTP API."""
    fields = {"model": "tiny-base", "prompt": prompt, "max_tokens": tokens, "temperature": 0}
    reply = httpx.post(f"{server.url}/v1/completions", json=fields, timeout=60, trust_env=False).raise_for_status()
    return str(reply.json()["choices"][0]["text"])


def test_the_page_shows_the_text_of_the_api_and_the_nodes_of_the_socket(
    page: Page, server: Served, heard: list[dict[str, Any]]
) -> None:
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("def fibonacci(n):\n")  # no chat: no question
    ask_for(page, REPEATING, 40)
    wait_until_cut(page)
    assert answer(page) == text_of_the_api(server, REPEATING, 40)
    steps = [message for message in heard if message["type"] == "step"]
    end = next(message for message in heard if message["type"] == "end")
    assert [step["i"] for step in steps] == list(range(end["steps"])) and len(end["ids"]) == 40
    assert end["steps"] < 40, "some guess was right"
    for step in steps[::3]:
        show_step(page, step["i"])
        assert nodes_shown(page) == nodes_sent(step)


def test_a_comparison_on_a_phone_ends_in_an_exact_match(browser: Browser, server: Served) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, device_scale_factor=2, has_touch=True)
    page = opened(context.new_page(), server.url, problems := [])
    ask_for(page, REPEATING, 24, is_compared=True)
    expect(page.locator(".badge")).to_contain_text("Exact match: all 24 tokens equal")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert_accessible(page)
    assert problems == []
    context.close()


def test_a_cancelled_generation_frees_its_row(page: Page, server: Served, heard: list[dict[str, Any]]) -> None:
    ask_for(page, "import os\n", 200)
    expect(page.locator(".run").first).to_be_visible()
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator(".note")).to_have_text("Cancelled.")
    expect(page.locator(".figures")).to_contain_text("decoding0 of 2")
    end = next(message for message in heard if message["type"] == "end")
    assert end["finish_reason"] == "cancelled" and end["text"] == answer(page)
    assert text_of_the_api(server, "import os\n", 200).startswith(answer(page))


def test_two_tabs_are_answered_at_once_and_apart(page: Page, server: Served, problems: list[str]) -> None:
    other = opened(page.context.new_page(), server.url, problems)
    prompts = {page: REPEATING, other: "import sys\n"}
    for tab, prompt in prompts.items():
        ask_for(tab, prompt, 40)
    for tab, prompt in prompts.items():
        wait_until_cut(tab)
        assert answer(tab) == text_of_the_api(server, prompt, 40)


def test_markup_in_prompt_and_tokens_is_text(page: Page, server: Served, heard: list[dict[str, Any]]) -> None:
    ask_for(page, HOSTILE, 40)
    wait_until_cut(page)
    assert page.locator(".asked").text_content() == HOSTILE
    assert answer(page) == text_of_the_api(server, HOSTILE, 40)
    steps = [message for message in heard if message["type"] == "step"]
    guessed = {node["text"] for step in steps for node in step["nodes"]}
    assert {"<", ">"} & {text.strip() for text in guessed}, "markup was among the guesses"
    page.get_by_role("button", name="Show as a list").click()
    for step in steps[::3]:
        show_step(page, step["i"])
        assert page.locator(".twin button").count() == len(nodes_sent(step))
    assert page.locator("img").count() == 0 and page.locator("script").count() == 1


def test_a_server_that_was_killed_and_started_again_is_found_again(
    browser: Browser, server: Served, serve_again: Callable[..., Served]
) -> None:
    """The last test of this file: its server is gone afterwards."""
    context = browser.new_context()
    page = opened(context.new_page(), server.url, [])  # a refused connection is a line in the console
    ask_for(page, "import os\n", 200)
    expect(page.locator(".run").first).to_be_visible()
    server.process.kill()
    expect(page.locator(".note")).to_have_text("The connection was lost before the answer was complete.")
    assert page.locator(".run").count() >= 1
    server.process.join()
    second = serve_again(*SETTINGS, f"port={server.port}")
    expect(page.locator("#link")).to_contain_text("tiny-base", timeout=30_000)
    ask_for(page, REPEATING, 20)
    wait_until_cut(page)
    assert answer(page) == text_of_the_api(second, REPEATING, 20)
    context.close()
