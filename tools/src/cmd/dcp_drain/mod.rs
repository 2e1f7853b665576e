//! `ringctl dcp-drain`: receives streams of a bucket, says how fast, and whether what came is right.
//!
//! `check` is what a stream promises, `expected` what documents there should be, `drain` receives, `report` shows.
//!
//! Does not know: the protocol of streams (`ringbase::client::dcp`).

mod check;
mod drain;
mod expected;
mod report;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use indicatif::{HumanCount, ProgressBar};
use ringbase::client::{Connection, DcpOptions};
use ringbase::protocol::dcp::{
    FilterSelection, OpenFlags, StreamFilter, StreamFlags, StreamId, StreamRequest,
};
use ringbase::protocol::{CollectionId, Feature};
use ringbase_storage::types::{Seqno, VbId};
use signal_hook::consts::SIGINT;
use signal_hook::flag;

use self::drain::{DrainError, Drained, Plan, Progress, Stop, drain_all};
use self::expected::Expected;
use self::report::{Verified, to_json, write_report, write_violations};
use super::connect_options;
use crate::args::{DcpDrainArgs, GlobalArgs};
use crate::failure::Failure;
use crate::output::{megabytes_per_second, print, print_json};
use crate::progress::{self, show_while};

/// Exit code of a process that a second Ctrl-C ends.
const INTERRUPTED: i32 = 130;

impl From<DrainError> for Failure {
    fn from(error: DrainError) -> Failure {
        match error {
            DrainError::Open(error) => Failure::Client(error),
            error => Failure::other("the drain ended early", error),
        }
    }
}

pub(crate) fn run(global: &GlobalArgs, args: &DcpDrainArgs) -> Result<(), Failure> {
    if args.seconds.is_some() && !args.follow && !args.hang {
        return Err(Failure::misuse("--seconds needs --follow or --hang: other streams end by themselves"));
    }
    let plan = plan(global, args)?;
    let vbucket_count = Connection::open(&plan.connect)?.vbucket_count()?;
    let vbuckets = chosen_vbuckets(args, vbucket_count);
    let expected = match &args.verify {
        Some(form) => Some(
            Expected::read(form, &vbuckets, vbucket_count)
                .map_err(|error| Failure::other("nothing to compare with", error))?,
        ),
        None => None,
    };
    let stop = Stop::when(interrupts()?);
    let mut drained =
        drain_and_show(&plan, &vbuckets, usize::from(args.connections), expected.as_ref(), &stop)?;

    let is_cut_short = plan.ends && drained.open_streams > 0;
    let verified = match &expected {
        Some(expected) if !is_cut_short && drained.error.is_none() => {
            let missing =
                expected.missing().map_err(|error| Failure::other("cannot name what is missing", error))?;
            Some(Verified { documents: expected.count(), missing })
        }
        Some(_) | None => None,
    };
    write_violations(&mut io::stderr().lock(), &drained, verified.as_ref()).map_err(Failure::Output)?;
    let error = drained.error.take();
    if error.is_none() || drained.total.counts.items() > 0 {
        if global.json {
            print_json(&to_json(&drained, verified.as_ref()))?;
        } else {
            print(|out| write_report(out, &drained, verified.as_ref()))?;
        }
    }
    if let Some(error) = error {
        return Err(error.into());
    }
    let missing = verified.map_or(0, |verified| verified.missing.count);
    match (drained.violations.count, missing) {
        (0, 0) if is_cut_short && !plan.hangs => {
            let open = drained.open_streams;
            Err(Failure::other("interrupted", format!("{open} streams had not ended")))
        }
        (0, 0) => Ok(()),
        (violations, 0) => Err(Failure::other("what came is not right", format!("{violations} violations"))),
        (violations, missing) => Err(Failure::other(
            "what came is not right",
            format!("{violations} violations, {missing} documents are missing"),
        )),
    }
}

