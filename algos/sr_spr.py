"""SR-SPR: SPR at a high replay ratio, kept able to learn by periodic resets of its heads and half-resets of the rest.

Paper:   D'Oro et al. 2023, "Sample-Efficient Reinforcement Learning by Breaking the Replay Ratio Barrier" (ICLR 2023).
Parents: spr.py (differs: Args, AT_MOST_ONE, MAY_BE_ZERO, num_useful_resets_until, keeps_weights, reset, chunk_length,
         before_chunk, metrics), sr_sac.py (takes: num_resets_until, steps_to_reset, reset_all)
Run:     python algos/sr_spr.py --env-id Pong-v5 --replay-ratio 2 --num-seeds 5
         The same command continues an interrupted run, to the same bits.
Expect:  not measured yet; for GPUs. BBF paper, of 26 games at ratio 16: IQM 0.631 of human-normalized scores.
"""

import concurrent.futures
import contextlib
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
    env_id: str = "Pong-v5"  # Atari game of EnvPool: Pong-v5, MsPacman-v5, ...
    sticky: float = 0.0  # probability, at every emulator frame, that the last action is repeated; 200M frames: 0.25
    terminal_on_life_loss: bool = True  # in learning, a lost life ends the return; an episode is a whole game anyway
    max_episode_steps: int = 27_000  # a game that has not ended after so many steps is cut there, also in evaluations
    seed: int = 1  # first seed; the command trains seeds `seed` to `seed + num_seeds - 1`
    num_seeds: int = 1  # seeds trained side by side in one program, each in its own folder
    total_timesteps: int = 100_000  # environment steps (4 frames) per seed; may be raised to continue a finished run

    # Algorithm
    replay_ratio: float = 2  # gradient updates per environment step; may be a fraction
    learning_starts: int = 2_000  # environment step of the first update; until then, actions are uniformly random
    buffer_size: int = 100_000  # capacity of the replay buffer, in environment steps: 7 kB each
    batch_size: int = 32  # transitions per update, sampled in proportion to the root of their last loss
    gamma: float = 0.99  # discount factor
    n_step: int = 10  # rewards in a target, before the value of the target network
    end_e: float = 0.0  # probability of a random action at the end of exploration
    exploration_steps: int = 2_000  # environment steps, from learning_starts on, over which it falls from 1 to end_e
    learning_rate: float = 1e-4  # step size of Adam
    tau: float = 0.005  # step size of the target network's moving average, which acts; 1: a copy after every update
    reset_interval: int = 40_000  # gradient updates between two resets; 0 never resets
    resets_end: int = 100_000  # environment step before which a whole interval must follow a reset, or it is left out
    shrink_factor: float = 0.8  # share of their weights that encoder and transition model keep; the rest is fresh
    # On, as in the paper; the released settings of SR-SPR have no noise.
    noise_scale: float = 0.5  # of the noise in dense layers, which explores; 0: none, and epsilon explores alone
    num_atoms: int = 51  # of a distribution: values whose probabilities are learned, evenly from -v_max to v_max
    v_max: float = 10  # of a distribution: the largest return that can be represented
    jumps: int = 5  # environment steps whose representations are predicted: the paper's K
    spr_weight: float = 5  # of the loss of these predictions, which is a mean over the jumps
    channels: int = 32  # features of the first convolution; the other two have twice as many
    hidden_dim: int = 512  # width of the hidden layer; before its ReLU, that is the projection to predict

    # Evaluation and logging
    log_interval: int = 1_000  # environment steps between two logs
    eval_interval: int = 10_000  # environment steps between two evaluations, a multiple of log_interval; 0: none
    eval_episodes: int = 10  # games per evaluation
    final_eval_episodes: int = 100  # games of the evaluation at the end, and of --evaluate
    eval_e: float = 0.001  # probability of a random action in evaluations

    # Run folder
    exp_name: str = Path(__file__).stem  # part of the folder's name
    runs_dir: str = "runs"  # parent of all run folders
    checkpoint_interval: int = 10_000  # environment steps between two checkpoints; 0 saves at the end only
    resume: Literal["exact", "fresh"] = "exact"  # exact replays the recorded actions; fresh begins new episodes instead
    overwrite: bool = False  # discard what this run has saved and start from scratch
    evaluate: bool = False  # evaluate the newest checkpoint, print the returns and exit


PACKAGES = ("envpool", "flax", "jax", "jaxlib", "numpy", "optax")  # whose versions run.json holds
RUN_NAME = "{env_id}__{exp_name}__rr{replay_ratio:g}"  # of a run's folder; the seed is appended
AT_MOST_ONE = ("gamma", "sticky", "end_e", "eval_e", "tau", "shrink_factor")
MAY_BE_ZERO = (
    *AT_MOST_ONE,
    "spr_weight",
    "noise_scale",
    "reset_interval",
    "resets_end",
)  # the other numbers are positive


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
    require(args.num_atoms >= 2, f"--num-atoms cannot be {args.num_atoms}")
    require(args.jumps <= args.n_step, "--jumps cannot be more than --n-step: only so many later rows are stored")
    numerator, denominator = fractions.Fraction(str(args.replay_ratio)).as_integer_ratio()
    require(numerator * denominator < 2**31, "--replay-ratio has too many digits")
    require(args.total_timesteps * args.replay_ratio < 2**31, "--replay-ratio makes 2^31 updates or more")
    require(args.learning_starts <= args.total_timesteps, "--learning-starts lies after the end, --total-timesteps")
    enough = args.batch_size + args.n_step + 3 <= min(args.buffer_size, args.learning_starts)
    require(enough, "--batch-size and --n-step need more steps than are stored when learning starts")


