#!/usr/bin/env python3
"""A mount whose store has stopped answering: what is local is served, who waits can be killed, the
mount can be unmounted and its process ended, a request ends at its deadline, and when the store is
back the same mount goes on. On a real S3 server behind a proxy that lets requests hang.

With --strict (release builds) the times are those that dsfs promises, what the machine itself stood still not counted (lib.Pulse).
"""
import concurrent.futures
import ctypes
import errno
import os
import signal
import statistics
import subprocess
import sys
import threading
import time

import lib
from lib import KIB, MIB, check, equal, say

libc = ctypes.CDLL(None, use_errno=True)
HANG = {"match": "^GET .*/packs/", "fault": "hang"}
LOOKERS, BLOCKED = 20, 64
# A large file of each of the three mounts below: what passthrough mode opens in a way of its own.
LARGE, LARGE_BYTES = 3, 9 * MIB


def stats(mount):
    with open(f"{mount.path}/.dsfs/stats", encoding="ascii") as file:
        return {key: int(value) for key, value in map(str.split, file)}


def content(i, size):
    return (b"%07d " % i) * (size // 8)


# Too small for whole packs ahead of demand: eight misses in a second, of the files that are read
# beforehand, would bring those that must be cold.
CACHE = "cache_size=256M"


def make(source, files, readers):
    """`local`: what is read beforehand; `cold`: data that is not; `many`: names enough that most pages
    of the manifest are never asked for."""
    os.mkdir(f"{source}/local")
    os.mkdir(f"{source}/cold")
    for i in range(100):
        with open(f"{source}/local/{i:04}", "wb") as file:
            file.write(content(i, 16 * KIB))
    for i in range(readers + BLOCKED + 100):
        with open(f"{source}/cold/{i:04}", "wb") as file:
            file.write(os.urandom(64 * KIB))
    os.mkdir(f"{source}/large")
    for i in range(LARGE):
        with open(f"{source}/large/{i}", "wb") as file:
            file.write(os.urandom(LARGE_BYTES))
    os.mkdir(f"{source}/many")
    for d in range(files // 100):
        os.mkdir(f"{source}/many/{d:04}")
        for i in range(100):
            name = f"{source}/many/{d:04}/{i:03}-{'name' * 20}"
            os.close(os.open(name, os.O_WRONLY | os.O_CREAT, 0o644))


def warm(mount):
    for name in os.listdir(f"{mount.path}/local"):
        with open(f"{mount.path}/local/{name}", "rb") as file:
            equal(file.read(), content(int(name), 16 * KIB), f"local/{name}")
    os.listdir(f"{mount.path}/cold")
    os.listdir(f"{mount.path}/large")


# Many threads that each wait in one system call.
CHILD = r"""
import os, sys, threading
def tell(error, path):
    os.write(1, f"{error.errno} {path}\n".encode())
def read(path, off=0):
    try:
        os.pread(os.open(path, os.O_RDONLY), 100, off)
    except OSError as error:
        tell(error, path)
def middle(path):
    read(path, os.stat(path).st_size // 2)
def look(path):
    try:
        os.stat(path)
    except OSError as error:
        tell(error, path)
threads = [threading.Thread(target=globals()[kind], args=(path,))
           for kind, path in (line.rstrip("\n").split(" ", 1) for line in sys.stdin)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


class Waiters:
    """A process whose threads open and read files, at the start or in the middle, and look up names."""

    def __init__(self, box, reads=(), looks=(), middles=()):
        self.process = subprocess.Popen([sys.executable, "-c", CHILD], text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        preexec_fn=lib.die_with_parent)
        box.processes.append(self.process)
        for kind, paths in ("read", reads), ("look", looks), ("middle", middles):
            for path in paths:
                self.process.stdin.write(f"{kind} {path}\n")
        self.process.stdin.close()

    def kill(self):
        """Seconds until it is gone."""
        pulse, started = lib.Pulse(), time.monotonic()
        self.process.kill()
        self.process.wait(120)
        self.process.stdout.close()
        return pulse.end([(started, time.monotonic())])[0]

    def errors(self):
        """Ends by itself; [errno] of its calls that failed."""
        out = self.process.stdout.read()
        self.process.wait(120)
        self.process.stdout.close()
        return [int(line.split()[0]) for line in out.splitlines()]


def hang(proxy, *more):
    proxy.rules(HANG, *more)


def wait_parked(box, mount, number):
    box.wait(lambda: stats(mount)["fetch_waiting"] >= number, f"{number} requests to wait")


def timed(calls, action):
    started = time.monotonic()
    result = action()
    calls.append((started, time.monotonic()))
    return result


def getattr_of(path):
    """statx that asks the file system, whatever the kernel knows."""
    buffer = ctypes.create_string_buffer(256)
    if libc.statx(-100, os.fsencode(path), 0x2000, 0x7ff, buffer) < 0:
        raise OSError(ctypes.get_errno(), path)


def read_uncached(path):
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return os.pread(fd, 16 * KIB, 0)
    finally:
        os.close(fd)


def measure(mount, rounds):
    """Times of calls that are answered by dsfs, not by the kernel, and need nothing of the store."""
    times = {"stat": [], "getxattr": [], "read": [], "statfs": [], "stats": [], "ls": []}
    before, pulse = stats(mount)["requests"], lib.Pulse()
    for i in range(rounds):
        path = f"{mount.path}/local/{i % 100:04}"
        timed(times["stat"], lambda: getattr_of(path))
        timed(times["getxattr"], lambda: os.getxattr(path, "user.dsfs.digest"))
        equal(timed(times["read"], lambda: read_uncached(path)), content(i % 100, 16 * KIB), path)
        timed(times["statfs"], lambda: os.statvfs(mount.path))
        timed(times["stats"], lambda: stats(mount))
        if i % 10 == 0:
            timed(times["ls"], lambda: subprocess.run(
                ["ls", "-l", f"{mount.path}/local"], check=True, capture_output=True, timeout=120))
    check(stats(mount)["requests"] - before >= 3 * rounds, "the kernel answered, not dsfs")
    took = iter(pulse.end([call for calls in times.values() for call in calls]))
    return {name: [next(took) for _ in calls] for name, calls in times.items()}


def tell(times, args):
    for name, values in times.items():
        median, most = statistics.median(values), max(values)
        say(f"  {name}: median {1000 * median:.1f} ms, at most {1000 * most:.1f} ms, "
            f"{len(values)} calls")
        check(median <= (0.1 if args.strict else 1), f"{name}: median of {median:.3f} s")
        check(most <= (1 if args.strict else 10), f"{name}: {most:.3f} s")


def threads_and_files(pid):
    return len(os.listdir(f"/proc/{pid}/task")), len(os.listdir(f"/proc/{pid}/fd"))


def crowd(box, repo, source, proxy, args):
    """Many readers and 20 first look-ups wait; everything else goes on; then all of them are killed,
    one by one and together, and nothing of them is left in the daemon."""
    mount = box.mount(repo, "timeout=10m", f"cache_dir={box.path('crowd')}", CACHE, env=proxy.env)
    warm(mount)
    measure(mount, 20)
    hang(proxy)
    # A look-up ends with who asked. A read fills the kernel's page cache, in the kernel's own name, and goes on without its reader.
    for what, left, kinds in (("stat", 0, {"looks": [f"{mount.path}/many/0170/050-{'name' * 20}"]}),
                              ("reader", 1, {"reads": [f"{mount.path}/cold/{args.readers:04}"]}),
                              ("reader of a large file", 2, {"reads": [f"{mount.path}/large/0"]})):
        waiters = Waiters(box, **kinds)
        wait_parked(box, mount, max(left, 1))
        took = waiters.kill()
        say(f"a killed {what} was gone after {1000 * took:.0f} ms")
        check(took <= (2 if args.strict else 10), f"a killed {what} lived for {took:.1f} s")
        box.wait(lambda: left or (stats(mount)["interrupted"] >= 1 and stats(mount)["fetch_waiting"] == 0),
                 "the look-up of a killed stat to end")
    before, parked = threads_and_files(mount.pid), stats(mount)["fetch_waiting"]
    names = [f"{d * 7 + 1:04}/050-{'name' * 20}" for d in range(LOOKERS)]
    large = Waiters(box, middles=[f"{mount.path}/large/0"])
    wait_parked(box, mount, parked + 1)
    waiters = Waiters(box, [f"{mount.path}/cold/{i:04}" for i in range(args.readers)],
                      [f"{mount.path}/many/{name}" for name in names])
    wait_parked(box, mount, args.readers + LOOKERS)
    held = proxy.stats()
    say(f"{args.readers} readers, one of a large file and {LOOKERS} look-ups wait, {held['open']} requests at the store:")
    tell(measure(mount, 200), args)
    took = large.kill() + waiters.kill()
    say(f"all of them were gone after {1000 * took:.0f} ms")
    check(took <= (2 if args.strict else 10), f"they lived for {took:.1f} s")
    box.wait(lambda: stats(mount)["interrupted"] >= LOOKERS, "the look-ups of the killed to end")
    proxy.rules()
    box.wait(lambda: stats(mount)["fetch_waiting"] == 0, "the reads to end when the store is back")
    equal(stats(mount)["timeouts"], 0, "timeouts")
    # The cache keeps images open, connections live on; what grows with requests would show.
    after = threads_and_files(mount.pid)
    say(f"threads and descriptors of the daemon: {before} before, {after} after")
    # Threads of FUSE start as they are needed, up to 16.
    check(after[0] <= before[0] + 16 and after[1] <= before[1] + 96, "something is left behind")
    with open(f"{mount.path}/cold/0000", "rb") as file:
        equal(len(file.read()), 64 * KIB, "bytes read when the store is back")
    whole(mount, source, 0)
    equal(stats(mount)["failures"], 0, "failures")
    mount.umount()


def whole(mount, source, number):
    """A large file of which reads were parked is what it was, by a handle from before it was whole and by others."""
    with open(f"{source}/large/{number}", "rb") as file:
        wanted = file.read()
    with open(f"{mount.path}/large/{number}", "rb") as first:
        first.read(100)
        for what in "that was parked", "that is opened once more":
            with open(f"{mount.path}/large/{number}", "rb") as file:
                check(file.read() == wanted, f"a large file {what} is not what was committed")
        check(first.read() == wanted[100:], "a large file is another one through a second handle")


def gone(box, repo, proxy, args):
    """`umount` while the store hangs; SIGTERM while 64 reads wait."""
    limit = 5 if args.strict else 20
    mount = box.mount(repo, "timeout=10m", f"cache_dir={box.path('gone')}", CACHE, env=proxy.env)
    warm(mount)
    hang(proxy)
    waiters = Waiters(box, reads=[f"{mount.path}/cold/0000", f"{mount.path}/large/1"])
    wait_parked(box, mount, 2)
    waiters.kill()
    started = time.monotonic()
    mount.umount()
    took = time.monotonic() - started
    say(f"umount without a store: {took:.2f} s")
    check(took <= limit, f"umount took {took:.1f} s")
    proxy.rules()

    mount = box.mount(repo, "timeout=10m", f"cache_dir={box.path('gone')}", CACHE, env=proxy.env)
    warm(mount)
    hang(proxy)
    waiters = Waiters(box, reads=[*(f"{mount.path}/cold/{1 + i:04}" for i in range(BLOCKED - 1)),
                                  f"{mount.path}/large/1"])
    wait_parked(box, mount, BLOCKED)
    started = time.monotonic()
    os.kill(mount.pid, signal.SIGTERM)
    box.wait(lambda: not lib.is_alive(mount.pid), "the daemon to end", 60)
    took = time.monotonic() - started
    say(f"SIGTERM with {BLOCKED} blocked reads: {took:.2f} s")
    check(took <= limit, f"the daemon lived for {took:.1f} s after SIGTERM")
    check(not lib.is_mounted(mount.path), "it is still mounted after SIGTERM")
    errors = waiters.errors()
    equal(len(errors), BLOCKED, "reads that failed")
    check(set(errors) <= {errno.EIO, errno.ENOTCONN, errno.ECONNABORTED}, f"errnos {set(errors)}")
    box.mounts.remove(mount)
    proxy.rules()


def failed(call):
    """(name of its errno or None, seconds) of a call."""
    started = time.monotonic()
    try:
        call()
        code = None
    except OSError as error:
        code = errno.errorcode[error.errno]
    return code, time.monotonic() - started


def deadline(box, repo, source, proxy):
    """EIO at the deadline with a line in the log; the same mount and descriptor go on when the store
    does."""
    mount = box.mount(repo, "timeout=3s", f"cache_dir={box.path('late')}", CACHE, env=proxy.env)
    warm(mount)
    hang(proxy)
    paths = [f"{mount.path}/cold/0007", f"{mount.path}/many/0173/005-{'name' * 20}"]
    fd, large = (os.open(path, os.O_RDONLY) for path in (paths[0], f"{mount.path}/large/2"))
    calls = {"read": lambda: os.pread(fd, 100, 0), "stat": lambda: os.stat(paths[1]),
             "read of a large file": lambda: os.pread(large, 100, LARGE_BYTES // 2)}
    with concurrent.futures.ThreadPoolExecutor(len(calls)) as pool:
        for what, (code, took) in zip(calls, pool.map(failed, calls.values())):
            equal(code, "EIO", f"errno of {what} of a store that hangs")
            say(f"{what}: EIO after {took:.2f} s")
            # When its readahead fails, the kernel asks once more.
            check(2.9 <= took <= 10, f"{what}: EIO after {took:.2f} s, not 3 s")
    check(stats(mount)["timeouts"] >= 3, "the timeouts are not counted")
    lines = [line for line in mount.log_text().splitlines() if " error: " in line]
    say("\n".join(f"  {line}" for line in lines))
    check(any("read of \"/cold/0007\"" in line and "TIMEOUT" in line for line in lines),
          "no line in the log for the read")
    check(any("read of \"/large/2\"" in line and "TIMEOUT" in line for line in lines),
          "no line in the log for the read of a large file")
    check(len(lines) <= 6, f"{len(lines)} lines in the log for 3 errors")
    proxy.rules()
    equal(len(os.pread(large, 64 * KIB, LARGE_BYTES // 2)), 64 * KIB, "bytes of a large file, when the store is back")
    whole(mount, source, 2)
    os.close(large)
    equal(len(os.pread(fd, 64 * KIB, 0)), 64 * KIB, "bytes read when the store is back")
    equal(os.stat(paths[1]).st_size, 0, "size of an empty file")
    os.close(fd)
    # A store that answers 503 for a while is no error at all, and never ENOENT (T9).
    proxy.rules({"match": "^GET .*/packs/", "fault": "status", "code": 503, "times": 3})
    with open(f"{mount.path}/cold/{80:04}", "rb") as file:
        equal(len(file.read()), 64 * KIB, "bytes read through 503s")
    check(proxy.stats()["delivered"] > 0, "no 503 was delivered")
    # One that says when it wants to be asked again is not asked before; another file, since neighbours came with that.
    proxy.rules({"match": "^GET .*/packs/", "fault": "status", "code": 503, "headers": {"Retry-After": "30"}})
    code, took = failed(lambda: read_uncached(f"{mount.path}/cold/{150:04}"))
    asked = proxy.stats()["delivered"]
    say(f"a read of a store that says Retry-After: 30 ends with {code} after {took:.2f} s and {asked} requests")
    equal(code, "EIO", "errno of a read that the store puts off")
    check(1 <= asked <= 8, f"{asked} requests of one read, although the store has said when")
    proxy.rules()
    mount.umount()


# One system call, and a signal that is handled and no more.
SIGNALLED = r"""
import os, signal, sys
signal.signal(signal.SIGALRM, lambda *_: None)
signal.siginterrupt(signal.SIGALRM, sys.argv[3] == "interrupts")
try:
    if sys.argv[1] == "stat":
        os.stat(sys.argv[2])
    elif sys.argv[1] == "listdir":
        os.listdir(sys.argv[2])
    else:
        with open(sys.argv[2], "rb", buffering=0) as file:
            file.read(100)
    print("ok")
except OSError as error:
    print(error.errno)
"""


def signalled(box, repo, proxy):
    """A signal that is handled ends a look-up or a listing that waits, with EINTR, whatever the handler asks for, and so does a stop; a
    read goes on."""
    with box.mount(repo, "timeout=10m", f"cache_dir={box.path('signalled')}", CACHE, env=proxy.env) as mount:
        warm(mount)
        calls = {("stat", f"{mount.path}/many/{n:04}/050-{'name' * 20}", mode): str(errno.EINTR)
                 for n, mode in ((171, "interrupts"), (31, "restarts"), (131, "stops"))}
        calls["listdir", f"{mount.path}/many/0101", "interrupts"] = str(errno.EINTR)
        calls["read", f"{mount.path}/cold/0009", "interrupts"] = "ok"
        calls["read", f"{mount.path}/cold/0109", "stops"] = "ok"
        for call, wanted in calls.items():
            hang(proxy)
            before = stats(mount)
            process = subprocess.Popen([sys.executable, "-c", SIGNALLED, *call], text=True, stdout=subprocess.PIPE,
                                       preexec_fn=lib.die_with_parent)
            box.processes.append(process)
            wait_parked(box, mount, 1)
            if call[2] == "stops":
                process.send_signal(signal.SIGSTOP)
            else:
                process.send_signal(signal.SIGALRM)
            if wanted == "ok":
                proxy.rules()
            else:
                box.wait(lambda: stats(mount)["interrupted"] > before["interrupted"], "the request to be interrupted")
            process.send_signal(signal.SIGCONT)
            equal(process.communicate(timeout=120)[0].strip(), wanted, f"{call[0]} with a signal that {call[2]}")
            equal(stats(mount)["interrupted"] - before["interrupted"], int(wanted != "ok"), "requests that were interrupted")
            proxy.rules()
            box.wait(lambda: stats(mount)["fetch_waiting"] == 0, "the requests to end")
    say("a handled signal, a stop: EINTR of a look-up or a listing, none of a read")


def run(box, args):
    source, store = box.new_dir("src"), box.store("s3")
    repo = store.url("stalls")
    make(source, args.files, args.readers)
    box.commit(source, repo, "--init", env=store.env)
    proxy = lib.Proxy(box, store.env)
    crowd(box, repo, source, proxy, args)
    gone(box, repo, proxy, args)
    deadline(box, repo, source, proxy)
    signalled(box, repo, proxy)


def add_arguments(parser):
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--readers", type=int, default=200)
    parser.add_argument("--strict", action="store_true")


if __name__ == "__main__":
    lib.main(run, add_arguments)
