// A second device whose memory is the host's: every operator runs on the CPU, once its tensors are seen to lie on one
// device, but for single numbers (tensors without a dimension) and indices, which may lie on the host as a GPU's may.
// Views share their memory, as on any device.

#define AT_PER_OPERATOR_HEADERS  // all operators' headers together take several times as long to compile
#include <ATen/EmptyTensor.h>
#include <ATen/core/Tensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/alloc_cpu.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_as_complex_native.h>
#include <ATen/ops/view_as_real_native.h>
#include <ATen/ops/view_native.h>
#include <torch/library.h>

namespace {

using at::Tensor;
using c10::DeviceType;

constexpr c10::DispatchKeySet KEYS{c10::DispatchKey::PrivateUse1};
const c10::Device HERE{DeviceType::PrivateUse1, 0};

struct Allocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* data = bytes == 0 ? nullptr : c10::alloc_cpu(bytes);
    return {data, data, &c10::free_cpu, HERE};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &c10::free_cpu; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
};

Allocator allocator;
REGISTER_ALLOCATOR(DeviceType::PrivateUse1, &allocator);

struct Guard final : c10::impl::NoOpDeviceGuardImpl<DeviceType::PrivateUse1> {
  c10::Device exchangeDevice(c10::Device) const override { return HERE; }
  c10::Device getDevice() const override { return HERE; }
  c10::Stream getStream(c10::Device) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, HERE); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, HERE); }
};

C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard)

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
};

// The host's view of a tensor's memory.
Tensor on_host(const Tensor& x) {
  auto storage = x.storage();
  Tensor host = at::for_blob(x.data_ptr(), x.sizes())
                    .strides(x.strides())
                    .deleter([storage](void*) {})
                    .options(at::device(at::kCPU).dtype(x.scalar_type()))
                    .make_tensor();
  host._set_conj(x.is_conj());
  host._set_neg(x.is_neg());
  return host;
}

Tensor moved_here(const Tensor& x) {
  if (!x.defined()) return x;
  Tensor copy = at::detail::empty_strided_generic(x.sizes(), x.strides(), &allocator, KEYS, x.scalar_type());
  on_host(copy).copy_(x);
  return copy;
}

Tensor empty(c10::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
             std::optional<c10::Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(size, &allocator, KEYS, c10::dtype_or_default(dtype), format);
}

Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<at::ScalarType> dtype,
                     std::optional<at::Layout>, std::optional<c10::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &allocator, KEYS, c10::dtype_or_default(dtype));
}

bool is_here(const Tensor& x) { return x.device().type() == DeviceType::PrivateUse1; }

Tensor copy_from(const Tensor& self, const Tensor& to, bool) {
  auto target = is_here(to) ? on_host(to) : to;
  target.copy_(is_here(self) ? on_host(self) : self);
  return to;
}

std::tuple<Tensor, Tensor, Tensor> on_host(const Tensor& a, const Tensor& b, const std::optional<Tensor>& c) {
  return {on_host(a), on_host(b), c.has_value() && c->defined() ? on_host(*c) : Tensor()};
}

Tensor convolution(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                   c10::IntArrayRef stride, c10::IntArrayRef padding, c10::IntArrayRef dilation, bool transposed,
                   c10::IntArrayRef output_padding, int64_t groups) {
  auto [x, w, b] = on_host(input, weight, bias);
  return moved_here(at::convolution(x, w, b, stride, padding, dilation, transposed, output_padding, groups));
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward(
    const Tensor& grad, const Tensor& input, const Tensor& weight, c10::IntArrayRef stride, c10::IntArrayRef padding,
    c10::IntArrayRef dilation, bool transposed, c10::IntArrayRef output_padding, int64_t groups,
    std::array<bool, 3> mask) {
  auto [g, x, w] = on_host(grad, input, weight);
  auto [a, b, c] = at::convolution_backward(g, x, w, weight.size(transposed ? 1 : 0), stride, padding, dilation,
                                            transposed, output_padding, groups, mask);
  return {moved_here(a), moved_here(b), moved_here(c)};
}

Tensor& set_storage(Tensor& x, at::Storage source, int64_t offset, c10::IntArrayRef size, c10::IntArrayRef stride) {
  x.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(source));
  x.unsafeGetTensorImpl()->set_storage_offset(offset);
  x.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride);
  return x;
}

