"""Soft Actor-Critic with a replay ratio: `replay_ratio` gradient updates after every environment step.

Paper:   Haarnoja et al. 2018, "Soft Actor-Critic Algorithms and Applications" (arXiv:1812.05905), set up as in D'Oro et
         al. 2023, "Sample-Efficient Reinforcement Learning by Breaking the Replay Ratio Barrier" (ICLR 2023).
Run:     python algos/sac.py --env-id CheetahRun-v1 --replay-ratio 8 --num-seeds 5
         The same command continues an interrupted run, to the same bits.
Expect:  at ratio 8, a return of 194 +- 56 at step 50,000 (5 seeds; 20 minutes each on one CPU core).
"""

import concurrent.futures
import contextlib
import ctypes
import dataclasses
import difflib
import fcntl
import fractions
import importlib.metadata
import json
import math
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import envpool
import flax
import flax.linen as nn
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tensorboard.summary
import tqdm
import tyro
from jax.custom_batching import custom_vmap, sequential_vmap
from jax.experimental import io_callback


@dataclasses.dataclass(frozen=True)
class Args:
    # Task
    env_id: str = "CheetahRun-v1"  # task of EnvPool (DeepMind Control, Gym MuJoCo) or Gymnasium (`module:Task-v0`)
    seed: int = 1  # first seed; the command trains seeds `seed` to `seed + num_seeds - 1`
    num_seeds: int = 1  # seeds trained side by side in one program, each in its own folder
    total_timesteps: int = 500_000  # environment steps per seed; may be raised to continue a finished run

    # Algorithm
    replay_ratio: float = 1  # gradient updates per environment step; may be a fraction
    learning_starts: int = 10_000  # environment step of the first update; until then, actions are uniformly random
    buffer_size: int = 1_000_000  # capacity of the replay buffer, in transitions
    batch_size: int = 256  # transitions per update, sampled uniformly with replacement
    gamma: float = 0.99  # discount factor
    tau: float = 0.005  # step size of the target critic's moving average
    learning_rate: float = 3e-4  # of Adam, for actor, critic and temperature
    hidden_dim: int = 256  # width of the two hidden layers of actor and critic

    # Evaluation and logging
    log_interval: int = 1_000  # environment steps between two logs
    eval_interval: int = 5_000  # environment steps between two evaluations, a multiple of log_interval; 0: none
    eval_episodes: int = 10  # episodes per evaluation, with the deterministic policy

    # Run folder
    exp_name: str = Path(__file__).stem  # part of the folder's name
    runs_dir: str = "runs"  # parent of all run folders
    checkpoint_interval: int = 5_000  # environment steps between two checkpoints; 0 saves at the end only
    resume: Literal["exact", "fresh"] = "exact"  # exact replays the recorded actions; fresh begins new episodes instead
    overwrite: bool = False  # discard what this run has saved and start from scratch
    evaluate: bool = False  # evaluate the newest checkpoint, print the returns and exit


PACKAGES = ("envpool", "flax", "gymnasium", "jax", "jaxlib", "numpy", "optax")  # whose versions run.json holds
RUN_NAME = "{env_id}__{exp_name}__rr{replay_ratio:g}"  # of a run's folder; the seed is appended
MAY_BE_ZERO = ("gamma",)  # the other numbers are positive
AT_MOST_ONE = ("gamma", "tau")


def require(condition, message):
    """Ends the program with one line and exit code 2 unless the condition holds: for errors that the user can fix."""
    if not condition:
        print(f"error: {message}", file=sys.stderr, flush=True)
        sys.exit(2)


def check(args):
    """Refuses arguments out of range, before anything is written."""
    may_be_zero = ("seed", "eval_interval", "checkpoint_interval", *MAY_BE_ZERO)
    for name, value in dataclasses.asdict(args).items():
        smallest = 0 if name in may_be_zero else 1e-9
        largest = 1 if name in AT_MOST_ONE else 2**31 - args.num_seeds
        fits = isinstance(value, str | bool | None) or smallest <= value <= largest
        require(fits, f"--{name.replace('_', '-')} cannot be {value}")
    uneven = args.eval_interval % args.log_interval or args.checkpoint_interval % args.log_interval
    require(not uneven, "--eval-interval and --checkpoint-interval must be multiples of --log-interval")
    check_algorithm(args)


def check_memory(state):
    """Refuses a state, given by its shapes, that is larger than the memory of the device."""
    leaves = jax.tree.leaves(state)
    needed = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves) / 1e9
    device_stats = jax.devices()[0].memory_stats() or {}
    host_memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    memory = device_stats.get("bytes_limit", host_memory) / 1e9
    require(needed < memory, f"training needs {needed:.1f} GB of {memory:.1f}; use fewer seeds or a smaller replay")


def check_algorithm(args):
    numerator, denominator = fractions.Fraction(str(args.replay_ratio)).as_integer_ratio()
    require(numerator * denominator < 2**31, "--replay-ratio has too many digits")
    require(args.total_timesteps * args.replay_ratio < 2**31, "--replay-ratio makes 2^31 updates or more")
    require(args.learning_starts <= args.total_timesteps, "--learning-starts lies after the end, --total-timesteps")
    enough = args.batch_size <= min(args.buffer_size, args.learning_starts)
    require(enough, f"--batch-size {args.batch_size} is more than what is stored when learning starts")


# ======================================================================================================================
# ALGORITHM: everything here is written for one seed; train_chunk vmaps it.
# ======================================================================================================================

# ----------------------------------------------------------------------------------------------------------- Networks

LOG_STD_MIN = -10.0
LOG_STD_MAX = 2.0


