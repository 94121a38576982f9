"""Seeds and resets: what is the same, what must differ, and what a reset renews and keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from common import SMALL, assert_same, results, run, table
from runs import advance, begin, idle, leaves, logged


@pytest.mark.slow
@pytest.mark.guards("seeds", "sr_sac")
def test_same_command_twice(tmp_path):
    for name in ("one", "two"):
        run("sr_sac", **SMALL | {"reset_interval": 150, "total_timesteps": 150, "runs_dir": tmp_path / name})
    assert_same(results(tmp_path / "one"), results(tmp_path / "two"))
    rows = [table(folder) for folder in sorted((tmp_path / "one").iterdir())]
    tags = [{tag for _, tag, _ in own} for own in rows]
    assert tags[0] == tags[1]
    assert {"eval/episodic_return", "eval/episode_1", "losses/alpha", "losses/entropy", "charts/resets"} <= tags[0]
    first = [{tag: value for step, tag, value in own if step == 50} for own in rows]
    assert "charts/episodic_return" not in first[0], "no episode has ended yet: the value does not exist"
    at_100 = [{tag: float(value) for step, tag, value in own if step == 100} for own in rows]
    assert at_100[0]["charts/updates"] == 150 - 73 and at_100[0]["charts/resets"] == 0
    assert at_100[0]["eval/episode_0"] != at_100[1]["eval/episode_0"]
    assert at_100[0]["eval/episode_0"] != at_100[0]["eval/episode_1"]
    assert not [value for own in rows for _, _, value in own if value in ("nan", "inf", "-inf")]


@pytest.mark.slow
@pytest.mark.guards("resets", "sr_sac")
def test_sr_sac_is_sac_until_its_first_reset(sac, sr_sac):
    """The same weights, actions and replay to the bit; the child draws the reset's key beside the parent's keys."""
    found = []
    for script, options in ((sac, {}), (sr_sac, {"reset_interval": 180})):  # due after step 120
        args, env_step, state = begin(script, [1, 2], **options)
        state, actions = advance(script, args, env_step, state, 120)
        found.append((actions, leaves(state.learner), leaves(state.replay)))
    (one, mine, replay), (two, its, other) = found
    assert np.array_equal(one, two)
    assert [name for name in mine if not np.array_equal(mine[name], its[name])] == []
    assert [name for name in replay if not np.array_equal(replay[name], other[name])] == []


@pytest.mark.guards("seeds")
def test_seeds_differ(sac, monkeypatch):
    """In weights, exploration and keys; of the draws from the replay see the next test."""
    monkeypatch.setattr(sac, "update", idle)
    args, env_step, state = begin(sac, [1, 2, 3])
    initial = leaves(state.learner)
    kernels = [x for name, x in initial.items() if "kernel" in name]
    assert all(not np.array_equal(x[0], x[1]) and not np.array_equal(x[1], x[2]) for x in kernels)
    state, actions = advance(sac, args, env_step, state, 60)
    assert not np.array_equal(actions[0, :49], actions[1, :49]), "exploration"
    keys = jax.random.key_data(state.key)
    assert len({tuple(key) for key in np.asarray(keys).tolist()}) == 3
    sac.train_chunk.clear_cache()


@pytest.mark.slow
@pytest.mark.guards("seeds")
def test_replay_draws_differ(sac, monkeypatch):
    """Two seeds with the same replay do not draw the same rows from it."""
    drawn = lambda args, learner, batch, key: (learner, {"losses/rows": batch.reward.sum()})
    monkeypatch.setattr(sac, "update", drawn)
    args, env_step, state = begin(sac, [1, 2], env_id="toy_envs:Ends-v0", replay_ratio=1, learning_starts=100)
    state, _ = advance(sac, args, env_step, state, 99)
    numbered = jnp.broadcast_to(jnp.arange(300.0), (2, 300))
    state = state.replace(replay=state.replay.replace(reward=numbered))
    state, _ = advance(sac, args, env_step, state, 1)
    sums = np.asarray(state.metric_sums["losses/rows"])
    assert sums[0] != sums[1] and (sums > 0).all()
    sac.train_chunk.clear_cache()


@pytest.mark.guards("seeds")
@pytest.mark.slow
@pytest.mark.parametrize("name", ["sac", "sr_sac"])
def test_a_seed_of_a_batch_is_the_run_alone(name, request):
    """Seed 2 beside 1 and 3 takes the actions, sees the observations and learns the weights of seed 2 alone."""
    script = request.getfixturevalue(name)
    outcomes = []
    for seeds, i in (([1, 2, 3], 1), ([2], 0)):
        args, env_step, state = begin(script, seeds)
        first = {k: x[i] for k, x in leaves(state.learner).items()}
        state, actions = advance(script, args, env_step, state, 55)
        outcomes.append(
            (first, actions[i], np.asarray(state.obs)[i], {k: x[i] for k, x in leaves(state.learner).items()})
        )
    (first, actions, obs, learnt), (first_alone, actions_alone, obs_alone, learnt_alone) = outcomes
    assert all(np.array_equal(first[k], first_alone[k]) for k in first)
    assert np.array_equal(actions[:49], actions_alone[:49])
    np.testing.assert_allclose(actions, actions_alone, atol=1e-4)
    np.testing.assert_allclose(obs, obs_alone, atol=1e-4)
    for k in learnt:
        np.testing.assert_allclose(learnt[k], learnt_alone[k], atol=1e-3, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.guards("resume")
def test_chunks_do_not_matter(sac):
    """Ten steps at a time or sixty at once: the same bits."""
    args, env_step, state = begin(sac, [1, 2])
    whole, _ = advance(sac, args, env_step, state, 60)
    args, env_step, state = begin(sac, [1, 2])
    for _ in range(6):
        state, _ = advance(sac, args, env_step, state, 10)
    one, two = (leaves(x.replace(env=None, key=jax.random.key_data(x.key))) for x in (whole, state))
    assert all(np.array_equal(one[k], two[k]) for k in one)


@pytest.mark.slow
@pytest.mark.guards("schedule")
def test_a_fraction_of_an_update_per_step(sac, monkeypatch):
    """Ratio 0.25: one update every fourth step, none dropped; ratio 1.5: three every second step."""
    for ratio, expected in ((1.5, 150 - 73), (0.25, 25 - 12), (0.5, 50 - 24), (2, 102)):
        args, env_step, state = begin(sac, [1], replay_ratio=ratio)
        state, _ = advance(sac, args, env_step, state, 100)
        assert state.metric_sums["updates"][0] == expected == logged(sac, args, state)["charts/updates"][0]
        if ratio == 1.5:  # the others need not be compiled
            assert state.learner.actor_opt[0].count[0] == expected
            monkeypatch.setattr(sac, "update", idle)
    sac.train_chunk.clear_cache()


@pytest.mark.slow
@pytest.mark.guards("resets")
def test_a_reset_renews_the_learner_and_keeps_the_replay(sr_sac):
    """Due after step 100 (ratio 1.5, interval 150), it comes at the start of step 101: all of `Learner` is new, with
    zeros in Adam's state; the replay stays. Seeds and resets draw different weights, never the first again."""
    args, env_step, state = begin(sr_sac, [1, 2], reset_interval=150)
    first = leaves(state.learner)
    state, _ = advance(sr_sac, args, env_step, state, 100)
    old, old_replay = leaves(state.learner), leaves(state.replay)
    assert all(old[k].any() for k in old), "something was never learnt: the test would not see its reset"

    # Step 101 with learning switched off shows the reset alone.
    asleep = sr_sac.Args(**{**vars(args), "learning_starts": 10_000})
    state, _ = advance(sr_sac, asleep, env_step, state, 1)
    new, new_replay = leaves(state.learner), leaves(state.replay)
    for k in new:
        if "opt" in k or "bias" in k or "log_alpha" in k:
            assert not new[k].any(), k
        else:
            for other in (first, old):
                assert not np.array_equal(new[k], other[k]), k
            assert not np.array_equal(new[k][0], new[k][1]), "two seeds were given the same weights"
    critic, target = (leaves(x) for x in (state.learner.critic, state.learner.target_critic))
    assert all(np.array_equal(critic[k], target[k]) for k in critic)
    for k in old_replay:
        assert np.array_equal(old_replay[k][:, :100], new_replay[k][:, :100]), "the replay was touched"

    state, _ = advance(sr_sac, asleep, env_step, state, 99)
    still = leaves(state.learner)
    assert all(np.array_equal(new[k], still[k]) for k in new), "a reset where none was due"
    state, _ = advance(sr_sac, asleep, env_step, state, 1)
    again = leaves(state.learner)
    kernels = [k for k in new if "kernel" in k and "opt" not in k]
    assert kernels and all(not np.array_equal(new[k], again[k]) for k in kernels), "two resets drew the same weights"


@pytest.mark.guards("resets")
def test_no_reset_without_an_interval(sr_sac, monkeypatch):
    monkeypatch.setattr(sr_sac, "update", idle)
    args, env_step, state = begin(sr_sac, [1], reset_interval=0, learning_starts=300, batch_size=16)
    first = leaves(state.learner)
    state, _ = advance(sr_sac, args, env_step, state, 250)
    assert all(np.array_equal(first[k], x) for k, x in leaves(state.learner).items())
    sr_sac.train_chunk.clear_cache()


@pytest.mark.slow
@pytest.mark.guards("resets", "sr_sac")
def test_five_seeds_with_resets_do_not_hang(tmp_path):
    """jaxlib's batched QR, in the draws of a reset under vmap inside jit, can wait for itself on two cores."""
    options = SMALL | {"num_seeds": 5, "total_timesteps": 120, "eval_interval": 0, "hidden_dim": 256, "replay_ratio": 1}
    said = run("sr_sac", **options | {"reset_interval": 20, "runs_dir": tmp_path})
    assert said.count("120 steps done") == 5
