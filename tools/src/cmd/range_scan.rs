//! `ringctl range-scan`: counts, times and prints what a range scan finds.
//!
//! Does not know: the protocol of a scan (`ringbase::client::{scan, scan_all}`).

use std::ffi::OsString;
use std::io::{self, Write};
use std::ops::Bound;
use std::os::unix::ffi::OsStringExt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ringbase::client::{
    ConnectionScan, ContinueLimits, RecordCounts, ScanAllOptions, ScanPlan, ScanRecord, ScanReport, scan_all,
};
use ringbase::protocol::key::LOGICAL_KEY_BYTES_MAX;
use ringbase::protocol::range_scan::{RangeScanCreate, Selection, SnapshotRequirements};
use ringbase::protocol::{CollectionId, Feature};
use ringbase_storage::types::{Seqno, VbId, VbUuid};
use serde_json::{Map, Value, json};

use super::connect_options;
use crate::args::{GlobalArgs, RangeScanArgs};
use crate::failure::Failure;
use crate::output::{
    datatype_names, human_bytes, megabytes_per_second, print, print_json, put_bytes, put_value, write_table,
};

/// Bytes of lines that are collected before they are written.
const PRINT_BYTES: usize = 64 * 1024;

pub(crate) fn run(global: &GlobalArgs, args: RangeScanArgs) -> Result<(), Failure> {
    let options = scan_options(global, &args)?;
    let printing = if args.print_keys {
        Printing::Keys
    } else if args.print_documents {
        Printing::Documents
    } else {
        Printing::Nothing
    };
    if printing == Printing::Nothing {
        let report = scan_all(&options, |_| |_: VbId, _: ScanRecord<'_>| Ok(()))?;
        return if global.json { print_json(&report_json(&report)) } else { print_report(&report) };
    }

    let printers: Vec<Mutex<Printer>> = (0..options.connections)
        .map(|_| Mutex::new(Printer { printing, json: global.json, lines: Vec::new() }))
        .collect();
    let locked = |index: usize| printers[index].lock().unwrap_or_else(PoisonError::into_inner);
    let scanned = scan_all(&options, |index| {
        move |vbucket: VbId, record: ScanRecord<'_>| locked(index).print(vbucket, record)
    });
    for index in 0..printers.len() {
        locked(index).flush().map_err(Failure::Output)?;
    }
    let report = scanned?;
    if global.json {
        eprintln!("{}", report_json(&report));
        return Ok(());
    }
    write_report(&mut io::stderr().lock(), &report).map_err(Failure::Output)
}

fn scan_options(global: &GlobalArgs, args: &RangeScanArgs) -> Result<ScanAllOptions, Failure> {
    let vbuckets: Vec<VbId> =
        args.vbucket.iter().flat_map(|range| range.first..=range.last).map(VbId).collect();
    let vbuckets = (!vbuckets.is_empty()).then_some(vbuckets);
    let snapshot = match (args.snapshot_uuid, args.snapshot_seqno) {
        (Some(uuid), Some(seqno)) => {
            if vbuckets.as_ref().is_none_or(|vbuckets| vbuckets.len() != 1) {
                return Err(Failure::misuse("a snapshot belongs to one vbucket: give exactly one --vbucket"));
            }
            Some(SnapshotRequirements {
                uuid: VbUuid(uuid),
                seqno: Seqno(seqno),
                seqno_exists: args.snapshot_seqno_exists,
                timeout_ms: args.snapshot_timeout_ms,
            })
        }
        _ => None,
    };
    let mut connect = connect_options(global)?;
    if args.include_xattrs {
        connect.features = connect.features.with(Feature::Xattr).with(Feature::RangeScanIncludeXattr);
    }
    let create = RangeScanCreate {
        collection: CollectionId(args.collection),
        key_only: args.key_only || args.print_keys,
        include_xattrs: args.include_xattrs,
        selection: selection(args)?,
        snapshot,
        name: args.name.clone(),
    };
    let limits = ContinueLimits { items: args.items, time_ms: args.time_ms, bytes: args.bytes };
    let patience = Duration::from_secs_f64(args.patience);
    Ok(ScanAllOptions {
        connect,
        connections: usize::from(args.connections),
        vbuckets,
        plan: ScanPlan { create, limits, overlap: !args.one_at_a_time, patience },
    })
}

fn selection(args: &RangeScanArgs) -> Result<Selection, Failure> {
    if let Some(samples) = args.samples {
        return Ok(Selection::Sampling { samples, seed: args.seed });
    }
    if let Some(prefix) = &args.prefix {
        let start = bound("--prefix", prefix)?;
        let end = match after_prefix(&start) {
            Some(end) => Bound::Excluded(end),
            None => Bound::Unbounded,
        };
        return Ok(Selection::Range { start: Bound::Included(start), end });
    }
    let start = either(("--start", &args.start), ("--excl-start", &args.excl_start))?;
    let end = either(("--end", &args.end), ("--excl-end", &args.excl_end))?;
    match (&start, &end) {
        (Bound::Unbounded, Bound::Unbounded) => Ok(Selection::All),
        _ => Ok(Selection::Range { start, end }),
    }
}

fn bound(flag: &str, text: &OsString) -> Result<Vec<u8>, Failure> {
    let bytes = text.clone().into_vec();
    if bytes.len() > LOGICAL_KEY_BYTES_MAX {
        return Err(Failure::misuse(format!("{flag} has {} bytes, at most 250 are possible", bytes.len())));
    }
    Ok(bytes)
}

fn either(
    inclusive: (&str, &Option<OsString>),
    exclusive: (&str, &Option<OsString>),
) -> Result<Bound<Vec<u8>>, Failure> {
    match (inclusive, exclusive) {
        ((flag, Some(text)), _) => bound(flag, text).map(Bound::Included),
        (_, (flag, Some(text))) => bound(flag, text).map(Bound::Excluded),
        ((_, None), (_, None)) => Ok(Bound::Unbounded),
    }
}

/// The least key above all that begin with `prefix`; `None` if there is none.
fn after_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|byte| *byte != 0xff)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Printing {
    Nothing,
    Keys,
    Documents,
}

