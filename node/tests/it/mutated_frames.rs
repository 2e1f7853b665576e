//! Damaged frames: whatever the bytes, decoding and validating them ends in an answer or a close.
//!
//! Vectors are mutated at random (bits flipped, bytes set to edge values, cut, spliced with another) and put
//! through everything that reads a peer's bytes. The seed is printed, so that a failure can be repeated with
//! `RINGBASE_SEED`.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::dcp_bytes;
use crate::peer_bytes::exercise;
use crate::vectors::vectors;

const FRAMES: usize = 100_000;

fn seed() -> u64 {
    match std::env::var("RINGBASE_SEED") {
        Ok(text) => text.parse().expect("RINGBASE_SEED is a number"),
        Err(_) => rand::random(),
    }
}

fn mutate(bytes: &mut Vec<u8>, other: &[u8], random: &mut StdRng) {
    for _ in 0..random.random_range(1..=4) {
        if bytes.is_empty() {
            return;
        }
        let at = random.random_range(0..bytes.len());
        match random.random_range(0..6) {
            0 => bytes[at] ^= 1 << random.random_range(0..8),
            1 => bytes[at] = [0, 1, 0x7f, 0x80, 0xfe, 0xff][random.random_range(0..6)],
            2 => bytes[at.min(23)] = random.random(),
            3 => bytes.truncate(at),
            4 => bytes.insert(at, random.random()),
            _ => {
                bytes.truncate(at);
                bytes.extend_from_slice(&other[at.min(other.len())..]);
            }
        }
    }
}

/// Sets the header's body length to what is there, so that damage inside the body is reached too.
fn mend_length(bytes: &mut [u8]) {
    if let Some(body_bytes) = bytes.len().checked_sub(24) {
        bytes[8..12].copy_from_slice(&(body_bytes as u32).to_be_bytes());
    }
}

#[test]
fn a_hundred_thousand_damaged_frames_are_answered_or_refused_without_a_panic() {
    let seed = seed();
    println!("RINGBASE_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let frames: Vec<Vec<u8>> = vectors().into_iter().map(|vector| vector.bytes).collect();
    let mut decoded = 0;
    for _ in 0..FRAMES {
        let mut bytes = frames[random.random_range(0..frames.len())].clone();
        let other = &frames[random.random_range(0..frames.len())];
        mutate(&mut bytes, other, &mut random);
        if random.random() {
            mend_length(&mut bytes);
        }
        decoded += exercise(&bytes);
        dcp_bytes::exercise(&bytes);
    }
    println!("{decoded} frames were decoded");
    assert!(decoded > FRAMES / 5, "most mutations must reach the code behind the header");
}
