//! `Device`: where a model computes, chosen by name.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use kvant_kernels::device::Gpu;
use kvant_models::Site;

/// A device by the name that people give it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceName {
    /// A GPU that this build has code for, if there is one, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// An NVIDIA GPU by its number.
    Cuda(usize),
    /// The GPU of a Mac.
    Metal,
}

/// Why there is no such device.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// A name that means none.
    #[error("no device {0:?}; there are: auto, cpu, cuda, cuda:N, metal")]
    Unknown(String),
    /// This build has no code for it.
    #[error(
        "this build has no code for {0}; make one with cargo build --release --features \
         {feature}, or take --device cpu", feature = .0.feature()
    )]
    NotBuilt(DeviceName),
    /// The machine does not have it, or its driver does not work.
    #[error(
        "{name} cannot be used: {said}; kvant doctor shows what this machine has, --device cpu \
         computes without it"
    )]
    Absent {
        /// What was asked for.
        name: DeviceName,
        /// What was said about it.
        said: String,
    },
}

/// Where a model computes.
#[derive(Clone, Debug)]
pub struct Device {
    /// Its name, never `Auto`.
    pub name: DeviceName,
    /// Its memory and kernels.
    pub site: Site,
}

impl FromStr for DeviceName {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        let unknown = || DeviceError::Unknown(text.to_owned());
        Ok(match text {
            "auto" => Self::Auto,
            "cpu" => Self::Cpu,
            "metal" => Self::Metal,
            "cuda" => Self::Cuda(0),
            _ => {
                let index = text.strip_prefix("cuda:").ok_or_else(unknown)?;
                Self::Cuda(index.parse().map_err(|_| unknown())?)
            }
        })
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
            Self::Metal => f.write_str("metal"),
        }
    }
}

impl DeviceName {
    /// The feature of the build that has code for it.
    fn feature(self) -> &'static str {
        if self == Self::Metal { "metal" } else { "cuda" }
    }

    /// Whether this build has code for it.
    fn is_built(self) -> bool {
        match self {
            Self::Auto | Self::Cpu => true,
            Self::Cuda(_) => cfg!(feature = "cuda"),
            Self::Metal => cfg!(feature = "metal"),
        }
    }
}

/// What this build has code for.
pub fn build_name() -> &'static str {
    match (cfg!(feature = "cuda"), cfg!(feature = "metal")) {
        (true, _) => "cuda",
        (_, true) => "metal",
        _ => "cpu",
    }
}

impl Device {
    /// The CPU.
    pub fn cpu() -> Self {
        Self { name: DeviceName::Cpu, site: Site::Cpu }
    }

    /// Finds a device. `compiled` is a folder where the machine code of kernels stays from start to
    /// start.
    pub fn open(name: DeviceName, compiled: Option<&Path>) -> Result<Self, DeviceError> {
        if name == DeviceName::Auto {
            let gpus = [DeviceName::Cuda(0), DeviceName::Metal].into_iter();
            let mut built = gpus.filter(|name| name.is_built());
            let found = built.find_map(|name| Self::open(name, compiled).ok());
            return Ok(found.unwrap_or_else(Self::cpu));
        }
        if !name.is_built() {
            return Err(DeviceError::NotBuilt(name));
        }
        let site = match name {
            DeviceName::Auto | DeviceName::Cpu => Ok(Site::Cpu),
            DeviceName::Cuda(index) => Site::cuda(index, compiled),
            DeviceName::Metal => Site::metal(0, compiled),
        };
        let site = site.map_err(|error| DeviceError::Absent {
            name,
            said: error.to_string().lines().next().unwrap_or_default().to_owned(),
        })?;
        Ok(Self { name, site })
    }

    /// Its name; never `Auto`.
    pub fn name(&self) -> DeviceName {
        self.name
    }

    /// The GPU, if it is one.
    pub fn gpu(&self) -> Option<&Gpu> {
        self.site.gpu()
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.gpu() {
            None => f.write_str("cpu"),
            Some(gpu) => write!(f, "{} ({})", gpu.name(), self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for text in ["auto", "cpu", "cuda:0", "cuda:11", "metal"] {
            assert_eq!(text.parse::<DeviceName>().unwrap().to_string(), text);
        }
        assert_eq!("cuda".parse::<DeviceName>().unwrap(), DeviceName::Cuda(0));
        for text in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "CUDA"] {
            let error = text.parse::<DeviceName>().unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("no device {text:?}; there are: auto, ")),
                "{error}"
            );
        }
    }

    #[test]
    fn a_device_that_is_not_there_is_one_clear_line() {
        for name in [DeviceName::Cuda(1 << 20), DeviceName::Metal] {
            let Err(error) = Device::open(name, None) else { panic!("{name} is there") };
            let text = error.to_string();
            let want = if name.is_built() { "cannot be used: " } else { "--features " };
            assert!(text.contains(want) && !text.contains('\n'), "{text}");
        }
        assert!(Device::open(DeviceName::Cpu, None).unwrap().gpu().is_none());
    }
}
