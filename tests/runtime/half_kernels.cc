// Operators of FakeCPU in float16: each computes in float32 by the CPU's kernel of the same name, and rounds.
#include <algorithm>
#include <cstring>
#include <deque>
#include <tuple>
#include <utility>
#include <vector>

#include "paddle/phi/backends/context_pool.h"
#include "paddle/phi/backends/cpu/cpu_context.h"
#include "paddle/phi/common/float16.h"
#include "paddle/phi/core/dense_tensor.h"
#include "paddle/phi/core/kernel_registry.h"
#include "paddle/phi/kernels/activation_grad_kernel.h"
#include "paddle/phi/kernels/activation_kernel.h"
#include "paddle/phi/kernels/adamw_kernel.h"
#include "paddle/phi/kernels/amp_kernel.h"
#include "paddle/phi/kernels/batch_norm_grad_kernel.h"
#include "paddle/phi/kernels/batch_norm_kernel.h"
#include "paddle/phi/kernels/bernoulli_kernel.h"
#include "paddle/phi/kernels/conv_grad_kernel.h"
#include "paddle/phi/kernels/conv_kernel.h"
#include "paddle/phi/kernels/elementwise_add_grad_kernel.h"
#include "paddle/phi/kernels/elementwise_add_kernel.h"
#include "paddle/phi/kernels/elementwise_multiply_grad_kernel.h"
#include "paddle/phi/kernels/elementwise_multiply_kernel.h"
#include "paddle/phi/kernels/gather_grad_kernel.h"
#include "paddle/phi/kernels/gather_kernel.h"
#include "paddle/phi/kernels/gelu_grad_kernel.h"
#include "paddle/phi/kernels/gelu_kernel.h"
#include "paddle/phi/kernels/layer_norm_grad_kernel.h"
#include "paddle/phi/kernels/layer_norm_kernel.h"
#include "paddle/phi/kernels/matmul_grad_kernel.h"
#include "paddle/phi/kernels/matmul_kernel.h"
#include "paddle/phi/kernels/reduce_mean_grad_kernel.h"
#include "paddle/phi/kernels/reduce_mean_kernel.h"
#include "paddle/phi/kernels/softmax_grad_kernel.h"
#include "paddle/phi/kernels/softmax_kernel.h"
#include "paddle/phi/kernels/unsqueeze_grad_kernel.h"
#include "paddle/phi/kernels/unsqueeze_kernel.h"

namespace {

using phi::DataType;
using phi::DenseTensor;
using phi::dtype::float16;

const phi::CPUContext& Cpu() {
  return *static_cast<const phi::CPUContext*>(phi::DeviceContextPool::Instance().Get(phi::CPUPlace()));
}

// What a kernel of the CPU is given in place of the device's tensors, and where its results go.
class Call {
 public:
  explicit Call(const phi::DeviceContext& device) : device_(device) {}

  template <typename T>
  T&& Pass(T&& other) {
    return std::forward<T>(other);
  }

  const DenseTensor& Pass(const DenseTensor& tensor) { return *Widened(tensor); }

  const paddle::optional<DenseTensor>& Pass(const paddle::optional<DenseTensor>& tensor) {
    return optionals_.emplace_back(tensor ? paddle::optional<DenseTensor>(*Widened(*tensor)) : paddle::none);
  }

  const std::vector<const DenseTensor*>& Pass(const std::vector<const DenseTensor*>& tensors) {
    auto& list = lists_.emplace_back();
    for (const DenseTensor* tensor : tensors) list.push_back(Widened(*tensor));
    return list;
  }

  DenseTensor* Pass(DenseTensor* out) {
    if (out == nullptr) return nullptr;
    DenseTensor* wide = Widened(*out);  // a running mean that the kernel does not write must stay
    if (!out->initialized()) wide->set_type(out->dtype() == DataType::FLOAT16 ? DataType::FLOAT32 : out->dtype());
    results_.emplace_back(wide, out);
    return wide;
  }

  std::vector<DenseTensor*> Pass(std::vector<DenseTensor*> outs) {
    std::transform(outs.begin(), outs.end(), outs.begin(), [this](DenseTensor* out) { return Pass(out); });
    return outs;
  }

  void Return() {
    for (auto& [wide, out] : results_) {
      if (!wide->initialized()) continue;
      out->Resize(wide->dims());
      if (out->dtype() == DataType::FLOAT16) {
        std::copy_n(wide->data<float>(), wide->numel(), device_.Alloc<float16>(out));
      } else {
        void* place = device_.Alloc(out, wide->dtype());
        std::memcpy(place, wide->data(), wide->numel() * phi::SizeOf(wide->dtype()));
      }
    }
  }

