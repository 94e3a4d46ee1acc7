"""The README's pictures: every tab in both languages, from the real page with the local models.
The month behind the insights is made up.

``python -m bench.pictures`` writes docs/pictures/*.png. Seeds aren't fixed: look before you commit.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

from playwright.sync_api import Browser, BrowserContext, Page

from bench.served import ROOT, browser, served
from persona_lab.db.store import Store
from persona_lab.db.tables import Generation
from persona_lab.server import COOKIE
from persona_lab.types import now

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
MONTH = (
    ("local", "gemma-3-270m", 350, 0),
    ("openai", "gpt-6.1-terra", 900, 1),
    ("anthropic", "claude-haiku-5-5", 700, 1),
    ("openai", "our-own-finetune", 1100, None),
)
"""Who answered: provider, model, milliseconds to the first word, US dollars a million tokens."""
PATIENCE = 120_000
"""Milliseconds that a local model may take."""


def take(chromium: Browser, url: str, language: str, database_url: str) -> None:
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
        page.wait_for_selector(f"#column-{column} .rerun", state="visible", timeout=PATIENCE)
    shoot(page, f"compare.{language}")

    page.get_by_role("tab").nth(2).click()
    for line in talk:
        page.locator("#chat-message textarea").fill(line)
        page.locator("#chat-message textarea").press("Enter")
        page.wait_for_selector("#chat-stop", state="visible")
        page.wait_for_selector("#chat-send", state="visible", timeout=PATIENCE)
        page.wait_for_timeout(500)
    shoot(page, f"chat.{language}")

    remember(context, language, database_url)
    look_back(page, language)
    page.get_by_role("tab").nth(4).click()
    page.wait_for_selector("#key-openai-state p")
    shoot(page, f"connect.{language}")
    context.close()


def look_back(page: Page, language: str) -> None:
    page.get_by_role("tab").nth(3).click()
    page.wait_for_selector("#insights-board svg.chart")
    page.locator("#insights-span label").nth(2).click()
    page.wait_for_function("document.querySelectorAll('svg.over-time title').length >= 60")
    shoot(page, f"insights.{language}")


def remember(context: BrowserContext, language: str, database_url: str) -> None:
    """A month of made-up turns, so that there is something to see: a picture is no evidence."""
    secret = next(c["value"] for c in context.cookies() if c["name"] == COOKIE)
    store = Store(database_url)
    try:
        user = store.user_for_secret(secret).id
        personas = [a for a in store.list_agents(user_id=user) if a.language == language][:4]
        for turn in a_month(user, [persona.id for persona in personas]):
            store.record(turn)
    finally:
        store.close()


def a_month(user: str, personas: list[str]) -> Iterator[Generation]:
    chance, today = random.Random(11), now()
    for days in range(30):
        working = (today - timedelta(days=days)).weekday() < 5
        for _ in range(chance.randint(8, 30) if working else chance.randint(0, 5)):
            provider, model, first, price = chance.choices(MONTH, [6, 3, 2, 1])[0]
            failed = chance.random() < 0.03
            prompt, answer = chance.randint(300, 2000), chance.randint(20, 300)
            if failed:
                prompt, answer = 0, 0
            cost = None if price is None else (prompt + 5 * answer) * price / 1e6
            first *= chance.lognormvariate(0, 0.5)
            yield Generation(
                user_id=user,
                agent_id=chance.choices(personas, [6, 3, 2, 1])[0],
                kind=chance.choices(["chat", "compare", "try"], [6, 3, 2])[0],
                provider=provider,
                model=model,
                status="failed" if failed else "ok",
                error_type="rate_limit" if failed else None,
                prompt_tokens=prompt,
                cached_tokens=int(prompt * chance.choice([0, 0.8, 0.9])),
                completion_tokens=answer,
                first_token_ms=None if failed else first,
                total_ms=first + 15 * answer,
                cost=cost,
                created_at=today - timedelta(days=days, hours=chance.uniform(0, 8)),
            )


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
            take(chromium, lab.url, language, f"sqlite:///{folder}/lab.db")


if __name__ == "__main__":
    main()