def dense(features, gain=2**0.5):
    """A dense layer with orthogonal initialization, one seed after another: jaxlib's batched QR can hang inside jit."""
    orthogonal = nn.initializers.orthogonal(gain)

    def kernel_init(key, shape, dtype):
        return sequential_vmap(lambda key: orthogonal(key, shape, dtype))(key)

    return nn.Dense(features, kernel_init=kernel_init)


class Actor(nn.Module):
    action_dim: int
    hidden_dim: int

    @nn.compact
    def __call__(self, obs):  # (..., obs_dim) -> mean, log_std: (..., action_dim)
        x = nn.relu(dense(self.hidden_dim)(obs))
        x = nn.relu(dense(self.hidden_dim)(x))
        mean = dense(self.action_dim)(x)
        log_std = dense(self.action_dim, gain=1.0)(x)
        # Squashed rather than clipped: the gradient fades near the bounds but never vanishes.
        log_std = LOG_STD_MIN + 0.5 * (LOG_STD_MAX - LOG_STD_MIN) * (1 + jnp.tanh(log_std))
        return mean, log_std


class Critic(nn.Module):
    hidden_dim: int

    @nn.compact
    def __call__(self, obs, action):  # (..., obs_dim), (..., action_dim) -> (...,)
        x = jnp.concatenate([obs, action], axis=-1)
        x = nn.relu(dense(self.hidden_dim)(x))
        x = nn.relu(dense(self.hidden_dim)(x))
        return dense(1)(x).squeeze(-1)


TwinCritic = nn.vmap(Critic, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=None, axis_size=2)

# -------------------------------------------------------------------------------------------------------------- State


@flax.struct.dataclass
class Learner:  # everything that is learned
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
    terminated: jax.Array  # 1.0 if the task ended here; 0.0 after a time limit, where the target still bootstraps
    next_obs: jax.Array  # (obs_dim,)


@flax.struct.dataclass
class State:  # everything that changes during training; a checkpoint is exactly this
    step: jax.Array  # environment steps so far, the same for all seeds
    env: jax.Array  # handle of the environments, shared by all seeds
    key: jax.Array
    learner: Learner
    replay: Transition  # ring buffer: leaves (buffer_size, ...)
    stored: jax.Array  # transitions stored so far
    obs: jax.Array  # (obs_dim,)
    done: jax.Array  # the last step ended an episode, so the next one only resets the environment
    episode_return: jax.Array
    episode_length: jax.Array
    metric_sums: dict  # sums since the last log, by metric


SEED_AXES = State(**dict.fromkeys(State.__dataclass_fields__, 0)).replace(step=None, env=None)


def init_learner(args, key, obs, action):
    actor_key, critic_key = jax.random.split(key)
    actor = Actor(action.shape[-1], args.hidden_dim).init(actor_key, obs)
    critic = TwinCritic(args.hidden_dim).init(critic_key, obs, action)
    log_alpha = jnp.zeros(())
    optimizer = make_optimizer(args)
    return Learner(
        actor=actor,
        critic=critic,
        target_critic=critic,
        log_alpha=log_alpha,
        actor_opt=optimizer.init(actor),
        critic_opt=optimizer.init(critic),
        alpha_opt=optimizer.init(log_alpha),
    )


def init_state(args, action, seed, env, obs):
    """The state before the first step, in an environment that was reset; `action` is an example."""
    key, learner_key = jax.random.split(jax.random.key(seed))
    learner = init_learner(args, learner_key, obs, action)
    transition = Transition(obs=obs, action=action, reward=0.0, terminated=0.0, next_obs=obs)

    def zeros(rows):
        return jax.tree.map(lambda x: jnp.zeros((rows, *jnp.shape(x))), transition)

    _, info = jax.eval_shape(partial(update, args), learner, zeros(args.batch_size), key)
    metrics = [*info, "updates", "episodes", "charts/episodic_return", "charts/episodic_length"]
    return State(
        step=jnp.int32(0),
        env=env,
        key=key,
        learner=learner,
        replay=zeros(args.buffer_size),
        stored=jnp.int32(0),
        obs=obs,
        done=jnp.bool(False),
        episode_return=jnp.float32(0),
        episode_length=jnp.int32(0),
        metric_sums=dict.fromkeys(metrics, jnp.float32(0)),
    )


# -------------------------------------------------------------------------------------------------- Losses and update


def make_optimizer(args):
    return optax.flatten(optax.adam(args.learning_rate))  # one flat vector: few large kernels instead of many small


def sample_action(args, actor, obs, key, action_dim):
    """Samples the squashed Gaussian policy -> action (..., action_dim), log-probability (...). Paper, appendix C."""
    mean, log_std = Actor(action_dim, args.hidden_dim).apply(actor, obs)
    noise = jax.random.normal(key, mean.shape)
    pre_tanh = mean + jnp.exp(log_std) * noise
    log_prob = -0.5 * noise**2 - log_std - 0.5 * jnp.log(2 * jnp.pi)
    log_prob -= 2 * (jnp.log(2.0) - pre_tanh - jax.nn.softplus(-2 * pre_tanh))  # log(1 - tanh^2), stable for large |x|
    return jnp.tanh(pre_tanh), log_prob.sum(-1)


def critic_loss(critic, args, learner, batch, key):
    """Squared soft Bellman error, summed over both critics. Paper, equation 5, without its 1/2."""
    action_dim = batch.action.shape[-1]
    next_action, next_log_prob = sample_action(args, learner.actor, batch.next_obs, key, action_dim)
    next_q = TwinCritic(args.hidden_dim).apply(learner.target_critic, batch.next_obs, next_action).min(0)
    next_value = next_q - jnp.exp(learner.log_alpha) * next_log_prob  # (batch,)
    target = batch.reward + args.gamma * (1 - batch.terminated) * next_value
    q = TwinCritic(args.hidden_dim).apply(critic, batch.obs, batch.action)  # (2, batch)
    loss = ((q - target) ** 2).mean(-1).sum()
    return loss, {"losses/qf_loss": loss, "losses/qf1_values": q[0].mean(), "losses/qf2_values": q[1].mean()}


