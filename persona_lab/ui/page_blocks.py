"""The root of the page: it turns each error of a call into a message for the visitor."""

from __future__ import annotations

from typing import Any

import gradio as gr

from persona_lab.errors import InputError
from persona_lab.ui.session import Visitors


class PageBlocks(gr.Blocks):  # type: ignore[misc] # Gradio has no types for us
    """A gr.Blocks whose failed calls raise errors with texts of ours only.

    Gradio prints the traceback of any other error to standard error, past the log and its
    redaction. The errors of components quote the value that was typed or sent.

    Args:
        visitors: Knows the visitor's language and the texts of errors.
        options: The options of gr.Blocks.
    """

    def __init__(self, visitors: Visitors, **options: Any) -> None:
        super().__init__(**options)
        self._visitors = visitors

    async def preprocess_data(
        self, block_fn: Any, inputs: list[Any], *arguments: Any, **options: Any
    ) -> list[Any]:
        """Let the components read the inputs of a call.

        Raises:
            InputError: A component takes no such value.
        """
        # gr.HTML passes on any value.
        for component, value in zip(block_fn.inputs, inputs, strict=False):
            if isinstance(component, gr.HTML) and not isinstance(value, str | None):
                raise InputError
        try:
            values: list[Any] = await super().preprocess_data(
                block_fn, inputs, *arguments, **options
            )
        except Exception as error:
            raise InputError from error
        return values

    async def process_api(
        self,
        block_fn: Any,
        inputs: list[Any],
        state: Any = None,
        request: Any = None,
        *arguments: Any,
        **options: Any,
    ) -> dict[str, Any]:
        """Handle one call of an event or an endpoint, or one step of its answer.

        Raises:
            gr.Error: The call failed. The error has a text in the visitor's language.
        """
        with self._visitors.unidentified(request).error_toasts():
            output: dict[str, Any] = await super().process_api(
                block_fn, inputs, state, request, *arguments, **options
            )
        return output
