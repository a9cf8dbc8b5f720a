# SPDX-License-Identifier: BSD-3-Clause
"""How a server ends: signals, clients that stay, requests that are under way."""
import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

import nbd as libnbd
import pytest

from harness import KIB, MIB, WEFT, free_port, run, wait_until
from rawclient import CMD_READ, REQUEST_MAGIC, Closed, Raw


def refused(path):
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except OSError:
            return True
        return False


def gone(pid):
    """The process has ended, whether or not somebody has reaped it."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
            return stat.read().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
def test_signal_without_clients_ends_cleanly(serve, engine, number):
    server = serve("memory", "1M", engine=engine)
    server.signal(number)
    assert server.wait() == 0
    assert refused(server.socket)


@pytest.mark.weft_only
def test_idle_clients_do_not_hold_it_up(serve, engine):
    server = serve("memory", "1M", engine=engine)
    clients = [server.connect() for _ in range(10)]
    silent = Raw(server.socket)
    start = time.monotonic()
    server.signal(signal.SIGTERM)
    assert server.wait() == 0
    # Far below the ten seconds that a client under way would be given.
    assert time.monotonic() - start < 5
    assert silent.receive(18)[:8] == b"NBDMAGIC"
    silent.expect_closed()
    silent.close()
    assert len(clients) == 10


@pytest.mark.weft_only
def test_requests_that_were_read_are_answered(serve, engine, image):
    path = image(64 * MIB, content=b"")
    server = serve("file", path, engine=engine)
    with Raw(server.socket) as raw:
        raw.negotiate()

        def send():
            with contextlib.suppress(Closed):
                for number in range(256):
                    raw.write(number * 256 * KIB, bytes([number]) * 256 * KIB, cookie=number)
        sender = threading.Thread(target=send)
        sender.start()
        answered = [raw.reply().cookie]
        server.signal(signal.SIGTERM)
        end = None
        while end is None:
            try:
                reply = raw.reply()
                assert reply.error == 0
                answered.append(reply.cookie)
            except Closed as closed:
                end = str(closed)
        sender.join()
        # No reply is cut in the middle: the next one would begin with a magic of 4 bytes.
        assert not end or "after 0 of 4" in end
    assert server.wait() == 0
    content = path.read_bytes()
    for number in answered:
        start = number * 256 * KIB
        assert content[start:start + 256 * KIB] == bytes([number]) * 256 * KIB


@pytest.mark.weft_only
def test_reads_that_were_read_are_answered_whole(serve, engine):
    server = serve("pattern", "256M", engine=engine)
    with Raw(server.socket) as raw:
        raw.negotiate()
        requests = b"".join(struct.pack(">IHHQQI", REQUEST_MAGIC, 0, CMD_READ, number, 0, 4 * MIB)
                            for number in range(8))
        raw.send(requests)
        first = raw.reply(4 * MIB)
        server.signal(signal.SIGTERM)
        cookies = [first.cookie] + [raw.reply(4 * MIB).cookie for _ in range(7)]
        assert sorted(cookies) == list(range(8))
        assert raw.expect_closed() == b""
    assert server.wait() == 0


def stuck_client(server):
    """A client whose replies cannot be delivered, because it does not read them."""
    client = Raw(server.socket)
    client.negotiate()
    for _ in range(8):
        client.request(CMD_READ, 0, 16 * MIB)
    # Some of the first reply has arrived: the server is in the middle of it.
    assert len(client.socket.recv(16, socket.MSG_PEEK)) > 0
    return client


@pytest.mark.weft_only
def test_client_that_does_not_read_is_dropped_after_the_drain_timeout(serve, engine):
    server = serve("memory", "64M", engine=engine, options=["--drain-timeout=500ms"])
    client = stuck_client(server)
    server.signal(signal.SIGTERM)
    server.wait()
    server.may_die = True  # it could not finish; the status may say so
    client.close()


@pytest.mark.weft_only
def test_second_signal_ends_at_once(serve, engine):
    server = serve("memory", "64M", engine=engine, options=["--drain-timeout=600"])
    client = stuck_client(server)
    server.signal(signal.SIGTERM)
    server.signal(signal.SIGTERM)  # as timeout(1) does: it signals the process, then its group
    wait_until(lambda: refused(server.socket), "it stops listening")
    time.sleep(0.5)
    assert server.alive(), "the drain waits for the client, and two signals at once are one"
    server.signal(signal.SIGTERM)
    server.wait(5)
    server.may_die = True
    client.close()


@pytest.mark.weft_only
def test_new_clients_are_refused_while_it_drains(serve, engine):
    server = serve("memory", "64M", engine=engine, options=["--drain-timeout=1"])
    client = stuck_client(server)
    server.signal(signal.SIGTERM)
    wait_until(lambda: refused(server.socket), "it stops listening")
    client.close()
    server.wait()
    server.may_die = True


def test_pidfile_holds_the_pid(serve):
    server = serve("memory", "1M")
    assert server.pidfile.read_text() == f"{server.pid}\n"
    assert os.stat(server.pidfile).st_mode & 0o777 == 0o644


def test_in_the_background(folder, engine):
    """Without -f the command returns when clients may come, and the server stays."""
    engine_option = [f"--engine={engine}"] if engine else []
    path = folder / "s"
    run(WEFT, *engine_option, "-U", path, "-P", folder / "pid", "memory", "1M", timeout_s=20)
    try:
        wait_until(lambda: (folder / "pid").exists() and (folder / "pid").read_text().strip(),
                   "the pidfile")
        pid = int((folder / "pid").read_text())
        assert os.readlink(f"/proc/{pid}/cwd") == "/"
        with Raw(str(path)) as raw:
            assert raw.negotiate()[0] == MIB
            assert raw.read(0, 512) == bytes(512)
            raw.disconnect()
    finally:
        os.kill(int((folder / "pid").read_text()), signal.SIGTERM)
    wait_until(lambda: gone(pid), "it ends")


def test_exit_with_parent(folder):
    command = [WEFT, "--exit-with-parent", "-U", folder / "s", "-P", folder / "pid",
               "memory", "1M"]
    script = ("import subprocess, sys; process = subprocess.Popen(sys.argv[1:]);"
              "print(process.pid, flush=True); process.wait()")
    with subprocess.Popen([sys.executable, "-c", script, *map(str, command)],
                          stdout=subprocess.PIPE, text=True) as parent:
        pid = int(parent.stdout.readline())
        wait_until((folder / "pid").exists, "the pidfile")
        parent.kill()
    wait_until(lambda: gone(pid), "it ends with its parent")


def run_private(*options, command, **kwargs):
    return run(WEFT, "-U", "-", *options, "memory", "1M", "--run", command, timeout_s=30,
               **kwargs)


def test_run_hands_on_the_exit_status():
    assert run_private(command="exit 0", check=False).returncode == 0
    assert run_private(command="exit 3", check=False).returncode == 3
    assert run_private(command="kill -9 $$", check=False).returncode == 128 + 9


def test_run_sets_the_variables():
    done = run_private("-e", "my disk", command=(
        'printf "%s\\n" "$uri" "$nbd" "$unixsocket" "$exportname" "port=$port"'))
    uri, nbd, path, export, port = done.stdout.splitlines()
    assert uri == nbd
    assert uri == f"nbd+unix:///my%20disk?socket={path}"
    assert (export, port) == ("my disk", "port=")
    assert not os.path.exists(os.path.dirname(path)), "-U - leaves its folder behind"


def test_run_with_a_port():
    port = free_port()
    done = run(WEFT, "-i", "127.0.0.1", "-p", port, "memory", "1M", "--run",
               'echo "$uri $port"; nbdinfo --size "nbd://127.0.0.1:$port"')
    assert done.stdout.split() == [f"nbd://localhost:{port}", str(port), str(MIB)]


@pytest.mark.weft_only
def test_run_alone_uses_a_private_socket():
    done = run(WEFT, "memory", "1M", "--run", 'echo "$unixsocket"; nbdinfo --size "$uri"')
    path, size = done.stdout.split()
    assert size == str(MIB)
    assert not os.path.exists(os.path.dirname(path))


def test_run_gives_the_command_standard_input_and_output():
    done = run_private(command="cat", stdin=None, input="through the command\n")
    assert done.stdout == "through the command\n"


@pytest.mark.weft_only
def test_run_ends_its_clients_when_the_server_dies(folder):
    """The kernel refuses new connections then, instead of queueing them for nobody."""
    done = run_private("-P", folder / "pid", check=False, command=(
        f"while [ ! -s {folder}/pid ]; do sleep 0.01; done; kill -9 $(cat {folder}/pid); "
        'timeout 10 nbdinfo --size "$uri"; echo "status $?"'))
    assert "status 1" in done.stdout, done.stdout + done.stderr


def why_no_private_tmp():
    if os.geteuid() != 0 or run("unshare", "-m", "true", check=False).returncode != 0:
        return "a private /tmp needs root"
    if os.path.realpath(WEFT).startswith("/tmp/"):
        return "the program itself lies in /tmp"
    return None


WHY_NO_NAMESPACE = why_no_private_tmp()


@pytest.mark.skipif(WHY_NO_NAMESPACE is not None, reason=str(WHY_NO_NAMESPACE))
@pytest.mark.weft_only
@pytest.mark.parametrize("words", [
    "-U - --version", "-U - --help", "-U - --dump-config", "-U - --dump-plugin memory",
    "-U - memory size=nonsense", "-U - memory", "-U - file /nonexistent", "-U - nosuchplugin",
    "-U - memory 1M --run true", "-U - memory 1M --run false", "-U - memory 1M --nosuchoption",
    "-U - -i 127.0.0.1 -p 1x memory 1M", "-U - -P /nonexistent/pid memory 1M",
])
def test_private_socket_leaves_nothing_in_tmp(words):
    """In a /tmp of its own, so that nothing else on the machine can disturb."""
    script = (f"mount -t tmpfs none /tmp && cd / && "
              f"{{ {WEFT} {words} >/dev/null 2>&1; ls -A /tmp; }}")
    assert run("unshare", "-m", "sh", "-c", script).stdout == ""


@pytest.mark.skipif(WHY_NO_NAMESPACE is not None, reason=str(WHY_NO_NAMESPACE))
@pytest.mark.weft_only
@pytest.mark.parametrize("number", ["TERM", "INT"])
def test_private_socket_is_removed_after_a_signal(number):
    script = (f"mount -t tmpfs none /tmp && cd / && {{ {WEFT} -f -U - -P /run/weft-$$ memory 1M & "
              "while [ ! -s /run/weft-$$ ]; do sleep 0.01; done; "
              f"ls -A /tmp | grep -q . || echo no socket; kill -{number} $!; wait $!; "
              "echo $?; rm -f /run/weft-$$; ls -A /tmp; }")
    assert run("unshare", "-m", "sh", "-c", script).stdout.split() == ["0"]


def activated(serve, listener, engine, **kwargs):
    """A server that is handed its listening socket as systemd hands it."""
    def place():
        os.dup2(listener.fileno(), 3, inheritable=True)
    return serve("memory", "1M", engine=engine, unix=False, pass_fds=(3,), preexec=place,
                 launcher=["/bin/sh", "-c", 'LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"', "sh"],
                 **kwargs)


def test_socket_activation(serve, engine, folder):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "s"))
        listener.listen()
        server = activated(serve, listener, engine)
        with Raw(str(folder / "s")) as raw:
            assert raw.negotiate()[0] == MIB
            raw.disconnect()
            raw.expect_closed()
        server.stop()


def test_socket_activation_as_libnbd_does_it(engine):
    client = libnbd.NBD()
    engine_option = [f"--engine={engine}"] if engine else []
    client.connect_systemd_socket_activation([WEFT, *engine_option, "memory", "1M"])
    assert client.get_size() == MIB
    client.shutdown()


@pytest.mark.weft_only
def test_shared_2_lets_the_third_wait_until_one_leaves(serve, engine):
    server = serve("memory", "1M", engine=engine, options=["--shared=2"])
    first, second = server.connect(), server.connect()
    with Raw(server.socket) as third:
        third.socket.settimeout(0.3)
        with pytest.raises(TimeoutError):
            third.receive(1)  # not even greeted
        third.socket.settimeout(20)
        first.pwrite(b"1", 0)
        assert second.pread(1, 0) == b"1"
        first.shutdown()
        assert third.negotiate()[0] == MIB
        assert third.read(0, 1) == b"1"
    second.shutdown()


@pytest.mark.weft_only
def test_shared_counts_clients_that_vanish(serve, engine):
    server = serve("memory", "1M", engine=engine, options=["--shared=1"])
    for _ in range(50):
        with Raw(server.socket) as raw:
            raw.negotiate()
    server.check_serves()
