"""A grid of runs to its end: python -m benchmark.sweep --suite dmc_cpu --seeds 5 --jobs 2

Makes ordinary script commands of suite x algorithms x replay ratios x seeds (`--dry-run` prints them) and runs them on
this machine, a Slurm cluster or a Ray cluster. Killed and started again, it goes on: what is done is skipped, what is
unfinished continues exactly. A job that fails is tried once more; the others go on, and the end names it and its log.
Last, the sweep brings `benchmark/results/SUITE/` up to date. Flags after `--` go to every script.

Exit code: 0 all done, 1 some jobs failed, 2 bad input or another sweep at work, 128 + signal stopped.
"""

import fcntl
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from tqdm import tqdm

from benchmark import collect
from benchmark.jobs import (
    ATTEMPTS,
    ROOT,
    SINGLE_THREAD,
    Running,
    cost_done,
    expand,
    is_done,
    is_running,
    last_values,
    open_lock,
    outcome,
    read_json,
    require,
    steps_done,
)
from benchmark.suites import SUITES


BARS = "▁▂▃▄▅▆▇█"
CURVE_LENGTH = 12  # evaluations that a line shows


@dataclass(frozen=True)
class Args:
    suite: str
    """name of the suite, in benchmark/suites/"""
    algos: tuple[str, ...] = ()
    """scripts of algos/, or variants that the suite names; the suite's own choice if none are given"""
    tasks: tuple[str, ...] = ()
    """only these of the suite's tasks"""
    replay_ratios: tuple[float, ...] = ()
    """gradient updates per environment step; the suite's own choice if none are given"""
    seeds: int = 5
    """runs per task, algorithm and ratio: seeds 1 to this"""
    seeds_per_job: int = 0
    """seeds side by side in one program; 0 is one on CPUs, all of them on GPUs"""
    jobs: int = 0
    """jobs at a time; 0 is one per GPU, or per core (local), 100 (slurm), as many as there is room for (ray)"""
    backend: Literal["local", "slurm", "ray"] = "local"
    """where the jobs run; on a cluster, all machines must see this folder under the same path"""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """what the jobs compute on; auto takes GPUs if there are any and JAX is installed for them (local), else CPUs"""
    timeout: float = 3600.0
    """a job that neither writes nor computes for so many seconds is stopped and has failed; 0 waits for ever"""
    cpus_per_job: int = 0
    """cores of a job; 0 shares this machine's among the jobs (local), 1 (slurm, ray)"""
    minutes_per_job: int = 240
    """slurm: time limit of a job; at the limit it saves, is queued again and goes on"""
    slurm: tuple[str, ...] = ()
    """slurm: more parameters as name=value: partition=cpu account=me mem=8G"""
    slurm_executor: Literal["slurm", "local"] = "slurm"
    """slurm: `local` tries the same path in processes of this machine, without a cluster"""
    ray_address: str = ""
    """ray: the cluster's address, or `auto` for the one that this machine is part of; otherwise one is started here"""
    runs_dir: str = ""
    """folder of the runs' folders; runs/SUITE if not given"""
    results_dir: str = "benchmark/results"
    """folder of the suites' tables"""
    dry_run: bool = False
    """print the commands and do nothing"""
    status: bool = False
    """print what is done, running, failed and left, and do nothing"""


def states(jobs):
    """Each job's state: done, running, failed (and its log says why), stopped or left."""
    found = {}
    for job in jobs:
        last = outcome(job).get("status")
        if is_done(job):
            found[job] = "done"
        elif is_running(job):
            found[job] = "running"
        else:
            found[job] = "failed" if last == "failed" else "stopped" if any(steps_done(job)) else "left"
    return found


def duration(seconds):
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min"


def time_left(jobs, at_a_time):
    """Seconds that the rest takes, from the wall time of what is behind it; None if nothing is."""
    behind, seconds = 0.0, 0.0
    for job in jobs:
        for folder in job.folders:
            starts = read_json(Path(folder, "run.json")) or []
            took = sum(start.get("wall_s", 0) for start in starts)
            seconds += took / len(job.folders)
        behind += cost_done(job)
    left = sum(job.cost for job in jobs) - behind
    return seconds / behind * left / max(1, at_a_time) if behind and seconds else None


