"""Queries of messages: read, add, change, supersede and restore."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from datetime import datetime
from itertools import islice
from typing import Any

from sqlalchemy import case
from sqlalchemy import select as columns
from sqlalchemy.orm.attributes import set_committed_value
from sqlmodel import Session, col, func, select, update

from persona_lab.db.base import StoreBase
from persona_lab.db.chats import is_streaming, next_revision, own_chat
from persona_lab.db.prompt_parts import inline_message, load_details, strip_details
from persona_lab.db.rows import is_id
from persona_lab.db.tables import Chat, Message
from persona_lab.errors import NotFound
from persona_lab.personas.persona import clean_text
from persona_lab.types import Sender, Status

TITLE_LENGTH = 40
"""Maximum number of characters of a chat's title."""
ANSWERED: tuple[Status, ...] = ("ok", "stopped", "interrupted")
"""Status of messages that may be sent to a model."""


class MessageQueries(StoreBase):
    """Queries of messages."""

    def messages(
        self,
        chat_id: str,
        *,
        user_id: str,
        superseded: bool = False,
        limit: int | None = None,
        before: str = "",
    ) -> list[Message]:
        """Return the messages of a chat in their order.

        Args:
            chat_id: The chat.
            user_id: Its owner.
            superseded: Whether superseded answers are returned too.
            limit: Return only the last messages, at most this many.
            before: Return only messages before the one with this id.

        Raises:
            NotFound: The user has no such chat, or the chat has no message ``before``.
        """
        query = select(Message).where(Message.chat_id == chat_id)
        if not superseded:
            query = query.where(col(Message.superseded).is_(False))
        with self._read() as session:
            own_chat(session, chat_id, user_id, deleted=False)
            if before:
                end = session.get(Message, before) if is_id(before) else None
                if end is None or end.chat_id != chat_id:
                    raise NotFound(kind="message")
                query = query.where(Message.position < end.position)
            newest = query.order_by(col(Message.position).desc()).limit(limit)
            messages = list(session.exec(newest))[::-1]
            load_details(session, chat_id, messages)
            return messages

    def get_message(self, message_id: str, *, user_id: str) -> Message:
        """Return a message of the user's chats.

        Raises:
            NotFound: There is no such message, or it belongs to another user.
        """
        with self._read() as session:
            message, _ = own_message(session, message_id, user_id)
            load_details(session, message.chat_id, [message])
            return message

    def add_message(
        self,
        chat_id: str,
        *,
        user_id: str,
        sender: Sender,
        content: str,
        status: Status = "ok",
        image_url: str | None = None,
        details: dict[str, Any] | None = None,
        instead: bool = False,
    ) -> Message:
        """Append a message to a chat. The user's first message also sets the chat's title.

        It works on a deleted chat too, so that an answer that ends later is saved.

        Args:
            chat_id: The chat.
            user_id: Its owner.
            sender: "user" or "ai".
            content: The text.
            status: The status of the answer.
            image_url: An image that belongs to the message.
            details: Metadata of an answer.
            instead: Whether it replaces all answers to the last question, which are superseded.

        Raises:
            NotFound: The user has no such chat.
        """
        with self._write() as session:
            chat = own_chat(session, chat_id, user_id, lock=True)
            return insert_message(
                session,
                chat,
                sender=sender,
                content=content,
                moment=self._clock(),
                status=status,
                image_url=image_url,
                details=details,
                instead=instead,
            )

    def update_message(
        self,
        message_id: str,
        *,
        user_id: str,
        content: str | None = None,
        status: Status | None = None,
        details: dict[str, Any] | None = None,
    ) -> Message:
        """Change a message. Arguments that are None leave their value as it is.

        Raises:
            NotFound: There is no such message, or it belongs to another user.
        """
        with self._write() as session:
            message, chat = own_message(session, message_id, user_id)
            return change_message(
                session, message, chat, content=content, status=status, details=details
            )

    def restore_answer(self, question_id: str, *, user_id: str) -> None:
        """Restore the newest complete or stopped answer to a message; supersede its other answers.

        Raises:
            NotFound: There is no such message, or it belongs to another user.
        """
        with self._write() as session:
            question = session.get(Message, question_id) if is_id(question_id) else None
            chat = session.get(Chat, question.chat_id, with_for_update=True) if question else None
            if question is None or chat is None or chat.user_id != user_id:
                raise NotFound(kind="message")
            chat.revision = next_revision()
            after = [
                col(Message.chat_id) == question.chat_id,
                col(Message.position) > question.position,
            ]
            following = session.exec(
                select(func.min(Message.position)).where(*after, col(Message.sender) == "user")
            ).one()
            if following is not None:
                after.append(col(Message.position) < following)
            answers = session.exec(
                select(Message).where(*after).order_by(col(Message.position).desc())
            ).all()
            restored = next((answer for answer in answers if answer.status in ANSWERED), None)
            if restored is not None:
                for answer in answers:
                    answer.superseded = answer is not restored

    def list_exchanges(
        self,
        chat_id: str,
        *,
        user_id: str | None,
        limit: int,
        before: int | None = None,
        after: int = -1,
        first: bool = False,
    ) -> list[tuple[Message, Message]]:
        """Return questions with their answers, oldest first.

        Failed, unfinished, empty and superseded answers are left out, with their questions.

        Args:
            chat_id: The chat.
            user_id: Its owner; None skips the check, for callers that have checked already.
            limit: Maximum number of exchanges.
            before: Only messages before this position.
            after: Only messages after this position.
            first: Whether to return the first exchanges instead of the last.

        Raises:
            NotFound: The user has no such chat.
        """
        query = (
            select(Message)
            .where(
                Message.chat_id == chat_id,
                col(Message.superseded).is_(False),
                col(Message.status).in_(ANSWERED),
                Message.content != "",
                Message.position > after,
            )
            .order_by(col(Message.position) if first else col(Message.position).desc())
            .execution_options(yield_per=2 * limit + 2)
        )
        if before is not None:
            query = query.where(Message.position < before)
        with self._read() as session:
            if user_id is not None:
                own_chat(session, chat_id, user_id, deleted=False)
            with closing(session.exec(query)) as messages:  # islice may leave it unfinished
                pairs = _oldest_first(messages) if first else _newest_first(messages)
                exchanges = list(islice(pairs, max(0, limit)))
            load_details(session, chat_id, [message for pair in exchanges for message in pair])
        return exchanges if first else exchanges[::-1]

    def mark_interrupted(self) -> int:
        """Mark answers that a crash left "streaming" as "interrupted". It runs at start.

        An answer that another replica still streams gets its final status when it ends. When a
        crash came after an answer was superseded and before its replacement began, the answer is
        restored.

        Returns:
            Number of answers that were marked.
        """
        position, chat_id = col(Message.position), col(Message.chat_id)
        with self._write() as session:
            has_streaming = col(Chat.id).in_(select(Message.chat_id).where(is_streaming()))
            session.exec(update(Chat).where(has_streaming).values(revision=next_revision()))
            streaming = update(Message).where(is_streaming())
            marked = session.exec(streaming.values(status="interrupted")).rowcount
            newest = (
                columns(
                    chat_id,
                    func.max(case((col(Message.superseded), position))).label("superseded"),
                    func.max(case((~col(Message.superseded), position))).label("current"),
                )
                .where(col(Message.status).in_(ANSWERED) | ~col(Message.superseded))
                .group_by(chat_id)
                .subquery()
            )
            is_newest_superseded = (chat_id == newest.c.chat_id) & (position == newest.c.superseded)
            for answer, chat in session.exec(
                select(Message, Chat)
                .join(newest, is_newest_superseded)
                .join(Chat, col(Chat.id) == chat_id)
                .where(newest.c.superseded > newest.c.current)
            ).all():
                answer.superseded, chat.revision = False, next_revision()
            return marked


