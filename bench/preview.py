"""From a key in the persona's name to the new prompt on the page, in headless Chromium.

Beside it stands the same page with a handler that does nothing: what is left is the browser,
Gradio and the wire. Keys come in turns, each after the last one has been drawn, so that one
answer's time is measured and not a queue's. Local models are loaded: tokens are counted too.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, Page

from bench import Measured
from bench.served import browser, served

ROUNDS = 6
KEYS = "abcdefghijklmnopqrstuvwxyz"
WARM = 6
"""Keys of each round that aren't counted: the first one makes a demo the visitor's own."""
GOAL = 1.3

ARM = """() => {
  const input = document.querySelector("#field-name input, #field-name textarea");
  const preview = document.querySelector("#prompt-preview");
  window.drawn = new Promise((resolve, reject) => {
    let began;
    setTimeout(() => reject(`10 s without a preview of ${input.value}, but ` +
      preview.textContent.trim().slice(0, 200)), 10000);
    input.addEventListener("keydown", () => { began = performance.now(); },
      { capture: true, once: true });
    const observer = new MutationObserver(() => {
      if (began === undefined || !preview.textContent.includes(input.value)) return;
      observer.disconnect();
      resolve(performance.now() - began);
    });
    observer.observe(preview, { subtree: true, childList: true, characterData: true });
  });
}"""


def measure() -> Measured:
    times: dict[str, list[float]] = {"bench.empty_handler": [], "app.py": []}
    with (
        tempfile.TemporaryDirectory() as one,
        tempfile.TemporaryDirectory() as other,
        served("bench.empty_handler", Path(one)) as empty,
        served("app.py", Path(other)) as lab,
        browser() as chromium,
    ):
        pages = {
            "bench.empty_handler": _open(chromium, empty.url),
            "app.py": _open(chromium, lab.url),
        }
        for number in range(ROUNDS):
            for program, page in pages.items():
                times[program] += _type(page, f"Taro {number} ")
    return report(times["bench.empty_handler"], times["app.py"])


def report(floor: list[float], lab: list[float]) -> Measured:
    """Milliseconds of each key, with the empty handler and with the lab's own."""
    tables = [
        f"### Key to new preview ({len(floor)} keys on each side, taking turns)",
        "",
        "| | median ms | 95 % ms | ratio of medians | goal |",
        "|---|---|---|---|---|",
        _row("same page, empty handler", floor, floor, ""),
        _row("Persona Lab", lab, floor, f"≤ {GOAL}"),
    ]
    ratio = statistics.median(lab) / statistics.median(floor)
    missed = [f"preview {ratio:.3f} > {GOAL}"] if ratio > GOAL else []
    return Measured("\n".join(tables), missed)


def _open(chromium: Browser, url: str) -> Page:
    page = chromium.new_page(locale="ja-JP", viewport={"width": 1280, "height": 900})
    page.goto(url)
    page.locator("#ready .ready").wait_for(timeout=120_000)
    page.locator("#field-name").wait_for()
    return page


def _type(page: Page, name: str) -> list[float]:
    """Milliseconds from each counted key to its preview."""
    page.bring_to_front()
    field = page.locator("#field-name input, #field-name textarea")
    field.fill(name)
    field.press("End")
    taken = []
    for key in KEYS:
        page.wait_for_timeout(60)
        page.evaluate(ARM)
        page.keyboard.press(key)
        taken.append(float(page.evaluate("() => window.drawn")))
    return taken[WARM:]


def _row(name: str, taken: list[float], floor: list[float], goal: str) -> str:
    median = statistics.median(taken)
    slow = statistics.quantiles(taken, n=20)[-1]
    ratio = median / statistics.median(floor)
    return f"| {name} | {median:.0f} | {slow:.0f} | {ratio:.2f} | {goal} |"
