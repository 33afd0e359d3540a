"""What the end-to-end tests share: a scratch directory with everything that a test started (a Box),
running the command line, mounting, a real S3 server, the fault proxy, cleaning up whatever happens.

A test is a program whose `run(box, args)` raises Failed, or Skip:

    lib.main(run, lambda parser: parser.add_argument("--seeds", default="1-20"))

The command line is $DSFS, by default build/src/cli/dsfs of this tree. Every child gets $DSFS_TEST_BOX
in its environment: what still carries it at the end was left behind, which is a failure.
"""
import argparse
import ctypes
import glob
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

HERE = os.path.dirname(os.path.abspath(__file__))
TREE = os.path.dirname(os.path.dirname(HERE))
LIB = os.path.join(TREE, "tests", "lib")
DSFS = os.path.abspath(os.environ.get("DSFS") or os.path.join(TREE, "build", "src", "cli", "dsfs"))
# Generous: under ASan, on a busy machine. What must be fast is measured by its own test.
TIMEOUT_S = 300

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


class Failed(Exception):
    """Something is not as it must be."""


class Skip(Exception):
    """FUSE, or the S3 server, is not to be had here."""


def check(condition, message):
    if not condition:
        raise Failed(message)


def equal(got, wanted, what):
    if got != wanted:
        raise Failed(f"{what}: {got!r}, not {wanted!r}")


def say(*words):
    print(*words, flush=True)


class Result:
    """How a command ended."""

    def __init__(self, argv, status, out, err):
        self.argv = argv
        self.status = status
        self.out = out
        self.err = err

    @property
    def text(self):
        return self.out.decode("utf-8", "surrogateescape")

    @property
    def errors(self):
        return self.err.decode("utf-8", "replace")

    @property
    def json(self):
        try:
            return json.loads(self.out)
        except ValueError as error:
            raise Failed(f"{self}: no JSON on stdout: {error}: {self.out[:500]!r}") from None

    def __str__(self):
        return " ".join(map(show, self.argv)) + f" (status {self.status})"


def show(word):
    word = word.decode("utf-8", "backslashreplace") if isinstance(word, bytes) else str(word)
    return word if len(word) < 120 else word[:100] + "..."


def encode(word):
    return word if isinstance(word, bytes) else os.fsencode(str(word))


class Dir:
    """Repositories in plain directories."""

    kind = "dir"
    env = {}

    def __init__(self, box):
        self.box = box

    def url(self, name):
        return self.box.path(name)


class S3:
    """Repositories on a radosgw that this Box started, directly or through a proxy."""

    kind = "s3"

    def __init__(self, box, host="localhost"):
        self.box = box
        self.dir = box.path(f"radosgw-{box.number()}")
        script = os.path.join(LIB, "radosgw.sh")
        try:
            done = subprocess.run([script, "start", self.dir, "--owner", str(os.getpid()),
                                   "--host", host], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                                  timeout=300)
        except subprocess.TimeoutExpired:
            raise Failed(f"radosgw does not start:\n{self.setup_logs()}") from None
        if done.returncode == 77:
            raise Skip(done.stderr.strip())
        check(done.returncode == 0, f"radosgw does not start: {done.stderr}")
        self.end = box.at_end(lambda: subprocess.run([script, "stop", self.dir], timeout=60, check=False))
        self.env = exports(done.stdout)
        self.bucket = self.env.pop("BUCKET")

    def setup_logs(self):
        logs = sorted(glob.glob(self.dir + "/setup.log*"))
        return "".join(f"{log}:\n{open(log, errors='replace').read()[-2000:]}\n" for log in logs)

    def url(self, name):
        return f"s3://{self.bucket}/{name}"


def exports(text):
    """The variables of lines that are to be evaluated by a shell."""
    lines = [line.removeprefix("export ") for line in text.splitlines() if "=" in line]
    return dict(line.split("=", 1) for line in lines)


