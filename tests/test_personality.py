# SPDX-License-Identifier: BSD-3-Clause
"""weft started as nbdkit: nbdkit's words, texts and exit statuses, and scripts as plugins.

Debian's nbdkit is run beside it where the release whose command line this is (1.46) has not
changed what it does.
"""
import os
import pathlib
import shutil
import subprocess

import pytest

from harness import IS_WEFT, NBDKIT, ROOT, WEFT, free_port, run, wait_until

pytestmark = pytest.mark.skipif(not IS_WEFT, reason="about weft under the name of nbdkit")
BOTH = pytest.mark.skipif(shutil.which(NBDKIT) is None, reason="nbdkit is not installed")
SIZE = 'nbdinfo --size "$uri"'

# What 1.46 prints, in its order.
CONFIG_KEYS = """binary bindir exit_with_parent filterdir host_cpu host_os libdir mandir
    max_api_version name plugindir root_tls_certificates_dir run_default_socket sbindir selinux
    soext sysconfdir timeout_option tls version version_major version_minor vsock_option
    zstd""".split()
# The options of 1.46 that 1.32 has not.
NEW_OPTIONS = """--keep-alive --keepalive --name --no-mc --no-meta-contexts
    --no-structured-replies --print-uri --print-url --show-uri --show-url --time-out --timeout
    --tls-priority""".split()


@pytest.fixture(name="folder", scope="module")
def as_nbdkit(tmp_path_factory):
    """A folder in which weft is called nbdkit."""
    folder = tmp_path_factory.mktemp("bin")
    (folder / "nbdkit").symlink_to(pathlib.Path(WEFT).resolve())
    return folder


@pytest.fixture(name="nbdkit", scope="module")
def start_as_nbdkit(folder):
    def start(*words, **options):
        return run(folder / "nbdkit", *words, check=False, **options)
    return start


def oracle(*words, **options):
    return run(NBDKIT, *words, check=False, **options)


def keys(text):
    return [line.partition("=")[0] for line in text.splitlines()]


def why_no_plugin(name):
    """Why the plugin of a file cannot be used here, or None."""
    done = run(WEFT, "--version", name, check=False)
    return done.stderr.strip() if done.returncode else None


def need_plugin(name):
    reason = why_no_plugin(name)
    if reason:
        pytest.skip(reason)


# ---- texts for scripts ----


def test_version(nbdkit):
    assert nbdkit("--version").stdout == "nbdkit 1.46.0\n"
    assert nbdkit("-V").stdout == "nbdkit 1.46.0\n"
    stack = nbdkit("--filter=stats", "--filter=cow", "null", "--version").stdout
    assert [line.split()[0] for line in stack.splitlines()] == ["nbdkit", "stats", "cow", "null"]


def test_dump_config(nbdkit, folder):
    lines = nbdkit("--dump-config").stdout.splitlines()
    values = dict(line.split("=", 1) for line in lines)
    assert list(values) == CONFIG_KEYS
    assert values["binary"] == str(pathlib.Path(WEFT).resolve())
    assert (values["name"], values["version"]) == ("nbdkit", "1.46.0")
    assert (values["version_major"], values["version_minor"]) == ("1", "46")
    assert values["run_default_socket"] == "Unix"
    assert run(folder / "nbdkit", "--dump-config", "--nosuch").stdout.splitlines() == lines


@BOTH
def test_dump_config_beside_nbdkit(nbdkit):
    ours, theirs = (dict(line.split("=", 1) for line in start("--dump-config").stdout.splitlines())
                    for start in (nbdkit, oracle))
    assert set(theirs) <= set(ours) | {"version_extra"}
    for key in ("exit_with_parent", "filterdir", "host_cpu", "host_os", "name", "plugindir",
                "version_major"):
        assert ours[key] == theirs[key], key


@BOTH
@pytest.mark.parametrize("option, more", [("--short-options", []), ("--long-options", NEW_OPTIONS)])
def test_lists_of_options(nbdkit, option, more):
    assert sorted(nbdkit(option).stdout.split()) == sorted(oracle(option).stdout.split() + more)


def test_own_options_are_unknown(nbdkit):
    for option in ("--shared=2", "--engine=epoll", "--explain", "--max-memory=1G"):
        done = nbdkit(option, "null")
        assert done.returncode == 1
        assert done.stderr.startswith("nbdkit: unknown option"), done.stderr
        # nbdkit shows its usage on standard output then.
        assert done.stdout.startswith("Usage: nbdkit "), done.stdout