def actor_loss(actor, args, critic, log_alpha, batch, key):
    """Negative soft value of the policy's own actions. Paper, equation 7."""
    action, log_prob = sample_action(args, actor, batch.obs, key, batch.action.shape[-1])
    q = TwinCritic(args.hidden_dim).apply(critic, batch.obs, action).min(0)
    loss = (jnp.exp(log_alpha) * log_prob - q).mean()
    return loss, {"losses/actor_loss": loss, "losses/entropy": -log_prob.mean()}


def alpha_loss(log_alpha, entropy, action_dim):
    """Raises the temperature while the entropy is below its target. Paper, equation 18."""
    target_entropy = -action_dim / 2  # SR-SAC's; the SAC paper has -action_dim
    alpha = jnp.exp(log_alpha)
    loss = alpha * (entropy - target_entropy)
    return loss, {"losses/alpha_loss": loss, "losses/alpha": alpha}


def gradient_step(args, name, loss_fn, params, opt_state, *inputs):
    """One Adam step on `loss_fn(params, *inputs)` -> params, opt_state, info with the norm of the gradient."""
    grads, info = jax.grad(loss_fn, has_aux=True)(params, *inputs)
    updates, opt_state = make_optimizer(args).update(grads, opt_state)
    params = optax.apply_updates(params, updates)
    return params, opt_state, info | {f"losses/{name}_grad_norm": optax.tree.norm(grads)}


def update(args, learner, batch, key):
    """One update of critic, target critic, actor and temperature, in this order: the actor sees the new critic."""
    critic_key, actor_key = jax.random.split(key)
    critic, critic_opt, critic_info = gradient_step(
        args, "critic", critic_loss, learner.critic, learner.critic_opt, args, learner, batch, critic_key
    )
    target_critic = optax.incremental_update(critic, learner.target_critic, args.tau)
    actor, actor_opt, actor_info = gradient_step(
        args, "actor", actor_loss, learner.actor, learner.actor_opt, args, critic, learner.log_alpha, batch, actor_key
    )
    entropy = actor_info["losses/entropy"]
    log_alpha, alpha_opt, alpha_info = gradient_step(
        args, "alpha", alpha_loss, learner.log_alpha, learner.alpha_opt, entropy, batch.action.shape[-1]
    )
    learner = Learner(
        actor=actor,
        critic=critic,
        target_critic=target_critic,
        log_alpha=log_alpha,
        actor_opt=actor_opt,
        critic_opt=critic_opt,
        alpha_opt=alpha_opt,
    )
    return learner, critic_info | actor_info | alpha_info


# ----------------------------------------------------------------------------------------------------------- Training


def num_updates_until(args, step):
    """Gradient updates that belong to the first `step` steps: floor(step * replay_ratio), exact in 32-bit integers."""
    numerator, denominator = fractions.Fraction(str(args.replay_ratio)).as_integer_ratio()
    return step // denominator * numerator + step % denominator * numerator // denominator


def add_to(sums, values):
    return sums | {name: sums[name] + value for name, value in values.items()}


def train_step(args, env_step, state, _):
    """One environment step, then the gradient updates that belong to it."""
    key, act_key, random_key, update_key = jax.random.split(state.key, 4)
    step = state.step + 1
    learning = step >= args.learning_starts

    # Act. A NaN ends the run after this chunk, but it must not reach the environment.
    action, _ = sample_action(args, state.learner.actor, state.obs, act_key, state.replay.action.shape[-1])
    random_action = jax.random.uniform(random_key, action.shape, minval=-1, maxval=1)
    action = jnp.where(learning & jnp.isfinite(action), action, random_action)
    env, (next_obs, reward, terminated, truncated) = env_step(state.env, action)

    # Store. The step after an episode's end only resets the environment: an index past the end drops it.
    transition = Transition(
        obs=state.obs, action=action, reward=reward, terminated=terminated.astype(jnp.float32), next_obs=next_obs
    )
    index = jnp.where(state.done, args.buffer_size, state.stored % args.buffer_size)
    replay = jax.tree.map(lambda ring, x: ring.at[index].set(x, mode="drop"), state.replay, transition)
    stored = state.stored + ~state.done

    # Learn.
    def one_update(i, carry):
        learner, sums = carry
        sample_key, key = jax.random.split(jax.random.fold_in(update_key, i))
        index = jax.random.randint(sample_key, (args.batch_size,), 0, jnp.minimum(stored, args.buffer_size))
        batch = jax.tree.map(lambda ring: ring[index], replay)
        learner, info = update(args, learner, batch, key)
        return learner, add_to(sums, info | {"updates": 1})

    num_updates = num_updates_until(args, step) - num_updates_until(args, step - 1)
    num_updates = jnp.where(learning, num_updates, 0)
    learner, sums = jax.lax.fori_loop(0, num_updates, one_update, (state.learner, state.metric_sums))

    # Log.
    done = terminated | truncated
    episode_return = jnp.where(state.done, 0.0, state.episode_return + reward)
    episode_length = jnp.where(state.done, 0, state.episode_length + 1)
    episode = {"episodes": 1, "charts/episodic_return": episode_return, "charts/episodic_length": episode_length}
    sums = add_to(sums, {name: jnp.where(done, value, 0) for name, value in episode.items()})
    finite = {name: jnp.isfinite(total) for name, total in sums.items()}

    state = State(
        step=step,
        env=env,
        key=key,
        learner=learner,
        replay=replay,
        stored=stored,
        obs=next_obs,
        done=done,
        episode_return=episode_return,
        episode_length=episode_length,
        metric_sums=sums,
    )
    return state, (action, finite)


