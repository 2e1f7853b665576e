//! The states of a vbucket and what each admits, through a session.
//!
//! Does not know: streams, range scans, other cores; those are tested with a node.

use std::time::Duration;

use ringbase_storage::env::sim::SimExecutor;
use ringbase_storage::io::sim::SimDisk;
use ringbase_storage::types::{Cas, Seqno, VbId};

use super::data::WAIT_MAX;
use super::rig::{Answered, PLAIN, Rig, RigOptions, VB, VBUCKETS, get, set};
use crate::bucket::Engine;
use crate::protocol::dcp::signal::VbucketState::{self, Active, Dead, Pending, Replica};
use crate::protocol::dcp::vb_seqnos::decode_vb_seqnos;
use crate::protocol::framing::{Durability, DurabilityLevel};
use crate::protocol::{Datatype, Feature, Opcode, Request, RequestFraming, Status};

const STATES: [VbucketState; 4] = VbucketState::ALL;

/// The same rules for a vbucket on disk and one in memory.
const KINDS: [&str; 2] = ["", "bucket_type=ephemeral"];

fn rig_with(settings: &'static str) -> Rig {
    let mut rig = Rig::with(RigOptions { settings, ..RigOptions::default() });
    rig.hello(&[Feature::Xerror, Feature::Json, Feature::SelectBucket]);
    rig
}

fn change(rig: &mut Rig, vb: VbId, state: VbucketState) -> Status {
    rig.status(Request::new(Opcode::SET_VBUCKET).vbucket(vb).extras(&[state as u8]))
}

fn become_state(rig: &mut Rig, vb: VbId, state: VbucketState) {
    assert_eq!(change(rig, vb, state), Status::SUCCESS);
}

fn delete(rig: &mut Rig, vb: VbId) -> Status {
    rig.status(Request::new(Opcode::DEL_VBUCKET).vbucket(vb))
}

fn state_of(rig: &mut Rig, vb: VbId) -> Result<u8, Status> {
    let answer = rig.ask(Request::new(Opcode::GET_VBUCKET).vbucket(vb)).one();
    match answer.status {
        Status::SUCCESS => Ok(answer.value[3]),
        status => Err(status),
    }
}

fn stat(rig: &mut Rig, group: &[u8], name: &str) -> Option<String> {
    let Answered::Frames(frames) = rig.ask(Request::new(Opcode::STAT).key(group)) else { panic!("closed") };
    let found = frames.iter().find(|frame| frame.key == name.as_bytes());
    found.map(|frame| String::from_utf8(frame.value.clone()).unwrap())
}

