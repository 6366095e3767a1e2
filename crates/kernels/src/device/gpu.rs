//! `Gpu`: the host side of the device kernels, over candle's device and its one queue.
//!
//! The types are here in every build. Which GPU is behind them is a feature of the build: `cuda`,
//! `metal`, or none, where nothing can be made of them.
//!
//! All work goes to one queue in the order of the calls, candle's own work included. One thread
//! owns a device: tensors are written through their memory while candle lends them to be read.
#![cfg_attr(
    not(any(feature = "cuda", feature = "metal")),
    expect(unused_variables, reason = "nothing runs without a GPU")
)]

mod error;
mod place;
mod products;
mod results;

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

#[cfg(not(any(feature = "cuda", feature = "metal")))]
use super::absent as backend;
#[cfg(feature = "cuda")]
use super::cuda::queue as backend;
#[cfg(all(feature = "metal", not(feature = "cuda")))]
use super::metal as backend;
use super::{Kernel, Params, Spec};

pub use error::GpuError;
pub use place::{Arg, Place};
pub use products::{GpuFew, GpuMatmul};
pub use results::GpuResults;

/// A GPU: memory, programs and the queue. A clone is the same GPU.
#[derive(Clone)]
pub struct Gpu(Arc<Inside>);

struct Inside {
    queue: backend::Queue,
    ops: GpuProgram,
    /// Programs of the cache, by specification.
    programs: Mutex<Vec<(Spec, Arc<GpuProgram>)>>,
    /// Folder of compiled programs.
    compiled: Option<PathBuf>,
    /// Of the host for the queue.
    waits: AtomicU64,
}

/// Kernels that are ready to run on one GPU.
#[derive(Debug)]
pub struct GpuProgram(backend::Program);

/// A moment in the queue of a GPU.
#[derive(Debug)]
pub struct GpuMark(backend::Mark);

/// Launches that were recorded, to be put into the queue as one.
#[derive(Debug)]
pub struct GpuRecording(backend::Recording);

/// Memory of a GPU; freed when dropped.
#[derive(Debug)]
pub struct GpuBuffer(backend::Memory);

impl Gpu {
    /// The kernels' side of candle's device. `compiled` is a folder where machine code is kept from
    /// start to start. Before the first tensor is made: candle's own bookkeeping of queues is
    /// switched off, and the device keeps freed memory for the next allocation.
    #[cfg(any(feature = "cuda", feature = "metal"))]
    pub fn new(device: &candle_core::Device, compiled: Option<&Path>) -> Result<Self, GpuError> {
        Self::over(backend::Queue::new(device)?, compiled)
    }

    /// The kernels' side of candle's device; this build has no kernels for any.
    #[cfg(not(any(feature = "cuda", feature = "metal")))]
    pub fn new<Device>(device: &Device, compiled: Option<&Path>) -> Result<Self, GpuError> {
        Err(GpuError::NotBuilt)
    }

    #[cfg(any(feature = "cuda", feature = "metal"))]
    fn over(queue: backend::Queue, compiled: Option<&Path>) -> Result<Self, GpuError> {
        let ops = GpuProgram(queue.ops(compiled)?);
        let (programs, compiled) = (Mutex::default(), compiled.map(Path::to_path_buf));
        let waits = AtomicU64::default();
        Ok(Self(Arc::new(Inside { queue, ops, programs, compiled, waits })))
    }

    /// Name of the device.
    pub fn name(&self) -> &str {
        self.0.queue.name()
    }

    /// Multiprocessors: what work is cut for.
    pub fn multiprocessors(&self) -> usize {
        self.0.queue.multiprocessors()
    }

    /// Groups of `attend_few` for heads of `dim` numbers that are well used on a multiprocessor.
    pub fn few_groups(&self, dim: usize) -> usize {
        self.0.queue.few_groups(dim)
    }

    /// Bytes that can still be allocated, those that the device keeps for reuse not counted.
    pub fn free_bytes(&self) -> Result<u64, GpuError> {
        self.0.queue.free_bytes()
    }

    /// Zeroed memory.
    pub fn alloc(&self, bytes: usize) -> Result<GpuBuffer, GpuError> {
        self.0.queue.alloc(bytes).map(GpuBuffer)
    }

    /// Puts a write into the queue; `bytes` may change as soon as the call is back, which does not
    /// wait for the queue.
    pub fn write(&self, to: &GpuBuffer, at: usize, bytes: &[u8]) -> Result<(), GpuError> {
        fits("write", to, at, bytes.len())?;
        self.0.queue.write(&to.0, at, bytes)
    }

    /// Waits for everything in the queue and reads.
    pub fn read(&self, from: &GpuBuffer, range: Range<usize>) -> Result<Vec<u8>, GpuError> {
        fits("read", from, range.start, range.len())?;
        self.0.waits.fetch_add(1, Ordering::Relaxed);
        self.0.queue.read(&from.0, range)
    }

    /// Puts a copy into the queue, from one buffer to another, or within one between places that do
    /// not overlap. `to` and `from`: buffer and offset in bytes.
    pub fn copy(
        &self,
        to: (&GpuBuffer, usize),
        from: (&GpuBuffer, usize),
        bytes: usize,
    ) -> Result<(), GpuError> {
        fits("copy to", to.0, to.1, bytes)?;
        fits("copy from", from.0, from.1, bytes)?;
        self.0.queue.copy((&to.0.0, to.1), (&from.0.0, from.1), bytes)
    }

