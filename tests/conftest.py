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
pytest.register_assert_rewrite("common", "atari_runs", "runs", "spr_runs")

from common import SCRIPTS, load  # noqa: E402


def script_fixture(name):
    @pytest.fixture(scope="session", name=name)
    def script():
        return load(name)

    return script


globals().update({f"{name}_fixture": script_fixture(name) for name in SCRIPTS})  # each script under its own name


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


@pytest.fixture(scope="module")
def quick_programs():
    """What a module's tests compile, and the scripts that they start, takes half the time, and runs slower. Not where
    bits are compared with those of programs that were compiled otherwise, nor for tests of speed or of copies."""
    config = importlib.import_module("jax").config
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        config.update("jax_disable_most_optimizations", True)
        yield
        config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def whole_programs(quick_programs):
    """For one test of a module with quick programs: all of XLA's optimizations."""
    config = importlib.import_module("jax").config
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("JAX_DISABLE_MOST_OPTIMIZATIONS")
        config.update("jax_disable_most_optimizations", False)
        yield
        config.update("jax_disable_most_optimizations", True)


# The longest first, with nothing compiled before: two processes take a group of tests at a time, and should end
# together. Tests that are named here are groups of their own, those of golden files one for each script, all others one
# for each file, so that what a module makes for its tests is made once. The longest thirty are printed at the end.
LONGEST = """
test_spr test_atari test_seeds test_churn::test_a_measured_run_is_the_run test_scripts::test_alone_in_an_empty_folder
test_resume::test_killed_at_random_moments test_speed::test_end_to_end test_analysis::test_a_run
test_resume::test_killed_inside_its_acts test_resume::test_killed_inside_a_record_of_actions test_spr::test_update
test_churn::test_churn_against_greedy_actions_of_each_row test_rainbow test_dqn test_golden::bbf
test_film::test_the_film_is_of_the_runs_own_evaluation test_resume test_edges test_errors
test_sweep::test_a_sweep_of_real_scripts_is_killed test_discrete::test_a_run_of_a_task_outside
test_op_by_op::test_a_script_against_itself test_atari::test_der_update test_envpool test_golden::sr_spr
test_golden::spr test_discrete test_minatar test_sweep test_atari_pipeline test_analysis
test_golden::sac test_golden::der test_golden::rainbow
""".split()


def pytest_collection_modifyitems(items):
    place = {name: number for number, name in enumerate(LONGEST)}
    keys = {}
    for item in items:
        name = f"{item.path.stem}::{item.name}"
        family = f"{item.path.stem}::{item.originalname}"
        group = item.path.stem
        if name in place or family in place:
            group = name
        elif item.path.stem == "test_golden":
            group = f"test_golden::{item.name.partition('[')[2].partition('-')[0].rstrip(']')}"
        item.add_marker(pytest.mark.xdist_group(group))
        keys[item] = place.get(name, place.get(family, place.get(group, len(place))))
    items.sort(key=keys.get)
