"""What `make demo` does: SR-SAC learns a DeepMind Control task in minutes, resets and all, and a figure shows it."""

import os
import subprocess
import sys
import time
from pathlib import Path

from benchmark import collect, report

RUNS, FIGURE = Path("runs/demo"), Path("runs/demo.png")
OPTIONS = {
    "env-id": "CartpoleSwingup-v1",
    "exp-name": "sr_sac_demo",
    "num-seeds": 2,
    "replay-ratio": 4,
    "reset-interval": 24_000,
    "total-timesteps": 12_000,
    "learning-starts": 1_000,
    "buffer-size": 100_000,
    "log-interval": 250,
    "eval-interval": 500,
    "eval-episodes": 5,
    "checkpoint-interval": 500,
    "runs-dir": str(RUNS),
}


def main():
    words = ["algos/sr_sac.py", *(str(x) for name, value in OPTIONS.items() for x in (f"--{name}", value))]
    print(
        "SR-SAC learns to swing up and balance a pole (CartpoleSwingup, at most 1,000 points): two seeds side by side,"
    )
    print("4 gradient updates after every step, and one reset of the whole agent at step 6,000, from which it recovers")
    print(
        f"with the replay alone. About 5 minutes on two cores ({len(os.sched_getaffinity(0))} here). The command is\n"
    )
    print(f"    python {' '.join(words)}\n")
    print("Stop it whenever you like: make demo goes on where it was.\n", flush=True)
    start = time.time()
    done = subprocess.run([sys.executable, *words], check=False).returncode
    if done:
        sys.exit(done)
    collect.main(collect.Args(out=str(RUNS / "results"), runs_dir=str(RUNS)))
    report.main(report.Args(results=str(RUNS / "results"), figure=str(FIGURE), labels="sr_sac_demo=SR-SAC"))
    print(f"\nDone in {(time.time() - start) / 60:.1f} minutes. Open {FIGURE}")
    print("The dip at step 6,000 is the reset. Next, a harder task at a higher ratio (hours on a CPU):\n")
    python = os.path.relpath(sys.executable)
    print(f"    {python} algos/sr_sac.py --env-id CheetahRun-v1 --replay-ratio 32 --num-seeds 5\n")
    print(f"Every run is under runs/, for TensorBoard too: {os.path.relpath(sys.prefix)}/bin/tensorboard --logdir runs")


if __name__ == "__main__":
    main()
