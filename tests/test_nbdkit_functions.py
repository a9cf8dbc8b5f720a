# SPDX-License-Identifier: BSD-3-Clause
"""The functions that nbdkit's plugins import: the program exports them, and they do what they do
under nbdkit; and what is said when a plugin takes the program down."""
import os
import pathlib
import shutil
import signal
import subprocess

import nbd
import pytest

import harness

HEADER = pathlib.Path("/usr/include/nbdkit-plugin.h")

FUNCTIONS = set("""
absolute_path add_export add_extent debug debug_hexdump disconnect error export_name exports_count
exports_free exports_new extents_count extents_free extents_new get_export get_extent is_tls
nanosleep parse_bool parse_delay parse_int parse_int16_t parse_int32_t parse_int64_t parse_int8_t
parse_probability parse_size parse_uint16_t parse_uint32_t parse_uint64_t parse_uint8_t
parse_unsigned peer_gid peer_name peer_pid peer_security_context peer_tls_dn peer_tls_issuer_dn
peer_uid printf_intern read_password realpath set_error shutdown stdio_safe strdup_intern
strndup_intern use_default_export vdebug verror vprintf_intern""".split())

# Prints what the parsers make of texts, and dies as it is told.
PLUGIN = r"""
#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL
static const char *how = "";
#define NUMBER(TYPE, NAME, FORMAT) { TYPE r = (TYPE)77; \
    int x = nbdkit_parse_##NAME("number", v, &r); printf(#NAME " %d " FORMAT "\n", x, r); }
static int config(const char *k, const char *v) {
  if (!strcmp(k, "die")) { how = v; return 0; }
  NUMBER(int, int, "%d") NUMBER(unsigned, unsigned, "%u")
  NUMBER(int8_t, int8_t, "%d") NUMBER(uint8_t, uint8_t, "%u")
  NUMBER(int16_t, int16_t, "%d") NUMBER(uint16_t, uint16_t, "%u")
  NUMBER(int32_t, int32_t, "%d") NUMBER(uint32_t, uint32_t, "%u")
  NUMBER(int64_t, int64_t, "%ld") NUMBER(uint64_t, uint64_t, "%lu")
  printf("size %ld\n", nbdkit_parse_size(v));
  printf("bool %d\n", nbdkit_parse_bool(v));
  printf("safe %d\n", nbdkit_stdio_safe());
  char *password = NULL;
  printf("password %d", nbdkit_read_password(v, &password));
  printf(" %s\n", password ? password : "none");
  free(password);
  printf("absolute %s\n", (password = nbdkit_absolute_path(v)) ? password : "none");
  free(password);
  printf("real %s\n", (password = nbdkit_realpath(v)) ? password : "none");
  free(password);
  printf("interned %s\n", nbdkit_strndup_intern(v, 3));
  fflush(stdout);
  return 0;
}
static void *open_(int readonly) { return NBDKIT_HANDLE_NOT_NEEDED; }
static int64_t get_size(void *h) { return 65536; }
static int pread_(void *h, void *b, uint32_t c, uint64_t o, uint32_t f) {
  if (!strcmp(how, "segv")) *(volatile int *)8 = 1;
  if (!strcmp(how, "abort")) abort();
  if (!strcmp(how, "exit")) exit(9);
  memset(b, 0, c);
  return 0;
}
static struct nbdkit_plugin plugin = {
  .name = "probe", .config = config, .open = open_, .get_size = get_size, .pread = pread_,
};
NBDKIT_REGISTER_PLUGIN(plugin)
"""

TEXTS = """0 1 -1 +1 0x10 0X1F 010 08 0x 1.5 1,000 1k 127 128 -128 -129 255 256 32767 32768 -32768
    -32769 65535 65536 2147483647 2147483648 -2147483648 -2147483649 4294967295 4294967296
    9223372036854775807 9223372036854775808 -9223372036854775808 -9223372036854775809
    18446744073709551615 18446744073709551616 99999999999999999999999 -0 -0x1 +-1 1s 1B 7e 8e 1MiB
    8191P 8192P 1ss s true Yes OFF n enable -x -99 ./a/../b /usr/../usr/bin +/nothing""".split()
TEXTS += ["", " ", " 1", "\t7", "1 ", "1\n", " yes", " 1k"]


@pytest.fixture(scope="module", name="plugin")
def fixture_plugin(tmp_path_factory):
    compiler = shutil.which("clang-19") or shutil.which("cc")
    if not HEADER.exists() or not compiler:
        pytest.skip(f"{HEADER} or a C compiler is missing: scripts/deps --tests")
    folder = tmp_path_factory.mktemp("probe")
    (folder / "probe.c").write_text(PLUGIN)
    harness.run(compiler, "-w", "-g", "-fPIC", "-shared", folder / "probe.c", "-o",
                folder / "probe.so")
    return folder / "probe.so"


def weft_only():
    if not harness.IS_WEFT:
        pytest.skip("this is said of weft")


def test_the_program_exports_just_the_functions():
    weft_only()
    if not HEADER.exists() or not shutil.which("nm"):
        pytest.skip(f"{HEADER} or nm is missing")
    symbols = {line.split()[-1] for line in
               harness.run("nm", "-D", "--defined-only", harness.WEFT).stdout.splitlines()}
    assert {s for s in symbols if s.startswith("nbdkit_")} == {"nbdkit_" + f for f in FUNCTIONS}
    others = [s for s in symbols if not s.startswith(("nbdkit_", "_Z", "__"))]
    if not harness.SANITIZED:
        assert not [s for s in symbols if "weft" in s], "weft's own functions are nobody else's"
        assert len(others) < 5, others


def printed(program, plugin, text):
    done = subprocess.run([program, "--dump-plugin", plugin, f"value={text}"], text=True,
                          stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False)
    names = ("int", "unsigned", "uint", "size", "bool", "safe", "password", "absolute", "real",
             "interned", "1")
    return [line for line in done.stdout.splitlines() if line.startswith(names)], done.stderr


def test_texts_are_what_they_are_under_nbdkit(plugin):
    weft_only()
    if not os.path.exists(harness.NBDKIT):
        pytest.skip("nbdkit is missing: scripts/deps --tests")
    for text in TEXTS:
        theirs, their_errors = printed(harness.NBDKIT, plugin, text)
        ours, our_errors = printed(harness.WEFT, plugin, text)
        assert len(theirs) > 14, their_errors
        assert ours == theirs, f"{text!r}: {our_errors}"


@pytest.mark.parametrize("how,status,said", [
    ("segv", -signal.SIGSEGV, "crashed in pread(): SIGSEGV"),
    ("abort", -signal.SIGABRT, "crashed in pread(): SIGABRT"),
    ("exit", 9, "it called exit() in pread()")])
def test_a_plugin_that_ends_the_server_is_named(plugin, how, status, said):
    weft_only()
    if harness.SANITIZED:
        pytest.skip("a sanitizer has its own reports")
    server = harness.Server(plugin, f"die={how}")
    server.may_die = True
    try:
        client = nbd.NBD()
        client.connect_uri(server.uri())
        with pytest.raises(nbd.Error):
            client.pread(512, 0)
        assert server.process.wait(timeout=harness.TIMEOUT_S) == status
        log = server.log()
        assert "weft: error: probe[1]: the plugin probe " in log and said in log, log
    finally:
        server.kill()
        server.remove()
