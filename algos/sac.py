"""Soft Actor-Critic with a replay ratio: `replay_ratio` gradient updates after every environment step.

Paper: Haarnoja et al. 2018, "Soft Actor-Critic Algorithms and Applications" (arXiv:1812.05905), with the settings of
D'Oro et al. 2023, "Sample-Efficient Reinforcement Learning by Breaking the Replay Ratio Barrier" (ICLR 2023).
Parent: none. This file is the root of the continuous-control scripts.

Run:    python algos/sac.py --env-id CheetahRun-v1 --replay-ratio 1 --num-seeds 5
Again:  the same command goes on where the run stood, to the same bits; a finished run is left alone.

Written for ONE seed: no function below `make_env` knows of a seed axis. `train` applies `jax.vmap` once.
"""

import csv
import difflib
import fcntl
import json
import math
import os
import platform
import shlex
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import partial
from importlib.metadata import version

import envpool
import flax
import flax.linen as nn
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jax.custom_batching import custom_vmap, sequential_vmap
from tensorboard.summary import Writer
from tqdm import tqdm


@dataclass(frozen=True)
class Args:
    env_id: str = "CheetahRun-v1"
    """id of an EnvPool task (DeepMind Control, Gym MuJoCo, ...) or of a registered Gymnasium task"""
    exp_name: str = os.path.basename(__file__)[: -len(".py")]
    """name of the experiment, part of the run's folder"""
    seed: int = 1
    """first seed; the run holds seeds `seed` to `seed + num_seeds - 1`"""
    num_seeds: int = 1
    """number of seeds trained side by side in one program, each a run of its own with its own folder"""
    total_timesteps: int = 500_000
    """environment steps per seed; may be raised later, and the run goes on"""
    replay_ratio: float = 1
    """gradient updates per environment step, per seed; may be a fraction: 0.25 is one update every 4 steps (code that counts
    sampled transitions per step, as BBF's does, states this times the batch size)"""
    learning_starts: int = 10_000
    """the environment step of the first update; before it actions are uniformly random"""
    buffer_size: int = 1_000_000
    """transitions the replay holds; after that the oldest is overwritten"""
    batch_size: int = 256
    """transitions per gradient update, drawn uniformly with replacement"""
    gamma: float = 0.99
    """discount factor"""
    tau: float = 0.005
    """step of the target critic's moving average, taken after every update"""
    learning_rate: float = 3e-4
    """Adam's step size, for actor, critic and temperature"""
    hidden_dim: int = 256
    """width of the two hidden layers of actor and critic"""
    init_temperature: float = 1.0
    """entropy temperature alpha before the first update"""
    entropy_per_dim: float = -0.5
    """target entropy per action dimension: -0.5 made the published SR-SAC curves, the SAC paper has -1"""
    log_interval: int = 1_000
    """environment steps between two rows of metrics.csv; each is a mean over the time since the last"""
    eval_interval: int = 5_000
    """environment steps between two evaluations, a multiple of log_interval; 0 never evaluates"""
    eval_episodes: int = 10
    """episodes of an evaluation, with the deterministic policy"""
    checkpoint_interval: int = 5_000
    """environment steps between two checkpoints, a multiple of log_interval; 0 saves only at the end or when interrupted"""
    runs_dir: str = "runs"
    """folder that holds the runs' folders"""
    overwrite: bool = False
    """start anew: what the folders of these runs hold is deleted"""
    evaluate: bool = False
    """evaluate the newest checkpoint of these runs, print the returns and change nothing"""


# ------------------------------------------------------------------------- networks


def orthogonal(gain):
    """Orthogonal initializer whose QR is never batched: jaxlib's batched QR can deadlock inside jit on few cores."""

    def init(key, shape, dtype=jnp.float32):
        return sequential_vmap(lambda key: nn.initializers.orthogonal(gain)(key, shape, dtype))(key)

    return init


def dense(features, gain=2**0.5):
    return nn.Dense(features, kernel_init=orthogonal(gain))


class Actor(nn.Module):
    action_dim: int
    hidden_dim: int

    @nn.compact
    def __call__(self, obs):  # (..., obs_dim) -> mean, log_std: (..., action_dim)
        x = nn.relu(dense(self.hidden_dim)(obs))
        x = nn.relu(dense(self.hidden_dim)(x))
        mean = dense(self.action_dim)(x)
        log_std = dense(self.action_dim, gain=1.0)(x)
        # Squashed into [-10, 2], not clipped: the standard deviation starts near 0.02 and always has a gradient.
        return mean, -10 + 6 * (1 + jnp.tanh(log_std))


class Critic(nn.Module):
    hidden_dim: int

    @nn.compact
    def __call__(self, obs, action):  # (..., obs_dim), (..., action_dim) -> (...,)
        x = jnp.concatenate([obs, action], -1)
        x = nn.relu(dense(self.hidden_dim)(x))
        x = nn.relu(dense(self.hidden_dim)(x))
        return dense(1)(x).squeeze(-1)


TwinCritic = nn.vmap(  # -> (2, ...)
    Critic, in_axes=None, out_axes=0, axis_size=2, variable_axes={"params": 0}, split_rngs={"params": True}
)


# ---------------------------------------------------------------------------- state