/// What is asked of a vbucket, with what each state answers: active, replica, dead. Pending is tested below.
#[test]
fn each_state_answers_every_command_as_the_protocol_says() {
    use Status as S;
    let no = S::NOT_MY_VBUCKET;
    for settings in KINDS {
        let mut rig = rig_with(settings);
        rig.ask(set(b"k", b"1"));
        let store = rig.store("default", VB);
        rig.sim.block_on(store.wait_persisted(Seqno(1)));
        let uuid = store.uuid().0.to_be_bytes();
        let seqno = 1u64.to_be_bytes();
        let count = [[0; 7].as_slice(), &[1], &[0; 7], &[1], &[0; 4]].concat();
        let persistence = if settings.is_empty() { S::SUCCESS } else { S::NOT_SUPPORTED };
        let key = |opcode| Request::new(opcode).key(b"k");
        let touch = [0, 0, 0, 0];
        for (request, expected) in [
            (get(b"k"), [S::SUCCESS, no, no]),
            (key(Opcode::GET_K), [S::SUCCESS, no, no]),
            (get(b"absent"), [S::KEY_ENOENT, no, no]),
            (key(Opcode::GET_META), [S::SUCCESS, no, no]),
            (key(Opcode::GET_REPLICA), [no, S::SUCCESS, no]),
            (Request::new(Opcode::GET_REPLICA).key(b"absent"), [no, S::KEY_ENOENT, no]),
            (set(b"k2", b"2"), [S::SUCCESS, no, no]),
            (Request::new(Opcode::ADD).key(b"k3").extras(&PLAIN), [S::SUCCESS, no, no]),
            (key(Opcode::REPLACE).extras(&PLAIN).value(b"1"), [S::SUCCESS, no, no]),
            (key(Opcode::APPEND).value(b"0"), [S::SUCCESS, no, no]),
            (key(Opcode::PREPEND).value(b"1"), [S::SUCCESS, no, no]),
            (key(Opcode::INCREMENT).extras(&count), [S::SUCCESS, no, no]),
            (key(Opcode::DECREMENT).extras(&count), [S::SUCCESS, no, no]),
            (key(Opcode::TOUCH).extras(&touch), [S::SUCCESS, no, no]),
            (key(Opcode::GAT).extras(&touch), [S::SUCCESS, no, no]),
            (Request::new(Opcode::UNLOCK_KEY).key(b"k").cas(Cas(7)), [S::NOT_LOCKED, no, no]),
            (Request::new(Opcode::GET_LOCKED).key(b"k2"), [S::SUCCESS, no, no]),
            (Request::new(Opcode::DELETE).key(b"k3"), [S::SUCCESS, no, no]),
            (Request::new(Opcode::OBSERVE_SEQNO).value(&uuid), [S::SUCCESS, S::SUCCESS, no]),
            (Request::new(Opcode::SEQNO_PERSISTENCE).extras(&seqno), [persistence; 3]),
            (Request::new(Opcode::GET_FAILOVER_LOG), [S::SUCCESS; 3]),
            (Request::new(Opcode::GET_VBUCKET), [S::SUCCESS; 3]),
        ] {
            let high_seqno = store.high_seqno();
            for (state, expected) in [Dead, Replica, Active].into_iter().zip([2, 1, 0].map(|at| expected[at]))
            {
                become_state(&mut rig, VB, state);
                let answered = rig.status(request);
                assert_eq!(answered, expected, "{settings}: {:?} of {state:?}", request);
                if state != Active {
                    assert_eq!(store.high_seqno(), high_seqno, "nothing was written");
                }
            }
        }
        assert_eq!(delete(&mut rig, VB), S::SUCCESS);
        for request in [
            get(b"k"),
            key(Opcode::GET_REPLICA),
            set(b"k", b"2"),
            Request::new(Opcode::OBSERVE_SEQNO).value(&uuid),
            Request::new(Opcode::SEQNO_PERSISTENCE).extras(&seqno),
            Request::new(Opcode::GET_FAILOVER_LOG),
            Request::new(Opcode::GET_VBUCKET),
            Request::new(Opcode::DEL_VBUCKET),
            Request::new(Opcode::STAT).key(b"vbucket 0"),
            Request::new(Opcode::STAT).key(b"vbucket-details 0"),
            Request::new(Opcode::STAT).key(b"vbucket-seqno 0"),
            Request::new(Opcode::STAT).key(b"failovers 0"),
        ] {
            assert_eq!(rig.status(request), no, "{settings}: {request:?} of one that is not there");
        }
    }
}

/// Requests for a pending vbucket wait, and are executed in their order when it is active.
#[test]
fn requests_for_a_pending_vbucket_wait_in_order_until_it_is_active() {
    for settings in KINDS {
        let mut rig = rig_with(settings);
        rig.ask(set(b"k", b"before"));
        become_state(&mut rig, VB, Pending);
        let waiting = [
            rig.send(get(b"k")),
            rig.send(set(b"k", b"1")),
            rig.send(get(b"k")),
            rig.send(Request::new(Opcode::APPEND).key(b"k").value(b"2")),
            rig.send(get(b"k")),
            rig.send(Request::new(Opcode::GET_Q).key(b"absent")),
        ];
        assert_eq!(rig.status(get(b"k").vbucket(VbId(1))), Status::KEY_ENOENT, "others go on");
        rig.sleep(10);
        assert!(waiting.iter().all(|index| rig.is_waiting(*index)));
        // It says how far it is meanwhile.
        assert_eq!(rig.status(Request::new(Opcode::GET_FAILOVER_LOG)), Status::SUCCESS);
        become_state(&mut rig, VB, Pending);
        assert!(waiting.iter().all(|index| rig.is_waiting(*index)), "still pending");
        become_state(&mut rig, VB, Active);
        let values: Vec<Answered> = waiting.into_iter().map(|index| rig.wait(index)).collect();
        let value = |index: usize| values[index].clone().one().value;
        assert_eq!([value(0), value(2), value(4)], [b"before".to_vec(), b"1".to_vec(), b"12".to_vec()]);
        assert_eq!(values[1].clone().one().status, Status::SUCCESS);
        assert!(values[5].is_silent());
    }
}

