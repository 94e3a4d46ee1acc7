"""The declaration of a provider. Each provider module has one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from persona_lab.addresses import split_query
from persona_lab.settings import parse_headers

if TYPE_CHECKING:
    from pydantic import SecretStr

    from persona_lab.errors import ProviderError
    from persona_lab.settings import Settings


@dataclass(frozen=True, slots=True)
class Provider:
    """Facts about a provider that the rest of the application needs.

    Attributes:
        name: The part before the colon in ``provider:model``, and the name of its file.
        label: Its name on the page.
        key_setting: The field of :class:`~persona_lab.settings.Settings` that holds its API key;
            "" if it needs none. The field ``<key_setting>_file`` names a file with the key.
        url_setting: The field that holds the address of another server, which may need no key;
            "" if the server is fixed.
        header_settings: The fields that hold headers of the operator's account, by the name of the
            header. They never go out with a visitor's key.
        headers_setting: The field with further headers of the operator; "" if there is none.
        default_url: Address of the provider's official server.
        libraries: Slow libraries that the client imports when it is created.
        free: Whether its tokens cost nothing.
        is_local: Whether its models run in this process.
        is_practice: Whether its models need no weights and no server: their answers are made up.
        structured_output: Options that can constrain the form of an answer.
        error_types: Our error for each machine-readable name of an error in its responses.
    """

    name: str
    label: str = ""
    key_setting: str = ""
    url_setting: str = ""
    header_settings: Mapping[str, str] = field(default_factory=dict)
    headers_setting: str = ""
    default_url: str = ""
    libraries: tuple[str, ...] = ()
    free: bool = False
    is_local: bool = False
    is_practice: bool = False
    structured_output: frozenset[str] = frozenset({"json_schema"})
    error_types: Mapping[str, type[ProviderError]] = field(default_factory=dict)

    def api_key(self, settings: Settings) -> SecretStr | None:
        """Return the API key, None if none is set or needed."""
        key: SecretStr | None = getattr(settings, self.key_setting) if self.key_setting else None
        return key

    def custom_url(self, settings: Settings) -> str:
        """Return the address that replaces the default server, "" if none is set."""
        url: str | None = getattr(settings, self.url_setting) if self.url_setting else None
        return url or ""

    def base_url(self, settings: Settings) -> str:
        """Return the address of the server to call, without its query."""
        return split_query(self.custom_url(settings) or self.default_url)[0]

    def query(self, settings: Settings) -> dict[str, str]:
        """Return the query that goes with each request."""
        return dict(parse_qsl(split_query(self.custom_url(settings))[1], keep_blank_values=True))

    def headers(self, settings: Settings) -> dict[str, str]:
        """Return the headers of the operator's account."""
        given: SecretStr | None = (
            getattr(settings, self.headers_setting) if self.headers_setting else None
        )
        named = {name: getattr(settings, of) for name, of in self.header_settings.items()}
        further = parse_headers(given.get_secret_value()) if given is not None else {}
        return {name: value for name, value in named.items() if value} | further

    @property
    def account_settings(self) -> tuple[str, ...]:
        """The fields of the operator's account beside the key."""
        return (*self.header_settings.values(), *filter(None, (self.headers_setting,)))

    def is_configured(self, settings: Settings) -> bool:
        """Return whether ``settings`` hold a key or another server, if it needs one."""
        return not self.key_setting or bool(self.api_key(settings) or self.custom_url(settings))