@flax.struct.dataclass
class Learner:
    """All that is learnt: parameters and the state of their optimizers."""

    actor: dict
    critic: dict
    target_critic: dict
    log_alpha: jax.Array
    actor_opt: optax.OptState
    critic_opt: optax.OptState
    alpha_opt: optax.OptState


@flax.struct.dataclass
class Transition:
    obs: jax.Array  # (obs_dim,)
    action: jax.Array  # (action_dim,), in [-1, 1]
    reward: jax.Array
    terminated: jax.Array  # 1.0 if the task ended here; a time limit is no end, the value goes on
    next_obs: jax.Array  # (obs_dim,)


@flax.struct.dataclass
class State:
    """Everything that changes while training."""

    step: jax.Array  # environment steps so far, the same for every seed
    env: jax.Array  # handle of the environments, shared by every seed
    key: jax.Array
    learner: Learner
    replay: Transition  # ring buffer, leaves (buffer_size, ...)
    stored: jax.Array  # transitions stored so far
    obs: jax.Array  # (obs_dim,)
    done: jax.Array  # the last step ended an episode: the next one only resets
    episode_return: jax.Array
    episode_length: jax.Array
    totals: dict  # sums since the last log, by tag


AXES = State(**{name: 0 for name in State.__dataclass_fields__} | {"step": None, "env": None})


# ---------------------------------------------------------------------- environment

# EnvPool fills the observations of a DMC domain up to one set of keys; these are not dm_control's for the task.
DMC_PADDING = {
    "HumanoidStand-v1": ("position",),
    "HumanoidWalk-v1": ("position",),
    "HumanoidRun-v1": ("position",),
    "QuadrupedWalk-v1": ("origin", "rangefinder", "ball_state", "target_position"),
    "QuadrupedRun-v1": ("origin", "rangefinder", "ball_state", "target_position"),
    "FingerSpin-v1": ("target_position", "dist_to_target"),
    "FishUpright-v1": ("target",),
}


def make_pool(env_id, seeds):
    """Environments stepped together, environment i seeded with seeds[i] -> pool, its action space, first observations."""
    if env_id in envpool.list_all_envs():
        pool = envpool.make(env_id, env_type="gymnasium", num_envs=len(seeds), env_seed=seeds)
        return pool, pool.action_space, flatten(env_id, pool.reset()[0])
    pool = gymnasium.make_vec(env_id, num_envs=len(seeds), vectorization_mode="sync")
    return pool, pool.single_action_space, flatten(env_id, pool.reset(seed=seeds)[0])


def flatten(env_id, obs, np=np):
    """Observations of n environments, an array or a dict of them -> (n, obs_dim) float32."""
    if isinstance(obs, dict):
        obs = [obs[name] for name in sorted(obs) if name not in DMC_PADDING.get(env_id, ())]
    return np.concatenate([x.reshape(len(x), -1) for x in jax.tree.leaves(obs)], -1).astype(np.float32)


def unscale(space, action):
    """Actions in [-1, 1], where the policy lives, to the bounds of the task."""
    return (space.low + (action + 1) * (space.high - space.low) / 2).astype(space.dtype)


def make_env(env_id, seeds):
    """One environment per seed, as a pure function of one seed's action.

    Returns: handle, first observations (num_seeds, obs_dim), action_dim, and
    `step(handle, action) -> handle, (obs, reward, terminated, truncated)`, to be used under `jax.vmap` with an unmapped
    handle. The step after an episode's end ignores its action and returns the next episode's first observation.
    """
    pool, space, obs = make_pool(env_id, seeds)
    if env_id in envpool.list_all_envs():
        with jax.enable_x64(True):  # outside of it, EnvPool's float64 buffers are described as float32
            handle, _, _, pool_step = pool.xla()

        def step_all(handle, action):
            with jax.enable_x64(True):  # EnvPool speaks float64; nothing else here does
                handle, (obs, reward, terminated, truncated, _) = pool_step(handle, unscale(space, action))
                return handle, (flatten(env_id, obs, jnp), reward.astype(jnp.float32), terminated, truncated)
    else:
        handle = jnp.zeros((), jnp.int32)  # nothing to hand on: the ordered callback below is the state

        def host_step(action):  # NumPy only: JAX inside a callback can hang
            obs, reward, terminated, truncated, _ = pool.step(unscale(space, np.asarray(action)))
            return flatten(env_id, obs), reward.astype(np.float32), terminated, truncated

        flag, out = jax.ShapeDtypeStruct((len(seeds),), bool), jax.ShapeDtypeStruct((len(seeds),), jnp.float32)
        shapes = (jax.ShapeDtypeStruct(obs.shape, obs.dtype), out, flag, flag)

        def step_all(handle, action):
            return handle, jax.experimental.io_callback(host_step, shapes, action, ordered=True)

    @custom_vmap
    def step(handle, action):
        handle, out = step_all(handle, action[None])
        return handle, jax.tree.map(lambda x: x[0], out)

    @step.def_vmap
    def _(axis_size, in_batched, handle, action):
        handle, out = step_all(handle, action)
        return (handle, out), (False, jax.tree.map(lambda _: True, out))

    return handle, obs, space.shape[0], step


# ----------------------------------------------------------------------------- agent


def optimizer(args):
    return optax.flatten(optax.adam(args.learning_rate))  # one vector: far fewer small kernels


