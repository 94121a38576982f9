"""Tasks with discrete actions, as the scripts on gymnax see them: gymnax's own, EnvPool's and Gymnasium's."""

import subprocess
import sys

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from common import ROOT, SMALL_GYMNAX, assert_same, refused, results, run, run_here, slow_but, start

# Is the last step that gymnax allows the end of the task itself (nothing comes after it), or is the episode only cut?
OWN_END = {
    "CartPole-v1": False,
    "Acrobot-v1": False,
    "MountainCar-v0": False,
    "Asterix-MinAtar": False,  # no limit at all
    "Breakout-MinAtar": False,
    "Freeway-MinAtar": True,  # MinAtar's rules end it after 2,500 steps
    "Seaquest-MinAtar": False,
    "SpaceInvaders-MinAtar": False,
    "Catch-bsuite": False,
    "DeepSea-bsuite": False,
    "MemoryChain-bsuite": False,
    "UmbrellaChain-bsuite": False,
    "DiscountingChain-bsuite": True,  # the observation holds the time, and each chain pays once within it
    "SimpleBandit-bsuite": False,
    "FourRooms-misc": False,
    "MetaMaze-misc": True,  # a meta-episode: the return is what was found within its steps
    "BernoulliBandit-misc": True,
    "GaussianBandit-misc": True,
    "Pong-misc": False,
    "FrozenLake-misc": False,
}
CONTINUOUS = {"Pendulum-v1", "MountainCarContinuous-v0", "PointRobot-misc", "Reacher-misc", "Swimmer-misc"}
FETCHED = {"MNISTBandit-bsuite"}  # its images come from the network


@pytest.mark.guards("dependencies", "dqn")
def test_every_task_of_gymnax_is_in_the_table():
    own = {name for name in gymnax.registered_envs if name.endswith("-world")}  # of other tests in this process
    assert {*OWN_END} | CONTINUOUS | FETCHED == {*gymnax.registered_envs} - own


@pytest.mark.guards("environment")
@pytest.mark.parametrize("env_id", slow_but("CartPole-v1", "DiscountingChain-bsuite", of=OWN_END))
def test_which_end_is_the_tasks_own(env_id, dqn, monkeypatch):
    """The task is brought to its limit with a limit of one step."""
    args = dqn.Args(env_id=env_id)
    task = dqn.make_task(args)
    unlimited = task.params.max_steps_in_episode == 2**31 - 1
    assert unlimited == (env_id.endswith("MinAtar") and not OWN_END[env_id])
    if unlimited:
        return
    short = task._replace(params=task.params.replace(max_steps_in_episode=1))
    monkeypatch.setattr(dqn, "make_task", lambda args: short)
    state, _ = dqn.env_reset(args, jax.random.key(0))
    *_, raw_terminated, raw_truncated, _ = short.game.step(jax.random.key(1), state[0], 0, short.params)
    assert raw_truncated
    _, (_, _, terminated, truncated, _) = dqn.env_step(args, state, jnp.int32(0))
    assert bool(terminated) == (OWN_END[env_id] or bool(raw_terminated))
    assert bool(truncated) == (not OWN_END[env_id])


@pytest.mark.slow
@pytest.mark.guards("environment")
def test_values_of_a_task_that_ends_by_itself(tmp_path, dqn):
    """DiscountingChain pays 1.1 once at most: values would rise above it if its end were taken for a cut."""
    options = {"env_id": "DiscountingChain-bsuite", "total_timesteps": 20_000, "replay_ratio": 0.5, "gamma": 1.0}
    options |= {"optimizer": "adam", "learning_rate": 1e-3, "optimizer_eps": 1e-8, "target_interval": 50}
    options |= {"learning_starts": 1000, "hidden_dim": 32, "eval_interval": 0, "runs_dir": tmp_path}
    run("dqn", **options)
    rows = (next(tmp_path.iterdir()) / "metrics.csv").read_text().splitlines()
    values = [float(row.split(",")[2]) for row in rows if ",losses/q_values," in row]
    assert max(values) < 1.3, values


@pytest.mark.guards("environment")
def test_a_number_is_a_one_hot_vector(dqn):
    task = dqn.make_task(dqn.Args(env_id="FrozenLake-misc"))
    obs = task.encode(jnp.int32(5))
    assert obs.dtype == jnp.float32 and obs.tolist() == [float(i == 5) for i in range(16)]
    assert dqn.HostEnv("edge_envs:Walk-v0", 1).obs.shape == (5,)
    parts = dqn.HostEnv("edge_envs:Parts-v0", 1)
    assert parts.obs.dtype == np.float32 and parts.obs.shape == (5 + 2 + 3,)
    assert parts.obs[:5].sum() == 1 and parts.obs[5:].tolist() == [0.25, 0.5, 0, 1, 0]
    assert dqn.HostEnv("FrozenLake-v1", 1).obs.tolist() == [float(i == 0) for i in range(16)]  # EnvPool's