    /// The kernels of the cache for one specification: kept in this process, and on disk.
    pub fn program(&self, spec: &Spec) -> Result<Arc<GpuProgram>, GpuError> {
        let find = |programs: &[(Spec, Arc<GpuProgram>)]| {
            programs.iter().find(|(known, _)| known == spec).map(|(_, program)| program.clone())
        };
        if let Some(program) = find(&self.programs()) {
            return Ok(program);
        }
        let program = self.0.queue.program(spec, self.0.compiled.as_deref())?;
        let mut programs = self.programs();
        // Another thread may have been faster.
        Ok(find(&programs).unwrap_or_else(|| {
            let program = Arc::new(GpuProgram(program));
            programs.push((spec.clone(), program.clone()));
            program
        }))
    }

    fn programs(&self) -> MutexGuard<'_, Vec<(Spec, Arc<GpuProgram>)>> {
        self.0.programs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Compiles the kernels of several specifications at the same time, where the compiler allows
    /// that: [`Self::program`] then has them.
    pub fn prepare(&self, specs: impl IntoIterator<Item = Spec>) -> Result<(), GpuError> {
        let mut missing: Vec<Spec> = Vec::new();
        for spec in specs {
            let known = self.programs().iter().any(|(known, _)| *known == spec);
            if !known && !missing.contains(&spec) {
                missing.push(spec);
            }
        }
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = if cfg!(feature = "cuda") { cores.min(missing.len()) } else { 1 };
        let next = AtomicUsize::new(0);
        let work = || {
            while let Some(spec) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
                self.program(spec)?;
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
            let own = work();
            let ends = others
                .into_iter()
                .map(|other| other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            ends.fold(own, Result::and)
        })
    }

    /// The kernels of a model, [`Kernel::OPS`].
    pub fn ops(&self) -> &GpuProgram {
        &self.0.ops
    }

    /// Puts a kernel into the queue. `args`: the buffers of the kernel's comment, in its order.
    /// Kernels reach the memory of the device alone: a wrong grid, place or page number makes wrong
    /// numbers or an error of the device.
    pub fn launch<P: Params>(
        &self,
        (program, kernel): (&GpuProgram, Kernel),
        grid: [usize; 3],
        args: &[Arg<'_>],
        params: &P,
    ) -> Result<(), GpuError> {
        if grid.contains(&0) {
            return Ok(());
        }
        self.0.queue.launch((&program.0, kernel), grid, args, &params.words())
    }

    /// Whether launches can be recorded.
    pub fn records(&self) -> bool {
        backend::Queue::RECORDS
    }

    /// Records the launches and products of `work` in place of running them. They are replayed with
    /// the grids, places and arguments that they have now: only what lies in the memory of the
    /// device may be another then. `work` neither reads, writes, allocates nor waits.
    pub fn record<E: From<GpuError>>(
        &self,
        work: impl FnOnce() -> Result<(), E>,
    ) -> Result<GpuRecording, E> {
        self.0.queue.begin_record()?;
        let done = work();
        // Also behind an error, or the queue stays as it is.
        let recording = self.0.queue.end_record();
        done?;
        Ok(GpuRecording(recording?))
    }

    /// Puts recorded launches into the queue.
    pub fn replay(&self, recording: &GpuRecording) -> Result<(), GpuError> {
        self.0.queue.replay(&recording.0)
    }

    /// Puts a mark into the queue.
    pub fn mark(&self) -> Result<GpuMark, GpuError> {
        self.0.queue.mark().map(GpuMark)
    }

    /// Whether the host can wait for a mark, and leave what was queued behind it to go on.
    pub fn waits_for_marks(&self) -> bool {
        backend::Queue::WAITS_FOR_MARKS
    }

    /// Waits for everything in the queue in front of a mark; where [`Self::waits_for_marks`] is
    /// false, for what is behind it too.
    pub fn wait(&self, mark: &GpuMark) -> Result<(), GpuError> {
        self.0.waits.fetch_add(1, Ordering::Relaxed);
        self.0.queue.wait(&mark.0)
    }

    /// Waits for everything in the queue.
    pub fn synchronize(&self) -> Result<(), GpuError> {
        self.0.waits.fetch_add(1, Ordering::Relaxed);
        self.0.queue.synchronize()
    }

    /// How often the host has waited for the queue; candle's own waits are not counted.
    pub fn waits(&self) -> u64 {
        self.0.waits.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Gpu").field(&self.name()).finish()
    }
}

impl GpuProgram {
    /// Whether its `attend` writes results itself, so that `combine` is not launched.
    pub fn attend_combines(&self) -> bool {
        self.0.attend_combines()
    }
}

impl GpuMark {
    /// How long the GPU took from here to a later mark, which the host has waited for; nothing
    /// where the GPU does not say.
    pub fn until(&self, later: &Self) -> Result<Duration, GpuError> {
        self.0.until(&later.0)
    }
}

impl GpuBuffer {
    /// Size.
    pub fn bytes(&self) -> usize {
        self.0.bytes()
    }
}

/// An error where `bytes` at `at` do not lie within the buffer.
fn fits(what: &str, buffer: &GpuBuffer, at: usize, bytes: usize) -> Result<(), GpuError> {
    if at.checked_add(bytes).is_some_and(|end| end <= buffer.bytes()) {
        return Ok(());
    }
    let room = buffer.bytes();
    Err(GpuError::Room(format!("{what} {bytes} bytes at {at} of a buffer of {room}")))
}