# ======================================================================================================================
# ALGORITHM: everything here is written for one seed; train_chunk vmaps it.
# ======================================================================================================================

# ----------------------------------------------------------------------------------------------------------- Networks


def convolve(x, kernel, strides, padding, **_):
    """What nn.Conv calls to convolve images (n, height, width, channels); kernels are square and of whole strides.

    XLA's convolution is slow on CPUs inside a loop. Here, the image is cut into blocks of stride x stride pixels, and
    the kernel likewise: each of the kernel's blocks gives a matrix product with the image shifted by whole blocks.
    """
    size, _, channels, features = kernel.shape
    stride = strides[0]
    border = jax.lax.padtype_to_pads(x.shape[1:3], (size, size), strides, padding)
    x = jnp.pad(x, [(0, 0), *border, (0, 0)])
    rows = x.shape[1] // stride  # of blocks
    columns = x.shape[2] // stride
    x = x.reshape(-1, rows, stride, columns, stride, channels).swapaxes(2, 3)
    x = x.reshape(-1, rows, columns, stride**2 * channels)
    blocks = size // stride  # of the kernel, each way
    kernel = kernel.reshape(blocks, stride, blocks, stride, channels, features).swapaxes(1, 2)
    kernel = kernel.reshape(blocks, blocks, stride**2 * channels, features)
    rows -= blocks - 1  # of the result
    columns -= blocks - 1
    total = 0
    for i in range(blocks):
        for j in range(blocks):
            total += x[:, i : i + rows, j : j + columns] @ kernel[i, j]
    return total


def xavier_uniform_init(key, shape, _=None):
    """Glorot & Bengio 2010, equation 16, for kernels (height, width, inputs, features) and (features, inputs)."""
    pixels = np.prod(shape[:-2])  # of a kernel; 1 in a dense layer
    bound = (6 / pixels / sum(shape[-2:])) ** 0.5
    flat = jax.random.uniform(key, (np.prod(shape),), minval=-1)  # XLA compiles one flat vector faster
    return bound * flat.reshape(shape)


class NatureEncoder(nn.Module):
    channels: int

    @nn.compact
    def __call__(self, obs):  # frames (4, 84, 84), the newest last -> (11, 11, 2 * channels)
        conv = partial(nn.Conv, kernel_init=xavier_uniform_init, conv_general_dilated=convolve)
        x = jnp.moveaxis(obs, 0, -1) / 255
        x = nn.relu(conv(self.channels, (8, 8), 4)(x))
        x = nn.relu(conv(2 * self.channels, (4, 4), 2)(x))
        return nn.relu(conv(2 * self.channels, (3, 3))(x))


def pytorch_uniform_init(fan_in):
    """PyTorch's default for weights and biases, drawn as one flat vector, which XLA compiles faster."""

    def init(key, shape):
        flat = jax.random.uniform(key, (np.prod(shape),), minval=-1)
        return flat.reshape(shape) * fan_in**-0.5

    return init


class NoisyDense(nn.Module):
    """A dense layer that adds noise to its parameters, given a key. Fortunato et al. 2018, equations 9 to 11.

    The noise is one number for each input and each output. How much of it each parameter takes is learned.
    """

    features: int
    noise_scale: float  # 0 has no noise
    prefix: str = ""  # of the names of the parameters

    @nn.compact
    def __call__(self, x, noisy=True):  # (inputs,) -> (features,)
        shape = (self.features, x.size)
        init = pytorch_uniform_init(x.size)
        kernel = self.param(f"{self.prefix}kernel", init, shape)
        bias = self.param(f"{self.prefix}bias", init, shape[:1])
        if self.noise_scale:
            init_sigma = nn.initializers.constant(self.noise_scale * x.size**-0.5)
            kernel_sigma = self.param(f"{self.prefix}kernel_sigma", init_sigma, shape)
            bias_sigma = self.param(f"{self.prefix}bias_sigma", init_sigma, shape[:1])
            if noisy and self.has_rng("noise"):
                size = sum(shape)  # the draws are made in two equal halves
                noise = jax.random.normal(self.make_rng("noise"), (size + size % 2,)).reshape(2, -1)
                # In a loop: otherwise XLA fuses this with the product and computes it anew for each weight.
                noise = jax.lax.map(lambda z: jnp.sign(z) * jnp.sqrt(jnp.abs(z)), noise).reshape(-1)
                kernel += kernel_sigma * jnp.outer(noise[: self.features], noise[self.features : size])
                bias += bias_sigma * noise[: self.features]
        return kernel @ x + bias


