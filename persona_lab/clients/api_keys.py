"""API keys: read them from several sources and reload them without a restart.

There are four sources. The first one that has the key is used:

1. a file named by ``OPENAI_API_KEY_FILE`` (a Docker or Kubernetes secret);
2. the environment (``OPENAI_API_KEY``);
3. a file ``openai_api_key`` or ``OPENAI_API_KEY`` in the folder ``SECRETS_DIR``;
4. a vault (``VAULT_ADDR``), which is a :class:`KeySource`.

Files are checked before each use and read again after a change. The vault is read again after
``KEYS_TTL`` seconds. If a source can't be read later, the keys stay unchanged. Old keys stay in
:attr:`ApiKeys.all_secrets`, so that they are still redacted from answers. This module never writes
a key to a log or an error.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from pydantic import SecretStr

from persona_lab.clients.registry import get_provider, list_keyed_providers
from persona_lab.errors import ConfigurationError
from persona_lab.proxies import Proxies
from persona_lab.settings import Settings

log = logging.getLogger("persona_lab.keys")

VAULT_TIMEOUT_S = 5.0
"""Timeout of a request to the vault, in seconds."""


class KeySource(Protocol):
    """A source of several keys."""

    def read(self) -> Mapping[str, str]:
        """Return the keys by the names of their settings, in upper or lower case.

        Raises:
            PermissionError: The source denies access.
            OSError: The source can't be reached.
        """


class Vault:
    """One secret in HashiCorp Vault or OpenBao, read over HTTP from a KV engine of version 2.

    Args:
        address: The URL of the vault.
        secret: The mount of the engine and the path in it: ``secret/persona-lab``.
        token: Returns the current access token. It is called for each request.
        proxies: The proxies of the settings.
    """

    def __init__(
        self,
        address: str,
        secret: str,
        token: Callable[[], str],
        proxies: Proxies = Proxies(),  # noqa: B008 - it is immutable
    ) -> None:
        mount, _, path = secret.strip("/").partition("/")
        self._url = f"{address.rstrip('/')}/v1/{mount}/data/{path}"
        self._token = token
        self._proxies = proxies

    def read(self) -> Mapping[str, str]:
        """Return the keys by the names of their settings.

        Raises:
            PermissionError: The vault denies access.
            ConnectionError: The vault can't be reached, or its response isn't valid.
        """
        import httpx2

        headers = {"X-Vault-Token": self._token(), "X-Vault-Request": "true"}
        try:
            with httpx2.Client(**self._proxies.client_options(self._url)) as client:
                answer = client.get(self._url, headers=headers, timeout=VAULT_TIMEOUT_S)
            status = answer.status_code
            if status == 200:
                return {str(k): str(v) for k, v in answer.json()["data"]["data"].items()}
        except (httpx2.HTTPError, httpx2.InvalidURL, ValueError, LookupError, TypeError) as error:
            # The cause is dropped: h11 prints a header that it can't send.
            raise ConnectionError(f"the vault gave no answer: {type(error).__name__}") from None
        if 400 <= status < 500:
            raise PermissionError(f"the vault refused: HTTP {status}")
        raise ConnectionError(f"the vault can't answer: HTTP {status}")


class _File:
    """A file with one key. It is read again after a change."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stamp: tuple[int, ...] | None = None
        self._content = ""

    def read(self) -> str:
        """Return the key.

        Raises:
            OSError: The file can't be read.
            ValueError: The file isn't UTF-8.
        """
        now = self.path.stat()  # Kubernetes replaces the target of a link, so the inode changes
        stamp = (now.st_ino, now.st_ctime_ns, now.st_mtime_ns, now.st_size)
        if stamp != self._stamp:
            self._content = self.path.read_text("utf-8").strip()
            self._stamp = stamp
        return self._content


