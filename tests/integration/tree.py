"""Random trees, and comparing trees in every respect that a version keeps.

A snapshot is a dict: path (bytes, relative; b"" is the root) -> Entry. Two trees are equal when
their snapshots are: names, types, bytes, sizes, the executable bit, times in nanoseconds, targets,
and which names are one file. On a mount `snapshot` also checks what only a mount can get wrong.
"""
import hashlib
import os
import random
import stat
import typing

KIB, MIB = 1 << 10, 1 << 20
FILE, DIR, LINK = "file", "directory", "symlink"

# Where the chunker decides something: small and large files, runs of zeros, cut points.
LIMITS = [64 * KIB, 256 * KIB, MIB, 4 * MIB]

ODD_NAMES = [
    b"new\nline", b"\xff\xfe\x80", b"-rf", b"--help", b"-", b" before", b"after ", b"a\tb",
    "ünïcödé".encode(), "日本語.txt".encode(), "\U0001f408".encode(), "e\u0301".encode(),
    "\u00e9".encode(), b"*", b"?[a]", b"$HOME", b"`id`", b"'single'", b'"double"', b"back\\slash",
    b"@v1", b"a@2", b"a:b", b"%41", b"...", b"..a", b".hidden", b"\x01\x1b[31m\x7f", b"CON", b"A",
    b"a", b"~", b"#", b"s3:", b"n" * 255, b"\xc3" * 255, ("ä" * 127).encode() + b"x", b"\\", b"\r",
    b"dsfs.json", b"packs", b"a,b=c", b"\xe2\x80\xae.txt", b" ",
]


class Entry(typing.NamedTuple):
    type: str
    executable: bool
    mtime_ns: int
    size: int
    digest: bytes   # of the file's bytes, or the target itself
    links: int      # names of the file; of a directory 2 + its directories; of a symlink 1
    first: bytes    # the first of the file's names

    def __str__(self):
        body = self.digest.hex()[:16] if self.type == FILE else repr(self.digest)
        return (f"{self.type} exec={self.executable} mtime={self.mtime_ns} size={self.size} "
                f"links={self.links} first={self.first!r} {body}")


def digest_of(path, size):
    """SHA-256 of a file's bytes; complains when there are more or fewer than `size`."""
    digest, left = hashlib.sha256(), size
    fd = os.open(path, os.O_RDONLY)
    try:
        while piece := os.read(fd, MIB):
            digest.update(piece)
            left -= len(piece)
    finally:
        os.close(fd)
    if left:
        raise OSError(f"{path!r}: {size - left} bytes read, {size} expected")
    return digest.digest()


def walk(root):
    """(path, DirEntry) of all below root, in no order."""
    pending = [b""]
    while pending:
        at = pending.pop()
        with os.scandir(os.path.join(root, at) if at else root) as listing:
            for entry in listing:
                path = os.path.join(at, entry.name) if at else entry.name
                yield path, entry
                if entry.is_dir(follow_symlinks=False):
                    pending.append(path)


def snapshot(root, read=True):
    root = os.fsencode(root)
    found, inodes, names, subdirs = {}, {}, {}, {b"": 0}
    for path, entry in walk(root):
        st = entry.stat(follow_symlinks=False)
        if entry.inode() != st.st_ino:
            raise OSError(f"{path!r}: inode {entry.inode()} in the listing, {st.st_ino} in stat")
        if path in found:
            raise OSError(f"{path!r} is listed twice")
        found[path] = st
        if stat.S_ISDIR(st.st_mode):
            if not entry.is_dir(follow_symlinks=False):
                raise OSError(f"{path!r}: a directory that the listing calls something else")
            subdirs[path] = subdirs.get(path, 0)
            subdirs[os.path.dirname(path)] = subdirs.get(os.path.dirname(path), 0) + 1
        elif stat.S_ISREG(st.st_mode):
            names.setdefault((st.st_dev, st.st_ino), []).append(path)
        elif not stat.S_ISLNK(st.st_mode):
            raise OSError(f"{path!r}: neither file, directory nor symlink")
    found[b""] = os.lstat(root)
    result = {}
    for path, st in found.items():
        whole = os.path.join(root, path) if path else root
        executable, digest, links, first, size = False, b"", 1, path, st.st_size
        kind = DIR if stat.S_ISDIR(st.st_mode) else LINK if stat.S_ISLNK(st.st_mode) else FILE
        if kind == DIR:
            links, size = 2 + subdirs[path], 0
        elif kind == LINK:
            digest = os.readlink(whole)
        else:
            executable = bool(st.st_mode & 0o111)
            group = names[st.st_dev, st.st_ino]
            links, first = len(group), min(group)
            if read:
                key = st.st_ino
                if key not in inodes:
                    inodes[key] = digest_of(whole, st.st_size)
                digest = inodes[key]
        result[path] = Entry(kind, executable, st.st_mtime_ns, size, digest, links, first)
    return result