def rescale(x):  # to values between 0 and 1
    lowest = x.min()
    return (x - lowest) / (x.max() - lowest + 1e-5)


class Outputs(NamedTuple):  # of the network
    q: jax.Array  # (num_actions,)
    logits: jax.Array  # (num_actions, num_atoms)
    projection: jax.Array  # of what the frames show (hidden_dim,)
    predictions: jax.Array  # of the projections after each action (jumps, hidden_dim)


class Network(nn.Module):
    args: Args

    @nn.compact
    def __call__(self, obs, actions=()):  # frames (4, 84, 84), actions from there on (jumps,) -> Outputs
        args = self.args
        dense = partial(NoisyDense, noise_scale=args.noise_scale)
        conv = partial(nn.Conv, kernel_init=xavier_uniform_init, conv_general_dilated=convolve)
        encoder = NatureEncoder(args.channels)
        nn.share_scope(self, encoder)  # its convolutions are Conv_0, Conv_1 and Conv_2 of this network
        latent = rescale(encoder(obs))  # (11, 11, features)
        features = latent.shape[-1]

        project_latent = dense(args.hidden_dim)
        predictor = nn.Dense(args.hidden_dim, kernel_init=xavier_uniform_init)
        transition_1 = conv(features, (3, 3), name="Conv_3")
        transition_2 = conv(features, (3, 3), name="Conv_4")

        # Rainbow's heads. Their hidden layer is the projection, with noise.
        x = nn.relu(project_latent(latent.reshape(-1)))
        advantage = dense(num_actions(args) * args.num_atoms)(x).reshape(-1, args.num_atoms)
        logits = dense(args.num_atoms)(x) + advantage - advantage.mean(0)
        q = jax.nn.softmax(logits) @ support(args)

        # The transition model sees an action as planes of zeros and ones. Here, projections have no noise.
        projection = project_latent(latent.reshape(-1), noisy=False)
        predictions = []
        for one_hot in jax.nn.one_hot(jnp.array(actions, int), num_actions(args)):
            planes = jnp.broadcast_to(one_hot, (*latent.shape[:2], one_hot.size))
            x = jnp.concatenate([latent, planes], axis=-1)
            x = nn.relu(transition_1(x))
            latent = rescale(nn.relu(transition_2(x)))
            predictions.append(predictor(project_latent(latent.reshape(-1), noisy=False)))
        return Outputs(q=q, logits=logits, projection=projection, predictions=jnp.array(predictions))


# -------------------------------------------------------------------------------------------------------------- State


@flax.struct.dataclass
class Learner:  # everything that is learned
    network: dict
    target_network: dict
    opt: optax.OptState


@flax.struct.dataclass
class ReplayRow:  # one environment step; stacks and next frames are read from the rows around it
    frame: jax.Array  # (84, 84) uint8, the newest that the agent saw
    frames_in_stack: jax.Array  # older frames in the agent's stack: 0 at the start of a game or life, at most 3
    action: jax.Array
    reward: jax.Array  # clipped to [-1, 1]
    terminated: jax.Array  # the game was over, or a life was lost and that counts
    truncated: jax.Array  # the game was cut; the next row holds its last frame, from which the target bootstraps
    valid: jax.Array  # False for the row after a game's end, whose step only began the next game


@flax.struct.dataclass
class Batch:  # sampled transitions, made n steps long
    obs: jax.Array  # (4, 84, 84)
    action: jax.Array
    reward: jax.Array  # discounted sum
    discount: jax.Array  # of the value of next_obs; 0 if the game or the life ended before
    next_obs: jax.Array  # n steps later, or the last of the game
    index: jax.Array | None = None  # rows of the replay
    weight: jax.Array | None = None  # of the loss
    jump_action: jax.Array | None = None  # of the row and of the next ones (jumps,)
    jump_obs: jax.Array | None = None  # after each of these actions (jumps, 4, 84, 84)
    jump_mask: jax.Array | None = None  # (jumps,) 1, or 0 from the end of the game or the life on


@flax.struct.dataclass
class State:  # everything that changes during training, except the inside of EnvPool; a checkpoint is exactly this
    step: jax.Array  # environment steps so far, the same for all seeds
    env: None  # EnvPool's games cannot be saved
    key: jax.Array
    learner: Learner
    replay: ReplayRow  # ring buffer: leaves (buffer_size, ...)
    priorities: jax.Array  # of the rows that may be sampled (buffer_size,); 0 for all others
    stored: jax.Array  # rows stored so far
    obs: jax.Array  # (4, 84, 84) uint8, the newest frame last
    frames_in_stack: jax.Array  # as in ReplayRow
    lives: jax.Array
    done: jax.Array  # the last step ended a game, so the next one only begins another
    episode_return: jax.Array
    episode_length: jax.Array
    metric_sums: dict  # sums since the last log, by metric


