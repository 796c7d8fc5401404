// Virtual datasets that show whole tensors to h5py.
#include <algorithm>

#include "sparseattn/io/detail/checkpoint_format.hpp"

namespace sparseattn::detail {
namespace {

using Extents = std::vector<hsize_t>;

// A box of a tensor whose elements follow each other in row-major order.
struct Box {
    Extents start;
    Extents size;
};

// Cuts the flat range [begin, end) of a row-major array into such boxes, at most 2 * dimensions - 1. Level by level: an
// uneven head, whole rows, an uneven tail.
void cut(const Extents& shape, std::size_t level, hsize_t begin, hsize_t end, Box prefix, std::vector<Box>& out) {
    if (begin == end) return;
    hsize_t row = 1;  // elements under one index of this level
    for (std::size_t d = level + 1; d < shape.size(); ++d) row *= shape[d];
    const auto inside = [&](hsize_t index, hsize_t from, hsize_t to) {
        Box next = prefix;
        next.start[level] = index;
        next.size[level] = 1;
        cut(shape, level + 1, from, to, next, out);
    };
    const hsize_t first = begin / row;
    const hsize_t last = end / row;
    if (first == last) return inside(first, begin % row, end % row);
    hsize_t whole = first;
    if (begin % row != 0) {
        inside(first, begin % row, row);
        ++whole;
    }
    if (whole < last) {
        Box box = prefix;
        box.start[level] = whole;
        box.size[level] = last - whole;
        for (std::size_t d = level + 1; d < shape.size(); ++d) {
            box.start[d] = 0;
            box.size[d] = shape[d];
        }
        out.push_back(box);
    }
    if (end % row != 0) inside(last, 0, end % row);
}

hsize_t volume(const Box& box) {
    hsize_t product = 1;
    for (const hsize_t size : box.size) product *= size;
    return product;
}

// Joins pieces that lie behind each other in the same shard.
std::vector<StoredPart> joined(const std::vector<StoredPart>& parts) {
    std::vector<StoredPart> out;
    for (const StoredPart& part : parts) {
        if (!out.empty() && out.back().shard == part.shard && out.back().position + out.back().count == part.position) {
            out.back().count += part.count;
        } else {
            out.push_back(part);
        }
    }
    return out;
}

}  // namespace

void write_view(h5::File& file, const TensorInfo& tensor, const std::vector<StoredPart>& parts,
                const std::vector<CheckpointFile>& shards) {
    const h5::Session session;
    const std::string name = "view/" + tensor.name;
    const Extents shape(tensor.shape.begin(), tensor.shape.end());
    const int rank = static_cast<int>(shape.size());
    const h5::Handle whole = file.own(H5Screate_simple(rank, shape.data(), nullptr), name, "describing it");
    const h5::Handle list = file.own(H5Pcreate(H5P_DATASET_CREATE), name, "preparing creation");
    H5Pset_obj_track_times(list.id(), false);
    const std::string source = dataset_name(tensor.name);
    for (const StoredPart& part : joined(parts)) {
        hsize_t stored = 0;  // elements of this tensor in the shard
        for (const StoredPart& other : parts) {
            if (other.shard == part.shard) stored += static_cast<hsize_t>(other.count);
        }
        std::vector<Box> boxes;
        const auto begin = static_cast<hsize_t>(part.begin);
        cut(shape, 0, begin, begin + static_cast<hsize_t>(part.count), {Extents(shape.size()), Extents(shape.size())},
            boxes);
        auto position = static_cast<hsize_t>(part.position);
        const h5::Handle flat = file.own(H5Screate_simple(1, &stored, nullptr), name, "describing a part");
        for (const Box& box : boxes) {
            const hsize_t size = volume(box);
            file.check(
                H5Sselect_hyperslab(whole.id(), H5S_SELECT_SET, box.start.data(), nullptr, box.size.data(), nullptr),
                name, "selecting a part");
            file.check(H5Sselect_hyperslab(flat.id(), H5S_SELECT_SET, &position, nullptr, &size, nullptr), name,
                       "selecting a part");
            file.check(H5Pset_virtual(list.id(), whole.id(), shards[static_cast<std::size_t>(part.shard)].name.c_str(),
                                      source.c_str(), flat.id()),
                       name, "mapping a part");
            position += size;
        }
    }
    file.check(H5Sselect_all(whole.id()), name, "selecting");
    const h5::Handle type = h5::make_type(tensor.dtype);
    file.own(H5Dcreate2(file.id(), name.c_str(), type.id(), whole.id(), H5P_DEFAULT, list.id(), H5P_DEFAULT), name,
             "creating the view");
    file.check_io();
}

}  // namespace sparseattn::detail
