# shellcheck shell=bash
# What ray.sbatch and torchrun.sbatch share: the nodes of the job and their addresses, steps, how a job gets
# another turn, and env.sh, which is read at the end.

# sbatch passes on the variables of a job that it is typed in, where they stand for what this job has not: an
# array, turns, GPUs. SLURM's record of this job says which are its own; where SLURM does not answer they are
# believed.
forget_outer_job() {
  local found
  # Asked for the whole array's id, which is one task's own, SLURM shows all tasks. Only the details show the
  # GPUs of a job that took whole nodes.
  found=$(timeout 20 scontrol --details --oneliner show job "${SLURM_JOB_ID-}" 2>/dev/null)
  found=$(grep -m1 "^JobId=${SLURM_JOB_ID-} " <<<"$found") || return
  [[ $found == *" ArrayTaskId="* ]] || unset "${!SLURM_ARRAY_@}"
  [[ $found =~ \ Restarts=([0-9]+) ]] && SLURM_RESTART_COUNT=${BASH_REMATCH[1]}
  [[ $found =~ (GRES|TRES|Tres)[A-Za-z]*=[^\ ]*gpu ]] || unset SLURM_GPUS_ON_NODE
  [[ $found == *" CPUs/Task=${SLURM_CPUS_PER_TASK-} "* ]] || unset SLURM_CPUS_PER_TASK
}
forget_outer_job

# What scancel and scontrol are told: the job id of one task of an array may be that of the whole array.
job_ref=${SLURM_ARRAY_TASK_ID:+${SLURM_ARRAY_JOB_ID-}_$SLURM_ARRAY_TASK_ID}
job_ref=${job_ref:-${SLURM_JOB_ID-}}
# By which the driver knows its submission: it may have been cancelled before this turn.
export ORCHESTRATOR_JOB_ID=$job_ref

say() { echo "[$(date +%T)] job ${SLURM_JOB_ID:-?}, start ${SLURM_RESTART_COUNT:-0}: $*"; }

fail() {
  say "$*" >&2
  exit "${code:-1}"
}

node_address() {
  local found
  found=$(scontrol show node "$1" | grep -oP 'NodeAddr=\K\S+')
  if [[ ! $found =~ ^[0-9.]+$ ]]; then
    # A node's own name often stands for loopback in its /etc/hosts, which other nodes cannot reach.
    found=$(getent ahostsv4 "$found" | awk '$1 !~ /^127\./ { print $1; exit }')
  fi
  echo "$found"
}

# The nodes, a port and steps of one node each.
lay_out() {
  # shellcheck disable=SC2154 # an option of the scripts
  [[ $max_requeues =~ ^[0-9]+$ ]] || code=2 fail "--max-requeues is '$max_requeues', expected a whole number"
  mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
  first=${nodes[0]}
  first_address=$(node_address "$first")
  [[ -n $first_address ]] || fail "node $first has no IPv4 address: define node_address in slurm/env.sh"
  # This one and the next, by job id, so that two jobs on one node do not meet; below the ports that systems hand
  # out by themselves.
  # shellcheck disable=SC2034 # the scripts use it
  port=$((20000 + 2 * (SLURM_JOB_ID % 5000)))
  cpus=${SLURM_CPUS_PER_TASK:-$SLURM_CPUS_ON_NODE}
  # What this script exports reaches the steps, even under 'sbatch --export=NONE'.
  export SLURM_EXPORT_ENV=ALL
  step=(srun --overlap --nodes=1 --ntasks=1 --cpus-per-task="$cpus" --kill-on-bad-exit=1 --input=none)
  step+=("${SRUN_OPTIONS[@]}")
}

# When SLURM ends the job, at its time limit or after the grace time of a preemption: seconds since 1970, or 0.
job_ends_at() {
  local found
  # A SLURM that does not answer must not use up the grace time.
  # The id of a task of an array may be the whole array's.
  found=$(timeout 5 scontrol show job "$job_ref" 2>/dev/null | grep -m1 -oP ' EndTime=\K\d\S+')
  if [[ -n $found ]]; then date --date="$found" +%s; else echo 0; fi
}

# Waits for a process although signals end every 'wait' early; its exit code in 'code'.
wait_for() {
  while kill -0 "$1" 2>/dev/null; do
    wait "$1"
  done
  wait "$1"
  code=$?
}

# Whether somebody typed 'orchestrator cancel' for this job; $1: the record beside the job file that submit wrote.
is_unwanted() { grep -qs '"is_cancelled": true' "$1" && grep -qsF "\"job_id\": \"$job_ref\"" "$1"; }

# After SIGUSR1 or SIGUSR2 from SLURM and a saved run: the same job once more.
requeue() {
  local count=${SLURM_RESTART_COUNT:-0}
  # shellcheck disable=SC2154 # an option of the scripts
  if ((count >= max_requeues)); then
    say "the work is saved; not queued again after $count times (--max-requeues=$max_requeues)"
    return
  fi
  if scontrol requeue "$job_ref"; then
    say "the work is saved; queued again"
    # SLURM ends this script then, or has by now. Without a process that could outlive it.
    trap 'exit 75' TERM
    [[ -n ${is_cancelled-} ]] || read -r -t 300 <> <(:)
  else
    say "the work is saved, but SLURM does not queue the job again, as under --no-requeue (its words stand" \
      "above): submit it again, and it goes on"
  fi
}

# What the scripts call with the status of reading this file.
site_is_read() {
  trap - EXIT
  # Whatever env.sh has set.
  set +e -uo pipefail
  (($1 == 0)) || fail "$site_file returned $1, so the job ends; its messages stand above"
}

# Modules and environments read variables that nothing has set, and a last line that is false is no failure. As a
# part of this file, so that a 'return' in it is told from such a line.
# shellcheck disable=SC2034 # the scripts use them
SRUN_OPTIONS=() CONTAINER=()
site_file=${BASH_SOURCE[0]%/*}/env.sh
bash -n "$site_file" ||
  fail "$site_file cannot be read: correct it, or copy slurm/env.sh of the project there"
trap 'fail "$site_file ended the job with exit code $?; its messages stand above"' EXIT
set +u
# shellcheck disable=SC2015 # 'say' does not fail
eval "$(<"$site_file")" ||
  say "the last command of $site_file ended with $?; the job goes on:" \
    "'return 1' or 'exit 1' there would end it"