def init_learner(args, key, obs, action):
    actor_key, critic_key = jax.random.split(key)
    actor = Actor(len(action), args.hidden_dim).init(actor_key, obs)
    critic = TwinCritic(args.hidden_dim).init(critic_key, obs, action)
    log_alpha = jnp.log(args.init_temperature)
    opt = optimizer(args)
    return Learner(
        actor, critic, critic, log_alpha, actor_opt=opt.init(actor), critic_opt=opt.init(critic), alpha_opt=opt.init(log_alpha)
    )


def sample_action(args, actor, obs, key, action_dim):
    """Draws from the tanh-squashed Gaussian -> action (..., action_dim), log-probability (...)  (paper, appendix C)."""
    mean, log_std = Actor(action_dim, args.hidden_dim).apply(actor, obs)
    noise = jax.random.normal(key, mean.shape)
    pre_tanh = mean + jnp.exp(log_std) * noise
    log_prob = -0.5 * noise**2 - log_std - 0.5 * jnp.log(2 * jnp.pi)
    log_prob -= 2 * (jnp.log(2.0) - pre_tanh - jax.nn.softplus(-2 * pre_tanh))  # log(1 - tanh(x)^2), stable for large |x|
    return jnp.tanh(pre_tanh), log_prob.sum(-1)


def greedy_action(args, actor, obs, action_dim):
    """The evaluation policy: the squashed mean."""
    return jnp.tanh(Actor(action_dim, args.hidden_dim).apply(actor, obs)[0])


def critic_loss(critic, args, learner, batch, key):
    """Squared soft Bellman error of both critics, summed (paper, equations 5 and 6, without the 1/2)."""
    next_action, next_log_prob = sample_action(args, learner.actor, batch.next_obs, key, batch.action.shape[-1])
    next_q = TwinCritic(args.hidden_dim).apply(learner.target_critic, batch.next_obs, next_action).min(0)
    next_value = next_q - jnp.exp(learner.log_alpha) * next_log_prob  # (batch,)
    target = batch.reward + args.gamma * (1 - batch.terminated) * next_value
    q = TwinCritic(args.hidden_dim).apply(critic, batch.obs, batch.action)  # (2, batch)
    loss = ((q - target) ** 2).mean(-1).sum()
    return loss, {"losses/qf_loss": loss, "losses/qf1_values": q[0].mean(), "losses/qf2_values": q[1].mean()}


def actor_loss(actor, args, critic, log_alpha, batch, key):
    """Soft value of the policy's own actions, negated (paper, equation 7)."""
    action, log_prob = sample_action(args, actor, batch.obs, key, batch.action.shape[-1])
    q = TwinCritic(args.hidden_dim).apply(critic, batch.obs, action).min(0)
    loss = (jnp.exp(log_alpha) * log_prob - q).mean()
    return loss, {"losses/actor_loss": loss, "losses/entropy": -log_prob.mean()}


def alpha_loss(log_alpha, args, entropy, action_dim):
    """Raises the temperature while the entropy is below its target (paper, equation 18)."""
    loss = jnp.exp(log_alpha) * (entropy - args.entropy_per_dim * action_dim)
    return loss, {"losses/alpha_loss": loss, "losses/alpha": jnp.exp(log_alpha)}


def update(args, learner, batch, key):
    """One gradient update of critic, target, actor and temperature, in this order; the actor sees the new critic."""
    opt = optimizer(args)
    critic_key, actor_key = jax.random.split(key)
    critic_grad, critic_info = jax.grad(critic_loss, has_aux=True)(learner.critic, args, learner, batch, critic_key)
    change, critic_opt = opt.update(critic_grad, learner.critic_opt)
    critic = optax.apply_updates(learner.critic, change)
    target_critic = optax.incremental_update(critic, learner.target_critic, args.tau)
    actor_grad, actor_info = jax.grad(actor_loss, has_aux=True)(
        learner.actor, args, critic, learner.log_alpha, batch, actor_key
    )
    change, actor_opt = opt.update(actor_grad, learner.actor_opt)
    actor = optax.apply_updates(learner.actor, change)
    alpha_grad, alpha_info = jax.grad(alpha_loss, has_aux=True)(
        learner.log_alpha, args, actor_info["losses/entropy"], batch.action.shape[-1]
    )
    change, alpha_opt = opt.update(alpha_grad, learner.alpha_opt)
    log_alpha = optax.apply_updates(learner.log_alpha, change)
    norms = {"losses/critic_grad_norm": norm(critic_grad), "losses/actor_grad_norm": norm(actor_grad)}
    learner = Learner(actor, critic, target_critic, log_alpha, actor_opt, critic_opt, alpha_opt)
    return learner, critic_info | actor_info | alpha_info | norms


def norm(tree):
    return jnp.sqrt(sum(jnp.vdot(x, x) for x in jax.tree.leaves(tree)))


# -------------------------------------------------------------------------- training


def updates_by(args, step):
    """floor(step * replay_ratio): what belongs to the first `step` steps, the ratio as an exact fraction, in integers."""
    n, d = Fraction(str(args.replay_ratio)).as_integer_ratio()
    return step // d * n + step % d * n // d


def sample(args, replay, stored, key):
    index = jax.random.randint(key, (args.batch_size,), 0, jnp.minimum(stored, args.buffer_size))
    return jax.tree.map(lambda ring: ring[index], replay)


