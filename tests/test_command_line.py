# SPDX-License-Identifier: BSD-3-Clause
"""The command line: nbdkit's grammar, and errors that a person can act on.

Where weft must behave as nbdkit does, Debian's nbdkit is run beside it.
"""
import os
import re
import shutil
import socket
import subprocess
import sys

import nbd
import pytest

from harness import IS_WEFT, MIB, NBDKIT, WEFT, free_port, run
from rawclient import Raw

BOTH = pytest.mark.skipif(shutil.which(NBDKIT) is None, reason="nbdkit is not installed")
SIZE = 'nbdinfo --size "$uri"'


def weft(*words, **kwargs):
    return run(WEFT, *words, check=False, timeout_s=30, **kwargs)


def nbdkit(*words, **kwargs):
    return run(NBDKIT, *words, check=False, timeout_s=30, **kwargs)


def same_status(*words):
    """Runs both and insists on the same exit status; returns weft's result."""
    ours, theirs = weft(*words), nbdkit(*words)
    assert ours.returncode == theirs.returncode, (
        f"{words}: weft {ours.returncode}, nbdkit {theirs.returncode}\n"
        f"{ours.stdout}{ours.stderr}\n{theirs.stdout}{theirs.stderr}")
    return ours, theirs


# Sizes, as parse_size takes them: decimal, one suffix letter, nothing behind it.
@BOTH
@pytest.mark.parametrize("size", [
    "0", "1", "512", "1b", "10s", "1k", "1K", "3M", "2g", "1T", "1p", "7e", "1B", "1S",
    "9223372036854775807", "8e", "9223372036854775808", "99999999999999999999", "-1", "-0", "+1",
    "0x100", "1.5M", "1MiB", "1KB", "k", "", " 1", "1 ", "1 k", "1,000", "many",
])
def test_sizes(size):
    ours, theirs = same_status("-U", "-", "memory", f"size={size}", "--run", SIZE)
    assert ours.stdout == theirs.stdout
    if theirs.returncode:
        check_error(ours, "size")


# Grammar: each line is a command that both must accept or refuse alike.
GRAMMAR = [
    "-U - memory 1M --run true",
    "memory 1M -U - --run true",
    "memory -U - 1M --run true",
    "memory size=1M -U - --run true",
    "-U - --run true memory size=1M",
    "-U - --run true -- memory size=1M",
    "--unix=- --run=true memory 1M",
    "--unix - --run true memory 1M",
    "-U- --run true memory 1M",
    "-rfU - --run true memory 1M",
    "--uni - --run true memory 1M",
    "--read -U - --run true memory 1M",
    "--readonly -U - --run true memory 1M",
    "--read-only -U - --run true memory 1M",
    "--fore -U - --run true memory 1M",
    "--no-fork -U - --run true memory 1M",
    "--exportname=x -U - --run true memory 1M",
    "--export-name=x -U - --run true memory 1M",
    "--exp=x -U - --run true memory 1M",
    "--newstyle -U - --run true memory 1M",
    "-n -U - --run true memory 1M",
    "-o -U - --run true memory 1M",
    "--threads=4 -U - --run true memory 1M",
    "-t 0 -U - --run true memory 1M",
    "-t 0x10 -U - --run true memory 1M",
    "-t -1 -U - --run true memory 1M",
    "-t x -U - --run true memory 1M",
    "--mask-handshake=0 -U - --run true memory 1M",
    "--mask-handshake=0xffffffff -U - --run true memory 1M",
    "--mask-handshake=x -U - --run true memory 1M",
    "--log=stderr -U - --run true memory 1M",
    "--log=null -U - --run true memory 1M",
    "--log=nowhere -U - --run true memory 1M",
    "-v -U - --run true memory 1M",
    "-D memory.nosuchflag=1 -U - --run true memory 1M",
    "-D nonsense -U - --run true memory 1M",
    "-D memory.flag=x -U - --run true memory 1M",
    "-4 -i 127.0.0.1 -U - --run true nosuchplugin",
    "--dump -U - memory 1M",
    "--no -U - memory 1M",
    "--nosuchoption -U - memory 1M",
    "-U",
    "-Z",
    "memory 1M --run",
    "-U - memory --run true",
    "-U - memory nosuchkey=1 1M --run true",
    "-U - memory 1M 2M --run true",
    "-U - memory 1M size=2M --run true",
    "-U - memory =1M --run true",
    "-U - memory 1key=1M --run true",
    "-U - null --run true",
    "-U - null 1M --run true",
    "-U - pattern 1M --run true",
    "-U - data raw=abc --run true",
    "-U - data base64=aGVsbG8= --run true",
    "-U - data base64=@@@ --run true",
    "-U - data raw=abc base64=aGVsbG8= --run true",
    "-U - data --run true",
    "-U - file --run true",
    "-U - file /nonexistent --run true",
    "-U - file /etc/passwd dir=/etc --run true",
    "-U - -r file /etc/passwd --run true",
    "-U - -r file file=/etc/passwd --run true",
    "-U - -r file /etc/passwd cache=none --run true",
    "-U - -r file /etc/passwd cache=default --run true",
    "-U - -r file /etc/passwd cache=some --run true",
    "-U - -r file /etc/passwd fadvise=sequential --run true",
    "-U - -r file /etc/passwd fadvise=random --run true",
    "-U - -r file /etc/passwd fadvise=normal --run true",
    "-U - -r file /etc/passwd fadvise=often --run true",
    "-U - file dir=/etc --run true",
    "-U - file dir=/nonexistent --run true",
    "-U - nosuchplugin --run true",
    "-s -p 10809 memory 1M",
    "-s -U - memory 1M",
    "-s --run true memory 1M",
    "-s --dump-plugin memory",
    "-s --vsock memory 1M",
    "-U /nonexistent/s --run true memory 1M",
    "--dump-plugin",
    "--dump-plugin memory",
    "--dump-plugin memory size=1M",
    "--dump-plugin memory size=x",
    "--dump-plugin memory nosuchkey=1",
    "--dump-plugin nosuchplugin",
    "--dump-config",
    "--dump-config --nosuchoption",
    "--version",
    "--version memory",
    "-V",
    "--vers",
    "--help",
    "--help memory",
    "--short-options",
    "--long-options",
    "",
]


