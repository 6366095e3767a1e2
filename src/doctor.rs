//! `kvant doctor`: what this machine has, which build fits it, and every GPU kernel against the CPU
//! on the GPU at hand, a line each.

use std::fs;
use std::io::Write;
use std::sync::Arc;

use anyhow::{Result, bail};
use kvant_bench::{Check, check_cache, check_model, processor_path};
use kvant_engine::{Device, DeviceName, Gpu, build_name};
use kvant_models::ModelFiles;

use crate::cli::DoctorArgs;
use crate::facts::mib;
use crate::{fetch, load, machine};

pub(crate) fn run(args: &DoctorArgs) -> Result<()> {
    let name: DeviceName = args.device.parse()?;
    let mut out = std::io::stdout();
    writeln!(out, "kvant      {}, code for {}", env!("CARGO_PKG_VERSION"), build_name())?;
    let (processor, cores) = (machine::processor(), machine::physical_cores());
    writeln!(out, "processor  {processor}, {cores} cores, kernels for {}", processor_path())?;
    writeln!(out, "memory     {} free", mib(machine::available_bytes()?))?;
    let gpus = nvidia_gpus();
    for gpu in &gpus {
        writeln!(out, "NVIDIA GPU {gpu}")?;
    }
    if let Some(driver) = nvidia_driver() {
        writeln!(out, "driver     {driver}")?;
    }
    writeln!(out, "build      {}", fitting_build(!gpus.is_empty()))?;
    // `auto` hides why a GPU cannot be used.
    let device = match (name, build_name()) {
        (DeviceName::Auto, "cuda") => load::open_device(DeviceName::Cuda(0)),
        (DeviceName::Auto, "metal") => load::open_device(DeviceName::Metal),
        _ => load::open_device(name),
    };
    match device {
        Ok(device) => match device.gpu() {
            Some(gpu) => check(&device, gpu),
            None => Ok(writeln!(out, "device     cpu: there are no GPU kernels to check")?),
        },
        Err(error) if name == DeviceName::Auto => Ok(writeln!(out, "device     cpu: {error:#}")?),
        Err(error) => Err(error),
    }
}

/// All checks on a GPU; the error counts those that failed.
fn check(device: &Device, gpu: &Gpu) -> Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "device     {device}, {} free", mib(gpu.free_bytes()?))?;
    let (mut done, mut failed) = (0, 0);
    let mut each = |check: Check| {
        done += 1;
        failed += usize::from(check.outcome.is_err());
        let _ = writeln!(std::io::stdout(), "{check}");
    };
    check_cache(gpu, &mut each)?;
    let files = ModelFiles::open(&fetch::resolve("tiny", "main")?.path)?;
    let on_gpu = files.load_at(&device.site, &mut |_, _| {})?;
    let cpu = Arc::new(files.load(&mut |_, _| {})?);
    check_model(&cpu, (&Arc::new(on_gpu), gpu), &mut each);
    if failed > 0 {
        bail!("{failed} of {done} checks failed on {}", gpu.name());
    }
    Ok(writeln!(out, "all {done} checks passed")?)
}

/// Which build this machine wants.
fn fitting_build(has_nvidia: bool) -> &'static str {
    if cfg!(target_os = "macos") {
        return "cargo build --release --features metal";
    }
    if has_nvidia {
        return "cargo build --release --features cuda, with CUDA_COMPUTE_CAP of the GPU (90: H100)";
    }
    "cargo build --release"
}

/// NVIDIA GPUs by name, as the driver lists them.
fn nvidia_gpus() -> Vec<String> {
    let Ok(folders) = fs::read_dir("/proc/driver/nvidia/gpus") else { return Vec::new() };
    let read = |folder: fs::DirEntry| fs::read_to_string(folder.path().join("information")).ok();
    let texts = folders.filter_map(Result::ok).filter_map(read);
    texts.filter_map(|text| Some(field(&text, "Model:")?.to_owned())).collect()
}

/// The version of NVIDIA's driver.
fn nvidia_driver() -> Option<String> {
    let text = fs::read_to_string("/proc/driver/nvidia/version").ok()?;
    Some(field(&text, "NVRM version:")?.to_owned())
}

/// What stands behind a name at the beginning of a line.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_by_name() {
        let text = "Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:   \t\t 17\n";
        assert_eq!(field(text, "Model:"), Some("NVIDIA H100 80GB HBM3"));
        assert_eq!(field(text, "Bus Location:"), None);
    }
}
