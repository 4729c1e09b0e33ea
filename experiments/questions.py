"""Open questions of the method, settled by paired runs: one recipe, the same seeds, one thing changed.

python -m experiments.questions --list
python -m experiments.questions all --data_root data          runs what is missing, then writes results/questions/

Every seed trains its own ANN and LQ-ANN; every variant of that seed starts from them and sees the same images in the
same order. Accuracies are those after the last epoch, on the test set, so nothing is chosen on it. A difference counts when
a paired t-test over the seeds says so at 5 %: of three seeds, when it exceeds 4.3 times its standard error.
"""

import math
import statistics
from pathlib import Path

from scipy import stats

from analysis import figures
from cli import parser as cli
from engine.dist import fast_amp
from engine.errors import UseError, guard
from engine.files import write_atomic
from engine.log import read_lines, versions, write_json

from .chain import LOCAL, Chain, Stage, same_data, words

BASE = {
    "num_channels": 3,
    "timesteps": 1,
    "conversion": "matched",
    "surrogate_edge": "paper",
    "surrogate_gamma": 1.0,
}
PUBLISHED = {"conversion": "published", "scaling_factor": 0.2}
ALL = {
    "conversion": "published",
    "scaling_factor": 0.85,
    "balance": "all",
}  # 0.2 leaves such a network at chance
VARIANTS = {  # what differs from BASE; None removes an option; "from": the stage that the network starts from
    "base": {},
    "edge 3/2": {"surrogate_edge": "published"},
    "edge 1/2, damping 0.3": {"surrogate_gamma": 0.3},
    "edge 3/2, damping 0.3": {"surrogate_edge": "published", "surrogate_gamma": 0.3},
    "published, stem": {**PUBLISHED, "balance": "stem"},
    "published, all, x0.85": ALL,
    "published, all, x0.85, 1 step": {**ALL, "balance_steps": 1},
    "from the LQ-ANN": {"from": "lq_fused"},
    "twice the epochs": {"twice": True},
    "matched, 20 epochs": {"epochs": 20},
    "published, stem, 20 epochs": {**PUBLISHED, "balance": "stem", "epochs": 20},
    "fixed theta": {"fixed_neuron": True},
    "distilled": {"distill": "{ann}"},
    **{f"rate penalty {weight}": {"rate_penalty": weight} for weight in (0.03, 0.1, 0.3)},
    "LIF, T=1": {"num_channels": 1, "surrogate_edge": None},
    "LIF, T=3": {"num_channels": 1, "surrogate_edge": None, "timesteps": 3},
    "multi-hot": {"hardware_opt": 2, "surrogate_edge": None},
    "T=2": {"timesteps": 2},
    "T=2, fixed theta and leak": {"timesteps": 2, "fixed_neuron": True},
}
SAME = {(3, 1): "base", (1, 1): "LIF, T=1", (1, 3): "LIF, T=3", (3, 2): "T=2"}
TRADEOFF = {(s, t): SAME.get((s, t), f"S={s}, T={t}") for t in range(1, 5) for s in range(1, 5)}
VARIANTS |= {
    name: {"num_channels": s, "timesteps": t, "surrogate_edge": "paper" if s > 1 else None}
    for (s, t), name in TRADEOFF.items()
    if name not in VARIANTS
}
QUESTIONS = {  # page: (question, reference, variants compared with it)
    "edge_and_damping": (
        "Inner surrogate coefficient 1/2 (paper) or 3/2 (published code), damping 1 or 0.3?",
        "base",
        ["edge 3/2", "edge 1/2, damping 0.3", "edge 3/2, damping 0.3"],
    ),
    "conversion": (
        "Matched conversion, or published: balancing the stem or all layers, over 100 steps or 1?",
        "base",
        ["published, stem", "published, all, x0.85", "published, all, x0.85, 1 step"],
    ),
    "conversion_long": (
        "Does the conversion still matter after 20 epochs?",
        "matched, 20 epochs",
        ["published, stem, 20 epochs"],
    ),
    "start": (
        "Start the SNN from the ANN or from the LQ-ANN?",
        "base",
        ["from the LQ-ANN", "twice the epochs"],
    ),
    "distillation": ("Does following the ANN's outputs help?", "base", ["distilled"]),
    "rate_penalty": (
        "What accuracy does a price on spikes cost, and what energy does it save?",
        "base",
        [f"rate penalty {weight}" for weight in (0.03, 0.1, 0.3)],
    ),
    "learned_neuron": ("Thresholds learned or fixed?", "base", ["fixed theta"]),
    "learned_neuron_t2": (
        "Thresholds and leaks learned or fixed at T = 2, where the leak acts?",
        "T=2",
        ["T=2, fixed theta and leak"],
    ),
    "levels": (
        "M-LIF S=3 against LIF, multi-hot, and the LQ-ANN with the same levels.",
        "base",
        ["LIF, T=1", "multi-hot", "LQ-ANN"],
    ),
    "levels_t3": (
        "M-LIF S=3 at T = 1 against LIF with a step for each of its lanes.",
        "base",
        ["LIF, T=3"],
    ),
    "tradeoff": (
        "Accuracy against energy, S and T from 1 to 4.",
        "base",
        [n for n in TRADEOFF.values() if n != "base"],
    ),
}


