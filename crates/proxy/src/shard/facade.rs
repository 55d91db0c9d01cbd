//! One node that owns every slot: what a client of a Cluster meets behind this address.
//!
//! Such a client asks for the nodes and connects to those it is told of. It is told of one, at the address
//! at which it has reached the proxy (`announce` says another, where addresses are translated on the way),
//! and then sends everything here, where it is routed like everybody else's. `MOVED` never reaches it.
//!
//! Before a single server the server itself answers. What would change a Cluster is refused: it is about
//! nodes, and nodes are what is hidden here.

use keyheat_resp::{encode, slot};

use super::ask::verbatim;
use super::client::ClientId;
use super::serve::{Flow, Request};
use super::Shard;
use crate::topology::NO_NODE;

impl Shard {
    pub(super) fn cluster_command(&mut self, id: ClientId, request: &Request<'_>) -> Flow {
        let is_cluster = self.is_cluster();
        if !is_cluster {
            return self.any_node(id, request, None);
        }
        let sub = request.arg(1).to_ascii_lowercase();
        match sub.as_slice() {
            b"countkeysinslot" | b"getkeysinslot" => return self.about_slot(id, request),
            b"keyslot" if request.argc() == 3 => {
                let slot = slot::slot(request.arg(2));
                return self.say(id, |out| encode::integer(out, i64::from(slot)));
            }
            b"help" => return self.any_node(id, request, None),
            b"slots" | b"shards" | b"nodes" | b"info" | b"myid" | b"myshardid" | b"links"
            | b"replicas" | b"slaves" => {}
            _ => {
                self.stats.refused.add(1);
                let text = format!(
                    "ERR keyheat: 'cluster {}' is about the nodes of the Cluster, which this address \
                     stands for; connect to the node you mean",
                    String::from_utf8_lossy(&sub)
                );
                return self.refuse(id, &text);
            }
        }
        self.describe_node(id, request, &sub)
    }

    fn describe_node(&mut self, id: ClientId, request: &Request<'_>, sub: &[u8]) -> Flow {
        let (host, port) = self.address_for(id);
        let (node, shard) = (self.node_id("node"), self.node_id("shard"));
        let owned = self.owned_slots();
        let Some(protocol) = self.client(id).map(|c| c.protocol) else {
            return Flow::Next;
        };
        let last = slot::SLOTS as i64 - 1;
        match sub {
            b"myid" => self.say(id, |out| encode::bulk(out, node.as_bytes())),
            b"myshardid" => self.say(id, |out| encode::bulk(out, shard.as_bytes())),
            b"links" => self.say(id, |out| encode::array_header(out, 0)),
            b"replicas" | b"slaves" if request.arg(2) == node.as_bytes() => {
                self.say(id, |out| encode::array_header(out, 0))
            }
            b"replicas" | b"slaves" => {
                let name = String::from_utf8_lossy(request.arg(2)).into_owned();
                self.refuse(id, &format!("ERR Unknown node {name}"))
            }
            b"nodes" => {
                let host = host.trim_matches(|c| c == '[' || c == ']');
                let text =
                    format!("{node} {host}:{port}@0 myself,master - 0 0 1 connected 0-{last}\n");
                self.say(id, |out| verbatim(out, &text, protocol))
            }
            b"info" => {
                let state = if owned == slot::SLOTS { "ok" } else { "fail" };
                let text = format!(
                    "cluster_state:{state}\r\ncluster_slots_assigned:{owned}\r\n\
                     cluster_slots_ok:{owned}\r\ncluster_slots_pfail:0\r\ncluster_slots_fail:0\r\n\
                     cluster_known_nodes:1\r\ncluster_size:1\r\ncluster_current_epoch:1\r\n\
                     cluster_my_epoch:1\r\n"
                );
                self.say(id, |out| verbatim(out, &text, protocol))
            }
            b"slots" => self.say(id, |out| {
                encode::array_header(out, 1);
                encode::array_header(out, 3);
                encode::integer(out, 0);
                encode::integer(out, last);
                encode::array_header(out, 4);
                encode::bulk(out, host.as_bytes());
                encode::integer(out, i64::from(port));
                encode::bulk(out, node.as_bytes());
                encode::map_header(out, 0, protocol);
            }),
            _ => self.say(id, |out| {
                encode::array_header(out, 1);
                encode::map_header(out, 2, protocol);
                encode::bulk(out, b"slots");
                encode::array_header(out, 2);
                encode::integer(out, 0);
                encode::integer(out, last);
                encode::bulk(out, b"nodes");
                encode::array_header(out, 1);
                encode::map_header(out, 7, protocol);
                let texts = [("id", &node), ("ip", &host), ("endpoint", &host)];
                for (name, value) in texts {
                    encode::bulk(out, name.as_bytes());
                    encode::bulk(out, value.as_bytes());
                }
                encode::bulk(out, b"port");
                encode::integer(out, i64::from(port));
                encode::bulk(out, b"role");
                encode::bulk(out, b"master");
                encode::bulk(out, b"replication-offset");
                encode::integer(out, 0);
                encode::bulk(out, b"health");
                encode::bulk(out, b"online");
            }),
        }
    }

    /// Answers a request at once.
    pub(super) fn say(&mut self, id: ClientId, write: impl FnOnce(&mut Vec<u8>)) -> Flow {
        if let Some(client) = self.client(id) {
            client.reply(write);
        }
        Flow::Next
    }

    /// Keys of a slot: its owner knows.
    fn about_slot(&mut self, id: ClientId, request: &Request<'_>) -> Flow {
        let slot = std::str::from_utf8(request.arg(2))
            .ok()
            .and_then(|s| s.parse::<u16>().ok())
            .filter(|slot| *slot < slot::SLOTS);
        let node = match slot {
            Some(slot) => self.owner(slot),
            None => self.some_node(id), // which says what is wrong with the number
        };
        match node {
            Ok(node) => self.send_for(id, request.frame, node, 0, 0),
            Err(text) => self.refuse_upstream(id, &text),
        }
    }

    /// Where a client reaches the proxy.
    fn address_for(&mut self, id: ClientId) -> (String, u16) {
        let local = self.client(id).and_then(|c| c.stream.local_tcp());
        let announced = self.settings.announce.clone();
        let whole = announced
            .or(local.map(|address| address.to_string()))
            .unwrap_or_else(|| self.own_address().to_owned());
        let (host, port) = whole.rsplit_once(':').unwrap_or((&whole, "0"));
        let host = host.trim_matches(|c| c == '[' || c == ']');
        (host.to_owned(), port.parse().unwrap_or(0))
    }

    /// The address that the settings name.
    fn own_address(&self) -> &str {
        let s = &self.settings;
        let named = [&s.announce, &s.listen, &s.tls_listen];
        named
            .into_iter()
            .flatten()
            .next()
            .map_or("", String::as_str)
    }

    /// An id that every shard says, and that stays over a start anew: the address it stands for has one.
    fn node_id(&self, what: &str) -> String {
        use std::hash::{DefaultHasher, Hash, Hasher};
        let name = self.own_address();
        let words = (0..3).map(|i| {
            let mut hasher = DefaultHasher::new();
            (what, i, name).hash(&mut hasher);
            format!("{:016x}", hasher.finish())
        });
        let mut id: String = words.collect();
        id.truncate(40);
        id
    }

    fn owned_slots(&self) -> u16 {
        let slots = self.topology.as_ref().map(|t| t.slots.as_slice());
        let owned = slots.unwrap_or_default().iter().filter(|n| **n != NO_NODE);
        owned.count() as u16
    }
}
