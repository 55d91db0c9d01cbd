//! What cannot be part of a transaction, and why.

use keyheat_resp::command::Command;

use super::classify::{Class, Local};
use super::client::{ClientId, Transaction};
use super::serve::{Flow, Request};
use super::upstream::Pending;
use super::Shard;
use crate::requests::Way;

const ONE_NODE: &str = "it is about all nodes of the Cluster, and a transaction runs on one";

impl Shard {
    /// Refuses a command inside `MULTI`, which is spoilt by that.
    pub(super) fn refuse_inside(
        &mut self,
        id: ClientId,
        request: &Request<'_>,
        command: Option<&'static Command>,
        class: Class,
    ) -> Flow {
        let name = match command {
            Some(command) => command.name.replace('|', " "),
            None => String::from_utf8_lossy(request.arg(0)).to_lowercase(),
        };
        let text = match class {
            Class::Refused(why) => format!("ERR keyheat: '{name}' {why}"),
            _ => {
                let why = why_not(class);
                format!("ERR keyheat: '{name}' cannot be part of a transaction: {why}")
            }
        };
        self.refuse(id, &text)
    }

    /// `EXEC` with arguments: an error, which ends transaction and watch.
    pub(super) fn exec_with_arguments(&mut self, id: ClientId, request: &Request<'_>) -> Flow {
        let Some(client) = self.client(id) else {
            return Flow::Next;
        };
        if client.transaction == Transaction::None && !client.is_clear() {
            return Flow::Wait;
        }
        if client.pinned.is_some() {
            return self.on_pinned(id, request.frame, Pending::RELEASES);
        }
        self.taken.way = Way::Error;
        self.drop_transaction(id, |out| {
            out.extend_from_slice(
                b"-EXECABORT Transaction discarded because of: wrong number of arguments for 'exec' \
                  command\r\n",
            );
        })
    }
}

fn why_not(class: Class) -> &'static str {
    match class {
        Class::Local(Local::Hello | Local::Auth) => {
            "it is about the connection to the proxy, and a transaction runs on another one"
        }
        Class::Local(Local::Client) => {
            "it is about clients of the proxy, and a transaction runs at the server, which does not know them"
        }
        Class::Wait => {
            "the server counts for the connection that asks, and the client's other writes went on others"
        }
        Class::Subscribe | Class::Monitor => {
            "it has a connection of its own, and a transaction runs on another one"
        }
        Class::Beside(_) => "it goes to a server that may be busy, past the transaction",
        Class::Local(Local::Select) => "a Cluster has one database",
        Class::Local(_) => "the proxy answers it in place of the nodes, on which a transaction runs",
        _ => ONE_NODE,
    }
}
