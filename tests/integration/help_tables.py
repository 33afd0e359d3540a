#!/usr/bin/env python3
"""Options, help, man pages, completion and README hold together: what one of them tells, the others
do too."""
import os
import re
import shutil
import subprocess

import lib
from lib import check, equal, say

SECTIONS = ("Options:", "Store:", "Mount options (-o):", "Examples:")


def commands(box):
    """{name: summary}"""
    text = box.dsfs("help").text
    return dict(re.findall(r"^  (\w+) {2,}(.*)$", text.split("Commands:")[1], re.M))


def parse_help(text):
    """{section: text} of a command's help."""
    found, name = {"": ""}, ""
    for line in text.splitlines():
        if line in SECTIONS:
            name = line
            found[name] = ""
        else:
            found[name] += line + "\n"
    return found


def long_options(text):
    return set(re.findall(r"^ {2,6}(?:-\w, )? *--([a-z-]+)", text, re.M))


def short_options(text):
    return set(re.findall(r"^  -(\w), --", text, re.M))


def table_of(readme, heading):
    section = readme.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")]
            for line in section.splitlines() if line.startswith("|")]
    return rows[2:]


def run(box, args):
    with open(os.path.join(lib.TREE, "README.md"), encoding="utf-8") as file:
        readme = file.read()
    names = commands(box)
    check(len(names) >= 14, f"commands: {names}")
    completion = box.dsfs("help", "--completion").text
    man = shutil.which("man")
    options_n = 0
    for name in names:
        result = box.dsfs(name, "--help")
        check(not result.err, f"{result}: help goes to standard output alone")
        equal(result.out, box.dsfs("help", name).out, f"help {name} and {name} --help")
        equal(result.out, box.dsfs(name, "-h").out, f"{name} -h")
        # Help is help, whatever stands beside it.
        equal(box.dsfs(name, "--help", "a").status, 0, f"{name} --help a")
        check(result.text.startswith(f"Usage: dsfs {name} "), f"{name}: {result.text[:80]}")
        summary = names[name][0].upper() + names[name][1:]
        check(f"\n\n{summary}\n" in result.text, f"{name}: {summary!r} is not in {result.text[:200]!r}")
        sections = parse_help(result.text)
        wanted = set.union(*(long_options(sections.get(s, "")) for s in ("Options:", "Store:")))
        short = short_options(sections["Options:"])
        check({"help", "quiet", "verbose"} <= wanted, f"{name}: {wanted}")
        page = box.dsfs("help", "--man", name).text
        plain = page.replace("\\-", "-")
        in_page = set(re.findall(r"\\fB--([a-z-]+)\\fR", plain))
        equal(in_page, wanted, f"options in the man page of {name}")
        equal(set(re.findall(r"\\fB-(\w)\\fR", plain)), short, f"short options in the page of {name}")
        line = re.search(rf"^\t{name}\) words='(.*)' ;;$", completion, re.M)
        check(line, f"{name} is not in the completion")
        words = line[1].split()
        equal({w[2:] for w in words if w.startswith("--")}, wanted, f"completion of {name}")
        equal({w[1:] for w in words if re.fullmatch(r"-\w", w)}, short, f"short completion of {name}")
        options_n += len(wanted)
        if man:
            done = subprocess.run([man, "--warnings=all", "-l", "-"], input=page, text=True,
                                  capture_output=True, check=False, timeout=60,
                                  env={**box.env, "MANWIDTH": "100", "MAN_KEEP_FORMATTING": ""})
            check(done.returncode == 0 and not done.stderr, f"man page of {name}: {done.stderr[:500]}")
        # Every option is taken by the parser: an unknown one would be told before a missing argument.
        for option in wanted - {"help"}:
            result = box.dsfs(name, f"--{option}=x", "--no-such", status=2)
            check("no-such" in result.errors or "takes no value" in result.errors,
                  f"--{option} of {name}: {result.errors}")
            check(f"unknown option '--{option}'" not in result.errors, result.errors)
    equal({row[0].split("`")[1].split()[0] for row in table_of(readme, "Commands")} -
          set(names), set(), "commands of the README that are none")
    check(subprocess.run(["bash", "-n"], input=completion, text=True, check=False).returncode == 0,
          "the completion does not parse")
    done = subprocess.run(["bash", "-c", completion + "\nCOMP_WORDS=(dsfs commit --all); COMP_CWORD=2; "
                           "_dsfs; echo ${COMPREPLY[@]}"], capture_output=True, text=True, check=True)
    equal(done.stdout.strip(), "--allow-empty", "completion of --all")
    done = subprocess.run(["bash", "-c", completion + "\nCOMP_WORDS=(dsfs cache ''); COMP_CWORD=2; "
                           "_dsfs; echo ${COMPREPLY[@]}; COMP_WORDS=(dsfs cache --to); _dsfs; echo ${COMPREPLY[@]}"],
                          capture_output=True, text=True, check=True)
    equal(done.stdout.split(), ["status", "prune", "verify", "--to"], "completion of cache")

    overview = box.dsfs("help", "--man").text.replace("\\-", "-")
    told = re.findall(r"^\.TP\n\.B (\d+)\n(.+)$", overview.split(".SH EXIT STATUS")[1]
                      .split(".SH ENVIRONMENT")[0], re.M)
    in_readme = {int(row[0]): row[1].replace("`", "").split(":")[0].split(",")[0]
                 for row in table_of(readme, "Exit statuses")}
    equal(sorted(in_readme), sorted(int(number) for number, _ in told), "statuses in README and man")
    for number, text in told:
        check(text.split(":")[0].split(",")[0].startswith(in_readme[int(number)]) or
              in_readme[int(number)].split()[0] in text,
              f"status {number}: {text!r} in the page, {in_readme[int(number)]!r} in the README")
    variables = set(re.findall(r"[A-Z_]{4,}", " ".join(re.findall(r"^\.B (.+)$", overview.split(".SH ENVIRONMENT")[1], re.M))))
    for variable in re.findall(r"AWS_[A-Z_]+", readme):
        check(variable in variables, f"{variable} is not in the man page")
    used = subprocess.run(["grep", "-rhoP", r'(getenv|environment)\("\K[A-Z_]+', os.path.join(lib.TREE, "src")],
                          capture_output=True, text=True, check=True).stdout.split()
    check("AWS_PROFILE" in used and "TMPDIR" in used, used)
    equal(set(used) - variables, set(), "variables of the sources that are not in the man page")

    section = parse_help(box.dsfs("mount", "--help").text)["Mount options (-o):"]
    there = set(re.findall(r"^  ([a-z_]+)(?:\[?=|  |$)", section, re.M))
    in_readme = set(re.findall(r"`([a-z_]+)=?`", " ".join(r[0] for r in table_of(readme, "Mount options"))))
    equal(in_readme - there, set(), "mount options of the README that are none")
    equal(there - in_readme, {"debug"}, "mount options that the README does not tell")
    page = box.dsfs("help", "--man", "mount").text.split(".SH MOUNT OPTIONS")[1].split(".SH")[0]
    equal(set(re.findall(r"^\\fB([a-z_]+)\\fR", page, re.M)), there, "mount options in the man page")
    check(re.fullmatch(r"dsfs \d+\.\d+\.\d+\n", box.dsfs("--version").text), "--version")
    say(f"{len(names)} commands, {options_n} options, {len(there)} mount options, {len(told)} exit "
        "statuses: help, man pages, completion and README agree")


if __name__ == "__main__":
    lib.main(run, fuse=False)
