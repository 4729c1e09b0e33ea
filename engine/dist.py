"""Processes: plain, torchrun, SLURM, or spawned here; one place decides.

What several of them compute is what one computes, but for rounding, for dropout masks, for the
statistics of batch norm and for timm's mixing, which pairs the images of a process. Rounding may
flip a spike, after which float32 weights go apart: equal weights are promised, and tested, in
double precision.
"""

import atexit
import fcntl
import importlib
import os
import re
import socket
import threading
import time
import traceback
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from urllib.parse import urlparse

import torch
import torch.distributed as dist

from .errors import UseError, guard
from .machine import fast_amp, keep_memory
from .settings import machine_option, natural, whole

CPU = torch.device("cpu")
# the others wait while rank 0 downloads or balances thresholds
PATIENCE = timedelta(hours=1)
# within which all processes have started; reaching each other may take as long again
MEETING = timedelta(minutes=10)
ANSWER = 10  # s, in which a store answers that can be reached
ADDRESS_OF = 0x8915  # SIOCGIFADDR of Linux's sockios.h
SLURM_PORTS = 10_000, 20_000  # the first, and how many: jobs on one host must not share one
STEP_APART = 7_919  # nor steps of one job; without a divisor in common with the number of ports


@dataclass(frozen=True)
class DeviceOptions:
    """device and processes

    torchrun and SLURM are recognised by their variables.
    """

    device: str = machine_option("auto", "auto, cpu, cuda or cuda:N")
    gpu: int | None = machine_option(
        None, "index of the one GPU to use, as --device cuda:N", natural
    )
    multiprocessing_distributed: bool = machine_option(
        False,
        "start a process per visible GPU (without a GPU: one CPU process)",
    )
    world_size: int = machine_option(
        -1,
        "number of nodes of --multiprocessing_distributed; -1: from the environment, else 1",
        whole,
    )
    rank: int = machine_option(-1, "index of this node; -1: from the environment, else 0", whole)
    dist_url: str = machine_option("env://", "address where the processes meet")
    dist_backend: str = machine_option(
        "auto",
        "auto: nccl on GPUs, else gloo",
        choices=("auto", "nccl", "gloo"),
    )
    local_rank: int | None = machine_option(None, None, whole)


