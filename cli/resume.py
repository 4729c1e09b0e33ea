"""The settings of a training command: new ones, or with --resume those of a run that goes on."""

import os
from dataclasses import replace
from pathlib import Path

from engine import checkpoint, log, settings
from engine.errors import UseError

from .checks import check_device
from .options import TrainingSettings
from .parser import Parser, refuse_idle
from .provenance import check_stored

# options of a launch: which of the processes this one is, and where they meet
LAUNCH = ("local_rank", "world_size", "rank", "dist_url")


def read_settings(parser: Parser, argv, rules):
    """Parse argv; with --resume, take the interrupted run's settings instead.

    rules: function of the settings, see `parser.refuse_idle`.
    Returns (settings, content of the run's last.pth or None).
    Raises:
        UseError: an option differs from the interrupted run's, or the run is of another script.
    """
    asked = parser.parse(argv)
    check_device(asked)
    if not (asked.run.resume or asked.run.dont_save):
        asked = replace(asked, run=replace(asked.run, resume=_restarted(asked)))
    if not asked.run.resume:
        # a configuration file may hold what the command line overrides
        refuse_idle(parser.named(argv), rules(asked))
        return asked, None

    # a run folder or a file in it
    path = Path(asked.run.resume)
    saved = checkpoint.load(path / "last.pth" if path.is_dir() else path)
    if "training" not in saved:
        raise UseError(f"{path} is not the last.pth of a run: --resume takes a run folder")
    return _resumed(parser, asked, path, saved), saved


def _restarted(asked: TrainingSettings):
    """The run folder that torchrun's restart of all processes goes on with, "" if it is none."""
    job = os.environ.get("TORCHELASTIC_RUN_ID")
    # without --rdzv_id every job has the same name, and only a restart tells that it is this one
    if job is None or (job == "none" and os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0"):
        return ""
    own = settings.flat(asked)
    for last in sorted(Path(asked.run.output_dir).glob("**/last.pth"), reverse=True):
        config, summary = last.with_name("config.json"), last.with_name("summary.json")
        if not config.exists() or summary.exists():
            continue
        stored = log.read_json(config)
        # each process of a node has a number of its own, the file that of the first
        same = {**own, "local_rank": stored["settings"].get("local_rank")}
        if stored.get("job") == job and stored["settings"] == same:
            return str(last.parent)
    return ""


def _resumed(parser: Parser, asked: TrainingSettings, path, saved):
    """The settings of the interrupted run in `path`, with what may be given anew."""
    names = settings.stored_name(parser.kind)
    foreign = sorted(set(saved["settings"]) - set(names))
    if foreign:
        raise UseError(
            f"{path} is a run of another script: it has --{foreign[0]}, "
            f"which {parser.prog} does not know"
        )

    # the settings of the run hold; what does not change the result may be given anew
    options, now = settings.options(parser.kind), settings.flat(asked)
    values = {names[key]: value for key, value in saved["settings"].items()}
    check_stored(path, options, values)
    values = settings.flat(settings.make(parser.kind, values))  # in today's spelling
    for name in asked.given:
        # a part of the evaluation images is as many as the batches hold
        part = name == "val_batch_size" and values["limit_eval_batches"]
        result = options[name].governs == settings.RESULT or part
        if result and now[name] != values[name]:
            raise UseError(
                f"--{name} {now[name]} differs from the interrupted run's {values[name]}: "
                "leave it out, or start a new run"
            )
        values[name] = now[name]
    # the processes are those of this launch, not of that one
    for name in LAUNCH:
        values[name] = now[name]
    if "device" in asked.given:
        values["gpu"] = now["gpu"]
    values["resume"] = str(path if path.is_dir() else path.parent)
    return settings.make(parser.kind, values)
