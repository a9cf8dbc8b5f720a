// SPDX-License-Identifier: BSD-3-Clause
// The report as a page. Everything that is shown comes from one JSON object in it, and reaches the
// document as text only; the page needs no network and its policy allows none.
#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>

#include "check/report/escape.h"
#include "check/report/json.h"
#include "check/report/page.h"
#include "check/report/report.h"

namespace weft::check {
namespace {

// A history in columns: an array for each field, an index for each operation. A tenth of the size
// of an object for each. Times are nanoseconds from the first sending; replies are given by how
// much later they came, -1: never. Numbers stay below 2^53 where the run is shorter than 104 days.
Json columns_json(const NamedHistory& named) {
  const History& history = named.history;
  const uint64_t start_ns = history.operations.empty() ? 0 : history.operations.front().send_ns;
  Json send = Json::array(), took = Json::array(), connection = Json::array();
  Json kind = Json::array(), cell = Json::array(), cells = Json::array(), tag = Json::array();
  Json fua = Json::array(), error = Json::array();
  Json seen_end = Json::array(), seen = Json::array();
  size_t seen_total = 0;
  for (const Operation& operation : history.operations) {
    send.push_back(operation.send_ns - start_ns);
    if (operation.replied()) {
      took.push_back(operation.reply_ns - operation.send_ns);
    } else {
      took.push_back(-1);
    }
    connection.push_back(operation.connection);
    kind.push_back(static_cast<int>(operation.kind));
    cell.push_back(operation.cell);
    cells.push_back(operation.cells);
    tag.push_back(operation.tag);
    fua.push_back(operation.fua ? 1 : 0);
    error.push_back(operation.error);
    for (const Observation& observation : history.seen(operation)) {
      seen.push_back(observation.cell);
      seen.push_back(observation.tag);
      seen.push_back(static_cast<int>(observation.part));
      ++seen_total;
    }
    seen_end.push_back(seen_total);
  }
  Json kinds = Json::array();
  for (const Kind each : {Kind::kRead, Kind::kWrite, Kind::kZero, Kind::kTrim, Kind::kCache,
                          Kind::kFlush, Kind::kStatus}) {
    kinds.push_back(kind_name(each));
  }
  Json offsets = Json::array(), lengths = Json::array(), restarts = Json::array();
  for (const CellPlace& place : history.cells) {
    offsets.push_back(place.offset);
    lengths.push_back(place.length);
  }
  for (const uint64_t restart : history.restarts_ns) {
    restarts.push_back(restart > start_ns ? restart - start_ns : 0);
  }
  return {{"title", named.title},
          {"seed", std::to_string(named.seed)},
          {"connections", history.connection_names},
          {"kinds", std::move(kinds)},
          {"garbage", kGarbageTag},
          {"offsets", std::move(offsets)},
          {"lengths", std::move(lengths)},
          {"restarts", std::move(restarts)},
          {"send", std::move(send)},
          {"took", std::move(took)},
          {"connection", std::move(connection)},
          {"kind", std::move(kind)},
          {"cell", std::move(cell)},
          {"cells_of", std::move(cells)},
          {"tag", std::move(tag)},
          {"fua", std::move(fua)},
          {"error", std::move(error)},
          {"seen_end", std::move(seen_end)},
          {"seen", std::move(seen)}};
}

// As the page shows it. JavaScript's numbers end at 2^53: seeds and the like are shown, not
// reckoned with, so they may be text.
void prepare(Json& json) {
  constexpr uint64_t kExact = uint64_t{1} << 53;
  if (json.is_number_unsigned() && json.get<uint64_t>() > kExact) {
    json = std::to_string(json.get<uint64_t>());
  } else if (json.is_string()) {
    json = clean_text(json.get_ref<const std::string&>());
  } else if (json.is_structured()) {
    for (Json& part : json) prepare(part);
  }
}

std::string data(const Report& report) {
  Json json = report_json(report);
  json["histories"] = Json::array();
  for (const NamedHistory& history : report.histories) {
    json["histories"].push_back(columns_json(history));
  }
  prepare(json);
  return json_in_script(dump(json));
}

}  // namespace

std::string html_report(const Report& report) {
  const std::string_view frame = kPageHtml;
  std::string page;
  // One pass: what is put in is never looked at again, whatever it contains.
  for (size_t from = 0; from < frame.size();) {
    const size_t open = std::min(frame.find("{{", from), frame.size());
    page += frame.substr(from, open - from);
    if (open == frame.size()) break;
    const size_t close = frame.find("}}", open);
    const std::string_view name = frame.substr(open + 2, close - open - 2);
    if (name == "title") page += markup(report.target);
    if (name == "style") page += kPageCss;
    if (name == "text") page += markup(text_report(report, true), true);
    if (name == "data") page += data(report);
    if (name == "script") {
      page += kHistoryJs;
      page += kFigureJs;
      page += kPainterJs;
      page += kTimelineJs;
      page += kPageJs;
    }
    from = close + 2;
  }
  return page;
}

}  // namespace weft::check
