// SPDX-License-Identifier: BSD-3-Clause
// Every plugin, in every way of using it, passes the conformance suite.
#include "disk/conformance.h"

#include <fcntl.h>
#include <linux/loop.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <filesystem>
#include <string_view>
#include <utility>

#include "base/fd.h"
#include "base/result.h"
#include "disk/disk.h"
#include "plugins/testing.h"

namespace weft::disk {
namespace {

using plugins::make_image;
using plugins::make_plugin;
using plugins::Parameters;

Candidate simple(std::string label, std::string name, Parameters parameters,
                 bool remembers = true) {
  return {
      std::move(label),
      [name, parameters](const std::filesystem::path&) { return make_plugin(name, parameters); },
      remembers};
}

Candidate file(std::string label, uint64_t size, Parameters parameters) {
  return {std::move(label),
          [size, parameters](const std::filesystem::path& scratch) -> std::unique_ptr<Plugin> {
            Parameters all = parameters;
            all.emplace_back("file", make_image(scratch / "disk.img", size));
            try {
              return make_plugin("file", all);
            } catch (const ConfigError& error) {
              // A file system without O_DIRECT.
              if (std::string_view(error.what()).find("O_DIRECT") != std::string_view::npos) {
                return nullptr;
              }
              throw;
            }
          },
          true};
}

// A disk of pieces of shell script over a file. `more`: further methods.
Candidate eval(std::string label, uint64_t size, Parameters more) {
  return {std::move(label),
          [size, more](const std::filesystem::path& scratch) -> std::unique_ptr<Plugin> {
            const std::string image = make_image(scratch / "disk.img", size);
            Parameters all = {
                {"get_size", "stat -c %s " + image},
                {"pread", "dd iflag=skip_bytes,count_bytes skip=$4 count=$3 bs=1M if=" + image},
                {"pwrite",
                 "dd iflag=fullblock oflag=seek_bytes seek=$4 conv=notrunc bs=1M of=" + image},
                {"flush", "exit 0"}};
            all.insert(all.end(), more.begin(), more.end());
            return make_plugin("eval", all);
          },
          true};
}

// A file without a name on tmpfs; none where there is no tmpfs to be had.
Fd make_memory_file(const std::filesystem::path& scratch, uint64_t size) {
  const std::string path = "/dev/shm/" + scratch.filename().string();
  Fd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  unlink(path.c_str());
  if (fd && ftruncate(fd.get(), static_cast<off_t>(size)) != 0) fd.reset();
  return fd;
}

// tmpfs knows fewer ways to zero than disk file systems do.
Candidate file_in_memory(std::string label, uint64_t size) {
  return {std::move(label),
          [size](const std::filesystem::path& scratch) -> std::unique_ptr<Plugin> {
            const Fd fd = make_memory_file(scratch, size);
            if (!fd) return nullptr;
            return make_plugin("file", {{"fd", std::to_string(fd.get())}});
          },
          true};
}

// A block device over a file, which only root may have. It goes when the plugin closes it.
Candidate loop_device(std::string label, uint64_t size, Parameters parameters) {
  return {std::move(label),
          [size, parameters](const std::filesystem::path& scratch) -> std::unique_ptr<Plugin> {
            const Fd control(::open("/dev/loop-control", O_RDWR | O_CLOEXEC));
            const Fd image = make_memory_file(scratch, size);
            for (int attempt = 0; control && image && attempt < 10; attempt++) {
              const std::string path =
                  "/dev/loop" + std::to_string(ioctl(control.get(), LOOP_CTL_GET_FREE));
              const Fd device(::open(path.c_str(), O_RDWR | O_CLOEXEC));
              loop_config config = {};
              config.fd = static_cast<uint32_t>(image.get());
              config.info.lo_flags = LO_FLAGS_AUTOCLEAR;
              if (!device || ioctl(device.get(), LOOP_CONFIGURE, &config) != 0) continue;
              Parameters all = parameters;
              all.emplace_back("file", path);
              return make_plugin("file", all);
            }
            return nullptr;
          },
          true};
}

constexpr uint64_t kOdd = (1 << 20) + 12345;

INSTANTIATE_TEST_SUITE_P(
    Plugins, Conformance,
    each_engine({
        simple("Memory", "memory", {{"size", "2m"}}),
        simple("MemoryOfOddSize", "memory", {{"size", std::to_string(kOdd)}}),
        simple("MemoryOfOneByte", "memory", {{"size", "1"}}),
        simple("Null", "null", {{"size", "1m"}}, false),
        simple("NullOfNothing", "null", {}, false),
        simple("Pattern", "pattern", {{"size", std::to_string(kOdd)}}),
        simple("Data", "data",
               {{"data", "1 2 3 \"text\" @65535 0xff 0xfe @100000 7"}, {"size", "1m"}}),
        simple("DataRaw", "data", {{"raw", "hello, world"}}),
        file("File", 2 << 20, {}),
        file("FileOfOddSize", kOdd, {}),
        file("FileOfOneByte", 1, {}),
        file("EmptyFile", 0, {}),
        file("FileReadAtRandom", 1 << 20, {{"fadvise", "random"}, {"lock", "off"}}),
        file("FileDirect", 2 << 20, {{"cache", "none"}}),
        file("FileDirectOfOddSize", kOdd, {{"cache", "none"}}),
        file("FileDirectOfOneByte", 1, {{"cache", "none"}}),
        loop_device("LoopDevice", 2 << 20, {}),
        loop_device("LoopDeviceDirect", 2 << 20, {{"cache", "none"}}),
        file_in_memory("FileOnTmpfs", kOdd),
        eval("Eval", 64 << 10,
             {{"thread_model", "echo parallel"},
              {"can_multi_conn", "exit 0"},
              {"zero", "echo ENOTSUP >&2; exit 1"},
              {"extents", "echo 0 64K"}}),
    }),
    conformance_name);

}  // namespace
}  // namespace weft::disk
