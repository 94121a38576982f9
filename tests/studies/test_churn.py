"""Policy churn: the shares against greedy actions taken row by row, and a measured run against one left alone."""

import json
import re
from functools import partial
from types import SimpleNamespace

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from common import ROOT, SMALL_SPR, assert_same, flags, results, run, run_tool
from spr_runs import filled, learner, tiny

from studies.churn import ROWS, churn, with_churn

NAMES = {"online", "target", "agreement", "off_policy_online", "off_policy_target"}


@pytest.mark.slow
def test_churn_against_greedy_actions_of_each_row(spr):
    """Two updates by hand, then every row of the replay once; shares of the 256 rows that the key draws."""
    args = tiny(spr, learning_rate=0.002, tau=0.5, replay_ratio=2)
    state = filled(spr, args, 9, 150)
    state = state.replace(learner=learner(spr, args, 2).replace(target_network=learner(spr, args, 3).network))
    found = jax.jit(partial(churn, spr, args))(2, state)

    row_key, update_key = jax.random.split(jax.random.fold_in(state.key, 256))
    after, priorities = state.learner, state.priorities
    sample = jax.jit(partial(spr.sample_batch, args, state.replay))
    update = jax.jit(partial(spr.update, args))
    for i in range(2):
        key = jax.random.fold_in(update_key, i)
        batch = sample(priorities, jax.random.split(key, 5)[0])  # as in train_step
        after, info = update(after, batch, key)
        priorities = spr.update_priorities(priorities, batch.index, info["priorities"])
    rows = np.flatnonzero(state.priorities)
    obs = spr.frame_stacks(args, state.replay, rows)
    values = jax.jit(lambda network: jax.vmap(partial(spr.q_values, args, network))(obs))
    networks = [x for own in (state.learner, after) for x in (own.network, own.target_network)]
    online, target, online_after, target_after = (np.asarray(values(network)).argmax(1) for network in networks)
    at = np.asarray(jax.random.randint(row_key, (256,), 0, len(rows)))
    held = np.asarray(state.replay.action)[rows]
    expected = {
        "online": online_after != online,
        "target": target_after != target,
        "agreement": online_after == target_after,
        "off_policy_online": online_after != held,
        "off_policy_target": target_after != held,
    }
    assert ROWS == 256 and set(found) == NAMES
    assert found == {name: pytest.approx(x[at].mean(), abs=1e-6) for name, x in expected.items()}
    assert all(0 < float(x) < 1 for x in found.values()), "a share that says nothing"
    assert len(set(map(float, found.values()))) == 5, "shares that could be taken for one another"


def test_the_page_says_what_is_logged():
    """Apart from what the script itself logs, which another test compares with its own run."""
    page = (ROOT / "docs/algos/sr_spr.md").read_text()
    assert set(re.findall(r"^\| `churn/(\w+)` \| ", page, re.M)) == NAMES


@pytest.mark.slow
def test_bbf_has_the_same_parts(bbf):
    args = tiny(bbf)
    state = jax.eval_shape(lambda: bbf.init_state(args, np.uint8(0), 1, None, np.zeros((84, 84), np.uint8)))
    found = jax.eval_shape(partial(churn, bbf, args), 2, state)
    assert {(name, x.shape, x.dtype.name) for name, x in found.items()} == {(name, (), "float32") for name in NAMES}


@flax.struct.dataclass
class Counted:
    step: jax.Array
    x: jax.Array


def test_when_churn_is_measured(monkeypatch):
    """Over the updates of the next step, one at least; nothing before learning; for each seed, beside its own."""
    script = SimpleNamespace(metrics=lambda args, state: {"own": state.x})
    script.num_updates_until = lambda args, step: jnp.int32(step * args.replay_ratio)
    monkeypatch.setattr("studies.churn.churn", lambda script, args, n, state: {"online": 10.0 * state.x + n})

    def values(step, ratio):
        args = SimpleNamespace(learning_starts=20, replay_ratio=ratio)
        both = jax.vmap(partial(with_churn(script), args), in_axes=(Counted(None, 0),))
        found = jax.jit(both)(Counted(jnp.int32(step), jnp.arange(2)))
        assert found["own"].tolist() == [0, 1]
        return found["churn/online"].tolist()

    assert np.isnan(values(19, 2)).all()
    assert values(20, 2) == [2, 12]
    assert [values(step, 0.5) for step in (21, 22, 23)] == [[1, 11]] * 3
    assert [values(step, 1.5) for step in (20, 21)] == [[1, 11], [2, 12]]


@pytest.mark.slow
def test_a_measured_run_is_the_run(tmp_path):
    """To the bit, but for the five values: from the first log with learning on, for each seed at each log."""
    options = SMALL_SPR | {"total_timesteps": 150, "replay_ratio": 2, "eval_interval": 0, "max_episode_steps": 1000}
    run("spr", runs_dir=tmp_path / "plain", **options)
    said = run_tool("studies.churn", "spr", *flags(runs_dir=tmp_path / "measured", **options))
    assert "seed 2: 150 steps done" in said
    [path, _] = (tmp_path / "measured").glob("*/run.json")
    assert json.loads(path.read_text())[0]["command"].startswith("-m studies.churn spr --runs-dir")
    plain, found = (results(tmp_path / name) for name in ("plain", "measured"))
    for own in found.values():
        rows = [row for row in own["metrics.csv"] if row[1].startswith("churn/")]
        own["metrics.csv"] = [row for row in own["metrics.csv"] if not row[1].startswith("churn/")]
        assert sorted({step for step, _, _ in rows}) == [50, 100, 150] and len(rows) == 15
        assert {tag.removeprefix("churn/") for _, tag, _ in rows} == NAMES
        assert all(0 <= float(value) <= 1 for _, _, value in rows)
    assert_same(plain, found)


def test_bad_input():
    assert "give one of them, then its flags" in run_tool("studies.churn", "rainbow", expect=2)
    assert "--jumps cannot be more than --n-step" in run_tool(
        "studies.churn", "spr", "--jumps", "9", "--n-step", "3", expect=2
    )
    assert "churn/off_policy_online" in run_tool("studies.churn", "--help")
