# SPDX-License-Identifier: BSD-3-Clause
"""Command lines that two servers must understand alike: reads, runs and compares them.

The lines stand in tests/matrix/*.txt, in groups: a line `[title]` begins one. A line is shell
text, in which `nbdkit` is the server under test and the words of matrix/prelude.sh are known, and
may end with what is expected of it:

    LINE ## PROBLEM WORD... ; ASPECT=KEY ...

PROBLEM is the class (PROBLEMS) of the one message that both servers print, and each WORD must be
in both; ONE|OTHER is the same thing under two names. ASPECT=KEY says that the servers differ in
this aspect, for the reason that the row KEY of docs/migration.md gives; the test insists that they
do differ. Aspects are those of Outcome; "served" stands for all of them: one server serves what
the other refuses.
"""
import concurrent.futures
import dataclasses
import difflib
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile

from harness import NBDKIT, ROOT, WEFT, free_port

FOLDER = pathlib.Path(__file__).resolve().parent / "matrix"
TIMEOUT_S = 60
THREADS = 4

# What is wrong: the classes of messages, each with what its messages look like, of both servers.
# The first that matches counts.
PROBLEMS = [(name, re.compile(pattern, re.IGNORECASE | re.MULTILINE)) for name, pattern in [
    ("ambiguous", r"is ambiguous"),
    ("needs-argument", r"requires an argument|needs an argument"),
    ("no-argument", r"doesn't allow an argument|takes no argument"),
    ("unknown-option", r"(unrecognized|invalid|unknown) option"),
    ("useless-filter", r"won't do anything|nothing will be prefetched"),
    ("serving", r"^nbdkit: [\w-]+(\[\d+\]|\.\d+): error: |^nbdkit: error: (eval|sh): the script: "
                r"(pread|get_size|block_size)|^nbdkit: (error|warning): unix pid"),
    ("empty-path", r"null or empty path|path is empty|'' cannot be found"),
    ("killed", r"was killed by signal"),
    ("plugin-crashed", r"Assertion|Segmentation fault|the plugin \w+ crashed"),
    ("missing-callback", r"required callbacks"),
    ("wrong-pid", r"LISTEN_PID"),
    ("conflict-activation", r"socket activation with|and socket activation cannot"),
    ("conflict", r"cannot be used|cannot be combined|cannot use oldstyle|exactly once|"
                 r"comes after (file=|another)|at the same time"),
    ("no-plugin-given", r"no plugins? (given|was named)|use 'nbdkit plugin --dump-plugin'|"
                        r"needs a plugin"),
    ("no-filter", r"cannot open filter|no filter|name a filter|filter cannot be loaded"),
    ("not-a-plugin", r"undefined symbol"),
    ("no-plugin", r"cannot open plugin|no plugin '|the plugin cannot be loaded"),
    ("unused-flag", r"does not contain a global variable|flag .*was not used|"
                    r"no such debug flag"),
    ("bad-flag", r"NAME\.FLAG=N|-D \S+: "),
    ("no-user", r"not a valid user|setuid:|no such user"),
    ("no-group", r"not a valid group|setgid:|no such group"),
    ("bad-activation", r"LISTEN_FDS|activation: invalid|Socket operation on non-socket"),
    ("bad-size", r"could not parse size|overflow computing size|exceeds maximum|"
                 r"size cannot be|whole number, then at most|the largest size is"),
    ("no-tls", r"TLS cert|has no TLS"),
    ("in-use", r"in use|another server listens|a file of that name"),
    ("bad-data", r"^nbdkit: error: data parameter|data string|whole number from 0 to 255|"
                 r"variable not found|not defined|"
                 r"data: .* at character|data: '"),
    ("bad-address", r"getaddrinfo|cannot parse address|parse rule|assign requested address|"
                    r"neither an address|cannot listen on .*(name|service|address family|port)|"
                    r"no such (port|service)"),
    ("bad-bool", r"decipher boolean|neither true nor false|is not a boolean|say true or false"),
    ("bad-number", r"expected a number|parse number|negative numbers|cannot parse percent|"
                   r"rate out of range|is not a number|is not a duration|as in 0x1f|"
                   r"is out of range|give a number|number from"),
    ("bad-log", r"--log( must be|=.*choose stderr)"),
    ("bad-base64", r"base64.*decod|is not base64"),
    ("missing-parameter", r"must (supply|specify)|is required|was not specified|is missing|"
                          r"missing script|first parameter must be|requires statsfile|"
                          r"parameters? must be (supplied|specified)$|"
                          r"no C program name|no size: give|"
                          r"there is no (script|file to write|list)|nothing to serve|"
                          r"comes before the script"),
    ("too-long", r"path too long|the system allows"),
    ("selinux", r"selinux"),
    ("closed-stream", r"stdin/stdout|std(in|out|err) is closed"),
    ("bare-word", r"Try using: nbdkit --help|takes none|is no parameter of"),
    ("unknown-parameter", r"unknown parameter|callback '.*' is unknown|no parameter '|"
                          r"does not need command line"),
    ("bad-choice", r"unknown (allocator|mode|cache ?mode|cache mode|fadvise|fuamode|multi-conn|"
                   r"zeromode|partition-type|noparallel|error name)|power of (2|two)|"
                   r"invalid cache|there is no such (mode|error)|is unknown: give|is no mode|"
                   r"is not to be had|is no error"),
    ("no-file", r"No such file"),
    ("not-a-disk", r"use dir= to serve|not regular or block|null or empty path|is a directory|"
                   r"is no file"),
    ("not-a-folder", r"expecting a directory|Not a directory"),
    ("not-executable", r"Permission denied"),
    ("script-failed", r"no good"),
]]


