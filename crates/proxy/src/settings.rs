//! What a proxy is told at start: every setting has a safe default, a unit in its name, and a
//! check at load that names the setting and what it accepts.

use std::path::PathBuf;
use std::time::Duration;

use keyheat_core::rule::spec::{self, RuleSettings};
use keyheat_core::rule::RuleSet;
use keyheat_core::window::WindowSettings;
use serde::Deserialize;

use crate::cores;
use crate::expiry_settings::EntitySettings;
use crate::proxy_header::Network;

/// The settings of one proxy, as JSON (see `docs/settings.md`).
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Where clients connect: `host:port`; port 0 takes a free one. None if absent.
    pub listen: Option<String>,
    /// Whether other proxies may listen at the same TCP addresses (`SO_REUSEPORT`).
    pub reuse_port: bool,
    /// Where clients that speak TLS connect; none if absent.
    pub tls_listen: Option<String>,
    /// The certificate that those are shown, in PEM.
    pub tls_cert_file: Option<PathBuf>,
    /// Its key, in PEM.
    pub tls_key_file: Option<PathBuf>,
    /// Certificates of which one must vouch for such a client; any may come if absent.
    pub tls_client_ca_file: Option<PathBuf>,
    /// Whether clients come through balancers that say for whom they connect (PROXY protocol).
    pub proxy_protocol: ProxyProtocol,
    /// The networks of those balancers; nobody else is let in.
    pub proxy_protocol_trusted: Vec<String>,
    /// How long a client may take until it can send its first request, in milliseconds.
    pub handshake_timeout_ms: u64,
    /// A Unix socket at which clients of this host connect as well; none if absent.
    pub unix_socket: Option<PathBuf>,
    /// Permissions of that socket, in octal, which are what lets clients in.
    pub unix_socket_mode: String,
    /// `host:port` that clients of a Cluster are told, where that at which they reach the proxy is not it
    /// (NAT); the latter if absent.
    pub announce: Option<String>,
    /// Where `/healthz`, `/metrics` and `/api/hot` are served; none if absent.
    pub http: Option<String>,
    /// Who judges passwords of clients.
    pub auth: Auth,
    /// The server or Cluster behind the proxy.
    pub upstream: UpstreamSettings,
    /// Data-plane threads; 0 is one per core.
    pub shards: usize,
    /// The bound on staleness of a locally served value; 0 switches the local cache off.
    pub max_staleness_ms: u64,
    /// Whether hot keys are answered locally.
    pub local_cache: bool,
    /// Memory of the local cache in bytes, all shards together.
    pub cache_bytes: usize,
    /// The largest reply that is cached, in bytes.
    pub cache_value_max_bytes: usize,
    /// Whether accesses are counted; without, nothing is ever found hot.
    pub counting: bool,
    /// Who says what is hot.
    pub hot_set: HotSetFrom,
    /// What `PUT /api/hot` must show; without, none is taken.
    pub feed_token: Option<String>,
    /// Whether a key that is set only if it is not there (`SET … NX`) is taken for a lock, and left alone.
    pub nx_is_lock: bool,
    /// The rules; the documented defaults if absent.
    pub rules: Option<Vec<RuleSettings>>,
    /// Business entities whose keys get a longer expiry when they are written.
    pub longer_expiry: Vec<EntitySettings>,
    /// An expiry becomes at most so many times as long.
    pub longer_expiry_factor_max: f64,
    /// An expiry is lengthened to so many seconds at most.
    pub longer_expiry_max_s: u64,
    /// Length of the sliding window in milliseconds.
    pub window_ms: u64,
    /// Most keys in the hot set.
    pub hot_keys_max: usize,
    /// Show keys as hashes in every API, metric and log line.
    pub redact_keys: bool,
    /// Of how many of the hottest keys `/metrics` has series.
    pub metrics_hot_keys: usize,
    /// Bytes of requests and replies held for clients and upstreams, all shards together.
    pub buffers_max_bytes: usize,
    /// Most clients connected at once.
    pub clients_max: usize,
    /// How long a client may say nothing, in seconds; 0 is for ever.
    pub client_idle_timeout_s: u64,
    /// Bytes that one client may leave unread; 0 is as many as `buffers_max_bytes`.
    pub client_output_max_bytes: usize,
    /// The longest request, in bytes.
    pub request_max_bytes: usize,
    /// How long connecting to an upstream may take, in milliseconds.
    pub connect_timeout_ms: u64,
    /// How long what was sent upstream may go unacknowledged before the connection is given up, in
    /// milliseconds (Linux; elsewhere the system's own limit holds).
    pub upstream_timeout_ms: u64,
    /// Whether a node that keeps failing is left alone for a while.
    pub breaker: bool,
    /// Over which the outcomes of its requests are counted, in milliseconds.
    pub breaker_window_ms: u64,
    /// Fewer requests than this within the window never open it, per shard.
    pub breaker_calls_min: u32,
    /// Share of failed requests that opens it, 0 to 1.
    pub breaker_error_rate: f64,
    /// An answer that takes longer is slow, in milliseconds.
    pub breaker_slow_ms: u64,
    /// Share of slow answers that opens it; above 1 they never do.
    pub breaker_slow_rate: f64,
    /// A node that is asked and says nothing at all for so long is failing, in milliseconds.
    pub breaker_silence_ms: u64,
    /// The first pause, in milliseconds; each further one in a row is twice as long.
    pub breaker_open_ms: u64,
    /// The longest pause, in milliseconds.
    pub breaker_open_max_ms: u64,
    /// Requests let through at once to find out, per shard.
    pub breaker_probes_at_once: u32,
    /// Answers in a row that end it.
    pub breaker_probes_needed: u32,
    /// Until all requests pass again, in milliseconds; 0 is at once.
    pub breaker_recovery_ms: u64,
    /// Whether what is on its way to a node at once is limited.
    pub congestion: bool,
    /// The most requests on their way to a node at once, per shard.
    pub congestion_limit_max: u32,
    /// The least that the limit falls to, per shard.
    pub congestion_limit_min: u32,
    /// Places in line for a node, per shard.
    pub congestion_queue_max: u32,
    /// How long a request waits in line, in milliseconds.
    pub congestion_queue_timeout_ms: u64,
    /// How long after its last proof a hot key's value may be answered while its node cannot answer, in
    /// milliseconds; 0 is never.
    pub stale_on_error_ms: u64,
    /// Whether any read goes to a replica, whatever `read_from` and plans say.
    pub replica_reads: bool,
    /// Where reads go.
    pub read_from: ReadFrom,
    /// Whose writes a read from a replica must see.
    pub read_your_writes: ReadYourWrites,
    /// How far behind its primary a replica may be to be read from, in milliseconds; 0 is no bound.
    pub replica_lag_max_ms: u64,
    /// Whether hot keys whose rule's plan has `copies` are copied.
    pub copies: bool,
    /// Copies of a key beside the original; 0 for one on every other primary.
    pub copies_max: usize,
    /// No copy is older, in milliseconds.
    pub copies_max_staleness_ms: u64,
    /// By how much the clocks of primaries may differ, in milliseconds; taken off the life of copies.
    pub copies_clock_skew_ms: u64,
    /// Larger values are not copied, in bytes.
    pub copies_value_max_bytes: usize,
    /// Keys copied at a time.
    pub copies_keys_max: usize,
    /// `error`, `warn`, `info` or `debug`.
    pub log: String,
    /// For whom the log is: people, or machines.
    pub log_format: LogFormat,
}

