"""Keys: where they come from, and following them when they change, without a restart.

A key stands in one of four places, the first that has it counts:

1. a file named by ``OPENAI_API_KEY_FILE`` (a Docker or Kubernetes secret);
2. the environment (``OPENAI_API_KEY``);
3. a file ``openai_api_key`` or ``OPENAI_API_KEY`` in the folder ``SECRETS_DIR``;
4. a vault (``VAULT_ADDR``), which may be another's service: it is a :class:`Source`.

Files are looked at before each use, and read again when they changed; the vault is asked again
after ``KEYS_TTL`` seconds. A place that can't be read later on leaves the keys as they were: a key
is changed by putting another there. What once was a key stays one for :attr:`Keys.known`, so that
it is hidden from answers although it is out of use. Nothing here logs a key, nor puts one into an
error.
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
from persona_lab.settings import Settings

log = logging.getLogger("persona_lab.keys")

VAULT_SECONDS = 5.0
"""How long a vault may take to answer."""


class Source(Protocol):
    """A place of many keys."""

    def read(self) -> Mapping[str, str]:
        """The keys by the names of their settings, in capitals or not.

        Raises PermissionError when the place refuses, another OSError when it can't be reached.
        """


class Vault:
    """HashiCorp Vault, or OpenBao: one secret of a KV engine of version 2, read over HTTP.

    ``secret`` is the engine's mount and the path in it: ``secret/persona-lab``. ``token`` gives
    what it is read with, anew each time.
    """

    def __init__(self, address: str, secret: str, token: Callable[[], str]) -> None:
        mount, _, path = secret.strip("/").partition("/")
        self._url = f"{address.rstrip('/')}/v1/{mount}/data/{path}"
        self._token = token

    def read(self) -> Mapping[str, str]:
        import httpx2

        headers = {"X-Vault-Token": self._token(), "X-Vault-Request": "true"}
        try:
            answer = httpx2.get(self._url, headers=headers, timeout=VAULT_SECONDS)
            status = answer.status_code
            if status == 200:
                return {str(k): str(v) for k, v in answer.json()["data"]["data"].items()}
        except (httpx2.HTTPError, httpx2.InvalidURL, ValueError, LookupError, TypeError) as wrong:
            # The cause is left out: h11 prints a header that it can't send.
            raise ConnectionError(f"the vault gave no answer: {type(wrong).__name__}") from None
        if 400 <= status < 500:
            raise PermissionError(f"the vault refused: HTTP {status}")
        raise ConnectionError(f"the vault can't answer: HTTP {status}")


class _File:
    """A file with one key in it, read again when it is another than before."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stamp: tuple[int, ...] | None = None
        self._content = ""

    def read(self) -> str:
        """Raises OSError, and ValueError for what isn't text."""
        now = self.path.stat()  # Kubernetes puts another file behind a link: its inode tells
        stamp = (now.st_ino, now.st_ctime_ns, now.st_mtime_ns, now.st_size)
        if stamp != self._stamp:
            self._content = self.path.read_text("utf-8").strip()
            self._stamp = stamp
        return self._content


