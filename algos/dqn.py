"""DQN with a replay ratio, on gymnax: environment, replay and updates run in one program.

Paper:   Mnih et al. 2015, "Human-level control through deep reinforcement learning" (Nature 518), set up for MinAtar as
         in Young & Tian 2019, "MinAtar: An Atari-Inspired Testbed" (arXiv:1903.03176).
Run:     python algos/dqn.py --env-id Breakout-MinAtar --num-seeds 5
         The same command continues an interrupted run, to the same bits.
Expect:  on Breakout, --learning-rate 0.001953125: average return 8.7 +- 0.6 at the end (5 seeds; the paper: 9.3).
"""

import concurrent.futures
import contextlib
import dataclasses
import difflib
import fcntl
import fractions
import importlib.metadata
import importlib.util
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
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import flax
import flax.linen as nn
import gymnasium
import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tensorboard.summary
import tqdm
import tyro
from jax.custom_batching import custom_vmap
from jax.experimental import io_callback


@dataclasses.dataclass(frozen=True)
class Args:
    # Task
    env_id: str = "Breakout-MinAtar"  # gymnax task with discrete actions: MinAtar's five, CartPole-v1, ...
    minimal_actions: bool = False  # MinAtar: only the actions that do something in this game instead of all six
    sticky: float | None = None  # probability that the last action is repeated instead; None: 0.1 for MinAtar, else 0
    seed: int = 1  # first seed; the command trains seeds `seed` to `seed + num_seeds - 1`
    num_seeds: int = 1  # seeds trained side by side in one program, each in its own folder
    total_timesteps: int = 1_000_000  # environment steps per seed; may be raised to continue a finished run

    # Algorithm
    replay_ratio: float = 1  # gradient updates per environment step; may be a fraction
    learning_starts: int = 5_000  # environment step of the first update; until then, actions are uniformly random
    buffer_size: int = 100_000  # capacity of the replay buffer, in transitions
    batch_size: int = 32  # transitions per update, sampled uniformly with replacement
    gamma: float = 0.99  # discount factor
    end_e: float = 0.1  # probability of a random action at the end of exploration
    exploration_steps: int = 100_000  # environment steps, from learning_starts on, over which it falls from 1 to end_e
    optimizer: Literal["rmsprop", "adam"] = "rmsprop"  # RMSProp is centered, with a decay of 0.95
    learning_rate: float = 2.5e-4  # step size of the optimizer
    optimizer_eps: float = 0.01  # added to the root of the mean squared gradient, to limit the step
    eps_in_sqrt: bool = False  # RMSProp adds it inside the root instead, as Dopamine's TensorFlow agents do
    loss: Literal["huber", "mse"] = "huber"  # of the temporal-difference error: Huber (bound at 1) or squared
    target_interval: int = 1_000  # gradient updates between two copies of the network to the target network
    hidden_dim: int = 128  # width of the hidden layer (two of them if observations are no images); 0 has none
    padding: Literal["VALID", "SAME"] = "VALID"  # of the convolution: VALID leaves 8 x 8 positions of 10 x 10, SAME all

    # Evaluation and logging
    log_interval: int = 5_000  # environment steps between two logs
    eval_interval: int = 50_000  # environment steps between two evaluations, a multiple of log_interval; 0: none
    eval_episodes: int = 10  # episodes per evaluation
    eval_e: float = 0.001  # probability of a random action in evaluations
    eval_steps: int = 10_000  # an evaluation episode is cut after this many steps

    # Run folder
    exp_name: str = Path(__file__).stem  # part of the folder's name
    runs_dir: str = "runs"  # parent of all run folders
    checkpoint_interval: int = 50_000  # environment steps between two checkpoints; 0 saves at the end only
    resume: Literal["exact", "fresh"] = "exact"  # exact replays the recorded actions; fresh begins new episodes instead
    overwrite: bool = False  # discard what this run has saved and start from scratch
    evaluate: bool = False  # evaluate the newest checkpoint, print the returns and exit


