# SPDX-License-Identifier: BSD-3-Clause
"""The error filter: which operations fail, how often, with what, and when."""
import errno
import os

import nbd
import pytest

from harness import MIB, NBDKIT, WEFT, run
from manuals import examples, in_folder, words

pytestmark = pytest.mark.weft_only

BASE = ("base:allocation",)
OPERATIONS = {
    "pread": lambda client: client.pread(512, 0),
    "pwrite": lambda client: client.pwrite(b"x" * 512, 0),
    "trim": lambda client: client.trim(512, 0),
    "zero": lambda client: client.zero(512, 0),
    "extents": lambda client: client.block_status(512, 0, lambda *_: 0),
    "cache": lambda client: client.cache(512, 0),
    "flush": lambda client: client.flush(),
}
COMMON = set(OPERATIONS) - {"flush"}
ERRORS = ["EPERM", "EIO", "ENOMEM", "EINVAL", "ENOSPC", "ESHUTDOWN"]


def failures(client, names=OPERATIONS):
    """{operation: errno} of those that fail."""
    result = {}
    for name in names:
        try:
            OPERATIONS[name](client)
        except nbd.Error as error:
            result[name] = error.errnum
    return result


@pytest.mark.parametrize("error", ERRORS)
def test_each_error_reaches_the_client_by_its_name(serve, engine, error):
    server = serve("--filter=error", "memory", "1M", "error-rate=100%", f"error={error}",
                   engine=engine)
    with server.client(contexts=BASE) as client:
        assert failures(client) == dict.fromkeys(COMMON, getattr(errno, error))
    assert f"injecting {error} into pwrite" in server.log()