@BOTH
def test_dump_plugin_of_files(nbdkit):
    folder = pathlib.Path(
        dict(line.split("=", 1) for line in oracle("--dump-config").stdout.splitlines())
        ["plugindir"])
    paths = sorted(folder.glob("nbdkit-*-plugin.so"))
    assert paths
    need_plugin(str(paths[0]))
    for path in paths:
        ours, theirs = nbdkit(path, "--dump-plugin"), oracle(path, "--dump-plugin")
        assert ours.returncode == theirs.returncode, path
        assert ours.stdout == theirs.stdout, path


def test_dump_plugin_of_what_is_built_in(nbdkit):
    text = nbdkit("null", "--dump-plugin").stdout
    assert keys(text)[:8] == ["path", "name", "version", "api_version", "struct_size",
                              "max_thread_model", "thread_model", "errno_is_preserved"]
    assert "\nhas_pread=1\n" in text


@BOTH
def test_help_and_version_of_files(nbdkit):
    need_plugin("curl")
    assert nbdkit("curl", "--version").stdout.splitlines()[1:] == (
        oracle("curl", "--version").stdout.splitlines()[1:])
    help_text = nbdkit("--help", "curl").stdout
    assert "\nPlugin: curl" in help_text and "cookiefile=" in help_text


@BOTH
def test_debug_flags_of_files(nbdkit):
    """A flag that the plugin has is set; of another the server warns."""
    need_plugin("curl")
    assert nbdkit("-D", "curl.verbose=1", "curl", "--version").stderr == ""
    for start in (nbdkit, oracle):
        done = start("-D", "curl.nosuch=1", "curl", "--version")
        assert done.returncode == 0 and done.stderr.startswith("nbdkit: warning: "), done.stderr


# ---- which personality ----


def test_as(nbdkit):
    assert run(WEFT, "--version").stdout.startswith("weft ")
    assert run(WEFT, "--as=nbdkit", "--version").stdout == "nbdkit 1.46.0\n"
    assert run(WEFT, "--version", "--as", "nbdkit").stdout == "nbdkit 1.46.0\n"
    assert nbdkit("--as=weft", "--version").stdout.startswith("weft ")
    assert run(WEFT, "--as=qemu", check=False).returncode == 1


def test_another_argv0():
    done = subprocess.run(["/somewhere/nbdkit", "--version"], executable=WEFT, text=True,
                          stdout=subprocess.PIPE, check=True, timeout=60)
    assert done.stdout == "nbdkit 1.46.0\n"


# ---- exit statuses, streams and how messages begin ----


def form(text):
    if text.startswith("nbdkit: error: "):
        return "error"
    return "plain" if text.startswith("nbdkit: ") else "other"


LINES = """
--dump-plugin -s null
-p 1 -U x null
-p 1 -s null
-U x -s null
-s --run true null
--vsock -s null
--vsock -U - null
-U - -i 127.0.0.1 null --run true
null --dump-plugin size=1Q
null --dump-plugin bogus=1
--version nosuch
--help nosuch
-U - --run true null size=1Q
-U - --run true null foo=bar
-U - --run true nosuch
-U - --run true ./nosuch.so
-U - --run true /etc/passwd
-U - --run true --filter=nosuch null
-U - --run true --filter=/etc/passwd null
-U - --run true null --filter=cow
-U - --run true -D foo null
-U - --run true -D foo.bar null
-U - --run true -D null.bar=x null
-U - --run true -D null.bar=99999999999 null
-U - --run true -D null.bar=1 null
-U - --run true -D nbdkit.tls.log=1 null
-U - --run true --log=stderr null
-U - --run true --log=syslog null
-U - --run true --log=null null
-U - --run true --log=bad null
-U - --run true -t -1 null
-U - --run true -t 4x null
-U - --run true -t 0x10 null
-U - --run true --mask-handshake=0xffffffff null
-U - --run true --mask-handshake=x null
-U - --run true --tls=off null
-U - --run true --tls=0 null
-U - --run true --tls=maybe null
-U - --run true --tls=off --tls-psk=/x null
-U - --run true --swap null
-U - --run exit\\ 3 null
-U - --run true null 1M
-U - --run true null -- 1M
-- null --version
-U - --run true null -1M
-U - --run true memory
-U - --run true file
-U - --run true file /nonexistent
-U - --run true data @0x10\\ 1\\ 2
-U - --run true example2
-U - --run true python /nonexistent.py
-U - --run true S3
-U - --run true example4
-U - --run true a:b
--single=3 null
-zz null
-p
--run
--filter
--t=off null
--dump null
--fil=cow null --version
null --versi
-fVx null
--filter=nosuch --version
null -fV
-h
"""