def problem_of(text):
    """The class of the message, "" if there is none, or the message where no class fits."""
    text = text.strip()
    if not text:
        return ""
    for name, pattern in PROBLEMS:
        if pattern.search(text):
            return name
    return f"unclassified: {text}"


@dataclasses.dataclass
class Line:
    group: str
    text: str
    where: str
    problem: str = ""
    words: tuple = ()
    differs: dict = dataclasses.field(default_factory=dict)


def read(path):
    """The lines of one file, by group."""
    groups = {}
    group = None
    for number, raw in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not raw or raw.startswith("#"):
            continue
        if raw.startswith("["):
            group = raw.strip("[]")
            groups[group] = []
            continue
        text, _, expected = raw.partition(" ## ")
        message, _, differences = expected.partition(";")
        problem, *words = message.split() or [""]
        groups[group].append(Line(group, text.strip(), f"{path.name}:{number}", problem,
                                  tuple(words),
                                  dict(pair.split("=", 1) for pair in differences.split())))
    return groups


def groups():
    """All groups of all files: {"file: title": lines}."""
    return {f"{path.stem}: {title}": lines for path in sorted(FOLDER.glob("*.txt"))
            for title, lines in read(path).items()}


@dataclasses.dataclass
class Outcome:
    """What one server did with a line."""
    status: int
    aspects: dict  # status, printed, info, list, map, content, problem
    errors: str  # what it said, as it said it


SCRIPT = """#!/bin/sh
case "$1" in
  config) test "$2" = word || exit 2 ;;
  magic_config_key) echo word ;;
  get_size) echo 1M ;;
  pread) dd if=/dev/zero bs="$3" count=1 status=none ;;
  *) exit 2 ;;
esac
"""


def furnish(folder):
    """The files that the lines find."""
    text = b"weft" * 128
    (folder / "text.txt").write_bytes(text)
    (folder / "hello.txt").write_text("hello")
    (folder / "files" / "folder").mkdir(parents=True)
    (folder / "files" / "one").write_bytes(text)
    for name, size in (("disk.img", 1 << 20), ("big.img", 3 << 20), ("files/two", 2048)):
        with open(folder / name, "wb") as image:
            image.write(text if name == "disk.img" else b"")
            image.truncate(size)
    (folder / "plugin.sh").write_text(SCRIPT)
    (folder / "plugin.sh").chmod(0o755)


class Programs:
    """A folder for each server in which it has the name nbdkit."""

    def __init__(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="weft-matrix-"))
        self.paths = {}
        for name, program in (("nbdkit", NBDKIT), ("weft", WEFT)):
            place = self.folder / name
            place.mkdir()
            (place / "nbdkit").symlink_to(os.path.realpath(program))
            self.paths[name] = f"{place}:{os.environ['PATH']}"

    def remove(self):
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, name, line):
        """The Outcome of the line with that server, in a folder of its own."""
        folder = tempfile.mkdtemp(prefix="weft-m-")
        os.chmod(folder, 0o755)
        script = f'. "$matrix/prelude.sh"\n{line.text}\n'
        furnish(pathlib.Path(folder))
        environment = {**os.environ, "PATH": self.paths[name], "matrix": str(FOLDER),
                       "port": str(free_port()), "python": sys.executable, "LC_ALL": "C",
                       "HOME": folder}
        process = subprocess.Popen(["/bin/sh", "-c", script], cwd=folder, env=environment,
                                   stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, start_new_session=True)
        try:
            out, err = process.communicate(timeout=TIMEOUT_S)
            status = process.returncode
        except subprocess.TimeoutExpired:
            # The session of this line alone, and what has left it.
            os.killpg(process.pid, signal.SIGKILL)
            end_leftovers(folder)
            out, err = process.communicate()
            status = f"did not end within {TIMEOUT_S} s"
        finally:
            end_leftovers(folder)
            shutil.rmtree(folder, ignore_errors=True)
        out, err = (plain(text.decode(errors="replace"), folder) for text in (out, err))
        aspects = {"status": status, **sections(out), "problem": problem_of(err)}
        return Outcome(status, aspects, err)


