"""Machines in small: network namespaces on one bridge, without any right on the real machine.

Each host has a name, a loopback and an address 10.9.0.<n> of its own, and the /etc/hosts of a fresh
Debian, where a machine's own name is 127.0.1.1.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from tests.helpers import environment

HUB = """
set -e
ip link set lo up
ip link add name hub type bridge
ip link set hub up
echo ready
exec sleep 3600
"""
HOST = """
set -e
mount --bind {folder}/hosts{n} /etc/hosts
hostname host{n}
ip link set lo up
echo ready
exec sleep 3600
"""
CABLE = """
set -e
ip link add name port{n} type veth peer name wire{n}
ip link set port{n} master hub
ip link set port{n} up
ip link set wire{n} netns {pid}
"""
CARD = """
set -e
ip link set wire{n} name eth0
ip addr add 10.9.0.{n}/24 dev eth0
ip link set eth0 up
"""
# nothing comes in but to the port where the processes meet: even answers are dropped
FIREWALL = """
set -e
ip rule add pref 100 lookup local
ip rule del pref 0
ip rule add pref 50 iif eth0 ipproto tcp dport 1-29499 blackhole
ip rule add pref 51 iif eth0 ipproto tcp dport 29501-65534 blackhole
"""


@cache
def why_not():
    """Why there can be no such hosts here, or ""."""
    try:
        with Hosts(2) as hosts:
            done = hosts.run(1, ["ip", "addr", "show", "eth0"])
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        return f"no network namespaces here: {error}"
    return "" if b"10.9.0.1" in done else "the hosts have no addresses"


class Hosts(contextlib.ExitStack):
    """`count` hosts, numbered from 1."""

    def __init__(self, count):
        super().__init__()
        self.pids = {}
        folder = self.enter_context(tempfile.TemporaryDirectory())
        try:
            self._start("hub", ["unshare", "-r", "-n", "-m"], HUB)
            for n in range(1, count + 1):
                names = f"127.0.0.1 localhost\n127.0.1.1 host{n}\n"
                Path(folder, f"hosts{n}").write_text(names)
                # into the hub's user namespace, which owns all the others
                inside = [*self.enter("hub"), "unshare", "-n", "-m", "-u"]
                self._start(n, inside, HOST.format(n=n, folder=folder))
                self.run("hub", ["sh", "-c", CABLE.format(n=n, pid=self.pids[n])])
                self.run(n, ["sh", "-c", CARD.format(n=n)])
        except BaseException:
            self.close()
            raise

    def _start(self, name, before, script):
        process = subprocess.Popen([*before, "sh", "-c", script], stdout=subprocess.PIPE)
        self.callback(process.wait)
        self.callback(process.kill)
        if process.stdout.readline() != b"ready\n":
            raise RuntimeError(f"{' '.join(before)} is refused")
        self.pids[name] = process.pid

    def enter(self, name):
        """Words before a command that is to run on a host."""
        return [
            *("nsenter", "-t", str(self.pids[name]), "-U", "-n", "-m", "-u"),
            "--preserve-credentials",
            f"--wd={os.getcwd()}",
        ]

    def run(self, name, argv):
        """What a command on a host says."""
        return subprocess.run([*self.enter(name), *argv], check=True, stdout=subprocess.PIPE).stdout

    def start(self, name, argv, folder, **env):
        """A script of Python started on a host."""
        process = subprocess.Popen(
            [*self.enter(name)[:-1], f"--wd={folder}", sys.executable, *map(str, argv)],
            env=environment(folder, **env),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.callback(process.wait)
        self.callback(end_all, process)
        return process

    def cut(self, n):
        """Drop all packets to and from a host, whose own card stays up."""
        self.run("hub", ["ip", "link", "set", f"port{n}", "nomaster"])

    def firewall(self, n):
        """Have a host drop what does not come to port 29500."""
        self.run(n, ["sh", "-c", FIREWALL])


def started_by(pid):
    """Numbers of the processes that a process started, and they, and so on."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        return []
    return [one for child in map(int, children) for one in (child, *started_by(child))]


def end_all(process):
    """Kill a process and all that it started, as the end of its machine does."""
    # torchrun's workers are in sessions of their own
    for pid in (*started_by(process.pid), process.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
