// SPDX-License-Identifier: BSD-3-Clause
// weft: the program. Reading this file tells what is made, in which order, in which process.
//
// Nothing that others can see is made before everything that can be checked has been: the words of
// the command line, the plugin and its parameters, the engine, user and group. Then come, in this
// order: the sockets; the fork, for a server in the background (the parent goes away) or for --run
// (the parent runs the command); and in the process that serves: locked memory, the other user, the
// pool of threads, the disk, the server, the pidfile. Only then is a parent told that it worked.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/log.h"
#include "base/parse.h"
#include "base/result.h"
#include "cli/choose_plugin.h"
#include "cli/information.h"
#include "cli/options.h"
#include "cli/parameters.h"
#include "cli/personality.h"
#include "cli/process.h"
#include "cli/run_command.h"
#include "cli/uri.h"
#include "disk/filter.h"
#include "engine/blocking_pool.h"
#include "engine/loop.h"
#include "nbdkit/call.h"
#include "nbdkit/crash.h"
#include "nbdkit/load.h"
#include "net/private_socket.h"
#include "net/socket_label.h"
#include "server/server.h"

namespace weft::cli {
namespace {

using Sockets = std::vector<net::ListeningSocket>;

void print(const std::string& text) {
  std::fputs(text.c_str(), stdout);
  std::fflush(stdout);
}

log::Options log_options(const Options& options, bool in_background) {
  log::Options result;
  result.verbose = options.verbose;
  result.program = options.program;
  result.form = options.form;
  if (options.action != Action::kServe) return result;  // its reader is at the terminal
  result.path = options.log_path;
  result.target =
      options.log_target.value_or(in_background ? log::Target::kSyslog : log::Target::kStderr);
  return result;
}

Sockets open_sockets(const Options& options, NewSockets& made,
                     std::optional<net::PrivateSocketPath>& private_path) {
  const net::SocketLabel label(options.selinux_label);
  Sockets sockets;
  if (options.vsock) {
    sockets.push_back(
        net::listen_vsock(static_cast<uint32_t>(parse_unsigned("-p", *options.port, UINT32_MAX))));
  } else if (options.port) {
    sockets = net::listen_tcp(options.address.value_or(""), *options.port, options.family);
  }
  if (options.unix_path) {
    sockets.push_back(net::listen_unix(*options.unix_path));
    made.add(*options.unix_path);
  }
  if (options.private_socket) {
    private_path.emplace();
    sockets.push_back(net::listen_unix(private_path->path()));
  }
  return sockets;
}

disk::Surroundings surroundings(const Options& options, const disk::Plugin& plugin,
                                engine::BlockingPool& pool, std::function<void()> stop) {
  return {.pool = pool,
          .one_connection =
              options.single || options.server.shared == 1 || plugin.connections_max() == 1,
          .explaining = options.action == Action::kExplain,
          .stop = std::move(stop)};
}

// The process that serves, after the last fork.
class ServingProcess {
 public:
  ServingProcess(const Options& options, bool in_background, const Identity& identity,
                 const engine::EngineChoice& engine)
      : options_(options), in_background_(in_background), identity_(identity), engine_(engine) {}

  // SIGTERM when this process, the parent, ends.
  void end_with(pid_t parent) { parent_ = parent; }

  // Printed on stdout when clients can connect.
  void announce(std::vector<std::string> uris) { uris_ = std::move(uris); }

  // Returns the exit status. `ready` is told when clients can connect.
  int run(std::unique_ptr<disk::Plugin> configured, Sockets sockets, NewSockets& made, Fd ready) {
    const int status = serve(std::move(configured), std::move(sockets), made, std::move(ready));
    nbdkit::unload_plugin();
    return status;
  }

 private:
  int serve(std::unique_ptr<disk::Plugin> configured, Sockets sockets, NewSockets& made, Fd ready) {
    Fd in(::fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 3));
    Fd out(::fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 3));
    leave_standard_streams(false);
    if (options_.swap) lock_memory();
    change_identity(identity_);
    if (parent_) stop_with_parent(*parent_);
    ::signal(SIGPIPE, SIG_IGN);
    const server::StopRequests requests;  // before the first thread

