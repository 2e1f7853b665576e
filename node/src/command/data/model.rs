//! Random commands against a model: a map with memcached's rules, also over flushes, crashes and restarts.
//!
//! The model predicts every status, value and flags, and which commands take a seqno: after a crash the node must be in the
//! exact state that the model had at the recovered seqno, at or after the last persisted one.
//!
//! Does not know: how the node stores anything.

use std::collections::BTreeMap;

use proptest::prelude::*;
use ringbase_storage::types::{Cas, VbId};

use crate::command::rig::{Answer, Rig, RigOptions, get};
use crate::protocol::extras::{ArithmeticExtras, StoreExtras};
use crate::protocol::{Opcode, Request, Status};

const KEYS: u8 = 5;
const VALUES: [&[u8]; 6] = [b"0", b"7", b"{}", b"abc", b"18446744073709551615", b""];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CasChoice {
    None,
    Right,
    Wrong,
}

#[derive(Debug, Clone, Copy)]
enum Verb {
    Get,
    Store { opcode: Opcode, value: usize, flags: u32, expiry: u32, cas: CasChoice },
    Delete { cas: CasChoice },
    Count { opcode: Opcode, delta: u64, initial: u64, expiry: u32 },
    Join { opcode: Opcode, value: usize, cas: CasChoice },
    Touch { opcode: Opcode, expiry: u32 },
}

