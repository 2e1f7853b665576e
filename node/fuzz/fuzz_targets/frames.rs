//! A peer's byte stream: frames, the validator, framing extras, keys and every body.
//!
//! `RUSTC_BOOTSTRAP=1 cargo fuzz run frames -- -max_total_time=30`, in `node/`.

#![no_main]

#[path = "../../tests/it/peer_bytes.rs"]
mod peer_bytes;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    peer_bytes::exercise(bytes);
});
