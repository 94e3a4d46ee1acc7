"""The actions that several interfaces share: each exists once here.

REST, ``/v1``, the WebSocket, Gradio's named endpoints and the page call :class:`Operations`. It
knows neither HTTP nor components, and leaves validation to the store and the service.
:mod:`persona_lab.server.serializers` converts its results to JSON-ready data.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from persona_lab.clients.catalog import ModelInfo
from persona_lab.comparison.runner import Cell, Comparison, Contestant
from persona_lab.db.generations import GenerationRow
from persona_lab.db.persona_rows import unsaved_agent
from persona_lab.db.store import AgentName, Store
from persona_lab.db.tables import Agent, AgentVersion, ApiToken, Chat, Message
from persona_lab.db.versions import info_of, snapshot_of
from persona_lab.insights import Summary
from persona_lab.lab import Lab
from persona_lab.personas.diff import changed_fields
from persona_lab.personas.persona import persona_of
from persona_lab.personas.versions import DraftState, Snapshot, VersionDiff, VersionInfo
from persona_lab.pipeline.service import LLMService
from persona_lab.types import Event, Language, Prompt


@dataclass(frozen=True, slots=True)
class Operations:
    """The actions of one user.

    Attributes:
        lab: The lab that does the work.
        user_id: The owner of all rows. Rows of other users count as missing (NotFound).
        language: The language of error and fallback texts.
        service: The lab's service, or one with the provider keys of a visitor.
    """

    lab: Lab
    user_id: str
    language: Language
    service: LLMService

    @property
    def store(self) -> Store:
        """The store of the lab."""
        return self.lab.store

    # ── personas ──────────────────────────────────────────────────────────────────────────

    async def list_personas(self, *, name: str | None = None) -> list[Agent]:
        """The user's personas, the last changed first, then the demos; by ``name`` if given."""
        return await asyncio.to_thread(self.store.list_agents, user_id=self.user_id, name=name)

    async def list_persona_names(self) -> list[AgentName]:
        """Id, name and language of each of them, without the rest of its row."""
        return await asyncio.to_thread(self.store.list_agent_names, user_id=self.user_id)

    async def get_persona(self, persona_id: str, *, deleted: bool = False) -> Agent:
        """The user's persona or a demo; with ``deleted``, also one that was deleted."""
        return await asyncio.to_thread(
            self.store.get_agent, persona_id, user_id=self.user_id, deleted=deleted
        )

    async def find_persona(self, name: str) -> Agent:
        """The persona whose id or name is ``name``."""
        return await asyncio.to_thread(self.store.agent_named, name, user_id=self.user_id)

    async def create_persona(self, **fields: Any) -> Agent:
        """A new persona. Raises InvalidPersona."""
        return await asyncio.to_thread(self.store.create_agent, user_id=self.user_id, **fields)

    async def update_persona(self, persona_id: str, **fields: Any) -> Agent:
        """Change a persona; a demo's change makes a copy with a new id. Raises InvalidPersona."""
        return await asyncio.to_thread(
            self.store.update_agent, persona_id, user_id=self.user_id, **fields
        )

    async def duplicate_persona(self, persona_id: str, name: str, label: str = "") -> Agent:
        """A copy of the user's persona or of a demo. ``label`` tells it from others in lists."""
        return await asyncio.to_thread(
            self.store.duplicate_agent, persona_id, user_id=self.user_id, name=name, label=label
        )

    async def delete_persona(self, persona_id: str) -> None:
        """Delete a persona of the user's. Its conversations stay."""
        await asyncio.to_thread(self.store.delete_agent, persona_id, user_id=self.user_id)

    async def restore_persona(self, persona_id: str) -> Agent:
        """Bring a deleted persona back."""
        return await asyncio.to_thread(self.store.restore_agent, persona_id, user_id=self.user_id)

    async def undo_persona(self, persona_id: str) -> Agent | None:
        """Undo the last change; None where there is none."""
        return await asyncio.to_thread(self.store.undo_agent, persona_id, user_id=self.user_id)

    # ── versions ──────────────────────────────────────────────────────────────────────────

    async def list_versions(self, persona_id: str) -> list[VersionInfo]:
        """The versions of a persona, the newest first. A demo has none."""
        return await asyncio.to_thread(self.store.list_versions, persona_id, user_id=self.user_id)

    async def get_version(self, persona_id: str, number: int) -> AgentVersion:
        """A version of a persona, with its content."""
        return await asyncio.to_thread(
            self.store.get_version, persona_id, number, user_id=self.user_id
        )

    async def draft_state(self, agent: Agent) -> DraftState:
        """How the present state of a persona differs from its newest version."""
        newest = await asyncio.to_thread(self.store.newest_version, agent.id, user_id=self.user_id)
        if newest is None:
            return DraftState(None, [], is_committed=False)
        saved, draft = snapshot_of(newest), self._snapshot(agent, newest.options)
        changes = changed_fields(saved.persona, draft.persona)
        return DraftState(info_of(newest), changes, saved.is_same(draft))

    async def commit_version(self, persona_id: str, message: str = "") -> AgentVersion:
        """Keep the present state of a persona as its next version. Raises NothingToCommit."""
        agent = await self.get_persona(persona_id, deleted=True)
        newest = await asyncio.to_thread(self.store.newest_version, agent.id, user_id=self.user_id)
        return await asyncio.to_thread(
            self.store.commit_version,
            persona_id,
            user_id=self.user_id,
            message=message,
            options=newest.options if newest else {},
            templates=self.lab.prompt_builder.template_hashes(agent),
        )

    async def restore_version(
        self, persona_id: str, number: int, draft_message: str = ""
    ) -> tuple[Agent, AgentVersion]:
        """Make a version the present state, as a new version. A draft becomes a version first."""
        wanted = await self.get_version(persona_id, number)
        return await asyncio.to_thread(
            self.store.restore_version,
            persona_id,
            number,
            user_id=self.user_id,
            draft_message=draft_message,
            templates=self.lab.prompt_builder.template_hashes(unsaved_agent(wanted.persona)),
        )

    async def diff_versions(
        self, persona_id: str, before: int, after: int | None = None, *, model: str = ""
    ) -> VersionDiff:
        """The difference between two versions; None stands for the present state.

        Args:
            persona_id: The persona.
            before: The number of the earlier version; 0 stands for an empty persona.
            after: The number of the later one.
            model: The model that the prompts are for, as provider:name; "" is the default.
        """
        states = [await self._state(persona_id, number) for number in (before or None, after)]
        if not before:
            states[0] = unsaved_agent({"name": states[1].name, "language": states[1].language})
        earlier, later = [str(await self.preview(agent, "", model=model)) for agent in states]
        changes = changed_fields(persona_of(states[0]), persona_of(states[1]))
        return VersionDiff(changes, (earlier, later))

    async def _state(self, persona_id: str, number: int | None) -> Agent:
        if number is None:
            return await self.get_persona(persona_id, deleted=True)
        return unsaved_agent((await self.get_version(persona_id, number)).persona)

    def _snapshot(self, agent: Agent, options: Mapping[str, Any]) -> Snapshot:
        templates = self.lab.prompt_builder.template_hashes(agent)
        return Snapshot(persona_of(agent), options, templates)

    # ── conversations ─────────────────────────────────────────────────────────────────────

    async def list_chats(self, persona_id: str = "", *, limit: int = 50) -> list[Chat]:
        """The user's conversations, the last used first; an empty id means every persona's."""
        return await asyncio.to_thread(
            self.store.list_chats, user_id=self.user_id, agent_id=persona_id or None, limit=limit
        )

    async def get_chat(self, chat_id: str) -> Chat:
        """One conversation, without its messages."""
        return await asyncio.to_thread(self.store.get_chat, chat_id, user_id=self.user_id)

    async def create_chat(self, persona_id: str) -> Chat:
        """Begin a conversation with the user's persona or a demo."""
        return await asyncio.to_thread(
            self.store.create_chat, user_id=self.user_id, agent_id=persona_id
        )

    async def list_messages(
        self, chat_id: str, *, limit: int | None = None, before: str = ""
    ) -> list[Message]:
        """The last ``limit`` messages ahead of the message ``before``, the oldest first."""
        return await asyncio.to_thread(
            self.store.messages, chat_id, user_id=self.user_id, limit=limit, before=before
        )

    async def delete_chat(self, chat_id: str) -> None:
        """Delete a conversation."""
        await asyncio.to_thread(self.store.delete_chat, chat_id, user_id=self.user_id)

    async def restore_chat(self, chat_id: str) -> Chat:
        """Bring a deleted conversation back."""
        await asyncio.to_thread(self.store.restore_chat, chat_id, user_id=self.user_id)
        return await self.get_chat(chat_id)

    # ── answers ───────────────────────────────────────────────────────────────────────────

    async def preview(self, agent: Agent, message: str, *, model: str = "") -> Prompt:
        """The exact prompt that would be sent. ``agent`` may be unsaved."""
        return await self.service.preview(agent, message, model=model)

    def answer(
        self, agent: Agent, message: str, *, model: str = "", **options: Any
    ) -> AsyncGenerator[Event, None]:
        """Answer one message without a conversation. ``agent`` may be unsaved."""
        return self.service.answer(
            agent, message, user_id=self.user_id, model=model, language=self.language, **options
        )

    def longest_answer(self, model: str) -> int:
        """The most tokens that an answer of ``model`` can have beside its prompt.

        Raises:
            UnknownModel: No such model is listed.
        """
        info = self.service.clients.info(model)
        return max(info.context // 2, self.service.clients.options(info).max_tokens)

    async def chat_for(
        self, message: str, chat_id: str, persona_id: str, *, model: str = ""
    ) -> tuple[str, Chat]:
        """Return the cleaned message and its conversation; an empty ``chat_id`` makes a new one.

        The message and the model are checked first, so an invalid request makes no conversation.
        ``persona_id`` is used for a new conversation only.

        Raises:
            InputError: The message or the model can't be used.
            NotFound: The user has no such conversation, or no such persona.
        """
        text = self.lab.input_validator.validate_message(message)
        self.service.clients.info(model)
        if not chat_id:
            return text, await self.create_chat(persona_id)
        return text, await self.get_chat(chat_id)

    def send(
        self, message: str, chat_id: str, persona_id: str, *, model: str = "", **options: Any
    ) -> AsyncGenerator[Event, None]:
        """Send a message in a conversation, and stream the answer."""
        return self.service.generate_streaming(
            message, persona_id, chat_id, self.user_id,
            model=model, language=self.language, **options,
        )  # fmt: skip

    def regenerate(
        self, chat_id: str, *, model: str = "", pending: bool = False
    ) -> AsyncGenerator[Event, None]:
        """Stream another answer to the last message of a conversation. The old one is kept."""
        return self.service.regenerate_streaming(
            chat_id, self.user_id, model=model, language=self.language, pending=pending
        )

    def compare(
        self, message: str, contestants: Sequence[Contestant]
    ) -> AsyncGenerator[list[Cell], None]:
        """Send one message to several contestants at once. Yields snapshots of all cells."""
        return Comparison(self.service).run(
            message, contestants, self.user_id, language=self.language
        )

    # ── models, usage, tokens ─────────────────────────────────────────────────────────────

    def list_models(self) -> list[tuple[ModelInfo, bool]]:
        """The models, the default first, and whether the user can use each."""
        return [(info, self.service.clients.available(info)) for info in self.lab.clients.listed()]

    async def summary(self, span: str, zone: str) -> Summary:
        """The usage statistics of a span, in days of a time zone."""
        return await asyncio.to_thread(
            self.lab.insights.summary, user_id=self.user_id, span=span, zone=zone
        )

    async def list_turns(self, span: str, zone: str) -> Sequence[GenerationRow]:
        """The records of the turns behind :meth:`summary`."""
        return await asyncio.to_thread(
            self.lab.insights.turns, user_id=self.user_id, span=span, zone=zone
        )

    async def list_tokens(self) -> list[ApiToken]:
        """The user's valid API tokens, the newest first."""
        return await asyncio.to_thread(self.store.list_tokens, user_id=self.user_id)

    async def create_token(self, name: str) -> tuple[ApiToken, str]:
        """A new API token and its secret, which can't be read again."""
        return await asyncio.to_thread(self.store.create_token, user_id=self.user_id, name=name)

    async def revoke_token(self, token_id: str) -> None:
        """Revoke an API token."""
        await asyncio.to_thread(self.store.revoke_token, token_id, user_id=self.user_id)
