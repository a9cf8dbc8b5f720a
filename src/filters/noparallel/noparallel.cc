// SPDX-License-Identifier: BSD-3-Clause
// The noparallel filter: lets fewer requests through at once. disk/serializer.h does it.
#include "filters/choice.h"
#include "filters/filters.h"

namespace weft::filters {
namespace {

using disk::Task;
using disk::ThreadModel;

constexpr Choice<ThreadModel> kModels[] = {{"requests", ThreadModel::kSerializeRequests},
                                           {"all-requests", ThreadModel::kSerializeAllRequests},
                                           {"connections", ThreadModel::kSerializeConnections}};

class NoParallel final : public disk::Filter {
 public:
  bool take(std::string_view key, std::string_view value) override {
    if (key != "serialize") return false;
    model_ = choose(name(), key, value, kModels);
    return true;
  }
  [[nodiscard]] ThreadModel own_thread_model() const override { return model_; }
  [[nodiscard]] bool answers_in_order() const override { return true; }

  Task<Result<std::unique_ptr<disk::Disk>>> open(disk::OpenRequest request) override {
    return open_next(std::move(request));
  }

 private:
  ThreadModel model_ = ThreadModel::kSerializeRequests;
};

}  // namespace

constinit const disk::FilterInfo noparallel_filter = {
    .name = "noparallel",
    .longname = "weft noparallel filter",
    .description = "Lets fewer requests through at once",
    .config_help =
        "serialize=requests|all-requests|connections\n"
        "                      one request of a client at a time, or of all clients, or\n"
        "                      one client at a time (default: requests)",
    .make = [] -> std::unique_ptr<disk::Filter> { return std::make_unique<NoParallel>(); },
};

}  // namespace weft::filters
