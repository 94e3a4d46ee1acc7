"""The texts that people read, for tests that compare them with what is shown."""

from persona_lab.settings import ROOT
from persona_lab.translations import Translations

PAGE = Translations(ROOT / "templates" / "ui.yaml")
FALLBACKS = Translations(ROOT / "templates" / "fallbacks.yaml")
