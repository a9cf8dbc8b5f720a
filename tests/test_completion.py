# SPDX-License-Identifier: BSD-3-Clause
"""Completion of command lines, in the shells themselves: bash, zsh and fish.

Each shell is asked what it offers for a line, for the names weft and nbdkit; each must offer the
same.
"""
import os
import pathlib
import pty
import re
import select
import shutil
import signal
import time

import pytest

from harness import IS_WEFT, NBDKIT, ROOT, WEFT, run

pytestmark = pytest.mark.skipif(not IS_WEFT, reason="the completions are weft's")
COMPLETIONS = ROOT / "completions"
TIMEOUT_S = 120

BASH = """
source "$1/weft.bash"
words=()
# As readline splits it: "=" is a word of its own.
for word in ${2//=/ = }; do words+=("$word"); done
[[ $2 != *[\\ =] ]] || words+=('')
COMP_WORDS=("${words[@]}") COMP_CWORD=$((${#words[@]} - 1)) COMP_LINE=$2 COMP_POINT=${#2}
$(complete -p "$3" | sed 's/.*-F \\([^ ]*\\).*/\\1/')
printf '%s\\n' "${COMPREPLY[@]}"
"""


def ask_bash(line, **options):
    return run("bash", "--norc", "-c", BASH, "bash", COMPLETIONS, line, line.split()[0], **options)


def ask_zsh(line, **options):
    return run("zsh", "-f", ROOT / "tests/completion.zsh", COMPLETIONS, line, **options)


def ask_fish(line, **options):
    return run("fish", "--no-config", "-c",
               f"source {COMPLETIONS}/weft.fish; complete -C \"$argv\"", line, **options)


SHELLS = {"bash": ask_bash, "zsh": ask_zsh, "fish": ask_fish}


@pytest.fixture(name="offers", params=sorted(SHELLS))
def shell(request, tmp_path):
    """offers(LINE): what the shell offers as the end of its last word; a path in its first
    folder, with the names weft and nbdkit for the program."""
    if shutil.which(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    program = pathlib.Path(WEFT).resolve()
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("weft", "nbdkit"):
        (folder / name).symlink_to(program)
    work = tmp_path / "work"
    (work / "images").mkdir(parents=True)
    (work / "disk one.img").touch()
    (work / "disk.img").touch()
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "HOME": str(tmp_path),
                   "TERM": "dumb", "LC_ALL": "C.UTF-8"}

    def ask(line):
        done = SHELLS[request.param](line, env=environment, cwd=work, timeout_s=TIMEOUT_S)
        assert "rror" not in done.stderr and "not found" not in done.stderr, done.stderr
        # fish adds descriptions after a tab, and the whole word where others give its end.
        words = {word.split("\t")[0].rstrip("/") for word in done.stdout.splitlines() if word}
        head, equals, _ = line.split(" ")[-1].rpartition("=")
        return {word.removeprefix(head + equals) for word in words}
    return ask


def test_options(offers):
    assert offers("weft --fi") == {"--filter"}
    assert offers("weft --sh") == {"--shared", "--show-uri", "--show-url"}
    assert offers("weft memory 1G --exp") == {"--explain", "--export", "--exportname",
                                              "--export-name"}


def test_options_of_nbdkit(offers):
    assert offers("nbdkit --sh") == {"--show-uri", "--show-url"}
    assert offers("nbdkit --tls-p") == {"--tls-priority", "--tls-psk"}


def test_all_options(offers):
    for name in ("weft", "nbdkit"):
        words = [] if name == "weft" else ["--as=nbdkit"]
        wanted = set(run(WEFT, *words, "--long-options").stdout.split())
        assert offers(f"{name} --") == wanted


@pytest.mark.parametrize("name", ["weft", "nbdkit"])
def test_plugins(offers, name):
    assert offers(f"{name} mem") == {"memory"}
    assert {"file", "memory", "null", "sh"} <= offers(f"{name} ")
    assert offers(f"{name} -U /tmp/s --filter cow mem") == {"memory"}


@pytest.mark.skipif(shutil.which(NBDKIT) is None, reason="nbdkit is not installed")
def test_plugins_in_files(offers):
    assert offers("nbdkit example") == {"example1", "example2", "example3", "example4"}
    assert offers("weft example") == {"example1", "example2", "example3", "example4"}