def fresh_episode(args, state, obs):
    """The state in a new episode, whose first observation is given: --resume fresh. The replay needs no seam."""
    return state.replace(
        obs=obs,
        done=jnp.bool(False),
        episode_return=jnp.float32(0),
        episode_length=jnp.int32(0),
    )


@partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=3)
def train_chunk(args, env_step, length, state):
    """`length` steps of all seeds -> state, (actions, finite) with leaves (num_seeds, length, ...)."""
    one_seed = partial(jax.lax.scan, partial(train_step, args, env_step), length=length)
    return jax.vmap(one_seed, in_axes=(SEED_AXES,), out_axes=(SEED_AXES, 0))(state)


def chunk_length(args, step):
    """Steps from `step` to the next look at signals, logs and checkpoints: at most about 1_000 updates."""
    updates_per_step = max(1, args.replay_ratio) * args.num_seeds
    chunks = math.ceil(args.log_interval * updates_per_step / 1_000)
    chunk = math.ceil(args.log_interval / chunks)  # in equal parts of a log's interval
    since_log = step % args.log_interval
    return min(chunk - since_log % chunk, args.log_interval - since_log, args.total_timesteps - step)


def before_chunk(args, step, state):
    """What changes between two chunks: nothing here."""
    return state


def metrics(args, state):
    """What is logged: means since the last log, NaN where there is nothing to average yet, and current values."""
    sums = state.metric_sums
    means = {}
    for name, total in sums.items():
        count = sums["updates"] if name.startswith("losses/") else sums["episodes"]
        means[name] = total / count
    del means["updates"], means["episodes"]
    updates_before = num_updates_until(args, args.learning_starts - 1)
    return means | {
        "losses/actor_norm": optax.tree.norm(state.learner.actor),
        "losses/critic_norm": optax.tree.norm(state.learner.critic),
        "charts/stored_transitions": state.stored,
        "charts/updates": jnp.maximum(0, num_updates_until(args, state.step) - updates_before),
    }


# ======================================================================================================================
# ENVIRONMENT AND EVALUATION: the same text in all scripts for EnvPool's and Gymnasium's continuous tasks.
# ======================================================================================================================


class Env(NamedTuple):
    """One environment per seed: what the RUN band needs of it."""

    state: Any  # at the first step; SEED_AXES.env says whether it has an axis of seeds
    obs: Any  # first observations (num_seeds, ...)
    action: np.ndarray  # an example of one seed's action: its shape and dtype in the record of actions
    step: Callable  # (state, action) -> state, what train_step expects; of one seed, to be vmapped
    replay: Callable | None  # (actions, obs) repeats recorded actions at a resume; None if checkpoints hold `state`
    close: Callable  # frees what the environments hold


# Parts of EnvPool's DeepMind Control observations that dm_control does not have: tasks of one domain share a format.
HUMANOID_PADDING = ("position",)
QUADRUPED_PADDING = ("origin", "rangefinder", "ball_state", "target_position")
PADDING = {
    "FingerSpin-v1": ("target_position", "dist_to_target"),
    "FishUpright-v1": ("target",),
    "HumanoidStand-v1": HUMANOID_PADDING,
    "HumanoidWalk-v1": HUMANOID_PADDING,
    "HumanoidRun-v1": HUMANOID_PADDING,
    "QuadrupedWalk-v1": QUADRUPED_PADDING,
    "QuadrupedRun-v1": QUADRUPED_PADDING,
}


def env_versions(args):
    """Versions that results depend on and that no package names: MuJoCo's, inside EnvPool."""
    if args.env_id not in envpool.list_all_envs():
        return {}
    library = ctypes.CDLL(str(*Path(envpool.__file__).parent.glob("mujoco/mujoco_dmc_envpool.*")))
    library.mj_versionString.restype = ctypes.c_char_p
    return {"mujoco": library.mj_versionString().decode()}


def close_names(env_id, names):
    """Names that may be meant: spelled alike, or of the same game as it is called elsewhere (ALE/Pong-v5)."""
    close = difflib.get_close_matches(env_id, names, 4)
    for name in names:
        game = name.partition("-")[0].lower()
        if len(game) > 3 and game in env_id.lower():
            close.append(name)
    return ", ".join(dict.fromkeys(close)) or "none"


def new_seeds(seeds, step, episodes):
    """Seeds of environments that begin at this step, `episodes` of them for each seed of the run."""
    found = []
    for seed in seeds:
        key = jax.random.fold_in(jax.random.key(seed), step)
        found += jax.random.randint(key, (episodes,), 0, 2**31 - 1).tolist()
    return found


def make_pool(env_id, seeds):
    """A pool of environments, one per seed, from EnvPool or Gymnasium.

    -> pool, action space, a function that makes its observations flat, first observations (already so)
    """
    in_envpool = env_id in envpool.list_all_envs()
    names = sorted({*envpool.list_all_envs(), *gymnasium.registry})
    known = env_id in names or ":" in env_id
    require(known, f"there is no task {env_id!r}; close names: {close_names(env_id, names)}")
    try:
        if in_envpool:
            pool = envpool.make(env_id, env_type="gymnasium", num_envs=len(seeds), env_seed=seeds)
            action_space = pool.action_space
            obs_space = pool.observation_space
        else:
            pool = gymnasium.make_vec(env_id, num_envs=len(seeds), vectorization_mode="sync")
            action_space = pool.single_action_space
            obs_space = pool.single_observation_space
            require(pool.spec.max_episode_steps, f"{env_id} has no limit: register it with max_episode_steps")
    except ModuleNotFoundError as error:
        require(False, f"{env_id} cannot be made: {error}; its module must lie beside the script or on PYTHONPATH")
    except (gymnasium.error.Error, ImportError) as error:
        require(False, f"{env_id} cannot be made: {error}")
    is_box = isinstance(action_space, gymnasium.spaces.Box) and len(action_space.shape) == 1
    fits = is_box and action_space.is_bounded() and np.issubdtype(action_space.dtype, np.floating)
    require(fits, f"{env_id} has actions {action_space}; SAC needs a Box of floats with bounds and one dimension")
    require(obs_space.is_np_flattenable, f"{env_id} has observations {obs_space}, which are no arrays of a fixed size")
    obs, _ = pool.reset(seed=None if in_envpool else seeds)
    flat = partial(flatten, env_id, obs_space)
    return pool, action_space, flat, flat(obs)


