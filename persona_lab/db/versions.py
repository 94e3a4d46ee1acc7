"""Queries of the versions of a persona."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select as columns
from sqlmodel import Session, col, select

from persona_lab.db.base import StoreBase
from persona_lab.db.persona_rows import (
    add_revision,
    add_version,
    change_agent,
    own_agent,
    readable_agent,
)
from persona_lab.db.tables import Agent, AgentVersion
from persona_lab.errors import NotFound, NothingToCommit
from persona_lab.personas.persona import clean_line, clean_persona, persona_of
from persona_lab.personas.versions import MESSAGE_LENGTH, Snapshot, VersionInfo


class VersionQueries(StoreBase):
    """Queries of versions. A user has versions of their own personas only."""

    def commit_version(
        self,
        agent_id: str,
        *,
        user_id: str,
        message: str = "",
        options: Mapping[str, Any] | None = None,
        templates: Mapping[str, str] | None = None,
    ) -> AgentVersion:
        """Keep the present state of a persona as its next version.

        Args:
            agent_id: A persona of the user.
            user_id: The user.
            message: What the designer says about the version.
            options: The model options of the persona.
            templates: The hashes of the templates that it uses, by file name.

        Raises:
            InvalidPersona: The message is too long.
            NotFound: There is no such persona, or it belongs to another user.
            NothingToCommit: The newest version has the same content.
        """
        message = clean_line("message", message, MESSAGE_LENGTH)
        with self._write() as session:
            agent = own_agent(session, agent_id, user_id, lock=True)
            snapshot = Snapshot(persona_of(agent), options or {}, templates or {})
            newest = _newest(session, agent_id)
            if newest is not None and snapshot_of(newest).is_same(snapshot):
                raise NothingToCommit(number=newest.number)
            return add_version(session, agent, snapshot, message, self._clock())

    def list_versions(self, agent_id: str, *, user_id: str) -> list[VersionInfo]:
        """Return the versions of a persona, newest first, without their content.

        A demo has no versions.

        Raises:
            NotFound: There is no such persona, or it belongs to another user.
        """
        with self._read() as session:
            readable_agent(session, agent_id, user_id, deleted=True, traits=False)
            rows = session.connection().execute(
                columns(
                    col(AgentVersion.number),
                    col(AgentVersion.message),
                    col(AgentVersion.created_at),
                    col(AgentVersion.hash),
                    col(AgentVersion.restored_from),
                )
                .where(col(AgentVersion.agent_id) == agent_id)
                .order_by(col(AgentVersion.number).desc())
            )
            return [VersionInfo(*row) for row in rows]

    def get_version(self, agent_id: str, number: int, *, user_id: str) -> AgentVersion:
        """Return a version of a persona.

        Raises:
            NotFound: There is no such version, or the persona belongs to another user.
        """
        with self._read() as session:
            readable_agent(session, agent_id, user_id, deleted=True, traits=False)
            return _version(session, agent_id, number)

    def newest_version(self, agent_id: str, *, user_id: str) -> AgentVersion | None:
        """Return the newest version of a persona; None if it has none.

        Raises:
            NotFound: There is no such persona, or it belongs to another user.
        """
        with self._read() as session:
            readable_agent(session, agent_id, user_id, deleted=True, traits=False)
            return _newest(session, agent_id)

    def restore_version(
        self,
        agent_id: str,
        number: int,
        *,
        user_id: str,
        draft_message: str = "",
        templates: Mapping[str, str] | None = None,
    ) -> tuple[Agent, AgentVersion]:
        """Make a version the present state of its persona, as a new version.

        A draft that isn't committed becomes a version of its own first, so that it isn't lost.

        Args:
            agent_id: A persona of the user.
            number: The version.
            user_id: The user.
            draft_message: The message of the version that keeps the draft.
            templates: The hashes of the templates that the restored persona uses, by file name.

        Returns:
            The persona and its new version.

        Raises:
            NotFound: There is no such version, or the persona belongs to another user.
            NothingToCommit: The persona already has this content.
        """
        draft_message = clean_line("message", draft_message, MESSAGE_LENGTH)
        with self._write() as session:
            agent = own_agent(session, agent_id, user_id, lock=True)
            wanted, newest = _version(session, agent_id, number), _newest(session, agent_id)
            newest = newest or wanted
            former, restored = persona_of(agent), clean_persona(wanted.persona)
            if former != newest.persona:
                draft = Snapshot(former, newest.options)
                add_version(session, agent, draft, draft_message, self._clock())
            elif restored == former and wanted.options == newest.options:
                raise NothingToCommit(number=newest.number)
            if restored != former:
                add_revision(session, agent, former, restored, self._clock())
                agent = change_agent(session, agent, restored, self._clock())
            snapshot = Snapshot(restored, wanted.options, templates or {})
            version = add_version(session, agent, snapshot, "", self._clock(), restored_from=number)
            return agent, version


def snapshot_of(version: AgentVersion) -> Snapshot:
    """Return the content of a version."""
    return Snapshot(version.persona, version.options, version.templates)


def info_of(version: AgentVersion) -> VersionInfo:
    """Return what a list shows of a version."""
    return VersionInfo(
        version.number, version.message, version.created_at, version.hash, version.restored_from
    )


def _newest(session: Session, agent_id: str) -> AgentVersion | None:
    query = select(AgentVersion).where(AgentVersion.agent_id == agent_id)
    return session.exec(query.order_by(col(AgentVersion.number).desc()).limit(1)).first()


def _version(session: Session, agent_id: str, number: int) -> AgentVersion:
    query = select(AgentVersion).where(
        AgentVersion.agent_id == agent_id, AgentVersion.number == number
    )
    version = session.exec(query).first()
    if version is None:
        raise NotFound(kind="version")
    return version
