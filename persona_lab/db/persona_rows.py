"""Statements on the rows of one persona: find, insert, change, and keep revisions.

They run inside the caller's transaction.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from functools import cache
from typing import Any

from sqlalchemy import bindparam, literal, union_all
from sqlalchemy import select as columns
from sqlalchemy.orm import lazyload
from sqlalchemy.orm.attributes import set_committed_value
from sqlmodel import Session, SQLModel, col, delete, func, select

from persona_lab.db.rows import insert_new, is_id
from persona_lab.db.tables import Agent, AgentRevision, AgentVersion, Personality, Role, Tone
from persona_lab.errors import NotFound
from persona_lab.personas.persona import TRAITS
from persona_lab.personas.versions import Snapshot

BURST = timedelta(seconds=2)
"""Changes of one text field with no longer pause between them are one revision."""
REVISIONS = 100
"""Maximum number of revisions kept for each persona."""

_TRAIT_TABLES: dict[str, type[SQLModel]] = {
    "personalities": Personality,
    "roles": Role,
    "tones": Tone,
}


def unsaved_agent(persona: Mapping[str, Any], known_as: str = "") -> Agent:
    """Return a persona as an unsaved row.

    Args:
        persona: The fields of the persona. Missing fields are empty.
        known_as: The id of a stored persona; its statistics include the row's answers.
    """
    traits = {
        field: [row(name=name) for name in persona.get(field, ())]
        for field, row in _TRAIT_TABLES.items()
    }
    known = {"id": known_as} if known_as else {}
    return Agent(**{**persona, **traits, **known})


def find_agent(
    session: Session, agent_id: str, *, lock: bool = False, traits: bool = True
) -> Agent:
    """Return a persona, whoever owns it.

    Args:
        session: The session of the transaction.
        agent_id: Its id.
        lock: Whether to lock its row until the transaction ends.
        traits: Whether to load its traits, which takes a second query.

    Raises:
        NotFound: There is no such persona.
    """
    options: Any = {"with_for_update": lock, "options": [lazyload("*")]}
    agent = session.get(Agent, agent_id, **options) if is_id(agent_id) else None
    if agent is None:
        raise NotFound(kind="agent")
    if traits:
        _load_traits(session, agent)
    return agent


def readable_agent(
    session: Session, agent_id: str, user_id: str, *, deleted: bool = False, **options: bool
) -> Agent:
    """Return a persona of the user or a demo; NotFound for any other."""
    agent = find_agent(session, agent_id, **options)
    if agent.owner_id not in (None, user_id) or (agent.deleted_at and not deleted):
        raise NotFound(kind="agent")
    return agent


def own_agent(session: Session, agent_id: str, user_id: str, *, lock: bool = False) -> Agent:
    """Return a persona of the user, deleted or not; NotFound for any other."""
    agent = find_agent(session, agent_id, lock=lock)
    if agent.owner_id is None or agent.owner_id != user_id:
        raise NotFound(kind="agent")
    return agent


def insert_agent(
    session: Session, persona: dict[str, Any], moment: datetime, *, owner_id: str | None
) -> Agent:
    """Insert a persona with validated fields."""
    agent = Agent(name="", owner_id=owner_id, created_at=moment)
    session.add(agent)
    return change_agent(session, agent, persona, moment)


def change_agent(
    session: Session, agent: Agent, persona: dict[str, Any], moment: datetime
) -> Agent:
    """Set validated fields of a persona, and reload it."""
    for field, value in persona.items():
        if field not in TRAITS:
            setattr(agent, field, value)
    agent.updated_at = moment
    session.flush()
    for field in TRAITS.keys() & persona.keys():
        _link_traits(session, agent.id, TRAITS[field], persona[field])
    session.refresh(agent)
    return agent


def add_revision(
    session: Session,
    agent: Agent,
    former: dict[str, Any],
    changes: dict[str, Any],
    moment: datetime,
) -> None:
    """Keep ``former`` as a revision, unless ``changes`` continue the newest one.

    A change continues a revision when both change only the same text field, within :data:`BURST`.
    The oldest revisions beyond :data:`REVISIONS` are deleted.
    """
    newest = session.exec(revisions_of(agent.id)).first()
    if newest is not None and moment - newest.created_at < BURST:
        begun = {field for field in former if former[field] != newest.persona.get(field)}
        now = {field for field in changes if changes[field] != former[field]}
        if len(now) == 1 and now == begun and not _is_word_list(former[now.pop()]):
            newest.created_at = moment
            return
    old = select(AgentRevision.id).where(AgentRevision.agent_id == agent.id)
    old = old.order_by(col(AgentRevision.id).desc()).offset(REVISIONS - 1)
    session.exec(delete(AgentRevision).where(col(AgentRevision.id).in_(old)))
    session.add(
        AgentRevision(
            agent_id=agent.id, owner_id=str(agent.owner_id), persona=former, created_at=moment
        )
    )


def add_version(
    session: Session,
    agent: Agent,
    snapshot: Snapshot,
    message: str,
    moment: datetime,
    *,
    restored_from: int | None = None,
) -> AgentVersion:
    """Insert the next version of a persona. The caller has locked the persona's row."""
    last = select(func.max(AgentVersion.number)).where(AgentVersion.agent_id == agent.id)
    version = AgentVersion(
        agent_id=agent.id,
        owner_id=str(agent.owner_id),
        number=(session.exec(last).one() or 0) + 1,
        message=message,
        persona=dict(snapshot.persona),
        options=dict(snapshot.options),
        templates=dict(snapshot.templates),
        hash=snapshot.hash,
        restored_from=restored_from,
        created_at=moment,
    )
    session.add(version)
    session.flush()
    return version


