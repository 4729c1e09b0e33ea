"""Processes: plain, torchrun, SLURM, or spawned here; one place decides."""

import os
import re
from dataclasses import dataclass

import torch
import torch.distributed as dist

from .errors import UseError


@dataclass(frozen=True)
class World:
    """This process among all: `rank` of `size`, on `device`."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def main(self):
        return self.rank == 0

    def say(self, *words):
        if self.main:
            print(*words, flush=True)

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

    def close(self):
        if self.size > 1:
            dist.destroy_process_group()


def _first_host(nodelist):
    """First host of a SLURM node list: 'gpu[03-05,9],x1' -> 'gpu03'."""
    head = re.match(r"([^,\[]+)(?:\[(\w+))?", nodelist)
    return head[1] + (head[2] or "") if head else nodelist


def _launched():
    """(rank, size, local rank) given by torchrun or srun, or None."""
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env:
        return int(env["RANK"]), int(env["WORLD_SIZE"]), int(env.get("LOCAL_RANK", 0))
    if int(env.get("SLURM_STEP_NUM_TASKS", 1)) > 1 and "SLURM_PROCID" in env:
        env.setdefault("MASTER_ADDR", _first_host(env.get("SLURM_STEP_NODELIST", "127.0.0.1")))
        env.setdefault("MASTER_PORT", str(10000 + int(env.get("SLURM_JOB_ID", 0)) % 20000))
        return int(env["SLURM_PROCID"]), int(env["SLURM_STEP_NUM_TASKS"]), int(env.get("SLURM_LOCALID", 0))
    return None


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
        device = torch.device("cuda", local_rank % max(count, 1)) if device.index is None else device
        if device.index >= count:
            raise UseError(f"--device {device} is not here: {count} GPU(s) visible; use --device cpu, or another index")
        torch.cuda.set_device(device)
    elif device.type != "cpu":
        raise UseError(f"--device must be auto, cpu, cuda or cuda:N, got {name!r}")
    return device


def _join(args, rank, size, local_rank, init_method):
    device = _device(args, local_rank)
    backend = args.dist_backend if args.dist_backend != "auto" else ("nccl" if device.type == "cuda" else "gloo")
    if backend == "nccl" and device.type != "cuda":
        raise UseError("--dist_backend nccl needs GPUs; use auto or gloo on CPUs")
    if size > 1:
        dist.init_process_group(backend, init_method=init_method, rank=rank, world_size=size)
    return World(rank, size, device)


def _spawned(index, per_node, node, nodes, work, args):
    from .errors import guard

    def run(_):
        world = _join(args, node * per_node + index, nodes * per_node, index, args.dist_url)
        try:
            work(args, world)
        finally:
            world.close()

    guard(run, ["--debug"] if args.debug else [])


def launch(work, args):
    """Run work(args, world) in this process or in the processes that the options and the environment ask for.

    Returns what `work` returns, or None where the work was done in spawned processes.
    Raises:
        UseError: device, backend or process counts do not fit.
    """
    launched = _launched()
    if launched is None and args.multiprocessing_distributed:
        env = os.environ
        nodes = args.world_size if args.world_size > 0 else int(env.get("WORLD_SIZE", 1))
        node = args.rank if args.rank >= 0 else int(env.get("SLURM_NODEID", 0))
        gpus = torch.cuda.device_count() if args.device in ("auto", "cuda") else 0
        if not 0 <= node < nodes:
            raise UseError(f"--rank {node} is not a node of --world_size {nodes}")
        if gpus == 0:
            print("--multiprocessing_distributed: no GPU here, one CPU process per node", flush=True)
        if max(gpus, 1) * nodes > 1:
            env.setdefault("MASTER_ADDR", "127.0.0.1")
            env.setdefault("MASTER_PORT", "29500")
            try:
                torch.multiprocessing.spawn(_spawned, (max(gpus, 1), node, nodes, work, args), nprocs=max(gpus, 1))
            except torch.multiprocessing.ProcessExitedException as error:
                raise SystemExit(error.exit_code) from None
            return None
    rank, size, local_rank = launched or (0, 1, 0)
    nodes = int(os.environ.get("GROUP_WORLD_SIZE", 0))
    if launched and nodes and args.world_size > 0 and args.world_size != nodes:
        raise UseError(f"--world_size says {args.world_size} nodes, the launcher started {nodes}: leave it out")
    world = _join(args, rank, size, args.local_rank if args.local_rank is not None else local_rank, args.dist_url)
    try:
        return work(args, world)
    finally:
        world.close()
