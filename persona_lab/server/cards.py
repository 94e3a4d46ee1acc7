"""``/api/v1/cards``: read, convert and export character cards.

The body of a request is the file itself. Nothing is stored: a program shows what goes where, and
then creates the persona by ``/api/v1/agents``. ``/api/v1/cards/openapi.json`` describes the routes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar
from urllib.parse import quote

from fastapi import APIRouter, FastAPI, Query, Request, Response
from pydantic import BaseModel, Field

from persona_lab.errors import PersonaLabError
from persona_lab.lab import Lab
from persona_lab.personas.cards import (
    Card,
    Format,
    Note,
    Program,
    Row,
    card_of,
    compatibility,
    file_name,
    format_losses,
    map_card,
    read_card,
    write_card,
)
from persona_lab.personas.cards.model import MAX_FILE_BYTES
from persona_lab.personas.persona import Persona
from persona_lab.server.app import CallerDep, OperationsDep, create_api_app
from persona_lab.server.error_responses import error_response
from persona_lab.server.rest_schemas import ErrorOut
from persona_lab.translations import Translations, load_texts
from persona_lab.types import Language

_Result = TypeVar("_Result")
MAX_READERS = 2
"""Cards that are read or written at the same time; this bounds memory."""
_MEDIA_TYPES: dict[Format, str] = {
    "v2-json": "application/json",
    "v3-json": "application/json",
    "v2-png": "image/png",
    "v3-png": "image/png",
    "charx": "application/zip",
    "yaml": "application/yaml",
    "json": "application/json",
    "text": "text/plain; charset=utf-8",
}


class RowOut(BaseModel):
    """What happens with one field of a card."""

    source: str = Field(description="The field of the card.")
    target: str = Field(description="The field of the persona, lorebook, or empty.")
    fate: str = Field(description="used, kept or lost.")
    text: str = Field(description="An explanation in the caller's language, or empty.")


class NoteOut(BaseModel):
    """What was unusual in a file."""

    path: str
    text: str


class CardOut(BaseModel):
    """What an import would do."""

    spec: str = Field(description="The version that was read: v1, v2, v3 or own.")
    source: str = Field(description="The kind of file.")
    edited: bool = Field(description="Whether the card was edited here after an import.")
    persona: dict[str, Any] = Field(description="The fields of the persona.")
    rows: list[RowOut]
    notes: list[NoteOut]


cards = APIRouter(tags=["cards"])
_FILE: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}
_ERROR: dict[str, Any] = {"model": ErrorOut, "description": "An error."}
_ERRORS: dict[int | str, dict[str, Any]] = dict.fromkeys((401, 413, 422, 500, 503), _ERROR)
_FormatQuery = Annotated[Format, Query(description="The format of the file.")]
_READ_RESPONSE: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The file.",
        "content": {type_.partition(";")[0]: {} for type_ in _MEDIA_TYPES.values()},
    }
}


@cards.post("/read", responses=_ERRORS, openapi_extra=_FILE)
async def read(request: Request, caller: CallerDep) -> CardOut:
    """Say what goes where when a file becomes a persona. Nothing is stored."""
    card = await _read(request)
    plan = await _run(request, map_card, card)
    texts = request.app.state.texts
    return CardOut(
        spec=card.spec,
        source=card.source,
        edited=card.edited,
        persona=plan.persona.to_dict(),
        rows=_rows_out(plan.rows, texts, caller.language),
        notes=[NoteOut(path=n.path, text=_text(n, texts, caller.language)) for n in plan.notes],
    )


@cards.post("/compatibility", responses=_ERRORS, openapi_extra=_FILE)
async def compare(
    request: Request,
    caller: CallerDep,
    program: Annotated[Program, Query(description="The other program.")] = "sillytavern",
) -> list[RowOut]:
    """Say what another program makes of a file."""
    card = await _read(request)
    rows = await _run(request, compatibility, card, program)
    return _rows_out(rows, request.app.state.texts, caller.language)


@cards.post(
    "/convert",
    response_class=Response,
    responses={**_READ_RESPONSE, **_ERRORS},
    openapi_extra=_FILE,
)
async def convert(
    request: Request,
    format: _FormatQuery = "v3-png",  # noqa: A002 - the public name
) -> Response:
    """Return a file in another format. ``X-Lost`` names the fields without a place in it."""
    return await _file(request, await _read(request), format)


@cards.get(
    "/agents/{agent_id}",
    response_class=Response,
    responses={**_READ_RESPONSE, **_ERRORS, 404: _ERROR},
)
async def export(
    agent_id: str,
    request: Request,
    operations: OperationsDep,
    format: _FormatQuery = "v3-png",  # noqa: A002 - the public name
) -> Response:
    """Export a persona of your own or a demo."""
    agent = await operations.get_persona(agent_id)
    return await _file(request, card_of(Persona.from_agent(agent)), format)


async def _read(request: Request) -> Card:
    return await _run(request, read_card, await request.body())


async def _run(request: Request, function: Callable[..., _Result], *arguments: Any) -> _Result:
    """Call ``function`` in a thread, with few others at the same time."""
    async with request.app.state.readers:
        return await asyncio.to_thread(function, *arguments)


async def _file(request: Request, card: Card, format_: Format) -> Response:
    content = await _run(request, write_card, card, format_)
    name = quote(file_name(card, format_), safe="")
    headers = {
        "content-disposition": f"attachment; filename*=UTF-8''{name}",
        "x-content-type-options": "nosniff",
    }
    lost = [row.source for row in format_losses(card, format_) if row.fate == "lost"]
    if lost:
        headers["x-lost"] = quote(", ".join(lost)[:1_000], safe=" ,:/.")
    return Response(content, media_type=_MEDIA_TYPES[format_], headers=headers)


def _rows_out(rows: Sequence[Row], texts: Translations, language: str) -> list[RowOut]:
    return [
        RowOut(
            source=row.source, target=row.target, fate=row.fate, text=_text(row, texts, language)
        )
        for row in rows
    ]


def _text(item: Row | Note, texts: Translations, language: str) -> str:
    return texts(item.key, language, **item.details) if item.key else ""


def cards_app(lab: Lab) -> FastAPI:
    """Return the app of ``/api/v1/cards``."""
    app = create_api_app(
        lab,
        [cards],
        error_body=_error_body,
        max_body=MAX_FILE_BYTES,
        title="Persona Lab: character cards",
        summary="Read, convert and export character cards.",
        version="1",
    )
    app.state.texts = load_texts(lab.settings.templates_dir, "cards.yaml")
    app.state.readers = asyncio.Semaphore(MAX_READERS)
    return app


def _error_body(error: PersonaLabError, lab: Lab, language: Language) -> Any:
    return error_response(error, lab.error_handler, language)