 private:
  DenseTensor* Widened(const DenseTensor& tensor) {
    DenseTensor& wide = tensors_.emplace_back();
    wide.Resize(tensor.dims());
    if (!tensor.initialized()) return &wide;  // a gradient's kernel may need the shape alone
    if (tensor.dtype() == DataType::FLOAT16) {
      std::copy_n(tensor.data<float16>(), tensor.numel(), Cpu().Alloc<float>(&wide));
    } else {
      void* place = Cpu().Alloc(&wide, tensor.dtype());
      std::memcpy(place, tensor.data(), tensor.numel() * phi::SizeOf(tensor.dtype()));
    }
    return &wide;
  }

  const phi::DeviceContext& device_;
  std::deque<DenseTensor> tensors_;
  std::deque<paddle::optional<DenseTensor>> optionals_;
  std::deque<std::vector<const DenseTensor*>> lists_;
  std::vector<std::pair<DenseTensor*, DenseTensor*>> results_;
};

template <typename Function>
Function CpuKernel(const char* op) {
  return phi::KernelFactory::Instance()
      .SelectKernel(op, {phi::Backend::CPU, phi::DataLayout::ALL_LAYOUT, DataType::FLOAT32})
      .GetVariadicKernelFn<Function>();
}

template <const char* op, typename Signature>
struct OnTheCpu;

template <const char* op, typename... Args>
struct OnTheCpu<op, void (*)(const phi::CPUContext&, Args...)> {
  static void Run(const phi::DeviceContext& device, Args... args) {
    Call call(device);
    CpuKernel<decltype(&Run)>(op)(Cpu(), call.Pass(args)...);
    call.Return();
  }
};

// AdamW for a weight in half precision: steps its float32 copy, from which the weight is rounded.
template <const char* op, typename Signature>
struct StepOfTheCopy;

template <const char* op, typename... Args>
struct StepOfTheCopy<op, void (*)(const phi::CPUContext&, const DenseTensor&, Args...)> {
  static void Run(const phi::DeviceContext& device, const DenseTensor&, Args... args) {
    constexpr size_t copy = 7, weight_out = sizeof...(Args) - 7, copy_out = sizeof...(Args) - 1;
    std::tuple<Args...> rest(args...);
    DenseTensor* stepped = std::exchange(std::get<copy_out>(rest), nullptr);
    DenseTensor* weight = std::exchange(std::get<weight_out>(rest), stepped);
    Call call(device);
    std::apply(
        [&](auto&... each) {
          CpuKernel<decltype(&Run)>(op)(Cpu(), call.Pass(*std::get<copy>(rest)), call.Pass(each)...);
        },
        rest);
    call.Return();
    std::copy_n(stepped->data<float>(), stepped->numel(), device.Alloc<float16>(weight));
  }
};

template <typename Signature>
phi::KernelRegistrar Register(const char* op, DataType dtype, void* function) {
  return {phi::RegType::OUTER,
          op,
          "FakeCPU",
          phi::DataLayout::ALL_LAYOUT,
          dtype,
          phi::KernelArgsParseFunctor<Signature>::Parse,
          [](const phi::KernelKey&, phi::Kernel*) {},
          [](phi::KernelContext*) { std::abort(); },  // how a static program would call it
          function};
}

#define KERNEL(how, op, function, dtype)                                                 \
  constexpr char op##_name[] = #op;                                                      \
  using op##_signature = decltype(&phi::function<float, phi::CPUContext>);               \
  auto op##_registered = Register<op##_signature>(                                       \
      #op, DataType::dtype, reinterpret_cast<void*>(&how<op##_name, op##_signature>::Run))
#define HALF(op, function) KERNEL(OnTheCpu, op, function##Kernel, FLOAT16)
#define HALF_WITH_GRADIENT(op, function) \
  HALF(op, function);                    \
  HALF(op##_grad, function##Grad)

HALF_WITH_GRADIENT(add, Add);
HALF_WITH_GRADIENT(batch_norm, BatchNorm);
HALF_WITH_GRADIENT(conv2d, Conv);
HALF_WITH_GRADIENT(depthwise_conv2d, DepthwiseConv);
HALF_WITH_GRADIENT(gather, Gather);
HALF_WITH_GRADIENT(gelu, Gelu);
HALF_WITH_GRADIENT(layer_norm, LayerNorm);
HALF_WITH_GRADIENT(matmul, Matmul);
HALF_WITH_GRADIENT(multiply, Multiply);
HALF_WITH_GRADIENT(relu, Relu);
HALF_WITH_GRADIENT(sigmoid, Sigmoid);
HALF_WITH_GRADIENT(softmax, Softmax);
HALF_WITH_GRADIENT(unsqueeze, Unsqueeze);
HALF(bernoulli, Bernoulli);
HALF(mean, Mean);
HALF(mean_grad, ReduceMeanGrad);
KERNEL(StepOfTheCopy, adamw, AdamwDenseKernel, FLOAT16);
// In float32, as the CPU's own reads on the CPU whether a gradient overflowed.
KERNEL(OnTheCpu, update_loss_scaling, UpdateLossScalingKernel, FLOAT32);

}  // namespace
