"""The Gradio page: one tab, one file. It receives a Lab and knows no SDK and no SQL.

``page.py`` builds the page: ``header.py`` and the tabs of ``tabs/``; ``workspace.py`` connects
them. ``page_blocks.py`` turns each error of a call into a message. Opening, editing and changing a
persona is in ``persona_view.py``, ``autosave.py`` and ``persona_actions.py``; the state of the
model is in ``model_status.py``. ``session.py`` identifies the visitor; ``visitor_keys.py`` stores
visitors' provider keys. ``running_answers.py`` lets answers go on without a page. ``streaming.py``
paces streams, ``prefetch.py`` makes a local model prefill a prompt, and ``render/`` turns values
into HTML. ``gradio_api.py`` declares the endpoints for programs. ``theme.py`` and ``static/`` hold
the style and the browser's scripts.
"""

from __future__ import annotations

import gc

from persona_lab.settings import Settings


def serve(settings: Settings, *, share: bool = False) -> None:
    """Open a lab and serve its page until interrupted.

    Args:
        settings: The settings of the lab.
        share: Whether to make a public link.

    Raises:
        ConfigurationError: The deployment is wrong.
    """
    # Objects that the start creates are never freed. Garbage collection takes a sixth of the
    # start, and scans these objects again at every full collection.
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
