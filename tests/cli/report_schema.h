#pragma once

#include <string>

namespace mcompress::testing {

// What in `report` breaks configs/report.schema.json, a line each; empty where it is valid.
std::string schema_violations(const std::string& report);

}  // namespace mcompress::testing
