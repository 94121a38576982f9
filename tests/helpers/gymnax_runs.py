"""What tests of the scripts on gymnax share."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from common import SMALL_GYMNAX


def begin(script, seeds, **options):
    """A fresh State of these seeds -> args, step function, State."""
    args = script.Args(**SMALL_GYMNAX | {"num_seeds": len(seeds)} | options)
    script.make_task(args)
    init = jax.jit(jax.vmap(partial(script.init_state, args), out_axes=script.AXES))
    return args, partial(script.env_step, args), init(jnp.array(seeds))


def advance(script, args, env_step, state, steps):
    state, finite = script.train_chunk(args, env_step, steps, state)
    assert finite.all()
    return state


def leaves(tree):
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree.leaves_with_path(tree)}


def random_batch(script, size, seed=0, shape=(10, 10, 4), actions=6):
    rng = np.random.default_rng(seed)
    image = lambda: rng.random((size, *shape)) < 0.2
    terminated = rng.random(size) < 0.3
    return script.Transition(
        image(), rng.integers(0, actions, size), np.float32(3 * rng.normal(size=size)), terminated, image()
    )