SEED_AXES = State(**dict.fromkeys(State.__dataclass_fields__, 0)).replace(step=None, env=None)


def init_learner(args, key, obs):
    network = Network(args).init(key, obs, actions=[0])
    return Learner(network=network, target_network=network, opt=make_optimizer(args).init(network))


def acting_network(learner):  # of training and evaluation
    return learner.target_network


def init_state(args, action, seed, env, obs):
    """The state before the first step, in a game whose first frame is obs (84, 84); `action` is an example."""
    key, learner_key = jax.random.split(jax.random.key(seed))
    zero = jnp.float32(0)
    no = jnp.bool(False)
    none = jnp.uint8(0)
    action = jnp.int32(action)
    row = ReplayRow(frame=obs, frames_in_stack=none, action=action, reward=zero, terminated=no, truncated=no, valid=no)
    replay = jax.tree.map(lambda x: jnp.zeros((args.buffer_size, *x.shape), x.dtype), row)
    no_frames = jnp.zeros((4, 84, 84), jnp.uint8)
    obs = push_frame(no_frames, obs, fresh=True)
    learner = init_learner(args, learner_key, obs)
    priorities = jnp.zeros(args.buffer_size)
    batch = jax.eval_shape(partial(sample_batch, args), replay, priorities, key)
    _, info = jax.eval_shape(partial(update, args), learner, batch, key)
    del info["priorities"]
    metrics = [*info, "updates", "episodes", "charts/episodic_return", "charts/episodic_length"]
    return State(
        step=jnp.int32(0),
        env=env,
        key=key,
        learner=learner,
        replay=replay,
        priorities=priorities,
        stored=jnp.int32(0),
        obs=obs,
        frames_in_stack=none,
        lives=jnp.int32(0),
        done=no,
        episode_return=zero,
        episode_length=jnp.int32(0),
        metric_sums=dict.fromkeys(metrics, zero),
    )


# ------------------------------------------------------------------------------------------------------------- Replay


PRIORITY_EXPONENT = 0.5  # rows are sampled in proportion to (last loss)^this
IMPORTANCE_EXPONENT = 0.5  # how far weights in the loss correct for the priorities; 1 corrects fully


def store(args, state, row):
    """The state with one more row in the replay, and with the priorities that this changes."""
    index = state.stored % args.buffer_size
    replay = jax.tree.map(lambda ring, x: ring.at[index].set(x), state.replay, row)
    # A row with its n steps and the frames after them may be sampled now, with the largest priority of all. The third
    # row from here may not any more: this one has overwritten a frame of its stack.
    ready = state.stored - args.n_step
    ready_is_valid = (ready >= 0) & replay.valid[ready % args.buffer_size]
    largest = state.priorities.max()
    largest += largest == 0
    changed = jnp.stack([ready, state.stored + 3]) % args.buffer_size
    new = jnp.stack([jnp.where(ready_is_valid, largest, 0), 0])
    priorities = state.priorities.at[changed].set(new)
    return state.replace(replay=replay, priorities=priorities, stored=state.stored + 1)


def update_priorities(priorities, index, new):
    first = (index[:, None] == index).argmax(1)  # a row that occurs twice gets one priority, whatever the order
    return priorities.at[index].set(new[first])


def frame_stacks(args, replay, index):
    """What the agent saw at these rows of the replay (...,) -> (..., 4, 84, 84)"""
    back = jnp.arange(3, -1, -1)
    frames = replay.frame[(index[..., None] - back) % args.buffer_size]
    in_stack = back <= replay.frames_in_stack[index][..., None]
    return jnp.where(in_stack[..., None, None], frames, 0)


def n_steps(args, replay, index, n, gamma):
    """Makes rows (...,) n <= args.n_step steps long, or up to the end of their game or life -> Batch.

    The target bootstraps from the frames after n rewards, as the papers have it; BBF's released code has n - 1.
    """
    steps = jnp.arange(args.n_step)
    rows = (index[..., None] + steps) % args.buffer_size  # (..., args.n_step)
    ends = replay.terminated[rows] | replay.truncated[rows]
    last = (ends | (steps >= n - 1)).argmax(-1)  # the last step that counts
    rewards = jnp.where(steps <= last[..., None], gamma**steps * replay.reward[rows], 0)
    terminated = replay.terminated[(index + last) % args.buffer_size]
    return Batch(
        obs=frame_stacks(args, replay, index),
        action=replay.action[index],
        reward=rewards.sum(-1),
        discount=gamma ** (last + 1.0) * (1 - terminated),
        next_obs=frame_stacks(args, replay, (index + last + 1) % args.buffer_size),
    )


def sample_rows(args, priorities, key):
    """Samples by priority -> rows of the replay (batch_size,), weights of their losses (batch_size,).

    One row comes from each of batch_size equal parts of the sum of priorities: Schaul et al. 2016, "Prioritized
    Experience Replay", section 3.3. Section 3.4 has the weights.
    """
    # It rises only at rows with a priority: rounding cannot lead to another row.
    cumulative = jax.lax.cummax(jnp.where(priorities > 0, jnp.cumsum(priorities), 0))
    draws = jax.random.uniform(key, (args.batch_size,))
    parts = jnp.arange(args.batch_size) + draws
    mass = parts / args.batch_size * cumulative[-1]
    index = jnp.searchsorted(cumulative, mass, side="right").clip(max=cumulative.argmax())
    return index, (priorities[index] / priorities[index].min()) ** -IMPORTANCE_EXPONENT


