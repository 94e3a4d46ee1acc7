"""The entry point of ``python app.py`` and of Hugging Face Spaces."""

from __future__ import annotations

import argparse
import os
import sys

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from persona_lab.clients.error_mapping import map_error
from persona_lab.errors import ConfigurationError, DiskFull, StorageError
from persona_lab.server import check_port, only_instance
from persona_lab.settings import Settings, load_settings

LOGGING = ("ANTHROPIC_LOG", "OPENAI_LOG")
"""Variables that make an SDK log what it sends, and with it the text of messages."""

OPENING = (
    "GRADIO_ALLOWED_PATHS",
    "GRADIO_EXAMPLES_CACHE",
    "GRADIO_LOCAL_DEV_MODE",
    "GRADIO_VIBE_MODE",
    "GRADIO_WATCH_DIRS",
)
"""Variables that let Gradio show files of this machine to visitors, or let them change it."""


def prefer_lowercase() -> None:
    """Drop ``HTTP_PROXY`` where ``http_proxy`` is set, even to nothing, as curl and Python do."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        value = os.environ.get(name)
        if value is not None:
            os.environ.pop(name.upper(), None)
            os.environ[name] = value


def adjust_environment(settings: Settings) -> None:
    """Write what libraries read from the environment in the form that all of them understand."""
    for name in LOGGING:
        os.environ.pop(name, None)
    for name, value in settings.proxies.environment(settings.gradio_server_name).items():
        for spelling in (name, name.upper()):
            os.environ.pop(spelling, None)
        if value:
            os.environ[name] = value


def stopped(reason: str) -> int:
    """Print why the program stops, and return its exit code."""
    print(f"Persona Lab: {reason}", file=sys.stderr)
    return 2


def main() -> int:
    """Serve the lab until it is stopped, and return the exit code."""
    arguments = argparse.ArgumentParser(prog="app.py", description="Persona Lab")
    arguments.add_argument("--share", action="store_true", help="make a public share link")
    share = arguments.parse_args().share
    dropped = [name for name in OPENING if os.environ.pop(name, "")]
    if dropped:
        print(f"Persona Lab: no files are served: {', '.join(dropped)} ignored", file=sys.stderr)
    try:
        prefer_lowercase()
        settings = load_settings()
        adjust_environment(settings)
        check_port(settings.gradio_server_name, settings.gradio_server_port)
        with only_instance(settings.database_url):
            from persona_lab.ui import serve

            serve(settings, share=share)
    except ConfigurationError as error:
        return stopped(str(error))
    except (StorageError, OSError) as error:
        full = isinstance(map_error(error), DiskFull)
        reason = "the disk is full" if full else str(error)
        return stopped(f"DATABASE_URL: the database can't be written: {reason}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
