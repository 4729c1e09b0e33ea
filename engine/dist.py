"""Processes: plain, torchrun, SLURM, or spawned here; one place decides."""

import atexit
import ctypes
import os
import re
import socket
import time
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from .errors import UseError, guard

CPU = torch.device("cpu")
PATIENCE = timedelta(hours=1)  # the others wait while rank 0 downloads or balances thresholds


@dataclass(frozen=True)
class World:
    """This process among all: `rank` of `size`, on `device`; `store` is what they share before and beside collectives."""

    rank: int = 0
    size: int = 1
    device: torch.device = CPU
    store: dist.Store | None = None

    @property
    def main(self):
        return self.rank == 0

    def say(self, *words):
        if self.main:
            print(*words, flush=True)

    def send(self, tensor):
        """A host's tensor on the device; a GPU is not waited for, which a copy from ordinary memory would do."""
        return (
            tensor.pin_memory().to(self.device, non_blocking=True)
            if self.device.type == "cuda"
            else tensor.to(self.device)
        )

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

    def barrier(self):
        if self.size > 1:
            dist.barrier()

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
        if problem[0]:
            raise UseError(problem[0])

    def fail(self):
        """Leave the others because of an error; True if this is the first process to fail, and not one in its wake."""
        if self.size == 1:
            return True
        try:
            first = self.store.add("failed", 1) == 1
        except RuntimeError:  # rank 0, which holds the store, has gone
            return False
        self.close()  # ends the waiting of the others
        if self.main:
            atexit.register(self._keep_store)
        return first

    def _keep_store(self, seconds=10):
        """Wait until the others have seen that this process failed."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.store.add("failed", 0) < self.size:
            time.sleep(0.1)

    def close(self):
        if dist.is_initialized():
            dist.destroy_process_group()


def _first_host(nodelist):
    """First host of a SLURM node list: 'gpu[03-05,9],x1' -> 'gpu03'."""
    head = re.match(r"([^,\[]+)(?:\[(\w+))?", nodelist)
    return head[1] + (head[2] or "") if head else nodelist


def _launched(spawning=False):
    """(rank, size, local rank) given by torchrun or srun, or None.

    spawning: with one srun task per node None too, since each of them then starts a process per GPU (`_node`).
    """
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env:
        return int(env["RANK"]), int(env["WORLD_SIZE"]), int(env.get("LOCAL_RANK", 0))
    tasks = int(env.get("SLURM_STEP_NUM_TASKS", 1))
    if tasks > 1 and "SLURM_PROCID" in env:
        env.setdefault("MASTER_ADDR", _first_host(env.get("SLURM_STEP_NODELIST", "127.0.0.1")))
        env.setdefault("MASTER_PORT", str(10000 + int(env.get("SLURM_JOB_ID", 0)) % 20000))
        if spawning and env.get("SLURM_STEP_NUM_NODES") == str(tasks):
            return None
        return int(env["SLURM_PROCID"]), tasks, int(env.get("SLURM_LOCALID", 0))
    return None


def _node(args):
    """(index of this node, number of nodes), by the options, else by the variables of the published scripts or of srun."""
    env = os.environ
    nodes = (
        args.world_size
        if args.world_size > 0
        else int(env.get("WORLD_SIZE", env.get("SLURM_STEP_NUM_NODES", 1)))
    )
    node = args.rank if args.rank >= 0 else int(env.get("SLURM_NODEID", 0))
    if not 0 <= node < nodes:
        raise UseError(f"--rank {node} is not a node of --world_size {nodes}")
    return node, nodes


def _device(args, local_rank):
    name = f"cuda:{args.gpu}" if args.gpu is not None else args.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UseError(f"--device must be auto, cpu, cuda or cuda:N, got {name!r}") from None
    if device.type == "cuda":
        count = torch.cuda.device_count()
        device = (
            torch.device("cuda", local_rank % max(count, 1)) if device.index is None else device
        )
        if device.index >= count:
            raise UseError(
                f"--device {device} is not here: {count} GPU(s) visible; use --device cpu, or another index"
            )
        torch.cuda.set_device(device)
    elif device.type != "cpu":
        raise UseError(f"--device must be auto, cpu, cuda or cuda:N, got {name!r}")
    return device


def _join(args, rank, size, local_rank, init_method):
    device = _device(args, local_rank)
    backend = (
        args.dist_backend
        if args.dist_backend != "auto"
        else ("nccl" if device.type == "cuda" else "gloo")
    )
    if backend == "nccl" and device.type != "cuda":
        raise UseError("--dist_backend nccl needs GPUs; use auto or gloo on CPUs")
    if args.amp == "fp16" and device.type != "cuda":
        raise UseError("--amp fp16 needs a GPU; on a CPU use bf16 or none")
    if size == 1:
        return World(device=device)
    try:
        store, rank, size = next(dist.rendezvous(init_method, rank, size, timeout=PATIENCE))
        dist.init_process_group(
            backend,
            store=dist.PrefixStore("group", store),
            rank=rank,
            world_size=size,
            timeout=PATIENCE,
        )
    except (RuntimeError, ValueError) as error:
        where = init_method.replace(
            "env://", f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        )
        raise UseError(
            f"process {rank} cannot meet the other {size - 1} at {where}: {str(error).splitlines()[0]}"
        ) from None
    return World(rank, size, device, dist.PrefixStore("world", store))


def fast_amp(device="auto"):
    """The faster autocast type of a device: bf16 on GPUs that have it and on CPUs with AVX-512, else none (there bf16 is
    emulated and takes ten times as long as float32)."""
    if str(device) != "cpu" and torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "none"
    return "bf16" if "AVX512" in torch.backends.cpu.get_cpu_capability() else "none"


def keep_memory():
    """Have glibc keep what is freed on the CPU, since the next step asks for the same sizes again; fetching the pages anew
    from the kernel costs up to a quarter of a step. Elsewhere it does nothing."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        for parameter, value in (
            (-3, 1 << 30),
            (-1, (1 << 31) - 1),
        ):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
            mallopt(parameter, value)