def end_leftovers(folder):
    """Ends what a failing line has left behind: who has its folder as home."""
    for place in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            if f"HOME={folder}".encode() in (place / "environ").read_bytes().split(b"\0"):
                os.kill(int(place.name), signal.SIGKILL)
        except OSError:
            pass


def plain(text, folder):
    """Without what differs from run to run: folders, process ids, the URI in nbdinfo's answer."""
    text = text.replace(folder, "FOLDER")
    text = re.sub(r'^\s*"uri":.*\n', "", text, flags=re.MULTILINE)
    return re.sub(r"/tmp/(nbdkit|weft)\w{6}/socket", "/tmp/PRIVATE/socket", text)


# What is printed of the usage together with the message.
USAGE = re.compile(r"(?ms)^nbdkit \[-4\|.*?^Please read the nbdkit\(1\).*?$\n?|"
                   r"^Usage: nbdkit \[OPTIONS\].*?\n\n.*?(\n\n|\Z)")


def sections(out):
    """The probe's parts of the output by name, and the rest as "printed"."""
    found = {"printed": "", "info": "", "list": "", "map": "", "content": "", "blocks": ""}
    name = "printed"
    for line in USAGE.sub("", out).splitlines(keepends=True):
        if line.startswith("== "):
            name = line[3:].strip()
        elif '"block_size_' in line:
            found["blocks"] += line.strip() + " "
        else:
            found[name] += line
    return found


# Differences that are everywhere: {aspect: (key, whether this is that difference)}.
EVERYWHERE = {"blocks": ("block-sizes", lambda theirs, ours: not theirs and ours)}


# How weft's messages begin; a shell tells of a crash in its own words.
FORM = re.compile(r"\Z|nbdkit: |other: |Segmentation fault|Aborted")


def changed(theirs, ours):
    """What differs between two answers: the lines of one that are not in the other."""
    if not isinstance(theirs, str) or not isinstance(ours, str) or not theirs or not ours:
        return f"nbdkit {theirs!r}, weft {ours!r}"
    return "; ".join(line for line in difflib.ndiff(theirs.splitlines(), ours.splitlines())
                     if line[0] in "+-")


def compare(line, theirs, ours):
    """What is wrong with this line, as text; None if all is as expected."""
    wrong = []
    expected = dict(line.differs)
    if "served" in expected:  # one is served, the other is not
        key = expected.pop("served")
        if theirs.aspects["info"] and ours.aspects["info"]:
            wrong.append(f"both serve, contrary to {key}")
        expected.update({aspect: key for aspect in theirs.aspects
                         if theirs.aspects[aspect] != ours.aspects[aspect]})
    for aspect in theirs.aspects:
        one, other = theirs.aspects[aspect], ours.aspects[aspect]
        if one == other and aspect in expected:
            wrong.append(f"{aspect} is the same, contrary to {expected[aspect]}")
        if one != other and aspect not in expected:
            if aspect == "list" and "info" in expected:
                continue  # the same, told once more
            if aspect in EVERYWHERE and EVERYWHERE[aspect][1](one, other):
                continue
            wrong.append(f"{aspect}: {changed(one, other)}")
    for name, outcome in (("nbdkit", theirs), ("weft", ours)):
        if "problem" in expected:
            continue
        if outcome.aspects["problem"] != line.problem:
            wrong.append(f"{name}'s message is of class {outcome.aspects['problem']!r}")
        if "words" not in expected:
            wrong += [f"{name} does not name {word}" for word in line.words
                      if not any(name in outcome.errors for name in word.split("|"))]
    if not FORM.match(ours.errors):
        wrong.append("weft's message does not begin as nbdkit's do")
    if not wrong:
        return None
    says = "\n    ".join(f"{name} says: {outcome.errors.strip()[:300]}"
                         for name, outcome in (("nbdkit", theirs), ("weft", ours)))
    return f"{line.where}: {line.text}\n    " + "\n    ".join(wrong) + "\n    " + says


def differences(programs, lines, threads=THREADS):
    """Runs the lines with both servers; what is not as expected."""
    def both(line):
        return compare(line, programs.run("nbdkit", line), programs.run("weft", line))
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        return [wrong for wrong in pool.map(both, lines) if wrong]


PAGE = ROOT / "docs" / "migration.md"


def page_rows():
    """The rows of the migration page, by key."""
    rows = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        found = re.match(r"\| `([a-z0-9-]+)` \|(.*)\|$", line)
        if found:
            assert found[1] not in rows, f"two rows {found[1]}"
            rows[found[1]] = [cell.strip() for cell in found[2].split(" | ")]
    return rows


def check_reference(cell):
    """A cell of the page names tests as `tests/test_file.py::test_name`: they must exist."""
    for name, test in re.findall(r"`tests/(test_\w+\.py)(?:::(\w+))?`", cell):
        path = ROOT / "tests" / name
        assert path.exists(), f"the page names {path}, which does not exist"
        if test:
            assert f"def {test}(" in path.read_text(encoding="utf-8"), f"{name} has no {test}"