def compare(wanted, got, limit=10):
    """Lines that say how two snapshots differ; none when they are equal."""
    lines = []
    for path in sorted(wanted.keys() | got.keys()):
        a, b = wanted.get(path), got.get(path)
        if a != b:
            lines.append(f"{path[:200]!r}: {a} became {b}")
            if len(lines) == limit:
                lines.append("...")
                break
    return lines


def check_stat(root, wanted):
    """What stat says on a mount and a snapshot does not hold: link counts, modes, blocks."""
    lines, root = [], os.fsencode(root)
    for path, entry in wanted.items():
        st = os.lstat(os.path.join(root, path) if path else root)
        mode = stat.S_IMODE(st.st_mode)
        if st.st_nlink != entry.links:
            lines.append(f"{path!r}: st_nlink {st.st_nlink}, not {entry.links}")
        if entry.type != LINK and mode != (0o555 if entry.type == DIR or entry.executable else 0o444):
            lines.append(f"{path!r}: mode {mode:o}")
    return lines[:10]


def holes(path, size):
    """[(start, end)] of the holes that SEEK_HOLE shows."""
    fd, found, at = os.open(path, os.O_RDONLY), [], 0
    try:
        while at < size:
            start = os.lseek(fd, at, os.SEEK_HOLE)
            if start >= size:
                break
            try:
                at = os.lseek(fd, start, os.SEEK_DATA)
            except OSError:  # ENXIO: nothing but a hole up to the end
                at = size
            found.append((start, at))
    finally:
        os.close(fd)
    return found


def zero_runs(path):
    """[(start, end)] of the maximal runs of at least 64 KiB of zero bytes in a file over 4 MiB."""
    with open(path, "rb") as file:
        return zero_runs_of(file.read())


def zero_runs_of(data):
    runs, at, probe = [], 0, bytes(64 * KIB)
    if len(data) <= 4 * MIB:
        return []
    while (start := data.find(probe, at)) >= 0:
        end = start + len(probe)
        while end < len(data) and data[end] == 0:
            step = data[end:end + MIB]
            end += len(step) - len(step.lstrip(b"\0"))
        runs.append((start, end))
        at = end
    return runs


def difference(old, new):
    """What `dsfs diff` must say: {path: change}."""
    changes = {}
    for path in old.keys() | new.keys():
        a, b = old.get(path), new.get(path)
        if a is None:
            changes[path] = "added"
        elif b is None:
            changes[path] = "removed"
        elif a.type != b.type:
            changes[path] = "type"
        elif a.digest != b.digest:
            changes[path] = "changed"
        elif a.executable != b.executable:
            changes[path] = "mode"
    return changes


