"""Jobs of a sweep: one script command each, where its run lies, how far it is, and how to run it to its end.

A job is known by its run folders alone, so any process on any machine that sees them can tell what is done and go on.
`Running` is one attempt as a child process; `ClusterJob` is what a worker of a cluster does. A job's lock is inherited
by the script's process: it is free only when that process is gone, whoever started it and however the starter ended.
"""

import contextlib
import ctypes
import fcntl
import importlib.util
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmark.suites import SUITES

ROOT = Path(__file__).resolve().parent.parent
ATTEMPTS = 2  # a job that fails is tried once more
GRACE_S = 60  # how long a job that was told to stop may take to save
SINGLE_THREAD = "--xla_cpu_multi_thread_eigen=false"  # for a job with one core
STEP_COST = 0.2  # an environment step costs about as much as this many gradient updates: for the time left only
RESERVED = ("env-id", "replay-ratio", "seed", "num-seeds", "runs-dir", "overwrite", "evaluate")
PR_SET_PDEATHSIG = 1  # from linux/prctl.h
LIBC = ctypes.CDLL(None)


def require(condition, message):
    """For what the user can mend: one line, exit code 2."""
    if not condition:
        print(f"error: {message}", file=sys.stderr, flush=True)
        sys.exit(2)


def load_script(path):
    """A script as a module, from its file alone."""
    path = Path(path)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Job:
    """One script command: one task, one replay ratio, one seed or several side by side."""

    name: str
    words: tuple[str, ...]
    """the command after `python`"""
    folders: tuple[str, ...]
    """a run's folder per seed, absolute like `records`; a relative --runs-dir is in the project's folder"""
    records: str
    """folder of the sweep's own files: a log, a lock and a record per job"""
    steps: int
    replay_ratio: float

    @property
    def log(self):
        """Path of the log, as short as it can be shown."""
        path = Path(self.records, f"{self.name}.log")
        return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path

    @property
    def command(self):
        return shlex.join(["python", *self.words])

    @property
    def cost(self):
        """What the whole job costs, in gradient updates."""
        return self.steps * (self.replay_ratio + STEP_COST) * len(self.folders)


def parse_flags(words):
    """Script flags as typed -> {name: value}; the value of a switch is True."""
    flags, name = {}, None
    for word in words:
        if word.startswith("--"):
            name, _, value = word[2:].partition("=")
            name = name.replace("_", "-")
            flags[name] = value or True
        else:
            require(name is not None and flags[name] is True, f"{word!r} is no flag of a script; write --name value")
            flags[name] = word
    return flags


def folder_name(name):
    """A run's name as the scripts turn it into that of its folder: without characters that have a meaning elsewhere."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", name)


def provenance_of(session):
    """What made a session of a run, by an entry of its run.json: versions, device, threads, seeds. Older runs call it
    `layout`, and the oldest have `versions` and all else beside them."""
    return session.get("versions", {}) | session.get("layout", {}) | session.get("provenance", {})


def whole_number(name, value):
    typed = "nothing" if value is True else value
    try:
        number = int(typed)
    except ValueError:
        number = 0
    require(number > 0, f"--{name} must be a whole number above 0, not {typed}")
    return number


def expand(suite_name, algos, replay_ratios, seeds, seeds_per_job, runs_dir, extra=(), tasks=(), algo_ratios=None):
    """A grid -> its jobs, first seeds first, so that a sweep that stops midway holds something of everything.
    Of the suite's tasks only `tasks`, if any are given; of an algorithm only the ratios that `algo_ratios` names."""
    suite = SUITES[suite_name]
    typed = parse_flags(extra)
    taken = [f"--{name}" for name in typed if name in RESERVED]
    require(
        not taken, f"{', '.join(taken)} cannot follow `--`: a sweep sets it for each job, or each job would start anew"
    )
    jobs = []
    for first in range(1, seeds + 1, seeds_per_job):
        numbers = range(first, min(first + seeds_per_job, seeds + 1))
        for ratio in replay_ratios:
            for env_id in tasks or suite.scores:
                for algo in algos:
                    if ratio not in (algo_ratios or {}).get(algo, replay_ratios):
                        continue
                    script, extra = suite.variants.get(algo, (algo, {}))
                    flags = suite.flags | ({} if script == algo else {"exp-name": algo}) | extra
                    flags |= suite.algo_flags.get(algo, {}) | suite.task_flags.get(algo, {}).get(env_id, {}) | typed
                    own = {"env-id": env_id, "replay-ratio": f"{ratio:g}", "seed": first}
                    own |= {"num-seeds": len(numbers)} if len(numbers) > 1 else {}
                    words = [f"algos/{script}.py"]
                    for name, value in (own | flags | {"runs-dir": runs_dir}).items():
                        words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
                    stem = f"{env_id}__{flags.get('exp-name') or algo}__rr{ratio:g}__"
                    folders = tuple(str(Path(ROOT, runs_dir, folder_name(f"{stem}{seed}"))) for seed in numbers)
                    name = folder_name(stem + (f"{first}-{numbers[-1]}" if len(numbers) > 1 else f"{first}"))
                    steps = whole_number("total-timesteps", flags["total-timesteps"])
                    jobs.append(Job(name, tuple(words), folders, str(Path(ROOT, runs_dir, "sweep")), steps, ratio))
    require(len({job.name for job in jobs}) == len(jobs), "two jobs of this sweep would share a run's folder")
    return jobs


