# SPDX-License-Identifier: BSD-3-Clause
"""nbdkit's plugins in files that are clients themselves, hosted: curl, ssh and nbd.

They talk to a web server, an sshd and NBD servers that the tests start for themselves.
"""
import os

import nbd
import pytest

from harness import KIB, MIB, WEFT, run
from hosted import (PROGRAMS, content, exercise, exports, extent_map, flags, look, name_of,
                    needs_hosting, nginx, on_both, plugin, several, sshd)
from script_disks import outcome

pytestmark = needs_hosting


# ---- curl ----------------------------------------------------------------------------------------

@pytest.fixture
def web(folder):
    folder.chmod(0o755)
    root = folder / "www"
    root.mkdir()
    (root / "disk").write_bytes(os.urandom(2 * MIB + 77))
    with nginx(root) as socket:
        yield root, f"unix-socket-path={socket}"


def test_curl(serve, web):
    root, socket = web

    def one(program):
        server = serve(plugin("curl"), "http://localhost/disk", socket, program=program)
        seen = look(server), exports(server, "--no-content")
        with server.client() as client, server.client() as other:
            assert client.pread(MIB, 1000) == (root / "disk").read_bytes()[1000:1000 + MIB]
            # Both at once, several requests each.
            buffers = [(handle, nbd.Buffer(64 * KIB), offset) for handle in (client, other)
                       for offset in range(0, MIB, 128 * KIB)]
            cookies = [(handle, handle.aio_pread(buffer, offset))
                       for handle, buffer, offset in buffers]
            for handle, cookie in cookies:
                while not handle.aio_command_completed(cookie):
                    handle.poll(20000)
            for _, buffer, offset in buffers:
                assert buffer.to_bytearray() == (root / "disk").read_bytes()[
                    offset:offset + 64 * KIB]
        return seen
    seen, _ = on_both(one)
    assert seen["size"] == 2 * MIB + 77


def test_curl_is_refused(serve, web):
    """A client gets no disk, the server goes on, and the plugin's words are in the log."""
    _, socket = web
    for program in PROGRAMS:
        for path, word in (("absent", "404"), ("refused/x", "403")):
            server = serve(plugin("curl"), f"http://localhost/{path}", socket, program=program)
            with pytest.raises(nbd.Error):
                server.connect()
            assert server.alive() and word in server.log(), server.log()
            assert "curl" in server.log()


def test_curl_when_the_file_goes(serve, web):
    root, socket = web

    def one(program):
        (root / "going").write_bytes(b"x" * MIB)
        server = serve(plugin("curl"), "http://localhost/going", socket, program=program)
        with server.client() as client:
            assert client.pread(512, 0) == b"x" * 512
            (root / "going").unlink()
            gone = outcome(client.pread, 512, 4096)
            (root / "going").write_bytes(b"y" * MIB)
            return gone, outcome(client.pread, 512, 4096)
    assert on_both(one) == ("EIO", b"y" * 512)


def test_curl_with_a_script_for_its_header(serve, web, folder):
    """The plugin runs a program for each request."""
    root, socket = web
    (root / "h").write_bytes(b"h" * 4096)
    for program in PROGRAMS:
        log = folder / f"calls-{name_of(program)}"
        server = serve(plugin("curl"), "http://localhost/h", socket,
                       f"header-script=echo >>{log}; echo X-Token: some",
                       "header-script-renew=1", program=program)
        with server.client() as client:
            assert client.pread(4096, 0) == b"h" * 4096
        assert log.exists()


# ---- ssh -----------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def shell():
    with sshd() as server:
        yield server


def test_ssh(serve, shell, folder):
    start = os.urandom(MIB)

    def one(program):
        path = folder / name_of(program)
        path.write_bytes(start)
        server = serve(plugin("ssh"), *shell.options, path, program=program)
        seen = look(server), exports(server, "--no-content")
        assert seen[0]["size"] == MIB and not seen[0]["flags"]["is_read_only"]
        changes = exercise(server, count=60)
        with server.client() as client, server.client() as other:
            client.pwrite(b"seen by the other", 4096)
            client.flush()
            assert other.pread(17, 4096) == b"seen by the other"
        server.stop()
        return seen, changes, path.read_bytes()
    (seen, *_), _, after = on_both(one)
    assert seen["flags"]["can_multi_conn"] and after != start


