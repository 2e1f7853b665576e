//! What streams leave in a trace, over a simulated disk: each backfill, each opening of a scan and each run of one, closed with what came of it.
//!
//! Each test records in a process of its own.

use std::time::Duration;

use ringbase::dcp::piece::StreamNumber;
use ringbase::dcp::streams::PIECES_MAX;
use ringbase::dcp::time::Spent;
use ringbase::protocol::dcp::{StreamEndStatus, StreamFlags, StreamRequest};
use ringbase::range_scan::RangeScanConfig;
use ringbase_storage::io::sim::{Fault, Injection};
use ringbase_storage::shard::Home;
use ringbase_storage::types::{Kind, Seqno};
use ringbase_storage::vbstore::NewVersion;
use tracing_subscriber::layer::SubscriberExt;

use crate::dcp_streams::{Client, TO_LATEST};
use crate::range_scan::rig::{BUCKET, CLIENT, Rig};
use crate::recorded::{Fields, Recorded, run_alone};

/// Records the spans of this thread until the guard is dropped.
fn recording() -> (Recorded, tracing::subscriber::DefaultGuard) {
    let recorded = Recorded::default();
    let subscriber = tracing_subscriber::registry().with(recorded.clone());
    let guard = tracing::subscriber::set_default(subscriber);
    (recorded, guard)
}

/// The closed spans of this name, of one stream.
pub(crate) fn of_stream(recorded: &Recorded, name: &str, stream: u64) -> Vec<Fields> {
    recorded.of(name).into_iter().filter(|fields| fields["flow"] == stream.to_string()).collect()
}

fn number(span: &Fields, name: &str) -> u64 {
    span[name].parse().unwrap()
}

/// Status, result, and the stream's state before and after of each run.
fn outcomes(runs: &[Fields]) -> Vec<[&str; 4]> {
    runs.iter().map(|run| ["status", "result", "state", "state_after"].map(|name| &*run[name])).collect()
}

/// T1.1, T1.3, T1.4, T1.6, T1.7, T2.11: success, slow client, close, failure, bug: every span is closed, and says whose, from where, how far,
/// with what result and status, and in which state the stream was before and after.
#[test]
fn every_backfill_opening_and_run_is_a_closed_span_with_what_came_of_it() {
    run_alone("dcp_spans::recorded_alone");
}

