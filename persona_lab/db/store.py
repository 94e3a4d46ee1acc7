"""Every query, each taking the user it is for: nobody reads or changes another's rows.

Methods are synchronous and short (call them through ``asyncio.to_thread``); a transaction never
spans a call to a model. What they return is detached and whole: readable without a session.

All methods raise StorageError when the database fails (DiskFull when it has no room) and NotFound
for a row that is missing or another user's: which of the two isn't told. Nothing is half written.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, NamedTuple

from sqlalchemy import (
    case,
    literal_column,
    or_,
)
from sqlalchemy import select as columns
from sqlalchemy.orm import lazyload
from sqlalchemy.orm.attributes import set_committed_value
from sqlalchemy.pool import StaticPool
from sqlmodel import Session, SQLModel, col, delete, func, select, update

from persona_lab.db import migrations
from persona_lab.db.deprecated import FormerNames
from persona_lab.db.engine import (
    _expect_words,
    create_db_engine,
    translate_errors,
    translate_open_errors,
)
from persona_lab.db.generations import GenerationRow
from persona_lab.db.prompt_parts import attach, convert, detach, detach_from, orphans
from persona_lab.db.rows import insert_new
from persona_lab.db.tables import (
    Agent,
    AgentRevision,
    ApiToken,
    Chat,
    Generation,
    Message,
    StoredPrompt,
    User,
)
from persona_lab.errors import (
    ConfigurationError,
    Forbidden,
    InputError,
    InvalidPersona,
    InvalidRequest,
    NotFound,
    StorageError,
)
from persona_lab.personas.persona import (
    NAME_LENGTH,
    TRAITS,
    clean_line,
    clean_persona,
    clean_text,
    persona_of,
)
from persona_lab.types import Sender, Status, now

TITLE_LENGTH = 40

BURST = timedelta(seconds=2)
"""What is typed into one field without a longer pause is one step of undo."""
RESTORABLE = timedelta(days=1)
"""How long the page offers to bring back what was deleted. It stays in the database."""
CHOICES_FROM = 200
"""Personas whose personalities, roles and tones are offered for another."""
REVISIONS = 100
"""Steps of undo that a persona keeps."""

PREFIX = "pl_"
"""How a token begins: whoever finds one somewhere sees what it is."""
TOKENS = 50
"""Tokens that a user may have at a time."""
USED_EVERY = timedelta(minutes=1)
"""How exactly a token's last use is written down: not every call is a write."""

CHATS_AT_ONCE = 100
"""Chats that are converted in one transaction after an update."""

_ANSWERS_SENT: tuple[Status, ...] = ("ok", "stopped", "interrupted")


class AgentName(NamedTuple):
    """What a list of personas shows of one."""

    id: str
    name: str
    language: str
    demo: bool


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


