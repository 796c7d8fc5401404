#pragma once
/// \file
/// Where each parameter tensor lies in the flat parameter buffer.

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "sparseattn/model/config.hpp"

namespace sparseattn {

/// One tensor of the model: elements [offset, offset + count) of every flat buffer, row-major.
struct ParameterInfo {
    std::string name;                 // Hugging Face spelling, e.g. model.layers.0.self_attn.q_proj.weight
    std::vector<std::int64_t> shape;  // [out, in] for projections, [n] for norms
    std::int64_t offset = 0;
    std::int64_t count = 0;
    bool decay = true;  // takes weight decay (norms do not)
};

/// All tensors of a model in buffer order, without gaps: the embedding, layer by layer, the last norm, the head unless
/// it is tied. Values, gradients and optimizer states share this order. Within a layer q, k and v follow each other,
/// and so do gate and up, so that one matrix product serves each group.
class ParameterTable {
  public:
    explicit ParameterTable(const ModelConfig& config);

    [[nodiscard]] const std::vector<ParameterInfo>& parameters() const { return parameters_; }
    /// Elements of a flat buffer.
    [[nodiscard]] std::int64_t total() const { return total_; }
    [[nodiscard]] bool contains(std::string_view name) const;
    /// The tensor called `name`; throws InvalidArgument if the model has none.
    [[nodiscard]] const ParameterInfo& find(std::string_view name) const;

  private:
    void add(std::string name, std::vector<std::int64_t> shape, bool decay);

    std::vector<ParameterInfo> parameters_;
    std::unordered_map<std::string, std::size_t> index_;
    std::int64_t total_ = 0;
};

}  // namespace sparseattn
