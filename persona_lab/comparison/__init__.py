"""Comparison of models and personas: one message to several contestants."""