class Tree:
    """A tree that grows and changes at random; the same seed makes the same tree."""

    def __init__(self, root, seed):
        self.root = os.fsencode(root)
        self.rng = random.Random(seed)
        self.dirs = [b""]
        self.files = []
        self.links = []

    def whole(self, path):
        return os.path.join(self.root, path) if path else self.root

    def name(self):
        kind = self.rng.random()
        if kind < 0.12:
            return self.rng.choice(ODD_NAMES)
        if kind < 0.16:
            return self.rng.choice([b"\xf0", b"x", "ß".encode()]) * self.rng.randint(1, 120)
        length = self.rng.choice([1, 2, 3, 8, 12, 20, 40])
        letters = b"abcdefghijklmnopqrstuvwxyzABCXYZ0123456789_.- "
        name = bytes(self.rng.choices(letters, k=length))
        return name if name not in (b".", b"..") else b"dot"

    def new_path(self, parent=None):
        for _ in range(1000):
            path = os.path.join(self.rng.choice(self.dirs) if parent is None else parent,
                                self.name())
            if not os.path.lexists(self.whole(path)) and len(path) < 3000:
                return path
        raise RuntimeError("no new name is to be found")

    def bytes(self, size):
        kind = self.rng.random()
        if kind < 0.45:
            return self.rng.randbytes(size)
        if kind < 0.9:  # compressible
            line = self.rng.randbytes(self.rng.randint(4, 60)).hex().encode() + b"\n"
            return (line * (size // len(line) + 1))[:size]
        return bytes(size)

    def size(self):
        kind = self.rng.random()
        if kind < 0.12:
            return 0
        if kind < 0.22:
            return 1
        if kind < 0.75:
            return self.rng.randint(2, 400)
        if kind < 0.97:
            return self.rng.randint(400, 20_000)
        return self.rng.randint(20_000, 150_000)

    def write(self, path, data):
        with open(self.whole(path), "wb") as file:
            file.write(data)

    def dress(self, path):
        """Gives a new file or directory a mode and a time."""
        whole = self.whole(path)
        if not os.path.islink(whole):
            modes = [0o755, 0o700, 0o555, 0o711] if os.path.isdir(whole) else \
                [0o644, 0o644, 0o755, 0o600, 0o444, 0o555, 0o744, 0o700]
            os.chmod(whole, self.rng.choice(modes))

    def set_time(self, path):
        kind = self.rng.random()
        second = 1_000_000_000
        if kind < 0.8:
            when = self.rng.randint(1_400_000_000 * second, 1_760_000_000 * second)
        elif kind < 0.9:
            when = self.rng.choice([0, 1, -1, second - 1, -second, 4_000_000_000 * second + 5,
                                    2_147_483_648 * second, -300_000_000 * second + 999_999_999])
        else:
            when = self.rng.randint(1_400_000_000, 1_760_000_000) * second
        os.utime(self.whole(path), ns=(when, when), follow_symlinks=False)

    def add_file(self, data=None, parent=None):
        path = self.new_path(parent)
        if data is None and self.files and self.rng.random() < 0.05:
            with open(self.whole(self.rng.choice(self.files)), "rb") as file:
                data = file.read()  # the same bytes twice
        self.write(path, self.bytes(self.size()) if data is None else data)
        self.dress(path)
        self.set_time(path)
        self.files.append(path)
        return path

    def add_dir(self):
        parents = [d for d in self.dirs if d.count(b"/") < 7] or [b""]
        path = self.new_path(self.rng.choice(parents))
        os.mkdir(self.whole(path))
        self.dirs.append(path)
        return path

    def target(self):
        kind = self.rng.random()
        if kind < 0.4 and self.files:
            return self.rng.choice(self.files)
        if kind < 0.5:
            return b"../" * self.rng.randint(1, 5) + b"etc/passwd"
        if kind < 0.6:
            return b"/" + b"x" * 4094  # as long as Linux has them
        if kind < 0.7:
            return b"\xff\n\x80"
        return b"nowhere/" + self.name()

    def add_link(self):
        path = self.new_path()
        os.symlink(self.target(), self.whole(path))
        self.set_time(path)
        self.links.append(path)

    def add_hard_link(self):
        if not self.files:
            return
        path = self.new_path()
        os.link(self.whole(self.rng.choice(self.files)), self.whole(path), follow_symlinks=False)
        self.files.append(path)

    def large_bytes(self, size):
        """A file over 4 MiB with runs of zeros just below, at and above 64 KiB."""
        data = bytearray(self.bytes(size))
        for run in self.rng.sample([65_535, 65_536, 65_537, 1_000_000, 300_000, 70_000], k=3):
            at = self.rng.choice([0, size - run, self.rng.randint(0, size - run),
                                  self.rng.randint(0, (size - run) // 65_536) * 65_536])
            data[at:at + run] = bytes(run)
        return bytes(data)

    def add_sparse(self, size=24 * MIB):
        path = self.new_path()
        with open(self.whole(path), "wb") as file:
            file.truncate(size)
            for _ in range(self.rng.randint(0, 3)):
                file.seek(self.rng.randint(0, size - 4096))
                file.write(self.rng.randbytes(self.rng.randint(1, 4096)))
        self.set_time(path)
        self.files.append(path)

    def grow(self, entries, large=True):
        for _ in range(entries):
            kind = self.rng.random()
            if kind < 0.12:
                self.add_dir()
            elif kind < 0.18:
                self.add_link()
            elif kind < 0.23:
                self.add_hard_link()
            else:
                self.add_file()
        if large:
            for _ in range(3):
                self.add_file(self.bytes(self.rng.choice(LIMITS) + self.rng.randint(-1, 1)))
            self.add_file(self.bytes(4 * MIB + self.rng.randint(-1, 1)))
            self.add_file(self.large_bytes(self.rng.randint(4 * MIB + 1, 7 * MIB)))
            self.add_sparse()
        self.settle()

    def settle(self):
        """Times of directories, once nothing in them changes any more."""
        for path in self.dirs:
            self.set_time(path)

    # Changing

    def change_bytes(self):
        path = self.pick_file()
        if not path:
            return
        with open(self.whole(path), "rb") as file:
            data = bytearray(file.read())
        kind = self.rng.random()
        if not data or kind < 0.25:
            data += self.bytes(self.size())
        elif kind < 0.4:
            del data[self.rng.randrange(len(data)):]
        elif kind < 0.6:
            at = self.rng.randrange(len(data))
            data[at:at] = self.rng.randbytes(self.rng.randint(1, 5000))
        else:
            data[self.rng.randrange(len(data))] ^= 1 << self.rng.randrange(8)
        before = os.lstat(self.whole(path))
        os.chmod(self.whole(path), before.st_mode | 0o600)
        self.write(path, bytes(data))
        os.chmod(self.whole(path), stat.S_IMODE(before.st_mode))
        if self.rng.random() < 0.5:  # as `cp -p` and `touch -r` do: only ctime tells
            os.utime(self.whole(path), ns=(before.st_mtime_ns, before.st_mtime_ns))

    def pick_file(self):
        return self.rng.choice(self.files) if self.files else None

    def forget(self, path):
        def keep(other):
            return other != path and not other.startswith(path + b"/")
        self.dirs = [d for d in self.dirs if keep(d)]
        self.files = [f for f in self.files if keep(f)]
        self.links = [s for s in self.links if keep(s)]

    def remove(self, path=None):
        path = path or self.rng.choice(self.dirs[1:] + self.files + self.links or [None])
        if path is None:
            return
        whole = self.whole(path)
        if os.path.isdir(whole) and not os.path.islink(whole):
            below = [p for p, _ in walk(whole)]
            for other in sorted(below, key=len, reverse=True):
                other = os.path.join(whole, other)
                if os.path.isdir(other) and not os.path.islink(other):
                    os.rmdir(other)
                else:
                    os.unlink(other)
            os.rmdir(whole)
        else:
            os.unlink(whole)
        self.forget(path)

    def remove_all(self):
        for path in [*self.dirs[1:]]:
            if os.path.lexists(self.whole(path)):
                self.remove(path)
        for path in self.files + self.links:
            os.unlink(self.whole(path))
        self.files, self.links = [], []

    def move(self):
        path = self.rng.choice(self.dirs[1:] + self.files + self.links or [None])
        if path is None:
            return
        parents = [d for d in self.dirs if d != path and not d.startswith(path + b"/")
                   and d.count(b"/") + path.count(b"/") < 8 and len(d) + len(path) < 2000]
        new = self.new_path(self.rng.choice(parents or [b""]))
        os.rename(self.whole(path), self.whole(new))
        for group in (self.dirs, self.files, self.links):
            for i, other in enumerate(group):
                if other == path or other.startswith(path + b"/"):
                    group[i] = new + other[len(path):]

    def replace(self):
        """Another type under the same name."""
        path = self.rng.choice(self.files + self.links or [None])
        if path is None:
            return
        self.remove(path)
        if self.rng.random() < 0.5:
            os.mkdir(self.whole(path))
            self.dirs.append(path)
            self.add_file(parent=path)
        else:
            os.symlink(self.target(), self.whole(path))
            self.links.append(path)

    def toggle(self):
        path = self.pick_file()
        if path:
            mode = stat.S_IMODE(os.lstat(self.whole(path)).st_mode)
            os.chmod(self.whole(path), mode ^ 0o111)

    def touch(self):
        path = self.rng.choice(self.files + self.links + self.dirs)
        self.set_time(path)

    def change(self, steps):
        kinds = [self.change_bytes] * 5 + [self.remove] * 2 + [self.move] * 2 + \
            [self.replace, self.toggle, self.touch, self.add_dir, self.add_link,
             self.add_hard_link] + [self.add_file] * 3
        for _ in range(steps):
            self.rng.choice(kinds)()
        # One change at least that counts for the fingerprint.
        self.add_file(self.rng.randbytes(200))
