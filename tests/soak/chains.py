"""The chains that are killed: commands of the public scripts, at sizes that take seconds."""

from dataclasses import dataclass

# 24 images, three steps an epoch, and a checkpoint after each
COMMON = "--batch_size 8 --epochs 3 --save_freq 1 --print_freq 1 --device cpu"
RESNET = f"{COMMON} -a RESNET20 --width_mult 0.0625 --bias --workers 0 --data_root ../data"
LANES = "--dropout 0.3 --optimizer Adam -lr 0.001 -thr_lr 0.01 --multi_channel 1 --num_channels 3"
SNN = f"{RESNET} {LANES}"
TRANSFORMER = (
    "--dataset digits --dim 16 --layer 1 --pooling_stat 0011 --time_steps 2 --spike_mode mlif "
    "--mlif_channels 3 --scaled true --sched cosine --opt adamw --lr 1e-3 --workers 0 "
    "--scale 1 1 --ratio 1 1 --color_jitter 0 --device cpu -b 32 --epochs 2 --cooldown_epochs 1 "
    "--warmup_epochs 1 --mixup 0.5 --model_ema --model_ema_decay 0.5 --TET --TET_lamb 0.001 "
    "--limit_train_batches 3 --limit_eval_batches 1 --save_freq 1 --output sdt"
)
EVENTS = "neuromorphic_tasks/data"


@dataclass(frozen=True)
class Chain:
    """Commands that are run one after the other in a folder of their own.

    name: of the chain. commands: each begins with its script. cache: whether it shares the compiled
    neurons of the others.
    """

    name: str
    commands: tuple
    cache: bool = True


CHAINS = (
    Chain(
        "ANN, LQ-ANN, fused, SNN, exported",
        (
            f"ann_ddp.py {RESNET} --bn --dropout 0.2 -lr 0.01 --output_dir ann",
            f"ann_ddp.py {RESNET} --bn --dropout 0.2 -lr 0.001 --optimizer Adam --quant_act "
            "--act_bits 2 --quant_num_batches 2 --output_dir lq "
            "--pretrained_ann ann/ann/ann_resnet20_cifar10_w0.0625.pth",
            "absorb_bn.py -a RESNET20 --width_mult 0.0625 --bn --bias "
            "--pretrained_ann lq/ann/ann_resnet20_cifar10_w0.0625_AB_2_log.pth",
            f"snn_ddp.py {SNN} --timesteps 1 --conversion matched --output_dir snn "
            "--pretrained_ann lq/ann/ann_resnet20_cifar10_w0.0625_AB_2_log_bn_fused.pth",
            "export.py snn/snn/snn_resnet20_cifar10_w0.0625_MC_T_1_H_1_C_3_Z_0.pth "
            "--to integer --replace --data_root ../data",
        ),
    ),
    Chain(
        "image files, worker processes",
        (
            f"ann_ddp.py {COMMON} -a VGG16 --width_mult 0.0625 --bn --workers 2 --dataset FOLDER "
            "--dataset_dir ../images --image_size 80 --val_fraction 0.25 --dropout 0.2 "
            "--output_dir ann",
        ),
    ),
    Chain("transformer", (f"spike_driven_transformer/train.py {TRANSFORMER}",)),
    Chain(
        "events, VGGSNN",
        (
            f"{EVENTS}/simulate.py --output events --per_class 4 --events 20000 --workers 2",
            f"{EVENTS}/dvscifar_prepare.py --source events --output prepared --workers 2",
            "neuromorphic_tasks/main_training_parallel.py --prepared prepared --width_mult 0.0625 "
            "--device cpu --batch_size 4 --T_prime 10 --multi_channel 1 --num_channels 3 "
            "--epochs 2 --limit_train_batches 3 --save_freq 1 --output_dir vggsnn",
        ),
    ),
    Chain(
        "a neuron that is compiled anew",
        (
            f"snn_ddp.py {SNN} --timesteps 2 --default_threshold 0.3 --neuron_backend cpp "
            "--output_dir snn",
        ),
        cache=False,
    ),
    Chain(
        "reproduce.py",
        (
            "reproduce.py cifar10-resnet20-mlif --schedule smoke --width_mult 0.03 --device cpu "
            "--data_root ../data --output_dir runs --results out",
        ),
    ),
    Chain("demo.py", ("demo.py --epochs 1 1 1 --output_dir demo",)),
)
