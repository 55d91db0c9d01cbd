//! Where copies lie, and what they are called.
//!
//! Names must not depend on the topology: two processes that see a resharding at different moments must still
//! mean the same key. So there are [`PLACES`] fixed places, one hash tag in each of as many even parts of the
//! slots, and only the choice among them looks at who owns which slot.

use std::sync::OnceLock;

use keyheat_resp::slot::slot;

use crate::topology::Topology;

/// Begins the names of copies and of what belongs to them.
pub(crate) const PREFIX: &[u8] = b"keyheat:copy:";
/// Places there are.
pub(crate) const PLACES: u32 = 256;
const SLOTS: u32 = 16_384;

/// The hash tags of the places.
fn tags() -> &'static [String] {
    static TAGS: OnceLock<Vec<String>> = OnceLock::new();
    TAGS.get_or_init(|| {
        let mut found = vec![None; PLACES as usize];
        let mut left = PLACES;
        let mut number = 0_u32;
        while left > 0 {
            let tag = format!("{number:x}");
            let share = u32::from(slot(tag.as_bytes())) * PLACES / SLOTS;
            let place = &mut found[share as usize];
            if place.is_none() {
                *place = Some(tag);
                left -= 1;
            }
            number += 1;
        }
        found.into_iter().flatten().collect()
    })
}

/// A short text whose slot is this one.
fn tag_of_slot(wanted: u16) -> String {
    let mut numbers = 0_u32..;
    let found = numbers.find(|n| slot(format!("{n:x}").as_bytes()) == wanted);
    format!("{:x}", found.unwrap_or_default())
}

fn named(tag: &str, kind: u8, key: &[u8]) -> Vec<u8> {
    let mut name = PREFIX.to_vec();
    name.extend_from_slice(format!("{{{tag}}}:{}:", kind as char).as_bytes());
    name.extend_from_slice(key);
    name
}

/// The key's copy at a place.
pub(crate) fn copy(key: &[u8], place: u32) -> Vec<u8> {
    named(&tags()[(place % PLACES) as usize], b'c', key)
}

/// The fence of that copy.
pub(crate) fn fence(key: &[u8], place: u32) -> Vec<u8> {
    named(&tags()[(place % PLACES) as usize], b'f', key)
}

/// What lies beside the key itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Beside {
    /// Who makes the copies.
    pub lease: Vec<u8>,
    /// The version that every write moves, and where copies were placed.
    pub register: Vec<u8>,
}

impl Beside {
    /// Searches for a hash tag, which takes some milliseconds.
    pub fn of(key: &[u8]) -> Self {
        let tag = tag_of_slot(slot(key));
        Self {
            lease: named(&tag, b'o', key),
            register: named(&tag, b'r', key),
        }
    }
}

/// The key to which one of ours belongs.
pub(crate) fn original(name: &[u8]) -> Option<&[u8]> {
    let rest = name.strip_prefix(PREFIX)?;
    let end = rest.iter().position(|&b| b == b'}')?;
    rest.get(end + 4..)
}

/// For each primary, one of the places that it owns.
pub(crate) fn places(topology: &Topology) -> Vec<(u32, u32)> {
    let mut found: Vec<(u32, u32)> = Vec::new();
    if !topology.is_cluster() {
        return found;
    }
    for (place, tag) in tags().iter().enumerate() {
        if let Some(owner) = topology.owner(slot(tag.as_bytes())) {
            if !found.iter().any(|(node, _)| *node == owner) {
                found.push((owner, place as u32));
            }
        }
    }
    found.sort_unstable_by_key(|(node, _)| *node);
    found
}

/// Which of these places hold copies of a key: one on each primary but its own, `most` of them at most.
pub(crate) fn places_of(places: &[(u32, u32)], own: u32, slot: u16, most: usize) -> Vec<u32> {
    let others: Vec<u32> = places
        .iter()
        .filter(|(node, _)| *node != own)
        .map(|(_, place)| *place)
        .collect();
    if most == 0 || most >= others.len() {
        return others;
    }
    let start = usize::from(slot) % others.len();
    others
        .iter()
        .cycle()
        .skip(start)
        .take(most)
        .copied()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_lie_in_even_parts_of_the_slots() {
        for place in 0..PLACES {
            let name = copy(b"item:1", place);
            assert_eq!(u32::from(slot(&name)) * PLACES / SLOTS, place);
            assert_eq!(slot(&name), slot(&fence(b"item:1", place)));
            assert_eq!(original(&name), Some(&b"item:1"[..]));
        }
    }

    #[test]
    fn what_belongs_to_a_key_lies_beside_it_whatever_its_name_holds() {
        for key in [&b"item:1"[..], b"{a}b", b"}{", b"keyheat:copy:", b""] {
            let beside = Beside::of(key);
            assert_eq!(slot(&beside.lease), slot(key));
            assert_eq!(slot(&beside.register), slot(key));
            assert_eq!(original(&beside.lease), Some(key));
        }
        assert_eq!(original(b"item:1"), None);
    }
}