#[test]
fn requests_that_wait_for_a_pending_vbucket_are_refused_when_it_becomes_something_else() {
    let mut rig = rig_with("");
    for state in [Replica, Dead] {
        become_state(&mut rig, VB, Pending);
        let waiting = rig.send(set(b"k", b"1"));
        become_state(&mut rig, VB, state);
        assert_eq!(rig.wait(waiting).one().status, Status::NOT_MY_VBUCKET, "{state:?}");
    }
    become_state(&mut rig, VB, Pending);
    let waiting = rig.send(set(b"k", b"1"));
    assert_eq!(delete(&mut rig, VB), Status::SUCCESS);
    assert_eq!(rig.wait(waiting).one().status, Status::NOT_MY_VBUCKET, "deleted");
}

/// Nobody waits for ever, and nobody keeps a bucket from being emptied.
#[test]
fn requests_that_wait_for_a_pending_vbucket_end_when_their_time_is_up_or_the_bucket_goes() {
    let mut rig = rig_with("");
    become_state(&mut rig, VB, Pending);
    let first = rig.send(set(b"k", b"1"));
    rig.sleep(1);
    let second = rig.send(get(b"k"));
    let started = rig.sim.now_ns();
    assert_eq!(rig.wait(first).one().status, Status::ETMPFAIL);
    assert!(rig.sim.now_ns() - started < WAIT_MAX.as_nanos() as u64, "its own time, not that of the next");
    assert!(rig.is_waiting(second));
    assert_eq!(rig.wait(second).one().status, Status::ETMPFAIL);
    let third = rig.send(get(b"k"));
    rig.empty("default");
    assert_eq!(rig.wait(third).one().status, Status::ETMPFAIL);
}

/// The bytes of what waits are bounded; what is too much is told to try again.
#[test]
fn what_waits_for_a_pending_vbucket_is_bounded() {
    let mut rig = rig_with("");
    become_state(&mut rig, VB, Pending);
    let value = vec![1; 8 << 20];
    let sent: Vec<usize> = (0..9).map(|_| rig.send(set(b"k", &value))).collect();
    let waiting = sent.iter().filter(|index| rig.is_waiting(**index)).count();
    assert_eq!(waiting, 7, "64 MiB with the headers");
    assert_eq!(rig.wait(sent[8]).one().status, Status::ETMPFAIL);
    become_state(&mut rig, VB, Dead);
    assert_eq!(rig.wait(sent[0]).one().status, Status::NOT_MY_VBUCKET);
    become_state(&mut rig, VB, Pending);
    let again = rig.send(set(b"k", &value));
    assert!(rig.is_waiting(again), "there is room again");
}

/// A request that waits for the disk sees the state that the vbucket has when the disk has answered.
#[test]
fn a_change_that_waits_for_the_disk_is_not_made_when_the_vbucket_is_active_no_more() {
    let mut rig = Rig::with(RigOptions { resident_bytes_max: 0, ..RigOptions::default() });
    rig.ask(set(b"k", b"1"));
    let mut seen = 0;
    for (state, expected) in [
        (Replica, Status::NOT_MY_VBUCKET),
        (Dead, Status::NOT_MY_VBUCKET),
        (Pending, Status::ETMPFAIL),
        (Active, Status::SUCCESS),
    ] {
        become_state(&mut rig, VB, Active);
        rig.flush();
        let store = rig.store("default", VB);
        let before = store.high_seqno();
        let waiting = rig.send(Request::new(Opcode::APPEND).key(b"k").value(b"+"));
        assert!(rig.is_waiting(waiting), "the document is on disk only");
        // The owner changes the state while the read is under way.
        store_state(&rig.engine, VB, state);
        assert_eq!(rig.wait(waiting).one().status, expected, "{state:?}");
        assert_eq!(store.high_seqno().0 - before.0, u64::from(expected == Status::SUCCESS));
        seen += 1;
    }
    assert_eq!(seen, 4);
}

fn store_state(engine: &Engine, vb: VbId, state: VbucketState) {
    engine.buckets()[0].context.states.set(vb, Some(state));
}

