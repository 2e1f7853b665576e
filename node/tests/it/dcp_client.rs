//! Damaged DCP clients: whatever comes behind a DCP_OPEN, the producer lives on, and leaves nothing behind when the connection is gone.

use rand::RngExt;

use crate::dcp_client_bytes::exercise;
use crate::range_scan::rig::{Seed, rng};

const INPUTS: u64 = 5_000;

/// The seeds of the fuzz target.
fn corpus() -> Vec<Vec<u8>> {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/dcp_client");
    let mut paths: Vec<_> =
        std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.into_iter().map(|path| std::fs::read(path).unwrap()).collect()
}

/// Every kept conversation as it is, and thousands with some bytes changed.
#[test]
fn a_damaged_client_of_streams_harms_nobody() {
    let corpus = corpus();
    assert!(corpus.len() >= 5);
    for bytes in &corpus {
        assert!(exercise(bytes) > 3, "most of it is taken");
    }
    let mut taken = 0;
    for seed in 0..INPUTS {
        let _seed = Seed(seed);
        let mut random = rng(seed);
        let mut bytes = corpus[random.random_range(0..corpus.len())].clone();
        for _ in 0..random.random_range(1..6) {
            let at = random.random_range(0..bytes.len());
            match random.random_range(0..3) {
                0 => bytes[at] ^= 1 << random.random_range(0..8),
                1 => bytes[at] = [0, 1, 0x7f, 0x80, 0xfe, 0xff][random.random_range(0..6)],
                _ => bytes[at] = random.random(),
            }
        }
        taken += exercise(&bytes);
    }
    println!("{taken} frames were taken");
    assert!(taken as u64 > INPUTS, "{taken}");
}
