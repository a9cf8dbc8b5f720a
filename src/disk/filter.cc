// SPDX-License-Identifier: BSD-3-Clause
#include "disk/filter.h"

#include <fmt/format.h>

#include <algorithm>

#include "disk/open_layer.h"

namespace weft::disk {

void Filter::attach(std::string name, std::unique_ptr<Plugin> next, std::string next_name) {
  name_ = std::move(name);
  next_ = std::move(next);
  next_name_ = std::move(next_name);
}

void Filter::config(std::string_view key, std::string_view value) {
  if (!take(key, value)) next_->config(key, value);
}

void Filter::config_complete() {
  next_->config_complete();
  complete();
}

void Filter::start(const Surroundings& surroundings) {
  next_->start(surroundings);
  begin(surroundings);
}

ThreadModel Filter::thread_model() const {
  return std::min(own_thread_model(), next_->thread_model());
}

uint32_t Filter::connections_max() const {
  const uint32_t own = Plugin::connections_max();
  return own != 0 ? own : next_->connections_max();
}

Task<Status> Filter::preconnect(Loop& loop, const Peer& peer, bool read_only) {
  return next_->preconnect(loop, peer, read_only);
}

Task<Result<std::string>> Filter::default_export(Loop& loop, bool read_only) {
  return next_->default_export(loop, read_only);
}

Task<Result<std::vector<ExportEntry>>> Filter::list_exports(Loop& loop, bool read_only) {
  return next_->list_exports(loop, read_only);
}

Task<Status> Filter::finish(Loop& loop) {
  return next_->finish(loop);
}

std::vector<Explanation> Filter::explain() const {
  std::vector<Explanation> lines = explain_layer();
  for (Explanation& line : lines) {
    line.text = fmt::format("{}: {}", line.topic, line.text);
    line.topic = name_;
  }
  std::vector<Explanation> below = next_->explain();
  lines.insert(lines.end(), std::make_move_iterator(below.begin()),
               std::make_move_iterator(below.end()));
  return lines;
}

Task<Result<std::unique_ptr<Disk>>> Filter::open_next(OpenRequest request) {
  return open_layer(*next_, next_name_, std::move(request));
}

std::unique_ptr<Plugin> make_stack(std::span<const Layer> layers, std::unique_ptr<Plugin> plugin,
                                   const std::string& plugin_name) {
  std::unique_ptr<Plugin> stack = std::move(plugin);
  std::string next_name = plugin_name;
  for (auto layer = layers.rbegin(); layer != layers.rend(); ++layer) {
    std::unique_ptr<Filter> filter = layer->info->make();
    filter->attach(layer->info->name, std::move(stack), next_name);
    for (const auto& [key, value] : layer->parameters) {
      if (filter->take(key, value)) continue;
      throw ConfigError(
          fmt::format("--filter={}: it has no parameter '{}'; see 'weft --help --filter={} {}'",
                      layer->info->name, key, layer->info->name, plugin_name));
    }
    next_name = layer->info->name;
    stack = std::move(filter);
  }
  return stack;
}

}  // namespace weft::disk
