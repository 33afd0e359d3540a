#!/usr/bin/env python3
"""init and commit --init: what is refused leaves nothing behind, and nothing is made where other
things lie."""
import os

import lib
from lib import check, equal, say

KINDS = "dir", "s3"


def put(path, data=b"x"):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(data)


def refused(box, store, source):
    """A commit that cannot be made makes no repository either."""
    file = box.path("file")
    put(file)
    n = 0
    for words, status in [
            ([box.path("nope")], 3),
            ([file], 3),
            ([source, "--parent", "nope"], 3),
            ([source, "--parent", "1"], 3),
            ([source, "--branch", "123"], 2),
            ([source, "--branch", "x/../y"], 2),
            ([source, "--tag", "12"], 2),
            ([source, "--tag", "main"], 7),
            ([source, "--tag", "dev", "--branch", "dev"], 7),
            ([source, "-m", b"\xff"], 2),
            ([source, "--memory", "much"], 2)]:
        repo = store.url(f"refused-{n}")
        n += 1
        box.dsfs("commit", words[0], repo, "--init", *words[1:], status=status, env=store.env)
        box.dsfs("log", repo, status=3, env=store.env)
        check(store.kind == "s3" or not os.path.exists(repo), f"{words}: left {repo}")
    repo = store.url("refused-at")
    box.dsfs("commit", source, f"{repo}@1", "--init", status=2, env=store.env)
    box.dsfs("log", repo, status=3, env=store.env)
    check(store.kind == "s3" or not os.path.exists(repo), "REPO@1 left a repository")
    return n + 1


def empty(box, store, source):
    """What init has made is no trouble to doctor; a version that was asked for and is not there is."""
    repo = store.url("no-version")
    box.dsfs("init", repo, env=store.env)
    for words, status, verdict in ([repo], 0, "note"), ([f"{repo}@v1"], 1, "bad"):
        rows = box.dsfs("doctor", *words, "--json", status=None, env=store.env).json
        mine = [row for row in rows if row["what"] in ("repository", "version")]
        equal([row["verdict"] for row in mine], ["ok", verdict], f"doctor {words}: {mine}")
        others_bad = any(row["verdict"] == "bad" for row in rows if row not in mine)
        box.dsfs("doctor", *words, status=1 if others_bad else status, env=store.env)
    check("dsfs commit" in box.dsfs("doctor", repo, status=None, env=store.env).text, "doctor names no remedy")


def places(box, source):
    """In no form of its path may a repository be made inside its source."""
    os.symlink(source, box.path("link"))
    before = sorted(os.listdir(source))
    for repo in f"{source}/r", f"{source}/deep/er/r", box.path("link", "r"), f"file://{source}/r", \
            f"{source}/../{os.path.basename(source)}/r", source:
        result = box.dsfs("commit", source, repo, "--init", status=8)
        check("inside the source" in result.errors or "inside the repository" in result.errors, result.errors)
        equal(sorted(os.listdir(source)), before, f"what lies in the source after a commit to {repo}")
    box.dsfs("commit", "s", "s/r", "--init", status=8, cwd=os.path.dirname(source))
    equal(sorted(os.listdir(source)), before, "what lies in the source after a commit to s/r")
    box.commit("s", "beside", "--init", cwd=os.path.dirname(source))


def default_branch(box, store, source):
    repo = store.url("dev")
    equal(box.commit(source, repo, "--init", "--branch", "dev", env=store.env)["branch"], "dev", "branch")
    equal([row["branch"] for row in box.json("log", repo, env=store.env)], ["dev"], "log")
    refs = box.json("refs", repo, env=store.env)
    equal([(row["name"], row["default"]) for row in refs], [("dev", True)], "refs")


def foreign(box, store, source):
    """Where other things lie no repository is made."""
    repo = store.url("foreign")
    if store.kind == "s3":
        box.dsfs("init", f"{repo}/data/below", env=store.env)
    else:
        put(f"{repo}/data/one")
    for words in ["init", repo], ["commit", source, repo, "--init"]:
        result = box.dsfs(*words, status=7, env=store.env)
        check("data/" in result.errors and result.errors.count("\n") == 1, result.errors)
        box.dsfs("log", repo, status=3, env=store.env)
    # A neighbour whose name begins alike is not below it.
    box.dsfs("init", store.url("fore"), env=store.env)


def directories(box):
    """What only directories have."""
    box.dsfs("init", "--branch", "123", box.path("r9"), status=2)
    check(not os.path.exists(box.path("r9")), "a refused init left a directory")
    for name in "empty", "killed":
        os.mkdir(box.path(name))
    put(box.path("killed", "probe.json"), b'{"format":1,"put_if_absent":true}\n')
    put(box.path("killed", ".tmp-1234"))
    for name in "empty", "killed":
        box.dsfs("init", box.path(name))
    equal("there is a repository already" in
          box.dsfs("init", box.path("empty"), status=7).errors, True, "init of a repository")


def run(box, args):
    source = box.path("s")
    put(f"{source}/one")
    cases_n = 0
    for kind in KINDS:
        store = box.store(kind)
        cases_n += refused(box, store, source)
        default_branch(box, store, source)
        foreign(box, store, source)
        empty(box, store, source)
    places(box, source)
    directories(box)
    say(f"{cases_n} refused commits made no repository")


if __name__ == "__main__":
    lib.main(run, fuse=False)
