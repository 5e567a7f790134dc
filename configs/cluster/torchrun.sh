#!/bin/bash
# One stage on several machines without a queue: run this on each of them; started again, it goes on where it was.
#
#   HEAD=first-machine NODES=2 DEVICES=8 ./torchrun.sh cifar10_simclr.yaml /shared/runs/simclr
#
# HEAD names the machine all others can reach, PORT (29500) a free port of it. The run's folder is one that all of them
# see. If a process dies, torchrun ends the others.
set -euo pipefail
config=${1:?usage: torchrun.sh CONFIG RUN_DIR [--KEY VALUE ...]} run_dir=${2:?the folder of the run}
shift 2
[ -L "$run_dir/checkpoints/last.ckpt" ] && set -- "$@" --ckpt_path last
exec torchrun --nnodes "${NODES:-1}" --nproc-per-node "${DEVICES:-1}" \
    --rdzv-backend c10d --rdzv-endpoint "${HEAD:-localhost}:${PORT:-29500}" --rdzv-id "$(basename "$run_dir")" \
    -m usl_lightning.cli fit --config "$config" --run_dir "$run_dir" \
    --trainer.num_nodes "${NODES:-1}" --trainer.devices "${DEVICES:-1}" "$@"