class Store(FormerNames):
    """The database behind ``url``: ``sqlite:///file``, ``sqlite://`` (in memory), ``postgresql://``.

    Safe to use from many threads. SQLite takes one writer at a time: writers of this process wait
    in line for a lock, those of other processes up to 30 seconds for the file.
    """

    def __init__(self, url: str, *, clock: Callable[[], datetime] = now) -> None:
        """Open the database, making it and its folder if need be, and bring its schema up to date.

        ``clock`` gives aware moments. Raises ConfigurationError with one line when ``url`` can't be
        used: no database, no permission, no driver, or a schema newer than this code.
        """
        self._clock = clock
        with translate_open_errors(url) as address:
            self.engine = create_db_engine(address)
            # A transaction that begins by reading can't always go on to write in SQLite: those
            # that mean to write say so at their beginning.
            self._writer = self.engine.execution_options(persona_lab_writes=True)
            in_memory = isinstance(self.engine.pool, StaticPool)
            lock = threading.RLock()
            self._writing: AbstractContextManager[Any] = (
                lock if self.engine.dialect.name == "sqlite" else nullcontext()
            )
            # In memory, all threads share the one connection that holds the data.
            self._reading: AbstractContextManager[Any] = lock if in_memory else nullcontext()
            try:
                migrations.upgrade(self._writer)
                self._tidy_prompts()
            except BaseException:
                self.engine.dispose()
                raise
            if self.engine.dialect.driver == "psycopg":
                _expect_words(self.engine, address)

    def close(self) -> None:
        """Let go of all connections. What was in memory is gone."""
        self.engine.dispose()

    def _tidy_prompts(self) -> None:
        """Convert rows of the version before, a few chats at a time, and delete unused prompts.

        A chat that is deleted by hand leaves its prompts; those that other chats need stay.
        """
        converted = CHATS_AT_ONCE
        while converted == CHATS_AT_ONCE:
            with self._write() as session:
                converted = convert(session, CHATS_AT_ONCE)
        with self._read() as session:
            if session.exec(select(StoredPrompt.hash).where(orphans()).limit(1)).first() is None:
                return
        with suppress(StorageError), self._write() as session:  # another replica may need one now
            session.exec(delete(StoredPrompt).where(orphans()))

    @contextmanager
    def _read(self) -> Iterator[Session]:
        with (
            translate_errors(),
            self._reading,
            Session(self.engine, expire_on_commit=False) as session,
        ):
            yield session

    @contextmanager
    def _write(self) -> Iterator[Session]:
        with (
            translate_errors(),
            self._writing,
            Session(self._writer, expire_on_commit=False) as session,
        ):
            yield session
            session.commit()

    # ── users ──

    def create_user(self) -> User:
        with self._write() as session:
            user = User(created_at=self._clock())
            session.add(user)
        return user

    def user_for_secret(self, secret: str) -> User:
        """The user whose browser keeps ``secret``; a new one the first time.

        Only its SHA-256 is stored. Raises InputError for an empty secret, which many would share.
        """
        if not secret:
            raise InputError("an empty secret")
        digest = _digest(secret)
        known = select(User).where(User.secret_hash == digest)
        with self._read() as session:
            found = session.exec(known).first()
        if found is not None:
            return found
        with self._write() as session:
            user = User(secret_hash=digest, created_at=self._clock())
            insert_new(session, "user", [user.model_dump()])
            return session.exec(known).one()

    # ── tokens of programs ──

    def create_token(self, *, user_id: str, name: str = "") -> tuple[ApiToken, str]:
        """A new token of the user's, and its secret: nobody can read that again.

        ``name`` is one line, to tell tokens apart. Raises InvalidRequest for one that is too long,
        and where there are :data:`TOKENS` already.
        """
        name = " ".join(clean_text(name).split())
        if len(name) > NAME_LENGTH:
            raise InvalidRequest(field="name", why="field_value", limit=NAME_LENGTH)
        secret = PREFIX + secrets.token_urlsafe(32)
        with self._write() as session:
            session.get(User, user_id, with_for_update=True)  # two at once don't pass the limit
            count = select(func.count()).select_from(_tokens(user_id).subquery())
            if session.exec(count).one() >= TOKENS:
                raise InvalidRequest(why="many_tokens", limit=TOKENS)
            token = ApiToken(
                user_id=user_id, name=name, token_hash=_digest(secret), created_at=self._clock()
            )
            session.add(token)
        return token, secret

    def list_tokens(self, *, user_id: str) -> list[ApiToken]:
        """The user's tokens that hold, the newest first."""
        newest = _tokens(user_id).order_by(col(ApiToken.created_at).desc(), col(ApiToken.id))
        with self._read() as session:
            return list(session.exec(newest))

    def revoke_token(self, token_id: str, *, user_id: str) -> None:
        """From now on the token leads to nobody."""
        with self._write() as session:
            token = session.get(ApiToken, token_id) if _is_id(token_id) else None
            if token is None or token.user_id != user_id:
                raise NotFound(kind="token")
            token.revoked_at = token.revoked_at or self._clock()

    def user_for_token(self, secret: str) -> User:
        """Whose token ``secret`` is. Raises NotFound(kind="token") where it is nobody's."""
        held = select(ApiToken, User).join(User).where(ApiToken.token_hash == _digest(secret))
        with self._read() as session:
            found = session.exec(held.where(col(ApiToken.revoked_at).is_(None))).first()
        if found is None:
            raise NotFound(kind="token")
        token, user = found
        moment = self._clock()
        if token.last_used_at is None or moment - token.last_used_at >= USED_EVERY:
            # A database that takes nothing any more can still be read.
            with suppress(StorageError), self._write() as session:
                used = update(ApiToken).where(col(ApiToken.id) == token.id)
                session.exec(used.values(last_used_at=moment))
        return user

    # ── personas ──

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
            return self._new_agent(session, persona, owner_id=user_id)

    def get_agent(self, agent_id: str, *, user_id: str, deleted: bool = False) -> Agent:
        """The user's own persona or a demo; with ``deleted``, also one that was deleted."""
        with self._read() as session:
            return _readable_agent(session, agent_id, user_id, deleted=deleted)

    def agent_named(self, name: str, *, user_id: str) -> Agent:
        """The persona whose id or name is ``name``: of several, the user's own and last changed."""
        with self._read() as session:
            with suppress(NotFound):
                return _readable_agent(session, name, user_id)
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
            agent = _readable_agent(session, agent_id, user_id, deleted=True, lock=True)
            former = persona_of(agent)
            if former | changes == former:
                return agent
            if agent.owner_id is None:
                agent = self._new_agent(session, former | changes, owner_id=user_id)
                theirs = (col(Chat.user_id) == user_id, col(Chat.agent_id) == agent_id)
                session.connection().execute(update(Chat).where(*theirs).values(agent_id=agent.id))
                self._keep_revision(session, agent, former, changes)
                return agent
            self._keep_revision(session, agent, former, changes)
            return self._change(session, agent, changes)

    def undo_agent(self, agent_id: str, *, user_id: str) -> Agent | None:
        """The persona as it was before its last change; None when there is no step to go back."""
        with self._write() as session:
            agent = _readable_agent(session, agent_id, user_id, deleted=True, lock=True)
            revision = session.exec(_revisions(agent_id)).first()
            if agent.owner_id is None or revision is None:
                return None
            session.delete(revision)
            return self._change(session, agent, revision.persona)

    def can_undo(self, agent_id: str, *, user_id: str) -> bool:
        """Whether :meth:`undo_agent` has a step to go back."""
        with self._read() as session:
            agent = _readable_agent(session, agent_id, user_id, deleted=True)
            newest = session.exec(_revisions(agent_id)).first()
            return agent.owner_id is not None and newest is not None

    def duplicate_agent(self, agent_id: str, *, user_id: str, name: str) -> Agent:
        """The user's own copy of one of theirs or of a demo. Raises InvalidPersona."""
        renamed = clean_persona({"name": name})
        with self._write() as session:
            agent = _readable_agent(session, agent_id, user_id)
            return self._new_agent(session, persona_of(agent) | renamed, owner_id=user_id)

    def delete_agent(self, agent_id: str, *, user_id: str) -> None:
        """Hide the user's own persona. Its conversations stay."""
        with self._write() as session:
            agent = _own_agent(session, agent_id, user_id)
            agent.deleted_at = agent.deleted_at or self._clock()

    def restore_agent(self, agent_id: str, *, user_id: str) -> Agent:
        with self._write() as session:
            agent = _own_agent(session, agent_id, user_id)
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
            demos = {agent.seed: agent for agent in session.exec(select(Agent).where(_is_seed()))}
            for seed, demo in demos.items():
                if seed not in wanted:
                    demo.deleted_at = demo.deleted_at or self._clock()
            for position, (seed, persona) in enumerate(wanted.items()):
                known = demos.get(seed)
                if known is None:
                    known = self._new_agent(session, persona, owner_id=None)
                    known.seed = seed
                elif persona_of(known) != persona:
                    self._change(session, known, persona)
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

    def _new_agent(
        self, session: Session, persona: dict[str, Any], *, owner_id: str | None
    ) -> Agent:
        moment = self._clock()
        agent = Agent(name="", owner_id=owner_id, created_at=moment)
        session.add(agent)
        return self._change(session, agent, persona)

    def _change(self, session: Session, agent: Agent, persona: dict[str, Any]) -> Agent:
        for field, value in persona.items():
            if field not in TRAITS:
                setattr(agent, field, value)
        agent.updated_at = self._clock()
        session.flush()
        for field in TRAITS.keys() & persona.keys():
            _link(session, agent.id, TRAITS[field], persona[field])
        session.refresh(agent)
        return agent

    def _keep_revision(
        self,
        session: Session,
        agent: Agent,
        former: dict[str, Any],
        changes: dict[str, Any],
    ) -> None:
        """A step of undo, unless ``changes`` go on with the typing that made the newest one."""
        moment = self._clock()
        newest = session.exec(_revisions(agent.id)).first()
        if newest is not None and moment - newest.created_at < BURST:
            begun = {field for field in former if former[field] != newest.persona.get(field)}
            now = {field for field in changes if changes[field] != former[field]}
            if len(now) == 1 and now == begun and not _is_words(former[now.pop()]):
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

    # ── conversations ──

    def create_chat(self, *, user_id: str, agent_id: str) -> Chat:
        with self._write() as session:
            _readable_agent(session, agent_id, user_id, words=False)
            moment = self._clock()
            chat = Chat(user_id=user_id, agent_id=agent_id, created_at=moment, updated_at=moment)
            session.add(chat)
        return chat

    def get_chat(self, chat_id: str, *, user_id: str) -> Chat:
        with self._read() as session:
            return _own_chat(session, chat_id, user_id, deleted=False)

    def open_chat(self, chat_id: str, *, user_id: str) -> Chat:
        """:meth:`get_chat` for a door that tells another's conversation from none: Forbidden."""
        with self._read() as session:
            chat = session.get(Chat, chat_id) if _is_id(chat_id) else None
            if chat is not None and chat.user_id != user_id:
                raise Forbidden(kind="chat")
            return _own_chat(session, chat_id, user_id, deleted=False)

    def list_chats(
        self, *, user_id: str, agent_id: str | None = None, limit: int = 50
    ) -> list[Chat]:
        """The user's conversations, the last used first; those with one persona on request."""
        chats = select(Chat).where(Chat.user_id == user_id, col(Chat.deleted_at).is_(None))
        if agent_id is not None:
            if not _is_id(agent_id):
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
            chat = _own_chat(session, chat_id, user_id)
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
            return session.exec(gone).first() if _is_id(agent_id) else None

    def restore_chat(self, chat_id: str, *, user_id: str) -> Chat:
        with self._write() as session:
            chat = _own_chat(session, chat_id, user_id)
            chat.deleted_at = None
            return chat

    def messages(
        self,
        chat_id: str,
        *,
        user_id: str,
        superseded: bool = False,
        limit: int | None = None,
        before: str = "",
    ) -> list[Message]:
        """The conversation in its order, or its last ``limit`` messages ahead of the one whose id
        is ``before``; with ``superseded``, also the answers set aside. Raises NotFound."""
        turns = select(Message).where(Message.chat_id == chat_id)
        if not superseded:
            turns = turns.where(col(Message.superseded).is_(False))
        with self._read() as session:
            _own_chat(session, chat_id, user_id, deleted=False)
            if before:
                end = session.get(Message, before) if _is_id(before) else None
                if end is None or end.chat_id != chat_id:
                    raise NotFound(kind="message")
                turns = turns.where(Message.position < end.position)
            newest = turns.order_by(col(Message.position).desc()).limit(limit)
            found = list(session.exec(newest))[::-1]
            attach(session, chat_id, found)
            return found

    def get_message(self, message_id: str, *, user_id: str) -> Message:
        with self._read() as session:
            message, _ = _own_message(session, message_id, user_id)
            attach(session, message.chat_id, [message])
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
        """Add the conversation's next message. The user's first one also gives it its title.
        ``instead``: it takes the place of whatever answers the last question.

        Works on a deleted conversation too, so that an answer that comes late isn't lost.
        """
        content = clean_text(content)
        moment = self._clock()
        with self._write() as session:
            chat = _own_chat(session, chat_id, user_id, lock=True)
            last = select(func.max(Message.position)).where(Message.chat_id == chat_id)
            position = session.exec(last).one()
            message = Message(
                chat_id=chat_id,
                position=0 if position is None else position + 1,
                sender=sender,
                content=content,
                status=status,
                image_url=clean_text(image_url) if image_url else None,
                created_at=moment,
            )
            whole = dict(details or {})
            if sender == "ai":
                detach(session, message, whole, user_id)
            if instead:
                asked = (
                    select(func.max(Message.position))
                    .where(Message.chat_id == chat_id, Message.sender == "user")
                    .scalar_subquery()
                )
                session.exec(
                    update(Message)
                    .where(col(Message.chat_id) == chat_id, col(Message.position) > asked)
                    .values(superseded=True)
                )
            session.add(message)
            chat.updated_at = moment
            if sender == "user" and not chat.title:
                chat.title = " ".join(content.split())[:TITLE_LENGTH]
        set_committed_value(message, "details", whole)
        return message

    def update_message(
        self,
        message_id: str,
        *,
        user_id: str,
        content: str | None = None,
        status: Status | None = None,
        details: dict[str, Any] | None = None,
    ) -> Message:
        """Change what is given of a message; None leaves it."""
        with self._write() as session:
            message, chat = _own_message(session, message_id, user_id)
            if message.status != "streaming":
                chat.revision = _next_revision()
            if content is not None:
                content = clean_text(content)
                if message.status != "streaming" and message.content != content:
                    session.get(Chat, chat.id, with_for_update=True)  # no new answer refers to it
                    detach_from(session, message, user_id)
                message.content = content
            if status is not None:
                message.status = status
            if details is not None:
                whole = detach(session, message, details, user_id)
            session.flush()
            if details is not None:
                set_committed_value(message, "details", whole)
            else:
                attach(session, message.chat_id, [message])
            return message

    def supersede_answer(self, chat_id: str, *, user_id: str) -> Message:
        """Set aside what answered the user's last message, and return that message.

        Raises NotFound(kind="message") when the user hasn't written anything yet.
        """
        with self._write() as session:
            chat = _own_chat(session, chat_id, user_id, lock=True)
            asked = session.exec(
                select(Message)
                .where(Message.chat_id == chat_id, Message.sender == "user")
                .order_by(col(Message.position).desc())
            ).first()
            if asked is None:
                raise NotFound(kind="message")
            session.exec(
                update(Message)
                .where(col(Message.chat_id) == chat_id, col(Message.position) > asked.position)
                .values(superseded=True)
            )
            chat.revision = _next_revision()
            if chat.summary_through >= asked.position:
                chat.summary, chat.summary_through = "", -1
            return asked

    def restore_answer(self, asked_id: str, *, user_id: str) -> None:
        """Let the newest whole or stopped answer to the message stand again, and no other one."""
        with self._write() as session:
            asked = session.get(Message, asked_id) if _is_id(asked_id) else None
            chat = session.get(Chat, asked.chat_id, with_for_update=True) if asked else None
            if asked is None or chat is None or chat.user_id != user_id:
                raise NotFound(kind="message")
            chat.revision = _next_revision()
            after = [col(Message.chat_id) == asked.chat_id, col(Message.position) > asked.position]
            following = session.exec(
                select(func.min(Message.position)).where(*after, col(Message.sender) == "user")
            ).one()
            if following is not None:
                after.append(col(Message.position) < following)
            answers = session.exec(
                select(Message).where(*after).order_by(col(Message.position).desc())
            ).all()
            kept = next((answer for answer in answers if answer.status in _ANSWERS_SENT), None)
            if kept is not None:
                for answer in answers:
                    answer.superseded = answer is not kept

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
        """The last ``limit`` questions with their answers, or the ``first``; oldest first.

        Left out are failed, unfinished, empty and superseded answers with their questions, and
        what stands at position ``before`` or later, and at ``after`` or earlier. ``user_id`` None
        doesn't ask whose it is: for callers within the house that have.
        """
        turns = (
            select(Message)
            .where(
                Message.chat_id == chat_id,
                col(Message.superseded).is_(False),
                col(Message.status).in_(_ANSWERS_SENT),
                Message.content != "",
                Message.position > after,
            )
            .order_by(col(Message.position) if first else col(Message.position).desc())
            .execution_options(yield_per=2 * limit + 2)
        )
        if before is not None:
            turns = turns.where(Message.position < before)
        with self._read() as session:
            if user_id is not None:
                _own_chat(session, chat_id, user_id, deleted=False)
            with closing(session.exec(turns)) as rows:  # it stays open where it is left early
                pairs = _oldest_first(rows) if first else _newest_first(rows)
                found = list(islice(pairs, max(0, limit)))
            attach(session, chat_id, [message for pair in found for message in pair])
        return found if first else found[::-1]

    def chat_state(self, chat_id: str, *, user_id: str | None) -> ChatState:
        """Where the conversation stands, as one moment saw it. ``user_id`` as for exchanges."""
        last = select(func.max(Message.position)).where(Message.chat_id == chat_id)
        streaming = select(Message.id).where(Message.chat_id == chat_id, _is_streaming())
        now_there = columns(last.scalar_subquery(), streaming.exists())
        with self._read() as session:
            if user_id is not None:
                chat: Chat | None = _own_chat(session, chat_id, user_id, deleted=False)
            else:
                chat = session.get(Chat, chat_id) if _is_id(chat_id) else None
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
            chat = _own_chat(session, chat_id, user_id, lock=True)
            if chat.revision == since.revision and chat.summary_through < since.summary_through:
                chat.summary = clean_text(summary)
                chat.summary_through = since.summary_through

    # ── what was generated ──

    def record(self, turn: Generation) -> None:
        """Keep ``turn``, which says whose it is."""
        with self._write() as session:
            session.add(turn)

    def records(self, *, user_id: str, since: datetime | None = None) -> list[Generation]:
        """The user's generations, oldest first."""
        turns = select(Generation).where(Generation.user_id == user_id)
        if since is not None:
            turns = turns.where(Generation.created_at >= since)
        with self._read() as session:
            return list(
                session.exec(turns.order_by(col(Generation.created_at), col(Generation.id)))
            )

    def total_cost(self, since: datetime) -> float:
        """US dollars that all users' generations cost the house, as far as prices are known."""
        total = select(func.sum(Generation.cost)).where(
            Generation.created_at >= since, col(Generation.user_key).is_(False)
        )
        with self._read() as session:
            return float(session.exec(total).one() or 0.0)

    def check(self) -> None:
        """Whether the database answers."""
        with self._read() as session:
            session.exec(select(1)).one()

    def list_generation_rows(
        self, *, user_id: str, since: datetime | None = None
    ) -> list[GenerationRow]:
        """The figures of the user's generations, oldest first.

        Columns alone, and no rows of the mapper's: it takes half the time of :meth:`records`.
        """
        turn: Any = SQLModel.metadata.tables["turnrecord"].c
        known: dict[str, Any] = {"agent_name": col(Agent.name), "demo": _is_demo()}
        readable = or_(col(Agent.owner_id) == user_id, col(Agent.owner_id).is_(None))
        wanted = (
            columns(*[known[n] if n in known else turn[n] for n in GenerationRow._fields])
            .outerjoin_from(Generation, Agent, (col(Agent.id) == turn.agent_id) & readable)
            .where(turn.user_id == user_id)
            .order_by(turn.created_at, turn.id)
        )
        if since is not None:
            wanted = wanted.where(turn.created_at >= since)
        with self._read() as session:
            return [GenerationRow(*row) for row in session.connection().execute(wanted).all()]

    def mark_interrupted(self) -> int:
        """At start: answers that a crash left "streaming" become "interrupted". How many.

        One that another replica is still streaming gets its true status when it ends. Where a crash
        came between an answer that was set aside and the first word of another, it stands again.
        """
        position, chat_id = col(Message.position), col(Message.chat_id)
        with self._write() as session:
            theirs = col(Chat.id).in_(select(Message.chat_id).where(_is_streaming()))
            session.exec(update(Chat).where(theirs).values(revision=_next_revision()))
            left = update(Message).where(_is_streaming())
            marked = session.exec(left.values(status="interrupted")).rowcount
            aside = (
                columns(
                    chat_id,
                    func.max(case((col(Message.superseded), position))).label("aside"),
                    func.max(case((~col(Message.superseded), position))).label("standing"),
                )
                .where(col(Message.status).in_(_ANSWERS_SENT) | ~col(Message.superseded))
                .group_by(chat_id)
                .subquery()
            )
            at = (chat_id == aside.c.chat_id) & (position == aside.c.aside)
            for answer, chat in session.exec(
                select(Message, Chat)
                .join(aside, at)
                .join(Chat, col(Chat.id) == chat_id)
                .where(aside.c.aside > aside.c.standing)
            ).all():
                answer.superseded, chat.revision = False, _next_revision()
            return marked