class Proxy:
    """The fault proxy of tests/lib before a server. `env` leads dsfs through it."""

    def __init__(self, box, upstream_env, seed=1):
        script = os.path.join(LIB, "fault_proxy.py")
        upstream = upstream_env["AWS_ENDPOINT_URL"]
        done = subprocess.run([script, "start", "--upstream", upstream, "--owner", str(os.getpid()),
                               "--seed", str(seed)], stdin=subprocess.DEVNULL, capture_output=True,
                              text=True, timeout=60, env={**os.environ, **upstream_env})
        check(done.returncode == 0, f"the proxy does not start: {done.stderr}")
        found = exports(done.stdout)
        self.control = found["PROXY_CONTROL"]
        self.env = {**upstream_env, "AWS_ENDPOINT_URL": found["PROXY_URL"]}
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        box.at_end(self.stop)

    def ask(self, path, method="GET", data=None):
        request = urllib.request.Request(self.control + path, data=data, method=method)
        return self.opener.open(request, timeout=60).read().decode()

    def rules(self, *rules):
        self.ask("/rules", "PUT", json.dumps(rules).encode())

    def stats(self):
        return json.loads(self.ask("/stats"))

    def clear_log(self):
        self.ask("/log", "DELETE")

    def requests(self):
        """[(method, target, bytes asked for or None, status)] since clear_log."""
        rows = []
        for line in self.ask("/log").splitlines():
            _, method, target, span, status, _ = line.split(" ", 5)
            size = None
            if span.startswith("bytes="):
                first, last = span.removeprefix("bytes=").split("-")
                size = int(last) - int(first) + 1 if first and last else int(last or 0)
            rows.append((method, target, size, int(status)))
        return rows

    def stop(self):
        try:
            self.ask("/stop")
        except OSError:
            pass


def asked_of_all():
    """The options of each mount of the run (see tests/README.md). A mount that cannot have them is refused."""
    return [o for o in os.environ.get("DSFS_MOUNT_OPTIONS", "").split(",") if o]


class Mount:
    """A version that is mounted; `with` or umount() ends it."""

    def __init__(self, box, repo, options=(), env=None, place=None, foreground=False):
        self.box = box
        self.path = place or box.new_dir("m")
        self.log = box.path(f"log-{box.number()}")
        # What a test asks for itself comes before it.
        own = {o.partition("=")[0] for o in options}
        more = [o for o in asked_of_all() if o.partition("=")[0] not in own]
        options = [f"log={self.log}", *more, *options]
        if not any(o.startswith("cache_dir=") for o in options):
            options.append(f"cache_dir={box.cache}")
        if not any(o.startswith("timeout=") for o in options):
            options.append("timeout=30s")
        self.process = None
        argv = ["mount", repo, self.path, "-o", ",".join(options)]
        box.mounts.append(self)
        if foreground:
            self.process = box.start(argv + ["-f"], env=env)
            box.wait(lambda: is_mounted(self.path) or self.process.poll() is not None,
                     "the mount to answer")
            check(self.process.poll() is None, f"dsfs mount -f ended: {self.log_text()}")
            self.pid = self.process.pid
            box.as_asked_n += set(asked_of_all()) <= set(options)
            return
        started = time.monotonic()
        result = box.dsfs(*argv, env=env, status=None)
        self.took_s = time.monotonic() - started
        if result.status:
            box.mounts.remove(self)
            raise MountRefused(result, self.log_text())
        check(is_mounted(self.path), f"{result}: it said that it was mounted")
        box.as_asked_n += set(asked_of_all()) <= set(options)
        row = box.mount_row(self.path)
        check(row is not None, f"'dsfs mount' does not list {self.path}")
        self.pid = row["pid"]
        check(self.pid, f"'dsfs mount' knows no process of {self.path}: {row}")

    def how(self):
        """What the log says of the ways that were chosen."""
        found = re.search(r"mounted .*?: (kernel=.*)", self.log_text())
        return found[1] if found else ""

    def log_text(self):
        try:
            with open(self.log, encoding="utf-8", errors="replace") as file:
                return file.read()
        except FileNotFoundError:
            return ""

    @property
    def root(self):
        return os.fsencode(self.path)

    def umount(self):
        self.box.dsfs("umount", self.path)
        check(not is_mounted(self.path), f"{self.path} is mounted after umount")
        check(not is_alive(self.pid) or self.process, f"process {self.pid} lives after umount")
        if self.process:
            equal(self.process.wait(TIMEOUT_S), 0, "status of dsfs mount -f after umount")
        self.box.mounts.remove(self)

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        if kind is None:
            self.umount()


class MountRefused(Failed):
    def __init__(self, result, log):
        super().__init__(f"{result}: {result.errors.strip()} {log.strip()[-500:]}")
        self.result = result
        self.log = log


