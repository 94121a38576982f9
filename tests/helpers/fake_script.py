"""A script for the tests of sweeps: the folder, files, signals and exit codes of a real one, without JAX.

Its state is a number, each step makes the next one of it, and a checkpoint holds it: a run that resumes wrongly ends
with another number. `--env-id` chooses how it fares: Crash fails in step 120, Stuck hangs there.
"""

import fcntl
import json
import os
import signal
import sys
import time
from pathlib import Path

words = iter(sys.argv[1:])
flags = {word.removeprefix("--").replace("-", "_"): next(words) for word in words}
if "reset_interval" in flags and flags["exp_name"] == "sac":
    sys.exit(2)  # SAC knows no resets
total = int(flags.pop("total_timesteps"))
runs_dir = flags.pop("runs_dir")
interval = int(flags["eval_interval"])
name = f"{flags['env_id'].replace(':', '-')}__{flags['exp_name']}__rr{flags['replay_ratio']}__{flags['seed']}"
folder = Path(runs_dir, name)
folder.mkdir(parents=True, exist_ok=True)
lock = os.open(folder, os.O_RDONLY)
fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
signals = []
signal.signal(signal.SIGTERM, lambda number, _: signals.append(number))


def write(path, text):
    beside = path.with_name(path.name + ".tmp")
    beside.write_text(text)
    beside.rename(path)


checkpoints = sorted(folder.glob("checkpoint_*"))
step = int(checkpoints[-1].stem[-10:]) if checkpoints else 0
state = int(checkpoints[-1].read_text()) if checkpoints else sum(name.encode())
table = folder / "metrics.csv"
rows = table.read_text().split("\n")[1:-1] if step else []
write(table, "\n".join(["step,tag,value", *[row for row in rows if int(row.split(",")[0]) <= step], ""]))
identity = flags | {"replay_ratio": float(flags["replay_ratio"]), "seed": int(flags["seed"]), "eval_interval": interval}
write(folder / "args.json", json.dumps(identity))
sessions = json.loads((folder / "run.json").read_text()) if step else []
sessions.append({"command": " ".join(sys.argv), "commit": "", "provenance": {}, "from_step": step})
print(f"from step {step} to {total}")
begin = time.time()
while step < total and not signals:
    step += 1
    state = (state * 1_103_515_245 + 12_345 + step) % 2**31
    time.sleep(0.001)
    if step == 120 and "Crash" in name:
        raise RuntimeError("this task fails in step 120")
    while step >= 120 and "Stuck" in name and not signals:
        time.sleep(0.1)
    if step % interval == 0:
        with open(table, "a") as file:
            file.write(f"{step},eval/episodic_return,{state % 1000}\n")
    if step % interval == 0 or step == total or signals:
        sessions[-1] |= {"to_step": step, "wall_s": round(time.time() - begin, 1)}
        write(folder / "run.json", json.dumps(sessions))
        write(folder / f"checkpoint_{step:010d}.npz", str(state))
        for path in sorted(folder.glob("checkpoint_*"))[:-2]:
            path.unlink()
if step < total:
    print(f"stopped and saved at step {step}")
    sys.exit(128 + signals[0])
write(folder / "done", json.dumps({"step": step}))
print(f"seed {flags['seed']}: {step} steps done, results in {folder}")
