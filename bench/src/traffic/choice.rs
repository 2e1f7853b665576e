//! Which operations, of which documents.
//!
//! Does not know: documents, servers.

use clap::ValueEnum;
use serde::Serialize;

/// Which operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Mix {
    /// GET.
    Get,
    /// SET of documents that are there.
    Set,
    /// Nine GETs to one SET.
    Mixed,
    /// NOOP: frames of 24 bytes both ways, no documents; the floor.
    Noop,
}

impl Mix {
    /// As in the tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Mix::Get => "GET",
            Mix::Set => "SET",
            Mix::Mixed => "90/10",
            Mix::Noop => "NOOP",
        }
    }

    /// Share of SETs, in percent.
    pub(crate) fn set_percent(self) -> u32 {
        match self {
            Mix::Get | Mix::Noop => 0,
            Mix::Set => 100,
            Mix::Mixed => 10,
        }
    }
}

/// Which documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum KeyChoice {
    /// A few very often: the n-th most popular with a weight of 1 / n^0.99.
    Zipfian,
    /// All alike.
    Uniform,
}

impl KeyChoice {
    /// As in the tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            KeyChoice::Zipfian => "zipfian",
            KeyChoice::Uniform => "uniform",
        }
    }
}
