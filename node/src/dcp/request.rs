//! A stream request against a vbucket's seqnos: the checks of its numbers, in the protocol's order.
//!
//! [`at_latest`], [`check`], then the caller's checks of filter and stream and the [`rollback`](super::rollback)
//! decision, then [`bound`].
//!
//! Does not know: vbuckets, filters, which streams exist.
//! Source: Couchbase KV protocol, DCP stream request, as the reference implementation orders its checks.

use ringbase_storage::types::{FailoverEntry, Seqno, VbUuid};

use crate::protocol::dcp::{StreamFlags, StreamRequest};
use crate::protocol::{Refusal, Status};

/// How far a vbucket is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reach {
    /// The greatest seqno assigned.
    pub high_seqno: Seqno,
    /// All up to here is durable.
    pub persisted_seqno: Seqno,
    /// The greatest seqno of the collections that the stream carries, if it has a filter.
    pub filtered_high_seqno: Option<Seqno>,
}

/// With FromLatest: the request of a client that has everything up to now; its uuid may then be 0, which stands for
/// the newest branch of `log`. Other requests stay as they are.
#[must_use]
pub fn at_latest(request: StreamRequest, high_seqno: Seqno, log: &[FailoverEntry]) -> StreamRequest {
    if !request.flags.contains(StreamFlags::FROM_LATEST) {
        return request;
    }
    let newest = log.first().map_or(VbUuid(0), |entry| entry.uuid);
    let uuid = if request.uuid == VbUuid(0) { newest } else { request.uuid };
    StreamRequest { start: high_seqno, snap_start: high_seqno, snap_end: high_seqno, uuid, ..request }
}

/// Rows 4 and 5: the numbers agree with each other.
///
/// # Errors
/// ERANGE if not.
pub fn check(request: &StreamRequest) -> Result<(), Refusal> {
    if request.start > request.end {
        return Err(erange("The stream starts behind its end"));
    }
    if request.snap_start > request.start || request.start > request.snap_end {
        return Err(erange("The stream starts outside its snapshot"));
    }
    Ok(())
}

/// Rows 9 to 11: the end of a stream to the latest or from disk, a start the vbucket has reached, and a snapshot that
/// the client holds nothing of.
///
/// # Errors
/// ERANGE if the start is behind the end or the high seqno.
pub fn bound(request: StreamRequest, reach: &Reach) -> Result<StreamRequest, Refusal> {
    let mut bounded = request;
    if request.flags.contains(StreamFlags::TO_LATEST) {
        bounded.end = reach.filtered_high_seqno.unwrap_or(reach.high_seqno);
    }
    if request.flags.contains(StreamFlags::DISK_ONLY) {
        let end = if request.flags.contains(StreamFlags::TO_LATEST) { bounded.end } else { Seqno(u64::MAX) };
        bounded.end = end.min(reach.persisted_seqno);
    }
    if bounded.start > bounded.end {
        return Err(erange("The stream starts behind its end"));
    }
    if bounded.start > reach.high_seqno {
        return Err(erange("The stream starts behind the high seqno"));
    }
    if bounded.start == bounded.snap_start && bounded.snap_end > reach.high_seqno {
        bounded.snap_end = bounded.snap_start;
    }
    Ok(bounded)
}

fn erange(context: &'static str) -> Refusal {
    Refusal::new(Status::ERANGE, context)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(flags: StreamFlags, start: u64, end: u64, snap_start: u64, snap_end: u64) -> StreamRequest {
        StreamRequest {
            flags,
            start: Seqno(start),
            end: Seqno(end),
            uuid: VbUuid(1),
            snap_start: Seqno(snap_start),
            snap_end: Seqno(snap_end),
        }
    }

    const REACH: Reach =
        Reach { high_seqno: Seqno(100), persisted_seqno: Seqno(90), filtered_high_seqno: None };

    #[test]
    fn numbers_that_contradict_each_other_are_erange() {
        let status = |start, end, snap_start, snap_end| {
            let request = request(StreamFlags::NONE, start, end, snap_start, snap_end);
            check(&request).map_err(|refusal| refusal.status)
        };
        assert_eq!(status(5, 5, 5, 5), Ok(()));
        assert_eq!(status(5, u64::MAX, 0, 9), Ok(()));
        for (start, end, snap_start, snap_end) in [(6, 5, 6, 6), (5, 9, 6, 7), (5, 9, 0, 4), (5, 9, 7, 4)] {
            assert_eq!(status(start, end, snap_start, snap_end), Err(Status::ERANGE));
        }
    }

    #[test]
    fn a_stream_from_the_latest_starts_at_the_high_seqno_on_the_newest_branch() {
        let log = [FailoverEntry { uuid: VbUuid(9), seqno: Seqno(0) }];
        let nothing = StreamRequest { flags: StreamFlags::FROM_LATEST, ..StreamRequest::FROM_NOTHING };
        let latest = at_latest(nothing, Seqno(100), &log);
        assert_eq!((latest.start, latest.snap_start, latest.snap_end), (Seqno(100), Seqno(100), Seqno(100)));
        assert_eq!((latest.uuid, latest.end), (VbUuid(9), StreamRequest::NO_END));
        let named = at_latest(StreamRequest { uuid: VbUuid(3), ..nothing }, Seqno(100), &log);
        assert_eq!(named.uuid, VbUuid(3));
        assert_eq!(at_latest(StreamRequest::FROM_NOTHING, Seqno(100), &log), StreamRequest::FROM_NOTHING);
    }

    #[test]
    fn the_end_follows_the_flags_and_the_start_must_be_reached() {
        let end = |flags, start, reach: &Reach| {
            let bounded = bound(request(flags, start, u64::MAX, start, start), reach);
            bounded.map(|request| request.end.0).map_err(|refusal| refusal.status)
        };
        let filtered = Reach { filtered_high_seqno: Some(Seqno(40)), ..REACH };
        assert_eq!(end(StreamFlags::NONE, 100, &REACH), Ok(u64::MAX));
        assert_eq!(end(StreamFlags::NONE, 101, &REACH), Err(Status::ERANGE));
        assert_eq!(end(StreamFlags::TO_LATEST, 100, &REACH), Ok(100));
        assert_eq!(end(StreamFlags::TO_LATEST, 40, &filtered), Ok(40));
        assert_eq!(end(StreamFlags::TO_LATEST, 41, &filtered), Err(Status::ERANGE));
        assert_eq!(end(StreamFlags::DISK_ONLY, 90, &REACH), Ok(90));
        assert_eq!(end(StreamFlags::DISK_ONLY, 91, &REACH), Err(Status::ERANGE));
        let both = StreamFlags::TO_LATEST | StreamFlags::DISK_ONLY;
        assert_eq!(end(both, 0, &REACH), Ok(90));
        assert_eq!(end(both, 0, &filtered), Ok(40));
    }

    #[test]
    fn a_snapshot_beyond_the_high_seqno_is_forgotten_if_nothing_of_it_is_held() {
        let snap_end = |start, snap_start, snap_end| {
            bound(request(StreamFlags::NONE, start, u64::MAX, snap_start, snap_end), &REACH)
                .unwrap()
                .snap_end
                .0
        };
        assert_eq!(snap_end(60, 60, 120), 60);
        assert_eq!(snap_end(60, 60, 100), 100);
        assert_eq!(snap_end(70, 60, 120), 120);
    }
}
