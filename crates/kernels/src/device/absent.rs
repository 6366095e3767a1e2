//! No GPU: what a build without `cuda` and `metal` has in the place of one. None of its types has
//! a value.

#![expect(unused_variables, reason = "nothing runs without a GPU")]

use std::convert::Infallible;
use std::marker::PhantomData;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use super::{Arg, GpuError, GpuMatmul, Kernel, Place, Spec};

#[derive(Debug)]
pub(in crate::device) enum Queue {}

#[derive(Debug)]
pub(in crate::device) enum Program {}

#[derive(Debug)]
pub(in crate::device) enum Memory {}

#[derive(Debug)]
pub(in crate::device) enum Results {}

#[derive(Clone, Debug)]
pub(in crate::device) struct PlaceMemory<'a>(Infallible, PhantomData<&'a ()>);

#[derive(Debug)]
pub(in crate::device) enum Mark {}

impl Mark {
    pub(in crate::device) fn until(&self, later: &Self) -> Result<Duration, GpuError> {
        match *self {}
    }
}

#[derive(Debug)]
pub(in crate::device) enum Recording {}

impl Program {
    pub(in crate::device) fn attend_combines(&self) -> bool {
        match *self {}
    }
}

impl Queue {
    pub(in crate::device) fn name(&self) -> &str {
        match *self {}
    }

    pub(in crate::device) fn multiprocessors(&self) -> usize {
        match *self {}
    }

    pub(in crate::device) fn few_groups(&self, _: usize) -> usize {
        match *self {}
    }

    pub(in crate::device) fn mark(&self) -> Result<Mark, GpuError> {
        match *self {}
    }

    pub(in crate::device) const RECORDS: bool = false;
    pub(in crate::device) const NARROW_PRODUCTS: bool = false;

    pub(in crate::device) const WAITS_FOR_MARKS: bool = false;

    pub(in crate::device) fn wait(&self, mark: &Mark) -> Result<(), GpuError> {
        match *self {}
    }

    pub(in crate::device) fn begin_record(&self) -> Result<(), GpuError> {
        match *self {}
    }

    pub(in crate::device) fn end_record(&self) -> Result<Recording, GpuError> {
        match *self {}
    }

    pub(in crate::device) fn replay(&self, recording: &Recording) -> Result<(), GpuError> {
        match *self {}
    }

    pub(in crate::device) fn free_bytes(&self) -> Result<u64, GpuError> {
        match *self {}
    }

    pub(in crate::device) fn alloc(&self, bytes: usize) -> Result<Memory, GpuError> {
        match *self {}
    }

    pub(in crate::device) fn alloc_results(&self, count: usize) -> Result<Results, GpuError> {
        match *self {}
    }

    pub(in crate::device) fn write(
        &self,
        to: &Memory,
        at: usize,
        bytes: &[u8],
    ) -> Result<(), GpuError> {
        match *self {}
    }

    pub(in crate::device) fn read(
        &self,
        from: &Memory,
        range: Range<usize>,
    ) -> Result<Vec<u8>, GpuError> {
        match *self {}
    }

    pub(in crate::device) fn copy(
        &self,
        to: (&Memory, usize),
        from: (&Memory, usize),
        bytes: usize,
    ) -> Result<(), GpuError> {
        match *self {}
    }

    pub(in crate::device) fn program(
        &self,
        spec: &Spec,
        compiled: Option<&Path>,
    ) -> Result<Program, GpuError> {
        match *self {}
    }

    pub(in crate::device) fn launch(
        &self,
        program: (&Program, Kernel),
        grid: [usize; 3],
        args: &[Arg<'_>],
        words: &[u32],
    ) -> Result<(), GpuError> {
        match *self {}
    }

    pub(in crate::device) fn takes_matvec(&self, _: [&Place<'_>; 2], _: GpuMatmul) -> bool {
        match *self {}
    }

    pub(in crate::device) fn takes_skinny(&self, _: [&Place<'_>; 2], _: GpuMatmul) -> bool {
        match *self {}
    }

    pub(in crate::device) fn skinny(
        &self,
        program: &Program,
        places: [&Place<'_>; 3],
        product: (GpuMatmul, Option<u32>),
    ) -> Result<(), GpuError> {
        match *self {}
    }

    pub(in crate::device) fn matmul(
        &self,
        out: &Place<'_>,
        x: &Place<'_>,
        weights: &Place<'_>,
        shape: GpuMatmul,
    ) -> Result<(), GpuError> {
        match *self {}
    }

    pub(in crate::device) fn synchronize(&self) -> Result<(), GpuError> {
        match *self {}
    }
}

impl PlaceMemory<'_> {
    pub(in crate::device) fn skip(self, bytes: usize) -> Self {
        match self.0 {}
    }
}

impl Memory {
    pub(in crate::device) fn bytes(&self) -> usize {
        match *self {}
    }

    pub(in crate::device) fn place(&self, at: usize) -> PlaceMemory<'_> {
        match *self {}
    }
}

impl Results {
    pub(in crate::device) fn words(&self) -> &[AtomicU32] {
        match *self {}
    }

    pub(in crate::device) fn place(&self, word: usize) -> PlaceMemory<'_> {
        match *self {}
    }
}
