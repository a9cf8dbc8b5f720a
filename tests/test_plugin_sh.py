# SPDX-License-Identifier: BSD-3-Clause
"""The sh plugin: scripts, and how weft stands up to the ones that misbehave.

Where nbdkit is installed, the same scripts are run by it too and must see and give the same.
"""
import json
import os
import signal
import subprocess
import threading
import time

import nbd
import pytest

from harness import KIB, MIB, WEFT, run, wait_until
from script_disks import (FILE_SCRIPT, PROGRAMS, capabilities, extents, files_of, gone, outcome,
                          refusal, run_with, script)

pytestmark = pytest.mark.weft_only

STALL_S = 60  # longer than a test takes: who waits for a stalled script is seen


@pytest.fixture
def tmpdir_base(folder):
    """Where servers make the folders of their scripts."""
    path = folder / "t"
    path.mkdir()
    return path


def server_for(serve, folder, text, *parameters, program=WEFT, name="script.sh", **options):
    path = script(folder, text, name)
    environment = {"LOG": str(folder / f"calls-{os.path.basename(program)}"),
                   "FOLDER": str(folder), **options.pop("env", {})}
    return serve("sh", path, *parameters, program=program, env=environment, **options)


def in_thread(call):
    """Starts call(); the result is a list that gets its outcome."""
    results = []
    thread = threading.Thread(target=lambda: results.append(outcome(call)), daemon=True)
    thread.start()
    return thread, results


# ---- The same as nbdkit --------------------------------------------------------------------------

def session(server):
    """Every request, and what came of it."""
    seen = []
    with server.client(contexts=["base:allocation"]) as client:
        seen.append(("can", capabilities(client), client.get_size()))
        seen.append([client.get_block_size(which) for which in range(3)])
        seen.append(outcome(client.pread, 4096, 4096))
        for flags in (0, nbd.CMD_FLAG_FUA):
            seen.append(outcome(client.pwrite, os.fsencode("x") * 8192, 8192, flags))
            seen.append(outcome(client.trim, 4096, 16384, flags))
            seen.append(outcome(client.zero, 4096, 32768, flags))
            seen.append(outcome(client.zero, 4096, 32768, flags | nbd.CMD_FLAG_NO_HOLE))
            seen.append(outcome(client.zero, 4096, 32768, flags | nbd.CMD_FLAG_FAST_ZERO))
        seen.append(outcome(client.flush))
        seen.append(outcome(client.cache, 65536, 0))
        seen.append(extents(client))
        seen.append(extents(client, 512 * KIB, 512 * KIB))
        seen.append(extents(client, flags=nbd.CMD_FLAG_REQ_ONE))
        seen.append(outcome(client.pread, 65536, 0))
    return seen


def test_scripts_see_the_same_calls(serve, folder, image):
    """Methods, their arguments and their order, but for the capabilities', which is nobody's."""
    content = os.urandom(MIB)
    seen, calls = {}, {}
    for program in PROGRAMS:
        name = os.path.basename(program)
        server = server_for(serve, folder, FILE_SCRIPT, image(MIB, name + ".img", content),
                            program=program)
        seen[program] = session(server)
        server.stop()
        calls[program] = (folder / f"calls-{name}").read_text().replace(name + ".img", "img")
    assert seen[WEFT][0] == ("can", {
        "is_read_only": False, "can_flush": True, "can_fua": True, "can_trim": True,
        "can_zero": True, "can_fast_zero": True, "can_cache": True, "can_multi_conn": True,
        "is_rotational": True}, MIB)
    assert seen[WEFT][2] == content[4096:8192]
    for program in PROGRAMS[1:]:
        assert seen[WEFT] == seen[program]
        # The description is asked for where a client asks for it; a server that is told to end
        # may or may not close what is open.
        mine, theirs = ([line for line in calls[which].splitlines()
                         if not line.startswith(("export_description", "close"))]
                        for which in (WEFT, program))
        assert sorted(mine) == sorted(theirs)

        def in_order(lines):
            return [line for line in lines
                    if not line.startswith(("can_", "is_", "block_size"))]
        assert in_order(mine) == in_order(theirs)


