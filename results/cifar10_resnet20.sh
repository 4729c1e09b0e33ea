#!/usr/bin/env bash
# The ResNet20 chain on CIFAR-10 with both conversions from one ANN, then the results folder.
#   results/cifar10_resnet20.sh 0.25     width factor; further arguments go to every training command (--device cuda ...)
# Cost: on 2 CPU cores without AVX-512 about 75 minutes at 0.25, 150 at 0.5; on one core with AMX and --amp bf16 95 at 0.5.
set -euo pipefail
cd "$(dirname "$0")/.."
WIDTH=${1:-0.25}
shift || true
PY=${PYTHON:-.venv/bin/python}
OUT=runs/cifar10_resnet20_w$WIDTH
NAME=resnet20_cifar10$([ "$WIDTH" = 1 ] || echo "_w$WIDTH")
COMMON=(--dataset CIFAR10 --architecture RESNET20 --width_mult "$WIDTH" --bias --batch_size 128 --dropout 0 --energy "$@")
ANN=$OUT/ann/ann_$NAME

newest() { ls -td "$1"_2*/ | head -n 1; }

"$PY" ann_ddp.py "${COMMON[@]}" --output_dir "$OUT" --bn --epochs 16 -lr 0.03 --lr_interval '0.5 0.75 0.9' --lr_reduce 5 \
    --weight_decay 5e-4
"$PY" absorb_bn.py --dataset CIFAR10 --architecture RESNET20 --bn --bias --pretrained_ann "$ANN.pth"
for CONVERSION in matched published; do
    EXTRA=()
    [ "$CONVERSION" = matched ] || EXTRA=(--scaling_factor 0.2 --default_threshold 1.0)
    "$PY" snn_ddp.py "${COMMON[@]}" --output_dir "$OUT/$CONVERSION" -multi_channel 1 -num_channels 3 --timesteps 1 \
        --surrogate_edge paper --surrogate_gamma 1 --epochs 10 --optimizer Adam -lr 5e-4 --lr_interval 0.5,0.75,0.9 \
        --lr_reduce 5 --weight_decay 0 --pretrained_ann "${ANN}_bn_fused.pth" --conversion "$CONVERSION" "${EXTRA[@]}"
done
"$PY" ann_ddp.py "${COMMON[@]}" --output_dir "$OUT" --bn --quant_act --act_bits 3 --quant_id lvl --epochs 2 --optimizer Adam \
    -lr 1e-4 --lr_interval 0.5 --lr_reduce 5 --pretrained_ann "$ANN.pth"
SNN=snn_${NAME}_MC_T_1_H_1_C_3_Z_0
"$PY" -m experiments.report "results/cifar10_resnet20_w$WIDTH" "ANN=$(newest "$ANN")" \
    "LQ-ANN (lvl, 3 bits)=$(newest "${ANN}_AB_3_lvl")" "SNN, matched=$(newest "$OUT/matched/snn/$SNN")" \
    "SNN, published=$(newest "$OUT/published/snn/$SNN")"
