"""Train an ANN, or with --quant_act a log-quantised ANN (LQ-ANN).

python ann_ddp.py --dataset CIFAR10 --architecture RESNET20 --bn --bias --epochs 300 --learning_rate 0.01
"""

from itertools import islice
from pathlib import Path

import models
from cli import parser as cli
from cli import run
from engine import checkpoint
from engine.dist import World, launch
from engine.errors import guard
from inputs import images as data


def get_parser():
    parser = cli.Parser(
        prog="ann_ddp.py", description="Train an ANN, or with --quant_act a log-quantised ANN."
    )
    network = cli.add_network(
        parser, 0.2, "dropout after activations; VGG16's head has 0.5 on small images"
    )
    network.add_argument("--bn", action="store_true", help="batch norm after each convolution")
    network.add_argument("--pretrained_ann", default="", help="checkpoint to start from (ANN)")
    quant = parser.add_argument_group("quantiser")
    quant.add_argument(
        "--quant_act", action="store_true", help="quantise every activation: train the LQ-ANN"
    )
    quant.add_argument(
        "--act_bits",
        type=cli.positive,
        default=1,
        help="bits: 2^bits - 1 powers of two and zero ('log')",
    )
    quant.add_argument("--quant_id", default="log", choices=models.quantize.SCHEMES, help="levels")
    quant.add_argument(
        "--quant_scale_max",
        type=cli.number(float, above=0, high=100),
        default=99.7,
        help="upper end of the range: percentile of a layer's activations, in percent",
    )
    quant.add_argument(
        "--quant_num_batches",
        type=cli.positive,
        default=10,
        help="training batches that set the range",
    )
    cli.add_data(parser)
    cli.add_training(parser, 300, 1e-3, [0.45, 0.70, 0.90], 0.9)
    cli.add_output(parser)
    cli.add_distributed(parser)
    return parser


def result(args):
    """File of the trained network."""
    bits = f"_AB_{args.act_bits}_{args.quant_id}" if args.quant_act else ""
    name = f"ann_{args.architecture}_{args.dataset}".lower() + run.suffix(args) + bits
    return Path(args.output_dir) / "ann" / f"{name}.pth"


def rules(args):
    quant = ["act_bits", "quant_id", "quant_scale_max", "quant_num_batches"]
    return [
        *run.common_rules(args),
        (quant, args.quant_act, "it belongs to the quantiser, give --quant_act"),
    ]


def work(args, world, saved=None):
    content, loaders = run.start(args, world)
    about = content.about
    act = (
        models.LogQuant(args.act_bits, args.quant_id, args.quant_scale_max)
        if args.quant_act
        else models.ReLU()
    )
    small_vgg_head = 0.5 if about["image_size"] < 128 else args.dropout
    net = run.build(args, about, act, bn=args.bn, bias=args.bias, head_dropout=small_vgg_head)
    if args.pretrained_ann and not saved:
        weights = checkpoint.load(args.pretrained_ann)
        checkpoint.load_into(
            net, weights, args.pretrained_ann, new=("lo", "hi"), dropped=("lo", "hi")
        )
        world.say(f"weights from {args.pretrained_ann}")
        if args.test_only:
            run.note_activation(weights, act, args.pretrained_ann, world)
    net = run.place(net, world)
    ranges = [m for m in net.modules() if isinstance(m, models.QuantReLU)]

    def calibrate(epoch):
        """Rank 0 measures the ranges on whole batches, all ranks use them."""
        if world.main:
            alone = data.loaders(content, args, World(device=world.device))[0]
            batches = min(args.quant_num_batches, len(alone))
            images = (x for x, *_ in islice(alone.epoch(10**6 + epoch), batches))
            models.calibrate(net, images)
        world.share([t for m in ranges for t in (m.lo, m.hi)])
        for m in ranges:
            m.stop()

    if args.test_only:
        if args.pretrained_ann and not all(m.ready for m in ranges):
            calibrate(0)
        return run.test_only(
            net, loaders, about, args, world, args.pretrained_ann, "--pretrained_ann"
        )
    return run.train(
        net,
        "lq" if args.quant_act else "ann",
        result(args),
        loaders,
        about,
        args,
        world,
        saved,
        before_epoch=calibrate if args.quant_act else None,
        recipe=run.recipe(args, about, world),
    )


def main(argv=None):
    args, saved = run.settings(get_parser(), argv, rules)
    return launch(run.Work(work, saved), args)


if __name__ == "__main__":
    guard(main)
