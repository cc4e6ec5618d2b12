// Plays frames with an exported agent, in C++ without Python: one line per frame, its action and its scores.
//
//     play_frame agent.pt frames.bin 4 84 84
//
// agent.pt    torch.jit.trace of mnv4_rl.export.fold(agent)
// frames.bin  uint8 observations in a row, channels x height x width each
#include <ATen/Parallel.h>
#include <torch/script.h>

#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <vector>

int main(int argc, char** argv) {
  if (argc != 6) {
    std::cerr << "usage: play_frame agent.pt frames.bin channels height width\n";
    return 2;
  }
  const int64_t channels = std::atoll(argv[3]), height = std::atoll(argv[4]), width = std::atoll(argv[5]);
  const int64_t frame_bytes = channels * height * width;
  std::ifstream file(argv[2], std::ios::binary);
  std::vector<uint8_t> pixels((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (frame_bytes <= 0 || pixels.empty() || pixels.size() % frame_bytes != 0) {
    std::cerr << argv[2] << " does not hold whole frames of " << frame_bytes << " bytes\n";
    return 2;
  }

  at::set_num_threads(1);  // a small network gains nothing from more
  torch::NoGradGuard no_grad;
  torch::jit::Module agent;
  try {
    agent = torch::jit::load(argv[1]);
  } catch (const c10::Error& error) {
    std::cerr << argv[1] << " cannot be loaded: " << error.msg().substr(0, error.msg().find('\n')) << "\n";
    return 2;
  }

  const int64_t n_frames = static_cast<int64_t>(pixels.size()) / frame_bytes;
  std::cout.precision(9);
  for (int64_t i = 0; i < n_frames; ++i) {
    uint8_t* frame = pixels.data() + i * frame_bytes;
    auto observation = torch::from_blob(frame, {1, channels, height, width}, torch::kUInt8);
    auto answer = agent.forward({observation}).toTuple();
    auto scores = answer->elements()[0].toTensor().contiguous();
    std::cout << answer->elements()[1].toTensor().item<int64_t>();
    for (int64_t k = 0; k < scores.numel(); ++k) std::cout << ' ' << scores.data_ptr<float>()[k];
    std::cout << '\n';
  }

  auto frame = torch::from_blob(pixels.data(), {1, channels, height, width}, torch::kUInt8);
  const auto start = std::chrono::steady_clock::now();
  constexpr int kCalls = 200;
  for (int call = 0; call < kCalls; ++call) agent.forward({frame});
  const std::chrono::duration<double, std::milli> elapsed = std::chrono::steady_clock::now() - start;
  std::cerr << elapsed.count() / kCalls << " ms a frame\n";
}
