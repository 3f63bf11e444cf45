// An accelerator named FakeCPU for Paddle's CPU build: its memory is the host's, and operators fall back to the CPU.
#include <cstdlib>
#include <string>
#include <vector>

#include "paddle/phi/backends/custom/fake_cpu_device.h"

void AddCollectives(C_DeviceInterface* device);  // fake_ccl.cc

namespace {

// The header's own allocator hands out a few megabytes only.
C_Status TakeMemory(const C_Device, void** place, size_t size) {
  *place = std::aligned_alloc(64, (size + 63) / 64 * 64);
  return *place ? C_SUCCESS : C_FAILED;
}

C_Status GiveMemory(const C_Device, void* place, size_t) {
  std::free(place);
  return C_SUCCESS;
}

C_Status MemoryStats(const C_Device, size_t* total, size_t* left) {
  *total = *left = size_t{8} << 30;
  return C_SUCCESS;
}

// The smallest is what Paddle rounds every tensor up to, and copies of it to the host: 1 MB made a run six times as large.
C_Status SmallestChunk(const C_Device, size_t* size) {
  *size = 256;
  return C_SUCCESS;
}

C_Status LargestChunk(const C_Device, size_t* size) {
  *size = size_t{1} << 20;
  return C_SUCCESS;
}

// As many as processes that train together here.
C_Status CountDevices(size_t* count) {
  *count = 2;
  return C_SUCCESS;
}

C_Status ListDevices(size_t* devices) {
  devices[0] = 0;
  devices[1] = 1;
  return C_SUCCESS;
}

thread_local int current = 0;

C_Status SetCurrent(const C_Device device) {
  current = device->id;
  return C_SUCCESS;
}

C_Status GetCurrent(const C_Device device) {
  device->id = current;
  return C_SUCCESS;
}

}  // namespace

extern "C" void InitPlugin(CustomRuntimeParams* params) {
  PADDLE_CUSTOM_RUNTIME_CHECK_VERSION(params);
  InitFakeCPUDevice(params);
  auto* device = params->interface;
  device->device_memory_allocate = device->host_memory_allocate = device->unified_memory_allocate = TakeMemory;
  device->device_memory_deallocate = device->host_memory_deallocate = device->unified_memory_deallocate = GiveMemory;
  device->device_memory_stats = MemoryStats;
  device->device_min_chunk_size = SmallestChunk;
  device->device_max_chunk_size = LargestChunk;
  device->device_max_alloc_size = nullptr;
  device->get_device_count = CountDevices;
  device->get_device_list = ListDevices;
  device->set_device = SetCurrent;
  device->get_device = GetCurrent;
  AddCollectives(device);
}