@pytest.mark.parametrize("plugin", ["memory", "file"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_fails_alone(serve, folder, name, plugin):
    image = folder / "image"
    image.write_bytes(bytes(MIB))
    server = serve("--filter=error", plugin, "1M" if plugin == "memory" else image,
                   "error-rate=0", f"error-{name}-rate=1", f"error-{name}=ENOSPC")
    with server.client(contexts=BASE) as client:
        assert failures(client) == {name: errno.ENOSPC}


def test_nothing_fails_by_default(serve):
    server = serve("--filter=error", "memory", "1M", "error=ENOSPC")
    with server.client(contexts=BASE) as client:
        assert failures(client) == {}


def test_the_later_parameter_counts(serve):
    server = serve("--filter=error", "memory", "1M", "error-pread-rate=1", "error-rate=0",
                   "error-pwrite-rate=1", "error-pwrite=EPERM", "error=ENOSPC")
    with server.client(contexts=BASE) as client:
        assert failures(client) == {"pwrite": errno.ENOSPC}


def test_what_fails_does_not_reach_the_disk(serve, engine):
    server = serve("--filter=error", "memory", "1M", "error-pwrite-rate=50%", engine=engine)
    with server.client() as client:
        failed = 0
        for i in range(400):
            try:
                client.pwrite(b"x" * 512, i * 512)
            except nbd.Error:
                failed += 1
                assert client.pread(512, i * 512) == bytes(512)
            else:
                assert client.pread(512, i * 512) == b"x" * 512
        # 6 standard deviations around the half.
        assert 140 <= failed <= 260


def test_a_file_turns_errors_on_and_off(serve, engine, folder):
    trigger = folder / "inject"
    server = serve("--filter=error", "memory", "1M", "error-rate=1", "error-flush-rate=1",
                   "error-file=inject", engine=engine, preexec=in_folder(folder))
    with server.client(contexts=BASE) as client:
        for _ in range(3):
            assert failures(client) == {}
            trigger.touch()
            assert failures(client) == dict.fromkeys(OPERATIONS, errno.EIO)
            trigger.unlink()


def test_each_operation_may_have_its_own_file(serve, folder):
    trigger = folder / "inject"
    server = serve("--filter=error", "memory", "1M", "error-rate=1",
                   f"error-pread-file={trigger}", "error-pwrite-rate=0")
    with server.client(contexts=BASE) as client:
        assert set(failures(client)) == COMMON - {"pread", "pwrite"}
        trigger.touch()
        assert set(failures(client)) == COMMON - {"pwrite"}


def test_open_fails(serve, engine, folder):
    trigger = folder / "inject"
    trigger.touch()
    server = serve("--filter=error", "memory", "1M", "error-open-rate=1", "error-open=EPERM",
                   f"error-open-file={trigger}", engine=engine)
    with pytest.raises(nbd.Error):
        server.connect()
    trigger.unlink()
    server.check_serves()


def test_a_failing_flush_is_no_failing_fua_where_the_disk_has_fua(serve):
    server = serve("--filter=error", "memory", "1M", "error-flush-rate=1")
    with server.client() as client:
        with pytest.raises(nbd.Error):
            client.flush()
        client.pwrite(b"x" * 512, 0, nbd.CMD_FLAG_FUA)


@pytest.mark.parametrize("argument", [
    "error=", "error=eio", "error=EROFS", "error-rate=", "error-rate=101%", "error-rate=1.5",
    "error-rate=-1", "error-rate=x", "error-rate=1:0", "error-file=", "error-pread=x",
    "error-pwrite-rate=2", "error-flush-rate=y", "error-open=none", "error-cache-file="])
def test_wrong_parameters_are_refused_in_one_line(argument):
    done = run(WEFT, "--filter=error", "memory", "1M", argument, "--run", "true", check=False)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert argument.split("=")[0] in done.stderr


@pytest.mark.parametrize("argument", ["error-preads=EIO", "error-pread-rates=1", "error-write=EIO",
                                      "error-=1", "errors=1"])
def test_other_parameters_are_not_taken(argument):
    done = run(WEFT, "--filter=error", "memory", "1M", argument, "--run", "true", check=False)
    assert done.returncode == 1
    assert "memory" in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.skipif(not os.path.exists(NBDKIT), reason="no nbdkit to compare with")
@pytest.mark.parametrize("arguments", [
    ["error-rate=100%"], ["error-rate=0"], ["error-rate=1", "error=EINVAL"],
    ["error-pread-rate=1.0", "error-zero-rate=100%", "error=ENOSPC", "error-zero=EPERM"],
    ["error-extents-rate=1", "error-cache-rate=1", "error-cache=ESHUTDOWN"],
    ["error-trim-rate=1", "error-rate=0"], ["error-rate=1", "error-file=/nonexistent"],
    ["error-rate=1", "error-file=/nonexistent", "error-trim-file=/"],
])
def test_what_fails_is_what_fails_with_nbdkit(arguments):
    results = []
    for program in NBDKIT, WEFT:
        client = nbd.NBD()
        client.add_meta_context("base:allocation")
        client.connect_command([program, "-s", "--filter=error", "memory", "1M", *arguments])
        results.append(failures(client))
        client.shutdown()
    assert results[0] == results[1]


def test_examples_of_the_manual(serve, folder):
    few, full, file, third = examples("filters/error/weft-error-filter.md")
    (folder / "disk.img").write_bytes(bytes(MIB))

    server = serve(*words(few), preexec=in_folder(folder))
    with server.client() as client:
        failed = sum(len(failures(client, ["pread", "pwrite"])) for _ in range(1500))
        assert 1 <= failed <= 120, "about 30 of 3000"
    server.stop()

    server = serve(*words(full), preexec=in_folder(folder))
    with server.client(contexts=BASE) as client:
        assert failures(client) == {"pwrite": errno.ENOSPC, "zero": errno.ENOSPC}
    server.stop()

    server = serve(*words(file), preexec=in_folder(folder))
    with server.client(contexts=BASE) as client:
        assert failures(client) == {}
        (folder / "inject").touch()
        assert set(failures(client)) == COMMON
    server.stop()

    server = serve(*words(third))
    with server.client() as client:
        failed = sum(len(failures(client, ["flush"])) for _ in range(300))
        assert 40 <= failed <= 180, "about 100 of 300"
