#include <typeinfo>

#include "sparseattn/core/error.hpp"
#include "sparseattn/parallel/communicator.hpp"

namespace sparseattn {
namespace {

template <class Kind>
class Agreed : public Kind, public AgreedFailure {
  public:
    Agreed(const std::string& message, int rank, int ranks) : Kind(message), AgreedFailure(rank, ranks) {}
};

// The kinds as they travel; a class before its bases.
enum class Kind : char { checkpoint, file, deck, invalid_argument, numerical, not_compiled, error };

Kind kind_of(const std::exception& failure) {
    if (dynamic_cast<const CheckpointError*>(&failure)) return Kind::checkpoint;
    if (dynamic_cast<const FileError*>(&failure)) return Kind::file;
    if (dynamic_cast<const DeckError*>(&failure)) return Kind::deck;
    if (dynamic_cast<const InvalidArgument*>(&failure)) return Kind::invalid_argument;
    if (dynamic_cast<const NumericalError*>(&failure)) return Kind::numerical;
    if (dynamic_cast<const NotCompiled*>(&failure)) return Kind::not_compiled;
    return Kind::error;
}

[[noreturn]] void throw_agreed(Kind kind, const std::string& message, int rank, int ranks) {
    switch (kind) {
        case Kind::checkpoint:
            throw Agreed<CheckpointError>(message, rank, ranks);
        case Kind::file:
            throw Agreed<FileError>(message, rank, ranks);
        case Kind::deck:
            throw Agreed<DeckError>(message, rank, ranks);
        case Kind::invalid_argument:
            throw Agreed<InvalidArgument>(message, rank, ranks);
        case Kind::numerical:
            throw Agreed<NumericalError>(message, rank, ranks);
        case Kind::not_compiled:
            throw Agreed<NotCompiled>(message, rank, ranks);
        case Kind::error:
            break;
    }
    throw Agreed<Error>(message, rank, ranks);
}

/// One character of kind, then the message as every rank will show it.
std::string describe(const std::exception_ptr& failure, int rank) {
    try {
        std::rethrow_exception(failure);
    } catch (const std::exception& error) {
        // A failure that was agreed before (by a smaller communicator, say) already names its rank.
        const bool named = dynamic_cast<const AgreedFailure*>(&error) != nullptr;
        return static_cast<char>(kind_of(error)) + (named ? std::string() : concat("rank ", rank, ": ")) + error.what();
    } catch (...) {
        return static_cast<char>(Kind::error) + concat("rank ", rank, ": an exception that is no std::exception");
    }
}

}  // namespace

void Communicator::agree(const std::exception_ptr& mine) const {
    // The first failing rank is the largest of (size - rank) over the failing ones.
    std::int32_t failing = mine ? size_ - rank_ : 0;
    all_reduce_max(&failing, 1);
    if (failing == 0) return;
    const int first = size_ - failing;
    std::string text = rank_ == first ? describe(mine, first) : std::string();
    broadcast(text, first);
    throw_agreed(static_cast<Kind>(text.at(0)), text.substr(1), first, size_);
}

}  // namespace sparseattn
