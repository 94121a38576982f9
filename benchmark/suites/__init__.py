"""Suites: tasks, a budget and the scale of their scores, as plain data, a module per domain. Add your own to one.

`python -m benchmark.sweep --suite NAME` runs one, `python -m benchmark.report --suite NAME` draws and compares it.
"""

from benchmark.suites import atari, demo, dmc, gym, minatar


def joined(*modules):
    """The suites of all modules, by their names -> {name: Suite}."""
    suites = {}
    for module in modules:
        for name, suite in module.SUITES.items():
            if name in suites:
                raise ValueError(f"{module.__name__} has a suite {name!r}, and so has another module of suites")
            suites[name] = suite
    return suites


SUITES = joined(dmc, gym, minatar, atari, demo)
