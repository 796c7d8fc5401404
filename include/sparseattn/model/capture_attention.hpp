#pragma once
/// \file
/// Writes what attention reads to a file of attention tensors.

#include <filesystem>
#include <optional>
#include <vector>

#include "sparseattn/io/attention_file.hpp"
#include "sparseattn/model/layer_attention.hpp"

namespace sparseattn {

/// Leaves attention to another operator and writes query, key and value of chosen layers, as the first forward pass
/// of each has them, to an attention tensors file (docs/attention-files.md). The file appears at commit().
template <class Exec, class T>
class CaptureAttention : public LayerAttention<Exec, T> {
  public:
    using Mem = typename Exec::memory_space;

    /// `inner` must outlive the object. `layers` are numbers of the model's layers, at least one.
    CaptureAttention(LayerAttention<Exec, T>& inner, std::vector<int> layers, std::filesystem::path file);

    /// Throws InvalidArgument for a layer that the model has not.
    void prepare(const ModelConfig& config, const PassShape& pass) override;
    void forward(const Exec& exec, const LayerInputs<Exec, T>& inputs, const HeadsView<T, Mem>& out) override;
    void backward(const Exec& exec, const LayerInputs<Exec, T>& inputs, const HeadsView<const T, Mem>& out,
                  const HeadsView<const T, Mem>& dout, const AttentionGradients<T, Mem>& gradients) override;
    [[nodiscard]] AttentionBytes bytes(const ModelConfig& config, const PassShape& pass) const override {
        return inner_.bytes(config, pass);
    }
    [[nodiscard]] std::int64_t allocated() const override { return inner_.allocated(); }

    /// After a pass over all layers: puts the file in place. Nothing is captured from then on.
    void commit();

  private:
    LayerAttention<Exec, T>& inner_;
    std::vector<int> layers_;  // still to be written
    std::filesystem::path file_;
    std::optional<AttentionFileWriter> writer_;
};

}  // namespace sparseattn
