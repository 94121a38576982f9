"""The scripts as fixtures, and the order of the tests. What tests share is in tests/helpers/."""

import importlib
import os
import sys
import tempfile
from pathlib import Path
from unittest.mock import MagicMock

import pytest

# What one test has compiled, the next finds: set before JAX comes, for the workers and for the scripts they run.
CACHE = tempfile.TemporaryDirectory(prefix="compiled_")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", CACHE.name)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

sys.path.insert(0, str(Path(__file__).parent / "helpers"))  # holds Gymnasium tasks, too: toy_envs:Task-v0
pytest.register_assert_rewrite("common", "gymnax_runs", "atari_runs", "runs", "spr_runs")

from common import load  # noqa: E402


@pytest.fixture(scope="session")
def sac():
    return load("sac")


@pytest.fixture(scope="session")
def dqn():
    return load("dqn")


@pytest.fixture(scope="session")
def c51():
    return load("c51")


@pytest.fixture(scope="session")
def qr_dqn():
    return load("qr_dqn")


@pytest.fixture(scope="session")
def sr_dqn():
    return load("sr_dqn")


@pytest.fixture(scope="session")
def ensemble_dqn():
    return load("ensemble_dqn")


@pytest.fixture(scope="session")
def rem():
    return load("rem")


@pytest.fixture(scope="session")
def rainbow():
    return load("rainbow")


@pytest.fixture(scope="session")
def dqn_atari():
    return load("dqn_atari")


@pytest.fixture(scope="session")
def drq_eps():
    return load("drq_eps")


@pytest.fixture(scope="session")
def der():
    return load("der")


@pytest.fixture(scope="session")
def spr():
    return load("spr")


@pytest.fixture(scope="session")
def bbf():
    return load("bbf")


@pytest.fixture(scope="session")
def sr_spr():
    return load("sr_spr")


@pytest.fixture(scope="session")
def rlax():
    """Its losses. The package of its distributions does not run beside this JAX: of that they need a cross-entropy."""

    class Categorical:
        def __init__(self, logits=None, probs=None):
            log_softmax = importlib.import_module("jax").nn.log_softmax
            self.probs, self.log_probs = probs, None if logits is None else log_softmax(logits)

        def cross_entropy(self, other):
            return -(self.probs * other.log_probs).sum(-1)

    sys.modules.setdefault("distrax", MagicMock(Categorical=Categorical))
    return importlib.import_module("rlax")


@pytest.fixture(scope="session")
def sr_sac():
    return load("sr_sac")


@pytest.fixture(scope="module")
def quick_programs():
    """Scripts that a module's tests start compile in half the time, and run slower. Not where bits are compared with
    those of programs that were compiled otherwise, nor for tests of speed or of copies."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        yield


def pytest_collection_modifyitems(items):
    """The longest files first: two processes take a file at a time, and should end together."""
    longest = "resume dqn spr scripts atari sweep churn docs seeds film".split()
    order = {f"test_{name}": place for place, name in enumerate(longest)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))