@pytest.mark.guards("environment")
def test_a_number_is_a_one_hot_vector_for_sac(sac):
    *_, obs = sac.make_pool("edge_envs:Steering-v0", [1, 2])
    assert obs.dtype == np.float32 and obs.shape == (2, 5) and (obs.sum(1) == 1).all() and set(obs.flat) == {0, 1}
    space = sac.gymnasium.spaces
    parts = space.Dict(
        b=space.Discrete(3, start=1), a=space.Tuple((space.Box(0, 1, (2,)), space.MultiDiscrete([2, 3])))
    )
    numbers = {"b": np.array([1, 3]), "a": (np.array([[0.5, 0.25], [0.0, 1.0]]), np.array([[0, 2], [1, 0]]))}
    expected = [[0.5, 0.25, 1, 0, 0, 0, 1, 1, 0, 0], [0.0, 1.0, 0, 1, 1, 0, 0, 0, 0, 1]]
    for xp in (np, jnp):
        assert np.asarray(sac.flatten("x", parts, numbers, xp)).tolist() == expected


@pytest.mark.guards("environment")
def test_sticky_actions_are_minatars(dqn):
    """By default nothing is repeated elsewhere; a probability that is given holds everywhere on gymnax."""
    for env_id, sticky, share in (("Breakout-MinAtar", None, 0.1), ("CartPole-v1", None, 0), ("CartPole-v1", 0.5, 0.5)):
        args = dqn.Args(env_id=env_id, sticky=sticky)
        keys = jax.random.split(jax.random.key(0), 1000)

        def executed(key, args=args):
            state, _ = dqn.env_reset(args, key)
            state, _ = dqn.env_step(args, state, jnp.int32(1))
            return state[1]  # the last action that was executed; 0 before the first

        assert abs(float(jnp.mean(jax.vmap(executed)(keys) == 0)) - share) < 0.04


@pytest.mark.guards("environment")
def test_episodes_of_gymnasium_and_envpool_have_no_row_for_a_reset(dqn):
    """The step that ends an episode already gives the first observation of the next one, as gymnax's do."""
    for env_id in ("edge_envs:Walk-v0", "FrozenLake-v1", "CartPole-v0"):
        env = dqn.HostEnv(env_id, 3)
        dice = np.random.default_rng(0)
        ended = 0
        for _ in range(300):
            before = env.obs
            next_obs, reward, terminated, truncated, obs = env.step(int(dice.integers(env.action_space.n)))
            assert np.array_equal(obs, env.obs) and reward.dtype == np.float32
            if terminated or truncated:
                ended += 1
            else:
                assert np.array_equal(next_obs, obs)
            if env_id == "edge_envs:Walk-v0":
                assert abs(int(next_obs.argmax()) - int(before.argmax())) == 1, "a step of the walk"
                assert bool(terminated) == (next_obs.argmax() in (0, 4)) and obs.argmax() in (1, 2, 3)
        assert ended > 3
        env.pool.close()


@pytest.mark.slow
@pytest.mark.guards("resume", "dqn")
@pytest.mark.parametrize("env_id", ["edge_envs:Walk-v0", "CartPole-v0"])
def test_a_run_of_a_task_outside(env_id, tmp_path, dqn, capfd):
    """Of Gymnasium and of EnvPool: it runs, and is continued from the recorded actions to the same bits."""
    options = SMALL_GYMNAX | {"env_id": env_id, "total_timesteps": 200}
    start(dqn, **options | {"runs_dir": tmp_path / "whole"})
    start(dqn, **options | {"runs_dir": tmp_path / "parts", "total_timesteps": 120})
    said = run_here(dqn, capfd, **options | {"runs_dir": tmp_path / "parts"})
    assert "from step 120 to 200" in said
    assert_same(results(tmp_path / "parts"), results(tmp_path / "whole"))
    options |= {"runs_dir": tmp_path / "parts", "total_timesteps": 250}
    said = run_here(dqn, capfd, "--resume", "fresh", **options)
    assert "new episodes from step 200" in said


@pytest.mark.guards("environment", "dqn")
def test_gymnax_alone_imports_no_envpool():
    """A user of MinAtar need not install it."""
    program = f"import sys; sys.argv = ['dqn.py']; sys.path.insert(0, {str(ROOT / 'algos')!r}); import dqn; "
    program += "dqn.make_task(dqn.Args()); assert 'envpool' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.guards("errors")
@pytest.mark.parametrize(
    ("env_id", "expected"),
    [
        ("MinAtar/Breakout-v1", "Breakout-MinAtar"),
        ("Breakout-Minatar", "Breakout-MinAtar"),
        ("Pong-v5", "dqn_atari.py"),
        ("CheetahRun-v1", "DQN needs discrete"),
        ("edge_envs:Steering-v0", "DQN needs discrete"),
        ("nowhere:Task-v0", "PYTHONPATH"),
    ],
)
def test_names_that_do_not_fit(env_id, expected, tmp_path, dqn, capfd):
    said = refused(dqn, capfd, **SMALL_GYMNAX | {"env_id": env_id, "runs_dir": tmp_path / "runs"})
    assert expected in said and not (tmp_path / "runs").exists()


@pytest.mark.guards("errors")
@pytest.mark.parametrize(
    ("script", "env_id", "expected"),
    [
        ("dqn_atari", "PongNoFrameskip-v4", "Pong-v5"),
        ("dqn_atari", "ALE/Breakout-v5", "Breakout-v5"),
        ("sac", "Cheetah-run", "CheetahRun-v1"),
        ("sac", "edge_envs:Whole-v0", "floats"),
        ("sac", "nowhere:Task-v0", "PYTHONPATH"),
    ],
)
def test_names_that_do_not_fit_elsewhere(script, env_id, expected, tmp_path, request, capfd):
    said = refused(request.getfixturevalue(script), capfd, env_id=env_id, runs_dir=tmp_path / "runs")
    assert expected in said and not (tmp_path / "runs").exists()