def _is_id(given: object) -> bool:
    """Whether ``given`` can name a row; drivers choke on NUL and on halves of surrogate pairs."""
    return isinstance(given, str) and given.isascii() and given.isprintable()


def _agent(session: Session, agent_id: str, *, lock: bool = False, words: bool = True) -> Agent:
    """``words``: with its traits, each kind of which is a query of its own."""
    how: Any = {"with_for_update": lock, "options": [] if words else [lazyload("*")]}
    agent = session.get(Agent, agent_id, **how) if _is_id(agent_id) else None
    if agent is None:
        raise NotFound(kind="agent")
    return agent


def _readable_agent(
    session: Session, agent_id: str, user_id: str, *, deleted: bool = False, **how: bool
) -> Agent:
    agent = _agent(session, agent_id, **how)
    if agent.owner_id not in (None, user_id) or (agent.deleted_at and not deleted):
        raise NotFound(kind="agent")
    return agent


def _own_agent(session: Session, agent_id: str, user_id: str) -> Agent:
    agent = _agent(session, agent_id)
    if agent.owner_id is None or agent.owner_id != user_id:
        raise NotFound(kind="agent")
    return agent


def _oldest_first(rows: Iterable[Message]) -> Iterator[tuple[Message, Message]]:
    """Questions with the last of their answers."""
    asked: Message | None = None
    answer: Message | None = None
    for message in rows:
        if message.sender == "ai":
            answer = message
        else:
            if asked is not None and answer is not None:
                yield asked, answer
            asked, answer = message, None
    if asked is not None and answer is not None:
        yield asked, answer


