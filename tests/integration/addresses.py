#!/usr/bin/env python3
"""A store of several addresses: connections spread over them, and one that refuses, or that swallows what
is sent to it, neither fails a read nor slows more than the connections that find it so.

The name stands in a file of hosts of a mount namespace of its own (root); behind each address a forwarder
of ours counts who comes, and leads to a real S3 server."""
import concurrent.futures
import os
import signal
import socket
import subprocess
import threading

import lib
import names
from lib import check, equal, say
from store_tls import end, pump

HOST = names.HOST
ADDRESSES = ["127.0.0.2", "127.0.0.3", "127.0.0.4"]
FILES_N, ROUND_N, SIZE = 16, 8, 5 << 20
LIVING, REFUSING, SWALLOWING = range(3)


class Address:
    """Forwards what comes to it to a port of loopback."""

    def __init__(self, ip, port, upstream):
        self.ip, self.port, self.upstream = ip, port, upstream
        self.listener, self.fillers, self.connections = None, [], set()
        self.accepted_n = 0

    def become(self, state):
        if self.listener:
            self.listener.shutdown(socket.SHUT_RDWR)
            self.listener.close()
            self.listener = None
        for sock in self.fillers + list(self.connections):
            end(sock)
        self.fillers = []
        self.accepted_n = 0
        if state == REFUSING:
            return
        self.listener = socket.socket()
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.listener.bind((self.ip, self.port))
        self.listener.listen(0 if state == SWALLOWING else 256)
        if state == LIVING:
            threading.Thread(target=self.accept, args=(self.listener,), daemon=True).start()
        else:
            self.swallow()

    def swallow(self):
        """Nobody accepts, and once the queue is full the kernel drops what asks for more."""
        while True:
            sock = socket.socket()
            sock.settimeout(1)
            try:
                sock.connect((self.ip, self.port))
            except TimeoutError:
                sock.close()
                return
            self.fillers.append(sock)
            check(len(self.fillers) < 16, "the queue of a listener has no end")

    def accept(self, listener):
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            self.accepted_n += 1
            threading.Thread(target=self.serve, args=(sock,), daemon=True).start()

    def serve(self, sock):
        self.connections.add(sock)
        try:
            upstream = socket.create_connection(("127.0.0.1", self.upstream))
            threading.Thread(target=pump, args=(sock, upstream), daemon=True).start()
            pump(upstream, sock)
        except OSError:
            end(sock)
        self.connections.discard(sock)


def free_port():
    """One that is free at all addresses."""
    while True:
        socks = [socket.socket() for _ in ADDRESSES]
        try:
            socks[0].bind((ADDRESSES[0], 0))
            port = socks[0].getsockname()[1]
            for ip, sock in zip(ADDRESSES[1:], socks[1:]):
                sock.bind((ip, port))
            return port
        except OSError:
            continue
        finally:
            for sock in socks:
                sock.close()


def attempts(address):
    """Local ports from which connections to an address are being tried now (SYN_SENT)."""
    number = int.from_bytes(socket.inet_aton(address.ip), "little")
    remote = f"{number:08X}:{address.port:04X}"
    with open("/proc/net/tcp", encoding="ascii") as file:
        rows = [line.split() for line in file.readlines()[1:]]
    return {row[1] for row in rows if row[2] == remote and row[3] == "02"}


class Reader:
    """A mount with an empty cache."""

    def __init__(self, box, known, repo, env):
        self.box = box
        place = box.new_dir("m")
        self.process = subprocess.Popen([names.OWN_MOUNTS, *known.wrap(
            lib.DSFS, "mount", repo, place, "-f", "-o",
            f"insecure_http,log={box.path(f'log{box.number()}')},cache_dir={box.new_dir('cache')}")],
            env=box.environment(env), stdin=subprocess.DEVNULL)
        box.processes.append(self.process)
        box.wait(lambda: self.process.poll() is not None or
                 f" {place} fuse.dsfs" in names.mounts_of(self.process.pid), "the mount")
        equal(self.process.poll(), None, "status of the mount")
        self.root = f"/proc/{self.process.pid}/root{place}"

    def read(self, source, places):
        """A byte at each (file, offset), at once: a chunk of each."""
        with concurrent.futures.ThreadPoolExecutor(len(places)) as pool:
            for _ in pool.map(lambda place: self.read_one(source, *place), places):
                pass

    def read_one(self, source, name, off):
        with open(f"{source}/{name}", "rb", buffering=0) as wanted, \
                open(f"{self.root}/{name}", "rb", buffering=0) as found:
            equal(os.pread(found.fileno(), 1, off), os.pread(wanted.fileno(), 1, off), f"{name} at {off}")

    def close(self):
        self.process.send_signal(signal.SIGTERM)
        equal(self.process.wait(60), 0, "status of the mount")


