#include "mcompress/report/version.h"

namespace mcompress {

const char* const kVersion = MCOMPRESS_VERSION;

}  // namespace mcompress