def stages(args, seed, variants):
    """The stages of one seed: its ANN, its LQ-ANN, both fused, and the variants."""
    common = {
        "dataset": "CIFAR10",
        "architecture": args.architecture,
        "width_mult": args.width_mult,
        "bias": True,
    }
    train = {
        **common,
        "dropout": 0,
        "batch_size": 128,
        "lr_schedule": "cosine",
        "seed": seed,
        "amp": args.amp,
        "compile": None if args.compile == "none" else args.compile,
        "data_root": args.data_root,
        "device": args.device,
        "energy": True,
        "limit_train_batches": args.limit_train_batches,
        "limit_eval_batches": args.limit_eval_batches,
    }
    adam = {
        **train,
        "epochs": args.epochs,
        "optimizer": "Adam",
        "weight_decay": 0,
        "learning_rate": args.learning_rate,
    }
    found = [
        Stage(
            "ann",
            "ann_ddp",
            words(
                {
                    **train,
                    "bn": True,
                    "epochs": args.ann_epochs,
                    "learning_rate": 0.05,
                    "warm_up": True,
                    "warm_up_epochs": 1,
                    "label_smoothing": 0.1,
                }
            ),
        )
    ]
    if {"from the LQ-ANN", "LQ-ANN"} & set(variants):
        lq = {
            "quant_act": True,
            "act_bits": 3,
            "quant_id": "lvl",
            "bn": True,
            "pretrained_ann": "{ann}",
        }
        found.append(Stage("lq", "ann_ddp", words({**adam, **lq})))
    for name in [stage.name for stage in found]:
        found.append(
            Stage(
                f"{name}_fused",
                "absorb_bn",
                words({**common, "bn": True, "pretrained_ann": f"{{{name}}}"}),
            )
        )
    for name in variants:
        if name in VARIANTS:
            changed = {**BASE, **VARIANTS[name]}
            start = changed.pop("from", "ann_fused")
            if changed.pop("twice", False):
                changed["epochs"] = 2 * args.epochs
            found.append(
                Stage(
                    folder(name),
                    "snn_ddp",
                    words(
                        {**adam, "multi_channel": 1, **changed, "pretrained_ann": f"{{{start}}}"}
                    ),
                )
            )
    return found


def folder(name):
    return "lq" if name == "LQ-ANN" else "".join(c if c.isalnum() else "_" for c in name.lower())


def chain(args, seed, question):
    _, reference, others = QUESTIONS[question]
    folder = (
        Path(args.output_dir) / f"{args.architecture.lower()}-w{args.width_mult:g}" / f"seed{seed}"
    )
    return Chain(folder, stages(args, seed, [reference, *others]))


def paired(values, reference):
    """(mean difference, its standard error) of paired values; the error of a single pair is infinite."""
    differences = [a - b for a, b in zip(values, reference, strict=True)]
    error = (
        statistics.stdev(differences) / math.sqrt(len(differences))
        if len(differences) > 1
        else math.inf
    )
    return statistics.mean(differences), error


