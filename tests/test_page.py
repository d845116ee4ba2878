"""The live page in a headless browser, against a fake server that speaks the page's protocol."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

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
    wait_for_end,
)

# After page_driver, which skips this file where they may be missing.
from fake_page_server import HOSTILE, PAGE, STORY, TEXT, FakeServer  # isort: skip
from playwright.sync_api import Browser, Page, expect  # isort: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as server:
        yield server


@pytest.fixture
def problems() -> list[str]:
    """What the console of any tab complained of; `page` checks that there was nothing."""
    return []


@pytest.fixture
def page(browser: Browser, server: FakeServer, problems: list[str]) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    yield opened(context.new_page(), server.url, problems)
    context.close()
    assert problems == []


def test_a_prompt_becomes_text_with_a_run_for_every_step(page: Page, server: FakeServer) -> None:
    generate(page)
    wait_for_end(page)
    assert answer(page) == TEXT
    assert page.locator(".run").all_text_contents() == [step["text"] for step in server.steps]
    asked = next(it for it in server.received if it["type"] == "generate")
    assert asked["messages"] == [{"role": "user", "content": "Why is the sky blue?"}]
    assert asked["sampling"] == {"max_tokens": 128, "temperature": 0, "seed": 0}


def test_nodes_on_the_page_are_those_of_the_socket(page: Page, server: FakeServer) -> None:
    generate(page)
    wait_for_end(page)
    for step in server.steps[:4]:
        show_step(page, step["i"])
        assert nodes_shown(page) == nodes_sent(step)
        assert page.locator("svg.tree .edge").count() == len(step["nodes"])
        assert page.locator(".twin button").count() == len(step["nodes"]) + 1
        right = sum(node["state"] == "accepted" for node in step["nodes"])
        tokens = "1 token" if right == 0 else f"{right + 1} tokens"
        guesses = len(step["nodes"]) - 1
        sentence = f"{guesses} guesses checked in one pass, {right} right, {tokens}."
        expect(page.locator("#sentence")).to_have_text(sentence)


def test_lines_are_thicker_where_the_model_finds_a_guess_likelier(page: Page, server: FakeServer) -> None:
    generate(page)
    wait_for_end(page)
    show_step(page, 0)
    widths = page.evaluate(
        "Object.fromEntries([...document.querySelectorAll('svg.tree .edge')].map(it =>"
        " [it.dataset.edge, +it.querySelector('.line').getAttribute('stroke-width')]))"
    )
    nodes = server.steps[0]["nodes"]
    by_width = sorted(range(1, len(nodes)), key=lambda at: widths[str(at)])
    assert by_width == sorted(range(1, len(nodes)), key=lambda at: nodes[at]["p"])


def test_cancel_stops_the_server_and_keeps_what_came(page: Page, server: FakeServer) -> None:
    server.step_ms = 100
    generate(page)
    expect(page.locator(".run").first).to_be_visible()
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator(".note")).to_have_text("Cancelled.")
    assert [it["type"] for it in server.received][-1] == "cancel"
    assert TEXT.startswith(answer(page)) and 0 < len(answer(page)) < len(TEXT)
    expect(page.get_by_role("button", name="Generate")).to_be_enabled()


def test_a_broken_connection_comes_back_and_what_came_is_kept(page: Page, server: FakeServer) -> None:
    server.step_ms = 100
    generate(page)
    expect(page.locator(".run").first).to_be_visible()
    server.break_connections()
    expect(page.locator(".note")).to_have_text("The connection was lost before the answer was complete.")
    assert page.locator(".run").count() >= 1
    expect(page.locator("#link")).to_contain_text("story-model")
    server.step_ms = 5
    generate(page)
    wait_for_end(page)
    assert answer(page) == TEXT


def test_two_tabs_do_not_see_each_other(browser: Browser, page: Page, server: FakeServer, problems: list[str]) -> None:
    other = opened(page.context.new_page(), server.url, problems)
    generate(page)
    generate(other, "HOSTILE")
    wait_for_end(page)
    wait_for_end(other)
    assert answer(page) == TEXT
    assert "sky" not in answer(other)


def test_tokens_that_try_to_be_more_than_text_are_shown_as_text(page: Page, server: FakeServer) -> None:
    generate(page, "HOSTILE")
    wait_for_end(page)
    assert "<img src=x onerror=alert(1)>" in answer(page)
    assert "\u2039U+202E\u203aevil" in answer(page)
    assert "a\u2039U+0000\u203ab" in answer(page)
    page.get_by_role("button", name="Show as a list").click()
    for step in server.steps:
        show_step(page, step["i"])
        everything = page.locator("#root").evaluate("it => it.textContent")
        hidden = re.findall("[\x00-\x08\x0e-\x1f\x7f\u200b\u2028-\u202e\u2066-\u2069\ufeff]", everything)
        assert hidden == []
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 1
    assert len("".join(HOSTILE)) > 300 and page.evaluate("document.documentElement.scrollWidth") <= 1440


def test_steps_that_a_slow_page_lost_are_counted_and_their_text_is_there(page: Page, server: FakeServer) -> None:
    generate(page, "LAGGING")
    wait_for_end(page)
    assert answer(page) == TEXT
    lost = sum(step["dropped"] for step in server.steps)
    assert lost > 3
    expect(page.locator(".figures")).to_contain_text(f"steps not shown{lost}")


def test_a_comparison_is_replayed_and_its_texts_are_equal(page: Page, server: FakeServer) -> None:
    generate(page, is_compared=True)
    expect(page.locator(".badge")).to_have_text(f"\u2713 Exact match: all {len(STORY)} tokens equal")
    expect(page.locator(".lane.plain .count")).to_contain_text("done after")
    assert page.locator(".lane .answer").all_text_contents() == [TEXT, TEXT]
    assert [it["run"] for it in server.steps if it["i"] == 0] == ["ar", "heads"]
    page.get_by_role("button", name="Plain decoding").click()
    expect(page.locator("#sentence")).to_have_text("No guesses: one pass, 1 token.")


def test_slow_motion_shows_the_guesses_before_the_check(page: Page, server: FakeServer) -> None:
    generate(page)
    wait_for_end(page)
    page.get_by_role("button", name="Slow motion").click()
    expect(page.locator("#sentence")).to_contain_text("not checked yet")
    assert page.locator("svg.tree .accepted, svg.tree .bonus").count() == 0
    expect(page.locator("#sentence")).to_contain_text("checked in one pass")
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_role("button", name="Play")).to_be_visible()


def test_a_keyboard_walks_the_tree_and_hears_what_beat_a_wrong_guess(page: Page, server: FakeServer) -> None:
    generate(page)
    wait_for_end(page)
    show_step(page, 0)
    nodes = server.steps[0]["nodes"]
    page.locator(".twin button").first.focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator(".twin button:focus")).to_have_attribute("data-item", "1")
    page.keyboard.press("ArrowDown")
    assert nodes[2]["state"] == "rejected"
    winner = next(node for node in nodes if node["depth"] == 1 and node["state"] == "accepted")
    detail = page.locator("#detail")
    expect(detail).to_contain_text("guess 2 for its place")
    expect(detail).to_contain_text(f"the model chose \u201c{winner['text'].replace(' ', chr(0xB7))}\u201d")
    ring = page.locator("svg.tree .ring").bounding_box()
    frame = page.locator(".canvas").bounding_box()
    assert ring and frame and frame["x"] <= ring["x"] and ring["x"] + ring["width"] <= frame["x"] + frame["width"]
    page.keyboard.press("ArrowLeft")
    expect(page.locator(".twin button:focus")).to_have_attribute("data-item", "0")


def test_a_key_is_asked_for_and_never_in_an_address(browser: Browser) -> None:
    with FakeServer(key="secret") as server:
        context = browser.new_context()
        page = opened(context.new_page(), server.url, problems := [])
        for key in ("wrong", "secret"):
            expect(page.get_by_role("alert")).to_contain_text("API key")
            page.get_by_label("API key").fill(key)
            page.get_by_role("button", name="Connect").click()
        expect(page.locator("#link")).to_contain_text("story-model")
        expect(page.get_by_label("API key")).to_have_count(0)
        page.reload()
        expect(page.locator("#link")).to_contain_text("story-model")
        assert [it["key"] for it in server.received] == [None, "wrong", "secret", "secret"]
        assert problems == []
        context.close()


def test_what_the_server_refuses_is_told(page: Page) -> None:
    generate(page, "too long")
    expect(page.get_by_role("alert")).to_have_text("prompt must be at most 2048 tokens.")
    expect(page.get_by_role("button", name="Generate")).to_be_enabled()


def test_a_saved_trace_opens_from_a_file_without_a_server(
    browser: Browser, page: Page, server: FakeServer, tmp_path: Path, problems: list[str]
) -> None:
    generate(page, is_compared=True)
    expect(page.locator(".badge")).to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("button", name="Save trace").click()
    trace = tmp_path / "trace.json"
    download.value.save_as(trace)
    assert json.loads(trace.read_text())["format"] == "euryale-trace"

    offline = opened(browser.new_page(), (PAGE / "index.html").as_uri(), problems)
    expect(offline.locator("#link")).to_contain_text("open a saved trace")
    offline.get_by_label("Trace file").set_input_files(trace)
    expect(offline.locator(".badge")).to_contain_text("Exact match")
    assert answer(offline) == TEXT
    show_step(offline, 0)
    assert offline.locator("svg.tree .node").count() == len(server.steps[-1]["nodes"]) + 1
    (tmp_path / "other.json").write_text("{}")
    offline.get_by_label("Trace file").set_input_files(tmp_path / "other.json")
    expect(offline.get_by_role("alert")).to_contain_text("other.json cannot be opened: format must be")
    offline.close()


@pytest.mark.parametrize("colours", ["light", "dark"])
def test_axe_finds_nothing_at_any_stage(browser: Browser, server: FakeServer, colours: str) -> None:
    look = {"color_scheme": colours, "reduced_motion": "reduce"}
    context = browser.new_context(viewport={"width": 1440, "height": 900}, **look)
    page = opened(context.new_page(), server.url, problems := [])
    expect(page.locator("#link")).to_contain_text("story-model")
    assert_accessible(page)
    generate(page, is_compared=True)
    expect(page.locator(".lane.plain .count")).to_contain_text("done after")
    page.get_by_role("button", name="Show as a list").click()
    show_step(page, 3)
    assert_accessible(page)
    assert problems == []
    context.close()


def test_a_phone_shows_one_column_and_nothing_sticks_out(browser: Browser, server: FakeServer) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, device_scale_factor=2, has_touch=True)
    page = opened(context.new_page(), server.url, problems := [])
    generate(page, is_compared=True)
    expect(page.locator(".badge")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    lefts = {round(page.locator(it).bounding_box()["x"]) for it in (".prompt", ".middle", ".text", ".figures", ".race")}
    assert len(lefts) == 1
    last = page.locator(".run").last.bounding_box()
    frame = page.locator(".text .scroll").bounding_box()
    assert last["y"] + last["height"] <= frame["y"] + frame["height"], "the end of the text is scrolled into view"
    heights = page.locator("button").evaluate_all("all => all.map(it => it.getBoundingClientRect().height)")
    assert min(filter(None, heights)) >= 24  # WCAG 2.2, target size; one that has none is not there (any more)
    assert_accessible(page)
    assert problems == []
    context.close()
