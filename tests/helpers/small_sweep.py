"""benchmark.sweep with suites of small jobs beside the real ones, and of fake ones (fake_script.py).

python tests/helpers/small_sweep.py --suite small ...
"""

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent.parent), str(HERE)]
paths = [*sys.path[:2], os.environ.get("PYTHONPATH", "")]
os.environ["PYTHONPATH"] = os.pathsep.join(paths)  # the jobs too find toy_envs.py

from benchmark import jobs, sweep  # noqa: E402
from benchmark.suites import SUITES  # noqa: E402
from benchmark.suites.suite import Suite  # noqa: E402

FLAGS = {
    "total-timesteps": 400,
    "learning-starts": 50,
    "buffer-size": 300,
    "batch-size": 16,
    "hidden-dim": 8,
    "log-interval": 50,
    "eval-interval": 100,
    "eval-episodes": 2,
    "checkpoint-interval": 50,
}
RESETS = {"sr_sac": {"reset-interval": 150}, "sr_dqn": {"reset-interval": 150}}
# Without JAX: what becomes of a job does not depend on what it learns.
FAKE = {name: ("../tests/helpers/fake_script", {}) for name in ("sac", "sr_sac")}
FAKE_FLAGS = {"total-timesteps": 400, "eval-interval": 50}


def add_suites():
    for name, tasks in {
        "small": ("CartPole-v1", "Catch-bsuite"),
        "one": ("toy_envs:Count-v0",),
        "fake": ("Count-v0", "Walk-v0"),
        "fake_one": ("Count-v0",),
        "fake_bad": ("Count-v0", "Crash-v0", "Stuck-v0"),
    }.items():
        is_fake = name.startswith("fake")
        SUITES[name] = Suite(
            about="for tests",
            scores=dict.fromkeys(tasks, (0.0, 1000.0)),
            flags=FAKE_FLAGS if is_fake else FLAGS,
            statistic=(100, 400),
            algo_flags={} if is_fake else RESETS,
            variants=FAKE if is_fake else {},
        )


if __name__ == "__main__":
    add_suites()
    jobs.GRACE_S = 5
    sweep.main()
