"""The faults that are injected: what is at work, what goes wrong, and how it is undone."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

from engine import checkpoint
from tests.soak.chains import COMMON, EVENTS, LANES, RESNET
from tests.soak.workplace import SOON, again, damaged, differences, files, left, state

# who is at work when something goes wrong
HERE = RESNET.replace("../data", "data")
TRAIN = f"ann_ddp.py {HERE} --bn --dropout 0.2 -lr 0.01"
IMAGES = "--dataset FOLDER --dataset_dir images --image_size 80 --workers 2"
RECORDED = "--per_class 2 --events 20000 --workers 2"
SUBJECTS = {
    "resume": f"{TRAIN} --output_dir train",
    "begin": f"{TRAIN} --output_dir begun",
    "fuse": "absorb_bn.py -a RESNET20 --width_mult 0.0625 --bn --bias "
    "--pretrained_ann train/ann/ann_resnet20_cifar10_w0.0625.pth",
    "export": "export.py snn/snn/snn_resnet20_cifar10_w0.0625_MC_T_1_H_1_C_3_Z_0.pth "
    "--to integer --replace --data_root data",
    "simulate": f"{EVENTS}/simulate.py --output camera {RECORDED}",
    "prepare": f"{EVENTS}/dvscifar_prepare.py --source events --output prepared --workers 2",
    "images": f"ann_ddp.py {COMMON} -a VGG16 --width_mult 0.0625 --bn {IMAGES} "
    "--output_dir decoded",
}
# what there is before: (command, moment at which it is killed)
BEFORE = (
    (SUBJECTS["resume"], "replace:8:after"),  # in the second epoch
    (f"snn_ddp.py {HERE} {LANES} --timesteps 1 --default_threshold 0.3 --output_dir snn", ""),
    (f"{EVENTS}/simulate.py --output events {RECORDED}", ""),
)
ROOM = 64  # MiB of the disk
BROKEN = "/proc/self/mem"  # its first bytes cannot be read: the kernel answers EIO


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong while a command of `SUBJECTS` is at work.

    kind: of fault. name: what goes wrong. subject: who is at work. moment: see `injected`. wrapped:
    words before the command. around: context manager of the folder, in which the command runs.
    during: function of the started `Command`.
    """

    kind: str
    name: str
    subject: str
    moment: str = ""
    wrapped: tuple = ()
    around: Callable = nullcontext
    during: Callable | None = None

    @property
    def real(self):
        """Whether the system itself does it."""
        return not self.moment


def mount(*words):
    """Whether a file system was mounted."""
    return not subprocess.run(["mount", *words], capture_output=True, check=False).returncode


def full(room):
    """The folder's disk has so many KiB left."""

    @contextmanager
    def around(folder):
        ballast = folder / "ballast"
        with open(ballast, "wb", 0) as file:
            free = os.statvfs(folder)
            file.write(bytes(free.f_bavail * free.f_bsize - 1024 * room))
        yield
        ballast.unlink()

    return around


def read_only(part):
    """A folder below the command's cannot be written to."""

    @contextmanager
    def around(folder):
        place = next(folder.glob(part)) if part else folder
        mount("--bind", place, place)
        mount("-o", "remount,bind,ro", place)
        yield
        subprocess.run(["umount", place], check=True)

    return around


def unreadable(part):
    """A file below the command's folder cannot be read."""

    @contextmanager
    def around(folder):
        path = sorted(folder.glob(part))[0]
        aside = path.with_name("aside")
        path.rename(aside)
        path.symlink_to(BROKEN)
        yield
        aside.replace(path)

    return around


def limit(words):
    """The command under a limit of the shell."""
    return ("sh", "-c", f'ulimit {words}; exec "$@"', "sh")


SHARED = 'mount -t tmpfs -o size={}k tmpfs /dev/shm && exec "$@"'


