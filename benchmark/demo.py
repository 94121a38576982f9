"""What `make demo` does: a small sweep of replay ratios, with resets and without, to the figure that sums it up."""

import os
import sys
import time

from benchmark import sweep
from benchmark.jobs import ROOT
from benchmark.report.__main__ import Args, main as write_report

OUT = "runs/demo_report"
BEFORE = """\
SAC learns to swing up and balance a pole (CartpoleSwingup, at most 1,000 points) with 1, 4 and 16 gradient updates
after every step: 6,000 steps each, two seeds, small networks. SR-SAC, at ratio 16, forgets all that it has learned
after 3,000 steps, except for its replay, and learns it again. This takes about four minutes on two cores ({cores} here). The
sweep is

    python -m benchmark.sweep --suite demo --seeds 2

Stop it whenever you like: make demo goes on where it was.
"""
AFTER = """
Done in {minutes:.1f} minutes. Open {out}/demo/ratio.png: the score against the replay ratio. Learning curves and
tables are beside it, in report.md. Next, a harder task at a high ratio (hours on a CPU):

    {python} algos/sr_sac.py --env-id CheetahRun-v1 --replay-ratio 32 --num-seeds 5

Every run is under runs/, for TensorBoard too: {prefix}/bin/tensorboard --logdir runs"""


def main():
    os.chdir(ROOT)
    print(BEFORE.format(cores=len(os.sched_getaffinity(0))), flush=True)
    start = time.time()
    code = sweep.run(sweep.Args(suite="demo", results_dir=OUT, seeds=2))
    if code:
        sys.exit(code)
    write_report(Args(suite="demo", results_dir=OUT, docs_dir=OUT))
    python, prefix = (os.path.relpath(path) for path in (sys.executable, sys.prefix))
    print(AFTER.format(minutes=(time.time() - start) / 60, out=OUT, python=python, prefix=prefix))


if __name__ == "__main__":
    main()