@dataclass(frozen=True)
class World:
    """This process among all: number `rank` of `size`, on `device`.

    store: what the processes share before and beside collectives.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = CPU
    store: dist.Store | None = None

    @property
    def main(self):
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def say(self, text):
        """Print a line, once for all processes."""
        if self.main:
            print(text, flush=True)

    def send(self, tensor):
        """A host's tensor on the device."""
        if self.device.type != "cuda":
            return tensor.to(self.device)
        # the host would wait for a copy from ordinary memory
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def place(self, net):
        """Move a network to the device, in channels_last: the faster layout for convolutions."""
        return net.to(self.device, memory_format=torch.channels_last)

    def sum(self, tensor):
        """Sum of the tensor over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def share(self, tensors):
        """Overwrite the tensors by those of rank 0."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def alone(self, do):
        """Rank 0 does it while the others wait; its UseError is everyone's."""
        problem = [None]
        if self.main:
            try:
                do()
            except UseError as error:
                problem = [str(error)]
        if self.size > 1:
            dist.broadcast_object_list(problem)
        # all end with it, so that none waits for one that has gone
        if problem[0]:
            raise UseError(problem[0])

    def read(self, load):
        """What load() returns, for all processes: rank 0 reads, since it alone has the files.

        Its UseError is everyone's.
        """
        found = [None]

        def fill():
            found[0] = load()

        self.alone(fill)
        if self.size > 1:
            dist.broadcast_object_list(found)
        return found[0]

    def fail(self):
        """Leave the others because of an error.

        Returns whether this process is to tell of it: the first to fail, and not one in the wake of
        another.
        """
        if self.size == 1:
            return True
        answers = []
        # a thread, since of a machine that was cut off the store waits for minutes
        asks = threading.Thread(target=self._tell_failure, args=(answers,), daemon=True)
        with _quiet():
            asks.start()
            asks.join(ANSWER)
        if not answers:
            return True
        first = answers[0]
        # rank 0, which holds the store, has gone: if it was killed, it has told nothing
        if first is None:
            return self.rank == 1
        # under gloo this ends the waiting of the others, under NCCL their launcher ends them
        self.close(failed=True)
        if self.main:
            atexit.register(self._keep_store)
        return first

    def _tell_failure(self, answers):
        """Leave a mark in the store; append whether it is the first, None: the store is gone."""
        try:
            answers.append(self.store.add("failed", 1) == 1)
        except RuntimeError:
            answers.append(None)

    def _keep_store(self, seconds=10):
        """Wait until the others have seen that this process failed."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.store.add("failed", 0) < self.size:
            time.sleep(0.1)

    def close(self, failed=False):
        """Leave the process group and end its threads; networks in DDP are left behind before.

        failed: at once, although the others may wait for this process.
        """
        if not dist.is_initialized():
            return
        if failed and dist.get_backend() == "nccl":
            # an orderly end waits for the others, which wait for what will never come
            dist.distributed_c10d._abort_process_group()
        else:
            dist.destroy_process_group()


@contextmanager
def _quiet():
    """Nothing is shown on stderr: of a store that is gone torch tells on many lines."""
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _first_host(nodelist):
    """First host of a SLURM node list: 'gpu[03-05,9],x1' -> 'gpu03'."""
    head = re.match(r"([^,\[]+)(?:\[(\w+))?", nodelist)
    return head[1] + (head[2] or "") if head else nodelist


def _launched(spawning=False):
    """(rank, size, local rank) given by torchrun or srun, or None.

    Of srun's tasks it also sets the address where they meet. spawning: with one srun task per node
    None too, since each of them then starts a process per GPU (`_node`).
    """
    env = os.environ
    # torchrun
    if "RANK" in env and "WORLD_SIZE" in env:
        return int(env["RANK"]), int(env["WORLD_SIZE"]), int(env.get("LOCAL_RANK", 0))

    # srun, with several tasks
    tasks = int(env.get("SLURM_STEP_NUM_TASKS", 1))
    if tasks == 1 or "SLURM_PROCID" not in env:
        return None
    host = _first_host(env.get("SLURM_STEP_NODELIST", "127.0.0.1"))
    first, count = SLURM_PORTS
    # the next jobs have the next numbers, further steps of this one are far from them
    number = int(env.get("SLURM_JOB_ID", 0)) + STEP_APART * int(env.get("SLURM_STEP_ID", 0))
    port = first + number % count
    env.setdefault("MASTER_ADDR", host)
    env.setdefault("MASTER_PORT", str(port))
    if spawning and env.get("SLURM_STEP_NUM_NODES") == str(tasks):
        return None
    return int(env["SLURM_PROCID"]), tasks, int(env.get("SLURM_LOCALID", 0))


def _node(options: DeviceOptions):
    """(index of this node, number of nodes), by the options, else by the variables of the
    launchers.

    Those variables are the published scripts' (WORLD_SIZE counts nodes there) or srun's.
    """
    env = os.environ
    nodes = options.world_size
    if nodes <= 0:
        nodes = int(env.get("WORLD_SIZE", env.get("SLURM_STEP_NUM_NODES", 1)))
    node = options.rank if options.rank >= 0 else int(env.get("SLURM_NODEID", 0))
    if not 0 <= node < nodes:
        raise UseError(f"--rank {node} is not a node of --world_size {nodes}")
    return node, nodes


def _gpus(options: DeviceOptions):
    """How many GPUs of this node the options let processes be started for."""
    # a GPU that is named is the only one
    if options.gpu is not None:
        return 0
    return torch.cuda.device_count() if options.device in ("auto", "cuda") else 0


def _why_no_gpus(options: DeviceOptions):
    """Why `_gpus` are none."""
    if options.gpu is not None:
        return f"--gpu {options.gpu}"
    return "no GPU here" if options.device in ("auto", "cuda") else f"--device {options.device}"


def _device(options: DeviceOptions, local_rank):
    """The device of the process that is number `local_rank` on its node."""
    name = f"cuda:{options.gpu}" if options.gpu is not None else options.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    wrong = UseError(f"--device must be auto, cpu, cuda or cuda:N, got {name!r}")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise wrong from None
    # torch takes cuda:256 for cuda:0
    if device.type not in ("cpu", "cuda") or str(device) != name:
        raise wrong
    if device.type == "cpu":
        return device

    # processes of one node take its GPUs in turn
    count = torch.cuda.device_count()
    if device.index is None:
        device = torch.device("cuda", local_rank % max(count, 1))
    if device.index >= count:
        raise UseError(
            f"--device {device} is not here: {count} GPU(s) visible; "
            "use --device cpu, or another index"
        )
    return device


def _interface(host):
    """Name of the network interface that leads to `host`, None: it is not known."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            # a datagram's socket sends nothing to connect
            probe.connect((host, 1))
            own = probe.getsockname()[0]
    except OSError:
        # the processes will not meet, and say so
        return None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        for _, name in socket.if_nameindex():
            try:
                found = fcntl.ioctl(asked, ADDRESS_OF, name.encode().ljust(40, b"\0"))
            except OSError:
                continue  # without an address
            if socket.inet_ntoa(found[20:24]) == own:
                return name
    return None


