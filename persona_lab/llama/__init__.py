"""The local inference engine: one worker thread, many sequences, each prefix evaluated once.

A model's memory is a pool of *cells*, one for each evaluated token. A *sequence* is a list of
cells. Two sequences with a common prefix share its cells::

    cells        ┌──────────── persona ────────────┐┌── chat A ──┐┌─ chat B ─┐┌─ column C ─┐
    sequence 0   ███████████████████████████████████ ▓▓▓▓▓▓▓▓▓▓▓→                            live
    sequence 1   ███████████████████████████████████              ▓▓▓▓▓▓▓▓▓▓→                live
    sequence 2   ███████████████████████████████████                          ▓▓▓▓→ ░░░░░░░  live

    ███ reused at no cost    ▓▓▓ evaluated for this request    ░░░ not yet evaluated

A new request reuses the longest prefix that any sequence has (it copies the list, not the cells)
and evaluates only the rest. After its answer, its prompt stays for the next request. Attention
weighs every cell of the context, whichever sequence it belongs to. So idle sequences don't stay
there: the next request reuses what it can, and the rest moves to the *prefix cache*, as bytes, from
where it is copied back on demand. The least recently used block is evicted first. Requests with a
common prefix that arrive together wait for the first of them to evaluate it. ::

    context      persona A, chat A ▓▓▓→        live: only these cells take part in a step
    prefix cache ▒▒▒▒▒▒ persona A, chat B │ ▒▒▒▒ persona C │ ▒▒▒▒▒ persona D, chat E

The worker runs in *steps* of one ``llama_decode`` each::

    step n     A: its last token │ B: its last token │ C: 64 tokens of its prompt
    step n+1   A: its last token │ B: its last token │ C: the last 20 of its prompt → first token

Each running answer advances by one token per step. A long prompt is evaluated in chunks beside
them. A cancelled answer ends before the next step.

The same seed gives the same text as long as sums round alike. In llama.cpp they depend on where the
cells of a sequence are and how its tokens are divided into batches. Both are the same for an
answer that runs alone, whatever ran before (see :mod:`~persona_lab.llama.kv_cache`): its tokens
equal those of the ``Llama`` class, also with the packaged models' quantized weights. Beside other
answers, or with flash attention, sums round differently, so a close choice can differ.

The process has one engine for each file. It belongs to the clients that opened it
(:func:`open_engine`) and closes with the last of them (:func:`release_engines`) or at the end of
the process. If another model needs the memory, an idle engine is unloaded, and its clients open it
again on demand. A closed engine and its model raise ModelUnavailable.

Modules: :mod:`bindings` wraps llama.cpp; :mod:`sampling` chooses tokens; :mod:`stream_decoder`
turns bytes into text without partial characters or stop strings; :mod:`kv_cache` records which
tokens are in which cells; :mod:`prefix_cache` keeps what is outside of the context;
:mod:`generation` is one answer; :mod:`scheduler` decides what each step evaluates; :mod:`engine`
has the thread and accepts requests; :mod:`engine_stats` has its statistics; :mod:`registry` keeps
all engines within the memory; :mod:`file_check` detects files that would end the process;
:mod:`file_parts` names the parts of a split model. None of them knows personas, prompts or asyncio;
:mod:`persona_lab.clients.local` does.
"""

from persona_lab.llama.bindings import Model
from persona_lab.llama.engine import Engine
from persona_lab.llama.engine_stats import EngineStats
from persona_lab.llama.file_check import check_file
from persona_lab.llama.file_parts import part_names, part_paths
from persona_lab.llama.generation import Generation, Step
from persona_lab.llama.registry import (
    close_engines,
    open_engine,
    release_engines,
    running_engines,
)
from persona_lab.llama.sampling import SamplerOptions

__all__ = [
    "Engine",
    "EngineStats",
    "Generation",
    "Model",
    "SamplerOptions",
    "Step",
    "check_file",
    "close_engines",
    "open_engine",
    "part_names",
    "part_paths",
    "release_engines",
    "running_engines",
]
