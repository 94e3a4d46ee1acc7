"""The tabs of the page: one file each, listed in :data:`TABS`.

To add a tab, write a class that has the members of :class:`Tab` in a file of this folder, add the
class to :data:`TABS`, and add its texts, ``tab.<key>`` among them, to ``templates/ui.yaml``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Protocol, TypeVar

import gradio as gr

from persona_lab.ui.page_context import PageContext
from persona_lab.ui.tabs.chat import ChatTab
from persona_lab.ui.tabs.compare import CompareTab
from persona_lab.ui.tabs.connect import ConnectTab
from persona_lab.ui.tabs.insights import InsightsTab
from persona_lab.ui.tabs.persona import PersonaTab


class Tab(Protocol):
    """A tab of the page. ``page.py`` creates and builds each tab, then wires each."""

    key: ClassVar[str]
    """The id of the tab. Its label is ``tab.<key>`` of ``templates/ui.yaml``."""

    def __init__(self, page: PageContext) -> None:
        """Take what the page shares, without building a component."""

    def build(self, frame: gr.Tab) -> None:
        """Create the tab's components inside ``frame``."""

    def wire(self) -> None:
        """Connect the tab's events. Every tab is built by then."""


TABS: tuple[type[Tab], ...] = (PersonaTab, CompareTab, ChatTab, InsightsTab, ConnectTab)
"""The tabs in their order on the page."""

T = TypeVar("T")


def find_tab(tabs: Iterable[Tab], kind: type[T]) -> T:
    """Return the tab of the class ``kind``."""
    return next(tab for tab in tabs if isinstance(tab, kind))