def sample_batch(args, replay, priorities, key):
    """Samples by priority -> Batch with leaves (batch_size, ...)."""
    index, weight = sample_rows(args, priorities, key)
    batch = n_steps(args, replay, index, args.n_step, args.gamma)
    jumps = jnp.arange(args.jumps)
    before = (index[:, None] + jumps) % args.buffer_size  # (batch_size, jumps)
    after = (before + 1) % args.buffer_size
    ends = replay.terminated[before] | replay.truncated[before]
    return batch.replace(
        index=index,
        weight=weight,
        jump_action=replay.action[before],
        jump_obs=frame_stacks(args, replay, after),
        jump_mask=1 - jax.lax.cummax(ends.astype(int), axis=1),  # nothing beyond an end is predicted
    )


# -------------------------------------------------------------------------------------------------- Losses and update


ADAM_EPS = 1.5e-4


def make_optimizer(args):
    return optax.adam(args.learning_rate, eps=ADAM_EPS)


def support(args):  # (num_atoms,)
    return jnp.linspace(-args.v_max, args.v_max, args.num_atoms)


def q_values(args, network, obs, **rngs):  # one observation, noise=key or nothing for none -> (num_actions,)
    return Network(args).apply(network, obs, rngs=rngs)[0]


def project(args, values, probabilities):
    """A distribution on `values` (num_atoms,) -> the probabilities of the support. Bellemare et al. 2017, algorithm 1.

    The probability of a value goes to its two neighbors on the support, more of it to the nearer one. A value beyond
    the support counts as the end of the support.
    """
    clipped = values.clip(-args.v_max, args.v_max)
    position = (clipped + args.v_max) * (args.num_atoms - 1) / (2 * args.v_max)  # on the support, from 0
    distance = jnp.abs(position[:, None] - jnp.arange(args.num_atoms))
    return probabilities @ (1 - distance).clip(0)


def augment(obs, key):
    """Shifts frames (4, 84, 84) together by up to 4 pixels each way and scales their brightness -> float32.

    Pixels at the edges are repeated. DrQ paper, section 3.1; the factor around 1 is that of the released code of SPR
    and DrQ for Atari.
    """
    shift_key, factor_key = jax.random.split(key)
    shifts = jax.random.randint(shift_key, (2,), -4, 5)
    pixels = jnp.arange(84)[:, None] + shifts
    rows, columns = pixels.clip(0, 83).T
    factor = 1 + 0.05 * jax.random.normal(factor_key).clip(-2, 2)
    return obs[:, rows[:, None], columns] * factor


def augment_row(row, key):  # a row of a Batch, with a shift and a brightness for each of its stacks
    stacks = jnp.concatenate([row.obs[None], row.jump_obs, row.next_obs[None]])  # (jumps + 2, 4, 84, 84)
    keys = jax.random.split(key, len(stacks))
    stacks = jax.vmap(augment)(stacks, keys)
    return row.replace(obs=stacks[0], jump_obs=stacks[1:-1], next_obs=stacks[-1])


def q_loss(network, args, target_network, row, logits, noise_keys):
    """Cross-entropy of one row to its n-step target. Rainbow paper, section "The Integrated Agent"."""
    selection_key, target_key = noise_keys
    best = q_values(args, network, row.next_obs, noise=selection_key).argmax()
    next_logits = Network(args).apply(target_network, row.next_obs, rngs={"noise": target_key}).logits
    values = row.reward + row.discount * support(args)
    target_distribution = project(args, values, jax.nn.softmax(next_logits[best]))
    return optax.softmax_cross_entropy(logits[row.action], target_distribution)


def spr_loss(args, target_network, row, predictions):
    """Error of one row's predictions, a mean over the jumps. SPR paper, section "Self-Predictive Representations"."""
    apply = partial(Network(args).apply, target_network)
    targets = jax.vmap(apply)(row.jump_obs).projection  # (jumps, hidden_dim)
    # Twice the cosine distance is the squared distance of unit vectors.
    errors = 2 * optax.cosine_distance(predictions, targets, epsilon=1e-8)
    return (row.jump_mask * errors).mean()


def total_loss(network, args, target_network, batch, noise_keys):
    """Weighted mean of both losses over the batch."""
    key, *next_keys = noise_keys  # each pass has noise of its own, which the whole batch shares

    def one_loss(row):
        outputs = Network(args).apply(network, row.obs, row.jump_action, rngs={"noise": key})
        q_error = q_loss(network, args, target_network, row, outputs.logits, next_keys)
        return q_error, spr_loss(args, target_network, row, outputs.predictions), outputs.q.mean()

    losses, spr_losses, values = jax.vmap(one_loss)(batch)
    info = {
        "losses/q_loss": (batch.weight * losses).mean(),
        "losses/spr_loss": spr_losses.mean(),
        "losses/q_values": values.mean(),
        # Every row gets a new priority; BBF's released code sets those of the first rows of a batch only.
        "priorities": (losses + 1e-10) ** PRIORITY_EXPONENT,
    }
    return (batch.weight * (losses + args.spr_weight * spr_losses)).mean(), info


