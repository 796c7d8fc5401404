#include "sparseattn/app/rank_map.hpp"

#include <sched.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include "sparseattn/core/error.hpp"
#include "sparseattn/core/kokkos_compat.hpp"

namespace sparseattn {
namespace {

/// "3", "0-3".
std::string span(int first, int last) {
    return first == last ? std::to_string(first) : concat(first, '-', last);
}

std::string allowed_cores() {
    cpu_set_t set;
    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof set, &set) != 0) return "unknown";
    std::string text;
    for (int core = 0; core < CPU_SETSIZE; ++core) {
        if (!CPU_ISSET(core, &set)) continue;
        int last = core;
        while (last + 1 < CPU_SETSIZE && CPU_ISSET(last + 1, &set)) ++last;
        text += concat(text.empty() ? "" : ",", span(core, last));
        core = last;
    }
    return text;
}

std::string resources(const RankPlace& place) {
    std::string text = concat("cores ", place.cores, ", ", place.threads, place.threads == 1 ? " thread" : " threads");
    if (place.device >= 0) text += concat(", device ", place.device);
    return text;
}

/// Ranks [first, last] of one host.
std::string condensed(const std::vector<RankPlace>& places, std::size_t first, std::size_t last) {
    const RankPlace& a = places[first];
    const RankPlace& b = places[last];
    std::string text = concat("ranks ", span(static_cast<int>(first), static_cast<int>(last)), ": ", a.host, ", data ",
                              span(a.data_index, b.data_index), ", ");
    bool same = true;
    for (std::size_t r = first; r <= last; ++r) {
        same = same && places[r].cores == a.cores && places[r].threads == a.threads;
    }
    text += same ? concat("cores ", a.cores) : concat("cores ", a.cores, " ... ", b.cores);
    text += concat(", ", a.threads, a.threads == 1 ? " thread" : " threads", " each");
    if (a.device >= 0) text += concat(", devices ", a.device, " ... ", b.device);
    return text;
}

}  // namespace

RankPlace RankPlace::here(const ProcessGrid& grid) {
    RankPlace place;
    char host[256] = "unknown";
    gethostname(host, sizeof host - 1);
    place.host = host;
    place.cores = allowed_cores();
    place.threads = concurrency(Kokkos::DefaultHostExecutionSpace());
    place.device = device_number(Kokkos::DefaultExecutionSpace());
    place.data_index = grid.data_index();
    place.sequence_index = grid.sequence_index();
    return place;
}

std::vector<std::string> rank_map(const std::vector<RankPlace>& places, int seq_parallel, int most) {
    const int ranks = static_cast<int>(places.size());
    std::vector<std::string> lines = {
        concat("ranks ", ranks, " = data_parallel ", ranks / seq_parallel, " x seq_parallel ", seq_parallel)};
    if (ranks <= most) {
        for (int r = 0; r < ranks; ++r) {
            const RankPlace& place = places[static_cast<std::size_t>(r)];
            lines.push_back(concat("rank ", r, ": ", place.host, ", data ", place.data_index, ", sequence ",
                                   place.sequence_index, ", ", resources(place)));
        }
        return lines;
    }
    for (std::size_t first = 0; first < places.size();) {
        std::size_t last = first;
        while (last + 1 < places.size() && places[last + 1].host == places[first].host) ++last;
        lines.push_back(condensed(places, first, last));
        first = last + 1;
    }
    return lines;
}

std::vector<std::string> rank_map(const ProcessGrid& grid) {
    const RankPlace mine = RankPlace::here(grid);
    const nlohmann::json text = {mine.host,   mine.cores,      mine.threads,
                                 mine.device, mine.data_index, mine.sequence_index};
    std::vector<RankPlace> places;
    for (const std::string& other : grid.world().gather(text.dump(), 0)) {
        const nlohmann::json place = nlohmann::json::parse(other);
        places.push_back({place[0], place[1], place[2], place[3], place[4], place[5]});
    }
    return places.empty() ? std::vector<std::string>() : rank_map(places, grid.seq_parallel());
}

}  // namespace sparseattn
