#pragma once
/// \file
/// What programs return.

namespace sparseattn::exit_code {

inline constexpr int done = 0;
inline constexpr int usage = 2;      // command line or deck, or what they ask for cannot be
inline constexpr int file = 3;       // unreadable or corrupt file
inline constexpr int numerical = 4;  // loss or gradients not finite
inline constexpr int internal = 70;  // everything else
inline constexpr int stopped = 75;   // stopped early with a checkpoint: start again with -r latest

}  // namespace sparseattn::exit_code
