// SPDX-License-Identifier: BSD-3-Clause
#include "check/report/report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <nlohmann/json.hpp>
#include <string>

#include "check/report/escape.h"

namespace weft::check {
namespace {

using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

const std::string kEvil = "</script><!-- \xff\x80 \x01\x1b[31m ]]>&\"'\n{{data}}\xed\xa0\x80";

Report sample() {
  Report report;
  report.target = "nbd://localhost";
  report.outcome = Outcome::kBroken;
  report.verdict = "a flush is no flush";
  report.level_reached = Level::kOwn;
  report.seed = std::numeric_limits<uint64_t>::max();
  Finding finding;
  finding.kind = "stale-read";
  finding.title = "B read old content";
  finding.story = {"A wrote", "A flushed", "B read"};
  finding.count = 1234;
  finding.seed = 17;
  finding.replay = "nbdcheck --seed=17 " + std::string(120, 'x');
  finding.history = 0;
  finding.operations = {0, 1, 2};
  report.tests = {
      {"consistency.flushed", "flushed is seen", "MUST", State::kFailed, "3 of 4", {finding}, 1.5},
      {"handshake.list", "list", "SHOULD", State::kWarned, "listed", {}, 0},
      {"handshake.go", "go", "MUST", State::kPassed, "", {}, 0},
      {"kill.all", "survives", "MUST", State::kInconclusive, "interrupted", {}, 0},
      {"tls.x", "tls", "MUST", State::kSkipped, "no TLS", {}, 0}};
  report.counts["operations"] = 1'234'567;
  History history;
  history.connection_names = {"A", "B"};
  history.cells = {{4096, 512}};
  history.operations = {
      {.send_ns = 100, .reply_ns = 200, .cells = 1, .tag = 7, .kind = Kind::kWrite, .fua = true},
      {.send_ns = 300, .kind = Kind::kFlush},
      {.send_ns = 500, .reply_ns = 600, .connection = 1, .cells = 1, .seen = 0, .seen_count = 1}};
  history.observations = {{0, kGarbageTag, Part::kHead}};
  history.restarts_ns = {450};
  report.histories.push_back({"round 1", 17, history});
  return report;
}

TEST(Report, OutcomesAreTheExitStatus) {
  EXPECT_EQ(static_cast<int>(Outcome::kKept), 0);
  EXPECT_EQ(static_cast<int>(Outcome::kBroken), 1);
  EXPECT_EQ(static_cast<int>(Outcome::kUnknown), 2);
  EXPECT_EQ(outcome_name(Outcome::kUnknown), "could-not-tell");
}

TEST(Escape, KeepsTextAndReplacesTheRest) {
  EXPECT_EQ(clean_text("gr\u00fc\u00dfe \U0001F600"), "gr\u00fc\u00dfe \U0001F600");
  EXPECT_EQ(clean_text("a\x1b[0m\x7f"), "a\uFFFD[0m\uFFFD");
  EXPECT_EQ(clean_text("a\nb\tc"), "a b c");
  EXPECT_EQ(clean_text("a\nb\tc", true), "a\nb\tc");
  EXPECT_EQ(clean_text("\xc0\xaf"), "\uFFFD\uFFFD");                // too long a form
  EXPECT_EQ(clean_text("\xed\xa0\x80"), "\uFFFD\uFFFD\uFFFD");      // a surrogate
  EXPECT_EQ(clean_text("\xf4\x90\x80\x80").size(), 4 * 3);          // past the last character
  EXPECT_EQ(clean_text("\xe2\x82"), "\uFFFD\uFFFD");                // cut off
  EXPECT_EQ(clean_text("\xc2\x85|\xef\xbf\xbf"), "\uFFFD|\uFFFD");  // C1, no character
  EXPECT_EQ(clean_text(std::string_view("a\0b", 3)),
            "a\uFFFD"
            "b");
  EXPECT_EQ(clean_text("a\u202eb"),
            "a\uFFFD"
            "b");
  EXPECT_EQ(markup("<a b=\"c\" d='e'>&"), "&lt;a b=&quot;c&quot; d=&#39;e&#39;&gt;&amp;");
  EXPECT_EQ(json_in_script(R"("</script><!--")"), R"("\u003c/script>\u003c!--")");
}

TEST(TextReport, SaysTheVerdictFirstAndTellsWhatFailed) {
  const std::string text = text_report(sample(), false);
  EXPECT_THAT(text, StartsWith("nbdcheck: PROMISE BROKEN: a flush is no flush\n"));
  EXPECT_THAT(text, HasSubstr("level:  own; CAN_MULTI_CONN is not advertised"));
  EXPECT_THAT(text, HasSubstr("FAILED: consistency.flushed: flushed is seen"));
  EXPECT_THAT(text, HasSubstr("stale-read: B read old content (seen 1,234 times)"));
  EXPECT_THAT(text, HasSubstr("   1. A wrote\n     2. A flushed\n     3. B read\n"));
  // A command is one line, however long, so that it can be copied.
  EXPECT_THAT(text,
              HasSubstr("again (seed 17): nbdcheck --seed=17 " + std::string(120, 'x') + "\n"));
  EXPECT_THAT(text, HasSubstr("1,234,567 operations"));
  EXPECT_LT(text.find("FAILED"), text.find("warning: handshake.list"));
  EXPECT_LT(text.find("warning: "), text.find("inconclusive: kill.all"));
  EXPECT_THAT(text, Not(HasSubstr("handshake.go")));
  const std::string all = text_report(sample(), true);
  EXPECT_THAT(all, HasSubstr("passed: handshake.go: go\n"));
  EXPECT_THAT(all, HasSubstr("skipped: tls.x: tls (no TLS)\n"));
}

TEST(TextReport, WrapsWhatIsLong) {
  Report report = sample();
  for (int i = 0; i < 60; ++i) report.verdict += " w\u00f6rter";
  const std::string text = text_report(report, false);
  size_t begin = 0;
  for (int line = 0; line < 4; ++line) {
    const size_t end = text.find('\n', begin);
    EXPECT_LE(end - begin, 92 + 15) << text.substr(begin, end - begin);  // bytes: ö has two
    begin = end + 1;
    EXPECT_THAT(text.substr(begin), StartsWith("          w\u00f6rter")) << line;
  }
}

TEST(TextReport, ManyFindingsDoNotBuryTheRest) {
  Report report = sample();
  report.tests[0].findings.resize(40, report.tests[0].findings[0]);
  EXPECT_THAT(text_report(report, false), HasSubstr("and 35 more: "));
  EXPECT_THAT(text_report(report, true), Not(HasSubstr("more: ")));
}

TEST(JsonReport, HasTheDocumentedFields) {
  const auto json = nlohmann::json::parse(json_report(sample(), false));
  EXPECT_EQ(json["format"], 1);
  EXPECT_EQ(json["outcome"], "broken");
  EXPECT_EQ(json["exit_status"], 1);
  EXPECT_EQ(json["level_reached"], "own");
  EXPECT_EQ(json["seed"], std::numeric_limits<uint64_t>::max());
  EXPECT_EQ(json["summary"]["failed"], 1);
  EXPECT_EQ(json["summary"]["skipped"], 1);
  EXPECT_EQ(json["tests"][0]["state"], "failed");
  EXPECT_EQ(json["tests"][0]["findings"][0]["operations"], (std::vector{0, 1, 2}));
  EXPECT_EQ(json["tests"][0]["findings"][0]["history"], 0);
  EXPECT_EQ(json["counts"]["operations"], 1'234'567);
  EXPECT_EQ(json["witnesses"]["reads"], 0);
  EXPECT_FALSE(json.contains("histories"));
}

TEST(JsonReport, HistoriesCountFromTheirFirstOperation) {
  const auto json = nlohmann::json::parse(json_report(sample(), true));
  const auto& history = json["histories"][0];
  EXPECT_EQ(history["title"], "round 1");
  EXPECT_EQ(history["cells"][0]["offset"], 4096);
  EXPECT_EQ(history["restarts_ns"], (std::vector{350}));
  const auto& operations = history["operations"];
  EXPECT_EQ(operations[0]["send_ns"], 0);
  EXPECT_EQ(operations[0]["reply_ns"], 100);
  EXPECT_EQ(operations[0]["fua"], true);
  EXPECT_EQ(operations[0]["tag"], 7);
  EXPECT_TRUE(operations[1]["reply_ns"].is_null());
  EXPECT_EQ(operations[2]["seen"][0]["tag"], "garbage");
  EXPECT_EQ(operations[2]["seen"][0]["part"], "head");
}

TEST(JunitReport, CountsWhatItContains) {
  const std::string xml = junit_report(sample());
  // The five tests and the verdict, which fails too.
  EXPECT_THAT(xml, HasSubstr(R"(tests="6" failures="2" errors="0" skipped="2")"));
  EXPECT_THAT(xml, HasSubstr(R"(<failure type="stale-read" message="3 of 4">)"));
  EXPECT_THAT(xml, HasSubstr("<system-out>warning: listed"));
  EXPECT_THAT(xml, HasSubstr(R"(<skipped message="could not tell: interrupted"/>)"));
  EXPECT_THAT(junit_report(Report{}),
              HasSubstr(R"(tests="1" failures="0" errors="1" skipped="0")"));
}

TEST(AllReports, TakeAnythingAServerSays) {
  Report report = sample();
  report.target = report.verdict = report.started = report.command_line = kEvil;
  report.facts.emplace_back(kEvil, kEvil);
  report.counts[kEvil] = 1;
  report.seconds = std::numeric_limits<double>::quiet_NaN();
  report.histories[0].title = report.histories[0].history.connection_names[0] = kEvil;
  for (auto& test : report.tests) {
    test.name = test.title = test.basis = test.detail = kEvil;
    test.findings.push_back(
        {.kind = kEvil, .title = kEvil, .story = {kEvil}, .advice = {kEvil}, .replay = kEvil});
  }
  EXPECT_THAT(text_report(report, true), Not(HasSubstr("\x1b")));
  EXPECT_NO_THROW((void)nlohmann::json::parse(json_report(report, true)));
  const std::string xml = junit_report(report);
  for (const char* bad : {"\x01", "\x1b", "\xff", "</script>", "<!--", "]]>"}) {
    EXPECT_THAT(xml, Not(HasSubstr(bad)));
  }
  const std::string html = html_report(report);
  const size_t data = html.find("id=\"data\">") + 10;
  EXPECT_EQ(html.find('<', data), html.find("</script>\n<script>", data));
  EXPECT_THAT(html, Not(HasSubstr("\xff")));
}

TEST(AllReports, AreThereWithoutContent) {
  EXPECT_THAT(text_report(Report{}, true), StartsWith("nbdcheck: COULD NOT TELL:"));
  EXPECT_THAT(text_report(Report{}, true), HasSubstr("not measured"));
  EXPECT_TRUE(nlohmann::json::parse(json_report(Report{}, true))["histories"].empty());
  EXPECT_TRUE(nlohmann::json::parse(json_report(Report{}, true))["level_reached"].is_null());
  EXPECT_THAT(html_report(Report{}), HasSubstr("</html>"));
}

TEST(HtmlReport, NeedsNobody) {
  const std::string html = html_report(sample());
  EXPECT_THAT(html, HasSubstr("default-src 'none'"));
  EXPECT_THAT(html, Not(HasSubstr("{{")));
  for (const char* outside : {"src=\"", "href=\"http", "@import", "url(h", "fetch("}) {
    EXPECT_THAT(html, Not(HasSubstr(outside)));
  }
}

}  // namespace
}  // namespace weft::check
