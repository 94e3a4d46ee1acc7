"""The pages: one tab, one file. They receive a Lab and know no SDK and no SQL.

``frame.py`` sets the tabs into the page; ``editor.py``, ``compare.py``, ``chat.py``,
``insights.py`` and ``connect.py`` are the tabs; ``desk.py`` opens a persona in all of them;
``look.py`` and ``page.css`` are how it looks; ``api.py`` names what a program may call;
``text.py``, ``stream.py``, ``charts.py`` and ``export.py`` turn what the parts say into what a page
shows; ``visitor.py`` knows who is looking, and ``keyring.py`` whose keys they bring.
"""

from __future__ import annotations

import gc

from persona_lab.settings import Settings


def serve(settings: Settings, *, share: bool = False) -> None:
    """Opens the lab and serves its pages until interrupted. Raises ConfigurationError."""
    # What the start makes stays: to look through it for garbage takes a sixth of the start, and
    # would take its time again at every full collection.
    gc.disable()
    from persona_lab.lab import open_lab
    from persona_lab.monitor import logs
    from persona_lab.ui.page import build, launch

    logs.configure(settings)
    logs.capture_uvicorn_logs()
    with open_lab(settings) as lab:
        logs.configure(settings, secrets=lambda: lab.clients.keys.all_secrets)
        page, i18n = build(lab, shared=share)
        lab.monitor.metrics.queues["page"] = lambda: len(page._queue)
        gc.freeze()
        gc.enable()
        launch(page, i18n, lab, share=share)
