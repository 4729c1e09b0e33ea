"""The whole chain on embedded data: scikit-learn's scanned digits, ANN -> LQ-ANN -> fused -> SNN (S = 3, T = 1).

python demo.py            (or `make demo`; under five minutes on two CPU cores)
"""

import time
from pathlib import Path

import absorb_bn
import ann_ddp
import energy
import snn_ddp
from analysis import figures
from cli import parser as cli
from engine.errors import guard
from engine.log import read_json, write_json

NETWORK = [
    "--dataset",
    "DIGITS",
    "--architecture",
    "RESNET20",
    "--width_mult",
    "0.25",
    "--bias",
    "--dropout",
    "0",
    "--batch_size",
    "64",
    "--energy",
]


def run(title, script, *arguments, output):
    print(f"\n== {title}: python {script.__name__}.py {' '.join(arguments)}", flush=True)
    return script.main([*arguments, *output])


def main(argv=None):
    parser = cli.Parser(prog="demo.py", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output_dir", default="runs/demo", help="folder of everything that the demo writes"
    )
    parser.add_argument(
        "--epochs", type=cli.positive, nargs=3, default=(12, 5, 14), metavar=("ANN", "LQ", "SNN")
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    args = parser.parse(argv)
    out, begin = ["--output_dir", args.output_dir], time.perf_counter()
    epochs = [str(e) for e in args.epochs]

    ann = run(
        "1. ANN",
        ann_ddp,
        *NETWORK,
        "--bn",
        "--epochs",
        epochs[0],
        "--learning_rate",
        "0.02",
        "--lr_interval",
        "0.6 0.85",
        output=out,
    )
    lq = run(
        "2. LQ-ANN",
        ann_ddp,
        *NETWORK,
        "--bn",
        "--epochs",
        epochs[1],
        "--optimizer",
        "Adam",
        "--learning_rate",
        "0.0005",
        "--lr_reduce",
        "3",
        "--quant_act",
        "--act_bits",
        "3",
        "--quant_id",
        "lvl",
        "--pretrained_ann",
        ann["checkpoint"],
        output=out,
    )
    fused = run(
        "3. fuse batch norm",
        absorb_bn,
        "--architecture",
        "RESNET20",
        "--dataset",
        "DIGITS",
        "--bn",
        "--bias",
        "--pretrained_ann",
        lq["checkpoint"],
        output=[],
    )
    fused |= run("   measure it", energy, fused["checkpoint"], output=[])
    snn = run(
        "4. SNN, S = 3, T = 1",
        snn_ddp,
        *NETWORK,
        "--multi_channel",
        "1",
        "--num_channels",
        "3",
        "--timesteps",
        "1",
        "--conversion",
        "matched",
        "--surrogate_edge",
        "paper",
        "--surrogate_gamma",
        "1",
        "--epochs",
        epochs[2],
        "--optimizer",
        "Adam",
        "--learning_rate",
        "0.001",
        "--weight_decay",
        "0",
        "--lr_interval",
        "0.6 0.85",
        "--pretrained_ann",
        fused["checkpoint"],
        output=out,
    )

    stages = [
        {
            "stage": name,
            "accuracy": s["test_accuracy"],
            "energy_uj": s["energy_uj"],
            "lane_rates": s["lane_rates"],
            "run": s.get("run"),
        }
        for name, s in (("ANN", ann), ("LQ-ANN", lq), ("LQ-ANN, fused", fused), ("SNN", snn))
    ]
    summary = {
        "data": ann["data"],
        "network": "ResNet20 at a quarter width",
        "levels": 3,
        "timesteps": 1,
        "stages": stages,
        "accuracy_right_after_conversion": snn["converted_accuracy"],
        "accuracy_gap_points": 100 * (stages[0]["accuracy"] - stages[-1]["accuracy"]),
        "energy_ratio": stages[0]["energy_uj"] / stages[-1]["energy_uj"],
        "seconds": time.perf_counter() - begin,
    }
    folder = Path(args.output_dir)
    write_json(folder / "summary.json", summary)
    lanes = read_json(Path(snn["run"]) / "energy.json")["lane_rates_per_layer"]
    figures.chain(
        f"ResNet20 at a quarter width, {ann['data']}, S = 3, T = 1",
        stages,
        lanes,
        folder / "demo.png",
    )

    print(f"\n{'stage':<16}{'accuracy':>10}{'energy (uJ)':>14}   firing rate per lane (1, 2, 4)")
    for s in stages:
        print(
            f"{s['stage']:<16}{s['accuracy']:>10.2%}{s['energy_uj']:>14.3f}   "
            + ("  ".join(f"{rate:.4f}" for rate in s["lane_rates"]) or "-")
        )
    gap, ratio = summary["accuracy_gap_points"], summary["energy_ratio"]
    print(
        f"\nthe SNN is {abs(gap):.2f} points {'below' if gap >= 0 else 'above'} its ANN at 1/{ratio:.1f} of "
        f"its energy ({summary['accuracy_right_after_conversion']:.2%} right after conversion); "
        f"{summary['seconds']:.0f} s\n{folder / 'summary.json'}, {folder / 'demo.png'}"
    )
    return summary


if __name__ == "__main__":
    guard(main)
