//! The engine of a Ringbase shard: what one core keeps in memory and on disk.
//!
//! The front door is [`shard::Shard`]: it owns a write-ahead log and a data file, and holds the
//! vbuckets ([`vbstore::VbStore`]) whose mutations they carry. A [`vbstore::ReadView`] is a
//! consistent snapshot of one vbucket; [`scan`] reads it in key order or in seqno order.
//!
//! Everything here is single-threaded and asynchronous: one core, one executor, one storage ring.
//! Disk, clock, randomness and spawning come in as arguments ([`mod@env`], [`io`]), so that the same code
//! runs on io_uring and in a seeded simulation.
//!
//! Does not know: sockets, opcodes, buckets' users, streams.

mod atomic;
pub mod cache;
pub mod causes;
#[cfg(all(test, any(loom, shuttle)))]
mod checking;
pub mod collections;
pub mod compaction;
pub mod env;
pub mod epoch;
pub mod extent;
pub mod format;
pub mod hashtable;
pub mod inspect;
pub mod io;
pub mod item;
pub mod keyindex;
pub mod manifest;
pub mod memtable;
pub mod metrics;
pub mod mutant;
mod prefetch;
pub mod reader;
pub mod registry;
pub mod run;
pub mod scan;
pub mod seqlist;
pub mod seqlog;
pub mod shard;
mod slab;
pub mod sync;
pub mod types;
pub mod vbstore;
pub mod versions;
pub mod wal;
