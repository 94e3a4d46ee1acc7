"""The compare tab under a stopwatch that runs in the page itself."""

from __future__ import annotations

from dataclasses import dataclass

from playwright.sync_api import Browser, Page

WATCH = """(columns) => {
  window.seen = Array.from({ length: columns }, () => []);
  let began;
  document.querySelector("#compare-run").addEventListener(
    "click", () => { began = performance.now(); }, { capture: true, once: true });
  window.watching?.disconnect();
  window.watching = new MutationObserver(() => {
    if (began === undefined) return;
    window.seen.forEach((samples, number) => {
      const answer = document.querySelector(`#column-${number} .answer`);
      const length = answer ? answer.textContent.trim().length : 0;
      if (samples.length && samples.at(-1)[1] === length) return;
      samples.push([(performance.now() - began) / 1000, length]);
    });
  });
  window.watching.observe(document.querySelector("#columns"),
    { subtree: true, childList: true, characterData: true });
}"""


@dataclass(frozen=True)
class Column:
    """What one column showed: seconds since the click, and characters then on the page."""

    samples: list[tuple[float, int]]

    @property
    def first(self) -> float:
        return self.samples[0][0]

    @property
    def last(self) -> float:
        return self.samples[-1][0]

    def rate(self, tokens: int) -> float:
        """Tokens a second between the first and the last that came, ``tokens`` being all."""
        grown = 1 - self.samples[0][1] / self.samples[-1][1]
        return tokens * grown / (self.last - self.first)


def open_compare(chromium: Browser, url: str) -> Page:
    page = chromium.new_page(locale="ja-JP", viewport={"width": 1600, "height": 1000})
    page.goto(url)
    page.locator("#field-name").wait_for(timeout=60_000)
    page.get_by_role("tab").nth(1).click()
    page.locator("#compare-message textarea, #compare-message input").wait_for()
    return page


def choose(page: Page, models: list[str]) -> None:
    """As many columns as ``models``, each with its own."""
    shown = page.locator(".contestant:visible")
    while (before := shown.count()) != len(models):
        last = f"#column-{before - 1}-remove"
        page.locator("#compare-add" if before < len(models) else last).click()
        page.wait_for_function(
            "n => [...document.querySelectorAll('.contestant')]"
            ".filter(c => c.offsetParent).length !== n",
            arg=before,
        )
    for number, model in enumerate(models):
        field = page.locator(f"#column-{number} input").first
        field.fill(model)
        field.press("Enter")


def compare(page: Page, message: str, columns: int, patience: float = 60.0) -> list[Column]:
    """Sends ``message`` and watches ``columns`` until all have ended (``patience`` in seconds)."""
    page.locator("#compare-message").locator("textarea, input").first.fill(message)
    page.evaluate(WATCH, columns)
    page.locator("#compare-run").click()
    # One button may show before the other hides.
    page.locator("#compare-stop").wait_for()
    page.locator("#compare-run").wait_for(state="hidden")
    page.locator("#compare-stop").wait_for(state="hidden", timeout=patience * 1000)
    page.locator("#compare-run").wait_for()
    seen = page.evaluate("() => window.seen")
    return [Column(_after_reset(samples)) for samples in seen]


def _after_reset(samples: list[list[float]]) -> list[tuple[float, int]]:
    """Without what stood there before, and the moment when it was cleared away."""
    empty = max((i for i, (_, length) in enumerate(samples) if length == 0), default=-1)
    return [(when, int(length)) for when, length in samples[empty + 1 :]]
