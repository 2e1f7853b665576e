//! What streams say about where their time goes and how far they are, over a simulated disk and clock.

use std::collections::BTreeMap;
use std::time::Duration;

use ringbase::dcp::piece::{StreamAnswer, StreamNumber};
use ringbase::dcp::time::Spent;
use ringbase::protocol::dcp::StreamFlags;
use serde_json::Value;

use crate::dcp_streams::{Client, TO_LATEST};
use crate::range_scan::rig::{BUCKET, Rig};

/// What a stream says about itself.
struct Facts(BTreeMap<String, Value>);

impl Facts {
    /// Those of a stream; all of its time is accounted for (the specification asks for 95 %).
    fn of(client: &Client, stream: u64) -> Facts {
        let mut found = None;
        client.streams.each(BUCKET, None, &mut |facts| {
            if facts.number == StreamNumber(stream) {
                found = Some(Facts(facts.fields.into_iter().collect()));
            }
        });
        let facts = found.expect("the stream is there");
        let sum: u64 = Spent::ALL.map(|what| facts.spent(what)).iter().sum();
        assert_eq!(sum, facts.number("wall_ns"), "{:?}", facts.0);
        facts
    }

    fn number(&self, name: &str) -> u64 {
        self.0[name].as_u64().unwrap()
    }

    fn spent(&self, what: Spent) -> u64 {
        self.number(&format!("spent_{}_ns", what.name()))
    }

    fn waits_for(&self) -> &str {
        self.0["waits_for"].as_str().unwrap()
    }

    /// The greatest share of its time, in percent.
    fn largest(&self) -> (Spent, u64) {
        let largest = Spent::ALL.into_iter().max_by_key(|what| self.spent(*what)).unwrap();
        (largest, self.spent(largest) * 100 / self.number("wall_ns"))
    }
}

fn open(client: &Client, rig: &Rig, number: u64, flags: StreamFlags) {
    assert!(matches!(client.open(rig, number, flags), StreamAnswer::Accepted(_)));
}

/// T1.14: each of the waits has its own name, and the one that lasted is the largest share.
#[test]
fn a_slow_disk_a_wait_for_a_slot_a_full_socket_and_a_closed_window_are_told_apart() {
    let rig = Rig::new(41);
    rig.load_large(2_000);
    let mut client = Client::of(&rig, 64 << 20);
    rig.disk.set_latency(Duration::from_millis(40), Duration::from_millis(50));
    client.sequential.set(true);
    open(&client, &rig, 1, TO_LATEST);
    rig.sim.run_for(Duration::from_millis(1));
    open(&client, &rig, 2, TO_LATEST);
    for _ in 0..20 {
        rig.sim.run_for(Duration::from_millis(5));
        while client.take_of(|number| number.0 == 1) {}
    }
    assert_eq!(Facts::of(&client, 1).largest().0, Spent::Device);
    let (second, share) = Facts::of(&client, 2).largest();
    assert!(second == Spent::Slot && share >= 95, "{second:?} {share} %");

    // A third one, whose connection does not get rid of its pieces: for want of a window, then of a socket that takes them.
    rig.disk.set_latency(Duration::from_micros(10), Duration::from_micros(20));
    client.sequential.set(false);
    open(&client, &rig, 3, TO_LATEST);
    rig.sim.run_for(Duration::from_millis(100));
    client.window.is_now(true, rig.sim.now_ns());
    rig.sim.run_for(Duration::from_secs(4));
    let third = Facts::of(&client, 3);
    assert_eq!((third.waits_for(), third.spent(Spent::Window)), ("window", 4_000_000_000));
    assert!(third.largest().1 >= 90, "{:?}", third.0);
    client.window.is_now(false, rig.sim.now_ns());
    client.socket.is_now(true, rig.sim.now_ns());
    rig.sim.run_for(Duration::from_secs(9));
    let third = Facts::of(&client, 3);
    assert_eq!((third.waits_for(), third.spent(Spent::Socket)), ("socket", 9_000_000_000));
    assert_eq!(third.largest().0, Spent::Socket);
}

