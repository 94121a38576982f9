"""The environment block: bits, sizes and types of what goes through `make_env`, and what the replay makes of it."""

import re
import sys
import types

import envpool
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from common import ROOT, SMALL
from runs import advance, begin

# Observation sizes of dm_control's tasks (its own flattened observations).
DM_CONTROL = {
    "AcrobotSwingup-v1": 6,
    "CartpoleSwingup-v1": 5,
    "CheetahRun-v1": 17,
    "FingerSpin-v1": 9,
    "FingerTurnHard-v1": 12,
    "FishSwim-v1": 24,
    "FishUpright-v1": 21,
    "HopperHop-v1": 15,
    "HumanoidRun-v1": 67,
    "HumanoidStand-v1": 67,
    "HumanoidWalk-v1": 67,
    "PendulumSwingup-v1": 3,
    "QuadrupedRun-v1": 78,
    "QuadrupedWalk-v1": 78,
    "ReacherHard-v1": 6,
    "SwimmerSwimmer6-v1": 25,
    "WalkerRun-v1": 24,
}


def scan_env(sac, env_id, seeds, actions):
    """Steps through `make_env` under vmap and scan; actions are (steps, seeds, dim)."""
    env = sac.make_env(sac.Args(env_id=env_id), seeds)

    def body(handle, action):
        return jax.vmap(env.step, in_axes=(None, 0), out_axes=(None, 0))(handle, action)

    _, out = jax.jit(lambda handle, actions: jax.lax.scan(body, handle, actions))(env.state, actions)
    return env.obs, jax.block_until_ready(out)


def step_python(sac, env_id, seeds, actions):
    pool, space, flat, first = sac.make_pool(env_id, seeds)
    rows = []
    for action in np.asarray(actions):
        obs, reward, terminated, truncated, _ = pool.step(sac.unscale(space, action))
        rows.append((flat(obs), np.asarray(reward, np.float32), terminated, truncated))
    return first, [np.stack(x) for x in zip(*rows, strict=True)]


@pytest.mark.guards("environment")
@pytest.mark.parametrize(
    "env_id,dim,seeds",
    [
        ("CheetahRun-v1", 6, [4]),
        ("Hopper-v4", 3, [7, 8]),
        ("toy_envs:Count-v0", 2, [1, 2, 3]),
        pytest.param("HumanoidWalk-v1", 21, [1, 2, 3, 4, 5], marks=pytest.mark.slow),
        pytest.param("QuadrupedRun-v1", 12, [1, 2], marks=pytest.mark.slow),
        pytest.param("Humanoid-v5", 17, [3, 9], marks=pytest.mark.slow),
    ],
)
def test_inside_jit_equals_python(sac, env_id, dim, seeds):
    """Observations, rewards and ends are those of stepping the same environments from Python, to the bit."""
    actions = jax.random.uniform(jax.random.key(0), (1100, len(seeds), dim), minval=-1, maxval=1)
    first, got = scan_env(sac, env_id, seeds, actions)
    other_first, expected = step_python(sac, env_id, seeds, actions)
    assert np.array_equal(first, other_first)
    for a, b in zip(got, expected, strict=True):
        assert np.array_equal(a, b)
    assert np.asarray(got[3] | got[2]).any(), "no episode ended: the test saw too little"


@pytest.mark.guards("environment")
def test_nothing_leaves_in_float64(sac):
    for env_id in ("CheetahRun-v1", "Hopper-v4", "toy_envs:Count-v0"):
        env = sac.make_env(sac.Args(env_id=env_id), [1, 2])
        assert env.obs.dtype == np.float32
        dim = 6 if env_id == "CheetahRun-v1" else 3 if env_id == "Hopper-v4" else 2
        _, out = jax.vmap(env.step, in_axes=(None, 0), out_axes=(None, 0))(env.state, jnp.zeros((2, dim)))
        assert [x.dtype for x in out] == [np.float32, np.float32, bool, bool]
    assert not jax.config.jax_enable_x64


@pytest.mark.guards("seeds")
def test_a_seed_does_not_know_its_neighbors(sac):
    actions = jax.random.uniform(jax.random.key(1), (50, 3, 6), minval=-1, maxval=1)
    first, three = scan_env(sac, "CheetahRun-v1", [5, 9, 2], actions)
    alone_first, alone = scan_env(sac, "CheetahRun-v1", [9], actions[:, 1:2])
    assert np.array_equal(first[1], alone_first[0])
    assert all(np.array_equal(a[:, 1], b[:, 0]) for a, b in zip(three, alone, strict=True))
    assert not np.array_equal(first[0], first[1])


@pytest.mark.slow
@pytest.mark.guards("dependencies")
@pytest.mark.parametrize("env_id", DM_CONTROL)
def test_observations_are_those_of_dm_control(sac, env_id):
    pool, _, _, obs = sac.make_pool(env_id, [1])
    assert obs.shape == (1, DM_CONTROL[env_id])
    unknown = set(sac.PADDING.get(env_id, ())) - set(pool.observation_space.spaces)
    assert not unknown, f"EnvPool has no {unknown}"


@pytest.mark.guards("dependencies")
def test_padding_names_tasks_that_exist(sac):
    assert set(sac.PADDING) <= set(envpool.list_all_envs())


@pytest.mark.guards("environment")
def test_actions_reach_the_bounds(sac):
    """-1 and 1 are the task's bounds, 0 is their middle, for bounds that are neither +-1 nor symmetric."""
    _, space, _, _ = sac.make_pool("toy_envs:Count-v0", [1])
    scaled = sac.unscale(space, np.array([[-1.0, -1.0], [0.0, 1.0]], np.float32))
    np.testing.assert_allclose(scaled, [[-2, -2], [0.5, 3]])
    _, space, _, _ = sac.make_pool("Humanoid-v5", [1])
    assert np.allclose(sac.unscale(space, np.ones(17, np.float32)), 0.4)


