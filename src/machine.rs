//! What the machine has: memory that may be taken now, what this process has taken at most, and
//! physical cores.

use std::fs;

use anyhow::{Context, Result};

/// Bytes that can be taken now without swapping, within the limit of the container if there is one.
pub(crate) fn available_bytes() -> Result<u64> {
    let free = if cfg!(target_os = "macos") {
        installed_on_macos()
    } else {
        fs::read_to_string("/proc/meminfo").ok().and_then(|text| bytes(&text, "MemAvailable:"))
    };
    let free = free.context("cannot find out how much memory is free; set cache.tokens")?;
    Ok(room_in_container().map_or(free, |room| room.min(free)))
}

/// A line of /proc that counts in kB, in bytes.
fn bytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
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

/// Begins to watch for the most memory that this process takes, and gives what it has now; `None`
/// where the system does not count it.
pub(crate) fn watch_peak() -> Option<u64> {
    fs::write("/proc/self/clear_refs", "5").ok()?;
    bytes(&fs::read_to_string("/proc/self/status").ok()?, "VmRSS:")
}

/// The most that it had since then, bytes.
pub(crate) fn peak_bytes() -> Option<u64> {
    bytes(&fs::read_to_string("/proc/self/status").ok()?, "VmHWM:")
}

/// The processor as it calls itself.
pub(crate) fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("model name"));
    let name = line.and_then(|line| line.split_once(':')).map(|(_, name)| name.trim().to_owned());
    name.unwrap_or_else(|| std::env::consts::ARCH.to_owned())
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

/// The cores of so many threads, one each; `None` if this process may use more or fewer, or the
/// system does not say: then it is better left to place threads.
pub(crate) fn cores_of(threads: usize) -> Option<Vec<core_affinity::CoreId>> {
    core_affinity::get_core_ids().filter(|cores| cores.len() == threads)
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
        let available = |text| bytes(text, "MemAvailable:");
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
        if let Some(cores) = core_affinity::get_core_ids() {
            assert_eq!(cores_of(cores.len()).unwrap().len(), cores.len());
            assert!(cores_of(cores.len() + 1).is_none());
        }
        assert!(!processor().is_empty());
    }

    #[test]
    fn the_peak_is_what_was_written_since() {
        // Other tests may run in this process, so from below alone.
        const BYTES: usize = 64 << 20;
        let Some(before) = watch_peak() else { return };
        drop(std::hint::black_box(vec![1_u8; BYTES]));
        let peak = peak_bytes().unwrap();
        assert!(peak >= before + BYTES as u64 * 3 / 4, "{before} bytes, {peak} at most");
    }
}
