//! GET_ALL_VB_SEQNOS, the question that comes before streams: how far is each vbucket?
//!
//! SEQNO_PERSISTENCE's extras are a seqno ([`decode_seqno`](super::signal::decode_seqno)); OBSERVE_SEQNO is in
//! [`extras`](super::super::extras).
//!
//! Cost: no allocation; ten bytes for each vbucket.
//!
//! Does not know: vbuckets, collections, what a connection may see.

use bytes::BufMut;
use ringbase_storage::types::{Seqno, VbId};

use super::super::error_context::Refusal;
use super::super::extras::{ILLEGAL_LENGTH, take_u16, take_u64};
use super::super::key::CollectionId;
use super::signal::VbucketState;

/// Bytes of one answer.
const ENTRY_BYTES: usize = 10;

/// The extras of GET_ALL_VB_SEQNOS.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct VbSeqnosRequest {
    /// Only vbuckets in this state; `None` for all that are alive, which dead ones are not.
    pub state: Option<VbucketState>,
    /// Only documents of this collection.
    pub collection: Option<CollectionId>,
}

impl VbSeqnosRequest {
    /// Decodes 0, 4 or 8 bytes: state, collection.
    ///
    /// # Errors
    /// EINVAL for another length, an unknown state, or a collection on a connection without Collections.
    pub fn decode(extras: &[u8], collections: bool) -> Result<VbSeqnosRequest, Refusal> {
        let (numbers, torn) = extras.as_chunks::<4>();
        let number = |index: usize| numbers.get(index).copied().map(u32::from_be_bytes);
        if !torn.is_empty() || numbers.len() > 2 {
            return Err(ILLEGAL_LENGTH);
        }
        let state = match number(0) {
            None | Some(0) => None,
            Some(state) => {
                Some(VbucketState::from_u32(state).ok_or(Refusal::einval("Unknown vbucket state"))?)
            }
        };
        let collection = number(1).map(CollectionId);
        if collection.is_some() && !collections {
            return Err(Refusal::einval("A collection needs the Collections feature"));
        }
        Ok(VbSeqnosRequest { state, collection })
    }

    /// Whether vbuckets in `state` are asked for.
    #[must_use]
    pub fn wants(&self, state: VbucketState) -> bool {
        self.state.map_or(state != VbucketState::Dead, |wanted| wanted == state)
    }

    /// The extras of a request: as short as can be.
    #[must_use]
    pub fn extras(&self) -> Vec<u8> {
        let state = self.state.map_or(0, |state| state as u32);
        let mut extras = Vec::with_capacity(8);
        if self.state.is_some() || self.collection.is_some() {
            extras.put_u32(state);
        }
        if let Some(collection) = self.collection {
            extras.put_u32(collection.0);
        }
        extras
    }
}

/// Appends one entry of the answer to `out`; vbuckets ascend.
pub fn encode_vb_seqno(vbucket: VbId, seqno: Seqno, out: &mut Vec<u8>) {
    out.put_u16(vbucket.0);
    out.put_u64(seqno.0);
}

/// The entries of an answer; `None` if the last one is torn.
#[must_use]
pub fn decode_vb_seqnos(value: &[u8]) -> Option<impl ExactSizeIterator<Item = (VbId, Seqno)>> {
    let (entries, torn) = value.as_chunks::<ENTRY_BYTES>();
    let entry = |bytes: &[u8; ENTRY_BYTES]| {
        let mut rest = &bytes[..];
        let vbucket = take_u16(&mut rest).map_or(VbId(0), VbId);
        (vbucket, take_u64(&mut rest).map_or(Seqno(0), Seqno))
    };
    torn.is_empty().then(|| entries.iter().map(entry))
}

#[cfg(test)]
mod tests {
    use super::super::super::Status;
    use super::*;

    #[test]
    fn a_question_names_a_state_and_a_collection_or_neither() {
        let collection = Some(CollectionId(8));
        for (extras, expected) in [
            (&[][..], VbSeqnosRequest::default()),
            (&[0, 0, 0, 2], VbSeqnosRequest { state: Some(VbucketState::Replica), collection: None }),
            (&[0, 0, 0, 0, 0, 0, 0, 8], VbSeqnosRequest { state: None, collection }),
            (&[0, 0, 0, 1, 0, 0, 0, 8], VbSeqnosRequest { state: Some(VbucketState::Active), collection }),
        ] {
            assert_eq!(VbSeqnosRequest::decode(extras, true), Ok(expected));
            assert_eq!(expected.extras(), extras);
        }
        let status =
            |extras: &[u8], on| VbSeqnosRequest::decode(extras, on).map_err(|refusal| refusal.status);
        assert_eq!(status(&[0; 4], true), Ok(VbSeqnosRequest::default()));
        assert_eq!(status(&[0; 8], false), Err(Status::EINVAL));
        assert_eq!(status(&[0, 0, 0, 5], true), Err(Status::EINVAL));
        for len in (0..16).filter(|len| ![0, 4, 8].contains(len)) {
            assert_eq!(status(&vec![0; len], true), Err(Status::EINVAL), "{len}");
        }
    }

    #[test]
    fn alive_are_all_but_dead_ones() {
        let alive = VbSeqnosRequest::default();
        assert!(alive.wants(VbucketState::Pending) && !alive.wants(VbucketState::Dead));
        let replica = VbSeqnosRequest { state: Some(VbucketState::Replica), collection: None };
        assert!(replica.wants(VbucketState::Replica) && !replica.wants(VbucketState::Active));
    }

    #[test]
    fn entries_read_back_and_a_torn_one_is_refused() {
        let mut value = Vec::new();
        let entries = [(VbId(10), Seqno(0x5432)), (VbId(720), Seqno(u64::MAX))];
        entries.iter().for_each(|(vbucket, seqno)| encode_vb_seqno(*vbucket, *seqno, &mut value));
        assert!(decode_vb_seqnos(&value).unwrap().eq(entries));
        assert!(decode_vb_seqnos(&value[1..]).is_none());
        assert_eq!(decode_vb_seqnos(&[]).unwrap().len(), 0);
    }
}
