"""Whether all is well, for who restarts a process or sends it visitors.

``/healthz`` answers as long as the process does. ``/readyz`` answers 200 when the database does,
and the default model can be had; else 503. Neither says more than that: everybody may ask.
"""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from persona_lab.errors import PersonaLabError
from persona_lab.lab import Lab

PATIENCE = 5.0
"""Seconds that the database has for an answer."""


async def healthz(request: Request) -> Response:
    """Liveness: the process answers."""
    return JSONResponse({"status": "alive"})


class Readiness:
    """:meth:`answer` is the endpoint over ``lab``. ``patience`` in seconds.

    A database that hangs is asked once, however often a probe comes by meanwhile: each question
    holds a thread.
    """

    def __init__(self, lab: Lab, *, patience: float = PATIENCE) -> None:
        self._lab = lab
        self._patience = patience
        self._asking: asyncio.Task[bool] | None = None

    async def answer(self, request: Request) -> Response:
        """Readiness: 200, or 503 where the database or the model doesn't answer."""
        parts = {"database": await self._database(), "model": await self._model()}
        well = all(parts.values())
        return JSONResponse({"ready": well, **parts}, 200 if well else 503)

    async def _database(self) -> bool:
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
        done, _ = await asyncio.wait([self._asking], timeout=self._patience)
        return bool(done) and self._asking.result()

    async def _ask(self) -> bool:
        try:
            await asyncio.to_thread(self._lab.store.check)
        except PersonaLabError:
            return False
        return True

    async def _model(self) -> bool:
        """Nobody is asked and nothing loaded: a probe mustn't cost what an answer costs."""
        try:
            client = await self._lab.clients.open()
            await asyncio.to_thread(client.check)
        except PersonaLabError:
            return False
        return True