def test_every_method_is_called_with_its_arguments(serve, folder, image):
    server = server_for(serve, folder, FILE_SCRIPT, image(MIB))
    session(server)
    server.stop()
    lines = (folder / "calls-weft").read_text().splitlines()
    handle = "handle of first"
    assert lines[:2] == ["load", "magic_config_key"]
    assert lines[2] == f"config|image|{folder}/disk.img"
    assert lines[3:7] == ["config_complete", "thread_model", "get_ready", "after_fork"]
    assert lines[7:10] == ["preconnect|false", "default_export|false|false",
                           "open|false|first|false"]
    assert lines[-2:] == [f"close|{handle}", "unload"]
    for expected in ("get_size", "can_fua", "block_size", "export_description",
                     "pread|4096|4096", "pwrite|8192|8192|", "pwrite|8192|8192|fua",
                     "trim|4096|16384|", "trim|4096|16384|fua", "zero|4096|32768|may_trim",
                     "zero|4096|32768|", "zero|4096|32768|fua,may_trim",
                     "zero|4096|32768|may_trim,fast", "zero|4096|32768|fua,may_trim,fast",
                     "flush", "cache|65536|0", f"extents|{MIB}|0|", "extents|524288|524288|",
                     f"extents|{MIB}|0|req_one"):
        name, _, rest = expected.partition("|")
        assert "|".join([name, handle] + ([rest] if "|" in expected else [])) in lines, expected


def test_a_script_that_answers_nothing(serve, folder):
    """Without can_* methods nothing but reading is possible."""
    text = '#!/bin/sh\ncase $1 in get_size) echo 1M;; pread) head -c $3 /dev/zero;; *) exit 2; esac'
    seen = {}
    for program in PROGRAMS:
        server = server_for(serve, folder, text, program=program)
        with server.client() as client:
            seen[program] = capabilities(client), outcome(client.pread, 512, MIB - 512)
    assert not any(value for name, value in seen[WEFT][0].items() if name != "is_read_only")
    assert seen[WEFT][0]["is_read_only"] and seen[WEFT][1] == bytes(512)
    assert len({repr(value) for value in seen.values()}) == 1


ERROR_WORDS = ["ENOSPC the text", "ENOSPC", "enospc", "ENOSPCX", "ENOSPC: text", "  ENOSPC",
               "EIO text", "EPERM", "EROFS", "EINVAL\ttext", "ESHUTDOWN", "EDQUOT", "EFBIG",
               "EOVERFLOW", "ENOMEM", "ENXIO no such word", "text", "text\\nENOSPC", ""]


def test_errno_words(serve, folder):
    """The first word decides; the request that fails is known by its offset."""
    cases = "\n".join(f"{n}) printf '{word}' >&2;;" for n, word in enumerate(ERROR_WORDS))
    text = f"""#!/bin/sh
case $1 in get_size) echo 1M;; can_write) exit 0;; pread) head -c $3 /dev/zero;;
pwrite) cat >/dev/null; case $(($4 / 512)) in
{cases}
esac; exit 1;; *) exit 2; esac"""
    seen = {}
    for program in PROGRAMS:
        server = server_for(serve, folder, text, program=program)
        with server.client() as client:
            seen[program] = [outcome(client.pwrite, bytes(512), 512 * n)
                             for n in range(len(ERROR_WORDS))]
            assert outcome(client.pread, 512, 0) == bytes(512)
        assert "the text" in server.log() and "ENOSPC the text" not in server.log()
    assert seen[WEFT][:6] == ["ENOSPC", "ENOSPC", "ENOSPC", "EIO", "EIO", "EIO"]
    assert len({repr(value) for value in seen.values()}) == 1, seen


EXIT_CODES = [0, 1, 2, 3, 9, 42, 100, 127, 128, 255]


