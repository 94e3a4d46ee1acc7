# ruff: noqa: E501 - templates stay on one line
"""Chat templates of GGUF files, as model makers write them."""

from __future__ import annotations

import logging

import jinja2
import pytest

from persona_lab.clients.chat_template import ChatTemplate, chat_template

MESSAGES = [
    {"role": "system", "content": "あなたはミナです。"},
    {"role": "user", "content": "やあ"},
    {"role": "assistant", "content": "やあ！"},
    {"role": "user", "content": "元気？"},
]
WORDS = [message["content"] for message in MESSAGES]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOOLS = "{% if tools is not none %}{% for t in tools %}{{ t }}{% endfor %}{% endif %}"
NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'user' %}<u>{{ m.content }}"
    "{% elif m.role == 'assistant' %}<a>{{ m.content }}{% endif %}{% endfor %}<a>"
)
ALTERNATE = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}{% endfor %}"
)
PARTS = (
    "{% for m in messages %}<{{ m.role }}>{% for part in m.content %}{% if part.type == 'text' %}"
    "{{ part.text }}{% endif %}{% endfor %}{% endfor %}"
)


def rendered(template: str) -> str | None:
    return ChatTemplate(template, "<s>", "</s>").render(MESSAGES)


@pytest.mark.parametrize(
    "template",
    [
        CHATML,
        # a mark for training [textgen#6985]
        CHATML.replace("{{ m['content'] }}", "{% generation %}{{ m['content'] }}{% endgeneration %}"),
        CHATML.replace("{{ m['content'] }}", "{%- generation -%}{{ m['content'] }}{%- endgeneration -%}"),
        # variables that aren't given [gpt4all#3305]
        TOOLS + CHATML,
        TOOLS.replace("is not none", "!= none") + CHATML,
        TOOLS.replace("tools", "documents") + CHATML,
        TOOLS.replace("tools", "custom_tools") + CHATML,
        "{% if not tools is none and tools %}{{ tools[0].x.y }}{% endif %}" + CHATML,
        "{% if tools %}{{ tools | tojson(indent=4) }}{% endif %}" + CHATML,
        "{{ messages | length | tojson(ensure_ascii=False) }}" + CHATML,
        "{{ strftime_now('%Y') }}{% set ns = namespace(a=1) %}" + CHATML,
    ],
)  # fmt: skip
def test_template_of_the_wild_brings_out_all_words(template: str) -> None:
    text = rendered(template)
    assert text is not None
    places = [text.find(word) for word in WORDS]
    assert places[0] >= 0
    assert places == sorted(places)
    assert ChatTemplate(template, "<s>", "</s>").form == "messages"


@pytest.mark.parametrize(
    ("template", "form"),
    [
        (NO_SYSTEM, "system in user"),  # [textgen#5356]
        (ALTERNATE, "system in user"),
        (NO_SYSTEM.replace("<u>", "{{ bos_token }}"), "system in user"),
        (PARTS, "parts"),
        (PARTS.replace("<{{ m.role }}>", "{% if m.role == 'system' %}{% continue %}{% endif %}"),
         "system in user, parts"),
    ],
)  # fmt: skip
def test_other_form_is_used_when_the_persona_would_be_lost(template: str, form: str) -> None:
    text = rendered(template)
    assert ChatTemplate(template, "<s>", "</s>").form == form
    assert text is not None
    assert all(word in text for word in WORDS)


@pytest.mark.parametrize(
    "template",
    [
        "Hello",
        "{{ messages[-1].content }}",
        "{% for m in messages %}{{ m.role }}: {{ m.text }}{% endfor %}",
        "{% for m in messages | reverse %}{{ m.content }}{% endfor %}",
        NO_SYSTEM.replace("'assistant'", "'bot'"),
        "{% set messages = messages[1:] %}" + CHATML,
    ],
)
def test_template_that_loses_words_is_not_used(template: str) -> None:
    assert rendered(template) is None


@pytest.mark.parametrize(
    "template", ["{{ raise_exception('no') }}", "{% if %}", "{% generation %}", "{{ 1 / 0 }}"]
)
def test_template_that_always_fails_is_refused(template: str) -> None:
    with pytest.raises(jinja2.TemplateError):
        rendered(template)


def test_log_says_which_form_is_used(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            chat_template(NO_SYSTEM, "<b>", "</b>", "tiny")
    (record,) = caplog.records
    assert "tiny gets: system in user" in record.getMessage()


def test_conversation_without_system_or_user_is_rendered() -> None:
    template = ChatTemplate(NO_SYSTEM, "", "")
    assert template.render(MESSAGES[1:2]) == "<u>やあ<a>"
    assert template.render(MESSAGES[:1]) == "<u>あなたはミナです。<a>"
    assert "ミナ" in str(template.render([MESSAGES[0], MESSAGES[2]]))


@pytest.mark.parametrize(
    ("ending", "tag"),
    [
        ("<think>\n", "<think>\n"),
        ("<think>", "<think>\n"),
        ("[THINK]", "[THINK]\n"),
        ("<think>\n\n</think>\n\n", ""),
        ("", ""),
    ],
)
def test_thought_that_a_template_opens_is_known(ending: str, tag: str) -> None:
    assert ChatTemplate(CHATML + ending, "", "").open_thought == tag
