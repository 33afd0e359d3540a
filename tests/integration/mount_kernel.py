#!/usr/bin/env python3
"""The ways in which the kernel reaches a mount's bytes: kernel=classic, stateless, passthrough, and what `auto` makes of a
version. Opens are asked for where they must be and nowhere else; a large file is handed to the kernel once all of it is in the
cache, never to one handle and not to another (T46), and stays right when the cache loses it."""
import concurrent.futures
import contextlib
import ctypes
import glob
import hashlib
import mmap
import os
import random
import re
import shutil
import subprocess
import sys
import time
import types

import lib
from lib import KIB, MIB, check, equal, no_passthrough, say

MODES = ["classic", "stateless", "passthrough"]


def make(box, rng, large, small):
    source = box.new_dir("src")
    for i in range(small):
        with open(f"{source}/small{i}", "wb") as file:
            file.write(rng.randbytes(rng.randint(1, 100 * KIB)))
    for i in range(large):
        with open(f"{source}/large{i}", "wb") as file:
            file.write(rng.randbytes(9 * MIB + i))
            file.seek(2 * MIB, os.SEEK_CUR)
            file.write(rng.randbytes(100 * KIB))
            file.truncate(16 * MIB + 3 * i)
    return source


def read(path):
    with open(path, "rb") as file:
        return file.read()