/// Collects the lines of one connection and writes them in large pieces, so that lines stay whole.
struct Printer {
    printing: Printing,
    json: bool,
    lines: Vec<u8>,
}

impl Printer {
    fn print(&mut self, vbucket: VbId, record: ScanRecord<'_>) -> io::Result<()> {
        match (self.printing, record) {
            (Printing::Keys, record) if !self.json => self.lines.extend_from_slice(record.key()),
            (_, record) => serde_json::to_writer(&mut self.lines, &record_json(vbucket, record))?,
        }
        self.lines.push(b'\n');
        if self.lines.len() >= PRINT_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(&self.lines)?;
        out.flush()?;
        self.lines.clear();
        Ok(())
    }
}

fn record_json(vbucket: VbId, record: ScanRecord<'_>) -> Value {
    let mut object = Map::new();
    object.insert("vbucket".to_owned(), vbucket.0.into());
    put_bytes(&mut object, "key", record.key());
    if let ScanRecord::Document(document) = record {
        object.insert("seqno".to_owned(), document.seqno.0.into());
        object.insert("cas".to_owned(), document.cas.0.to_string().into());
        object.insert("flags".to_owned(), document.flags.into());
        object.insert("expiry".to_owned(), document.expiry.into());
        object.insert("datatype".to_owned(), datatype_names(document.datatype).into());
        put_value(&mut object, document.datatype, document.value);
    }
    object.into()
}

fn report_json<S>(report: &ScanReport<S>) -> Value {
    let one = |scan: &ConnectionScan| {
        let (counts, seconds) = (&scan.counts, scan.elapsed.as_secs_f64());
        let RecordCounts { records, key_bytes, value_bytes } = counts.records;
        json!({
            "scans": counts.scans,
            "empty_vbuckets": counts.empty,
            "records": records,
            "key_bytes": key_bytes,
            "value_bytes": value_bytes,
            "record_bytes": counts.record_bytes,
            "overhead_bytes": counts.overhead_bytes,
            "frames": counts.frames,
            "continues": counts.continues,
            "create_retries": counts.retries,
            "seconds": seconds,
            "megabytes_per_second": megabytes_per_second(counts.record_bytes, seconds),
        })
    };
    let connections: Vec<Value> = report.connections.iter().map(one).collect();
    json!({ "connections": connections, "total": one(&report.total) })
}

fn print_report<S>(report: &ScanReport<S>) -> Result<(), Failure> {
    print(|out| write_report(out, report))
}

fn write_report<S>(out: &mut dyn Write, report: &ScanReport<S>) -> io::Result<()> {
    let heads = [
        "CONNECTION",
        "SCANS",
        "EMPTY",
        "RECORDS",
        "RECORD BYTES",
        "OVERHEAD BYTES",
        "FRAMES",
        "CONTINUES",
        "SECONDS",
        "MB/S",
    ];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    let row = |name: String, scan: &ConnectionScan| {
        let (counts, seconds) = (&scan.counts, scan.elapsed.as_secs_f64());
        let numbers = [
            counts.scans,
            counts.empty,
            counts.records.records,
            counts.record_bytes,
            counts.overhead_bytes,
            counts.frames,
            counts.continues,
        ];
        let mut row = vec![name];
        row.extend(numbers.map(|number| number.to_string()));
        row.push(format!("{seconds:.3}"));
        row.push(format!("{:.1}", megabytes_per_second(counts.record_bytes, seconds)));
        row
    };
    for (index, scan) in report.connections.iter().enumerate() {
        rows.push(row(index.to_string(), scan));
    }
    rows.push(row("total".to_owned(), &report.total));
    write_table(out, &rows)?;
    let counts = &report.total.counts.records;
    write!(out, "{} of keys", human_bytes(counts.key_bytes))?;
    if counts.value_bytes > 0 {
        write!(out, ", {} of values", human_bytes(counts.value_bytes))?;
    }
    writeln!(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_before_the_next_key_that_does_not_begin_with_it() {
        assert_eq!(after_prefix(b"user:"), Some(b"user;".to_vec()));
        assert_eq!(after_prefix(b"a\xff\xff"), Some(b"b".to_vec()));
        assert_eq!(after_prefix(b"\xff\xff"), None);
        assert_eq!(after_prefix(b""), None);
    }

    #[test]
    fn a_document_is_a_line_of_json_whatever_its_key_is() {
        let document = ringbase::protocol::scan_records::DocumentRecord {
            flags: 1,
            expiry: 2,
            seqno: Seqno(3),
            cas: ringbase_storage::types::Cas(4),
            datatype: ringbase::protocol::Datatype::JSON,
            key: b"\xff",
            value: b"{\"a\":1}",
        };
        let shown = record_json(VbId(7), ScanRecord::Document(document));
        let expected = json!({
            "vbucket": 7, "key_base64": "/w==", "seqno": 3, "cas": "4", "flags": 1, "expiry": 2,
            "datatype": ["json"], "value": {"a": 1},
        });
        assert_eq!(shown, expected);
    }
}
