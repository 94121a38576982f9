"""Films the newest checkpoint of a run: python -m benchmark.film runs/CheetahRun-v1__sac__rr8__1

The run's own script plays the first episodes of the evaluation that belongs to the checkpoint's step, and what is seen
there becomes an mp4: MuJoCo and Gymnasium's tasks as they are rendered, every second step; Atari's games as the agent
sees them; MinAtar's with a color for each channel. Nothing else is written. Needs requirements-film.txt.
"""

import contextlib
import ctypes
import dataclasses
import importlib.util
import shlex
import unittest.mock
import warnings
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmark.jobs import ROOT, load_script, read_json, require

MOST_FRAMES = 3_000  # of an episode; the rest of it is played, too, but not shown
GAME_FPS = 15
EVERY = 2  # steps between two rendered pictures
WIDTH = 320
HEIGHT = 240
INSTALL = "films need imageio and av: pip install -r requirements-film.txt"
NO_EGL = "(without a display this needs EGL: apt install libegl1 libgl1-mesa-dri)"


@dataclasses.dataclass(frozen=True)
class Args:
    run: tyro.conf.Positional[str]
    """folder of the run"""
    episodes: int = 1
    """episodes to film, one after another"""
    output: str = ""
    """file to write; videos/step_{step}.mp4 in the run's folder if not given"""
    script: str = ""
    """the script that made the run; if not given, the one that its record names"""


# ----------------------------------------------------------------------------------------------------------- The run


def find_script(folder, arguments, given):
    """The path of the script that made a run."""
    sessions = read_json(folder / "run.json") or [{}]
    words = shlex.split(sessions[-1].get("command", ""))
    recorded = [Path(word) for word in words if word.endswith(".py")]
    names = [path.stem for path in recorded] + [arguments.get("exp_name", "")]
    candidates = [*recorded, *[ROOT / "algos" / f"{name}.py" for name in names]]
    if given:
        candidates = [Path(given), ROOT / "algos" / f"{Path(given).stem}.py"]
    found = [path for path in candidates if path.is_file()]
    require(found, f"there is no script {given or names[0] or names[-1]}; name the run's with --script")
    return found[0]


def script_args(script, arguments, folder, episodes):
    """The run's Args, for an evaluation of so many episodes."""
    known = {field.name for field in dataclasses.fields(script.Args)}
    other = sorted(set(arguments) - known)
    require(not other, f"{folder} is of another version or script: it has {', '.join(other)}; name it with --script")
    lengths = {name: episodes for name in ("eval_episodes", "final_eval_episodes") if name in known}
    return script.Args(**arguments | lengths)


def newest_checkpoint(folder):
    """-> path, step."""
    steps = {int(path.stem.removeprefix("checkpoint_")): path for path in folder.glob("checkpoint_*.npz")}
    step = max(steps, default=0)
    require(step > 0, f"{folder} holds no checkpoint to film yet")  # that of step 0 only marks the start
    return steps[step], step


def load_learner(script, args, path):
    """What a checkpoint has learned, with an axis of one seed."""
    env = script.make_env(args, [args.seed])
    init = partial(script.init_state, args, env.action)
    init = jax.vmap(init, in_axes=(0, script.SEED_AXES.env, 0), out_axes=script.SEED_AXES)
    shapes = jax.eval_shape(init, jnp.array([args.seed]), env.state, env.obs).learner
    leaves = []
    try:
        with np.load(path) as saved:
            for where, leaf in jax.tree.leaves_with_path(shapes):
                array = saved[f"learner/{jax.tree_util.keystr(where, simple=True, separator='/')}"]
                fits = array.shape == leaf.shape[1:]
                require(fits, f"{path} is of another version of {args.exp_name}; use its script")
                leaves.append(jnp.asarray(array[None], leaf.dtype))
    except KeyError as error:
        require(False, f"{path} is of another version of {args.exp_name}, without {error}; use its script")
    except Exception as error:  # damage shows as an error of the zip file, of its compression, of NumPy, ...
        require(False, f"{path} is damaged: {error}")
    env.close()
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


