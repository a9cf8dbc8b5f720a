# SPDX-License-Identifier: BSD-3-Clause
"""The fua filter over an image file: what reaches the file, as the trace (-v) shows it."""
import re

import nbd
import pytest

from harness import KIB, MIB, wait_until
from rawclient import ERR_UNKNOWN, OPT_GO, Raw, go_data

pytestmark = pytest.mark.weft_only
FUA = nbd.CMD_FLAG_FUA
CALL = re.compile(r"debug: file: (write|zero|trim|flush|close)(?![-\w])"
                  r"( offset=\S+ length=\S+)?(.*)")


def calls_of(server):
    """The calls of the file, without places: ["write fua", "flush", "close"]."""
    calls = []
    for line in server.log().splitlines():
        found = CALL.search(line)
        if found:
            calls.append(found[1] + found[3].replace(" may_trim", ""))
    return calls


def start(serve, engine, image, *parameters, options=()):
    return serve("file", image(MIB), *parameters, engine=engine,
                 options=["-v", "--filter=fua", *options])


def change_and_flush(client, flags):
    client.pwrite(b"x" * 4 * KIB, 0, flags)
    client.zero(4 * KIB, 8 * KIB, flags)
    client.trim(4 * KIB, 16 * KIB, flags)
    client.flush()


@pytest.mark.parametrize("mode, flags, expected", [
    ("pass", FUA, ["write fua", "zero fua", "trim fua", "flush"]),
    ("pass", 0, ["write", "zero", "trim", "flush"]),
    ("none", 0, ["write", "zero", "trim", "flush"]),
    ("emulate", FUA, ["write", "flush", "zero", "flush", "trim", "flush", "flush"]),
    ("native", FUA, ["write fua", "zero fua", "trim fua", "flush"]),
    ("force", 0, ["write fua", "zero fua", "trim fua"]),
    ("force", FUA, ["write fua", "zero fua", "trim fua"]),
    ("discard", FUA, ["write", "zero", "trim"]),
])
def test_what_reaches_the_file(serve, engine, image, mode, flags, expected):
    server = start(serve, engine, image, f"fuamode={mode}")
    with server.client() as client:
        assert client.can_fua() is (mode != "none")
        change_and_flush(client, flags)
    wait_until(lambda: "close" in calls_of(server), "the disk is closed")
    assert calls_of(server) == [*expected, "close"]


def test_discard_says_that_it_is_unsafe(serve, engine, image):
    server = start(serve, engine, image, "fuamode=discard")
    assert "warning: fua: fuamode=discard is unsafe" in server.log()
    with server.client() as client:
        assert client.can_flush() and client.can_fua() and not client.can_multi_conn()
    server.stop()
    for mode in ("none", "emulate", "native", "force", "pass"):
        server = start(serve, engine, image, f"fuamode={mode}")
        assert "unsafe" not in server.log()
        with server.client() as client:
            assert client.can_multi_conn()
        server.stop()


@pytest.mark.parametrize("mode", ["pass", "discard", "force"])
@pytest.mark.parametrize("leaves", ["politely", "abruptly"])
def test_flush_on_close(serve, engine, image, mode, leaves):
    server = start(serve, engine, image, f"fuamode={mode}", "flush-on-close=true")
    with Raw(server.socket) as client:
        client.negotiate()
        client.write(0, b"x" * 4 * KIB)
        assert client.reply().error == 0
        if leaves == "politely":
            client.disconnect()
    write = "write fua" if mode == "force" else "write"
    wait_until(lambda: "close" in calls_of(server), "the disk is closed")
    assert calls_of(server) == [write, "flush", "close"]


def test_a_client_that_changed_nothing_is_not_flushed(serve, engine, image):
    server = start(serve, engine, image, "fuamode=pass", "flush-on-close=true")
    with server.client() as client:
        client.pread(512, 0)
    wait_until(lambda: "close" in calls_of(server), "the disk is closed")
    assert calls_of(server) == ["close"]


def test_a_mode_that_cannot_be_had_is_an_error_of_the_open(serve, engine):
    for mode in ("native", "force"):
        server = serve("memory", "1M", engine=engine,
                       options=[f"--filter=fua:fuamode={mode}", "--filter=fua:fuamode=none"])
        with Raw(server.socket) as client:
            client.greet()
            client.option(OPT_GO, go_data())
            kind, text = client.option_replies(OPT_GO)[-1]
            assert kind == ERR_UNKNOWN and f"fuamode={mode} needs a disk".encode() in text
        assert f"fuamode={mode} needs a disk that can do FUA, or flush" in server.log()
        server.stop()
        server = serve("memory", "1M", engine=engine, options=[
            "-r", f"--filter=fua:fuamode={mode}", "--filter=fua:fuamode=none"])
        with server.client() as client:  # nothing is written: there is nothing to refuse
            assert client.pread(512, 0) == bytes(512)
        server.stop()