/// The server or Cluster behind the proxy.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UpstreamSettings {
    /// `auto` asks the server; `standalone` and `cluster` insist; with `sentinel` the addresses are Sentinels'.
    pub mode: Mode,
    /// `host:port` of the server, of several of which one is the primary, of some nodes of the Cluster, or of
    /// the Sentinels.
    pub addresses: Vec<String>,
    /// The name under which the Sentinels watch the primary.
    pub sentinel_service: Option<String>,
    /// ACL user at the Sentinels.
    pub sentinel_username: Option<String>,
    /// Password at the Sentinels; none is shown to them if absent.
    pub sentinel_password: Option<String>,
    /// The database that a client starts in.
    pub db: u32,
    /// ACL user of the proxy's own account.
    pub username: Option<String>,
    /// Password of the proxy's own account. Clients must then authenticate with the same.
    pub password: Option<String>,
    /// How connections to it are encrypted; not at all if absent.
    pub tls: Option<UpstreamTls>,
}

/// How connections upstream are encrypted.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpstreamTls {
    /// What is asked of a server's certificate.
    pub verify: Verify,
    /// Files of certificates that are believed, in PEM.
    pub ca_files: Vec<PathBuf>,
    /// Directories of them, as `openssl rehash` leaves them.
    pub ca_directories: Vec<PathBuf>,
    /// The proxy's own certificate, in PEM, for servers that ask for one.
    pub cert_file: Option<PathBuf>,
    /// Its key; in the same file if absent.
    pub key_file: Option<PathBuf>,
}

