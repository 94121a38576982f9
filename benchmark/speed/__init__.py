"""Speed on the machine at hand; __main__.py says what is measured."""