fn branches(rig: &Rig, vb: VbId) -> Vec<(u64, u64)> {
    let log = rig.store("default", vb).failover_log();
    log.iter().map(|branch| (branch.uuid.0, branch.seqno.0)).collect()
}

/// Protocol: a new branch when a vbucket becomes active from any other state, and at no other change.
#[test]
fn becoming_active_is_a_new_branch_at_the_high_seqno_and_nothing_else_is() {
    for settings in KINDS {
        let mut rig = rig_with(settings);
        rig.ask(set(b"k", b"1"));
        let first = branches(&rig, VB);
        become_state(&mut rig, VB, Active);
        assert_eq!(branches(&rig, VB), first, "it was active");
        for state in [Replica, Pending, Dead] {
            let before = branches(&rig, VB);
            become_state(&mut rig, VB, state);
            assert_eq!(branches(&rig, VB), before, "{state:?}");
            become_state(&mut rig, VB, Active);
            let after = branches(&rig, VB);
            assert_eq!((&after[1..], after[0].1), (&before[..], 1));
            assert!(before.iter().all(|branch| branch.0 != after[0].0));
        }
        rig.ask(set(b"k", b"2"));
        become_state(&mut rig, VB, Dead);
        become_state(&mut rig, VB, Active);
        assert_eq!(branches(&rig, VB)[0].1, 2, "where it is now");
        // Observing an older branch tells where it ended.
        let oldest = first[0].0.to_be_bytes();
        let observed = rig.ask(Request::new(Opcode::OBSERVE_SEQNO).value(&oldest)).one();
        assert_eq!((observed.status, observed.value[0], observed.value.len()), (Status::SUCCESS, 1, 43));
    }
}

#[test]
fn a_vbucket_that_comes_again_is_empty_and_has_another_history_and_its_own_state() {
    for settings in KINDS {
        let mut rig = rig_with(settings);
        rig.ask(set(b"k", b"1"));
        rig.ask(Request::new(Opcode::GET_LOCKED).key(b"k"));
        let before = branches(&rig, VB);
        assert_eq!(delete(&mut rig, VB), Status::SUCCESS, "an active one, too");
        assert_eq!(state_of(&mut rig, VB), Err(Status::NOT_MY_VBUCKET));
        assert_eq!(delete(&mut rig, VB), Status::NOT_MY_VBUCKET);
        become_state(&mut rig, VB, Replica);
        assert_eq!(state_of(&mut rig, VB), Ok(2));
        assert_eq!(rig.status(Request::new(Opcode::GET_REPLICA).key(b"k")), Status::KEY_ENOENT);
        let after = branches(&rig, VB);
        assert!(after.len() == 1 && after[0].1 == 0 && after[0].0 != before[0].0, "{after:?}");
        become_state(&mut rig, VB, Active);
        assert_eq!(rig.status(get(b"k")), Status::KEY_ENOENT);
        assert_eq!(rig.status(set(b"k", b"2")), Status::SUCCESS, "the lock went with the vbucket");
        assert_eq!(rig.store("default", VB).high_seqno(), Seqno(1));
    }
}

