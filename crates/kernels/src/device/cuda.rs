//! The device kernels on NVIDIA GPUs: compiled at run time for the GPU at hand, kept on disk by a
//! hash of the text and the architecture, launched on a stream.

#![expect(unsafe_code, reason = "calls of the driver and the compiler, launches of kernels")]

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cudarc::driver::sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtr, DevicePtrMut, DriverError};
use cudarc::nvrtc::{result as nvrtc, sys};

use super::{
    Activations, BULK_GROUPS, BULK_SHARED_BYTES, FEW_GROUPS, GpuMatmul, Kernel, Params,
    SKINNY_SHARED_BYTES, Spec, WGMMA_THREADS, dense_shared_bytes, few_shared_bytes, has_bulk,
    has_wgmma, ops_program, override_program, override_shared_bytes, program, wgmma_shared_bytes,
    with_dense_override, with_skinny, with_wgmma_override,
};
use crate::PAGE_TOKENS;

mod library;
mod maps;
mod module;
pub(super) mod queue;
mod results;
mod skinny;
mod staging;

pub use library::{CudaLibrary, LibraryError};
use maps::{Matrix, TensorMap, tensor_map};
use module::{Entry, Launch, MAX_BUFFERS, Module};
use skinny::Skinny;

/// The compute capability that `with_wgmma_override` is written for.
const WGMMA: (i32, i32) = (9, 0);

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

