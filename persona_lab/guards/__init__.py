"""What may come in and what may go out.

``messages.py`` cleans a message or refuses it. ``answers.py`` keeps an answer from telling
personal data, unwanted words and what a persona's role may not advise; ``personal.py`` finds the
data. ``moderation.py`` says what a moderation model must be able to do. Words, masks and limits
stand in ``templates/guards.yaml``. Nothing here knows a provider or the store.
"""

from persona_lab.guards.answers import OutputFilter
from persona_lab.guards.messages import InputValidator
from persona_lab.guards.moderation import Moderator

__all__ = ["InputValidator", "Moderator", "OutputFilter"]
