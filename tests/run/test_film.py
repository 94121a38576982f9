"""benchmark.film: what it shows is the evaluation that the run made itself, and nothing else is touched."""

import json
import shutil
import subprocess
import sys

import gymnasium
import imageio.v3 as imageio
import jax
import numpy as np
import pytest
from common import (
    ROOT,
    SMALL,
    SMALL_ATARI,
    SMALL_GYMNAX,
    assert_same,
    environment,
    results,
    run,
    run_tool,
    table,
)

from benchmark import film

ONE = {"num_seeds": 1, "total_timesteps": 100}
RUNS = {
    # EnvPool draws the first and the third of these tasks by itself, without EGL.
    "sac": ("sac", SMALL | ONE | {"env_id": "Pendulum-v1"}, (240, 320, 3), 25, [100, 100]),
    "dqn": ("dqn", SMALL_GYMNAX | ONE, (160, 160, 3), 15, None),
    "outside": ("dqn", SMALL_GYMNAX | ONE | {"env_id": "CartPole-v0"}, None, 25, None),
    "atari": ("dqn_atari", SMALL_ATARI | ONE, (336, 336), 15, [61, 61]),  # the first frame, and those of 60 steps
}


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("films")


@pytest.fixture(scope="module")
def make_run(runs_dir):
    """Name in RUNS -> the folder of a finished run, made once."""

    def make(name):
        script, options, *_ = RUNS[name]
        folder = runs_dir / f"{options['env_id']}__{name}__rr1.5__1"
        if not folder.exists():
            run(script, **options | {"runs_dir": runs_dir, "exp_name": name})
        return folder

    return make


def logged(folder, tag):
    return {tag: value for _, tag, value in table(folder)}[tag]


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".mp4"}


def refused(capsys, *given, **options):
    """What the tool says of what it must refuse."""
    with pytest.raises(SystemExit) as stop:
        film.main(film.Args(*given, **options))
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1, said
    return said


