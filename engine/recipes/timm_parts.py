"""The transformer's training recipe, from timm's parts: optimizer, schedule, mixing, smoothing, clipping, average; TET loss."""

from timm.data import Mixup
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3, dispatch_clip_grad

from engine.recipes.cnn import Recipe, tet_loss


class TimmRecipe(Recipe):
    """Recipe of `net` by timm's option names; `epochs` includes the cool-down. timm's errors are raised here, in the making."""

    def __init__(self, args, num_classes, net):
        super().__init__(args)
        self.epochs = args.epochs + (args.cooldown_epochs if args.sched != "step" else 0)
        self.mixup = None
        if args.mixup > 0 or args.cutmix > 0 or args.cutmix_minmax:
            self.mixup = Mixup(
                args.mixup,
                args.cutmix,
                args.cutmix_minmax,
                args.mixup_prob,
                args.mixup_switch_prob,
                args.mixup_mode,
                label_smoothing=args.smoothing,
                num_classes=num_classes,
            )
        self.average = ModelEmaV3(net, decay=args.model_ema_decay) if args.model_ema else None
        more = {"eps": args.opt_eps, "betas": args.opt_betas and tuple(args.opt_betas)}
        self.made = create_optimizer_v2(
            net,
            opt=args.opt,
            lr=args.lr,
            weight_decay=args.weight_decay,
            momentum=args.momentum,
            **{k: v for k, v in more.items() if v is not None},
        )
        self.scheduler, _ = create_scheduler_v2(
            self.made,
            sched=args.sched,
            num_epochs=args.epochs,
            decay_epochs=args.decay_epochs,
            decay_rate=args.decay_rate,
            cooldown_epochs=args.cooldown_epochs,
            min_lr=args.min_lr,
            warmup_lr=args.warmup_lr,
            warmup_epochs=args.warmup_epochs,
        )

    def optimizer(self, net):
        return self.made

    def set_rate(self, optimizer, epoch):
        self.scheduler.step(int(epoch) - 1)  # timm counts epochs from 0
        return optimizer.param_groups[0]["lr"]

    def targets(self, images, labels, epoch):
        if self.mixup is None:
            return images, labels
        self.mixup.mixup_enabled = (
            not self.args.mixup_off_epoch or epoch <= self.args.mixup_off_epoch
        )
        return self.mixup(images, labels)

    def loss(self, out, targets):
        args = self.args
        smoothing = (
            0.0 if targets.dim() == 2 else args.smoothing
        )  # mixed targets are smooth already
        return tet_loss(
            out if out.dim() == 3 else out[None],
            targets,
            args.TET_lamb if args.TET else 0.0,
            args.TET_means,
            smoothing,
        )

    def before_step(self, net, optimizer, scaler):
        if self.args.clip_grad is not None:
            scaler.unscale_(optimizer)
            dispatch_clip_grad(net.parameters(), self.args.clip_grad, mode=self.args.clip_mode)

    def after_step(self, net):
        if self.average is not None:
            self.average.update(net)

    def trained(self, net):
        return net if self.average is None else self.average.module

    def state_dict(self):
        return {} if self.average is None else {"average": self.average.module.state_dict()}

    def load_state_dict(self, state):
        if self.average is not None:
            self.average.module.load_state_dict(state["average"])