PACKAGES = ("flax", "gymnasium", "gymnax", "jax", "jaxlib", "numpy", "optax")  # whose versions run.json holds
RUN_NAME = "{env_id}__{exp_name}__rr{replay_ratio:g}"  # of a run's folder; the seed is appended
MAY_BE_ZERO = ("gamma", "sticky", "end_e", "eval_e", "hidden_dim")  # the other numbers are positive
AT_MOST_ONE = ("gamma", "sticky", "end_e", "eval_e")


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
    require(args.optimizer == "rmsprop" or not args.eps_in_sqrt, "--eps-in-sqrt needs --optimizer rmsprop")
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


def pytorch_uniform_init(fan_in):
    """PyTorch's default for weights and biases, drawn as one flat vector, which XLA compiles faster."""

    def init(key, shape):
        flat = jax.random.uniform(key, (np.prod(shape),), minval=-1)
        return flat.reshape(shape) * fan_in**-0.5

    return init


class Dense(nn.Module):
    """A dense layer that stores its weights as PyTorch does: the gradient comes out as (features, inputs)."""

    features: int

    @nn.compact
    def __call__(self, x):  # (inputs,) -> (features,)
        init = pytorch_uniform_init(x.size)
        kernel = self.param("kernel", init, (self.features, x.size))
        bias = self.param("bias", init, (self.features,))
        return kernel @ x + bias


