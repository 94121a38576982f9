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
    """Steps as the loop of a run makes them, in chunks that end where a reset falls due.

    -> State, actions (num_seeds, steps, ...)
    """
    step = int(state.step)
    end = step + steps
    actions = []
    while step < end:
        state = script.before_chunk(args, step, state)
        length = end - step
        if hasattr(script, "steps_to_reset"):
            length = min(length, script.steps_to_reset(args, step))
        state, (new_actions, finite) = script.train_chunk(args, env_step, length, state)
        assert all(np.all(values) for values in finite.values())
        actions.append(np.asarray(new_actions))
        step += length
    return state, np.concatenate(actions, axis=1)


def before_step(script, args, state):
    """A reset of this one seed where it falls due: what the loop of a run does before a chunk."""
    shared = {name: getattr(state, name) for name in ("step", "env") if getattr(script.SEED_AXES, name) is None}
    seeds = jax.tree.map(lambda x: x[None], state).replace(**shared)
    learner = script.before_chunk(args, int(state.step), seeds).learner
    return state.replace(learner=jax.tree.map(lambda x: x[0], learner))


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
