"""Drives the live page in a headless Chromium; a test file that imports this is skipped where there is none.

Not a test file itself.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from shutil import which

import pytest

pytest.importorskip("playwright", reason="playwright is not installed: pip install -e '.[dev]'")
pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed: pip install -e '.[dev]'")
pytest.importorskip("websockets", reason="websockets is not installed: pip install -e '.[dev]'")
CHROMIUM = which("chromium") or which("google-chrome")
if CHROMIUM is None:
    pytest.skip("no chromium on this machine: apt-get install chromium fonts-dejavu-core", allow_module_level=True)

# After the skips: this is what may be missing.
from axe_playwright_python.sync_playwright import Axe  # noqa: E402
from playwright.sync_api import Browser, Page, expect, sync_playwright  # noqa: E402

expect.set_options(timeout=15_000)  # a busy machine replays slowly
FLAGS = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]  # as root in a container


@contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


def opened(page: Page, url: str, problems: list[str]) -> Page:
    """Opens the page; `problems` takes what the console complains of, and requests to other places."""
    page.set_default_timeout(10_000)
    page.on("console", lambda it: problems.append(it.text) if it.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("dialog", lambda dialog: problems.append(f"dialog {dialog.message}"))
    allowed = ("file:", "blob:") if url.startswith("file:") else (url, "blob:")
    page.on("request", lambda it: None if it.url.startswith(allowed) else problems.append(f"asks for {it.url}"))
    page.goto(url)
    return page


def generate(page: Page, prompt: str = "Why is the sky blue?", is_compared: bool = False) -> None:
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_label("Compare with plain decoding").set_checked(is_compared)
    page.get_by_role("button", name="Generate").click()


def wait_for_end(page: Page) -> None:
    expect(page.locator("#status")).to_contain_text("The answer is complete.")


def answer(page: Page) -> str:
    return page.locator(".text .answer").text_content() or ""


def nodes_shown(page: Page) -> list[list[str]]:
    """Number and state of every node of the tree that is shown, sorted."""
    return page.evaluate(
        "[...document.querySelectorAll('svg.tree .node')].map(it => [it.dataset.node, it.classList[1]]).sort()"
    )


def nodes_sent(step: dict) -> list[list[str]]:
    """The same of a step as the socket has it."""
    bonus = [["bonus", "bonus"]] if step["bonus"] else []
    return sorted([[str(at), node["state"]] for at, node in enumerate(step["nodes"])] + bonus)


def show_step(page: Page, i: int) -> None:
    page.get_by_label("Step", exact=True).fill(str(i))
    expect(page.locator("svg.tree")).to_have_attribute("data-step", str(i))


def assert_accessible(page: Page) -> None:
    result = Axe().run(page)
    assert result.violations_count == 0, result.generate_report()
