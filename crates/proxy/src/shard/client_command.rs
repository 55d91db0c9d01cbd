//! `CLIENT`: about the proxy's clients. What only the server can do for one client alone is in `own`.

use keyheat_resp::command::{self, Command};
use keyheat_resp::encode;

use super::ask::{describe, verbatim, Field, Filter, Kind};
use super::classify::{Class, Merge};
use super::client::{ClientId, Wants};
use super::serve::{Flow, Request};
use super::Shard;

const SYNTAX: &str = "ERR syntax error";
/// What a name of a client may not have in it.
pub(super) const BAD_NAME: &str =
    "ERR Client names cannot contain spaces, newlines or special characters.";
const TYPES: [&str; 6] = ["normal", "pubsub", "master", "primary", "replica", "slave"];

impl Shard {
    pub(super) fn client_command(
        &mut self,
        id: ClientId,
        request: &Request<'_>,
        command: Option<&'static Command>,
    ) -> Flow {
        let sub = request.arg(1).to_ascii_lowercase();
        if let Some(flow) = command.and_then(|c| self.unless_allowed(id, c.name)) {
            return flow;
        }
        match sub.as_slice() {
            b"tracking" | b"trackinginfo" | b"caching" | b"getredir" | b"no-touch" => {
                self.own_command(id, request, &sub)
            }
            b"list" => self.client_list(id, request),
            b"kill" => self.client_kill(id, request),
            b"unblock" => self.client_unblock(id, request),
            b"pause" | b"unpause" => self.client_pause(id, request),
            b"reply" => self.client_reply(id, request),
            b"import-source" => self.refuse(
                id,
                "ERR keyheat: 'client import-source' is about one connection of the server; connect to \
                 the server itself",
            ),
            _ => self.client_plain(id, request, &sub, command),
        }
    }

    fn client_pause(&mut self, id: ClientId, request: &Request<'_>) -> Flow {
        // It goes on a connection of its own, where it would overtake what is before it.
        if self.client(id).is_some_and(|c| !c.is_clear()) {
            return Flow::Wait;
        }
        let class = Class::Beside(Merge::Pause);
        let flow = self.all_nodes(id, request, command::lookup(b"ping"), class);
        // Whether what is behind it has to wait is known with its answer.
        if let Some(client) = self.client(id) {
            client.is_held = !client.is_clear();
        }
        flow
    }

    /// What is known here of the client itself.
    fn client_plain(
        &mut self,
        id: ClientId,
        request: &Request<'_>,
        sub: &[u8],
        command: Option<&'static Command>,
    ) -> Flow {
        let now = self.now;
        let user = self.client(id).map_or(0, |c| c.user);
        let user = self.user_name(user).to_owned();
        let Some(client) = self.client(id) else {
            return Flow::Next;
        };
        match (sub, request.argc()) {
            (b"id", 2) => {
                let number = client.id as i64;
                client.reply(|out| encode::integer(out, number));
            }
            (b"getname", 2) => {
                let (name, protocol) = (client.name.clone(), client.protocol);
                client.reply(|out| {
                    if name.is_empty() {
                        encode::null(out, protocol);
                    } else {
                        encode::bulk(out, &name);
                    }
                });
            }
            (b"setname", 3) => {
                let name = request.arg(2);
                if !is_plain(name) {
                    return self.refuse(id, BAD_NAME);
                }
                client.name = name.to_vec();
                client.reply(|out| encode::simple(out, "OK"));
            }
            (b"setinfo", 4) => return self.client_setinfo(id, request),
            (b"info", 2) => {
                let (line, protocol) = (describe(client, &user, now), client.protocol);
                client.reply(|out| verbatim(out, &line, protocol));
            }
            (b"no-evict", 3) => {
                let Some(is_on) = on_or_off(request.arg(2)) else {
                    return self.refuse(id, SYNTAX);
                };
                client.is_kept = is_on;
                client.reply(|out| encode::simple(out, "OK"));
            }
            (b"capa", 3..) => client.reply(|out| encode::simple(out, "OK")),
            // HELP, and what the server has the better words for.
            _ => return self.any_node(id, request, command),
        }
        Flow::Next
    }

    fn client_setinfo(&mut self, id: ClientId, request: &Request<'_>) -> Flow {
        let value = request.arg(3);
        let name = request.arg(2).to_ascii_lowercase();
        if !matches!(name.as_slice(), b"lib-name" | b"lib-ver") {
            let text = format!(
                "ERR Unrecognized option '{}'",
                String::from_utf8_lossy(request.arg(2))
            );
            return self.refuse(id, &text);
        }
        if !is_plain(value) {
            let text = format!(
                "ERR {} cannot contain spaces, newlines or special characters.",
                String::from_utf8_lossy(&name)
            );
            return self.refuse(id, &text);
        }
        if let Some(client) = self.client(id) {
            let (library, version) = &mut client.library;
            let place = if name == b"lib-name" {
                library
            } else {
                version
            };
            *place = value.to_vec();
            client.reply(|out| encode::simple(out, "OK"));
        }
        Flow::Next
    }

