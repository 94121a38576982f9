"""Does the compiler keep a script's meaning? By hand: python -m studies.op_by_op sac

The script runs twice to the end of its first update, with its networks and batch as they are: compiled as always, and
with JAX_DISABLE_JIT, each operation by itself. Their checkpoints are then to be alike up to rounding. What is judged
are the gradients, as the optimizers keep them: rounding moves a parameter whose gradient is nearly zero by a whole step
of Adam. Minutes a script on a CPU; further flags are the script's. Exit code 1 if the two differ, 2 if there is nothing
to compare. On GPUs set JAX_DEFAULT_MATMUL_PRECISION=float32, or TF32's rounding alone may do.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmark.jobs import ROOT, load_script

SCRIPTS = sorted(path.stem for path in (ROOT / "algos").glob("*.py"))
TOLERANCE = 1e-3  # of the largest value of a layer's weights or biases


def final(script, words, folder, **more):
    """Runs the script -> the arrays of its last checkpoint."""
    steps = load_script(ROOT / "algos" / f"{script}.py").Args.batch_size + 20  # enough for one update, the last step's
    short = dict.fromkeys(("total_timesteps", "learning_starts", "log_interval"), steps)
    short |= dict.fromkeys(("eval_interval", "checkpoint_interval"), 0) | {"buffer_size": 2 * steps, "runs_dir": folder}
    short |= {"replay_ratio": 1}  # a second update would begin where Adam's first has made rounding large
    short_flags = [f"--{name.replace('_', '-')}={value}" for name, value in short.items()]
    words = [sys.executable, ROOT / "algos" / f"{script}.py", *short_flags, *words]
    if code := subprocess.run(words, env=os.environ | more).returncode:
        print(f"error: the script ended with exit code {code}", file=sys.stderr)
        sys.exit(2)
    with np.load(max(folder.glob("*/checkpoint_*.npz"))) as arrays:
        return split({name: arrays[name] for name in arrays.files})


def split(arrays):
    """Where an optimizer keeps the gradients of a whole network as one vector, they are told apart again by layers."""
    found, groups = {}, {}
    for name, x in arrays.items():
        groups.setdefault("/".join(name.split("/")[:2]), {})[name] = x
    for name, x in arrays.items():
        fits = [own for own in groups.values() if name not in own and sum(y.size for y in own.values()) == x.size]
        if "/mu" in name and fits:
            sizes = np.cumsum([y.size for y in fits[0].values()])[:-1]
            layers = [own.removeprefix("learner/") for own in fits[0]]
            found |= {f"{name}/{own}": row for own, row in zip(layers, np.split(x.ravel(), sizes), strict=True)}
        else:
            found[name] = x
    return found


def compare(one, two):
    """{name: largest difference, in units of the second's largest value} of all arrays of floating-point numbers."""
    assert one.keys() == two.keys()
    distance = lambda x, y: float(np.abs(x - y).max() / max(np.abs(y).max(), np.finfo(np.float32).tiny))
    found = {name: distance(one[name], two[name]) for name in one if one[name].dtype.kind == "f"}
    return {name: value if np.isfinite(value) else np.inf for name, value in found.items()}


def main(script="", *words):
    if script not in SCRIPTS:
        print(f"error: no script {script!r}; name one of {', '.join(SCRIPTS)}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        compiled = final(script, words, Path(folder) / "compiled")
        apart = final(script, words, Path(folder) / "apart", JAX_DISABLE_JIT="1")
    if not any(x.any() for arrays in (compiled, apart) for name, x in arrays.items() if "/mu" in name):
        print("error: no update took place; leave --learning-starts and --total-timesteps as they are", file=sys.stderr)
        return 2
    found = compare(compiled, apart)
    for name, value in sorted(found.items(), key=lambda item: -item[1])[:5]:
        print(f"{value:.1e} {name}")
    gradients = {name: value for name, value in found.items() if "/mu" in name}
    worst = max(gradients, key=gradients.get)
    alike = gradients[worst] < TOLERANCE
    print(f"gradients {'are alike' if alike else 'DIFFER'}: by {gradients[worst]:.1e} of an array's largest ({worst})")
    return int(not alike)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
