"""The value of a persona: its fields, their validation, and the demo personas."""