class ApiKeys:
    """The keys as they are now. ``clock`` counts seconds; ``vault`` stands in for the settings'."""

    def __init__(
        self,
        settings: Settings,
        *,
        vault: Source | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises ConfigurationError for a file that can't be read, a key that is set twice and a
        vault that refuses. A vault that can't be reached is waited for."""
        self.settings = settings
        """The settings with the keys that hold now."""
        self._given = settings
        self._clock = clock
        self._files = {name: _File(path) for name, path in _named_files(settings)}
        self._folder = {
            name: [_File(settings.secrets_dir / spelled) for spelled in (name, name.upper())]
            for name in _key_settings()
            if settings.secrets_dir is not None
        }
        self._vault = vault if vault is not None else self._vault_of_settings()
        self._from_vault: dict[str, str] = {}
        self._ask_vault_at = clock()
        self._known: dict[str, None] = {}
        self._troubled: set[str] = set()
        self._refreshing = threading.Lock()
        self.refresh(first=True)

    @property
    def changing(self) -> bool:
        """Whether they can become others: :meth:`refresh` does nothing where not."""
        return bool(self._files or self._folder or self._vault)

    @property
    def all_secrets(self) -> tuple[str, ...]:
        """Every secret of the house that there is or was."""
        return tuple(self._known)

    def with_user_keys(self) -> UserKeys:
        """These, with room for a visitor's own ahead of them."""
        return UserKeys(self)

    def refresh(self, *, first: bool = False) -> None:
        """Look whether a key has changed. It may read files and wait for the vault, one caller at
        a time: others go on with what is known."""
        if not self._refreshing.acquire(blocking=False):
            return
        try:
            names = _key_settings()
            found = {name: self._find(name, first) for name in names}
            if self._vault is not None and self._clock() >= self._ask_vault_at:
                self._read_vault(self._vault, first)
            changed = {
                name: SecretStr(key) if key else None
                for name in names
                for key in [found[name] or self._from_vault.get(name, "")]
            }
            settings = self._given.model_copy(update=changed)
            secrets = [value for _, value in settings if isinstance(value, SecretStr)]
            # They are hidden before anybody is asked with them.
            self._known |= dict.fromkeys(s.get_secret_value().strip() for s in secrets)
            if first or any(getattr(self.settings, n) != key for n, key in changed.items()):
                self.settings = settings
                if not first:
                    log.info("a key has changed", extra={"event": "key_changed"})
        finally:
            self._refreshing.release()

    def _find(self, name: str, first: bool) -> str:
        """The key outside the vault; "" where there is none."""
        if name in self._files:
            return self._read(self._files[name], f"{name.upper()}_FILE", first) or self._now(name)
        given: SecretStr | None = getattr(self._given, name)
        if given is not None:
            return given.get_secret_value()
        for file in self._folder.get(name, ()):
            if file.path.exists():
                return self._read(file, "SECRETS_DIR", first) or self._now(name)
        return ""

    def _now(self, name: str) -> str:
        held: SecretStr | None = getattr(self.settings, name)
        return held.get_secret_value() if held is not None else ""

    def _read(self, file: _File, variable: str, first: bool) -> str:
        try:
            key = file.read()
        except (OSError, ValueError) as wrong:
            why = getattr(wrong, "strerror", None) or "not UTF-8"
            if first:
                raise ConfigurationError(f"{variable}: {file.path}: {why}") from None
            self._trouble(variable, why)
            return ""
        self._troubled.discard(variable)
        return key

    def _read_vault(self, vault: Source, first: bool) -> None:
        self._ask_vault_at = self._clock() + self._given.keys_ttl
        try:
            found = vault.read()
        except (OSError, ValueError) as wrong:
            if first and isinstance(wrong, PermissionError):
                raise ConfigurationError(f"VAULT_ADDR: {wrong}") from None
            self._trouble("VAULT_ADDR", str(wrong))
            return
        self._troubled.discard("VAULT_ADDR")
        self._from_vault = {name.lower(): key.strip() for name, key in found.items()}

    def _trouble(self, variable: str, why: str) -> None:
        """Say it once, until it is over."""
        if variable not in self._troubled:
            self._troubled.add(variable)
            log.warning(
                "keys can't be read again and stay as they were: %s: %s",
                variable,
                why,
                extra={"event": "keys_unreadable"},
            )

    def _vault_of_settings(self) -> Source | None:
        given = self._given
        if given.vault_addr is None:
            return None
        token_file = _File(given.vault_token_file) if given.vault_token_file else None

        def token() -> str:
            if token_file is not None:
                read = token_file.read()
            else:
                read = given.vault_token.get_secret_value() if given.vault_token else ""
            self._known[read] = None
            return read

        return Vault(given.vault_addr, given.vault_secret, token)


class UserKeys:
    """The house's keys, with a visitor's own in place of some. They are here and nowhere else."""

    def __init__(self, house: ApiKeys) -> None:
        self._house = house
        self._own: dict[str, SecretStr | None] = {}

    @property
    def providers(self) -> frozenset[str]:
        """Those that are asked with a key of the visitor's, or, once that was forgotten, not."""
        return frozenset(self._own)

    def put(self, provider: str, key: SecretStr) -> None:
        self._own[provider] = key

    def drop(self, provider: str) -> None:
        """The house's again."""
        self._own.pop(provider, None)

    def forget(self) -> None:
        """The visitor has left: their keys are gone, and the house's don't take their place."""
        self._own = dict.fromkeys(self._own)

    @property
    def settings(self) -> Settings:
        own = {get_provider(provider).key_setting: key for provider, key in self._own.items()}
        return self._house.settings.model_copy(update=own)

    @property
    def changing(self) -> bool:
        return self._house.changing

    @property
    def all_secrets(self) -> tuple[str, ...]:
        """What is hidden from this visitor's answers: nobody else's own."""
        own = tuple(key.get_secret_value() for key in self._own.values() if key is not None)
        return (*self._house.all_secrets, *own)

    def refresh(self) -> None:
        self._house.refresh()


def _key_settings() -> list[str]:
    """Return the names of the settings that hold a provider's key."""
    return [provider.key_setting for provider in list_keyed_providers()]


def _named_files(settings: Settings) -> Iterator[tuple[str, Path]]:
    for name in _key_settings():
        path: Path | None = getattr(settings, f"{name}_file")
        if path is not None:
            if getattr(settings, name) is not None:
                variable = name.upper()
                raise ConfigurationError(f"{variable}_FILE and {variable} are both set: leave one")
            yield name, path
