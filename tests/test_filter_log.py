# SPDX-License-Identifier: BSD-3-Clause
"""The log filter: its lines are those of nbdkit's, complete and in order; its scripts too."""
import errno
import os
import re
import threading
import time

import nbd
import pytest

from harness import KIB, MIB, NBDKIT, WEFT, close, run, wait_until
from manuals import examples, in_folder, words

pytestmark = pytest.mark.weft_only

BASE = ("base:allocation",)
LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6} (?:connection=(\d+) )?"
                  r"((?:\.\.\.)?)(\w+)(?: id=(\d+))?"
                  r"((?: [a-z_]+=(?:\([^()]*\)|\"[^\"]*\"|\S+))*)( \.\.\.)?")


def parse(text):
    """[(connection, type, action, id, parameters)], as strictly as a program would."""
    result = []
    for line in text.splitlines():
        found = LINE.fullmatch(line)
        assert found, line
        connection, leave, action, number, parameters, enter = found.groups()
        assert not (leave and enter), line
        kind = "LEAVE" if leave else "ENTER" if enter else "PRINT"
        result.append((connection, kind, action, number, parameters.strip()))
    return result


def attempt(operation, *args):
    try:
        operation(*args)
    except nbd.Error:
        pass


def workload(client):
    client.pread(4096, 0)
    client.pwrite(b"x" * 4096, 8192)
    client.pwrite(b"x" * 100, 8192, nbd.CMD_FLAG_FUA)
    client.flush()
    client.zero(64 * KIB, 128 * KIB)
    client.zero(64 * KIB, 128 * KIB, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
    client.zero(512, 0, nbd.CMD_FLAG_FAST_ZERO)
    client.trim(64 * KIB, 0)
    client.trim(512, 0, nbd.CMD_FLAG_FUA)
    client.cache(4096, 0)
    client.block_status(64 * KIB, 128 * KIB, lambda *_: 0)
    client.block_status(64 * KIB, 128 * KIB, lambda *_: 0, nbd.CMD_FLAG_REQ_ONE)


def log_by(program, folder, *arguments):
    path = folder / "log"
    client = nbd.NBD()
    client.add_meta_context("base:allocation")
    client.set_opt_mode(True)
    client.connect_command([program, "-s", "--filter=log", *arguments, f"logfile={path}",
                            "logappend=yes"])
    client.opt_list(lambda *_: 0)
    client.opt_go()
    attempt(workload, client)
    client.shutdown()
    del client  # waits for the program
    return wait_until(lambda: path.exists() and path.read_text().endswith("\n") and
                      "Disconnect" in path.read_text() and path.read_text(), "the log is written")


@pytest.mark.skipif(not os.path.exists(NBDKIT), reason="no nbdkit to compare with")
@pytest.mark.parametrize("stack", [
    ["memory", "1M"],
    ["-r", "memory", "1M"],
    ["--filter=error", "memory", "1M", "error-pread-rate=1", "error=ENOSPC"],
    ["--filter=error", "memory", "1M", "error-cache-rate=1", "error=ESHUTDOWN"],
    ["--filter=error", "memory", "1M", "error-extents-rate=1", "error=ENOMEM"],
], ids=["memory", "read-only", "pread-fails", "cache-fails", "extents-fail"])
def test_the_log_is_that_of_nbdkit(folder, stack):
    logs = []
    for program in NBDKIT, WEFT:
        place = folder / os.path.basename(program)
        place.mkdir()
        entries = parse(log_by(program, place, *stack))
        # The block sizes are each server's own; nbdkit forks only without -s.
        logs.append([(*entry[:4], re.sub(r"(min|pref|max)size=\w+", r"\1size=", entry[4]))
                     for entry in entries if entry[2] != "Fork"])
    theirs, ours = logs
    assert ours == theirs


def test_every_call_has_its_return_whatever_runs_side_by_side(serve, engine, folder):
    path = folder / "log"
    server = serve("--filter=log", "--filter=delay", "memory", "1M", "wdelay=1ms",
                   f"logfile={path}", engine=engine, options=["--threads=4"])

    def load():
        client = server.connect()
        cookies = []
        for i in range(200):
            buffer = nbd.Buffer.from_bytearray(bytearray(512))
            cookies.append(client.aio_pwrite(buffer, i * 512))
            cookies.append(client.aio_pread(nbd.Buffer(512), i * 512))
        for cookie in cookies:
            while not client.aio_command_completed(cookie):
                client.poll(1000)
        close(client)

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    server.stop()
    text = path.read_text()
    assert [line[:26] for line in text.splitlines()] == sorted(
        line[:26] for line in text.splitlines()), "time does not go back"
    entries = parse(text)
    running, ended = {}, set()
    for connection, kind, action, number, parameters in entries:
        key = (connection, action if connection is None else "", number)
        if kind == "ENTER":
            assert key not in running and key not in ended, key
            running[key] = action
        elif kind == "LEAVE":
            assert running.pop(key) == action
            assert parameters == "return=0"
            ended.add(key)
    assert not running
    assert sum(1 for entry in entries if entry[2] == "Read") == 2 * 800
    assert sum(1 for entry in entries if entry[2] == "Write") == 2 * 800
    connects = [entry[0] for entry in entries if entry[2] == "Connect"]
    assert len(set(connects)) == len(connects) == 4
    assert [entry[4] for entry in entries if entry[2] == "Disconnect"] == 4 * ["transactions=400"]
    assert "Extents" not in text, "nobody asked for the holes"


def test_a_log_that_is_slower_than_its_clients_loses_nothing(serve, engine, folder):
    pipe = folder / "pipe"
    os.mkfifo(pipe)
    received = []

    def read_slowly():
        with open(pipe, "rb", buffering=0) as source:
            while chunk := source.read(256 * KIB):
                received.append(chunk)
                time.sleep(0.01)

    reader = threading.Thread(target=read_slowly)
    reader.start()
    server = serve("--filter=log", "memory", "1M", f"logfile={pipe}", engine=engine)
    count = 15_000  # of some 160 bytes
    with server.client() as client:
        done = 0
        pending = []
        for i in range(count):
            pending.append(client.aio_pread(nbd.Buffer(512), i % 2048 * 512))
            while len(pending) >= 64:
                client.poll(1000)
                finished = [c for c in pending if client.aio_command_completed(c)]
                done += len(finished)
                pending = [c for c in pending if c not in finished]
        while pending:
            client.poll(1000)
            pending = [c for c in pending if not client.aio_command_completed(c)]
    server.stop()
    reader.join()
    entries = parse(b"".join(received).decode())
    assert sum(1 for entry in entries if entry[2] == "Read") == 2 * count


def test_append_keeps_what_is_there_and_the_default_does_not(folder):
    path = folder / "log"
    path.write_text("before\n")
    for append, lines in ((["logappend=true"], 3), ([], 2), (["logappend=1"], 4)):
        run(WEFT, "--filter=log", "memory", "1M", f"logfile={path}", *append, "--run", "true")
        assert len(path.read_text().splitlines()) == lines


def test_in_the_background_too(folder):
    path, pid = folder / "log", folder / "pid"
    run(WEFT, "-P", pid, "-U", folder / "s", "--filter=log", "memory", "1M", "logfile=log",
        cwd=folder)
    number = int(wait_until(lambda: pid.exists() and pid.read_text(), "the pidfile is written"))
    run("nbdinfo", f"nbd+unix:///?socket={folder}/s")
    os.kill(number, 15)
    wait_until(lambda: not os.path.exists(f"/proc/{number}"), "the server ends")
    assert [entry[2] for entry in parse(path.read_text())][:2] == ["Ready", "Fork"]
    assert "Disconnect" in path.read_text()


def test_scripts_run_in_order_with_their_variables(serve, engine, folder):
    server = serve("--filter=log", "--filter=error", "memory", "1M", "error-trim-rate=1",
                   "error=ENOSPC", "logfile=log", "logscript="
                   'echo "$type $act c=$connection i=$id o=$offset n=$count r=$return e=$error '
                   'x=${extents[*]} ${export+named}" >> entries; cat >> entries',
                   engine=engine, preexec=in_folder(folder))
    with server.client(contexts=BASE) as client:
        for i in range(20):
            client.pread(512, i * 512)
        with pytest.raises(nbd.Error):
            client.trim(1024, 512)
        client.block_status(MIB, 0, lambda *_: 0)
    server.stop()  # waits for the scripts
    entries = (folder / "entries").read_text().splitlines()
    reads = []
    for i in range(20):
        reads += [f"ENTER Read c=1 i={i + 1} o={i * 512:#x} n=0x200 r= e= x= ",
                  f"LEAVE Read c=1 i={i + 1} o= n= r=0 e= x= "]
    assert entries == [
        "PRINT Ready c= i= o= n= r= e= x= ",
        "PRINT Fork c= i= o= n= r= e= x= ",
        "ENTER Preconnect c= i=1 o= n= r= e= x= ",
        "LEAVE Preconnect c= i=1 o= n= r=0 e= x= ",
        "PRINT Connect c=1 i= o= n= r= e= x=1 named",
        *reads,
        "ENTER Trim c=1 i=21 o=0x200 n=0x400 r= e= x= ",
        "LEAVE Trim c=1 i=21 o= n= r=-1 e=ENOSPC x= ",
        "ENTER Extents c=1 i=22 o=0x0 n=0x100000 r= e= x= ",
        "LEAVE Extents c=1 i=22 o= n= r=0 e= x=0x0 0x100000 hole,zero ",
        "PRINT Disconnect c=1 i= o= n= r= e= x= ",
    ]
    assert len(parse((folder / "log").read_text())) == len(entries)


def test_a_slow_script_holds_up_nobody(serve, engine, folder):
    server = serve("--filter=log", "memory", "1M", "logscript=sleep 0.2; echo x >> entries",
                   engine=engine, preexec=in_folder(folder))
    begun = time.monotonic()
    with server.client() as client:
        for i in range(500):
            client.pread(512, i * 512)
    assert time.monotonic() - begun < 60, "1000 scripts would take 200 s"
    server.may_die = True
    server.kill()


def test_a_script_that_never_ends_does_not_keep_the_server(serve, engine):
    server = serve("--filter=log", "memory", "1M", "logscript=exec sleep 600", engine=engine)
    server.check_serves()
    server.stop()
    assert "entries were not given to it" in server.log()


def test_output_of_a_script_does_not_reach_the_client(folder):
    client = nbd.NBD()
    client.connect_command([WEFT, "-s", "--filter=log", "memory", "1M",
                            "logscript=echo this is no NBD"])
    assert client.pread(512, 0) == bytes(512)
    client.shutdown()


def test_without_file_and_script_it_does_nothing(serve):
    serve("--filter=log", "memory", "1M").check_serves()


@pytest.mark.parametrize("arguments, words_of_it", [
    (["logfile="], ["logfile", "empty"]),
    (["logfile=/nonexistent/log"], ["logfile", "/nonexistent/log", "No such file"]),
    (["logfile=/dev/null", "logappend=maybe"], ["logappend", "maybe"]),
])
def test_wrong_parameters_are_refused_in_one_line(arguments, words_of_it):
    done = run(WEFT, "--filter=log", "memory", "1M", *arguments, "--run", "true", check=False)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    for word in words_of_it:
        assert word in done.stderr


def test_a_full_disk_is_reported_once_and_harms_nothing(serve):
    server = serve("--filter=log", "memory", "1M", "logfile=/dev/full")
    server.check_serves()
    server.check_serves()
    server.stop()
    assert server.log().count("/dev/full") == 1
    assert os.strerror(errno.ENOSPC) in server.log()


def test_examples_of_the_manual(serve, folder):
    alone, below, script = examples("filters/log/weft-log-filter.md")
    (folder / "disk.img").write_bytes(bytes(MIB))
    for example in alone, below:
        server = serve(*words(example), preexec=in_folder(folder))
        with server.client() as client:
            client.pread(512, 0)
        server.stop()
    logs = [[entry[1:] for entry in parse((folder / name).read_text())]
            for name in ("disk.log", "disk.log2")]
    assert ("ENTER", "Read", "1", "offset=0x0 count=0x200") in logs[0]
    assert logs[0] == logs[1]

    server = serve(*words(script))
    with server.client() as client:
        client.pread(1024, 512)
    wait_until(lambda: "a client reads 0x400 bytes from 0x200" in server.log(), "the script speaks")
