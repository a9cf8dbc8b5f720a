// SPDX-License-Identifier: BSD-3-Clause
#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "check/model/checker.h"

namespace weft::check {

namespace {

class Teller {
 public:
  Teller(const History& history, const Violation& violation)
      : history_(history), violation_(violation), operations_(violation.operations()) {}

  [[nodiscard]] std::vector<std::string> story() const {
    std::vector<std::string> lines;
    size_t restart = next_restart(operations_.empty() ? 0 : send(operations_.front()));
    for (const uint32_t op : operations_) {
      for (; restart < next_restart(send(op)); restart++) {
        lines.push_back(fmt::format("the server was stopped and started again, at {}",
                                    time(history_.restarts_ns[restart])));
      }
      lines.push_back(step(op));
    }
    if (violation_.fault == Fault::kNotLinear) explain_order(lines);
    lines.push_back(wrong());
    lines.push_back(required());
    return lines;
  }

  // What is wrong, in a clause.
  [[nodiscard]] std::string wrong() const {
    const std::string who = name(violation_.read);
    const std::string where = place(violation_.cell, 1);
    switch (violation_.fault) {
      case Fault::kStale:
        return fmt::format("wrong: {} read {} at {}, which is older than what it had to see", who,
                           of_tag(violation_.tag), where);
      case Fault::kFuture:
        return fmt::format("wrong: {} read {} at {}, which nobody had begun to write", who,
                           of_tag(violation_.tag), where);
      case Fault::kGarbage:
        return fmt::format("wrong: {} read bytes at {} that nobody wrote", who, where);
      case Fault::kFalseZero:
        return fmt::format("wrong: {} was told that {} reads as zeroes", who, where);
      case Fault::kLost:
        return fmt::format(
            "wrong: after the restart {} read {} at {}, and what was durable is lost", who,
            of_tag(violation_.tag), where);
      case Fault::kUnsteady:
        return fmt::format(
            "wrong: after the restart {} saw {} and {} saw {}, and nobody had "
            "changed {} between",
            name(violation_.other_read), version(violation_.other_read), who,
            version(violation_.read), where);
      case Fault::kNotLinear:
        return fmt::format("wrong: what was seen at {} agrees with no order of the writes", where);
    }
    return "";
  }

  // What had to be seen, and why.
  [[nodiscard]] std::string required() const {
    switch (violation_.fault) {
      case Fault::kFuture:
        return fmt::format("{} was sent only after the reply to that read", the(violation_.seen));
      case Fault::kUnsteady:
        return "what a restart has left must stay, until somebody changes it";
      case Fault::kNotLinear:
        return fmt::format("{} and {} must stand in one order, the same for every connection",
                           the_version(violation_.seen), the_version(violation_.missed));
      default:
        break;
    }
    return fmt::format("had to be seen: {} or what came after it; {}", the(violation_.missed),
                       because());
  }

 private:
  [[nodiscard]] const Operation& operation(uint32_t index) const {
    return history_.operations[index];
  }
  [[nodiscard]] uint64_t send(uint32_t index) const { return operation(index).send_ns; }
  [[nodiscard]] size_t next_restart(uint64_t time_ns) const {
    const auto next = std::ranges::upper_bound(history_.restarts_ns, time_ns);
    return static_cast<size_t>(next - history_.restarts_ns.begin());
  }
  [[nodiscard]] uint64_t end(uint32_t index) const {
    const size_t restart = next_restart(send(index));
    const bool last = restart == history_.restarts_ns.size();
    return std::min(operation(index).reply_ns, last ? kNever : history_.restarts_ns[restart] - 1);
  }

