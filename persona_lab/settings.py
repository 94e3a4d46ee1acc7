"""Everything a deployment can set. Nothing else in the house reads the environment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, AnyUrl, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from persona_lab.errors import ConfigurationError

ROOT = Path(__file__).resolve().parent.parent
"""The project's folder: ``templates/`` and ``data/`` stand in it."""


@dataclass(frozen=True, slots=True)
class Provider:
    """Who models come from. ``module`` has its ``Client``; ``free``: tokens cost nothing.

    ``key`` names the setting that holds its key ("": it asks for none), ``server`` the one that
    holds the address of another server, which may do without a key. ``forms``: options by which an
    answer's form can be asked for.
    """

    module: str
    key: str = ""
    server: str = ""
    free: bool = False
    structured_output: frozenset[str] = frozenset({"json_schema"})


PROVIDERS = {
    "local": Provider(
        "persona_lab.clients.local",
        free=True,
        structured_output=frozenset({"json_schema", "grammar"}),
    ),
    "openai": Provider("persona_lab.clients.openai", "openai_api_key", "openai_base_url"),
    "anthropic": Provider(
        "persona_lab.clients.anthropic", "anthropic_api_key", "anthropic_base_url"
    ),
    "mock": Provider("persona_lab.clients.mock", free=True, structured_output=frozenset()),
}
"""All that the house knows of a provider outside its own file. A module is imported when it is
first used: an SDK costs up to a second and a half."""


def _known(name: str) -> str:
    if name not in PROVIDERS:
        raise ValueError(f"must be one of {', '.join(PROVIDERS)}")
    return name


ProviderName = Annotated[str, AfterValidator(_known)]


