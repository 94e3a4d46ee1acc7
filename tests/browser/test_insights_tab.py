"""The insights tab: figures, charts, the CSV file and alerts."""

from __future__ import annotations

import csv
from datetime import timedelta
from pathlib import Path

import pytest
from playwright.sync_api import Locator, expect
from support.app_process import run_app, wait_until
from support.browser import CORE_IN_JAPANESE, PAGE, BrowserUser, PageOpener

from persona_lab.types import now


def number(user: BrowserUser, name: str) -> Locator:
    """One of the four figures."""
    return user.locator(f"#insights-board .number-{name} .figure")


@pytest.mark.parametrize("language", CORE_IN_JAPANESE)
def test_insights_show_a_hint_then_the_first_answer(open_page: PageOpener, language: str) -> None:
    user = open_page(language)
    user.open_tab("insights")
    expect(user.locator("#insights-board .empty")).to_have_text(user.text("insights.empty"))
    user.open_tab("chat")
    user.send("やあ")
    user.wait_for_answers(1)
    user.open_tab("insights")
    expect(number(user, "answers")).to_have_text("1")
    expect(number(user, "errors")).to_have_text("0.0%")
    expect(number(user, "cost")).to_have_text(user.text("figures.free"))
    user.add_generations(9)
    user.locator("#insights-again").click()
    expect(number(user, "answers")).to_have_text("10")


def test_span_is_chosen_by_keyboard_in_the_visitors_time_zone(open_page: PageOpener) -> None:
    user = open_page("ja", time_zone="Pacific/Kiritimati")
    user.add_generations(3, created_at=now() - timedelta(days=20))
    user.open_tab("insights")
    expect(user.locator("#insights-board .empty")).to_have_text(user.text("insights.empty_span"))
    expect(user.locator("#insights-board .as-of")).to_contain_text("Pacific/Kiritimati")
    user.locator("#insights-span input:checked").focus()
    user.page.keyboard.press("ArrowRight")
    expect(number(user, "answers")).to_have_text("3")
    user.page.keyboard.press("ArrowLeft")
    expect(user.locator("#insights-board .empty")).to_be_visible()


def test_chart_points_have_titles_and_names_are_escaped(user: BrowserUser) -> None:
    trick = "<img src=x onerror=\"document.title='got'\">"
    user.add_generations(20, name=trick, created_at=now())
    user.open_tab("insights")
    expect(user.locator("#insights-board svg.chart")).to_have_count(4)
    titles = (
        user.locator("#insights-board svg.over-time").first.locator("title").all_text_contents()
    )
    assert len(titles) == 7
    month, day = PAGE("insights.months", "ja").split(), now().astimezone()
    at = user.text(
        "insights.at.day", year=day.year, month=month[day.month - 1], day=day.day, hour=0
    )
    assert titles[-1] == user.text("insights.answers_at", at=at, answers="20", errors="2")
    expect(
        user.locator(
            "#insights-board th[scope=row]",
        ).filter(has_text=trick)
    ).to_have_count(1)
    assert user.locator("#insights-board img").count() == 0
    assert user.page.title() == "Persona Lab"


@pytest.mark.parametrize("language", CORE_IN_JAPANESE)
def test_csv_has_only_own_turns_in_a_form_for_excel(open_page: PageOpener, language: str) -> None:
    user, other = open_page(language, time_zone="Asia/Tokyo"), open_page(language)
    other.add_generations(5, name="よその人")
    user.add_generations(12, name="=HYPERLINK(1)")
    user.open_tab("insights")
    expect(number(user, "answers")).to_have_text("12")
    with user.page.expect_download() as saving:
        user.locator("#insights-save").click()
    file = saving.value
    today = user.page.evaluate("new Date().toLocaleDateString('sv')")
    assert file.suggested_filename == f"persona-lab-{today}.csv"
    text = Path(file.path()).read_bytes().decode("utf-8")
    assert text.startswith("\ufeff")
    head, *lines = csv.reader(text.removeprefix("\ufeff").splitlines())
    assert head[2] == user.text("sheet.persona")
    assert len(lines) == 12
    assert {line[2] for line in lines} == {"'=HYPERLINK(1)"}
    assert all(line[0].endswith("+09:00") for line in lines)
    wait_until(lambda: user.text_box("insights-sheet").input_value() == "")


def test_alert_marks_the_insights_tab_on_every_tab(open_page: PageOpener, tmp_path: Path) -> None:
    troubled = {"LLM_MODEL": "echo?fail=overloaded", "ALERT_MIN_TURNS": "1", "LLM_RETRIES": "0"}
    with run_app(tmp_path, **troubled) as app:
        user, other = open_page(app=app), open_page("en", app=app)
        mark = "getComputedStyle(document.getElementById('insights-button'), '::before').content"
        assert user.page.evaluate(mark) == "none"
        user.open_tab("chat")
        user.send("やあ")
        for each in (user, other):
            expect(each.locator("#alert-marker")).to_contain_text(
                each.text("insights.alerts_stand")
            )
            assert each.page.evaluate(mark) == '""'
        other.open_tab("insights")
        expect(other.locator("#insights-alerts")).to_contain_text(
            other.text("insights.alerts_about")
        )
        expect(other.locator("#insights-board .empty")).to_be_visible()


def test_long_chart_label_is_cut_before_its_value(open_page: PageOpener) -> None:
    user = open_page(width=390)
    user.add_generations(9, model="m" * 120)
    user.open_tab("insights")
    words = user.locator("#insights-board .words").first.locator("span")
    expect(words).to_have_count(2)
    name, value = words.all()
    ends, begins = (box.bounding_box() or {} for box in (name, value))
    assert ends["x"] + ends["width"] <= begins["x"]
    assert name.evaluate("name => name.scrollWidth > name.clientWidth")
