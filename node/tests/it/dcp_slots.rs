//! Which backfills of a core read first: by class, connection and stream, over a simulated disk.

use std::collections::BTreeMap;
use std::time::Duration;

use ringbase::dcp::piece::{StreamAnswer, StreamNumber};
use ringbase::dcp::slots::SLOTS_MAX;
use ringbase::protocol::dcp::{Priority, StreamEndStatus};
use ringbase::range_scan::ConnectionId;

use crate::dcp_streams::{Client, TO_LATEST};
use crate::range_scan::rig::{BUCKET, Rig};

const OK: Option<StreamEndStatus> = Some(StreamEndStatus::Ok);

fn slow_disk(seed: u64, documents: usize) -> Rig {
    let rig = Rig::new(seed);
    rig.load_large(documents);
    rig.disk.set_latency(Duration::from_millis(1), Duration::from_millis(1));
    rig
}

fn open(client: &Client, rig: &Rig, numbers: std::ops::Range<u64>, connection: u64, priority: Priority) {
    client.connection.set(ConnectionId(connection));
    client.priority.set(priority);
    for number in numbers {
        assert!(matches!(client.open(rig, number, TO_LATEST), StreamAnswer::Accepted(_)));
    }
}

/// Takes every piece as soon as it is there until `is_over`; returns the numbers of their streams in order.
fn take_until(client: &mut Client, rig: &Rig, is_over: impl Fn(&Client, &[u64]) -> bool) -> Vec<u64> {
    let mut taken = Vec::new();
    while !is_over(client, &taken) {
        assert!(taken.len() < 100_000);
        let next = client.pieces.arrived.borrow().front().map(|piece| piece.number.0);
        match next {
            Some(number) => {
                client.take_of(|_| true);
                taken.push(number);
            }
            None => assert!(rig.sim.step(), "the streams stand still after {} pieces", taken.len()),
        }
    }
    taken
}

/// Shares of what is read follow the weights of the classes while all of them have enough to read, and in a class connections are equal.
#[test]
fn classes_read_by_weight_and_connections_of_a_class_alike() {
    let rig = slow_disk(51, 3_000);
    let mut client = Client::of(&rig, 64 << 20);
    let read_before = rig.disk.stats().bytes_read;
    // Two connections of each class, one with more streams than the other.
    for (index, priority) in Priority::ALL.into_iter().enumerate() {
        let first = 1_000 * index as u64;
        open(&client, &rig, first..first + 30, 10 * index as u64 + 1, priority);
        open(&client, &rig, first + 500..first + 545, 10 * index as u64 + 2, priority);
    }
    let high = |number: &&u64| **number < 1_000;
    let taken = take_until(&mut client, &rig, |_, taken| taken.iter().filter(high).count() >= 500);
    let mut counts: BTreeMap<(u64, bool), usize> = BTreeMap::new();
    // The beginning is not counted: who asked first had all slots, and first reads take longer.
    for number in &taken[200..] {
        *counts.entry((number / 1_000, number % 1_000 >= 500)).or_default() += 1;
    }
    let of_class: Vec<f64> =
        (0..3).map(|class| (counts[&(class, false)] + counts[&(class, true)]) as f64).collect();
    let ratios = [of_class[0] / of_class[1], of_class[1] / of_class[2]];
    assert!(ratios.iter().all(|ratio| (1.6..2.6).contains(ratio)), "4 : 2 : 1, found {counts:?}");
    for class in 0..3 {
        let (one, other) = (counts[&(class, false)], counts[&(class, true)]);
        assert!(one.abs_diff(other) <= 6 + (one + other) / 8, "alike, found {counts:?}");
    }
    let metrics = &client.streams.metrics().slots;
    assert!(metrics.waited.iter().all(|waited| waited.get() > 20));
    let mean = metrics.waits_ns.each_ref().map(|waits| waits.histogram().mean());
    assert!(mean[0] < mean[1] && mean[1] < mean[2], "{mean:?}");
    let names: Vec<String> = client.streams.metrics().recorders().into_iter().map(|(name, _)| name).collect();
    assert!(names.iter().any(|name| name == "dcp_slot_wait_low_ns"), "{names:?}");
    take_until(&mut client, &rig, |client, _| {
        client.sent.len() == 225 && client.sent.values().all(|sent| sent.end == OK)
    });
    assert!(client.sent.values().all(|sent| sent.seqnos.len() == 3_000), "nobody starves");
    // What was read ahead and let go of while others read is read again; not much more than that.
    let stored = rig.disk.stats().bytes_read - read_before;
    let needed = 225 * 3_000 * 370;
    println!("{stored} bytes read for {needed} of documents");
    assert!(stored < 2 * needed, "{stored} of {needed}");
    assert_eq!((rig.views(), client.streams.buffer_bytes()), (0, 0));
}

/// A connection with one stream reads as fast beside one with a thousand as beside one with a few, and the others get on, too.
#[test]
fn one_stream_is_not_delayed_by_a_thousand_of_another_connection() {
    let lasts = |others: u64| {
        let rig = slow_disk(52, 4_000);
        let mut client = Client::of(&rig, 256 << 20);
        open(&client, &rig, 1..others + 1, 1, Priority::Medium);
        take_until(&mut client, &rig, |_, taken| taken.len() >= 50);
        open(&client, &rig, 0..1, 2, Priority::Medium);
        let began_ns = rig.sim.now_ns();
        let taken = take_until(&mut client, &rig, |client, _| {
            client.sent.get(&StreamNumber(0)).is_some_and(|sent| sent.end == OK)
        });
        assert!(taken.iter().any(|number| *number > 0));
        let lasts_ns = rig.sim.now_ns() - began_ns;
        client.streams.close_all();
        lasts_ns
    };
    let (beside_few, beside_many) = (lasts(100), lasts(1_000));
    assert!(beside_many <= beside_few + beside_few / 4, "{beside_many} ns instead of {beside_few} ns");
}

/// Who waits for its client holds no slot: clients that take nothing stop nobody.
#[test]
fn clients_that_take_nothing_hold_no_slots() {
    let rig = slow_disk(53, 700);
    let mut client = Client::of(&rig, 256 << 20);
    for connection in 0..5 {
        let first = 100 * (connection + 1);
        open(&client, &rig, first..first + 64, connection + 1, Priority::High);
    }
    rig.settle();
    let held = client.pieces.arrived.borrow().len();
    assert!(held > 2 * SLOTS_MAX, "{held} pieces");
    open(&client, &rig, 0..1, 9, Priority::Low);
    for _ in 0..40 {
        rig.settle();
        while client.take_of(|number| number.0 == 0) {}
    }
    assert_eq!(client.sent[&StreamNumber(0)].end, OK);
    assert_eq!(client.sent.len(), 1);
    let mut views = 0;
    client.streams.each(BUCKET, None, &mut |facts| views += usize::from(facts.has_slot));
    assert_eq!(views, 5 * 64, "each of them may have its view");
    client.streams.close_all();
}