def own_message(session: Session, message_id: str, user_id: str) -> tuple[Message, Chat]:
    """Return a message of the user with its chat, or raise NotFound."""
    message = session.get(Message, message_id) if is_id(message_id) else None
    chat = session.get(Chat, message.chat_id) if message else None
    if message is None or chat is None or chat.user_id != user_id:
        raise NotFound(kind="message")
    return message, chat


def insert_message(
    session: Session,
    chat: Chat,
    *,
    sender: Sender,
    content: str,
    moment: datetime,
    position: int | None = None,
    status: Status = "ok",
    image_url: str | None = None,
    details: dict[str, Any] | None = None,
    instead: bool = False,
) -> Message:
    """Append a message to a locked chat. See :meth:`MessageQueries.add_message`.

    ``position`` is the position after the last message; None reads it.
    """
    content = clean_text(content)
    if position is None:
        last = select(func.max(Message.position)).where(Message.chat_id == chat.id)
        newest = session.exec(last).one()
        position = 0 if newest is None else newest + 1
    message = Message(
        chat_id=chat.id,
        position=position,
        sender=sender,
        content=content,
        status=status,
        image_url=clean_text(image_url) if image_url else None,
        created_at=moment,
    )
    full_details = dict(details or {})
    if sender == "ai":
        strip_details(session, message, full_details, chat.user_id)
    if instead:
        question_position = (
            select(func.max(Message.position))
            .where(Message.chat_id == chat.id, Message.sender == "user")
            .scalar_subquery()
        )
        session.exec(
            update(Message)
            .where(col(Message.chat_id) == chat.id, col(Message.position) > question_position)
            .values(superseded=True)
        )
    session.add(message)
    chat.updated_at = moment
    if sender == "user" and not chat.title:
        chat.title = " ".join(content.split())[:TITLE_LENGTH]
    session.flush()
    set_committed_value(message, "details", full_details)
    return message