def update(args, learner, batch, key):
    """One update of the network and of its moving average; info has the new priorities of the batch, too."""
    _, augment_key, *noise_keys = jax.random.split(key, 5)  # the first sampled the batch, in train_step
    row_keys = jax.random.split(augment_key, args.batch_size)
    batch = jax.vmap(augment_row)(batch, row_keys)
    grads, info = jax.grad(total_loss, has_aux=True)(learner.network, args, learner.target_network, batch, noise_keys)
    updates, opt = make_optimizer(args).update(grads, learner.opt)
    network = optax.apply_updates(learner.network, updates)
    target_network = optax.incremental_update(network, learner.target_network, args.tau)
    return Learner(network=network, target_network=target_network, opt=opt), info


# ----------------------------------------------------------------------------------------------------------- Training


def num_updates_until(args, step):
    """Gradient updates that belong to the first `step` steps: floor(step * replay_ratio), exact in 32-bit integers."""
    numerator, denominator = fractions.Fraction(str(args.replay_ratio)).as_integer_ratio()
    return step // denominator * numerator + step % denominator * numerator // denominator


def num_resets_until(args, step):
    if args.reset_interval == 0:
        return 0
    return num_updates_until(args, step) // args.reset_interval


def steps_to_reset(args, step):
    """Environment steps until the next reset falls due: a chunk ends there."""
    if args.reset_interval == 0:
        return args.total_timesteps
    due = num_resets_until(args, step) + 1
    return math.ceil(due * args.reset_interval / fractions.Fraction(str(args.replay_ratio))) - step


def num_useful_resets_until(args, step):
    """Resets that fell due in the first `step` steps, but for those too late for a whole interval until resets_end.

    Updates count from step 0 on, also those that learning_starts left out: at a ratio of 2, the resets fall due at
    steps 20,000, 40,000, 60,000 and 80,000, and not at 100,000.
    """
    most = num_resets_until(args, args.resets_end) - 1
    return jnp.minimum(num_resets_until(args, step), min(max(most, 0), 2**31 - 1))


def keeps_weights(layer):
    """Whether a reset keeps a part of the weights of the layer with this name in the network's parameters.

    So it is for the convolutions: the encoder and the transition model. The dense layers start anew: the projection,
    which is the hidden layer of the heads, the two heads, and the predictor.
    """
    return layer.startswith("Conv_")


def reset(args, state):
    """A fresh learner, but for a part of the old weights of some layers: shrink and perturb.

    Adam starts anew for all layers. The target network becomes a copy of the network; in the released code, its fresh
    weights are others.
    """
    reset_key = jax.random.split(state.key, 5)[4]  # train_step takes the others
    fresh = init_learner(args, reset_key, state.obs)

    def blend(new, old):
        return new + args.shrink_factor * (old - new)

    layers = {}
    for name, new in fresh.network["params"].items():
        old = state.learner.network["params"][name]
        layers[name] = jax.tree.map(blend, new, old) if keeps_weights(name) else new
    network = {"params": layers}
    return fresh.replace(network=network, target_network=network)


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
    key, act_key, noise_key, update_key = jax.random.split(state.key, 4)
    step = state.step + 1

    # Act.
    q = q_values(args, acting_network(state.learner), state.obs, noise=noise_key)
    action = act(q, act_key, epsilon(args, step))
    env, (frame, reward, terminated, truncated, lives) = env_step(state.env, action)
    life_lost = args.terminal_on_life_loss & (lives < state.lives) & ~state.done

    # Store. The step after a game's end only begins the next game: its row holds the last frame of the old one.
    row = ReplayRow(
        frame=state.obs[-1],
        frames_in_stack=state.frames_in_stack,
        action=action,
        reward=reward.clip(-1, 1),
        terminated=terminated | life_lost,
        truncated=truncated,
        valid=~state.done,
    )
    state = store(args, state, row)

    # Learn.
    def one_update(i, carry):
        learner, priorities, sums = carry
        key = jax.random.fold_in(update_key, i)
        sample_key = jax.random.split(key, 5)[0]  # the others are for update
        batch = sample_batch(args, state.replay, priorities, sample_key)
        learner, info = update(args, learner, batch, key)
        priorities = update_priorities(priorities, batch.index, info.pop("priorities"))
        return learner, priorities, add_to(sums, info | {"updates": 1})

    num_updates = num_updates_until(args, step) - num_updates_until(args, step - 1)
    num_updates = jnp.where(step >= args.learning_starts, num_updates, 0)
    carry = (state.learner, state.priorities, state.metric_sums)
    learner, priorities, sums = jax.lax.fori_loop(0, num_updates, one_update, carry)

    # Log.
    done = terminated | truncated
    episode_return = jnp.where(state.done, 0, state.episode_return + reward)
    episode_length = jnp.where(state.done, 0, state.episode_length + 1)
    episode = {"episodes": 1, "charts/episodic_return": episode_return, "charts/episodic_length": episode_length}
    sums = add_to(sums, {name: jnp.where(done, value, 0) for name, value in episode.items()})
    finite = {name: jnp.isfinite(total) for name, total in sums.items()}

    fresh = state.done | life_lost
    older_frames = jnp.minimum(state.frames_in_stack + 1, 3)
    new_state = state.replace(
        step=step,
        env=env,
        key=key,
        learner=learner,
        priorities=priorities,
        obs=push_frame(state.obs, frame, fresh),
        frames_in_stack=jnp.where(fresh, 0, older_frames).astype(jnp.uint8),
        lives=lives,
        done=done,
        episode_return=episode_return,
        episode_length=episode_length,
        metric_sums=sums,
    )
    return new_state, (action, finite)


