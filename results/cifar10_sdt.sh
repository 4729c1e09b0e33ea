#!/usr/bin/env bash
# A small transformer (1 block of 128, T = 1) on CIFAR-10: M-LIF S = 3 with both inner surrogate coefficients, and LIF.
#   results/cifar10_sdt.sh mlif | mlif_paper | lif      one run; further arguments go to train.py (--device cuda ...)
#   results/cifar10_sdt.sh report                       the results folder of the three
# Cost: 20 minutes for each M-LIF run, 35 for LIF, on one CPU core with AMX.
set -euo pipefail
cd "$(dirname "$0")/.."
PY=${PYTHON:-.venv/bin/python}
OUT=runs/cifar10_sdt
run() {
    "$PY" spike_driven_transformer/train.py --output "$OUT" --experiment "$1" --dataset torch/cifar10 --data_dir data --layer 1 \
        --dim 128 --pooling_stat 0011 --time_steps 1 --scale 1 1 --ratio 1 1 --color_jitter 0 --pad_crop 4 --epochs 8 \
        --cooldown_epochs 0 --warmup_epochs 1 --batch_size 128 --val_batch_size 250 --opt adamw --sched cosine --lr 2e-3 \
        --weight_decay 0.06 --smoothing 0.1 --amp bf16 --energy "${@:2}"
}
case ${1:-} in
mlif) run mlif --spike_mode mlif --mlif_channels 3 --scaled true "${@:2}" ;;
mlif_paper) run mlif_paper --spike_mode mlif --mlif_channels 3 --scaled true --surrogate_edge paper "${@:2}" ;;
lif) run lif --spike_mode lif "${@:2}" ;;
report)
    newest() { ls -td "$OUT/$1"_2*/ | head -n 1; }
    "$PY" -m experiments.report results/cifar10_sdt "M-LIF, 3 lanes=$(newest mlif)" \
        "M-LIF, 3 lanes, paper edge=$(newest mlif_paper)" "LIF=$(newest lif)"
    ;;
*) sed -n 2,5p "$0" && exit 2 ;;
esac