  [[nodiscard]] std::string time(uint64_t time_ns) const {
    const uint64_t first = operations_.empty() ? 0 : send(operations_.front());
    return fmt::format("{:.3f} ms",
                       (static_cast<double>(time_ns) - static_cast<double>(first)) / 1e6);
  }
  [[nodiscard]] std::string name(uint32_t index) const {
    const uint32_t connection = operation(index).connection;
    return connection < history_.connection_names.size() ? history_.connection_names[connection]
                                                         : fmt::format("connection {}", connection);
  }
  [[nodiscard]] std::string place(uint32_t cell, uint32_t cells) const {
    if (cells == 0 || cell + cells > history_.cells.size()) return fmt::format("cell {}", cell);
    const CellPlace& last = history_.cells[cell + cells - 1];
    const uint64_t offset = history_.cells[cell].offset;
    return fmt::format("{}+{}", offset, last.offset + last.length - offset);
  }

  // "A's write of tag 17"
  [[nodiscard]] std::string the(uint32_t index) const {
    if (index == kNone) return "the first content";
    const Operation& op = operation(index);
    if (op.kind != Kind::kWrite) return fmt::format("{}'s {}", name(index), kind_name(op.kind));
    return fmt::format("{}'s write of tag {}", name(index), op.tag);
  }
  [[nodiscard]] std::string the_version(uint32_t writer) const {
    return writer == kNone ? "the first content" : the(writer);
  }
  [[nodiscard]] static std::string of_tag(Tag tag) {
    if (tag == kZeroTag) return "zeroes";
    if (tag == kGarbageTag) return "bytes that nobody wrote";
    return fmt::format("tag {}", tag);
  }
  // All that a read saw of the violation's cell.
  [[nodiscard]] std::string version(uint32_t read) const {
    std::string all;
    for (const Observation& seen : history_.seen(operation(read))) {
      if (seen.cell != violation_.cell) continue;
      if (!all.empty()) all += " and ";
      all += of_tag(seen.tag);
      if (seen.part == Part::kHead) all += " at its begin";
      if (seen.part == Part::kTail) all += " at its end";
      if (seen.part == Part::kMiddle) all += " in its middle";
    }
    if (all.empty()) all = "nothing";
    return operation(read).cells > 1 ? all + " at " + place(violation_.cell, 1) : all;
  }

  [[nodiscard]] std::string done(const Operation& op, std::string_view word) const {
    if (!op.replied()) return "never answered";
    if (op.error == kGivenUp) return "given up when its connection was cut at " + time(op.reply_ns);
    if (op.error != 0)
      return fmt::format("failed with error {} at {}", op.error, time(op.reply_ns));
    return fmt::format("{} at {}", word, time(op.reply_ns));
  }

  // A line for one operation.
  [[nodiscard]] std::string step(uint32_t index) const {
    const Operation& op = operation(index);
    const std::string who = name(index);
    const std::string where = place(op.cell, op.cells);
    const std::string sent = "sent at " + time(op.send_ns);
    const std::string fua = op.fua ? ", with FUA" : "";
    switch (op.kind) {
      case Kind::kRead:
        return fmt::format("{} read {}, {}, {}: it saw {}", who, where, sent, done(op, "answered"),
                           version(index));
      case Kind::kWrite:
        return fmt::format("{} wrote {} (tag {}){}, {}, {}", who, where, op.tag, fua, sent,
                           done(op, "acknowledged"));
      case Kind::kZero:
        return fmt::format("{} zeroed {}{}, {}, {}", who, where, fua, sent,
                           done(op, "acknowledged"));
      case Kind::kTrim:
        return fmt::format("{} trimmed {}{}, {}, {}", who, where, fua, sent,
                           done(op, "acknowledged"));
      case Kind::kFlush:
        return fmt::format("{} flushed, {}, {}", who, sent, done(op, "acknowledged"));
      case Kind::kStatus:
        return fmt::format("{} asked for the status of {}, {}, {}: it reads as {}", who, where,
                           sent, done(op, "answered"), version(index));
      case Kind::kCache:
        break;
    }
    return fmt::format("{} asked to cache {}, {}, {}", who, where, sent, done(op, "answered"));
  }

