"""The README's pictures: every tab in both languages, from the real page with the local models.

``python -m bench.pictures`` writes docs/pictures/*.png. Seeds aren't fixed: look before you commit.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from playwright.sync_api import Browser, Page

from bench.served import ROOT, browser, served

PICTURES = ROOT / "docs" / "pictures"
SCENES = {
    "ja": (
        "ja-JP",
        "さくら",
        "虹はどうしてできるんですか？",
        ["おはようございます", "夕焼けはどうして赤いんですか？"],
    ),
    "en": (
        "en-US",
        "",
        "What do you love about your work?",
        ["Hello!", "What is a good day for you?"],
    ),
}
BESIDE = "三毛之介"
PATIENCE = 120_000
"""Milliseconds that a local model may take."""


def take(chromium: Browser, url: str, language: str) -> None:
    locale, persona, question, talk = SCENES[language]
    context = chromium.new_context(
        locale=locale, viewport={"width": 1280, "height": 860}, device_scale_factor=1.5
    )
    page = context.new_page()
    page.goto(url)
    page.wait_for_selector("#prompt-preview pre.prompt")
    page.wait_for_selector("#ready .ready", timeout=PATIENCE)
    if persona:
        page.locator("#who input").click()
        page.get_by_role("option", name=persona).first.click()
        page.wait_for_timeout(800)
    page.locator("#try-run").click()
    page.wait_for_selector("#tried .figures", timeout=PATIENCE)
    shoot(page, f"persona.{language}")

    page.get_by_role("tab").nth(1).click()
    if persona:  # another one beside it
        page.locator("#column-1 input").nth(1).click()
        page.get_by_role("option", name=BESIDE).first.click()
    page.locator("#compare-message textarea").fill(question)
    page.locator("#compare-run").click()
    for column in range(2):
        page.wait_for_selector(f"#column-{column} .again", state="visible", timeout=PATIENCE)
    shoot(page, f"compare.{language}")

    page.get_by_role("tab").nth(2).click()
    for line in talk:
        page.locator("#chat-message textarea").fill(line)
        page.locator("#chat-message textarea").press("Enter")
        page.wait_for_selector("#chat-stop", state="visible")
        page.wait_for_selector("#chat-send", state="visible", timeout=PATIENCE)
        page.wait_for_timeout(500)
    shoot(page, f"chat.{language}")
    context.close()


def shoot(page: Page, name: str) -> None:
    page.wait_for_timeout(500)
    page.screenshot(path=PICTURES / f"{name}.png")


def main() -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        served("app.py", Path(folder)) as lab,
        browser() as chromium,
    ):
        for language in SCENES:
            take(chromium, lab.url, language)


if __name__ == "__main__":
    main()