def rounds():
    """Ten, of eight places in different files each."""
    return [[(name, mib * lib.MIB) for name in range(first, first + ROUND_N)]
            for mib in range(SIZE // lib.MIB) for first in range(0, FILES_N, ROUND_N)]


def become(addresses, *states):
    for address, state in zip(addresses, states):
        address.become(state)


def connections(mount, source, addresses):
    """How many came to each address when each round has new ones."""
    reader = mount()
    for part in rounds():
        hang_up(addresses)
        reader.read(source, part)
    reader.close()
    return [address.accepted_n for address in addresses]


def spread(box, mount, source, addresses):
    counts = connections(mount, source, addresses)
    say(f"all live: connections {counts}")
    # Were each of 10 connections to go anywhere: all to one once in 19,683 runs.
    check(sum(counts) >= 10, f"{counts} are too few connections to say anything")
    check(max(counts) < sum(counts), f"all connections to one address: {counts}")


def one_refuses(box, mount, source, addresses):
    counts = connections(mount, source, addresses)
    say(f"one refuses: connections {counts}")


def one_swallows(box, mount, source, addresses):
    """Found out by the first connections; those that are made later pass it over."""
    dead, *living = addresses
    seen = set()
    ended = threading.Event()

    def watch():
        # An attempt takes 2.5 s before the next address is tried.
        while not ended.wait(0.1):
            seen.update(attempts(dead))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        # Of two or three connections in a round each goes anywhere: five rounds pass it by once in 200 runs, and leave too few.
        for _ in range(5):
            reader, left = mount(), rounds()
            while len(left) > 5 and not seen:
                hang_up(living)
                reader.read(source, left.pop())
            if seen:
                break
            reader.close()
        check(seen, "no attempt")
        box.wait(lambda: not attempts(dead), "the attempts to end")
        found_n, made_n = len(seen), sum(address.accepted_n for address in living)
        while left:
            hang_up(living)
            reader.read(source, left.pop())
        made_n = sum(address.accepted_n for address in living) - made_n
        reader.close()
    finally:
        ended.set()
        watcher.join()
    say(f"one swallows: {found_n} connections found out; of {made_n} later ones {len(seen) - found_n} tried it")
    check(made_n >= 12, f"{made_n} are too few connections to say anything")
    # One, after a minute, on a very slow machine.
    check(len(seen) - found_n <= 1, f"{len(seen) - found_n} of {made_n} later ones tried it")


def hang_up(addresses):
    for address in addresses:
        for sock in list(address.connections):
            end(sock)


def run(box, args):
    if subprocess.run([names.OWN_MOUNTS, "true"], check=False).returncode == 77:
        raise lib.Skip("no mount namespace of our own")
    s3 = lib.S3(box, HOST)
    upstream = int(s3.env["AWS_ENDPOINT_URL"].rpartition(":")[2])
    port = free_port()
    addresses = [Address(ip, port, upstream) for ip in ADDRESSES]
    box.at_end(lambda: become(addresses, REFUSING, REFUSING, REFUSING))
    known = names.Names(box)
    with open(known.hosts, "a", encoding="ascii") as file:
        file.writelines(f"{ip} {HOST}\n" for ip in ADDRESSES)
    repo, source = s3.url("addresses"), box.new_dir("src")
    for name in range(FILES_N):
        with open(f"{source}/{name}", "wb") as file:
            file.write(os.urandom(SIZE))
    box.commit(source, repo, "--init", env=s3.env)
    env = {**s3.env, "AWS_ENDPOINT_URL": f"http://{HOST}:{port}"}
    for act, state in [(spread, LIVING), (one_refuses, REFUSING), (one_swallows, SWALLOWING)]:
        become(addresses, state, LIVING, LIVING)
        act(box, lambda: Reader(box, known, repo, env), source, addresses)


if __name__ == "__main__":
    lib.main(run)
