// Collectives of FakeCPU between processes of one machine, through a file in memory that they share.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <string>

#include "paddle/phi/backends/device_ext.h"

// What the ranks of a communicator share; new files are zero.
struct Shared {
  static constexpr size_t kBytes = 1 << 20, kRanks = 8;
  std::atomic<size_t> arrived;
  char slots[kRanks][kBytes];
};

struct C_CCLComm_st {
  Shared* shared;
  size_t rank, ranks, rounds = 0;
  std::string name;

  // Wait until all ranks are here as often as this one.
  void Meet() {
    const size_t all = ++rounds * ranks;
    shared->arrived++;
    while (shared->arrived < all) usleep(100);
  }

  // Each rank shows `bytes` from `mine`, in parts; `use(offset, bytes)` then reads the slots of all.
  template <typename F>
  void Exchange(const void* mine, size_t bytes, F use) {
    for (size_t offset = 0; offset < bytes; offset += Shared::kBytes) {
      const size_t part = std::min(bytes - offset, Shared::kBytes);
      std::memcpy(shared->slots[rank], static_cast<const char*>(mine) + offset, part);
      Meet();
      use(offset, part);
      Meet();
    }
  }

  template <typename T>
  C_Status Reduce(const void* mine, void* result, size_t count, C_CCLReduceOp op) {
    Exchange(mine, count * sizeof(T), [&](size_t offset, size_t bytes) {
      T* out = reinterpret_cast<T*>(static_cast<char*>(result) + offset);
      for (size_t i = 0; i < bytes / sizeof(T); ++i) {
        T total = reinterpret_cast<T*>(shared->slots[0])[i];
        for (size_t r = 1; r < ranks; ++r) {
          const T other = reinterpret_cast<T*>(shared->slots[r])[i];
          total = op == MAX ? std::max(total, other) : total + other;
        }
        out[i] = op == AVG ? total / static_cast<T>(ranks) : total;
      }
    });
    return C_SUCCESS;
  }
};

namespace {

constexpr size_t kIdBytes = 64;

size_t Bytes(C_DataType type) {
  if (type == FLOAT64 || type == INT64) return 8;
  return type == FLOAT32 || type == INT32 ? 4 : type == FLOAT16 ? 2 : 1;
}

C_Status IdSize(size_t* size) {
  *size = kIdBytes;
  return C_SUCCESS;
}

C_Status NewId(C_CCLRootId* id) {
  static int count = 0;
  std::snprintf(static_cast<char*>(id->data), kIdBytes, "/fake_ccl_%d_%d", getpid(), count++);
  return C_SUCCESS;
}

C_Status Join(size_t ranks, C_CCLRootId* id, size_t rank, C_CCLComm* comm) {
  const char* name = static_cast<const char*>(id->data);
  const int file = shm_open(name, O_CREAT | O_RDWR, 0600);
  if (file < 0 || ftruncate(file, sizeof(Shared)) != 0) return C_FAILED;
  void* memory = mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  *comm = new C_CCLComm_st{static_cast<Shared*>(memory), rank, ranks};
  (*comm)->Meet();
  shm_unlink(name);
  return C_SUCCESS;
}

C_Status AllReduce(void* send, void* receive, size_t count, C_DataType type, C_CCLReduceOp op, C_CCLComm comm, C_Stream) {
  if (type == FLOAT64) return comm->Reduce<double>(send, receive, count, op);
  if (type == FLOAT32) return comm->Reduce<float>(send, receive, count, op);
  if (type == INT64) return comm->Reduce<int64_t>(send, receive, count, op);
  return type == INT32 ? comm->Reduce<int32_t>(send, receive, count, op) : C_ERROR;
}

C_Status Broadcast(void* buffer, size_t count, C_DataType type, size_t root, C_CCLComm comm, C_Stream) {
  comm->Exchange(buffer, count * Bytes(type), [&](size_t offset, size_t bytes) {
    std::memcpy(static_cast<char*>(buffer) + offset, comm->shared->slots[root], bytes);
  });
  return C_SUCCESS;
}

}  // namespace

void AddCollectives(C_DeviceInterface* device) {
  device->xccl_get_unique_id_size = IdSize;
  device->xccl_get_unique_id = NewId;
  device->xccl_comm_init_rank = Join;
  device->xccl_all_reduce = AllReduce;
  device->xccl_broadcast = Broadcast;
}
