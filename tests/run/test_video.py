"""--capture-video: films of evaluations that leave all else as it is, to the bit."""

import os
from pathlib import Path

import gymnasium
import imageio.v3 as imageio
import jax
import numpy as np
import pytest
from common import SMALL, assert_same, results, run

# EnvPool draws this task by itself, without EGL; its episodes last 200 steps.
PENDULUM = SMALL | {"env_id": "Pendulum-v1", "total_timesteps": 100, "eval_interval": 50}


class Painted(gymnasium.Env):
    """Ends after 3 steps or, every second episode, after 9; its picture tells the step by its brightness."""

    observation_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012
    drawn = 0

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.length = 0, 3 + 6 * (seed % 2 if seed is not None else 1)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.t += 1
        return np.zeros(1, np.float32), 1.0, self.t == self.length, False, {}

    def render(self):
        Painted.drawn += 1
        return np.full((48, 64, 3), 20 + 20 * self.t, np.uint8)


gymnasium.register("Painted-v0", Painted, max_episode_steps=10)


def films(runs_dir, step=""):
    """Name -> frames, of the films of a step or of all."""
    paths = sorted(Path(runs_dir).rglob(f"videos/step_*{step}.mp4"))
    return {str(path.relative_to(runs_dir)): imageio.imread(path, plugin="pyav").astype(int) for path in paths}


def assert_alike(one, two):
    """The same films; the encoder's threads may leave a trace in single pixels."""
    assert one.keys() == two.keys() and one
    assert all(one[name].shape == two[name].shape and np.abs(one[name] - two[name]).max() < 10 for name in one)


@pytest.fixture(scope="module")
def filmed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("filmed")
    run("sac", "--capture-video", runs_dir=folder, **PENDULUM)
    return folder


def test_a_film_of_every_evaluation(filmed):
    names = [f"Pendulum-v1__sac__rr1.5__{seed}/videos/step_{step:010d}.mp4" for seed in (1, 2) for step in (50, 100)]
    assert sorted(films(filmed)) == names
    for name in names:
        assert imageio.improps(filmed / name, plugin="pyav").shape == (100, 240, 320, 3)  # every second of 200 steps
        assert imageio.immeta(filmed / name, plugin="pyav")["fps"] == 25
    assert len({film.tobytes() for film in films(filmed).values()}) == len(names), "each seed and step has its own"


def test_everything_else_is_the_same(filmed, tmp_path):
    """With films or without, the same bits; switched on in a later start, the films of what was left to do."""
    run("sac", runs_dir=tmp_path, **PENDULUM | {"total_timesteps": 50})
    assert not films(tmp_path)
    beside = tmp_path / "Pendulum-v1__sac__rr1.5__1" / "videos" / "step_0000000100.mp4.tmp"
    beside.parent.mkdir()
    beside.write_bytes(b"half a fi")  # as a run leaves it that was killed
    run("sac", "--capture-video", runs_dir=tmp_path, **PENDULUM)
    assert_same(results(tmp_path), results(filmed))
    assert not list(tmp_path.rglob("*.tmp"))
    assert_alike(films(tmp_path), films(filmed, "0000000100"))

    # --evaluate writes the film of the newest checkpoint, the one the run made itself, and nothing else.
    others = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".mp4"}
    for path in tmp_path.rglob("*.mp4"):
        path.unlink()
    run("sac", "--evaluate", "--capture-video", runs_dir=tmp_path, **PENDULUM)
    assert_alike(films(tmp_path), films(filmed, "0000000100"))
    now = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".mp4"}
    assert now == others

    # --overwrite takes the old films away.
    run("sac", "--overwrite", runs_dir=tmp_path, **PENDULUM | {"eval_interval": 0, "total_timesteps": 60})
    assert not films(tmp_path)


def test_only_the_first_episode_and_only_to_its_end(sac, tmp_path):
    """Two seeds with two environments each: every second step of the first environments, until their episodes end."""
    args = sac.Args(env_id="Painted-v0", eval_episodes=2, hidden_dim=4, capture_video=True)
    keys = jax.random.split(jax.random.key(0), 2)
    actors = jax.vmap(lambda key: sac.init_learner(args, key, np.zeros(1), np.zeros(1)).actor)(keys)
    folders = [tmp_path / "1", tmp_path / "2"]
    for folder in folders:
        folder.mkdir()
    Painted.drawn, step = 0, 15
    rows = list(sac.evaluate(args, actors, [1, 2], step, folders))
    drawn = 4  # the first try draws all four environments
    for folder, row in zip(folders, rows, strict=True):
        film = imageio.imread(folder / "videos" / "step_0000000015.mp4", plugin="pyav")
        length = int(row["eval/episode_0"])  # one point a step
        assert np.abs(film.mean((1, 2, 3)) - (20 + 20 * np.arange(0, length, 2))).max() < 3
        assert imageio.immeta(folder / "videos" / "step_0000000015.mp4", plugin="pyav")["fps"] == 10
        drawn += len(film)
    assert [(row["eval/episode_0"], row["eval/episode_1"]) for row in rows] == [(3, 3), (9, 3)]
    assert Painted.drawn == drawn
    silent = sac.Args(env_id="Painted-v0", eval_episodes=2, hidden_dim=4)
    assert list(sac.evaluate(silent, actors, [1, 2], step, folders)) == rows and Painted.drawn == drawn


def test_nothing_is_written_where_nothing_can_be_drawn(tmp_path, monkeypatch):
    """One line that says why and what to do: EnvPool without EGL, a task without pictures."""
    monkeypatch.setitem(os.environ, "__EGL_VENDOR_LIBRARY_DIRS", str(tmp_path))
    options = SMALL | {"runs_dir": tmp_path / "runs"}
    for task, why in (("CartpoleSwingup-v1", "EGL"), ("toy_envs:Count-v0", "render")):
        said = run("sac", "--capture-video", expect=2, **options | {"env_id": task})
        assert said.count("error:") == 1 and "Traceback" not in said
        assert f"{task} cannot be filmed" in said and "apt install" in said and why in said.split("apt install")[1]
        assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("env_id", ["CheetahRun-v1", "HalfCheetah-v4"])
def test_mujoco_is_drawn_and_not_disturbed(sac, env_id):
    """A pool that is drawn from goes on as one that is not; the picture shows something that moves."""
    try:
        drawn, space, first = sac.make_pool(env_id, [3, 4], True)
    except SystemExit:
        pytest.skip("nothing can be drawn here: no EGL")
    plain, _, expected = sac.make_pool(env_id, [3, 4])
    assert np.array_equal(first, expected)
    pictures = []
    for t in range(20):
        action = sac.unscale(space, np.sin(t / 2 + np.arange(2 * space.shape[0])).reshape(2, -1))
        for one, two in zip(drawn.step(action)[:4], plain.step(action)[:4], strict=True):
            assert all(map(np.array_equal, jax.tree.leaves(one), jax.tree.leaves(two)))
        if t % 10 == 9:
            pictures.append(drawn.render(1)[0])
    assert pictures[0].shape == (240, 320, 3) and pictures[0].std() > 10
    assert (pictures[0] != pictures[1]).any()