def unescape(text):
    return text.encode("latin-1", "replace").decode("unicode_escape") if "\\" in text else text


def mountpoints():
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        return [unescape(line.split(" ")[4]) for line in file]


def is_mounted(path):
    return path in mountpoints()


def is_alive(pid):
    """A zombie has ended, once all its threads have: who is to reap it is not our business."""
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/stat", encoding="ascii", errors="replace") as file:
                if file.read().rsplit(")", 1)[1].split()[0] not in "ZX":
                    return True
    except (FileNotFoundError, ProcessLookupError):
        # A thread that went meanwhile: who is left?
        return os.path.exists(f"/proc/{pid}/task/{pid}") and is_alive(pid)
    return False


class Box:
    """A scratch directory and all that was started in it."""

    def __init__(self, name, base=None):
        self.dir = os.path.realpath(tempfile.mkdtemp(prefix=f"dsfs-{name}.", dir=base))
        self.mounts = []
        self.as_asked_n = 0  # mounts with all of asked_of_all()
        self.processes = []
        self.ends = []
        self.counter = 0
        self.deadline = None
        self.cache = self.path("cache")
        self.home = self.new_dir("home")
        self.env = {key: value for key, value in os.environ.items()
                    if not key.startswith(("AWS_", "XDG_", "DSFS"))}
        self.env.update(HOME=self.home, DSFS_TEST_BOX=self.dir, DSFS_CACHE_DIR=self.cache,
                        LC_ALL="C.UTF-8", TZ="UTC")
        # A daemon in the background has no stderr for its reports.
        options = self.env.get("ASAN_OPTIONS", "")
        self.reports = None
        if "log_path" not in options:
            self.reports = self.path("sanitizer")
            self.env["ASAN_OPTIONS"] = ":".join(filter(None, [options, f"log_path={self.reports}"]))
            self.env["UBSAN_OPTIONS"] = (f"log_path={self.reports}:halt_on_error=1:"
                                         "print_stacktrace=1")

    def no_leak_check(self):
        """For a process that is to be killed: under its leak check, at its end, the kill is reported
        as a failure of the check ("Unable to get registers from thread")."""
        return {"ASAN_OPTIONS": self.env.get("ASAN_OPTIONS", "") + ":detect_leaks=0"}

    def late(self):
        """Whether the time that --minutes gives is over: long runs stop between two steps."""
        return self.deadline is not None and time.monotonic() > self.deadline

    def path(self, *parts):
        return os.path.join(self.dir, *parts)

    def number(self):
        self.counter += 1
        return self.counter

    def new_dir(self, prefix):
        path = self.path(f"{prefix}{self.number()}" if prefix != "home" else prefix)
        os.mkdir(path)
        return path

    def at_end(self, function):
        """Returns the function, for who calls it before: it is called again."""
        self.ends.append(function)
        return function

    def store(self, kind):
        return S3(self) if kind == "s3" else Dir(self)

    def environment(self, env):
        merged = {**self.env, **(env or {})}
        return {key: value for key, value in merged.items() if value is not None}

    def start(self, args, env=None, **kwargs):
        """A process of dsfs that runs beside the test."""
        process = subprocess.Popen([DSFS, *map(encode, args)], env=self.environment(env),
                                   **{"stdin": subprocess.DEVNULL, **kwargs})
        self.processes.append(process)
        return process

    def dsfs(self, *args, status=0, env=None, timeout=TIMEOUT_S, program=None, **kwargs):
        """Runs dsfs to its end; another status than `status` (None: any) is a failure."""
        argv = [program or DSFS, *map(encode, args)]
        if "input" not in kwargs:
            kwargs.setdefault("stdin", subprocess.DEVNULL)
        kwargs.setdefault("stdout", subprocess.PIPE)
        kwargs.setdefault("stderr", subprocess.PIPE)
        process_input = kwargs.pop("input", None)
        process = subprocess.Popen(argv, env=self.environment(env), **kwargs)
        self.processes.append(process)
        try:
            out, err = process.communicate(process_input, timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise Failed(f"{' '.join(map(show, argv))}: not ended after {timeout} s") from None
        finally:
            if process.poll() is not None:
                self.processes.remove(process)
        result = Result(argv, process.returncode, out or b"", err or b"")
        if status is not None and result.status != status:
            said = result.errors.strip() or result.text.strip()
            raise Failed(f"{result}, not {status}: {said[-3000:]}")
        return result

    def json(self, *args, **kwargs):
        return self.dsfs(args[0], "--json", *args[1:], **kwargs).json

    def commit(self, source, repo, *args, **kwargs):
        return self.json("commit", source, repo, *args, **kwargs)

    def mount(self, repo, *options, **kwargs):
        return Mount(self, repo, options, **kwargs)

    def mount_row(self, path):
        return next((row for row in self.json("mount") if row["mountpoint"] == path), None)

    def wait(self, condition, what, timeout=60):
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                raise Failed(f"waited {timeout} s for {what}")
            time.sleep(0.005)

    def left_behind(self):
        """Processes that were started from here, whoever is their parent now."""
        marker = f"DSFS_TEST_BOX={self.dir}".encode()
        found = []
        for name in os.listdir("/proc"):
            if not name.isdigit() or int(name) == os.getpid():
                continue
            try:
                with open(f"/proc/{name}/environ", "rb") as file:
                    if marker in file.read().split(b"\0") and is_alive(int(name)):
                        found.append(int(name))
            except OSError:
                pass
        return found

    def close(self):
        """Ends everything; returns what was wrong."""
        complaints = []
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait()
        below = [path for path in mountpoints() if path.startswith(self.dir + "/")]
        for path in reversed(below):
            complaints.append(f"mount left behind: {path}")
            subprocess.run(["umount", "-l", path], check=False, capture_output=True, timeout=60)
        for function in reversed(self.ends):
            try:
                function()
            except Exception as error:  # the others must be ended too
                complaints.append(f"at the end: {error}")
        deadline = time.monotonic() + 30
        while (pids := self.left_behind()) and time.monotonic() < deadline:
            time.sleep(0.05)
        for pid in pids:
            complaints.append(f"process left behind: {pid}")
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        if self.reports:
            for path in glob.glob(glob.escape(self.reports) + "*"):
                with open(path, encoding="utf-8", errors="replace") as file:
                    complaints.append(f"sanitizer report:\n{file.read()[:6000]}")
        return complaints

    def remove(self):
        # Never into a mount.
        if not any(path.startswith(self.dir + "/") for path in mountpoints()):
            shutil.rmtree(os.fsencode(self.dir), ignore_errors=True)


class Pulse(threading.Thread):
    """When this machine, or this process, stood still: a thread that wants to run each 10 ms, and notes when it came late. What is
    measured beside it is not to blame for that. Who waits for a system call keeps no other thread from running."""

    # Less is not told from what a busy machine does all the time, which would hide what is to be found.
    TICK_S, LATE_S = 0.01, 0.15

    def __init__(self):
        super().__init__(daemon=True)
        self.gaps, self.over = [], threading.Event()
        self.start()

    def run(self):
        before, is_over = time.monotonic(), False
        while not is_over:
            is_over = self.over.wait(self.TICK_S)
            now = time.monotonic()
            if now - before > self.TICK_S + self.LATE_S:
                self.gaps.append((before + self.TICK_S, now))
            before = now

    def end(self, calls):
        """Seconds that each call, (start, end), took while this ran."""
        self.over.set()
        self.join()
        if self.gaps:
            say(f"this machine stood still for {sum(to - since for since, to in self.gaps):.2f} s in {len(self.gaps)} pieces")
        return [end - start - sum(max(0, min(to, end) - max(since, start)) for since, to in self.gaps) for start, end in calls]


class User:
    """Another user of this machine, with a home of its own in the box."""

    def __init__(self, box, number=65534):
        self.box = box
        self.number = number
        self.home = box.new_dir("user")
        os.chmod(box.dir, 0o755)
        for name in "cache", "mnt", "run":
            os.mkdir(f"{self.home}/{name}")
            os.chown(f"{self.home}/{name}", number, number)

    def dsfs(self, *args, env=None, **kwargs):
        env = {"HOME": self.home, "XDG_RUNTIME_DIR": f"{self.home}/run",
               "DSFS_CACHE_DIR": f"{self.home}/cache",
               # Its reports cannot go where root's go.
               "ASAN_OPTIONS": "", "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1", **(env or {})}
        return self.box.dsfs(*args, env=env, user=self.number, group=self.number, extra_groups=[],
                             **kwargs)


def need_fuse():
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise Skip("/dev/fuse cannot be opened")


def strace(box, options, *args, user=None):
    """Runs dsfs under strace, as a User if one is given: the result, and for each thread the lines of what it did."""
    if not shutil.which("strace"):
        raise Skip("strace is not installed")
    if subprocess.run(["strace", "-o", "/dev/null", "true"], check=False, capture_output=True).returncode:
        raise Skip("strace may not trace here")
    prefix = f"{user.home}/run/trace-{box.number()}" if user else box.path(f"trace-{box.number()}")
    # Where one process traces, LeakSanitizer cannot.
    result = (user or box).dsfs("-ff", "-y", *options, "-o", prefix, DSFS, *args, program=shutil.which("strace"),
                                env={"ASAN_OPTIONS": "detect_leaks=0"} if user else box.no_leak_check())
    threads = []
    for path in glob.glob(glob.escape(prefix) + ".*"):
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            threads.append(file.readlines())
    return result, threads


def no_passthrough(box):
    """None, or why there is no passthrough here, as doctor says it."""
    row = next(row for row in box.json("doctor", status=None) if row["what"] == "passthrough")
    return None if row["verdict"] == "ok" else row["text"]


def need_asked(box):
    """All mounts of this run are to be in a mode that cannot be had everywhere (DSFS_MOUNT_OPTIONS)."""
    if "kernel=passthrough" in os.environ.get("DSFS_MOUNT_OPTIONS", "").split(","):
        missing = no_passthrough(box)
        if missing:
            raise Skip(missing)


def allocated(path):
    """Bytes on disk of a file or all below a directory."""
    total = os.lstat(path).st_blocks * 512
    for dir_path, dirs, files in os.walk(os.fsencode(path)):
        total += sum(os.lstat(os.path.join(dir_path, n)).st_blocks * 512 for n in dirs + files)
    return total


def die_with_parent():
    """For preexec_fn: the kernel ends the child when this process is gone."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def span(text):
    """'3' or '1-20' as a range."""
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def on_signal(number, _):
    raise SystemExit(128 + number)


def main(run, add_arguments=None, fuse=True):
    """Runs a test as a program: its exit status is the verdict."""
    name = os.path.basename(sys.argv[0]).removesuffix(".py")
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, help="repeats a run; otherwise a new one is drawn")
    parser.add_argument("--keep", action="store_true", help="leaves the scratch directory")
    parser.add_argument("--base", help="where the scratch directory is made")
    parser.add_argument("--minutes", type=float, help="stops early, and well, after this time")
    if add_arguments:
        add_arguments(parser)
    args = parser.parse_args()
    if args.seed is None:
        args.seed = random.SystemRandom().randrange(1 << 32)
    for number in signal.SIGTERM, signal.SIGINT, signal.SIGHUP:
        signal.signal(number, on_signal)
    if not os.path.exists(DSFS):
        sys.exit(f"{name}: {DSFS} is not built")
    say(f"{name}: seed {args.seed} (--seed {args.seed} repeats it)")
    started = time.monotonic()
    box = Box(name, args.base)
    if args.minutes:
        box.deadline = started + 60 * args.minutes
    status = 1
    try:
        if fuse:
            need_fuse()
            need_asked(box)
        run(box, args)
        check(box.as_asked_n or not asked_of_all(), "nothing was mounted with all of DSFS_MOUNT_OPTIONS="
              f"{','.join(asked_of_all())}: this has shown nothing of them")
        status = 0
    except Skip as skip:
        print(f"{name}: {skip}", file=sys.stderr)
        status = 77
    except Failed as failure:
        print(f"{name}: FAILED: {failure}", file=sys.stderr)
        for mount in box.mounts:
            print(f"{name}: log of {mount.path}:\n{mount.log_text()[-3000:]}", file=sys.stderr)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        complaints = box.close()
        for complaint in complaints:
            if status and complaint.startswith("mount left"):
                continue  # of course
            print(f"{name}: {complaint}", file=sys.stderr)
        if args.keep:
            say(f"{name}: kept {box.dir}")
        else:
            box.remove()
    if complaints and status == 0:
        status = 1
    say(f"{name}: {'ok' if status == 0 else 'status %d' % status}, "
        f"{time.monotonic() - started:.1f} s")
    sys.exit(status)
