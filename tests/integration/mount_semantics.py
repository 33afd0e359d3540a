#!/usr/bin/env python3
"""What a mount answers to system calls beyond reading trees: flags, every operation that would
write, names too long, extended attributes, hard links, directory cookies over 100,000 entries,
mappings, sendfile, O_DIRECT, holes, statfs, file handles that outlive a mount, the control directory.
"""
import ctypes
import errno
import json
import mmap
import os
import random
import signal
import subprocess
import threading

import lib
from lib import KIB, MIB, check, equal, say

libc = ctypes.CDLL(None, use_errno=True)
AT_FDCWD, MS_RDONLY, MS_REMOUNT = -100, 1, 32


def refused(wanted, what, action):
    try:
        action()
    except OSError as error:
        equal(errno.errorcode[error.errno], errno.errorcode[wanted], f"errno of {what}")
    else:
        raise lib.Failed(f"{what} did not fail")


def call(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def stats(mount):
    with open(f"{mount.path}/.dsfs/stats", encoding="ascii") as file:
        return {key: int(value) for key, value in map(str.split, file)}


def make(source, rng, entries):
    def put(name, data):
        with open(os.path.join(source, name), "wb") as file:
            file.write(data)

    put("small", b"0123456789" * 1000)
    put("empty", b"")
    put("large", rng.randbytes(9 * MIB + 12345))
    put("n" * 255, b"a name of 255 bytes")
    with open(os.path.join(source, "holes"), "wb") as file:
        file.write(b"x" * 5000)
        file.seek(6 * MIB)
        file.write(b"y" * 5000)
        file.truncate(9 * MIB)
    os.mkdir(f"{source}/dir")
    put("dir/inside", b"inside")
    os.link(f"{source}/small", f"{source}/dir/other name")
    os.symlink("dir/inside", f"{source}/link")
    os.mkdir(f"{source}/wide")
    for i in range(entries):
        os.close(os.open(f"{source}/wide/{i:06}", os.O_WRONLY | os.O_CREAT, 0o644))


def check_flags(mount, repo):
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        line = next(line for line in file if lib.unescape(line.split(" ")[4]) == mount.path)
    options, _, rest = line.partition(" - ")
    kind, source, superblock = rest.split(" ", 2)
    equal(kind, "fuse.dsfs", "type in mountinfo")
    equal(lib.unescape(source), repo, "source in mountinfo")
    options = options.split(" ")[5].split(",")
    for flag in "ro", "nosuid", "nodev", "noatime":
        check(flag in options, f"{flag} is missing in {line}")
    check("ro" in superblock.strip().split(","), f"the superblock is not read-only: {line}")
    check("default_permissions" in superblock, f"default_permissions is missing: {line}")


def write_through(path, flags):
    """Where the kernel does not ask for opens, and the superblock is writable, the first write is what is refused."""
    fd = os.open(path, flags)
    try:
        os.write(fd, b"x")
    finally:
        os.close(fd)


def writes(root):
    """Every system call that would change something, by name."""
    b = os.fsencode(root)
    return {
        "open to write": lambda: write_through(f"{root}/small", os.O_WRONLY),
        "open to read and write": lambda: write_through(f"{root}/small", os.O_RDWR),
        "open and truncate": lambda: os.open(f"{root}/small", os.O_RDONLY | os.O_TRUNC),
        "create": lambda: os.open(f"{root}/new", os.O_CREAT | os.O_EXCL | os.O_RDONLY),
        "mkdir": lambda: os.mkdir(f"{root}/new"),
        "mknod": lambda: os.mknod(f"{root}/new"),
        "mkfifo": lambda: os.mkfifo(f"{root}/new"),
        "unlink": lambda: os.unlink(f"{root}/small"),
        "rmdir": lambda: os.rmdir(f"{root}/dir"),
        "symlink": lambda: os.symlink("a", f"{root}/new"),
        "link": lambda: os.link(f"{root}/small", f"{root}/new"),
        "rename": lambda: os.rename(f"{root}/small", f"{root}/new"),
        "rename over": lambda: os.rename(f"{root}/small", f"{root}/empty"),
        "chmod": lambda: os.chmod(f"{root}/small", 0o600),
        "chown": lambda: os.chown(f"{root}/small", 1, 1),
        "lchown of a link": lambda: os.lchown(f"{root}/link", 1, 1),
        "truncate": lambda: os.truncate(f"{root}/small", 0),
        "utime": lambda: os.utime(f"{root}/small", (1, 1)),
        "setxattr": lambda: os.setxattr(f"{root}/small", "user.x", b"1"),
        "setxattr of ours": lambda: os.setxattr(f"{root}/small", "user.dsfs.digest", b"1"),
        "removexattr": lambda: os.removexattr(f"{root}/small", "user.dsfs.digest"),
        "create in the control directory": lambda: os.mkdir(f"{root}/.dsfs/new"),
        "renameat2, exchange": lambda: call(libc.renameat2(
            AT_FDCWD, b + b"/small", AT_FDCWD, b + b"/empty", 2)),
    }


def remount(mount, read_only):
    """By the system call: mount(8) would ask a helper."""
    call(libc.mount(b"none", mount.root, b"fuse.dsfs", MS_REMOUNT | read_only, None))


def check_writes(mount):
    for name, action in writes(mount.path).items():
        refused(errno.EROFS, name, action)
    fd = os.open(f"{mount.path}/small", os.O_RDONLY)
    refused(errno.EBADF, "write to a descriptor for reading", lambda: os.write(fd, b"x"))
    refused(errno.EACCES, "shared mapping to write", lambda: mmap.mmap(fd, 4096, mmap.MAP_SHARED))
    os.close(fd)
    count = len(writes(mount.path))
    # Whatever the superblock says, dsfs itself refuses.
    if os.geteuid() == 0:
        remount(mount, 0)
        for name, action in writes(mount.path).items():
            refused(errno.EROFS, f"{name} (superblock remounted rw)", action)
        remount(mount, MS_RDONLY)
        with open(f"{mount.path}/small", "rb") as file:
            equal(file.read(), b"0123456789" * 1000, "what was to be written over")
        count *= 2
    say(f"{count} writes refused with EROFS")


def check_names(mount):
    with open(f"{mount.path}/{'n' * 255}", "rb") as file:
        equal(file.read(), b"a name of 255 bytes", "file with a name of 255 bytes")
    for size in 256, 1000, 1024, 1025, 4000:
        refused(errno.ENAMETOOLONG, f"a name of {size} bytes",
                lambda size=size: os.stat(f"{mount.path}/{'n' * size}"))
    refused(errno.ENOENT, "a missing name", lambda: os.stat(f"{mount.path}/missing"))
    before = stats(mount)["requests"]
    for _ in range(100):
        refused(errno.ENOENT, "a missing name", lambda: os.stat(f"{mount.path}/missing"))
        os.stat(f"{mount.path}/small")
    equal(stats(mount)["requests"], before, "requests after names that the kernel knows")
    refused(errno.ENOTDIR, "a file as a directory", lambda: os.stat(f"{mount.path}/small/x"))
    fd = os.open(f"{mount.path}/dir", os.O_RDONLY)
    refused(errno.EISDIR, "reading a directory", lambda: os.read(fd, 1))
    os.close(fd)


def check_xattrs(mount, version):
    for name in "small", "dir", "", "holes":
        path = f"{mount.path}/{name}"
        equal(sorted(os.listxattr(path)), ["user.dsfs.digest", "user.dsfs.version"], "xattrs")
        equal(os.getxattr(path, "user.dsfs.version").decode(), version, "user.dsfs.version")
        equal(len(os.getxattr(path, "user.dsfs.digest")), 64, "length of user.dsfs.digest")
    refused(errno.ENODATA, "an xattr that is not there",
            lambda: os.getxattr(f"{mount.path}/small", "user.other"))
    for name in "security.selinux", "security.capability", "system.posix_acl_access":
        refused(errno.EOPNOTSUPP, f"{name}, of another name space",
                lambda: os.getxattr(f"{mount.path}/small", name))
    value = ctypes.create_string_buffer(10)
    refused(errno.ERANGE, "an xattr into a small buffer", lambda: call(libc.getxattr(
        os.fsencode(mount.path), b"user.dsfs.digest", value, 10)))
    refused(errno.ERANGE, "a list of xattrs into a small buffer", lambda: call(libc.listxattr(
        os.fsencode(mount.path), value, 10)))


class Dirent(ctypes.Structure):
    _fields_ = [("ino", ctypes.c_uint64), ("off", ctypes.c_int64), ("reclen", ctypes.c_ushort),
                ("type", ctypes.c_ubyte), ("name", ctypes.c_char * 256)]


def check_cookies(mount, entries, rng):
    """readdir, telldir, seekdir: any cookie, in any order, also of another handle."""
    libc.opendir.restype = ctypes.c_void_p
    libc.readdir.restype = ctypes.POINTER(Dirent)
    libc.telldir.restype = ctypes.c_long
    path = os.fsencode(f"{mount.path}/wide")
    handle = ctypes.c_void_p(libc.opendir(path))
    seen = []
    while entry := libc.readdir(handle):
        name = entry.contents.name
        # What telldir gives leads to what follows.
        seen.append((name, entry.contents.ino, libc.telldir(handle)))
    equal(len(seen), entries + 2, "entries with . and ..")
    equal([name for name, _, _ in seen[:2]], [b".", b".."], "first names")
    equal(len({cookie for _, _, cookie in seen}), len(seen), "different cookies")
    equal(seen[0][1], os.stat(path).st_ino, "inode of .")
    equal(seen[1][1], os.stat(mount.path).st_ino, "inode of ..")
    other = ctypes.c_void_p(libc.opendir(path))
    for at in [0, 1, 2, entries - 1, entries, *(rng.randrange(entries) for _ in range(300))]:
        use = rng.choice((handle, other))
        libc.seekdir(use, ctypes.c_long(seen[at][2]))
        entry = libc.readdir(use)
        check(entry, f"nothing follows entry {at}")
        equal(entry.contents.name, seen[at + 1][0], f"what follows entry {at}")
        equal(entry.contents.ino, seen[at + 1][1], f"inode of what follows entry {at}")
    libc.seekdir(handle, ctypes.c_long(seen[-1][2]))
    check(not libc.readdir(handle), "something follows the last entry")
    libc.rewinddir(handle)
    equal(libc.readdir(handle).contents.name, b".", "first name after rewinddir")
    libc.closedir(handle)
    libc.closedir(other)
    sample = rng.sample(seen[2:], 100)
    for name, ino, _ in sample:
        equal(os.lstat(path + b"/" + name).st_ino, ino, f"inode of {name}")


def check_contents(mount, source, rng):
    with open(f"{source}/large", "rb") as file:
        wanted = file.read()
    fd = os.open(f"{mount.path}/large", os.O_RDONLY)
    with mmap.mmap(fd, 0, mmap.MAP_PRIVATE, mmap.PROT_READ) as private:
        for _ in range(20):
            at = rng.randrange(len(wanted))
            equal(private[at:at + 10000], wanted[at:at + 10000], f"private mapping at {at}")
    with mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ) as shared:
        check(shared[:] == wanted, "shared mapping differs")
    out = os.open(f"{mount.path}-copy", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    done = 0
    while n := os.sendfile(out, fd, done, len(wanted)):
        done += n
    check(os.pread(out, len(wanted) + 1, 0) == wanted, "sendfile differs")
    os.close(out)
    direct = os.open(f"{mount.path}/large", os.O_RDONLY | os.O_DIRECT)
    buffer = mmap.mmap(-1, MIB)
    for at in 0, 4096, 3 * MIB, 9 * MIB, len(wanted) // 4096 * 4096:
        n = os.preadv(direct, [buffer], at)
        check(buffer[:n] == wanted[at:at + n] and n == min(MIB, len(wanted) - at),
              f"O_DIRECT at {at} differs")
    os.close(direct)
    equal(os.pread(fd, 10, len(wanted)), b"", "read at the end")
    equal(os.pread(fd, 10, 1 << 40), b"", "read far behind the end")
    equal(os.pread(fd, 100, len(wanted) - 3), wanted[-3:], "read over the end")
    equal(os.readlink(f"{mount.path}/link"), "dir/inside", "target")
    failures = []

    def reader(seed):
        mine = random.Random(seed)
        for _ in range(60):
            at, size = mine.randrange(len(wanted)), mine.choice((1, 4096, 100 * KIB, 2 * MIB))
            if os.pread(fd, size, at) != wanted[at:at + size]:
                failures.append(at)
            os.posix_fadvise(fd, at, size, os.POSIX_FADV_DONTNEED)

    threads = [threading.Thread(target=reader, args=(rng.random(),)) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.close(fd)
    check(not failures, f"16 readers of one descriptor: wrong bytes at {failures[:5]}")


def check_holes(mount):
    fd = os.open(f"{mount.path}/holes", os.O_RDONLY)
    equal(os.lseek(fd, 0, os.SEEK_DATA), 0, "first data")
    hole = os.lseek(fd, 0, os.SEEK_HOLE)
    equal(hole, 5000, "first hole")
    equal(os.lseek(fd, hole, os.SEEK_DATA), 6 * MIB, "data after the hole")
    equal(os.lseek(fd, 6 * MIB, os.SEEK_HOLE), 6 * MIB + 5000, "second hole")
    refused(errno.ENXIO, "SEEK_DATA in the last hole", lambda: os.lseek(fd, 7 * MIB, os.SEEK_DATA))
    refused(errno.ENXIO, "SEEK_HOLE at the end", lambda: os.lseek(fd, 9 * MIB, os.SEEK_HOLE))
    refused(errno.EINVAL, "lseek before the start", lambda: os.lseek(fd, -1, os.SEEK_SET))
    os.close(fd)
    fd = os.open(f"{mount.path}/small", os.O_RDONLY)
    equal(os.lseek(fd, 17, os.SEEK_DATA), 17, "data in a small file")
    equal(os.lseek(fd, 17, os.SEEK_HOLE), 10000, "hole at the end of a small file")
    os.close(fd)


def check_links(mount):
    one, other = os.stat(f"{mount.path}/small"), os.stat(f"{mount.path}/dir/other name")
    equal(one.st_ino, other.st_ino, "inodes of two names")
    equal((one.st_nlink, other.st_nlink), (2, 2), "links of two names")
    equal(os.stat(mount.path).st_nlink, 2 + 2, "links of the root")


def check_statfs(mount, totals):
    vfs = os.statvfs(mount.path)
    equal(vfs.f_bfree + vfs.f_bavail + vfs.f_ffree, 0, "free blocks and inodes")
    equal(vfs.f_namemax, 255, "longest name")
    size = vfs.f_blocks * vfs.f_frsize
    check(totals["bytes"] <= size < totals["bytes"] + vfs.f_frsize, f"{size} bytes in statfs")
    st = os.stat(f"{mount.path}/small")
    equal((st.st_blocks, st.st_uid, st.st_mode & 0o7777), (20, os.geteuid(), 0o444),
          "stat of small")


class FileHandle(ctypes.Structure):
    _fields_ = [("size", ctypes.c_uint), ("type", ctypes.c_int), ("data", ctypes.c_ubyte * 128)]


def handle_of(path):
    handle, mount_id = FileHandle(size=128), ctypes.c_int()
    call(libc.name_to_handle_at(AT_FDCWD, os.fsencode(path), ctypes.byref(handle),
                                ctypes.byref(mount_id), 0))
    return handle


def check_handle(root, handle, wanted):
    mount_fd = os.open(root, os.O_RDONLY)
    try:
        fd = call(libc.open_by_handle_at(mount_fd, ctypes.byref(handle), os.O_RDONLY))
        equal(os.read(fd, 100), wanted, "bytes behind a file handle")
        os.close(fd)
    finally:
        os.close(mount_fd)


def check_control(mount, version):
    # Before its directory is listed for the first time.
    known = os.open(f"{mount.path}/.dsfs/version.json", os.O_RDONLY)
    check(".dsfs" not in os.listdir(mount.path), "the control directory is listed")
    equal(sorted(os.listdir(f"{mount.path}/.dsfs")), ["stats", "version.json"], "control directory")
    with open(f"{mount.path}/.dsfs/version.json", encoding="utf-8") as file:
        text = file.read()
    equal(json.loads(text)["id"], version, "id in version.json")
    equal(os.read(known, 1 << 20).decode(), text, "version.json through a handle from before it was listed")
    os.close(known)
    with open(f"{mount.path}/.dsfs/../dir/inside", encoding="utf-8") as file:
        equal(file.read(), "inside", "a way through the control directory")
    refused(errno.ENOENT, "a name that the control directory lacks",
            lambda: os.stat(f"{mount.path}/.dsfs/none"))
    slots = {os.stat(f"{mount.path}/{name}").st_ino >> 40 for name in ("", "small", "wide")}
    equal(slots, {0}, "slots of the mount's version")
    equal(os.stat(f"{mount.path}/.dsfs/stats").st_ino >> 40, (1 << 24) - 1, "slot of the control")
    with open(f"{mount.path}/.dsfs/stats", "rb") as one:
        first = one.read()
        os.listdir(f"{mount.path}/.dsfs")
        refused(errno.ENOENT, "a name", lambda: os.stat(f"{mount.path}/no such name"))
        check(stats(mount)["requests"] > int(first.split()[1]), "stats stand still")
        one.seek(0)
        equal(one.read(), first, "stats through one handle")
        equal(os.fstat(one.fileno()).st_size, len(first), "size of stats")
    check_control_copies(mount)


def check_control_copies(mount):
    """What is to be kept beside a model can be copied, also by who looks for its holes."""
    for name in "version.json", "stats":
        copy = f"{mount.path}-{name}"
        done = subprocess.run(["cp", f"{mount.path}/.dsfs/{name}", copy], capture_output=True, text=True, check=False)
        equal((done.returncode, done.stderr), (0, ""), f"status of cp of {name}, and what it said")
        check(os.path.getsize(copy) > 0, f"the copy of {name} is empty")
        with open(f"{mount.path}/.dsfs/{name}", "rb", buffering=0) as file:
            fd, st = file.fileno(), os.fstat(file.fileno())
            equal(st.st_blocks, (st.st_size + 511) // 512, f"blocks of {name}")
            equal(os.lseek(fd, 17, os.SEEK_DATA), 17, f"data in {name}")
            equal(os.lseek(fd, 17, os.SEEK_HOLE), st.st_size, f"hole at the end of {name}")
            for whence in os.SEEK_DATA, os.SEEK_HOLE:
                refused(errno.ENXIO, f"lseek to the end of {name}", lambda whence=whence: os.lseek(fd, st.st_size, whence))
            os.lseek(fd, 0, os.SEEK_SET)
            got = file.read()
        if name == "version.json":
            with open(copy, "rb") as file:
                equal(file.read(), got, f"the copy of {name}")


def check_rotation(box, source):
    """SIGHUP opens the log anew, also where it was given as a relative path."""
    repo, place, home = box.path("rotated"), box.new_dir("m"), box.new_dir("rotation")
    box.commit(source, repo, "--init")
    log = f"{home}/mount.log"
    box.dsfs("mount", repo, place, "-o", f"log=mount.log,cache_dir={box.path('rotation-cache')},timeout=1s",
             cwd=home)
    pid = box.mount_row(place)["pid"]
    os.rename(f"{repo}/packs", f"{repo}/packs.gone")

    def fail(name):
        refused(errno.EIO, f"read of {name} without its pack", lambda: open(f"{place}/{name}", "rb").read())

    fail("small")
    os.rename(log, f"{log}.1")
    with open(f"{log}.1", "rb") as file:
        before = file.read()
    check(b"packs/" in before, f"the log tells of the pack: {before!r}")
    os.kill(pid, signal.SIGHUP)

    def is_rotated():
        # When a process takes a signal is its own affair; a line before that belongs to the old log.
        fail("dir/inside")
        return os.path.exists(log)

    box.wait(is_rotated, "the new log")
    with open(f"{log}.1", "rb") as file:
        before = file.read()
    fail("small")
    with open(log, "rb") as file:
        check(b"packs/" in file.read(), "the new log tells of the pack")
    with open(f"{log}.1", "rb") as file:
        equal(file.read(), before, "the old log, once there is a new one")
    check(lib.is_mounted(place), "SIGHUP ended the mount")
    box.dsfs("umount", place)


def run(box, args):
    rng = random.Random(args.seed)
    source, repo = box.new_dir("src"), box.path("repo")
    make(source, rng, args.entries)
    done = box.commit(source, repo, "--init")
    version = done["version"]
    with box.mount(repo) as mount:
        check_flags(mount, repo)
        check_statfs(mount, done["totals"])
        check_control(mount, version)
        check_names(mount)
        check_xattrs(mount, version)
        check_links(mount)
        check_holes(mount)
        check_contents(mount, source, rng)
        check_writes(mount)
        check_cookies(mount, args.entries, rng)
        handle = handle_of(f"{mount.path}/dir/inside") if os.geteuid() == 0 else None
        equal(stats(mount)["failures"], 0, "failures counted")
    check_rotation(box, source)
    with box.mount(repo, "uid=1234,gid=5678,umask=077") as mount:
        st = os.stat(f"{mount.path}/small")
        equal((st.st_uid, st.st_gid, st.st_mode & 0o7777), (1234, 5678, 0o400), "owner and mode")
        equal(os.stat(f"{mount.path}/dir").st_mode & 0o7777, 0o500, "mode of a directory")
        if handle:
            # The kernel knows nothing of this inode yet: it asks for "." of its number.
            check_handle(mount.path, handle, b"inside")


if __name__ == "__main__":
    lib.main(run, lambda parser: parser.add_argument("--entries", type=int, default=100_000))
