"""Store what was sent to a model once, and refer to it.

The metadata of an answer holds the whole prompt: the system text, the turns and the summary of
older turns. Most of that is stored already: the turns are messages of the same chat, and the
system text is the same for each answer of a persona. So a stored answer keeps *parts* instead:

- a message of the chat is named by its position,
- any other long text by its hash, and stands once in the table ``prompt``,
- a short text stands in the parts themselves.

A reference reads back as the same text, to the character. ``strip`` and ``restore`` are pure;
``Parts`` is what the column ``message.prompt_parts`` holds, as JSON:

``{"prompt": [segment, …], "sent": [turn, …], "summary": [segment, …]}``, where a segment is a
position, ``[position]`` (that message on one line, as a transcript has it), ``"=text"`` or
``"#hash"``; and a turn is a position, ``[first, last]`` (all positions from first to last) or
``["user" or "assistant", segment]``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from sqlalchemy import bindparam, exists, literal_column
from sqlalchemy import select as columns
from sqlalchemy.orm.attributes import set_committed_value
from sqlmodel import Session, col, func, select

from persona_lab.db.rows import insert_new
from persona_lab.db.tables import Chat, ChatPrompt, Message, StoredPrompt

MAX_INLINE = 48
"""Characters of a text that is not worth a row of its own."""
MAX_LABEL = 160
"""Characters between two messages of a transcript: a line's end and a speaker's label."""
MAX_HASHES = 500
"""Hashes to name in one query; more are all that the chat has."""
LOOK_BACK = 4
"""Messages to look at for each turn that was sent: some failed or were superseded."""

Parts = dict[str, list[Any]]
StoredMessage = tuple[str, str]
"""Sender and content of a message."""

_ROLES = {"user": "user", "ai": "assistant"}
_KEYS: dict[str, Any] = {"prompt": "", "sent": [], "summary": ""}
"""Keys of the metadata that are stripped, and what stands there instead."""


@dataclass(slots=True)
class Stripped:
    """Metadata without what was sent; ``texts`` are the texts that ``parts`` names by hash."""

    details: dict[str, Any]
    parts: Parts = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)


def text_hash(text: str, user_id: str) -> str:
    """Return the key of a user's text: 128 bits of SHA-256 over the user's id and the text.

    The id is part of it, so that nobody learns from a key whether another user has the text.
    """
    return hashlib.sha256(f"{user_id}\0{text}".encode()).hexdigest()[:32]


def strip(
    details: Mapping[str, Any], user_id: str, messages: Mapping[int, StoredMessage]
) -> Stripped:
    """Replace what was sent in ``details`` by references to ``messages`` and to texts.

    Args:
        details: The metadata of an answer, as the pipeline writes it.
        user_id: Whose answer it is.
        messages: Earlier messages of the chat by position.
    """
    stripped = Stripped(dict(details))
    system, sent, summary = (details.get(key) for key in _KEYS)
    if isinstance(sent, list) and sent and all(map(_is_turn, sent)):
        stripped.details["sent"] = []
        stripped.parts["sent"] = _turn_parts(sent, messages, stripped, user_id)
    if isinstance(system, str) and len(system) > MAX_INLINE and _is_storable(system):
        stripped.details["prompt"] = ""
        stripped.parts["prompt"] = (
            [_segment(system, stripped, user_id)]
            if sent
            else _transcript_parts(system, messages, stripped, user_id)
        )
    if isinstance(summary, str) and len(summary) > MAX_INLINE and _is_storable(summary):
        stripped.details["summary"] = ""
        stripped.parts["summary"] = [_segment(summary, stripped, user_id)]
    return stripped


def restore(
    details: Mapping[str, Any],
    parts: Parts,
    texts: Mapping[str, str],
    messages: Mapping[int, StoredMessage],
) -> dict[str, Any]:
    """Return the metadata as it was before :func:`strip`.

    A key that holds something is left alone: a replica of the version before wrote it.
    """
    restored = dict(details)
    for key in parts:
        if not restored.get(key):
            join = _join_turns if key == "sent" else _join_text
            restored[key] = join(parts[key], texts, messages)
    return restored


def load_details(session: Session, chat_id: str, messages: Iterable[Message]) -> None:
    """Give ``messages`` of one chat their whole metadata, which is not written back."""
    messages = list(messages)
    answers = [message for message in messages if message.prompt_parts]
    if not answers:
        return
    hashes, positions = _references(message.prompt_parts for message in answers)
    texts: dict[str, str] = {}
    if hashes:
        query = (
            columns(col(StoredPrompt.hash), col(StoredPrompt.content))
            .join(ChatPrompt, col(ChatPrompt.hash) == col(StoredPrompt.hash))
            .where(col(ChatPrompt.chat_id) == chat_id)
        )
        if len(hashes) <= MAX_HASHES:
            query = query.where(col(ChatPrompt.hash).in_(hashes))
        texts = {row.hash: row.content for row in session.connection().execute(query)}
    known = {message.position: (message.sender, message.content) for message in messages}
    missing = positions - known.keys()
    if missing:
        known |= read_messages(session, chat_id, min(missing), max(missing) + 1)
    for message in answers:
        full_details = restore(message.details, message.prompt_parts or {}, texts, known)
        set_committed_value(message, "details", full_details)


def strip_details(
    session: Session,
    message: Message,
    details: Mapping[str, Any],
    user_id: str,
    *,
    without: int | None = None,
) -> dict[str, Any]:
    """Set ``message.details`` and its parts for storage, and return the whole metadata.

    ``without`` is the position of a message not to refer to.
    """
    known: dict[int, StoredMessage] = {}
    if details.get("prompt") or details.get("sent"):
        first = message.position - _look_back(details)
        known = read_messages(session, message.chat_id, first, message.position)
    if without is not None:
        known.pop(without, None)
    stripped = strip(details, user_id, known)
    store_texts(session, message.chat_id, user_id, stripped.texts)
    message.details, message.prompt_parts = stripped.details, stripped.parts
    return dict(details)


def inline_message(session: Session, message: Message, user_id: str) -> None:
    """Make later answers independent of ``message`` before its text changes.

    They keep the text that was sent.
    """
    later = session.exec(
        select(Message).where(
            Message.chat_id == message.chat_id, Message.position > message.position
        )
    )
    referring = [
        answer for answer in later if message.position in _references([answer.prompt_parts])[1]
    ]
    load_details(session, message.chat_id, referring)
    for answer in referring:
        strip_details(session, answer, answer.details, user_id, without=message.position)


def convert_old_rows(session: Session, chats: int) -> int:
    """Strip the rows that a version without parts wrote, in at most ``chats`` chats.

    Returns:
        How many chats were converted; 0 when all are.
    """
    unconverted = col(Message.chat_id), col(Message.prompt_parts).is_(None), _is_answer()
    chats_to_convert = session.exec(
        select(Chat.id, Chat.user_id)
        .where(col(Chat.id).in_(select(unconverted[0]).where(*unconverted[1:])))
        .limit(chats)
    ).all()
    for chat_id, user_id in chats_to_convert:
        old = session.exec(
            select(Message).where(Message.chat_id == chat_id, *unconverted[1:]).with_for_update()
        ).all()
        messages = read_messages(session, chat_id, 0, max(m.position for m in old) if old else 0)
        texts: dict[str, str] = {}
        for message in old:
            first, end = message.position - _look_back(message.details), message.position
            earlier = {at: messages[at] for at in range(first, end) if at in messages}
            stripped = strip(message.details, user_id, earlier)
            texts |= stripped.texts
            message.details, message.prompt_parts = stripped.details, stripped.parts
        store_texts(session, chat_id, user_id, texts)
    return len(chats_to_convert)


def count_old_rows(session: Session) -> int:
    """Return the number of answers that :func:`convert_old_rows` has yet to convert."""
    count = select(func.count()).select_from(Message)
    return session.exec(count.where(col(Message.prompt_parts).is_(None), _is_answer())).one()


def is_unused() -> Any:
    """Return the condition that no chat refers to a prompt."""
    return ~exists().where(col(ChatPrompt.hash) == col(StoredPrompt.hash))


def _is_answer() -> Any:
    """Return the condition of the index on unconverted rows, in exactly the same SQL."""
    return col(Message.sender) == literal_column("'ai'")


def _look_back(details: Mapping[str, Any]) -> int:
    """Return how many messages before an answer may have been sent."""
    sent = details.get("sent")
    return LOOK_BACK * ((len(sent) if isinstance(sent, list) else 0) + 8)


def read_messages(session: Session, chat_id: str, first: int, end: int) -> dict[int, StoredMessage]:
    """Return sender and content of a chat's messages from position ``first`` to before ``end``."""
    parameters = {"chat": chat_id, "first": first, "end": end}
    rows = session.connection().execute(_messages_between(), parameters)
    return {position: (sender, content) for position, sender, content in rows}


