"""Queries of chats: the conversations, their state and their summaries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import literal_column
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
    """Where a conversation stands: whoever kept something of it sees here whether that still holds.

    ``revision`` counts changes to what was there; ``last`` is the newest position; ``answering``:
    an answer is on its way, or was when its process died. ``summary`` tells what stands up to
    ``summary_through``.
    """

    revision: int = 0
    last: int = -1
    answering: bool = False
    summary: str = ""
    summary_through: int = -1


class ChatQueries(StoreBase):
    """Queries of chats."""

    def create_chat(self, *, user_id: str, agent_id: str) -> Chat:
        with self._write() as session:
            readable_agent(session, agent_id, user_id, traits=False)
            moment = self._clock()
            chat = Chat(user_id=user_id, agent_id=agent_id, created_at=moment, updated_at=moment)
            session.add(chat)
        return chat

    def get_chat(self, chat_id: str, *, user_id: str) -> Chat:
        with self._read() as session:
            return own_chat(session, chat_id, user_id, deleted=False)

    def open_chat(self, chat_id: str, *, user_id: str) -> Chat:
        """:meth:`get_chat` for a door that tells another's conversation from none: Forbidden."""
        with self._read() as session:
            chat = session.get(Chat, chat_id) if is_id(chat_id) else None
            if chat is not None and chat.user_id != user_id:
                raise Forbidden(kind="chat")
            return own_chat(session, chat_id, user_id, deleted=False)

    def list_chats(
        self, *, user_id: str, agent_id: str | None = None, limit: int = 50
    ) -> list[Chat]:
        """The user's conversations, the last used first; those with one persona on request."""
        chats = select(Chat).where(Chat.user_id == user_id, col(Chat.deleted_at).is_(None))
        if agent_id is not None:
            if not is_id(agent_id):
                return []
            chats = chats.where(Chat.agent_id == agent_id)
        newest = chats.order_by(
            col(Chat.updated_at).desc(), col(Chat.created_at).desc(), col(Chat.id)
        )
        with self._read() as session:
            return list(session.exec(newest.limit(limit)))

    def delete_chat(self, chat_id: str, *, user_id: str) -> None:
        """Hide the conversation. An answer that is still on its way is kept with it."""
        with self._write() as session:
            chat = own_chat(session, chat_id, user_id)
            chat.deleted_at = chat.deleted_at or self._clock()

    def deleted_chat(self, agent_id: str, *, user_id: str) -> Chat | None:
        """The user's conversation with the persona that was deleted last, as
        :meth:`deleted_agent`."""
        gone = (
            select(Chat)
            .where(
                Chat.user_id == user_id,
                Chat.agent_id == agent_id,
                col(Chat.deleted_at) > self._clock() - RESTORABLE,
            )
            .order_by(col(Chat.deleted_at).desc(), col(Chat.id))
        )
        with self._read() as session:
            return session.exec(gone).first() if is_id(agent_id) else None

    def restore_chat(self, chat_id: str, *, user_id: str) -> Chat:
        with self._write() as session:
            chat = own_chat(session, chat_id, user_id)
            chat.deleted_at = None
            return chat

    def chat_state(self, chat_id: str, *, user_id: str | None) -> ChatState:
        """Where the conversation stands, as one moment saw it. ``user_id`` as for exchanges."""
        last = select(func.max(Message.position)).where(Message.chat_id == chat_id)
        streaming = select(Message.id).where(Message.chat_id == chat_id, is_streaming())
        now_there = columns(last.scalar_subquery(), streaming.exists())
        with self._read() as session:
            if user_id is not None:
                chat: Chat | None = own_chat(session, chat_id, user_id, deleted=False)
            else:
                chat = session.get(Chat, chat_id) if is_id(chat_id) else None
            if chat is None:
                return ChatState()
            newest, answering = session.connection().execute(now_there).one()
            return ChatState(
                chat.revision,
                -1 if newest is None else newest,
                bool(answering),
                chat.summary,
                chat.summary_through,
            )

    def summarize(self, chat_id: str, *, user_id: str, summary: str, since: ChatState) -> None:
        """Keep ``summary`` of what stands up to ``since.summary_through``.

        Not where the conversation was changed since ``since``: it would tell of what is gone.
        """
        with self._write() as session:
            chat = own_chat(session, chat_id, user_id, lock=True)
            if chat.revision == since.revision and chat.summary_through < since.summary_through:
                chat.summary = clean_text(summary)
                chat.summary_through = since.summary_through


def own_chat(
    session: Session, chat_id: str, user_id: str, *, deleted: bool = True, lock: bool = False
) -> Chat:
    chat = session.get(Chat, chat_id, with_for_update=lock) if is_id(chat_id) else None
    if chat is None or chat.user_id != user_id or (chat.deleted_at and not deleted):
        raise NotFound(kind="chat")
    return chat


def next_revision() -> Any:
    """A conversation's next revision, counted by the database: two writers count two."""
    return Chat.__table__.c.revision + 1  # type: ignore[attr-defined]


def is_streaming() -> Any:
    """To the letter what the index of such rows says, or it wouldn't be used."""
    return col(Message.status) == literal_column("'streaming'")