def flatten(env_id, space, obs, xp=np):
    """Observations of n environments -> (n, obs_dim) float32; `xp` is np or jnp. Discrete ones become one-hot."""
    if isinstance(space, gymnasium.spaces.Dict):
        names = [name for name in sorted(obs) if name not in PADDING.get(env_id, ())]
        parts = [flatten(env_id, space[name], obs[name], xp) for name in names]
    elif isinstance(space, gymnasium.spaces.Tuple):
        parts = [flatten(env_id, part, own, xp) for part, own in zip(space, obs, strict=True)]
    elif isinstance(space, gymnasium.spaces.Discrete):
        parts = [xp.eye(space.n)[obs - space.start]]
    elif isinstance(space, gymnasium.spaces.MultiDiscrete):
        numbers = (obs - space.start).reshape(len(obs), -1)
        parts = [xp.eye(size)[numbers[:, i]] for i, size in enumerate(space.nvec.reshape(-1))]
    else:
        parts = [obs.reshape(len(obs), -1)]
    return xp.concatenate(parts, axis=-1).astype(xp.float32)


def unscale(space, action):
    """Actions in [-1, 1], where the policy lives -> actions within the bounds of the task."""
    low = np.float64(space.low)
    high = np.float64(space.high)
    middle = (low + high) / 2
    half_range = np.float32((high - low) / 2)
    # A float32 product and a float64 sum: the same bits inside and outside jit.
    action = middle + action * half_range
    return action.clip(low, high).astype(space.dtype)


def make_env(args, seeds, step=0):
    """Steps all environments of a pool at once when vmapped over seeds. The step after an episode's end only resets.

    A fresh resume names its step: its episodes are others than the first ones.
    """
    pool_seeds = seeds if step == 0 else new_seeds(seeds, 2**31 - 1 - step, 1)
    pool, space, flat, first_obs = make_pool(args.env_id, pool_seeds)

    def host_step(action):  # NumPy only: JAX inside a callback can hang
        obs, reward, terminated, truncated, _ = pool.step(np.asarray(action))
        return flat(obs), np.float32(reward), terminated, truncated

    def callback_step(handle, action):
        flags = np.zeros(len(seeds), bool)
        shapes = (first_obs, np.zeros(len(seeds), np.float32), flags, flags)
        return handle, io_callback(host_step, shapes, action, ordered=True)

    def envpool_step(handle, action):
        handle, (obs, reward, terminated, truncated, *_) = xla_step(handle, action)
        return handle, (flat(obs, jnp), reward.astype(jnp.float32), terminated, truncated)

    handle = np.int32(0)
    pool_step = callback_step
    if hasattr(pool, "xla"):
        with jax.enable_x64(True):  # EnvPool speaks float64: outside of this, its buffers would be taken for float32
            handle, _, _, xla_step = pool.xla()
        pool_step = envpool_step

    def step_all(handle, action):
        with jax.enable_x64(True):
            return pool_step(handle, unscale(space, action))

    @custom_vmap
    def step(handle, action):
        handle, results = step_all(handle, action[None])
        return handle, jax.tree.map(lambda x: x[0], results)

    @step.def_vmap
    def _(num_seeds, is_batched, handle, action):
        return step_all(handle, action), (False, (True,) * 4)

    def replay(actions, expected_obs):
        obs = first_obs
        for action in tqdm.tqdm(actions, "replaying", disable=None):  # (num_seeds, action_dim)
            obs, *_ = pool.step(unscale(space, action))
            obs = flat(obs)
        repeats = np.array_equal(obs, expected_obs)
        advice = "continue with new episodes by --resume fresh, or --overwrite it"
        require(repeats, f"{args.env_id} does not repeat itself (a clock?), or its record is damaged; {advice}")

    return Env(
        state=handle,
        obs=first_obs,
        action=np.zeros(space.shape, np.float32),
        step=step,
        replay=replay,
        close=pool.close,
    )


@partial(jax.jit, static_argnums=(0, 3))
def select_actions(args, actors, obs, action_dim):
    """Deterministic actions (num_seeds, episodes, action_dim) for observations (num_seeds, episodes, obs_dim)."""

    def one_seed(actor, obs):
        mean, _ = Actor(action_dim, args.hidden_dim).apply(actor, obs)
        return jnp.tanh(mean)

    return jax.vmap(one_seed)(actors, obs)


def evaluate(args, learner, seeds, step):
    """Plays episodes in a fresh pool, seeded by seed and step so that they can be repeated -> tag: (num_seeds,)."""
    shape = (len(seeds), args.eval_episodes)
    pool, space, flat, obs = make_pool(args.env_id, new_seeds(seeds, step, args.eval_episodes))
    returns = np.zeros(shape)
    lengths = np.zeros(shape)
    done = np.zeros(shape, bool)
    while not done.all():
        action = select_actions(args, learner.actor, obs.reshape(*shape, -1), *space.shape)
        action = np.asarray(action).reshape(-1, *space.shape)
        obs, reward, terminated, truncated, _ = pool.step(unscale(space, action))
        obs = flat(obs)
        returns += ~done * reward.reshape(shape)
        lengths += ~done
        done |= (terminated | truncated).reshape(shape)
    pool.close()
    return evaluation_metrics(returns, lengths)