/// What is asked of a server's certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verify {
    /// That somebody who is believed issued it, for the name connected to.
    Full,
    /// That somebody who is believed issued it.
    Ca,
    /// Nothing.
    None,
}

/// Who says what is hot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HotSetFrom {
    /// The proxy, by what goes through it.
    Counted,
    /// Others; the proxy does not count.
    Fed,
}

/// Where reads go. Writes, and all that belongs to a transaction or a watch, go to primaries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReadFrom {
    /// To primaries; to replicas only what a rule's plan sends there.
    Primary,
    /// To replicas, and to the primary where none is fit.
    PreferReplica,
    /// To replicas only; where none is fit, an error.
    Replica,
    /// Those of hot keys as with `prefer-replica`, others to primaries.
    HotOnly,
}

/// Whose writes a read from a replica must see, once they have been answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReadYourWrites {
    /// Nobody's.
    None,
    /// Those of the same connection.
    Connection,
    /// Those that went through this proxy.
    Proxy,
    /// Everybody's: the primary is asked first how far it is.
    Global,
}

/// How a line of the log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// A sentence.
    Text,
    /// A JSON object.
    Json,
}

/// Whether connections begin with a header of the PROXY protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProxyProtocol {
    /// They do not.
    Off,
    /// All do.
    Required,
}

/// Who judges passwords of clients, and as whom they are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Auth {
    /// The proxy: all clients are its own account, and give its password.
    Proxy,
    /// The server: each client is the user it says it is.
    PassThrough,
}

/// What kind of deployment the upstream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Ask the server.
    Auto,
    /// One server.
    Standalone,
    /// A Cluster.
    Cluster,
    /// A primary that Sentinels watch: the addresses are theirs.
    Sentinel,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: Some("127.0.0.1:6380".into()),
            reuse_port: false,
            tls_listen: None,
            tls_cert_file: None,
            tls_key_file: None,
            tls_client_ca_file: None,
            proxy_protocol: ProxyProtocol::Off,
            proxy_protocol_trusted: Vec::new(),
            handshake_timeout_ms: 5_000,
            unix_socket: None,
            unix_socket_mode: "600".into(),
            announce: None,
            http: None,
            auth: Auth::Proxy,
            upstream: UpstreamSettings::default(),
            shards: 0,
            max_staleness_ms: 100,
            local_cache: true,
            cache_bytes: 64 << 20,
            cache_value_max_bytes: 1 << 20,
            counting: true,
            hot_set: HotSetFrom::Counted,
            feed_token: None,
            nx_is_lock: true,
            rules: None,
            longer_expiry: Vec::new(),
            longer_expiry_factor_max: 24.0,
            longer_expiry_max_s: 86_400,
            window_ms: 1_000,
            hot_keys_max: 1_000,
            redact_keys: false,
            metrics_hot_keys: 10,
            buffers_max_bytes: 1 << 30,
            clients_max: 10_000,
            client_idle_timeout_s: 0,
            client_output_max_bytes: 0,
            request_max_bytes: 1 << 30,
            connect_timeout_ms: 1_000,
            upstream_timeout_ms: 30_000,
            breaker: true,
            breaker_window_ms: 10_000,
            breaker_calls_min: 20,
            breaker_error_rate: 0.5,
            breaker_slow_ms: 1_000,
            breaker_slow_rate: 0.8,
            breaker_silence_ms: 5_000,
            breaker_open_ms: 50,
            breaker_open_max_ms: 2_000,
            breaker_probes_at_once: 1,
            breaker_probes_needed: 3,
            breaker_recovery_ms: 5_000,
            congestion: true,
            congestion_limit_max: 4_096,
            congestion_limit_min: 32,
            congestion_queue_max: 8_192,
            congestion_queue_timeout_ms: 1_000,
            stale_on_error_ms: 0,
            replica_reads: true,
            read_from: ReadFrom::Primary,
            read_your_writes: ReadYourWrites::Connection,
            replica_lag_max_ms: 1_000,
            copies: true,
            copies_max: 0,
            copies_max_staleness_ms: 1_000,
            copies_clock_skew_ms: 100,
            copies_value_max_bytes: 1 << 20,
            copies_keys_max: 64,
            log: "info".into(),
            log_format: LogFormat::Text,
        }
    }
}