class ApiKeys:
    """The current keys of this application, from files, the environment and a vault."""

    def __init__(
        self,
        settings: Settings,
        *,
        vault: KeySource | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read the keys.

        A vault that can't be reached is no error. It is read again later.

        Args:
            settings: The settings, which name the sources.
            vault: Replaces the vault of the settings.
            clock: Returns seconds.

        Raises:
            ConfigurationError: A file can't be read, a key is set twice, or the vault denies
                access.
        """
        self.settings = settings
        """The settings with the current keys."""
        self._settings = settings
        self._clock = clock
        self._files = {name: _File(path) for name, path in _named_files(settings)}
        self._folder = {
            name: [_File(settings.secrets_dir / spelled) for spelled in (name, name.upper())]
            for name in _key_settings()
            if settings.secrets_dir is not None
        }
        self._vault = vault if vault is not None else self._vault_of_settings()
        self._from_vault: dict[str, str] = {}
        self._next_vault_read = clock()
        self._secrets: dict[str, None] = {}
        self._unreadable: set[str] = set()
        self._refreshing = threading.Lock()
        self.refresh(first=True)

    @property
    def changing(self) -> bool:
        """Whether the keys can change. If not, :meth:`refresh` does nothing."""
        return bool(self._files or self._folder or self._vault)

    @property
    def all_secrets(self) -> tuple[str, ...]:
        """Every current and former secret of this application."""
        return tuple(self._secrets)

    def with_user_keys(self) -> UserKeys:
        """Return these keys with a store for a visitor's keys, which have priority."""
        return UserKeys(self)

    def refresh(self, *, first: bool = False) -> None:
        """Reload the keys that have changed.

        This may read files and wait for the vault. One caller at a time does so; others return
        at once and use the present keys.

        Args:
            first: Whether this is the first time. An unreadable source raises only then.

        Raises:
            ConfigurationError: A file can't be read or the vault denies access, at the first time.
        """
        if not self._refreshing.acquire(blocking=False):
            return
        try:
            names = _key_settings()
            found = {name: self._find(name, first) for name in names}
            if self._vault is not None and self._clock() >= self._next_vault_read:
                self._read_vault(self._vault, first)
            changed = {
                name: SecretStr(key) if key else None
                for name in names
                for key in [found[name] or self._from_vault.get(name, "")]
            }
            settings = self._settings.model_copy(update=changed)
            secrets = [value for _, value in settings if isinstance(value, SecretStr)]
            # A secret is redacted before its first use.
            self._secrets |= dict.fromkeys(s.get_secret_value().strip() for s in secrets)
            if first or any(getattr(self.settings, n) != key for n, key in changed.items()):
                self.settings = settings
                if not first:
                    log.info("a key has changed", extra={"event": "key_changed"})
        finally:
            self._refreshing.release()

    def _find(self, name: str, first: bool) -> str:
        """Return the key from a file or the environment; "" if there is none."""
        if name in self._files:
            key = self._read(self._files[name], f"{name.upper()}_FILE", first)
            return key or self._current(name)
        from_environment: SecretStr | None = getattr(self._settings, name)
        if from_environment is not None:
            return from_environment.get_secret_value()
        for file in self._folder.get(name, ()):
            if file.path.exists():
                return self._read(file, "SECRETS_DIR", first) or self._current(name)
        return ""

    def _current(self, name: str) -> str:
        """Return the current key; "" if there is none."""
        key: SecretStr | None = getattr(self.settings, name)
        return key.get_secret_value() if key is not None else ""

    def _read(self, file: _File, variable: str, first: bool) -> str:
        try:
            key = file.read()
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or "not UTF-8"
            if first:
                raise ConfigurationError(f"{variable}: {file.path}: {why}") from None
            self._warn_unreadable(variable, why)
            return ""
        self._unreadable.discard(variable)
        return key

    def _read_vault(self, vault: KeySource, first: bool) -> None:
        self._next_vault_read = self._clock() + self._settings.keys_ttl
        try:
            found = vault.read()
        except (OSError, ValueError) as error:
            if first and isinstance(error, PermissionError):
                raise ConfigurationError(f"VAULT_ADDR: {error}") from None
            self._warn_unreadable("VAULT_ADDR", str(error))
            return
        self._unreadable.discard("VAULT_ADDR")
        self._from_vault = {name.lower(): key.strip() for name, key in found.items()}

    def _warn_unreadable(self, variable: str, why: str) -> None:
        """Log once that a source can't be read, until it can be read again."""
        if variable not in self._unreadable:
            self._unreadable.add(variable)
            log.warning(
                "keys can't be read again and stay as they were: %s: %s",
                variable,
                why,
                extra={"event": "keys_unreadable"},
            )

    def _vault_of_settings(self) -> KeySource | None:
        settings = self._settings
        if settings.vault_addr is None:
            return None
        token_file = _File(settings.vault_token_file) if settings.vault_token_file else None

        def token() -> str:
            if token_file is not None:
                read = token_file.read()
            else:
                read = settings.vault_token.get_secret_value() if settings.vault_token else ""
            self._secrets[read] = None
            return read

        return Vault(settings.vault_addr, settings.vault_secret, token, settings.proxies)


class UserKeys:
    """The application's keys, some replaced by keys of a visitor.

    A visitor's keys are stored only here, in memory.

    Args:
        shared: The application's keys.
    """

    def __init__(self, shared: ApiKeys) -> None:
        self._shared = shared
        self._user_keys: dict[str, SecretStr | None] = {}

    @property
    def providers(self) -> frozenset[str]:
        """Providers for which the visitor has, or had before :meth:`forget`, a key."""
        return frozenset(self._user_keys)

    def put(self, provider: str, key: SecretStr) -> None:
        """Use the visitor's key for ``provider``."""
        self._user_keys[provider] = key

    def drop(self, provider: str) -> None:
        """Use the application's key for ``provider`` again."""
        self._user_keys.pop(provider, None)

    def forget(self) -> None:
        """Delete the visitor's keys. The application's keys don't replace them."""
        self._user_keys = dict.fromkeys(self._user_keys)

    @property
    def settings(self) -> Settings:
        """The settings with the visitor's keys, without the rest of the operator's account."""
        changed: dict[str, SecretStr | None] = {}
        for name, key in self._user_keys.items():
            provider = get_provider(name)
            changed |= dict.fromkeys(provider.account_settings)
            changed[provider.key_setting] = key
        return self._shared.settings.model_copy(update=changed)

    @property
    def changing(self) -> bool:
        """Whether the application's keys can change."""
        return self._shared.changing

    @property
    def all_secrets(self) -> tuple[str, ...]:
        """Secrets to redact from this visitor's answers: the application's and the visitor's."""
        user_keys = tuple(
            key.get_secret_value() for key in self._user_keys.values() if key is not None
        )
        return (*self._shared.all_secrets, *user_keys)

    def refresh(self) -> None:
        """Reload the application's keys that have changed."""
        self._shared.refresh()


def _key_settings() -> list[str]:
    """Return the names of the settings that hold a provider's key."""
    return [provider.key_setting for provider in list_keyed_providers()]


def _named_files(settings: Settings) -> Iterator[tuple[str, Path]]:
    """Iterate over the settings that name a key file, with its path."""
    for name in _key_settings():
        path: Path | None = getattr(settings, f"{name}_file")
        if path is not None:
            if getattr(settings, name) is not None:
                variable = name.upper()
                raise ConfigurationError(f"{variable}_FILE and {variable} are both set: leave one")
            yield name, path
