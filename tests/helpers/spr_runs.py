"""What tests of SPR, SR-SPR and BBF share."""

from functools import partial

import jax
import jax.numpy as jnp

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
