//! Exact traffic of each upstream node in one slice.
//!
//! Nodes are few and named by small numbers, so the usual case is one indexed cell. A number past
//! the dense range goes through a map, so that no numbering is refused.

use super::{Access, Totals};
use crate::hash::ByHash;

/// Nodes numbered below this have a cell of their own: as many as the largest Cluster advised.
const DENSE: usize = 1024;

#[derive(Debug, Clone, Copy, Default)]
struct Cell {
    totals: Totals,
    /// Start of the slice in which the cell was last touched, counted from 1.
    stamp: u64,
}

/// The traffic of every node in one slice; a cell with another slice's stamp is zero.
#[derive(Debug, Default)]
pub(super) struct Nodes {
    dense: Vec<Cell>,
    sparse: ByHash<Totals>,
    stamp: u64,
}

impl Nodes {
    pub(super) fn start(&mut self) {
        self.stamp += 1;
        self.sparse.clear();
    }

    #[inline]
    pub(super) fn count(&mut self, node: u32, access: Access, bytes: u64) {
        match self.dense.get_mut(node as usize) {
            Some(cell) if cell.stamp == self.stamp => add(&mut cell.totals, access, bytes),
            _ => self.count_first(node, access, bytes),
        }
    }

    #[cold]
    fn count_first(&mut self, node: u32, access: Access, bytes: u64) {
        let index = node as usize;
        if index >= DENSE {
            return add(
                self.sparse.entry(u64::from(node)).or_default(),
                access,
                bytes,
            );
        }
        if index >= self.dense.len() {
            self.dense.resize(index + 1, Cell::default());
        }
        let cell = &mut self.dense[index];
        *cell = Cell {
            totals: Totals::default(),
            stamp: self.stamp,
        };
        add(&mut cell.totals, access, bytes);
    }

    pub(super) fn totals(&self, node: u32) -> Totals {
        match self.dense.get(node as usize) {
            Some(cell) if cell.stamp == self.stamp => cell.totals,
            Some(_) => Totals::default(),
            None => self
                .sparse
                .get(&u64::from(node))
                .copied()
                .unwrap_or_default(),
        }
    }

    /// The traffic of all nodes.
    pub(super) fn sum(&self) -> Totals {
        let mut sum = Totals::default();
        self.active().for_each(|node| sum += self.totals(node));
        sum
    }

    /// The nodes with traffic in this slice.
    pub(super) fn active(&self) -> impl Iterator<Item = u32> + '_ {
        let dense = self
            .dense
            .iter()
            .enumerate()
            .filter(|(_, cell)| cell.stamp == self.stamp);
        dense
            .map(|(node, _)| node as u32)
            .chain(self.sparse.keys().map(|node| *node as u32))
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.dense.capacity() * size_of::<Cell>() + self.sparse.allocation_size()
    }
}

#[inline]
fn add(totals: &mut Totals, access: Access, bytes: u64) {
    match access {
        Access::Read => totals.reads += 1,
        Access::Write => totals.writes += 1,
    }
    totals.bytes = totals.bytes.saturating_add(bytes);
}