/// Statistics and GET_ALL_VB_SEQNOS show what is there, in its state.
#[test]
fn statistics_and_seqnos_show_each_vbucket_in_its_state() {
    let mut rig = rig_with("");
    for vb in 0..VBUCKETS {
        for key in [&b"a"[..], b"b"].into_iter().take(usize::from(vb) + 1) {
            rig.ask(set(key, b"v").vbucket(VbId(vb)));
        }
    }
    for (vb, state) in [(1, Replica), (2, Pending), (3, Dead)] {
        become_state(&mut rig, VbId(vb), state);
    }
    for (vb, state) in (0..).zip(STATES) {
        assert_eq!(state_of(&mut rig, VbId(vb)), Ok(state as u8));
        for group in ["vbucket", "vbucket-details"] {
            let name = format!("vb_{vb}");
            let group = group.as_bytes();
            assert_eq!(stat(&mut rig, group, &name).as_deref(), Some(state.name()));
        }
        let count = stat(&mut rig, b"", &format!("vb_{}_num", state.name()));
        assert_eq!(count.as_deref(), Some("1"), "{state:?}");
        let items = stat(&mut rig, b"", &format!("vb_{}_curr_items", state.name()));
        assert_eq!(items, Some(if vb == 0 { "1" } else { "2" }.to_owned()), "{state:?}");
    }
    assert_eq!(stat(&mut rig, b"", "curr_items").as_deref(), Some("1"), "of active ones");
    assert_eq!(stat(&mut rig, b"", "curr_items_tot").as_deref(), Some("7"));
    assert_eq!(
        rig.status(Request::new(Opcode::STAT).key(b"vbucket-seqno 3")),
        Status::NOT_MY_VBUCKET,
        "dead"
    );
    let mut seqnos = |state: u32| {
        let answer = rig.ask(Request::new(Opcode::GET_ALL_VB_SEQNOS).extras(&state.to_be_bytes())).one();
        let entries = decode_vb_seqnos(&answer.value).unwrap();
        entries.map(|(vb, seqno)| (vb.0, seqno.0)).collect::<Vec<_>>()
    };
    assert_eq!(seqnos(0), [(0, 1), (1, 2), (2, 2)], "all that are alive");
    for (state, expected) in [(1, (0, 1)), (2, (1, 2)), (3, (2, 2)), (4, (3, 2))] {
        assert_eq!(seqnos(state), [expected]);
    }
}

#[test]
fn only_an_administrator_changes_a_vbucket_and_everybody_may_ask_what_it_is() {
    let mut rig = Rig::with(RigOptions { open: false, ..RigOptions::default() });
    for (user, expected) in
        [("reader", Status::EACCESS), ("writer", Status::EACCESS), ("admin", Status::SUCCESS)]
    {
        assert_eq!(rig.login(user, "password"), Status::SUCCESS);
        rig.hello(&[Feature::Xerror, Feature::SelectBucket]);
        assert_eq!(change(&mut rig, VbId(1), Replica), expected, "{user}");
        assert_eq!(delete(&mut rig, VbId(2)), expected, "{user}");
        let is = if user == "admin" { 2 } else { 1 };
        assert_eq!(state_of(&mut rig, VbId(1)), Ok(is), "{user}");
    }
    assert_eq!(change(&mut rig, VbId(VBUCKETS), Active), Status::NOT_MY_VBUCKET);
}

fn set_topology(rig: &mut Rig, state: u8, value: &str) -> Status {
    let (extras, datatype) = ([state], Datatype::JSON);
    let request = Request::new(Opcode::SET_VBUCKET).extras(&extras).datatype(datatype);
    rig.status(request.value(value.as_bytes()))
}

