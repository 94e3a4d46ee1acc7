"""Character cards: read, show what goes where, edit and write.

``reader.py`` and ``writer.py`` are the entrance. ``document.py`` repairs V1, V2 and V3 documents
and writes them strictly. ``png.py`` and ``charx.py`` open the files that hold them,
``plain_data.py`` reads JSON and YAML within bounds, ``sheet.py`` reads pasted text. ``mapping.py``
turns a card into a persona and back, ``compatibility.py`` says what other programs make of a card.
No address in a card is ever opened.
"""

from persona_lab.personas.cards.compatibility import (
    PROGRAMS,
    Program,
    compatibility,
    format_losses,
)
from persona_lab.personas.cards.mapping import Plan, card_of, edit_card, map_card
from persona_lab.personas.cards.model import Card, Format, Note, Row
from persona_lab.personas.cards.reader import read_archive, read_card, read_sheet
from persona_lab.personas.cards.writer import (
    FORMATS,
    file_name,
    write_archive,
    write_card,
    write_original,
    write_sheet,
)

__all__ = [
    "FORMATS",
    "PROGRAMS",
    "Card",
    "Format",
    "Note",
    "Plan",
    "Program",
    "Row",
    "card_of",
    "compatibility",
    "edit_card",
    "file_name",
    "format_losses",
    "map_card",
    "read_archive",
    "read_card",
    "read_sheet",
    "write_archive",
    "write_card",
    "write_original",
    "write_sheet",
]
