"""Updates offline and the passive twin: schedules against plain loops, learners against the script's own, one run."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from common import SMALL_SR_SPR, flags, load, run_tool, table
from spr_runs import filled, learner, tiny

from studies.analysis import Twins, prepare, with_offline, with_twin

RUN = {"num_seeds": 1, "total_timesteps": 200, "replay_ratio": 1.5, "eval_interval": 200, "max_episode_steps": 200}
RUN |= {"final_eval_episodes": 2, "passive_twin": True, "offline_share": 0.3}


@pytest.fixture(scope="module")
def twins():
    """SR-SPR twice: with a twin, and as it is."""
    script, plain = load("sr_spr"), load("sr_spr")
    with_twin(script, plain)
    return script, plain


@pytest.mark.parametrize("ratio,interval,share", [(2, 100, 0.3), (1.5, 90, 0.25), (0.25, 20, 1.0), (16, 400, 0.1)])
def test_updates_offline(ratio, interval, share):
    """The steps of each cycle, one by one: the first makes the share at once, the rest has one less as often as the
    share says; a cycle's updates and the steps of resets are those of the script."""
    script, plain = prepare("sr_spr"), load("sr_spr")
    with_offline(script, plain)
    args = script.Args(
        replay_ratio=ratio, reset_interval=interval, resets_end=400, learning_starts=20, offline_share=share
    )
    count = lambda until: jax.jit(jax.vmap(partial(until, args)))(jnp.arange(501)).tolist()
    made, due = count(script.num_updates_until), count(plain.num_updates_until)
    at = count(plain.num_useful_resets_until)
    assert at == count(script.num_useful_resets_until) and max(at) > 1
    assert made[:100] == [int(script.num_updates_until(args, step)) for step in range(100)]
    resets = [step for step in range(1, 501) if at[step] > at[step - 1]]  # in the step after these
    assert np.diff(made).min() >= 0 and made[: resets[0] + 1] == due[: resets[0] + 1]
    for k, begin in enumerate(resets, 1):
        here = 0  # of the cycle's updates, those that the script has made by this step
        for step in range(begin + 1, resets[k] + 1 if k < len(resets) else 501):
            here = min(due[step] - k * interval, interval)
            rest = here - int(share * here + 1e-9)
            assert made[step] == due[step] - here + int(share * interval) + rest, (k, step)
        assert here == interval and made[step] == due[step], "a cycle that does not end with all its updates"
        assert made[begin + 1] - made[begin] >= int(share * interval) - 1, "few updates after the reset"


@pytest.mark.slow
def test_the_twin_learns_as_the_active_one(twins):
    """The active one is the script's, priorities are its own; the passive one is what the script's would become, had it
    its parameters and the other's rows; one that begins alike stays alike, to the bit."""
    script, plain = twins
    args = tiny(plain, learning_rate=0.002, jumps=1)
    state = filled(plain, args, 9, 150)
    one, two, key = learner(plain, args, 1), learner(plain, args, 2), jax.random.key(0)
    batch = jax.jit(partial(plain.sample_batch, args))(state.replay, state.priorities, jax.random.key(1))
    alone = jax.jit(lambda learner: plain.update(args, learner, batch, key))
    both = jax.jit(lambda learner: script.update(args, learner, batch, key))
    (active, info), (passive, passive_info) = alone(one), alone(two)
    found, found_info = both(Twins(one, two))
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, found, Twins(active, passive))
    losses = {tag.replace("/", "/passive_"): value for tag, value in passive_info.items() if tag != "priorities"}
    assert len(losses) == 3
    jax.tree.map(close, found_info, info | losses)
    assert abs(info["losses/q_values"] - passive_info["losses/q_values"]) > 0.01, "twins too alike to be confused"
    same = both(Twins(one, one))[0]
    jax.tree.map(np.testing.assert_array_equal, same.active, same.passive)
    for name in ("network", "target_network", "opt"):
        assert getattr(same, name) is getattr(same.active, name)


@pytest.mark.slow
def test_parameters_of_their_own(twins):
    """At the beginning and after a reset: the active one's are the script's, the passive one's others."""
    script, plain = twins
    args, key, obs = tiny(plain), jax.random.key(3), jnp.zeros((4, 84, 84), jnp.uint8)
    old = Twins(learner(plain, args, 1), learner(plain, args, 2))
    fresh = jax.jit(partial(script.init_learner, args))(key, obs)
    state = filled(plain, args, 9, 1).replace(key=key, obs=obs)
    reset = jax.jit(partial(script.reset, args))(state.replace(learner=old))
    alone = jax.jit(lambda key, learner: plain.reset(args, state.replace(key=key, learner=learner)))
    of_two = alone(jax.random.fold_in(key, 1), old.passive)
    same = partial(jax.tree.map, partial(np.testing.assert_allclose, rtol=1e-6))
    same(fresh.active, jax.jit(partial(plain.init_learner, args))(key, obs))
    same(reset, Twins(alone(key, old.active), of_two))
    for x in (fresh, reset):
        kernels = [jax.tree.leaves(own.network["params"]["Dense_0"]["kernel"]) for own in (x.active, x.passive)]
        assert not np.isclose(*kernels).any()


