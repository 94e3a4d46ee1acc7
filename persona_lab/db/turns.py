"""Queries of a turn: one transaction at its begin, and one at its end."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from sqlmodel import Session

from persona_lab.db.base import StoreBase
from persona_lab.db.chats import ChatState, own_chat, read_state
from persona_lab.db.messages import change_message, insert_message, own_message, supersede
from persona_lab.db.persona_rows import readable_agent
from persona_lab.db.rows import insert_new
from persona_lab.db.tables import Agent, Generation, Message
from persona_lab.errors import NotFound
from persona_lab.types import Status


@dataclass(frozen=True, slots=True)
class TurnStart:
    """What a turn needs from the database.

    Attributes:
        agent: The persona of the chat.
        question: The stored message to answer.
        state: The state of the chat with that message.
    """

    agent: Agent
    question: Message
    state: ChatState


class TurnQueries(StoreBase):
    """Queries of a turn."""

    def begin_turn(
        self, chat_id: str, *, user_id: str, content: str, agent_id: str | None = None
    ) -> TurnStart:
        """Store the user's message, and return it with its persona and the chat's state.

        Args:
            chat_id: The chat.
            user_id: Its owner.
            content: The message.
            agent_id: The persona that the chat must have; None for any.

        Raises:
            NotFound: The user has no such chat, or its persona is another one or was deleted. No
                message is stored then.
        """
        with self._write() as session:
            chat = own_chat(session, chat_id, user_id, deleted=False, lock=True)
            if agent_id not in (None, chat.agent_id):
                raise NotFound(kind="agent")
            agent = readable_agent(session, chat.agent_id, user_id)
            state = read_state(session, chat)
            question = insert_message(
                session,
                chat,
                sender="user",
                content=content,
                moment=self._clock(),
                position=state.last + 1,
            )
            return TurnStart(agent, question, replace(state, last=question.position))

    def begin_regeneration(self, chat_id: str, *, user_id: str) -> TurnStart:
        """Supersede the answers to the user's last message, and return it like :meth:`begin_turn`.

        Raises:
            NotFound: The user has no such chat, its persona was deleted, or the chat has no
                message. Nothing is changed then.
        """
        with self._write() as session:
            chat = own_chat(session, chat_id, user_id, deleted=False, lock=True)
            agent = readable_agent(session, chat.agent_id, user_id)
            question = supersede(session, chat)
            session.flush()
            return TurnStart(agent, question, read_state(session, chat))

    def finish_turn(
        self,
        generation: Generation,
        *,
        chat_id: str,
        user_id: str,
        content: str,
        status: Status,
        details: dict[str, Any],
        message_id: str = "",
        instead: bool = False,
    ) -> Message:
        """Store the answer of a turn and its generation.

        It works on a deleted chat too. A second call with the same generation doesn't store the
        generation again.

        Args:
            generation: The generation.
            chat_id: The chat.
            user_id: Its owner.
            content: The whole answer.
            status: Its status.
            details: Its metadata.
            message_id: The row of the answer; "" if the answer has no row yet.
            instead: Whether a new row replaces all answers to the last question.

        Raises:
            NotFound: The row of the chat or of the answer is gone. The generation is stored.
        """
        try:
            with self._write() as session:
                _insert_generation(session, generation)
                if message_id:
                    message, chat = own_message(session, message_id, user_id)
                    return change_message(
                        session, message, chat, content=content, status=status, details=details
                    )
                return insert_message(
                    session,
                    own_chat(session, chat_id, user_id, lock=True),
                    sender="ai",
                    content=content,
                    moment=self._clock(),
                    status=status,
                    details=details,
                    instead=instead,
                )
        except NotFound:
            with self._write() as session:
                _insert_generation(session, generation)
            raise


def _insert_generation(session: Session, generation: Generation) -> None:
    insert_new(session, "turnrecord", [generation.model_dump()])
