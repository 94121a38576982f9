"""What the measuring processes of benchmark.speed do: a script's full loop, its updates alone, plain matrix products.

`python -m benchmark.speed.programs '{"program": "loop", "script": "algos/sac.py", ...}'` builds a program, answers with
what it found on the way, and then works for as many seconds as each line of stdin says. sbx_program.py does the same
for SBX, without this module, whose imports it does not have.
"""

import json
import resource
import sys
import time
from functools import partial
from importlib.metadata import PackageNotFoundError, version

import jax
import jax.numpy as jnp
import numpy as np

from benchmark.jobs import load_script

WARM_UP = 100  # steps before the first update, where the batch size is not larger


def begin(script, args, numbers):
    """-> what `train_chunk` takes: the step of the environments and the state of these seeds before the first step."""
    if not hasattr(script, "SEED_AXES"):
        return begin_older(script, args, numbers)
    env = script.make_env(args, numbers)
    init = partial(script.init_state, args, env.action)
    init = jax.jit(jax.vmap(init, in_axes=(0, script.SEED_AXES.env, 0), out_axes=script.SEED_AXES))
    return env.step, init(jnp.array(numbers), env.state, env.obs)


def begin_older(script, args, numbers):
    """`begin` for scripts up to commit 0c051da, whose environments have three interfaces."""
    seeds = jnp.array(numbers)
    if hasattr(script, "make_task"):
        script.make_task(args)
        init = jax.jit(jax.vmap(partial(script.init_state, args), out_axes=script.AXES))
        return partial(script.env_step, args), init(seeds)
    if hasattr(script, "make_atari"):
        _, frames, env_step = script.make_atari(args, numbers)
        init = jax.jit(jax.vmap(partial(script.init_state, args), out_axes=script.AXES))
        return env_step, init(seeds, frames)
    handle, obs, env_step = script.make_env(args.env_id, numbers)
    _, space, _ = script.make_pool(args.env_id, [1])
    init = partial(script.init_state, args, *space.shape)
    init = jax.jit(jax.vmap(init, in_axes=(None, 0, 0), out_axes=script.AXES))
    return env_step, init(handle, seeds, obs)


class Loop:
    """The full loop of a script: `run(units)` trains for about so many seed-updates -> seed-updates done."""

    def __init__(self, script, env_id, seeds, ratio, buffer_size, chunk=1000, **options):
        self.script = load_script(script)
        self.per_step = ratio * seeds
        warm_up = max(WARM_UP, options.get("batch_size", 0))
        options |= {"replay_ratio": ratio, "buffer_size": buffer_size, "learning_starts": warm_up}
        self.args = self.script.Args(env_id=env_id, num_seeds=seeds, **options)
        self.env_step, self.state = begin(self.script, self.args, list(range(1, seeds + 1)))
        self.length = max(1, int(chunk / self.per_step))
        self.run((warm_up + self.length) * self.per_step)  # past the warm-up, whatever the length of a chunk

    def run(self, units):
        chunks = max(1, round(units / (self.per_step * self.length)))
        for _ in range(chunks):
            self.state, out = self.script.train_chunk(self.args, self.env_step, self.length, self.state)
        jax.block_until_ready(out)
        return chunks * self.length * self.per_step

    def env_us(self):
        """Microseconds of an environment step alone, all seeds in one."""
        axes = getattr(self.script, "SEED_AXES", None) or self.script.AXES
        axis = getattr(axes, "env", None)
        step = self.env_step
        if hasattr(self.script, "make_atari"):  # an older script, whose State has no environment
            step = lambda env, action: (env, self.env_step(action))
        step = jax.vmap(step, in_axes=(axis, 0), out_axes=(axis, 0))
        action = jnp.zeros_like(self.state.replay.action[:, 0])  # (num_seeds, ...)
        if jnp.issubdtype(action.dtype, jnp.integer):
            action = action.astype(jnp.int32)  # a byte in the replay of Atari's scripts
        scan = jax.jit(lambda env: jax.lax.scan(lambda env, _: (step(env, action)[0], None), env, None, 1000)[0])
        env = jax.block_until_ready(scan(getattr(self.state, "env", None)))
        start = time.perf_counter()
        jax.block_until_ready(scan(env))
        return 1e3 * (time.perf_counter() - start)