def fresh_episode(args, state, obs):
    """The state for a new game whose first frame is obs (84, 84), where a resume cannot restore the old game.

    The old game counts as cut: its last row becomes truncated, and one more row holds the frame to bootstrap from.
    """
    last = (state.stored - 1) % args.buffer_size
    truncated = state.replay.truncated.at[last].set(~state.replay.terminated[last])
    replay = state.replay.replace(truncated=truncated)
    row = jax.tree.map(lambda ring: jnp.zeros_like(ring[0]), replay)  # not valid
    row = row.replace(frame=state.obs[-1], frames_in_stack=state.frames_in_stack)
    state = store(args, state.replace(replay=replay), row)
    return state.replace(
        obs=push_frame(state.obs, obs, fresh=True),
        frames_in_stack=jnp.uint8(0),
        lives=jnp.int32(0),
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
    """Steps from `step` to the next look at signals, logs and checkpoints: at most about 200 updates."""
    updates_per_step = max(1, args.replay_ratio) * args.num_seeds
    chunks = math.ceil(args.log_interval * updates_per_step / 200)
    chunk = math.ceil(args.log_interval / chunks)  # in equal parts of a log's interval
    since_log = step % args.log_interval
    return min(
        chunk - since_log % chunk,
        args.log_interval - since_log,
        args.total_timesteps - step,
        steps_to_reset(args, step),
    )


@partial(jax.jit, static_argnums=0)
def reset_all(args, state):
    return jax.vmap(partial(reset, args), in_axes=(SEED_AXES,))(state)


def before_chunk(args, step, state):
    """Resets the learners of all seeds if that fell due in the last step: it comes after that step's evaluation."""
    if step == 0 or num_useful_resets_until(args, step) == num_useful_resets_until(args, step - 1):
        return state
    return state.replace(learner=reset_all(args, state))


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
        "charts/episodes": sums["episodes"],
        "charts/updates": jnp.maximum(0, num_updates_until(args, state.step) - updates_before),
        "charts/resets": num_useful_resets_until(args, state.step - 1),
    }


# ======================================================================================================================
# ENVIRONMENT AND EVALUATION: the same text in all scripts for EnvPool's Atari games.
# ======================================================================================================================


class Env(NamedTuple):
    """One environment per seed: what the RUN band needs of it."""

    state: Any  # at the first step; SEED_AXES.env says whether it has an axis of seeds
    obs: Any  # first observations (num_seeds, ...)
    action: np.ndarray  # an example of one seed's action: its shape and dtype in the record of actions
    step: Callable  # (state, action) -> state, what train_step expects; of one seed, to be vmapped
    replay: Callable | None  # (actions, obs) repeats recorded actions at a resume; None if checkpoints hold `state`
    close: Callable  # frees what the environments hold


def env_versions(args):
    """Versions that results depend on beside those of PACKAGES: none."""
    return {}


def num_actions(args):
    return envpool.make_spec(args.env_id).action_space.n


def push_frame(obs, frame, fresh, xp=jnp):
    """The stack (4, 84, 84) with a new frame, the older ones zero if a game or life has just begun; xp is jnp or np."""
    older = xp.where(fresh, 0, obs[1:])
    return xp.concatenate([older, frame[None]])


def make_pool(args, seeds, **options):
    """EnvPool's games, one per seed: 4 frames an action, minimal actions, 1 to 30 first steps without an action."""
    specs = envpool.registration.registry.specs
    names = [name for name in specs if specs[name][0] == "envpool.atari"]
    close = difflib.get_close_matches(args.env_id, names, 4)
    close += [name for name in names if name.split("-")[0].lower() in args.env_id.lower()]
    require(args.env_id in names, f"there is no Atari game {args.env_id!r}; close names: {', '.join(close)}")
    num_cores = os.cpu_count()
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        num_cores = len(os.sched_getaffinity(0))
    return envpool.make(
        args.env_id,
        env_type="gymnasium",
        num_envs=len(seeds),
        env_seed=seeds,
        num_threads=min(len(seeds), num_cores),
        stack_num=1,  # the replay holds single frames, and frame_stacks puts them together
        max_episode_steps=args.max_episode_steps,
        episodic_life=False,
        use_fire_reset=False,
        repeat_action_probability=args.sticky,
        **options,
    )


