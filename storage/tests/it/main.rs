//! Behaviour of the storage engine, one module per subject.
#![allow(clippy::unwrap_used)]

mod bit_flips;
mod branch;
mod buckets;
mod changes;
mod collections;
mod crash;
mod damage;
mod device;
mod disk_bytes;
mod empty_cost;
mod ephemeral;
mod errors;
mod fault_loop;
mod fuzz_corpus;
mod image_bytes;
mod inspect;
mod interleaved_runs;
mod long_reads;
mod purge;
mod range_reads;
mod real_ring;
mod reclaim;
mod ring;
mod scan_speed;
mod scrub;
mod seqno_scan;
mod short_sequences;
mod tolerant;
mod vbuckets;
mod world;