@BOTH
@pytest.mark.parametrize("line", LINES.strip().splitlines())
def test_beside_nbdkit(nbdkit, line):
    words = [word.replace("\0", " ") for word in line.replace("\\ ", "\0").split()]
    for word in words:
        if word in ("S3", "example2", "example4", "python"):
            need_plugin(word)
    ours, theirs = nbdkit(*words), oracle(*words)
    what = f"ours: {ours}\ntheirs: {theirs}"
    assert ours.returncode == theirs.returncode, what
    assert bool(ours.stdout) == bool(theirs.stdout), what
    assert bool(ours.stderr) == bool(theirs.stderr), what
    if ours.returncode and form(theirs.stderr) != "other":
        assert form(ours.stderr) == form(theirs.stderr), what


def test_weft_speaks_for_itself():
    for words in (["--nosuch"], ["null", "foo=bar"], ["-p"]):
        done = run(WEFT, *words, check=False)
        assert done.stderr.startswith("weft: ") and done.stdout == ""


def test_name(nbdkit):
    done = nbdkit("--name=my disk", "null", "foo=bar")
    assert done.returncode == 1 and done.stderr.startswith("my disk: error: "), done.stderr
    done = nbdkit("--name=my disk", "-D", "null.x=1", "null", "--version")
    assert done.stderr.startswith("my disk: warning: "), done.stderr


@pytest.mark.parametrize("option", ["--tls-certificates=/x", "--tls-psk=/x", "--tls-verify-peer",
                                    "--tls-priority=NORMAL", "--tls=on", "--tls=require"])
def test_tls_is_refused_clearly(nbdkit, option):
    done = nbdkit(option, "-U", "-", "null", "--run", "true")
    assert done.returncode == 1
    assert option.partition("=")[0] in done.stderr and "no TLS" in done.stderr
    assert nbdkit(option, "--tls=off", "-U", "-", "null", "--run", "true").returncode == 0


def test_log(nbdkit, tmp_path):
    """Messages of a server go where --log says."""
    program = ["-U", "-", "sh", tmp_path / "disk.sh", "--run", SIZE]
    (tmp_path / "disk.sh").write_text("#!/bin/sh\n[ $1 = get_size ] || exit 2\n"
                                      "echo broken disk >&2\nexit 1\n")
    (tmp_path / "disk.sh").chmod(0o755)
    for target in ([], ["--log=default"], ["--log=stderr"]):
        assert "nbdkit: " in nbdkit(*target, *program).stderr
    log = tmp_path / "log"
    log.write_text("before\n")
    assert "broken disk" not in nbdkit(f"--log={log}", *program).stderr
    first, *rest = log.read_text().splitlines()
    assert first == "before" and any("broken disk" in line for line in rest), rest
    assert all(line.startswith("nbdkit: ") for line in rest), rest
    assert "broken disk" not in nbdkit("--log=null", *program).stderr


def test_the_background(nbdkit, tmp_path):
    """The parent ends with 0 when the server serves; the pid is the server's."""
    pidfile, socket = tmp_path / "pid", tmp_path / "s"
    assert nbdkit("-P", pidfile, "-U", socket, "memory", "1M").returncode == 0
    pid = int(wait_until(lambda: pidfile.exists() and pidfile.read_text(), "the pidfile"))
    try:
        assert run("nbdinfo", "--size", f"nbd+unix:///?socket={socket}").stdout == "1048576\n"
    finally:
        os.kill(pid, 15)
    wait_until(lambda: not pathlib.Path(f"/proc/{pid}").exists(), "the end of the server")


def test_print_uri(nbdkit):
    port = free_port()
    done = nbdkit("--print-uri", "-i", "127.0.0.1", "-p", port, "memory", "1M", "--run", SIZE)
    uri, size = done.stdout.splitlines()
    assert uri.startswith("nbd://") and uri.endswith(f":{port}") and size == "1048576"


# ---- parameters from files ----


def test_parameters_from_a_file(nbdkit, tmp_path):
    image = tmp_path / "disk 1.img"
    image.write_bytes(bytes(1 << 20))
    (tmp_path / "more").write_text("cache=default\n")
    (tmp_path / "params").write_text(f"# a disk\n\n  file={image}\n@{tmp_path}/more\n")
    done = nbdkit("-U", "-", "file", f"@{tmp_path}/params", "--run", SIZE)
    assert (done.returncode, done.stdout) == (0, "1048576\n"), done.stderr
    (tmp_path / "more").write_text("nosuch=default\n")
    done = nbdkit("-U", "-", "file", f"@{tmp_path}/params", "--run", SIZE)
    assert done.returncode == 1 and "nosuch" in done.stderr
    # A value of the data plugin.
    done = nbdkit("-U", "-", "data", "@0x10 1", "--run", SIZE)
    assert (done.returncode, done.stdout) == (0, "17\n"), done.stderr


