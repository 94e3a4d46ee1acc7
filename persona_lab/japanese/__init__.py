"""Measure the politeness of Japanese text, and rewrite text in another politeness.

``morphology.py`` analyses and conjugates. ``plain.py``, ``polite.py`` and ``casual.py`` rewrite by
grammar, ``rewrite.py`` by rules of a YAML file. ``politeness.py`` measures. This package knows
neither personas nor models.
"""

from persona_lab.japanese.casual import to_casual
from persona_lab.japanese.plain import to_plain
from persona_lab.japanese.polite import to_polite
from persona_lab.japanese.politeness import Level, is_polite, politeness_level

__all__ = ["Level", "is_polite", "politeness_level", "to_casual", "to_plain", "to_polite"]