class Conv(nn.Module):
    """A convolution with the parameters and results of nn.Conv.

    XLA's is slow on CPUs inside a loop. There, the shifted copies of the image go through one matrix product.
    """

    features: int
    size: int
    padding: str

    @nn.compact
    def __call__(self, x):  # (height, width, channels) -> (height, width, features)
        size = self.size
        channels = x.shape[-1]
        init = pytorch_uniform_init(size**2 * channels)
        kernel = self.param("kernel", init, (size, size, channels, self.features))
        bias = self.param("bias", init, (self.features,))
        if jax.default_backend() != "cpu":
            layout = ("NHWC", "HWIO", "NHWC")
            x = jax.lax.conv_general_dilated(x[None], kernel, (1, 1), self.padding, dimension_numbers=layout)
            return x[0] + bias
        if self.padding == "SAME":
            border = ((size - 1) // 2, size // 2)
            x = jnp.pad(x, [border, border, (0, 0)])
        rows = x.shape[0] - size + 1
        columns = x.shape[1] - size + 1
        shifted = [x[i : i + rows, j : j + columns] for i in range(size) for j in range(size)]
        return jnp.concatenate(shifted, axis=-1) @ kernel.reshape(-1, self.features) + bias


class Encoder(nn.Module):
    hidden_dim: int
    padding: str

    @nn.compact
    def __call__(self, obs):  # one observation, an image (height, width, channels) or anything else -> (features,)
        x = obs.astype(jnp.float32)
        if x.ndim == 3:
            x = nn.relu(Conv(16, 3, self.padding)(x))
        elif self.hidden_dim:
            x = nn.relu(Dense(self.hidden_dim)(x.reshape(-1)))
        x = x.reshape(-1)
        if self.hidden_dim:
            x = nn.relu(Dense(self.hidden_dim)(x))
        return x


class Network(nn.Module):
    args: Args

    @nn.compact
    def __call__(self, obs):  # one observation -> (num_actions,)
        x = Encoder(self.args.hidden_dim, self.args.padding)(obs)
        return Dense(make_task(self.args).num_actions)(x)


# -------------------------------------------------------------------------------------------------------------- State


@flax.struct.dataclass
class Learner:  # everything that is learned
    network: dict
    target_network: dict
    opt: optax.OptState


@flax.struct.dataclass
class Transition:
    obs: jax.Array  # an image of bits (height, width, channels), or float32
    action: jax.Array  # int32
    reward: jax.Array
    terminated: jax.Array  # the task ended here; not so after a time limit, where the target still bootstraps
    next_obs: jax.Array  # of the same episode, also at its end


@flax.struct.dataclass
class State:  # everything that changes during training; a checkpoint is exactly this
    step: jax.Array  # environment steps so far, the same for all seeds
    env: tuple  # see env_reset
    key: jax.Array
    learner: Learner
    replay: Transition  # ring buffer: leaves (buffer_size, ...)
    stored: jax.Array  # transitions stored so far
    obs: jax.Array
    episode_return: jax.Array
    episode_length: jax.Array
    average_return: jax.Array  # moving average over episodes, from 0, with a step size of 0.01
    metric_sums: dict  # sums since the last log, by metric


SEED_AXES = State(**dict.fromkeys(State.__dataclass_fields__, 0)).replace(step=None)


def init_learner(args, key, obs):
    network = Network(args).init(key, obs)
    return Learner(network=network, target_network=network, opt=make_optimizer(args).init(network))


def init_state(args, action, seed, env, obs):
    """The state before the first step, in an environment that was reset; `action` is an example."""
    _, learner_key, key = jax.random.split(jax.random.key(seed), 3)  # the first is for make_env
    learner = init_learner(args, learner_key, obs)
    zero = jnp.float32(0)
    transition = Transition(obs=obs, action=action, reward=zero, terminated=jnp.bool(False), next_obs=obs)
    replay = jax.tree.map(lambda x: jnp.zeros((args.buffer_size, *x.shape), x.dtype), transition)
    batch = jax.eval_shape(partial(sample_batch, args), replay, jnp.int32(1), key)
    _, info = jax.eval_shape(partial(update, args), learner, batch, key)
    metrics = [*info, "updates", "episodes", "charts/episodic_return", "charts/episodic_length"]
    return State(
        step=jnp.int32(0),
        env=env,
        key=key,
        learner=learner,
        replay=replay,
        stored=jnp.int32(0),
        obs=obs,
        episode_return=zero,
        episode_length=jnp.int32(0),
        average_return=zero,
        metric_sums=dict.fromkeys(metrics, zero),
    )


# --------------------------------------------------------------------------------------------------- Loss and update


def make_optimizer(args):
    rmsprop = partial(optax.rmsprop, decay=0.95, eps_in_sqrt=args.eps_in_sqrt, centered=True)
    optimizer = rmsprop if args.optimizer == "rmsprop" else optax.adam
    return optax.flatten(optimizer(args.learning_rate, eps=args.optimizer_eps))  # few large kernels, not many small


def q_values(args, network, obs):  # one observation -> (num_actions,)
    return Network(args).apply(network, obs)


def q_loss(network, args, target_network, batch):
    """Error of Q-learning's one-step targets. Nature paper, algorithm 1."""
    next_q = jax.vmap(partial(q_values, args, target_network))(batch.next_obs).max(-1)
    target = batch.reward + args.gamma * (1 - batch.terminated) * next_q  # (batch,)
    q = jax.vmap(partial(q_values, args, network))(batch.obs)
    error = jnp.take_along_axis(q, batch.action[:, None], 1)[:, 0] - target
    losses = optax.huber_loss(error) if args.loss == "huber" else error**2
    loss = losses.mean()
    return loss, {"losses/q_loss": loss, "losses/q_values": q.mean()}


def update(args, learner, batch, key=None):
    """One gradient update; nothing in it is random."""
    grads, info = jax.grad(q_loss, has_aux=True)(learner.network, args, learner.target_network, batch)
    updates, opt = make_optimizer(args).update(grads, learner.opt)
    network = optax.apply_updates(learner.network, updates)
    return learner.replace(network=network, opt=opt), info


def update_target(args, learner, update_count):
    """Copies the network to the target network if the update with this number, counted from 1, makes it due."""
    target_network = optax.periodic_update(learner.network, learner.target_network, update_count, args.target_interval)
    return learner.replace(target_network=target_network)


# ----------------------------------------------------------------------------------------------------------- Training


def num_updates_until(args, step):
    """Gradient updates that belong to the first `step` steps: floor(step * replay_ratio), exact in 32-bit integers."""
    numerator, denominator = fractions.Fraction(str(args.replay_ratio)).as_integer_ratio()
    return step // denominator * numerator + step % denominator * numerator // denominator


def sample_batch(args, replay, stored, key):
    """Samples transitions uniformly, with replacement -> Transition with leaves (batch_size, ...)."""
    bits = jax.random.bits(key, (args.batch_size,))  # of 2^32 numbers: as uniform as randint, and cheaper
    index = bits % jnp.minimum(stored, args.buffer_size).astype(jnp.uint32)
    return jax.tree.map(lambda ring: ring[index], replay)


def epsilon(args, step):
    progress = jnp.clip((step - args.learning_starts) / args.exploration_steps, 0, 1)
    return 1 - (1 - args.end_e) * progress


def act(q, key, epsilon):
    """The epsilon-greedy action for values (num_actions,)."""
    draw = jax.random.uniform(key)
    # One draw serves twice: if it lies below epsilon, draw / epsilon is uniform in [0, 1) and selects the action.
    random_action = jnp.int32(draw / epsilon * q.size)
    return jnp.where(draw < epsilon, random_action, q.argmax())


def add_to(sums, values):
    return sums | {name: sums[name] + value for name, value in values.items()}


def train_step(args, env_step, state, _):
    """One environment step, then the gradient updates that belong to it."""
    key, act_key, update_key = jax.random.split(state.key, 3)
    step = state.step + 1

    # Act.
    q = q_values(args, state.learner.network, state.obs)
    action = act(q, act_key, epsilon(args, step))
    env, (next_obs, reward, terminated, truncated, obs) = env_step(state.env, action)

    # Store.
    transition = Transition(obs=state.obs, action=action, reward=reward, terminated=terminated, next_obs=next_obs)
    index = state.stored % args.buffer_size
    replay = jax.tree.map(lambda ring, x: ring.at[index].set(x), state.replay, transition)
    stored = state.stored + 1

    # Learn.
    first_update = num_updates_until(args, step - 1) - num_updates_until(args, args.learning_starts - 1) + 1

    def one_update(i, carry):
        learner, sums = carry
        key = jax.random.fold_in(update_key, i)
        batch = sample_batch(args, replay, stored, key)
        learner, info = update(args, learner, batch)
        learner = update_target(args, learner, first_update + i)
        return learner, add_to(sums, info | {"updates": 1})

    num_updates = num_updates_until(args, step) - num_updates_until(args, step - 1)
    num_updates = jnp.where(step >= args.learning_starts, num_updates, 0)
    learner, sums = jax.lax.fori_loop(0, num_updates, one_update, (state.learner, state.metric_sums))

    # Log.
    done = terminated | truncated
    episode_return = state.episode_return + reward
    episode_length = state.episode_length + 1
    episode = {"episodes": 1, "charts/episodic_return": episode_return, "charts/episodic_length": episode_length}
    sums = add_to(sums, {name: jnp.where(done, value, 0) for name, value in episode.items()})
    finite = {name: jnp.isfinite(total) for name, total in sums.items()}
    new_average = 0.99 * state.average_return + 0.01 * episode_return

    state = State(
        step=step,
        env=env,
        key=key,
        learner=learner,
        replay=replay,
        stored=stored,
        obs=obs,
        episode_return=jnp.where(done, 0, episode_return),
        episode_length=jnp.where(done, 0, episode_length),
        average_return=jnp.where(done, new_average, state.average_return),
        metric_sums=sums,
    )
    return state, (action, finite)


def fresh_episode(args, state, obs):
    """The state for a new episode with this first observation, where a resume cannot restore the old one."""
    return state.replace(obs=obs, episode_return=jnp.float32(0), episode_length=jnp.int32(0))


@partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=3)
def train_chunk(args, env_step, length, state):
    """`length` steps of all seeds -> state, (actions, finite) with leaves (num_seeds, length, ...)."""
    one_seed = partial(jax.lax.scan, partial(train_step, args, env_step), length=length)
    return jax.vmap(one_seed, in_axes=(SEED_AXES,), out_axes=(SEED_AXES, 0))(state)