/// A stream that has handed over the last it has is not idle while the client does not take it; then it is.
#[test]
fn a_stream_in_memory_is_idle_only_when_its_client_has_everything() {
    let rig = Rig::new(42);
    rig.load_large(20);
    let mut client = Client::of(&rig, 64 << 20);
    client.window.is_now(true, rig.sim.now_ns());
    open(&client, &rig, 1, StreamFlags::NONE);
    rig.sim.run_for(Duration::from_secs(2));
    let waiting = Facts::of(&client, 1);
    assert_eq!((waiting.0["state"].as_str(), waiting.waits_for()), (Some("in-memory"), "window"));
    assert!(waiting.largest().0 == Spent::Window && waiting.largest().1 >= 95, "{:?}", waiting.0);
    // The client takes it; its window stays closed, and that is no concern of the stream any more.
    client.take_all(&rig);
    rig.sim.run_for(Duration::from_secs(60));
    let idle = Facts::of(&client, 1);
    assert_eq!((idle.waits_for(), idle.largest().0), ("up_to_date", Spent::UpToDate));
    assert_eq!(idle.spent(Spent::UpToDate) / 1_000_000_000, 60);
    assert!(!idle.0.contains_key("backfill_percent"), "its backfill is over");
}

/// Progress, speed and estimate of a backfill: absent before its view is open, right while its client reads at a steady pace, without an
/// estimate when it stands still.
#[test]
fn a_backfill_says_how_far_it_is_and_when_it_will_be_through() {
    let rig = Rig::new(43);
    rig.load_large(2_000);
    let mut client = Client::of(&rig, 64 << 20);
    client.sequential.set(true);
    open(&client, &rig, 1, TO_LATEST);
    rig.settle();
    open(&client, &rig, 2, TO_LATEST);
    rig.settle();
    assert!(!Facts::of(&client, 2).0.contains_key("backfill_percent"), "it waits for its slot");
    // One piece in two seconds.
    let take_one = |client: &mut Client| {
        assert!(client.take_of(|number| number.0 == 1));
        rig.sim.run_for(Duration::from_secs(2));
    };
    let steady = loop {
        take_one(&mut client);
        let facts = Facts::of(&client, 1);
        if facts.number("backfill_seqno") >= 1_000 {
            break facts;
        }
    };
    assert_eq!((steady.number("backfill_start_seqno"), steady.number("backfill_end_seqno")), (1, 2_000));
    let percent = steady.0["backfill_percent"].as_f64().unwrap();
    assert!((50.0..60.0).contains(&percent), "{percent}");
    let (read, sent) = (steady.number("backfill_items_read"), steady.number("backfill_items_sent"));
    assert!(read > sent && sent > 500, "{read} {sent}");
    assert_eq!(steady.number("backfill_bytes_read"), steady.number("bytes"));
    let unsent = steady.number("backfill_bytes_read") - steady.number("backfill_bytes_sent");
    assert_eq!(unsent, steady.number("ready_queue_memory"));
    let estimated = steady.0["backfill_seconds_left"].as_f64().unwrap();
    let is_reading = |client: &Client| {
        let mut count = 0;
        client.streams.each(BUCKET, None, &mut |facts| count += usize::from(facts.number.0 == 1));
        count > 0
    };
    let mut left = 0.0;
    while is_reading(&client) {
        take_one(&mut client);
        left += 2.0;
    }
    assert!((estimated - left).abs() <= 4.0, "estimated {estimated} s, it took {left} s");

    // The second one has its turn, and nobody takes what it hands over.
    rig.sim.run_for(Duration::from_secs(1_000));
    let stalled = Facts::of(&client, 2);
    let left = stalled.0["backfill_seconds_left"].as_f64().unwrap();
    assert!(stalled.number("backfill_seqno") < 500 && left > 1_000.0, "{:?}", stalled.0);
    assert_eq!((stalled.number("backfill_items_per_second"), stalled.number("backfill_items_sent")), (0, 0));
}