#[test]
#[ignore = "run by every_backfill_opening_and_run_is_a_closed_span_with_what_came_of_it in a process of its own"]
fn recorded_alone() {
    let (recorded, _guard) = recording();
    let rig = Rig::new(10);
    rig.load_large(2_000);
    let mut client = Client::of(&rig, 64 << 20);
    // 1: to its end, the client slower than the disk. 2: closed while it waits. 3: the connection goes. 4: a bug. 5: the disk fails.
    client.open(&rig, 1, TO_LATEST);
    client.take_all(&rig);
    client.open(&rig, 2, TO_LATEST);
    rig.settle();
    client.streams.close(StreamNumber(2));
    rig.settle();
    client.pieces.arrived.borrow_mut().clear();
    client.open(&rig, 3, TO_LATEST);
    rig.settle();
    client.streams.connection_gone(CLIENT);
    rig.settle();
    client.pieces.arrived.borrow_mut().clear();
    client.pieces.is_broken.set(true);
    client.open(&rig, 4, TO_LATEST);
    client.take_all(&rig);
    // 6: closed in the middle of a read.
    rig.disk.set_latency(Duration::from_millis(5), Duration::from_millis(5));
    client.open(&rig, 6, TO_LATEST);
    let is_running =
        || recorded.open().iter().any(|(name, run)| *name == "dcp_backfill_run" && run["flow"] == "6");
    while !is_running() {
        assert!(rig.sim.step());
    }
    client.streams.close(StreamNumber(6));
    rig.settle();
    rig.disk.set_latency(Duration::ZERO, Duration::ZERO);
    client.pieces.arrived.borrow_mut().clear();
    rig.disk.inject(Injection::next(Fault::ReadError).on("data").sticky());
    client.open(&rig, 5, TO_LATEST);
    client.take_all(&rig);

    recorded.assert_all_closed();
    let result = |name, stream| {
        let spans = of_stream(&recorded, name, stream);
        assert!(spans.iter().all(|span| span["conn"] == "client:one" && span["vb"] == "0"), "{spans:?}");
        spans.last().map(|span| (span["status"].clone(), span["result"].clone()))
    };
    let finished = |result: &str| Some(("finished".to_owned(), result.to_owned()));
    assert_eq!(result("dcp_backfill", 1), finished("Ok"));
    assert_eq!(result("dcp_backfill_run", 1), finished("end"));
    for stream in [2, 3] {
        assert_eq!(result("dcp_backfill", stream), finished("cancelled"));
        let waiting = Some(("snooze".to_owned(), "buffer full".to_owned()));
        assert_eq!(result("dcp_backfill_run", stream), waiting, "it waited for the client");
    }
    assert_eq!(result("dcp_backfill", 4), finished("cancelled"));
    assert_eq!(result("dcp_backfill_run", 5), finished("failed"));
    assert_eq!(result("dcp_backfill_run", 6), finished("cancelled"));
    assert_eq!((client.sent[&StreamNumber(4)].end, client.sent[&StreamNumber(4)].disconnected), (None, true));
    assert_eq!(client.sent[&StreamNumber(5)].end, Some(StreamEndStatus::BackfillFail));

    let whole = &of_stream(&recorded, "dcp_backfill", 1)[0];
    assert_eq!((&*whole["start"], &*whole["last"], &*whole["items"]), ("1", "2000", "2000"));
    // T1.6: a run begins behind the one before; together they have everything.
    let runs = of_stream(&recorded, "dcp_backfill_run", 1);
    assert!(runs.iter().all(|run| number(run, "items") <= 256), "T2.11: {runs:?}");
    assert!(runs.len() > 7, "{runs:?}");
    assert!(runs.windows(2).all(|pair| number(&pair[0], "last") < number(&pair[1], "from")));
    assert_eq!(runs.iter().map(|run| number(run, "items")).sum::<u64>(), 2_000);
    assert_eq!(runs.iter().map(|run| number(run, "bytes")).sum::<u64>(), number(whole, "bytes"));
    // T1.3: each is a child of its backfill, and says why it stopped and in which state it left the stream.
    for stream in [1, 2, 3, 5, 6] {
        let runs = of_stream(&recorded, "dcp_backfill_run", stream);
        assert!(!runs.is_empty() && runs.iter().all(|run| run["parent"] == "dcp_backfill"), "{runs:?}");
        let outcomes = outcomes(&runs);
        let (last, others) = outcomes.split_last().unwrap();
        assert!(others.iter().all(|[status, .., after]| (*status, *after) != ("finished", "backfilling")));
        assert!(others.iter().all(|[.., before, after]| (*before, *after) == ("backfilling", "backfilling")));
        let expected = match stream {
            1 => ["finished", "end", "backfilling", "dead"],
            2 | 3 => ["snooze", "buffer full", "backfilling", "backfilling"],
            5 => ["finished", "failed", "backfilling", "dead"],
            _ => ["finished", "cancelled", "backfilling", "dead"],
        };
        assert_eq!(*last, expected, "{stream}");
    }
    let runs = recorded.of("dcp_backfill_run");
    for reason in ["end", "buffer full", "cancelled", "failed"] {
        assert!(runs.iter().any(|run| run["result"] == reason), "{reason}: {runs:?}");
    }
    // T1.4: of each the opening, inside of its backfill.
    for stream in 1..=6 {
        let opened = &of_stream(&recorded, "dcp_scan_open", stream)[0];
        assert_eq!((&*opened["kind"], &*opened["start"], &*opened["vb"]), ("by seqno", "1", "0"));
        assert_eq!((&*opened["result"], &*opened["parent"]), ("opened", "dcp_backfill"), "{stream}");
        assert_eq!((&*opened["end"], &*opened["purge"]), ("2000", "0"));
    }
}

/// What each stream waits for.
fn waits(client: &Client) -> Vec<String> {
    let mut waits = Vec::new();
    client.streams.each(BUCKET, None, &mut |facts| {
        let field = facts.fields.into_iter().find(|(name, _)| name == "waits_for");
        waits.extend(field.and_then(|(_, value)| Some(value.as_str()?.to_owned())));
    });
    waits
}

