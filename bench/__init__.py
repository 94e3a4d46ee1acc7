"""Benchmarks: Persona Lab beside a bare Gradio app, both in one run, as Markdown tables.

``make bench`` runs all; ``make bench ARGS="startup memory"`` some. Goals stand beside what was
measured. Nothing here is a test: times depend on the machine and on what else it is doing.
"""