Tensor& set_whole_storage(Tensor& x, at::Storage source) {
  const auto number = static_cast<int64_t>(source.nbytes() / x.itemsize());
  return set_storage(x, std::move(source), 0, {number}, {1});
}

// What an operator's argument is on the host.
c10::IValue argument_on_host(const c10::IValue& value, const c10::Argument& argument, const c10::OperatorHandle& op) {
  auto moved = [&](const Tensor& x, bool anywhere) {
    if (!x.defined() || !is_here(x)) {
      TORCH_CHECK(anywhere || !x.defined() || x.dim() == 0, op.operator_name(),
                  ": expected all tensors on one device, got ", argument.name(), " of shape ", x.sizes(), " on ",
                  x.device());
      return x;
    }
    return argument.is_out() ? at::empty({0}, on_host(x).options()) : on_host(x);
  };
  if (value.isTensor()) return moved(value.toTensor(), false);
  if (value.isDevice()) return c10::Device(at::kCPU);
  if (value.isTensorList()) {
    c10::List<Tensor> list;
    for (const Tensor& x : value.toTensorList()) list.push_back(moved(x, false));
    return list;
  }
  if (value.isOptionalTensorList()) {  // indices, which may lie anywhere
    c10::List<std::optional<Tensor>> list;
    for (const std::optional<Tensor>& x : value.toOptionalTensorList())
      list.push_back(x.has_value() ? std::optional<Tensor>(moved(*x, true)) : x);
    return list;
  }
  return value;
}

// What an operator's result on the host is here: the argument that it was written to, or a new tensor.
c10::IValue result_here(const c10::IValue& value, const c10::Argument& result, const c10::OperatorHandle& op,
                        const std::vector<c10::IValue>& arguments) {
  const auto* alias = result.alias_info();
  TORCH_CHECK(alias == nullptr || alias->isWrite(), op.operator_name(), ": a view that this device does not know");
  if (value.isTensorList()) {
    c10::List<Tensor> list;
    for (const Tensor& x : value.toTensorList()) list.push_back(moved_here(x));
    return list;
  }
  if (!value.isTensor()) return value;
  const Tensor x = value.toTensor();
  for (size_t j = 0; alias != nullptr && j < arguments.size(); ++j) {
    const auto& argument = op.schema().arguments()[j];
    if (argument.alias_info() == nullptr || *argument.alias_info() != *alias) continue;
    Tensor target = arguments[j].toTensor();
    if (argument.is_out() && is_here(target)) {
      if (target.sizes() == x.sizes()) {
        on_host(target).copy_(x);
      } else {
        const Tensor resized = moved_here(x);
        set_storage(target, resized.storage(), 0, resized.sizes(), resized.strides());
      }
    }
    return target;
  }
  return moved_here(x);
}

// Any operator that this device has no text of its own for.
void run_on_host(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const auto arguments = torch::jit::pop(*stack, schema.arguments().size());
  for (size_t i = 0; i < arguments.size(); ++i)
    stack->push_back(argument_on_host(arguments[i], schema.arguments()[i], op));
  op.callBoxed(stack);
  const auto results = torch::jit::pop(*stack, schema.returns().size());
  for (size_t i = 0; i < results.size(); ++i)
    stack->push_back(result_here(results[i], schema.returns()[i], op, arguments));
}

}  // namespace

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_host>());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  at::RegisterPrivateUse1HooksInterface(new Hooks);
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("_copy_from", copy_from);
  m.impl("set_.source_Storage", set_whole_storage);
  m.impl("set_.source_Storage_storage_offset", set_storage);
  m.impl("as_strided", at::native::as_strided_tensorimpl);
  m.impl("view", at::native::view);
  m.impl("_reshape_alias", at::native::_reshape_alias);
  m.impl("unfold", at::native::unfold);
  m.impl("view_as_real", at::native::view_as_real);
  m.impl("view_as_complex", at::native::view_as_complex);
  m.impl("convolution_overrideable", convolution);
  m.impl("convolution_backward_overrideable", convolution_backward);
}

// copies resolve conjugation and negation, so that these do not ask for one
TORCH_LIBRARY_IMPL(aten, Conjugate, m) { m.impl("_copy_from", torch::CppFunction::makeFallthrough()); }
TORCH_LIBRARY_IMPL(aten, Negative, m) { m.impl("_copy_from", torch::CppFunction::makeFallthrough()); }