def _join(options: DeviceOptions, amp, rank, size, local_rank):
    """This process's `World`, once all `size` processes have met."""
    device = _device(options, local_rank)
    gpu = device.type == "cuda"
    if gpu:
        torch.cuda.set_device(device)
    backend = options.dist_backend
    if backend == "auto":
        backend = "nccl" if gpu else "gloo"
    if backend == "nccl" and not gpu:
        raise UseError("--dist_backend nccl needs GPUs; use auto or gloo on CPUs")
    if amp == "fp16" and not gpu:
        raise UseError("--amp fp16 needs a GPU; on a CPU use bf16 or none")
    if size == 1:
        return World(device=device)

    # DDP imports this module, whose functions have the group of that moment as their default: the
    # group would outlive `World.close`, and its threads end in the middle of Python's own end
    importlib.import_module("torch.distributed.nn")

    address = options.dist_url
    # gloo would listen where this machine's own name leads: on Debian to 127.0.1.1
    host = urlparse(address).hostname or os.environ.get("MASTER_ADDR")
    interface = host and _interface(host)
    if interface:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    try:
        store, rank, size = next(dist.rendezvous(address, rank, size, timeout=MEETING))
        group = dist.PrefixStore("group", store)
        # gloo tries four times
        tried = MEETING / 4
        dist.init_process_group(backend, store=group, rank=rank, world_size=size, timeout=tried)
        store.set_timeout(PATIENCE)
        # torch 2.11 has no public name for it
        set_timeout = getattr(dist, "set_timeout", None) or dist.distributed_c10d._set_pg_timeout
        set_timeout(PATIENCE)
    except (RuntimeError, ValueError) as error:
        variables = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        where = address.replace("env://", variables)
        reason = str(error).splitlines()[0]
        raise UseError(
            f"process {rank} cannot meet the other {size - 1} at {where}: {reason}"
        ) from None
    # the store outlives the process group: a failing process leaves its mark there
    return World(rank, size, device, dist.PrefixStore("world", store))


def _carry_out(work, amp, debug, world):
    """work(world). Of several processes the first that fails says so, the others leave quietly."""
    if world.device.type == "cpu":
        keep_memory()
    if amp == "bf16" and fast_amp(world.device) == "none":
        world.say(
            f"note: {world.device} has no bf16 of its own, float32 (--amp none) is several times "
            "faster here"
        )
    try:
        return work(world)
    except (Exception, KeyboardInterrupt) as error:
        # the network in their variables would keep the process group
        traceback.clear_frames(error.__traceback__)
        speaks = world.fail()
        world.close(failed=True)
        if speaks or debug:
            raise
        # a launcher ends all processes when one leaves: let the first one speak
        time.sleep(1)
        raise SystemExit(getattr(error, "status", 1)) from None
    finally:
        world.close()


def _spawned(index, per_node, node, nodes, work, options: DeviceOptions, amp, debug):
    """What each started process does; index: its number on this node."""

    def run(_):
        rank = node * per_node + index
        world = _join(options, amp, rank, nodes * per_node, index)
        _carry_out(work, amp, debug, world)

    guard(run, ["--debug"] if debug else [])


def _spawn(node, nodes, work, options: DeviceOptions, amp, debug):
    """Start a process per GPU (without a GPU: one) and wait for them."""
    count = max(_gpus(options), 1)
    env = os.environ
    # a free port, so that two trainings on one machine do not meet
    if nodes == 1 and "MASTER_PORT" not in env:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            env["MASTER_PORT"] = str(free.getsockname()[1])
    env.setdefault("MASTER_ADDR", "127.0.0.1")
    env.setdefault("MASTER_PORT", "29500")
    arguments = (count, node, nodes, work, options, amp, debug)
    try:
        torch.multiprocessing.spawn(_spawned, arguments, nprocs=count)
    except torch.multiprocessing.ProcessExitedException as error:
        if error.exit_code >= 0:
            raise SystemExit(error.exit_code) from None
        signal = -error.exit_code
        hint = " (out of memory?)" if signal == 9 else ""
        raise UseError(f"process {error.error_index} was ended by signal {signal}{hint}") from None


def launch(work, options: DeviceOptions, amp="none", debug=False):
    """Run work(world) in this process, or in those that the options and the environment ask for.

    work: picklable, since started processes receive it. amp: autocast type. debug: show
    tracebacks. Returns what `work` returns, or None where the work was done in started processes.
    Raises:
        UseError: device, backend or process counts do not fit.
    """
    # several processes: started here, or by a launcher
    launched = _launched(options.multiprocessing_distributed)
    if launched is None and options.multiprocessing_distributed:
        node, nodes = _node(options)
        gpus = _gpus(options)
        if gpus == 0:
            why = _why_no_gpus(options)
            print(f"--multiprocessing_distributed: {why}, one process per node", flush=True)
        if max(gpus, 1) * nodes > 1:
            return _spawn(node, nodes, work, options, amp, debug)
    elif launched is None and (options.world_size > 1 or options.rank > 0):
        raise UseError(
            "--world_size and --rank count the nodes of --multiprocessing_distributed: "
            "give it too, or use torchrun"
        )

    # this process alone, or one of the launcher's
    rank, size, local_rank = launched or (0, 1, 0)
    started = int(os.environ.get("GROUP_WORLD_SIZE", 0))
    if launched and started and options.world_size > 0 and options.world_size != started:
        raise UseError(
            f"--world_size says {options.world_size} nodes, the launcher started {started}: "
            "leave it out"
        )
    # the published launcher's option wins over the variable
    if options.local_rank is not None:
        local_rank = options.local_rank
    return _carry_out(work, amp, debug, _join(options, amp, rank, size, local_rank))
