//! What the fuzzers do with bytes that may stand on a disk: one function a decoder. The kept inputs run through them in every test run.
//!
//! A checksum stops most mutations at the door; so each input is tried as it is, and once more with its checksum made right.

use ringbase_storage::format::batch::{BATCH_HEADER_BYTES, Log, peek_batch, verify_batch};
use ringbase_storage::format::block::{BlockIdentity, BlockType, open_block, peek_block};
use ringbase_storage::format::crc32c;
use ringbase_storage::format::index::{
    decode_marks, decode_run_index, decode_seqlog_index, encode_marks, encode_run_index, encode_seqlog_index,
};
use ringbase_storage::format::key_block::{KeyPart, meta_at};
use ringbase_storage::format::manifest_record::Record;
use ringbase_storage::format::seqlog_block::SeqlogBlock;
use ringbase_storage::format::superblock::{SUPERBLOCK_SLOTS, Superblock};
use ringbase_storage::format::wal_record::{decode_wal_record, peek_wal_record_len};
use ringbase_storage::manifest::ManifestState;
use ringbase_storage::run::Filter;
use ringbase_storage::types::Seqno;
use ringbase_storage::wal::WalShape;

const BLOCK: usize = 4096;

/// Longest block that is tried.
const BLOCK_BYTES_MAX: usize = 64 << 10;

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).map_or(0, |bytes| u64::from_le_bytes(bytes.try_into().expect("eight bytes")))
}

fn padded(bytes: &[u8]) -> Vec<u8> {
    let mut block = bytes[..bytes.len().min(BLOCK_BYTES_MAX)].to_vec();
    block.resize(block.len().next_multiple_of(BLOCK).max(BLOCK), 0);
    block
}

/// Makes a checksum right that stands at the front of `bytes` and covers the rest.
fn reseal(bytes: &mut [u8]) {
    let crc = crc32c(&bytes[4..]);
    bytes[..4].copy_from_slice(&crc.to_le_bytes());
}

/// A superblock slot.
pub(crate) fn superblock(bytes: &[u8]) {
    let mut block = padded(bytes);
    for _ in 0..2 {
        for slot in SUPERBLOCK_SLOTS {
            let _ = Superblock::decode(bytes, slot);
            let Ok(decoded) = Superblock::decode(&block, slot) else { continue };
            assert_eq!(Superblock::decode(&decoded.encode(slot), slot).as_ref(), Ok(&decoded));
            let shape = WalShape::of(&decoded.geometry);
            assert!(shape.record_bytes_max() as u64 <= shape.blocks * BLOCK as u64);
            assert!(shape.to_segment_end(u64::MAX) <= shape.segment_blocks);
        }
        let crc = crc32c(&block[12..BLOCK]);
        block[8..12].copy_from_slice(&crc.to_le_bytes());
    }
}

/// A batch of either log and the log records in it.
pub(crate) fn batch(bytes: &[u8]) {
    let mut block = padded(bytes);
    for log in [Log::Wal, Log::Manifest] {
        let uuid = u64_at(&block, 16);
        let _ = peek_batch(log, uuid, bytes, bytes.len());
        let blank = block[..BATCH_HEADER_BYTES].iter().all(|byte| *byte == 0);
        let other = peek_batch(log, !uuid, &block, block.len());
        assert_eq!(other == Ok(None), blank, "a batch of another shard was taken");
        let Ok(Some(header)) = peek_batch(log, uuid, &block, block.len()) else { continue };
        let _ = verify_batch(log, &header, bytes);
        let len = header.blocks() as usize * BLOCK;
        assert!(len <= block.len(), "a batch longer than its room was taken");
        reseal(&mut block[..len]);
        let (_, payload) = verify_batch(log, &header, &block).expect("its checksum was made right");
        assert_eq!(payload.len(), header.payload_len as usize);
        wal_records(payload.get(header.first_record as usize..).unwrap_or_default());
        manifest(payload);
    }
}

fn wal_records(mut bytes: &[u8]) {
    let _ = decode_wal_record(bytes);
    while let Ok(Some(len)) = peek_wal_record_len(bytes) {
        let Some(record) = bytes.get(..len) else { return };
        if let Ok(decoded) = decode_wal_record(record) {
            assert!(decoded.key.len() + decoded.value.len() < len && decoded.former < decoded.meta.seqno);
        }
        bytes = &bytes[len..];
    }
}

