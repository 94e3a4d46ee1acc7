"""Settings from the environment. No other module reads it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from persona_lab.addresses import normalize_address
from persona_lab.errors import ConfigurationError
from persona_lab.proxies import Proxies, normalize_proxy

ROOT = Path(__file__).resolve().parent.parent
"""The project's folder, which has ``templates/`` and ``data/``."""


LOCAL = "local"
"""The provider whose models run in this process."""
PROVIDER_NAMES: tuple[str, ...] = (LOCAL, "openai", "anthropic", "mock")
"""Providers of models. Each is a file in ``clients/``, which declares the rest; see
``clients/registry.py``."""


def _is_provider(name: str) -> str:
    if name not in PROVIDER_NAMES:
        raise ValueError(f"must be one of {', '.join(PROVIDER_NAMES)}")
    return name


ProviderName = Annotated[str, AfterValidator(_is_provider)]


_ENDPOINTS = {
    "openai_base_url": (
        *("/chat/completions", "/completions", "/responses", "/embeddings", "/moderations"),
        *("/models", "/api/chat", "/api/generate", "/api/tags"),
    ),
    "anthropic_base_url": ("/v1/messages", "/messages", "/v1/complete", "/v1/models", "/v1"),
}
"""Paths that the clients add to an address. Documentation of servers often shows the whole."""