def new_seeds(seed, data, count):
    """Seeds of games, drawn from a seed of the run and other data."""
    key = jax.random.fold_in(jax.random.key(seed), data)
    return jax.random.randint(key, (count,), 0, 2**31 - 1).tolist()


def make_env(args, seeds, step=0):
    """Steps all games of a pool at once when vmapped over seeds. The step after a game's end only begins the next one.

    A step returns the new frame, not a stack: frame, reward, terminated, truncated, lives.
    """
    pool_seeds = list(seeds)
    if step > 0:  # a fresh resume: other games than the first ones
        pool_seeds = [new_seeds(seed, step, 1)[0] for seed in seeds]
    pool = make_pool(args, pool_seeds)
    frames, info = pool.reset()
    first_frames = frames[:, 0]
    flags = np.zeros(len(seeds), bool)

    def host_step(action):  # NumPy only: JAX inside a callback can hang
        frames, reward, _, truncated, info = pool.step(np.asarray(action))
        terminated = info["terminated"] > 0  # also if the game is over in the step in which it would be cut
        return frames[:, 0], reward, terminated, truncated & ~terminated, info["lives"]

    def step_all(action):  # a callback, which is one way for CPUs and GPUs
        example = (first_frames, info["reward"], flags, flags, info["lives"])
        return io_callback(host_step, jax.eval_shape(lambda: example), action, ordered=True)

    @custom_vmap
    def pool_step(action):
        return jax.tree.map(lambda x: x[0], step_all(action[None]))

    @pool_step.def_vmap
    def _(num_seeds, is_batched, action):
        return step_all(action), (True,) * 5

    def replay(actions, expected_obs):
        frames = first_frames
        for action in tqdm.tqdm(actions.astype(np.int32), "replaying", disable=None):  # (num_seeds,)
            frames = pool.step(action)[0][:, 0]
        repeats = np.array_equal(frames, expected_obs[:, -1])
        advice = "continue with new games by --resume fresh, or --overwrite it"
        require(repeats, f"{args.env_id} does not repeat itself, or its record is damaged; {advice}")

    return Env(
        state=None,
        obs=first_frames,
        action=np.uint8(0),
        step=lambda state, action: (state, pool_step(action)),
        replay=replay,
        close=pool.close,
    )


@partial(jax.jit, static_argnums=0)
def select_actions(args, network, obs, key, games):
    """Evaluation's epsilon-greedy actions (n,) in these games (n,), for stacks (n, 4, 84, 84)."""

    def one_game(obs, game):
        return act(q_values(args, network, obs), jax.random.fold_in(key, game), args.eval_e)

    return jax.vmap(one_game)(obs, games)


def play_games(args, network, pool, key, count):
    """Plays one game in each environment of an asynchronous pool -> returns, lengths (count,).

    Only games that go on are stepped: one that is stuck holds up nothing but itself.
    """
    returns = np.zeros(count)
    lengths = np.zeros(count)
    lives = np.zeros(count)
    done = np.zeros(count, bool)
    obs = np.zeros((count, 4, 84, 84), np.uint8)
    going = np.arange(count)
    pool.async_reset()
    step = 0
    while True:
        for _ in going:
            frame, reward, terminated, truncated, info = pool.recv()
            i = info["env_id"][0]
            life_lost = info["lives"][0] < lives[i]
            obs[i] = push_frame(obs[i], frame[0, 0], args.terminal_on_life_loss and life_lost, np)
            lives[i] = info["lives"][0]
            lengths[i] = step
            done[i] = terminated[0] or truncated[0]
            returns[i] += reward[0]
        going = np.flatnonzero(~done)
        if not going.size:
            return returns, lengths
        padded = np.resize(going, 1 << int(going.size - 1).bit_length())  # few sizes, so few compilations
        actions = select_actions(args, network, obs[padded], jax.random.fold_in(key, step), padded)
        pool.send(np.asarray(actions)[: going.size], going)
        step += 1


def evaluate(args, learner, seeds, step):
    """Plays games in pools of their own, with the same seeds each time -> tag: (num_seeds,)."""
    is_final = args.evaluate or step == args.total_timesteps
    count = args.final_eval_episodes if is_final else args.eval_episodes
    networks = acting_network(learner)
    returns = np.zeros((len(seeds), count))
    lengths = np.zeros((len(seeds), count))
    for i, seed in enumerate(seeds):
        network = jax.tree.map(lambda x, i=i: x[i], networks)
        pool = make_pool(args, new_seeds(seed, 2**31 - 1, count), batch_size=1)
        key = jax.random.fold_in(jax.random.key(seed), step)
        returns[i], lengths[i] = play_games(args, network, pool, key, count)
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
