#!/usr/bin/env bash
# A sweep on a real Slurm of one node: root on Debian, with `apt install slurm-wlm munge`; about a quarter of an hour.
#
#     bash tests/helpers/slurm_one_node.sh
#
# Starts munge, slurmctld and slurmd with a configuration of their own in a temporary folder, runs a sweep through time
# limits (3 minutes a job, signal 90 s before the end), a preemption by a partition of higher priority, a killed sweep process
# and an scancel, and compares its table with that of a local sweep. Everything it started is stopped again.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=$PWD/.venv/bin/python
dir=$(mktemp -d)
export SLURM_CONF=$dir/slurm.conf PYTHONPATH=$PWD/.venv/test JAX_PLATFORMS=cpu
node=$(hostname -s)
trap 'scancel --user=root 2>/dev/null; pkill -F "$dir/slurmd.pid"; pkill -F "$dir/slurmctld.pid"; true' EXIT

install -d -o munge -g munge /run/munge
pgrep -x munged > /dev/null || runuser -u munge -- munged
cat > "$dir/slurm.conf" << END
ClusterName=one
SlurmctldHost=$node(127.0.0.1)
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
SlurmctldPort=16817
SlurmdPort=16818
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
NodeName=$node NodeAddr=127.0.0.1 CPUs=$(nproc) State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime=60 State=UP
PartitionName=high Nodes=ALL PriorityTier=2 State=UP
END
mkdir "$dir/state" "$dir/spool"
slurmctld
slurmd -N "$node"
for _ in $(seq 60); do sinfo --noheader --format=%t | grep -q '^idle' && break; sleep 1; done
sinfo

small=("$python" tests/helpers/small_sweep.py --suite one --algos sac sr_sac --replay-ratios 4 --seeds 2)
flags=(-- --total-timesteps 60000 --buffer-size 60000 --checkpoint-interval 5000 --eval-interval 5000)
slurm=(--backend slurm --minutes-per-job 3 --runs-dir "$dir/slurm/runs" --results-dir "$dir/slurm/results")

"${small[@]}" "${slurm[@]}" "${flags[@]}" > "$dir/first.log" 2>&1 &
watcher=$!
for _ in $(seq 120); do [ -n "$(ls "$dir"/slurm/runs/*/checkpoint_0000005000.npz 2> /dev/null)" ] && break; sleep 1; done
squeue
echo "== the sweep's process is killed; its jobs go on, and the next start finds them"
kill -9 $watcher
sleep 2
"${small[@]}" "${slurm[@]}" "${flags[@]}" > "$dir/second.log" 2>&1 &
watcher=$!
sleep 5
grep "are in the queue already" "$dir/second.log"
echo "== a job of a higher partition takes the node's cores for 20 s"
sbatch --partition=high --exclusive --output=/dev/null --wrap="sleep 20"
sleep 10
squeue
wait $watcher && echo "the sweep ended with exit code 0"
tail -3 "$dir/second.log"
echo "== a cancelled job is reported, not waited for"
code=0
("${small[@]}" "${slurm[@]}" --seeds 3 "${flags[@]}" > "$dir/third.log" 2>&1) &
watcher=$!
for _ in $(seq 120); do [ -n "$(squeue --noheader --state=RUNNING)" ] && break; sleep 1; done
scancel --user=root
wait $watcher || code=$?
grep "left the queue" "$dir/third.log"
[ $code = 1 ] && echo "the sweep ended with exit code 1, as it must"
"${small[@]}" "${slurm[@]}" --seeds 3 "${flags[@]}" > "$dir/fourth.log" 2>&1
echo "== the same sweep on this machine without Slurm"
"${small[@]}" --seeds 3 --jobs "$(nproc)" --runs-dir "$dir/local/runs" --results-dir "$dir/local/results" "${flags[@]}" > "$dir/local.log" 2>&1
cmp "$dir/slurm/results/one/curves.csv" "$dir/local/results/one/curves.csv" && echo "the tables are equal, bit for bit"
echo "starts per job: $(grep -c '^== ' "$dir"/slurm/runs/sweep/*.log | sed 's/.*://' | tr '\n' ' ')"
grep -h "stopped and saved" "$dir"/slurm/runs/sweep/*.log  # fails if no time limit was reached
echo "logs in $dir"