@BOTH
@pytest.mark.parametrize("line", GRAMMAR)
def test_grammar(line):
    ours, theirs = same_status(*line.split())
    if theirs.returncode and IS_WEFT:
        check_error(ours)


def check_error(done, *names):
    """One line on stderr that begins with the program's name and names the thing."""
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    if IS_WEFT:
        assert len(lines) == 1, done.stderr
        assert lines[0].startswith("weft: "), lines[0]
        assert len(lines[0]) < 400
    for name in names:
        assert name in done.stderr, f"does not name {name!r}: {done.stderr}"


ERRORS = [
    ("--nosuchoption memory 1M", "--nosuchoption"),
    ("-Z memory 1M", "Z"),
    ("--dump memory", "--dump"),
    ("-U", "U"),
    ("nosuchplugin", "nosuchplugin"),
    ("-U - memory", "size"),
    ("-U - memory nosuchkey=1 1M", "nosuchkey"),
    ("-U - memory size=big", "big"),
    ("-U - memory size=1X", "1X"),
    ("-U - file", "file"),
    ("-U - file /nonexistent/disk.img", "/nonexistent/disk.img"),
    ("-U - file dir=/nonexistent", "/nonexistent"),
    ("-U - file dir=/etc/passwd", "/etc/passwd"),
    ("-U - file /etc", "/etc"),
    ("-U - data base64=@@@", "base64"),
    ("-U - file /etc/passwd cache=some", "some"),
    ("-p nosuchservice memory 1M", "nosuchservice"),
    ("-i 300.1.1.1 -p 0 memory 1M", "300.1.1.1"),
    ("-t x memory 1M", "x"),
    ("--mask-handshake=x memory 1M", "mask-handshake"),
    ("--log=nowhere memory 1M", "nowhere"),
    ("-f -u nosuchuser -U - memory 1M", "nosuchuser"),
    ("-f -g nosuchgroup -U - memory 1M", "nosuchgroup"),
    ("-U /nonexistent/s memory 1M", "/nonexistent/s"),
    ("-f -U - -P /nonexistent/pid memory 1M", "/nonexistent/pid"),
    ("-s -p 10809 memory 1M", "-p"),
    ("-s -U - memory 1M", "-U"),
    ("-s --run true memory 1M", "--run"),
]
WEFT_ERRORS = [
    ("-p 99999999 memory 1M", "99999999"),
    ("--engine=steam -U - memory 1M", "steam"),
    ("--shared=-1 -U - memory 1M", "-1"),
    ("--shared=few -U - memory 1M", "few"),
    ("--max-memory=much -U - memory 1M", "much"),
    ("--max-memory=1 -U - memory 1M", "max-memory"),
    ("--timeout=soon -U - memory 1M", "soon"),
    ("--drain-timeout=later -U - memory 1M", "later"),
    ("--filter=nosuchfilter -U - memory 1M", "nosuchfilter"),
    ("--tls=require -U - memory 1M", "tls"),
    ("-U - file /etc/passwd lock=maybe", "maybe"),
    ("--shared=2 -s memory 1M", "shared"),
]