class Settings(BaseSettings):
    """Each field is the environment variable of the same name in capitals.

    Lengths are in characters, times in seconds, unless a name says otherwise.
    """

    model_config = SettingsConfigDict(
        extra="ignore",
        hide_input_in_errors=True,
        env_ignore_empty=True,
        frozen=True,
        allow_inf_nan=False,
    )

    openai_api_key: SecretStr | None = None
    openai_base_url: str | None = None
    anthropic_api_key: SecretStr | None = None
    anthropic_base_url: str | None = None
    openai_api_key_file: Path | None = None
    """Where the key is instead: it is read again when the file changes."""
    anthropic_api_key_file: Path | None = None
    secrets_dir: Path | None = None
    """A folder with a file for each key, by the name of its setting."""
    vault_addr: str | None = None
    """A HashiCorp Vault that has the keys, by the names of their settings."""
    vault_token: SecretStr | None = None
    vault_token_file: Path | None = None
    vault_secret: str = "secret/persona-lab"  # noqa: S105 - where it is, not what it is
    """Mount of the vault's KV engine (version 2), and the path in it."""
    keys_ttl: float = Field(default=60, gt=0)
    """How long a key from the vault is used before the vault is asked again."""

    llm_provider: ProviderName = "local"
    llm_model: str = ""
    """Name of the model at ``llm_provider``; empty takes the provider's first in models.yaml."""
    llm_temperature: float | None = Field(default=None, ge=0, le=2)
    """Overrides what ``data/models.yaml`` says for the model."""
    llm_max_tokens: int | None = Field(default=None, ge=1, le=100_000)
    llm_timeout: float = Field(default=30, gt=0)
    """How long a remote model may be silent before its answer begins, all tries together."""
    llm_connect_timeout: float = Field(default=10, gt=0)
    """How long a server may take to accept a connection."""
    llm_idle_timeout: float | None = Field(default=None, gt=0)
    """How long a model may be silent between two tokens; None: as ``llm_timeout``."""
    llm_total_timeout: float = Field(default=600, gt=0)
    """How long an answer may take, whoever gives it."""
    llm_retries: int = Field(default=2, ge=0, le=10)
    """Further tries of one model, while no word has come."""
    llm_retry_wait: float = Field(default=10, ge=0)
    """The longest pause before another try: who asks for a longer one is left alone."""
    llm_fallback: str = ""
    """Who answers in a chat when the chosen model can't: ``provider:model``, commas between."""
    llm_breaker_failures: int = Field(default=5, ge=1)
    """Failures in a row after which a model isn't asked for a while."""
    llm_breaker_cooldown: float = Field(default=30, gt=0)
    """That while."""
    local_model: str = ""
    """Names in models.yaml, paths to ``.gguf`` files, or ``owner/repo:file`` from the hub, with
    commas between several. The first is the default; pages offer all of them."""
    local_context: int = Field(default=4096, ge=512, le=131_072)
    """Tokens of context that a local model is opened with."""
    local_flash_attention: bool = False
    """Whether a local model passes over the cells of the other conversations that are answered at
    the same time. Without it, what is computed alone is to the token what llama_cpp.Llama says."""
    local_timeout: float = Field(default=300, gt=0)
    """``llm_timeout`` for local models: reading a long prompt on a busy machine is work, not
    silence."""
    local_memory: int = Field(default=0, ge=0)
    """Megabytes that all local models may take together; 0: what the machine has left. One that
    nobody uses is unloaded when another needs its memory."""
    local_threads: int = Field(default=0, ge=0, le=512)
    """Threads for local models; 0 takes what the machine has."""

    database_url: str = Field(default=f"sqlite:///{ROOT / 'data' / 'lab.db'}", repr=False)
    redis_url: str | None = Field(default=None, repr=False)
    """Where replicas share cached answers, contexts and counted quotas; None: this process."""

    requests_per_minute: int = Field(default=60, ge=0)
    """Of one user; 0 sets no limit."""
    tokens_per_day: int = Field(default=100_000, ge=0)
    """Of one user, with models that cost money; 0 sets no limit."""
    tokens_per_day_total: int = Field(default=1_000_000, ge=0)
    """The same of all users together: who forgets their cookie is another user."""
    response_cache_ttl: int = Field(default=3600, ge=0)
    """How long an answer serves for the same question in a chat; 0 keeps none."""

    max_message_length: int = Field(default=2000, ge=1, le=1_000_000)
    max_context_length: int = Field(default=10, ge=0, le=10_000)
    """Messages of the conversation that are sent along."""
    context_ttl: int = Field(default=3600, ge=1)
    """How long a conversation's end is cached."""
    context_summary: bool = False
    """Whether a model sums up what is too old to be sent along."""

    tone_adjustment: bool = True
    """Whether Japanese answers are kept to their persona's tone (``templates/tones.yaml``)."""

    mask_personal_data: bool = True
    """Whether e-mail addresses, phone numbers, keys … are masked in answers."""
    word_filter: bool = True
    """Whether the lists of words in ``templates/guards.yaml`` are kept to."""
    role_limits: bool = True
    """Whether the limits of roles in ``templates/guards.yaml`` are kept to."""
    moderation: Literal["off", "openai"] = "off"
    """A model that looks at each whole answer before it is shown: answers then don't stream."""
    moderation_model: str = "omni-moderation-latest"

    metrics_token: SecretStr | None = None
    """What who asks for ``/metrics`` must show; None: nobody from elsewhere gets them."""
    log_format: Literal["auto", "json", "text"] = "auto"
    """auto: for a reader where standard error is a terminal, JSON lines elsewhere."""
    log_level: Literal["debug", "info", "warning", "error", "critical"] = "info"
    log_messages: bool = False
    """Whether the log has the words of messages and answers."""

    alert_window: float = Field(default=300, gt=0)
    """Over which rates and delays are looked at."""
    alert_min_turns: int = Field(default=10, ge=1)
    """Answers in that window below which they tell nothing."""
    alert_error_rate: float = Field(default=0.2, ge=0, le=1)
    """Share of the answers that fail; 0 switches it off, as with the others."""
    alert_delay: float = Field(default=60, ge=0)
    """Within which 95 of 100 answers should be over."""
    alert_limits: int = Field(default=1, ge=0)
    """Refusals by a provider's limit, in the window."""
    alert_cost: float = Field(default=10, ge=0)
    """US dollars a day (UTC)."""
    alert_webhook: SecretStr | None = None
    """Where alerts are posted to. Such an address is often a key."""

    templates_dir: Path = ROOT / "templates"
    data_dir: Path = ROOT / "data"
    models_dir: Path = ROOT / "data" / "models"
    """Where weights that come in parts are put together."""

    gradio_server_name: str = "127.0.0.1"
    gradio_server_port: Annotated[int, Field(ge=0, le=65_535)] = 7860

    @field_validator("secrets_dir", "templates_dir", "data_dir")
    @classmethod
    def _is_folder(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_dir():
            raise ValueError(f"there is no folder {value}")
        return value

    @field_validator("openai_base_url", "anthropic_base_url", "vault_addr")
    @classmethod
    def _is_http(cls, value: str | None) -> str | None:
        if value is not None and AnyUrl(value).scheme not in ("http", "https"):
            raise ValueError("must begin with http:// or https://")
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
    def _in_small_letters(cls, value: object) -> object:
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
    def local_models(self) -> list[str]:
        """The local models that this deployment names."""
        names = [self.llm_model] if self.llm_provider == "local" else []
        names += _listed(self.local_model)
        names += [spec[6:] for spec in _listed(self.llm_fallback) if spec.startswith("local:")]
        return list(dict.fromkeys(filter(None, names)))

    @property
    def fallback_models(self) -> list[str]:
        """``provider:model`` of each that stands in, in their order; ``local`` alone means the
        first of :attr:`local_models`."""
        local = next(iter(self.local_models), "")
        return [f"local:{local}" if s == "local" else s for s in _listed(self.llm_fallback)]

    @property
    def default_model(self) -> str:
        """``provider:model`` that answers when nobody chose; "" after the colon means its first."""
        local = self.local_models if self.llm_provider == "local" else []
        return f"{self.llm_provider}:{self.llm_model or next(iter(local), '')}"


def _listed(text: str) -> list[str]:
    return [name for name in map(str.strip, text.split(",")) if name]


def load_settings() -> Settings:
    """Settings from the environment.

    Raises ConfigurationError with one line that names the variable and what it takes.
    """
    try:
        return Settings()
    except ValidationError as wrong:
        first = wrong.errors(include_url=False, include_input=False)[0]
        name = str(first["loc"][0]).upper() if first["loc"] else "settings"
        raise ConfigurationError(f"{name}: {first['msg']}") from None
