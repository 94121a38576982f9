"""What every script computes is frozen: 23 updates on a fixed stream of observations, and its flags.

A change of results on purpose: python tests/helpers/golden.py --write SCRIPT, and say so in the commit. Integers must
be equal; all else may differ by golden.TOLERANCE of a series' largest value. With the instruction sets of other
processors (--xla_cpu_max_isa=SSE4_2 and AVX2 in place of AVX-512), with other threads and without optimization, all
scripts stay within 1e-6, a hundredth of that.
"""

import golden
import jax.numpy as jnp
import pytest
from common import slow_but
from golden import load

SCRIPTS = golden.scripts()


@pytest.mark.guards("golden")
@pytest.mark.parametrize("name", SCRIPTS)
def test_first_updates(name):
    frozen = golden.read(name)
    found = golden.record(load(name), frozen["options"])
    assert frozen["options"] == golden.OPTIONS[name]
    assert golden.differences({part: frozen[part] for part in found}, found) == []


@pytest.mark.guards("golden")
@pytest.mark.parametrize("name", SCRIPTS)
def test_when_updates_and_resets_fall(name):
    frozen = golden.read(name)
    assert golden.events(load(name), frozen["options"]) == frozen["events"]


@pytest.mark.guards("flags", "all")
def test_flags():
    """Names, defaults and kinds: a changed default changes what a published command does."""
    assert {name: golden.flags(load(name)) for name in SCRIPTS} == golden.read("flags")


def wrong(name, options, results=None):
    """The lines about losses of a record that differs from the frozen one."""
    frozen = golden.read(name)
    found = golden.record(load(name), frozen["options"] | options, results)
    lines = golden.differences({part: frozen[part] for part in found}, found)
    return [line for line in lines if line.startswith("losses/")]


@pytest.mark.guards("golden")
@pytest.mark.parametrize("name", slow_but("sac", "dqn", "dqn_atari"))
def test_a_target_that_ignores_ends_is_seen(name):
    """On this stream such a script would compute what a right one computes where all ends are time limits."""
    _, (obs, reward, terminated, truncated, *more) = golden.stream(golden.family(load(name)))
    assert wrong(name, {}, (obs, reward, jnp.zeros_like(terminated), terminated | truncated, *more))


@pytest.mark.guards("golden")
@pytest.mark.parametrize("name, options", [
    ("dqn", {"target_interval": 5}),
    *[pytest.param(*given, marks=pytest.mark.slow) for given in (
        ("sac", {"gamma": 0.991}), ("sac", {"tau": 0.051}), ("dqn", {"gamma": 0.991}),
        ("sr_dqn", {"shrink_factor": 0.51}),
    )],
])  # fmt: skip
def test_a_wrong_setting_is_seen(name, options):
    assert wrong(name, options)
