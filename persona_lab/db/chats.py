"""Queries of chats: the conversations, their state and their summaries."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from sqlalchemy import bindparam, literal_column
from sqlalchemy import select as columns
from sqlmodel import Session, col, func, select

from persona_lab.db.base import RESTORABLE, StoreBase
from persona_lab.db.persona_rows import readable_agent
from persona_lab.db.rows import is_id
from persona_lab.db.tables import Chat, Message
from persona_lab.errors import Forbidden, NotFound
from persona_lab.personas.persona import clean_text


@dataclass(frozen=True, slots=True)
class ChatState:
    """The state of a chat at one moment. Code that caches parts of a chat compares it.

    Attributes:
        revision: Number of changes to messages that already existed.
        last: Position of the newest message; -1 without any.
        answering: Whether an answer is being streamed, or was when its process died.
        summary: Summary of the messages up to ``summary_through``.
        summary_through: Position of the last message that the summary covers; -1 without one.
    """

    revision: int = 0
    last: int = -1
    answering: bool = False
    summary: str = ""
    summary_through: int = -1


class ChatQueries(StoreBase):
    """Queries of chats."""

    def create_chat(self, *, user_id: str, agent_id: str) -> Chat:
        """Create a chat with a persona of the user or with a demo.

        Raises:
            NotFound: There is no such persona, or it belongs to another user.
        """
        with self._write() as session:
            readable_agent(session, agent_id, user_id, traits=False)
            moment = self._clock()
            chat = Chat(user_id=user_id, agent_id=agent_id, created_at=moment, updated_at=moment)
            session.add(chat)
        return chat

    def get_chat(self, chat_id: str, *, user_id: str) -> Chat:
        """Return a chat of the user that is not deleted.

        Raises:
            NotFound: There is no such chat, or it belongs to another user.
        """
        with self._read() as session:
            return own_chat(session, chat_id, user_id, deleted=False)

    def open_chat(self, chat_id: str, *, user_id: str) -> Chat:
        """Return a chat like :meth:`get_chat`, but tell a chat of another user from a missing one.

        Raises:
            Forbidden: The chat belongs to another user.
            NotFound: There is no such chat.
        """
        with self._read() as session:
            chat = session.get(Chat, chat_id) if is_id(chat_id) else None
            if chat is not None and chat.user_id != user_id:
                raise Forbidden(kind="chat")
            return own_chat(session, chat_id, user_id, deleted=False)

    def list_chats(
        self, *, user_id: str, agent_id: str | None = None, limit: int = 50
    ) -> list[Chat]:
        """Return the user's chats, last used first.

        Args:
            user_id: The owner of the chats.
            agent_id: Return only chats with this persona.
            limit: Maximum number of chats.
        """
        query = select(Chat).where(Chat.user_id == user_id, col(Chat.deleted_at).is_(None))
        if agent_id is not None:
            if not is_id(agent_id):
                return []
            query = query.where(Chat.agent_id == agent_id)
        newest = query.order_by(
            col(Chat.updated_at).desc(), col(Chat.created_at).desc(), col(Chat.id)
        )
        with self._read() as session:
            return list(session.exec(newest.limit(limit)))

    def delete_chat(self, chat_id: str, *, user_id: str) -> None:
        """Mark a chat as deleted. An answer that is still being streamed is saved with it."""
        with self._write() as session:
            chat = own_chat(session, chat_id, user_id)
            chat.deleted_at = chat.deleted_at or self._clock()

    def deleted_chat(self, agent_id: str, *, user_id: str) -> Chat | None:
        """Return the chat with the persona that the user deleted last.

        None when no such chat is still :data:`RESTORABLE`.
        """
        query = (
            select(Chat)
            .where(
                Chat.user_id == user_id,
                Chat.agent_id == agent_id,
                col(Chat.deleted_at) > self._clock() - RESTORABLE,
            )
            .order_by(col(Chat.deleted_at).desc(), col(Chat.id))
        )
        with self._read() as session:
            return session.exec(query).first() if is_id(agent_id) else None

    def restore_chat(self, chat_id: str, *, user_id: str) -> Chat:
        """Restore the user's deleted chat and return it."""
        with self._write() as session:
            chat = own_chat(session, chat_id, user_id)
            chat.deleted_at = None
            return chat

    def chat_state(self, chat_id: str, *, user_id: str | None) -> ChatState:
        """Return the state of a chat, read in one transaction.

        Args:
            chat_id: The chat.
            user_id: Its owner; None skips the check, for callers that have checked already.

        Raises:
            NotFound: The user has no such chat. Without a check, the result is an empty state.
        """
        with self._read() as session:
            if user_id is not None:
                chat: Chat | None = own_chat(session, chat_id, user_id, deleted=False)
            else:
                chat = session.get(Chat, chat_id) if is_id(chat_id) else None
            return ChatState() if chat is None else read_state(session, chat)

    def summarize(self, chat_id: str, *, user_id: str, summary: str, since: ChatState) -> None:
        """Store a summary of the messages up to ``since.summary_through``.

        Nothing is stored when a message was changed after ``since`` was read: the summary may
        describe a text that no longer exists.

        Args:
            chat_id: The chat.
            user_id: Its owner.
            summary: The text of the summary.
            since: The state from which the summary was made, with the position that it covers.
        """
        with self._write() as session:
            chat = own_chat(session, chat_id, user_id, lock=True)
            if chat.revision == since.revision and chat.summary_through < since.summary_through:
                chat.summary = clean_text(summary)
                chat.summary_through = since.summary_through


def own_chat(
    session: Session, chat_id: str, user_id: str, *, deleted: bool = True, lock: bool = False
) -> Chat:
    """Return a chat of the user, or raise NotFound.

    Args:
        session: The session of the transaction.
        chat_id: The chat.
        user_id: Its owner.
        deleted: Whether a deleted chat is returned too.
        lock: Whether to lock its row until the transaction ends.
    """
    chat = session.get(Chat, chat_id, with_for_update=lock) if is_id(chat_id) else None
    if chat is None or chat.user_id != user_id or (chat.deleted_at and not deleted):
        raise NotFound(kind="chat")
    return chat


def read_state(session: Session, chat: Chat) -> ChatState:
    """Return the state of a chat whose row is loaded."""
    newest, answering = (
        session.connection().execute(_newest_and_answering(), {"chat": chat.id}).one()
    )
    return ChatState(
        chat.revision,
        -1 if newest is None else newest,
        bool(answering),
        chat.summary,
        chat.summary_through,
    )


@cache
def _newest_and_answering() -> Any:
    """Return the query of a chat's last position, and of whether an answer is being streamed."""
    in_chat = col(Message.chat_id) == bindparam("chat")
    last = select(func.max(Message.position)).where(in_chat)
    streaming = select(Message.id).where(in_chat, is_streaming())
    return columns(last.scalar_subquery(), streaming.exists())


def next_revision() -> Any:
    """Return an expression for the next revision. The database counts, so no writer is missed."""
    return Chat.__table__.c.revision + 1  # type: ignore[attr-defined]


def is_streaming() -> Any:
    """Return the condition of the partial index on streamed messages, in exactly the same SQL."""
    return col(Message.status) == literal_column("'streaming'")
