// Acts with a policy file by ONNX Runtime's C API: no Python, no torch.
//
//   ./act policy.onnx 0.1 0.2 0.3 -- 0.25
//
// The numbers are the observation, input after input, and behind `--` the noise; without it, it is drawn.
// Prints the action, and how long 1000 further ones take.

#include <onnxruntime_c_api.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

static const OrtApi* ort = nullptr;

static void check(OrtStatus* status) {
  if (status == nullptr) return;
  std::fprintf(stderr, "error: %s\n", ort->GetErrorMessage(status));
  std::exit(1);
}

static std::string take(OrtAllocator* allocator, char* text) {
  std::string result(text);
  check(ort->AllocatorFree(allocator, text));
  return result;
}

// The shape of an input of the graph, with one row for its batch.
static std::vector<int64_t> shape_of(OrtSession* session, size_t index) {
  OrtTypeInfo* type = nullptr;
  const OrtTensorTypeAndShapeInfo* tensor = nullptr;
  size_t rank = 0;
  check(ort->SessionGetInputTypeInfo(session, index, &type));
  check(ort->CastTypeInfoToTensorInfo(type, &tensor));
  check(ort->GetDimensionsCount(tensor, &rank));
  std::vector<int64_t> shape(rank);
  check(ort->GetDimensions(tensor, shape.data(), rank));
  ort->ReleaseTypeInfo(type);
  shape.at(0) = 1;
  return shape;
}

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: act policy.onnx OBSERVATION... [-- NOISE...]\n");
    return 2;
  }
  std::vector<float> given, noise;
  bool drawn = true;
  for (int i = 2; i < argc; ++i) {
    if (std::strcmp(argv[i], "--") == 0) {
      drawn = false;
    } else {
      (drawn ? given : noise).push_back(std::strtof(argv[i], nullptr));
    }
  }

  ort = OrtGetApiBase()->GetApi(ORT_API_VERSION);
  if (ort == nullptr) {
    std::fprintf(stderr, "error: the library is older than the header it was built with\n");
    return 1;
  }
  OrtEnv* env = nullptr;
  OrtSessionOptions* options = nullptr;
  OrtSession* session = nullptr;
  OrtAllocator* allocator = nullptr;
  OrtMemoryInfo* memory = nullptr;
  check(ort->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "act", &env));
  check(ort->CreateSessionOptions(&options));
  check(ort->SetIntraOpNumThreads(options, 1));
  check(ort->CreateSession(env, argv[1], options, &session));
  check(ort->GetAllocatorWithDefaultOptions(&allocator));
  check(ort->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory));

  // The contract: inputs `obs` or `obs.<key>`, then `noise` unless it is inside; one output.
  size_t inputs = 0;
  check(ort->SessionGetInputCount(session, &inputs));
  std::vector<std::string> names;
  std::vector<std::vector<float>> buffers(inputs);
  std::vector<OrtValue*> values(inputs, nullptr);
  std::mt19937 random{std::random_device{}()};
  std::normal_distribution<float> normal;
  size_t used = 0;
  for (size_t i = 0; i < inputs; ++i) {
    char* text = nullptr;
    check(ort->SessionGetInputName(session, i, allocator, &text));
    names.push_back(take(allocator, text));
    std::vector<int64_t> shape = shape_of(session, i);
    size_t size = 1;
    for (int64_t n : shape) size *= static_cast<size_t>(n);
    std::vector<float>& buffer = buffers[i];
    if (names[i] != "noise") {
      if (used + size > given.size()) {
        std::fprintf(stderr, "error: %s needs %zu numbers\n", names[i].c_str(), size);
        return 1;
      }
      buffer.assign(given.begin() + used, given.begin() + used + size);
      used += size;
    } else if (drawn) {
      buffer.resize(size);
      std::generate(buffer.begin(), buffer.end(), [&] { return normal(random); });
    } else if (noise.size() == size) {
      buffer = noise;
    } else {
      std::fprintf(stderr, "error: the noise needs %zu numbers\n", size);
      return 1;
    }
    check(ort->CreateTensorWithDataAsOrtValue(memory, buffer.data(), size * sizeof(float),
                                              shape.data(), shape.size(),
                                              ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, &values[i]));
  }
  if (used != given.size()) {
    std::fprintf(stderr, "error: %zu numbers are more than the observation has\n", given.size());
    return 1;
  }

  char* text = nullptr;
  check(ort->SessionGetOutputName(session, 0, allocator, &text));
  const std::string output = take(allocator, text);
  const char* output_name = output.c_str();
  std::vector<const char*> input_names;
  for (const std::string& name : names) input_names.push_back(name.c_str());
  OrtValue* action = nullptr;
  const auto act = [&] {
    if (action != nullptr) ort->ReleaseValue(action);
    action = nullptr;
    check(ort->Run(session, nullptr, input_names.data(), values.data(), inputs, &output_name, 1,
                   &action));
  };
  act();

  OrtTensorTypeAndShapeInfo* info = nullptr;
  size_t size = 0;
  float* numbers = nullptr;
  check(ort->GetTensorTypeAndShape(action, &info));
  check(ort->GetTensorShapeElementCount(info, &size));
  check(ort->GetTensorMutableData(action, reinterpret_cast<void**>(&numbers)));
  for (size_t i = 0; i < size; ++i) std::printf("%s%.9g", i ? " " : "", numbers[i]);
  std::printf("\n");

  std::vector<double> microseconds;
  for (int i = 0; i < 1000; ++i) {
    const auto start = std::chrono::steady_clock::now();
    act();
    const std::chrono::duration<double, std::micro> spent = std::chrono::steady_clock::now() - start;
    microseconds.push_back(spent.count());
  }
  std::sort(microseconds.begin(), microseconds.end());
  std::printf("p50 %.1f us, p99 %.1f us, max %.1f us\n", microseconds[500], microseconds[990],
              microseconds.back());

  ort->ReleaseTensorTypeAndShapeInfo(info);
  ort->ReleaseValue(action);
  for (OrtValue* value : values) ort->ReleaseValue(value);
  ort->ReleaseMemoryInfo(memory);
  ort->ReleaseSession(session);
  ort->ReleaseSessionOptions(options);
  ort->ReleaseEnv(env);
  return 0;
}