#[derive(Debug, Clone, Copy)]
enum Action {
    Do(u8, Verb),
    Flush,
    Sleep(u8),
    Settle,
    Crash(u64),
    Restart,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Doc {
    value: Vec<u8>,
    flags: u32,
    expiry: u32,
    cas: Option<Cas>,
}

type Docs = BTreeMap<u8, Doc>;

#[derive(Debug, PartialEq, Eq)]
struct Expected {
    status: Status,
    value: Vec<u8>,
    flags: Option<u32>,
    /// Whether the command takes a seqno.
    writes: bool,
}

fn expected(status: Status) -> Expected {
    Expected { status, value: Vec::new(), flags: None, writes: status == Status::SUCCESS }
}

fn absolute(given: u32, now: u32) -> u32 {
    if (1..=2_592_000).contains(&given) { now + given } else { given }
}

/// What the protocol says about `verb`; changes `docs` accordingly.
fn apply(docs: &mut Docs, key: u8, verb: Verb, now: u32) -> Expected {
    let is_over = |doc: &Doc| doc.expiry != 0 && doc.expiry < now;
    let expired = docs.get(&key).is_some_and(is_over);
    let live = docs.get(&key).filter(|doc| !is_over(doc)).cloned();
    let known_cas = docs.get(&key).and_then(|doc| doc.cas);
    let cas_fails = |choice| match choice {
        CasChoice::None => false,
        CasChoice::Right => known_cas.is_none(),
        CasChoice::Wrong => true,
    };
    let given_cas =
        |choice| choice == CasChoice::Wrong || (choice == CasChoice::Right && known_cas.is_some());
    let absent = |docs: &mut Docs, status| {
        docs.remove(&key);
        Expected { writes: expired, ..expected(status) }
    };
    match verb {
        Verb::Get => match live {
            Some(doc) => Expected {
                value: doc.value,
                flags: Some(doc.flags),
                writes: false,
                ..expected(Status::SUCCESS)
            },
            None => expected(Status::KEY_ENOENT),
        },
        Verb::Store { opcode, value, flags, expiry, cas } => {
            let new = Doc { value: VALUES[value].to_vec(), flags, expiry: absolute(expiry, now), cas: None };
            match (opcode, &live) {
                (Opcode::ADD, Some(_)) => return expected(Status::KEY_EEXISTS),
                (Opcode::REPLACE, None) => return absent(docs, Status::KEY_ENOENT),
                (Opcode::SET, None) if given_cas(cas) => return absent(docs, Status::KEY_ENOENT),
                (Opcode::SET | Opcode::REPLACE, Some(_)) if given_cas(cas) && cas_fails(cas) => {
                    return expected(Status::KEY_EEXISTS);
                }
                _ => {}
            }
            docs.insert(key, new);
            expected(Status::SUCCESS)
        }
        Verb::Delete { cas } => match live {
            None => absent(docs, Status::KEY_ENOENT),
            Some(_) if given_cas(cas) && cas_fails(cas) => expected(Status::KEY_EEXISTS),
            Some(_) => {
                docs.remove(&key);
                expected(Status::SUCCESS)
            }
        },
        Verb::Count { opcode, delta, initial, expiry } => {
            let (number, flags, expiry) = match live {
                None if expiry == u32::MAX => return absent(docs, Status::KEY_ENOENT),
                None => (initial, 0, absolute(expiry, now)),
                Some(doc) => {
                    let text = std::str::from_utf8(&doc.value).unwrap();
                    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
                    let Some(old) = text.parse::<u64>().ok().filter(|_| digits && text.len() <= 20) else {
                        return expected(Status::DELTA_BADVAL);
                    };
                    let new = match opcode {
                        Opcode::INCREMENT => (u128::from(old) + u128::from(delta)) as u64,
                        _ => old.saturating_sub(delta),
                    };
                    (new, doc.flags, doc.expiry)
                }
            };
            docs.insert(key, Doc { value: number.to_string().into_bytes(), flags, expiry, cas: None });
            Expected { value: number.to_be_bytes().to_vec(), ..expected(Status::SUCCESS) }
        }
        Verb::Join { opcode, value, cas } => match live {
            None => absent(docs, Status::NOT_STORED),
            Some(_) if given_cas(cas) && cas_fails(cas) => expected(Status::KEY_EEXISTS),
            Some(doc) => {
                let added = VALUES[value];
                let value = if opcode == Opcode::APPEND {
                    [&doc.value, added].concat()
                } else {
                    [added, &doc.value].concat()
                };
                docs.insert(key, Doc { value, cas: None, ..doc });
                expected(Status::SUCCESS)
            }
        },
        Verb::Touch { opcode, expiry } => match live {
            None => absent(docs, Status::KEY_ENOENT),
            Some(doc) => {
                let expiry = absolute(expiry, now);
                let writes = expiry != doc.expiry;
                let gives = opcode == Opcode::GAT;
                let (value, flags) =
                    if gives { (doc.value.clone(), Some(doc.flags)) } else { Default::default() };
                let cas = doc.cas.filter(|_| !writes);
                docs.insert(key, Doc { expiry, cas, ..doc });
                Expected { status: Status::SUCCESS, value, flags, writes }
            }
        },
    }
}

/// Keys are in two vbuckets.
fn vb_of(key: u8) -> VbId {
    VbId(u16::from(key % 2))
}

/// A vbucket of the model: its documents at every seqno.
#[derive(Default)]
struct Branch {
    docs: Docs,
    history: Vec<Docs>,
}

impl Branch {
    fn new() -> Branch {
        Branch { docs: Docs::new(), history: vec![Docs::new()] }
    }
}

struct Driver {
    rig: Rig,
    branches: [Branch; 2],
    greatest_cas: Cas,
    pipelined: bool,
    pending: Vec<(usize, u8, Verb, Expected)>,
}

impl Driver {
    fn new(pipelined: bool, resident_bytes_max: usize, seed: u64) -> Driver {
        let rig = Rig::with(RigOptions { resident_bytes_max, seed, ..RigOptions::default() });
        let branches = [Branch::new(), Branch::new()];
        Driver { rig, branches, greatest_cas: Cas(0), pipelined, pending: Vec::new() }
    }

    fn branch(&mut self, key: u8) -> &mut Branch {
        &mut self.branches[usize::from(vb_of(key).0)]
    }

    fn run(mut self, actions: &[Action]) {
        for action in actions {
            match *action {
                Action::Do(key, verb) => self.execute(key, verb),
                Action::Settle => self.settle(),
                Action::Flush => {
                    self.settle();
                    self.rig.flush();
                }
                Action::Sleep(seconds) => {
                    self.settle();
                    self.rig.sleep(u64::from(seconds));
                }
                Action::Crash(seed) => {
                    self.settle();
                    self = self.crash(seed);
                }
                Action::Restart => {
                    self.settle();
                    self = self.restart();
                }
            }
        }
        self.settle();
        self.check_all();
    }