def test_exit_codes(serve, folder):
    text = """#!/bin/sh
case $1 in get_size) echo 1M;; can_write|can_flush|can_trim) exit 0;; pread) head -c $3 /dev/zero;;
pwrite) cat >/dev/null; exit $(($4 / 512));; trim) exit $(($4 / 512));; *) exit 2; esac"""
    seen = {}
    for program in PROGRAMS:
        server = server_for(serve, folder, text, program=program)
        with server.client() as client:
            seen[program] = [(outcome(client.pwrite, bytes(512), 512 * code),
                              outcome(client.trim, 512, 512 * code)) for code in EXIT_CODES]
            seen[program].append(outcome(client.flush))
    assert seen[WEFT][:4] == [(None, None), ("EIO", "EIO"), ("EIO", None), ("EIO", "EIO")]
    assert seen[WEFT][-1] is None
    assert len({repr(value) for value in seen.values()}) == 1, seen


def test_a_pread_of_another_length_is_an_error(serve, folder):
    text = """#!/bin/sh
case $1 in get_size) echo 1M;; pread) head -c $4 /dev/zero;; *) exit 2; esac"""
    for program in PROGRAMS:
        server = server_for(serve, folder, text, program=program)
        with server.client() as client:
            assert outcome(client.pread, 512, 511) == "EIO"
            assert outcome(client.pread, 512, 513) == "EIO"
            assert outcome(client.pread, 512, 512) == bytes(512)
        assert "511" in server.log() and "513" in server.log()


def test_a_pread_that_never_ends_is_an_error(serve, folder):
    text = """#!/bin/sh
case $1 in get_size) echo 1M;; pread) exec cat /dev/zero;; *) exit 2; esac"""
    server = server_for(serve, folder, text)
    with server.client() as client:
        assert outcome(client.pread, 512, 0) == "EIO"


LISTS = ["a\\nb\\n", "NAMES\\na\\nb\\n", "INTERLEAVED\\na\\nA\\nb\\nB\\n",
         "INTERLEAVED\\na\\nA\\nb\\n",
         "NAMES+DESCRIPTIONS\\na\\nb\\nA\\nB\\n",
         "NAMES+DESCRIPTIONS\\na\\nb\\nA\\n", "names\\nx\\n"]


@pytest.mark.parametrize("text", LISTS)
def test_lists_of_exports(folder, text):
    path = script(folder, f"""#!/bin/sh
case $1 in get_size) echo 1M;; list_exports) printf '{text}';; *) exit 2; esac""")
    seen = [[(entry["export-name"], entry.get("description")) for entry in json.loads(
        run_with(program, ["sh", path], 'nbdinfo --list --json "$uri"').stdout)["exports"]]
            for program in PROGRAMS]
    assert len(seen[0]) >= 2
    assert all(other == seen[0] for other in seen)


def test_names_and_descriptions_reach_the_client(folder, image):
    path = script(folder, FILE_SCRIPT)
    done = run_with(WEFT, ["sh", path, image(MIB)], 'nbdinfo --list --json "$uri"',
                    env={**os.environ, "LOG": str(folder / "calls")})
    listed = json.loads(done.stdout)["exports"]
    assert [entry["export-name"] for entry in listed] == ["first", "second"]
    assert [entry["description"] for entry in listed] == ["The first", "The second"]
    done = run_with(WEFT, ["sh", path, image(MIB)], 'nbdinfo --json "$uri"',
                    env={**os.environ, "LOG": str(folder / "calls")})
    assert json.loads(done.stdout)["exports"][0]["description"] == "An image called first"


def test_qemu_and_nbdcopy_work_on_a_script(serve, folder, image):
    path = image(MIB)
    server = server_for(serve, folder, FILE_SCRIPT, path)
    run("qemu-io", "-f", "raw", server.uri(), "-c", "write -P 0x5a 4096 65536", "-c",
        "read -P 0x5a 4096 65536", "-c", "write -z 4096 4096", "-c", "read -P 0 4096 4096",
        "-c", "flush", "-c", "discard 8192 4096")
    copy = folder / "copy.img"
    run("nbdcopy", server.uri(), copy)
    server.stop()
    # The script says that the first half is a hole.
    assert copy.read_bytes()[512 * KIB:] == path.read_bytes()[512 * KIB:]


def test_large_requests(serve, folder, image):
    """32 MiB pass through the pipes of a script, both ways."""
    path = image(32 * MIB, content=b"")
    server = server_for(serve, folder, FILE_SCRIPT, path)
    data = os.urandom(MIB) * 32
    with server.client(strict=False) as client:
        client.pwrite(data, 0)
        assert client.pread(32 * MIB, 0) == data
    assert path.read_bytes() == data