# --------------------------------------------------------------------------------------------------------- Recording


class Recording:
    """The pictures of episodes, one film for each, and how many are shown in a second."""

    def __init__(self):
        self.films = []
        self.fps = GAME_FPS

    def begin(self, count):
        """-> the numbers of the next episodes."""
        first = len(self.films)
        self.films += [[] for _ in range(count)]
        return range(first, first + count)

    def add(self, episode, picture):
        if len(self.films[episode]) < MOST_FRAMES:
            self.films[episode].append(np.array(picture))


class Instead:
    """A pool with some of its methods replaced."""

    def __init__(self, pool, **methods):
        self.pool = pool
        self.__dict__ |= methods

    def __getattr__(self, name):
        return getattr(self.pool, name)


def rendered(pool, recording, draw):
    """A pool of new episodes that records what `draw(i)` shows of each, every second step until it ends."""
    episodes = recording.begin(pool.num_envs)
    going = np.ones(pool.num_envs, bool)
    steps = 0
    recording.fps = pool.metadata.get("render_fps", 50) / EVERY

    def step(action):
        nonlocal steps
        for i in np.flatnonzero(going) if steps % EVERY == 0 else []:
            recording.add(episodes[i], draw(i))
        results = pool.step(action)
        _, _, terminated, truncated, _ = results
        going[:] &= ~(terminated | truncated)
        steps += 1
        return results

    return Instead(pool, step=step)


def framed(pool, recording):
    """An asynchronous pool of new episodes that records their frames, each four times as wide and high."""
    episodes = recording.begin(pool.config["num_envs"])

    def recv():
        results = pool.recv()
        frames, *_, info = results
        for i, frame in zip(info["env_id"], frames[:, -1], strict=True):
            recording.add(episodes[i], frame.repeat(4, 0).repeat(4, 1))
        return results

    return Instead(pool, recv=recv)


def make_envpool(recording, make, env_id, **options):
    """EnvPool's `make`, of a pool that records."""
    if envpool_kind(env_id) == "envpool.atari":
        return framed(make(env_id, **options), recording)
    load_egl()
    options |= {"render_mode": "rgb_array", "render_width": WIDTH, "render_height": HEIGHT}
    try:
        trial = make(env_id, **options)
        camera = 0 if hasattr(trial.observation_space, "spaces") else None  # DeepMind Control's first follows the robot
        trial.reset()
        trial.render(0, camera)
        trial.close()
    except Exception as error:
        require(False, f"{env_id} cannot be filmed {NO_EGL}: {error}")
    pool = make(env_id, **options)
    return rendered(pool, recording, lambda i: pool.render(int(i), camera)[0])


def envpool_kind(env_id):
    import envpool

    return envpool.registration.registry.specs[env_id][0]


def load_egl():
    """Brings EnvPool's library for pictures to where MuJoCo looks for it; importing EnvPool loads it elsewhere."""
    import envpool

    for library in Path(envpool.__file__).parents[1].glob("envpool.libs/libEGL*"):
        ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)


def make_gymnasium(recording, make_vec, env_id, **options):
    """Gymnasium's `make_vec`, of a pool that records."""
    try:
        pool = make_vec(env_id, **options, render_mode="rgb_array")
        pool.reset(seed=0)
        require(pool.envs[0].render() is not None, f"{env_id} cannot be filmed: it has no picture")
    except Exception as error:
        require(False, f"{env_id} cannot be filmed {NO_EGL}: {error}")
    return rendered(pool, recording, lambda i: pool.envs[i].render())


COLORS = np.random.default_rng(7).integers(64, 256, (16, 3), np.uint8)  # of MinAtar's channels


def image(obs):
    """MinAtar's observation (height, width, channels) in colors, each of its cells 16 pixels wide and high."""
    require(obs.ndim == 3, "this task cannot be filmed: its observations are no images")
    return (obs[..., None] * COLORS[: obs.shape[-1]]).max(-2).repeat(16, 0).repeat(16, 1)


