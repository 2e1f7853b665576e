//! How far vbuckets are, over TCP: GET_ALL_VB_SEQNOS and SEQNO_PERSISTENCE across cores.

use std::collections::BTreeMap;

use ringbase::client::{Bucket, ClientError, ConnectOptions, Connection, DcpClient, DcpOptions, StoreMode};
use ringbase::protocol::dcp::signal::VbucketState;
use ringbase::protocol::dcp::vb_seqnos::{VbSeqnosRequest, decode_vb_seqnos};
use ringbase::protocol::extras::StoreExtras;
use ringbase::protocol::{CollectionId, Feature, Opcode, Request, Status, vbucket_of};
use ringbase_storage::types::{Cas, Seqno, VbId};

use super::rig::{Node, for_each_kind};

const PLAIN: StoreExtras = StoreExtras { flags: 0, expiry: 0 };
const VBUCKETS: u16 = 16;

fn connect(node: &Node, bucket: &str, collections: bool) -> Connection {
    let features = match collections {
        true => ConnectOptions::FEATURES.with(Feature::Collections),
        false => ConnectOptions::FEATURES,
    };
    let options = ConnectOptions { bucket: Some(bucket.into()), features, ..node.connect_options() };
    Connection::open(&options).unwrap()
}

fn status<T>(result: Result<T, ClientError>) -> Status {
    result.err().map_or(Status::SUCCESS, |error| error.status().unwrap_or_else(|| panic!("{error}")))
}

fn seqnos(connection: &mut Connection, asked: &VbSeqnosRequest) -> Result<Vec<(VbId, Seqno)>, ClientError> {
    let extras = asked.extras();
    let request = Request::new(Opcode::GET_ALL_VB_SEQNOS).extras(&extras);
    connection.call(request, |frame| decode_vb_seqnos(frame.value).unwrap().collect())
}

/// DCP §13: every vbucket once, ascending, with all that was written until then; also on a DCP connection.
#[test]
fn the_seqnos_of_all_vbuckets_are_told_by_every_core() {
    for_each_kind(|node, bucket| {
        let mut expected: BTreeMap<VbId, u64> = (0..VBUCKETS).map(|vb| (VbId(vb), 0)).collect();
        for collections in [false, true] {
            let mut connection = connect(node, bucket, collections);
            let mut writer = connect(node, bucket, false);
            for number in 0..100 {
                let key = format!("key-{number}");
                let mut bucket = Bucket::new(&mut writer).unwrap();
                bucket.store(StoreMode::Set, key.as_bytes(), b"value", PLAIN, Cas(0)).unwrap();
                *expected.get_mut(&vbucket_of(key.as_bytes(), VBUCKETS)).unwrap() += 1;
            }
            let expected: Vec<(VbId, Seqno)> =
                expected.iter().map(|(vb, seqno)| (*vb, Seqno(*seqno))).collect();
            let of = |state, collection| VbSeqnosRequest { state, collection };
            for alive in [of(None, None), of(Some(VbucketState::Active), None)] {
                assert_eq!(seqnos(&mut connection, &alive).unwrap(), expected);
            }
            for state in [VbucketState::Replica, VbucketState::Pending, VbucketState::Dead] {
                assert_eq!(seqnos(&mut connection, &of(Some(state), None)).unwrap(), []);
            }
            let default = seqnos(&mut connection, &of(None, Some(CollectionId::DEFAULT)));
            let unknown = status(seqnos(&mut connection, &of(None, Some(CollectionId(8)))));
            match collections {
                true => {
                    assert_eq!((default.unwrap(), unknown), (expected.clone(), Status::UNKNOWN_COLLECTION));
                }
                false => assert_eq!((status(default), unknown), (Status::EINVAL, Status::EINVAL)),
            }
            let no_state = Request::new(Opcode::GET_ALL_VB_SEQNOS).extras(&[0, 0, 0, 5]);
            assert_eq!(status(connection.call(no_state, |_| ())), Status::EINVAL);
            let mut client = DcpClient::open(connection, &DcpOptions::named("seqnos")).unwrap();
            let asked = client.call(Request::new(Opcode::GET_ALL_VB_SEQNOS), |frame| {
                decode_vb_seqnos(frame.value).unwrap().collect::<Vec<_>>()
            });
            assert_eq!(asked.unwrap(), expected);
        }
    });
}

/// DCP §13: SUCCESS once the disk has it; a bucket in memory has no such thing.
#[test]
fn seqno_persistence_is_answered_by_the_core_of_the_vbucket() {
    for_each_kind(|node, bucket| {
        let mut connection = connect(node, bucket, false);
        for number in 0..20 {
            let key = format!("key-{number}");
            let vb = vbucket_of(key.as_bytes(), VBUCKETS);
            let mut writer = Bucket::new(&mut connection).unwrap();
            let stored = writer.store(StoreMode::Set, key.as_bytes(), b"value", PLAIN, Cas(0)).unwrap();
            let token = stored.token.expect("the client asks for tokens");
            let extras = token.seqno.0.to_be_bytes();
            let until = Request::new(Opcode::SEQNO_PERSISTENCE).vbucket(vb).extras(&extras);
            let answered = status(connection.call(until, |_| ()));
            if bucket == "memory" {
                assert_eq!(answered, Status::NOT_SUPPORTED);
                continue;
            }
            assert_eq!(answered, Status::SUCCESS);
            assert!(connection.observe(vb, token.uuid).unwrap().persisted_seqno >= token.seqno);
        }
        let absent = Request::new(Opcode::SEQNO_PERSISTENCE).vbucket(VbId(VBUCKETS)).extras(&[0; 8]);
        assert_eq!(status(connection.call(absent, |_| ())), Status::NOT_MY_VBUCKET);
        let short = Request::new(Opcode::SEQNO_PERSISTENCE).extras(&[0; 7]);
        assert_eq!(status(connection.call(short, |_| ())), Status::EINVAL);
    });
}
