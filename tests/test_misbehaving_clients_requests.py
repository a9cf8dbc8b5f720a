# SPDX-License-Identifier: BSD-3-Clause
"""Clients that send wrong, cut or enormous requests, or do not read the replies."""
import contextlib
import os
import socket
import struct

import pytest

from harness import GIB, IS_WEFT, MIB, SANITIZED
from rawclient import (CHUNK_ERROR, CMD_BLOCK_STATUS, CMD_CACHE, CMD_FLUSH, CMD_READ, CMD_RESIZE,
                       CMD_TRIM, CMD_WRITE, CMD_WRITE_ZEROES, EINVAL, ENOSPC, EOVERFLOW, EPERM,
                       FLAG_DF, FLAG_FAST_ZERO, FLAG_FUA, FLAG_NO_HOLE, FLAG_PAYLOAD_LEN,
                       FLAG_REQ_ONE, REQUEST_MAGIC, Closed, Raw)

pytestmark = pytest.mark.sanitized
SIZE = 256 * MIB


@pytest.fixture
def server(serve, engine):
    server = serve("memory", "256M", engine=engine)
    yield server
    server.check_serves()


@pytest.fixture(params=[False, True], ids=["simple", "structured"])
def raw(server, request):
    with Raw(server.socket) as client:
        client.negotiate(structured=request.param, allocation=request.param)
        client.structured = request.param
        yield client
        if not getattr(client, "ends", False):
            # Whatever the test sent, this very connection is still in step.
            assert client.read(SIZE - 512, 512) == bytes(512)


def test_bad_request_magic_closes(raw):
    raw.ends = True
    raw.request(CMD_READ, 0, 512, magic=REQUEST_MAGIC + 1)
    answer = raw.expect_closed()
    assert answer == b"" or answer[8:12] != bytes(4)


@pytest.mark.parametrize("command", [CMD_RESIZE, 9, 100, 0xFFFF])
def test_unknown_command(raw, command):
    assert raw.error_of(command, 0, 512) == EINVAL


@pytest.mark.parametrize("flag", [1 << 7, 1 << 15])
@pytest.mark.parametrize("command", [CMD_READ, CMD_FLUSH, CMD_TRIM, CMD_CACHE, CMD_WRITE_ZEROES])
def test_unknown_flag(raw, command, flag):
    length = 0 if command == CMD_FLUSH else 512
    assert raw.error_of(command, 0, length, flag) == EINVAL


def test_unknown_flag_on_write(raw):
    assert raw.error_of(CMD_WRITE, 0, 512, 1 << 9, b"w" * 512) == EINVAL
    assert raw.read(0, 512) == bytes(512)


MISPLACED = [(CMD_TRIM, FLAG_NO_HOLE), (CMD_TRIM, FLAG_FAST_ZERO), (CMD_CACHE, FLAG_DF),
             (CMD_READ, FLAG_REQ_ONE), (CMD_WRITE_ZEROES, FLAG_DF), (CMD_READ, FLAG_FAST_ZERO)]


@pytest.mark.parametrize("command,flag", MISPLACED)
def test_misplaced_flag(raw, command, flag):
    assert raw.error_of(command, 0, 512, flag) == EINVAL


def test_df_on_write(raw):
    assert raw.error_of(CMD_WRITE, 0, 512, FLAG_DF, b"w" * 512) == EINVAL
    assert raw.read(0, 512) == bytes(512)


def test_payload_len_without_extended_headers(raw):
    assert raw.error_of(CMD_WRITE, 0, 512, FLAG_PAYLOAD_LEN, b"w" * 512) == EINVAL


PAST_END = {"past end": (SIZE - 512, 1024), "at end": (SIZE, 1), "far away": (1 << 40, 512),
            "wraps": ((1 << 64) - 512, 1024), "last": ((1 << 64) - 1, 0xFFFFFFFF)}


@pytest.mark.parametrize("place", PAST_END.values(), ids=PAST_END.keys())
@pytest.mark.parametrize("command", [CMD_READ, CMD_TRIM, CMD_CACHE])
def test_past_the_end(raw, command, place):
    assert raw.error_of(command, *place) in (EINVAL, EOVERFLOW)


@pytest.mark.parametrize("place", PAST_END.values(), ids=PAST_END.keys())
def test_zeroes_past_the_end(raw, place):
    assert raw.error_of(CMD_WRITE_ZEROES, *place) == ENOSPC


