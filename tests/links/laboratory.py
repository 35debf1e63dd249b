"""Runs a job whose ranks are in network namespaces of their own, each behind a NAT.

    python -m tests.links.laboratory --nat cone -n 4 -- examples/ring.py

It needs root, `ip` and `iptables`.  Everything is made in new network and mount
namespaces, so it vanishes with the process, whatever happens to it:

    lab       a bridge with 10.99.0.1, smpirun, its emulator, the echo service
    nat<k>    outside 10.99.0.<10+k> on the bridge, inside 192.168.<k>.1
    fn<k>     192.168.<k>.2, rank k

The emulator is on 127.0.0.1 of `lab`; a relay makes it appear there in every fn.

Kinds of NAT:

    cone       keeps the port, lets in only what answers an outgoing packet
    symmetric  a random port for every connection
    rewriting  a port of its own choice
    shared     ranks 0 and 1 are behind one address; the others have a cone each
    open       no NAT and no filter: public addresses
    cut        cone; after `--cut-after` bytes no packet passes between two ranks any more
    lossy      cone; every fiftieth packet between two ranks is lost
    idle       cone; a mapping is forgotten after 10 s without a packet
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

KINDS = ("cone", "symmetric", "rewriting", "shared", "open", "cut", "lossy", "idle")
LAB = "10.99.0.1"
CLONE_NEWNET = 0x40000000
COMMANDS = ("ip", "iptables", "unshare")


def missing() -> str:
    """Return why the laboratory cannot be built here; "" if it can."""
    if os.geteuid():
        return "network namespaces need root"
    absent = [name for name in COMMANDS if shutil.which(name) is None]
    if absent:
        return f"needs the commands {', '.join(absent)} (Debian: iproute2, iptables, util-linux)"
    probe = "ip link add probe0 type bridge && iptables -t nat -A POSTROUTING -j MASQUERADE"
    made = subprocess.run(["unshare", "--net", "sh", "-c", probe], capture_output=True, text=True)
    return "" if made.returncode == 0 else f"the kernel lacks something: {made.stderr.strip()}"


def enter(arguments: Sequence[str], timeout_s: float = 120.0) -> subprocess.CompletedProcess[str]:
    """Run the laboratory in new namespaces with these arguments, and return how it ended."""
    command = ["unshare", "--net", "--mount", "--kill-child", "--pid", "--fork"]
    command += [sys.executable, "-m", "tests.links.laboratory", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)


def _sh(*commands: str) -> None:
    for command in commands:
        subprocess.run(command.split(), check=True)


def _in(namespace: str, *commands: str) -> None:
    _sh(*(f"ip netns exec {namespace} {command}" for command in commands))


class Laboratory:
    """The namespaces of one job.

    Parameters
    ----------
    kind
        One of `KINDS`.
    ranks
        Number of ranks.
    cut_after
        With `cut`: bytes that pass between two ranks, each way, before nothing does.
    """

    def __init__(self, kind: str, ranks: int, cut_after: int = 0) -> None:
        self.kind = kind
        self.ranks = ranks
        self._cut_after = cut_after

    def build(self) -> None:
        """Make the namespaces."""
        os.makedirs("/run/netns", exist_ok=True)
        _sh(
            "mount --make-rprivate /",
            "mount -t tmpfs none /run/netns",
            "mount -t proc proc /proc",
            "ip link set lo up",
            "ip link add lab type bridge",
            f"ip addr add {LAB}/24 dev lab",
            "ip link set lab up",
        )
        for rank in range(self.ranks):
            nat = 0 if self.kind == "shared" and rank == 1 else rank
            if nat == rank:
                self._make_nat(nat)
            self._make_function(rank, nat)

    def _make_nat(self, nat: int) -> None:
        name = f"nat{nat}"
        _sh(
            f"ip netns add {name}",
            f"ip link add o{nat} type veth peer name out netns {name}",
            f"ip link set o{nat} master lab",
            f"ip link set o{nat} up",
        )
        _in(
            name,
            "ip link set lo up",
            f"ip addr add 10.99.0.{10 + nat}/24 dev out",
            "ip link set out up",
            "sysctl -q -w net.ipv4.ip_forward=1",
        )
        changed = {
            "symmetric": " --random-fully",
            "rewriting": " -p tcp --to-ports 30000-30999",
        }.get(self.kind, "")
        if self.kind != "open":
            _in(
                name,
                f"iptables -t nat -A POSTROUTING -o out -j MASQUERADE{changed}",
                "iptables -A FORWARD -i out -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
                "iptables -A FORWARD -i out -j DROP",
                "iptables -A INPUT -i out -j DROP",
            )
        else:
            # the address is the function's own: everything that comes for it is forwarded
            _in(
                name,
                f"iptables -t nat -A PREROUTING -i out -j DNAT --to-destination 192.168.{nat}.2",
                "iptables -t nat -A POSTROUTING -o out -j MASQUERADE",
            )
        between = "FORWARD -i out -p tcp ! -s 10.99.0.1"
        if self.kind == "lossy":
            _in(
                name, f"iptables -I {between} -m statistic --mode nth --every 50 --packet 0 -j DROP"
            )
        if self.kind == "cut":
            quota = f"-m connbytes --connbytes {self._cut_after}: --connbytes-dir both"
            _in(name, f"iptables -I {between} {quota} --connbytes-mode bytes -j DROP")
        if self.kind == "idle":
            _in(name, "sysctl -q -w net.netfilter.nf_conntrack_tcp_timeout_established=10")

    def _make_function(self, rank: int, nat: int) -> None:
        name, gateway = f"fn{rank}", f"192.168.{rank}.1"
        _sh(
            f"ip netns add {name}",
            f"ip link add in{rank} netns nat{nat} type veth peer name eth0 netns {name}",
        )
        _in(f"nat{nat}", f"ip addr add {gateway}/24 dev in{rank}", f"ip link set in{rank} up")
        _in(
            name,
            "ip link set lo up",
            f"ip addr add 192.168.{rank}.2/24 dev eth0",
            "ip link set eth0 up",
            f"ip route add default via {gateway}",
        )


def listen_in(namespace: str, address: tuple[str, int]) -> socket.socket:
    """Return a socket that listens in another network namespace, where it stays."""
    libc = ctypes.CDLL(None, use_errno=True)
    made: list[socket.socket] = []

    def make() -> None:  # in a thread: a namespace belongs to a thread
        fd = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
        try:
            if libc.setns(fd, CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
            made.append(socket.create_server(address))
        finally:
            os.close(fd)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    return made[0]


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    with contextlib.suppress(OSError):
        writer.close()


async def serve(ranks: int, port: int, echo: socket.socket) -> None:
    """Relay 127.0.0.1:`port` of every function to that of the laboratory, and answer the echo."""

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(_copy(reader, there[1]), _copy(there[0], writer))

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        text = writer.get_extra_info("peername")[0]
        writer.write(f"HTTP/1.0 200 OK\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode())
        await writer.drain()
        writer.close()

    for rank in range(ranks):
        await asyncio.start_server(relay, sock=listen_in(f"fn{rank}", ("127.0.0.1", port)))
    await asyncio.start_server(answer, sock=echo)
    await asyncio.Event().wait()


def free_port() -> int:
    """Return a port that is free in this namespace, in which nobody else takes one."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the namespaces, run the job, and return its exit code."""
    parser = argparse.ArgumentParser(prog="tests.links.laboratory", description=__doc__)
    parser.add_argument("--nat", choices=KINDS, default="cone")
    parser.add_argument("--cut-after", type=int, default=1 << 20, metavar="BYTES")
    parser.add_argument("-n", dest="ranks", type=int, default=2)
    parser.add_argument("--channel", default="routed")
    parser.add_argument("program", nargs=argparse.REMAINDER)
    options = parser.parse_args(arguments)
    Laboratory(options.nat, options.ranks, options.cut_after).build()
    port = free_port()
    echo = socket.create_server((LAB, 0))
    url = f"http://{LAB}:{echo.getsockname()[1]}/"
    threading.Thread(
        target=lambda: asyncio.run(serve(options.ranks, port, echo)), daemon=True
    ).start()
    with tempfile.TemporaryDirectory() as folder:
        start = Path(folder, "in-function")
        start.write_text(f'#!/bin/sh\nexec ip netns exec fn$SMPI_RANK {sys.executable} "$@"\n')
        start.chmod(0o755)
        command = [sys.executable, "-m", "serverless_mpi.launch", "-n", str(options.ranks)]
        command += ["--port", str(port), "--stats", "text", "--channel", options.channel]
        if options.channel == "routed":
            command += ["--host", "0.0.0.0", "--echo", url, "-ppn", "1"]
        program = options.program[options.program[:1] == ["--"] :]
        return subprocess.run([*command, str(start), *program]).returncode


if __name__ == "__main__":
    sys.exit(main())