def test_ssh_read_only(serve, shell, image):
    path = image(100000)

    def one(program):
        server = serve(plugin("ssh"), *shell.options, path, program=program, options=["-r"])
        seen = look(server)
        assert seen["flags"]["is_read_only"]
        return seen
    on_both(one)


def test_ssh_creates_a_file(serve, shell, folder):
    def one(program):
        path = folder / f"new-{name_of(program)}"
        server = serve(plugin("ssh"), *shell.options, path, "create=true", "create-size=1M",
                       program=program)
        with server.client() as client:
            client.pwrite(b"new" * 100, 1000)
            client.flush()
            return client.get_size(), path.stat().st_size, path.read_bytes()[1000:1300]
    assert on_both(one) == (MIB, MIB, b"new" * 100)


def test_ssh_is_refused(serve, shell, folder):
    """No such file; another host's key; nobody there."""
    other_key = [option if not option.startswith("known-hosts") else "known-hosts=/dev/null"
                 for option in shell.options]
    nobody = [option if not option.startswith("port") else "port=1" for option in shell.options]
    for program in PROGRAMS:
        for options in (shell.options, other_key, nobody):
            server = serve(plugin("ssh"), *options, folder / "absent", program=program)
            with pytest.raises(nbd.Error):
                server.connect()
            assert server.alive() and "ssh" in server.log(), server.log()


# ---- nbd -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("behind", PROGRAMS, ids=name_of)
def test_nbd(serve, image, behind):
    """In front of a server of either kind."""
    start = os.urandom(2 * MIB)

    def one(program):
        path = image(2 * MIB, name_of(program), start)
        back = serve("file", path, program=behind)
        server = serve(plugin("nbd"), f"socket={back.socket}", program=program)
        seen = look(server), exercise(server), exports(server, "--no-content")
        several(server)
        server.stop()
        back.stop()
        return seen, path.read_bytes()
    (seen, *_), _ = on_both(one)
    assert seen["flags"]["can_multi_conn"]


def test_nbd_of_another_export(serve, folder, image):
    image(4096, "a", b"a" * 4096)
    image(8192, "b", b"b" * 8192)

    def one(program):
        back = serve("file", f"dir={folder}", program=WEFT)
        fixed = serve(plugin("nbd"), f"uri={back.uri('b')}", program=program)
        with fixed.client() as client:
            assert client.pread(512, 0) == b"b" * 512
        passed = serve(plugin("nbd"), f"socket={back.socket}", "dynamic-export=true",
                       program=program)
        with passed.client("a") as one, passed.client("b") as other:
            assert (one.get_size(), other.get_size()) == (4096, 8192)
        with pytest.raises(nbd.Error):
            passed.connect("absent")
        return sorted(export["export-name"]
                      for export in exports(passed, "--list", "--no-content"))
    assert on_both(one) == ["a", "b"]


def test_nbd_shared(serve):
    """One connection behind, for all in front."""
    for program in PROGRAMS:
        back = serve("memory", "4M", program=WEFT)
        server = serve(plugin("nbd"), f"socket={back.socket}", "shared=true", program=program)
        several(server)
        with server.client() as client:
            assert client.can_multi_conn()


def test_nbd_starts_its_server(serve):
    """command= and arg=: the plugin forks, and its server ends with it."""
    def one(program):
        server = serve(plugin("nbd"), f"command={WEFT}", "arg=memory", "arg=1M",
                       "arg=--exit-with-parent", program=program)
        with server.client(contexts=["base:allocation"]) as client:
            client.pwrite(b"x" * 512, 512)
            return flags(client), content(client), extent_map(client)
    on_both(one)


def test_nbd_when_the_server_behind_dies(serve):
    """Requests fail, and fail soon; with the server back, new clients are served."""
    for program in PROGRAMS:
        back = serve("memory", "1M", program=WEFT)
        server = serve(plugin("nbd"), f"socket={back.socket}", program=program)
        client = server.connect()
        assert client.pread(512, 0) == bytes(512)
        back.kill()
        assert isinstance(outcome(client.pread, 512, 0), str)
        assert server.alive()
        with pytest.raises(nbd.Error):
            server.connect()
        assert server.alive()
        del client
    assert run("true").returncode == 0
