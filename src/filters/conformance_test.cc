// SPDX-License-Identifier: BSD-3-Clause
// Every filter that should be transparent passes the conformance suite of disks.
#include "disk/conformance.h"

#include <filesystem>
#include <fstream>
#include <string>
#include <utility>

#include "filters/testing.h"
#include "plugins/testing.h"

namespace weft::disk {
namespace {

using filters::make_filtered;
using plugins::make_configured;

constexpr uint64_t kOdd = (1 << 20) + 12345;

Candidate over_memory(std::string label, std::string name, filters::Parameters parameters = {}) {
  return {std::move(label), [name, parameters](const std::filesystem::path&) {
            return make_filtered(name, parameters,
                                 make_configured("memory", {{"size", std::to_string(kOdd)}}));
          }};
}

// Over a file that is full of data.
Candidate over_file(std::string label, std::string name, uint64_t size,
                    filters::Parameters parameters = {}) {
  return {std::move(label), [name, size, parameters](const std::filesystem::path& scratch) {
            const std::string path = scratch / "disk";
            std::string content(size, '\0');
            for (uint64_t i = 0; i < size; i++) content[i] = static_cast<char>(1 + i % 251);
            std::ofstream(path) << content;
            return make_filtered(name, parameters, make_configured("file", {{"file", path}}));
          }};
}

// So small that it is full, and being reclaimed, all the time.
filters::Parameters tiny_cache(const char* mode, const char* on_read) {
  return {{"cache", mode},
          {"cache-min-block-size", "4096"},
          {"cache-max-size", "40K"},
          {"cache-on-read", on_read}};
}

INSTANTIATE_TEST_SUITE_P(
    Filters, Conformance,
    each_engine({
        over_memory("Blocksize", "blocksize"),
        over_memory("BlocksizeOf512", "blocksize", {{"minblock", "512"}}),
        over_memory("BlocksizeOf64K", "blocksize",
                    {{"minblock", "64k"}, {"maxdata", "64k"}, {"maxlen", "128k"}}),
        over_file("BlocksizeOverFile", "blocksize", kOdd,
                  {{"minblock", "4k"}, {"maxdata", "12k"}, {"maxlen", "8k"}}),
        over_file("BlocksizeOfNothing", "blocksize", 4095, {{"minblock", "4k"}}),
        over_memory("Cacheextents", "cacheextents"),
        over_file("CacheextentsOverFile", "cacheextents", kOdd),
        over_memory("CacheWriteback", "cache"),
        over_memory("CacheWritebackOnRead", "cache", {{"cache-on-read", "1"}}),
        over_memory("CacheWritethrough", "cache", {{"cache", "writethrough"}}),
        over_memory("CacheUnsafe", "cache", {{"cache", "unsafe"}}),
        over_memory("CacheTinyWriteback", "cache", tiny_cache("writeback", "true")),
        over_memory("CacheTinyWritethrough", "cache", tiny_cache("writethrough", "true")),
        over_memory("CacheTinyUnsafe", "cache", tiny_cache("unsafe", "false")),
        over_file("CacheWritebackFile", "cache", kOdd),
        over_file("CacheTinyWritebackFile", "cache", kOdd, tiny_cache("writeback", "false")),
        over_file("CacheTinyWritethroughFile", "cache", kOdd, tiny_cache("writethrough", "true")),
        over_memory("Cow", "cow"),
        over_memory("CowOfSmallBlocks", "cow", {{"cow-block-size", "4k"}}),
        over_memory("CowOfOneBlock", "cow", {{"cow-block-size", "2m"}}),
        over_memory("CowOnRead", "cow", {{"cow-on-read", "true"}, {"cow-block-size", "4k"}}),
        over_memory("CowOnCache", "cow", {{"cow-on-cache", "true"}, {"cow-on-read", "/"}}),
        over_file("CowOverFile", "cow", kOdd),
        over_file("CowOnReadOverFile", "cow", kOdd,
                  {{"cow-on-read", "true"}, {"cow-block-size", "4k"}}),
        over_file("CowOfOneByte", "cow", 1),
        over_file("CowOfNothing", "cow", 0),
        over_memory("Delay", "delay", {{"rdelay", "1ms"}, {"wdelay", "1ms"}}),
        over_memory("DelayNone", "delay"),
        over_memory("Error", "error"),
        // Every operation draws, and looks for the file.
        over_memory("ErrorWithoutItsFile", "error",
                    {{"error-rate", "1"},
                     {"error-flush-rate", "1"},
                     {"error-open-rate", "1"},
                     {"error-file", "/nonexistent/file"}}),
        over_memory("FuaNone", "fua"),
        over_memory("FuaEmulate", "fua", {{"fuamode", "emulate"}}),
        over_memory("FuaNative", "fua", {{"fuamode", "native"}}),
        over_memory("FuaForce", "fua", {{"fuamode", "force"}}),
        over_memory("FuaDiscard", "fua", {{"fuamode", "discard"}}),
        over_memory("FuaFlushOnClose", "fua", {{"fuamode", "pass"}, {"flush-on-close", "true"}}),
        over_memory("Ip", "ip", {{"deny", "10.0.0.0/8"}}),
        over_memory("Limit", "limit", {{"limit", "100"}}),
        over_memory("Log", "log", {{"logfile", "/dev/null"}}),
        over_memory("LogNone", "log"),
        over_memory("MultiConn", "multi-conn"),
        over_memory("MultiConnEmulate", "multi-conn", {{"multi-conn-mode", "emulate"}}),
        over_memory("MultiConnUntracked", "multi-conn",
                    {{"multi-conn-mode", "emulate"}, {"multi-conn-track-dirty", "off"}}),
        over_memory("NocacheNone", "nocache"),
        over_memory("NocacheEmulate", "nocache", {{"cachemode", "emulate"}}),
        over_memory("NocacheNop", "nocache", {{"cachemode", "nop"}}),
        over_memory("Noextents", "noextents"),
        over_memory("Nofilter", "nofilter"),
        over_memory("NoparallelRequests", "noparallel"),
        over_memory("NoparallelAllRequests", "noparallel", {{"serialize", "all-requests"}}),
        over_memory("NozeroNone", "nozero"),
        over_memory("NozeroEmulate", "nozero", {{"zeromode", "emulate"}}),
        over_memory("NozeroNotrim", "nozero", {{"zeromode", "notrim"}}),
        over_memory("NozeroPlugin", "nozero", {{"zeromode", "plugin"}}),
        over_memory("Readahead", "readahead"),
        over_file("ReadaheadOverFile", "readahead", kOdd),
        over_file("ReadaheadOfOneByte", "readahead", 1),
        over_memory("Stats", "stats", {{"statsfile", "/dev/null"}}),
    }),
    conformance_name);

}  // namespace
}  // namespace weft::disk
