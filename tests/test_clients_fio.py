# SPDX-License-Identifier: BSD-3-Clause
"""fio writes checksummed blocks and verifies them (ioengine nbd, through libnbd)."""
import shutil

import pytest

from harness import MIB, run

pytestmark = [
    pytest.mark.skipif(shutil.which("fio") is None, reason="fio is not installed"),
    pytest.mark.skipif(shutil.which("fio") is not None and
                       "nbd" not in run("fio", "--enghelp", check=False).stdout.split(),
                       reason="this fio has no ioengine nbd"),
]


@pytest.fixture(params=["memory", "file"])
def server(serve, engine, request, image):
    what = "64M" if request.param == "memory" else image(64 * MIB, content=b"")
    return serve(request.param, what, engine=engine)


def fio(server, folder, *options):
    done = run("fio", "--name=verify", "--ioengine=nbd", f"--uri={server.uri()}",
               "--size=64M", "--thread", "--group_reporting", "--randseed=17", *options,
               cwd=folder, timeout_s=110)
    assert "err= 0" in done.stdout, done.stdout
    assert "verify:" not in done.stderr, done.stderr


@pytest.mark.parametrize("block", ["4k", "64k", "512-70000"])
def test_random_writes_verify(server, folder, block):
    size = "--bsrange" if "-" in block else "--bs"
    extra = ["--bs_unaligned"] if "-" in block else []
    fio(server, folder, "--rw=randwrite", f"{size}={block}", *extra, "--iodepth=16",
        "--io_size=32M", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1")


def test_mixed_load_verifies(server, folder):
    fio(server, folder, "--rw=randrw", "--bs=8k", "--iodepth=32", "--io_size=32M",
        "--verify=crc32c", "--verify_fatal=1", "--fsync=64")


def test_four_connections_verify(server, folder):
    fio(server, folder, "--rw=randwrite", "--bs=16k", "--iodepth=8", "--numjobs=4", "--size=16M",
        "--offset_increment=16M", "--verify=crc32c", "--verify_fatal=1")


def test_trims_between_writes(server, folder):
    fio(server, folder, "--rw=randtrim", "--bs=64k", "--iodepth=8", "--io_size=16M")
