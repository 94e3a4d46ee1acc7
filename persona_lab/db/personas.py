"""Queries of personas: a user's own and the demos, with undo."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from sqlalchemy import select as columns
from sqlmodel import SQLModel, col, func, select, update

from persona_lab.db.base import RESTORABLE, StoreBase
from persona_lab.db.persona_rows import (
    add_revision,
    change_agent,
    insert_agent,
    own_agent,
    readable_agent,
    revisions_of,
)
from persona_lab.db.tables import Agent, Chat
from persona_lab.errors import ConfigurationError, InvalidPersona, NotFound
from persona_lab.personas.persona import TRAITS, clean_line, clean_persona, persona_of

CHOICES_FROM = 200
"""Personas whose personalities, roles and tones are offered for another."""


class AgentName(NamedTuple):
    """What a list of personas shows of one."""

    id: str
    name: str
    language: str
    demo: bool


class PersonaQueries(StoreBase):
    """Queries of personas and of their revisions."""

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
        """A new persona of the user's; a demo for ``user_id`` None.

        ``fields`` are those of :func:`persona_of`. Raises InvalidPersona.
        """
        traits = {"personalities": personalities, "roles": roles, "tones": tones}
        persona = clean_persona({"name": name, **traits, **fields})
        with self._write() as session:
            return insert_agent(session, persona, self._clock(), owner_id=user_id)

    def get_agent(self, agent_id: str, *, user_id: str, deleted: bool = False) -> Agent:
        """The user's own persona or a demo; with ``deleted``, also one that was deleted."""
        with self._read() as session:
            return readable_agent(session, agent_id, user_id, deleted=deleted)

    def agent_named(self, name: str, *, user_id: str) -> Agent:
        """The persona whose id or name is ``name``: of several, the user's own and last changed."""
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
        """The user's own, the last changed first, then the demos in the order of their file.

        With ``name``, only those that are called so.
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
        """A page of :meth:`list_agents`, in its order, without loading whole personas.

        Args:
            user_id: Whose list it is.
            search: A part of the name, in upper or lower case; empty finds all.
            limit: How many to return at most; None returns all.
            offset: How many to pass over first.
        """
        found: list[AgentName] = []
        with self._read() as session:
            for of, order in _agent_lists(user_id):
                if limit is not None and len(found) >= limit:
                    break
                demo = col(Agent.owner_id).is_(None).label("demo")
                page = columns(col(Agent.id), col(Agent.name), col(Agent.language), demo).where(*of)
                if search:
                    page = page.where(col(Agent.name).icontains(search, autoescape=True))
                rest = None if limit is None else limit - len(found)
                rows = session.connection().execute(
                    page.order_by(*order).limit(rest).offset(offset)
                )
                before = len(found)
                found += [AgentName(row.id, row.name, row.language, bool(row.demo)) for row in rows]
                if len(found) > before:
                    offset = 0
                elif offset:
                    count = columns(func.count()).select_from(page.subquery())
                    offset = max(0, offset - session.connection().execute(count).scalar_one())
        return found

    def update_agent(self, agent_id: str, *, user_id: str, **fields: Any) -> Agent:
        """Change ``fields`` of the user's own persona, keeping what it was for undo.

        A demo isn't changed: the user gets a copy of their own with the change, which takes over
        their conversations with the demo, and goes on with the ``id`` that comes back. Fields
        that already are so change nothing and copy nothing. A deleted persona is changed too,
        and stays deleted: nothing typed is lost. Raises InvalidPersona.
        """
        changes = clean_persona(fields)
        with self._write() as session:
            agent = readable_agent(session, agent_id, user_id, deleted=True, lock=True)
            former = persona_of(agent)
            if former | changes == former:
                return agent
            if agent.owner_id is None:
                agent = insert_agent(session, former | changes, self._clock(), owner_id=user_id)
                theirs = (col(Chat.user_id) == user_id, col(Chat.agent_id) == agent_id)
                session.connection().execute(update(Chat).where(*theirs).values(agent_id=agent.id))
                add_revision(session, agent, former, changes, self._clock())
                return agent
            add_revision(session, agent, former, changes, self._clock())
            return change_agent(session, agent, changes, self._clock())

    def undo_agent(self, agent_id: str, *, user_id: str) -> Agent | None:
        """The persona as it was before its last change; None when there is no step to go back."""
        with self._write() as session:
            agent = readable_agent(session, agent_id, user_id, deleted=True, lock=True)
            revision = session.exec(revisions_of(agent_id)).first()
            if agent.owner_id is None or revision is None:
                return None
            session.delete(revision)
            return change_agent(session, agent, revision.persona, self._clock())

    def can_undo(self, agent_id: str, *, user_id: str) -> bool:
        """Whether :meth:`undo_agent` has a step to go back."""
        with self._read() as session:
            agent = readable_agent(session, agent_id, user_id, deleted=True)
            newest = session.exec(revisions_of(agent_id)).first()
            return agent.owner_id is not None and newest is not None

    def duplicate_agent(self, agent_id: str, *, user_id: str, name: str) -> Agent:
        """The user's own copy of one of theirs or of a demo. Raises InvalidPersona."""
        renamed = clean_persona({"name": name})
        with self._write() as session:
            agent = readable_agent(session, agent_id, user_id)
            return insert_agent(
                session, persona_of(agent) | renamed, self._clock(), owner_id=user_id
            )

    def delete_agent(self, agent_id: str, *, user_id: str) -> None:
        """Hide the user's own persona. Its conversations stay."""
        with self._write() as session:
            agent = own_agent(session, agent_id, user_id)
            agent.deleted_at = agent.deleted_at or self._clock()

    def restore_agent(self, agent_id: str, *, user_id: str) -> Agent:
        with self._write() as session:
            agent = own_agent(session, agent_id, user_id)
            agent.deleted_at = None
            return agent

    def deleted_agent(self, *, user_id: str) -> Agent | None:
        """The user's persona that was deleted last, within :data:`RESTORABLE`; None without one."""
        gone = (
            select(Agent)
            .where(Agent.owner_id == user_id, col(Agent.deleted_at) > self._clock() - RESTORABLE)
            .order_by(col(Agent.deleted_at).desc(), col(Agent.id))
        )
        with self._read() as session:
            return session.exec(gone).first()

    def seed_agents(self, personas: list[dict[str, Any]]) -> None:
        """Make the demos be ``personas``: the fields of a persona and ``id``, in their order.

        ``try``, what a page suggests to say to it, isn't the store's and is passed over. A demo
        that is no longer among them is deleted as a user's would be. Raises ConfigurationError
        naming the persona and the field that is wrong.
        """
        wanted: dict[str, dict[str, Any]] = {}
        for number, fields in enumerate(personas, 1):
            seed = fields.get("id")
            if not isinstance(seed, str) or not seed or seed in wanted:
                raise ConfigurationError(f"personas: number {number}: id is missing or not its own")
            blank = persona_of(Agent(name=""))
            given = {field: value for field, value in fields.items() if field not in ("id", "try")}
            try:
                wanted[seed] = clean_persona(blank | given)
            except InvalidPersona as wrong:
                raise ConfigurationError(f"personas: {seed}: {wrong}") from wrong
        with self._write() as session:
            if self.engine.dialect.name == "postgresql":
                session.connection().exec_driver_sql("SELECT pg_advisory_xact_lock(7266)")
            demos = {agent.seed: agent for agent in session.exec(select(Agent).where(_is_seeded()))}
            for seed, demo in demos.items():
                if seed not in wanted:
                    demo.deleted_at = demo.deleted_at or self._clock()
            for position, (seed, persona) in enumerate(wanted.items()):
                known = demos.get(seed)
                if known is None:
                    known = insert_agent(session, persona, self._clock(), owner_id=None)
                    known.seed = seed
                elif persona_of(known) != persona:
                    change_agent(session, known, persona, self._clock())
                known.position = position
                known.deleted_at = None

    def choices(self, user_id: str, language: str) -> dict[str, list[str]]:
        """Names of personalities, roles and tones of the user's own personas that speak
        ``language``.

        Keyed as the fields of a persona, the most used first. They are counted in the
        :data:`CHOICES_FROM` personas that were changed last.
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
    """Conditions and order of the user's own personas, and of the demos."""
    alive, owner = col(Agent.deleted_at).is_(None), col(Agent.owner_id)
    newest = [col(Agent.updated_at).desc(), col(Agent.created_at).desc(), col(Agent.id)]
    as_in_file = [col(Agent.position), col(Agent.created_at), col(Agent.id)]
    return [([owner == user_id, alive], newest), ([owner.is_(None), alive], as_in_file)]


def _is_seeded() -> Any:
    return col(Agent.owner_id).is_(None) & col(Agent.seed).is_not(None)
