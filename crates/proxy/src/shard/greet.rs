//! What comes before a client's first request: the header of a balancer, and agreeing on TLS.
//!
//! Neither waits for the upstream, so that a start takes no client the time it is given for them.

use std::io::{self, ErrorKind};

use super::client::ClientId;
use super::Shard;
use crate::headed::Heard;
use crate::stream::Stream;

/// Steps of TLS handshakes in one turn: about 2 ms with elliptic keys.
const HANDSHAKES_MAX: u32 = 16;

impl Shard {
    /// Goes on with what comes first; whether requests come now.
    pub(super) fn shake_hands(&mut self, id: ClientId) -> bool {
        let is_headed = self
            .client(id)
            .is_some_and(|c| matches!(c.stream, Stream::Headed(_)));
        if is_headed && !self.hear(id) {
            return false;
        }
        // Many handshakes that come at once must not keep the others waiting.
        self.handshakes += 1;
        if self.handshakes > HANDSHAKES_MAX {
            self.queue_client(id);
            return false;
        }
        let agreed = self.client(id).map_or(Ok(false), |c| c.stream.agree());
        agreed.unwrap_or_else(|e| self.turn_away(id, &e, "tls_listen", "TLS was not agreed on"))
    }

    /// Waits for the header of a balancer; whether what follows is the client's.
    fn hear(&mut self, id: ClientId) -> bool {
        let mut scratch = std::mem::take(&mut self.scratch);
        let heard = match self.client(id).map(|client| &mut client.stream) {
            Some(Stream::Headed(headed)) => headed.hear(&mut scratch),
            _ => Ok(Heard::Nothing),
        };
        self.scratch = scratch;
        match heard {
            Ok(Heard::Nothing) => false,
            Ok(Heard::Client(stream, address)) => {
                if let Some(client) = self.client(id) {
                    client.stream = stream;
                    if let Some(address) = address {
                        client.peer = address.to_string();
                    }
                }
                true
            }
            Err(e) => self.turn_away(id, &e, "proxy_protocol", "no header of the PROXY protocol"),
        }
    }

    /// Who has said something wrong is named, who has hung up is not; false, as neither goes on.
    fn turn_away(&mut self, id: ClientId, error: &io::Error, limit: &str, what: &str) -> bool {
        if error.kind() == ErrorKind::InvalidData {
            self.cut(id, limit, &format!("{what}: {error}"));
        } else {
            self.close_client(id);
        }
        false
    }
}
