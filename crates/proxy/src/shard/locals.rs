//! Commands that concern the connection between client and proxy, answered here.

use keyheat_resp::command::Command;
use keyheat_resp::{encode, Protocol};

use super::classify::Local;
use super::client::{ClientId, Transaction, Wants};
use super::client_command::{is_plain, BAD_NAME};
use super::serve::{Flow, Request};
use super::users::NOBODY;
use super::Shard;

impl Shard {
    pub(super) fn local(
        &mut self,
        id: ClientId,
        request: &Request<'_>,
        command: Option<&'static Command>,
        local: Local,
    ) -> Flow {
        match local {
            Local::Ping | Local::Echo => self.ping(id, request, command, local),
            Local::Hello => self.hello(id, request),
            Local::Auth => self.auth(id, request),
            Local::Select => self.select(id, request),
            Local::Client => self.client_command(id, request, command),
            Local::Cluster => self.cluster_command(id, request),
            Local::OfCluster if !self.is_cluster() => self.any_node(id, request, command),
            Local::OfCluster => self.say(id, |out| encode::simple(out, "OK")),
            Local::Quit => {
                if let Some(client) = self.client(id) {
                    client.reply(|out| encode::simple(out, "OK"));
                    client.is_closing = true;
                }
                self.mark_client(id);
                Flow::Next
            }
            Local::Reset => self.reset(id),
        }
    }

    fn ping(
        &mut self,
        id: ClientId,
        request: &Request<'_>,
        command: Option<&'static Command>,
        local: Local,
    ) -> Flow {
        let argc = request.argc();
        if argc > 2 {
            return self.refuse(id, "ERR wrong number of arguments for 'ping' command");
        }
        let is_echo = local == Local::Echo;
        if self.notice.has_pings(self.now) && self.client(id).is_some_and(|c| c.subscriptions == 0)
        {
            if self.notice.is_paused(self.now) {
                return self.blocking(id, request, command);
            }
            return self.any_node(id, request, command);
        }
        if let Some(client) = self.client(id) {
            let protocol = client.protocol;
            if client.subscriptions > 0 && protocol == Protocol::Resp2 && !is_echo {
                client.reply(|out| {
                    encode::array_header(out, 2);
                    encode::bulk(out, b"pong");
                    encode::bulk(out, request.arg(1));
                });
            } else if argc == 2 {
                client.reply(|out| encode::bulk(out, request.arg(1)));
            } else {
                client.reply(|out| encode::simple(out, "PONG"));
            }
        }
        Flow::Next
    }

    fn hello(&mut self, id: ClientId, request: &Request<'_>) -> Flow {
        let wanted = match request.arg(1) {
            _ if request.argc() == 1 => None,
            b"2" => Some(Protocol::Resp2),
            b"3" => Some(Protocol::Resp3),
            other if other.iter().all(u8::is_ascii_digit) && !other.is_empty() => {
                return self.refuse(id, "NOPROTO unsupported protocol version");
            }
            _ => {
                let text = "ERR Protocol version is not an integer or out of range";
                return self.refuse(id, text);
            }
        };
        let mut name = None;
        let mut credentials = None;
        let mut i = 2;
        while i < request.argc() {
            let word = request.arg(i).to_ascii_lowercase();
            match word.as_slice() {
                b"auth" if i + 2 < request.argc() => {
                    credentials = Some((request.arg(i + 1), request.arg(i + 2)));
                    i += 3;
                }
                b"setname" if i + 1 < request.argc() => {
                    if !is_plain(request.arg(i + 1)) {
                        return self.refuse(id, BAD_NAME);
                    }
                    name = Some(request.arg(i + 1));
                    i += 2;
                }
                _ => {
                    let text = format!(
                        "ERR Syntax error in HELLO option '{}'",
                        String::from_utf8_lossy(request.arg(i))
                    );
                    return self.refuse(id, &text);
                }
            }
        }
        if wanted == Some(Protocol::Resp3) {
            match &self.topology {
                Some(t) if !t.server.has_resp3 => {
                    return self.refuse(id, "NOPROTO the upstream does not speak RESP3");
                }
                _ => {}
            }
        }
        if self.passes_through() {
            if let Some((user, password)) = credentials {
                let name = name.map(<[u8]>::to_vec);
                return self.authenticate(id, &[user, password], Some((wanted, name)));
            }
            if self
                .client(id)
                .is_some_and(|c| !c.is_authenticated && !c.is_tried)
            {
                return self.authenticate(id, &[], None);
            }
        } else if let Some((user, password)) = credentials {
            if let Err(text) = self.check_password(user, password, true) {
                return self.refuse(id, text);
            }
            if let Some(client) = self.client(id) {
                client.is_authenticated = true;
            }
        }
        if self.client(id).is_some_and(|c| !c.is_authenticated) {
            return self.refuse(
                id,
                "NOAUTH HELLO must be called with the client already authenticated, otherwise \
                 the HELLO <proto> AUTH <user> <pass> option can be used to authenticate the \
                 client and select the RESP protocol version at the same time",
            );
        }
        // Replies that are on their way were asked for in the old protocol.
        let is_change = self
            .client(id)
            .is_some_and(|c| wanted.is_some_and(|w| w != c.protocol) && !c.is_clear());
        if is_change {
            return Flow::Wait;
        }
        let reply = self.greet(id, wanted, name);
        self.say(id, |out| out.extend_from_slice(&reply))
    }

