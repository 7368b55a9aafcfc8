# shellcheck shell=bash
# What a site needs on its nodes: read by ray.sbatch and torchrun.sbatch on the first node of a job, and passed
# on to all of its nodes. As it stands it sets nothing. A last line that fails is told, and the job goes on;
# 'return 1' and 'exit 1' end it.

# Modules, and the environment that orchestrator is installed in. PYTHON is the interpreter on the nodes;
# 'orchestrator submit' gives the one it runs on itself.
# module load cuda/12.8
# PYTHON=/shared/venvs/orchestrator/bin/python

# Options of every 'srun', such as a container of Pyxis:
# SRUN_OPTIONS=(--container-image=/shared/images/orchestrator.sqsh --container-mounts=/shared)

# A command before every process on the nodes, such as Apptainer:
# CONTAINER=(apptainer exec --nv --bind /shared /shared/images/orchestrator.sif)

# The network between nodes.
# export NCCL_SOCKET_IFNAME=ib0 NCCL_IB_HCA=mlx5
# export GLOO_SOCKET_IFNAME=ib0

# The address under which other nodes reach a node; the default asks SLURM, then the resolver.
# node_address() { getent ahostsv4 "$1-ib" | awk 'NR == 1 { print $1 }'; }

# Proxies, and where models and datasets of the hub are kept.
# export https_proxy=http://proxy.example:3128 no_proxy=localhost,127.0.0.1
# export HF_HOME=/shared/huggingface HF_HUB_OFFLINE=1