def test_a_script_that_ignores_its_input(serve, folder):
    """The exit status says whether a write is done, unless its data cannot have been read."""
    text = """#!/bin/sh
case $1 in get_size) echo 64M;; can_write) exit 0;;
pwrite) [ $4 -eq 0 ] && exit 0; echo ENOSPC >&2; exit 1;; *) exit 2; esac"""
    server = server_for(serve, folder, text)
    with server.client(strict=False) as client:
        for size in (512, 64 * KIB):
            for _ in range(10):
                assert outcome(client.pwrite, bytes(size), 0) is None
        for size in (512, 64 * KIB, 8 * MIB):
            assert outcome(client.pwrite, bytes(size), MIB) == "ENOSPC"
        assert outcome(client.pwrite, bytes(8 * MIB), 0) == "EIO"
    assert "did not read all of its input" in server.log()


def test_a_script_that_closes_its_output_first_gets_all_its_input(serve, folder):
    text = """#!/bin/sh
case $1 in get_size) echo 8M;; can_write) exit 0;;
pwrite) exec >&- 2>&-; cat >"$FOLDER/got";; *) exit 2; esac"""
    server = server_for(serve, folder, text)
    data = os.urandom(8 * MIB)
    with server.client() as client:
        client.pwrite(data, 0)
    assert (folder / "got").read_bytes() == data


def test_whoever_holds_the_output_holds_the_request(serve, folder):
    """As with nbdkit: a program that a script leaves behind has to close what it inherited."""
    text = """#!/bin/sh
case $1 in get_size) echo 1M;; pread) head -c $3 /dev/zero; sleep 1 & exit 0;; *) exit 2; esac"""
    for program in PROGRAMS:
        server = server_for(serve, folder, text, program=program)
        with server.client() as client:
            start = time.monotonic()
            assert client.pread(512, 0) == bytes(512)
            assert time.monotonic() - start > 0.9


def test_zero_falls_back_to_pwrite(serve, folder, image):
    """Every byte is zeroed, in pieces that the script's block sizes allow, and fast ones fail."""
    text = FILE_SCRIPT.replace("  zero|trim)",
                               "  zero) echo ENOTSUP >&2; exit 1 ;;\n  trim)")
    path = image(4 * MIB)
    before = path.read_bytes()
    server = server_for(serve, folder, text, path)
    with server.client() as client:
        assert outcome(client.zero, 3 * MIB + 512, 512, nbd.CMD_FLAG_FAST_ZERO) == "ENOTSUP"
        assert path.read_bytes() == before
        client.zero(3 * MIB + 512, 512)
    after = path.read_bytes()
    end = 3 * MIB + 1024
    assert after[:512] == before[:512] and after[end:] == before[end:]
    assert after[512:end] == bytes(3 * MIB + 512)
    writes = [line for line in (folder / "calls-weft").read_text().splitlines()
              if line.startswith("pwrite")]
    assert [int(line.split("|")[2]) for line in writes] == [MIB, MIB, MIB, 512]


# ---- Configuration -------------------------------------------------------------------------------

MINIMAL = '#!/bin/sh\ncase $1 in get_size) echo 1M;; *) exit 2; esac\n'


def test_refusals_name_the_thing_and_the_mend(folder):
    plain = script(folder, MINIMAL, "plain.sh")
    assert "there is no script: give one" in refusal("sh")
    assert "the script is named first" in refusal("sh", "a=b")
    assert f"'{folder}/none'" in refusal("sh", folder / "none")
    assert "is no file" in refusal("sh", folder)
    closed = script(folder, MINIMAL, "closed.sh", mode=0o644)
    assert f"chmod +x {closed}" in refusal("sh", closed)
    assert "takes no parameters" in refusal("sh", plain, "a=b")
    assert "has no magic_config_key" in refusal("sh", plain, "word")
    lost = script(folder, "#!/no/such/interpreter\n", "lost.sh")
    assert "interpreter" in refusal("sh", lost)
    picky = script(folder, "#!/bin/sh\ncase $1 in config) echo EINVAL not $2 >&2; exit 1;;"
                   " *) exit 2; esac", "picky.sh")
    message = refusal("sh", picky, "a=b")
    assert "not a" in message and "a=b" in message and str(picky) in message


