"""Build the exact prompt from persona, history and message, with its trace."""