# ---- scripts ----

PYTHON_DISK = """
import builtins
API_VERSION = 2
def config(key, value):
    pass
def open(readonly):
    return 1
def get_size(h):
    return 8192
def pread(h, buf, offset, flags):
    buf[:] = b"x" * len(buf)
"""


def write_script(path, first_line, text=PYTHON_DISK):
    path.write_text(first_line + "\n" + text)
    path.chmod(0o755)
    return path


def environment(folder):
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}


def test_a_script_started_directly(folder, tmp_path):
    need_plugin("python")
    disk = write_script(tmp_path / "disk", "#!/usr/bin/env -S nbdkit python")
    done = run(disk, "-U", "-", "a=b", "--run", SIZE, env=environment(folder))
    assert done.stdout == "8192\n"
    disk = write_script(tmp_path / "disk2", f"#!{folder}/nbdkit python")
    assert run(disk, "-U", "-", "--run", SIZE).stdout == "8192\n"


def test_a_script_named_by_its_path(nbdkit, tmp_path):
    need_plugin("python")
    disk = write_script(tmp_path / "disk.py", "#!/nonexistent/nbdkit python")
    done = nbdkit("-U", "-", disk, "a=b", "--run", SIZE)
    assert done.stdout == "8192\n", done.stderr
    done = run(WEFT, "-U", "-", disk, "--run", SIZE)
    assert done.stdout == "8192\n"


def test_a_script_without_a_language(folder, tmp_path):
    disk = write_script(tmp_path / "disk", "#!/usr/bin/env nbdkit")
    done = run(disk, check=False, env=environment(folder))
    assert done.returncode == 1
    assert str(disk) in done.stderr and "language" in done.stderr
    done = run(disk, check=False, env=environment(folder), cwd=tmp_path)
    assert done.returncode == 1


def started_programs(trace):
    return [line.split('execve("', 1)[1].split('"', 1)[0] for line in trace.read_text().splitlines()
            if 'execve("' in line and "= 0" in line]


@BOTH
def test_scripts_of_the_plugin_folder_run_in_weft(folder, tmp_path):
    """Their first lines name /usr/bin/nbdkit, which is never started."""
    need_plugin("example4")
    trace = tmp_path / "trace"
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    done = run("strace", "-f", "-q", "-e", "trace=execve", "-o", trace, folder / "nbdkit", "-U",
               "-", "example4", "size=1M", "--run", SIZE, check=False)
    if "PTRACE" in done.stderr:
        pytest.skip("strace may not trace here")
    assert done.returncode == 0 and int(done.stdout) > 0, done.stderr
    programs = started_programs(trace)
    assert NBDKIT not in programs and any("nbdinfo" in path for path in programs), programs


def test_s3_runs_in_weft(nbdkit):
    need_plugin("S3")
    done = nbdkit("S3", "--version")
    assert done.stdout.splitlines()[0] == "nbdkit 1.46.0"
    assert done.stdout.splitlines()[1].startswith("python ")


# ---- installation ----


def test_installed_as_nbdkit(tmp_path):
    """cmake --install, with the option, gives the names nbdkit."""
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not installed")
    build, prefix = tmp_path / "build", tmp_path / "prefix"
    done = run("cmake", "--preset", "release", "-S", ROOT, "-B", build, "-DWEFT_TESTS=OFF",
               "-DWEFT_INSTALL_AS_NBDKIT=ON", "-DWEFT_MANUALS=ON",
               f"-DCMAKE_INSTALL_PREFIX={prefix}", check=False, timeout_s=300, cwd=ROOT)
    if done.returncode:
        pytest.skip(f"weft cannot be configured here: {done.stderr[-300:]}")
    (build / "bin").mkdir(exist_ok=True)
    shutil.copy(WEFT, build / "bin/weft")  # not built again
    for room in ("src/cli", "completions"):
        run("cmake", "-P", build / room / "cmake_install.cmake", timeout_s=300)
    for name in ("bin/nbdkit", "sbin/nbdkit", "libexec/weft/nbdkit"):
        assert os.readlink(prefix / name).endswith("weft")
        assert run(prefix / name, "--version").stdout == "nbdkit 1.46.0\n"
    share = prefix / "share"
    assert "weft-nbdkit" in (share / "man/man1/nbdkit.1").read_text()
    for name in ("bash-completion/completions/weft", "bash-completion/completions/nbdkit",
                 "zsh/site-functions/_weft", "fish/vendor_completions.d/weft.fish",
                 "fish/vendor_completions.d/nbdkit.fish"):
        assert (share / name).exists(), name