    fn client_reply(&mut self, id: ClientId, request: &Request<'_>) -> Flow {
        let word = request.arg(2).to_ascii_lowercase();
        let Some(client) = self.client(id) else {
            return Flow::Next;
        };
        match word.as_slice() {
            b"on" => {
                client.wants = Wants::All;
                client.reply(|out| encode::simple(out, "OK"));
            }
            b"off" => client.wants = Wants::None,
            b"skip" if client.wants != Wants::None => client.wants = Wants::SkipNext,
            b"skip" => {}
            _ => return self.refuse(id, SYNTAX),
        }
        Flow::Next
    }

    fn client_list(&mut self, id: ClientId, request: &Request<'_>) -> Flow {
        match filter(request, 2) {
            Ok(filter) => {
                self.put(id, Kind::List, filter);
                Flow::Next
            }
            Err(text) => self.refuse(id, &text),
        }
    }

    fn client_kill(&mut self, id: ClientId, request: &Request<'_>) -> Flow {
        let is_old = request.argc() == 3;
        let filter = if is_old {
            let address = String::from_utf8_lossy(request.arg(2)).into_owned();
            Ok(Filter {
                pairs: vec![(Field::Address, address)],
                ..Filter::default()
            })
        } else {
            filter(request, 2).map(|f| Filter {
                skips_asker: f.skips_asker || !says_no(request),
                ..f
            })
        };
        match filter {
            Ok(filter) => {
                self.put(id, Kind::Kill { is_old }, filter);
                Flow::Next
            }
            Err(text) => self.refuse(id, &text),
        }
    }

    fn client_unblock(&mut self, id: ClientId, request: &Request<'_>) -> Flow {
        let is_error = match request.arg(3).to_ascii_lowercase().as_slice() {
            _ if request.argc() == 3 => false,
            b"timeout" if request.argc() == 4 => false,
            b"error" if request.argc() == 4 => true,
            _ => {
                let text = "ERR CLIENT UNBLOCK reason should be TIMEOUT or ERROR";
                return self.refuse(id, text);
            }
        };
        let Some(number) = number(request.arg(2)) else {
            return self.refuse(id, "ERR value is not an integer or out of range");
        };
        let filter = Filter {
            ids: vec![number],
            ..Filter::default()
        };
        self.put(id, Kind::Unblock { is_error }, filter);
        Flow::Next
    }
}

/// Whether `SKIPME no` is among the conditions of a kill.
fn says_no(request: &Request<'_>) -> bool {
    (2..request.argc() - 1).any(|i| {
        request.arg(i).eq_ignore_ascii_case(b"skipme")
            && request.arg(i + 1).eq_ignore_ascii_case(b"no")
    })
}

/// The conditions of `CLIENT LIST` and `CLIENT KILL`.
fn filter(request: &Request<'_>, first: usize) -> Result<Filter, String> {
    let mut filter = Filter::default();
    let mut i = first;
    while i < request.argc() {
        let name = request.arg(i).to_ascii_lowercase();
        if i + 1 >= request.argc() {
            return Err(SYNTAX.to_owned());
        }
        let mut value = String::from_utf8_lossy(request.arg(i + 1)).into_owned();
        i += 2;
        let field = match name.as_slice() {
            b"id" => {
                filter.ids.push(number(value.as_bytes()).ok_or(SYNTAX)?);
                while let Some(id) = (i < request.argc())
                    .then(|| number(request.arg(i)))
                    .flatten()
                {
                    filter.ids.push(id);
                    i += 1;
                }
                continue;
            }
            b"skipme" => {
                filter.skips_asker = match value.to_ascii_lowercase().as_str() {
                    "yes" => true,
                    "no" => false,
                    _ => return Err(SYNTAX.to_owned()),
                };
                continue;
            }
            b"type" => {
                let lower = value.to_ascii_lowercase();
                if !TYPES.contains(&lower.as_str()) {
                    return Err(format!("ERR Unknown client type '{value}'"));
                }
                value = lower;
                Field::Kind
            }
            b"maxage" if value.parse::<u64>().is_err() => {
                return Err("ERR maxage is not an integer or out of range".to_owned());
            }
            b"maxage" => Field::MaxAge,
            b"idle" => Field::Idle,
            b"addr" => Field::Address,
            b"laddr" => Field::LocalAddress,
            b"ip" => Field::Ip,
            b"user" => Field::User,
            b"name" => Field::Name,
            b"lib-name" => Field::Library,
            b"lib-ver" => Field::LibraryVersion,
            b"db" => Field::Db,
            b"flags" => Field::Flags,
            b"capa" => Field::Capa,
            _ => return Err(SYNTAX.to_owned()),
        };
        filter.pairs.push((field, value));
    }
    Ok(filter)
}

fn number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn on_or_off(word: &[u8]) -> Option<bool> {
    if word.eq_ignore_ascii_case(b"on") {
        Some(true)
    } else {
        word.eq_ignore_ascii_case(b"off").then_some(false)
    }
}

/// Whether a text would not break a line of `CLIENT LIST`.
pub(super) fn is_plain(text: &[u8]) -> bool {
    text.iter().all(|b| (b'!'..=b'~').contains(b))
}