def print_status(jobs, at_a_time):
    found = states(jobs)
    for job, state in found.items():
        step = min(steps_done(job))
        note = f"{step:,} of {job.steps:,} steps" if state in ("running", "stopped") else ""
        if state == "failed":
            note = f"{outcome(job).get('why', '')}; see {job.log}"
        print(f"{state:<8} {job.name:<44} {note}".rstrip())
    count = lambda state: list(found.values()).count(state)
    names = ("done", "running", "failed", "stopped", "left")
    print(f"\n{len(jobs)} jobs: " + ", ".join(f"{count(name)} {name}" for name in names))
    left = time_left(jobs, at_a_time)
    if left:
        print(f"about {duration(left)} left, {at_a_time} at a time")


def gpus():
    """Indices of this machine's NVIDIA GPUs that JAX is installed for."""
    if not any(importlib.util.find_spec(f"jax_cuda{number}_plugin") for number in (12, 13)):
        return []
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name]
    if not shutil.which("nvidia-smi"):
        return []
    out = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    return [str(i) for i, line in enumerate(out.splitlines()) if line.startswith("GPU ")]


def slots(args):
    """Where local jobs run, one at a time each: a list of (cores, environment)."""
    devices = gpus() if args.device in ("auto", "gpu") else []
    require(devices or args.device != "gpu", "no GPU that JAX is installed for; see the README's line for CUDA")
    cores = sorted(os.sched_getaffinity(0))
    if devices:
        number = args.jobs or len(devices)
        return [(cores, {"CUDA_VISIBLE_DEVICES": devices[i % len(devices)]}) for i in range(number)]
    number = args.jobs or max(1, len(cores) // (args.cpus_per_job or 1))
    each = args.cpus_per_job or max(1, len(cores) // number)
    require(
        each * number <= len(cores),
        f"{number} jobs of {each} cores do not fit on {len(cores)} cores; lower --jobs or --cpus-per-job",
    )
    environment = {"JAX_PLATFORMS": "cpu"} if args.device == "cpu" else {}
    if each == 1:
        # With its own core each, the matrix products' threads only get in each other's way.
        environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {SINGLE_THREAD}".strip()
    return [(cores[i * each : (i + 1) * each], environment) for i in range(number)]


class Display:
    """A line per running job and one for the whole; on no terminal, a line now and then."""

    def __init__(self, jobs, places):
        self.jobs, self.begin, self.said, self.drawn = jobs, time.time(), time.time(), 0.0
        self.behind = {job: cost_done(job) for job in jobs}
        self.before = sum(self.behind.values())
        self.low = self.high = 0.0  # of all evaluation returns so far
        self.live = sys.stderr.isatty()
        options = {"total": 100.0, "bar_format": "{desc}: {percentage:3.0f}% |{bar:20}| {postfix}", "leave": False}
        self.bars = [tqdm(position=i, disable=None, **options) for i in range(places + 1)]

    def say(self, text):
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()

    def curve(self, returns):
        """The last evaluations as a line of bars, all jobs on one scale, and the newest as a number."""
        self.low = min([self.low, *returns])
        self.high = max([self.high, *returns])
        scale = (len(BARS) - 1) / ((self.high - self.low) or 1)
        heights = [round((value - self.low) * scale) for value in returns[-CURVE_LENGTH:]]
        bars = "".join(BARS[height] for height in heights) if "utf" in sys.stderr.encoding.lower() else ""
        return f"return {bars} {returns[-1]:.0f}"

    def update(self, running, ended, every=1.0):
        """`running`: the jobs at work now, None for an empty place; `ended`: those that are through, well or not."""
        if time.time() - self.drawn < every:
            return
        self.drawn = time.time()
        for job in [job for job in running if job] + [job for job in ended if self.behind[job] < job.cost]:
            self.behind[job] = cost_done(job)
        all_of_it, behind = sum(job.cost for job in self.jobs), sum(self.behind.values())
        speed = (behind - self.before) / (time.time() - self.begin)
        counts = f"{len(ended)} of {len(self.jobs)} jobs ended"
        counts += f", {duration((all_of_it - behind) / speed)} left" if speed > 0 else ""
        for bar, job in zip(self.bars[1:], running, strict=False):
            step, returns = last_values(job.folders[0]) if job else (0, [])
            bar.n = 100 * step / job.steps if job else 0
            bar.set_description_str(job.name if job else "(nothing to do)", refresh=False)
            returned = f", {self.curve(returns)}" if returns else ""
            bar.set_postfix_str(f"{step:,} of {job.steps:,} steps{returned}" if job else "")
        self.bars[0].n = 100 * behind / all_of_it
        self.bars[0].set_description_str("all", refresh=False)
        self.bars[0].set_postfix_str(counts)
        if not self.live and time.time() - self.said > 300:
            self.said = time.time()
            self.say(f"{time.strftime('%H:%M')} {100 * behind / all_of_it:.0f} %: {counts}")

    def close(self):
        for bar in self.bars:
            bar.close()


def run_local(jobs, args, signals, display):
    """Runs jobs in the slots of this machine until all have an outcome or a signal has come -> {job: outcome}."""
    places = slots(args)
    queue, tries, found = list(jobs), dict.fromkeys(jobs, 0), {}
    running = [None] * len(places)
    busy = {}  # jobs that another process is still at work on -> when to look again
    while (queue and not signals) or any(running):
        for i, attempt in enumerate(running):
            if attempt and signals:
                attempt.kill() if len(signals) > 1 else attempt.stop()
            result = attempt and attempt.poll()
            if not result:
                continue
            job, running[i] = attempt.job, None
            tries[job] += 1
            if result["status"] == "failed" and tries[job] < ATTEMPTS and not signals:
                display.say(f"failed, trying again: {job.name}: {result['why']}")
                queue.append(job)
                continue
            found[job] = result
            seconds = duration(time.time() - attempt.begin)
            why = f": {result['why']}; see {job.log}" if "why" in result else ""
            _, returns = last_values(job.folders[0])
            returned = f": {display.curve(returns)}" if returns and not why else ""
            display.say(f"{result['status']}: {job.name} ({seconds}){returned}{why}")
        for i in [i for i, attempt in enumerate(running) if attempt is None and not signals]:
            ready = next((job for job in queue if busy.get(job, 0) <= time.time()), None)
            if ready is None:
                break
            queue.remove(ready)
            lock = open_lock(ready)
            if lock is None:
                if ready not in busy:
                    display.say(f"waiting for another process at work on it: {ready.name}")
                busy[ready] = time.time() + 1
                queue.append(ready)
            elif is_done(ready):  # by the process that it waited for
                lock.close()
                found[ready] = {"status": "done"}
            else:
                running[i] = Running(ready, lock, *places[i], timeout=args.timeout)
        display.update([attempt and attempt.job for attempt in running], found)
        time.sleep(0.2)
    return found


def make_jobs(args, extra):
    """Checks what was typed and expands it -> jobs. Ends with one line if something is wrong."""
    require(args.suite in SUITES, f"there is no suite {args.suite!r}; there are {', '.join(SUITES)}")
    there = sorted([path.stem for path in (ROOT / "algos").glob("*.py")] + [*SUITES[args.suite].variants])
    algos = args.algos or SUITES[args.suite].algos
    unknown = [algo for algo in algos if algo not in there]
    require(not unknown, f"there is no script {', '.join(unknown)}; there are {', '.join(there)}")
    tasks = SUITES[args.suite].scores
    unknown = [task for task in args.tasks if task not in tasks]
    require(not unknown, f"{args.suite} has no task {', '.join(unknown)}; its tasks are {', '.join(tasks)}")
    require(args.seeds >= 1 and args.seeds_per_job >= 0, "--seeds must be 1 or more, --seeds-per-job 0 or more")
    ratios = args.replay_ratios or SUITES[args.suite].replay_ratios
    require(all(0 < ratio < 2**31 for ratio in ratios), "--replay-ratios must be above 0, and less than 2^31")
    require(
        min(args.jobs, args.cpus_per_job, args.timeout) >= 0, "--jobs, --cpus-per-job and --timeout must be 0 or more"
    )
    require(args.minutes_per_job >= 1, "--minutes-per-job must be 1 or more")
    on_gpus = args.device == "gpu" or (args.device == "auto" and args.backend == "local" and gpus())
    together = args.seeds_per_job or (args.seeds if on_gpus else 1)
    at_a_time(args)
    runs_dir = args.runs_dir or f"runs/{args.suite}"
    tasks = tuple(dict.fromkeys(args.tasks))
    algos = dict.fromkeys(algos)
    ratios = dict.fromkeys(ratios)
    algo_ratios = {} if args.replay_ratios else SUITES[args.suite].algo_ratios
    return expand(args.suite, algos, ratios, args.seeds, together, runs_dir, extra, tasks, algo_ratios)


def at_a_time(args):
    """How many jobs run side by side, for the time left."""
    return len(slots(args)) if args.backend == "local" else args.jobs or 100


def run(args, extra=()):
    """Runs a sweep to its end -> exit code."""
    jobs = make_jobs(args, extra)
    if args.dry_run:
        print(*(job.command for job in jobs), sep="\n")
        return 0
    if args.status:
        print_status(jobs, at_a_time(args))
        return 0
    backend = run_local
    if args.backend != "local":
        from benchmark import cluster  # its packages are optional

        backend = cluster.backend(args)
    records = Path(jobs[0].records)
    try:
        records.mkdir(parents=True, exist_ok=True)
        lock = open(records / "lock", "a")
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # goes with this process
    except BlockingIOError:
        require(
            False, f"another sweep is at work in {records.parent}; --status shows it, --runs-dir chooses another folder"
        )
    except OSError as error:
        require(False, f"cannot use {records}: {error.strerror}")
    todo = [job for job in jobs if not is_done(job)]
    print(
        f"{len(jobs)} jobs in {records.parent}, {len(jobs) - len(todo)} of them done; logs in its folder sweep/",
        flush=True,
    )
    signals = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: signals.append(number))
    found = {}
    if todo:
        display = Display(todo, min(len(todo), at_a_time(args), 24))
        found = backend(todo, args, signals, display)
        display.close()
    if signals:
        print(f"stopped; the same command goes on ({sum(map(is_done, jobs))} of {len(jobs)} jobs are done)")
    failed = {job: result for job, result in found.items() if result["status"] == "failed"}
    count, left = (
        collect.collect(args.suite, records.parent, ROOT / args.results_dir) if any(map(is_done, jobs)) else (0, [])
    )
    if count:
        print(f"{count} finished runs are in {Path(args.results_dir, args.suite, 'curves.csv')}")
    for job, result in failed.items():
        print(f"failed: {job.name}: {result['why']}; see {job.log}", file=sys.stderr)
    if failed:
        print(f"{len(failed)} of {len(jobs)} jobs failed; the same command tries them again", file=sys.stderr)
    undone = [job for job in jobs if job not in failed and not is_done(job)]
    if undone and not signals:  # stopped from elsewhere
        print(f"{len(undone)} of {len(jobs)} jobs are not done; the same command goes on", file=sys.stderr)
    return 128 + signals[0] if signals else 1 if failed or left or undone else 0


def main():
    words, extra = sys.argv[1:], []
    if "--" in words:
        words, extra = words[: words.index("--")], words[words.index("--") + 1 :]
    try:
        args = tyro.cli(Args, args=words)
        for flag, given in (("--algos", args.algos), ("--tasks", args.tasks), ("--replay-ratios", args.replay_ratios)):
            require(given or flag not in words, f"{flag} needs at least one value; leave it out for the suite's own")
        sys.exit(run(args, extra))
    except OSError as error:  # a full disk, say; the jobs are told to save as this process ends
        require(False, f"{error}; what is done is kept, and the same command goes on from there")


if __name__ == "__main__":
    main()
