# SPDX-License-Identifier: BSD-3-Clause
"""What the tests of hosted plugins share: plugins, two programs to compare, servers.

A hosted plugin is named by its file, so that weft's own of the same name is not meant. The same
file is run by nbdkit, where that is installed: both must serve the same.
"""
import contextlib
import getpass
import hashlib
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import tempfile

import nbd
import pytest

from harness import IS_WEFT, KIB, NBDKIT, WEFT, free_port, run, wait_until
from script_disks import outcome

# The program under test first.
PROGRAMS = [WEFT] + ([NBDKIT] if IS_WEFT and shutil.which(NBDKIT) else [])
FOLDERS = [pathlib.Path("/usr/lib/x86_64-linux-gnu/nbdkit/plugins"),
           pathlib.Path("/usr/lib/aarch64-linux-gnu/nbdkit/plugins"),
           pathlib.Path("/usr/lib64/nbdkit/plugins"), pathlib.Path("/usr/lib/nbdkit/plugins")]
FOLDER = next((folder for folder in FOLDERS if folder.is_dir()), FOLDERS[0])
COMPILER = next((name for name in ("clang-19", "cc", "gcc", "clang") if shutil.which(name)), None)
HEADER = pathlib.Path("/usr/include/nbdkit-plugin.h")
NO_SIZES = [1, 4096, 32 << 20]  # what weft says of a disk that says nothing
FLAGS = ("is_read_only", "can_flush", "can_fua", "can_trim", "can_zero", "can_fast_zero",
         "can_cache", "can_multi_conn", "can_df", "is_rotational")


def name_of(program):
    return "weft" if program == WEFT and IS_WEFT else os.path.basename(program)


def _why_no_hosting():
    if not FOLDER.is_dir():
        return "nbdkit's plugins are not installed"
    tried = run(WEFT, FOLDER / "nbdkit-null-plugin.so", "--dump-plugin", check=False)
    if tried.returncode and "nbdkit-plugin-dev" in tried.stderr:
        return "this weft was built without the header of nbdkit's plugins"
    return None


WHY_NO_HOSTING = _why_no_hosting()
needs_hosting = pytest.mark.skipif(WHY_NO_HOSTING is not None, reason=str(WHY_NO_HOSTING))
needs_compiler = pytest.mark.skipif(COMPILER is None or not HEADER.exists(),
                                    reason="no C compiler, or no nbdkit-plugin.h, here")


def plugin(name):
    """The file of a plugin of nbdkit's; without it the test is skipped."""
    path = FOLDER / f"nbdkit-{name}-plugin.so"
    if not path.exists():
        pytest.skip(f"{path.name} is not installed")
    return str(path)


def need(*programs):
    for program in programs:
        if not shutil.which(program):
            pytest.skip(f"{program} is not installed")


# ---- Comparing -----------------------------------------------------------------------------------

def on_both(work):
    """work(program) for each program; what they return must be equal, and is returned."""
    seen = {program: work(program) for program in PROGRAMS}
    for other in PROGRAMS[1:]:
        found = "\n".join(differences(seen[WEFT], seen[other]))[:3000]
        assert not found, f"{name_of(WEFT)} and {name_of(other)} differ:\n{found}"
    return seen[WEFT]


def differences(one, other, where=""):
    """A line for each place where two values differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in [*one, *(key for key in other if key not in one)]:
            yield from differences(one.get(key), other.get(key), f"{where}[{key!r}]")
    elif (isinstance(one, (list, tuple)) and isinstance(other, (list, tuple))
          and len(one) == len(other)):
        for number, (mine, theirs) in enumerate(zip(one, other)):
            yield from differences(mine, theirs, f"{where}[{number}]")
    elif one != other:
        yield f"{where}: {one!r:.300} != {other!r:.300}"


def exports(server, *options):
    """What nbdinfo says of the server's exports, but for what depends on the server alone."""
    found = json.loads(run("nbdinfo", "--json", *options, server.uri()).stdout)["exports"]
    for export in found:
        export.pop("uri", None)
        names = [f"block_size_{which}" for which in ("minimum", "preferred", "maximum")]
        if [export.get(name) for name in names] == NO_SIZES:
            for name in names:
                del export[name]
    return found