@pytest.mark.parametrize("offset", [SIZE - 512, SIZE, 1 << 40, (1 << 64) - 512])
def test_write_past_the_end(raw, offset):
    assert raw.error_of(CMD_WRITE, offset, 1024, payload=bytes(1024)) == ENOSPC


def test_block_status_past_the_end(raw):
    assert raw.error_of(CMD_BLOCK_STATUS, SIZE - 512, 1024) == EINVAL


def test_changes_to_a_read_only_export(serve, engine):
    server = serve("memory", "1M", engine=engine, options=["-r"])
    with Raw(server.socket) as raw:
        _, flags = raw.negotiate()
        assert flags & 2, "the export says that it is read-only"
        assert raw.error_of(CMD_WRITE, 0, 512, payload=bytes(512)) == EPERM
        # Past the end or not, it is the export that forbids it.
        for command in (CMD_TRIM, CMD_WRITE_ZEROES):
            assert raw.error_of(command, 0, 512) in (EPERM, EINVAL)
        assert raw.read(0, 512) == bytes(512)
    server.check_serves()


@pytest.mark.weft_only
def test_length_0_succeeds(raw):
    assert raw.error_of(CMD_READ, 0, 0) == 0
    assert raw.error_of(CMD_WRITE, 0, 0) == 0


@pytest.mark.parametrize("command", [CMD_READ, CMD_WRITE, CMD_TRIM, CMD_CACHE, CMD_WRITE_ZEROES,
                                     CMD_BLOCK_STATUS])
def test_length_0_does_not_disconnect(raw, command):
    raw.error_of(command, 0, 0)
    raw.error_of(command, SIZE, 0)


@pytest.mark.weft_only
def test_flush_with_offset_and_length_is_accepted(raw):
    assert raw.error_of(CMD_FLUSH, 512, 512) == 0


@pytest.mark.parametrize("length", [32 * MIB, 32 * MIB + 1, 64 * MIB])
def test_large_read(raw, length):
    raw.request(CMD_READ, 0, length)
    reply = raw.reply(length)
    assert reply.error == 0 and len(reply.data) == length


def test_read_too_large(raw):
    assert raw.error_of(CMD_READ, 0, 64 * MIB + 1) != 0
    assert raw.error_of(CMD_READ, 0, 0xFFFFFFFF) != 0


