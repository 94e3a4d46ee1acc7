"""Process the text of answers: cleanup, tone, secrets, personal data, listed words."""