def train_step(args, env_step, state, _):
    """One environment step, then the updates that are due."""
    key, act_key, random_key, update_key = jax.random.split(state.key, 4)
    step = state.step + 1
    learning = step >= args.learning_starts
    action_dim = state.replay.action.shape[-1]
    action, _ = sample_action(args, state.learner.actor, state.obs, act_key, action_dim)
    action = jnp.where(learning, action, jax.random.uniform(random_key, (action_dim,), minval=-1, maxval=1))
    env, (next_obs, reward, terminated, truncated) = env_step(state.env, action)

    row = Transition(state.obs, action, reward, terminated.astype(jnp.float32), next_obs)
    index = jnp.where(state.done, args.buffer_size, state.stored % args.buffer_size)  # a row that only resets is dropped
    replay = jax.tree.map(lambda ring, x: ring.at[index].set(x, mode="drop"), state.replay, row)
    stored = state.stored + ~state.done

    def one_update(i, carry):
        learner, totals = carry
        sample_key, key = jax.random.split(jax.random.fold_in(update_key, i))
        learner, info = update(args, learner, sample(args, replay, stored, sample_key), key)
        return learner, totals | {tag: totals[tag] + x for tag, x in info.items()} | {"updates": totals["updates"] + 1}

    # A loop with a counted trip and not an unrolled one, also for speed: otherwise XLA fuses the write above into the reads
    # and copies the whole replay at every step.
    due = jnp.where(learning, updates_by(args, step) - updates_by(args, step - 1), 0)
    learner, totals = jax.lax.fori_loop(0, due, one_update, (state.learner, state.totals))

    done = terminated | truncated
    episode_return = jnp.where(state.done, 0.0, state.episode_return + reward)
    episode_length = jnp.where(state.done, 0, state.episode_length + 1)
    ended = {"episodes": 1.0, "charts/episodic_return": episode_return, "charts/episodic_length": episode_length}
    totals = totals | {tag: totals[tag] + jnp.where(done, x, 0.0) for tag, x in ended.items()}
    finite = jnp.isfinite(jnp.stack(jax.tree.leaves(totals))).all()
    state = State(step, env, key, learner, replay, stored, next_obs, done, episode_return, episode_length, totals)
    return state, (action, finite)


def train_chunk(args, env_step, length, state):
    """`length` steps -> state, actions (length, action_dim), whether all numbers were finite (length,)."""
    state, (actions, finite) = jax.lax.scan(partial(train_step, args, env_step), state, None, length)
    return state, actions, finite


def init_state(args, action_dim, env, seed, obs):
    key, learner_key = jax.random.split(jax.random.key(seed))
    action, zero = jnp.zeros(action_dim), jnp.zeros(())
    learner = init_learner(args, learner_key, obs, action)
    row = Transition(obs, action, zero, zero, obs)
    replay = jax.tree.map(lambda x: jnp.zeros((args.buffer_size, *x.shape)), row)
    batch = jax.tree.map(lambda x: jnp.zeros((args.batch_size, *x.shape)), row)
    tags = jax.eval_shape(partial(update, args), learner, batch, key)[1]
    totals = {tag: zero for tag in (*tags, "updates", "episodes", "charts/episodic_return", "charts/episodic_length")}
    count = jnp.zeros((), jnp.int32)
    return State(count, env, key, learner, replay, count, obs, jnp.zeros((), bool), zero, count, totals)


def counters(args, step):
    """What follows from the step alone: logged, never stored."""
    return {"charts/updates": max(0, updates_by(args, step) - updates_by(args, args.learning_starts - 1))}


def metrics(args, state):
    """The rows of metrics.csv: one dict per seed, tag -> mean since the last log. What does not exist yet is absent."""
    totals, stored, norms = jax.device_get((state.totals, state.stored, jax.vmap(parameter_norms)(state.learner)))
    rows = []
    for i in range(len(stored)):
        sums = {tag: float(x[i]) for tag, x in totals.items()}
        counts = {"charts": sums.pop("episodes"), "losses": sums.pop("updates")}
        row = {tag: x / counts[tag.split("/")[0]] for tag, x in sums.items() if counts[tag.split("/")[0]]}
        row |= {tag: float(x[i]) for tag, x in norms.items()} | counters(args, int(state.step))
        rows.append(row | {"charts/stored_transitions": int(stored[i])})
    return rows


def parameter_norms(learner):
    return {"losses/actor_norm": norm(learner.actor), "losses/critic_norm": norm(learner.critic)}


def evaluate(args, actors, seeds, step):
    """Plays `eval_episodes` episodes per seed with the deterministic policy -> returns, lengths: (num_seeds, eval_episodes).

    A fresh pool each time, seeded by training seed and step: it can be repeated exactly, and seeds share no noise.
    """
    draw = lambda seed: jax.random.randint(
        jax.random.fold_in(jax.random.key(seed), step), (args.eval_episodes,), 0, 2**31 - 1
    )
    pool, space, obs = make_pool(args.env_id, [int(x) for seed in seeds for x in draw(seed)])
    shape = (len(seeds), args.eval_episodes)
    returns, lengths, done = np.zeros(shape), np.zeros(shape, int), np.zeros(shape, bool)
    while not done.all():
        action = greedy_actions(args, actors, obs.reshape(*shape, -1), space.shape[0])
        action = unscale(space, np.asarray(action).reshape(-1, space.shape[0]))
        obs, reward, terminated, truncated, _ = pool.step(action)
        obs = flatten(args.env_id, obs)
        returns += ~done * reward.reshape(shape)
        lengths += ~done
        done |= (terminated | truncated).reshape(shape)
    pool.close()
    return returns, lengths


