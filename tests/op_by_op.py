"""Does the compiler keep a script's meaning? By hand: python tests/op_by_op.py spr --env-id Assault-v5

The script runs twice to the end of its first update, with its networks and batch as they are: compiled as always, and
with JAX_DISABLE_JIT, each operation by itself. Their checkpoints are then to be alike up to rounding. What is judged
are the gradients, as the optimizers keep them: rounding moves a parameter whose gradient is nearly zero by a whole step
of Adam. Minutes a script on a CPU; further flags are the script's. Exit code 1 if the two differ.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from conftest import ROOT, SCRIPTS, environment, flags, load

TOLERANCE = 1e-3  # of an array's largest value


def final(script, words, folder, **more):
    """Runs the script -> the arrays of its last checkpoint."""
    steps = load(script).Args.batch_size + 20  # enough is stored for one update, the last step's
    short = dict.fromkeys(("total_timesteps", "learning_starts", "log_interval"), steps)
    short |= dict.fromkeys(("eval_interval", "checkpoint_interval"), 0) | {"buffer_size": 2 * steps, "runs_dir": folder}
    short |= {"replay_ratio": 1}  # a second update would begin where Adam's first has made rounding large
    words = [sys.executable, ROOT / "algos" / f"{script}.py", *flags(**short), *words]
    if code := subprocess.run(words, env=environment(**more)).returncode:
        sys.exit(code)
    with np.load(max(folder.glob("*/checkpoint_*.npz"))) as arrays:
        return {name: arrays[name] for name in arrays.files}


def compare(one, two):
    """{name: largest difference, in units of the second's largest value} of all arrays of floating-point numbers."""
    assert one.keys() == two.keys()
    distance = lambda x, y: float(np.abs(x - y).max() / max(np.abs(y).max(), np.finfo(np.float32).tiny))
    return {name: distance(one[name], two[name]) for name in one if one[name].dtype.kind == "f"}


def main(script="", *words):
    if script not in SCRIPTS:
        print(f"error: no script {script!r}; name one of {', '.join(SCRIPTS)}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        compiled = final(script, words, Path(folder) / "compiled")
        apart = final(script, words, Path(folder) / "apart", JAX_DISABLE_JIT="1")
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
