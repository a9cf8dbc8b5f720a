# SPDX-License-Identifier: BSD-3-Clause
"""What docs/migration.md calls better: each claim on both servers, both started as nbdkit.

Each is a function that fails where the claim does not hold: weft must pass, nbdkit must not.
Claims that a command line alone shows are lines of the matrix (test_matrix.py).
"""
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import tempfile
import time

import nbd
import pytest

from harness import MIB, NBDKIT, WEFT, Server, close, run, wait_until
from rawclient import CMD_BLOCK_STATUS, Closed, Raw

pytestmark = [pytest.mark.weft_only,
              pytest.mark.skipif(shutil.which(NBDKIT) is None, reason="nbdkit is not installed")]


class Shown(AssertionError):
    """The defect was seen. Any other failure is not what the page says."""


def shown(condition, text):
    if condition:
        raise Shown(text)


@pytest.fixture(scope="module", name="weft")
def weft_as_nbdkit():
    """weft under the name of nbdkit, outside of /tmp, which one test hides."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="weft-", dir="/var/tmp"))
    program = folder / "nbdkit"
    shutil.copy(WEFT, program)
    yield str(program)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(name="start")
def start_servers():
    servers = []

    def start(*words, program, **options):
        server = Server(*words, program=program, **options)
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.kill()
        server.remove()


def differ(claim, weft, *words):
    """weft passes the claim, and nbdkit shows the defect."""
    claim(weft, *words)
    with pytest.raises(Shown):
        claim(NBDKIT, *words)


def test_zero_fallback(start, weft, folder):
    """128 MiB of zeroes, on a plugin that turns out not to be able to zero."""
    def claim(program):
        log = folder / "writes"
        log.write_text("")
        server = start("eval", "get_size=echo 128M", "pread=exit 1", "can_write=exit 0",
                       f"pwrite=echo $3 $4 >>{log}; cat >/dev/null",
                       "zero=echo ENOTSUP no >&2; exit 1", program=program)
        with server.client() as client:
            client.zero(128 * MIB, 0)
        writes = sorted((int(offset), int(count)) for count, offset in
                        (line.split() for line in log.read_text().splitlines()))
        end = 0
        for offset, count in writes:
            if offset <= end:
                end = max(end, offset + count)
        assert writes
        shown(end < 128 * MIB, f"not all was written, though the request succeeded: {writes}")

    differ(claim, weft)


def test_block_status_of_4_gib(start, weft):
    def claim(program):
        server = start("null", "1T", program=program)
        server.may_die = True
        try:
            with Raw(server.socket) as raw:
                raw.negotiate(structured=True, allocation=True)
                raw.request(CMD_BLOCK_STATUS, 0, 0xffffffff)
                reply = raw.reply()
                assert reply.error == 0 and reply.extents
        except Closed as closed:
            wait_until(lambda: not server.alive(), "the server has ended")
            raise Shown("it is gone") from closed
        assert server.alive()

    differ(claim, weft)


def test_sigterm_with_an_idle_client(start, weft):
    def claim(program):
        server = start("memory", "1M", program=program)
        client = server.connect()
        try:
            client.pread(512, 0)
            time.sleep(1)  # the reply was the last thing that happened
            server.signal(signal.SIGTERM)
            if program == NBDKIT:
                time.sleep(2)  # seen to stay for ever
                shown(server.alive(), "it stays")
            server.wait()
        finally:
            close(client)

    differ(claim, weft)


def test_silent_client(start, weft):
    """A plugin of the model serialize_all_requests."""
    if run(weft, "--version", "example1", check=False).returncode != 0:
        pytest.skip("no plugin example1")

    def claim(program):
        server = start("example1", program=program)
        with socket.socket(socket.AF_UNIX) as silent:
            silent.settimeout(20)
            silent.connect(server.socket)
            assert silent.recv(8) == b"NBDMAGIC"
            try:
                run("nbdinfo", "--size", server.uri(), timeout_s=3 if program == NBDKIT else 60)
            except subprocess.TimeoutExpired as expired:
                raise Shown("another client waits") from expired

    differ(claim, weft)


def test_run_with_a_dead_server(weft, folder):
    def claim(program):
        bound = 3 if program == NBDKIT else 60
        done = run(program, "-U", "-", "-P", folder / "pid", "memory", "1M", "--run",
                   f"while ! test -s {folder}/pid; do sleep 0.01; done; "
                   f"kill -KILL $(cat {folder}/pid); "
                   f"timeout {bound} nbdinfo --size \"$uri\"; echo status $?", check=False)
        (folder / "pid").unlink()
        shown("status 124" in done.stdout, "the client hangs")
        assert "status 1" in done.stdout, done

    differ(claim, weft)


@pytest.mark.skipif(os.geteuid() != 0, reason="a /tmp of its own needs root")
@pytest.mark.parametrize("words", ["--version", "--help", "--dump-plugin memory",
                                   "memory size=x", "memory nosuchkey=1", "nosuchplugin"])
def test_private_sockets_are_removed(weft, words):
    def claim(program):
        left = run("unshare", "-m", "sh", "-c",
                   "mount -t tmpfs none /tmp && { \"$@\" >/dev/null 2>&1; ls -A /tmp; }", "sh",
                   program, "-U", "-", *words.split())
        shown(left.stdout, f"left in /tmp: {left.stdout}")

    if run("unshare", "-m", "mount", "-t", "tmpfs", "none", "/tmp", check=False).returncode != 0:
        pytest.skip("no namespace for mounts here")
    claim(weft)
    if words in ("--version", "memory size=x"):
        with pytest.raises(Shown):
            claim(NBDKIT)


def test_threads_of_connections(start, weft):
    connections = 8

    def claim(program):
        server = start("memory", "1M", program=program)
        threads_at_start = len(os.listdir(f"/proc/{server.pid}/task"))
        clients = [server.connect() for _ in range(connections)]
        try:
            for client in clients:
                client.pread(512, 0)
            threads = len(os.listdir(f"/proc/{server.pid}/task"))
        finally:
            for client in clients:
                close(client)
        # nbdkit starts 16 for each, some of them perhaps a little later.
        shown(threads >= threads_at_start + 8 * connections,
              f"{threads} threads for {connections} connections")
        assert threads < threads_at_start + connections, "fewer than one for each connection"

    differ(claim, weft)


# What differs, and is not among the lines of the matrix: nbdkit's way first.

def test_failed_flushes(start, weft, folder):
    once = folder / "failed"
    words = ("eval", "get_size=echo 1M", "pread=head -c $3 /dev/zero", "can_write=exit 0",
             "pwrite=cat > /dev/null", "can_flush=exit 0",
             f"flush=[ -e {once} ] || {{ touch {once}; echo EIO failed >&2; exit 1; }}")

    def second_flush(program):
        once.unlink(missing_ok=True)
        server = start(*words, program=program)
        client = server.connect()
        try:
            client.pwrite(bytes(512), 0)
            with pytest.raises(nbd.Error):
                client.flush()
            try:
                client.flush()
            except nbd.Error as error:
                return error.errno
            return None
        finally:
            close(client)

    assert second_flush(NBDKIT) is None
    assert second_flush(weft) == "EIO"


def test_sessions_of_background_servers(weft, folder):
    def own_session(program, name):
        pidfile = folder / name
        run(program, "-U", folder / f"{name}.sock", "-P", pidfile, "null", "1M")
        wait_until(lambda: pidfile.exists() and pidfile.read_text().strip(), "the pidfile")
        pid = int(pidfile.read_text())
        try:
            return os.getsid(pid) == pid
        finally:
            os.kill(pid, signal.SIGTERM)

    assert not own_session(NBDKIT, "nbdkit")
    assert own_session(weft, "weft")


def test_errors_of_the_start(weft, folder):
    def heard(program):
        log = folder / f"log-{os.path.basename(os.path.dirname(program))}"
        done = run(program, f"--log={log}" if program == weft else "--log=null", "-U", "-", "file",
                   folder / "nosuch", "--run", "true", check=False)
        assert done.returncode == 1
        return "nosuch" in done.stderr, log.exists() and "nosuch" in log.read_text()

    assert heard(NBDKIT) == (False, False)
    assert heard(weft) == (True, True)


def test_silence_in_the_handshake(start, weft):
    def is_left_alone(program, *options):
        server = start("null", "1M", program=program, options=options)
        with socket.socket(socket.AF_UNIX) as silent:
            silent.connect(server.socket)
            assert silent.recv(18, socket.MSG_WAITALL)[:8] == b"NBDMAGIC"
            silent.settimeout(2 if program == NBDKIT else 30)
            try:
                return silent.recv(1) != b""
            except TimeoutError:
                return True

    assert is_left_alone(NBDKIT)
    assert not is_left_alone(weft, "--timeout=1")


def test_sigterm_with_a_command(weft):
    def status(program):
        with subprocess.Popen([program, "-U", "-", "null", "--run", "sleep 3"]) as server:
            time.sleep(1)
            server.send_signal(signal.SIGTERM)
            return server.wait(30)

    assert status(weft) == 128 + signal.SIGTERM
    assert status(NBDKIT) != 128 + signal.SIGTERM