@partial(jax.jit, static_argnums=(0, 3))
def greedy_actions(args, actors, obs, action_dim):  # obs: (num_seeds, episodes, obs_dim)
    return jax.vmap(lambda actor, obs: greedy_action(args, actor, obs, action_dim))(actors, obs)


# ------------------------------------------------------------------------- run folders

# Not part of a run's identity: these may differ when it goes on.
FREE_ARGS = ("num_seeds", "total_timesteps", "checkpoint_interval", "runs_dir", "overwrite", "evaluate")


@dataclass
class Run:
    """The open folder of one seed. The lock on it goes with the process, however that ends."""

    folder: str
    lock: int
    info: dict  # what run.json holds
    metrics: object = None  # metrics.csv, open
    actions: object = None  # actions.f32, open: every action taken, (steps, action_dim) float32, to rebuild the environment
    writer: Writer = None

    def log(self, step, row):
        for tag, value in row.items():
            self.metrics.write(f"{step},{tag},{value:.9g}\n".encode())
            self.writer.add_scalar(tag, value, step)
        self.metrics.flush()


def fail(message):
    """Ends the program over something that its user can mend."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    sys.exit(2)


def write_file(path, write):
    """Writes a file beside the old one and renames it: at every moment the path holds the old or the new, whole."""
    try:
        with open(path + ".tmp", "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(path + ".tmp", path)
    except OSError:
        if os.path.exists(path + ".tmp"):
            os.remove(path + ".tmp")
        raise


def write_json(path, data):
    write_file(path, lambda file: file.write(json.dumps(data, indent=1).encode() + b"\n"))


def read_json(path):
    with open(path) as file:
        return json.load(file)


def run_folder(args, seed):
    ratio = repr(float(args.replay_ratio)).removesuffix(".0")
    return os.path.join(args.runs_dir, f"{args.env_id}__{args.exp_name}__rr{ratio}__{seed}".replace("/", "-"))


def identity(args, seed):
    return {name: value for name, value in asdict(args).items() if name not in FREE_ARGS} | {"seed": seed}


def checkpoints(folder):
    """Steps of the checkpoints in a run's folder, newest first."""
    names = [name for name in os.listdir(folder) if name.startswith("checkpoint_") and name.endswith(".npz")]
    return sorted((int(name[len("checkpoint_") : -len(".npz")]) for name in names), reverse=True)


def checkpoint_path(folder, step):
    return os.path.join(folder, f"checkpoint_{step:010d}.npz")


