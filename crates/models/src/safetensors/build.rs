//! Builds safetensors files for tests.

/// A file of this header and these weights.
pub(crate) fn file(header: &str, weights: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), weights].concat()
}

/// A file of F32 tensors, each `name`, shape and elements.
pub(crate) fn f32_file(tensors: &[(&str, &[usize], &[f32])]) -> Vec<u8> {
    let mut weights = Vec::new();
    let mut entries = Vec::new();
    for (name, shape, elements) in tensors {
        let start = weights.len();
        weights.extend(elements.iter().flat_map(|element| element.to_le_bytes()));
        let stop = weights.len();
        entries.push(format!(
            r#""{name}":{{"dtype":"F32","shape":{shape:?},"data_offsets":[{start},{stop}]}}"#
        ));
    }
    file(&format!("{{{}}}", entries.join(",")), &weights)
}
