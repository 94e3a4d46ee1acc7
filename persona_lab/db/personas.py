"""Queries of personas: a user's own and the demos.

In tables and in the API the row of a persona is called an agent.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from sqlalchemy import select as columns
from sqlmodel import SQLModel, col, func, select, update

from persona_lab.db.base import RESTORABLE, StoreBase
from persona_lab.db.persona_rows import (
    add_revision,
    add_version,
    change_agent,
    insert_agent,
    own_agent,
    readable_agent,
    revisions_of,
)
from persona_lab.db.tables import Agent, Chat
from persona_lab.errors import ConfigurationError, InvalidPersona, NotFound
from persona_lab.personas.persona import TRAITS, clean_line, clean_persona, persona_of
from persona_lab.personas.versions import Snapshot

CHOICES_FROM = 200
"""Number of personas, last changed first, whose traits are suggested for another persona."""


class AgentName(NamedTuple):
    """What a list of personas shows of each."""

    id: str
    name: str
    language: str
    demo: bool
    label: str = ""


class PersonaQueries(StoreBase):
    """Queries of personas."""

    def create_agent(
        self,
        *,
        user_id: str | None,
        name: str,
        personalities: Sequence[str] = (),
        roles: Sequence[str] = (),
        tones: Sequence[str] = (),
        **fields: Any,
    ) -> Agent:
        """Create a persona.

        Args:
            user_id: The owner; None creates a demo.
            name: Its name.
            personalities: Names of its personality traits.
            roles: Names of its roles.
            tones: Names of its tones.
            **fields: Other fields of a persona, with their values.

        Raises:
            InvalidPersona: A field is unknown or its value is not valid.
        """
        traits = {"personalities": personalities, "roles": roles, "tones": tones}
        persona = clean_persona({"name": name, **traits, **fields})
        with self._write() as session:
            return insert_agent(session, persona, self._clock(), owner_id=user_id)

    def get_agent(self, agent_id: str, *, user_id: str, deleted: bool = False) -> Agent:
        """Return a persona of the user or a demo.

        Args:
            agent_id: Its id.
            user_id: The user who reads it.
            deleted: Whether a deleted persona is returned too.

        Raises:
            NotFound: There is no such persona, or it belongs to another user.
        """
        with self._read() as session:
            return readable_agent(session, agent_id, user_id, deleted=deleted)

    def agent_named(self, name: str, *, user_id: str) -> Agent:
        """Return the persona whose id or name is ``name``.

        Of several with that name, the user's own come before demos, and the last changed comes
        first.

        Raises:
            NotFound: The user can read no such persona.
        """
        with self._read() as session:
            with suppress(NotFound):
                return readable_agent(session, name, user_id)
            named = select(Agent).where(
                Agent.name == clean_line("name", name, 2 * len(name)),
                col(Agent.deleted_at).is_(None),
                (col(Agent.owner_id) == user_id) | col(Agent.owner_id).is_(None),
            )
            own_first = col(Agent.owner_id).is_(None), col(Agent.updated_at).desc()
            found = session.exec(named.order_by(*own_first, col(Agent.id))).first()
            if found is None:
                raise NotFound(kind="agent")
            return found

    def list_agents(self, *, user_id: str, name: str | None = None) -> list[Agent]:
        """Return the user's personas, last changed first, then the demos in their order.

        Args:
            user_id: The user who reads them.
            name: Return only personas with exactly this name.
        """
        own, demos = (
            select(Agent).where(*of).order_by(*order) for of, order in _agent_lists(user_id)
        )
        if name is not None:
            own, demos = (agents.where(Agent.name == name) for agents in (own, demos))
        with self._read() as session:
            return [*session.exec(own), *session.exec(demos)]

    def list_agent_names(
        self, *, user_id: str, search: str = "", limit: int | None = None, offset: int = 0
    ) -> list[AgentName]:
        """Return a page of :meth:`list_agents`, in the same order, without loading whole personas.

        Args:
            user_id: The user who reads them.
            search: A part of the name, in upper or lower case; empty matches all.
            limit: Maximum number of names; None returns all.
            offset: Number of names to skip.
        """
        found: list[AgentName] = []
        with self._read() as session:
            for of, order in _agent_lists(user_id):
                if limit is not None and len(found) >= limit:
                    break
                demo = col(Agent.owner_id).is_(None).label("demo")
                shown = col(Agent.id), col(Agent.name), col(Agent.language), col(Agent.label), demo
                page = columns(*shown).where(*of)
                if search:
                    page = page.where(col(Agent.name).icontains(search, autoescape=True))
                rest = None if limit is None else limit - len(found)
                rows = session.connection().execute(
                    page.order_by(*order).limit(rest).offset(offset)
                )
                before = len(found)
                found += [
                    AgentName(row.id, row.name, row.language, bool(row.demo), row.label)
                    for row in rows
                ]
                if len(found) > before:
                    offset = 0
                elif offset:
                    count = columns(func.count()).select_from(page.subquery())
                    offset = max(0, offset - session.connection().execute(count).scalar_one())
        return found

    def update_agent(self, agent_id: str, *, user_id: str, **fields: Any) -> Agent:
        """Change fields of a persona, and keep its former state for undo.

        A demo never changes. Instead the user gets a copy with the change, and the user's chats
        with the demo move to the copy: callers continue with the returned ``id``. The copy's first
        version is the demo. Values that are
        the same as before cause no change and no copy. A deleted persona is changed too, and stays
        deleted, so that no typed text is lost.

        Args:
            agent_id: A persona of the user or a demo.
            user_id: The user who changes it.
            **fields: The fields to change, with their new values.

        Raises:
            InvalidPersona: A field is unknown or its value is not valid.
            NotFound: There is no such persona, or it belongs to another user.
        """
        changes = clean_persona(fields)
        with self._write() as session:
            agent = readable_agent(session, agent_id, user_id, deleted=True, lock=True)
            former = persona_of(agent)
            if former | changes == former:
                return agent
            if agent.owner_id is None:
                agent = insert_agent(session, former | changes, self._clock(), owner_id=user_id)
                add_version(session, agent, Snapshot(former), "", self._clock())
                theirs = (col(Chat.user_id) == user_id, col(Chat.agent_id) == agent_id)
                session.connection().execute(update(Chat).where(*theirs).values(agent_id=agent.id))
                add_revision(session, agent, former, changes, self._clock())
                return agent
            add_revision(session, agent, former, changes, self._clock())
            return change_agent(session, agent, changes, self._clock())

    def undo_agent(self, agent_id: str, *, user_id: str) -> Agent | None:
        """Undo the last change of a persona and return it; return None when there is no change."""
        with self._write() as session:
            agent = readable_agent(session, agent_id, user_id, deleted=True, lock=True)
            revision = session.exec(revisions_of(agent_id)).first()
            if agent.owner_id is None or revision is None:
                return None
            session.delete(revision)
            return change_agent(session, agent, revision.persona, self._clock())

    def can_undo(self, agent_id: str, *, user_id: str) -> bool:
        """Return whether :meth:`undo_agent` would change the persona."""
        with self._read() as session:
            agent = readable_agent(session, agent_id, user_id, deleted=True)
            newest = session.exec(revisions_of(agent_id)).first()
            return agent.owner_id is not None and newest is not None

    def duplicate_agent(self, agent_id: str, *, user_id: str, name: str, label: str = "") -> Agent:
        """Create a copy, called ``name``, of a persona of the user or of a demo.

        The copy's first version is its state at the copy.

        Raises:
            InvalidPersona: The name is not valid.
            NotFound: There is no such persona, or it belongs to another user.
        """
        renamed = clean_persona({"name": name})
        with self._write() as session:
            agent = readable_agent(session, agent_id, user_id)
            persona = persona_of(agent) | renamed
            copy = insert_agent(session, persona, self._clock(), owner_id=user_id)
            copy.label = label
            add_version(session, copy, Snapshot(persona), "", self._clock())
            return copy

    def delete_agent(self, agent_id: str, *, user_id: str) -> None:
        """Mark the user's persona as deleted. Its chats stay."""
        with self._write() as session:
            agent = own_agent(session, agent_id, user_id)
            agent.deleted_at = agent.deleted_at or self._clock()

    def restore_agent(self, agent_id: str, *, user_id: str) -> Agent:
        """Restore the user's deleted persona and return it."""
        with self._write() as session:
            agent = own_agent(session, agent_id, user_id)
            agent.deleted_at = None
            return agent

    def deleted_agent(self, *, user_id: str) -> Agent | None:
        """Return the persona that the user deleted last, while it is :data:`RESTORABLE`."""
        query = (
            select(Agent)
            .where(Agent.owner_id == user_id, col(Agent.deleted_at) > self._clock() - RESTORABLE)
            .order_by(col(Agent.deleted_at).desc(), col(Agent.id))
        )
        with self._read() as session:
            return session.exec(query).first()

    def seed_agents(self, personas: list[dict[str, Any]]) -> None:
        """Create, update and delete demos until they are ``personas``, in this order.

        A demo that is no longer in the list is marked as deleted.

        Args:
            personas: The fields of each persona and its ``id``. The key ``try`` (suggested
                messages) is not stored.

        Raises:
            ConfigurationError: A persona is not valid. The message names the persona and the field.
        """
        personas_by_seed: dict[str, dict[str, Any]] = {}
        for number, fields in enumerate(personas, 1):
            seed = fields.get("id")
            if not isinstance(seed, str) or not seed or seed in personas_by_seed:
                raise ConfigurationError(f"personas: number {number}: id is missing or not its own")
            blank = persona_of(Agent(name=""))
            values = {field: value for field, value in fields.items() if field not in ("id", "try")}
            try:
                personas_by_seed[seed] = clean_persona(blank | values)
            except InvalidPersona as error:
                raise ConfigurationError(f"personas: {seed}: {error}") from error
        with self._write() as session:
            if self.engine.dialect.name == "postgresql":
                session.connection().exec_driver_sql("SELECT pg_advisory_xact_lock(7266)")
            demos = {agent.seed: agent for agent in session.exec(select(Agent).where(_is_seeded()))}
            for seed, demo in demos.items():
                if seed not in personas_by_seed:
                    demo.deleted_at = demo.deleted_at or self._clock()
            for position, (seed, persona) in enumerate(personas_by_seed.items()):
                known = demos.get(seed)
                if known is None:
                    known = insert_agent(session, persona, self._clock(), owner_id=None)
                    known.seed = seed
                elif persona_of(known) != persona:
                    change_agent(session, known, persona, self._clock())
                known.position = position
                known.deleted_at = None

    def choices(self, user_id: str, language: str) -> dict[str, list[str]]:
        """Return the traits that the user's personas in ``language`` have, most used first.

        The traits of the last changed :data:`CHOICES_FROM` personas are counted.

        Returns:
            Names of traits by the field of a persona: "personalities", "roles" and "tones".
        """
        (own, order), _ = _agent_lists(user_id)
        last = (
            columns(col(Agent.id))
            .where(*own, col(Agent.language) == language)
            .order_by(*order)
            .limit(CHOICES_FROM)
        )
        used: dict[str, list[str]] = {}
        with self._read() as session:
            connection = session.connection()
            agents = connection.execute(last).scalars().all()
            for field, kind in TRAITS.items():
                trait, link = (SQLModel.metadata.tables[n].c for n in (kind, f"agent{kind}"))
                count = func.count()
                names = (
                    columns(trait.name)
                    .join_from(trait.id.table, link.agent_id.table, link[f"{kind}_id"] == trait.id)
                    .where(link.agent_id.in_(agents))
                    .group_by(trait.name)
                    .add_columns(count)
                )
                counted = [tuple(row) for row in connection.execute(names)] if agents else []
                counted.sort(key=lambda row: (-row[1], row[0]))
                used[field] = [name for name, _ in counted]
        return used


def _agent_lists(user_id: str) -> list[tuple[list[Any], list[Any]]]:
    """Return the conditions and the order of the user's personas, and of the demos."""
    alive, owner = col(Agent.deleted_at).is_(None), col(Agent.owner_id)
    newest = [col(Agent.updated_at).desc(), col(Agent.created_at).desc(), col(Agent.id)]
    as_in_file = [col(Agent.position), col(Agent.created_at), col(Agent.id)]
    return [([owner == user_id, alive], newest), ([owner.is_(None), alive], as_in_file)]


def _is_seeded() -> Any:
    return col(Agent.owner_id).is_(None) & col(Agent.seed).is_not(None)
