#include "sparseattn/attention/attention.hpp"
