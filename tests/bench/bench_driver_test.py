#!/usr/bin/env python3
"""usage: bench_driver_test.py DSFS
The driver of the benchmark runs two rows that need neither root nor a server, with very little data, and
reports figures of all that they were to measure. How large they are counts for nothing."""
import json
import os
import signal
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))


def interrupted(base, dsfs):
    """Ended by a signal, it shows what it has measured."""
    out = f"{base}/interrupted.json"
    bench = subprocess.Popen(
        [f"{HERE}/bench.py", "--only", "epoch-warm", "--scale", "0.001", "--rounds", "1000000", "--peers", "none",
         "--dir", f"{base}/data", "--json", out], env={**os.environ, "DSFS": dsfs},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    said = []
    for line in bench.stderr:
        said.append(line)
        if "4 readers: dsfs:" in line:
            break
    bench.terminate()
    table, rest = bench.communicate(timeout=60)
    with open(out, encoding="utf-8") as file:
        measured = [row for row in json.load(file)["figures"] if row["contender"] == "dsfs"]
    if bench.returncode != 128 + signal.SIGTERM or "4 readers" not in table or not measured:
        sys.exit(f"bench_driver_test: after a signal: status {bench.returncode}:\n{table}{''.join(said)}{rest}")


def main():
    with tempfile.TemporaryDirectory(prefix="dsfs-bench.") as base:
        out = f"{base}/figures.json"
        done = subprocess.run(
            [f"{HERE}/bench.py", "--only", "epoch-warm", "--only", "large-warm", "--scale", "0.001", "--rounds", "2",
             "--peers", "none", "--variant", "other=umask=077", "--dir", f"{base}/data",
             "--json", out], env={**os.environ, "DSFS": sys.argv[1]}, timeout=300,
            capture_output=True, text=True)
        if done.returncode == 77:
            print(done.stderr, file=sys.stderr)
            return 77
        if done.returncode:
            sys.exit(f"bench_driver_test: status {done.returncode}:\n{done.stdout}{done.stderr}")
        with open(out, encoding="utf-8") as file:
            report = json.load(file)
        slow = {"dsfs:kernel=classic", "dsfs:kernel=stateless"}
        own = {"local", "dsfs", "dsfs:other"}
        for what, more in ("4 readers", own), ("sequential", slow | own), ("sequential, each byte asked for", slow):
            measured = {row["contender"] for row in report["figures"]
                        if row["what"] == what and len(row["samples"]) == 2}
            missing = {"bare-classic", "bare-stateless"} | more
            missing -= measured
            if missing:
                sys.exit(f"bench_driver_test: {what}: not measured: {missing}\n{done.stdout}{done.stderr}")
        # Of each variant for 2 and for 4 readers, and for the large file; of the modes against the bare servers.
        wanted = [(row["contender"], row["reference"].partition("-")[0]) for row in report["wanted"]]
        if sorted(wanted) != sorted([("dsfs", "local"), ("dsfs:other", "local")] * 3 +
                                    [("dsfs:kernel=classic", "bare"), ("dsfs:kernel=stateless", "bare")] * 2):
            sys.exit(f"bench_driver_test: {report['wanted']}")
        interrupted(base, sys.argv[1])
        left = [name for name in os.listdir(f"{base}/data") if not name.startswith("scale-")]
        if left:
            sys.exit(f"bench_driver_test: left behind: {left}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