/// T1.2: what a run says is what is done: after `success` the next one follows though the client does nothing; after `snooze`, because two pieces
/// of the stream, all of its connection or all memory are under way, nothing is read before something was given back; after `finished` nothing.
/// Without anything to read there is no run, and the backfill has finished.
#[test]
fn the_status_of_a_run_is_what_is_done_after_it() {
    run_alone("dcp_spans::statuses_alone");
}

#[test]
#[ignore = "run by the_status_of_a_run_is_what_is_done_after_it in a process of its own"]
fn statuses_alone() {
    let (recorded, _guard) = recording();
    for (seed, bytes_max) in [(61, 64 << 20), (62, 1)] {
        let rig = Rig::new(seed);
        rig.load_large(1_500);
        let mut client = Client::of(&rig, bytes_max);
        client.open(&rig, seed, TO_LATEST);
        let (mut known, mut snoozes, mut reads) = (0, 0, rig.disk.stats().reads);
        loop {
            rig.settle();
            let runs = of_stream(&recorded, "dcp_backfill_run", seed);
            assert!(runs.len() > known, "what was given back lets it go on");
            known = runs.len();
            let outcomes = outcomes(&runs);
            if outcomes[known - 1][0] == "finished" {
                break;
            }
            // The last one snoozes, and those before it that were not followed by a piece given back went on.
            assert_eq!(outcomes[known - 1][..2], ["snooze", "buffer full"]);
            snoozes += 1;
            assert_eq!(outcomes.iter().filter(|[status, ..]| *status == "snooze").count(), snoozes);
            rig.sim.run_for(Duration::from_secs(5));
            assert_eq!(of_stream(&recorded, "dcp_backfill_run", seed).len(), known, "it snoozes");
            assert!(rig.disk.stats().reads > reads || snoozes > 1);
            reads = rig.disk.stats().reads;
            rig.sim.run_for(Duration::from_secs(5));
            assert_eq!(rig.disk.stats().reads, reads);
            assert!(client.take());
        }
        assert!(snoozes > 2, "{snoozes}");
        let runs = of_stream(&recorded, "dcp_backfill_run", seed);
        let statuses: Vec<&str> = runs.iter().map(|run| &*run["status"]).collect();
        assert!(statuses.contains(&"success"), "{statuses:?}");
        let finished = of_stream(&recorded, "dcp_backfill", seed);
        assert_eq!((finished.len(), &*finished[0]["status"]), (1, "finished"));
        rig.sim.run_for(Duration::from_secs(5));
        client.take_all(&rig);
        assert_eq!(of_stream(&recorded, "dcp_backfill_run", seed).len(), known, "nothing after the end");
        assert_eq!(client.sent[&StreamNumber(seed)].seqnos.len(), 1_500);
    }

    // The memory of all streams is in use: nobody reads before some of it was given back.
    let rig = Rig::new(67);
    rig.load_large(1_500);
    let mut client = Client::of(&rig, 1 << 20);
    (700..712).for_each(|number| drop(client.open(&rig, number, TO_LATEST)));
    rig.settle();
    assert!(waits(&client).iter().any(|wait| wait == Spent::Memory.name()), "{:?}", waits(&client));
    let runs = recorded.of("dcp_backfill_run").len();
    for number in 700..712 {
        let runs = of_stream(&recorded, "dcp_backfill_run", number);
        assert!(runs.last().is_none_or(|run| run["status"] == "snooze"), "{number}: {runs:?}");
    }
    rig.sim.run_for(Duration::from_secs(5));
    assert_eq!(recorded.of("dcp_backfill_run").len(), runs);
    client.take_all(&rig);
    assert!(client.sent.values().all(|sent| sent.seqnos.len() == 1_500));

    // All pieces of a connection are under way: who finds none snoozes, until others are closed and what they had was given back.
    let rig = Rig::new(63);
    rig.load_large(1_500);
    let mut client = Client::of(&rig, 64 << 20);
    let count = PIECES_MAX as u64;
    (1_000..1_000 + count).for_each(|number| drop(client.open(&rig, number, TO_LATEST)));
    rig.settle();
    let runs_of = |number| of_stream(&recorded, "dcp_backfill_run", number);
    let waiting: Vec<u64> = (1_000..1_000 + count).filter(|number| runs_of(*number).len() < 2).collect();
    let stuck = waiting.first().copied().unwrap_or(1_000 + count - 1);
    let before = runs_of(stuck).len();
    rig.sim.run_for(Duration::from_secs(5));
    assert_eq!(runs_of(stuck).len(), before, "nothing can be cancelled: it snoozes");
    (1_000..1_000 + count)
        .filter(|number| *number != stuck)
        .for_each(|number| client.streams.close(StreamNumber(number)));
    rig.settle();
    while client.take_of(|number| number.0 != stuck) {}
    rig.settle();
    assert!(runs_of(stuck).len() > before, "what was cancelled made room");
    client.take_all(&rig);
    assert_eq!(client.sent[&StreamNumber(stuck)].seqnos.len(), 1_500);

    // Nothing behind the position: no backfill, so no run.
    let uuid = rig.store().uuid();
    let end = Seqno(1_500);
    let request = StreamRequest { flags: TO_LATEST, start: end, end, uuid, snap_start: end, snap_end: end };
    client.open_from(&rig, 9_000, request);
    client.take_all(&rig);
    assert_eq!(client.sent[&StreamNumber(9_000)].end, Some(StreamEndStatus::Ok));
    assert!(runs_of(9_000).is_empty() && of_stream(&recorded, "dcp_backfill", 9_000).is_empty());
    recorded.assert_all_closed();
}