@pytest.mark.parametrize("method", ["load", "config_complete", "thread_model", "get_ready",
                                    "after_fork"])
def test_a_failing_start_leaves_nothing(folder, tmpdir_base, method):
    path = script(folder, f"#!/bin/sh\ncase $1 in {method}) echo the reason >&2; exit 1;;"
                  " *) exit 2; esac")
    message = refusal("sh", path, env={**os.environ, "TMPDIR": str(tmpdir_base)})
    assert method in message and "the reason" in message
    assert files_of(tmpdir_base) == []


def test_a_script_on_the_standard_input(folder, tmpdir_base):
    text = b'case "$1" in get_size) echo 1M;; pread) head -c $3 /dev/zero;; *) exit 2; esac\n'
    done = subprocess.run([WEFT, "-U", "-", "sh", "-", "--run", 'nbdinfo --size "$uri"'],
                          input=text, stdout=subprocess.PIPE, timeout=30, check=True,
                          env={**os.environ, "TMPDIR": str(tmpdir_base)})
    assert done.stdout == b"1048576\n"
    assert files_of(tmpdir_base) == []


def test_tmpdir_is_there_for_all_calls_and_goes(serve, folder, tmpdir_base):
    text = """#!/bin/sh
echo $1 >>$tmpdir/calls
case $1 in get_size) wc -c <$tmpdir/calls;; open) mktemp -d $tmpdir/h-XXXXXX;; pread) ls -d "$2" >&2
[ -d "$2" ] && head -c $3 /dev/zero;; unload) cp $tmpdir/calls "$FOLDER/kept"; chmod 0 "$2";;
*) exit 2; esac"""
    server = server_for(serve, folder, text, env={"TMPDIR": str(tmpdir_base)})
    with server.client() as client:
        assert client.get_size() > 50
        assert client.pread(10, 0) == bytes(10)
    assert len(files_of(tmpdir_base)) == 1
    server.stop()
    assert files_of(tmpdir_base) == []
    assert (folder / "kept").read_text().splitlines()[-1] == "unload"


def test_unload_is_called_once_in_the_background_and_with_run(folder, tmpdir_base):
    text = f"""#!/bin/sh
case $1 in get_size) echo 1M;; unload) echo $1 >>{folder}/unloads;; *) exit 2; esac"""
    path = script(folder, text)
    environment = {**os.environ, "TMPDIR": str(tmpdir_base)}
    run(WEFT, "-U", "-", "sh", path, "--run", 'nbdinfo --size "$uri"', env=environment)
    assert (folder / "unloads").read_text() == "unload\n"
    run(WEFT, "-U", folder / "s", "-P", folder / "pid", "sh", path, env=environment)
    pid = int((folder / "pid").read_text())
    assert len(files_of(tmpdir_base)) == 1
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: gone(pid), "weft ends")
    assert (folder / "unloads").read_text() == "unload\n" * 2
    assert files_of(tmpdir_base) == []


def test_dump_plugin(folder):
    path = script(folder, """#!/bin/sh
case $1 in thread_model) echo serialize_requests;; dump_plugin) echo mine=1;; config) exit 0;;
config_complete) exit 1;; *) exit 2; esac""")
    for program in PROGRAMS:
        lines = run(program, "--dump-plugin", "sh", path, "a=b").stdout.splitlines()
        assert "thread_model=serialize_requests" in lines
        assert "mine=1" in lines and "name=sh" in lines
    assert "max_known_status=8" in run(WEFT, "--dump-plugin", "sh").stdout


@pytest.mark.parametrize("model", ["serialize_connections", "serialize_all_requests",
                                   "serialize_requests", "parallel", "", "nonsense"])