def read_json(path):
    """The content of a JSON file; None if there is none, or not a whole one."""
    try:
        return json.loads(Path(path).read_text())
    except (OSError, ValueError):
        return None


def last_values(folder):
    """The end of a run's metrics -> step, evaluation returns, the newest last. Reads a few kilobytes at most."""
    try:
        with open(Path(folder, "metrics.csv"), "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 20_000))
            lines = file.read().decode().split("\n")[1:-1]
    except OSError:
        return 0, []
    rows = [line.split(",") for line in lines]
    returns = [float(value) for _, tag, value in rows if tag == "eval/episodic_return"]
    return int(rows[-1][0]) if rows else 0, returns


def steps_done(job):
    """Steps that each seed of a job has logged; all of them once its run says that it is done."""
    steps = []
    for folder in job.folders:
        done = read_json(Path(folder, "done"))
        whole = isinstance(done, dict) and done.get("step", 0) >= job.steps
        steps.append(job.steps if whole else min(last_values(folder)[0], job.steps - 1))
    return steps


def is_done(job):
    return all(step >= job.steps for step in steps_done(job))


def cost_done(job):
    """What of the job's cost is behind it, in gradient updates."""
    return sum(steps_done(job)) * (job.replay_ratio + STEP_COST)


def open_lock(job):
    """The job's lock as an open file, or None while another process has it."""
    Path(job.records).mkdir(parents=True, exist_ok=True)
    file = open(Path(job.records, f"{job.name}.lock"), "a")  # closed with the attempt that holds it
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


def is_running(job):
    """Whether a process is at work on the job, seen without taking its lock for longer than a look."""
    if not Path(job.records, f"{job.name}.lock").exists():
        return False
    file = open_lock(job)
    if file:
        file.close()
    return file is None


def record(job, **entries):
    """What became of the job, for `--status` and for the report at the end."""
    path = Path(job.records, f"{job.name}.json")
    beside = path.with_suffix(f".{os.getpid()}.tmp")
    beside.write_text(json.dumps(entries))
    beside.rename(path)


def outcome(job):
    """The record of the job's last attempt: {} before the first."""
    return read_json(Path(job.records, f"{job.name}.json")) or {}


class Running:
    """One attempt at a job: its script as a child process that saves and ends if this process dies."""

    def __init__(self, job, lock, cores=(), environment=(), timeout=0.0):
        self.job, self.lock, self.timeout = job, lock, timeout
        self.stop_requested_at, self.stop_reason = None, ""
        self.begin = self.busy = time.time()
        self.computed = 0.0
        with open(ROOT / job.log, "a") as log:
            log.write(f"\n== {time.strftime('%Y-%m-%d %H:%M:%S')} {os.uname().nodename}: {job.command}\n")
            log.flush()

            def prepare():  # in the child, before the script
                LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
                if cores:
                    os.sched_setaffinity(0, cores)

            self.process = subprocess.Popen(
                [sys.executable, *job.words],
                cwd=ROOT,
                env=os.environ | {"PYTHONUNBUFFERED": "1"} | dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches this process alone, which tells the jobs once
                pass_fds=[lock.fileno()],
                preexec_fn=prepare,
            )
        record(job, status="running", host=os.uname().nodename, pid=self.process.pid, since=self.begin)

    def last_sign(self):
        """When the job last wrote anything, or was seen to have computed for a second: a long evaluation writes
        nothing, and a job that hangs does not compute."""
        with contextlib.suppress(OSError):  # it has just ended
            after_name = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(") ")[2].split()
            computed = sum(map(int, after_name[11:13])) / os.sysconf("SC_CLK_TCK")  # in it and for it, by the kernel
            if computed - self.computed >= 1:
                self.busy, self.computed = time.time(), computed
        files = [ROOT / self.job.log, *(path for folder in self.job.folders for path in Path(folder).glob("*"))]
        times = [self.begin, self.busy]
        for path in files:
            try:
                times.append(path.stat().st_mtime)
            except FileNotFoundError:  # a checkpoint that was just replaced
                continue
        return max(times)

    def stop(self, reason=""):
        """Tells the script to save and end. A second signal would end it unsaved, so it is told once."""
        self.stop_reason = self.stop_reason or reason
        if self.stop_requested_at is None:
            self.stop_requested_at = time.time()
            self.process.terminate()

    def kill(self):
        self.process.kill()

    def poll(self):
        """None while the script runs; then its outcome, recorded: {"status": "done" | "failed" | "stopped", "why"}."""
        code = self.process.poll()
        if code is None:
            if self.timeout and self.stop_requested_at is None and time.time() - self.last_sign() > self.timeout:
                self.stop(f"no sign of life for {self.timeout:g} s")
            if self.stop_requested_at and self.stop_reason and time.time() - self.stop_requested_at > GRACE_S:
                self.kill()
            return None
        done = is_done(self.job)
        why = self.stop_reason or (f"signal {-code}" if code < 0 else f"exit code {code}")
        status = "done" if done else "stopped" if self.stop_requested_at and not self.stop_reason else "failed"
        found = {"status": status} | ({"why": why} if status == "failed" else {})
        record(self.job, **found, wall_s=round(time.time() - self.begin, 1))
        self.lock.close()
        return found


@dataclass
class ClusterJob:
    """What a worker of a cluster does: a job to its end, with a second attempt after a failure.

    Called, it returns the last attempt's outcome. It may be called again anywhere after any death: it goes on.
    """

    job: Job
    environment: dict[str, str]
    timeout: float
    patience: float = 600.0
    """seconds to wait for a process that is still at work on the job: the saving script of a worker that was killed"""
    running: Running | None = None

    def lock(self):
        give_up = time.time() + self.patience
        while (lock := open_lock(self.job)) is None and time.time() < give_up:
            time.sleep(0.2)
        return lock

    def __call__(self):
        for attempt in range(1, ATTEMPTS + 1):
            lock = self.lock()
            if lock is None:
                return {"status": "failed", "why": "another process is at work on it"}
            if is_done(self.job):
                lock.close()
                return {"status": "done"}
            self.running = Running(self.job, lock, environment=self.environment, timeout=self.timeout)
            try:
                while (found := self.running.poll()) is None:
                    time.sleep(0.1)
            except BaseException:  # the worker is being interrupted
                self.finish()
                raise
            if found["status"] != "failed" or attempt == ATTEMPTS:
                return found

    def finish(self):
        """Lets the script save and end."""
        self.running.stop()
        try:
            self.running.process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            self.running.kill()
            self.running.process.wait()
        self.running.poll()  # records what became of it

    def checkpoint(self):
        """Called by submitit before a time limit or a preemption -> the submission that goes on."""
        from submitit.helpers import DelayedSubmission  # optional: on a Slurm cluster only

        if self.running:
            self.finish()
        return DelayedSubmission(ClusterJob(self.job, self.environment, self.timeout, self.patience))
