// SPDX-License-Identifier: BSD-3-Clause
// The ip filter: admits clients by where they come from. The rules are in rules.h.
#include <algorithm>
#include <cerrno>

#include "filters/filters.h"
#include "filters/ip/rules.h"

namespace weft::filters {
namespace {

using disk::Task;

class Ip final : public disk::Filter {
 public:
  bool take(std::string_view key, std::string_view value) override {
    if (key != "allow" && key != "deny") return false;
    std::vector<Rule>& list = key == "allow" ? allowed_ : denied_;
    for (Rule& rule : parse_rules(key, value)) list.push_back(std::move(rule));
    return true;
  }

  Task<Status> preconnect(engine::Loop& loop, const disk::Peer& peer, bool read_only) override {
    const auto matches_peer = [&](const Rule& rule) { return matches(rule, peer); };
    if (!std::ranges::any_of(allowed_, matches_peer) &&
        std::ranges::any_of(denied_, matches_peer)) {
      return fail(EPERM, "the ip filter denies clients from there (deny=...)");
    }
    return next().preconnect(loop, peer, read_only);
  }

  Task<Result<std::unique_ptr<disk::Disk>>> open(disk::OpenRequest request) override {
    return open_next(std::move(request));
  }

 private:
  std::vector<Rule> allowed_;
  std::vector<Rule> denied_;
};

}  // namespace

constinit const disk::FilterInfo ip_filter = {
    .name = "ip",
    .longname = "weft ip filter",
    .description = "Admits clients by address, process, user or group",
    .config_help =
        "allow=RULE[,RULE...]   who may connect, whatever deny= says\n"
        "deny=RULE[,RULE...]    who may not\n"
        "A rule is A.B.C.D[/NN], A:B::C[/NN], all, allipv4, allipv6, allunix, allvsock,\n"
        "pid:N, uid:N, gid:N, vsock-cid:N, vsock-port:N or security:LABEL.",
    .make = [] -> std::unique_ptr<disk::Filter> { return std::make_unique<Ip>(); },
};

}  // namespace weft::filters
