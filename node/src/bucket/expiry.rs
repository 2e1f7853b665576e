//! When documents end: the two forms of an expiry in requests, and the test against the clock.
//!
//! A stored expiry is absolute, in epoch seconds, 0 for none. A document lives until the second that its expiry
//! names is over, so that it never lives shorter than was asked for.
//!
//! Does not know: clocks, documents.

/// Longest expiry that counts from now, in seconds: 30 days. A greater number is a moment.
pub const RELATIVE_SECONDS_MAX: u32 = 30 * 24 * 60 * 60;

/// An expiry lies beyond what 32 bits of seconds can say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an expiry of {relative_seconds} s from now is beyond 32 bits of epoch seconds")]
pub struct ExpiryOverflow {
    /// What was asked for.
    pub relative_seconds: u32,
}

/// The whole epoch seconds of a wall clock.
#[must_use]
#[inline]
pub fn seconds(wall_ns: u64) -> u32 {
    u32::try_from(wall_ns / 1_000_000_000).unwrap_or(u32::MAX)
}

/// The absolute expiry that `given` in a request means at `now`, both in seconds; a moment in the past stays what it is.
///
/// With a `ttl_max` other than 0 nothing lives longer than that from now on.
///
/// # Errors
/// EXPIRY_OVERFLOW: `now` and a relative expiry together exceed 32 bits.
#[inline]
pub fn absolute(given: u32, now: u32, ttl_max: u32) -> Result<u32, ExpiryOverflow> {
    let expiry = match given {
        0 => 0,
        1..=RELATIVE_SECONDS_MAX => {
            now.checked_add(given).ok_or(ExpiryOverflow { relative_seconds: given })?
        }
        _ => given,
    };
    Ok(capped(expiry, now, ttl_max))
}

/// An absolute expiry, but not later than `ttl_max` seconds from `now`; 0 for no limit.
#[must_use]
#[inline]
pub fn capped(expiry: u32, now: u32, ttl_max: u32) -> u32 {
    if ttl_max == 0 {
        return expiry;
    }
    let latest = now.saturating_add(ttl_max);
    if expiry == 0 { latest } else { expiry.min(latest) }
}

/// Whether a document with this stored expiry is over at `now`.
#[must_use]
#[inline]
pub fn is_expired(expiry: u32, now: u32) -> bool {
    expiry != 0 && expiry < now
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u32 = 1_767_225_600;

    #[test]
    fn thirty_days_are_the_longest_time_that_counts_from_now() {
        assert_eq!(absolute(0, NOW, 0), Ok(0));
        assert_eq!(absolute(1, NOW, 0), Ok(NOW + 1));
        assert_eq!(absolute(2_592_000, NOW, 0), Ok(NOW + 2_592_000));
        assert_eq!(absolute(2_592_001, NOW, 0), Ok(2_592_001), "a moment in 1970");
        assert_eq!(absolute(NOW + 5, NOW, 0), Ok(NOW + 5));
    }

    #[test]
    fn a_relative_expiry_beyond_32_bits_overflows_and_an_absolute_one_cannot() {
        let late = u32::MAX - 10;
        assert_eq!(absolute(10, late, 0), Ok(u32::MAX));
        assert_eq!(absolute(11, late, 0), Err(ExpiryOverflow { relative_seconds: 11 }));
        assert_eq!(absolute(u32::MAX, late, 0), Ok(u32::MAX));
    }

    #[test]
    fn a_greatest_ttl_caps_every_expiry_and_the_lack_of_one() {
        assert_eq!(absolute(0, NOW, 60), Ok(NOW + 60));
        assert_eq!(absolute(10, NOW, 60), Ok(NOW + 10));
        assert_eq!(absolute(61, NOW, 60), Ok(NOW + 60));
        assert_eq!(absolute(NOW + 1000, NOW, 60), Ok(NOW + 60));
        assert_eq!(absolute(NOW - 1000, NOW, 60), Ok(NOW - 1000));
        assert_eq!([0, 10, NOW + 61].map(|expiry| capped(expiry, NOW, 60)), [NOW + 60, 10, NOW + 60]);
        assert_eq!([0, 10].map(|expiry| capped(expiry, NOW, 0)), [0, 10]);
    }

    #[test]
    fn a_document_lives_through_the_second_of_its_expiry() {
        assert!(!is_expired(0, NOW));
        assert!(!is_expired(NOW, NOW));
        assert!(is_expired(NOW, NOW + 1));
        assert_eq!(seconds(1_767_225_600_999_999_999), NOW);
        assert_eq!(seconds(u64::MAX), u32::MAX);
    }
}