/// T1.4: an opening that fails, and one that finds tombstones purged that its client needs, are closed spans that say so.
#[test]
fn an_opening_that_leads_to_nothing_says_why() {
    run_alone("dcp_spans::openings_alone");
}

#[test]
#[ignore = "run by an_opening_that_leads_to_nothing_says_why in a process of its own"]
fn openings_alone() {
    let (recorded, _guard) = recording();
    let rig = Rig::new(64);
    rig.load_large(300);
    rig.settle();
    rig.disk.inject(Injection::next(Fault::WriteError).on("wal").sticky());
    let store = rig.store();
    let found = rig.sim.block_on(store.get(b"\0lost")).unwrap();
    let kind = Kind::Mutation;
    let new = NewVersion { key: b"\0lost", value: b"", flags: 0, expiry: 0, datatype: 0, kind };
    store.write(&found, new).unwrap();
    let mut client = Client::of(&rig, 64 << 20);
    client.open(&rig, 1, StreamFlags::NONE);
    client.take_all(&rig);
    assert_eq!(client.sent[&StreamNumber(1)].end, Some(StreamEndStatus::BackfillFail));
    let opened = of_stream(&recorded, "dcp_scan_open", 1);
    let told = |opened: &[Fields]| -> Vec<[String; 4]> {
        opened.iter().map(|span| ["vb", "kind", "start", "result"].map(|name| span[name].clone())).collect()
    };
    assert_eq!(told(&opened), [["0", "by seqno", "1", "failed"]]);
    assert!(of_stream(&recorded, "dcp_backfill_run", 1).is_empty());

    let rig = Rig::with_home(65, RangeScanConfig::default(), Home::Memory);
    rig.load(20, false);
    let writer = rig.writer();
    rig.sim.block_on(async {
        for number in 0..10 {
            writer.put(format!("key{number:03}").as_bytes(), None).await;
        }
        writer.put(b"last", Some(b"value")).await;
    });
    let mut client = Client::of(&rig, 64 << 20);
    let uuid = rig.store().uuid();
    let at = Seqno(20);
    let request =
        StreamRequest { start: at, snap_start: at, snap_end: at, uuid, ..StreamRequest::FROM_NOTHING };
    client.open_from(&rig, 2, request);
    while rig.store().purge_tombstones(u32::MAX) {}
    assert!(rig.store().purge_seqno() > at);
    client.take_all(&rig);
    assert_eq!(client.sent[&StreamNumber(2)].end, Some(StreamEndStatus::Rollback));
    assert_eq!(told(&of_stream(&recorded, "dcp_scan_open", 2)), [["0", "memory", "21", "purged"]]);
    let whole = &of_stream(&recorded, "dcp_memory_snapshot", 2)[0];
    assert_eq!((&*whole["result"], &*whole["state_after"]), ("Rollback", "dead"));
    recorded.assert_all_closed();
}

/// T1.9, T1.3, T1.4: the backfill of a bucket in memory is a span from its beginning to its end, whatever ends it, and its opening and its runs lie
/// inside: whose, from where, how far, why each stopped.
#[test]
fn a_backfill_of_memory_is_a_span_with_its_opening_and_its_runs_inside() {
    run_alone("dcp_spans::memory_alone");
}