impl Default for UpstreamSettings {
    fn default() -> Self {
        Self {
            mode: Mode::Auto,
            addresses: vec!["127.0.0.1:6379".into()],
            sentinel_service: None,
            sentinel_username: None,
            sentinel_password: None,
            db: 0,
            username: None,
            password: None,
            tls: None,
        }
    }
}

impl Settings {
    /// Reads and checks settings.
    ///
    /// # Errors
    /// A sentence that names the setting and what it accepts.
    pub fn from_json(text: &str) -> Result<Self, String> {
        let settings: Self = serde_json::from_str(text).map_err(|e| format!("settings: {e}"))?;
        settings.check()?;
        Ok(settings)
    }

    /// Checks what one setting can be told by itself, and what they can be told by together.
    ///
    /// # Errors
    /// A sentence that names the setting and what it accepts.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.upstream.addresses.is_empty() {
            return Err("upstream.addresses: name at least one host:port".into());
        }
        if (self.upstream.mode == Mode::Sentinel) != self.upstream.sentinel_service.is_some() {
            return Err("upstream.sentinel_service: with mode sentinel, and only then".into());
        }
        for (name, value) in [
            ("cache_bytes", self.cache_bytes),
            ("cache_value_max_bytes", self.cache_value_max_bytes),
            ("buffers_max_bytes", self.buffers_max_bytes),
            ("clients_max", self.clients_max),
            ("hot_keys_max", self.hot_keys_max),
            ("copies_value_max_bytes", self.copies_value_max_bytes),
            ("copies_keys_max", self.copies_keys_max),
        ] {
            if value == 0 {
                return Err(format!("{name}: must be above 0"));
            }
        }
        if self.client_idle_timeout_s > 31_536_000 {
            return Err("client_idle_timeout_s: 0 (never) to 31536000 (a year)".into());
        }
        if !(1_024..=1 << 32).contains(&self.request_max_bytes) {
            return Err("request_max_bytes: 1024 to 4294967296".into());
        }
        if self.metrics_hot_keys > 1_000 {
            return Err("metrics_hot_keys: 0 (none) to 1000".into());
        }
        if self.shards > 1024 {
            return Err("shards: 0 (one per core) to 1024".into());
        }
        if !(100..=600_000).contains(&self.window_ms) {
            return Err("window_ms: 100 to 600000".into());
        }
        if self.max_staleness_ms != 0 && !(5..=600_000).contains(&self.max_staleness_ms) {
            return Err("max_staleness_ms: 0 (no local cache) or 5 to 600000".into());
        }
        if self.connect_timeout_ms == 0 {
            return Err("connect_timeout_ms: must be above 0".into());
        }
        if !(1_000..=600_000).contains(&self.upstream_timeout_ms) {
            return Err("upstream_timeout_ms: 1000 to 600000".into());
        }
        if self.replica_lag_max_ms != 0 && !(50..=600_000).contains(&self.replica_lag_max_ms) {
            return Err("replica_lag_max_ms: 0 (no bound) or 50 to 600000".into());
        }
        if !(50..=600_000).contains(&self.copies_max_staleness_ms) {
            return Err("copies_max_staleness_ms: 50 to 600000".into());
        }
        if self.copies_clock_skew_ms > self.copies_max_staleness_ms / 2 {
            return Err("copies_clock_skew_ms: at most half of copies_max_staleness_ms".into());
        }
        if !["error", "warn", "info", "debug"].contains(&self.log.as_str()) {
            return Err("log: error, warn, info or debug".into());
        }
        if !(100..=600_000).contains(&self.handshake_timeout_ms) {
            return Err("handshake_timeout_ms: 100 to 600000".into());
        }
        self.check_overload()?;
        self.check_listeners()?;
        self.unix_socket_mode()?;
        self.longer_expiry()?;
        self.rule_set().map(|_| ())
    }

    fn check_listeners(&self) -> Result<(), String> {
        if self.listen.is_none() && self.tls_listen.is_none() && self.unix_socket.is_none() {
            return Err("listen: without it, tls_listen or unix_socket must be given".into());
        }
        let trusted = &self.proxy_protocol_trusted;
        if let Some(text) = trusted.iter().find(|text| Network::parse(text).is_none()) {
            return Err(format!(
                "proxy_protocol_trusted: {text:?} is no network; accepted: 10.0.0.0/8, fd00::/8, 10.1.2.3"
            ));
        }
        if self.proxy_protocol == ProxyProtocol::Required && trusted.is_empty() {
            return Err("proxy_protocol_trusted: name the networks of the balancers".into());
        }
        let pair = (&self.tls_cert_file, &self.tls_key_file);
        match (&self.tls_listen, pair) {
            (Some(_), (None, _)) => Err("tls_cert_file: tls_listen needs it".into()),
            (Some(_), (_, None)) => Err("tls_key_file: tls_listen needs it".into()),
            _ => Ok(()),
        }
    }

    /// The networks from which balancers connect, where clients come through such.
    pub(crate) fn balancers(&self) -> Option<Vec<Network>> {
        let networks = self.proxy_protocol_trusted.iter();
        (self.proxy_protocol == ProxyProtocol::Required)
            .then(|| networks.filter_map(|text| Network::parse(text)).collect())
    }

    /// How much one client may leave unread, in bytes.
    pub(crate) fn output_max(&self) -> usize {
        match self.client_output_max_bytes {
            0 => usize::MAX,
            max => max,
        }
    }

    /// The Unix socket's permissions.
    ///
    /// # Errors
    /// A sentence that names the setting and what it accepts.
    pub fn unix_socket_mode(&self) -> Result<u32, String> {
        u32::from_str_radix(&self.unix_socket_mode, 8)
            .ok()
            .filter(|mode| (0o100..=0o777).contains(mode))
            .ok_or_else(|| "unix_socket_mode: permissions in octal, 100 to 777".into())
    }

    /// The rules as the detector takes them.
    ///
    /// # Errors
    /// A sentence that names the rule and what is wrong with it.
    pub fn rule_set(&self) -> Result<RuleSet, String> {
        let Some(rules) = &self.rules else {
            return Ok(RuleSet::default());
        };
        spec::rule_set(rules)
    }

    /// Whether any rule has keys copied.
    #[must_use]
    pub fn may_copy(&self) -> bool {
        let has_plan = |set: RuleSet| set.rules().iter().any(|rule| rule.plan.copies);
        // A copy has another name than what a user may read.
        let is_too_strict = self.read_your_writes == ReadYourWrites::Global;
        self.auth == Auth::Proxy && !is_too_strict && self.rule_set().is_ok_and(has_plan)
    }

    /// Whether any read may go to a replica.
    #[must_use]
    pub fn reads_replicas(&self) -> bool {
        let has_plan = |set: RuleSet| set.rules().iter().any(|rule| rule.plan.replica_reads);
        let is_wanted = self.read_from != ReadFrom::Primary || self.rule_set().is_ok_and(has_plan);
        self.replica_reads && is_wanted
    }

    /// How a shard counts: with a table as large as the rules ask for.
    ///
    /// # Errors
    /// As [`Settings::rule_set`].
    pub fn window(&self) -> Result<WindowSettings, String> {
        let window = Duration::from_millis(self.window_ms);
        Ok(WindowSettings::for_rules(window, &self.rule_set()?))
    }

    /// The number of data-plane threads to start.
    #[must_use]
    pub fn shard_count(&self) -> usize {
        match self.shards {
            0 => cores::for_shards(),
            n => n,
        }
    }

    /// How long what was sent upstream may go unacknowledged.
    #[must_use]
    pub fn upstream_timeout(&self) -> Duration {
        Duration::from_millis(self.upstream_timeout_ms)
    }

    /// Whether the proxy counts accesses.
    #[must_use]
    pub fn counts(&self) -> bool {
        self.counting && self.hot_set == HotSetFrom::Counted
    }

    /// Whether the settings allow local answers at all.
    #[must_use]
    pub fn may_cache(&self) -> bool {
        let is_too_strict = self.read_your_writes == ReadYourWrites::Global;
        let is_known = self.counting || self.hot_set == HotSetFrom::Fed;
        self.max_staleness_ms > 0 && is_known && !is_too_strict
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_settings_are_refused_by_name() {
        for (text, name) in [
            (r#"{"max_staleness_ms":3}"#, "max_staleness_ms"),
            (r#"{"cache_bytes":0}"#, "cache_bytes"),
            (r#"{"nonsense":0}"#, "nonsense"),
            (r#"{"upstream":{"addresses":[]}}"#, "upstream.addresses"),
            (r#"{"upstream_timeout_ms":0}"#, "upstream_timeout_ms"),
            (r#"{"upstream_timeout_ms":600001}"#, "upstream_timeout_ms"),
        ] {
            let error = Settings::from_json(text).unwrap_err();
            assert!(error.contains(name), "{error}");
        }
    }
}