def block_sizes(client):
    """Or None where the plugin says nothing: weft then tells its own."""
    sizes = [client.get_block_size(which) for which in range(3)]
    return None if sizes in (NO_SIZES, [0, 0, 0]) else sizes


def flags(client):
    return {name: bool(getattr(client, name)()) for name in FLAGS}


def extent_map(client, offset=0, length=None):
    """[(length, flags)] for the whole range, neighbours of one kind joined."""
    end = offset + (client.get_size() - offset if length is None else length)
    found = []

    def heard(_, start, entries, error):
        nonlocal position
        assert start == position and error.value == 0 and entries
        for size, kind in zip(entries[::2], entries[1::2]):
            if found and found[-1][1] == kind:
                found[-1][0] += size
            else:
                found.append([size, kind])
            position += size

    position = offset
    while position < end:
        client.block_status(min(end - position, 1 << 30), position, heard)
    if found:
        # The last of an answer may reach further than was asked for.
        found[-1][0] -= position - end
    return [tuple(one) for one in found]


def content(client, step=1 << 20):
    """SHA-256 of the whole disk."""
    digest = hashlib.sha256()
    for offset in range(0, client.get_size(), step):
        digest.update(client.pread(min(step, client.get_size() - offset), offset))
    return digest.hexdigest()


def look(server, export=""):
    """All that can be seen of an export without changing it."""
    with server.client(export, contexts=["base:allocation"]) as client:
        return {"size": client.get_size(), "flags": flags(client), "content": content(client),
                "blocks": block_sizes(client),
                "extents": extent_map(client) if client.can_meta_context("base:allocation")
                else None}


def exercise(server, seed=1, count=150, longest=192 * KIB, export="", trims=True):
    """Requests of every kind; returns what came of each, and the disk afterwards."""
    seen, numbers = [], random.Random(seed)
    with server.client(export, contexts=["base:allocation"]) as client:
        size = client.get_size()
        for _ in range(count):
            length = min(numbers.choice([1, 512, 4096, numbers.randrange(1, longest)]), size)
            offset = numbers.randrange(0, size - length + 1)
            fua = nbd.CMD_FLAG_FUA if client.can_fua() and numbers.random() < 0.3 else 0
            kind = numbers.choice(["pwrite", "pwrite", "zero", "trim", "flush", "cache", "pread"])
            if kind == "flush":
                done = outcome(client.flush)
            elif kind == "pwrite":
                done = outcome(client.pwrite, numbers.randbytes(length), offset, fua)
            elif kind == "zero":
                more = numbers.choice([0, nbd.CMD_FLAG_NO_HOLE])
                done = outcome(client.zero, length, offset, fua | more)
            elif kind == "trim":
                # What a trim leaves is nobody's promise, but the same plugin does the same.
                done = outcome(client.trim, length, offset, fua) if trims else None
            else:
                done = outcome(getattr(client, kind), length, offset)
                done = hashlib.sha256(done).hexdigest() if isinstance(done, bytes) else done
            seen.append((kind, offset, length, done))
        fast = outcome(client.zero, 4096, 0, nbd.CMD_FLAG_FAST_ZERO) if size > 4096 else None
        return seen, fast, extent_map(client), content(client)


def several(server, connections=4, share=256 * KIB):
    """Each of several connections writes its share and flushes; then each sees all of them."""
    clients = [server.connect() for _ in range(connections)]
    try:
        for me, client in enumerate(clients):
            client.pwrite(bytes([me + 1]) * share, me * share)
        for client in clients:
            client.flush()
        for client in clients:
            for me in range(connections):
                assert client.pread(share, me * share) == bytes([me + 1]) * share
    finally:
        for client in clients:
            with contextlib.suppress(nbd.Error):
                client.shutdown()