#[test]
#[ignore = "run by a_backfill_of_memory_is_a_span_with_its_opening_and_its_runs_inside in a process of its own"]
fn memory_alone() {
    let (recorded, _guard) = recording();
    let rig = Rig::with_home(66, RangeScanConfig::default(), Home::Memory);
    let writer = rig.writer();
    rig.sim.block_on(async {
        for number in 0..2_000 {
            writer.put(format!("key{number:05}").as_bytes(), Some(&[7; 300])).await;
        }
    });
    let mut client = Client::of(&rig, 64 << 20);
    // 1: to its end. 2: closed while it waits for its client. 3: goes on with what is written later.
    client.open(&rig, 1, TO_LATEST);
    rig.settle();
    let open = recorded.open();
    assert!(
        open.iter().any(|(name, _)| *name == "dcp_memory_snapshot"),
        "it lasts while its client is slow: {open:?}"
    );
    assert!(open.iter().all(|(name, _)| *name != "dcp_memory_run"), "no run lasts meanwhile: {open:?}");
    client.take_all(&rig);
    client.open(&rig, 2, TO_LATEST);
    rig.settle();
    client.streams.close(StreamNumber(2));
    rig.settle();
    client.pieces.arrived.borrow_mut().clear();
    client.open(&rig, 3, StreamFlags::NONE);
    client.take_all(&rig);
    rig.sim.block_on(writer.put(b"later", Some(b"value")));
    client.take_all(&rig);
    client.streams.close(StreamNumber(3));
    rig.settle();
    recorded.assert_all_closed();

    for stream in 1..=3 {
        let snapshots = of_stream(&recorded, "dcp_memory_snapshot", stream);
        let opened = of_stream(&recorded, "dcp_scan_open", stream);
        let runs = of_stream(&recorded, "dcp_memory_run", stream);
        assert_eq!(snapshots.len(), if stream == 3 { 2 } else { 1 });
        assert_eq!(opened.len(), snapshots.len());
        assert!(opened.iter().chain(&runs).all(|span| span["parent"] == "dcp_memory_snapshot"));
        assert!(snapshots.iter().chain(&opened).chain(&runs).all(|span| span["vb"] == "0"));
        assert!(opened.iter().all(|span| (&*span["kind"], &*span["result"]) == ("memory", "opened")));
        assert_eq!((&*opened[0]["start"], &*opened[0]["end"], &*opened[0]["purge"]), ("1", "2000", "0"));
        assert!(of_stream(&recorded, "dcp_backfill", stream).is_empty(), "nothing is on a disk");
        assert!(runs.windows(2).all(|pair| number(&pair[0], "last") < number(&pair[1], "from")), "{runs:?}");
        for name in ["items", "bytes"] {
            let sum = |spans: &[Fields]| spans.iter().map(|span| number(span, name)).sum::<u64>();
            assert_eq!(sum(&runs), sum(&snapshots), "{stream}: {name}");
        }
        let (whole, outcomes) = (&snapshots[0], outcomes(&runs));
        match stream {
            1 => {
                assert_eq!((&*whole["start"], &*whole["last"], &*whole["items"]), ("1", "2000", "2000"));
                assert_eq!((&*whole["status"], &*whole["result"]), ("finished", "Ok"));
                assert_eq!(outcomes.last(), Some(&["finished", "end", "in-memory", "dead"]));
                assert!(
                    outcomes.iter().any(|outcome| outcome[..2] == ["snooze", "buffer full"]),
                    "{outcomes:?}"
                );
                assert!(
                    outcomes.iter().any(|outcome| outcome[..2] == ["success", "buffer full"]),
                    "{outcomes:?}"
                );
            }
            2 => {
                assert_eq!((&*whole["result"], &*whole["state_after"]), ("cancelled", "dead"));
                assert_eq!(outcomes.last(), Some(&["snooze", "buffer full", "in-memory", "in-memory"]));
            }
            _ => {
                assert_eq!(outcomes.last(), Some(&["finished", "end", "in-memory", "in-memory"]));
                let later = &snapshots[1];
                assert_eq!((&*later["start"], &*later["items"], &*later["result"]), ("2001", "1", "end"));
            }
        }
    }
}