    if (in_background_) (void)!::chdir("/");

    engine::BlockingPool pool;
    // The plugin ends before the pool, whose lanes it holds.
    const std::unique_ptr<disk::Plugin> plugin = std::move(configured);
    plugin->start(surroundings(options_, *plugin, pool, requests.asker()));
    server::Server server(options_.server, *plugin, engine_, pool);
    for (const net::ListeningSocket& socket : sockets) {
      log::debug("listening on {}", socket.description);
    }
    if (options_.single) {
      server.serve_stream(std::move(in), std::move(out));
    } else {
      server.listen(std::move(sockets));
    }
    if (options_.pidfile) write_pidfile(*options_.pidfile);
    made.keep();
    for (const std::string& uri : uris_) {
      const std::string line = uri + "\n";
      (void)!::write(out.get(), line.data(), line.size());
    }
    in.reset();
    out.reset();
    if (in_background_) {
      if (!options_.log_target) log::configure(log_options(options_, true));
      leave_standard_streams(!options_.verbose);
    }
    tell_ready(std::move(ready));
    return server.run(requests);
  }

  const Options& options_;
  bool in_background_;
  const Identity& identity_;
  const engine::EngineChoice& engine_;
  std::optional<pid_t> parent_;
  std::vector<std::string> uris_;
};

void explain(const Options& options, const disk::PluginInfo& info,
             std::unique_ptr<disk::Plugin> configured) {
  const engine::EngineChoice engine = engine::choose_engine(options.engine);
  engine::BlockingPool pool;
  const std::unique_ptr<disk::Plugin> plugin = std::move(configured);
  plugin->start(surroundings(options, *plugin, pool, {}));
  print(server::explain(options.server, *plugin, info.name, options.export_name, engine, pool));
}

int serve(const Options& options, std::unique_ptr<disk::Plugin> plugin, Sockets inherited,
          pid_t started_by) {
  const bool activated = !inherited.empty();
  ::signal(SIGCHLD, SIG_DFL);  // ignored, it would hide the end of children
  const engine::EngineChoice engine = engine::choose_engine(options.engine);
  const Identity identity = find_identity(options.user, options.group);

  NewSockets made;
  std::optional<net::PrivateSocketPath> private_path;
  Sockets sockets = activated ? std::move(inherited) : open_sockets(options, made, private_path);
  const Endpoints endpoints = find_endpoints(sockets, options.export_name);

  const bool in_background = runs_in_background(options, activated);
  ServingProcess process(options, in_background, identity, engine);
  if (options.print_uri) process.announce(endpoints.uris);

  if (options.run) {
    const pid_t self = ::getpid();
    Forked server = fork_server();
    if (server.child == 0) {
      // ^C is for the command; SIGKILL of the parent must not leave a server behind.
      ::setpgid(0, 0);
      ::signal(SIGTTOU, SIG_IGN);  // messages to a terminal that is not this group's
      process.end_with(self);
      stop_with_parent(self);
      return process.run(std::move(plugin), std::move(sockets), made, std::move(server.ready));
    }
    sockets.clear();
    if (!wait_until_ready(server.ready)) return std::max(1, wait_for_server(server.child));
    made.keep();
    return run_command(run_script(endpoints, options.export_name, *options.run), server.child);
  }

  if (in_background) {
    Forked server = fork_server();
    if (server.child != 0) {
      sockets.clear();
      if (!wait_until_ready(server.ready)) {
        private_path.reset();
        return std::max(1, wait_for_server(server.child));
      }
      ::_exit(0);  // what was made belongs to the child
    }
    ::setsid();
    if (private_path) private_path->take_responsibility();
    return process.run(std::move(plugin), std::move(sockets), made, std::move(server.ready));
  }

  if (options.exit_with_parent) process.end_with(started_by);
  return process.run(std::move(plugin), std::move(sockets), made, Fd());
}

// What needs no plugin and no other part of the command line.
std::optional<std::string> general_text(const Personality& personality, Action action,
                                        const Inventory& inventory) {
  switch (action) {
    case Action::kDumpConfig:
      return dump_config_text(personality, inventory);
    case Action::kShortOptions:
      return short_options_text(personality);
    case Action::kLongOptions:
      return long_options_text(personality);
    default:
      return {};
  }
}