def read_uncached(path):
    """All of a file, past what the kernel keeps of it."""
    with open(path, "rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return file.read()


@contextlib.contextmanager
def held(paths):
    """Files that stay in the page cache: mapped. What nobody has mapped a host may take back at once (DAMON's pageout, say)."""
    with contextlib.ExitStack() as stack:
        for path in paths:
            with open(path, "rb") as file:
                mapped = stack.enter_context(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
            mapped[::mmap.PAGESIZE]  # each page
        yield


def stats(mount):
    return {key: int(value) for key, value in
            map(str.split, read(f"{mount.path}/.dsfs/stats").decode().splitlines())}


def chosen(mount):
    return re.search(r"mounted .* on .*: kernel=(\w+), (.*); io_uring", mount.log_text()).groups()


def check_chosen(box, mount, is_large, what):
    """What auto chose, and why; and that doctor says the same as the log."""
    mode, why = chosen(mount)
    how = re.search(r"mounted .* on .*: (kernel=.*)", mount.log_text())[1]
    rows = [row["text"] for row in box.json("doctor") if row["what"] == "mount" and f" on {mount.path}, " in row["text"]]
    check(len(rows) == 1 and rows[0].endswith(f", process {mount.pid}: {how}"), f"doctor says {rows}, the log {how}")
    if is_large and no_passthrough(box):
        check(mode == "stateless" and "passthrough" in why, f"{what}, without passthrough: {mode}, {why}")
    else:
        equal((mode, why), ("passthrough", "most bytes are in large files") if is_large else
              ("stateless", "most bytes are in small files"), what)


def forget_pages(cache):
    """Takes the manifest's pages from a cache, and leaves their index."""
    forgotten = 0
    for path in glob.glob(f"{cache}/images/*/*"):
        with open(f"{path}/data", "rb") as file:
            if file.read(15) != b"SQLite format 3":
                continue
        shutil.rmtree(path)
        forgotten += 1
    equal(forgotten, 1, "images of a manifest")


def check_auto(box, rng):
    """Each version's first mount with its cache. Of 3 large and 300 small files the mean is a small one, most bytes are not."""
    for large, small, is_large in (3, 5, True), (3, 300, True), (1, 900, False), (0, 2, False):
        source, repo = make(box, rng, large, small), box.path(f"auto{large}-{small}")
        box.commit(source, repo, "--init")
        cache = box.new_dir("auto")
        with box.mount(repo, "kernel=auto", f"cache_dir={cache}") as mount:
            check_chosen(box, mount, is_large, f"{large} large and {small} small files")
            equal(stats(mount)["fetch_gets"], 0, "GETs, besides the one of the record's prefetch list")
        # What else was in the cache of the first mount is there, the manifest's pages are not.
        forget_pages(cache)
        with box.mount(repo, "kernel=auto", f"cache_dir={cache}") as mount:
            check_chosen(box, mount, is_large, f"{large} large and {small} small files, without pages")
            check(stats(mount)["fetch_gets"] <= 1, "more than one GET beside the one of the prefetch list")
    if os.geteuid() == 0:
        with box.mount(repo, "kernel=classic") as mount:
            equal(chosen(mount), ("classic", "as asked"), "what was asked for")
            check(f" on {mount.path}, process {mount.pid}: kernel=classic, as asked; " in box.dsfs("doctor").text,
                  "what was asked for, as doctor says it")


def check_asked(box, repo, source):
    """What the kernel asks for again, when all is in its page cache."""
    names = sorted(os.listdir(source))
    small = [name for name in names if name.startswith("small")]
    for mode in MODES:
        if mode == "passthrough" and no_passthrough(box):
            continue
        with box.mount(repo, f"kernel={mode}") as mount, contextlib.ExitStack() as stack:
            for name in names:
                equal(read(f"{mount.path}/{name}"), read(f"{source}/{name}"), f"{mode}: {name}")
            stack.enter_context(held(f"{mount.path}/{name}" for name in small))
            os.listdir(mount.path)
            opens = stats(mount)["opens"]
            # stateless: of files and of directories the first is asked for, and told to ask no more; several at a time may have been.
            if mode == "stateless":
                check(1 <= opens <= 4, f"{mode}: {opens} opens asked for, of {len(names)} files and a directory")
            else:
                check(opens >= len(names), f"{mode}: {opens} opens of {len(names)} files")
            before = stats(mount)["requests"]
            for name in small:
                with open(f"{mount.path}/{name}", "rb") as file:
                    os.fstat(file.fileno())
                    file.read()
            os.listdir(mount.path)
            again = stats(mount)["requests"] - before
            more = stats(mount)["opens"] - opens
            equal(more >= len(small), mode != "stateless", f"{mode}: {more} opens asked for again, of {len(small)} files")
            if mode == "stateless":
                equal(more, 0, "opens asked for again")
        # Opens are counted apart, releases nowhere.
        check(again <= 4, f"{mode}: {again} requests for {len(small)} files that were read before")
        say(f"{mode}: {again} requests for {len(small)} files that were read before")


def check_readahead(box, repo):
    """How far the kernel reads ahead: as asked, further than it does by itself only as root."""
    for options, kib in ((), 512), (("readahead=2M",), 2048), (("readahead=64K",), 64):
        with box.mount(repo, *options) as mount:
            device = os.stat(mount.path).st_dev
            said = re.search("; readahead ([0-9.]+) ([KM])iB", mount.log_text())
            check(said, f"nothing about readahead in {mount.log_text()}")
            is_kib = int(read(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb"))
        equal(float(said[1]) * {"K": 1, "M": 1024}[said[2]], is_kib, f"KiB as the log says, for {options}")
        if os.geteuid() == 0 or kib <= 64:
            equal(is_kib, kib, f"KiB that are read ahead, for {options}")
    for bad, word in ("2K", "at least 4.0 KiB"), ("1G", "at most 64.0 MiB"):
        result = box.dsfs("mount", repo, box.dir, "-o", f"readahead={bad}", status=2)
        check(word in result.errors and result.errors.count("\n") == 1, f"said: {result.errors}")
    result = box.dsfs("mount", repo, box.dir, "-o", "inflight=1M", status=2)
    check("inflight is at least 16.0 MiB" in result.errors, f"said: {result.errors}")


def check_handles(box, repo, source, mode):
    """A large file that is opened and opened again while the cache fills, by 64 at a time, and lost by the cache. In
    passthrough mode the kernel has it once it is whole; in each mode all bytes are right."""
    wanted, is_passing = read(f"{source}/large0"), mode == "passthrough"
    cache = box.new_dir(mode)
    with box.mount(repo, f"kernel={mode}", f"cache_dir={cache}") as mount:
        path = f"{mount.path}/large0"
        # Open while it is not here: cached, and so is who comes while that one is open.
        first = open(path, "rb")
        equal(first.read(100), wanted[:100], "start through the first handle")
        equal(read(path), wanted, "all of it through a second handle")
        equal(first.read(), wanted[100:], "the rest through the first")
        equal(stats(mount)["passthrough_opens"], 0, "handles for the kernel while a cached one is open")
        first.close()
        if is_passing:
            box.wait(lambda: passes(mount, path), "a handle for the kernel")
        opens = stats(mount)["passthrough_opens"]
        # At a time.
        with concurrent.futures.ThreadPoolExecutor(64) as pool:
            handles = list(pool.map(lambda _: open(path, "rb"), range(64)))
            digests = set(pool.map(lambda file: hashlib.sha256(file.read()).hexdigest(), handles))
        equal(digests, {hashlib.sha256(wanted).hexdigest()}, "digests through 64 handles")
        equal(stats(mount)["passthrough_opens"] - opens, 64 * is_passing, "handles for the kernel")
        with mmap.mmap(handles[0].fileno(), 0, prot=mmap.PROT_READ) as mapped:
            check(mapped[:] == wanted, "a mapping")
        equal(os.lseek(handles[1].fileno(), 0, os.SEEK_HOLE), 9 * MIB, "the first hole")
        bytes_before = stats(mount)["read_bytes"]
        for file in handles:
            equal(os.pread(file.fileno(), 100 * KIB, 11 * MIB - 7), wanted[11 * MIB - 7:][:100 * KIB], "a piece")
        if is_passing:
            equal(stats(mount)["read_bytes"], bytes_before, "bytes that went through the mount's process")
        # The cache loses it: who has it open goes on, and who comes gets right bytes all the same.
        for image in glob.glob(f"{cache}/images/*/*"):
            shutil.rmtree(image)
        if not is_passing:
            # Else the page cache has it.
            os.posix_fadvise(handles[2].fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        equal(os.pread(handles[2].fileno(), MIB, 5 * MIB), wanted[5 * MIB:6 * MIB], "what was unlinked")
        equal(stats(mount)["read_bytes"] > bytes_before, not is_passing, "whether a read asked the mount's process")
        equal(read(path), wanted, "a new handle beside it")
        for file in handles:
            file.close()
        equal(read(path), wanted, "after all were closed")
        equal(stats(mount)["failures"], 0, "failures")
    say(f"{mode}: 64 handles, a mapping, an unlinked image")


def passes(mount, path):
    """Releases are not waited for by close: whether an open goes to the kernel by now."""
    before = stats(mount)["passthrough_opens"]
    with open(path, "rb"):
        return stats(mount)["passthrough_opens"] > before


@contextlib.contextmanager
def mounted(box, kind, options):
    """A file system of our own to put a cache on."""
    place = box.new_dir(kind)
    done = subprocess.run(["mount", "-t", kind, "-o", options, kind, place], capture_output=True, text=True, check=False)
    if done.returncode:
        raise lib.Skip(f"no {kind} can be mounted here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=False, timeout=60)


def check_returned(box, repo, source):
    """What the kernel had of a file is gone when all handles are closed and the cache has lost the file: the room on the disk
    comes back."""
    def is_free():
        st = os.statvfs(disk)
        return (st.f_blocks - st.f_bavail) * st.f_frsize < 9 * MIB

    with mounted(box, "tmpfs", "size=256M,mode=700") as disk:
        with box.mount(repo, "kernel=passthrough", f"cache_dir={disk}/c") as mount:
            path = f"{mount.path}/large0"
            equal(read(path), read(f"{source}/large0"), "a file in a cache on a disk of its own")
            box.wait(lambda: passes(mount, path), "a handle for the kernel")
            check(not is_free(), "the cache has the file, and the disk is empty")
            for image in glob.glob(f"{disk}/c/images/*/*"):
                shutil.rmtree(image)
            box.wait(is_free, "the room of a file that nobody has open", 30)


def image_of(cache, size):
    """The directory of the image of a large file of this size; None: there is none."""
    found = [path for path in glob.glob(f"{cache}/images/*/*/data") if os.path.getsize(path) == size]
    return os.path.dirname(found[0]) if found else None


def check_mapped(box, repo, source):
    """A mapping that outlives the handle is the kernel's alone: the cache does not lose the file, and counts it. (Python's own
    mmap keeps a handle.)"""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    size, cache = os.path.getsize(f"{source}/large0"), box.new_dir("mapped")
    with box.mount(repo, "kernel=passthrough", f"cache_dir={cache}") as mount:
        path = f"{mount.path}/large0"
        wanted = read(path)
        box.wait(lambda: passes(mount, path), "a handle for the kernel")
        with open(path, "rb") as file:
            at = libc.mmap(None, ctypes.c_size_t(size), mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), ctypes.c_long(0))
        check(at not in (None, ctypes.c_void_p(-1).value), "it cannot be mapped")
        time.sleep(0.5)  # The release comes when it comes.
        box.dsfs("cache", "prune", "--all", "--cache-dir", cache)
        check(image_of(cache, size), "what is mapped has left the cache")
        check(ctypes.string_at(at, size) == wanted, "bytes of the mapping")
        libc.munmap(ctypes.c_void_p(at), ctypes.c_size_t(size))
        box.dsfs("cache", "prune", "--all", "--cache-dir", cache)
        check(not image_of(cache, size), "what is mapped no longer stays in the cache")
        equal(read(path), wanted, "the file, fetched again")
    say("a mapping without a handle: it stays in the cache as long")


def check_descriptors(box):
    """Programs that keep many large files open leave the mount enough descriptors for all else."""
    limit, large_n = 64, 50
    source, repo, cache = box.new_dir("many-large"), box.path("many-large-repo"), box.new_dir("many-cache")
    for i in range(large_n):
        with open(f"{source}/large{i:02}", "wb") as file:
            file.write(random.Random(i).randbytes(4300 * 1000))
    for i in range(20):
        with open(f"{source}/small{i:02}", "wb") as file:
            file.write(b"%d" % i * 1000)
    box.commit(source, repo, "--init")
    box.dsfs("warm", repo, *(f"large{i:02}" for i in range(large_n)), "-o", f"cache_dir={cache}")
    # A process that has lowered its own limit may not be allowed to raise it again.
    place = box.new_dir("m")
    box.dsfs(f"--nofile={limit}:{limit}", lib.DSFS, "mount", repo, place, "-o",
             f"kernel=passthrough,timeout=5s,cache_dir={cache}", program=shutil.which("prlimit"))
    mount = types.SimpleNamespace(path=place)
    with contextlib.ExitStack() as stack:
        stack.callback(box.dsfs, "umount", place)
        for i in range(large_n):
            file = stack.enter_context(open(f"{mount.path}/large{i:02}", "rb"))
            check(file.read(1000) == random.Random(i).randbytes(4300 * 1000)[:1000], f"the start of large file {i}")
        for i in range(20):
            equal(read(f"{mount.path}/small{i:02}"), b"%d" % i * 1000, f"small file {i} beside many large ones")
        opens = stats(mount)["passthrough_opens"]
        check(0 < opens <= limit // 4, f"{opens} files for the kernel, of {limit} descriptors")
        equal(stats(mount)["failures"], 0, "failures")
    say(f"{large_n} large files open with {limit} descriptors: {opens} of them for the kernel")


def has_deleted(pid, path):
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(f"/proc/{pid}/fd/{fd}") == f"{path} (deleted)":
                return True
    return False


def check_come_again(box, repo, source):
    """A file that the cache had whole, lost, and has a part of again, perhaps in the same inodes: the kernel does not get that part for
    the whole."""
    wanted, again_n = read(f"{source}/large1"), 0
    cache, size, tail = box.new_dir("again"), len(wanted), 11 * MIB
    with box.mount(repo, "kernel=passthrough", f"cache_dir={cache}") as mount:
        path = f"{mount.path}/large1"
        for i in range(8):
            check(read_uncached(path) == wanted, f"WRONG BYTES after {i} times")
            box.wait(lambda: passes(mount, path), "a handle for the kernel")
            gone = image_of(cache, size)
            ino = os.stat(f"{gone}/map").st_ino
            shutil.rmtree(gone)
            box.wait(lambda gone=gone: not has_deleted(mount.pid, f"{gone}/map"), "the mount to let go of it")
            with open(path, "rb", buffering=0) as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                equal(os.pread(file.fileno(), 100 * KIB, tail), wanted[tail:tail + 100 * KIB], "its end")
            again = image_of(cache, size)
            check(again, "what was read of it is not in the cache")
            again_n += os.stat(f"{again}/map").st_ino == ino
        check(read_uncached(path) == wanted, "WRONG BYTES at last")
        equal(stats(mount)["failures"], 0, "failures")
    say(f"an image that came again: {again_n} of 8 times in the same inode")


def check_stacked(box, repo):
    """On overlayfs the kernel takes no file for itself: that is known beforehand, and said."""
    word = "stacked file system"
    parts = {name: box.new_dir(name) for name in ("lower", "upper", "work")}
    options = f"lowerdir={parts['lower']},upperdir={parts['upper']},workdir={parts['work']}"
    with mounted(box, "overlay", options) as disk:
        row = next(row for row in box.json("doctor", env={"DSFS_CACHE_DIR": f"{disk}/c"}) if row["what"] == "passthrough")
        check(row["verdict"] == "note" and word in row["text"], f"doctor says {row}")
        with box.mount(repo, "kernel=auto", f"cache_dir={disk}/c") as mount:
            mode, why = chosen(mount)
            check(mode == "stateless" and word in why, f"auto on overlayfs: {mode}, {why}")
        result = box.dsfs("mount", repo, box.new_dir("m"), "-o", f"kernel=passthrough,cache_dir={disk}/c", status=1)
        check(word in result.errors and result.errors.count("\n") == 1, f"said: {result.errors}")


def check_storm(box, repo, source, seed, mode):
    """Opens, reads and closes of the same large files from many threads, while the files become whole."""
    wanted = {name: read(f"{source}/{name}") for name in os.listdir(source) if name.startswith("large")}

    def one(mount, number):
        rng = random.Random(f"{seed} {number}")
        for _ in range(60):
            name = rng.choice(sorted(wanted))
            with open(f"{mount.path}/{name}", "rb") as file:
                for _ in range(rng.randint(1, 8)):
                    off, size = rng.randrange(len(wanted[name])), rng.choice((1, 4096, 128 * KIB, MIB))
                    got = os.pread(file.fileno(), size, off)
                    check(got == wanted[name][off:off + size], f"{name}: {size} bytes at {off}")
        return True

    with box.mount(repo, f"kernel={mode}", f"cache_dir={box.new_dir('storm')}") as mount:
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            equal(list(pool.map(lambda n: one(mount, n), range(16))), [True] * 16, "threads")
        found = stats(mount)
        equal(found["passthrough_opens"] > 0, mode == "passthrough", f"{mode}: whether opens went to the kernel")
        equal(found["failures"], 0, "failures")
    say(f"{mode}: storm: {found['passthrough_opens']} of 960 opens went to the kernel")


def check_skipped():
    """A run of any test in passthrough is a skip, with the reason, to whom doctor says that it cannot be had."""
    if os.geteuid() != 0 or not shutil.which("setpriv"):
        return
    result = subprocess.run(
        ["setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin", sys.executable,
         f"{os.path.dirname(os.path.abspath(__file__))}/trees.py", "--seeds", "31"],
        env={**os.environ, "DSFS_MOUNT_OPTIONS": "kernel=passthrough"}, capture_output=True, text=True, check=False)
    equal(result.returncode, 77, f"status of a run that may not: {result.stderr}")
    check("CAP_SYS_ADMIN" in result.stderr or "libfuse" in result.stderr, f"it said: {result.stderr}")


def run(box, args):
    rng = random.Random(args.seed)
    source, repo = make(box, rng, 4, 30), box.path("repo")
    box.commit(source, repo, "--init")
    check_auto(box, rng)
    check_asked(box, repo, source)
    check_readahead(box, repo)
    check_skipped()
    missing = no_passthrough(box)
    if not missing:
        check_returned(box, repo, source)
        check_mapped(box, repo, source)
        check_descriptors(box)
        check_come_again(box, repo, source)
        check_stacked(box, repo)
    for mode in MODES:
        if mode == "passthrough" and missing:
            raise lib.Skip(missing)
        check_handles(box, repo, source, mode)
        check_storm(box, repo, source, args.seed, mode)


if __name__ == "__main__":
    lib.main(run)