/// A buffer of a launch.
#[derive(Debug)]
pub enum CudaBuffer<'a> {
    /// Only read.
    Input(&'a CudaSlice<u8>),
    /// Written.
    Output(&'a mut CudaSlice<u8>),
}

/// The kernels of a text on one GPU.
#[derive(Debug)]
pub struct CudaProgram {
    stream: Arc<CudaStream>,
    _module: Module,
    entries: HashMap<Kernel, Entry>,
    /// Dynamic shared memory of `attend`.
    attend_bytes: u32,
    /// The same of `attend_dense`.
    dense_bytes: u32,
    /// Threads of a group of it.
    dense_threads: usize,
    /// Numbers of a head, where it takes keys and values by tensor maps.
    mapped_heads: Option<usize>,
    /// The same of `attend_few`, for many groups and for few.
    few_bytes: [u32; 2],
    multiprocessors: usize,
    /// Whether groups may become resident early.
    early: bool,
    /// Whether the last launch wrote packed pages; of all programs of a queue.
    packed: Arc<AtomicBool>,
}

impl CudaProgram {
    /// Compiles, or takes from the folder of compiled programs. `attend` and `attend_dense` in the
    /// portable text alone, or with the GPU's own where the specification has them.
    pub fn new(
        stream: &Arc<CudaStream>,
        spec: &Spec,
        portable: bool,
        compiled: Option<&Path>,
    ) -> Result<Self, CudaError> {
        let (major, minor) = stream.context().compute_capability()?;
        let own = if portable || major < 9 { None } else { override_program(spec) };
        let attend_bytes = if own.is_some() { override_shared_bytes(spec) } else { 0 };
        let (own_dense, dim) = (!portable && major >= 8, spec.layout().dim());
        let wgmma = own_dense && (major, minor) == WGMMA && has_wgmma(dim);
        let text = own.unwrap_or_else(|| program(spec));
        let (text, dense_bytes) = match (wgmma, own_dense) {
            (true, _) => (with_wgmma_override(&text), wgmma_shared_bytes(dim)),
            (_, true) => (with_dense_override(&text), dense_shared_bytes(dim)),
            _ => (text, 0),
        };
        let program = Self::loaded(stream, &text, &Kernel::ALL, compiled)?;
        let few_bytes = match (wgmma && has_bulk(dim), own_dense) {
            (true, _) => [BULK_SHARED_BYTES; 2],
            (_, true) => few_shared_bytes(dim),
            _ => [0; 2],
        };
        let dense_threads = if wgmma { WGMMA_THREADS } else { program.dense_threads };
        let dynamic = [
            (Kernel::Attend, attend_bytes),
            (Kernel::AttendDense, dense_bytes),
            (Kernel::AttendFew, few_bytes[1]),
        ];
        for (kernel, bytes) in dynamic {
            if bytes > 0 {
                program.entries[&kernel].allow_shared(bytes)?;
            }
        }
        let mapped_heads = wgmma.then_some(dim);
        Ok(Self { attend_bytes, dense_bytes, dense_threads, mapped_heads, few_bytes, ..program })
    }

    /// The kernels of a model.
    pub fn ops(stream: &Arc<CudaStream>, compiled: Option<&Path>) -> Result<Self, CudaError> {
        if stream.context().compute_capability()? != WGMMA {
            return Self::loaded(stream, &ops_program(), &Kernel::OPS, compiled);
        }
        let kernels: Vec<_> = Kernel::OPS.into_iter().chain([Kernel::Skinny]).collect();
        let program = Self::loaded(stream, &with_skinny(&ops_program()), &kernels, compiled)?;
        program.entries[&Kernel::Skinny].allow_shared(SKINNY_SHARED_BYTES as u32)?;
        Ok(program)
    }

    /// A text's entry points, compiled or taken from the folder of compiled programs.
    fn loaded(
        stream: &Arc<CudaStream>,
        text: &str,
        kernels: &[Kernel],
        compiled: Option<&Path>,
    ) -> Result<Self, CudaError> {
        let context = stream.context();
        let (major, minor) = context.compute_capability()?;
        let image = compiled_image(text, &architecture(major, minor), compiled)?;
        let module = Module::new(context, &image)?;
        let entry = |kernel: &Kernel| Ok((*kernel, module.entry(*kernel)?));
        let entries = kernels.iter().map(entry).collect::<Result<_, CudaError>>()?;
        Ok(Self {
            stream: stream.clone(),
            _module: module,
            entries,
            attend_bytes: 0,
            dense_bytes: 0,
            dense_threads: Kernel::AttendDense.threads(),
            mapped_heads: None,
            few_bytes: [0; 2],
            multiprocessors: context.attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as usize,
            early: major >= 9,
            packed: Arc::default(),
        })
    }

    /// The same program in a queue with others: pages are packed by another one than reads them.
    fn beside(self, packed: &Arc<AtomicBool>) -> Self {
        Self { packed: packed.clone(), ..self }
    }

    /// Whether `attend` writes results itself, so that `combine` is not launched.
    pub fn attend_combines(&self) -> bool {
        self.attend_bytes > 0
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
        let addresses = buffers.iter_mut().map(|buffer| match buffer {
            CudaBuffer::Input(slice) => slice.device_ptr(&self.stream).0,
            CudaBuffer::Output(slice) => slice.device_ptr_mut(&self.stream).0,
        });
        // SAFETY: the caller's promise.
        unsafe { self.launch_at(kernel, grid, addresses, &params.words()) }
    }

    /// The same by addresses on the GPU, and with the words of a struct of arguments.
    ///
    /// # Safety
    /// As of `launch`.
    unsafe fn launch_at(
        &self,
        kernel: Kernel,
        grid: [usize; 3],
        addresses: impl Iterator<Item = u64>,
        words: &[u32],
    ) -> Result<(), CudaError> {
        let shared = match kernel {
            Kernel::Attend => self.attend_bytes,
            Kernel::AttendDense => self.dense_bytes,
            // More groups than two for each multiprocessor are to be there together.
            Kernel::AttendFew => {
                let groups: usize = grid.iter().product();
                self.few_bytes[usize::from(groups <= 2 * self.multiprocessors)]
            }
            _ => 0,
        };
        // The GPU's own attend reads pages before it waits for the launch in front of it.
        let packed = self.packed.swap(kernel == Kernel::Encode, Ordering::Relaxed);
        let early = self.early && !(packed && kernel == Kernel::Attend);
        let threads = match kernel {
            Kernel::AttendDense => self.dense_threads,
            _ => kernel.threads(),
        };
        let mut places = [0; MAX_BUFFERS];
        let buffers = places.iter_mut().zip(addresses);
        let count = buffers.map(|(place, address)| *place = address).count();
        let maps = match self.mapped_heads {
            Some(dim) if kernel == Kernel::AttendDense => {
                Some([page_map(places[1], dim)?, page_map(places[2], dim)?])
            }
            _ => None,
        };
        let maps = maps.as_ref().map_or(&[][..], |maps| maps);
        // SAFETY: the caller's promise.
        Ok(unsafe {
            let launch = Launch { grid, threads, shared, early, maps };
            self.entries[&kernel].launch(&self.stream, launch, &places[..count], words)
        }?)
    }

    /// Puts a product of few rows on the stream, of a model's kernels on compute capability 9.0.
    /// places: addresses of results, activations and weights.
    ///
    /// # Safety
    /// They must hold the matrices of the shape, weights with a gate twice as many rows.
    pub unsafe fn skinny(
        &self,
        [out, x, weights]: [u64; 3],
        (shape, gate): (GpuMatmul, Option<u32>),
    ) -> Result<(), CudaError> {
        let skinny = Skinny::new(shape, gate, self.multiprocessors);
        let maps = skinny.maps(x, weights)?;
        // As of any launch but `encode`.
        self.packed.store(false, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        Ok(unsafe {
            let (entry, words) = (&self.entries[&Kernel::Skinny], skinny.params().words());
            entry.launch(&self.stream, skinny.launch(&maps), &[out], &words)
        }?)
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

/// Groups of `attend_few` for heads of `dim` numbers that are well used on a multiprocessor of a
/// GPU of such a compute capability.
pub fn few_groups(capability: (i32, i32), dim: usize) -> usize {
    if capability == WGMMA && has_bulk(dim) { BULK_GROUPS } else { FEW_GROUPS }
}

/// The map of 16-bit pages, copied by 64 numbers of the tokens of one head. How many there are the
/// caller of a launch knows: it promises numbers of pages within them.
fn page_map(address: u64, dim: usize) -> Result<TensorMap, DriverError> {
    let rows = i32::MAX as usize / PAGE_TOKENS * PAGE_TOKENS;
    let pages = Matrix { address, numbers: Activations::F16, rows, columns: dim };
    tensor_map(pages, PAGE_TOKENS)
}

/// What the compiler calls a GPU; that of 9.0 has products of warpgroups by a name of its own.
fn architecture(major: i32, minor: i32) -> String {
    let own = if (major, minor) == WGMMA { "a" } else { "" };
    format!("sm_{major}{minor}{own}")
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
