// The C++ classes of XRT that pyxrt binds, as far as the device calls them: each is a handle of an
// object of the Python double. pyxrt releases the interpreter's lock in some calls; here it is taken
// again, and what the double raises becomes what XRT throws.

#include "xrt/experimental/xrt_kernel.h"
#include "xrt/experimental/xrt_system.h"
#include "xrt/experimental/xrt_xclbin.h"
#include "xrt/xrt_bo.h"
#include "xrt/xrt_device.h"
#include "xrt/xrt_hw_context.h"
#include "xrt/xrt_kernel.h"

#include <any>
#include <pybind11/pybind11.h>
#include <stdexcept>
#include <string>

namespace py = pybind11;

namespace {

PyObject* backend = nullptr; // the double's module; kept for ever

py::object made(const char* name) {
  return py::reinterpret_borrow<py::object>(backend).attr(name);
}

struct Handle {
  py::object it;
  explicit Handle(py::object object) : it(std::move(object)) {}
  ~Handle() {
    if (Py_IsInitialized()) {
      py::gil_scoped_acquire lock;
      it = py::object();
    } else {
      it.release();
    }
  }
};

template <class F> auto call(F function) -> decltype(function()) {
  py::gil_scoped_acquire lock;
  try {
    return function();
  } catch (py::error_already_set& error) {
    if (error.matches(PyExc_RuntimeError))
      throw std::runtime_error(py::str(error.value()).cast<std::string>());
    if (error.matches(PyExc_IndexError))
      throw std::out_of_range(py::str(error.value()).cast<std::string>());
    throw; // a crash of the double
  }
}

xrt::uuid uuid_of(const py::object& object) {
  return xrt::uuid(object.attr("to_string")().cast<std::string>());
}

} // namespace

extern "C" void set_backend(PyObject* module) {
  Py_XINCREF(module);
  backend = module;
}

namespace xrt_core {
class device : public Handle {
  using Handle::Handle;
};
} // namespace xrt_core