def test_thread_models(serve, folder, model):
    """How many scripts run at once; the file system counts them."""
    text = f"""#!/bin/bash
case $1 in get_size) echo 1M;; thread_model) [ -n "{model}" ] || exit 2; echo "{model}";;
preconnect|pread) mkdir "$FOLDER/c/$$"; ls "$FOLDER/c" | wc -l >>"$FOLDER/counts"; sleep 0.1
rmdir "$FOLDER/c/$$"; [ $1 = preconnect ] || head -c $3 /dev/zero;; *) exit 2; esac"""
    (folder / "c").mkdir()
    server = server_for(serve, folder, text)
    clients = [server.connect()]
    if model != "serialize_connections":
        clients.append(server.connect())
    waiting = []
    for client in clients:
        for n in range(3):
            buffer = nbd.Buffer(512)
            waiting.append((client, client.aio_pread(buffer, 512 * n)))
    for client, cookie in waiting:
        while not client.aio_command_completed(cookie):
            client.poll(-1)
    most = max(int(line) for line in (folder / "counts").read_text().split())
    for client in clients:
        client.shutdown()
    if model in ("", "nonsense", "serialize_connections", "serialize_all_requests"):
        assert most == 1
    else:
        assert most > 1


# ---- Misbehaving scripts -------------------------------------------------------------------------

# Requests for the first block stall while $FOLDER/stall exists; flushes fail as long as
# $FOLDER/fail does. Otherwise a disk in $FOLDER/image.
STALLING = f"""#!/bin/bash
image=$FOLDER/image
case $1 in get_size) stat -c %s $image;; thread_model) echo parallel;;
can_write|can_flush|can_multi_conn) exit 0;; can_fua) echo ${{FUA:-emulate}};;
pread) if [ $4 = 0 ] && [ -e $FOLDER/stall ]; then
    echo $$ >>$FOLDER/stalled; exec sleep {STALL_S}
  fi
  dd if=$image iflag=count_bytes,skip_bytes skip=$4 count=$3 2>/dev/null;;
pwrite) if [ $4 = 0 ] && [ -e $FOLDER/stall ]; then
    rm $FOLDER/stall; echo $$ >>$FOLDER/stalled
    while [ ! -e $FOLDER/go ]; do sleep 0.05; done
  fi
  if [ "$5" = fua ] && [ -e $FOLDER/fail ]; then echo EIO the sync failed >&2; exit 1; fi
  dd of=$image oflag=seek_bytes seek=$4 conv=notrunc 2>/dev/null;;
flush) if [ -e $FOLDER/fail ]; then echo EIO the sync failed >&2; exit 1; fi;;
*) exit 2; esac"""


def stalled(folder):
    path = folder / "stalled"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def test_a_hung_script_holds_up_nobody_else(serve, folder, image):
    path = image(MIB, "image")
    server = server_for(serve, folder, STALLING)
    (folder / "stall").touch()
    with server.client() as slow, server.client() as quick:
        thread, results = in_thread(lambda: slow.pread(512, 0))
        wait_until(lambda: stalled(folder), "a script hangs")
        # Other connections, old and new; and the other requests of its own.
        for client in (quick, server.connect()):
            assert client.pread(512, 512) == path.read_bytes()[512:1024]
            client.pwrite(b"y" * 512, 1024)
            client.flush()
        assert not results
        os.kill(stalled(folder)[0], signal.SIGKILL)
        thread.join(20)
        assert results == ["EIO"]
        assert outcome(slow.pread, 512, 512) == path.read_bytes()[512:1024]
    assert "signal 9" in server.log()


def test_a_hung_script_does_not_keep_weft(serve, folder, image, tmpdir_base):
    image(MIB, "image")
    server = server_for(serve, folder, STALLING, options=["--drain-timeout=200ms"],
                        env={"TMPDIR": str(tmpdir_base)})
    (folder / "stall").touch()
    client = server.connect()
    _, results = in_thread(lambda: client.pread(512, 0))
    wait_until(lambda: stalled(folder), "a script hangs")
    server.signal(signal.SIGTERM)
    assert server.wait() == 0
    wait_until(lambda: results, "the client hears of it")
    assert results == ["ESHUTDOWN"]
    assert gone(stalled(folder)[0])
    assert files_of(tmpdir_base) == []


