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


def test_extents_of_zstd_memory(start, weft):
    """nbdkit dies of it; weft has no such allocator, and says so."""
    done = run(weft, "-U", "-", "memory", "1M", "allocator=zstd", "--run", "true", check=False)
    assert done.returncode == 1 and "zstd" in done.stderr
    server = start("memory", "1M", "allocator=zstd", program=NBDKIT)
    server.may_die = True
    with pytest.raises(nbd.Error):
        client = server.connect(contexts=["base:allocation"])
        client.block_status(MIB, 0, lambda *_: 0)
    wait_until(lambda: not server.alive(), "nbdkit has died of it")
