"""A run's State without its folder: of any script, for tests that step it themselves."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from common import small


def begin(script, seeds, **options):
    """A fresh State of these seeds -> args, step function, State."""
    options = small(Path(script.__file__).stem) | {"num_seeds": len(seeds)} | options
    args = script.Args(**{name: value for name, value in options.items() if name in script.Args.__dataclass_fields__})
    env = script.make_env(args, seeds)
    init = partial(script.init_state, args, env.action)
    init = jax.vmap(init, in_axes=(0, script.SEED_AXES.env, 0), out_axes=script.SEED_AXES)
    return args, env.step, jax.jit(init)(jnp.array(seeds), env.state, env.obs)


def advance(script, args, env_step, state, steps):
    """-> State, actions (num_seeds, steps, ...)"""
    state, (actions, finite) = script.train_chunk(args, env_step, steps, state)
    assert all(np.all(values) for values in finite.values())
    return state, np.asarray(actions)


def logged(script, args, state):
    """What `metrics` logs: tag -> (num_seeds,)"""
    return jax.device_get(jax.jit(jax.vmap(partial(script.metrics, args), in_axes=(script.SEED_AXES,)))(state))


def leaves(tree):
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree.leaves_with_path(jax.device_get(tree))}


def idle(args, learner, batch, key=None):  # in place of `update` where it is not looked at: it need not be compiled
    prioritized = getattr(batch, "index", None) is not None
    priorities = {"priorities": jnp.zeros(args.batch_size)} if prioritized else {}
    return learner, {"losses/none": jnp.zeros(())} | priorities


def random_batch(script, size, seed=0, shape=(10, 10, 4), actions=6):
    """Transitions of MinAtar's form."""
    rng = np.random.default_rng(seed)
    image = lambda: rng.random((size, *shape)) < 0.2
    terminated = rng.random(size) < 0.3
    return script.Transition(
        image(), rng.integers(0, actions, size), np.float32(3 * rng.normal(size=size)), terminated, image()
    )