@pytest.mark.parametrize("how", ["killed", "second signal"])
def test_no_script_outlives_weft(serve, folder, image, how):
    image(MIB, "image")
    server = server_for(serve, folder, STALLING, options=["-v"])
    (folder / "stall").touch()
    client = server.connect()
    in_thread(lambda: client.pread(512, 0))
    wait_until(lambda: stalled(folder), "a script hangs")
    server.may_die = True
    if how == "killed":
        server.signal(signal.SIGKILL)
    else:
        server.signal(signal.SIGTERM)
        wait_until(lambda: "stopping: " in server.log(), "the first signal is seen")
        time.sleep(0.5)  # one that comes at once is the same
        server.signal(signal.SIGTERM)
    server.wait()
    wait_until(lambda: gone(stalled(folder)[0]), "the script ends")


def test_a_late_write_never_undoes_newer_ones(serve, folder, image):
    """The write of a cut connection stalls in its script; the same block is written twice more."""
    path = image(MIB, "image")
    server = server_for(serve, folder, STALLING)
    (folder / "stall").touch()
    lost = server.connect()
    lost.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(b"old!" * 1024)), 0)
    while not stalled(folder):
        lost.poll(10)
    del lost  # the connection is cut: the write is under way
    with server.client() as client, server.client() as third:
        thread, results = in_thread(lambda: [client.pwrite(b"mid!" * 1024, 0), client.flush(),
                                             client.pwrite(b"new!" * 1024, 0), client.flush()])
        # What does not overlap is not held up.
        third.pwrite(b"else" * 1024, 8192)
        third.flush()
        time.sleep(0.3)
        assert not results
        (folder / "go").touch()
        thread.join(20)
        assert results == [[None] * 4]
        assert third.pread(4096, 0) == b"new!" * 1024
    server.stop()
    assert path.read_bytes()[:4096] == b"new!" * 1024


@pytest.mark.parametrize("fua", ["emulate", "native"])
def test_a_failed_flush_is_remembered(serve, folder, image, fua):
    image(MIB, "image")
    server = server_for(serve, folder, STALLING, env={"FUA": fua})
    with server.client() as client:
        client.pwrite(b"x" * 512, 512)
        (folder / "fail").touch()
        if fua == "native":
            assert outcome(client.pwrite, b"x" * 512, 512, nbd.CMD_FLAG_FUA) == "EIO"
        else:
            assert outcome(client.flush) == "EIO"
        (folder / "fail").unlink()
        with server.client() as other, server.client("another name") as named:
            for each in (client, other, named):
                assert outcome(each.flush) == "EIO"
                assert outcome(each.pwrite, b"x" * 512, 0, nbd.CMD_FLAG_FUA) == "EIO"
                assert outcome(each.pwrite, b"x" * 512, 0) is None
                assert outcome(each.pread, 512, 0) == b"x" * 512
    assert server.log().count("acknowledged writes may be lost") == 1


def test_a_failed_change_with_fua_is_only_that(serve, folder):
    """If the change fails without FUA as well it was no sync that failed."""
    text = """#!/bin/sh
case $1 in get_size) echo 1M;; can_write|can_flush|flush) exit 0;; can_fua) echo native;;
pwrite) cat >/dev/null; [ $4 = 0 ] && exit 1; exit 0;; *) exit 2; esac"""
    server = server_for(serve, folder, text)
    with server.client() as client:
        assert outcome(client.pwrite, bytes(512), 0, nbd.CMD_FLAG_FUA) == "EIO"
        assert outcome(client.pwrite, bytes(512), 512, nbd.CMD_FLAG_FUA) is None
        assert outcome(client.flush) is None


# Statuses that nbdkit has had since 1.34; the offset of a pwrite says which.
STATUSES = """#!/bin/sh
case $1 in get_size) echo 1M;; can_write) exit 0;; pread) head -c $3 /dev/zero;;
pwrite) cat >/dev/null; echo ENOSPC >&2; exit $(($4 / 512));; *) exit 2; esac"""


def test_a_script_disconnects_a_client_at_once(serve, folder):
    server = server_for(serve, folder, STATUSES)
    with server.client() as other:
        client = server.connect()
        assert outcome(client.pread, 512, 0) == bytes(512)
        with pytest.raises(nbd.Error):
            client.pwrite(bytes(512), 512 * 6)
        assert client.aio_is_dead() or client.aio_is_closed()
        assert outcome(other.pread, 512, 0) == bytes(512)
    server.check_serves(stores=False)


