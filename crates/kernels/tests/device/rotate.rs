//! `rotate` and `restore` give the bits of the codec's rotation.

use kvant_kernels::device::{GROUP_VECTORS, Kernel, RotateParams, Spec, sign_words};
use kvant_turboquant::Side;

use crate::emulator::Emulator;
use crate::machine::{Buffer, Machine, bytes_of_floats, floats};
use crate::random::{DIMS, Random, rotation_of, spec, turning};

#[test]
fn rotated_vectors_have_the_codecs_bits() {
    check(Emulator::new);
}

pub(crate) fn check<M: Machine>(make: impl Fn(&Spec) -> M) {
    let specs = DIMS.into_iter().chain([16, 112, 144, 160, 192, 224]).map(|dim| spec(dim, 8, 8));
    for spec in specs.chain([spec(64, 3, 6).with_dense_rotation()]) {
        let dim = spec.layout().dim();
        let machine = make(&spec);
        let rotation = rotation_of(&spec, Side::Keys);
        let matrix = bytes_of_floats(rotation.matrix().unwrap_or_default());
        for vectors in [1, 7, 8, 9, 20] {
            let x = Random(dim as u64).floats(vectors * dim);
            let params = RotateParams { signs: sign_words(&rotation), vectors: vectors as u32 };
            let grid = [vectors.div_ceil(GROUP_VECTORS), 1, 1];
            let size = Buffer::Output(4 * x.len());
            let input = bytes_of_floats(&x);
            let buffers = turning([Buffer::Input(&input), size], &matrix);
            let rotated = machine.run((Kernel::Rotate, grid), &buffers, &params);
            let want = rotation.rotate(x);
            assert_eq!(floats(&rotated[0]), want.as_slice(), "{vectors} of {dim}");
            let size = Buffer::Output(rotated[0].len());
            let input = Buffer::Input(&rotated[0]);
            let buffers = turning([input, size], &matrix);
            let restored = machine.run((Kernel::Restore, grid), &buffers, &params);
            assert_eq!(floats(&restored[0]), rotation.restore(want), "{vectors} of {dim}");
        }
    }
}
