"""What a script computes in its first steps on a fixed stream of observations, and the files that freeze it.

    python tests/helpers/golden.py --write [SCRIPT ...]

writes tests/golden/SCRIPT.json and flags.json anew: only where a change of results or flags is meant. Without --write,
it says how far the scripts are from the files. ALGOS=folder takes the scripts from another folder than algos/.

The stream takes the place of the environment, so that nothing but the script's own ALGORITHM runs: what it draws,
stores, samples and learns, for one seed, one `train_step` after another.
"""

import dataclasses
import importlib.util
import json
import os
import sys
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from runs import before_step

ROOT = Path(__file__).parent.parent.parent
GOLDEN = ROOT / "tests" / "golden"
ALGOS = Path(os.environ.get("ALGOS", ROOT / "algos"))

# Two rounds of a small ring; after 16 steps, 22 updates at ratio 1.5. All actions are random: rounding must not choose.
STEPS = 30
QUICK = {"xla_backend_optimization_level": 0}  # compiles in two thirds of the time; the results are as near as any
SMALL = {"replay_ratio": 1.5, "learning_starts": 16, "buffer_size": 20, "batch_size": 4, "hidden_dim": 8}
GYMNAX = SMALL | {"env_id": "Breakout-MinAtar", "end_e": 1.0, "target_interval": 4, "learning_rate": 0.01}
ATARI = SMALL | {"env_id": "Breakout-v5", "end_e": 1.0, "channels": 2, "target_interval": 4, "learning_rate": 0.002}
ATARI |= {"n_step": 3}
SPR = ATARI | {"num_atoms": 7, "v_max": 2.0, "jumps": 2, "batch_size": 2, "learning_rate": 0.0005}
del SPR["target_interval"]
BBF = SPR | {"width": 1, "anneal_updates": 10, "n_step": 5, "n_step_end": 2, "reset_interval": 28, "resets_end": 60}
del BBF["channels"]
OPTIONS = {
    "sac": SMALL | {"tau": 0.05, "learning_rate": 0.003},
    "sr_sac": SMALL | {"tau": 0.05, "learning_rate": 0.003, "reset_interval": 8},
    "dqn": GYMNAX,
    "c51": GYMNAX | {"num_atoms": 7, "v_max": 2.0},
    "qr_dqn": GYMNAX | {"num_quantiles": 5},
    "ensemble_dqn": GYMNAX | {"num_heads": 3},
    "rem": GYMNAX | {"num_heads": 3, "multi_network": True},
    "sr_dqn": GYMNAX | {"reset_interval": 9, "reset_kind": "shrink-and-perturb", "optimizer": "adam"},
    "rainbow": GYMNAX | {"num_atoms": 7, "v_max": 2.0},
    "dqn_atari": ATARI | {"learning_rate": 0.01},
    "drq_eps": ATARI,
    "der": ATARI | {"num_atoms": 7, "v_max": 2.0},
    "spr": SPR,
    "sr_spr": SPR | {"tau": 0.05, "reset_interval": 28, "resets_end": 60},
    "bbf": BBF | {"tau": 0.05},
}