@pytest.mark.parametrize("status, first", [(7, None), (8, "ENOSPC")])
def test_a_script_refuses_a_client(serve, folder, status, first):
    server = server_for(serve, folder, STATUSES)
    with server.client() as client, server.client() as other:
        assert outcome(client.pread, 512, 0) == bytes(512)
        assert outcome(client.pwrite, bytes(512), 512 * status) == first
        assert outcome(client.pread, 512, 0) == "ESHUTDOWN"
        assert outcome(client.pwrite, bytes(512), 0) == "ESHUTDOWN"
        assert outcome(other.pread, 512, 0) == bytes(512)
    server.check_serves(stores=False)


@pytest.mark.parametrize("status, first", [(4, None), (5, "ENOSPC")])
def test_a_script_ends_weft(serve, folder, status, first):
    server = server_for(serve, folder, STATUSES)
    client = server.connect()
    assert outcome(client.pwrite, bytes(512), 512 * status) == first
    assert server.wait() == 0


@pytest.mark.parametrize("method", ["preconnect", "default_export", "open", "get_size", "can_write",
                                    "can_fua", "can_cache", "block_size", "export_description"])
@pytest.mark.parametrize("how", ["fails", "junk"])
def test_a_client_that_cannot_be_served_is_refused(serve, folder, method, how):
    """The next one, for whom the script works, is served."""
    if how == "junk" and method not in ("get_size", "can_fua", "can_cache", "block_size"):
        pytest.skip("takes any text")
    bad = "echo junk" if how == "junk" else "echo EIO the reason >&2; exit 1"
    text = f"""#!/bin/sh
[ $1 = {method} ] && [ -e $FOLDER/bad ] && {{ {bad}; exit; }}
case $1 in get_size) echo 1M;; can_write) exit 0;; pread) head -c $3 /dev/zero;; *) exit 2; esac"""
    server = server_for(serve, folder, text)
    (folder / "bad").touch()
    with pytest.raises(nbd.Error):
        server.connect()
    (folder / "bad").unlink()
    with server.client() as client:
        assert client.pread(512, 0) == bytes(512)
    assert ("junk" if how == "junk" else "the reason") in server.log()


def test_many_clients_at_once(serve, folder, image):
    """Calls of many connections in parallel, each with its own data."""
    image(4 * MIB, "image")
    server = server_for(serve, folder, STALLING)
    failures = []

    def work(n):
        try:
            with server.client() as client:
                for turn in range(4):
                    data = bytes([n * 16 + turn]) * 65536
                    client.pwrite(data, (n + 1) * 65536)
                    assert client.pread(65536, (n + 1) * 65536) == data
        except Exception as error:  # pylint: disable=broad-except
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures


def test_no_descriptor_reaches_a_script(serve, folder):
    """But its three; the script tells by its standard error output when one is refused."""
    text = """#!/bin/bash
case $1 in get_size) echo 1M;; pread) ls -l /proc/$$/fd >"$FOLDER/fds"
grep -E 'Sig(Blk|Ign)' /proc/self/status >"$FOLDER/signals"
head -c $3 /dev/zero;; *) exit 2; esac"""
    server = server_for(serve, folder, text)
    with server.client() as client:
        assert client.pread(512, 0) == bytes(512)
    numbers = [line.split()[-3] for line in (folder / "fds").read_text().splitlines()[1:]]
    # bash keeps the script itself at 255.
    assert sorted(set(numbers) - {"255"}) == ["0", "1", "2"]
    blocked, ignored = [int(line.split()[1], 16)
                        for line in (folder / "signals").read_text().splitlines()]
    assert blocked == 0
    assert ignored & (1 << (signal.SIGPIPE - 1)) == 0


def test_explain_says_what_decided(folder, image):
    image(MIB, "image")
    path = script(folder, STALLING)
    text = run(WEFT, "--explain", "sh", path, env={**os.environ, "FOLDER": str(folder)}).stdout
    assert "multi-conn  advertised: decided by the script" in text
    assert "thread model parallel" in text
