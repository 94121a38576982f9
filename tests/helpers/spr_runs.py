"""What tests of SPR, SR-SPR and BBF share."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

TINY = {"env_id": "Breakout-v5", "hidden_dim": 4, "batch_size": 8, "buffer_size": 200, "n_step": 5, "jumps": 4}
TINY |= {"learning_starts": 1000, "total_timesteps": 1000, "num_atoms": 7, "v_max": 2.0}  # 1000: without an update
SMALLEST = {"spr": {"channels": 1}, "sr_spr": {"channels": 1}, "bbf": {"width": 1}}


def tiny(script, **options):
    return script.Args(**TINY | SMALLEST[script.__name__] | options)


@partial(jax.jit, static_argnums=(0, 1))
def moved(init_learner, args, seed):  # from where it begins; biases, too
    fresh = init_learner(args, jax.random.key(seed), jnp.zeros((4, 84, 84), jnp.uint8))
    noise = lambda x: 0.05 * jax.random.normal(jax.random.key(seed + x.size), (x.size,)).reshape(x.shape)
    network = jax.tree.map_with_path(lambda path, x: x if "sigma" in str(path) else x + noise(x), fresh.network)
    return fresh.replace(network=network, target_network=network)


def learner(script, args, seed):
    return moved(script.init_learner, args, seed)


def filled(script, args, seed, rows):
    """One seed's State in the midst of training, without having played: what so many steps of random games would have
    stored, and which rows may be sampled."""
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