def _carry_out(work, args, world):
    """work(args, world). Of several processes the first that fails reports it, the others leave quietly."""
    if world.device.type == "cpu":
        keep_memory()
    if args.amp == "bf16" and fast_amp(world.device) == "none":
        world.say(
            f"note: {world.device} has no bf16 of its own, float32 (--amp none) is several times faster here"
        )
    try:
        return work(args, world)
    except (Exception, KeyboardInterrupt) as error:
        if world.fail() or args.debug:
            raise
        time.sleep(1)  # a launcher ends all processes when one leaves: let the first one speak
        raise SystemExit(getattr(error, "status", 1)) from None
    finally:
        world.close()


def _spawned(index, per_node, node, nodes, work, args):
    def run(_):
        _carry_out(
            work, args, _join(args, node * per_node + index, nodes * per_node, index, args.dist_url)
        )

    guard(run, ["--debug"] if args.debug else [])


def _spawn(work, args, node, nodes):
    """Start a process per GPU (without a GPU: one) and wait for them."""
    count = max(torch.cuda.device_count() if args.device in ("auto", "cuda") else 0, 1)
    if nodes == 1 and "MASTER_PORT" not in os.environ:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            os.environ["MASTER_PORT"] = str(free.getsockname()[1])
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29500")
    try:
        torch.multiprocessing.spawn(_spawned, (count, node, nodes, work, args), nprocs=count)
    except torch.multiprocessing.ProcessExitedException as error:
        if error.exit_code < 0:
            raise UseError(
                f"process {error.error_index} was ended by signal {-error.exit_code}"
                + (" (out of memory?)" if error.exit_code == -9 else "")
            ) from None
        raise SystemExit(error.exit_code) from None


def launch(work, args):
    """Run work(args, world) in this process or in the processes that the options and the environment ask for.

    Returns what `work` returns, or None where the work was done in spawned processes.
    Raises:
        UseError: device, backend or process counts do not fit.
    """
    launched = _launched(args.multiprocessing_distributed)
    if launched is None and args.multiprocessing_distributed:
        node, nodes = _node(args)
        gpus = torch.cuda.device_count() if args.device in ("auto", "cuda") else 0
        if gpus == 0:
            print(
                "--multiprocessing_distributed: no GPU here, one CPU process per node", flush=True
            )
        if max(gpus, 1) * nodes > 1:
            return _spawn(work, args, node, nodes)
    elif launched is None and (args.world_size > 1 or args.rank > 0):
        raise UseError(
            "--world_size and --rank count the nodes of --multiprocessing_distributed: give it too, or use torchrun"
        )
    rank, size, local_rank = launched or (0, 1, 0)
    nodes = int(os.environ.get("GROUP_WORLD_SIZE", 0))
    if launched and nodes and args.world_size > 0 and args.world_size != nodes:
        raise UseError(
            f"--world_size says {args.world_size} nodes, the launcher started {nodes}: leave it out"
        )
    local_rank = args.local_rank if args.local_rank is not None else local_rank
    return _carry_out(work, args, _join(args, rank, size, local_rank, args.dist_url))