class Settings(BaseSettings):
    """The values that a deployment can set: each field is an environment variable in capitals.

    Lengths are in characters and times in seconds, unless a name says otherwise. The texts below
    the fields become ``docs/settings.md`` (``make docs``).
    """

    model_config = SettingsConfigDict(
        extra="ignore",
        hide_input_in_errors=True,
        env_ignore_empty=True,
        frozen=True,
        allow_inf_nan=False,
    )

    llm_provider: ProviderName = LOCAL
    """Provider of the default model."""
    llm_model: str = ""
    """Name of the default model at `LLM_PROVIDER`. If empty, the provider's first model in
    `data/models.yaml`."""
    llm_temperature: float | None = Field(default=None, ge=0, le=2)
    """Overrides the temperature that `data/models.yaml` sets for a model."""
    llm_max_tokens: int | None = Field(default=None, ge=1, le=100_000)
    """Overrides the limit of answer tokens that `data/models.yaml` sets for a model."""
    llm_fallback: str = ""
    """Models that answer in a chat when the chosen model can't: `provider:model`, separated by
    commas, in their order. `local` alone means the first local model. Example:
    `anthropic:claude-haiku-5-5,local`."""

    openai_api_key: SecretStr | None = None
    """API key for OpenAI or for the server at `OPENAI_BASE_URL`."""
    openai_base_url: str | None = None
    """Address of a server with OpenAI's protocol, with the `/v1`: Ollama, vLLM, llama-server,
    LM Studio, OpenRouter. Such a server may work without a key. A `?query` goes with each
    request."""
    anthropic_api_key: SecretStr | None = None
    """API key for Anthropic or for the server at `ANTHROPIC_BASE_URL`."""
    anthropic_base_url: str | None = None
    """Address of another server with Anthropic's protocol."""
    openai_org_id: str | None = None
    """Organization that OpenAI bills. A visitor's own key goes without it, and without the next
    three."""
    openai_project_id: str | None = None
    """Project that OpenAI bills."""
    openai_custom_headers: SecretStr | None = None
    """Headers for the server with OpenAI's protocol, one `Name: value` a line."""
    anthropic_custom_headers: SecretStr | None = None
    """Headers for the server with Anthropic's protocol, one `Name: value` a line."""
    openai_api_key_file: Path | None = None
    """File with OpenAI's key. It is read again when it changes."""
    anthropic_api_key_file: Path | None = None
    """File with Anthropic's key. It is read again when it changes."""
    secrets_dir: Path | None = None
    """Folder with one file for each key, named like the key's setting."""
    vault_addr: str | None = None
    """Address of a HashiCorp Vault that holds the keys under the names of their settings."""
    vault_token: SecretStr | None = None
    """Token for the vault."""
    vault_token_file: Path | None = None
    """File with the token for the vault, instead of `VAULT_TOKEN`."""
    vault_secret: str = "secret/persona-lab"  # noqa: S105 - where it is, not what it is
    """Mount of the vault's KV engine (version 2), and the path in it."""
    keys_ttl: float = Field(default=60, gt=0)
    """Seconds that a key from the vault is used before the vault is asked again."""

    http_proxy: str | None = Field(default=None, repr=False)
    """Proxy for addresses that begin with `http://`. Requests to this machine use no proxy."""
    https_proxy: str | None = Field(default=None, repr=False)
    """Proxy for addresses that begin with `https://`."""
    all_proxy: str | None = Field(default=None, repr=False)
    """Proxy for either, where its own is not set. Proxies begin with `http://`, `https://`,
    `socks5://` or `socks5h://`."""
    no_proxy: str = ""
    """Hosts without a proxy, separated by commas: names, which include their subdomains,
    addresses, networks (`10.0.0.0/8`), or `*`."""
    ssl_cert_file: Path | None = None
    """File with the certificates to trust instead of the system's."""
    ssl_cert_dir: Path | None = None
    """Folder with the certificates to trust instead of the system's."""

    llm_timeout: float = Field(default=30, gt=0)
    """Seconds that a remote model may be silent before its answer begins, all tries together."""
    llm_thinking_timeout: float = Field(default=300, gt=0)
    """The same for models that think before they answer, if it is longer, and for models that
    `data/models.yaml` doesn't know. If only `LLM_TIMEOUT` is set, it applies to them too."""
    llm_connect_timeout: float = Field(default=10, gt=0)
    """Seconds that a server may take to accept a connection."""
    llm_idle_timeout: float | None = Field(default=None, gt=0)
    """Seconds that any model may be silent between two tokens. If not set, `LLM_TIMEOUT`."""
    llm_total_timeout: float = Field(default=600, gt=0)
    """Seconds that a whole answer may take, with any model."""
    llm_retries: int = Field(default=2, ge=0, le=10)
    """Further tries of one model while no text has arrived."""
    llm_retry_wait: float = Field(default=10, ge=0)
    """Longest pause before another try, in seconds. A provider that asks for a longer pause is not
    tried again."""
    llm_breaker_failures: int = Field(default=5, ge=1)
    """Failures in a row that open a model's circuit breaker."""
    llm_breaker_cooldown: float = Field(default=30, gt=0)
    """Seconds that an open circuit breaker lets no request through."""

    local_model: str = ""
    """Local models, separated by commas: names in `data/models.yaml`, paths to `.gguf` files, or
    `owner/repository:file` on the Hugging Face hub. The first is the default, and pages offer all
    of them. If empty, Gemma 3 270M."""
    local_context: int = Field(default=4096, ge=512, le=131_072)
    """Context of a local model, in tokens. It takes its memory twice: the second half keeps
    prompts that are not in use."""
    local_flash_attention: bool = False
    """Whether a local model skips the cells of other conversations that are answered at the same
    time. It is faster with many long conversations at once, and slower with one. Without it, an
    answer computed alone equals that of `llama_cpp.Llama` to the token, whatever was read
    before."""
    local_timeout: float = Field(default=300, gt=0)
    """`LLM_TIMEOUT` for local models, which need time to read a long prompt."""
    local_memory: int = Field(default=0, ge=0)
    """Megabytes that all local models may take together; 0 takes what the machine has left. An idle
    model is unloaded when another needs its memory."""
    local_threads: int = Field(default=0, ge=0, le=512)
    """Threads for local models; 0 takes all that the machine has."""

    database_url: str = Field(default=f"sqlite:///{ROOT / 'data' / 'lab.db'}", repr=False)
    """Database of personas and conversations: `sqlite:///…` or `postgresql://…`."""
    redis_url: str | None = Field(default=None, repr=False)
    """Redis where replicas share cached answers, contexts and quotas. If not set, each process
    keeps its own."""

    requests_per_minute: int = Field(default=60, ge=0)
    """Requests a minute of one user; 0 sets no limit. A message is one request, whichever model
    answers it."""
    tokens_per_day: int = Field(default=100_000, ge=0)
    """Tokens a day of one user; 0 sets no limit. Tokens of local models don't count."""
    tokens_per_day_total: int = Field(default=1_000_000, ge=0)
    """Tokens a day of all users together; 0 sets no limit. A user who clears their cookies is a new
    user, so this limit bounds the cost."""
    response_cache_ttl: int = Field(default=3600, ge=0)
    """Seconds that a cached answer is used for the same question in a chat; 0 switches the cache
    off."""

    max_message_length: int = Field(default=2000, ge=1, le=1_000_000)
    """Longest message, in characters."""
    max_context_length: int = Field(default=10, ge=0, le=10_000)
    """Earlier messages of the conversation that are sent with a message."""
    context_ttl: int = Field(default=3600, ge=1)
    """Seconds that the end of a conversation is cached."""
    context_summary: bool = False
    """Whether a model summarizes the messages that are too old to be sent."""

    tone_adjustment: bool = True
    """Whether Japanese answers are rewritten in their persona's tone (`templates/tones.yaml`)."""
    mask_personal_data: bool = True
    """Whether e-mail addresses, phone numbers, keys and the like are masked in answers."""
    word_filter: bool = True
    """Whether the word lists of `templates/guards.yaml` apply."""
    role_limits: bool = True
    """Whether the limits of roles in `templates/guards.yaml` apply."""
    moderation: Literal["off", "openai"] = "off"
    """`openai`: a moderation model checks each whole answer before it is shown. Answers then don't
    stream."""
    moderation_model: str = "omni-moderation-latest"
    """Name of the moderation model."""

    metrics_token: SecretStr | None = None
    """Bearer token that opens `/metrics`. If not set, only requests from this machine are
    answered."""
    log_format: Literal["auto", "json", "text"] = "auto"
    """`auto` is `text` if standard error is a terminal, and `json` (one object a line)
    elsewhere."""
    log_level: Literal["debug", "info", "warning", "error", "critical"] = "info"
    """Lowest level that is logged."""
    log_messages: bool = False
    """Whether the log holds the text of messages and answers."""

    alert_window: float = Field(default=300, gt=0)
    """Seconds that alerts look back over."""
    alert_min_turns: int = Field(default=10, ge=1)
    """Answers in the window below which rates and delays raise no alert."""
    alert_error_rate: float = Field(default=0.2, ge=0, le=1)
    """Share of failed answers that raises an alert; 0 switches it off."""
    alert_delay: float = Field(default=60, ge=0)
    """Seconds within which 95 % of the answers should finish; 0 switches the alert off."""
    alert_limits: int = Field(default=1, ge=0)
    """Refusals in the window that raise an alert: by a provider's rate limit or quota, or by
    `TOKENS_PER_DAY_TOTAL`. 0 switches it off."""
    alert_cost: float = Field(default=10, ge=0)
    """US dollars a day (UTC), of all users, that raise an alert; 0 switches it off."""
    alert_webhook: SecretStr | None = None
    """Address that alerts are posted to, as JSON with a `text`. Such an address is often a
    secret."""

    gradio_server_name: str = "127.0.0.1"
    """Address that the server listens on."""
    gradio_server_port: Annotated[int, Field(ge=0, le=65_535)] = 7860
    """Port that the server listens on."""
    templates_dir: Path = ROOT / "templates"
    """Folder of prompt templates, rules and texts. Another one is for tests."""
    data_dir: Path = ROOT / "data"
    """Folder of `models.yaml` and `personas.yaml`. Another one is for tests."""
    models_dir: Path = ROOT / "data" / "models"
    """Folder where weights that come in parts are put together."""

    @field_validator("secrets_dir", "templates_dir", "data_dir", "ssl_cert_dir")
    @classmethod
    def _is_folder(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_dir():
            raise ValueError(f"there is no folder {value}")
        return value

    @field_validator("ssl_cert_file")
    @classmethod
    def _is_file(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_file():
            raise ValueError(f"there is no file {value}")
        return value

    @field_validator("openai_base_url", "anthropic_base_url", "vault_addr")
    @classmethod
    def _is_http(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None:
            return None
        return normalize_address(value, _ENDPOINTS.get(info.field_name or "", ()))

    @field_validator("http_proxy", "https_proxy", "all_proxy")
    @classmethod
    def _is_proxy(cls, value: str | None) -> str | None:
        return normalize_proxy(value) if value is not None and value.strip() else None

    @field_validator("openai_org_id", "openai_project_id")
    @classmethod
    def _is_header_value(cls, value: str | None) -> str | None:
        if value is not None and not (value.isascii() and value.strip().isprintable()):
            raise ValueError("has characters that a header can't contain")
        return value.strip() or None if value is not None else None

    @field_validator("openai_custom_headers", "anthropic_custom_headers")
    @classmethod
    def _is_header_list(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            parse_headers(value.get_secret_value())
        return value

    @field_validator("alert_webhook")
    @classmethod
    def _is_webhook(cls, value: SecretStr | None) -> SecretStr | None:
        where = urlsplit(value.get_secret_value()) if value is not None else None
        if where is not None and not (where.scheme in ("http", "https") and where.hostname):
            raise ValueError("must be an address that begins with http:// or https://")
        return value

    @field_validator("log_format", "log_level", mode="before")
    @classmethod
    def _lowercase(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @field_validator("database_url")
    @classmethod
    def _is_database(cls, value: str) -> str:
        if not value.startswith(("sqlite:", "postgresql")):
            raise ValueError("must begin with sqlite: or postgresql:")
        return value

    @field_validator("redis_url")
    @classmethod
    def _is_redis(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("must begin with redis://, rediss:// or unix://")
        if value is not None and not value.startswith("unix:"):
            try:
                _ = urlsplit(value).port
            except ValueError:
                raise ValueError("has a port that is none") from None
        return value

    @property
    def proxies(self) -> Proxies:
        """The proxies for requests of this process."""
        return Proxies(
            self.http_proxy or "", self.https_proxy or "", self.all_proxy or "", self.no_proxy
        )

    @property
    def local_models(self) -> list[str]:
        """The local models that the settings name."""
        names = [self.llm_model] if self.llm_provider == LOCAL else []
        names += _split_names(self.local_model)
        for spec in _split_names(self.llm_fallback):
            provider, _, name = spec.partition(":")
            names += [name] if provider == LOCAL else []
        return list(dict.fromkeys(filter(None, names)))

    @property
    def fallback_models(self) -> list[str]:
        """The fallback models as ``provider:model``, in their order.

        ``local`` alone means the first of :attr:`local_models`.
        """
        first_local = f"{LOCAL}:{next(iter(self.local_models), '')}"
        return [first_local if s == LOCAL else s for s in _split_names(self.llm_fallback)]

    @property
    def default_model(self) -> str:
        """The default model as ``provider:model``; ``provider:`` means the provider's first."""
        local = self.local_models if self.llm_provider == LOCAL else []
        return f"{self.llm_provider}:{self.llm_model or next(iter(local), '')}"


def parse_headers(text: str) -> dict[str, str]:
    """Return the headers in ``text``, one ``Name: value`` a line.

    Raises:
        ValueError: A line isn't a header.
    """
    headers = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        name, colon, value = map(str.strip, line.partition(":"))
        if not (colon and re.fullmatch(r"[!#$%&'*+.^_`|~\w-]+", name, re.ASCII)):
            raise ValueError("must have one header a line, as Name: value")
        if not (value.isascii() and value.isprintable()):
            raise ValueError("has characters that a header can't contain")
        headers[name] = value
    return headers


def _split_names(text: str) -> list[str]:
    return [name for name in map(str.strip, text.split(",")) if name]


def load_settings() -> Settings:
    """Read the settings from the environment.

    Raises:
        ConfigurationError: A value is wrong. One line names the variable and what it takes.
    """
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = str(first["loc"][0]).upper() if first["loc"] else "settings"
        raise ConfigurationError(f"{name}: {first['msg']}") from None
