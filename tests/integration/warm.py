#!/usr/bin/env python3
"""Warming the cache, by `dsfs warm` and `-o warm`, on a real S3 server: afterwards nothing is fetched any more; in few large
requests; what is damaged in the store is named and the rest is there; a warming that is stalled, stopped or killed; a cache
that is too small."""
import os
import pty
import random
import signal
import threading

import lib
from lib import KIB, MIB, check, equal, say

FAILURE, NOT_FOUND, STORE, DAMAGED, INTERRUPTED = 1, 3, 5, 6, 130
PACKS = "^GET .*/packs/"


def make(source, rng, files):
    wanted = {}
    for i in range(files):
        name = f"{i % 8}/deep/{i:04}"
        wanted[name] = rng.randbytes(rng.randint(KIB, 60 * KIB))
    for i in range(2):
        wanted[f"large/{i}"] = rng.randbytes(21 * MIB + i)
    wanted["large/sparse"] = rng.randbytes(5 * MIB) + bytes(40 * MIB) + rng.randbytes(100)
    wanted["odd/a:b,c"] = rng.randbytes(30 * KIB)
    wanted["odd/empty"] = b""
    for name, data in wanted.items():
        os.makedirs(os.path.dirname(f"{source}/{name}"), exist_ok=True)
        with open(f"{source}/{name}", "wb") as file:
            file.write(data.rstrip(b"\0"))
            file.truncate(len(data))
    os.link(f"{source}/odd/a:b,c", f"{source}/odd/link")
    wanted["odd/link"] = wanted["odd/a:b,c"]
    return wanted


def stats(mount):
    with open(f"{mount.path}/.dsfs/stats", encoding="ascii") as file:
        return {key: int(value) for key, value in map(str.split, file)}


def data_gets(proxy):
    """Sizes of the ranges that were asked for of packs."""
    return [size for method, target, size, _ in proxy.requests() if method == "GET" and "/packs/" in target]


def fired(proxy):
    return sum(rule["fired"] for rule in proxy.stats()["rules"])


def warm(box, repo, *args, status=0, **kwargs):
    return box.dsfs("warm", repo, *args, status=status, **kwargs)


def cached(cache, *more):
    return ["-o", ",".join([f"cache_dir={cache}", *more])]


def epoch(box, repo, proxy, wanted, cache, names=None):
    """Reads all in random order; the data GETs that it took."""
    names = list(names or wanted)
    random.shuffle(names)
    with box.mount(repo, f"cache_dir={cache}", env=proxy.env) as mount:
        for name in names:
            with open(f"{mount.path}/{name}", "rb") as file:
                check(file.read() == wanted[name], f"{name} is wrong")
        equal(stats(mount)["failures"], 0, "failures")
    return len(data_gets(proxy))


