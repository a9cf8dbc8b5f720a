# SPDX-License-Identifier: BSD-3-Clause
"""qemu's programs as clients: qemu-img and qemu-io."""
import json
import shutil

import pytest

from harness import MIB, run

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None,
                                reason="qemu-utils is not installed")


def qemu_io(uri, *commands):
    words = [word for command in commands for word in ("-c", command)]
    done = run("qemu-io", "-f", "raw", *words, uri)
    # qemu-io exits 0 after a failed command.
    for failure in ("failed", "Pattern verification", "error"):
        assert failure not in done.stdout + done.stderr, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(params=["memory", "file"])
def server(serve, engine, request, image):
    what = "64M" if request.param == "memory" else image(64 * MIB, content=b"")
    return serve(request.param, what, engine=engine)


def test_qemu_img_info(server):
    info = json.loads(run("qemu-img", "info", "--output=json", server.uri()).stdout)
    assert info["virtual-size"] == 64 * MIB
    assert info["format"] == "raw"


def test_qemu_img_convert_to_and_from_and_compare(server, image, folder):
    source = image(64 * MIB, "source.img")
    run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", source, server.uri())
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", source, server.uri())
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", server.uri(), folder / "copy.qcow2")
    run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", source, folder / "copy.qcow2")


def test_qemu_img_compare_notices_a_difference(server, image):
    other = image(64 * MIB, "other.img")
    assert run("qemu-img", "compare", "-f", "raw", "-F", "raw", other, server.uri(),
               check=False).returncode == 1


def test_qemu_img_map(server):
    qemu_io(server.uri(), "write -P 1 4M 1M", "flush")
    extents = json.loads(run("qemu-img", "map", "--output=json", "-f", "raw",
                             server.uri()).stdout)
    assert [(e["start"], e["length"], e["data"]) for e in extents] == [
        (0, 4 * MIB, False), (4 * MIB, MIB, True), (5 * MIB, 59 * MIB, False)]


def test_qemu_io_patterns_aligned(server):
    qemu_io(server.uri(), "write -P 0x5a 0 1M", "read -P 0x5a 0 1M", "read -P 0 1M 1M",
            "write -P 0xa5 63M 1M", "flush", "read -P 0xa5 63M 1M")


def test_qemu_io_patterns_unaligned(server):
    qemu_io(server.uri(), "write -P 1 100 5000", "read -P 1 100 5000", "read -P 0 0 100",
            "read -P 0 5100 900", "write -P 2 4095 2", "read -P 2 4095 2", "read -P 1 4097 1003")


def test_qemu_io_zeroes_and_discard(server):
    qemu_io(server.uri(), "write -P 7 0 8M", "write -z 1M 1M", "read -P 0 1M 1M",
            "write -z -u 2M 1M", "read -P 0 2M 1M", "discard 4M 1M", "write -P 9 4M 64k",
            "read -P 9 4M 64k", "read -P 7 5M 3M", "flush")


def test_qemu_io_fua(server):
    qemu_io(server.uri(), "write -f -P 3 0 64k", "write -z -f 64k 64k", "read -P 3 0 64k",
            "read -P 0 64k 64k")


def test_qemu_io_requests_in_flight(server):
    commands = [f"aio_write -P {number + 1} {number}M 1M" for number in range(32)]
    checks = [f"read -P {number + 1} {number}M 1M" for number in range(32)]
    qemu_io(server.uri(), *commands, "aio_flush", *checks)


def test_qemu_io_large(server):
    qemu_io(server.uri(), "write -P 4 0 32M", "read -P 4 0 32M", "write -P 5 1 33554431",
            "read -P 5 1 33554431")


def test_qemu_image_inside_an_export(server, folder):
    """A qcow2 image whose bytes live on the server."""
    run("qemu-img", "create", "-f", "qcow2", server.uri(), "32M")
    done = run("qemu-io", "-f", "qcow2", "-c", "write -P 6 5M 2M", "-c", "read -P 6 5M 2M",
               server.uri())
    assert "failed" not in done.stdout
    run("qemu-img", "check", "-f", "qcow2", server.uri())
    run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", server.uri(), folder / "raw.img")
    content = (folder / "raw.img").read_bytes()
    assert content[5 * MIB:7 * MIB] == b"\6" * (2 * MIB)