def judge(difference, error, count):
    """What a paired difference of `count` pairs says by a t-test at 5 %; one pair says nothing."""
    if count < 2:
        return "one seed"
    if abs(difference) <= stats.t.ppf(0.975, count - 1) * error:
        return "not told apart"
    return "better" if difference > 0 else "worse"


def collect(args, question):
    """{variant: [summary with its learning curve, per seed]} of what is finished for every one of the seeds.

    Raises:
        UseError: a stage was made with another recipe than `args` gives, or on other data.
    """
    _, reference, others = QUESTIONS[question]
    runs, data = {name: [] for name in [reference, *others]}, {}
    for seed in args.seeds:
        one = chain(args, seed, question)
        for name, found in runs.items():
            stage = one.stages[folder(name)]
            if (summary := one.summary(stage)) is not None:
                one.check(stage, {"recipe": stage.recipe})
                data[f"{name}, seed {seed}"] = one.data(stage)
                log = read_lines(Path(summary["run"]) / "log.jsonl")
                kept = {k: v for k, v in summary.items() if k not in LOCAL}
                found.append(
                    {
                        **kept,
                        "seed": seed,
                        "curve": [line["test_accuracy"] for line in log],
                        "ann_accuracy": one.summary(one.stages["ann"])["last_accuracy"],
                        "recipe": stage.recipe,
                        "commit": one.record(stage)["commit"],
                    }
                )
    if data:
        same_data(data)
    return {name: found for name, found in runs.items() if len(found) == len(args.seeds)}


def percent(values):
    spread = f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.2f}{spread}"


