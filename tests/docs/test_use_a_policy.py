"""The lines of docs/use_a_policy.md run, and act as the script itself does."""

import re
import subprocess
import sys

import numpy as np
import pytest
from common import ROOT, SMALL, SMALL_GYMNAX, environment, run

PAGE = (ROOT / "docs/use_a_policy.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.S | re.M)
LINES = [text for language, text in BLOCKS if language == "python"]
SHELL = [text for language, text in BLOCKS if not language]
TASKS = {"sac": "Pendulum-v1", "dqn": "CartPole-v1"}

# After the page's lines: what the script's own evaluation would do with the first observation.
JUDGE = {
    "sac": """
import jax
first, _ = env.reset(seed=0)
actors = jax.tree.map(lambda x: x[None], actor)
judged = np.asarray(sac.select_actions(args, actors, jnp.float32(first)[None, None], 1))[0, 0]
judged = sac.unscale(env.action_space, judged)
assert np.allclose(action, judged, atol=1e-6) and env.action_space.contains(action), (action, judged)
""",
    "dqn": """
import jax
first, _ = env.reset(seed=0)
keys = jax.random.split(jax.random.key(0), 100)  # one in a thousand of its actions is random
judged = jax.vmap(lambda key: dqn.select_action(args, network, jnp.float32(first), key))(keys)
assert action == np.bincount(judged).argmax(), (action, judged)
""",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the runs that the page names, small ones, made while the page's loop keeps their checkpoints."""
    folder = tmp_path_factory.mktemp("policy")
    (folder / "algos").symlink_to(ROOT / "algos")
    keep, _ = SHELL
    loop = subprocess.Popen(
        ["bash", "-c", keep.replace("sleep 60", "sleep 0.02")], cwd=folder, stderr=subprocess.DEVNULL
    )
    small = {"num_seeds": 1, "replay_ratio": 1, "runs_dir": folder / "runs"}
    run("sac", **SMALL | small | {"env_id": "Pendulum-v1"})
    loop.terminate()
    loop.wait()
    run("dqn", **SMALL_GYMNAX | small | {"env_id": "CartPole-v1"})
    return folder


def run_lines(folder, text):
    done = subprocess.run(
        [sys.executable, "-c", text], cwd=folder, env=environment(), capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("script", TASKS)
def test_the_policy_acts_as_the_script_does(folder, script):
    lines = next(text for text in LINES if f"import {script}\n" in text)
    run_lines(folder, lines + JUDGE[script])


@pytest.mark.slow
def test_a_file_without_the_replay_is_enough(folder):
    load, extract = LINES[0], LINES[-1]
    run_lines(folder, load + extract)
    with np.load(folder / "policy.npz") as saved:
        assert saved.files and all(name.startswith("learner/") for name in saved.files)
    newest = max((folder / "runs/Pendulum-v1__sac__rr1__1").glob("checkpoint_*.npz"))
    assert (folder / "policy.npz").stat().st_size < newest.stat().st_size
    run_lines(folder, re.sub(r"np\.load\(.*\)", 'np.load("policy.npz")', load) + JUDGE["sac"])


@pytest.mark.slow
def test_checkpoints_are_kept_and_the_best_is_told(folder):
    own = folder / "runs/Pendulum-v1__sac__rr1__1"
    kept = sorted(path.name for path in (folder / "kept").glob("*.npz"))
    assert len(kept) > 3 and len(list(own.glob("checkpoint_*.npz"))) == 2
    assert all(np.load(folder / "kept" / name).files for name in kept)
    done = subprocess.run(["bash", "-c", SHELL[1]], cwd=folder, capture_output=True, text=True, check=True)
    rows = [row.split(",") for row in (own / "metrics.csv").read_text().splitlines()]
    returns = {int(step): float(value) for step, tag, value in rows[1:] if tag == "eval/episodic_return"}
    best, step = done.stdout.split()
    assert float(best) == max(returns.values()) == returns[int(step)] and len(returns) > 3
