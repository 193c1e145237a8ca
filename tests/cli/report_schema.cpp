#include "cli/report_schema.h"

#include <nlohmann/json.hpp>
#include <valijson/adapters/nlohmann_json_adapter.hpp>
#include <valijson/schema.hpp>
#include <valijson/schema_parser.hpp>
#include <valijson/validator.hpp>

#include "test_files.h"

namespace mcompress::testing {

std::string schema_violations(const std::string& report) {
  using Adapter = valijson::adapters::NlohmannJsonAdapter;
  const auto document =
      nlohmann::json::parse(read_file(std::string(MCOMPRESS_TESTS_DIR) + "/../configs/report.schema.json"));
  const auto target = nlohmann::json::parse(report);
  valijson::Schema schema;
  valijson::SchemaParser parser;
  parser.populateSchema(Adapter(document), schema);
  valijson::Validator validator;
  valijson::ValidationResults results;
  std::string text;
  if (validator.validate(schema, Adapter(target), &results)) return text;
  for (valijson::ValidationResults::Error error; results.popError(error);) {
    for (const std::string& step : error.context) text += step;
    text += ": " + error.description + "\n";
  }
  return text;
}

}  // namespace mcompress::testing
