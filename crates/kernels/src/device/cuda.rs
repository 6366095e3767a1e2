//! The device kernels on NVIDIA GPUs: compiled at run time for the GPU at hand, kept on disk by a
//! hash of the text and the architecture, launched on a stream.

#![expect(unsafe_code, reason = "calls of the driver and the compiler, launches of kernels")]

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cudarc::driver::sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
use cudarc::driver::{
    CudaContext, CudaFunction, CudaSlice, CudaStream, DeviceRepr, DriverError, LaunchConfig,
    PushKernelArg,
};
use cudarc::nvrtc::{Ptx, result as nvrtc, sys};

use super::{
    GROUP_THREADS, Kernel, Params, Spec, override_program, override_shared_bytes, program,
};

/// Why a program cannot be had or run.
#[derive(Debug)]
pub enum CudaError {
    /// The run-time compiler refused the text; what it said.
    Compile(String),
    /// The driver refused a call.
    Driver(DriverError),
}

impl fmt::Display for CudaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Compile(said) => write!(f, "the CUDA compiler refused the kernels: {said}"),
            Self::Driver(error) => write!(f, "the CUDA driver refused a call: {error}"),
        }
    }
}

impl std::error::Error for CudaError {}

impl From<DriverError> for CudaError {
    fn from(error: DriverError) -> Self {
        Self::Driver(error)
    }
}

/// A struct of arguments: the driver copies as many bytes as the kernel's own is long.
#[derive(Clone, Copy)]
#[repr(C)]
struct Words([u32; 32]);

// SAFETY: plain words.
unsafe impl DeviceRepr for Words {}

