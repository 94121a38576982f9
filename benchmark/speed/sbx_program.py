"""The SBX side of benchmark.speed: one measuring process, run by the Python of requirements-sbx.txt.

python benchmark/speed/sbx_program.py '{"env_id": ..., "ratio": ..., "seed": ..., "buffer_size": ..., ...}' trains SBX's
SAC and answers every line of stdin, a number of seconds, with the updates per second of about so long a training.
"""

import json
import resource
import sys
import time
from importlib.metadata import version

import gymnasium
import numpy as np
from sbx import SAC


def env_us(env_id):
    """Microseconds of a step of the environment alone."""
    env, steps = gymnasium.make(env_id), 1000
    env.reset(seed=0)
    action = np.zeros(env.action_space.shape, env.action_space.dtype)
    start = time.perf_counter()
    for _ in range(steps):
        *_, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            env.reset()
    return 1e6 * (time.perf_counter() - start) / steps


def main():
    work, start = json.loads(sys.argv[1]), time.perf_counter()
    warm_up = work["batch_size"]
    # One jitted call makes all updates of a step, and nothing is logged: SBX at its best for a given ratio.
    model = SAC(
        "MlpPolicy",
        gymnasium.make(work["env_id"]),
        buffer_size=work["buffer_size"],
        batch_size=work["batch_size"],
        learning_starts=warm_up,
        train_freq=1,
        gradient_steps=work["ratio"],
        policy_delay=1,
        policy_kwargs={"net_arch": [work["hidden_dim"]] * 2},
        seed=work["seed"],
    )

    def run(updates):
        steps = max(1, round(updates / work["ratio"]))
        model.learn(steps, log_interval=None, reset_num_timesteps=False)
        return steps * work["ratio"]

    run(2 * warm_up * work["ratio"])
    built = time.perf_counter() - start
    for _ in range(2):
        start = time.perf_counter()
        rate = run(100) / (time.perf_counter() - start)
    names = ("sbx-rl", "stable_baselines3", "jax", "torch", "gymnasium", "mujoco")
    ready = {"build_s": round(built, 1), "env_us": env_us(work["env_id"]), "versions": {x: version(x) for x in names}}
    print(json.dumps(ready), flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        rate = run(float(line) * rate) / (time.perf_counter() - start)
        memory = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        print(json.dumps({"rate": rate, "memory_mb": memory}), flush=True)


if __name__ == "__main__":
    main()
