# SPDX-License-Identifier: BSD-3-Clause
"""Extended headers: 64-bit lengths. No client of Debian 12 speaks them, so bytes it is."""
import struct

import pytest

from harness import GIB, MIB
from rawclient import (CHUNK_ERROR, CMD_BLOCK_STATUS, CMD_CACHE, CMD_FLUSH, CMD_READ, CMD_TRIM,
                       CMD_WRITE, CMD_WRITE_ZEROES, EINVAL, ENOSPC, ERR_INVALID,
                       FLAG_PAYLOAD_LEN, FLAG_REQ_ONE, OPT_EXPORT_NAME, OPT_EXTENDED_HEADERS,
                       OPT_STRUCTURED_REPLY, REP_ACK, Raw)

pytestmark = [pytest.mark.weft_only, pytest.mark.sanitized]
TIB = 1 << 40


@pytest.fixture
def server(serve, engine):
    server = serve("memory", "1T", engine=engine)
    yield server
    server.check_serves()


@pytest.fixture
def raw(server):
    with Raw(server.socket) as client:
        client.negotiate(extended=True, allocation=True)
        yield client
        assert client.read(TIB - 512, 512) == bytes(512)


def test_the_bytes_of_a_read(server):
    with Raw(server.socket) as raw:
        raw.negotiate(extended=True)
        raw.send(struct.pack(">IHHQQQ", 0x21E41C71, 0, 0, 0xC00C1E, 4096, 512))
        magic, flags, kind, cookie, offset, length = raw.unpack(">IHHQQQ")
        assert (magic, cookie, offset) == (0x6E8A278C, 0xC00C1E, 4096)
        assert flags == 1 and kind in (1, 2)
        raw.receive(length)


def test_every_reply_echoes_the_offset(raw):
    for command, offset, length in ((CMD_READ, 8192, 512), (CMD_TRIM, 1 * MIB, 4096),
                                    (CMD_WRITE_ZEROES, 5 * MIB, 4096), (CMD_FLUSH, 0, 0),
                                    (CMD_CACHE, 512, 512), (CMD_BLOCK_STATUS, 4096, 4096)):
        raw.request(command, offset, length)
        reply = raw.reply()
        assert reply.error == 0
        assert set(reply.offsets) == {offset}


def test_write_needs_payload_len(raw):
    raw.write(4096, b"extended" * 64)
    assert raw.reply().error == 0
    assert raw.read(4096, 8) == b"extended"
    raw.request(CMD_WRITE, 4096, 512, FLAG_PAYLOAD_LEN, b"again..." * 64)
    assert raw.reply().error == 0
    assert raw.read(4096, 8) == b"again..."


def test_64_bit_zeroes_trim_and_status(raw):
    for offset in (0, 5 * GIB, 9 * GIB):
        raw.write(offset, b"x" * 512)
        assert raw.reply().error == 0
    assert raw.error_of(CMD_WRITE_ZEROES, 0, 6 * GIB) == 0
    assert raw.read(0, 512) == raw.read(5 * GIB, 512) == bytes(512)
    assert raw.read(9 * GIB, 512) == b"x" * 512
    raw.request(CMD_BLOCK_STATUS, 0, TIB)
    reply = raw.reply()
    total = sum(length for length, _ in reply.extents)
    assert reply.error == 0 and total > 5 * GIB
    assert raw.error_of(CMD_TRIM, 0, TIB) == 0
    assert raw.read(9 * GIB, 512) == bytes(512)
    raw.request(CMD_BLOCK_STATUS, 0, TIB, FLAG_REQ_ONE)
    assert len(raw.reply().extents) == 1


def test_past_the_end_with_64_bit_lengths(raw):
    for length in (TIB + 1, (1 << 63), (1 << 64) - 1):
        assert raw.error_of(CMD_WRITE_ZEROES, 0, length) == ENOSPC
        assert raw.error_of(CMD_TRIM, 512, length) == EINVAL
        assert raw.error_of(CMD_BLOCK_STATUS, 0, length) == EINVAL


def test_error_of_a_read_is_an_extended_chunk(raw):
    raw.request(CMD_READ, TIB, 512)
    reply = raw.reply()
    assert (reply.kinds, reply.error, reply.offsets) == ([CHUNK_ERROR], EINVAL, [TIB])


def test_unexpected_payload_is_consumed(raw):
    raw.request(CMD_TRIM, 0, 512, FLAG_PAYLOAD_LEN, b"p" * 512)
    assert raw.reply().error == EINVAL


def test_option_with_data_and_twice(server):
    with Raw(server.socket) as raw:
        raw.greet()
        assert raw.ask(OPT_EXTENDED_HEADERS, b"data") == ERR_INVALID
        assert raw.ask(OPT_EXTENDED_HEADERS) == REP_ACK
        assert raw.ask(OPT_EXTENDED_HEADERS) in (REP_ACK, ERR_INVALID)
        raw.ask(OPT_STRUCTURED_REPLY)
        raw.go()
        raw.extended = True
        raw.request(CMD_READ, 0, 512)
        assert raw.reply().offsets, "extended headers stay on"


def test_export_name_behind_extended_headers_closes(server):
    with Raw(server.socket) as raw:
        raw.greet()
        assert raw.ask(OPT_EXTENDED_HEADERS) == REP_ACK
        raw.option(OPT_EXPORT_NAME)
        assert raw.expect_closed() == b""
