# What the jobs of a chain ask SLURM for; a copy of this file, changed to fit the cluster, is given to `usl run`.
#
#   usl run CHAIN.yaml --slurm submit --slurm-header header.sh --trainer.devices 4 --trainer.num_nodes 2
#
# SLURM starts one process a GPU: --trainer.devices is --ntasks-per-node, --trainer.num_nodes is --nodes. Batch sizes in
# configurations are of all processes together, so the numbers here change the speed and nothing else.
# Two minutes before its time is over the job is sent SIGUSR1: it saves, and puts itself back into the queue.
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
# Here goes what makes Python find the package, such as: source ~/venv/bin/activate
