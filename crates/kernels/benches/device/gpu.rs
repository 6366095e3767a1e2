//! Timing on a stream: a graph of launches, replayed.

use std::error::Error;
use std::sync::Arc;

use cudarc::driver::CudaStream;
use cudarc::driver::sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
use cudarc::driver::sys::{CUevent_flags, CUgraphInstantiate_flags_enum, CUstreamCaptureMode_enum};

/// Replays of which the median counts.
const REPLAYS: usize = 11;

/// Seconds of one replay of what `enqueue` puts on the stream.
pub(crate) fn replay(
    stream: &Arc<CudaStream>,
    enqueue: impl Fn() -> Result<(), Box<dyn Error>>,
) -> Result<f64, Box<dyn Error>> {
    enqueue()?;
    stream.synchronize()?;
    stream.begin_capture(CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
    enqueue()?;
    let flags = CUgraphInstantiate_flags_enum::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = stream.end_capture(flags)?.ok_or("nothing was captured")?;
    graph.upload()?;
    median(stream, || Ok(graph.launch()?))
}

/// Of the GPU.
pub(crate) fn multiprocessors(stream: &CudaStream) -> Result<usize, Box<dyn Error>> {
    let attribute = CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
    Ok(stream.context().attribute(attribute)? as usize)
}

/// Bytes a second of a copy within the device, reads and writes counted.
pub(crate) fn copy_rate(stream: &Arc<CudaStream>) -> Result<f64, Box<dyn Error>> {
    const BYTES: usize = 2 << 30;
    let from = stream.alloc_zeros::<u8>(BYTES)?;
    let mut into = stream.alloc_zeros::<u8>(BYTES)?;
    let mut times = Vec::new();
    for _ in 0..REPLAYS {
        times.push(once(stream, || Ok(stream.memcpy_dtod(&from, &mut into)?))?);
    }
    times.sort_by(f64::total_cmp);
    Ok(2.0 * BYTES as f64 / times[REPLAYS / 2])
}

fn median(
    stream: &Arc<CudaStream>,
    work: impl Fn() -> Result<(), Box<dyn Error>>,
) -> Result<f64, Box<dyn Error>> {
    once(stream, &work)?;
    let mut times = Vec::new();
    for _ in 0..REPLAYS {
        times.push(once(stream, &work)?);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[REPLAYS / 2])
}

fn once(
    stream: &Arc<CudaStream>,
    work: impl FnOnce() -> Result<(), Box<dyn Error>>,
) -> Result<f64, Box<dyn Error>> {
    let event = || stream.context().new_event(Some(CUevent_flags::CU_EVENT_DEFAULT));
    let (begin, end) = (event()?, event()?);
    begin.record(stream)?;
    work()?;
    end.record(stream)?;
    end.synchronize()?;
    Ok(f64::from(begin.elapsed_ms(&end)?) / 1e3)
}