def chunk_length(args, step):
    """Steps from `step` to the next look at signals, logs and checkpoints: at most about 5_000 updates."""
    updates_per_step = max(1, args.replay_ratio) * args.num_seeds
    chunks = math.ceil(args.log_interval * updates_per_step / 5_000)
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
        "losses/network_norm": optax.tree.norm(state.learner.network),
        "charts/average_return": state.average_return,
        "charts/episodes": sums["episodes"],
        "charts/updates": jnp.maximum(0, num_updates_until(args, state.step) - updates_before),
        "charts/epsilon": epsilon(args, state.step),
    }


# ======================================================================================================================
# ENVIRONMENT AND EVALUATION: the same text in all scripts for gymnax's tasks, and for others with discrete actions.
# ======================================================================================================================


class Env(NamedTuple):
    """One environment per seed: what the RUN band needs of it."""

    state: Any  # at the first step; SEED_AXES.env says whether it has an axis of seeds
    obs: Any  # first observations (num_seeds, ...)
    action: np.ndarray  # an example of one seed's action: its shape and dtype in the record of actions
    step: Callable  # (state, action) -> state, what train_step expects; of one seed, to be vmapped
    replay: Callable | None  # (actions, obs) repeats recorded actions at a resume; None if checkpoints hold `state`
    close: Callable  # frees what the environments hold