    fn execute(&mut self, key: u8, verb: Verb) {
        let now = self.rig.now();
        let known = self.branch(key).docs.get(&key).and_then(|doc| doc.cas);
        let cas = |choice| match choice {
            CasChoice::None => Cas(0),
            CasChoice::Right => known.unwrap_or_default(),
            CasChoice::Wrong => Cas(12345),
        };
        let name = [b'k', key];
        let (index, expected);
        let request = |opcode| Request::new(opcode).key(&name).vbucket(vb_of(key));
        match verb {
            Verb::Get => index = self.rig.send(request(Opcode::GET)),
            Verb::Store { opcode, value, flags, expiry, cas: choice } => {
                let extras = StoreExtras { flags, expiry }.encode();
                let cas = if opcode == Opcode::ADD { Cas(0) } else { cas(choice) };
                index = self.rig.send(request(opcode).extras(&extras).value(VALUES[value]).cas(cas));
            }
            Verb::Delete { cas: choice } => index = self.rig.send(request(Opcode::DELETE).cas(cas(choice))),
            Verb::Count { opcode, delta, initial, expiry } => {
                let extras = ArithmeticExtras { delta, initial, expiry }.encode();
                index = self.rig.send(request(opcode).extras(&extras));
            }
            Verb::Join { opcode, value, cas: choice } => {
                index = self.rig.send(request(opcode).value(VALUES[value]).cas(cas(choice)));
            }
            Verb::Touch { opcode, expiry } => {
                index = self.rig.send(request(opcode).extras(&expiry.to_be_bytes()));
            }
        }
        expected = apply(&mut self.branch(key).docs, key, verb, now);
        self.pending.push((index, key, verb, expected));
        if !self.pipelined {
            self.settle();
        }
    }

    /// Collects the answers of everything sent and compares.
    fn settle(&mut self) {
        for (index, key, verb, expected) in std::mem::take(&mut self.pending) {
            let answer = self.rig.wait(index).one();
            self.compare(key, verb, &expected, &answer);
        }
    }

    fn compare(&mut self, key: u8, verb: Verb, expected: &Expected, answer: &Answer) {
        let what = format!("{verb:?} of key {key}: {answer:?}");
        assert_eq!(answer.status, expected.status, "{what}");
        assert_eq!(answer.value, expected.value, "{what}");
        let flags = expected.flags.map_or(Vec::new(), |flags| flags.to_be_bytes().to_vec());
        assert_eq!(answer.extras, flags, "{what}");
        if self.pipelined {
            return;
        }
        let success = answer.status == Status::SUCCESS;
        let greatest_cas = self.greatest_cas;
        let branch = self.branch(key);
        if let Some(doc) = branch.docs.get_mut(&key).filter(|_| success) {
            match doc.cas {
                Some(cas) => assert_eq!(answer.cas, cas, "{what}"),
                None => {
                    assert!(answer.cas.0 >> 16 >= greatest_cas.0 >> 16, "{what}");
                    doc.cas = Some(answer.cas);
                }
            }
        }
        if expected.writes {
            branch.history.push(branch.docs.clone());
        }
        let high = branch.history.len() as u64 - 1;
        self.greatest_cas = greatest_cas.max(answer.cas);
        let store = self.rig.engine.buckets()[0].vbucket(vb_of(key)).unwrap().clone();
        assert_eq!(store.high_seqno().0, high, "{what}");
    }

    fn persisted(&self, vb: u16) -> u64 {
        self.rig.engine.buckets()[0].vbucket(VbId(vb)).unwrap().persisted_seqno().0
    }

    fn crash(self, seed: u64) -> Driver {
        let Driver { rig, mut branches, greatest_cas, pipelined, .. } = self;
        let persisted =
            [0, 1].map(|vb| rig.engine.buckets()[0].vbucket(VbId(vb)).unwrap().persisted_seqno().0);
        let rig = rig.restart(|_, disk, _| {
            disk.crash(seed);
        });
        for (vb, branch) in branches.iter_mut().enumerate() {
            let store = rig.engine.buckets()[0].vbucket(VbId(vb as u16)).unwrap().clone();
            let high = store.high_seqno().0;
            assert!(high >= persisted[vb], "vbucket {vb} lost what was persisted");
            assert!(high < branch.history.len() as u64, "vbucket {vb} invented a mutation");
            branch.history.truncate(high as usize + 1);
            branch.docs = branch.history[high as usize].clone();
        }
        let mut driver = Driver { rig, branches, greatest_cas, pipelined, pending: Vec::new() };
        driver.check_all();
        driver
    }