def shared_memory(room):
    """The command with so many KiB in /dev/shm."""
    return ("unshare", "-m", "sh", "-c", SHARED.format(room), "sh")


def lose_a_worker(command):
    """Kill a process that the command has started, as soon as one is at work."""
    seen = set()
    while command.process.poll() is None:
        living = set(command.living()) - {command.process.pid}
        # a program that is asked for its version is gone by then
        if living & seen:
            os.kill(min(living & seen), signal.SIGKILL)
            return
        seen = living
        time.sleep(0.2)


FULL, SHORT, SYNC, RENAME = "disk full", "short write", "fsync fails", "rename fails"
READ_ONLY, EIO, WORKER = "read-only folder", "EIO on a file", "a worker dies"
CLOCK, SHM, FILES = "clock steps back", "/dev/shm full", "too few file descriptors"
RUN = "train/ann/*/"

FAULTS = (
    *(Fault(FULL, f"{room} KiB are left", "resume", around=full(room)) for room in (0, 8, 200)),
    Fault(FULL, "nothing is left", "begin", around=full(0)),
    Fault(FULL, "64 KiB are left", "begin", around=full(64)),
    Fault(FULL, "nothing is left", "fuse", around=full(0)),
    Fault(FULL, "nothing is left", "export", around=full(0)),
    Fault(FULL, "500 KiB are left", "prepare", around=full(500)),
    Fault(FULL, "nothing is left", "simulate", around=full(0)),
    Fault(FULL, "at the 3rd checkpoint", "resume", "save:3:ENOSPC"),
    Fault(SHORT, "files end after 20 KiB", "resume", wrapped=limit("-f 40")),
    Fault(SHORT, "files end after 4 KiB", "begin", wrapped=limit("-f 8")),
    Fault(SHORT, "files end after 500 KiB", "prepare", wrapped=limit("-f 1000")),
    Fault(SHORT, "files end after 4 KiB", "simulate", wrapped=limit("-f 8")),
    *(Fault(SYNC, f"the {n}.", "resume", f"fsync:{n}:EIO") for n in (1, 3)),
    Fault(SYNC, "the 1st", "prepare", "fsync:1:EIO"),
    Fault(SYNC, "the 1st", "fuse", "fsync:1:EIO"),
    *(Fault(RENAME, f"the {n}.", "resume", f"replace:{n}:EIO") for n in (1, 4)),
    *(Fault(RENAME, f"the {n}.", "prepare", f"replace:{n}:EIO") for n in (1, 2, 3)),
    Fault(RENAME, "the 1st", "export", "replace:1:EACCES"),
    Fault(READ_ONLY, "the run folder", "resume", around=read_only(RUN)),
    Fault(READ_ONLY, "the folder of the results", "resume", around=read_only("train/ann")),
    Fault(READ_ONLY, "all", "begin", around=read_only("")),
    Fault(READ_ONLY, "the checkpoint's folder", "fuse", around=read_only("train/ann")),
    Fault(READ_ONLY, "the output", "prepare", around=read_only("prepared")),
    Fault(EIO, "an image, read at the start", "resume", around=unreadable("data/*/train/*/*.png")),
    Fault(EIO, "an image, read by a worker", "images", around=unreadable("images/train/*/*.jpg")),
    Fault(EIO, "a recording", "prepare", around=unreadable("events/*/*_1.aedat")),
    Fault(EIO, "the checkpoint", "resume", around=unreadable(f"{RUN}last.pth")),
    Fault(EIO, "the weights to start from", "fuse", around=unreadable("train/ann/*.pth")),
    Fault(WORKER, "one that decodes images", "images", during=lose_a_worker),
    Fault(WORKER, "one that prepares recordings", "prepare", during=lose_a_worker),
    Fault(CLOCK, "back by a day, seconds", "resume", "clock:5:back"),
    Fault(CLOCK, "back by a day, the folder's date", "begin", "date:1:back"),
    *(Fault(SHM, f"{n} KiB", "images", wrapped=shared_memory(n)) for n in (4, 64)),
    *(Fault(FILES, f"{n}", "images", wrapped=limit(f"-n {n}")) for n in (12, 20, 28)),
    Fault(FILES, "12", "prepare", wrapped=limit("-n 12")),
)