def check_all(box, repo, proxy, wanted):
    """Everything, then nothing more; in few requests, within the budget."""
    cache = box.path("all")
    total = sum(len(data) for name, data in wanted.items() if name not in ("odd/link", "large/sparse"))
    proxy.clear_log()
    first = warm(box, repo, *cached(cache, "inflight=32M"), "--json", env=proxy.env).json
    equal(first["files"], len(wanted), "files")
    equal(first["bytes"], first["fetched_bytes"], "bytes that were fetched")
    # The data of the sparse file besides: its chunks are as large as 4 MiB, of which some may be zeros.
    check(total + 5 * MIB <= first["bytes"] <= total + 10 * MIB, f"{first['bytes']} bytes of {total}")
    gets = data_gets(proxy)
    say(f"{len(wanted)} files, {total // MIB} MiB: {len(gets)} requests, at most {max(gets) / MIB:.1f} MiB")
    # Apart from the manifest's: of 2 MiB at most, and not of a chunk each, of which few are over 1 MiB.
    check(len(gets) <= 20 + first["bytes"] // MIB, f"{len(gets)} requests for {first['bytes'] // MIB} MiB")
    check(1.5 * MIB <= max(gets) <= 4 * MIB, f"the largest request asks for {max(gets)} bytes")
    proxy.clear_log()
    again = warm(box, repo, *cached(cache), "--json", env=proxy.env).json
    equal((again["fetched_bytes"], again["requests"], again["bytes"]), (0, 0, first["bytes"]), "a second warming")
    equal(epoch(box, repo, proxy, wanted, cache), 0, "data GETs after warming, twice and an epoch")
    equal(warm(box, repo, "-q", *cached(cache), env=proxy.env).out, b"", "output with -q")


def check_paths(box, repo, proxy, wanted):
    cache = box.path("paths")
    names = [name for name in wanted if name.startswith(("3/", "large/1"))]
    told = warm(box, repo, "/3/", "large/1", "3/deep", *cached(cache), "--json", env=proxy.env).json
    equal(told["files"], len(names), "files of three paths, of which one is below another")
    equal(told["fetched_bytes"], sum(len(wanted[name]) for name in names), "bytes of them")
    proxy.clear_log()
    equal(epoch(box, repo, proxy, wanted, cache, names), 0, "data GETs for what was warmed")
    check(epoch(box, repo, proxy, wanted, cache, ["4/deep/0004"]) > 0, "what was not asked for came too")
    proxy.clear_log()
    for words in ["3", "no/such"], ["3/deep/0003/x"]:
        result = warm(box, repo, *words, *cached(box.path("none")), env=proxy.env, status=NOT_FOUND)
        equal(result.errors.count("\n"), 1, f"lines of {result.errors!r}")
        check(words[-1] in result.errors, result.errors)
    check(sum(data_gets(proxy)) < MIB, "data came although a path was not there")


def check_too_small(box, repo, proxy):
    proxy.clear_log()
    result = warm(box, repo, *cached(box.path("small"), "cache_size=30M"), env=proxy.env, status=FAILURE)
    equal(result.errors.count("\n"), 1, f"lines of {result.errors!r}")
    check("30.0 MiB" in result.errors and "cache_size=" in result.errors, result.errors)
    check(sum(data_gets(proxy)) < MIB, "data came although the cache is too small")
    # Of a mount it is a line in the log.
    with box.mount(repo, f"cache_dir={box.path('small')}", "cache_size=30M", "warm", env=proxy.env) as mount:
        box.wait(lambda: not stats(mount)["warm_running"], "the warming to end")
        equal(stats(mount)["warm_incomplete"], 1, "warm_incomplete")
        box.wait(lambda: "cache_size=" in mount.log_text(), "the line in the log")


def check_names_too_large(box, rng, proxy, store):
    """Not even the list of names fits: it does not come to make that known."""
    source, repo = box.new_dir("src"), store.url("names")
    for i in range(4000):
        os.close(os.open(f"{source}/{i:04}-{rng.randbytes(100).hex()}", os.O_WRONLY | os.O_CREAT, 0o644))
    box.commit(source, repo, "--init", env=store.env)
    proxy.clear_log()
    result = warm(box, repo, *cached(box.path("names"), "cache_size=256K"), env=proxy.env, status=FAILURE)
    check("256.0 KiB" in result.errors and "cache_size=" in result.errors, result.errors)
    few = sum(data_gets(proxy))
    proxy.clear_log()
    warm(box, repo, *cached(box.path("names")), env=proxy.env)
    say(f"a list of names of {sum(data_gets(proxy)) // KIB} KiB: {few // KIB} KiB came before it was refused")
    check(few < sum(data_gets(proxy)) / 4, "it came although there is no room for it")


def check_aged(box, rng):
    """Files of five commits side by side in the tree, each commit's in packs of their own: these come in order."""
    source, repo, wanted = box.new_dir("src"), box.path("aged"), 0
    for version in range(5):
        for i in range(60):
            with open(f"{source}/{i:03}-{version}", "wb") as file:
                wanted += file.write(rng.randbytes(60 * KIB))
        box.commit(source, repo, *([] if version else ["--init"]))
    told = warm(box, repo, *cached(box.path("aged-cache"), "inflight=16M"), "--json").json
    equal(told["fetched_bytes"], wanted, "bytes of five commits")
    say(f"{told['files']} files of five commits: {told['requests']} requests")
    # 17.6 MiB, 2 at once or more, and some for the manifest.
    check(told["requests"] <= 24, f"{told['requests']} requests for five packs")


def flip(repo, part, what):
    flipped = 0
    for path, _, packs in os.walk(f"{repo}/packs"):
        for pack in packs:
            with open(f"{path}/{pack}", "rb") as file:
                at = file.read().find(part)
            if at >= 0:
                os.chmod(f"{path}/{pack}", 0o644)
                with open(f"{path}/{pack}", "r+b") as file:
                    file.seek(at)
                    file.write(bytes([part[0] ^ 1]))
                flipped += 1
    equal(flipped, 1, f"packs that hold {what}")


def check_damage(box, source, wanted):
    repo = box.path("damaged")
    box.commit(source, repo, "--init")
    bad = ["5/deep/0005", "large/1"]
    for name in bad:
        flip(repo, wanted[name][100:164], name)
    for i, more in enumerate(([], ["--json"])):
        result = warm(box, repo, *cached(box.path(f"damaged{i}")), *more, status=DAMAGED)
        for name in bad:
            check(f"dsfs: {name}: " in result.errors, f"{name} is not named in {result.errors!r}")
        equal(result.errors.count("\n"), len(bad) + 1, f"lines of {result.errors!r}")
    equal(sorted(row["path"] for row in result.json["failures"]), bad, "failures in JSON")
    equal(result.json["failed_files"], 2, "failed files")
    with box.mount(repo, f"cache_dir={box.path('damaged0')}") as mount:
        for name in wanted:
            if name not in bad:
                with open(f"{mount.path}/{name}", "rb") as file:
                    check(file.read() == wanted[name], f"{name} is wrong")
        equal(stats(mount)["fetch_gets"], 0, "GETs for the files that are not damaged")


def check_stopped(box, repo, proxy, wanted):
    """What comes is slow or does not come at all."""
    cache = box.path("stopped")
    proxy.clear_log()
    # The manifest's pass, and some of the data.
    proxy.rules({"match": PACKS, "fault": "hang", "from": 8})
    result = warm(box, repo, *cached(cache), "--timeout", "2s", env=proxy.env, status=STORE)
    check("s" in result.errors and result.errors.count("\n") <= 2, result.errors)
    # What the store says meanwhile is told.
    proxy.rules({"match": PACKS, "fault": "status", "code": 500, "s3code": "InternalError", "from": 2})
    result = warm(box, repo, *cached(cache), "--timeout", "3s", env=proxy.env, status=STORE)
    check("the store failed: nothing has come from the store for 3 s" in result.errors, result.errors)
    say(result.errors.splitlines()[-1])
    for number, status in (signal.SIGINT, INTERRUPTED), (signal.SIGKILL, -signal.SIGKILL):
        proxy.rules({"match": PACKS, "fault": "hang", "from": 2})
        process = box.start(["warm", repo, *cached(cache)], env={**proxy.env, **box.no_leak_check()})
        box.wait(lambda: fired(proxy), "a request that hangs")
        process.send_signal(number)
        equal(process.wait(lib.TIMEOUT_S), status, f"status after signal {number}")
        box.processes.remove(process)
    proxy.rules()
    told = warm(box, repo, *cached(cache), "--json", env=proxy.env).json
    check(told["fetched_bytes"] < told["bytes"], f"what had come was fetched again: {told}")
    proxy.clear_log()
    equal(epoch(box, repo, proxy, wanted, cache), 0, "data GETs after it went on")
    say(f"stopped three times, then {told['fetched_bytes'] // MIB} of {told['bytes'] // MIB} MiB were missing")


def check_mount(box, repo, proxy, wanted):
    cache = box.path("mounted")
    some = r"warm=odd/a\:b\,c:2:large/sparse"
    with box.mount(repo, f"cache_dir={cache}", some, env=proxy.env) as mount:
        box.wait(lambda: not stats(mount)["warm_running"], "the warming to end")
        found = stats(mount)
        names = [name for name in wanted if name.startswith("2/")] + ["odd/a:b,c", "large/sparse"]
        equal((found["warm_files"], found["warm_files_wanted"]), (len(names), len(names)), "files")
        equal(found["warm_bytes_here"] + found["warm_bytes_fetched"], found["warm_bytes_wanted"], "bytes")
        equal((found["warm_incomplete"], found["warm_files_failed"]), (0, 0), "what is missing")
        for text in f"warming {len(names)} files", f"warmed {len(names)} files":
            box.wait(lambda text=text: text in mount.log_text(), f"{text!r} in the log")
        before = found["fetch_gets"]
        for name in names:
            with open(f"{mount.path}/{name}", "rb") as file:
                check(file.read() == wanted[name], f"{name} is wrong")
        equal(stats(mount)["fetch_gets"], before, "GETs for what was warmed")
    with box.mount(repo, f"cache_dir={cache}", "warm", "inflight=16M", env=proxy.env) as mount:
        with open(f"{mount.path}/7/deep/0007", "rb") as file:
            check(file.read() == wanted["7/deep/0007"], "a file that is read meanwhile")
        box.wait(lambda: not stats(mount)["warm_running"], "all to be warmed")
        found = stats(mount)
        equal(found["warm_files"], len(wanted), "files")
        # The budget holds, but for one chunk alone, which is no larger than half of it.
        check(0 < found["fetch_inflight_most_bytes"] <= 16 * MIB, f"in flight: {found}")
    proxy.clear_log()
    equal(epoch(box, repo, proxy, wanted, cache), 0, "data GETs after -o warm")
    # A mount ends at once, whatever the store does.
    mount = box.mount(repo, f"cache_dir={box.path('ended')}", "warm", "timeout=10m", env=proxy.env)
    check(stats(mount)["warm_running"] in (0, 1), "warm_running")
    mount.umount()
    hang = {"match": PACKS, "fault": "hang", "from": 6}
    proxy.rules(hang)
    mount = box.mount(repo, f"cache_dir={box.path('hung')}", "warm", "timeout=10m", env=proxy.env)
    box.wait(lambda: fired(proxy), "a request that hangs")
    equal(stats(mount)["warm_running"], 1, "warm_running")
    mount.umount()
    check("warming was stopped" in mount.log_text(), mount.log_text())
    # It is given up when nothing comes; the mount lives on.
    with box.mount(repo, f"cache_dir={box.path('hung')}", "warm", "timeout=2s", env=proxy.env) as mount:
        box.wait(lambda: not stats(mount)["warm_running"], "the warming to be given up")
        equal(stats(mount)["warm_incomplete"], 1, "warm_incomplete")
        box.wait(lambda: "warming ended" in mount.log_text(), "the line in the log")
    proxy.rules()


def check_terminal(box, repo, proxy):
    """Progress on a terminal; the result is no part of it."""
    ours, theirs = pty.openpty()
    seen = []

    def drain():
        try:
            while data := os.read(ours, 65536):
                seen.append(data)
        except OSError:
            pass

    thread = threading.Thread(target=drain)
    thread.start()
    result = warm(box, repo, *cached(box.path("terminal")), env=proxy.env, stderr=theirs)
    os.close(theirs)
    thread.join()
    os.close(ours)
    text = b"".join(seen)
    check(b"looking: " in text or b"warming: " in text, f"no progress: {text!r}")
    check(result.text.startswith("warmed ") and result.text.count("\n") == 1, result.text)


def run(box, args):
    rng = random.Random(args.seed)
    random.seed(args.seed)
    store = box.store("s3")
    source, repo = box.new_dir("src"), store.url("warm")
    wanted = make(source, rng, args.files)
    box.commit(source, repo, "--init", env=store.env)
    proxy = lib.Proxy(box, store.env)
    check_all(box, repo, proxy, wanted)
    check_paths(box, repo, proxy, wanted)
    check_too_small(box, repo, proxy)
    check_names_too_large(box, rng, proxy, store)
    check_damage(box, source, wanted)
    check_aged(box, rng)
    check_stopped(box, repo, proxy, wanted)
    check_mount(box, repo, proxy, wanted)
    check_terminal(box, repo, proxy)


def add_arguments(parser):
    parser.add_argument("--files", type=int, default=400)


if __name__ == "__main__":
    lib.main(run, add_arguments)