def play(script, steps, **options):
    """Trains for `steps` steps -> State after it, and the actions taken (seeds, steps, dim)."""
    seeds = list(range(1, options.pop("num_seeds", 2) + 1))
    args, env_step, state = begin(script, seeds, **options)
    state, actions = advance(script, args, env_step, state, steps)
    return args, seeds, jax.device_get(state.replace(env=None)), actions


@pytest.mark.guards("storing")
@pytest.mark.parametrize(
    "env_id,steps,size",
    [
        ("toy_envs:Count-v0", 200, 60),
        pytest.param("toy_envs:Count-v0", 95, 300, marks=pytest.mark.slow),
        pytest.param("Hopper-v4", 150, 100, marks=pytest.mark.slow),
    ],
)
def test_replay_holds_what_happened(sac, env_id, steps, size):
    """Against plain stepping from Python over ends of both kinds, before and after the ring is full: the same
    transitions in the same places, none lost, none invented; after an episode's end no row is stored."""
    _, seeds, state, actions = play(sac, steps, env_id=env_id, buffer_size=size)
    first, (obs, reward, terminated, truncated) = step_python(sac, env_id, seeds, actions.transpose(1, 0, 2))
    assert terminated.any() and (env_id == "Hopper-v4" or truncated.any())
    for i in range(len(seeds)):
        rows, now, done = [], first[i], False
        for t in range(steps):
            if not done:
                rows.append((now, actions[i, t], reward[t, i], float(terminated[t, i]), obs[t, i]))
            now, done = obs[t, i], terminated[t, i] or truncated[t, i]
        assert state.stored[i] == len(rows) < steps
        assert (len(rows) > size) == (size < 150), "the ring should come round in the small ones alone"
        held = [getattr(state.replay, name)[i] for name in ("obs", "action", "reward", "terminated", "next_obs")]
        for k, row in list(enumerate(rows))[-size:]:
            for ring, value in zip(held, row, strict=True):
                assert np.array_equal(ring[k % size], value), f"transition {k}"
        for ring in held:
            assert not ring[len(rows) :].any(), "something stands where nothing was stored"


@pytest.mark.guards("sampling")
def test_only_what_is_there_is_sampled(sac, monkeypatch):
    """Every transition an update sees is one of those stored so far, and all of them come up."""
    seen = []

    def watch(args, learner, batch, key):
        jax.debug.callback(lambda obs: seen.append(np.asarray(obs)), batch.next_obs[:, :2])
        return learner, {"losses/none": jnp.zeros(())}

    monkeypatch.setattr(sac, "update", watch)
    _, _, state, _ = play(sac, 130, env_id="toy_envs:Count-v0", num_seeds=1, replay_ratio=1, buffer_size=40)
    jax.effects_barrier()
    assert len(seen) == 81  # steps 50 to 130
    everything = {tuple(row) for row in np.concatenate(seen)}
    assert all(t >= 1 for _, t in everything), "an empty row or a mere reset was sampled"
    older = sorted(tuple(row) for row in state.replay.next_obs[0, :, :2])[:30]  # the last ten may not have come up yet
    assert set(older) <= everything
    newest = max(map(tuple, seen[0]))
    assert newest[0] * 10 <= 50, "a transition was sampled before it happened"
    sac.train_chunk.clear_cache()


@pytest.mark.slow
@pytest.mark.guards("storing")
def test_episode_statistics(sac):
    """Returns and lengths of the episodes that ended, as plain stepping adds them up."""
    args, seeds, state, actions = play(sac, 95, env_id="toy_envs:Count-v0")
    _, (_, reward, terminated, truncated) = step_python(sac, args.env_id, seeds, actions.transpose(1, 0, 2))
    for i in range(len(seeds)):
        returns, lengths, total, length, done = [], [], 0.0, 0, False
        for t in range(95):
            total, length = (0.0, 0) if done else (total + reward[t, i], length + 1)
            done = terminated[t, i] or truncated[t, i]
            if done:
                returns.append(total)
                lengths.append(length)
        assert set(lengths) == {7, 10}
        assert state.metric_sums["episodes"][i] == len(returns)
        assert state.metric_sums["charts/episodic_length"][i] == sum(lengths)
        assert state.metric_sums["charts/episodic_return"][i] == pytest.approx(sum(returns), rel=1e-5)


def ring_copies(script):
    """Instructions of the compiled chunk that copy an array of the ring's shape."""
    args, env_step, state = begin(script, [1, 2], **SMALL | {"buffer_size": 12_345})
    text = script.train_chunk.lower(args, env_step, 10, state).compile().as_text()
    assert "f32[2,12345" in text
    return re.findall(r"= \w+\[2,12345[^=]* copy(?:-start)?\(", text)


@pytest.mark.slow
@pytest.mark.guards("ring")
def test_the_replay_is_not_copied(sac):
    """A copy of the ring would make every step as slow as the ring is long. A twin of the script that draws its batches
    from the ring as it was before the write must copy, and does: so the search finds what it looks for."""
    assert not ring_copies(sac)
    text = (ROOT / "algos" / "sac.py").read_text()
    late = text.replace("lambda ring: ring[index], replay)", "lambda ring: ring[index], state.replay)")
    assert late != text
    twin = types.ModuleType("twin")
    twin.__file__, sys.modules["twin"] = sac.__file__, twin
    exec(compile(late, "twin", "exec"), twin.__dict__)
    assert ring_copies(twin)