// Up to its config_complete(). `info` may be exchanged: see fuller_plugin().
std::unique_ptr<disk::Plugin> configured_plugin(const Personality& personality,
                                                const disk::PluginInfo*& info,
                                                const std::vector<disk::Layer>& layers,
                                                Options& options) {
  const auto configure = [&] {
    std::unique_ptr<disk::Plugin> plugin = make_plugin(*info, layers, options.arguments);
    if (options.server.read_only) plugin->serve_read_only();
    plugin->config_complete();
    return plugin;
  };
  const disk::PluginInfo* fuller = nullptr;
  try {
    return configure();
  } catch (const ConfigError& error) {
    fuller = fuller_plugin(personality, *info, options);
    if (fuller == nullptr) throw;
    log::debug("{}; {} is tried", error.what(), fuller->file->path);
  }
  info = fuller;
  return configure();
}

int run(const Personality& personality, const std::vector<std::string>& words,
        std::string& program) {
  const pid_t started_by = ::getppid();
  require_standard_streams();
  const Inventory inventory{disk::plugins(), disk::filters()};
  Options options = read_command_line(personality, words, inventory.plugins);
  program = options.program;
  if (const auto text = general_text(personality, options.action, inventory)) {
    print(*text);
    return 0;
  }
  ::umask(0022);
  log::configure(log_options(options, false));
  Sockets inherited;
  if (options.action == Action::kServe) {
    inherited = net::inherited_sockets();
    settle_listeners(options, !inherited.empty());
    if (options.exit_with_parent) stop_with_parent(started_by);
  }
  if (nbdkit::can_host()) nbdkit::report_crashes(program.c_str());
  nbdkit::Host::instance().stdio_safe = !options.single;
  const disk::PluginInfo* info =
      options.plugin.empty() ? nullptr : &choose_plugin(inventory.plugins, options);
  // Without a plugin nbdkit does not look at filters.
  if (info == nullptr && personality.nbdkit) options.filters.clear();
  const std::vector<disk::Layer> layers = find_filters(inventory.filters, options.filters);
  warn_of_debug_flags(options.debug_flags);
  if (options.action == Action::kHelp) {
    print(help_text(personality, inventory, info, layers));
  } else if (options.action == Action::kVersion) {
    print(version_text(personality, info, layers));
  } else {
    if (options.action == Action::kDumpPlugin) {
      const auto plugin = make_plugin(*info, layers, options.arguments);
      print(dump_plugin_text(personality, *info, *plugin));
    } else {
      std::unique_ptr<disk::Plugin> plugin = configured_plugin(personality, info, layers, options);
      if (options.action == Action::kServe) {
        return serve(options, std::move(plugin), std::move(inherited), started_by);
      }
      explain(options, *info, std::move(plugin));
    }
  }
  nbdkit::unload_plugin();
  return 0;
}

// What ended the start, as the personality says it.
int give_up(const Personality& personality, const std::string& program,
            const std::exception& error) {
  const auto* usage = dynamic_cast<const UsageError*>(&error);
  if (usage != nullptr && usage->grammar() && personality.nbdkit) print(usage_text(personality));
  if (*error.what() == '\0') return 1;  // all was said
  if (log::target() == log::Target::kFile || log::target() == log::Target::kSyslog) {
    log::error("{}", error.what());  // as well: whoever starts it hears of it in any case
  }
  const std::string line = start_error_line(personality, program, error);
  (void)!::write(STDERR_FILENO, line.data(), line.size());
  return 1;
}

int start(std::string_view started_as, std::vector<std::string> words) {
  const Personality* personality = &weft_personality();
  std::string program = personality->name;
  try {
    personality = &choose_personality(started_as, words);
    program = personality->name;
    return run(*personality, words, program);
  } catch (const std::exception& error) {
    return give_up(*personality, program, error);
  }
}

}  // namespace
}  // namespace weft::cli

int main(int argc, char** argv) {
  const bool named = argc > 0;
  return weft::cli::start(named ? argv[0] : "weft",
                          std::vector<std::string>(argv + (named ? 1 : 0), argv + argc));
}
