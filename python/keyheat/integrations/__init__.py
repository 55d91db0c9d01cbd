"""keyheat inside other frameworks.

# Layout

- `django`, `django_redis`: cache backends whose clients are protected.
- `otel`, `prometheus`: what a protected client counts, for OpenTelemetry and for Prometheus; `figures` is
  the one table of names, units and help texts that both read.
- `hot_key_log`: a line in the log when a key becomes hot or cold.
- `redaction`: how keys are shown where they are shown at all.

Nothing is imported from here until it is asked for by its full name: each module needs a package that an
application without that framework does not have.
"""
