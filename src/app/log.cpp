#include "sparseattn/app/log.hpp"

#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "sparseattn/app/text.hpp"
#include "sparseattn/core/error.hpp"

namespace sparseattn {

class Log::Sinks {
  public:
    explicit Sinks(const std::filesystem::path& run_dir)
        : out_("out", std::make_shared<spdlog::sinks::stdout_sink_st>()),
          err_("err", std::make_shared<spdlog::sinks::stderr_sink_st>()),
          file_("file") {
        out_.set_pattern("%v");
        err_.set_pattern("%l: %v");
        if (run_dir.empty()) return;
        const std::filesystem::path path = run_dir / "log.txt";
        try {
            std::filesystem::create_directories(run_dir);
            file_.sinks().push_back(std::make_shared<spdlog::sinks::basic_file_sink_st>(path.string()));
        } catch (const std::exception& error) {
            throw FileError(concat("log ", path.string(), " cannot be written: ", error.what()));
        }
        file_.set_pattern("%Y-%m-%d %H:%M:%S %l: %v");
        // A full disk must not end the run through its log; say it once on the terminal.
        file_.set_error_handler([said = false](const std::string& reason) mutable {
            if (!said) std::fprintf(stderr, "warning: log.txt: %s\n", reason.c_str());
            said = true;
        });
    }

    void write(spdlog::level::level_enum level, const std::string& message) {
        spdlog::logger& terminal = level >= spdlog::level::warn ? err_ : out_;
        terminal.log(level, message);
        terminal.flush();
        file_.log(level, message);
        file_.flush();
    }

  private:
    spdlog::logger out_;
    spdlog::logger err_;
    spdlog::logger file_;
};

Log::Log(bool root, const std::filesystem::path& run_dir) {
    if (!root) return;
    sinks_ = std::make_unique<Sinks>(run_dir);
    live_ = isatty(STDERR_FILENO) == 1;
}

Log::~Log() {
    end_progress();
}

void Log::info(const std::string& message) {
    if (!sinks_) return;
    end_progress();
    sinks_->write(spdlog::level::info, message);
}

void Log::warning(const std::string& message) {
    if (!sinks_) return;
    end_progress();
    sinks_->write(spdlog::level::warn, message);
}

void Log::error(const std::string& message) {
    if (!sinks_) return;
    end_progress();
    sinks_->write(spdlog::level::err, message);
}

void Log::block(const std::string& text) {
    info(text.empty() || text.back() != '\n' ? text : text.substr(0, text.size() - 1));
}

void Log::progress(std::int64_t done, std::int64_t total, double rate, const std::string& unit, double seconds_left) {
    if (!sinks_ || !live_) return;
    const auto now = std::chrono::steady_clock::now();
    if (shown_ && now - last_ < std::chrono::milliseconds(200)) return;
    last_ = now;
    shown_ = true;
    // Back to the start of the line, the text, clear what is left of the former one.
    std::fprintf(stderr, "\r%s\x1b[K", progress_text(done, total, rate, unit, seconds_left).c_str());
    std::fflush(stderr);
}

void Log::end_progress() {
    if (!shown_) return;
    shown_ = false;
    std::fputs("\r\x1b[K", stderr);
    std::fflush(stderr);
}

std::string progress_text(std::int64_t done, std::int64_t total, double rate, const std::string& unit,
                          double seconds_left) {
    constexpr int width = 24;
    const double share = total > 0 ? std::clamp(static_cast<double>(done) / static_cast<double>(total), 0.0, 1.0) : 0.0;
    const auto filled = static_cast<std::size_t>(share * width);
    std::string bar(filled, '=');
    if (filled < width) bar += '>';
    bar.resize(width, ' ');
    return concat('[', bar, "] ", done, '/', total, "  ", format_number(rate), ' ', unit, "/s  ",
                  format_duration(seconds_left), " left");
}

}  // namespace sparseattn