@pytest.mark.slow
@pytest.mark.parametrize("name", list(RUNS))
def test_the_film_is_of_the_runs_own_evaluation(name, make_run, capsys):
    folder = make_run(name)
    _, _, shape, fps, lengths = RUNS[name]
    before = contents(folder)
    film.main(film.Args(str(folder), episodes=2))
    said = capsys.readouterr().out
    returns = [logged(folder, f"eval/episode_{i}") for i in range(2)]
    assert said == f"{folder}/videos/step_0000000100.mp4: step 100, returns {', '.join(returns)}\n"
    assert contents(folder) == before
    path = folder / "videos" / "step_0000000100.mp4"
    shown = imageio.imread(path, plugin="pyav")
    assert np.ptp(shown) > 100 and imageio.immeta(path, plugin="pyav")["fps"] == fps
    assert shape is None or shown.shape[1:3] == shape[:2]
    if lengths is None:
        length = 2 * float(logged(folder, "eval/episodic_length"))
        lengths = [length if name == "dqn" else (length + 1) // 2]  # MinAtar shows every step
    assert abs(len(shown) - sum(lengths)) <= (name == "outside")  # each of two odd lengths is rounded up


@pytest.mark.slow
def test_as_a_command(make_run, tmp_path):
    words = (str(make_run("dqn")), "--output", str(tmp_path / "new" / "a.mp4"))
    said = run_tool("benchmark.film", *words, with_packages=True)
    assert said.endswith(f"a.mp4: step 100, return {logged(make_run('dqn'), 'eval/episode_0')}\n")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.mp4"]


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


@pytest.mark.slow
def test_every_second_step_until_an_episode_ends(sac, tmp_path):
    args = sac.Args(env_id="Painted-v0", eval_episodes=4, hidden_dim=4)
    learner = jax.vmap(lambda key: sac.init_learner(args, key, np.zeros(1), np.zeros(1)))(
        jax.random.split(jax.random.key(0), 1)
    )
    row = sac.evaluate(args, learner, [args.seed], 15)
    Painted.drawn = 0
    filmed, recording = film.play(sac, args, learner, 15)
    assert {tag: value.tolist() for tag, value in filmed.items()} == {tag: value.tolist() for tag, value in row.items()}
    lengths = [int(row[f"eval/episode_{i}"][0]) for i in range(4)]  # one point a step
    assert set(lengths) == {3, 9}
    assert [[picture.mean() for picture in pictures] for pictures in recording.films] == [
        [20 + 20 * t for t in range(0, length, 2)] for length in lengths
    ]
    assert Painted.drawn == sum(map(len, recording.films)) + 1  # the first try
    film.write_film(tmp_path / "a.mp4", recording)
    assert imageio.immeta(tmp_path / "a.mp4", plugin="pyav")["fps"] == 10
    assert gymnasium.make_vec.__module__.startswith("gymnasium")  # as it was


def test_a_long_episode_is_cut(monkeypatch):
    monkeypatch.setattr(film, "MOST_FRAMES", 3)
    recording = film.Recording()
    assert [*recording.begin(2), *recording.begin(1)] == [0, 1, 2]
    for t in range(5):
        recording.add(1, [t])
    assert [[int(picture[0]) for picture in pictures] for pictures in recording.films] == [[], [0, 1, 2], []]


@pytest.mark.slow
def test_what_cannot_be_filmed(make_run, tmp_path, monkeypatch, capsys):
    """One line that says why, and exit code 2; nothing is written."""
    assert "holds no run" in refused(capsys, str(tmp_path / "nowhere"))
    assert "--episodes cannot be 0" in refused(capsys, str(make_run("dqn")), episodes=0)
    folder = tmp_path / "run"
    shutil.copytree(make_run("dqn"), folder, ignore=shutil.ignore_patterns("videos"))
    before = contents(folder)
    assert "no script nothing.py" in refused(capsys, str(folder), script="nothing.py")
    assert "another version" in refused(capsys, str(folder), script="sac")
    assert contents(folder) == before
    newest = folder / "checkpoint_0000000100.npz"
    newest.write_bytes(newest.read_bytes()[:-1000])
    assert "is damaged" in refused(capsys, str(folder))
    for path in folder.glob("checkpoint_*"):
        path.unlink()
    (folder / "checkpoint_0000000000.npz").touch()
    assert "no checkpoint to film yet" in refused(capsys, str(folder))
    monkeypatch.setattr(film.importlib.util, "find_spec", lambda name: None)
    assert "pip install -r requirements-film.txt" in refused(capsys, str(folder))
    assert not (folder / "videos").exists()


@pytest.mark.slow
def test_the_script_is_found(make_run, tmp_path, monkeypatch, capsys):
    """By the run's record, also if its name is another; by --script, wherever it lies."""
    folder = tmp_path / "run"
    shutil.copytree(make_run("dqn"), folder, ignore=shutil.ignore_patterns("videos"))
    arguments = json.loads((folder / "args.json").read_text()) | {"exp_name": "a_variant"}
    (folder / "args.json").write_text(json.dumps(arguments))
    found = film.find_script(folder, arguments, "")
    assert found.name == "dqn.py" and found.is_file()
    (folder / "run.json").unlink()
    assert "no script a_variant; name the run's with --script" in refused(capsys, str(folder))
    copy = shutil.copy(found, tmp_path / "my_copy.py")
    assert film.find_script(folder, arguments, copy) == tmp_path / "my_copy.py"
    assert film.find_script(folder, arguments, "dqn") == found.resolve()


@pytest.mark.slow
def test_no_picture(tmp_path, capsys):
    """EnvPool without EGL, tasks without pictures: one line that says why and what to do."""
    code = "from benchmark import film; import envpool; options = {'env_type': 'gymnasium', 'num_envs': 1}; "
    code += "film.make_envpool(film.Recording(), envpool.make, 'CartpoleSwingup-v1', **options)"
    paths = {"PYTHONPATH": str(ROOT), "__EGL_VENDOR_LIBRARY_DIRS": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(**paths))
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert done.returncode == 2 and len(errors) == 1 and "Traceback" not in done.stderr
    assert "CartpoleSwingup-v1 cannot be filmed (" in errors[0] and "apt install libegl1" in errors[0]
    with pytest.raises(SystemExit):
        film.make_gymnasium(film.Recording(), gymnasium.make_vec, "toy_envs:Count-v0", num_envs=1)
    assert "error: toy_envs:Count-v0 cannot be filmed" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        film.image(np.zeros(4))
    assert "error: this task cannot be filmed: its observations are no images" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("env_id", ["CheetahRun-v1", "HalfCheetah-v4"])
def test_mujoco_is_drawn_and_not_disturbed(sac, env_id):
    """A pool that is drawn from goes on as one that is not; the picture shows something that moves."""
    make = sac.envpool.make
    recording = film.Recording()
    options = {"env_type": "gymnasium", "num_envs": 2, "env_seed": [3, 4]}
    try:
        drawn = film.make_envpool(recording, make, env_id, **options)
    except SystemExit:
        pytest.skip("nothing can be drawn here: no EGL")
    plain = make(env_id, **options)
    first, expected = drawn.reset(), plain.reset()
    assert all(map(np.array_equal, jax.tree.leaves(first), jax.tree.leaves(expected)))
    space = plain.action_space
    for t in range(20):
        action = sac.unscale(space, np.sin(t / 2 + np.arange(2 * space.shape[0])).reshape(2, -1))
        for one, two in zip(drawn.step(action)[:4], plain.step(action)[:4], strict=True):
            assert all(map(np.array_equal, jax.tree.leaves(one), jax.tree.leaves(two)))
    for pictures in recording.films:
        assert len(pictures) == 10 and pictures[0].shape == (240, 320, 3) and pictures[0].std() > 10
        assert (pictures[0] != pictures[-1]).any()
    assert (recording.films[0][-1] != recording.films[1][-1]).any()


@pytest.mark.slow
def test_a_film_changes_nothing(tmp_path):
    """Of a run that goes on afterwards, to the same rows and checkpoint."""
    options = SMALL_GYMNAX | {"total_timesteps": 200, "num_seeds": 2, "eval_interval": 200, "eval_episodes": 1}
    run("dqn", **options | {"runs_dir": tmp_path / "one"})
    for steps in (100, 200):
        run("dqn", **options | {"runs_dir": tmp_path / "two", "total_timesteps": steps})
        for folder in (tmp_path / "two").iterdir():
            film.main(film.Args(str(folder)))
    assert_same(results(tmp_path / "one"), results(tmp_path / "two"))
    for folder in (tmp_path / "one").iterdir():
        other = tmp_path / "two" / folder.name
        names = sorted(x.name for x in (other / "videos").iterdir())
        assert names == ["step_0000000100.mp4", "step_0000000200.mp4"] and not (folder / "videos").exists()
        rows = [[x for x in (f / "metrics.csv").read_text().splitlines() if "SPS" not in x] for f in (folder, other)]
        assert rows[0] == rows[1]
        length = next(x for x in rows[0] if "eval/episodic_length" in x)
        shown = imageio.imread(other / "videos/step_0000000200.mp4", plugin="pyav")
        assert shown.shape == (float(length.split(",")[2]), 160, 160, 3) and np.ptp(shown) > 100
