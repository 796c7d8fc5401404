#pragma once
/// \file
/// The library's exceptions. Each names what was wrong, what it was and what it must be; programs map them to exit
/// codes.

#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>

namespace sparseattn {

/// Base of everything the library throws on purpose. `exit_code()` is what a program returns for it.
class Error : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
    [[nodiscard]] virtual int exit_code() const noexcept { return 70; }
};

/// A function was called with arguments outside its contract.
class InvalidArgument : public Error {
  public:
    using Error::Error;
};

/// The deck or the command line is wrong; the message carries file:line:column and the key.
class DeckError : public Error {
  public:
    using Error::Error;
    [[nodiscard]] int exit_code() const noexcept override { return 2; }
};

/// A file cannot be read or written, or its content is not what it must be.
class FileError : public Error {
  public:
    using Error::Error;
    [[nodiscard]] int exit_code() const noexcept override { return 3; }
};

/// A checkpoint is missing, incomplete or damaged; the message names file and tensor.
class CheckpointError : public FileError {
  public:
    using FileError::FileError;
};

/// A computation left the finite numbers.
class NumericalError : public Error {
  public:
    using Error::Error;
    [[nodiscard]] int exit_code() const noexcept override { return 4; }
};

/// The feature is not in this build; the message names the option that adds it.
class NotCompiled : public Error {
  public:
    using Error::Error;
};

/// Builds a message from any streamable parts.
template <class... Parts>
[[nodiscard]] std::string concat(const Parts&... parts) {
    std::ostringstream out;
    (out << ... << parts);
    return out.str();
}

/// Throws InvalidArgument "argument is was, must be must" unless `ok`.
template <class Value>
void require(bool ok, std::string_view argument, const Value& was, std::string_view must) {
    if (!ok) throw InvalidArgument(concat(argument, " is ", was, ", must be ", must));
}

}  // namespace sparseattn
