//! What the machine has: memory that may be taken now, and physical cores.

use std::fs;

use anyhow::{Context, Result};

/// Bytes that can be taken now without swapping, within the limit of the container if there is one.
pub(crate) fn available_bytes() -> Result<u64> {
    let free = if cfg!(target_os = "macos") {
        installed_on_macos()
    } else {
        fs::read_to_string("/proc/meminfo").ok().and_then(|text| available(&text))
    };
    let free = free.context("cannot find out how much memory is free; set cache.tokens")?;
    Ok(room_in_container().map_or(free, |room| room.min(free)))
}

/// MemAvailable of /proc/meminfo, bytes.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// macOS gives pages back from caches on demand, so the installed memory is the measure there.
fn installed_on_macos() -> Option<u64> {
    let output = std::process::Command::new("sysctl").args(["-n", "hw.memsize"]).output().ok()?;
    String::from_utf8(output.stdout).ok()?.trim().parse().ok()
}

/// What the control group still allows, version 2 or 1; `None` without a limit.
fn room_in_container() -> Option<u64> {
    let read = |path: &str| fs::read_to_string(path).ok();
    let newer = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current");
    let older = (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
    );
    [newer, older].iter().find_map(|(limit, used)| room(&read(limit)?, &read(used)?))
}

/// A limit of `max`, or one that no machine has, is none.
fn room(limit: &str, used: &str) -> Option<u64> {
    let limit: u64 = limit.trim().parse().ok().filter(|limit| *limit < 1 << 50)?;
    Some(limit.saturating_sub(used.trim().parse().ok()?))
}

/// Cores, hyper-threads counted once, but never more than this process may use.
pub(crate) fn physical_cores() -> usize {
    let usable = std::thread::available_parallelism().map_or(1, usize::from);
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    match cores(&text) {
        0 => usable,
        physical => physical.min(usable),
    }
}

/// Different (physical id, core id) pairs of /proc/cpuinfo; 0 if it does not say.
fn cores(cpuinfo: &str) -> usize {
    let number = |cpu: &str, key: &str| -> Option<u32> {
        let line = cpu.lines().find(|line| line.split(':').next().map(str::trim) == Some(key))?;
        line.split(':').nth(1)?.trim().parse().ok()
    };
    let pairs = cpuinfo
        .split("\n\n")
        .filter_map(|cpu| Some((number(cpu, "physical id")?, number(cpu, "core id")?)));
    pairs.collect::<std::collections::BTreeSet<_>>().len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_meminfo() {
        assert_eq!(available("MemTotal: 9 kB\nMemAvailable:   2048 kB\n"), Some(2048 * 1024));
        assert_eq!(available("MemTotal: 9 kB\n"), None);
        assert_eq!(available("MemAvailable: many kB\n"), None);
    }

    #[test]
    fn reads_control_groups() {
        assert_eq!(room("1000\n", "400\n"), Some(600));
        assert_eq!(room("1000\n", "1400\n"), Some(0));
        assert_eq!(room("max\n", "400\n"), None);
        assert_eq!(room("9223372036854771712\n", "400\n"), None);
    }

    #[test]
    fn counts_hyper_threads_once() {
        let cpu = |processor: u32, package: u32, core: u32| {
            format!("processor\t: {processor}\nphysical id\t: {package}\ncore id\t\t: {core}\n\n")
        };
        let text = [cpu(0, 0, 0), cpu(1, 0, 1), cpu(2, 0, 0), cpu(3, 1, 0)].concat();
        assert_eq!(cores(&text), 3);
        assert_eq!(cores("processor : 0\nmodel name : x\n"), 0);
    }

    #[test]
    fn this_machine_has_memory_and_cores() {
        assert!(available_bytes().unwrap() > 1 << 20);
        assert!(physical_cores() >= 1);
    }
}
