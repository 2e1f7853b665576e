//! `ringbench`: measures a node from outside, and the store, the storage ring and the sequence list by themselves.
//!
//! Bottom up: [`error`], [`process`], [`cpus`], [`recorder`], [`node`] (the node under test), [`workload`], the ceilings [`loopback`] and [`disk`],
//! [`latency`], the client [`traffic`], [`machine`], [`report`], [`plot`], and the commands in [`cmd`].
//!
//! Does not know: server code, but for an echo that is a floor; what it measures goes over TCP, and through
//! `ringbase_storage` for store, ring and list.

mod cpus;
mod error;
mod process;
mod recorder;

mod node;
mod workload;

mod disk;
mod latency;
mod loopback;
mod traffic;

mod machine;
mod plot;
mod report;

mod cmd;

use std::error::Error;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use error::BenchError;

/// Measures Ringbase.
#[derive(Debug, Parser)]
#[command(version, about, long_about = None)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Range scans of a node of its own against the buffer size, beside what loopback and device can do.
    ///
    /// Example: ringbench scan --quick
    Scan(cmd::scan::ScanArgs),
    /// DCP streams of everything in a node of its own, from memory and from disk, beside what loopback and device can do.
    ///
    /// Example: ringbench backfill --quick. Only small documents: ringbench backfill --values 100 --vbuckets 16
    Backfill(cmd::backfill::BackfillArgs),
    /// GET and SET of a node of its own beside memcached, with one client, in one run.
    ///
    /// Example: ringbench kv --quick. Only GETs of one core: ringbench kv --cores 1 --mixes get --depths 16
    Kv(cmd::kv::KvArgs),
    /// Overwrites a data set again and again: throughput, pauses, space and what is written for it, with and without scans that hold its beginning.
    ///
    /// Example: ringbench churn --quick. Only popular documents: ringbench churn --keys zipfian --held no
    Churn(cmd::churn::ChurnArgs),
    /// Memory of a node while many scans stand still half-way.
    ScanMemory(cmd::scan_memory::ScanMemoryArgs),
    /// Memory of a node an item, beside key and value, and what goes back to the system when a bucket is emptied or deleted.
    ///
    /// Example: ringbench memory --items 1000000 --value-bytes 8,88,1024
    Memory(cmd::memory::MemoryArgs),
    /// The sequence list of one vbucket alone: what readers cost in memory and time.
    ///
    /// Example: ringbench seqlist --quick
    #[command(name = "seqlist")]
    SeqList(cmd::seqlist::SeqListArgs),
    /// The store without the network beside other embedded engines, in one run: load, scans by key and by seqno, random reads, overwrites.
    ///
    /// Peers are built in by features of this package: `cargo build --release -p ringbase-bench --features peers,peer-rocksdb` (a C compiler; for RocksDB a
    /// C++ compiler and libclang, and an hour on two cores). Without them the store stands beside the device alone.
    ///
    /// Cold phases begin with an engine just opened whose files the page cache has forgotten. Some peers read through the page cache, which
    /// --cache-share does not bound: each pass of random reads is short for that reason. To bound it, give the command a memory limit:
    /// systemd-run --scope -p MemoryMax=512M ringbench engine.
    ///
    /// Example: ringbench engine --quick. Deep reads of two engines: ringbench engine --engines ringbase,lmdb --overwrite-share 0
    Engine(cmd::engine::EngineArgs),
    /// The storage ring alone: reads and durable writes of a file at several depths.
    Io(cmd::io::IoArgs),
    /// What an instrumented site costs: tracing off, its category off, and recorded.
    ///
    /// Example: ringbench trace --json
    Trace(cmd::trace::TraceArgs),
    /// Answers frames with nothing; a child of `kv`.
    #[command(hide = true)]
    Echo(cmd::echo::EchoArgs),
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Scan(args) => cmd::scan::run(&args),
        Command::Backfill(args) => cmd::backfill::run(&args),
        Command::Kv(args) => cmd::kv::run(&args),
        Command::Echo(args) => cmd::echo::run(&args),
        Command::Engine(args) => cmd::engine::run(&args),
        Command::Churn(args) => cmd::churn::run(&args),
        Command::ScanMemory(args) => cmd::scan_memory::run(&args),
        Command::Memory(args) => cmd::memory::run(&args),
        Command::SeqList(args) => cmd::seqlist::run(&args),
        Command::Io(args) => cmd::io::run(&args),
        Command::Trace(args) => cmd::trace::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

fn fail(error: &BenchError) -> ExitCode {
    eprintln!("ringbench: {error}");
    let mut source = error.source();
    while let Some(cause) = source {
        eprintln!("  because: {cause}");
        source = cause.source();
    }
    ExitCode::from(if matches!(error, BenchError::Misuse(_)) { 2 } else { 1 })
}