class Task(NamedTuple):
    game: Any  # gymnax's environment; None for a task of EnvPool or Gymnasium, which is stepped outside the program
    params: Any
    encode: Callable  # gymnax's observation -> the agent's: bits, float32, or a one-hot vector for a number
    num_actions: int


# gymnax's tasks whose last step is the end of the task itself: nothing comes after it. Other limits truncate.
OWN_LIMITS = ("Freeway-MinAtar", "DiscountingChain-bsuite", "BernoulliBandit-misc", "GaussianBandit-misc")
OWN_LIMITS += ("MetaMaze-misc",)


def env_versions(args):
    """Versions that results depend on beside those of PACKAGES: of the library that steps the task."""
    is_used = library_of(args.env_id) == "envpool"
    return {"envpool": importlib.metadata.version("envpool")} if is_used else {}


@cache
def make_task(args):
    """The task of these arguments; to be called first outside of any trace."""
    if library_of(args.env_id) != "gymnax":
        require(not args.sticky and not args.minimal_actions, "--sticky and --minimal-actions are for gymnax's tasks")
        probe = HostEnv(args.env_id, args.seed)
        probe.pool.close()
        return Task(game=None, params=None, encode=None, num_actions=int(probe.action_space.n))
    is_minatar = args.env_id.endswith("-MinAtar")
    require(is_minatar or not args.minimal_actions, "--minimal-actions is for MinAtar's games")
    options = {"use_minimal_action_set": args.minimal_actions} if is_minatar else {}
    try:
        game, params = gymnax.make(args.env_id, **options)
    except OSError as error:  # MNIST is fetched from the network
        require(False, f"{args.env_id} cannot be made: {error}")
    require(hasattr(game.action_space(params), "n"), f"{args.env_id} has no discrete actions; DQN needs them")
    if is_minatar and args.env_id not in OWN_LIMITS:
        params = params.replace(max_steps_in_episode=2**31 - 1)  # MinAtar has no time limits
    num_obs = getattr(game.observation_space(params), "n", None)
    encode = partial(jnp.asarray, dtype=jnp.float32)
    if is_minatar:
        encode = partial(jnp.asarray, dtype=bool)  # images of bits: one byte each in the replay
    elif num_obs:
        encode = partial(jax.nn.one_hot, num_classes=num_obs)
    return Task(game=game, params=params, encode=encode, num_actions=game.num_actions)


def env_reset(args, key):
    """-> state, first observation.

    The state is gymnax's, the last action that was executed (which outlives episodes), and the data of a key.
    """
    task = make_task(args)
    key, reset_key = jax.random.split(key)
    obs, game_state = task.game.reset(reset_key, task.params)
    game_state = jax.tree.map(jnp.asarray, game_state)
    state = (game_state, jnp.int32(0), jax.random.key_data(key))
    return state, task.encode(obs)


def env_step(args, state, action):
    """-> state, (next_obs, reward, terminated, truncated, obs).

    At an episode's end, `next_obs` is its last observation and `obs` the next episode's first; else they are equal.
    """
    task = make_task(args)
    game_state, last_action, key_data = state
    key, step_key, sticky_key = jax.random.split(jax.random.wrap_key_data(key_data), 3)
    sticky = args.sticky
    if sticky is None:
        sticky = 0.1 if args.env_id.endswith("-MinAtar") else 0.0
    action = jnp.where(jax.random.bernoulli(sticky_key, sticky), last_action, action)
    results = task.game.step(step_key, game_state, action, task.params)
    obs, game_state, reward, terminated, truncated, info = results
    if args.env_id in OWN_LIMITS:
        terminated = terminated | truncated
        truncated = jnp.zeros_like(truncated)
    next_obs = task.encode(info["final_observation"])
    state = (game_state, action, jax.random.key_data(key))
    return state, (next_obs, jnp.float32(reward), terminated, truncated, task.encode(obs))