def evaluation_metrics(returns, lengths):  # (num_seeds, eval_episodes) -> tag: (num_seeds,)
    means = {"eval/episodic_return": returns.mean(1), "eval/episodic_length": lengths.mean(1)}
    return means | {f"eval/episode_{i}": episode_returns for i, episode_returns in enumerate(returns.T)}


# ======================================================================================================================
# RUN: folders, checkpoints, logs and the loop. The same text in every script: a reader may stop here.
# ======================================================================================================================

# Arguments that may change when a run is continued; all others identify it.
CHANGEABLE = ("num_seeds", "total_timesteps", "checkpoint_interval", "runs_dir", "resume", "overwrite", "evaluate")
BLOCK_BYTES = 2**24  # of a checkpoint's replay, read at a time


def say(line):
    """Prints a line; a reader who has left (`| head`) does not end the run."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def writing(path):
    """Reports a full disk or a missing permission in one line. Errors of the task are not ours and stay whole."""
    try:
        yield
    except OSError as error:
        require(False, f"cannot write {error.filename or path}: {error.strerror or error}; what was saved is kept")


def write(path, content):
    """Writes text, or what `content(file)` writes, to a temporary file that then replaces the old one: atomic."""
    temporary = path.with_name(path.name + ".tmp")
    with writing(path):
        try:
            with open(temporary, "wb") as file:
                if callable(content):
                    content(file)
                else:
                    file.write(content.encode())
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(path)
        finally:
            temporary.unlink(missing_ok=True)


def append(path, content):
    with writing(path), open(path, "ab") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


class Run:
    """The run of one seed: a folder with args.json, run.json, metrics.csv, TensorBoard events and checkpoints."""

    def __init__(self, args, seed):
        arguments = dataclasses.asdict(args) | {"seed": seed}
        self.args = args
        self.seed = seed
        self.identity = {name: value for name, value in arguments.items() if name not in CHANGEABLE}
        self.folder = Path(args.runs_dir, re.sub(r"[^A-Za-z0-9_.-]", "-", f"{RUN_NAME.format(**arguments)}__{seed}"))

    def saved(self, pattern="checkpoint_*.npz"):
        """The paths of what is saved by step, the newest first."""
        paths = sorted(self.folder.glob(pattern), reverse=True)
        return {int(path.stem.split("_")[1]): path for path in paths}

    def is_finished(self):
        """Whether all steps are done. Refuses a folder that holds anything but this run; writes nothing."""
        files = [path.name for path in self.folder.glob("*") if path.suffix != ".tmp"]
        require(not files or "args.json" in files, f"{self.folder} holds no run; choose another --runs-dir")
        if not files or (self.args.overwrite and not self.args.evaluate):
            return False
        new = self.identity
        old = json.loads((self.folder / "args.json").read_text())
        names = [name for name in {**new, **old} if new.get(name) != old.get(name)]
        changes = ", ".join(f"{name} {old.get(name)} (now {new.get(name)})" for name in names)
        require(new == old, f"{self.folder} holds another run: {changes}; choose another --exp-name, or --overwrite")
        return "done" in files and max(self.saved(), default=0) >= self.args.total_timesteps

    def lock(self, cleanup):
        """Keeps other processes out of the folder until this one ends, however it ends."""
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            folder = os.open(self.folder, os.O_RDONLY)
            cleanup.callback(os.close, folder)
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                require(False, f"another process is at work in {self.folder}")

    def start(self, session):
        """Cuts the files back to the checkpoint that the session starts from, and opens the logs."""
        step = session["from_step"]
        stale = [path for saved_step, path in self.saved().items() if saved_step > step]
        stale += [path for first, path in self.saved("actions_*.bin").items() if first >= step]
        for pattern in ("*.tmp", "events.out*", "done"):
            stale += self.folder.glob(pattern)
        with writing(self.folder):
            for path in stale:
                path.unlink()
            self.writer = tensorboard.summary.Writer(str(self.folder))
        write(self.folder / "args.json", json.dumps(self.identity, indent=1))  # the old checkpoints are gone by now
        table = self.folder / "metrics.csv"
        rows = ["step,tag,value"]
        for row in table.read_text().split("\n")[1:-1] if table.exists() else []:  # without a torn last one
            row_step, tag, value = row.split(",")
            interval = self.args.eval_interval if tag.startswith("eval/") else self.args.log_interval
            at_end_of_shorter_run = int(row_step) % interval > 0 and int(row_step) != self.args.total_timesteps
            if int(row_step) <= step and not at_end_of_shorter_run:
                rows.append(row)
                self.writer.add_scalar(tag, float(value), int(row_step))
        write(table, "\n".join([*rows, ""]))
        # The actions since the environment was seeded: at step 0, or by a fresh resume.
        self.seeded_at = step if self.args.resume == "fresh" else max(self.saved("actions_*.bin"), default=0)
        self.actions_path = self.folder / f"actions_{self.seeded_at:010d}.bin"
        self.sessions = json.loads((self.folder / "run.json").read_text()) if step else []
        if step and self.sessions[-1]["provenance"] != session["provenance"]:
            say(f"{self.folder} continues with other seeds, hardware or versions: the same only up to rounding")
        self.sessions.append(session)

    def log(self, step, values):
        rows = ""
        with writing(self.folder):
            for tag, value in values.items():
                if not np.isnan(value):  # nothing to average yet
                    rows += f"{step},{tag},{value:.9g}\n"
                    self.writer.add_scalar(tag, value, step)
        append(self.folder / "metrics.csv", rows.encode())


def new_session(args, seeds, step):
    """This process's entry in run.json: its command, and what the last bits of its results depend on."""
    git = f"git -C {shlex.quote(str(Path(__file__).parent))} describe --always --dirty --abbrev=40 --exclude='*'"
    commit = subprocess.getoutput(f"{git} 2> /dev/null")  # empty without git or a repository
    cpu = platform.processor()
    if os.path.exists("/proc/cpuinfo"):  # on Linux, `platform` does not know the model
        cpu = Path("/proc/cpuinfo").read_text().partition("model name\t: ")[2].partition("\n")[0]
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if "multi_thread_eigen=false" in os.environ.get("XLA_FLAGS", ""):
        threads = 1
    provenance = env_versions(args)
    provenance |= {name: importlib.metadata.version(name) for name in PACKAGES}
    provenance |= {"seeds": seeds, "device": jax.devices()[0].device_kind, "cpu": cpu, "threads": threads}
    session = {"command": shlex.join(sys.argv), "commit": commit, "provenance": provenance}
    return session | {"from_step": step, "resume": args.resume}