@cache
def _messages_between() -> Any:
    position = col(Message.position)
    return columns(position, col(Message.sender), col(Message.content)).where(
        col(Message.chat_id) == bindparam("chat"),
        position >= bindparam("first"),
        position < bindparam("end"),
    )


def store_texts(session: Session, chat_id: str, user_id: str, texts: Mapping[str, str]) -> None:
    """Store ``texts`` that are new, and the chat's references to them."""
    if not texts:
        return
    connection = session.connection()
    parameters = {"chat": chat_id, "hashes": list(texts)}
    new = sorted(texts.keys() - set(connection.execute(_linked_hashes(), parameters).scalars()))
    if new:
        insert_new(
            session,
            "prompt",
            [{"hash": key, "user_id": user_id, "content": texts[key]} for key in new],
        )
        insert_new(session, "chatprompt", [{"chat_id": chat_id, "hash": key} for key in new])


@cache
def _linked_hashes() -> Any:
    """Return the query of those of some hashes that a chat refers to."""
    return columns(col(ChatPrompt.hash)).where(
        col(ChatPrompt.chat_id) == bindparam("chat"),
        col(ChatPrompt.hash).in_(bindparam("hashes", expanding=True)),
    )


def _is_storable(text: str) -> bool:
    """Return whether every database can store ``text`` in a text column."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def _is_turn(turn: object) -> bool:
    return (
        isinstance(turn, dict)
        and list(turn) == ["role", "content"]
        and turn["role"] in _ROLES.values()
        and isinstance(turn["content"], str)
        and _is_storable(turn["content"])
    )


def _segment(text: str, stripped: Stripped, user_id: str) -> str:
    if len(text) <= MAX_INLINE:
        return f"={text}"
    key = text_hash(text, user_id)
    stripped.texts[key] = text
    return f"#{key}"


def _turn_parts(
    sent: Sequence[Mapping[str, str]],
    messages: Mapping[int, StoredMessage],
    stripped: Stripped,
    user_id: str,
) -> list[Any]:
    by_content = {(_ROLES.get(sender), text): at for at, (sender, text) in sorted(messages.items())}
    parts: list[Any] = []
    expected = -1
    for turn in reversed(sent):  # the newest is nearest to the answer
        key = (turn["role"], turn["content"])
        sender, text = messages.get(expected, ("", ""))
        at = expected if (_ROLES.get(sender), text) == key else by_content.get(key)
        if at is None:
            parts.append([turn["role"], _segment(turn["content"], stripped, user_id)])
            continue
        if parts and isinstance(parts[-1], list) and parts[-1][0] == at + 1:
            parts[-1][0] = at
        elif parts and parts[-1] == at + 1:
            parts[-1] = [at, at + 1]
        else:
            parts.append(at)
        expected = at - 1
    return parts[::-1]


def _transcript_parts(
    text: str, messages: Mapping[int, StoredMessage], stripped: Stripped, user_id: str
) -> list[Any]:
    """Cut the messages out of a transcript, from its end on, as long as one follows another."""
    parts: list[Any] = []
    end = len(text)
    for position in sorted(messages, reverse=True):
        line = _one_line(messages[position][1])
        begin = text.rfind(line, max(0, end - len(line) - MAX_LABEL), end) if line else -1
        if begin >= 0:
            rest = text[begin + len(line) : end]
            parts += [_segment(rest, stripped, user_id), [position]] if rest else [[position]]
            end = begin
    if end:
        parts.append(_segment(text[:end], stripped, user_id))
    return parts[::-1]


def _one_line(text: str) -> str:
    return text.strip().replace("\n", " ")


def _join_text(
    parts: list[Any], texts: Mapping[str, str], messages: Mapping[int, StoredMessage]
) -> str:
    texts_read: list[str] = []
    for part in parts:
        if isinstance(part, list):
            texts_read.append(_one_line(messages.get(part[0], ("", ""))[1]))
        elif part.startswith("="):
            texts_read.append(part[1:])
        else:
            texts_read.append(texts.get(part[1:], ""))
    return "".join(texts_read)


def _join_turns(
    parts: list[Any], texts: Mapping[str, str], messages: Mapping[int, StoredMessage]
) -> list[dict[str, str]]:
    turns: list[dict[str, str]] = []
    for part in parts:
        if isinstance(part, list) and isinstance(part[0], str):
            turns.append({"role": part[0], "content": _join_text(part[1:], texts, messages)})
            continue
        first, last = part if isinstance(part, list) else (part, part)
        for position in range(first, last + 1):
            sender, content = messages.get(position, ("user", ""))
            turns.append({"role": _ROLES[sender], "content": content})
    return turns


def _references(all_parts: Iterable[Parts | None]) -> tuple[set[str], set[int]]:
    """Return the hashes and the positions that the parts refer to."""
    hashes: set[str] = set()
    positions: set[int] = set()
    for parts in filter(None, all_parts):
        for part in parts.get("sent", ()):
            match part:
                case int():
                    positions.add(part)
                case [int() as first, int() as last]:
                    positions.update(range(first, last + 1))
                case [str(), str() as segment] if segment.startswith("#"):
                    hashes.add(segment[1:])
        for part in [*parts.get("prompt", ()), *parts.get("summary", ())]:
            if isinstance(part, list):
                positions.add(part[0])
            elif part.startswith("#"):
                hashes.add(part[1:])
    return hashes, positions
