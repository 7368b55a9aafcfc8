#!/bin/bash
# One Ray node: what slurm/ray.sbatch runs on each of its nodes. Goes on until its step is ended, and leaves no
# temporary files behind.
#   ray_node.sh head|worker NODE_ADDRESS
set -uo pipefail

role=$1 address=$2
# Short: paths of Unix sockets below it must fit in 107 bytes. By job and node, so that nobody shares it.
temporary=/tmp/orc-$SLURM_JOB_ID-$SLURMD_NODENAME
options=(
  --node-ip-address="$address" --temp-dir="$temporary" --num-cpus="$NODE_CPUS" --num-gpus="$NODE_GPUS"
  # The store holds no training data: rows are memory-mapped files.
  --object-store-memory=200000000 --disable-usage-stats --block
)
if [[ $role == head ]]; then
  options+=(--head --port="${RAY_ADDRESS##*:}" --include-dashboard=false --ray-client-server-port=$((${RAY_ADDRESS##*:} + 1)))
else
  options+=(--address="$RAY_ADDRESS")
  # Ray itself gives up after a few seconds, and the head needs more where Python comes from a slow file system.
  for ((tries = 0; tries < 240; tries++)); do
    (exec 3<>"/dev/tcp/${RAY_ADDRESS%:*}/${RAY_ADDRESS##*:}") 2>/dev/null && break
    sleep 0.5
  done
fi

end() {
  local tries
  trap '' TERM INT
  kill "$ray" 2>/dev/null
  # Ray drains a node for up to 30 s, for which nobody waits here; its other processes end with this one.
  for ((tries = 0; tries < 5; tries++)); do
    kill -0 "$ray" 2>/dev/null || break
    sleep 0.2
  done
  kill -KILL "$ray" 2>/dev/null
  wait "$ray"
  rm -rf "$temporary"
}
"$PYTHON" -m ray.scripts.scripts start "${options[@]}" &
ray=$!
trap 'end; exit 143' TERM INT
wait "$ray"
code=$?
end
exit "$code"
