"""The sweep's jobs on a Slurm cluster (through submitit) or a Ray cluster; both packages are optional.

A worker runs one job by its ordinary command and knows nothing else, so it may be killed and started anew anywhere that
sees the run folders. The sweep's own process submits, watches and reports; jobs in Slurm's queue outlive it, and the
same command finds them again.
"""

import json
import os
import subprocess
import time
from pathlib import Path

from benchmark.jobs import ROOT, SINGLE_THREAD, ClusterJob, is_done, outcome, read_json, require

WATCH_S = 2.0  # between two looks at the jobs
LEFT_THE_QUEUE = "it left the queue before its end (cancelled, or its node failed)"


def backend(args):
    """The function that runs jobs on the backend asked for; ends with one line if its package is missing."""
    name = {"slurm": "submitit", "ray": "ray"}[args.backend]
    try:
        __import__(name)
    except ImportError:
        require(False, f"--backend {args.backend} needs {name}: pip install -r requirements-{args.backend}.txt")
    return {"slurm": run_slurm, "ray": run_ray}[args.backend]


def environment(args):
    """What a worker's script gets beside the worker's own environment."""
    if args.device == "gpu":
        return {}
    flags = os.environ.get("XLA_FLAGS", "")
    one_core = (args.cpus_per_job or 1) == 1
    return {"JAX_PLATFORMS": "cpu"} | ({"XLA_FLAGS": f"{flags} {SINGLE_THREAD}".strip()} if one_core else {})


def end_of(job):
    """What became of a job whose worker is gone."""
    if is_done(job):
        return {"status": "done"}
    last = outcome(job)
    return last if last.get("status") in ("failed", "stopped") else {"status": "failed", "why": LEFT_THE_QUEUE}


def report(display, job, result):
    why = f": {result['why']}; see {job.log}" if "why" in result else ""
    display.say(f"{result['status']}: {job.name}{why}")


def at_work(jobs):
    return [job for job in jobs if outcome(job).get("status") == "running"]


def slurm_queue():
    """Ids of this user's jobs in Slurm's queue, running or waiting; None if Slurm does not answer now."""
    command = ["squeue", "--noheader", "--array", "--format=%i", f"--user={os.getuid()}"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except subprocess.TimeoutExpired:
        return None
    return set(answer.stdout.split()) if answer.returncode == 0 else None


def run_slurm(jobs, args, signals, display):
    """Submits what is not in the queue yet as one job array, and watches all of it -> {job: outcome}.

    At the time limit and at a preemption submitit tells the worker, the script saves, and the job is queued again. A
    signal to the sweep ends the watching, not the jobs.
    """
    import submitit

    os.chdir(ROOT)  # where the workers then start, so that they find this package
    folder = Path(jobs[0].records, "slurm").resolve()
    on_slurm = args.slurm_executor == "slurm"
    executor = submitit.AutoExecutor(
        folder=folder,
        cluster=args.slurm_executor,
        **{f"{args.slurm_executor}_max_num_timeout": 1000} if on_slurm else {},
    )
    options = {"name": f"ratio-{args.suite}", "timeout_min": args.minutes_per_job}
    if on_slurm:
        options |= {"cpus_per_task": args.cpus_per_job or 1, "slurm_array_parallelism": args.jobs or 100}
        options |= {"gpus_per_node": 1} if args.device == "gpu" else {}
        for pair in args.slurm:
            name, _, value = pair.partition("=")
            require(value, f"--slurm {pair}: write name=value")
            options[f"slurm_{name}"] = value
    executor.update_parameters(**options)
    book = folder / "jobs.json"  # of jobs that an earlier start of this sweep submitted
    known = read_json(book) or {}
    queue = slurm_queue() if on_slurm else set()
    require(queue is not None, "squeue does not answer, so jobs might be submitted twice; try again when Slurm is well")
    ids = {job: known[job.name] for job in jobs if known.get(job.name) in queue}
    new = [job for job in jobs if job not in ids]
    display.say(f"{len(ids)} jobs are in the queue already, {len(new)} are submitted now")
    submitted = {}
    for job in new:  # what became of an earlier attempt says nothing of this one
        Path(job.records, f"{job.name}.json").unlink(missing_ok=True)
    if new:
        with executor.batch():
            submitted = {job: executor.submit(ClusterJob(job, environment(args), args.timeout)) for job in new}
        ids |= {job: handle.job_id for job, handle in submitted.items()}
    book.write_text(json.dumps(known | {job.name: number for job, number in ids.items()}))
    found, missing = {}, dict.fromkeys(jobs, 0)
    while len(found) < len(jobs) and not signals:
        time.sleep(WATCH_S)
        queue = slurm_queue() if on_slurm else {ids[job] for job, handle in submitted.items() if not handle.done()}
        for job in [job for job in jobs if job not in found and queue is not None]:
            missing[job] = 0 if ids[job] in queue else missing[job] + 1
            if missing[job] >= 2:  # twice: between an end and a new start a job may be out of sight
                found[job] = end_of(job)
                report(display, job, found[job])
        display.update(at_work([job for job in jobs if job not in found]), found, every=WATCH_S)
    if len(found) < len(jobs):
        display.say("the jobs go on without this process; see --status, and squeue and scancel")
    return found


def run_ray(jobs, args, signals, display):
    """Runs the jobs as tasks of a Ray cluster, again on another node if theirs dies -> {job: outcome}."""
    import ray

    os.chdir(ROOT)  # where the workers then start, so that they find this package
    here = {} if args.ray_address else {"include_dashboard": False, "num_cpus": len(os.sched_getaffinity(0))}
    ray.init(address=args.ray_address or "local", log_to_driver=False, logging_level="error", **here)
    gpu = 1 if args.device == "gpu" else 0

    # Retried is the death of a worker or its node; a script that fails has its second attempt in the task.
    @ray.remote(num_cpus=args.cpus_per_job or 1, num_gpus=gpu, max_retries=10)
    def work(task):
        return task()

    queue, at_once, pending, found = list(jobs), args.jobs or len(jobs), {}, {}
    cancelled = False
    while queue or pending:
        if signals and not cancelled:
            queue, cancelled = [], True
            for handle in pending:
                ray.cancel(handle)  # the worker is interrupted, its script saves
        while queue and len(pending) < at_once:
            job = queue.pop(0)
            pending[work.options(name=job.name).remote(ClusterJob(job, environment(args), args.timeout))] = job
        ended, _ = ray.wait(list(pending), num_returns=1, timeout=WATCH_S) if pending else ([], [])
        for handle in ended:
            job = pending.pop(handle)
            try:
                found[job] = ray.get(handle)
            except ray.exceptions.RayError as error:
                why = {"status": "stopped"} if cancelled else {"status": "failed", "why": str(error).splitlines()[0]}
                found[job] = {"status": "done"} if is_done(job) else why
            report(display, job, found[job])
        display.update(at_work(pending.values()), found, every=WATCH_S)
    ray.shutdown()
    return found
