"""Policy churn: the shares against greedy actions taken row by row, and a measured run against one left alone."""

import json
import re
from collections import namedtuple
from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from common import ROOT, SMALL_SPR, assert_same, flags, results, run, run_tool
from spr_runs import learner, played, tiny

from studies.churn import ROWS, churn, with_churn

NAMES = {"online", "target", "agreement", "off_policy_online", "off_policy_target"}


def test_churn_against_greedy_actions_of_each_row(spr):
    """Two updates by hand, then every row of the replay once; shares of the 256 rows that the key draws."""
    args = tiny(spr, learning_rate=0.002, tau=0.5, replay_ratio=2)
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


def test_bbf_has_the_same_parts(bbf):
    args = tiny(bbf)
    state = jax.eval_shape(lambda: bbf.init_state(args, 1, np.zeros((84, 84), np.uint8)))
    found = jax.eval_shape(partial(churn, bbf, args), 2, state)
    assert {(name, x.shape, x.dtype.name) for name, x in found.items()} == {(name, (), "float32") for name in NAMES}


def test_values_go_to_their_seeds(monkeypatch):
    """The updates of the next step, one at least; nothing before learning; beside the script's own."""
    state = namedtuple("State", ("step", "x"))
    script = SimpleNamespace(AXES=state(None, 0))
    script.metrics = lambda args, state: iter([{"own": 1}, {"own": 2}])
    script.updates_by = lambda args, step: step * args.replay_ratio // 1
    monkeypatch.setattr("studies.churn.churn", lambda script, args, n, state: {"online": 10 * state.x + n})
    args = namedtuple("Args", ("learning_starts", "replay_ratio"))
    rows = lambda step, ratio: list(with_churn(script)(args(20, ratio), state(np.int32(step), np.arange(2))))
    assert rows(19, 2) == [{"own": 1}, {"own": 2}]
    assert rows(20, 2) == [{"own": 1, "churn/online": 2}, {"own": 2, "churn/online": 12}]
    assert [row["churn/online"] for step in (21, 22, 23) for row in rows(step, 0.5)] == [1, 11] * 3
    assert [row["churn/online"] for step in (20, 21) for row in rows(step, 1.5)] == [1, 11, 2, 12]


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
