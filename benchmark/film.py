"""Films the newest checkpoint of a run: python -m benchmark.film runs/CheetahRun-v1__sac__rr8__1

The run's own script plays the first episodes of the evaluation that belongs to the checkpoint's step, and what is seen
there becomes an mp4: MuJoCo and Gymnasium's tasks as they are rendered, every second step; Atari's games as the agent
sees them; MinAtar's with a color for each channel. Nothing else is written. Needs requirements-film.txt.
"""

import ctypes
import dataclasses
import importlib.util
import shlex
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmark.jobs import ROOT, read_json, require

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


def load_script(path):
    """A script as a module of its own."""
    spec = importlib.util.spec_from_file_location(f"film_{path.stem}", path)
    script = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = script
    spec.loader.exec_module(script)
    return script


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
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


# --------------------------------------------------------------------------------------------------------- Recording


class Recording:
    """The pictures of some episodes, and how many are shown in a second."""

    def __init__(self, episodes):
        self.films = [[] for _ in range(episodes)]
        self.fps = GAME_FPS

    def add(self, episode, picture):
        if episode < len(self.films) and len(self.films[episode]) < MOST_FRAMES:
            self.films[episode].append(np.array(picture))


class Instead:
    """A module or an object with some attributes replaced."""

    def __init__(self, original, **replaced):
        self._original = original
        self.__dict__.update(replaced)

    def __getattr__(self, name):
        return getattr(self._original, name)


def render_pool(pool, recording, draw):
    """The pool, recording what `draw(i)` shows of each environment, every second step until its episode ends."""
    count = len(recording.films)
    going = np.ones(count, bool)
    steps = 0

    def step(action):
        nonlocal steps
        if steps % EVERY == 0:
            for i in np.flatnonzero(going):
                recording.add(i, draw(i))
        steps += 1
        results = pool.step(action)
        _, _, terminated, truncated, _ = results
        going[:] &= ~(terminated | truncated)[:count]
        return results

    recording.fps = pool.metadata.get("render_fps", 50) / EVERY
    return Instead(pool, step=step)


def frame_pool(pool, recording):
    """The pool, recording its frames, each four times as wide and high; for all ways to step it."""
    ended = set()

    def keep(obs, info, ends):
        for i, frame, end in zip(info["env_id"], obs[:, -1], ends, strict=True):
            if i not in ended:
                recording.add(i, frame.repeat(4, 0).repeat(4, 1))
            if end:
                ended.add(i)

    def reset(*given, **options):
        obs, info = pool.reset(*given, **options)
        keep(obs, info, np.zeros(len(obs), bool))
        return obs, info

    def step(*given):
        results = pool.step(*given)
        obs, _, terminated, truncated, info = results
        keep(obs, info, terminated | truncated)
        return results

    def recv():
        results = pool.recv()
        obs, _, terminated, truncated, info = results
        keep(obs, info, terminated | truncated)
        return results

    return Instead(pool, reset=reset, step=step, recv=recv)


def record_envpool(script, recording):
    """Lets the script make pools of EnvPool that record."""
    import envpool

    def make(env_id, *given, **options):
        if envpool.registration.registry.specs[env_id][0] == "envpool.atari":
            return frame_pool(envpool.make(env_id, *given, **options), recording)
        for library in Path(envpool.__file__).parents[1].glob("envpool.libs/libEGL*"):
            ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)  # it is loaded already, but not where MuJoCo looks for it
        picture = {"render_mode": "rgb_array", "render_width": WIDTH, "render_height": HEIGHT}
        try:
            pool = envpool.make(env_id, *given, **options | picture)
            # DeepMind Control's first camera follows the robot; Gym's tasks have a view of their own.
            camera = 0 if hasattr(pool.observation_space, "spaces") else None
            pool.reset()
            pool.render(0, camera)  # a first try, which says what is wrong
        except Exception as error:
            require(False, f"{env_id} cannot be filmed {NO_EGL}: {error}")
        pool = envpool.make(env_id, *given, **options | picture)
        return render_pool(pool, recording, lambda i: pool.render(i, camera)[0])

    script.envpool = Instead(envpool, make=make)


def record_gymnasium(script, recording):
    """Lets the script make pools of Gymnasium that record."""
    import gymnasium

    def make_vec(env_id, **options):
        try:
            pool = gymnasium.make_vec(env_id, **options, render_mode="rgb_array")
            pool.reset(seed=0)
            require(pool.envs[0].render() is not None, f"{env_id} cannot be filmed: it has no picture")
        except Exception as error:
            require(False, f"{env_id} cannot be filmed {NO_EGL}: {error}")
        return render_pool(pool, recording, lambda i: pool.envs[i].render())

    script.gymnasium = Instead(gymnasium, make_vec=make_vec)


def record_gymnax(script, recording):
    """Lets the script play its evaluation step by step, recording MinAtar's images."""
    colors = np.random.default_rng(7).integers(64, 256, (16, 3), np.uint8)  # one for each channel

    def picture(obs):
        obs = np.asarray(obs)
        require(obs.ndim == 3, "this task cannot be filmed: its observations are no images")
        return (obs[..., None] * colors[: obs.shape[-1]]).max(-2).repeat(16, 0).repeat(16, 1)

    @partial(jax.jit, static_argnums=0)
    def step(args, network, env, obs, key):
        key, act_key = jax.random.split(key)
        action = script.act(script.q_values(args, network, obs), act_key, args.eval_e)
        env, (_, reward, terminated, truncated, obs) = script.env_step(args, env, action)
        return env, obs, key, reward, terminated | truncated

    def play_episode(args, network, key, episode):
        reset_key, key = jax.random.split(key)
        env, obs = jax.jit(partial(script.env_reset, args))(reset_key)
        total = np.float32(0)
        for length in range(1, args.eval_steps + 1):
            recording.add(episode, picture(obs))
            env, obs, key, reward, done = step(args, network, env, obs, key)
            total += np.float32(reward)
            if done:
                break
        return total, length

    def play(args, networks, keys):  # of one seed; in the place of the script's
        network = jax.tree.map(lambda x: x[0], networks)
        played = [play_episode(args, network, key, episode) for episode, key in enumerate(keys[0])]
        returns, lengths = np.array(played, np.float32).T
        return returns[None], lengths[None]

    script.play = play


def record(script, recording):
    """Arranges that the script's `evaluate` records what it plays."""
    if hasattr(script, "gymnax"):
        record_gymnax(script, recording)
    if hasattr(script, "gymnasium"):
        record_gymnasium(script, recording)
    if hasattr(script, "envpool"):
        record_envpool(script, recording)


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
    learner = load_learner(script, played, checkpoint)
    recording = Recording(args.episodes)
    record(script, recording)
    row = script.evaluate(played, learner, [played.seed], step)
    path = Path(args.output) if args.output else folder / "videos" / f"step_{step:010d}.mp4"
    write_film(path, recording)
    returns = [f"{float(row[f'eval/episode_{i}'][0]):.9g}" for i in range(args.episodes)]
    print(f"{path}: step {step:,}, {'return' if len(returns) == 1 else 'returns'} {', '.join(returns)}")


if __name__ == "__main__":
    try:
        main(tyro.cli(Args))
    except OSError as error:  # a folder that cannot be made, a full disk
        require(False, f"cannot use {error.filename or 'an output'}: {error.strerror or error}")