@pytest.mark.parametrize("line,name", ERRORS)
def test_errors_name_the_thing(line, name):
    words = line.split()
    if words[0] not in ("-s", "-f") and words != ["-U"]:
        words += ["--run", "true"]  # a server that starts in spite of the error must not stay
    done = weft(*words)
    if IS_WEFT:
        check_error(done, name)
    assert done.returncode == 1


@pytest.mark.weft_only
@pytest.mark.parametrize("line,name", WEFT_ERRORS)
def test_errors_of_its_own_options_name_the_thing(line, name):
    words = line.split()
    check_error(weft(*words, *([] if "-s" in words else ["--run", "true"])), name)


def test_a_path_of_a_socket_that_is_too_long(folder):
    check_error(weft("-f", "-U", str(folder / ("s" * 120)), "memory", "1M"))


def test_socket_in_use(serve):
    server = serve("memory", "1M")
    check_error(weft("-f", "-U", server.socket, "memory", "1M"), server.socket)
    server.check_serves()


def test_port_in_use():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        check_error(weft("-f", "-i", "127.0.0.1", "-p", port, "memory", "1M"),
                    *([port] if IS_WEFT else []))


def test_image_that_may_not_be_written(folder):
    """It is served read-only, or refused with its name; never offered for writing."""
    # Root may write everything, so become somebody else where possible.
    nobody = ["setpriv", "--reuid=65534", "--clear-groups"] if os.geteuid() == 0 else []
    if run(*nobody, WEFT, "--version", check=False).returncode != 0:
        pytest.skip("another user cannot run the program from here")
    path = folder / "disk.img"
    path.write_bytes(bytes(512))
    path.chmod(0o444)
    folder.chmod(0o777)
    done = run(*nobody, WEFT, "-U", "-", "file", path, "--run", 'nbdinfo --json "$uri"',
               check=False)
    if done.returncode == 0:
        assert '"is_read_only": true' in done.stdout
    else:
        check_error(done, str(path))


@pytest.mark.parametrize("number", [0, 1, 2])
def test_standard_streams_must_be_open(number):
    done = subprocess.run(["/bin/sh", "-c", f'exec "$@" {number}>&-', "sh", WEFT, "-U", "-",
                           "memory", "1M", "--run", "true"],
                          capture_output=True, timeout=30, check=False)
    assert done.returncode == 1


@pytest.mark.weft_only
def test_booleans(folder):
    path = folder / "disk.img"
    path.write_bytes(bytes(512))
    for word in ("1", "true", "T", "yes", "y", "On", "0", "false", "f", "NO", "n", "off"):
        assert weft("-U", "-", "file", path, f"lock={word}", "--run", "true").returncode == 0, word
    for word in ("", "2", "yess", "oui"):
        check_error(weft("-U", "-", "file", path, f"lock={word}", "--run", "true"), "lock")


# The answers of the options that serve nothing.
def pairs(text):
    return dict(line.split("=", 1) for line in text.splitlines())


@BOTH
def test_dump_config_has_what_nbdkit_has():
    ours, theirs = pairs(weft("--dump-config").stdout), pairs(nbdkit("--dump-config").stdout)
    for key in ("name", "version", "version_major", "version_minor", "binary", "tls", "selinux",
                "exit_with_parent", "host_cpu", "host_os", "bindir", "mandir", "sysconfdir"):
        assert key in ours, key
    assert ours["host_cpu"] == theirs["host_cpu"] and ours["host_os"] == theirs["host_os"]
    assert ours["binary"] == os.path.realpath(WEFT)
    if IS_WEFT:
        assert ours["name"] == "weft"
        assert ours["run_default_socket"] == "Unix"


@BOTH
@pytest.mark.parametrize("plugin", ["memory", "file", "null", "pattern", "data"])
def test_dump_plugin(plugin):
    ours, theirs = (pairs(program("--dump-plugin", plugin).stdout) for program in (weft, nbdkit))
    for key in ("name", "magic_config_key", "thread_model"):
        assert ours[key] == theirs[key], key
    assert "version" in ours