@pytest.mark.slow
def test_a_run(tmp_path):
    """Both at once, over two resets: what is logged beside the script's own, and where."""
    run_tool("studies.analysis", "sr_spr", *flags(**SMALL_SR_SPR | RUN | {"runs_dir": tmp_path}))
    folder = tmp_path / "Breakout-v5__sr_spr_offline0.3_twin__rr1.5__1"
    assert (folder / "done").exists()
    [start] = json.loads((folder / "run.json").read_text())
    assert start["command"].startswith("-m studies.analysis sr_spr ")
    identity = json.loads((folder / "args.json").read_text())
    assert (identity["offline_share"], identity["passive_twin"]) == (0.3, True)
    rows = {(step, tag): float(value) for step, tag, value in table(folder)}
    made = [rows[at, "charts/updates"] for at in (50, 100, 150, 200)]
    assert made == [2, 92, 175, 227], "73 fewer than ratio x steps, since learning starts late; 15, 23 and 0 made ahead"
    with np.load(folder / "checkpoint_0000000150.npz") as arrays:  # what was made, not what was to be made
        counts = {name: int(x) for name, x in arrays.items() if name.endswith("/count")}
    assert len(counts) == 2 and {*counts.values()} == {225 + 23 - 201}, "since the reset after step 134"
    for tag in ("q_loss", "spr_loss", "q_values"):
        for at in (50, 100, 150, 200):
            assert rows[at, f"losses/{tag}"] != rows[at, f"losses/passive_{tag}"]
    scores = {tag for step, tag in rows if tag.startswith("eval/") and step == 200}
    passive = {tag for tag in scores if "passive_" in tag}
    assert {tag.replace("passive_", "") for tag in passive} == scores - passive
    assert rows[200, "eval/passive_episodic_length"] > 0


def test_both_are_evaluated(twins, monkeypatch):
    """Each in the same games."""
    script, plain = twins
    asked = []

    def evaluate(args, learner, seeds, step):
        asked.append((args, learner, seeds, step))
        return {"eval/episodic_return": [f"{learner} {seed}" for seed in seeds]}

    monkeypatch.setattr(plain, "evaluate", evaluate)
    rows = script.evaluate("args", Twins("one", "two"), [4, 5], 30)
    assert rows == {"eval/episodic_return": ["one 4", "one 5"], "eval/passive_episodic_return": ["two 4", "two 5"]}
    assert asked == [("args", "one", [4, 5], 30), ("args", "two", [4, 5], 30)]


def test_bad_input(capsys):
    for name, options, expected in (
        ("sr_spr", {}, "give --offline-share, --passive-twin"),
        ("sr_spr", {"offline_share": -0.1}, "--offline-share cannot be -0.1"),
        ("sr_spr", {"offline_share": float("nan")}, "--offline-share cannot be nan"),
        ("sr_spr", {"offline_share": 0.1234567}, "too many digits"),
        ("sr_spr", {"offline_share": 0.1, "reset_interval": 0}, "needs resets"),
        ("sr_spr", {"offline_share": 0.1, "reset_interval": 3_000}, "needs a longer --reset-interval"),
        ("sr_spr", {"offline_share": 0.1, "replay_ratio": 0.5}, "moves no update"),
        ("sr_spr", {"offline_share": 0.1, "resets_end": 30_000}, "moves no update"),
        ("sr_spr", {"offline_share": 0.1, "total_timesteps": 20_000}, "moves no update"),
        ("sr_spr", {"offline_share": 1e-5}, "moves no update"),
        ("sr_spr", {"offline_share": 0.1, "replay_ratio": float("nan")}, "--replay-ratio cannot be nan"),
        ("spr", {"offline_share": 0.1}, "needs resets"),
        ("bbf", {"passive_twin": True, "gamma": 2.0}, "--gamma cannot be 2.0"),
    ):
        script = prepare(name)
        with pytest.raises(SystemExit) as error:
            script.main(script.Args(**options))
        assert error.value.code == 2 and expected in capsys.readouterr().err
    assert "--passive-twin" in run_tool("studies.analysis", "--help")
    assert "is for spr, sr_spr, bbf" in run_tool("studies.analysis", "rainbow", expect=2)
