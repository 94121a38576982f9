"""Speed on the machine at hand, as ratios within one run: python -m benchmark.speed

Times SR-SAC's full loop (environment, replay, resets' branch and updates in one program) against its updates alone in a
scan, for several ratios and numbers of seeds; against itself with a small and a large replay; and as two pinned
single-threaded processes. What is compared is timed in turns, three times or more, since machines are noisy.
"""

import importlib.util
import json
import os
import platform
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import tyro

SINGLE = "--xla_cpu_multi_thread_eigen=false"


@dataclass(frozen=True)
class Args:
    script: str = "algos/sr_sac.py"
    """the script to time"""
    env_id: str = "CheetahRun-v1"
    """the task to time it on"""
    rounds: int = 3
    """how often each program of a comparison is timed, in turns with the others"""
    seconds: float = 4.0
    """how long one timing should last"""
    worker: str = ""
    """internal: what one measuring process does, as JSON"""


def load(path):
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module
    spec.loader.exec_module(module)
    return module


class Loop:
    """The full loop of a script: `run(steps)` trains on."""

    def __init__(self, script, env_id, seeds, ratio, buffer_size):
        import jax
        import jax.numpy as jnp

        self.args = script.Args(
            env_id=env_id, num_seeds=seeds, replay_ratio=ratio, buffer_size=buffer_size, learning_starts=256
        )
        self.script, numbers = script, list(range(1, seeds + 1))
        handle, obs, self.env_step = script.make_env(env_id, numbers)
        _, space, _ = script.make_pool(env_id, [1])
        init = jax.vmap(partial(script.init_state, self.args, *space.shape), in_axes=(None, 0, 0), out_axes=script.AXES)
        self.state = jax.jit(init)(handle, jnp.array(numbers), obs)
        self.per_unit = ratio * seeds  # seed-updates per step
        self.length = max(1, int(1000 / self.per_unit))
        start = time.perf_counter()
        self.run(self.length)
        self.compile_s = time.perf_counter() - start
        self.run(256 + self.length)  # past the warm-up, whatever the length of a chunk

    def run(self, steps):
        import jax

        for _ in range(max(1, round(steps / self.length))):
            self.state, out = self.script.train_chunk(self.args, self.env_step, self.length, self.state)
        jax.block_until_ready(out)
        return max(1, round(steps / self.length)) * self.length


class Bare:
    """The updates alone, in a scan over one batch: `run(updates)`."""

    per_unit = 1.0

    def __init__(self, loop, seeds):
        import jax

        script, args, self.seeds = loop.script, loop.args, seeds
        batch = jax.tree.map(lambda ring: ring[:, : args.batch_size].copy(), loop.state.replay)
        self.learner = jax.tree.map(lambda x: x.copy(), loop.state.learner)
        keys = jax.random.split(jax.random.key(0), (seeds, 200))

        def scan(learner, batch, keys):
            return jax.lax.scan(lambda learner, key: script.update(args, learner, batch, key), learner, keys)[0]

        self.scan = jax.jit(jax.vmap(scan), donate_argnums=0)
        self.inputs = (batch, keys)
        start = time.perf_counter()
        self.run(1)
        self.compile_s = time.perf_counter() - start

    def run(self, updates):
        import jax

        rounds = max(1, round(updates / (200 * self.seeds)))
        for _ in range(rounds):
            self.learner = self.scan(self.learner, *self.inputs)
        jax.block_until_ready(self.learner)
        return rounds * 200 * self.seeds


