"""Policy churn: the shares against greedy actions taken row by row, and a measured run against one left alone."""

import os
import subprocess
import sys
from functools import partial

import jax
import numpy as np
import pytest
from conftest import ROOT, SMALL_SPR, assert_same, environment, flags, results, run
from test_spr import learner, played, tiny

from benchmark.churn import ROWS, churn

NAMES = {"online", "target", "agreement", "off_policy_online", "off_policy_target"}


def test_churn_against_greedy_actions_of_each_row(spr):
    """Two updates by hand, then every row of the replay once; shares of the 256 rows that the key draws."""
    args = tiny(spr, learning_rate=0.005, tau=0.5, replay_ratio=2)
    state = played(spr, args, 9, 150)[0]
    state = state.replace(learner=learner(spr, args, 2).replace(target_network=learner(spr, args, 3).network))
    found = jax.jit(partial(churn, spr, args))(2, state)

    row_key, update_key = jax.random.split(jax.random.fold_in(state.key, 256))
    carry = state.learner, state.priorities, state.totals
    update = jax.jit(partial(spr.update, args, state.replay, update_key))
    for i in range(2):
        carry = update(i, carry)
    rows = np.flatnonzero(state.priorities)
    obs = spr.stacks(args, state.replay, rows)
    values = jax.jit(lambda network: jax.vmap(partial(spr.q_values, args, network))(obs))
    networks = [x for own in (state.learner, carry[0]) for x in (own.network, own.target_network)]
    online, target, online_after, target_after = (np.asarray(values(network)).argmax(1) for network in networks)
    at = np.asarray(jax.random.randint(row_key, (256,), 0, len(rows)))
    held = np.asarray(state.replay.action)[rows]
    expected = {
        "online": online_after != online,
        "target": target_after != target,
        "agreement": online == target,
        "off_policy_online": online != held,
        "off_policy_target": target != held,
    }
    assert ROWS == 256 and set(found) == NAMES
    assert found == {name: pytest.approx(x[at].mean(), abs=1e-6) for name, x in expected.items()}
    assert all(0 < float(x) < 1 for x in found.values()), "a share that says nothing"
    assert len(set(map(float, found.values()))) == 5, "shares that could be taken for one another"


def test_bbf_has_the_same_parts(bbf):
    args = tiny(bbf)
    state = jax.eval_shape(lambda: bbf.init_state(args, 1, np.zeros((84, 84), np.uint8)))
    found = jax.eval_shape(partial(churn, bbf, args), 2, state)
    assert {(name, x.shape, x.dtype.name) for name, x in found.items()} == {(name, (), "float32") for name in NAMES}


def measured(*words, expect=0):
    words = [sys.executable, "-m", "benchmark.churn", *words]
    path = os.pathsep.join([str(ROOT), environment()["PYTHONPATH"]])
    done = subprocess.run(words, capture_output=True, text=True, env=environment(PYTHONPATH=path), timeout=600)
    assert done.returncode == expect, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def test_a_measured_run_is_the_run(tmp_path):
    """To the bit, but for the five values: from the first log with learning on, for each seed at each log."""
    options = SMALL_SPR | {"total_timesteps": 150, "eval_interval": 0, "max_episode_steps": 1000}
    run("spr", runs_dir=tmp_path / "plain", **options)
    said = measured("spr", *flags(runs_dir=tmp_path / "measured", **options))
    assert "seed 2: 150 steps done" in said
    plain, found = (results(tmp_path / name) for name in ("plain", "measured"))
    for own in found.values():
        rows = [row for row in own["metrics.csv"] if row[1].startswith("churn/")]
        own["metrics.csv"] = [row for row in own["metrics.csv"] if not row[1].startswith("churn/")]
        assert sorted({step for step, _, _ in rows}) == [50, 100, 150] and len(rows) == 15
        assert {tag.removeprefix("churn/") for _, tag, _ in rows} == NAMES
        assert all(0 <= float(value) <= 1 for _, _, value in rows)
    assert_same(plain, found)


def test_bad_input():
    assert "give one of them, then its flags" in measured("rainbow", expect=2)
    assert "--jumps cannot be more than --n-step" in measured("spr", "--jumps", "9", "--n-step", "3", expect=2)
    assert "churn/off_policy_online" in measured("--help")
