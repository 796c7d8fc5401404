// dump_gradients DIR: reads DIR/config.json and, if there, DIR/parameters.f64, tokens.i32, labels.i32, offsets.i32 (raw
// arrays; parameters flat in table order). Writes DIR/table.txt (name and element count per line) and, given the
// arrays, gradients.f64 and loss.txt, computed in double with plain causal attention.
#include <filesystem>
#include <fstream>
#include <iomanip>
#include <iostream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "sparseattn/layout/builders.hpp"
#include "sparseattn/layout/detail/copies.hpp"
#include "sparseattn/model/decoder.hpp"

namespace {

using namespace sparseattn;
using Exec = Kokkos::DefaultExecutionSpace;
using Mem = Exec::memory_space;

template <class T>
std::vector<T> read(const std::filesystem::path& path) {
    std::ifstream file(path, std::ios::binary);
    const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
    std::vector<T> values(bytes.size() / sizeof(T));
    std::copy_n(bytes.data(), values.size() * sizeof(T), reinterpret_cast<char*>(values.data()));
    return values;
}

void run(const std::filesystem::path& dir) {
    const Exec exec;
    const auto config = ModelConfig::from_json(nlohmann::json::parse(std::ifstream(dir / "config.json")));
    Decoder<Exec, double> decoder(exec, config);
    std::ofstream table(dir / "table.txt");
    for (const auto& info : decoder.table().parameters()) table << info.name << ' ' << info.count << '\n';
    if (!std::filesystem::exists(dir / "parameters.f64")) return;

    const auto offsets = read<std::int32_t>(dir / "offsets.i32");
    std::vector<std::int32_t> positions;
    for (std::size_t s = 0; s + 1 < offsets.size(); ++s) {
        for (int t = offsets[s]; t < offsets[s + 1]; ++t) positions.push_back(t - offsets[s]);
    }
    Batch<Mem> batch;
    batch.sequences = Sequences<Mem>(offsets);
    batch.tokens = detail::to_device(exec, "tokens", read<std::int32_t>(dir / "tokens.i32"));
    batch.labels = detail::to_device(exec, "labels", read<std::int32_t>(dir / "labels.i32"));
    batch.positions = detail::to_device(exec, "positions", positions);
    const std::vector<HeadMode> dense(config.num_attention_heads, HeadMode::dense());
    const auto layout = build_layout(exec, batch.sequences, 64, true, dense);
    const auto transposed = transpose(exec, batch.sequences, layout);
    const auto parameters = detail::to_device(exec, "parameters", read<double>(dir / "parameters.f64"));
    const Array1<double, Mem> gradients("gradients", parameters.extent(0));
    const double loss = decoder.loss_and_gradients(batch, {{layout, transposed}, nullptr, {}, {}}, parameters, 1.0,
                                                   gradients, {}, {true, 100});
    std::ofstream(dir / "loss.txt") << std::setprecision(17) << loss << '\n';
    const auto values = detail::to_host(exec, gradients);
    std::ofstream(dir / "gradients.f64", std::ios::binary)
        .write(reinterpret_cast<const char*>(values.data()),
               static_cast<std::streamsize>(values.size() * sizeof(double)));
}

}  // namespace

int main(int argc, char** argv) {
    const Kokkos::ScopeGuard kokkos(argc, argv);
    if (argc != 2) {
        std::cerr << "usage: dump_gradients DIR\n";
        return 2;
    }
    try {
        run(argv[1]);
    } catch (const std::exception& error) {
        std::cerr << "dump_gradients: " << error.what() << '\n';
        return 1;
    }
    return 0;
}