def measure(args, seeds, loops, bare):
    """Builds the programs and times them in turns -> {name: {ms per seed-update per round, compile_s}}, memory."""
    script = load(args.script)
    programs = {
        f"ratio {ratio:g}, replay {size:,}": Loop(script, args.env_id, seeds, ratio, size) for ratio, size in loops
    }
    if bare:
        programs["updates alone"] = Bare(next(iter(programs.values())), seeds)
    units = {}
    for name, program in programs.items():  # how much work takes about `seconds`
        start = time.perf_counter()
        done = program.run(1)
        units[name] = max(1, int(args.seconds * done / (time.perf_counter() - start)))
    times = {name: [] for name in programs}
    for _ in range(args.rounds):
        for name, program in programs.items():
            start = time.perf_counter()
            done = program.run(units[name])
            times[name].append(1e3 * (time.perf_counter() - start) / (done * program.per_unit))
    found = {}
    for name, program in programs.items():
        found[name] = {"ms": times[name], "compile_s": program.compile_s, "per_unit": program.per_unit}
    return found | {"memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def spawn(args, core=None, **work):
    """Starts a measuring process, on one core and single-threaded if one is named."""
    words = [sys.executable, "-m", "benchmark.speed", "--script", args.script, "--env-id", args.env_id]
    words += ["--rounds", str(args.rounds), "--seconds", str(args.seconds), "--worker", json.dumps(work)]
    flags = os.environ.get("XLA_FLAGS", "") + (f" {SINGLE}" if core is not None else "")
    pin = (lambda: os.sched_setaffinity(0, {core})) if core is not None else None
    return subprocess.Popen(
        words, stdout=subprocess.PIPE, text=True, env=os.environ | {"XLA_FLAGS": flags}, preexec_fn=pin
    )


def result(process):
    out = process.communicate()[0]
    if process.returncode:
        sys.exit(f"error: a measuring process ended with code {process.returncode}")
    return json.loads(out.splitlines()[-1])


def spread(values):
    return f"{np.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def main(args: Args):
    if args.worker:
        print(json.dumps(measure(args, **json.loads(args.worker))))
        return
    cores = sorted(os.sched_getaffinity(0))
    text = Path("/proc/cpuinfo").read_text()
    cpu = text.split("model name\t: ")[-1].split("\n")[0]
    versions = ", ".join(f"{name} {version(name)}" for name in ("jax", "envpool", "flax", "optax"))
    print(f"{args.script} on {args.env_id}: {cpu}, {len(cores)} cores, {platform.system()}, {versions}")
    print(f"ms per seed-update: median of {args.rounds} timings in turns (least to most)\n")
    print(f"| seeds | {'program':<28} | {'ms per seed-update':<25} | {'of updates alone':<25} | steps/s | compile s |")
    print("|---|---|---|---|---|---|")
    record = {"cpu": cpu, "cores": len(cores), "versions": versions, "env_id": args.env_id, "tables": []}
    for seeds in (1, 5):
        found = result(spawn(args, seeds=seeds, loops=[(1, 100_000), (8, 100_000), (32, 100_000)], bare=True))
        record["tables"].append({"seeds": seeds} | found)
        memory, bare = found.pop("memory_mb"), found["updates alone"]["ms"]
        for name, own in found.items():
            share = [a / b for a, b in zip(bare, own["ms"], strict=True)]
            steps = "" if name == "updates alone" else f"{1e3 * seeds / (np.median(own['ms']) * own['per_unit']):.0f}"
            cells = [f"{seeds:>5}", f"{name:<28}", f"{spread(own['ms']):<25}", f"{spread(share):<25}", f"{steps:>7}"]
            print("|", " | ".join([*cells, f"{own['compile_s']:>9.1f}"]), "|")
        print(f"| {seeds:>5} | peak memory of the four       | {memory:.0f} MB | | | |")
    print()
    for ratio in (1, 8):
        found = result(spawn(args, seeds=1, loops=[(ratio, 10_000), (ratio, 1_000_000)], bare=False))
        record["tables"].append({"seeds": 1} | found)
        found.pop("memory_mb")
        small, large = (own["ms"] for own in found.values())
        share = [a / b for a, b in zip(small, large, strict=True)]
        print(f"steps per second with a replay of 1,000,000 against 10,000, ratio {ratio}: {spread(share)}")
    if len(cores) > 1:
        work = {"seeds": 1, "loops": [(8, 100_000)], "bare": False}
        both = [result(process) for process in [spawn(args, core, **work) for core in cores[:2]]]
        record["tables"].append({"pinned": both})
        times = [next(own["ms"] for name, own in found.items() if name != "memory_mb") for found in both]
        print(f"two pinned single-threaded processes, ratio 8: {spread(times[0])} and {spread(times[1])} ms each,")
        print(f"so {1 / sum(1 / np.median(own) for own in times):.3f} ms per seed-update across the two")
    print("\n" + json.dumps(record))


if __name__ == "__main__":
    main(tyro.cli(Args))
