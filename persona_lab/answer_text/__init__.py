"""The form of an answer's text: passages, speaker labels and code fences."""
