"""Curves to figures, tables and verdicts; __main__.py says what it reads and writes."""