/// A durable write needs a majority of the topology; this node has nobody to hold a copy.
#[test]
fn a_durable_write_is_impossible_where_the_topology_needs_other_nodes() {
    let mut rig = rig_with("");
    let durable = |rig: &mut Rig, key: &[u8]| {
        let durability = Some(Durability { level: DurabilityLevel::Majority, timeout_ms: None });
        let framing = RequestFraming { durability, ..RequestFraming::default() };
        rig.status(set(key, b"v").framing(framing))
    };
    assert_eq!(durable(&mut rig, b"a"), Status::SUCCESS, "nothing was said of others");
    assert_eq!(set_topology(&mut rig, 1, r#"{"topology":[["here","there"]]}"#), Status::SUCCESS);
    let before = rig.store("default", VB).high_seqno();
    assert_eq!(durable(&mut rig, b"b"), Status::DURABILITY_IMPOSSIBLE);
    assert_eq!(rig.store("default", VB).high_seqno(), before, "nothing was written");
    assert_eq!(rig.status(set(b"c", b"v")), Status::SUCCESS, "a plain write is none of its business");
    become_state(&mut rig, VB, Active);
    assert_eq!(durable(&mut rig, b"b"), Status::DURABILITY_IMPOSSIBLE, "what was said stays");
    let told = stat(&mut rig, b"vbucket-details 0", "vb_0:topology");
    assert_eq!(told.as_deref(), Some(r#"[["here","there"]]"#));
    let mut rig = rig.restart(crash(3));
    rig.hello(&[Feature::Xerror, Feature::Json, Feature::SelectBucket]);
    assert_eq!(durable(&mut rig, b"b"), Status::DURABILITY_IMPOSSIBLE, "also after a crash");
    assert_eq!(set_topology(&mut rig, 1, r#"{"topology":[["here"]]}"#), Status::SUCCESS);
    assert_eq!(durable(&mut rig, b"b"), Status::SUCCESS);
    for (state, value, expected) in [
        (2, r#"{"topology":[["here"]]}"#, Status::EINVAL),
        (1, r#"{"topology":[[]]}"#, Status::EINVAL),
        (1, "nonsense", Status::EINVAL),
        (9, "{}", Status::EINVAL),
        (2, r#"{"use_snapshot":"fbr"}"#, Status::NOT_SUPPORTED),
    ] {
        assert_eq!(set_topology(&mut rig, state, value), expected, "{value}");
    }
    assert_eq!(state_of(&mut rig, VB), Ok(1), "nothing of these was done");
}

fn crash(seed: u64) -> impl FnOnce(&SimExecutor, &SimDisk, &Engine) {
    move |_, disk, _| {
        disk.crash(seed);
    }
}

/// What a vbucket is survives a crash, and so does that it is not there; a bucket in memory begins anew.
#[test]
fn states_survive_a_crash_and_vbuckets_of_a_memory_bucket_begin_active() {
    for settings in KINDS {
        let mut rig = rig_with(settings);
        rig.ask(set(b"k", b"1").vbucket(VbId(1)));
        for (vb, state) in [(1, Replica), (2, Dead)] {
            become_state(&mut rig, VbId(vb), state);
        }
        assert_eq!(delete(&mut rig, VbId(3)), Status::SUCCESS);
        for seed in [1, 2] {
            rig = rig.restart(crash(seed));
            rig.hello(&[Feature::Xerror, Feature::SelectBucket]);
            let states: Vec<_> = (0..VBUCKETS).map(|vb| state_of(&mut rig, VbId(vb))).collect();
            if settings.is_empty() {
                assert_eq!(states, [Ok(1), Ok(2), Ok(4), Err(Status::NOT_MY_VBUCKET)]);
            } else {
                assert_eq!(states, [Ok(1); 4]);
            }
        }
        let copy = rig.ask(Request::new(Opcode::GET_REPLICA).key(b"k").vbucket(VbId(1))).one();
        let expected = if settings.is_empty() { Status::SUCCESS } else { Status::NOT_MY_VBUCKET };
        assert_eq!(copy.status, expected);
    }
}

/// Emptying a bucket takes its documents, not what its vbuckets are.
#[test]
fn a_bucket_that_is_emptied_keeps_the_states_of_its_vbuckets() {
    for settings in KINDS {
        let mut rig = rig_with(settings);
        for (vb, state) in [(1, Replica), (2, Dead)] {
            become_state(&mut rig, VbId(vb), state);
        }
        assert_eq!(delete(&mut rig, VbId(3)), Status::SUCCESS);
        rig.empty("default");
        let states: Vec<_> = (0..VBUCKETS).map(|vb| state_of(&mut rig, VbId(vb))).collect();
        assert_eq!(states, [Ok(1), Ok(2), Ok(4), Err(Status::NOT_MY_VBUCKET)], "{settings}");
        assert_eq!(rig.status(set(b"k", b"1")), Status::SUCCESS);
    }
}

/// The expiry pager makes tombstones in active vbuckets only: a copy gets its tombstones from the vbucket that it follows.
#[test]
fn the_expiry_pager_leaves_copies_alone() {
    let mut rig = rig_with("exp_pager_stime=10");
    let expiring = [[0; 4], 5u32.to_be_bytes()].concat();
    for vb in [0, 1] {
        let request = Request::new(Opcode::SET).key(b"k").extras(&expiring).vbucket(VbId(vb));
        assert_eq!(rig.status(request), Status::SUCCESS);
    }
    become_state(&mut rig, VbId(1), Replica);
    rig.sim.run_for(Duration::from_secs(30));
    let high = |rig: &Rig, vb| rig.store("default", VbId(vb)).high_seqno().0;
    assert_eq!((high(&rig, 0), high(&rig, 1)), (2, 1));
    assert_eq!(rig.status(Request::new(Opcode::GET_REPLICA).key(b"k").vbucket(VbId(1))), Status::KEY_ENOENT);
    become_state(&mut rig, VbId(1), Active);
    rig.sim.run_for(Duration::from_secs(30));
    assert_eq!(high(&rig, 1), 2);
}
