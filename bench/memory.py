"""Resident memory of the serving process with no model, one, and both, after each has answered.

Weights are mapped from their files: the system may drop and share those pages, so they are
stated apart.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from bench import Measured
from bench.comparing import choose, compare, open_compare
from bench.served import browser, served
from persona_lab.clients.catalog import Catalog
from persona_lab.settings import ROOT

MESSAGE = "こんにちは。ひとことお願いします。"


def measure() -> Measured:
    models = [
        info
        for info in Catalog(ROOT / "data" / "models.yaml").models.values()
        if info.source.startswith("package:")
    ]
    with (
        tempfile.TemporaryDirectory() as folder,
        served("app.py", Path(folder), LLM_PROVIDER="mock", LLM_MODEL="echo") as lab,
        browser() as chromium,
    ):
        page = open_compare(chromium, lab.url)
        rows = [_row("no model", lab.pid)]
        for number, info in enumerate(models):
            choose(page, [info.spec])
            compare(page, MESSAGE, 1, patience=300)
            rows.append(_row(("" if number == 0 else "and ") + (info.label or info.name), lab.pid))
    tables = [
        "### Resident memory of the serving process",
        "",
        "| | MB | of that, mapped files | own |",
        "|---|---|---|---|",
        *rows,
    ]
    return Measured("\n".join(tables), [])


def _row(name: str, pid: int) -> str:
    status = Path(f"/proc/{pid}/status").read_text("ascii")
    kb = {
        line.partition(":")[0]: int(line.split()[1])
        for line in status.splitlines()
        if line.startswith(("VmRSS", "RssFile"))
    }
    whole, mapped = kb["VmRSS"] / 1000, kb["RssFile"] / 1000
    return f"| {name} | {whole:.0f} | {mapped:.0f} | {whole - mapped:.0f} |"
