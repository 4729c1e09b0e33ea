#!/usr/bin/env bash
# An SNN that is trained to fire less: the ANN of the fast schedule, then one SNN for each weight of --rate_penalty.
#   results/cifar10_resnet20_sparse.sh 0.5 "0.2"      width factor, weights; further arguments go to every training command
# Cost: on one core of an AMD EPYC with AVX-512 in bf16, 75 minutes for the ANN at 0.5 and 30 for each SNN.
set -euo pipefail
cd "$(dirname "$0")/.."
WIDTH=${1:-0.5} PENALTIES=${2:-0.2}
shift $(($# < 2 ? $# : 2))
PY=${PYTHON:-.venv/bin/python}
OUT=runs/cifar10_resnet20_sparse_w$WIDTH
NAME=resnet20_cifar10$([ "$WIDTH" = 1 ] || echo "_w$WIDTH")
GROUP=cifar10-resnet20$([ "$WIDTH" = 1 ] || echo "-w$WIDTH")-fast

newest() { ls -td "$1"_2*/ | head -n 1; }

"$PY" reproduce.py cifar10-resnet20-ann --schedule fast --width_mult "$WIDTH" "$@"
ANN=runs/reproduce/$GROUP/seed0/ann/ann/ann_$NAME
"$PY" absorb_bn.py --dataset CIFAR10 --architecture RESNET20 --bn --bias --pretrained_ann "$ANN.pth"
RUNS=("ANN=$(newest "$ANN")")
for PENALTY in $PENALTIES; do
    "$PY" snn_ddp.py --dataset CIFAR10 --architecture RESNET20 --width_mult "$WIDTH" --bias --batch_size 128 --dropout 0 --energy \
        --output_dir "$OUT/$PENALTY" -multi_channel 1 -num_channels 3 --timesteps 1 --conversion matched --distill "$ANN.pth" \
        --rate_penalty "$PENALTY" --epochs 20 --lr_schedule cosine --warm_up --warm_up_epochs 1 --optimizer Adam -lr 1e-3 \
        --weight_decay 0 --pretrained_ann "${ANN}_bn_fused.pth" "$@"
    RUNS+=("SNN, rate penalty $PENALTY=$(newest "$OUT/$PENALTY/snn/snn_${NAME}_MC_T_1_H_1_C_3_Z_0")")
done
"$PY" -m analysis.report "results/cifar10_resnet20_sparse_w$WIDTH" "${RUNS[@]}"
