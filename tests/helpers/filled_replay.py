"""A State of SPR, SR-SPR or BBF in the midst of training, without having played."""

import jax
import jax.numpy as jnp
import numpy as np


def filled(script, args, seed, rows):
    """One seed's State after so many steps of random games: what is stored, and which rows may be sampled."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(1, 256, (rows, 84, 84), np.uint8)
    state = jax.jit(lambda frame: script.init_state(args, np.uint8(0), seed, None, frame))(frames[0])
    ring = state.replay
    terminated = rng.random(rows) < 0.05
    since = np.arange(rows) - np.maximum.accumulate(np.where(np.r_[True, terminated[:-1]], np.arange(rows), 0))
    stored = ring.replace(
        frame=ring.frame.at[:rows].set(frames),
        frames_in_stack=ring.frames_in_stack.at[:rows].set(np.minimum(since, 3).astype(np.uint8)),
        action=ring.action.at[:rows].set(rng.integers(0, 4, rows)),
        reward=ring.reward.at[:rows].set(rng.integers(-1, 2, rows)),
        terminated=ring.terminated.at[:rows].set(terminated),
        valid=ring.valid.at[:rows].set(True),
    )
    priorities = rng.uniform(0.5, 2, rows) * (np.arange(rows) < rows - args.n_step) * (rng.random(rows) < 0.8)
    return state.replace(
        step=jnp.int32(rows),
        replay=stored,
        priorities=state.priorities.at[:rows].set(priorities),
        stored=jnp.int32(rows),
    )
