//! `rotate` and `restore` give the bits of the codec's rotation.

use kvant_kernels::device::{GROUP_VECTORS, Kernel, RotateParams, Spec, sign_words};
use kvant_turboquant::Side;

use crate::emulator::Emulator;
use crate::machine::{Buffer, Machine, bytes_of_floats, floats};
use crate::random::{DIMS, Random, rotation, spec};

#[test]
fn rotated_vectors_have_the_codecs_bits() {
    check(Emulator::new);
}

pub(crate) fn check<M: Machine>(make: impl Fn(&Spec) -> M) {
    for dim in DIMS.into_iter().chain([16, 112, 160, 192, 224]) {
        let machine = make(&spec(dim, 8, 8));
        let rotation = rotation(dim, Side::Keys);
        for vectors in [1, 7, 8, 9, 20] {
            let x = Random(dim as u64).floats(vectors * dim);
            let params = RotateParams { signs: sign_words(&rotation), vectors: vectors as u32 };
            let grid = [vectors.div_ceil(GROUP_VECTORS), 1, 1];
            let size = Buffer::Output(4 * x.len());
            let input = bytes_of_floats(&x);
            let rotated =
                machine.run((Kernel::Rotate, grid), &[Buffer::Input(&input), size], &params);
            let want = rotation.rotate(x);
            assert_eq!(floats(&rotated[0]), want.as_slice(), "{vectors} of {dim}");
            let size = Buffer::Output(rotated[0].len());
            let input = Buffer::Input(&rotated[0]);
            let restored = machine.run((Kernel::Restore, grid), &[input, size], &params);
            assert_eq!(floats(&restored[0]), rotation.restore(want), "{vectors} of {dim}");
        }
    }
}
