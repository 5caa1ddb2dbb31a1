//! What becomes of memory that is freed, how much is free, and what a device says when it has none.
//!
//! Every layer of a network writes a result of megabytes that the next one frees. By default the system's allocator hands
//! such blocks back at once, and the system clears them again, page by page, each time.

use std::path::Path;

use candle_core::Device;

/// Keeps freed blocks for the next that are needed, from now on: the process stays as large as its largest drawing made
/// it. To be called before there are other threads, so that all share one heap. Elsewhere than with glibc it does nothing.
pub fn keep_freed_blocks() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    for (option, value) in [
        // No block is a mapping of its own, which would end when it is freed.
        (libc::M_MMAP_MAX, 0),
        // The heap's end is not given back either.
        (libc::M_TRIM_THRESHOLD, libc::c_int::MAX),
        // One heap: a block that one thread freed is there for the others.
        (libc::M_ARENA_MAX, 1),
    ] {
        // SAFETY: these change how later blocks are found, and nothing about those that there are. A refusal costs time alone.
        unsafe { libc::mallopt(option, value) };
    }
}

/// The memory that a process on this device can ever have, in bytes: that of the machine or of the control group, or the
/// device's own. `None` where it cannot be told.
#[must_use]
pub fn total_bytes(device: &Device) -> Option<usize> {
    match device {
        Device::Cpu => [meminfo("MemTotal:"), control_group().map(|group| group.limit)].into_iter().flatten().min(),
        _ => device_memory(device).map(|(_, total)| total),
    }
}

/// The memory that is free for a drawing on this device, in bytes. Blocks that this process has freed and kept count as
/// free. `None` where it cannot be told.
#[must_use]
pub fn free_bytes(device: &Device) -> Option<usize> {
    match device {
        Device::Cpu => {
            let group = control_group().map(|group| group.limit.saturating_sub(group.used));
            let free = [meminfo("MemAvailable:"), group].into_iter().flatten().min()?;
            Some(free.saturating_add(kept_bytes()))
        }
        _ => device_memory(device).map(|(free, _)| free),
    }
}

/// Whether an error of the tensor library says that its device has no memory left. Devices' libraries differ in their
/// types and agree in these words.
#[must_use]
pub fn is_out_of_memory(error: &candle_core::Error) -> bool {
    let message = format!("{error} {error:?}").to_lowercase();
    ["out of memory", "out_of_memory", "alloc_failed"].iter().any(|words| message.contains(words))
}

/// A device's free and whole memory in bytes.
#[cfg(feature = "cuda")]
fn device_memory(device: &Device) -> Option<(usize, usize)> {
    device.as_cuda_device().ok()?.cuda_stream().context().mem_get_info().ok()
}

/// A device's free and whole memory in bytes.
#[cfg(not(feature = "cuda"))]
fn device_memory(_device: &Device) -> Option<(usize, usize)> {
    None
}

/// What Linux says of the machine's memory, in bytes.
fn meminfo(name: &str) -> Option<usize> {
    parse_meminfo(&std::fs::read_to_string("/proc/meminfo").ok()?, name)
}

fn parse_meminfo(text: &str, name: &str) -> Option<usize> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kibibytes: usize = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kibibytes << 10)
}

/// What this process's control group allows, and has in use, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Group {
    limit: usize,
    used: usize,
}

/// Where control groups are, each with the files that say what is allowed, what is used, and what of that is files that
/// can be let go of: version 2, then version 1.
const CONTROL_GROUPS: [[&str; 4]; 2] = [
    ["/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"],
    ["/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"],
];

/// The control group at the root of what this process sees, as a container has one. `None` where nothing is limited.
fn control_group() -> Option<Group> {
    CONTROL_GROUPS.iter().find_map(|[root, limit, used, inactive]| read_group(Path::new(root), limit, used, inactive))
}

fn read_group(root: &Path, limit: &str, used: &str, inactive: &str) -> Option<Group> {
    let read = |name: &str| std::fs::read_to_string(root.join(name)).ok();
    // Version 2 says "max" where there is no limit.
    let limit = read(limit)?.trim().parse().ok()?;
    let used: usize = read(used)?.trim().parse().ok()?;
    let of_files = read("memory.stat")
        .and_then(|stat| stat.lines().find_map(|line| line.strip_prefix(inactive)?.trim().parse::<usize>().ok()));
    Some(Group { limit, used: used.saturating_sub(of_files.unwrap_or_default()) })
}

/// What [`keep_freed_blocks`] keeps now.
fn kept_bytes() -> usize {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: it reads the allocator's counters, under the allocator's own locks.
        unsafe { libc::mallinfo2() }.fordblks
    }
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machines_memory_is_read() {
        let text = "MemTotal:       16384 kB\nMemFree:         1 kB\nMemAvailable:    2048 kB\n";
        assert_eq!(parse_meminfo(text, "MemAvailable:"), Some(2 << 20));
        assert_eq!(parse_meminfo(text, "SwapFree:"), None);
        #[cfg(target_os = "linux")]
        assert!(free_bytes(&Device::Cpu).unwrap() > 1 << 20);
    }

    #[test]
    fn a_control_groups_limit_counts_without_the_files_that_can_go() {
        let root = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(root.path().join(name), text).unwrap();
        let [_, limit, used, inactive] = CONTROL_GROUPS[0];
        write(limit, "max\n");
        write(used, "5000\n");
        assert_eq!(read_group(root.path(), limit, used, inactive), None);
        write(limit, "8000\n");
        write("memory.stat", "anon 3000\ninactive_file 1500\n");
        assert_eq!(read_group(root.path(), limit, used, inactive), Some(Group { limit: 8000, used: 3500 }));
    }

    #[test]
    fn a_device_that_has_no_memory_left_is_recognised() {
        let error = |message: &str| candle_core::Error::Msg(message.to_owned());
        for message in [
            "DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")",
            "CudnnError(CUDNN_STATUS_ALLOC_FAILED)",
            "CublasError(CUBLAS_STATUS_ALLOC_FAILED)",
        ] {
            assert!(is_out_of_memory(&error(message)), "{message}");
        }
        assert!(!is_out_of_memory(&error("shape mismatch in matmul")));
    }
}
