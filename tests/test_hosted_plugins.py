# SPDX-License-Identifier: BSD-3-Clause
"""Plugins in files, hosted by weft: a request that hangs holds up nobody, nor the end."""
import pathlib
import subprocess

import pytest

from harness import Server, WEFT, close, run, wait_until

try:
    FOLDER = pathlib.Path(subprocess.run(["pkg-config", "--variable=plugindir", "nbdkit"],
                                         capture_output=True, text=True, check=True).stdout.strip())
except (OSError, subprocess.CalledProcessError):
    FOLDER = pathlib.Path("/usr/lib/nbdkit/plugins")

pytestmark = pytest.mark.weft_only


def plugin(name):
    path = FOLDER / f"nbdkit-{name}-plugin.so"
    if not path.exists():
        pytest.skip(f"{path} is not there (apt-get install nbdkit)")
    tried = run(WEFT, "--version", str(path), check=False)
    if "loads no plugin files" in tried.stdout + tried.stderr:
        pytest.skip("this weft was built without nbdkit-plugin.h")
    return path


@pytest.fixture
def serve():
    servers = []

    def start(*args, **options):
        servers.append(Server(*args, **options))
        return servers[-1]
    yield start
    for server in servers:
        server.kill()
        server.remove()


def hanging(path, release):
    """Reads of the second MiB wait until the file `release` is there, or five minutes."""
    wait = f"for i in $(seq 3000); do [ -e {release} ] && break; sleep 0.1; done"
    return [path, "thread_model=echo parallel", "get_size=echo 2M", "can_write=exit 3",
            f"pread=if [ $4 -ge 1048576 ]; then touch {release}.hangs; {wait}; fi; "
            "dd if=/dev/zero bs=$3 count=1 2>/dev/null"]


def test_serves(serve):
    server = serve(plugin("memory"), "1M")
    server.check_serves()
    server.stop()


def test_a_hang_is_in_nobodys_way(serve, tmp_path):
    release = tmp_path / "release"
    server = serve(*hanging(plugin("eval"), release))
    with server.client() as slow, server.client() as other:
        import nbd
        late = nbd.Buffer(512)
        cookie = slow.aio_pread(late, 1 << 20)
        wait_until(pathlib.Path(f"{release}.hangs").exists, "a request hangs")
        for client in (slow, other):
            assert client.pread(512, 0) == bytes(512)
        assert not slow.aio_command_completed(cookie)
        release.touch()
        while not slow.aio_command_completed(cookie):
            slow.poll(-1)
        assert late.to_bytearray() == bytes(512)
    server.stop()


def test_a_hang_is_not_in_the_way_of_the_end(serve, tmp_path):
    release = tmp_path / "release"
    server = serve(*hanging(plugin("eval"), release), options=["--drain-timeout=1"])
    import nbd
    client = server.connect()
    client.aio_pread(nbd.Buffer(512), 1 << 20)
    wait_until(pathlib.Path(f"{release}.hangs").exists, "a request hangs")
    server.signal(15)
    assert server.wait() == 1
    release.touch()
    assert "eval[1]: pread has not come back for" in server.log()
    assert "the server ends" in server.log()
    close(client)