/// The records of a manifest batch.
pub(crate) fn manifest(bytes: &[u8]) {
    let Ok(records) = Record::decode_all(bytes) else { return };
    let encoded = |records: &[Record]| {
        let mut out = Vec::new();
        records.iter().for_each(|record| record.encode(&mut out));
        out
    };
    assert_eq!(Record::decode_all(&encoded(&records)).as_ref(), Ok(&records));
    let mut state = ManifestState::default();
    for record in records {
        if state.apply(record).is_err() {
            break;
        }
    }
    let mut again = ManifestState::default();
    for record in state.checkpoint() {
        again.apply(record).expect("a checkpoint applies");
    }
    assert_eq!(again, state, "a checkpoint gives exactly the state");
}

/// The block with type and length set and its checksum made right, and the identity that it then has.
fn forged(bytes: &[u8], kind: BlockType) -> (BlockIdentity, u64, Vec<u8>) {
    let mut block = padded(bytes);
    block[4] = 1;
    block[5] = kind as u8;
    let blocks = (block.len() / BLOCK) as u32;
    block[12..16].copy_from_slice(&blocks.to_le_bytes());
    reseal(&mut block);
    let (identity, header) = peek_block(&block).expect("version and type are right");
    (identity, header.place, block)
}

/// A key part, and a metadata part.
pub(crate) fn key_block(bytes: &[u8]) {
    let _ = peek_block(bytes);
    let (identity, place, block) = forged(bytes, BlockType::Keys);
    assert!(KeyPart::open(&identity, place.wrapping_add(1), &block).is_err(), "another place was taken");
    if let Ok(part) = KeyPart::open(&identity, place, &block) {
        let mut column = Vec::new();
        for index in 0..part.records as usize {
            let _ = (part.key(&block, index), part.seqno(&block, index));
            column.extend_from_slice(part.records(&block, index, index + 1));
        }
        assert_eq!(column, part.column(&block));
        for key in [&b""[..], b"k", part.key(&block, 0), &[0xff; 300]] {
            assert!(part.lower_bound(&block, 0, key) <= part.records as usize);
        }
    }
    let (identity, place, block) = forged(bytes, BlockType::Metas);
    if let Ok(header) = open_block(&identity, place, &block) {
        for index in (0..header.records.min(2000) as usize + 1).chain([u32::MAX as usize]) {
            let _ = meta_at(&block, index);
        }
    }
}

/// A seqlog block.
pub(crate) fn seqlog_block(bytes: &[u8]) {
    let (identity, place, block) = forged(bytes, BlockType::Seqlog);
    let Ok(shape) = SeqlogBlock::open(&identity, place, &block) else { return };
    for index in 0..shape.records as usize {
        if let Ok(record) = shape.record(&block, index) {
            assert!(record.frame.len() >= 24 + record.key.len() + record.value.len());
            let _ = shape.find(&block, record.meta.seqno);
        }
    }
    for seqno in [0, 1, u64::MAX] {
        let found = shape.lower_bound(&block, Seqno(seqno));
        assert!(found.map_or(true, |index| index <= shape.records as usize));
    }
}

/// The payloads of a seqlog index, of a mark block and of a run index.
pub(crate) fn index(bytes: &[u8]) {
    if let Ok((fences, totals)) = decode_seqlog_index(bytes) {
        let encoded = encode_seqlog_index(&fences, totals);
        assert_eq!(decode_seqlog_index(&encoded), Ok((fences.clone(), totals)));
        assert!(fences.windows(2).all(|pair| pair[0].last < pair[1].first));
    }
    if let Ok(marks) = decode_marks(bytes) {
        assert_eq!(decode_marks(&encode_marks(&marks)).as_ref(), Ok(&marks));
    }
    if let Ok((fences, filter)) = decode_run_index(bytes) {
        let encoded = encode_run_index(&fences, filter);
        assert_eq!(decode_run_index(&encoded).as_ref(), Ok(&(fences, filter)));
        let filter = Filter::decode(filter);
        let _ = (filter.may_contain(0), filter.may_contain(u64::MAX));
    }
}