def open_run(args, seed):
    """Locks the folder of a run, new or old; an error if it is another run's, or another process works in it."""
    folder = run_folder(args, seed)
    try:
        os.makedirs(folder, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        fail(f"another process is working in {folder}; wait for it or stop it")
    except OSError as error:
        fail(f"cannot use the folder {folder}: {error.strerror}; choose another with --runs-dir")
    if args.overwrite:
        for name in os.listdir(folder):
            os.remove(os.path.join(folder, name))
    info = read_json(f"{folder}/run.json") if os.path.exists(f"{folder}/run.json") else {"starts": []}
    return Run(folder, lock, info)


def check_folder(args, seed):
    """An error if the folder that a run is about to use holds something else. Changes nothing."""
    folder = run_folder(args, seed)
    names = [name for name in (os.listdir(folder) if os.path.isdir(folder) else []) if not name.endswith(".tmp")]
    if names and "args.json" not in names:
        fail(f"{folder} holds something that is no run; move it away or choose another --runs-dir")
    if names and not args.overwrite:
        before, now = read_json(f"{folder}/args.json"), identity(args, seed)
        changed = [
            f"--{name.replace('_', '-')} {before.get(name)} there, {now.get(name)} now"
            for name in sorted(before.keys() | now.keys())
            if before.get(name) != now.get(name)
        ]
        if changed:
            fail(f"{folder} holds a run with other arguments ({'; '.join(changed)}); give it another --exp-name or --overwrite")
    return folder


def hardware():
    """What a result depends on: recorded in run.json with every start."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    single = "xla_cpu_multi_thread_eigen=false" in os.environ.get("XLA_FLAGS", "")
    cpu = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            cpu = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), cpu)
    device = jax.devices()[0]
    return {"device": device.device_kind if device.platform != "cpu" else cpu, "cores": cores, "threads": 1 if single else cores}


def commit():
    """Git commit of this script, with a + if it was changed since; None outside a repository."""
    git = ["git", "-C", os.path.dirname(os.path.abspath(__file__))]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "-uno", __file__], capture_output=True, text=True).stdout
        return head + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def save(args, runs, state):
    """Writes a checkpoint of every seed, then removes all but the two newest: at any moment all seeds share a whole one."""
    step = int(state.step)
    shared = jax.tree_util.tree_leaves_with_path(state.replace(env=None, key=jax.random.key_data(state.key)))
    leaves = {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(x) for path, x in shared}
    for i, run in enumerate(runs):
        for file in (run.metrics, run.actions):
            file.flush()
            os.fsync(file.fileno())
        own = {name: x[i] if x.ndim else x for name, x in leaves.items()}
        filled = min(int(own["stored"]), args.buffer_size)
        own = {name: x[:filled] if name.startswith("replay/") else x for name, x in own.items()}
        own["metrics_bytes"] = np.asarray(run.metrics.tell())
        write_file(checkpoint_path(run.folder, step), lambda file, own=own: np.savez(file, **own))
        run.info["starts"][-1] |= {"to_step": step, "wall_s": round(time.time() - run.info["starts"][-1]["time"], 1)}
        write_json(f"{run.folder}/run.json", run.info)
    for run in runs:
        for old in checkpoints(run.folder)[2:]:
            os.remove(checkpoint_path(run.folder, old))


def load(folder, step):
    """Arrays of a checkpoint by name. Raises if the file is cut short or altered (a checksum covers every array)."""
    with np.load(checkpoint_path(folder, step)) as file:
        return {name: file[name] for name in file.files}


def newest(folders):
    """The newest step that all folders hold a readable checkpoint of, and those checkpoints; (0, None) if none has any."""
    common = sorted(set.intersection(*(set(checkpoints(folder)) for folder in folders)), reverse=True)
    for step in common:
        try:
            return step, [load(folder, step) for folder in folders]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zipfile.zlib.error) as error:
            print(f"the checkpoint of step {step} is damaged ({error}): taking the one before", file=sys.stderr)
    if common:
        fail(f"no readable checkpoint is left in {folders[0]}; --overwrite starts anew")
    return 0, None


def restore(tree, saved, prefix=""):
    """Fills a tree of arrays (or of their shapes) of all seeds, without `env` and with plain keys, from their checkpoints."""

    def leaf(path, x):
        name = prefix + jax.tree_util.keystr(path, simple=True, separator="/")
        if not x.ndim:  # shared by all seeds
            return jnp.array(saved[0][name])
        rows = np.zeros(x.shape, x.dtype)
        for row, own in zip(rows if x.ndim > 1 else rows.reshape(-1, 1), saved, strict=True):
            row[: own[name].size if x.ndim == 1 else len(own[name])] = own[name]  # of a ring only the filled part was saved
        return jnp.array(rows)

    return jax.tree_util.tree_map_with_path(leaf, tree)


def cut_back(run, step, saved, action_dim):
    """Opens the files of a run as they were at its checkpoint: what a killed run wrote after that is cut off."""
    metrics_bytes = int(saved["metrics_bytes"]) if saved else 0
    for name in os.listdir(run.folder):
        if name.endswith(".tmp") or name.startswith("events.out") or name == "done":
            os.remove(os.path.join(run.folder, name))
    for newer in (old for old in checkpoints(run.folder) if old > step):
        os.remove(checkpoint_path(run.folder, newer))
    run.metrics, run.actions = open(f"{run.folder}/metrics.csv", "ab"), open(f"{run.folder}/actions.f32", "ab")
    for file, size in ((run.metrics, metrics_bytes), (run.actions, 4 * step * action_dim)):
        if file.tell() < size:
            fail(f"{file.name} is shorter than its checkpoint says; --overwrite starts anew")
        file.truncate(size)
    if not metrics_bytes:
        run.metrics.write(b"step,tag,value\n")
    run.metrics.flush()
    run.writer = Writer(run.folder)  # TensorBoard's events are a copy of metrics.csv
    with open(run.metrics.name) as file:
        for at, tag, value in list(csv.reader(file))[1:]:
            run.writer.add_scalar(tag, float(value), int(at))


def rebuild_env(env_step, carry, actions):
    """Steps fresh environments through the recorded actions (steps, num_seeds, action_dim), since EnvPool cannot save its
    state. `carry` and the result are handle, observations."""

    def advance(carry, action):
        handle, (obs, *_) = jax.vmap(env_step, in_axes=(None, 0), out_axes=(None, 0))(carry[0], action)
        return (handle, obs), None

    scan = jax.jit(lambda carry, actions: jax.lax.scan(advance, carry, actions)[0])
    for start in tqdm(range(0, len(actions), 1000), "rebuilding the environment", unit="k steps", disable=None, leave=False):
        carry = jax.block_until_ready(scan(carry, actions[start : start + 1000]))
    return carry


# ------------------------------------------------------------------------------ main


def check(args):
    """One clear line for arguments that cannot work, before anything is written."""
    for name in ("num_seeds", "total_timesteps", "buffer_size", "batch_size", "hidden_dim", "log_interval", "eval_episodes"):
        if getattr(args, name) < 1:
            fail(f"--{name.replace('_', '-')} must be at least 1, not {getattr(args, name)}")
    for name in ("learning_rate", "init_temperature", "replay_ratio"):
        if not 0 < getattr(args, name) < math.inf:
            fail(f"--{name.replace('_', '-')} must be above 0, not {getattr(args, name)}")
    for name in ("gamma", "tau"):
        if not 0 <= getattr(args, name) <= 1:
            fail(f"--{name} must lie between 0 and 1, not {getattr(args, name)}")
    n, d = Fraction(str(args.replay_ratio)).as_integer_ratio()
    if max(n * d, args.total_timesteps * n / d) >= 2**31:
        fail(f"--replay-ratio {args.replay_ratio} over {args.total_timesteps} steps does not fit 32 bits; take a rounder ratio")
    if args.seed < 0 or args.seed + args.num_seeds > 2**31:
        fail(f"--seed must lie between 0 and 2^31 - num_seeds, not {args.seed}")
    for name in ("eval_interval", "checkpoint_interval"):
        if getattr(args, name) < 0 or getattr(args, name) % args.log_interval:
            fail(f"--{name.replace('_', '-')} {getattr(args, name)} is no multiple of --log-interval {args.log_interval}")
    if not 1 <= args.learning_starts <= args.total_timesteps:
        fail(f"--learning-starts {args.learning_starts} must lie between 1 and --total-timesteps {args.total_timesteps}")
    if args.batch_size > min(args.buffer_size, args.learning_starts):
        fail(
            f"--batch-size {args.batch_size} is more than what is stored when learning starts, "
            f"{min(args.buffer_size, args.learning_starts)}; raise --learning-starts or --buffer-size"
        )


def check_env(args):
    """An error for a task that is not there or is none of SAC's -> obs_dim, action_dim."""
    known = [*envpool.list_all_envs(), *gymnasium.registry]
    module, _, name = args.env_id.rpartition(":")
    if not module and name not in known:
        close = difflib.get_close_matches(name, known, 4, 0.5)
        hint = f"did you mean {', '.join(close)}?" if close else "envpool.list_all_envs() lists the tasks"
        fail(f"no task is called {name!r}; {hint}")
    try:
        pool, space, obs = make_pool(args.env_id, [args.seed])
    except (gymnasium.error.Error, ImportError) as error:
        fail(f"{args.env_id} cannot be made: {error}")
    pool.close()
    if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1:
        fail(f"{args.env_id} has the action space {space}; SAC needs continuous actions (a Box of one dimension)")
    if not np.isfinite([space.low, space.high]).all():
        fail(f"{args.env_id} has unbounded actions; SAC's lie within bounds, so wrap the task to give it some")
    return obs.shape[1], space.shape[0]


def check_memory(args, obs_dim, action_dim):
    needed = 4 * (2 * obs_dim + action_dim + 2) * args.buffer_size * args.num_seeds
    device = jax.devices()[0]
    if device.platform != "cpu":
        free = device.memory_stats()["bytes_limit"]
    else:
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > 0.9 * free:
        fail(
            f"the replay needs {needed / 2**30:.1f} GiB ({args.num_seeds} seeds x {args.buffer_size} transitions), "
            f"and this machine has {free / 2**30:.1f}; lower --buffer-size or --num-seeds"
        )


def show_evaluation(args, seeds, obs_dim, action_dim):
    """What --evaluate does: plays the newest checkpoints and prints the returns."""
    by_step = {}
    for seed in seeds:
        folder = check_folder(args, seed)
        step, saved = newest([folder]) if os.path.isdir(folder) else (0, None)
        if saved is None:
            fail(f"{folder} holds no checkpoint; run this command without --evaluate first")
        by_step.setdefault(step, {})[seed] = saved
    for step, saved in by_step.items():
        init = jax.vmap(lambda key: init_learner(args, key, jnp.zeros(obs_dim), jnp.zeros(action_dim)).actor)
        actors = jax.eval_shape(init, jax.random.split(jax.random.key(0), len(saved)))
        actors = restore(actors, list(saved.values()), "learner/actor/")
        for seed, returns in zip(saved, evaluate(args, actors, list(saved), step)[0], strict=True):
            each = " ".join(f"{x:.1f}" for x in returns)
            print(f"seed {seed}, step {step}: return {returns.mean():.1f} over {len(returns)} episodes ({each})")


def train(args, runs, seeds, action_dim, stop):
    """Trains the seeds side by side to the end, or until `stop` holds a signal."""
    env, obs, _, env_step = make_env(args.env_id, seeds)
    init = jax.vmap(partial(init_state, args, action_dim), in_axes=(None, 0, 0), out_axes=AXES)
    state = jax.jit(init)(env, jnp.array(seeds), obs)
    step, saved = newest([run.folder for run in runs])
    for i, run in enumerate(runs):
        cut_back(run, step, saved and saved[i], action_dim)
        start = {"command": shlex.join(sys.argv), "commit": commit(), "seeds": seeds, "from_step": step, "time": time.time()}
        libraries = ("jax", "jaxlib", "flax", "optax", "envpool", "gymnasium", "numpy")
        start |= {"versions": {"python": platform.python_version()} | {name: version(name) for name in libraries}}
        start |= hardware()
        if saved and run.info["starts"] and any(run.info["starts"][-1][k] != start[k] for k in ("seeds", "device", "threads")):
            print(f"{run.folder} goes on beside other seeds or on other hardware: the same run only up to rounding")
        run.info["starts"].append(start)
        write_json(f"{run.folder}/run.json", run.info)
        write_json(f"{run.folder}/args.json", identity(args, seeds[i]) | {"total_timesteps": args.total_timesteps})
    if saved:
        print(f"going on at step {step:,} of {args.total_timesteps:,}", flush=True)
        plain = state.replace(env=None, key=jax.random.key_data(state.key))
        plain = restore(plain, saved)
        actions = [np.fromfile(run.actions.name, np.float32).reshape(step, action_dim) for run in runs]
        env, obs = rebuild_env(env_step, (state.env, jnp.array(obs)), np.stack(actions, 1))
        if not np.array_equal(obs, plain.obs):
            fail(
                f"{args.env_id} does not come back to its saved observation when its actions are replayed (it may draw from a "
                f"clock or a generator of its own), so this run cannot go on exactly; --overwrite starts anew"
            )
        state = plain.replace(env=env, key=jax.random.wrap_key_data(plain.key))

    @partial(jax.jit, static_argnums=0, donate_argnums=1)
    def chunk(length, state):
        return jax.vmap(partial(train_chunk, args, env_step, length), in_axes=(AXES,), out_axes=(AXES, 0, 0))(state)

    # About 1,000 seed-updates a call, a few seconds on a CPU: signals, the bar and preemption are served between calls.
    at_most = max(1, 1000 / (args.replay_ratio * args.num_seeds))
    size = max(n for n in range(1, args.log_interval + 1) if args.log_interval % n == 0 and n <= at_most)
    bar = tqdm(total=args.total_timesteps, initial=step, unit="step", disable=None, smoothing=0.05)
    took, since, shown = 0.0, step, {}
    while step < args.total_timesteps and not stop:
        length = min(size - step % size, args.total_timesteps - step)
        start = time.perf_counter()
        state, actions, finite = chunk(length, state)
        actions, finite = np.asarray(actions), np.asarray(finite)
        took += time.perf_counter() - start
        if not finite.all():
            seed, late = min(zip(*np.nonzero(~finite), strict=True), key=lambda at: at[1])
            fail(
                f"a loss of seed {seeds[seed]} became infinite or NaN in step {step + late + 1}; the checkpoint of step "
                f"{max(checkpoints(runs[seed].folder), default=0)} is kept in {runs[seed].folder}"
            )
        step += length
        bar.update(length)
        try:
            for run, own in zip(runs, actions, strict=True):
                run.actions.write(own.tobytes())
            if step % args.log_interval == 0:
                rows = metrics(args, state)
                if args.eval_interval and step % args.eval_interval == 0:
                    returns, lengths = evaluate(args, state.learner.actor, seeds, step)
                    for row, own, steps in zip(rows, returns, lengths, strict=True):
                        row |= {"eval/episodic_return": own.mean(), "eval/episodic_length": steps.mean()}
                        row |= {f"eval/episode_{k}": x for k, x in enumerate(own)}
                for run, row in zip(runs, rows, strict=True):
                    run.log(step, row | {"charts/SPS": (step - since) / took})
                shown |= {tag: np.mean([row[tag] for row in rows]) for tag in rows[0] if tag.endswith("episodic_return")}
                bar.set_postfix({tag.replace("charts/episodic_", ""): f"{x:.1f}" for tag, x in shown.items()})
                took, since = 0.0, step
                state = state.replace(totals=jax.tree.map(jnp.zeros_like, state.totals))
            if stop or step == args.total_timesteps or args.checkpoint_interval and step % args.checkpoint_interval == 0:
                save(args, runs, state)
        except OSError as error:
            kept = [max(checkpoints(run.folder), default=0) for run in runs]
            fail(f"cannot write to {args.runs_dir}: {error.strerror}; the checkpoint of step {min(kept)} is kept, and the same "
                 f"command goes on from it")
    bar.close()
    jax.block_until_ready(state)  # the pool must outlive what steps it
    for run in runs:
        run.writer.close()
        if not stop:
            write_file(f"{run.folder}/done", lambda file: file.write(f"{step}\n".encode()))
    if stop:
        print(f"stopped at step {step:,} and saved; the same command goes on from there", flush=True)
        sys.exit(128 + stop[0])


def main(args: Args):
    check(args)
    obs_dim, action_dim = check_env(args)
    check_memory(args, obs_dim, action_dim)
    seeds = range(args.seed, args.seed + args.num_seeds)
    if args.evaluate:
        return show_evaluation(args, seeds, obs_dim, action_dim)
    for seed in seeds:
        check_folder(args, seed)
    runs = {seed: open_run(args, seed) for seed in seeds}

    stop = []  # signals received: the chunk under way ends, then the run is saved
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: stop.append(number))

    # Seeds that stand at the same place go on side by side as they ran before, to the same bits; others one group after another.
    groups = {}
    for seed, run in runs.items():
        done = f"{run.folder}/done"
        if os.path.exists(done) and read_json(done) >= args.total_timesteps:
            print(f"{run.folder} is finished ({read_json(done):,} steps); --total-timesteps can be raised")
            continue
        beside = tuple(run.info["starts"][-1]["seeds"]) if run.info["starts"] else ()
        groups.setdefault(beside, []).append(seed)
    for beside in [beside for beside in groups if not any(checkpoints(runs[seed].folder) for seed in groups[beside])]:
        groups["new"] = groups.get("new", []) + groups.pop(beside)
    for group in groups.values():
        train(args, [runs[seed] for seed in group], group, action_dim, stop)
        for seed in group:
            print(f"seed {seed}: {args.total_timesteps:,} steps done, results in {runs[seed].folder}", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Args))