@cache
def load(name):
    spec = importlib.util.spec_from_file_location(name, ALGOS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


# --------------------------------------------------------------------------------------------------------------- Steps


def family(script):
    if hasattr(script, "TwinCritic"):
        return "envpool"
    return "gymnax" if hasattr(script, "make_task") else "atari"


def stream(kind):
    """First observation, and what the environment returns in each step, with leaves (STEPS, ...)."""
    keys = jax.random.split(jax.random.key(26), 5)
    reward = jax.random.normal(keys[0], (STEPS + 1,))
    ends = jax.random.uniform(keys[1], (STEPS + 1,))
    terminated = ends < 0.15
    truncated = ends > 0.9
    if kind == "envpool":
        obs = jax.random.normal(keys[2], (STEPS + 1, 3))
        results = obs, reward, terminated, truncated
    elif kind == "gymnax":
        obs = jax.random.bernoulli(keys[2], 0.2, (STEPS + 1, 10, 10, 4))
        first = jax.random.bernoulli(keys[3], 0.2, obs.shape)
        done = (terminated | truncated)[:, None, None, None]
        results = obs, reward, terminated, truncated, jnp.where(done, first, obs)
    else:
        obs = jax.random.randint(keys[2], (STEPS + 1, 84, 84), 0, 256).astype(jnp.uint8)
        lives = 5 - jnp.cumsum(jax.random.uniform(keys[4], (STEPS + 1,)) < 0.1)
        results = obs, reward, terminated, truncated, lives
    return obs[0], jax.tree.map(lambda x: x[1:], results)


def begin(script, args, obs):
    """The state of seed 1 before the first step."""
    if hasattr(script, "make_task"):
        script.make_task(args)
    action = {"envpool": np.zeros(2, np.float32), "gymnax": np.int32(0), "atari": np.uint8(0)}[family(script)]
    env = None if family(script) == "atari" else jnp.int32(0)
    return jax.jit(partial(script.init_state, args, action), compiler_options=QUICK)(1, env, obs)


@cache
def make_step(script, args):
    """(state, results of the environment) -> state, compiled."""

    def step(state, results):
        def env_step(env, action):
            return env, results

        return script.train_step(args, env_step, state, None)[0]

    return jax.jit(step, compiler_options=QUICK)


def floats(tree):
    return [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]


@jax.jit
def look(learner, sums, priorities):
    """What is recorded of a step: {name: number}. Integers are compared exactly, all else up to rounding."""
    norms = {f"norm/{name}": optax.tree.norm(floats(part)) for name, part in vars(learner).items()}
    counts = [x for x in jax.tree.leaves(learner) if jnp.issubdtype(x.dtype, jnp.integer)]  # of Adam: a reset sets to 0
    found = sums | norms | {f"count/{i}": count for i, count in enumerate(counts)}
    if priorities is not None:
        found["norm/priorities"] = jnp.linalg.norm(priorities)
    if hasattr(learner, "target_network"):
        same = jax.tree.map(lambda x, y: (x == y).all(), learner.network, learner.target_network)
        found["target_is_network"] = jnp.stack(jax.tree.leaves(same)).all().astype(int)
    return found


def record(script, options, results=None):
    """{"series": {name: one number a step}, "replay": {name: a number a row}} of a script with these options."""
    args = script.Args(**options)
    obs, fixed = stream(family(script))
    results = fixed if results is None else results
    state = begin(script, args, obs)
    step = make_step(script, args)
    rows = []
    for i in range(STEPS):
        state = before_step(script, args, state)
        state = step(state, jax.tree.map(lambda x, i=i: x[i], results))
        priorities = getattr(state, "priorities", getattr(state, "tree", None))
        row = jax.device_get(look(state.learner, state.metric_sums, priorities))
        rows.append(row | {"stored": int(state.stored)})
        state = state.replace(metric_sums=jax.tree.map(jnp.zeros_like, state.metric_sums))
    series = {}
    for name in rows[0]:
        values = [row[name].item() if hasattr(row[name], "item") else row[name] for row in rows]
        if name in ("updates", "episodes", "charts/episodic_length"):
            values = [int(value) for value in values]
        series[name] = values
    action = np.asarray(state.replay.action)
    replay = {"action": action.tolist() if action.ndim == 1 else np.float64(action[:, 0]).tolist()}
    replay["terminated"] = np.asarray(state.replay.terminated).astype(int).tolist()
    return {"series": series, "replay": replay}


def events(script, options):
    """Integers by rule: how many updates and resets belong to the first steps, at ratios with and without fractions."""
    functions = {"updates": script.num_updates_until}
    for name in ("num_resets_until", "num_useful_resets_until"):  # the second one decides where there are both
        if hasattr(script, name):
            functions["resets"] = getattr(script, name)
    steps = [*range(24), 1_000, 99_999, 1_000_000]
    found = {}
    for ratio in (0.25, 0.3, 1, 1.5, 2.75, 8):
        args = script.Args(**options | {"replay_ratio": ratio})
        for name, function in functions.items():
            found[f"{name} at ratio {ratio}"] = [int(function(args, step)) for step in steps]
    return found


def flags(script):
    """Flag -> default, kind."""
    fields = [field for field in dataclasses.fields(script.Args) if field.name != "exp_name"]
    kinds = {field.name: getattr(field.type, "__name__", str(field.type)) for field in fields}
    kinds |= {field.name: str(field.type) for field in fields if kinds[field.name] == "Literal"}
    return {field.name: [field.default, kinds[field.name]] for field in fields}


def scripts():
    return sorted(path.stem for path in ALGOS.glob("*.py"))


def read(name):
    return json.loads((GOLDEN / f"{name}.json").read_text())


# ---------------------------------------------------------------------------------------------------------- Comparison

TOLERANCE = 1e-4  # of the largest value of a series


def differences(golden, found):
    """What differs between two records: lines that name it."""
    lines = []
    for part in golden:
        if golden[part].keys() != found[part].keys():
            lines.append(f"{part}: {sorted(golden[part].keys() ^ found[part].keys())} in one only")
    pairs = [(part, name) for part in golden for name in golden[part] if name in found[part]]
    for part, name in pairs:
        one = golden[part][name]
        two = found[part][name]
        if all(isinstance(x, int) for x in one):
            wrong = [i for i, (x, y) in enumerate(zip(one, two, strict=True)) if x != y]
        else:
            margin = TOLERANCE * max(map(abs, one))
            wrong = [i for i, (x, y) in enumerate(zip(one, two, strict=True)) if not abs(x - y) <= margin]
        if wrong:
            first = wrong[0]
            lines.append(f"{name}: {one[first]} is {two[first]} at {first}, and {len(wrong) - 1} more differ")
    return lines


def spread(golden, found):
    """The largest difference of a series, as a share of the series' largest value, and its name."""
    worst = (0.0, "")
    for name, one in golden["series"].items():
        scale = max(map(abs, one))
        if scale and not all(isinstance(x, int) for x in one):
            distance = max(abs(x - y) for x, y in zip(one, found["series"][name], strict=True))
            worst = max(worst, (distance / scale, name))
    return worst


# ------------------------------------------------------------------------------------------------------------- Command


def rounded(tree):
    if isinstance(tree, dict):
        return {name: rounded(x) for name, x in tree.items()}
    if isinstance(tree, list):
        return [rounded(x) for x in tree]
    return float(f"{tree:.7g}") if isinstance(tree, float) else tree


def text(tree):
    """JSON with a line for each series."""
    parts = []
    for part, values in tree.items():
        lines = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in values.items()]
        parts.append(f"{json.dumps(part)}: {{\n" + ",\n".join(lines) + "\n}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def write(names):
    GOLDEN.mkdir(exist_ok=True)
    for name in names:
        script = load(name)
        found = {"options": OPTIONS[name]} | record(script, OPTIONS[name]) | {"events": events(script, OPTIONS[name])}
        (GOLDEN / f"{name}.json").write_text(text(rounded(found)))
        print(f"tests/golden/{name}.json")
    (GOLDEN / "flags.json").write_text(text({name: flags(load(name)) for name in scripts()}))


def main(words):
    if words[:1] == ["--write"]:
        write(words[1:] or scripts())
        return
    for name in words or scripts():
        golden = read(name)
        found = record(load(name), golden["options"])
        distance, where = spread(golden, found)
        parts = {part: golden[part] for part in found}
        print(f"{name}: {distance:.1e} {where}", *differences(parts, found), sep="\n    ")


if __name__ == "__main__":
    main(sys.argv[1:])