def _newest_first(rows: Iterable[Message]) -> Iterator[tuple[Message, Message]]:
    """The same of ``rows`` the other way round."""
    answer: Message | None = None
    for message in rows:
        if message.sender == "ai":
            answer = answer or message
        elif answer is not None:
            yield message, answer
            answer = None


def _own_chat(
    session: Session, chat_id: str, user_id: str, *, deleted: bool = True, lock: bool = False
) -> Chat:
    chat = session.get(Chat, chat_id, with_for_update=lock) if _is_id(chat_id) else None
    if chat is None or chat.user_id != user_id or (chat.deleted_at and not deleted):
        raise NotFound(kind="chat")
    return chat


def _own_message(session: Session, message_id: str, user_id: str) -> tuple[Message, Chat]:
    message = session.get(Message, message_id) if _is_id(message_id) else None
    chat = session.get(Chat, message.chat_id) if message else None
    if message is None or chat is None or chat.user_id != user_id:
        raise NotFound(kind="message")
    return message, chat


def _tokens(user_id: str) -> Any:
    return select(ApiToken).where(ApiToken.user_id == user_id, col(ApiToken.revoked_at).is_(None))


def _digest(secret: str) -> str:
    """What is stored of a secret. It is long and random: no salt makes it harder to guess."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _next_revision() -> Any:
    """A conversation's next revision, counted by the database: two writers count two."""
    return Chat.__table__.c.revision + 1  # type: ignore[attr-defined]