class Episode(NamedTuple):
    env: tuple
    obs: jax.Array
    key: jax.Array
    done: jax.Array
    total: jax.Array  # sum of rewards
    length: jax.Array


def play_episode(args, network, key):
    """One evaluation episode -> its return and length."""

    def step(episode):
        key, act_key = jax.random.split(episode.key)
        action = act(q_values(args, network, episode.obs), act_key, args.eval_e)
        env, (_, reward, terminated, truncated, obs) = env_step(args, episode.env, action)
        length = episode.length + 1
        done = terminated | truncated | (length >= args.eval_steps)
        total = episode.total + reward
        return Episode(env=env, obs=obs, key=key, done=done, total=total, length=length)

    reset_key, key = jax.random.split(key)
    env, obs = env_reset(args, reset_key)
    start = Episode(
        env=env,
        obs=obs,
        key=key,
        done=jnp.bool(False),
        total=jnp.float32(0),
        length=jnp.int32(0),
    )
    end = jax.lax.while_loop(lambda episode: ~episode.done, step, start)
    return end.total, end.length


@partial(jax.jit, static_argnums=0)
def play(args, networks, keys):  # (num_seeds, ...), (num_seeds, eval_episodes) -> returns, lengths
    one_seed = jax.vmap(partial(play_episode, args), in_axes=(None, 0))
    return jax.vmap(one_seed)(networks, keys)


@cache
def library_of(env_id):
    """-> the library that has the task: gymnax, envpool or gymnasium, in this order."""
    if env_id in gymnax.registered_envs:
        return "gymnax"
    kinds = {}
    if importlib.util.find_spec("envpool"):
        envpool = importlib.import_module("envpool")  # only here: gymnax's tasks do without it
        kinds = {name: kind for name, (kind, *_) in envpool.registration.registry.specs.items()}
    require(kinds.get(env_id) != "envpool.atari", f"{env_id} is a game of Atari: take dqn_atari.py or a child of it")
    names = sorted({*gymnax.registered_envs, *kinds, *gymnasium.registry})
    close = difflib.get_close_matches(env_id, names, 4)
    close += [name for name in gymnax.registered_envs if name.split("-")[0].lower() in env_id.lower()]
    require(env_id in names or ":" in env_id, f"there is no task {env_id!r}; close names: {', '.join(close)}")
    return "envpool" if env_id in kinds else "gymnasium"


class HostEnv:
    """One environment outside the program. It begins a new episode in the step that ends one, as gymnax's do."""

    def __init__(self, env_id, seed):
        in_envpool = library_of(env_id) == "envpool"
        try:
            if in_envpool:
                self.pool = sys.modules["envpool"].make(env_id, env_type="gymnasium", num_envs=1, env_seed=[seed])
                self.action_space = self.pool.action_space
                self.obs_space = self.pool.observation_space
            else:
                self.pool = gymnasium.make_vec(env_id, num_envs=1, vectorization_mode="sync")
                self.action_space = self.pool.single_action_space
                self.obs_space = self.pool.single_observation_space
                require(self.pool.spec.max_episode_steps, f"{env_id} has no limit: register it with max_episode_steps")
        except ModuleNotFoundError as error:
            require(False, f"{env_id} cannot be made: {error}; its module must lie beside the script or on PYTHONPATH")
        except (gymnasium.error.Error, ImportError) as error:
            require(False, f"{env_id} cannot be made: {error}")
        is_discrete = isinstance(self.action_space, gymnasium.spaces.Discrete)
        require(is_discrete, f"{env_id} has the actions {self.action_space}; DQN needs discrete ones")
        require(self.obs_space.is_np_flattenable, f"{env_id} has observations of no fixed size: {self.obs_space}")
        obs, _ = self.pool.reset(seed=None if in_envpool else [seed])
        self.obs = self.convert(obs)

    def convert(self, obs):
        """A pool's observation (1, ...) -> (obs_dim,) float32 with one-hot numbers, or an image of bits or floats."""
        obs = jax.tree.map(lambda x: x[0], obs)
        if len(self.obs_space.shape or ()) != 3:
            return np.float32(gymnasium.spaces.flatten(self.obs_space, obs))
        if obs.dtype == bool:
            return obs
        return np.float32(obs) / (255 if obs.dtype == np.uint8 else 1)

    def step(self, action):  # -> next_obs, reward, terminated, truncated, obs: as env_step
        action = np.array([action + self.action_space.start], np.int32)
        obs, reward, terminated, truncated, _ = self.pool.step(action)
        next_obs = self.convert(obs)
        if terminated[0] or truncated[0]:
            obs, *_ = self.pool.step(action)  # only resets
        self.obs = self.convert(obs)
        return next_obs, np.float32(reward[0]), terminated[0], truncated[0], self.obs