@pytest.mark.parametrize("name", ["weft", "nbdkit"])
def test_filters(offers, name):
    assert offers(f"{name} --filter=co") == {"cow"}
    assert offers(f"{name} --filter co") == {"cow"}
    assert offers(f"{name} --filter=cow --filter=stat") == {"stats"}


@pytest.mark.parametrize("name", ["weft", "nbdkit"])
def test_parameters(offers, name):
    assert offers(f"{name} memory si") == {"size="}
    assert offers(f"{name} --filter=cow memory cow-on") == {"cow-on-cache=", "cow-on-read="}
    assert offers(f"{name} -p 1000 file fad") == {"fadvise="}


def test_files(offers):
    assert offers("weft file file=dis") >= {"disk.img"}
    assert "disk.img" in offers("weft file disk.i")
    assert offers("weft -U im") == {"images"}
    assert offers("weft ./im") in ({"./images"}, {"images"})


def test_values_of_options(offers):
    assert offers("weft --engine=") == {"auto", "io_uring", "epoll"}
    assert {"stderr", "syslog"} <= offers("weft --log=s")
    assert offers("weft --as=n") == {"nbdkit"}


@pytest.mark.parametrize("line, end", [
    ("weft mem", "weft memory "), ("weft memory alloc", "weft memory allocator="),
    ("weft file file=dis", "weft file file=disk.img "), ("weft --filter=multi", "multi-conn "),
    ("nbdkit --tls-pr", "nbdkit --tls-priority "), ("weft ./im", "weft ./images/"),
])
def test_bash_at_a_terminal(tmp_path, line, end):
    """What a person sees after the tabulator: "=" separates words there."""
    if shutil.which("bash") is None:
        pytest.skip("bash is not installed")
    for name in ("weft", "nbdkit"):
        (tmp_path / name).symlink_to(pathlib.Path(WEFT).resolve())
    (tmp_path / "disk.img").touch()
    (tmp_path / "images").mkdir()
    (tmp_path / "rc").write_text(f"PS1='$ '\nPATH={tmp_path}:$PATH\ncd {tmp_path}\n"
                                 f"source {COMPLETIONS}/weft.bash\nbind 'set bell-style none'\n"
                                 "bind 'set enable-bracketed-paste off'\n")
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "dumb"
        os.execvp("bash", ["bash", "--rcfile", str(tmp_path / "rc"), "-i"])
    try:
        seen = read_until(terminal, "$ ")
        os.write(terminal, line.encode() + b"\t")
        seen = read_until(terminal, end)
        assert end in seen, seen
    finally:
        os.close(terminal)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def read_until(terminal, text):
    """What the terminal shows, up to `text` or for a while."""
    seen = ""
    end = time.monotonic() + 60
    while text not in seen and time.monotonic() < end:
        if select.select([terminal], [], [], 0.2)[0]:
            seen += os.read(terminal, 4096).decode(errors="replace")
    return seen


@pytest.mark.parametrize("name", ["weft.bash", "_weft", "weft.fish"])
def test_every_option_with_an_argument_is_known(name):
    """What follows such an option is not the plugin."""
    text = (COMPLETIONS / name).read_text()
    names = re.findall(r"^ +(?:-., )?--([a-z-]+)[= ][A-Za-z]\S*(?:  |$)",
                       run(WEFT, "--help").stdout, re.M)
    assert {"unix", "port", "run", "shared", "mask-handshake"} <= set(names), names
    for option in names:
        assert f"--{option}" in text, option


def test_the_other_server(tmp_path):
    """The name nbdkit may be the other server, which knows no --as."""
    if shutil.which(NBDKIT) is None:
        pytest.skip("nbdkit is not installed")
    environment = {**os.environ, "PATH": f"/usr/bin:{os.environ['PATH']}", "TERM": "dumb",
                   "HOME": str(tmp_path)}
    for name, ask in SHELLS.items():
        if shutil.which(name) is None:
            continue
        done = ask("nbdkit parti", env=environment, cwd=tmp_path, timeout_s=TIMEOUT_S)
        assert done.stdout.split() == ["partitioning"], name
        done = ask("nbdkit --filter=multi", env=environment, cwd=tmp_path, timeout_s=TIMEOUT_S)
        assert done.stdout.split()[0].endswith("multi-conn"), name
