//! Rows of q and k back from the order of interleaved rope, in which files of architecture `llama`
//! keep them.

/// Reorders the rows of one matrix, `heads` heads of equal size, from interleaved rope (pairs are
/// neighbours) to half-split rope (pairs are half a head apart). Rows are opaque bytes: a quantized
/// row has no state outside it. `None` if the rows are no whole heads of even size.
pub(crate) fn unpermute_rows(bytes: &[u8], rows: usize, heads: usize) -> Option<Vec<u8>> {
    if heads == 0
        || rows == 0
        || !rows.is_multiple_of(2 * heads)
        || !bytes.len().is_multiple_of(rows)
    {
        return None;
    }
    let row_bytes = bytes.len() / rows;
    let half = rows / heads / 2;
    let mut out = Vec::with_capacity(bytes.len());
    for row in 0..rows {
        let (head, within) = (row / (2 * half), row % (2 * half));
        let source = head * 2 * half + (within % half) * 2 + within / half;
        out.extend_from_slice(&bytes[source * row_bytes..(source + 1) * row_bytes]);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_each_head_are_dealt_out_to_halves() {
        // Two heads of four rows of two bytes: the file has pairs (0,1) (2,3), we want evens, then
        // odds.
        let bytes = [10, 0, 11, 1, 12, 2, 13, 3, 20, 4, 21, 5, 22, 6, 23, 7];
        let expected = [10, 0, 12, 2, 11, 1, 13, 3, 20, 4, 22, 6, 21, 5, 23, 7];
        assert_eq!(unpermute_rows(&bytes, 8, 2).unwrap(), expected);
    }

    #[test]
    fn what_is_no_whole_heads_is_refused() {
        for (rows, heads) in [(8, 0), (0, 1), (8, 3), (8, 8), (6, 2), (5, 1)] {
            assert!(unpermute_rows(&[0; 16], rows, heads).is_none(), "{rows} rows, {heads} heads");
        }
    }
}
