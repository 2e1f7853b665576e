//! What is measured: the cells of the matrix, in the order in which they run.
//!
//! Invariants
//! - Cells that need the same servers with the same documents stand together.
//! - No cell occurs twice.
//!
//! Does not know: servers, clients, results.

use serde::Serialize;

use crate::traffic::{KeyChoice, Mix};

/// One line of the results.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(super) struct Cell {
    /// Cores of each server.
    pub(super) cores: u16,
    /// Bytes of every value.
    pub(super) value_bytes: usize,
    /// Connections.
    pub(super) connections: usize,
    /// Requests under way on each connection.
    pub(super) depth: usize,
    /// Operations.
    pub(super) mix: Mix,
    /// Documents.
    pub(super) keys: KeyChoice,
}

impl Cell {
    /// For the progress on standard error and the names of files.
    pub(super) fn name(&self) -> String {
        let Cell { cores, value_bytes, connections, depth, mix, keys } = self;
        let mix = mix.name().to_lowercase().replace('/', "-");
        match self.mix {
            Mix::Noop => format!("{cores}cores-{connections}x{depth}-{mix}"),
            _ => format!("{cores}cores-{value_bytes}B-{connections}x{depth}-{mix}-{}", keys.name()),
        }
    }
}

/// Cells that need the same servers with the same documents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Group {
    /// Cores of each server.
    pub(super) cores: u16,
    /// Bytes of every value.
    pub(super) value_bytes: usize,
    /// In order.
    pub(super) cells: Vec<Cell>,
}

/// What each dimension goes over; the first value of each is the usual one.
#[derive(Debug, Clone)]
pub(super) struct Axes {
    pub(super) cores: Vec<u16>,
    pub(super) value_bytes: Vec<usize>,
    pub(super) connections: Vec<usize>,
    pub(super) depths: Vec<usize>,
    pub(super) mixes: Vec<Mix>,
    pub(super) keys: Vec<KeyChoice>,
}

impl Axes {
    /// The cells. Unless `full`, value size and choice of documents do not both leave their first value. NOOP has neither, and occurs
    /// with the first of both.
    pub(super) fn groups(&self, full: bool) -> Vec<Group> {
        let mut groups: Vec<Group> = Vec::new();
        for cores in unique(&self.cores) {
            for (value_index, value_bytes) in unique(&self.value_bytes).into_iter().enumerate() {
                let mut cells = Vec::new();
                for connections in unique(&self.connections) {
                    for depth in unique(&self.depths) {
                        for mix in unique(&self.mixes) {
                            for (key_index, keys) in unique(&self.keys).into_iter().enumerate() {
                                let changed = usize::from(value_index > 0) + usize::from(key_index > 0);
                                let changed_max = match mix {
                                    Mix::Noop => 0,
                                    _ if full => 2,
                                    _ => 1,
                                };
                                if changed <= changed_max {
                                    cells.push(Cell { cores, value_bytes, connections, depth, mix, keys });
                                }
                            }
                        }
                    }
                }
                if !cells.is_empty() {
                    groups.push(Group { cores, value_bytes, cells });
                }
            }
        }
        groups
    }
}

/// The values without repetition, in order.
fn unique<T: Copy + PartialEq>(values: &[T]) -> Vec<T> {
    let mut once = Vec::new();
    for value in values {
        if !once.contains(value) {
            once.push(*value);
        }
    }
    once
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn axes() -> Axes {
        Axes {
            cores: vec![1, 2],
            value_bytes: vec![100, 1024],
            connections: vec![1, 50],
            depths: vec![1, 16, 64],
            mixes: vec![Mix::Get, Mix::Set, Mix::Mixed, Mix::Noop],
            keys: vec![KeyChoice::Zipfian, KeyChoice::Uniform],
        }
    }

    fn cells(groups: &[Group]) -> Vec<Cell> {
        groups.iter().flat_map(|group| group.cells.iter().copied()).collect()
    }

    #[test]
    fn the_full_matrix_is_the_product_of_its_axes_and_the_usual_one_changes_one_of_two_at_a_time() {
        let (full, usual) = (cells(&axes().groups(true)), cells(&axes().groups(false)));
        // 2 cores, 2 connections, 3 depths; 3 mixes with 2 sizes and 2 choices, or 3 of these 4; NOOP with one.
        assert_eq!(full.len(), 12 * (3 * 4 + 1));
        assert_eq!(usual.len(), 12 * (3 * 3 + 1));
        let both = |cell: &Cell| cell.value_bytes == 1024 && cell.keys == KeyChoice::Uniform;
        assert!(full.iter().any(both) && !usual.iter().any(both));
        for cells in [full, usual] {
            assert_eq!(cells.iter().collect::<BTreeSet<_>>().len(), cells.len());
            let noops = cells.iter().filter(|cell| cell.mix == Mix::Noop);
            assert_eq!(noops.count(), 12);
        }
    }

    #[test]
    fn servers_are_started_once_for_all_cells_with_the_same_cores_and_documents() {
        let groups = axes().groups(false);
        let heads: Vec<(u16, usize)> = groups.iter().map(|group| (group.cores, group.value_bytes)).collect();
        assert_eq!(heads, [(1, 100), (1, 1024), (2, 100), (2, 1024)]);
        for group in &groups {
            let belongs = |cell: &Cell| (cell.cores, cell.value_bytes) == (group.cores, group.value_bytes);
            assert!(group.cells.iter().all(belongs));
        }
    }

    #[test]
    fn what_is_asked_for_twice_is_measured_once_and_noop_alone_needs_no_second_data_set() {
        let axes = Axes { depths: vec![16, 16], mixes: vec![Mix::Noop], ..axes() };
        let groups = axes.groups(true);
        assert_eq!(groups.len(), 2);
        assert_eq!(cells(&groups).len(), 4);
    }

    #[test]
    fn names_of_cells_differ_and_are_names_of_files() {
        let cells = cells(&axes().groups(true));
        let names: BTreeSet<String> = cells.iter().map(Cell::name).collect();
        assert_eq!(names.len(), cells.len());
        assert!(names.iter().all(|name| !name.contains(['/', ' '])));
    }
}