namespace xrt {

class hw_context_impl : public Handle {
  using Handle::Handle;
};
class kernel_impl : public Handle {
  using Handle::Handle;
};
class run_impl : public Handle {
  using Handle::Handle;
};
class runlist_impl : public Handle {
  using Handle::Handle;
};
class xclbin_impl : public Handle {
  using Handle::Handle;
};
class xclbin::kernel_impl : public Handle {
  using Handle::Handle;
};
class bo_impl : public Handle {
public:
  void* memory;
  explicit bo_impl(py::object object) : Handle(std::move(object)) {
    memory = py::buffer(py::object(it.attr("map")())).request(true).ptr;
  }
};

unsigned int system::enumerate_devices() {
  return call([] { return made("enumerate_devices")().cast<unsigned int>(); });
}

device::device(unsigned int index) {
  call([&] { handle = std::make_shared<xrt_core::device>(made("device")(index)); });
}
device::device(const std::string& bdf) {
  call([&] { handle = std::make_shared<xrt_core::device>(made("device")(bdf)); });
}
device::~device() {}
uuid device::register_xclbin(const xclbin& file) {
  return call([&] { return uuid_of(handle->it.attr("register_xclbin")(file.get_handle()->it)); });
}
std::any device::get_info_std(info::device key, const detail::abi&) const {
  const char* name = key == info::device::name   ? "name"
                     : key == info::device::bdf  ? "bdf"
                     : key == info::device::host ? "host"
                                                 : "interface_uuid";
  return call([&] {
    py::object wanted = made("xrt_info_device").attr(name);
    return std::any(handle->it.attr("get_info")(wanted).cast<std::string>());
  });
}

xclbin::xclbin(const std::string& path) {
  call([&] { handle = std::make_shared<xclbin_impl>(made("xclbin")(path)); });
}
uuid xclbin::get_uuid() const {
  return call([&] { return uuid_of(handle->it.attr("get_uuid")()); });
}
std::vector<xclbin::kernel> xclbin::get_kernels() const {
  return call([&] {
    std::vector<kernel> found;
    for (py::handle each : handle->it.attr("get_kernels")())
      found.emplace_back(std::make_shared<kernel_impl>(py::reinterpret_borrow<py::object>(each)));
    return found;
  });
}
std::string xclbin::kernel::get_name() const {
  return call([&] { return handle->it.attr("get_name")().cast<std::string>(); });
}
size_t xclbin::kernel::get_num_args() const {
  return call([&] { return handle->it.attr("get_num_args")().cast<size_t>(); });
}

hw_context::hw_context(const device& opened, const uuid& overlay, access_mode) {
  call([&] {
    py::object id = made("uuid")(overlay.to_string());
    handle = std::make_shared<hw_context_impl>(made("hw_context")(opened.get_handle()->it, id));
  });
}
hw_context::~hw_context() {}

kernel::kernel(const hw_context& context, const std::string& name) {
  call([&] {
    handle = std::make_shared<kernel_impl>(made("kernel")(context.get_handle()->it, name));
  });
}
kernel::~kernel() {}
int kernel::group_id(int argument) const {
  return call([&] { return handle->it.attr("group_id")(argument).cast<int>(); });
}

bo::bo(const device& opened, size_t bytes, flags kind, memory_group group) {
  call([&] {
    py::object flag = made("bo").attr("flags")(static_cast<unsigned int>(kind));
    handle = std::make_shared<bo_impl>(made("bo")(opened.get_handle()->it, bytes, flag, group));
  });
}
bo::bo(const bo& parent, size_t bytes, size_t offset) {
  call([&] {
    handle = std::make_shared<bo_impl>(made("bo")(parent.get_handle()->it, bytes, offset));
  });
}
bo::~bo() {}
size_t bo::size() const {
  return call([&] { return handle->it.attr("size")().cast<size_t>(); });
}
void* bo::map() { return handle->memory; }
void bo::sync(xclBOSyncDirection direction, size_t bytes, size_t offset) {
  call([&] {
    py::object way = made("xclBOSyncDirection")(static_cast<int>(direction));
    handle->it.attr("sync")(way, bytes, offset);
  });
}

run::run(const kernel& of) {
  call([&] { handle = std::make_shared<run_impl>(made("run")(of.get_handle()->it)); });
}
run::~run() {}
void run::start() {
  call([&] { handle->it.attr("start")(); });
}
ert_cmd_state run::state() const {
  return call([&] {
    return static_cast<ert_cmd_state>(py::int_(handle->it.attr("state")()).cast<int>());
  });
}
ert_cmd_state run::wait(const std::chrono::milliseconds& timeout) const {
  return call([&] {
    return static_cast<ert_cmd_state>(
        py::int_(handle->it.attr("wait")(timeout.count())).cast<int>());
  });
}
void run::set_arg_at_index(int index, const void* value, size_t bytes) {
  call([&] {
    if (bytes != sizeof(int))
      throw std::runtime_error("not an int");
    handle->it.attr("set_arg")(index, *static_cast<const int*>(value));
  });
}
void run::set_arg_at_index(int index, const bo& buffer) {
  call([&] { handle->it.attr("set_arg")(index, buffer.get_handle()->it); });
}

runlist::runlist(const hw_context& context) {
  call([&] { handle = std::make_shared<runlist_impl>(made("runlist")(context.get_handle()->it)); });
}
runlist::~runlist() {}
void runlist::add(const run& added) {
  call([&] { handle->it.attr("add")(added.get_handle()->it); });
}
void runlist::execute() {
  call([&] { handle->it.attr("execute")(); });
}
std::cv_status runlist::wait(const std::chrono::milliseconds&) const {
  return call([&] {
    handle->it.attr("wait")();
    return std::cv_status::no_timeout;
  });
}

} // namespace xrt