def saved_part(env, state):
    """What a checkpoint holds. It lacks the step, which is in its name, and an environment that replays actions."""
    state = state.replace(step=None, key=jax.random.key_data(state.key))
    return state.replace(env=None) if env.replay else state


def named_leaves(tree):
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def save(env, runs, state, actions):
    """Saves all seeds, then removes all checkpoints but the two newest: the seeds always have one in common."""
    step = int(state.step)
    leaves = named_leaves(saved_part(env, state))
    arrays = {name: np.asarray(leaf) for name, leaf in leaves.items()}
    for i, run in enumerate(runs):
        own = {name: array[i] for name, array in arrays.items()}
        for name in own:
            if name.startswith("replay/"):
                own[name] = own[name][: own["stored"]]  # only the filled part
        if env.replay:
            append(run.actions_path, b"".join(chunk[i].tobytes() for chunk in actions))
        with writing(run.folder):
            run.writer.flush()
        write(run.folder / "run.json", json.dumps(run.sessions, indent=1))
        write(run.folder / f"checkpoint_{step:010d}.npz", partial(np.savez, **own))
    for run in runs:
        for path in list(run.saved().values())[2:]:
            path.unlink()


def read_blocks(path, name):
    """An array of a checkpoint in blocks of rows, so that a replay is never held twice -> first row, rows."""
    with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
        np.lib.format.read_magic(file)
        (stored, *shape), _, dtype = np.lib.format.read_array_header_1_0(file)
        row = np.dtype((dtype, tuple(shape)))
        rows = max(1, BLOCK_BYTES // row.itemsize)
        for first in range(0, stored, rows):
            yield first, np.frombuffer(file.read(min(rows, stored - first) * row.itemsize), row)


@partial(jax.jit, donate_argnums=0)
def set_block(rings, block, seed_index, first):
    return jax.lax.dynamic_update_slice(rings, block[None], (seed_index, first, *[0] * (block.ndim - 1)))


def load(paths, like):
    """Part of a state, whose structure and shapes `like` has, from the checkpoints of all seeds."""
    arrays = []
    for name, leaf in named_leaves(like).items():
        if name.startswith("replay/"):
            array = jnp.zeros(leaf.shape, leaf.dtype)
            for i, path in enumerate(paths):
                for first, block in read_blocks(path, name):
                    fits = block.shape[1:] == leaf.shape[2:] and first + len(block) <= leaf.shape[1]
                    require(fits, f"{path.parent} is of another version: {name}; see --overwrite")
                    array = jax.block_until_ready(set_block(array, block, i, first))
        else:
            array = jax.device_put(np.stack([np.load(path)[name] for path in paths]))
        require(array.shape == leaf.shape, f"{paths[0].parent} is of another version: {name}; see --overwrite")
        arrays.append(array)
    return jax.tree.unflatten(jax.tree.structure(like), arrays)


def restore(env, runs, shapes, fields):
    """Fields of the state at the newest step of which all runs have an intact checkpoint; None if they start anew."""
    like = jax.eval_shape(partial(saved_part, env), shapes)
    names = named_leaves(like)
    like = like.replace(**{name: None for name in like.__dataclass_fields__ if name not in fields})
    common = set.intersection(*[set(run.saved()) for run in runs])
    for step in sorted(common - {0}, reverse=True):
        paths = [run.saved()[step] for run in runs]
        try:
            for path in paths:
                same = set(np.load(path).files) == set(names)
                require(same, f"{path.parent} is of another version; use its script, or --overwrite")
            state = load(paths, like).replace(step=jnp.int32(step))
        except Exception as error:  # damage shows as an error of the zip file, of its compression, of NumPy, ...
            print(f"the checkpoint of step {step} is damaged ({error}); trying the one before", file=sys.stderr)
            continue
        return state if state.key is None else state.replace(key=jax.random.wrap_key_data(state.key))
    is_new = not any(max(run.saved(), default=0) for run in runs)
    require(is_new or 0 in common, "no intact checkpoint is common to all seeds; continue them singly, or --overwrite")
    return None


def resume_env(args, env, runs, state):
    """The state in its environment: repeats the recorded actions, or begins new episodes (fresh)."""
    step = int(state.step)
    first = runs[0].seeded_at
    if first == step:
        say(f"new episodes from step {step:,} on: not exactly the run that was never interrupted")
        renew = jax.vmap(partial(fresh_episode, args), in_axes=(SEED_AXES, 0), out_axes=SEED_AXES)
        return jax.jit(renew)(state.replace(env=env.state), env.obs)
    recorded = []
    for run in runs:
        size = (step - first) * env.action.nbytes
        with writing(run.actions_path), open(run.actions_path, "ab") as file:
            require(file.tell() >= size, f"{run.actions_path} is damaged; --resume fresh continues without it")
            file.truncate(size)
        recorded.append(np.fromfile(run.actions_path, env.action.dtype).reshape(-1, *env.action.shape))
    env.replay(np.stack(recorded, axis=1), state.obs)
    return state.replace(env=env.state)


def catch_signals(cleanup):
    """-> the signals that ask for an end, as they come; a second one ends the program."""
    received = []

    def receive(number, _):
        received.append(number)
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        cleanup.callback(signal.signal, number, signal.signal(number, receive))
    return received


def train(args, env, runs, session, state, signals):
    """Trains up to the last step or a signal, with logs, evaluations and checkpoints between chunks."""
    seeds = [run.seed for run in runs]
    step = int(state.step)
    seed_metrics = jax.jit(jax.vmap(partial(metrics, args), in_axes=(SEED_AXES,)))
    actions = []  # since the last checkpoint
    bar = tqdm.tqdm(total=args.total_timesteps, initial=step, unit="step", disable=None, smoothing=0.05)
    start = log_time = time.time()
    log_step = step
    last = step >= args.total_timesteps
    while not last:
        state = before_chunk(args, step, state)
        length = chunk_length(args, step)
        state, (new_actions, finite) = jax.block_until_ready(train_chunk(args, env.step, length, state))
        broken = ~np.stack(list(finite.values()), axis=-1)  # (num_seeds, length, metrics)
        for late, i, metric in np.argwhere(broken.swapaxes(0, 1)):  # the first one ends the run
            where = f"in step {step + late + 1} of seed {seeds[i]} {list(finite)[metric]} was NaN or infinite"
            require(False, f"{where}; the checkpoint of step {max(runs[i].saved())} is kept in {runs[i].folder}")
        actions.append(np.asarray(new_actions, env.action.dtype))
        step += length
        bar.update(length)

        ends = step == args.total_timesteps
        if ends or step % args.log_interval == 0:
            speed = (step - log_step) / (time.time() - log_time)
            rows = jax.device_get(seed_metrics(state))
            rows["charts/SPS"] = np.full(len(runs), speed)
            if args.eval_interval and (step % args.eval_interval == 0 or ends):
                rows |= evaluate(args, state.learner, seeds, step)
                returns = ", ".join(f"{value:.1f}" for value in rows["eval/episodic_return"])
                with bar.external_write_mode():  # above the bar
                    say(f"step {step:,}: evaluated with a return of {returns}; {speed:,.0f} steps/s")
            for i, run in enumerate(runs):
                run.log(step, {tag: values[i] for tag, values in rows.items()})
            bar.set_postfix({tag: values.mean() for tag, values in rows.items() if "return" in tag})
            log_time = time.time()
            log_step = step
        if step % args.log_interval == 0:  # at an end between two logs the sums stay, for a longer run
            state = state.replace(metric_sums=jax.tree.map(jnp.zeros_like, state.metric_sums))
        last = ends or bool(signals)
        if last or (args.checkpoint_interval and step % args.checkpoint_interval == 0):
            session.update(to_step=step, wall_s=round(time.time() - start, 1))
            save(env, runs, state, actions)
            actions = []
    bar.close()

    if step < args.total_timesteps:
        say(f"stopped and saved at step {step:,}; the same command continues from there")
        sys.exit(128 + signals[0])
    for run in runs:
        write(run.folder / "done", json.dumps({"step": step}))
    for run in runs:
        say(f"seed {run.seed}: {step:,} steps done, results in {run.folder}")


def main(args):
    check(args)
    runs = [Run(args, seed) for seed in range(args.seed, args.seed + args.num_seeds)]
    for run in list(runs):
        if run.is_finished() and not args.evaluate:
            say(f"{run.folder} is finished; a higher --total-timesteps continues it")
            runs.remove(run)
    if not runs:
        return
    with contextlib.ExitStack() as cleanup:
        seeds = [run.seed for run in runs]
        env = make_env(args, seeds)
        cleanup.callback(env.close)
        require(args.resume == "exact" or env.replay, f"checkpoints hold {args.env_id}; leave out --resume fresh")
        init = jax.vmap(partial(init_state, args, env.action), in_axes=(0, SEED_AXES.env, 0), out_axes=SEED_AXES)
        init = jax.jit(init)
        inputs = (jnp.array(seeds), env.state, env.obs)
        shapes = jax.eval_shape(init, *inputs)
        check_memory(shapes)
        if args.evaluate:
            state = restore(env, runs, shapes, fields=("learner",))
            require(state is not None, f"{runs[0].folder} holds no checkpoint to evaluate")
            rows = evaluate(args, state.learner, seeds, int(state.step))
            for i, seed in enumerate(seeds):
                values = [f"{tag.removeprefix('eval/')} {values[i]:.1f}" for tag, values in rows.items()]
                say(f"seed {seed}, step {state.step:,}: {' '.join(values)}")
            return
        for run in runs:
            run.lock(cleanup)
        state = None if args.overwrite else restore(env, runs, shapes, fields=tuple(shapes.__dataclass_fields__))
        step = 0 if state is None else int(state.step)
        session = new_session(args, seeds, step)
        for run in runs:
            run.start(session)
        first, *others = {run.seeded_at for run in runs}
        require(not others, "the seeds have begun new episodes at different steps; continue them one by one")
        if first > 0:
            env = make_env(args, seeds, first)
            cleanup.callback(env.close)
        say(f"from step {step:,} to {args.total_timesteps:,} with seeds {seeds} on {jax.devices()[0]}")
        with concurrent.futures.ThreadPoolExecutor() as executor:  # to compile is most of a start: beside the rest
            program = partial(train_chunk.lower, args, env.step, chunk_length(args, step), shapes)
            compiling = executor.submit(lambda: program().compile())
            if state is None:
                state = init(*inputs)
                save(env, runs, state, actions=[])  # marks that all seeds have started
            elif env.replay:
                state = resume_env(args, env, runs, state)
            compiling.result()
        train(args, env, runs, session, state, catch_signals(cleanup))


if __name__ == "__main__":
    main(tyro.cli(Args))
