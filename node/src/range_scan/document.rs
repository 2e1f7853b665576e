//! A stored document as a record of a document scan.
//!
//! The datatype is the stored one, but for xattrs that the client does not want. Compressed values are granted to no connection, so none is stored.
//!
//! Cost: one copy of key and value.
//! Does not know: scans, buffers' bounds.

use std::rc::Rc;

use ringbase_storage::scan::DocumentEncoder;

use crate::protocol::Datatype;
use crate::protocol::scan_records::DocumentRecord;
use crate::protocol::xattr::split_stored;

/// Appends 25 fixed bytes, the key and the value, each with its length in front (T5.15). Xattrs are in front of the body if they are wanted.
pub(super) fn document_encoder(include_xattrs: bool) -> DocumentEncoder {
    Rc::new(move |out, meta, key, value| {
        let datatype = Datatype(meta.datatype);
        let (datatype, value) = match include_xattrs {
            true => (datatype, value),
            false => (datatype.without(Datatype::XATTR), split_stored(datatype, value).1),
        };
        let record = DocumentRecord {
            flags: meta.flags,
            expiry: meta.expiry,
            seqno: meta.seqno,
            cas: meta.cas,
            datatype,
            key,
            value,
        };
        // A buffer grows by one record at most, so it is grown to exactly that.
        out.reserve_exact(record.record_bytes());
        record.encode(out);
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::scan_records::DocumentRecords;
    use crate::protocol::xattr::build_section;
    use ringbase_storage::types::{Cas, ItemMeta, Kind, Seqno};

    /// T5.15
    #[test]
    fn a_document_is_25_fixed_bytes_in_network_order_and_two_strings() {
        let meta = ItemMeta {
            seqno: Seqno(0x0102_0304_0506_0708),
            cas: Cas(0x1112_1314_1516_1718),
            revid: 3,
            flags: 0x2122_2324,
            expiry: 0x3132_3334,
            datatype: 1,
            kind: Kind::Mutation,
        };
        let value = vec![7; 300];
        let mut out = Vec::new();
        document_encoder(false)(&mut out, &meta, b"key", &value);
        let fixed = [
            0x21, 0x22, 0x23, 0x24, 0x31, 0x32, 0x33, 0x34, 1, 2, 3, 4, 5, 6, 7, 8, 0x11, 0x12, 0x13, 0x14,
            0x15, 0x16, 0x17, 0x18, 1, 3, b'k', b'e', b'y', 0xac, 0x02,
        ];
        assert_eq!(out[..fixed.len()], fixed);
        let record = DocumentRecords::new(&out).next().unwrap().unwrap();
        assert_eq!((record.key, record.value, record.cas), (&b"key"[..], &value[..], meta.cas));
        assert_eq!(out.capacity(), out.len());
    }

    #[test]
    fn xattrs_are_in_the_record_only_if_they_are_wanted() {
        let meta = ItemMeta {
            seqno: Seqno(1),
            cas: Cas(2),
            revid: 3,
            flags: 0,
            expiry: 0,
            datatype: 5,
            kind: Kind::Mutation,
        };
        let value = [&build_section([("a", "1"), ("_b", "2")])[..], b"{}"].concat();
        for (include, expected, datatype) in [(true, &value[..], Datatype(5)), (false, b"{}", Datatype::JSON)]
        {
            let mut out = Vec::new();
            document_encoder(include)(&mut out, &meta, b"key", &value);
            let record = DocumentRecords::new(&out).next().unwrap().unwrap();
            assert_eq!((record.value, record.datatype), (expected, datatype));
        }
    }
}
