# SPDX-License-Identifier: BSD-3-Clause
"""A file system on a loop device on nbdfuse on four connections, checked by fsck afterwards."""
import os
import shutil
import subprocess

import pytest

from harness import MIB, run, wait_until, why_no_fuse, why_no_loop

WHY_NOT = why_no_loop() or why_no_fuse() or (
    None if shutil.which("nbdfuse") else "nbdfuse is not installed")
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))
SIZE = 96 * MIB


@pytest.fixture(params=["memory", "file"])
def server(serve, engine, request, image):
    what = str(SIZE) if request.param == "memory" else image(SIZE, content=b"")
    return serve(request.param, what, engine=engine)


@pytest.fixture
def fuse(server, folder):
    """The export as a file, through nbdfuse with four connections."""
    where = folder / "fuse"
    where.mkdir()
    with subprocess.Popen(["nbdfuse", "--connections=4", where, server.uri()]) as process:
        try:
            wait_until((where / "nbd").exists, "nbdfuse has mounted")
            yield where / "nbd"
        finally:
            run("fusermount3", "-u", where, check=False)
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                run("fusermount3", "-u", "-z", where, check=False)
                process.kill()
    assert process.returncode == 0


def use_file_system(where):
    """Files of many sizes, removed and renamed; returns what must be there."""
    expected = {}
    for number in range(200):
        content = os.urandom(number * 211)
        (where / f"small-{number}").write_bytes(content)
        expected[f"small-{number}"] = content
    large = os.urandom(16 * MIB)
    (where / "large").write_bytes(large)
    expected["large"] = large
    for number in range(0, 200, 3):
        (where / f"small-{number}").unlink()
        del expected[f"small-{number}"]
    os.sync()
    for number in range(1, 200, 3):
        (where / f"small-{number}").rename(where / f"renamed-{number}")
        expected[f"renamed-{number}"] = expected.pop(f"small-{number}")
    return expected


def test_ext4_on_loop_on_four_connections(server, fuse, folder, mounts):
    device = mounts.loop(fuse)
    run("mkfs.ext4", "-q", device)
    mounts.mount(device, folder / "mnt", "-o", "discard")
    expected = use_file_system(folder / "mnt")
    run("fstrim", folder / "mnt")
    mounts.close()

    device = mounts.loop(fuse)
    run("e2fsck", "-fn", device)
    mounts.mount(device, folder / "mnt", "-o", "ro")
    found = {entry.name: entry.read_bytes() for entry in (folder / "mnt").iterdir()
             if entry.is_file()}
    assert found == expected
    mounts.close()

    # The same through another client: the whole disk, checked once more.
    run("nbdcopy", server.uri(), folder / "copy.img")
    run("e2fsck", "-fn", folder / "copy.img")