def change_message(
    session: Session,
    message: Message,
    chat: Chat,
    *,
    content: str | None = None,
    status: Status | None = None,
    details: dict[str, Any] | None = None,
) -> Message:
    """Change a message of a chat. Arguments that are None leave their value as it is."""
    if message.status != "streaming":
        chat.revision = next_revision()
    if content is not None:
        content = clean_text(content)
        if message.status != "streaming" and message.content != content:
            session.get(Chat, chat.id, with_for_update=True)  # no new answer refers to it
            inline_message(session, message, chat.user_id)
        message.content = content
    if status is not None:
        message.status = status
    if details is not None:
        full_details = strip_details(session, message, details, chat.user_id)
    session.flush()
    if details is not None:
        set_committed_value(message, "details", full_details)
    else:
        load_details(session, message.chat_id, [message])
    return message


def supersede(session: Session, chat: Chat) -> Message:
    """Supersede the answers to the last question of a locked chat, and return the question."""
    question = session.exec(
        select(Message)
        .where(Message.chat_id == chat.id, Message.sender == "user")
        .order_by(col(Message.position).desc())
    ).first()
    if question is None:
        raise NotFound(kind="message")
    session.exec(
        update(Message)
        .where(col(Message.chat_id) == chat.id, col(Message.position) > question.position)
        .values(superseded=True)
    )
    chat.revision = next_revision()
    if chat.summary_through >= question.position:
        chat.summary, chat.summary_through = "", -1
    return question


def _oldest_first(rows: Iterable[Message]) -> Iterator[tuple[Message, Message]]:
    """Yield questions with the last of their answers, from messages in ascending order."""
    question: Message | None = None
    answer: Message | None = None
    for message in rows:
        if message.sender == "ai":
            answer = message
        else:
            if question is not None and answer is not None:
                yield question, answer
            question, answer = message, None
    if question is not None and answer is not None:
        yield question, answer


def _newest_first(rows: Iterable[Message]) -> Iterator[tuple[Message, Message]]:
    """Yield questions with the last of their answers, from messages in descending order."""
    answer: Message | None = None
    for message in rows:
        if message.sender == "ai":
            answer = answer or message
        elif answer is not None:
            yield message, answer
            answer = None