def _is_streaming() -> Any:
    """To the letter what the index of such rows says, or it wouldn't be used."""
    return col(Message.status) == literal_column("'streaming'")


def _is_demo() -> Any:
    return col(Agent.id).is_not(None) & col(Agent.owner_id).is_(None)


def _agent_lists(user_id: str) -> list[tuple[list[Any], list[Any]]]:
    """Conditions and order of the user's own personas, and of the demos."""
    alive, owner = col(Agent.deleted_at).is_(None), col(Agent.owner_id)
    newest = [col(Agent.updated_at).desc(), col(Agent.created_at).desc(), col(Agent.id)]
    as_in_file = [col(Agent.position), col(Agent.created_at), col(Agent.id)]
    return [([owner == user_id, alive], newest), ([owner.is_(None), alive], as_in_file)]


def _is_seed() -> Any:
    return col(Agent.owner_id).is_(None) & col(Agent.seed).is_not(None)


def _revisions(agent_id: str) -> Any:
    return (
        select(AgentRevision)
        .where(AgentRevision.agent_id == agent_id)
        .order_by(col(AgentRevision.id).desc())
    )


def _is_words(value: Any) -> bool:
    """Whether a field's value is a list of words, which are picked one by one."""
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _link(session: Session, agent_id: str, kind: str, names: list[str]) -> None:
    """Let the persona have exactly ``names`` of ``kind`` ("personality", "role", "tone")."""
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