fn plan(global: &GlobalArgs, args: &DcpDrainArgs) -> Result<Plan, Failure> {
    let mut connect = connect_options(global)?;
    let needs_collections = !args.collection.is_empty() || args.stream_id.is_some();
    if needs_collections {
        connect.features = connect.features.with(Feature::Collections);
    }
    let mut flags = OpenFlags::PRODUCER;
    if args.xattrs {
        connect.features = connect.features.with(Feature::Xattr);
        flags = flags | OpenFlags::INCLUDE_XATTRS;
    }
    if args.no_value {
        flags = flags | OpenFlags::NO_VALUE;
    }
    let name = args.name.clone().unwrap_or_else(|| format!("ringctl-drain-{}", std::process::id()));
    let dcp = DcpOptions {
        flags,
        window_bytes: args.buffer_size,
        acknowledge_share: args.ack_ratio,
        acknowledges: !args.hang,
        ..DcpOptions::named(name)
    };
    let selection = match args.collection.is_empty() {
        true => FilterSelection::All,
        false => FilterSelection::Collections(args.collection.iter().map(|id| CollectionId(*id)).collect()),
    };
    let filter = StreamFilter { selection, raw_stream_id: args.stream_id, ..StreamFilter::default() };
    let ends = !args.follow;
    let start = Seqno(args.from);
    let mut flags = if ends { StreamFlags::TO_LATEST } else { StreamFlags::NONE };
    if args.disk_only {
        flags = flags | StreamFlags::DISK_ONLY;
    }
    let request =
        StreamRequest { flags, start, snap_start: start, snap_end: start, ..StreamRequest::FROM_NOTHING };
    Ok(Plan {
        connect,
        dcp,
        stream_id: args.stream_id.and_then(StreamId::new),
        request,
        filter: needs_collections.then_some(filter),
        needs_collections,
        allows_oso: args.oso,
        hangs: args.hang,
        ends,
        lasts: args.seconds.map(Duration::from_secs_f64),
    })
}

/// Each vbucket once.
fn chosen_vbuckets(args: &DcpDrainArgs, vbucket_count: u16) -> Vec<VbId> {
    if args.vbucket.is_empty() {
        return (0..vbucket_count).map(VbId).collect();
    }
    let mut ids: Vec<u16> = args.vbucket.iter().flat_map(|range| range.first..=range.last).collect();
    ids.sort_unstable();
    ids.dedup();
    ids.into_iter().map(VbId).collect()
}

/// The first Ctrl-C sets the flag, the second ends the process.
fn interrupts() -> Result<Arc<AtomicBool>, Failure> {
    let interrupted = Arc::new(AtomicBool::new(false));
    flag::register_conditional_shutdown(SIGINT, INTERRUPTED, Arc::clone(&interrupted))
        .and_then(|_| flag::register(SIGINT, Arc::clone(&interrupted)))
        .map_err(|error| Failure::other("cannot listen for Ctrl-C", error))?;
    Ok(interrupted)
}

fn drain_and_show(
    plan: &Plan,
    vbuckets: &[VbId],
    connections: usize,
    expected: Option<&Expected>,
    stop: &Stop,
) -> Result<Drained, Failure> {
    let progress = Progress::default();
    let template = "{bar:30} {human_pos}/{human_len} streams ended  {msg}";
    let bar = progress::bar(Some(vbuckets.len() as u64), template);
    let drain = || drain_all(plan, vbuckets, connections, expected, (&progress, stop));
    Ok(show_while(&bar, |bar| show(bar, &progress), drain)?)
}

fn show(bar: &ProgressBar, progress: &Progress) {
    let seconds = bar.elapsed().as_secs_f64();
    let items = progress.items.load(Ordering::Relaxed);
    let rate = (items as f64 / seconds.max(0.001)) as u64;
    let megabytes = megabytes_per_second(progress.bytes.load(Ordering::Relaxed), seconds);
    let (items, rate) = (HumanCount(items), HumanCount(rate));
    bar.set_message(format!("{items} items  {rate} items/s  {megabytes:.1} MB/s"));
    bar.set_position(progress.ended.load(Ordering::Relaxed));
}
