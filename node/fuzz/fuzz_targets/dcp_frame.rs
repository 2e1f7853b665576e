//! A DCP peer's byte stream: messages of a producer, requests of a client, and frames as they lie on disk.
//!
//! `RUSTC_BOOTSTRAP=1 cargo fuzz run dcp_frame -- -max_total_time=30`, in `node/`.

#![no_main]

#[path = "../../tests/it/dcp_bytes.rs"]
mod dcp_bytes;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    dcp_bytes::exercise(bytes);
});