    /// Does what `HELLO` asks for, and returns its answer.
    pub(super) fn greet(
        &mut self,
        id: ClientId,
        wanted: Option<Protocol>,
        name: Option<&[u8]>,
    ) -> Vec<u8> {
        let spoken = self.client(id).map(|c| c.protocol);
        if let Some(protocol) = wanted.filter(|wanted| spoken.is_some_and(|s| s != *wanted)) {
            self.turn_protocol(id, protocol);
        }
        let mode = match &self.topology {
            Some(t) if t.is_cluster() => "cluster",
            _ => "standalone",
        };
        let server = self.topology.as_ref().map(|t| t.server.clone());
        let server = server.unwrap_or_default();
        let mut out = Vec::new();
        let Some(client) = self.client(id) else {
            return out;
        };
        if let Some(name) = name {
            client.name = name.to_vec();
        }
        client.protocol = wanted.unwrap_or(client.protocol);
        let (protocol, number) = (client.protocol, client.id);
        encode::map_header(&mut out, 7, protocol);
        let mut say = |name: &str, value: Result<&str, i64>| {
            encode::bulk(&mut out, name.as_bytes());
            match value {
                Ok(text) => encode::bulk(&mut out, text.as_bytes()),
                Err(number) => encode::integer(&mut out, number),
            }
        };
        say("server", Ok(or(&server.name, "redis")));
        say("version", Ok(or(&server.version, "0.0.0")));
        say(
            "proto",
            Err(if protocol == Protocol::Resp3 { 3 } else { 2 }),
        );
        say("id", Err(number as i64));
        say("mode", Ok(mode));
        say("role", Ok("master"));
        encode::bulk(&mut out, b"modules");
        encode::array_header(&mut out, 0);
        out
    }

    fn check_password(
        &self,
        user: &[u8],
        password: &[u8],
        names_user: bool,
    ) -> Result<(), &'static str> {
        let account = &self.settings.upstream;
        let Some(expected) = &account.password else {
            if names_user && user == b"default" {
                // A server without a password takes any for its default user, if it is named.
                return Ok(());
            }
            if names_user {
                return Err("WRONGPASS invalid username-password pair or user is disabled.");
            }
            return Err(
                "ERR AUTH <password> called without any password configured for the default \
                 user. Are you sure your configuration is correct?",
            );
        };
        let expected_user = account.username.as_deref().unwrap_or("default");
        let is_right = same(user, expected_user.as_bytes()) & same(password, expected.as_bytes());
        if is_right {
            Ok(())
        } else {
            Err("WRONGPASS invalid username-password pair or user is disabled.")
        }
    }

    fn auth(&mut self, id: ClientId, request: &Request<'_>) -> Flow {
        if self.passes_through() {
            return self.auth_upstream(id, request);
        }
        let default = self.settings.upstream.username.clone();
        let default = default.unwrap_or_else(|| "default".into());
        let (user, password) = match request.argc() {
            2 => (default.as_bytes(), request.arg(1)),
            3 => (request.arg(1), request.arg(2)),
            _ => return self.refuse(id, "ERR syntax error"),
        };
        match self.check_password(user, password, request.argc() == 3) {
            Err(text) => self.refuse(id, text),
            Ok(()) => {
                if let Some(client) = self.client(id) {
                    client.is_authenticated = true;
                    client.reply(|out| encode::simple(out, "OK"));
                }
                Flow::Next
            }
        }
    }

    fn select(&mut self, id: ClientId, request: &Request<'_>) -> Flow {
        let db = std::str::from_utf8(request.arg(1))
            .ok()
            .and_then(|s| s.parse::<u32>().ok());
        let is_cluster = self.is_cluster();
        if is_cluster && db.is_some_and(|db| db != 0) {
            return self.refuse(id, "ERR SELECT is not allowed in cluster mode");
        }
        let Some(client) = self.client(id) else {
            return Flow::Next;
        };
        if db == Some(client.db) {
            client.reply(|out| encode::simple(out, "OK"));
            return Flow::Next;
        }
        if !client.is_clear() {
            return Flow::Wait;
        }
        self.try_select(id, request, db)
    }

    fn reset(&mut self, id: ClientId) -> Flow {
        if self.client(id).is_some_and(|c| !c.is_clear()) {
            return Flow::Wait;
        }
        let has_password = self.settings.upstream.password.is_some();
        let db = self.settings.upstream.db;
        let passes_through = self.passes_through();
        self.end_session(id);
        if let Some(client) = self.client(id).filter(|_| passes_through) {
            let user = std::mem::replace(&mut client.user, NOBODY);
            client.is_tried = false;
            self.leave_user(user);
        }
        if let Some(client) = self.client(id) {
            client.protocol = Protocol::Resp2;
            client.db = db;
            client.name.clear();
            client.is_authenticated = !has_password && !passes_through;
            client.transaction = Transaction::None;
            client.wants = Wants::All;
            client.is_kept = false;
            client.reply(|out| encode::simple(out, "RESET"));
        }
        Flow::Next
    }
}

fn or<'a>(text: &'a str, default: &'a str) -> &'a str {
    if text.is_empty() {
        default
    } else {
        text
    }
}

/// Compares without telling by its time how much was right.
pub(crate) fn same(a: &[u8], b: &[u8]) -> bool {
    let mut difference = a.len() ^ b.len();
    for (i, &x) in a.iter().enumerate() {
        let y = b.get(i % b.len().max(1)).copied().unwrap_or(0);
        difference |= usize::from(x ^ y);
    }
    difference == 0
}

#[cfg(test)]
mod tests {
    use super::same;

    #[test]
    fn passwords_are_the_same_only_if_every_byte_is() {
        assert!(same(b"secret", b"secret"));
        assert!(!same(b"secret", b"secreT"));
        assert!(!same(b"secretsecret", b"secret"));
        assert!(!same(b"", b"secret"));
        assert!(same(b"", b""));
    }
}