@pytest.mark.parametrize("length", [32 * MIB, 32 * MIB + 512, 64 * MIB])
def test_large_write(raw, length):
    pattern = os.urandom(4096)
    data = (pattern * (length // 4096 + 1))[:length]
    assert raw.error_of(CMD_WRITE, 512, length, payload=data) == 0
    assert raw.read(length, 512) == data[-512:]
    raw.error_of(CMD_WRITE_ZEROES, 512, length)


def test_write_too_large_is_refused_or_closes(raw):
    raw.ends = True
    with contextlib.suppress(Closed):
        length = 64 * MIB + 512
        raw.request(CMD_WRITE, 0, length)
        piece = bytes(MIB)
        for _ in range(length // MIB):
            raw.send(piece)
        raw.send(bytes(512))
        assert raw.reply().error != 0


def test_write_of_4_gib_closes_before_it_is_read(raw):
    raw.ends = True
    raw.request(CMD_WRITE, 0, 0xFFFFFFFF)
    raw.expect_closed()


@pytest.mark.parametrize("command", [CMD_TRIM, CMD_CACHE, CMD_WRITE_ZEROES])
def test_commands_without_payload_longer_than_the_largest_payload(raw, command):
    assert raw.error_of(command, 0, 128 * MIB) in (0, EINVAL, EOVERFLOW)


def test_zeroes_longer_than_the_largest_payload_zero_everything(raw):
    """As in a server that wrote its first 64 MiB again and again."""
    for offset in (0, 64 * MIB, 128 * MIB - 512):
        assert raw.error_of(CMD_WRITE, offset, 512, payload=b"x" * 512) == 0
    assert raw.error_of(CMD_WRITE_ZEROES, 0, 128 * MIB) == 0
    for offset in (0, 64 * MIB, 128 * MIB - 512):
        assert raw.read(offset, 512) == bytes(512)


def test_block_status_without_a_context(serve, engine):
    server = serve("memory", "1M", engine=engine)
    with Raw(server.socket) as raw:
        raw.negotiate(structured=True)
        assert raw.error_of(CMD_BLOCK_STATUS, 0, 512) == EINVAL
        assert raw.read(0, 512) == bytes(512)


@pytest.mark.weft_only
@pytest.mark.parametrize("flags", [0, FLAG_REQ_ONE])
def test_block_status_of_4_gib_on_a_disk_of_1_tib(serve, engine, flags):
    """As CVE-2025-47711 and CVE-2025-47712: lengths close to 2^32."""
    server = serve("null", "1T", engine=engine)
    with Raw(server.socket) as raw:
        raw.negotiate(allocation=True)
        for length in (0xFFFFFFFF, 0xFFFFFE00, 0x80000000):
            for offset in (0, 512, (1 << 40) - length):
                raw.request(CMD_BLOCK_STATUS, offset, length, flags)
                reply = raw.reply()
                assert reply.error == 0 and reply.extents
                total = sum(extent for extent, _ in reply.extents)
                assert 0 < total <= (1 << 40) - offset
                if flags:
                    assert len(reply.extents) == 1 and total <= length
        assert raw.read(0, 512) == bytes(512)
    server.check_serves(stores=False)


def test_errors_of_reads_are_structured(server):
    with Raw(server.socket) as raw:
        raw.negotiate(structured=True)
        raw.request(CMD_READ, SIZE, 512)
        reply = raw.reply()
        assert reply.kinds == [CHUNK_ERROR] and reply.error == EINVAL


def test_df_is_honoured(server):
    with Raw(server.socket) as raw:
        raw.negotiate(structured=True)
        # Data between holes: without DF the server may send several chunks.
        raw.write(MIB, b"d" * 4096)
        assert raw.reply().error == 0
        raw.request(CMD_READ, 0, 2 * MIB, FLAG_DF)
        reply = raw.reply()
        assert len(reply.kinds) == 1
        assert reply.data == bytes(MIB) + b"d" * 4096 + bytes(MIB - 4096)


@pytest.mark.weft_only  # nbdkit answers some of them with ESHUTDOWN when the machine is busy
def test_eight_writes_then_disconnect(server):
    tags = [os.urandom(65536) for _ in range(8)]
    with Raw(server.socket) as raw:
        raw.negotiate()
        for number, tag in enumerate(tags):
            raw.write(number * 65536, tag, cookie=1000 + number)
        raw.disconnect()
        replies = [raw.reply() for _ in tags]
        assert sorted(reply.cookie for reply in replies) == list(range(1000, 1008))
        assert all(reply.error == 0 for reply in replies)
        assert raw.expect_closed() == b""
    with server.client() as client:
        assert client.pread(8 * 65536, 0) == b"".join(tags)


def test_requests_behind_a_disconnect_are_not_served(server):
    with Raw(server.socket) as raw:
        raw.negotiate()
        raw.disconnect()
        with contextlib.suppress(Closed):
            raw.write(0, b"x" * 512)
        assert raw.expect_closed() == b""
    with server.client() as client:
        assert client.pread(512, 0) == bytes(512)


def test_same_cookie_for_every_request(server):
    with Raw(server.socket) as raw:
        raw.negotiate()
        for number in range(16):
            raw.write(number * 512, bytes([number]) * 512, cookie=7)
        assert {raw.reply().cookie for _ in range(16)} == {7}
        for number in range(16):
            assert raw.read(number * 512, 512) == bytes([number]) * 512


def test_disconnect_at_every_byte_of_a_write(server):
    data = struct.pack(">IHHQQI", REQUEST_MAGIC, 0, CMD_WRITE, 1, 0, 64) + b"x" * 64
    for cut in range(len(data)):
        with Raw(server.socket) as raw:
            raw.negotiate()
            raw.send(data[:cut])
    with server.client() as client:
        # A write whose last byte never came is no write.
        assert client.pread(512, 0) == bytes(512)


def test_disconnect_in_the_middle_of_a_large_payload(server):
    for part in (1, 4096, 5 * MIB, 32 * MIB - 1):
        with Raw(server.socket) as raw:
            raw.negotiate()
            raw.request(CMD_WRITE, 0, 32 * MIB)
            raw.send(b"x" * part)
    if IS_WEFT:
        with server.client() as client:
            assert client.pread(MIB, 0) == bytes(MIB)


@pytest.mark.weft_only  # nbdkit 1.32 can abort here: assertion in raw_send_socket
def test_disconnect_while_replies_are_on_their_way(server):
    with server.client() as client:
        client.pwrite(b"d" * 4 * MIB, 0)  # a hole would be a few bytes on the wire
    for _ in range(10):
        with Raw(server.socket) as raw:
            raw.negotiate(structured=True)
            for _ in range(20):
                raw.request(CMD_READ, 0, 4 * MIB)
            raw.receive(1000)


def test_request_byte_by_byte(server):
    with Raw(server.socket) as raw:
        raw.negotiate()
        for byte in struct.pack(">IHHQQI", REQUEST_MAGIC, 0, CMD_WRITE, 5, 4096, 64) + b"y" * 64:
            raw.send(bytes([byte]))
        reply = raw.reply()
        assert (reply.cookie, reply.error) == (5, 0)
        assert raw.read(4096, 64) == b"y" * 64


def send_until_full(client, data, limit):
    """Sends data again and again until the socket takes no more; returns how often."""
    client.socket.setblocking(False)
    for count in range(limit):
        try:
            sent = client.socket.send(data)
        except BlockingIOError:
            return count
        if sent < len(data):
            return count
    return limit


@pytest.mark.weft_only
def test_client_that_never_reads_its_replies(server):
    greedy = []
    try:
        for _ in range(4):
            client = Raw(server.socket)
            greedy.append(client)
            client.negotiate()
            request = struct.pack(">IHHQQI", REQUEST_MAGIC, 0, CMD_READ, 1, 0, 32 * MIB)
            send_until_full(client, request, 4096)
        for _ in range(50):
            server.check_serves()
    finally:
        for client in greedy:
            client.close()


@pytest.mark.weft_only
def test_memory_of_the_server_stays_within_its_budget(serve, engine):
    server = serve("null", "1T", engine=engine, options=["--max-memory=64M"])
    greedy = []
    try:
        for _ in range(8):
            client = Raw(server.socket)
            greedy.append(client)
            client.negotiate()
            request = struct.pack(">IHHQQI", REQUEST_MAGIC, 0, CMD_READ, 1, 0, 32 * MIB)
            send_until_full(client, request, 64)
        for _ in range(20):
            server.check_serves(stores=False)
        with open(f"/proc/{server.pid}/status", encoding="ascii") as status:
            peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
        if not SANITIZED:
            assert peak < 192 * 1024, f"{peak} KiB"
    finally:
        for client in greedy:
            client.close()


def test_client_that_promises_a_write_and_stalls(server):
    stalled = []
    try:
        for _ in range(4):
            client = Raw(server.socket)
            stalled.append(client)
            client.negotiate()
            client.request(CMD_WRITE, MIB, 32 * MIB)
            client.send(b"x" * 1000)
        # The same place, too: a write that has not arrived delays nobody.
        with server.client() as other:
            for _ in range(50):
                other.pwrite(b"o" * 4096, MIB)
                assert other.pread(4096, MIB) == b"o" * 4096
            other.flush()
            other.zero(4096, MIB)
    finally:
        for client in stalled:
            client.close()
    with server.client() as other:
        assert other.pread(4096, MIB) == bytes(4096)


def test_flood_of_connections(server):
    for _ in range(5):
        clients = []
        try:
            for _ in range(100):
                client = socket.socket(socket.AF_UNIX)
                clients.append(client)
                client.settimeout(20)
                client.connect(server.socket)
        finally:
            for client in clients:
                client.close()
    server.check_serves()


@pytest.mark.parametrize("flags", [FLAG_FUA, FLAG_NO_HOLE, FLAG_FUA | FLAG_NO_HOLE])
def test_odd_but_legal_flags_are_accepted(raw, flags):
    assert raw.error_of(CMD_WRITE_ZEROES, 0, 4096, flags) == 0
    assert raw.error_of(CMD_READ, 0, 512, FLAG_FUA & flags) == 0


def test_largest_disk(serve, engine):
    server = serve("memory", str((1 << 63) - 1), engine=engine)
    with Raw(server.socket) as raw:
        size, _ = raw.negotiate(structured=True)
        assert size == (1 << 63) - 1
        assert raw.error_of(CMD_WRITE, size - 100, 100, payload=b"e" * 100) == 0
        assert raw.read(size - 100, 100) == b"e" * 100
        assert raw.error_of(CMD_READ, size - 100, 101) == EINVAL
        assert raw.error_of(CMD_WRITE, size - 100, 101, payload=b"e" * 101) == ENOSPC
        if IS_WEFT:
            assert raw.error_of(CMD_TRIM, 0, 3 * GIB) == 0
