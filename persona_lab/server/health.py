"""Health checks for process supervisors and load balancers.

``/healthz`` answers as long as the process does. ``/readyz`` answers 200 if the database answers
and the default model is usable, and else 503. Both are public, so they give no further details.
"""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from persona_lab.errors import PersonaLabError
from persona_lab.lab import Lab

DATABASE_TIMEOUT_S = 5.0
"""Seconds that the database has to answer."""


async def healthz(request: Request) -> Response:
    """Liveness: the process answers."""
    return JSONResponse({"status": "alive"})


class Readiness:
    """The readiness check of a lab. :meth:`answer` is the endpoint.

    Each check of the database occupies a thread. While the database hangs, all probes share one
    check.
    """

    def __init__(self, lab: Lab, *, timeout_s: float = DATABASE_TIMEOUT_S) -> None:
        """Make the check.

        Args:
            lab: The lab to check.
            timeout_s: Seconds that the database has to answer.
        """
        self._lab = lab
        self._timeout_s = timeout_s
        self._check: asyncio.Task[bool] | None = None

    async def answer(self, request: Request) -> Response:
        """Readiness: 200, or 503 if the database or the model is unavailable."""
        parts = {"database": await self._database_answers(), "model": await self._model_usable()}
        ready = all(parts.values())
        return JSONResponse({"ready": ready, **parts}, 200 if ready else 503)

    async def _database_answers(self) -> bool:
        if self._check is None or self._check.done():
            self._check = asyncio.create_task(self._check_database())
        done, _ = await asyncio.wait([self._check], timeout=self._timeout_s)
        return bool(done) and self._check.result()

    async def _check_database(self) -> bool:
        try:
            await asyncio.to_thread(self._lab.store.check)
        except PersonaLabError:
            return False
        return True

    async def _model_usable(self) -> bool:
        """Check without a request to the provider and without loading weights."""
        try:
            client = await self._lab.clients.open()
            await asyncio.to_thread(client.check)
        except PersonaLabError:
            return False
        return True