def revisions_of(agent_id: str) -> Any:
    """Return the query of a persona's revisions, newest first."""
    return (
        select(AgentRevision)
        .where(AgentRevision.agent_id == agent_id)
        .order_by(col(AgentRevision.id).desc())
    )


def _load_traits(session: Session, agent: Agent) -> None:
    """Load the traits of all kinds with one query. The relationships need one for each kind."""
    loaded: dict[str, list[SQLModel]] = {field: [] for field in TRAITS}
    for field, trait_id, name, _ in session.connection().execute(
        _traits_query(), {"agent": agent.id}
    ):
        loaded[field].append(_TRAIT_TABLES[field](id=trait_id, name=name))
    for field, traits in loaded.items():
        set_committed_value(agent, field, traits)


@cache
def _traits_query() -> Any:
    """Return the query of a persona's traits: the field, the id, the name and the position."""
    kinds = []
    for field, kind in TRAITS.items():
        trait, link = (SQLModel.metadata.tables[name].c for name in (kind, f"agent{kind}"))
        kinds.append(
            columns(literal(field).label("field"), trait.id, trait.name, link.position)
            .join_from(trait.id.table, link.agent_id.table, link[f"{kind}_id"] == trait.id)
            .where(link.agent_id == bindparam("agent"))
        )
    return union_all(*kinds).order_by("position")


def _link_traits(session: Session, agent_id: str, kind: str, names: list[str]) -> None:
    """Make ``names`` the persona's traits of ``kind`` ("personality", "role" or "tone")."""
    traits, links = (SQLModel.metadata.tables[name] for name in (kind, f"agent{kind}"))
    connection = session.connection()
    connection.execute(links.delete().where(links.c.agent_id == agent_id))
    if not names:
        return
    insert_new(session, kind, [{"name": name} for name in sorted(names)])
    known = connection.execute(traits.select().where(traits.c.name.in_(names)))
    ids = {trait.name: trait.id for trait in known}
    rows = [
        {"agent_id": agent_id, f"{kind}_id": ids[name], "position": position}
        for position, name in enumerate(names)
    ]
    connection.execute(links.insert(), rows)


def _is_word_list(value: Any) -> bool:
    """Return whether a value is a list of words, which are chosen one by one, not typed."""
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
