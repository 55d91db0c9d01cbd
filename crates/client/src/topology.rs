//! Which node owns a key, as the client library sees it.

use keyheat_resp::slot;

/// Hash slots of a Cluster.
pub const SLOTS: usize = 16_384;
const NOBODY: u16 = u16::MAX;

/// One primary, by the name the client library knows it by.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Node {
    /// Host name or address; empty for the one server of a client that is no Cluster's.
    pub host: String,
    /// Port; 0 there.
    pub port: u16,
}

/// The nodes, and in a Cluster who owns which slot.
///
/// Node numbers stay: a node that left keeps its number, so that what is cached from it can be told
/// from what is cached from others.
#[derive(Debug, Clone)]
pub struct Topology {
    nodes: Vec<Node>,
    /// Empty where there is no Cluster.
    owners: Vec<u16>,
}

impl Default for Topology {
    fn default() -> Self {
        Self::standalone()
    }
}

impl Topology {
    /// One server, or whatever one name stands for.
    pub fn standalone() -> Self {
        Self {
            nodes: vec![Node {
                host: String::new(),
                port: 0,
            }],
            owners: Vec::new(),
        }
    }

    /// A Cluster of which nothing is known yet.
    pub fn cluster() -> Self {
        Self {
            nodes: Vec::new(),
            owners: vec![NOBODY; SLOTS],
        }
    }

    /// Whether it is a Cluster.
    pub fn is_cluster(&self) -> bool {
        !self.owners.is_empty()
    }

    /// The nodes, by number.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The number of the node that owns the key; `None` where nobody is known to.
    #[inline]
    pub fn owner(&self, key: &[u8]) -> Option<u32> {
        if self.owners.is_empty() {
            return Some(0);
        }
        self.owner_of_slot(slot::slot(key))
    }

    /// The number of the node that owns the slot.
    pub fn owner_of_slot(&self, slot: u16) -> Option<u32> {
        match self.owners.get(usize::from(slot)) {
            Some(&NOBODY) | None => None,
            Some(&owner) => Some(u32::from(owner)),
        }
    }

    /// Says who owns the slots from `first` to `last`, both included.
    ///
    /// Nothing changes where there is no Cluster, or no room for another node.
    pub fn set_owner(&mut self, first: u16, last: u16, node: &Node) {
        let number = match self.nodes.iter().position(|known| known == node) {
            Some(number) => number,
            None if self.nodes.len() < usize::from(NOBODY) => {
                self.nodes.push(node.clone());
                self.nodes.len() - 1
            }
            None => return,
        };
        let Ok(number) = u16::try_from(number) else {
            return;
        };
        for slot in first..=last {
            if let Some(owner) = self.owners.get_mut(usize::from(slot)) {
                *owner = number;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(port: u16) -> Node {
        Node {
            host: "h".into(),
            port,
        }
    }

    #[test]
    fn a_standalone_server_owns_every_key() {
        assert_eq!(Topology::standalone().owner(b"k"), Some(0));
    }

    #[test]
    fn slots_move_and_numbers_stay() {
        let mut topology = Topology::cluster();
        assert_eq!(topology.owner(b"k"), None);
        topology.set_owner(0, 16_383, &node(1));
        assert_eq!(topology.owner(b"k"), Some(0));
        let slot = slot::slot(b"k");
        topology.set_owner(slot, slot, &node(2));
        assert_eq!(topology.owner(b"k"), Some(1));
        topology.set_owner(0, 16_383, &node(2));
        topology.set_owner(0, 16_383, &node(1));
        assert_eq!(topology.owner(b"k"), Some(0));
        assert_eq!(topology.nodes().len(), 2);
    }
}