def test_version():
    done = weft("--version")
    assert re.fullmatch(r"(weft|nbdkit) \d+\.\d+\.\d+\n", done.stdout)
    lines = weft("--version", "memory").stdout.splitlines()
    assert lines[0] == done.stdout.strip()
    assert re.fullmatch(r"memory \S+", lines[1])


def test_help():
    done = weft("--help")
    for word in ("--unix", "--run", "--read-?only", "PLUGIN"):
        assert re.search(word, done.stdout)
    if IS_WEFT:
        for word in ("--engine", "--shared", "--max-memory", "--explain"):
            assert word in done.stdout
    assert "size" in weft("--help", "memory").stdout


@BOTH
@pytest.mark.parametrize("option", ["--short-options", "--long-options"])
def test_option_lists(option):
    ours, theirs = (set(program(option).stdout.split()) for program in (weft, nbdkit))
    # What comes with TLS and with filters is theirs alone, so far.
    missing = {word for word in theirs - ours if "tls" not in word and "filter" not in word}
    assert not missing


@pytest.mark.weft_only
def test_explain_says_what_is_promised_and_serves_nothing(folder):
    path = folder / "disk.img"
    path.write_bytes(bytes(MIB))
    done = weft("--explain", "file", path)
    assert done.returncode == 0, done.stderr
    assert "multi-conn" in done.stdout.lower()
    single = weft("--explain", "--shared=1", "file", path)
    assert single.returncode == 0
    assert "not advertised" in single.stdout and "not advertised" not in done.stdout
    assert "limit" in single.stdout, "it names what decided"


@pytest.mark.weft_only
def test_print_uri(serve):
    server = serve("memory", "1M", options=["--print-uri"])
    assert f"nbd+unix://?socket={server.socket}" in server.log().replace(":///?", "://?")


def test_verbose_is_on_stderr():
    done = weft("-v", "-U", "-", "memory", "1M", "--run", "true")
    assert done.returncode == 0
    assert done.stderr and not done.stdout


def test_ipv4_and_ipv6_only():
    for option, family, address in (("-4", socket.AF_INET, "127.0.0.1"),
                                    ("-6", socket.AF_INET6, "::1")):
        port = free_port()
        probe = (f"import socket; s = socket.socket({int(family)}); s.settimeout(5);"
                 f"s.connect(('{address}', {port})); print(s.recv(8))")
        try:
            with socket.socket(family) as test:
                test.bind((address, 0))
        except OSError:
            continue  # no IPv6 here
        done = weft(option, "-i", address, "-p", str(port), "memory", "1M", "--run",
                    f'{sys.executable} -c "{probe}"')
        assert "NBDMAGIC" in done.stdout, done.stderr


def test_single_on_standard_input():
    client = nbd.NBD()
    client.connect_command([WEFT, "-s", "memory", "1M"])
    assert client.get_size() == MIB
    client.pwrite(b"s", 0)
    assert client.pread(1, 0) == b"s"
    client.shutdown()


def test_read_only_option(serve, engine):
    server = serve("memory", "1M", engine=engine, options=["-r"])
    with server.client() as client:
        assert client.is_read_only()
        assert not client.can_trim() and not client.can_zero()


@pytest.mark.skipif(os.geteuid() != 0, reason="changing the user needs root")
def test_user_and_group(serve):
    def reachable():
        os.umask(0)
    server = serve("memory", "1M", options=["-u", "nobody", "-g", "nogroup"],
                   preexec=reachable, dir_mode=0o777)
    with open(f"/proc/{server.pid}/status", encoding="ascii") as status:
        fields = dict(line.split(":", 1) for line in status)
    assert set(fields["Uid"].split()) == {"65534"}
    assert set(fields["Gid"].split()) == {"65534"}
    assert set(fields["Groups"].split()) <= {"65534"}
    with Raw(server.socket) as raw:
        assert raw.negotiate()[0] == MIB
        raw.disconnect()
        raw.expect_closed()


@pytest.mark.parametrize("options", [["-U", "-"], ["-p", "10809"], ["-i", "127.0.0.1"],
                                     ["--run", "true"], ["-s"]])
def test_socket_activation_conflicts(options, folder):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "s"))
        listener.listen()
        done = run("/bin/sh", "-c", 'LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"', "sh", WEFT, *options,
                   "memory", "1M", check=False, timeout_s=30, pass_fds=(3,),
                   preexec_fn=lambda: os.dup2(listener.fileno(), 3, inheritable=True))
    assert done.returncode == 1
    if IS_WEFT:
        check_error(done)