    fn restart(self) -> Driver {
        let Driver { rig, branches, greatest_cas, pipelined, .. } = self;
        let rig = rig.restart(|sim, _, engine| {
            for shard in engine.shards() {
                sim.block_on(shard.close()).unwrap();
            }
        });
        assert!(rig.recovery.clean);
        let mut driver = Driver { rig, branches, greatest_cas, pipelined, pending: Vec::new() };
        for vb in 0..2 {
            let high = driver.branches[usize::from(vb)].history.len() as u64 - 1;
            assert!(pipelined || driver.persisted(vb) == high);
        }
        driver.check_all();
        driver
    }

    /// Every key has the model's value.
    fn check_all(&mut self) {
        for key in 0..KEYS {
            let now = self.rig.now();
            let expected = apply(&mut self.branch(key).docs, key, Verb::Get, now);
            let name = [b'k', key];
            let answer = self.rig.ask(get(&name).vbucket(vb_of(key))).one();
            self.compare(key, Verb::Get, &expected, &answer);
        }
    }
}

fn cas_choice() -> impl Strategy<Value = CasChoice> {
    prop_oneof![3 => Just(CasChoice::None), 2 => Just(CasChoice::Right), 1 => Just(CasChoice::Wrong)]
}

fn expiry() -> impl Strategy<Value = u32> {
    prop_oneof![3 => Just(0), 3 => 1..20u32, 1 => Just(2_592_001), 1 => Just(2_000_000_000)]
}

fn verb() -> impl Strategy<Value = Verb> {
    let value = 0..VALUES.len();
    let store = (
        prop::sample::select(vec![Opcode::SET, Opcode::SET, Opcode::ADD, Opcode::REPLACE]),
        value.clone(),
        any::<u32>(),
        expiry(),
        cas_choice(),
    );
    let count_expiry = prop_oneof![expiry(), Just(u32::MAX)];
    let count = (
        prop::sample::select(vec![Opcode::INCREMENT, Opcode::DECREMENT]),
        prop_oneof![0..5u64, Just(u64::MAX)],
        0..3u64,
        count_expiry,
    );
    let join = (prop::sample::select(vec![Opcode::APPEND, Opcode::PREPEND]), value, cas_choice());
    let touch = (prop::sample::select(vec![Opcode::TOUCH, Opcode::GAT]), expiry());
    prop_oneof![
        3 => Just(Verb::Get),
        5 => store.prop_map(|(opcode, value, flags, expiry, cas)| {
            Verb::Store { opcode, value, flags, expiry, cas }
        }),
        2 => cas_choice().prop_map(|cas| Verb::Delete { cas }),
        3 => count.prop_map(|(opcode, delta, initial, expiry)| Verb::Count { opcode, delta, initial, expiry }),
        2 => join.prop_map(|(opcode, value, cas)| Verb::Join { opcode, value, cas }),
        2 => touch.prop_map(|(opcode, expiry)| Verb::Touch { opcode, expiry }),
    ]
}

fn actions(crashes: bool) -> impl Strategy<Value = Vec<Action>> {
    let weight = u32::from(crashes);
    let action = prop_oneof![
        30 => (0..KEYS, verb()).prop_map(|(key, verb)| Action::Do(key, verb)),
        2 => Just(Action::Flush),
        3 => (1..25u8).prop_map(Action::Sleep),
        2 => Just(Action::Settle),
        2 * weight => any::<u64>().prop_map(Action::Crash),
        1 => Just(Action::Restart),
    ];
    prop::collection::vec(action, 1..80)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// G1, and data operations §1–§5.
    #[test]
    fn commands_one_by_one_behave_as_the_model_also_after_crashes(
        actions in actions(true),
        resident in prop_oneof![Just(1usize), Just(500), Just(64 << 20)],
        seed in any::<u64>(),
    ) {
        Driver::new(false, resident, seed).run(&actions);
    }

    #[test]
    fn pipelined_commands_answer_as_if_they_came_one_by_one(
        actions in actions(false),
        resident in prop_oneof![Just(1usize), Just(500)],
        seed in any::<u64>(),
    ) {
        Driver::new(true, resident, seed).run(&actions);
    }
}
