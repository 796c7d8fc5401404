#!/bin/bash
# Trains on GPU nodes, one rank a GPU, and goes on by itself until the run is done.
#
#   sbatch [sbatch options] inputs/slurm/gpu.sh DECK RUN_DIR [section.key=value ...]
#
# Options of sbatch on the command line replace those below. 300 seconds before the time limit Slurm sends USR1 to the
# ranks: they write a checkpoint and stop with exit code 75, and the job goes back into the queue. Choose that time
# longer than a step and a checkpoint together.
#SBATCH --job-name=sparseattn
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=8
#SBATCH --time=04:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

if [ $# -lt 2 ]; then
    echo "usage: sbatch gpu.sh DECK RUN_DIR [section.key=value ...]" >&2
    exit 2
fi
deck=$1
run_dir=$2
shift 2

# Threads of the host's part (reading data, staging messages). Each rank sees all GPUs of its node and takes the one of
# its number there: a rank that sees its own alone cannot reach the others' memory, and messages between them would go
# through the host.
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
export OMP_PROC_BIND=close OMP_PLACES=cores

restart=()
if compgen -G "$run_dir/checkpoints/step_*" >/dev/null; then restart=(--restart latest); fi

# srun takes --cpus-per-task from the command line only (Slurm 22.05 and later).
srun --cpus-per-task="$OMP_NUM_THREADS" --cpu-bind=cores --gpu-bind=none --kill-on-bad-exit=1 \
    sparseattn-train --input "$deck" --run-dir "$run_dir" "${restart[@]}" "$@"
code=$?
if [ $code -eq 75 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit $code
