//! One part of a frame read as every body there is, range scan JSON and SASL messages among them.
//!
//! `RUSTC_BOOTSTRAP=1 cargo fuzz run bodies -- -max_total_time=30`, in `node/`.

#![no_main]

#[path = "../../tests/it/peer_bytes.rs"]
#[allow(dead_code, reason = "the target for whole frames uses the rest")]
mod peer_bytes;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    peer_bytes::exercise_bodies(bytes);
});