class Updates:
    """The updates of a loop alone, in a scan over one batch of its replay."""

    def __init__(self, batch_size, **work):
        loop = Loop(batch_size=batch_size, **work)
        batch = jax.tree.map(lambda ring: ring[:, :batch_size].copy(), loop.state.replay)
        self.learner = loop.state.learner
        self.seeds = work["seeds"]
        self.env_us = loop.env_us

        def scan(learner, batch, keys):
            def one(learner, key):
                learner, _ = loop.script.update(loop.args, learner, batch, key)
                return learner, None

            return jax.lax.scan(one, learner, keys)[0]

        self.scan = jax.jit(jax.vmap(scan))
        self.inputs = (batch, jax.random.split(jax.random.key(0), (self.seeds, 200)))

    def run(self, units):
        scans = max(1, round(units / (200 * self.seeds)))
        for _ in range(scans):
            self.learner = self.scan(self.learner, *self.inputs)
        jax.block_until_ready(self.learner)
        return scans * 200 * self.seeds


class Products:
    """As many products (batch, hidden) @ (hidden, hidden) as have the operations that XLA counts in an update."""

    def __init__(self, batch_size, hidden_dim, **work):
        loop = Loop(batch_size=batch_size, hidden_dim=hidden_dim, **work)
        batch = jax.tree.map(lambda ring: ring[0, :batch_size], loop.state.replay)
        learner = jax.tree.map(lambda x: x[0], loop.state.learner)
        update = jax.jit(partial(loop.script.update, loop.args))
        flop = update.lower(learner, batch, jax.random.key(0)).cost_analysis()["flops"]
        self.env_us = loop.env_us
        self.gflop = flop / 1e9
        self.each = flop / (2 * batch_size * hidden_dim**2)
        weights = np.linalg.qr(np.random.default_rng(0).normal(size=(hidden_dim, hidden_dim)))[0]  # keeps norms
        self.x = jnp.ones((batch_size, hidden_dim))
        self.weights = jnp.array(weights, "float32")
        self.scan = jax.jit(lambda x, w: jax.lax.scan(lambda x, _: (x @ w, None), x, None, 1000)[0])

    def run(self, units):
        scans = max(1, round(units * self.each / 1000))
        for _ in range(scans):
            self.x = self.scan(self.x, self.weights)
        jax.block_until_ready(self.x)
        return scans * 1000 / self.each


PROGRAMS = {"loop": Loop, "updates": Updates, "products": Products}


def versions(names=("jax", "jaxlib", "envpool", "gymnax", "flax", "optax")):
    """Of those that are there: a script needs not all."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def serve(make):
    """`make()` gives an object with `run(units) -> units done`, about so many, and `env_us()`."""
    start = time.perf_counter()
    program = make()
    built = time.perf_counter() - start

    def rate(units):
        start = time.perf_counter()
        return program.run(units) / (time.perf_counter() - start)

    rate(1)  # compiles
    now = rate(min(100, max(1, 10 * rate(1))))  # some 10 s, where an update takes seconds
    about = {"build_s": round(built, 1), "env_us": program.env_us(), "versions": versions()}
    print(json.dumps(about | {"gflop": getattr(program, "gflop", None)}), flush=True)
    for line in sys.stdin:
        now = rate(float(line) * now)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"rate": now, "memory_mb": round(memory)}), flush=True)


if __name__ == "__main__":
    work = json.loads(sys.argv[1])
    serve(partial(PROGRAMS[work.pop("program")], **work))