# ---- injecting


def prepared(campaign):
    """A folder with what there is before a fault."""
    folder = campaign.base / "before"
    if not folder.exists():
        folder.mkdir()
        for name in ("data", "images"):
            shutil.copytree(campaign.base / name, folder / name)
        for line, moment in BEFORE:
            ended = campaign.run(line, folder, moment=moment)
            assert ended.status == (-signal.SIGKILL if moment else 0), ended.errors
        (folder / "prepared").mkdir()
    return folder


def undisturbed(campaign, subject):
    """`state` at the end of a command that nothing disturbs."""
    key = f"fault: {subject}"
    if key not in campaign.ends:
        with workshop(campaign) as folder:
            line = SUBJECTS[subject]
            ended = campaign.run(again(line, folder), folder)
            assert ended.status == 0, ended.errors
            campaign.ends[key] = state(folder)
    return campaign.ends[key]


@contextmanager
def workshop(campaign):
    """A copy of what there is before, on a small disk of its own where one can be mounted."""
    folder = campaign.folder("chain")
    mounted = mount("-t", "tmpfs", "-o", f"size={ROOM}m", "tmpfs", folder)
    try:
        shutil.copytree(prepared(campaign), folder, dirs_exist_ok=True)
        yield folder
    finally:
        if mounted:
            subprocess.run(["umount", "--recursive", folder], check=True)


def epochs(folder):
    """How many epochs the checkpoints below a folder stand for."""
    return sum(checkpoint.load(path)["epoch"] for path in folder.rglob("last.pth"))


def inject(campaign, fault):
    """Have a fault happen; returns its record, or None where it cannot be had."""
    want, line = undisturbed(campaign, fault.subject), SUBJECTS[fault.subject]
    with workshop(campaign) as folder:
        if fault.kind in (FULL, READ_ONLY) and fault.real and not os.path.ismount(folder):
            return None
        done = epochs(folder)
        before = {path: path.stat().st_size for path in files(folder) if path.suffix != ".tmp"}
        with fault.around(folder):
            words = again(line, folder)
            command = campaign.start(words, folder, moment=fault.moment, wrapped=fault.wrapped)
            try:
                if fault.during:
                    fault.during(command)
                ended = command.end()
            except BaseException:
                # the disk can be taken away only from under nobody
                command.send(signal.SIGKILL)
                command.gone(SOON)
                raise
            broken = judged(ended)
            if not command.gone(SOON):
                broken.append(f"something of it is at work after {SOON} s")
        broken += [f"damaged: {each}" for each in damaged(folder)]
        lost = sum(size for path, size in before.items() if not path.exists())
        record = {"bytes_lost": lost, "epochs_lost": max(0, done - epochs(folder))}
        broken += [f"{name} {count}" for name, count in record.items() if count]
        goes_on = campaign.run(again(line, folder), folder)
        broken += [f"does not go on: {goes_on.told[-3:]}"] * bool(goes_on.status)
        broken += differences(state(folder), want)
        left_over = len(left(folder))
    about = {"kind": fault.kind, "name": fault.name, "subject": fault.subject, "real": fault.real}
    told = ended.told[-1] if ended.status else "survived"
    return {**about, **record, "left": left_over, "told": told, "broken": broken}


def judged(ended):
    """What is wrong with how a command ended: it goes on to its end, or says why in one line."""
    if ended.status == 0:
        return []
    if ended.status < 0 or len(ended.told) != 1 or ": error: " not in ended.told[0]:
        return [f"status {ended.status}, told {ended.told[-8:]}"]
    return []
