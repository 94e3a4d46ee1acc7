"""The pipeline of a turn: validation, context, prompt, model call, fallback and storage."""