def refusals(*args, pattern=None):
    """Both programs refuse to start, with exit status 1; returns the program's own words."""
    words = None
    for program in PROGRAMS:
        done = run(program, "-f", "-U", "-", *args, check=False)
        assert done.returncode == 1, (program, done.returncode, done.stderr)
        assert done.stderr.startswith(f"{name_of(program)}: "), done.stderr
        if pattern is not None:
            assert pattern in done.stderr, (program, done.stderr)
        words = words or done.stderr
    return words


# ---- Plugins made here ---------------------------------------------------------------------------

def build_plugin(folder, name, source, *options):
    """Compiles a C plugin; returns the path of nbdkit-NAME-plugin.so."""
    path = pathlib.Path(folder) / f"nbdkit-{name}-plugin.so"
    code = pathlib.Path(folder) / f"{name}.c"
    code.write_text(source, encoding="utf-8")
    run(COMPILER, "-O1", "-g0", "-Wall", "-Werror", "-fPIC", "-shared", "-pthread", *options,
        "-o", path, code)
    return path


# ---- Servers that plugins talk to ----------------------------------------------------------------

@contextlib.contextmanager
def _process(command, ready, what, log_path, end=signal.SIGTERM, **options):
    with open(log_path, "wb") as log:
        process = subprocess.Popen([str(word) for word in command], stdin=subprocess.DEVNULL,
                                   stdout=log, stderr=log, start_new_session=True, **options)
    try:
        def alive_and_ready():
            assert process.poll() is None, f"{what} ended:\n{log_path.read_text(errors='replace')}"
            return ready()
        wait_until(alive_and_ready, f"{what} is ready")
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(end)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _listens(port):
    """Somebody listens on this port of 127.0.0.1; asked without connecting."""
    with open("/proc/net/tcp", encoding="ascii") as table:
        wanted = f"0100007F:{port:04X}"
        return any(line.split()[1] == wanted and line.split()[3] == "0A"
                   for line in table.readlines()[1:])


@contextlib.contextmanager
def nginx(root):
    """Serves the files below `root` on a Unix socket; yields its path."""
    need("nginx")
    with tempfile.TemporaryDirectory(prefix="weft-") as place:
        place = pathlib.Path(place)
        place.chmod(0o755)
        socket, config = place / "s", place / "conf"
        temporary = "\n".join(f"  {kind}_temp_path {place}/{kind};" for kind in
                              ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        user = f"user {getpass.getuser()};" if os.geteuid() == 0 else ""
        config.write_text(f"""{user}
daemon off;
worker_processes 1;
pid {place}/pid;
error_log {place}/error.log;
events {{ worker_connections 64; }}
http {{
{temporary}
  access_log {place}/access.log;
  server {{
    listen unix:{socket};
    root {root};
    location /refused/ {{ return 403; }}
  }}
}}
""", encoding="utf-8")
        with _process(["nginx", "-p", place, "-c", config, "-e", place / "error.log"],
                      socket.exists, "nginx", place / "log"):
            yield socket


class Sshd:
    """An sshd of one user on a loopback port; .options are the ssh plugin's parameters."""

    def __init__(self, port, place):
        self.port = port
        self.options = ["host=127.0.0.1", f"port={port}", f"user={getpass.getuser()}",
                        f"identity={place}/user", f"known-hosts={place}/known"]


@contextlib.contextmanager
def sshd():
    need("sshd", "ssh-keygen")
    # sshd insists on it when it is root, and only a service's start makes it.
    if os.geteuid() == 0:
        os.makedirs("/run/sshd", mode=0o755, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="weft-") as place:
        place, port = pathlib.Path(place), free_port()
        for key in ("host", "user"):
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", place / key)
        shutil.copy(place / "user.pub", place / "authorized")
        (place / "known").write_text(f"[127.0.0.1]:{port} {(place / 'host.pub').read_text()}")
        (place / "config").write_text(f"""ListenAddress 127.0.0.1:{port}
HostKey {place}/host
AuthorizedKeysFile {place}/authorized
PidFile none
UsePAM no
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
Subsystem sftp internal-sftp
""", encoding="utf-8")
        with _process([shutil.which("sshd"), "-D", "-e", "-f", place / "config"],
                      lambda: _listens(port), "sshd", place / "log"):
            yield Sshd(port, place)
