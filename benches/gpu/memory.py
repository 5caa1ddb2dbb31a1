"""The most memory held while something runs, and memory held on purpose: NVIDIA's libraries by ctypes, or /proc.

On a GPU the whole device counts, less what was in use before: darkroom's and torch's contexts, libraries and caches alike.
On the CPU the most that the process itself held counts.
"""

import ctypes
import subprocess
import threading
from pathlib import Path

EVERY_S = 0.02
MIB = 1 << 20
CHUNK = 64 * MIB


# Where drivers lie that the loader is not told of.
DRIVER_FOLDERS = ("", "/usr/local/nvidia/lib64", "/usr/lib/x86_64-linux-gnu", "/usr/lib64")


def driver_library(name):
    """A library of NVIDIA's driver; OSError where there is none."""
    for folder in DRIVER_FOLDERS:
        try:
            return ctypes.CDLL(f"{folder}/{name}" if folder else name)
        except OSError:
            continue
    raise OSError(f"no {name} here")


def device_number(device):
    return int(device.partition(":")[2] or 0)


class NvmlMemory(ctypes.Structure):
    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


class Used:
    """Bytes in use on a GPU, by NVML, else by nvidia-smi; `source` says by which."""

    def __init__(self, device):
        self.number = device_number(device)
        self.nvml, self.source = None, "nvidia-smi"
        try:
            nvml, handle = driver_library("libnvidia-ml.so.1"), ctypes.c_void_p()
            if nvml.nvmlInit_v2() == 0 and nvml.nvmlDeviceGetHandleByIndex_v2(self.number, ctypes.byref(handle)) == 0:
                self.nvml, self.handle, self.source = nvml, handle, "NVML"
        except OSError:
            pass

    def bytes(self):
        """None where neither can say."""
        if self.nvml:
            memory = NvmlMemory()
            failed = self.nvml.nvmlDeviceGetMemoryInfo(self.handle, ctypes.byref(memory))
            return None if failed else memory.used
        try:
            asked = ["nvidia-smi", f"--id={self.number}", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
            return int(subprocess.run(asked, capture_output=True, text=True, timeout=5, check=True).stdout) * MIB
        except (OSError, ValueError, subprocess.SubprocessError):
            return None


class Peak:
    """Watches memory from its making until `mib` is called."""

    def __init__(self, device):
        self.on_gpu = not device.startswith("cpu")
        self.most, self.ended = None, threading.Event()
        if self.on_gpu:
            self.used = Used(device)
            self.before = self.used.bytes()
            self.thread = threading.Thread(target=self.watch, daemon=True)
            self.thread.start()

    def watch(self):
        while not self.ended.is_set():
            now = self.used.bytes()
            if now is not None:
                self.most = max(self.most or 0, now)
            self.ended.wait(EVERY_S)

    def mib(self, pid):
        """MiB, or None where nothing can say."""
        if not self.on_gpu:
            return process_peak_mib(pid)
        self.ended.set()
        self.thread.join(timeout=10)
        return None if None in (self.most, self.before) else round((self.most - self.before) / MIB)


def process_peak_mib(pid):
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return None
    lines = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(lines[0].split()[1]) // 1024 if lines else None


class Ballast:
    """Holds a GPU's memory until only a little is free."""

    def __init__(self, device):
        self.cuda, self.held = driver_library("libcuda.so.1"), []
        handle, self.context = ctypes.c_int(), ctypes.c_void_p()
        self.must("cuInit", 0)
        self.must("cuDeviceGet", ctypes.byref(handle), device_number(device))
        self.must("cuDevicePrimaryCtxRetain", ctypes.byref(self.context), handle)
        self.must("cuCtxSetCurrent", self.context)

    def must(self, call, *given):
        if code := getattr(self.cuda, call)(*given):
            raise OSError(f"{call} answers {code}")

    def free(self):
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self.must("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value

    def leave(self, mib):
        """Takes memory in chunks until at most this and a chunk more is free."""
        while self.free() > mib * MIB + CHUNK:
            pointer = ctypes.c_uint64()
            if self.cuda.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(CHUNK)):
                return
            self.held.append(pointer)

    def drop(self):
        while self.held:
            self.must("cuMemFree_v2", self.held.pop())