def new_seed(key):
    return int(jax.random.randint(key, (), 0, 2**31 - 1))


def make_host_env(args, seeds, step):
    """Environments outside the program, one for each seed, reached by a callback."""
    if step > 0:
        seeds = [new_seed(jax.random.fold_in(jax.random.key(seed), step)) for seed in seeds]
    envs = [HostEnv(args.env_id, seed) for seed in seeds]
    first_obs = np.stack([env.obs for env in envs])
    numbers = np.zeros(len(seeds), np.float32)
    flags = np.zeros(len(seeds), bool)

    def host_step(actions):  # NumPy only: JAX inside a callback can hang
        results = [env.step(action) for env, action in zip(envs, np.asarray(actions).tolist(), strict=True)]
        return tuple(np.stack(parts) for parts in zip(*results, strict=True))

    def step_all(actions):
        return io_callback(host_step, (first_obs, numbers, flags, flags, first_obs), actions, ordered=True)

    @custom_vmap
    def step(action):
        return jax.tree.map(lambda x: x[0], step_all(action[None]))

    @step.def_vmap
    def _(num_seeds, is_batched, actions):
        return step_all(actions), (True,) * 5

    def replay(actions, expected_obs):
        for action in tqdm.tqdm(actions, "replaying", disable=None):  # (num_seeds,)
            host_step(action)
        repeats = np.array_equal(np.stack([env.obs for env in envs]), expected_obs)
        advice = "continue with new episodes by --resume fresh, or --overwrite it"
        require(repeats, f"{args.env_id} does not repeat itself (a clock?), or its record is damaged; {advice}")

    return Env(
        state=None,
        obs=first_obs,
        action=np.int32(0),
        step=lambda state, action: (state, step(action)),
        replay=replay,
        close=lambda: [env.pool.close() for env in envs],
    )


@partial(jax.jit, static_argnums=0)
def select_action(args, network, obs, key):
    return act(q_values(args, network, obs), key, args.eval_e)


def play_outside(args, network, key):
    """One evaluation episode outside the program -> its return and length."""
    env = HostEnv(args.env_id, new_seed(key))
    total = 0.0
    for length in range(1, args.eval_steps + 1):
        action = select_action(args, network, env.obs, jax.random.fold_in(key, length))
        _, reward, terminated, truncated, _ = env.step(int(action))
        total += reward
        if terminated or truncated:
            break
    env.pool.close()
    return total, length


def make_env(args, seeds, step=0):
    """gymnax: inside the training program, their states are arrays in the checkpoints. Others: see make_host_env."""
    make_task(args)
    if library_of(args.env_id) != "gymnax":
        return make_host_env(args, seeds, step)
    keys = []
    for seed in seeds:
        env_key, _, _ = jax.random.split(jax.random.key(seed), 3)  # the other two are for init_state
        keys.append(env_key)
    reset = jax.jit(jax.vmap(partial(env_reset, args)))
    state, obs = reset(jnp.stack(keys))
    return Env(
        state=state,
        obs=obs,
        action=np.int32(0),
        step=partial(env_step, args),
        replay=None,
        close=lambda: None,
    )


def evaluate(args, learner, seeds, step):
    """Plays episodes, seeded by seed and step so that they can be repeated -> tag: (num_seeds,)."""
    keys = []
    for seed in seeds:
        key = jax.random.fold_in(jax.random.key(seed), step)
        keys.append(jax.random.split(key, args.eval_episodes))
    if library_of(args.env_id) == "gymnax":
        returns, lengths = jax.device_get(play(args, learner.network, jnp.stack(keys)))
    else:
        played = []
        for i, episode_keys in enumerate(keys):
            network = jax.tree.map(lambda x, i=i: x[i], learner.network)
            played.append([play_outside(args, network, key) for key in episode_keys])
        returns, lengths = np.moveaxis(np.array(played), -1, 0)
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