  [[nodiscard]] std::string because() const {
    const uint32_t missed = violation_.missed;
    if (missed == kNone) return "it was acknowledged before";
    const Operation& op = operation(missed);
    const bool restarted = next_restart(op.send_ns) != next_restart(send(violation_.read));
    const std::string_view then = restarted ? "before the restart" : "before the read was sent";
    if (violation_.flush != kNone) {
      return fmt::format("{}'s flush was sent after its reply and acknowledged {}",
                         name(violation_.flush), then);
    }
    if (restarted)
      return fmt::format("{} {}", op.fua ? "with FUA, acknowledged" : "acknowledged", then);
    switch (violation_.level) {
      case Level::kOwn:
        return fmt::format("acknowledged on the same connection {}", then);
      case Level::kFlushed:
        return fmt::format("with FUA, acknowledged {}", then);
      case Level::kAtOnce:
        break;
    }
    return fmt::format("acknowledged {}", then);
  }

  struct Member {
    uint32_t operation = kNone;
    uint64_t time_ns = 0;
  };
  [[nodiscard]] bool belongs(uint32_t index, uint32_t writer) const {
    if (index == writer) return true;
    const Operation& op = operation(index);
    if (op.kind != Kind::kRead && op.kind != Kind::kStatus) return false;
    return std::ranges::any_of(history_.seen(op), [&](const Observation& seen) {
      if (seen.cell != violation_.cell) return false;
      if (writer == kNone) return !somebody_wrote(seen.tag);
      const Operation& write = operation(writer);
      return seen.tag == (write.kind == Kind::kWrite ? write.tag : kZeroTag);
    });
  }
  [[nodiscard]] bool somebody_wrote(Tag tag) const {
    return std::ranges::any_of(history_.operations, [&](const Operation& op) {
      return op.kind == Kind::kWrite && op.tag == tag && op.cell <= violation_.cell &&
             violation_.cell < op.cell_end();
    });
  }
  // It was there when the epoch of the reads began, or never.
  [[nodiscard]] bool is_old(uint32_t writer) const {
    return writer == kNone || next_restart(send(writer)) != next_restart(send(violation_.read));
  }
  // Why the one's version must have been there before the other's: a sentence.
  void explain_order(std::vector<std::string>& lines, uint32_t first, uint32_t second) const {
    const size_t epoch = next_restart(send(violation_.read));
    std::optional<Member> over;
    std::optional<Member> begun;
    for (const uint32_t op : operations_) {
      if (next_restart(send(op)) != epoch) continue;
      if (belongs(op, first) && (!over || end(op) < over->time_ns)) over = {op, end(op)};
      if (belongs(op, second) && (!begun || send(op) > begun->time_ns)) begun = {op, send(op)};
    }
    if (is_old(first)) {
      lines.push_back(
          fmt::format("{} was there before {}", the_version(first), the_version(second)));
      return;
    }
    if (!over || !begun || over->time_ns >= begun->time_ns) return;
    lines.push_back(fmt::format("{} came before {}: {} was over at {}, {} was sent at {}",
                                the_version(first), the_version(second), act(over->operation),
                                time(over->time_ns), act(begun->operation), time(begun->time_ns)));
  }
  void explain_order(std::vector<std::string>& lines) const {
    if (is_old(violation_.missed) && is_old(violation_.seen)) {
      lines.push_back(fmt::format("after the restart there was {} or {}, not both",
                                  the_version(violation_.missed), the_version(violation_.seen)));
      return;
    }
    explain_order(lines, violation_.missed, violation_.seen);
    explain_order(lines, violation_.seen, violation_.missed);
  }
  [[nodiscard]] std::string act(uint32_t index) const {
    if (changes(operation(index).kind)) return the(index);
    return fmt::format("{}'s {} that saw {}", name(index), kind_name(operation(index).kind),
                       version(index));
  }

  const History& history_;
  const Violation& violation_;
  const std::vector<uint32_t> operations_;
};

}  // namespace

std::vector<std::string> tell(const History& history, const Violation& violation) {
  return Teller(history, violation).story();
}

std::string summary(const History& history, const Violation& violation) {
  const Teller teller(history, violation);
  return teller.wrong().substr(sizeof("wrong: ") - 1);
}

}  // namespace weft::check