/// A buffer of a launch.
#[derive(Debug)]
pub enum CudaBuffer<'a> {
    /// Only read.
    Input(&'a CudaSlice<u8>),
    /// Written.
    Output(&'a mut CudaSlice<u8>),
}

/// All kernels of one specification on one GPU.
#[derive(Debug)]
pub struct CudaProgram {
    stream: Arc<CudaStream>,
    functions: HashMap<Kernel, CudaFunction>,
    /// Dynamic shared memory of `attend`.
    attend_bytes: u32,
}

impl CudaProgram {
    /// Compiles, or takes from the folder of compiled programs. `attend` in the portable text
    /// alone, or with the GPU's own where the specification has it.
    pub fn new(
        stream: &Arc<CudaStream>,
        spec: &Spec,
        portable: bool,
        compiled: Option<&Path>,
    ) -> Result<Self, CudaError> {
        let context = stream.context();
        let (major, minor) = context.compute_capability()?;
        let own = if portable || major < 9 { None } else { override_program(spec) };
        let attend_bytes = if own.is_some() { override_shared_bytes(spec) } else { 0 };
        let text = own.unwrap_or_else(|| program(spec));
        let architecture = format!("sm_{major}{minor}");
        let image = compiled_image(&text, &architecture, compiled)?;
        let module = context.load_module(Ptx::from_binary(image))?;
        let mut functions = HashMap::new();
        for kernel in Kernel::ALL {
            functions.insert(kernel, module.load_function(kernel.name())?);
        }
        if attend_bytes > 0 {
            let attribute = CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            functions[&Kernel::Attend].set_attribute(attribute, attend_bytes as i32)?;
        }
        Ok(Self { stream: stream.clone(), functions, attend_bytes })
    }

    /// Puts a kernel on the stream.
    ///
    /// # Safety
    /// Buffers must be those that the kernel's comment lists, in order and as large as it says for
    /// `params`, and page numbers within them.
    pub unsafe fn launch(
        &self,
        kernel: Kernel,
        grid: [usize; 3],
        buffers: &mut [CudaBuffer<'_>],
        params: &impl Params,
    ) -> Result<(), CudaError> {
        let mut words = Words([0; 32]);
        let own = params.words();
        words.0[..own.len()].copy_from_slice(&own);
        let mut arguments = self.stream.launch_builder(&self.functions[&kernel]);
        for buffer in buffers {
            match buffer {
                CudaBuffer::Input(slice) => arguments.arg(*slice),
                CudaBuffer::Output(slice) => arguments.arg(&mut **slice),
            };
        }
        arguments.arg(&words);
        let [x, y, z] = grid.map(|n| n as u32);
        let shared_mem_bytes = if kernel == Kernel::Attend { self.attend_bytes } else { 0 };
        let block_dim = (GROUP_THREADS as u32, 1, 1);
        // SAFETY: the caller's promise.
        unsafe {
            arguments.launch(LaunchConfig { grid_dim: (x, y, z), block_dim, shared_mem_bytes })?;
        }
        Ok(())
    }
}

/// The first GPU, without the bookkeeping of streams that one stream does not need; `None` without
/// driver or GPU.
pub fn first_gpu() -> Option<Arc<CudaStream>> {
    // The loader panics where there is no driver.
    let context = std::panic::catch_unwind(|| CudaContext::new(0)).ok()?.ok()?;
    let stream = context.new_stream().ok()?;
    // SAFETY: all work goes to one stream.
    unsafe { context.disable_event_tracking() };
    Some(stream)
}

/// Machine code of a text, from the folder or the compiler.
fn compiled_image(
    text: &str,
    architecture: &str,
    folder: Option<&Path>,
) -> Result<Vec<u8>, CudaError> {
    let kept = folder.map(|folder| kept_path(text, architecture, folder));
    if let Some(image) = kept.as_ref().and_then(|path| std::fs::read(path).ok()) {
        return Ok(image);
    }
    let image = compile(text, architecture)?;
    if let Some(path) = kept {
        // A folder that cannot be written costs the time of the compiler at the next start.
        let fresh = path.with_extension(format!("{}", std::process::id()));
        if std::fs::write(&fresh, &image).is_ok() {
            let _ = std::fs::rename(&fresh, &path);
        }
    }
    Ok(image)
}

/// Where the machine code of a text is kept.
fn kept_path(text: &str, architecture: &str, folder: &Path) -> PathBuf {
    let mut hasher = DefaultHasher::new();
    (text, architecture, env!("CARGO_PKG_VERSION")).hash(&mut hasher);
    folder.join(format!("{architecture}-{:016x}.cubin", hasher.finish()))
}

/// Runs the run-time compiler. Products and sums are not contracted: the dialect asks for that.
pub fn compile(text: &str, architecture: &str) -> Result<Vec<u8>, CudaError> {
    let failed = |error: nvrtc::NvrtcError| CudaError::Compile(format!("{error:?}"));
    let source = CString::new(text).expect("the dialect has no zero bytes");
    let options = [format!("--gpu-architecture={architecture}"), "--fmad=false".to_owned()];
    let options = [&options[0], &options[1], "--std=c++17"].map(str::to_owned);
    let handle = nvrtc::create_program(&source, None).map_err(failed)?;
    // SAFETY: the handle is valid until it is destroyed at the end, and the image has the size
    // that the compiler gave for it.
    unsafe {
        if nvrtc::compile_program(handle, &options).is_err() {
            let log = nvrtc::get_program_log(handle).map_err(failed)?;
            let said = CStr::from_ptr(log.as_ptr()).to_string_lossy().into_owned();
            nvrtc::destroy_program(handle).map_err(failed)?;
            return Err(CudaError::Compile(said));
        }
        let mut size = 0;
        sys::nvrtcGetCUBINSize(handle, &raw mut size).result().map_err(failed)?;
        let mut image = vec![0_u8; size];
        sys::nvrtcGetCUBIN(handle, image.as_mut_ptr().cast()).result().map_err(failed)?;
        nvrtc::destroy_program(handle).map_err(failed)?;
        Ok(image)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_machine_code_is_that_of_its_text_and_gpu() {
        let folder = std::env::temp_dir().join(format!("kvant-compiled-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = kept_path("text", "sm_90", &folder);
        assert_ne!(path, kept_path("other", "sm_90", &folder));
        assert_ne!(path, kept_path("text", "sm_80", &folder));
        std::fs::write(&path, b"machine code").unwrap();
        let found = compiled_image("text", "sm_90", Some(&folder)).unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(found, b"machine code");
    }
}
