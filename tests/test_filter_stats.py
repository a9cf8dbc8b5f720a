# SPDX-License-Identifier: BSD-3-Clause
"""The stats filter: its numbers are exact, and its text is that of nbdkit's."""
import os
import re
import signal
import threading

import nbd
import pytest

from harness import KIB, MIB, NBDKIT, WEFT, run, wait_until
from manuals import examples, in_folder, run_example, words

pytestmark = pytest.mark.weft_only

UNITS = {"bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
SUMMARY = re.compile(r"(\w+): (\d+) ops, (\d+\.\d{6}) s, ([\d.]+) (\w+), (.*)")


def parse(text):
    """{operation: (ops, bytes, histogram lines)} of a summary, as strictly as a program would."""
    result, name = {}, None
    for line in text.splitlines():
        found = SUMMARY.fullmatch(line)
        if found:
            name, ops, _, number, unit, rates = found.groups()
            pattern = r"[\d.]+ \w+/s|\(n/a\)/s"
            if name == "total":
                assert re.fullmatch(pattern, rates), line
            else:
                assert re.fullmatch(f"({pattern}) op, ({pattern}) total", rates), line
            result[name] = (int(ops), float(number) * UNITS[unit], [])
        elif line:
            assert name and line.startswith("  "), line
            result[name][2].append(line)
    return result


def workload(client):
    """Without what is documented to differ: sizes that occur equally often, parts of a percent."""
    for size, count in ((512, 10), (1024, 5), (2048, 25), (4096, 60)):
        for i in range(count):
            client.pread(size, (i + 1) * size)
    for size, count in ((512, 12), (100, 8)):
        for i in range(count):
            client.pwrite(b"x" * size, (i + 1) * size)
    for i in range(20):
        client.trim(64 * KIB, i * MIB)
        client.zero(16 * KIB, (i // 3 + 1) * MIB)
        client.block_status(MIB, i // 4 * MIB, lambda *_: 0)
    for _ in range(3):
        client.flush()


def stats_by(program, folder, threshold):
    path = folder / "stats"
    client = nbd.NBD()
    client.add_meta_context("base:allocation")
    client.connect_command([program, "-s", "--filter=stats", "memory", "64M", f"statsfile={path}",
                            "statsappend=on", f"statsthreshold={threshold}"])
    workload(client)
    client.shutdown()
    del client  # waits for the program
    return wait_until(lambda: path.exists() and path.read_text(), "the summary is written")


@pytest.mark.skipif(not os.path.exists(NBDKIT), reason="no nbdkit to compare with")
@pytest.mark.parametrize("threshold", [0, 50, 80, 95, 100])
def test_numbers_and_text_are_those_of_nbdkit(folder, threshold):
    summaries = []
    for program in NBDKIT, WEFT:
        place = folder / os.path.basename(program)
        place.mkdir()
        text = stats_by(program, place, threshold)
        # nbdkit gives all bytes of the operation as those of the sizes that are not shown.
        text = re.sub(r"(other sizes: .* reqs), .*", r"\1", text)
        if threshold != 100:  # where a list of alignments ends is documented to differ
            assert all(re.fullmatch(r" {9}[ 1-6]\d( bit |\+ bit-)aligned: +[\d.]+% \(\d+\)",
                                    line) for line in text.splitlines() if "aligned" in line)
            text = re.sub(r".*aligned:.*\n", "", text)
        summaries.append((parse(text),
                          [line == "" for line in text.splitlines()]))
    theirs, ours = summaries
    assert ours[0] == theirs[0]
    assert ours[1] == theirs[1], "empty lines stand in the same places"
    assert list(ours[0]) == list(theirs[0]), "in the same order"


def test_concurrent_connections_are_counted_exactly(serve, engine, folder):
    path = folder / "stats"
    server = serve("--filter=stats", "memory", "64M", f"statsfile={path}", engine=engine,
                   options=["--threads=4"])

    def load():
        with server.client() as client:
            for i in range(300):
                client.pread(4096, i * 4096)
                client.pwrite(b"x" * 512, i * 512)
            client.flush()

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    server.stop()
    summary = parse(path.read_text())
    assert summary["total"][0] == 8 * 601
    assert summary["read"][:2] == (2400, pytest.approx(2400 * 4096, rel=0.01))
    assert summary["write"][:2] == (2400, pytest.approx(2400 * 512, rel=0.01))
    assert summary["flush"][0] == 8
    assert set(summary) == {"total", "read", "write", "flush"}, "no operation that nobody asked for"


@pytest.mark.parametrize("plugin", ["memory", "file"])
def test_reads_of_holes_are_reads(serve, engine, folder, plugin):
    image = folder / "image"
    with open(image, "wb") as file:
        file.truncate(16 * MIB)
    path = folder / "stats"
    server = serve("--filter=stats", plugin, "16M" if plugin == "memory" else image,
                   f"statsfile={path}", engine=engine)
    with server.client() as client:
        assert client.get_structured_replies_negotiated()
        for i in range(10):
            assert client.pread(MIB, i * MIB) == bytes(MIB)
    server.stop()
    summary = parse(path.read_text())
    assert summary["read"][:2] == (10, 10 * MIB)
    assert "extents" not in summary


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
def test_without_a_client_there_is_a_summary_too(serve, folder, number):
    path = folder / "stats"
    server = serve("--filter=stats", "memory", "1M", f"statsfile={path}")
    assert path.read_text() == ""
    server.signal(number)
    assert server.wait() == 0
    assert re.fullmatch(r"total: 0 ops, \d+\.\d{6} s, 0 bytes, 0 bytes/s\n", path.read_text())


def test_failed_operations_are_not_counted(serve, folder):
    path = folder / "stats"
    server = serve("-r", "--filter=stats", "memory", "1M", f"statsfile={path}")
    with server.client(strict=False) as client:
        with pytest.raises(nbd.Error):
            client.pwrite(b"x" * 512, 0)
        client.pread(512, 0)
    server.stop()
    assert set(parse(path.read_text())) == {"total", "read"}


def test_append_keeps_what_is_there_and_the_default_does_not(folder):
    path = folder / "stats"
    path.write_text("before\n")
    for append, lines in ((["statsappend=yes"], 2), ([], 1), (["statsappend=true"], 2)):
        run(WEFT, "--filter=stats", "memory", "1M", f"statsfile={path}", *append, "--run", "true")
        assert len(path.read_text().splitlines()) == lines


@pytest.mark.parametrize("arguments, words_of_it", [
    ([], ["stats", "statsfile="]),
    (["statsfile="], ["statsfile", "empty"]),
    (["statsfile=/nonexistent/stats"], ["statsfile", "/nonexistent/stats", "No such file"]),
    (["statsfile=/"], ["statsfile", "'/'", "Is a directory"]),
    (["statsfile=/dev/null", "statsappend=maybe"], ["statsappend", "maybe"]),
    (["statsfile=/dev/null", "statsthreshold=101"], ["statsthreshold", "101", "0 to 100"]),
    (["statsfile=/dev/null", "statsthreshold=-1"], ["statsthreshold", "-1"]),
    (["statsfile=/dev/null", "statsthreshold="], ["statsthreshold", "empty"]),
])
def test_wrong_parameters_are_refused_in_one_line(arguments, words_of_it):
    done = run(WEFT, "--filter=stats", "memory", "1M", *arguments, "--run", "true", check=False)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    for word in words_of_it:
        assert word in done.stderr


def test_a_full_disk_is_reported_and_harms_nothing(folder):
    done = run(WEFT, "--filter=stats", "memory", "1M", "statsfile=/dev/full", "--run", "true")
    assert "/dev/full" in done.stderr and "No space left" in done.stderr


def test_examples_of_the_manual(serve, folder):
    alone, short, twice = examples("filters/stats/weft-stats-filter.md")
    (folder / "disk.img").write_bytes(bytes(MIB))
    server = serve(*words(alone), preexec=in_folder(folder))
    server.check_serves()
    server.stop()
    assert parse((folder / "disk.stats").read_text())["read"][0] == 2

    done = run_example(short, folder)
    assert "export-size: 1073741824" in done.stdout
    assert "total: " in done.stderr and "breakdown" not in done.stderr

    server = serve(*words(twice), preexec=in_folder(folder))
    server.check_serves()
    server.stop()
    above, below = (parse((folder / f"{name}.stats").read_text()) for name in ("above", "below"))
    assert above["read"][0] == 2 and above["write"][0] == 2
    assert above == below