def play_gymnax(script, recording, args, networks, keys):
    """What the script's `play` returns for one seed, whose episodes are played step by step and recorded."""

    @jax.jit
    def step(network, env, obs, key):
        key, act_key = jax.random.split(key)
        action = script.act(script.q_values(args, network, obs), act_key, args.eval_e)
        env, (_, reward, terminated, truncated, obs) = script.env_step(args, env, action)
        return env, obs, key, reward, terminated | truncated

    network = jax.tree.map(lambda x: x[0], networks)
    episodes = recording.begin(keys.shape[1])
    returns = np.zeros(keys.shape, np.float32)
    lengths = np.zeros(keys.shape, int)
    for i, episode in enumerate(episodes):
        reset_key, key = jax.random.split(keys[0, i])
        env, obs = jax.jit(partial(script.env_reset, args))(reset_key)
        done = False
        while not done and lengths[0, i] < args.eval_steps:
            recording.add(episode, image(np.asarray(obs)))
            env, obs, key, reward, done = step(network, env, obs, key)
            returns[0, i] += reward
            lengths[0, i] += 1
    return returns, lengths


def play(script, args, learner, step):
    """The script's own evaluation of one seed -> its metrics, what there was to see."""
    recording = Recording()
    with contextlib.ExitStack() as changed:

        def instead(module, name, function, *given):
            replaced = partial(function, *given, getattr(module, name))
            changed.enter_context(unittest.mock.patch.object(module, name, replaced))

        if importlib.util.find_spec("envpool"):
            instead(importlib.import_module("envpool"), "make", make_envpool, recording)
        instead(importlib.import_module("gymnasium"), "make_vec", make_gymnasium, recording)
        if hasattr(script, "play"):
            replaced = partial(play_gymnax, script, recording)
            changed.enter_context(unittest.mock.patch.object(script, "play", replaced))
        return script.evaluate(args, learner, [args.seed], step), recording


# ----------------------------------------------------------------------------------------------------------- Program


def write_film(path, recording):
    """One film of all episodes; the file takes its place when it is whole."""
    import imageio.v3 as imageio

    frames = np.concatenate([np.stack(film) for film in recording.films])
    gray = {"in_pixel_format": "gray"} if frames.ndim == 3 else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".tmp")
    try:
        with open(beside, "wb") as file:
            options = {"extension": ".mp4", "plugin": "pyav", "codec": "h264", "fps": recording.fps}
            file.write(imageio.imwrite("<bytes>", frames, **options, **gray))
        beside.rename(path)
    finally:
        beside.unlink(missing_ok=True)


def main(args: Args):
    require(all(map(importlib.util.find_spec, ("imageio", "av"))), INSTALL)
    require(args.episodes > 0, f"--episodes cannot be {args.episodes}")
    folder = Path(args.run)
    arguments = read_json(folder / "args.json")
    require(isinstance(arguments, dict), f"{folder} holds no run")
    checkpoint, step = newest_checkpoint(folder)
    script = load_script(find_script(folder, arguments, args.script))
    played = script_args(script, arguments, folder, args.episodes)
    warnings.filterwarnings("ignore", ".*Box (low|high)'s precision lowered", UserWarning)  # EnvPool's own
    learner = load_learner(script, played, checkpoint)
    row, recording = play(script, played, learner, step)
    path = Path(args.output) if args.output else folder / "videos" / f"step_{step:010d}.mp4"
    write_film(path, recording)
    returns = [f"{float(row[f'eval/episode_{i}'][0]):.9g}" for i in range(args.episodes)]
    print(f"{path}: step {step:,}, {'return' if len(returns) == 1 else 'returns'} {', '.join(returns)}")


if __name__ == "__main__":
    try:
        main(tyro.cli(Args))
    except OSError as error:  # a folder that cannot be made, a full disk
        require(False, f"cannot use {error.filename or 'an output'}: {error.strerror or error}")
