"""The local engine: one worker, many sequences, personas evaluated once.

A model's memory is a pool of *cells*, one for each token it has read. A *sequence* is a list
of cells; two sequences that begin alike hold the same cells for as long as they agree::

    cells        ┌──────────── persona ────────────┐┌── chat A ──┐┌─ chat B ─┐┌─ column C ─┐
    sequence 0   ███████████████████████████████████ ▓▓▓▓▓▓▓▓▓▓▓→                            live
    sequence 1   ███████████████████████████████████              ▓▓▓▓▓▓▓▓▓▓→                live
    sequence 2   ███████████████████████████████████                          ▓▓▓▓→ ░░░░░░░  live

    ███ read before, taken over at no cost    ▓▓▓ read for this request    ░░░ yet to be read

A new request takes the longest beginning that any sequence already has (a copy of the list,
not of the cells) and reads only the rest. When its answer is over its prompt is *held* for whoever
begins alike next. Attention weighs every cell of the context, whoever it belongs to, so what nobody
is using doesn't stay there: the next to come takes over what is of use and puts the rest on the
*shelf*, as bytes, from where it is copied back when somebody begins so. The one used longest ago
goes first when the shelf is full. Requests that arrive together and begin alike wait for the first
of them to read what they share. ::

    context      persona A, chat A ▓▓▓→        live: the only cells that steps compute with
    shelf        ▒▒▒▒▒▒ persona A, chat B │ ▒▒▒▒ persona C │ ▒▒▒▒▒ persona D, chat E

The worker thread goes round in *steps*, one ``llama_decode`` each::

    step n     A: its last token │ B: its last token │ C: 64 tokens of its prompt
    step n+1   A: its last token │ B: its last token │ C: the last 20 of its prompt → first token

Every stream that is writing advances by one token a step; a long prompt is read in pieces
beside them. Cancelling takes effect before the next step.

The same seed gives the same text as far as sums round alike, and llama.cpp's depend on where a
sequence's cells lie and on how its tokens are cut into batches. Both are the same, whatever was
read before, for an answer that is computed alone (see :mod:`memory`): it is to the token that of
the ``Llama`` class, with the packaged models' quantized weights too. Beside other answers a close
choice may fall otherwise, for a batch of several is summed up in another order; and with flash
attention, which sums up differently in any case.

The process has one engine for each file. It belongs to the clients that opened it
(:func:`open_engine`) and is closed with the last of them (:func:`release_engines`), so closing a
lab gives its memory back unless another lab uses the same file; what is left at the end of the
process is closed then. Where another model needs the memory, an engine that nobody is using is
unloaded, and its clients open it again when they are asked something. A closed engine and its
model raise ModelUnavailable, whoever still holds them.

:mod:`native` wraps what llama.cpp gives, :mod:`text` turns tokens' bytes into text that never
shows half a character or a part of a stop string, :mod:`memory` keeps the books of sequences and
cells, :mod:`shelf` what is out of the context, :mod:`engine` is the worker, :mod:`engines` keeps
the workers within memory, and :mod:`check` finds files that would end the process. None of them
knows personas, prompts or asyncio; :mod:`persona_lab.clients.local` does.
"""

from persona_lab.llama.bindings import Model, SamplerOptions
from persona_lab.llama.engine import Engine, EngineStats, Generation, Step
from persona_lab.llama.file_check import check_file
from persona_lab.llama.registry import (
    close_engines,
    open_engine,
    release_engines,
    running_engines,
)

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
    "release_engines",
    "running_engines",
]
