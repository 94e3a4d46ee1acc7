"""Japanese politeness: how polite a text is, and the same text plainer or more polite.

``words.py`` takes text apart and conjugates; ``plain.py``, ``polite.py`` and ``casual.py`` rewrite;
``level.py`` tells. Nothing here knows of personas or models.
"""

from persona_lab.japanese.casual import to_casual
from persona_lab.japanese.plain import to_plain
from persona_lab.japanese.polite import to_polite
from persona_lab.japanese.politeness import Level, is_polite, politeness_level

__all__ = ["Level", "is_polite", "politeness_level", "to_casual", "to_plain", "to_polite"]