def page(args, question, runs):
    """The question's Markdown page."""
    text, reference, others = QUESTIONS[question]
    first = runs[reference]
    size = f"{args.architecture} at width x{args.width_mult:g}, {first[0]['data']}"
    epochs = len(first[0]["curve"])
    early = [epoch for epoch in (1, 5, 10) if epoch < epochs]
    trained = f"ANN {args.ann_epochs} epochs ({percent([r['ann_accuracy'] for r in first])} %), then {epochs}"
    lines = [
        f"# {text}",
        "",
        f"{size}; seeds {', '.join(map(str, args.seeds))}; {trained}. Accuracy in % after the last "
        "epoch, mean ± standard deviation; difference to the first row paired by seed, ± its standard error; energy "
        "of the best epoch's network.",
        "",
        f"| variant | after conversion | after epoch {', '.join(map(str, early))} | accuracy | difference (points) "
        "| energy (uJ) | |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in [reference, *others]:
        if name not in runs:
            lines.append(f"| {name} | | | not measured | | | |")
            continue
        found = runs[name]
        after = (
            percent([r["converted_accuracy"] for r in found])
            if "converted_accuracy" in found[0]
            else ""
        )
        difference, error = paired(
            [r["last_accuracy"] for r in found], [r["last_accuracy"] for r in first]
        )
        spread = f" ± {100 * error:.2f}" if len(found) > 1 else ""
        told = f"{100 * difference:+.2f}{spread}", judge(difference, error, len(found))
        told = ("", "reference") if name == reference else told
        curve = ", ".join(
            f"{100 * statistics.mean(r['curve'][epoch - 1] for r in found):.2f}" for epoch in early
        )
        lines.append(
            f"| {name} | {after} | {curve} | {percent([r['last_accuracy'] for r in found])} | {told[0]} "
            f"| {statistics.mean(r['energy_uj'] for r in found):.2f} | {told[1]} |"
        )
    command = [
        "python -m experiments.questions",
        question,
        f"--architecture {args.architecture} --width_mult {args.width_mult:g}",
        f"--ann_epochs {args.ann_epochs} --epochs {args.epochs} --learning_rate {args.learning_rate:g}",
        f"--amp {args.amp} --seeds {' '.join(map(str, args.seeds))}",
        *["--compile"] * (args.compile != "none"),
    ]
    lines += [
        "",
        "Command (it goes on where it stopped):",
        "",
        "```sh",
        " ".join(command),
        "```",
        "",
    ]
    return "\n".join(lines)


def report(args, question):
    """Write the question's page and numbers, if the reference is finished for every seed; returns the page."""
    runs = collect(args, question)
    if QUESTIONS[question][1] not in runs:
        return f"{question}: not finished for every seed"
    target = Path(args.results) / question
    write_json(
        target.with_suffix(".json"),
        {"question": QUESTIONS[question][0], "versions": versions(), "runs": runs},
    )
    text = page(args, question, runs)
    if question == "tradeoff":
        draw_tradeoff(args, runs, target)
    write_atomic(target.with_suffix(".md"), lambda temporary: temporary.write_text(text))
    return text


def draw_tradeoff(args, runs, path):
    points = {
        key: [(100 * r["last_accuracy"], r["energy_uj"]) for r in runs[name]]
        for key, name in TRADEOFF.items()
        if name in runs
    }
    first = runs["base"]
    ann = 100 * statistics.mean(r["ann_accuracy"] for r in first), first[0]["ann_energy_uj"]
    figures.tradeoff(
        f"{args.architecture} at width x{args.width_mult:g}, {first[0]['data']}, {args.epochs} epochs, "
        f"{len(args.seeds)} seed{'s' * (len(args.seeds) > 1)}",
        points,
        ann,
        path,
    )


def main(argv=None):
    parser = cli.Parser(prog="python -m experiments.questions", description=__doc__.splitlines()[0])
    parser.add_argument("questions", nargs="*", help="names of questions, or all")
    parser.add_argument("--list", action="store_true", help="show the questions")
    parser.add_argument(
        "--report",
        action="store_true",
        help="only write pages of what is finished; of all, if none is named",
    )
    parser.add_argument(
        "-a", "--architecture", type=str.upper, default="RESNET20", choices=cli.ARCHITECTURES
    )
    parser.add_argument("--width_mult", type=cli.width, default=0.25)
    parser.add_argument("--ann_epochs", type=cli.positive, default=8)
    parser.add_argument(
        "--epochs", type=cli.positive, default=3, help="of the LQ-ANN and of every SNN"
    )
    parser.add_argument(
        "--learning_rate", type=cli.rate, default=1e-3, help="of the LQ-ANN and of every SNN"
    )
    parser.add_argument("--seeds", type=cli.seed, nargs="+", default=[0, 1, 2])
    parser.add_argument("--amp", default=fast_amp(), choices=("none", "bf16", "fp16"))
    cli.add_compile(parser)
    parser.add_argument("--data_root", default="./data")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--limit_train_batches", type=cli.natural, default=0)
    parser.add_argument("--limit_eval_batches", type=cli.natural, default=0)
    parser.add_argument("--output_dir", default="runs/questions", help="folder of the runs")
    parser.add_argument("--results", default="results/questions", help="folder of the pages")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    args = parser.parse(argv)
    if args.list or not (args.questions or args.report):
        print("\n".join(f"{name:<18} {text}" for name, (text, *_) in QUESTIONS.items()))
        return
    if len(set(args.seeds)) < len(args.seeds):
        raise UseError("--seeds names a seed twice")
    names = list(QUESTIONS) if args.questions in (["all"], []) else args.questions
    for name in names:
        if name not in QUESTIONS:
            raise UseError(f"there is no question {name!r}: all, {', '.join(QUESTIONS)}")
        if args.architecture == "VGG16" and any(
            VARIANTS.get(v, {}).get("balance") == "stem" for v in QUESTIONS[name][2]
        ):
            raise UseError(f"{name} is about ResNet20's stem, VGG16 has none: ask it of RESNET20")
    args.data_root = str(Path(args.data_root).resolve())
    for name in names:
        for seed in [] if args.report else args.seeds:
            chain(args, seed, name).all(
                lambda text, of=f"{name}, seed {seed}": print(f"[{of}] {text}", flush=True)
            )
        print(report(args, name), flush=True)


if __name__ == "__main__":
    guard(main)
