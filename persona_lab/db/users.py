"""Queries of users and API tokens."""

from __future__ import annotations

import hashlib
import secrets
from contextlib import suppress
from datetime import timedelta
from typing import Any

from sqlmodel import col, func, select, update

from persona_lab.db.base import StoreBase
from persona_lab.db.rows import insert_new, is_id
from persona_lab.db.tables import ApiToken, User
from persona_lab.errors import InputError, InvalidRequest, NotFound, StorageError
from persona_lab.personas.persona import NAME_LENGTH, clean_text

TOKEN_PREFIX = "pl_"  # noqa: S105 - not a secret
"""The beginning of every token, by which people and secret scanners recognize one."""
MAX_API_TOKENS = 50
"""Maximum number of active tokens per user."""
LAST_USED_PRECISION = timedelta(minutes=1)
"""Precision of a token's last use: not every request causes a write."""


class UserQueries(StoreBase):
    """Queries of users and API tokens."""

    def create_user(self) -> User:
        """Create a user without a secret."""
        with self._write() as session:
            user = User(created_at=self._clock())
            session.add(user)
        return user

    def user_for_secret(self, secret: str) -> User:
        """Return the user whose browser has ``secret``; create the user at the first call.

        Only the SHA-256 of the secret is stored.

        Raises:
            InputError: The secret is empty: many browsers would share one user.
        """
        if not secret:
            raise InputError("an empty secret")
        digest = _secret_hash(secret)
        known = select(User).where(User.secret_hash == digest)
        with self._read() as session:
            found = session.exec(known).first()
        if found is not None:
            return found
        with self._write() as session:
            user = User(secret_hash=digest, created_at=self._clock())
            insert_new(session, "user", [user.model_dump()])
            return session.exec(known).one()

    def create_token(self, *, user_id: str, name: str = "") -> tuple[ApiToken, str]:
        """Create an API token and return it with its secret, which can't be read again.

        Args:
            user_id: The user that the token acts for.
            name: One line that tells the user's tokens apart.

        Raises:
            InvalidRequest: The name is too long, or the user has :data:`MAX_API_TOKENS` tokens.
        """
        name = " ".join(clean_text(name).split())
        if len(name) > NAME_LENGTH:
            raise InvalidRequest(field="name", why="field_value", limit=NAME_LENGTH)
        secret = TOKEN_PREFIX + secrets.token_urlsafe(32)
        with self._write() as session:
            session.get(User, user_id, with_for_update=True)  # serialize calls: the limit holds
            count = select(func.count()).select_from(_active_tokens(user_id).subquery())
            if session.exec(count).one() >= MAX_API_TOKENS:
                raise InvalidRequest(why="many_tokens", limit=MAX_API_TOKENS)
            token = ApiToken(
                user_id=user_id,
                name=name,
                token_hash=_secret_hash(secret),
                created_at=self._clock(),
            )
            session.add(token)
        return token, secret

    def list_tokens(self, *, user_id: str) -> list[ApiToken]:
        """Return the user's active tokens, newest first."""
        newest = _active_tokens(user_id).order_by(col(ApiToken.created_at).desc(), col(ApiToken.id))
        with self._read() as session:
            return list(session.exec(newest))

    def revoke_token(self, token_id: str, *, user_id: str) -> None:
        """Revoke a token of the user. A second call changes nothing.

        Raises:
            NotFound: The user has no such token.
        """
        with self._write() as session:
            token = session.get(ApiToken, token_id) if is_id(token_id) else None
            if token is None or token.user_id != user_id:
                raise NotFound(kind="token")
            token.revoked_at = token.revoked_at or self._clock()

    def user_for_token(self, secret: str) -> User:
        """Return the user whose active token has ``secret``, and note the token's use.

        Raises:
            NotFound: No active token has this secret. Its kind is "token".
        """
        held = select(ApiToken, User).join(User).where(ApiToken.token_hash == _secret_hash(secret))
        with self._read() as session:
            found = session.exec(held.where(col(ApiToken.revoked_at).is_(None))).first()
        if found is None:
            raise NotFound(kind="token")
        token, user = found
        moment = self._clock()
        if token.last_used_at is None or moment - token.last_used_at >= LAST_USED_PRECISION:
            # A token still works while the database is read-only or full.
            with suppress(StorageError), self._write() as session:
                used = update(ApiToken).where(col(ApiToken.id) == token.id)
                session.exec(used.values(last_used_at=moment))
        return user


def _active_tokens(user_id: str) -> Any:
    return select(ApiToken).where(ApiToken.user_id == user_id, col(ApiToken.revoked_at).is_(None))


def _secret_hash(secret: str) -> str:
    """Return the stored form of a secret. Secrets are long and random, so they need no salt."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
